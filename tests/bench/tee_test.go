//go:build bench

package bench

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// tee measures what is between a step and its container's stdout: nothing, tee(1), Tekton's own runner with -stdout_path, and shiplog's tee. All of them copy to a file as well.
func tee(t *testing.T, r *results) {
	ours, tekton := binary(t, "./shipper/tee"), component(t, "entrypoint")
	for _, s := range []shape{mixed, short, long} {
		size := int64(300_000_000)
		if s == mixed {
			size = 1_000_000_000
		}
		in := text(t, size, s)
		ways := []struct {
			name string
			argv func(dir string) []string
		}{
			{"nothing", func(string) []string { return []string{"cat", in} }},
			{"tee(1)", func(dir string) []string {
				return []string{"sh", "-c", `cat "$1" | tee "$2"`, "sh", in, filepath.Join(dir, "out")}
			}},
			{"Tekton's -stdout_path", func(dir string) []string {
				return []string{tekton, "-termination_path", filepath.Join(dir, "termination"), "-stdout_path", filepath.Join(dir, "out"), "-entrypoint", "cat", "--", in}
			}},
			{"shiplog's tee", func(dir string) []string {
				return append([]string{ours}, contract.Tee{Spool: dir, Limit: 1 << 40, Argv: []string{"cat", in}}.Args()...)
			}},
		}
		speed, cpu, rss := make([]samples, len(ways)), make([]samples, len(ways)), make([]samples, len(ways))
		for i, w := range ways {
			speed[i] = samples{Name: fmt.Sprintf("%s, %s lines, speed", w.name, s), Unit: "GB/s"}
			cpu[i] = samples{Name: fmt.Sprintf("%s, %s lines, CPU for a printed GB", w.name, s), Unit: "s"}
			rss[i] = samples{Name: fmt.Sprintf("%s, %s lines, peak RSS", w.name, s), Unit: "MiB"}
		}
		for range rounds(5) {
			for i, w := range ways {
				c := printed(t, w.argv, size)
				speed[i].add(gb(size) / c.wall.Seconds())
				cpu[i].add(c.cpu.Seconds() / gb(size))
				rss[i].add(mib(c.peak))
			}
		}
		r.keep(speed...)
		r.keep(cpu...)
		r.keep(rss...)
		const mine, theirs = 3, 2
		r.row(fmt.Sprintf("speed, %s lines", s), "faster than Tekton's", ratio(speed[mine], speed[theirs]) > 1, "it writes 41 bytes more for each line to the spool, its time and stream; Tekton's writes what it reads",
			"%v; Tekton's %v: **%.2f times as fast**; tee(1) %v; nothing between %v", speed[mine], speed[theirs], ratio(speed[mine], speed[theirs]), speed[1], speed[0])
		r.row(fmt.Sprintf("CPU for a printed GB with `cat`'s own, %s lines", s), "", true, "", "%v; Tekton's %v; tee(1) %v; nothing between %v", cpu[mine], cpu[theirs], cpu[1], cpu[0])
		r.row(fmt.Sprintf("peak RSS, %s lines", s), "6 MiB", rss[mine].most() <= 6, "", "%v; Tekton's %v", rss[mine], rss[theirs])
	}
}

// printed runs a command whose stdout is a pipe, as a container's is, and reads that.
func printed(t *testing.T, argv func(dir string) []string, size int64) cost {
	t.Helper()
	dir := scratch(t)
	defer os.RemoveAll(dir)
	args := argv(dir)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir // Tekton's leaves a file there
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, cmd)
	var peak int64
	done, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends when done is closed, which printed waits for
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			peak = max(peak, p.peak())
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, out)
	close(done)
	<-ended
	if err != nil || n < size {
		t.Fatalf("%s: %d bytes of %d: %v", cmd, n, size, err)
	}
	c := p.end(t)
	c.peak = peak
	return c
}
