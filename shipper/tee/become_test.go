//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// The prototype that was measured against tee: a container's first process makes a pipe, forks a
// copier, and becomes the container's command by exec, which so is process 1. docs/decisions.md
// says what came of it.

// childBecome is that first process. Its first argument is the file that the copier writes to. It
// waits until the copier reads, so that nothing but the end is left to chance.
func childBecome(args []string) {
	if err := become(args[0], args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
}

func become(file string, argv []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	out, to, err := os.Pipe()
	if err != nil {
		return err
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	copier := exec.Command(self, file)
	copier.Env = append(os.Environ(), childEnv+"=copier")
	copier.Stdin, copier.Stdout, copier.Stderr = out, os.Stdout, os.Stderr
	copier.ExtraFiles = []*os.File{tell}
	if err := copier.Start(); err != nil {
		return err
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the copier: %w", err)
	}
	if err := unix.Dup2(int(to.Fd()), 1); err != nil {
		return err
	}
	path, err := lookPath(argv[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, argv, os.Environ())
}

// childCopier copies its stdin to a file and to its stdout, the file first, as tee does.
func childCopier(args []string) {
	f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		os.Exit(98)
	}
	if _, err := os.NewFile(3, "ready").Write([]byte{1}); err != nil {
		os.Exit(98)
	}
	if _, err := io.Copy(io.MultiWriter(f, os.Stdout), os.Stdin); err != nil {
		os.Exit(98)
	}
}

// BenchmarkBecome counts the runs in which something is missing of what a container printed, in
// the copy or in the container's own stdout: with the prototype, and with tee.
func BenchmarkBecome(b *testing.B) {
	const page = `i=0; while [ $i -lt 64 ]; do printf %1023s\\n x; i=$((i+1)); done; `
	for _, tc := range []struct {
		name, script string
		printed      int
	}{
		{"a line", "echo x; exit 3", 2},
		// As behind Tekton's entrypoint, which ends after the step's command.
		{"a line of a child", `sh -c 'echo x'; exit 3`, 2},
		{"64 KiB", page + "exit 3", 64 << 10},
		// A child of process 1 kills all that it may, and process 1 goes on.
		{"all are killed", `sh -c 'kill -9 -1'; echo x; exit 3`, 2},
	} {
		b.Run(strings.ReplaceAll(tc.name, " ", "-"), func(b *testing.B) {
			b.Run("become", func(b *testing.B) {
				self, err := os.Executable()
				if err != nil {
					b.Fatal(err)
				}
				countShort(b, tc.printed, func(dir string) (*exec.Cmd, func() (int, error)) {
					file := filepath.Join(dir, "copy")
					cmd := initCommand(self, file, "sh", "-c", tc.script)
					cmd.Env = append(os.Environ(), childEnv+"=become")
					return cmd, func() (int, error) {
						kept, err := os.ReadFile(file)
						return len(kept), err
					}
				})
			})
			b.Run("tee", func(b *testing.B) {
				countShort(b, tc.printed, func(dir string) (*exec.Cmd, func() (int, error)) {
					r := &teeRun{spool: dir, limit: 1 << 30, grace: noGrace}
					cmd := initCommand(teeBinary, r.args("sh", "-c", tc.script)...)
					cmd.Env = os.Environ()
					return cmd, func() (int, error) { return len(readSpool(b, dir).stdout), nil }
				})
			})
		})
	}
}

// countShort runs commands, as many at once as the test has processors, and reports in how many
// runs the copy, or the container's stdout, is shorter than what was printed.
func countShort(
	b *testing.B, printed int, run func(dir string) (cmd *exec.Cmd, kept func() (int, error)),
) {
	needRoot(b)
	var shortCopy, shortStdout, runs atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			dir, err := os.MkdirTemp(b.TempDir(), "")
			if err != nil {
				b.Error(err)
				return
			}
			cmd, kept := run(dir)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err = cmd.Run() // the command fails on purpose
			n, keptErr := kept()
			if c := cmd.ProcessState; keptErr != nil || c == nil || c.ExitCode() == 99 {
				b.Errorf("%v, %v: %s", err, keptErr, stderr.Bytes())
				return
			}
			runs.Add(1)
			if n < printed {
				shortCopy.Add(1)
			}
			if stdout.Len() < printed {
				shortStdout.Add(1)
			}
		}
	})
	b.ReportMetric(float64(shortCopy.Load()), "short-copies")
	b.ReportMetric(float64(shortStdout.Load()), "short-stdouts")
	b.ReportMetric(float64(runs.Load()), "runs")
}
