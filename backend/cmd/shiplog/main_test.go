package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/backend/live"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the golden files anew")

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// logText is a container's log, as the archive has it.
type logText struct {
	container layout.Container
	lines     []byte
	sealed    bool
	broken    bool // the segment is missing
}

func put(t *testing.T, store *objectstore.Store, l logText) {
	t.Helper()
	var tally criline.Tally
	for line := range bytes.Lines(l.lines) {
		parsed, err := criline.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		tally.Add(parsed)
	}
	w, err := segment.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	w.Begin(0, 0, 0)
	if err := w.Append(l.lines, tally); err != nil {
		t.Fatal(err)
	}
	s, body, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if !l.broken {
		putObject(t, store, l.container.SegmentKey(s), body)
	}
	if l.sealed {
		putRecord(t, store, l.container.SealKey(), record.Seal{
			Bytes: int64(len(l.lines)), SHA256: fmt.Sprintf("%x", sha256.Sum256(l.lines)), GapCount: int64(len(tally.Gaps)),
			End: record.EndExited, Exit: &record.Exit{Code: 0}, Segments: 1, Gaps: tally.Gaps, Lost: lostIn(tally.Gaps),
		})
	}
}

func lostIn(gaps []criline.Marker) (lost record.Printed) {
	for _, g := range gaps {
		lost.Stdout += g.Stdout
		lost.Stderr += g.Stderr
	}
	return lost
}

func putObject(t *testing.T, store *objectstore.Store, key string, body []byte) {
	t.Helper()
	if err := store.Put(t.Context(), key, body); err != nil {
		t.Fatal(err)
	}
}

func putRecord[T record.Any](t *testing.T, store *objectstore.Store, key string, v T) {
	t.Helper()
	b, err := record.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	putObject(t, store, key, b)
}

// theRunUID is of the run with a retry and a gap.
const theRunUID = "11111111-2222-3333-4444-555555555555"

