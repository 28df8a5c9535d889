package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/spool"
)

// BenchmarkShip drains a spool of 300 MB of lines of about 100 bytes in a process of its own, and reports what it cost: CPU seconds for a GB of archive bytes, and the
// largest memory. One run is enough: go test -run xxx -bench Ship -benchtime 1x ./shipper
func BenchmarkShip(b *testing.B) {
	const files, perFile = 75, 4 << 20
	chunk := lines(0, 1)
	for i := 1; len(chunk) < perFile; i++ {
		chunk = append(chunk, lines(i, 1)...)
	}
	size := int64(len(chunk))
	for b.Loop() {
		b.StopTimer()
		f := newFakeServer(b)
		p := newPod(b, f, "step-a", "step-b", "step-c", "step-d", "step-e")
		for i := range int64(files) {
			p.write("step-a", spool.LogName(i*size), chunk)
		}
		b.StartTimer()
		cmd := p.process()
		var peak float64
		f.set(func() {
			f.putFault = func(int, string, http.ResponseWriter) (bool, bool) {
				peak = peakMiB(cmd.Process.Pid)
				return true, false
			}
		})
		for f.count(".log.zst") == 0 { // it catches signals before it uploads
			<-f.put
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			b.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			b.Fatalf("%v\n%s", err, p.logged)
		}
		b.StopTimer()
		cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		b.ReportMetric(cpu.Seconds()/(float64(files*size)/1e9), "cpu-s/GB")
		b.ReportMetric(peak, "MiB-peak-RSS")
		if got := f.seal("step-a").Bytes; got != files*size {
			b.Fatalf("%d bytes, want %d", got, files*size)
		}
		b.StartTimer()
	}
	b.SetBytes(files * size)
}

// peakMiB is the largest memory of a process so far. The kernel's ru_maxrss will not do: it begins with that of the process that started it.
func peakMiB(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), "VmHWM:")
	var kib float64
	if _, err := fmt.Sscan(after, &kib); err != nil {
		return 0
	}
	return kib / 1024
}

// BenchmarkSmallPod is the drain of a pod with five steps that printed little: the time that a finished pod waits for the shipper.
func BenchmarkSmallPod(b *testing.B) {
	f := newFakeServer(b)
	for b.Loop() {
		b.StopTimer()
		f.set(func() { clear(f.objects) })
		p := newPod(b, f, "step-a", "step-b", "step-c", "step-d", "step-e")
		for _, name := range p.config.Containers {
			p.write(name, spool.LogName(0), lines(0, 20))
		}
		s := p.shipper()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		b.StartTimer()
		if err := s.run(ctx); err != nil {
			b.Fatal(err)
		}
	}
	if n := f.count("seal.json"); n != 5 {
		b.Fatalf("%d seals, want 5: %v", n, f.uploads)
	}
}
