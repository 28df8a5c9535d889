//go:build bench

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cost is what a process took.
type cost struct {
	wall, cpu time.Duration
	peak      int64 // most memory, in bytes
}

// process is one that is measured.
type process struct {
	cmd    *exec.Cmd
	begun  time.Time
	stderr bytes.Buffer
}

func startProcess(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, begun: time.Now()}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.stderr
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", cmd, err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill() // it may have ended
			_ = p.cmd.Wait()
		}
	})
	return p
}

// peak is the most memory so far. The kernel's ru_maxrss will not do: it begins with that of the process that started it.
func (p *process) peak() int64 { return kilobytes(p.cmd.Process.Pid, "VmHWM:") }

// resident is the memory now.
func (p *process) resident() int64 { return kilobytes(p.cmd.Process.Pid, "VmRSS:") }

// program is how much of that are pages of the program's file, which the kernel reads again when it needs them.
func (p *process) program() int64 { return kilobytes(p.cmd.Process.Pid, "RssFile:") }

func kilobytes(pid int, field string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, after, ok := strings.Cut(string(b), field)
	fields := strings.Fields(after)
	if !ok || len(fields) == 0 {
		return 0
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

// cpu is what a process has used so far, to 10 ms (utime and stime of proc(5)).
func (p *process) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// end waits for a process that ends by itself.
func (p *process) end(t *testing.T) cost {
	t.Helper()
	err := p.cmd.Wait()
	c := cost{wall: time.Since(p.begun), cpu: p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()}
	if err != nil {
		t.Fatalf("%s: %v\n%s", p.cmd, err, p.stderr.String())
	}
	return c
}

// stop ends a process with SIGTERM. Its wall time is up to that.
func (p *process) stop(t *testing.T) cost {
	t.Helper()
	c := cost{wall: time.Since(p.begun), peak: p.peak()}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("stop %s: %v", p.cmd, err)
	}
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("stop %s: %v", p.cmd, err)
	}
	c.cpu = p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	return c
}

// until asks each 50 ms whether something is so, as long as the process lives.
func (p *process) until(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); !is(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s\n%s", limit, what, p.stderr.String())
		}
		if p.resident() == 0 {
			t.Fatalf("%s ended before %s\n%s", p.cmd, what, p.stderr.String())
		}
	}
}