// fill makes an archive with runs of all states.
func fill(t *testing.T, store *objectstore.Store) {
	t.Helper()
	theRun := layout.Run{Namespace: "ns", Name: "run", UID: theRunUID}
	build := layout.Pod{Run: theRun, TaskRun: "run-build", PodUID: "pod-build"}
	retry := layout.Pod{Run: theRun, TaskRun: "run-build", PodUID: "pod-retry"}
	broken := layout.Run{Namespace: "ns", Name: "broken", UID: "99999999-2222-3333-4444-555555555555"}
	brokenPod := layout.Pod{Run: broken, TaskRun: "broken-a", PodUID: "pod-broken"}
	for r, created := range map[layout.Run]time.Time{theRun: start, broken: start.Add(-time.Hour)} {
		x := layout.RunIndex{Namespace: "ns", Created: created, Kind: layout.PipelineRun, Name: r.Name, UID: r.UID}
		putRecord(t, store, x.Key(), record.Pointer{Run: r})
		putRecord(t, store, layout.UIDIndexKey("ns", r.UID), record.Pointer{Run: r})
		putRecord(t, store, r.RunKey(), record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: r.Name, UID: r.UID, Created: created, Tasks: []string{"build"}, State: record.Succeeded, Completed: created.Add(time.Hour)})
	}
	for i, p := range []layout.Pod{build, retry} {
		archivetest.PutPod(t, store, p, record.Pod{
			PodName: []string{"run-build-pod", "run-build-pod-retry1"}[i], TaskRunUID: "66666666-2222-3333-4444-555555555555", PipelineTask: "build", Created: start.Add(time.Duration(i) * time.Minute),
			Containers: []record.Container{
				{Name: "prepare", Kind: record.Init, Captured: true},
				{Name: "step-compile", Kind: record.Step, Captured: true},
				{Name: "sidecar-db", Kind: record.Sidecar, Skipped: "no-command"},
			},
		})
		put(t, store, logText{container: layout.Container{Pod: p, Container: "prepare"}, sealed: true, lines: criline.Append(nil, start, criline.Stderr, true, []byte("prepared"))})
	}
	var first, second []byte
	var err error
	for i := range 5 {
		first = criline.Append(first, start.Add(time.Duration(i)*time.Second), criline.Stdout, true, fmt.Appendf(nil, "line %d", i))
	}
	first = criline.Append(first, start.Add(time.Minute), criline.Stdout, false, []byte("half of a "))
	first = criline.Append(first, start.Add(time.Minute), criline.Stdout, true, []byte("line"))
	first = criline.Append(first, start.Add(time.Minute), criline.Stdout, false, []byte("cut"))
	first = criline.Append(first, start.Add(time.Minute), criline.Stderr, true, []byte("an error"))
	put(t, store, logText{container: layout.Container{Pod: build, Container: "step-compile"}, lines: first, sealed: true})
	second = criline.Append(nil, start, criline.Stdout, true, []byte("before the gap"))
	if second, err = criline.AppendMarker(second, start, criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 17}); err != nil {
		t.Fatal(err)
	}
	second = criline.Append(second, start, criline.Stdout, true, []byte("behind the gap"))
	third := criline.Append(bytes.Clone(second), start, criline.Stdout, true, []byte("and more"))
	put(t, store, logText{container: layout.Container{Pod: retry, Container: "step-compile"}, lines: second, sealed: true})
	put(t, store, logText{container: layout.Container{Pod: brokenPod, Container: "step-a"}, lines: first, sealed: true, broken: true})
	running := layout.Pod{Run: layout.Run{Namespace: "ns", Name: "running", UID: "88888888-2222-3333-4444-555555555555"}, TaskRun: "running-a", PodUID: "pod-running"}
	put(t, store, logText{container: layout.Container{Pod: running, Container: "step-a"}, lines: first})
	putRecord(t, store, layout.UIDIndexKey("ns", running.UID), record.Pointer{Run: running.Run})

	for _, task := range []string{"a", "b"} {
		two := layout.Pod{Run: layout.Run{Namespace: "ns", Name: "two",
			UID: "55555555-2222-3333-4444-555555555555"}, TaskRun: "two-" + task,
			PodUID: "pod-two-" + task}
		archivetest.PutPod(t, store, two, record.Pod{PodName: two.TaskRun + "-pod",
			PipelineTask: task, Created: start, Containers: []record.Container{{Name: "step-x",
				Kind: record.Step, Captured: true}}})
		put(t, store, logText{container: layout.Container{Pod: two, Container: "step-x"},
			lines:  criline.Append(nil, start, criline.Stdout, true, []byte("line of "+task)),
			sealed: true})
	}

	// One container for each state, and for each reason of an empty log.
	states := layout.Pod{Run: layout.Run{Namespace: "ns", Name: "states", UID: "77777777-2222-3333-4444-555555555555"}, TaskRun: "states-a", PodUID: "pod-states"}
	putRecord(t, store, layout.UIDIndexKey("ns", states.UID), record.Pointer{Run: states.Run})
	var names []record.Container
	for _, name := range []string{"prepare", "step-verified", "step-gaps", "step-running", "step-damaged", "step-silent", "step-killed", "step-no-image", "step-unknown", "step-waits"} {
		names = append(names, record.Container{Name: name, Kind: record.Step, Captured: true})
	}
	putRecord(t, store, states.PodKey(), record.Pod{Namespace: "ns", PodName: "states-a-pod", TaskRun: "states-a", Created: start, Containers: names})
	of := func(name string) layout.Container { return layout.Container{Pod: states, Container: name} }
	put(t, store, logText{container: of("step-verified"), lines: first, sealed: true})
	put(t, store, logText{container: of("step-gaps"), lines: third, sealed: true})
	put(t, store, logText{container: of("step-running"), lines: first})
	put(t, store, logText{container: of("step-damaged"), lines: first, sealed: true, broken: true})
	putRecord(t, store, of("step-silent").SealKey(), record.Seal{End: record.EndExited, Exit: &record.Exit{}})
	putRecord(t, store, of("step-killed").SealKey(), record.Seal{End: record.EndKilled})
	putRecord(t, store, of("step-no-image").SealKey(), record.Seal{End: record.EndNeverStarted})
	putRecord(t, store, of("step-no-image").WaitingKey(), record.Waiting{Reason: "ImagePullBackOff", Message: "Back-off pulling image"})
	putRecord(t, store, of("step-unknown").SealKey(), record.Seal{End: record.EndNeverStarted})
	putRecord(t, store, of("step-waits").WaitingKey(), record.Waiting{Reason: "ErrImagePull", Message: "not found"})
}

