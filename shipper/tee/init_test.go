//go:build linux

package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asInit makes tee PID 1 of a PID namespace of its own, with its own /proc, as in a container.
func asInit(t *testing.T, r *teeRun, argv ...string) *exec.Cmd {
	t.Helper()
	needRoot(t)
	cmd := initCommand(teeBinary, r.args(argv...)...)
	r.attach(cmd)
	return cmd
}

// initCommand is a command that is PID 1 of a PID namespace of its own, with its own /proc.
func initCommand(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("sh", append([]string{
		"-c", `mount -t proc proc /proc && exec "$@"`, "sh", name,
	}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// Unshareflags makes the mounts private, too, so that this /proc is seen nowhere else.
		Cloneflags: unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS,
	}
	return cmd
}

func TestInit(t *testing.T) {
	for _, tc := range []struct {
		name, script   string
		code           int
		stdout, stderr string
	}{
		{"is PID 1", `tr '\0' '\n' </proc/1/cmdline | sed 's|.*/||' | head -1`, 0, "tee\n", ""},
		{"a background process does not keep the step alive", `(sleep 1000; echo late) & echo now; exit 3`, 3, "now\n", ""},
		{"nor one in a session of its own", `setsid sleep 1000 & echo now; exit 3`, 3, "now\n", ""},
		{"what it wrote before is kept", `{ echo background; echo done >&9; sleep 1000; } 9>"$0/fifo" & read x <"$0/fifo"; echo now`, 0, "background\nnow\n", ""},
		{"writes to /proc/1/fd are captured", `echo one >/proc/1/fd/1; echo two >/proc/1/fd/2`, 0, "one\n", "two\n"},
		{"writes to /dev/stdout are captured", `echo one >/dev/stdout; echo two >/dev/stderr`, 0, "one\n", "two\n"},
		{"orphans are reaped", `
			i=0; while [ $i -lt 50 ]; do ( sh -c 'exec true' & ) ; i=$((i+1)); done
			# All of them have ended when the pipe that they hold has.
			( sh -c 'exec true' & ) | cat
			while grep -qsx true /proc/[0-9]*/comm; do :; done
			grep -l '^State:.Z' /proc/[0-9]*/status; echo none`, 0, "none\n", ""},
		{"an orphan's status is not the command's", `( sh -c 'exit 7' & ); kill -KILL $$`, 137, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRun(t)
			dir := t.TempDir()
			if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
				t.Fatal(err)
			}
			// Without tee's help, a test whose tee waits for the sleep ends with the test's own timeout.
			cmd := asInit(t, r, "sh", "-c", tc.script, dir)
			if code := exitCode(t, cmd.Run()); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if r.stdout.String() != tc.stdout || r.stderr.String() != tc.stderr {
				t.Errorf("printed %q and %q, want %q and %q", r.stdout.String(), r.stderr.String(), tc.stdout, tc.stderr)
			}
			if got := r.checkComplete(t); got.end.Exit.Code != tc.code {
				t.Errorf("the end says %+v", got.end.Exit)
			}
		})
	}
}

// The command gets the signals for which it has a handler. Others it does not get, as it would not
// if it were PID 1 itself, which has no default action for signals: it goes on until it is killed.
func TestInitForwards(t *testing.T) {
	for _, tc := range []struct {
		signal syscall.Signal
		then   syscall.Signal // sent next; the number is larger, so tee takes it next, too
		child  string
		grace  time.Duration
		code   int
		stdout string
	}{
		{unix.SIGTERM, 0, "signal", time.Hour, 5, "15\n"},
		{unix.SIGUSR1, 0, "signal", time.Hour, 5, "10\n"},
		{unix.SIGTERM, 0, "stuck", 20 * time.Millisecond, 137, ""},
		{unix.SIGTERM, 0, "careless", 20 * time.Millisecond, 137, ""},
		{unix.SIGUSR1, unix.SIGUSR2, "careless", time.Hour, 6, ""},
		{unix.SIGHUP, unix.SIGUSR2, "careless", time.Hour, 6, ""},
	} {
		t.Run(tc.child+" "+tc.signal.String(), func(t *testing.T) {
			r := newRun(t)
			r.grace = tc.grace
			// A shell that has a handler for one signal alone.
			argv := []string{"sh", "-c",
				`trap 'exit 6' USR2; echo ready; while :; do sleep 1000 & wait; done`}
			if tc.child != "careless" {
				argv = r.asChild(t, tc.child)
			}
			cmd := asInit(t, r, argv...)
			cmd.Env = append(cmd.Env, r.env...)
			rest := startReady(t, r, cmd)
			for _, s := range []syscall.Signal{tc.signal, tc.then} {
				if s == 0 {
					continue
				}
				if err := cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			var got strings.Builder
			if _, err := rest.WriteTo(&got); err != nil || got.String() != tc.stdout {
				t.Errorf("the child printed %q, %v, want %q", got.String(), err, tc.stdout)
			}
			if code := exitCode(t, cmd.Wait()); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			r.stdout.WriteString("ready\n" + got.String())
			r.checkComplete(t)
		})
	}
}

func TestInitCares(t *testing.T) {
	status := func(blocked, ignored, caught string) string {
		return "Name:\tsh\nSigQ:\t0/1\nSigPnd:\t0000000000000000\nSigBlk:\t" + blocked +
			"\nSigIgn:\t" + ignored + "\nSigCgt:\t" + caught + "\nThreads:\t1\n"
	}
	const none, term, all = "0000000000000000", "0000000000004000", "ffffffffffffffff"
	for name, tc := range map[string]struct {
		status string
		signal syscall.Signal
		want   bool
	}{
		"neither":              {status(none, none, none), unix.SIGTERM, false},
		"a handler":            {status(none, none, term), unix.SIGTERM, true},
		"another's handler":    {status(none, none, term), unix.SIGUSR1, false},
		"blocked":              {status(term, none, none), unix.SIGTERM, true},
		"ignored":              {status(none, term, none), unix.SIGTERM, false},
		"the first signal":     {status(none, none, "0000000000000001"), unix.SIGHUP, true},
		"the last signal":      {status(none, none, "8000000000000000"), 64, true},
		"all but the last":     {status(none, none, "7fffffffffffffff"), 64, false},
		"all":                  {status(none, none, all), 34, true},
		"SIGCONT wakes anyone": {status(none, none, none), unix.SIGCONT, true},
		"not a status":         {"", unix.SIGTERM, true},
		"a line too few":       {"SigBlk:\t" + none + "\n", unix.SIGTERM, true},
		"not a number":         {status(none, none, "x"), unix.SIGTERM, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := hears(tc.status, tc.signal); got != tc.want {
				t.Errorf("it gets the signal: %t, want %t", got, tc.want)
			}
		})
	}
	if !cares(-1, unix.SIGTERM) {
		t.Error("a process that cannot be read does not get the signal")
	}
}
