//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/spool"
)

// nodeUser is who shippers run as, on all pods of a node.
const nodeUser = 65532

// asNodeUser lets p's shipper run as that user, with a binary that the user can reach.
func asNodeUser(t testing.TB, p *pod, binary string) *exec.Cmd {
	t.Helper()
	if err := os.Chmod(filepath.Dir(p.volume), 0o755); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(p.volume, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, nodeUser, nodeUser)
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := p.command()
	cmd.Path = binary
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nodeUser, Gid: nodeUser},
	}
	return cmd
}

// reachable copies the test's binary to where any user can run it.
func reachable(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this needs root, and CI must run it")
		}
		t.Skip("left out: it needs root, to run shippers as another user")
	}
	dir := t.TempDir()
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "shipper")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// hasInotify says whether a process holds an inotify instance.
func hasInotify(pid int) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // a good pattern
	return slices.ContainsFunc(fds, func(fd string) bool {
		to, err := os.Readlink(fd)
		return err == nil && to == "anon_inode:inotify"
	})
}

// cpuSeconds is what a process's threads have used so far.
func cpuSeconds(t testing.TB, pid int) (sum float64) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	for _, thread := range threads {
		b, err := os.ReadFile(thread)
		if err != nil {
			continue // it has ended
		}
		var ns float64
		if _, err := fmt.Sscan(string(b), &ns); err != nil {
			t.Fatal(err)
		}
		sum += ns / 1e9
	}
	return sum
}

// BenchmarkNode is a node of 200 pods with five containers each, on which each step prints a line now
// and then. It reports how long a line takes to be in the store, what a shipper costs that has nothing
// to do, and how many inotify instances the shippers' user has left for others:
// go test -run xxx -bench Node -benchtime 1x ./shipper
func BenchmarkNode(b *testing.B) {
	const pods, rounds, idle = 200, 5, 10 * time.Second
	binary := reachable(b)
	for b.Loop() {
		f := newFakeServer(b)
		seen := make(chan string, pods)
		f.putFault = func(_ int, name string, _ http.ResponseWriter) (bool, bool) {
			if container, _, ok := strings.Cut(name, "/"); ok && strings.HasSuffix(name, ".log.zst") {
				seen <- container
			}
			return true, false
		}
		var all []*pod
		var processes []*exec.Cmd
		steps := map[string]int{}
		for i := range pods {
			var names []string
			for j := range 5 {
				names = append(names, fmt.Sprintf("step-%03d-%d", i, j))
			}
			steps[names[0]] = i
			p := newPod(b, f, names...)
			p.config.SpoolLimit = 1 << 30
			cmd := asNodeUser(b, p, binary)
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			all, processes = append(all, p), append(processes, cmd)
		}
		at := make([]time.Time, pods)
		var lags []time.Duration
		for round := range rounds + 1 { // in the first one they begin
			order := rand.Perm(pods)
			tick := time.NewTicker(20 * time.Millisecond)
			for waiting := 0; len(order) > 0 || waiting > 0; {
				var next <-chan time.Time
				if len(order) > 0 {
					next = tick.C
				}
				select {
				case <-next:
					i := order[0]
					order = order[1:]
					waiting++
					at[i] = time.Now()
					all[i].write(all[i].config.Containers[0], spool.LogName(0), lines(round, 1))
				case name := <-seen:
					waiting--
					if round > 0 {
						lags = append(lags, time.Since(at[steps[name]]))
					}
				}
			}
			tick.Stop()
		}
		instances, cpu := 0, 0.0
		for _, cmd := range processes {
			if hasInotify(cmd.Process.Pid) {
				instances++
			}
			cpu -= cpuSeconds(b, cmd.Process.Pid)
		}
		<-time.After(idle) // what is measured is how little happens meanwhile
		for _, cmd := range processes {
			cpu += cpuSeconds(b, cmd.Process.Pid)
			if err := cmd.Process.Kill(); err != nil {
				b.Fatal(err)
			}
			_ = cmd.Wait() // killed
		}
		slices.Sort(lags)
		b.ReportMetric(lags[len(lags)/2].Seconds(), "s-p50-lag")
		b.ReportMetric(lags[len(lags)*99/100].Seconds(), "s-p99-lag")
		b.ReportMetric(lags[len(lags)-1].Seconds(), "s-longest-lag")
		b.ReportMetric(1e3*cpu/idle.Seconds()/pods, "idle-mCPU")
		b.ReportMetric(float64(instances), "inotify-instances")
	}
}
