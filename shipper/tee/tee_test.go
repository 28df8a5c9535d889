//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

func TestBytes(t *testing.T) {
	var every []byte
	for i := range 256 {
		every = append(every, byte(i))
	}
	for _, tc := range []struct {
		name string
		in   []byte
	}{
		{"no output", nil},
		{"every byte", every},
		{"a line", []byte("hello\n")},
		{"no final newline", []byte("hello\nworld")},
		{"newlines only", []byte("\n\n\n")},
		{"NULs", make([]byte, 100000)},
		{"progress bar", []byte("10%\r20%\r30%\r\n40%\r")},
		{"windows line ends", []byte("a\r\nb\r\n")},
		{"cut UTF-8", []byte("\xe2\x82\n\xac\xf0")},
		{"text like our own lines", []byte("2026-05-17T12:00:00.000000042Z marker F {\"kind\":\"gap\"}\n")},
		{"many short lines", bytes.Repeat([]byte("x\n"), 500000)},
		{"50 MB without a newline", bytes.Repeat([]byte("0123456789"), 5<<20)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := filepath.Join(t.TempDir(), "in")
			if err := os.WriteFile(in, tc.in, 0o644); err != nil {
				t.Fatal(err)
			}
			for _, stream := range []string{"stdout", "stderr"} {
				t.Run(stream, func(t *testing.T) {
					r := newRun(t)
					script := `exec cat "$0"`
					if stream == "stderr" {
						script += " >&2"
					}
					if code := r.run(t, "sh", "-c", script, in); code != 0 {
						t.Fatalf("exit code %d: %s", code, r.stderr.Bytes())
					}
					out, other := &r.stdout, &r.stderr
					if stream == "stderr" {
						out, other = other, out
					}
					if !bytes.Equal(out.Bytes(), tc.in) || other.Len() > 0 {
						t.Errorf("the container printed %d bytes and %d on the other stream, the command %d", out.Len(), other.Len(), len(tc.in))
					}
					r.checkComplete(t)
				})
			}
		})
	}
}

func TestRandomChunks(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			var want [2]bytes.Buffer
			for _, c := range randomChunks(seed) {
				if c.stderr {
					want[1].Write(c.bytes)
				} else {
					want[0].Write(c.bytes)
				}
			}
			r := newRun(t)
			r.limit = 256 << 20
			if code := r.run(t, r.asChild(t, "chunks", strconv.FormatUint(seed, 10))...); code != 0 {
				t.Fatalf("exit code %d", code)
			}
			if !bytes.Equal(r.stdout.Bytes(), want[0].Bytes()) || !bytes.Equal(r.stderr.Bytes(), want[1].Bytes()) {
				t.Error("the container did not print what the command printed")
			}
			r.checkComplete(t)
		})
	}
}

// What is printed right before the end is not lost.
func TestLastWords(t *testing.T) {
	for range 30 {
		r := newRun(t)
		if code := r.run(t, "sh", "-c", "echo first; echo second >&2; printf third; printf fourth >&2; exit 1"); code != 1 {
			t.Fatalf("exit code %d", code)
		}
		if r.stdout.String() != "first\nthird" || r.stderr.String() != "second\nfourth" {
			t.Fatalf("printed %q and %q", r.stdout.String(), r.stderr.String())
		}
		r.checkComplete(t)
	}
}

func TestExit(t *testing.T) {
	for _, tc := range []struct {
		script string
		code   int
		want   record.Exit
	}{
		{"exit 0", 0, record.Exit{}},
		{"exit 1", 1, record.Exit{Code: 1}},
		{"exit 2", 2, record.Exit{Code: 2}},
		{"exit 125", 125, record.Exit{Code: 125}},
		{"exit 126", 126, record.Exit{Code: 126}},
		{"exit 127", 127, record.Exit{Code: 127}},
		{"exit 128", 128, record.Exit{Code: 128}},
		{"exit 137", 137, record.Exit{Code: 137}},
		{"exit 255", 255, record.Exit{Code: 255}},
		{"kill -KILL $$", 137, record.Exit{Code: 137, Signal: "killed"}},
		{"kill -TERM $$", 143, record.Exit{Code: 143, Signal: "terminated"}},
		{"kill -HUP $$", 129, record.Exit{Code: 129, Signal: "hangup"}},
		{"ulimit -c 0; kill -SEGV $$", 139, record.Exit{Code: 139, Signal: "segmentation fault"}},
		{"ulimit -c 0; kill -ABRT $$", 134, record.Exit{Code: 134, Signal: "aborted"}},
	} {
		t.Run(tc.script, func(t *testing.T) {
			r := newRun(t)
			if code := r.run(t, "sh", "-c", "echo hi; "+tc.script); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if got := r.checkComplete(t); got.end.Exit != tc.want {
				t.Errorf("the end says %+v, want %+v", got.end.Exit, tc.want)
			}
		})
	}
}

