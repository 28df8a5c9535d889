//go:build linux

package spool

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// pipeReader is a reader of a folder, which holds the pipes if there are any.
func pipeReader(t *testing.T, dir string) *Reader {
	t.Helper()
	r, err := OpenReader(dir, &Buffers{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := r.Look(Position{}); err != nil {
		t.Fatal(err)
	}
	return r
}

// makePipes makes both pipes, and returns the write ends of stdout and stderr. The read ends are closed by kill, as when tee is killed.
func makePipes(t *testing.T, dir string) (writes [2]*os.File, kill func()) {
	t.Helper()
	var reads [2]int
	if err := MakePipes(dir); err != nil {
		t.Fatal(err)
	}
	for i, s := range pipeStreams {
		read, write, err := OpenPipe(dir, s)
		if err != nil {
			t.Fatal(err)
		}
		reads[i], writes[i] = read, os.NewFile(uintptr(write), string(s))
	}
	return writes, func() {
		for i := range reads {
			if err := unix.Close(reads[i]); err != nil {
				t.Error(err)
			}
			if err := writes[i].Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// all reads the rest to its end.
func all(t *testing.T, r *Reader, now time.Time) (lines []byte, total criline.Tally) {
	t.Helper()
	for {
		more, tally, err := r.Rest(now)
		if err != nil {
			t.Fatal(err)
		}
		if len(more) == 0 {
			return lines, total
		}
		lines = append(lines, more...)
		total.Stdout, total.Stderr, total.Lines, total.Bytes = total.Stdout+tally.Stdout, total.Stderr+tally.Stderr, total.Lines+tally.Lines, total.Bytes+tally.Bytes
	}
}

func TestRest(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	const stamp = "2026-01-02T03:04:05.000000006Z "
	for _, tc := range []struct {
		name           string
		stdout, stderr string
		want           string
	}{
		{"nothing", "", "", ""},
		{"lines", "one\ntwo\n", "", stamp + "stdout F one\n" + stamp + "stdout F two\n"},
		{"a line without its end", "one\ntw", "", stamp + "stdout F one\n" + stamp + "stdout P tw\n"},
		{"the end of a line alone", "\n", "", stamp + "stdout F \n"},
		{"both streams", "out\n", "err\n", stamp + "stdout F out\n" + stamp + "stderr F err\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			writes, kill := makePipes(t, dir)
			r := pipeReader(t, dir)
			for i, text := range []string{tc.stdout, tc.stderr} {
				if _, err := writes[i].WriteString(text); err != nil {
					t.Fatal(err)
				}
			}
			if lines, _, err := r.Rest(now); err != nil || len(lines) > 0 {
				t.Errorf("of a container that runs, %q is taken, %v", lines, err)
			}
			kill()
			lines, tally := all(t, r, now)
			if string(lines) != tc.want {
				t.Errorf("got  %q\nwant %q", lines, tc.want)
			}
			if tally.Stdout != int64(len(tc.stdout)) || tally.Stderr != int64(len(tc.stderr)) || tally.Bytes != int64(len(tc.want)) || tally.Lines != int64(strings.Count(tc.stdout+tc.stderr, "\n")) {
				t.Errorf("tally %+v", tally)
			}
		})
	}
}

// A step can make its pipe hold more than the usual 64 KiB.
func TestRestOfLargePipe(t *testing.T) {
	dir := t.TempDir()
	writes, kill := makePipes(t, dir)
	size, err := unix.FcntlInt(writes[0].Fd(), unix.F_SETPIPE_SZ, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef\n"), size/17)
	r := pipeReader(t, dir)
	if _, err := writes[0].Write(want); err != nil {
		t.Fatal(err)
	}
	kill()
	lines, tally := all(t, r, time.Now())
	var got []byte
	for line := range bytes.Lines(lines) {
		l, err := criline.Parse(bytes.TrimSuffix(line, []byte{'\n'}))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, l.Text...)
		if l.Full {
			got = append(got, '\n')
		}
	}
	if !bytes.Equal(got, want) || tally.Stdout != int64(len(want)) {
		t.Errorf("got %d bytes, tally %+v, want %d bytes", len(got), tally, len(want))
	}
}

// Nothing is taken of a container that has ended by itself: tee has read all of its output, and what a background process printed after that is nobody's.
func TestRestAfterEnd(t *testing.T) {
	dir := t.TempDir()
	writes, kill := makePipes(t, dir)
	r := pipeReader(t, dir)
	if _, err := writes[0].WriteString("late\n"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, EndFile), []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	kill()
	if _, err := r.Look(Position{}); err != nil {
		t.Fatal(err)
	}
	if lines, _ := all(t, r, time.Now()); len(lines) > 0 {
		t.Errorf("got %q", lines)
	}
}

// What a step may put in the pipe's place is not read: it can name a file that only the shipper may see.
func TestRestIsNoPipe(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	writes, kill := makePipes(t, other)
	if _, err := writes[0].WriteString("of another container\n"); err != nil {
		t.Fatal(err)
	}
	kill()
	for name, plant := range map[string]func(dir string) error{
		"a file":                 func(dir string) error { return os.WriteFile(filepath.Join(dir, "stdout"), []byte("x\n"), 0o644) },
		"a link to a file":       func(dir string) error { return os.Symlink(secret, filepath.Join(dir, "stdout")) },
		"another name of a file": func(dir string) error { return os.Link(secret, filepath.Join(dir, "stdout")) },
		"a link to a pipe": func(dir string) error {
			return os.Symlink(filepath.Join(other, pipeFolder, "stdout"), filepath.Join(dir, "stdout"))
		},
		"another name of a pipe": func(dir string) error {
			return os.Link(filepath.Join(other, pipeFolder, "stdout"), filepath.Join(dir, "stdout"))
		},
		"a folder": func(dir string) error { return os.Mkdir(filepath.Join(dir, "stdout"), 0o755) },
		"a link to a folder": func(dir string) error {
			return errors.Join(os.Remove(dir), os.Symlink(filepath.Join(other, pipeFolder), dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			folder := filepath.Join(dir, pipeFolder)
			if err := os.Mkdir(folder, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := plant(folder); err != nil {
				t.Fatal(err)
			}
			r := pipeReader(t, dir)
			if lines, _ := all(t, r, time.Now()); len(lines) > 0 || r.pipes[0] >= 0 {
				t.Errorf("got %q", lines)
			}
		})
	}
}

// The shipper holds the pipes before there is a container, and a container that runs again finds the same ones.
func TestPipesOutliveContainers(t *testing.T) {
	dir := t.TempDir()
	if err := MakePipes(dir); err != nil {
		t.Fatal(err)
	}
	r := pipeReader(t, dir)
	if lines, _ := all(t, r, time.Now()); len(lines) > 0 {
		t.Errorf("before the container, there is %q", lines)
	}
	for _, text := range []string{"of the first run\n", "of the second run\n"} {
		writes, kill := makePipes(t, dir)
		if _, err := writes[0].WriteString(text); err != nil {
			t.Fatal(err)
		}
		kill()
		if lines, _ := all(t, r, time.Now()); !bytes.HasSuffix(lines, []byte(" stdout F "+text)) {
			t.Errorf("got %q, want %q", lines, text)
		}
	}
}

func TestOpenPipeRefuses(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"nothing":          func(string) error { return nil },
		"a file":           func(path string) error { return os.WriteFile(path, nil, 0o666) },
		"a link to a file": func(path string) error { return os.Symlink("/etc/passwd", path) },
		"a folder":         func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			folder := filepath.Join(dir, pipeFolder)
			if err := errors.Join(os.Mkdir(folder, 0o755), plant(filepath.Join(folder, "stdout"))); err != nil {
				t.Fatal(err)
			}
			if read, write, err := OpenPipe(dir, criline.Stdout); err == nil {
				t.Errorf("opened as %d and %d", read, write)
			}
		})
	}
}
