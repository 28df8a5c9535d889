//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// The tests run the real binary, because what matters (file descriptors, signals, reaping) belongs to a process.
var teeBinary string

// childEnv makes the test binary the command that tee runs; its value is one of the children.
const childEnv = "TEE_TEST_CHILD"

var children = map[string]func(args []string){
	"chunks": childChunks,
	"signal": childSignal,
	"stuck":  childStuck,
	"echo":   childEcho,
	"become": childBecome,
	"copier": childCopier,
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		children[name](os.Args[1:])
		return
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tee-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	teeBinary = filepath.Join(dir, "tee")
	// As the Makefile builds it.
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", teeBinary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build tee: %v\n%s", err, out)
		return 1
	}
	// Where the tests themselves were started with signals ignored, as by nohup, tee would keep it so. With a handler, exec resets them.
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	code := m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// randomChunks are the chunks that childChunks prints: to stdout where the first of the pair is false.
func randomChunks(seed uint64) (all []struct {
	stderr bool
	bytes  []byte
}) {
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		b := make([]byte, r.IntN(1<<r.IntN(18))+1)
		for i := range b {
			if b[i] = byte(r.IntN(256)); r.IntN(30) == 0 {
				b[i] = '\n'
			}
		}
		all = append(all, struct {
			stderr bool
			bytes  []byte
		}{r.IntN(2) == 0, b})
	}
	return all
}

func childChunks(args []string) {
	seed, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		os.Exit(99)
	}
	for _, c := range randomChunks(seed) {
		out := os.Stdout
		if c.stderr {
			out = os.Stderr
		}
		if n, err := out.Write(c.bytes); err != nil || n < len(c.bytes) {
			os.Exit(98)
		}
	}
}

// childSignal says the number of the first signal that it gets.
func childSignal([]string) {
	got := make(chan os.Signal, 1)
	signal.Notify(got, forwarded()...)
	fmt.Println("ready")
	fmt.Println(int((<-got).(syscall.Signal)))
	os.Exit(5)
}

// childStuck does not go away at SIGTERM.
func childStuck([]string) {
	signal.Ignore(unix.SIGTERM)
	fmt.Println("ready")
	<-time.After(time.Hour)
}

// childEcho prints each line that it reads.
func childEcho([]string) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if _, err := fmt.Println(in.Text()); err != nil {
			os.Exit(98)
		}
	}
}

// captured is what a spool holds.
type captured struct {
	stdout, stderr []byte // as printed
	gaps           []criline.Marker
	bytes          int64 // behind the last line
	files          int
	end            *spool.End
}

// readSpool reads a folder in which nobody deletes, and checks that it holds whole lines in order.
func readSpool(t testing.TB, dir string) captured {
	t.Helper()
	return readLines(t, dir, false)
}

// readLive reads the folder of a tee that is writing, or was killed: there may be the beginning of a write at the end, which does not count.
func readLive(t testing.TB, dir string) captured {
	t.Helper()
	return readLines(t, dir, true)
}