func TestCommandCannotRun(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"plain": 0o644, "broken": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/nowhere\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name, command, path string
		code                int
		want                string
	}{
		{"name not in PATH", "no-such-command", "/usr/bin:/bin", 127, `cannot run "no-such-command": it is not in $PATH`},
		{"PATH is empty", "sh", "", 127, `cannot run "sh": it is not in $PATH`},
		{"folders that are not absolute do not count", "broken", ":.:" + filepath.Join("..", filepath.Base(dir)), 127, `cannot run "broken": it is not in $PATH`},
		{"path missing", "/no/such/command", "/bin", 127, `cannot run "/no/such/command": no such file`},
		{"not executable", dir + "/plain", "/bin", 126, "permission denied"},
		{"found but not executable", "plain", dir, 126, "permission denied"},
		{"a folder", dir, "/bin", 126, "permission denied"},
		{"interpreter missing", dir + "/broken", "/bin", 127, "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRun(t)
			r.env = []string{"PATH=" + tc.path}
			cmd := r.cmd(tc.command)
			cmd.Dir = dir
			if code := exitCode(t, cmd.Run()); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if got := r.checkComplete(t); !strings.Contains(string(got.stderr), tc.want) || got.end.Exit.Code != tc.code {
				t.Errorf("stderr %q, end %+v, want %q, %d", got.stderr, got.end.Exit, tc.want, tc.code)
			}
		})
	}
}

// The command finds what it would find without tee.
func TestChildInherits(t *testing.T) {
	for _, tc := range []struct{ name, script string }{
		{"environment", `exec env`},
		{"folder", `exec pwd`},
		{"stdin", `exec cat`},
		{"umask", `umask`},
		{"limits", `ulimit -a; ulimit -Ha`},
		{"signals", `exec grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status`},
		{"open files", `exec ls /proc/self/fd`},
		{"arguments", `printf '%s\n' "$@"`},
		{"process group", `group() { cut -d' ' -f5 /proc/$1/stat; }; test "$(group $$)" -gt 0 && test "$(group $$)" = "$(group $PPID)" && echo same`},
		// But for O_LARGEFILE, which whatever is opened by a name has.
		{"stdout blocks", `flags=$(sed -n 's/flags:\t//p' /proc/$$/fdinfo/1); echo $((flags & ~0100000))`},
	} {
		for _, before := range []string{"", "umask 027; ulimit -n 100; ", "trap '' HUP INT; "} {
			t.Run(strings.TrimSuffix(tc.name+" after "+before, " after "), func(t *testing.T) {
				r := newRun(t)
				r.env, r.stdin = []string{"MARK=a b", "EMPTY="}, "from stdin\n"
				start := func(argv ...string) *exec.Cmd {
					return exec.Command("sh", append([]string{"-c", before + `exec "$@"`, "sh"}, argv...)...)
				}
				argv := []string{"sh", "-c", tc.script, "zero", "one", "", "two words", "--", "-x"}
				var want bytes.Buffer
				direct := start(argv...)
				r.attach(direct)
				direct.Stdout = &want
				if err := direct.Run(); err != nil {
					t.Fatal(err)
				}
				wrapped := start(append([]string{teeBinary}, r.args(argv...)...)...)
				r.attach(wrapped)
				if err := wrapped.Run(); err != nil {
					t.Fatal(err)
				}
				if r.stdout.String() != want.String() {
					t.Errorf("with tee:\n%s\nwithout:\n%s", r.stdout.String(), want.String())
				}
			})
		}
	}
}

// startReady starts a child and returns when it has printed "ready".
func startReady(t *testing.T, r *teeRun, cmd *exec.Cmd) (rest *bufio.Reader) {
	t.Helper()
	cmd.Stdout = nil
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // for a test that fails early
	rest = bufio.NewReader(out)
	if line, err := rest.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the child printed %q, %v, not that it is ready; stderr %q", line, err, r.stderr.String())
	}
	return rest
}

