//go:build linux

package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/spool"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// shipperCommand is the shipper's binary in its root folder.
func (p *Pod) shipperCommand(args ...string) *exec.Cmd {
	p.t.Helper()
	config, err := p.Config.Encode()
	if err != nil {
		p.t.Fatal(err)
	}
	return &exec.Cmd{
		Path: contract.ShipperBinary, Args: append([]string{contract.ShipperBinary}, args...), Dir: "/",
		Env:         []string{contract.ConfigEnv + "=" + config},
		SysProcAttr: &syscall.SysProcAttr{Chroot: p.root, Credential: &syscall.Credential{Uid: shipperUser, Gid: shipperUser}},
	}
}

// Moment is one at which a shipper is killed: it has begun a system call on a file, and the kernel has not done it yet.
type Moment struct {
	Call string // the system call, or a regular expression between slashes for several
	// File is the file's path here. A name without a folder is what the shipper gives beside an open folder.
	File string
	Then func() // is called when the shipper is dead, before the next begins
}

// KillAt kills the shippers that start from now on, one at each of the moments, in this order. Those behind the last are left alone.
func (p *Pod) KillAt(moments ...Moment) {
	p.t.Helper()
	needStrace(p.t)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moments = append(p.moments, moments...)
}

// MomentsLeft is at how many moments of KillAt's no shipper was killed yet.
func (p *Pod) MomentsLeft() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.moments)
}

// moment is the one at which the next shipper is to be killed, or nil.
func (p *Pod) moment() *Moment {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.moments) == 0 {
		return nil
	}
	return &p.moments[0]
}

// hit says that the moment has come.
func (p *Pod) hit(m *Moment) {
	if m.Then != nil {
		m.Then()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moments = p.moments[1:]
}

// killedAt is the shipper under strace, which kills it at the moment. The process is the shipper's own: its tracer is a grandchild (-D), which ends with it.
func (p *Pod) killedAt(m Moment) *exec.Cmd {
	p.t.Helper()
	cmd := p.shipperCommand()
	// Without --seccomp-bpf, with which strace 6.1 injects no signal.
	args := []string{"strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + m.Call, "-e", "inject=" + m.Call + ":signal=SIGKILL", "-P", m.File}
	if inside, ok := strings.CutPrefix(m.File, p.root); ok {
		args = append(args, "-P", inside) // as the shipper names it, where it does
	}
	// strace has no place in the shipper's root folder, so that the folder is changed behind it. chroot itself makes none of the calls on the file.
	user := fmt.Sprintf("--userspec=%d:%d", shipperUser, shipperUser)
	args = append(args, chroot, user, "--groups=", p.root, cmd.Path)
	cmd.Path, cmd.Args, cmd.SysProcAttr = strace, append(args, cmd.Args[1:]...), nil
	return cmd
}

// shipperProcess is the shipper as the kubelet keeps it: a shipper that ends is started again, until the pod ends.
type shipperProcess struct {
	pod      *Pod
	stopping atomic.Bool
	done     chan struct{} // closed when it has ended for good
	kills    atomic.Int64
	starts   chan struct{} // one token for the last start

	mu  sync.Mutex // guards what follows
	cmd *exec.Cmd
	rss int64 // KiB, the most of all processes
	err error // why it could not be started
}

// StartShipper starts the shipper, and keeps it running. The test's end kills it if nothing else has ended it.
func (p *Pod) StartShipper() {
	p.t.Helper()
	s := &shipperProcess{pod: p, done: make(chan struct{}), starts: make(chan struct{}, 1)}
	p.shipper = s
	go s.keep() // ends with the last process; the cleanup waits for it
	p.t.Cleanup(func() {
		s.stopping.Store(true)
		s.signal(unix.SIGKILL)
		<-s.done
		if p.t.Failed() {
			p.t.Logf("the shipper logged:\n%s", p.ShipperLog())
		}
	})
	select {
	case <-s.starts:
	case <-s.done:
		p.t.Fatal(s.err)
	}
}

func (s *shipperProcess) keep() {
	defer close(s.done)
	for !s.stopping.Load() {
		cmd, moment := s.pod.shipperCommand(), s.pod.moment()
		if moment != nil {
			cmd = s.pod.killedAt(*moment)
		}
		cmd.Stderr = lockedWriter{s.pod}
		kills := s.kills.Load()
		s.mu.Lock()
		err := cmd.Start()
		s.cmd, s.err = cmd, err
		s.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case s.starts <- struct{}{}:
		default:
		}
		ended := make(chan struct{})
		var sampling sync.WaitGroup
		sampling.Go(func() { s.sample(cmd.Process.Pid, ended) })
		_ = cmd.Wait() // how it ended does not matter: it is started again, or was to end
		// Nobody else has killed it.
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); moment != nil && ok && status.Signal() == unix.SIGKILL && s.kills.Load() == kills && !s.stopping.Load() {
			s.pod.hit(moment)
		}
		if s.pod.OnDeath != nil {
			s.pod.OnDeath()
		}
		close(ended)
		sampling.Wait()
	}
}