func readLines(t testing.TB, dir string, live bool) captured {
	t.Helper()
	var got captured
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var last time.Time
	for _, e := range entries {
		base, ok := spool.ParseLogName(e.Name())
		if !ok {
			continue
		}
		if base != got.bytes {
			t.Errorf("%s does not follow the file before, which ends at %d", e.Name(), got.bytes)
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if live {
			b = b[:bytes.LastIndexByte(b, '\n')+1]
		}
		got.files++
		got.bytes += int64(len(b))
		for text := range bytes.Lines(b) {
			text, whole := bytes.CutSuffix(text, []byte("\n"))
			if !whole {
				t.Fatalf("%s ends with a torn line: %.100q", e.Name(), text)
			}
			l, err := criline.Parse(text)
			if err != nil {
				t.Fatalf("%s: %v", e.Name(), err)
			}
			if l.Time.Before(last) {
				t.Fatalf("%s: %v comes after %v", e.Name(), l.Time, last)
			}
			last = l.Time
			to := &got.stdout
			switch l.Stream {
			case criline.Stderr:
				to = &got.stderr
			case criline.Markers:
				m, err := criline.ParseMarker(l.Text)
				if err != nil {
					t.Fatal(err)
				}
				got.gaps = append(got.gaps, m)
				continue
			}
			*to = append(*to, l.Text...)
			if l.Full {
				*to = append(*to, '\n')
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, spool.EndFile))
	if errors.Is(err, fs.ErrNotExist) {
		return got
	}
	end, err := spool.ParseEnd(b)
	if err != nil {
		t.Fatal(err)
	}
	got.end = &end
	return got
}

// run is one run of tee to its end.
type teeRun struct {
	spool          string
	limit          int64
	grace          time.Duration
	quiet          bool
	stdin          string
	env            []string
	stdout, stderr bytes.Buffer
}

func newRun(t testing.TB) *teeRun {
	return &teeRun{spool: t.TempDir(), limit: 1 << 30, grace: time.Hour}
}

func (r *teeRun) args(argv ...string) []string {
	return contract.Tee{Spool: r.spool, Limit: r.limit, Grace: r.grace, Quiet: r.quiet, Argv: argv}.Args()
}

func (r *teeRun) cmd(argv ...string) *exec.Cmd {
	cmd := exec.Command(teeBinary, r.args(argv...)...)
	r.attach(cmd)
	return cmd
}

func (r *teeRun) attach(cmd *exec.Cmd) {
	cmd.Stdout, cmd.Stderr = &r.stdout, &r.stderr
	cmd.Stdin = bytes.NewReader([]byte(r.stdin))
	cmd.Env = append(os.Environ(), r.env...)
}

// run runs a command under tee, and returns the exit code.
func (r *teeRun) run(t testing.TB, argv ...string) int {
	t.Helper()
	return exitCode(t, r.cmd(argv...).Run())
}

// exitCode is the exit code of a command that could be started.
func exitCode(t testing.TB, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode() // -1 if tee itself was killed
}

// asChild makes tee run one of the children.
func (r *teeRun) asChild(t testing.TB, name string, args ...string) (argv []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r.env = append(r.env, childEnv+"="+name)
	return append([]string{self}, args...)
}

// checkComplete checks that the spool holds exactly what the container printed.
func (r *teeRun) checkComplete(t testing.TB) captured {
	t.Helper()
	got := readSpool(t, r.spool)
	if !bytes.Equal(got.stdout, r.stdout.Bytes()) {
		t.Errorf("stdout: the spool holds %d bytes, %.200q, the container printed %d, %.200q", len(got.stdout), got.stdout, r.stdout.Len(), r.stdout.Bytes())
	}
	if !bytes.Equal(got.stderr, r.stderr.Bytes()) {
		t.Errorf("stderr: the spool holds %d bytes, %.200q, the container printed %d, %.200q", len(got.stderr), got.stderr, r.stderr.Len(), r.stderr.Bytes())
	}
	if len(got.gaps) > 0 {
		t.Errorf("gaps: %+v", got.gaps)
	}
	if got.end == nil {
		t.Fatalf("there is no %s", spool.EndFile)
	}
	if got.end.Bytes != got.bytes || got.end.Printed.Stdout != int64(len(got.stdout)) || got.end.Printed.Stderr != int64(len(got.stderr)) ||
		got.end.Lines != int64(bytes.Count(got.stdout, []byte("\n"))+bytes.Count(got.stderr, []byte("\n"))) {
		t.Errorf("the end says %+v, which is not what the spool holds", *got.end)
	}
	return got
}

// needRoot leaves a test out for those who may not mount or make namespaces. CI may.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs root, and CI must run it")
	}
	t.Skip("left out: it needs root, for mounts or a PID namespace")
}