// TestCommands runs the CLI on a real S3 server and compares what it prints with testdata/<name>.txt.
func TestCommands(t *testing.T) {
	store, config := archivetest.Start(t)
	fill(t, store)
	useBucket(t, config)
	for _, c := range []struct {
		name string
		args []string
		code int
	}{
		{"ls", []string{"ls", "-n", "ns"}, 0},
		{"ls-limit", []string{"ls", "-n", "ns", "--limit", "1"}, 0},
		{"ls-nothing", []string{"ls", "-n", "empty"}, 0},
		{"ls-run", []string{"ls", "-n", "ns", "run"}, 0},
		{"ls-broken", []string{"ls", "broken", "-n", "ns"}, 0},
		{"ls-not-found", []string{"ls", "-n", "ns", "none"}, exitFailed},
		{"logs-with-gap", []string{"logs", "-n", "ns", "run"}, exitLost},
		{"logs-follow", []string{"logs", "-n", "ns", "-f", "run"}, exitLost},
		{"logs-follow-raw", []string{"logs", "-n", "ns", "-f", "--raw", "run"}, exitUsage},
		{"logs-by-uid", []string{"logs", "-n", "ns", theRunUID}, exitLost},
		{"logs-all", []string{"logs", "-n", "ns", "--all", "run"}, exitLost},
		{"logs-init", []string{"logs", "-n", "ns", "--container", "prepare", "run"}, 0},
		{"logs-timestamps", []string{"logs", "-n", "ns", "--container", "prepare", "--timestamps", "run"}, 0},
		{"logs-tail", []string{"logs", "-n", "ns", "--step", "compile", "--tail", "2", "run"}, exitLost},
		{
			"logs-tail-all",
			[]string{"logs", "-n", "ns", "--step", "compile", "--tail", "-1", "run"}, exitLost,
		},
		{
			"logs-tail-none",
			[]string{"logs", "-n", "ns", "--step", "compile", "--tail", "0", "run"}, exitLost,
		},
		{"logs-tail-wrong", []string{"logs", "-n", "ns", "--tail", "-2", "run"}, exitUsage},
		{"logs-container", []string{"logs", "-n", "ns", "-c", "prepare", "run"}, 0},
		{
			"search-limit-too-high",
			[]string{"search", "-n", "ns", "run", "line", "--limit", "20000"}, exitUsage,
		},
		{
			"search-container",
			[]string{"search", "-n", "ns", "running", "line 1", "-c", "step-a"}, exitRunning,
		},
		{"logs-raw", []string{"logs", "-n", "ns", "--task", "build", "--step", "compile", "--raw", "run"}, exitLost},
		{"logs-running", []string{"logs", "-n", "ns", "running"}, exitRunning},
		{"logs-tail-behind-gap", []string{"logs", "-n", "ns", "--step", "gaps", "--tail", "1", "states"}, exitLost},
		{"ls-states", []string{"ls", "-n", "ns", "states"}, 0},
		{"logs-states", []string{"logs", "-n", "ns", "states"}, exitLost},
		{"logs-waits", []string{"logs", "-n", "ns", "--step", "waits", "states"}, exitRunning},
		{"logs-no-image", []string{"logs", "-n", "ns", "--step", "no-image", "states"}, 0},
		{"logs-broken", []string{"logs", "-n", "ns", "broken"}, exitLost},
		{"logs-no-such-step", []string{"logs", "-n", "ns", "--step", "none", "run"}, exitFailed},
		{"prefix", []string{"prefix", "-n", "ns", "run"}, 0},
		{"prefix-taskrun", []string{"prefix", "-n", "ns", "run-build"}, 0},
		{"ls-json", []string{"ls", "-n", "ns", "-o", "json"}, 0},
		{"pipelinerun-logs", []string{"pr", "logs", "-n", "ns", "-t", "build", "run"}, 0},
		{"pipelinerun-logs-exit-code", []string{"pr", "logs", "-n", "ns", "-E", "run"}, 0},
		{"pipelinerun-logs-of-a-taskrun", []string{"pr", "logs", "-n", "ns", "run-build"}, exitFailed},
		{"taskrun-logs", []string{"tr", "logs", "-n", "ns", "-s", "compile", "run-build"}, 0},
		{"taskrun-logs-timestamps", []string{"tr", "logs", "-n", "ns", "-t", "run-build"}, 0},
		{"logs-no-prefix", []string{"logs", "-n", "ns", "--prefix=false", "run"}, exitLost},
		{"logs-last", []string{"logs", "-n", "ns", "--last"}, exitLost},
		{"logs-which", []string{"logs", "-n", "ns"}, exitUsage},
		{"logs-step-and-all", []string{"logs", "-n", "ns", "--all", "--step", "x", "run"}, exitUsage},
		{"search", []string{"search", "-n", "ns", "run", "line"}, exitLost},
		{"search-context", []string{"search", "-n", "ns", "run", "LINE [13]", "-e", "-i", "--around", "1"}, exitLost},
		{"search-before-and-after", []string{"search", "-n", "ns", "states", "line 2", "--step", "verified", "--around", "3", "-B", "0", "-A", "1"}, 0},
		{"search-nothing", []string{"search", "-n", "ns", "run", "nowhere"}, exitLost},
		{"search-nothing-in-all", []string{"search", "-n", "ns", "states", "nowhere", "--step", "verified"}, exitFailed},
		{"search-running", []string{"search", "-n", "ns", "running", "line 1"}, exitRunning},
		{"search-running-nothing", []string{"search", "-n", "ns", "running", "nowhere"}, exitRunning},
		{"search-broken", []string{"search", "-n", "ns", "broken", "line"}, exitLost},
		{"search-no-such-run", []string{"search", "-n", "ns", "none", "line"}, exitUsage},
		{"search-limit", []string{"search", "-n", "ns", "run", "line", "--limit", "1"}, 0},
		{"search-taskrun", []string{"search", "-n", "ns", "two-b", "line"}, 0},
		{"search-pod", []string{"search", "-n", "ns", "run-build-pod-retry1", "gap"}, exitLost},
		{"ls-pod", []string{"ls", "-n", "ns", "run-build-pod-retry1"}, 0},
		{"search-pattern", []string{"search", "-n", "ns", "run", "-e", "("}, exitUsage},
		{"verify", []string{"verify", "-n", "ns", "run"}, exitLost},
		{"verify-states", []string{"verify", "-n", "ns", "states"}, exitLost},
		{"open", []string{"open", "-n", "ns", "run"}, exitUsage},
		{"usage", []string{"ls", "a", "b"}, exitUsage},
		{"unknown-command-of-pipelinerun", []string{"pr", "lgos", "run"}, exitUsage},
		{"unknown-command-of-taskrun", []string{"taskrun", "lgos", "run"}, exitUsage},
		{"unknown-shell", []string{"completion", "csh"}, exitUsage},
		{"unknown-command", []string{"lost"}, exitUsage},
		{"unknown-flag", []string{"ls", "--nope"}, exitUsage},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, code := said(t, c.args)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			golden(t, filepath.Join("testdata", c.name+".txt"), got)
		})
	}
}