// sample reads the peak of the memory that is resident. The kernel's count at a process's end holds that of the process that forked it, too.
func (s *shipperProcess) sample(pid int, ended <-chan struct{}) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if kib := peak(pid); kib > 0 {
			s.mu.Lock()
			s.rss = max(s.rss, kib)
			s.mu.Unlock()
		}
		select {
		case <-tick.C:
		case <-ended:
			return
		}
	}
}

// peak is a process's VmHWM in KiB, 0 if it has ended.
func peak(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return kib
		}
	}
	return 0
}

func (s *shipperProcess) signal(sig os.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(sig) // one that has ended is what was wanted
	}
}

// KillShipper kills the shipper, which the kubelet then starts again.
func (p *Pod) KillShipper() {
	p.shipper.kills.Add(1)
	p.shipper.signal(unix.SIGKILL)
}

// ShippedFiles is how many files of a container's spool are shipped, by what the shipper has recorded, and not deleted.
func (p *Pod) ShippedFiles(container string) int {
	type state struct{ Position spool.Position }
	var recorded struct {
		state
		Before *state // the pending segment, which may not be in the store yet
	}
	b, err := os.ReadFile(filepath.Join(p.StateFolder(), container+".json"))
	if err == nil {
		err = json.Unmarshal(b, &recorded)
	}
	if err != nil {
		return 0 // nothing is recorded yet
	}
	shipped := recorded.Position
	if recorded.Before != nil {
		shipped = recorded.Before.Position
	}
	names, err := os.ReadDir(p.Folder(container))
	if err != nil {
		p.t.Error(err)
	}
	n := 0
	for _, e := range names {
		if base, ok := spool.ParseLogName(e.Name()); ok && base < shipped.Base {
			n++
		}
	}
	return n
}

// ShipperStarts gives a token for the last start of the shipper.
func (p *Pod) ShipperStarts() <-chan struct{} { return p.shipper.starts }

// Stop ends the pod: the steps have ended, the shipper gets SIGTERM, and SIGKILL when the grace is over. It says whether the shipper drained and ended by itself, and how long it took. Nobody kills the
// shipper meanwhile.
func (p *Pod) Stop(grace time.Duration) (drained bool, took time.Duration) {
	p.t.Helper()
	s := p.shipper
	// One that has just been started would die of SIGTERM, before it can catch it.
	Until(p.t, "a shipper that runs", time.Minute, s.running)
	begin := time.Now()
	s.stopping.Store(true)
	s.signal(unix.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-s.done:
		return s.cmd.ProcessState.ExitCode() == 0, time.Since(begin)
	case <-timer.C:
		s.signal(unix.SIGKILL)
		<-s.done
		return false, time.Since(begin)
	}
}

// running says that a shipper's process has one of the spool's folders open, which it does when it
// catches signals. One that a step has closed to it is not.
func (s *shipperProcess) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil || s.cmd.Process == nil {
		return false
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.cmd.Process.Pid))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(s.pod.Config.Containers, func(container string) bool {
		folder := s.pod.Folder(container)
		return slices.ContainsFunc(fds, func(fd string) bool {
			to, err := os.Readlink(fd)
			return err == nil && to == folder
		})
	})
}

// ShipperPeak is the most memory in bytes that a process of the shipper's had resident.
func (p *Pod) ShipperPeak() int64 {
	p.shipper.mu.Lock()
	defer p.shipper.mu.Unlock()
	return p.shipper.rss << 10
}

// ShipperLog is what the shippers have logged.
func (p *Pod) ShipperLog() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

type lockedWriter struct{ pod *Pod }

func (w lockedWriter) Write(b []byte) (int, error) {
	w.pod.mu.Lock()
	defer w.pod.mu.Unlock()
	return w.pod.log.Write(b)
}

// Step is a step's container: tee with a process that prints a sequence.
type Step struct {
	Container string
	Seed      uint64
	Rate      sequence.Rate

	t      testing.TB
	cmd    *exec.Cmd
	stdout *sequence.Checker // of what the container itself prints
	stderr bytes.Buffer
	count  string // file
	peak   atomic.Int64
	done   chan struct{} // closed when it has ended
}