func TestSignalsAreForwarded(t *testing.T) {
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGALRM,
		unix.SIGTSTP, unix.SIGTTIN, unix.SIGCONT, 40, 64} {
		t.Run(s.String(), func(t *testing.T) {
			r := newRun(t)
			cmd := r.cmd(r.asChild(t, "signal")...)
			rest := startReady(t, r, cmd)
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			line, err := io.ReadAll(rest)
			if err != nil || string(line) != fmt.Sprintf("%d\n", int(s)) {
				t.Errorf("the child got %q, %v, want %d", line, err, s)
			}
			if code := exitCode(t, cmd.Wait()); code != 5 {
				t.Errorf("exit code %d, want the child's own 5", code)
			}
			_, err = os.Lstat(filepath.Join(r.spool, spool.TermFile))
			if marked := err == nil; marked != (s == unix.SIGTERM) {
				t.Errorf("the mark of SIGTERM: %v", err)
			}
		})
	}
}

func TestGrace(t *testing.T) {
	for _, grace := range []time.Duration{0, 20 * time.Millisecond} {
		t.Run(grace.String(), func(t *testing.T) {
			r := newRun(t)
			r.grace = grace
			cmd := r.cmd(r.asChild(t, "stuck")...)
			startReady(t, r, cmd)
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if code := exitCode(t, cmd.Wait()); code != 137 {
				t.Errorf("exit code %d, want 137", code)
			}
			if got := readSpool(t, r.spool); got.end == nil || got.end.Exit.Signal != "killed" {
				t.Errorf("the end is %+v", got.end)
			}
			if _, err := os.Lstat(filepath.Join(r.spool, spool.TermFile)); err != nil {
				t.Error(err)
			}
		})
	}
}

// Within the grace period the command lives.
func TestGraceIsNotOverAtOnce(t *testing.T) {
	r := newRun(t)
	cmd := r.cmd("sh", "-c", `trap 'echo got it' TERM; echo ready; read a; read b; exit 4`)
	cmd.Stdin = nil
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	rest := startReady(t, r, cmd)
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// sh runs the trap when read has ended.
	if _, err := io.WriteString(in, "a\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := rest.ReadString('\n'); err != nil || line != "got it\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	if _, err := io.WriteString(in, "b\n"); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd.Wait()); code != 4 {
		t.Errorf("exit code %d, want 4", code)
	}
}

// Where the copy cannot be set up, the command runs with the container's own stdout and stderr.
func TestFailsOpen(t *testing.T) {
	good := newRun(t)
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"no spool", (&teeRun{spool: "/no/such/folder", limit: 1, grace: time.Hour}).args("sh", "-c", "echo out; echo err >&2; exit 9"), "no such file"},
		{"the spool is a file", (&teeRun{spool: teeBinary, limit: 1, grace: time.Hour}).args("sh", "-c", "echo out; echo err >&2; exit 9"), "not a directory"},
		{"wrong arguments", []string{"--spool", good.spool, "--new-flag", "x", "--", "sh", "-c", "echo out; echo err >&2; exit 9"}, "arguments are not"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			cmd := exec.Command(teeBinary, tc.args...)
			cmd.Stdout, cmd.Stderr = &out, &errOut
			if code := exitCode(t, cmd.Run()); code != 9 {
				t.Errorf("exit code %d, want 9", code)
			}
			if out.String() != "out\n" || !strings.HasSuffix(errOut.String(), "\nerr\n") {
				t.Errorf("printed %q and %q", out.String(), errOut.String())
			}
			if !strings.HasPrefix(errOut.String(), "shiplog: this log is not kept: ") || !strings.Contains(errOut.String(), tc.want) {
				t.Errorf("stderr %q does not say why", errOut.String())
			}
		})
	}
	t.Run("quiet", func(t *testing.T) {
		r := &teeRun{spool: "/no/such/folder", limit: 1, grace: time.Hour, quiet: true}
		if code := r.run(t, "sh", "-c", "echo out; echo err >&2; exit 9"); code != 9 {
			t.Errorf("exit code %d, want 9", code)
		}
		if r.stdout.String() != "out\n" || r.stderr.String() != "err\n" {
			t.Errorf("printed %q and %q", r.stdout.String(), r.stderr.String())
		}
	})
	t.Run("no command at all", func(t *testing.T) {
		out, err := exec.Command(teeBinary).CombinedOutput()
		if code := exitCode(t, err); code != exitUsage || !strings.Contains(string(out), "--spool DIR") {
			t.Errorf("exit code %d, printed %q", code, out)
		}
	})
}

