//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// mountTmpfs mounts a file system of so many KiB.
func mountTmpfs(t *testing.T, kib int) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// The disk is full: the step is unharmed, the gap is marked when there is room again, and kept and lost bytes add up.
func TestDiskFull(t *testing.T) {
	r := newRun(t)
	r.spool = mountTmpfs(t, 256)
	filler := filepath.Join(r.spool, "filler")
	if err := os.WriteFile(filler, make([]byte, 128<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := r.cmd(r.asChild(t, "echo")...)
	cmd.Env = append(cmd.Env, r.env...)
	cmd.Stdin, cmd.Stdout = nil, nil
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewReader(out)
	n := 0
	echo := func() string {
		t.Helper()
		n++
		want := fmt.Sprintf("line %07d %s\n", n, strings.Repeat("x", 1000))
		if _, err := io.WriteString(in, want); err != nil {
			t.Fatal(err)
		}
		if got, err := lines.ReadString('\n'); err != nil || got != want {
			t.Fatalf("line %d: the container printed %.30q, %v", n, got, err)
		}
		return want
	}
	for range 300 { // 300 kB into 128 KiB
		echo()
	}
	// Whole lines, while the disk is full. There may be a marker already, if a try found room for that little.
	if full := readLive(t, r.spool); len(full.stdout) == 0 || len(full.stdout) > 128<<10 {
		t.Errorf("the full disk holds %d bytes", len(full.stdout))
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	// tee tries again a moment later: print until it has.
	var last string
	for last == "" || !bytes.HasSuffix(readLive(t, r.spool).stdout, []byte(last)) {
		last = echo()
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, lines); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd.Wait()); code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr.String())
	}
	got := readSpool(t, r.spool)
	var lost int64
	for _, gap := range got.gaps {
		lost += gap.Stdout
		if gap.Reason != criline.ReasonSpoolError || !strings.Contains(gap.Detail, "no space left") || gap.Unknown || gap.Stderr > 0 {
			t.Errorf("a gap is %+v", gap)
		}
	}
	printed := int64(n * len("line 0000000 \n"+strings.Repeat("x", 1000)))
	if lost == 0 || int64(len(got.stdout))+lost != printed || got.end == nil || got.end.Printed.Stdout != printed {
		t.Errorf("printed %d bytes, kept %d, lost %d, the end is %+v", printed, len(got.stdout), lost, got.end)
	}
	for line := range bytes.Lines(got.stdout) {
		if !bytes.HasPrefix(line, []byte("line ")) || !bytes.HasSuffix(line, []byte("x\n")) {
			t.Errorf("a line is broken: %.50q", line)
		}
	}
}

// The disk is full from the beginning to the end.
func TestDiskFullAlways(t *testing.T) {
	r := newRun(t)
	r.spool = mountTmpfs(t, 64)
	if err := os.WriteFile(filepath.Join(r.spool, "filler"), make([]byte, 64<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := r.run(t, "sh", "-c", "yes | head -c 1000000; echo err >&2; exit 6"); code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
	if r.stdout.Len() != 1000000 || !strings.HasPrefix(r.stderr.String(), "err\n") {
		t.Errorf("the container printed %d bytes, stderr %q", r.stdout.Len(), r.stderr.String())
	}
	if !strings.Contains(r.stderr.String(), "\nshiplog: this log is not kept to its end: ") || !strings.Contains(r.stderr.String(), "no space left") {
		t.Errorf("stderr %q does not say that the log is not kept", r.stderr.String())
	}
}

// Where Tekton reads results from the container's output, tee adds no line to it.
func TestDiskFullQuiet(t *testing.T) {
	r := newRun(t)
	r.spool, r.quiet = mountTmpfs(t, 64), true
	if err := os.WriteFile(filepath.Join(r.spool, "filler"), make([]byte, 64<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	if code := r.run(t, "sh", "-c", "echo result; echo err >&2; exit 6"); code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
	if r.stdout.String() != "result\n" || r.stderr.String() != "err\n" {
		t.Errorf("the container printed %q and %q", r.stdout.String(), r.stderr.String())
	}
}

// Nobody ships: the folder stays below the limit, and the gap is marked.
func TestLimit(t *testing.T) {
	const printed = 5000000
	r := newRun(t)
	r.limit = 1 << 20
	if code := r.run(t, "sh", "-c", fmt.Sprintf(`yes "a line of some length" | head -c %d; exit 2`, printed)); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	if r.stdout.Len() != printed {
		t.Errorf("the container printed %d bytes of %d", r.stdout.Len(), printed)
	}
	got := readSpool(t, r.spool)
	const marker = 1 << 10
	if got.bytes > r.limit+marker || got.bytes < r.limit/2 {
		t.Errorf("the folder holds %d bytes, the limit is %d", got.bytes, r.limit)
	}
	// More than one where a read was so short that it still had room behind the first.
	var lost int64
	for _, gap := range got.gaps {
		lost += gap.Stdout
		if gap.Reason != criline.ReasonSpoolLimit {
			t.Errorf("a gap is %+v", gap)
		}
	}
	if lost == 0 || int64(len(got.stdout))+lost != printed || got.end.Printed.Stdout != printed || got.end.Lines != int64(bytes.Count(r.stdout.Bytes(), []byte("\n"))) {
		t.Errorf("kept %d, gaps %+v, end %+v", len(got.stdout), got.gaps, got.end)
	}
	if len(got.gaps) == 1 && !bytes.HasPrefix(r.stdout.Bytes(), got.stdout) {
		t.Error("what was kept is not the beginning of the log")
	}
}

// A step that deletes its own spool harms its own log only.
func TestStepDeletesItsSpool(t *testing.T) {
	r := newRun(t)
	if code := r.run(t, "sh", "-c", `rm -rf "$0"; yes | head -c 1000000; exit 3`, r.spool); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	if r.stdout.Len() != 1000000 {
		t.Errorf("the container printed %d bytes", r.stdout.Len())
	}
	if !strings.Contains(r.stderr.String(), "shiplog: this log is not kept to its end: ") {
		t.Errorf("stderr %q does not say so", r.stderr.String())
	}
}
