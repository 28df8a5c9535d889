//go:build linux

package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// noGrace never kills the child: the pod's own grace period ends it.
const noGrace = time.Duration(math.MaxInt64)

// child is the container's command.
type child struct {
	pid     int
	signals chan os.Signal // to forward
	exits   chan os.Signal // SIGCHLD: a full channel says already that there is something to reap
}

// startChild starts a command with tee's stdin, stdout, stderr, environment and working directory. An error wraps the errno of the lookup or of
// execve(2).
func startChild(argv []string) (*child, error) {
	path, err := lookPath(argv[0])
	if err != nil {
		return nil, err
	}
	c := &child{signals: make(chan os.Signal, 64), exits: make(chan os.Signal, 1)}
	// A signal that comes from now on waits in the channel until there is a child to forward it to.
	signal.Notify(c.exits, unix.SIGCHLD)
	signal.Notify(c.signals, forwarded()...)

	// Not os/exec: it waits for its own child with wait4(pid), and PID 1 must wait for everyone's orphans. ForkExec resets the signals that Go handles and
	// restores the file limit that Go has raised, so the child finds both as the container runtime left them.
	c.pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		c.ignoreSignals()
		return nil, fmt.Errorf("cannot run %q: %w", path, err)
	}
	return c, nil
}

// forwarded are all the signals that go to the child, but these: SIGCHLD is tee's own; SIGURG is what the Go runtime sends to itself to preempt; SIGPIPE says that
// the container's stdout is closed, which the copy finds out by itself. Signals that were ignored when the container began stay so, in the
// child too.
func forwarded() (all []os.Signal) {
	const lastSignal = 64
	for s := syscall.Signal(1); s <= lastSignal; s++ {
		if s != unix.SIGCHLD && s != unix.SIGURG && s != unix.SIGPIPE && !signal.Ignored(s) {
			all = append(all, s)
		}
	}
	return all
}

func (c *child) ignoreSignals() {
	signal.Stop(c.signals)
	signal.Stop(c.exits)
}

// wait forwards signals, as process 1 those that the command would get in its place, and reaps until
// the command itself has ended. SIGTERM calls onTerm, if there is one, and begins the grace period,
// after which the command is killed. Forwarding and reaping are one goroutine, so that no signal goes
// to a process that got the PID after the command.
func (c *child) wait(grace time.Duration, onTerm func() error) syscall.WaitStatus {
	var overdue <-chan time.Time
	for {
		select {
		case <-c.exits:
			if status, ended := c.reap(); ended {
				return status
			}
		case s := <-c.signals:
			if os.Getpid() != 1 || cares(c.pid, s.(syscall.Signal)) {
				// It fails only for a child that has ended and is reaped next.
				_ = unix.Kill(c.pid, s.(syscall.Signal))
			}
			if s == unix.SIGTERM && overdue == nil {
				overdue = time.After(grace)
				if onTerm != nil {
					_ = onTerm() // a hint for the shipper to hurry, which gets SIGTERM itself a little later
				}
			}
		case <-overdue:
			_ = unix.Kill(c.pid, unix.SIGKILL)
		}
	}
}

// cares says whether a process would get a signal if it were process 1, as it is without tee: the
// kernel drops one there that has neither a handler nor is blocked. Of a process that cannot be
// read it says so, too.
func cares(pid int, s syscall.Signal) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	return err != nil || hears(string(status), s)
}

// hears reads that from /proc/PID/status. SIGCONT wakes process 1 like any other, and an ignored
// signal does nothing anywhere.
func hears(status string, s syscall.Signal) bool {
	if s == unix.SIGCONT {
		return true
	}
	found := false
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigBlk" && name != "SigCgt" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil || set&(1<<(s-1)) != 0 {
			return true
		}
		found = found || name == "SigCgt"
	}
	return !found
}

// reap collects every process that has ended, and says whether the command was among them.
func (c *child) reap() (status syscall.WaitStatus, ended bool) {
	for {
		var s syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &s, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || pid <= 0:
			return status, ended
		case pid == c.pid && (s.Exited() || s.Signaled()):
			status, ended = s, true
		}
	}
}

// lookPath finds a command as the container runtime does: a name with a slash is a path, another is looked up in the container's PATH, where folders
// that are not absolute do not count.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var denied error
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path := filepath.Join(dir, name)
		if !filepath.IsAbs(path) {
			continue
		}
		info, err := os.Stat(path)
		if err != nil || info.IsDir() {
			continue
		}
		if err := unix.Access(path, unix.X_OK); err != nil {
			denied = fmt.Errorf("cannot run %q: %w", path, err)
			continue
		}
		return path, nil
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("cannot run %q: it is not in $PATH: %w", name, unix.ENOENT)
}
