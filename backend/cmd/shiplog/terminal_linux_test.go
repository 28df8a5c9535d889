package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/backend"
)

// terminal is a pseudo-terminal: what is written to it, shown returns.
type terminal struct {
	*os.File
	shown func() string
}

func openTerminal(t *testing.T) terminal {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&b, screen) // EIO when the other end is closed
	}()
	end := func() {
		f.Close()
		<-done
		screen.Close()
	}
	t.Cleanup(end)
	return terminal{f, func() string { end(); return strings.ReplaceAll(b.String(), "\r\n", "\n") }}
}

// TestProgress: a bar is shown on a terminal, also of a log that has become longer than it was, which is saved all the same.
func TestProgress(t *testing.T) {
	server := newFakeServer(t)
	long := strings.Repeat("0123456789abcde\n", 64<<10)
	for _, c := range []struct {
		name string
		said int64 // bytes, by the tree
	}{{"as long as it was", int64(len(long))}, {"grown", int64(len(long))/4 + 1}, {"was empty", 0}} {
		t.Run(c.name, func(t *testing.T) {
			server.containers = []fakeLog{fakeContainer("step-a", c.said, long), fakeContainer("step-b", 0, "")}
			server.containers[1].task = "other"
			stderr, dir := openTerminal(t), t.TempDir()
			if err := run(t.Context(), []string{"get", "-n", "ns", "run", "--to", dir, "--server", server.URL}, io.Discard, stderr.File); err != nil {
				t.Error(err)
			}
			if files := filesIn(t, dir); len(files) != 2 || files["good/step-a.log"] != long {
				t.Errorf("%d files, %d bytes of the log", len(files), len(files["good/step-a.log"]))
			}
			got := stderr.shown()
			if !strings.Contains(got, "2 logs are in "+dir) || c.said > 0 && !strings.Contains(got, "%") {
				t.Errorf("the terminal shows %q", got)
			}
		})
	}
}

// TestColours: each stream decides for itself.
func TestColours(t *testing.T) {
	server := newFakeServer(t)
	a, b := fakeContainer("step-a", 2, "1\n"), fakeContainer("step-b", 2, "2\n")
	b.task = "other"
	b.Status, b.Why = backend.Partial, "\x1b]0;title\x07"
	server.containers = []fakeLog{a, b}
	const paintedA, paintedB = "\x1b[92;1m[good : a] \x1b[0;22m", "\x1b[93;1m[other : b] \x1b[0;22m"
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"on a terminal", nil, paintedA + "1\n\n" + paintedB + "2\n\n"},
		{"not wanted", []string{"-C"}, "[good : a] 1\n\n[other : b] 2\n\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout := openTerminal(t)
			var stderr bytes.Buffer
			_ = run(t.Context(), append([]string{"logs", "--archive", "-n", "ns", "run", "--server", server.URL}, c.args...), stdout.File, &stderr)
			if got := stdout.shown(); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			if want := `-- shiplog: this log is partial: \x1b]0;title\a` + "\n"; !strings.HasSuffix(stderr.String(), want) {
				t.Errorf("stderr %q does not end with %q", stderr.String(), want)
			}
		})
	}
	t.Run("stderr alone", func(t *testing.T) {
		file, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		stderr := openTerminal(t)
		s := &settings{stdout: file, stderr: stderr.File}
		if s.colors(s.stdout) || !s.colors(s.stderr) {
			t.Errorf("stdout %v, stderr %v", s.colors(s.stdout), s.colors(s.stderr))
		}
		t.Setenv("NO_COLOR", "1")
		if s.colors(s.stderr) {
			t.Error("NO_COLOR is not heeded")
		}
	})
}

// TestSearchOnTerminal: a person sees what a hit would do to the terminal; a program gets it as it is.
func TestSearchOnTerminal(t *testing.T) {
	server := newFakeServer(t)
	server.containers = []fakeLog{fakeContainer("step-a", 2, "x\n")}
	server.matches = `{"taskRun":"run-0","task":"good","retry":0,"container":"step-a","line":7,"text":"\u001b]0;title\u0007red","before":[{"line":6,"text":"\u001b[2J"}]}` + "\n"
	args := []string{"search", "-n", "ns", "run", "red", "-B", "1", "--server", server.URL}
	stdout := openTerminal(t)
	if err := run(t.Context(), args, stdout.File, io.Discard); err != nil {
		t.Error(err)
	}
	if got, want := stdout.shown(), `[good : a] 6- \x1b[2J`+"\n"+`[good : a] 7: \x1b]0;title\ared`+"\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	got, code := said(t, args)
	if want := "[good : a] 6- \x1b[2J\n[good : a] 7: \x1b]0;title\ared\n"; got != want || code != 0 {
		t.Errorf("exit code %d, %q, want %q", code, got, want)
	}
}