// StepOptions are a step's.
type StepOptions struct {
	sequence.Options
	Exit     int  // the process's exit code
	Isolated bool // in a PID namespace, as a container: when tee is killed, so is all
}

// seeds makes the sequences of all steps different.
var seeds atomic.Uint64

// Start starts a step.
func (p *Pod) Start(container string, o StepOptions) *Step {
	p.t.Helper()
	s := &Step{
		Container: container, Seed: seeds.Add(1), Rate: o.Rate, t: p.t,
		count: filepath.Join(p.t.TempDir(), "count"), done: make(chan struct{}),
	}
	s.stdout = sequence.NewChecker(sequence.Stream{Seed: s.Seed})
	argv := []string{
		filepath.Join(bin, "sequence"), "print", "-seed", fmt.Sprint(s.Seed), "-lines", fmt.Sprint(o.Rate.Lines), "-rate", fmt.Sprint(o.Rate.Bytes),
		"-records", fmt.Sprint(o.Records), "-bytes", fmt.Sprint(o.Bytes), "-for", o.Duration.String(), "-count", s.count, "-exit", fmt.Sprint(o.Exit),
	}
	tee := contract.Tee{Spool: p.Folder(container), Limit: p.Config.SpoolLimit, Grace: 30 * time.Second, Argv: argv}
	s.cmd = exec.Command(filepath.Join(p.volume, contract.BinSubPath, filepath.Base(contract.TeePath)), tee.Args()...)
	s.cmd.Stdout, s.cmd.Stderr = s.stdout, &s.stderr
	if o.Isolated {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	}
	if err := s.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() { // ends with the process; the cleanup waits for it
		defer close(s.done)
		ended := make(chan struct{})
		var sampling sync.WaitGroup
		sampling.Go(func() {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				s.peak.Store(max(s.peak.Load(), peak(s.cmd.Process.Pid)<<10))
				select {
				case <-tick.C:
				case <-ended:
					return
				}
			}
		})
		_ = s.cmd.Wait() // its state says how
		close(ended)
		sampling.Wait()
	}()
	p.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.done
	})
	return s
}

// Kill kills tee.
func (s *Step) Kill() { _ = s.cmd.Process.Kill() }

// KillProcess kills the process that tee runs.
func (s *Step) KillProcess() {
	s.t.Helper()
	// Each thread has its own children.
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	killed := 0
	for _, children := range threads {
		b, err := os.ReadFile(children)
		if err != nil {
			continue // the thread has ended
		}
		for _, pid := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(pid)
			if err == nil {
				err = unix.Kill(n, unix.SIGKILL)
			}
			if err != nil {
				s.t.Fatal(err)
			}
			killed++
		}
	}
	if killed != 1 {
		s.t.Fatalf("tee had %d processes to kill", killed)
	}
}

// Wait waits for the step's end, and returns the container's exit code: -1 if tee itself was killed.
func (s *Step) Wait() int {
	s.t.Helper()
	<-s.done
	return s.cmd.ProcessState.ExitCode()
}

// Printed is the number of bytes that the step's process has printed so far.
func (s *Step) Printed() int64 {
	s.t.Helper()
	b, err := os.ReadFile(s.count)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err != nil {
		s.t.Fatal(err)
	}
	if len(b) == 0 {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// Unharmed ends the step, and fails the test unless it ended as it would have without shiplog: with its exit code, and with all that it printed on the container's own stdout.
func (s *Step) Unharmed(exit int) {
	s.t.Helper()
	if code := s.Wait(); code != exit {
		s.t.Errorf("%s ended with exit code %d, not %d: %s", s.Container, code, exit, s.stderr.String())
	}
	if printed := s.Printed(); printed == 0 {
		s.t.Errorf("%s printed nothing", s.Container)
	} else if r := s.stdout.Finish(printed); !r.Whole() {
		s.t.Errorf("%s itself printed: %v", s.Container, r)
	}
}

// Stderr is what the container printed on stderr. The step has ended.
func (s *Step) Stderr() string { return s.stderr.String() }

// Peak is the most memory in bytes that tee had resident.
func (s *Step) Peak() int64 { return s.peak.Load() }

// Until waits for a condition, and fails the test if it does not come in time.
func Until(t testing.TB, what string, limit time.Duration, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", limit, what)
		case <-tick.C:
		}
	}
}

// Pass lets so much time pass: for how long something is broken.
func Pass(t testing.TB, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}
