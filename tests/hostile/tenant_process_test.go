//go:build linux

package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/tests/loss/rig"
)

// deployed is what the manifests say of a process.
type deployed struct {
	args   []string
	limit  int64  // bytes
	golang string // GOMEMLIMIT
}

// deployment reads what a file of manifests/base says of the process that it deploys.
func deployment(t *testing.T, file string) deployed {
	t.Helper()
	text, err := os.ReadFile("../../manifests/base/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var d appsv1.Deployment
		if err := yaml.Unmarshal([]byte(doc), &d); err != nil || d.Kind != "Deployment" {
			continue
		}
		c := d.Spec.Template.Spec.Containers[0]
		out := deployed{args: c.Args, limit: c.Resources.Limits.Memory().Value()}
		for _, e := range c.Env {
			if e.Name == "GOMEMLIMIT" {
				out.golang = e.Value
			}
		}
		if out.limit == 0 || out.golang == "" {
			t.Fatalf("%s bounds no memory", file)
		}
		return out
	}
	t.Fatalf("there is no Deployment in %s", file)
	return deployed{}
}

// build makes one of shiplog's programs.
func build(t *testing.T, pkg string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", path, pkg)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path
}

// cgroup bounds a process's memory as a kubelet does, without swap.
type cgroup struct {
	dir   string
	peak  string // the file that has the most memory so far
	kills string // the file that counts the processes that the kernel has killed for want of memory
}

// cgroups counts them, for their names.
var cgroups atomic.Int64

// newCgroup makes one, which ends with the test. Where none can be made the test is skipped, and in
// CI it fails.
func newCgroup(t *testing.T, limit int64) cgroup {
	t.Helper()
	const (
		v1 = "/sys/fs/cgroup/memory"
		v2 = "/sys/fs/cgroup"
	)
	name := fmt.Sprintf("shiplog-hostile-%d-%d", os.Getpid(), cgroups.Add(1))
	c := cgroup{filepath.Join(v1, name), "memory.max_usage_in_bytes", "memory.oom_control"}
	settings := [][2]string{
		{"memory.swappiness", "0"}, {"memory.limit_in_bytes", strconv.FormatInt(limit, 10)},
	}
	if _, err := os.Stat(v1); err != nil {
		c = cgroup{filepath.Join(v2, name), "memory.peak", "memory.events"}
		settings = [][2]string{
			{"memory.swap.max", "0"}, {"memory.max", strconv.FormatInt(limit, 10)},
		}
		// Whether it is handed down shows below.
		_ = os.WriteFile(v2+"/cgroup.subtree_control", []byte("+memory"), 0o644)
	}
	err := os.Mkdir(c.dir, 0o755)
	for _, s := range settings {
		if err == nil {
			err = os.WriteFile(filepath.Join(c.dir, s[0]), []byte(s[1]), 0o644)
		}
	}
	t.Cleanup(func() {
		rig.Until(t, "the cgroup to be empty", waitLimit, func() bool {
			err := syscall.Rmdir(c.dir)
			return err == nil || errors.Is(err, syscall.ENOENT)
		})
	})
	if err != nil {
		msg := fmt.Sprintf("NOT TESTED within a memory limit, since there can be none: %v", err)
		if os.Getenv("CI") != "" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	return c
}

func (c cgroup) read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// most is the most memory that was in use, in bytes.
func (c cgroup) most(t *testing.T) int64 {
	t.Helper()
	n, err := strconv.ParseInt(c.read(t, c.peak), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// killed is how many processes the kernel has killed.
func (c cgroup) killed(t *testing.T) int {
	t.Helper()
	_, after, ok := strings.Cut(c.read(t, c.kills), "oom_kill ")
	fields := strings.Fields(after)
	if !ok || len(fields) == 0 {
		t.Fatalf("%s does not count kills", c.kills)
	}
	n, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// journal is what a process writes to stderr.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed when there is more
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.more != nil {
		close(j.more)
		j.more = nil
	}
	return j.text.Write(b)
}

// now is what there is, and what ends when there is more.
func (j *journal) now() (string, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.more == nil {
		j.more = make(chan struct{})
	}
	return j.text.String(), j.more
}

// service is a process of shiplog's within its memory limit.
type service struct {
	t       *testing.T
	cmd     *exec.Cmd
	group   cgroup
	journal *journal
	done    chan struct{} // closed when it has ended
}

// start starts a program as its manifest does, but for the arguments.
func start(t *testing.T, binary string, d deployed, env []string, args ...string) *service {
	t.Helper()
	s := &service{
		t: t, group: newCgroup(t, d.limit), journal: &journal{}, done: make(chan struct{}),
	}
	// The shell's process becomes the program's, which so begins within the limit.
	into := `echo $$ >"$0" && exec "$@"`
	procs := filepath.Join(s.group.dir, "cgroup.procs")
	s.cmd = exec.Command("/bin/sh", append([]string{"-c", into, procs, binary}, args...)...)
	s.cmd.Env = append([]string{"GOMEMLIMIT=" + d.golang, "PATH=" + os.Getenv("PATH")}, env...)
	s.cmd.Stderr = s.journal
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process, for which stop waits
		defer close(s.done)
		_ = s.cmd.Wait() // its state is looked at
	}()
	t.Cleanup(s.end)
	return s
}

// end ends the process, if it has not ended.
func (s *service) end() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// await waits until the process has said something, which it returns.
func (s *service) await(what string, find func(said string) string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), waitLimit)
	defer cancel()
	for {
		said, more := s.journal.now()
		if found := find(said); found != "" {
			return found
		}
		select {
		case <-more:
		case <-s.done:
			s.t.Fatalf("the process ended before %s: %s, killed for want of memory: %d\n%s", what,
				s.cmd.ProcessState, s.group.killed(s.t), tail(said))
		case <-ctx.Done():
			s.t.Fatalf("waited %s for %s\n%s", waitLimit, what, tail(said))
		}
	}
}

// stop ends the process in peace, and returns the most memory that it had, in bytes. It fails the
// test where the process had ended before.
func (s *service) stop() int64 {
	s.t.Helper()
	select {
	case <-s.done:
		said, _ := s.journal.now()
		s.t.Errorf("the process has ended: %s\n%s", s.cmd.ProcessState, tail(said))
	default:
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	ctx, cancel := context.WithTimeout(s.t.Context(), waitLimit)
	defer cancel()
	select {
	case <-s.done:
	case <-ctx.Done():
		s.t.Error("the process did not end when it was told to")
		s.end()
	}
	if n := s.group.killed(s.t); n > 0 {
		s.t.Errorf("the kernel has killed %d processes for want of memory", n)
	}
	most := s.group.most(s.t)
	if err := syscall.Rmdir(s.group.dir); err != nil && !errors.Is(err, syscall.EBUSY) {
		s.t.Error(err)
	}
	return most
}

// tail is the end of a text.
func tail(s string) string { return s[max(0, len(s)-4000):] }