// useBucket has the CLI read a bucket.
func useBucket(t *testing.T, config objectstore.Config) {
	t.Helper()
	t.Setenv(objectstore.EnvBucket, config.Bucket)
	t.Setenv(objectstore.EnvEndpoint, config.Endpoint)
	t.Setenv(objectstore.EnvRegion, config.Region)
	t.Setenv("AWS_ACCESS_KEY_ID", config.Credentials.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", string(config.Credentials.SecretAccessKey))
}

// said is what the CLI writes, and its exit code.
func said(t *testing.T, args []string) (string, int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	err := run(t.Context(), args, &stdout, &stderr)
	code := 0
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		code = exit.code
	case err != nil:
		code = exitFailed
	}
	got := stdout.String()
	if stderr.Len() > 0 {
		got += "--- stderr\n" + stderr.String()
	}
	if err != nil && err.Error() != "" {
		got += "--- error\n" + err.Error() + "\n"
	}
	return got, code
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatalf("%v: run the test with -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestWhereIsTheArchive(t *testing.T) {
	t.Setenv(objectstore.EnvBucket, "")
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	var out bytes.Buffer
	err := run(t.Context(), []string{"ls"}, &out, &out)
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != exitUsage {
		t.Errorf("error %v, want wrong usage that says what to set", err)
	}
}

// TestOutputIsClosed: who has seen enough of the output ends the program quietly. A connection that
// is closed is a failure.
func TestOutputIsClosed(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	network := fmt.Errorf("ask the shiplog server: %w", &net.OpError{
		Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE),
	})
	for _, c := range []struct {
		name string
		err  error
		code int
	}{
		{"stdout", run(t.Context(), []string{"--help"}, w, io.Discard), 0},
		{"stdout, of a search", searchFailed(run(t.Context(), []string{"--help"}, w, io.Discard)), 0},
		{"stderr", fmt.Errorf("say: %w", syscall.EPIPE), exitFailed},
		{"the network", network, exitFailed},
		{"the network, of a search", searchFailed(network), exitUsage},
		{"nothing", nil, 0},
		{"too little", &exitError{code: exitPartial}, exitPartial},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, why := exitOf(c.err, false)
			told := c.code == exitFailed || c.code == exitUsage
			if code != c.code || told != (why != "") || (c.err == nil) != (c.name == "nothing") {
				t.Errorf("%v: exit code %d, %q; want %d", c.err, code, why, c.code)
			}
		})
	}
	if code, why := exitOf(fmt.Errorf("read: %w", context.Canceled), true); code != 130 || why != "" {
		t.Errorf("interrupted: exit code %d, %q", code, why)
	}
}