// Nobody reads the container's stdout: the step is not told, and the archive is whole.
func TestStdoutIsClosed(t *testing.T) {
	r := newRun(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	read.Close()
	defer write.Close()
	cmd := r.cmd("sh", "-c", "head -c 1000000 /dev/zero && echo end && echo err >&2")
	cmd.Stdout = write
	if code := exitCode(t, cmd.Run()); code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr.String())
	}
	got := readSpool(t, r.spool)
	if len(got.stdout) != 1000000+4 || string(got.stderr) != "err\n" || len(got.gaps) > 0 {
		t.Errorf("the spool holds %d bytes of stdout, stderr %q, gaps %v", len(got.stdout), got.stderr, got.gaps)
	}
}

// tee is killed at any moment: what it has handed on to stdout is in the spool, but for the last chunk. The kernel may end a write(2) in the middle
// then; the next tee cuts that off.
func TestTeeIsKilled(t *testing.T) {
	r := newRun(t)
	cmd := r.cmd("sh", "-c", `yes "a line of some length" | head -c 100000000`)
	cmd.Stdout = nil
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := make([]byte, 5000000)
	if _, err := io.ReadFull(out, seen); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd.Wait()); code != -1 {
		t.Errorf("tee ended with %d", code)
	}
	got := readLive(t, r.spool)
	if got.end != nil {
		t.Error("there is an end")
	}
	if n := len(got.stdout); n < len(seen)-spool.ChunkBytes || !bytes.Equal(got.stdout[:min(n, len(seen))], seen[:min(n, len(seen))]) {
		t.Errorf("the spool holds %d bytes, %d were printed at least", n, len(seen))
	}
	if code := r.run(t, "echo", "again"); code != 0 {
		t.Errorf("exit code %d", code)
	}
	again := readSpool(t, r.spool)
	if want := string(got.stdout) + "again\n"; string(again.stdout) != want {
		t.Errorf("the spool holds %d bytes, want %d and the line of the second run", len(again.stdout), len(got.stdout))
	}
}

// A container that starts again goes on behind what it printed before.
func TestRestart(t *testing.T) {
	r := newRun(t)
	for i := range 3 {
		if code := r.run(t, "sh", "-c", fmt.Sprintf("echo run %d; printf rest; exit %d", i, i)); code != i {
			t.Errorf("exit code %d, want %d", code, i)
		}
		got := r.checkComplete(t) // also that the end counts all runs
		if got.end.Exit.Code != i || got.files != 1 {
			t.Errorf("run %d: end %+v, %d files", i, got.end, got.files)
		}
	}
}

// The memory of tee counts in the step's own limit.
func TestMemory(t *testing.T) {
	const limit = 8 << 10 // kB
	for _, tc := range []struct{ name, script string }{
		{"no output", "true"},
		{"short lines", "yes | head -c 20000000; yes | head -c 20000000 >&2"},
		{"lines of 100 bytes", `yes "$(printf %099d 0)" | head -c 50000000`},
		{"no newline", "head -c 50000000 /dev/zero"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRun(t)
			hwm := filepath.Join(t.TempDir(), "hwm")
			if code := r.run(t, "sh", "-c", tc.script+`; grep VmHWM /proc/$PPID/status > "$0"`, hwm); code != 0 {
				t.Fatalf("exit code %d", code)
			}
			b, err := os.ReadFile(hwm)
			if err != nil {
				t.Fatal(err)
			}
			fields := strings.Fields(string(b)) // VmHWM: 3336 kB
			if len(fields) != 3 {
				t.Fatalf("cannot read %q", b)
			}
			kb, err := strconv.Atoi(fields[1])
			if err != nil || kb <= 0 || kb > limit {
				t.Errorf("tee took %d kB of memory, %v, want less than %d", kb, err, limit)
			}
			t.Logf("peak RSS %d kB", kb)
		})
	}
}