// TestContext: -c is the container where there is one to choose, and the context where tkn's flags
// are.
func TestContext(t *testing.T) {
	server := newFakeServer(t)
	server.containers = []fakeLog{fakeContainer("step-a", 6, "hello\n")}
	const none = `context "none" does not exist`
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"container", []string{"logs", "run", "-c", "step-a"}, 0, "[good : a] hello\n"},
		{"no such one", []string{"logs", "run", "-c", "step-b"}, exitFailed, "no container of run"},
		{"context", []string{"logs", "run", "--context", "none"}, exitUsage, none},
		{"tkn's", []string{"pipelinerun", "logs", "run", "-c", "none"}, exitUsage, none},
		{"tkn's, long", []string{"taskrun", "logs", "run", "--context", "none"}, exitUsage, none},
		{"neither", []string{"ls", "run", "-c", "none"}, exitUsage, "unknown shorthand flag: 'c'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append(c.args, "-n", "ns", "--server", server.URL)
			if got, code := said(t, args); code != c.code || !strings.Contains(got, c.says) {
				t.Errorf("exit code %d, %q; want %d and %q", code, got, c.code, c.says)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		name  string
		codes []int
		want  int
	}{
		{"nothing", nil, 0},
		{"verified", []int{0, 0}, 0},
		{"running", []int{0, exitRunning, 0}, exitRunning},
		{"partial is worse than running", []int{exitPartial, exitRunning}, exitPartial},
		{"and the other way round", []int{exitRunning, exitPartial}, exitPartial},
		{"lost is the worst", []int{exitPartial, exitLost, exitRunning}, exitLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := 0
			for _, code := range c.codes {
				got = worse(got, code)
			}
			if got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
		})
	}
}

func TestTknExitCodes(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want int
	}{
		{"running", notWhole(&exitError{code: exitRunning}), 0},
		{"partial", notWhole(&exitError{code: exitPartial}), 0},
		{"bytes are missing", notWhole(&exitError{code: exitLost}), 0},
		{"a choice was aborted", notWhole(&exitError{code: 130}), 130},
		{"wrong usage", notWhole(&exitError{code: exitUsage}), exitUsage},
		{"-E: the run succeeded", exitLikeARun(live.Succeeded), 0},
		{"-E: the run failed", exitLikeARun(live.Failed), 1},
		{"-E: the run goes on", exitLikeARun(live.Unfinished), 0},
		{"-E: nothing is known of the run", exitLikeARun(""), 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			code := 0
			var exit *exitError
			if errors.As(c.err, &exit) {
				code = exit.code
			}
			if code != c.want {
				t.Errorf("%d, want %d", code, c.want)
			}
		})
	}
}
