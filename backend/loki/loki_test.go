package loki

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// key opens the namespace that the bearer token names.
type key struct {
	present *backend.Namespace // nil: there is none of the name any more
}

func (key) Allow(r *http.Request, namespace string) (backend.Reach, error) {
	switch r.Header.Get("Authorization") {
	case "Bearer " + namespace:
		return backend.Reach{All: true}, nil
	case "":
		return backend.Reach{}, &api.Error{Status: http.StatusUnauthorized, Message: "who are you"}
	default:
		return backend.Reach{}, &api.Error{Status: http.StatusForbidden, Message: "no"}
	}
}

func (k key) Present(context.Context, string) (backend.Reach, error) {
	if k.present == nil {
		return backend.Reach{All: true}, nil
	}
	return backend.Reach{Namespace: *k.present}, nil
}

// faulty is a store with a fault.
type faulty struct {
	*objectstore.Store
	down atomic.Pointer[string] // a part of the keys that cannot be read
}

func (f *faulty) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if part := f.down.Load(); part != nil && strings.Contains(key, *part) {
		return nil, fmt.Errorf("get %s: the store is down", key)
	}
	return f.Store.Get(ctx, key)
}

var start = time.Date(2026, 11, 23, 12, 0, 0, 500_000_000, time.UTC)

// world is a real archive, and what Results asks.
type world struct {
	store  *objectstore.Store
	faulty *faulty
	server *httptest.Server
	log    bytes.Buffer // read it when the server has answered
}

func newWorld(t *testing.T) *world {
	t.Helper()
	store, _ := archivetest.Start(t)
	w := &world{store: store, faulty: &faulty{Store: store}}
	w.server = httptest.NewServer(New(Options{Archive: backend.New(w.faulty), Gate: key{}, Log: slog.New(slog.NewTextHandler(&w.log, nil))}))
	t.Cleanup(w.server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return w
}

// pod stores a pod with steps, and the logs of those that have one.
func (w *world) pod(t *testing.T, p layout.Pod, r record.Pod, steps []string, logs map[string][]byte) {
	t.Helper()
	for _, name := range steps {
		kind := record.Step
		if strings.HasPrefix(name, "sidecar-") {
			kind = record.Sidecar
		}
		r.Containers = append(r.Containers, record.Container{Name: name, Kind: kind, Captured: true})
	}
	archivetest.PutPod(t, w.store, p, r)
	for name, lines := range logs {
		c := layout.Container{Pod: p, Container: name}
		archivetest.PutLog(t, w.store, c, lines, 7)
		archivetest.PutRecord(t, w.store, c.SealKey(), archivetest.Seal(t, lines))
	}
}

// request is what Results sends.
type request struct {
	kind           string // the key of the UID
	namespace, uid string
	container      string // LOGGING_PLUGIN_CONTAINER_KEY
	limit          int
	direction      string
	token          string // the namespace's, if it is empty
}

// response is what Results reads of an answer, with the types that it has (getLokiLogs in github.com/tektoncd/results v0.15.0).
type response struct {
	Status string `json:"status"`
	Error  string `json:"error"`
	Data   struct {
		Result []struct {
			Stream struct {
				Message string `json:"message"`
			} `json:"stream"`
			Values [][]string `json:"values"`
		} `json:"result"`
		Stats map[string]any `json:"stats"`
	} `json:"data"`
}

func (w *world) send(t *testing.T, q request) (*http.Response, string, error) {
	t.Helper()
	v := url.Values{
		"query": {logQL(staticLabels, namespaceKey, q.container, q.kind, q.namespace, q.uid)}, "start": {"1"}, "end": {"2"}, "limit": {strconv.Itoa(q.limit)},
	}
	if q.direction != "" {
		v.Set("direction", q.direction)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+DefaultPath+"?"+v.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if q.token == "" {
		q.token = q.namespace
	}
	req.Header.Set("Authorization", "Bearer "+q.token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, string(body), err
}

// texts are the lines that Results makes of the answer: its entries in the order of their times, with newlines between them. An empty one at the end stands for a newline behind the last line.
func (w *world) texts(t *testing.T, q request) []string {
	t.Helper()
	res, body, err := w.send(t, q)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", res.Status, err, body)
	}
	var r response
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if r.Status != "success" || len(r.Data.Result) != 1 || r.Data.Stats == nil {
		t.Fatalf("not an answer that Results takes: %s", body)
	}
	values := r.Data.Result[0].Values
	times := make([]string, len(values))
	var texts []string
	for i, v := range values {
		if len(v) != 2 || len(v[0]) != len("1790000000000000000") {
			t.Fatalf("entry %d: %q", i, v)
		}
		times[i] = v[0]
		texts = append(texts, v[1])
	}
	if !slices.IsSorted(times) || len(slices.Compact(slices.Clone(times))) != len(times) {
		t.Errorf("times do not increase: %s", times)
	}
	return texts
}

var (
	run   = layout.Run{Namespace: "ns", Name: "run", UID: "run-uid"}
	build = layout.Pod{Run: run, TaskRun: "run-build", PodUID: "pod-build"}
	again = layout.Pod{Run: run, TaskRun: "run-build", PodUID: "pod-again"}
	test  = layout.Pod{Run: run, TaskRun: "run-test", PodUID: "pod-test"}
	alone = layout.Pod{Run: layout.Run{Namespace: "ns", Name: layout.NoPipelineRun, UID: "alone-uid"}, TaskRun: "alone", PodUID: "pod-alone"}
)

func numbered(what string, n int) []byte {
	return archivetest.Lines(start, n, func(i int) string { return fmt.Sprintf("%s %d", what, i+1) })
}

// behind puts a prefix before each text.
func behind(prefix string, texts ...string) []string {
	for i := range texts {
		texts[i] = prefix + texts[i]
	}
	return texts
}

func (w *world) putRun(t *testing.T) {
	t.Helper()
	archivetest.PutRun(t, w.store, record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "run", UID: run.UID, Created: start, Tasks: []string{"build", "test"}})
	w.pod(t, build, record.Pod{PodName: "run-build-pod", TaskRunUID: "build-uid", PipelineTask: "build", Created: start}, []string{"step-a", "step-b", "sidecar-db", "sidecar-quiet"},
		map[string][]byte{"step-a": numbered("a", 3), "step-b": nil, "sidecar-db": numbered("db", 1), "sidecar-quiet": nil})
	w.pod(t, test, record.Pod{PodName: "run-test-pod", TaskRunUID: "test-uid", PipelineTask: "test", Created: start}, []string{"step-a"}, map[string][]byte{"step-a": numbered("test", 30)})
	w.pod(t, alone, record.Pod{PodName: "alone-pod", TaskRunUID: alone.Run.UID, Created: start}, []string{"step-a", "step-b"}, map[string][]byte{"step-a": numbered("alone a", 2), "step-b": numbered("alone b", 1)})
}

// TestFormerNamespace: Results is given nothing of a namespace that had the name before, though
// it may read everything itself: it does not say who looks.
func TestFormerNamespace(t *testing.T) {
	w := newWorld(t)
	w.putRun(t)
	madeAt := func(at time.Time) key { return key{&backend.Namespace{UID: "u", Created: at}} }
	for _, c := range []struct {
		name string
		gate key
		want int
	}{
		{"made before the run", madeAt(start.Add(-time.Hour)), 200},
		{"made anew", madeAt(start.Add(time.Hour)), 404},
		{"gone", key{}, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.server.Config.Handler = New(Options{
				Archive: backend.New(w.store), Gate: c.gate, Log: slog.New(slog.DiscardHandler),
			})
			for _, q := range []request{
				{namespace: "ns", kind: pipelineRunKey, uid: run.UID, limit: 100},
				{namespace: "ns", kind: taskRunKey, uid: "build-uid", limit: 100},
			} {
				res, body, err := w.send(t, q)
				read := strings.Contains(body, "a 1")
				if err != nil || res.StatusCode != c.want || read != (c.want == 200) {
					t.Errorf("%s: %s, %v: %s; want %d", q.uid, res.Status, err, body, c.want)
				}
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	w := newWorld(t)
	w.putRun(t)
	const emptyLog = "-- shiplog: this log is empty: printed nothing, exit code 0"
	a, b := "container-step-a: message=", "container-step-b: message="
	ofBuild := slices.Concat(behind(a, "a 1", "a 2", "a 3"), behind(b, emptyLog), []string{"container-sidecar-db: message=db 1"})
	var tests []string
	for i := range 30 {
		tests = append(tests, fmt.Sprintf("test %d", i+1))
	}
	heads := func(task, step string) []string { return []string{"-- shiplog: [" + task + " : " + step + "]"} }
	left := func(format string, args ...any) []string {
		return []string{"-- shiplog: " + fmt.Sprintf(format, args...) + " (LOGGING_PLUGIN_QUERY_LIMIT); the archive has them"}
	}
	for _, c := range []struct {
		name string
		request
		want []string
	}{
		{"a TaskRun", request{kind: taskRunKey, uid: "build-uid", container: containerKey, limit: 1700}, ofBuild},
		{"a TaskRun of one step", request{kind: taskRunKey, uid: "test-uid", limit: 1700}, tests},
		{"exactly the limit", request{kind: taskRunKey, uid: "test-uid", limit: 30}, tests},
		{"a TaskRun without a PipelineRun", request{kind: taskRunKey, uid: "alone-uid", container: containerKey, limit: 1700}, slices.Concat(behind(a, "alone a 1", "alone a 2"), behind(b, "alone b 1"))},
		{"several steps whose lines do not say which", request{kind: taskRunKey, uid: "alone-uid", limit: 1700}, []string{"-- shiplog: [a]", "alone a 1", "alone a 2", "-- shiplog: [b]", "alone b 1"}},
		{"a PipelineRun", request{kind: pipelineRunKey, uid: "run-uid", container: containerKey, limit: 1700},
			slices.Concat(heads("build", "a"), ofBuild[:3], heads("build", "b"), ofBuild[3:4], heads("build", "sidecar-db"), ofBuild[4:], heads("test", "a"), behind(a, slices.Clone(tests)...))},
		{"the last lines", request{kind: taskRunKey, uid: "test-uid", limit: 10}, slices.Concat(left("the first 20 of 30 lines are left out here, since Tekton Results asked for 10"), tests[20:])},
		{"the last lines of several logs", request{kind: pipelineRunKey, uid: "run-uid", limit: 32, direction: "backward"},
			slices.Concat(left("the first 2 of 34 lines are left out here, since Tekton Results asked for 32"),
				heads("build", "a"), []string{"a 3"}, heads("build", "b"), []string{emptyLog}, heads("build", "sidecar-db"), []string{"db 1"}, heads("test", "a"), tests)},
		{"the last lines, at the beginning of a log", request{kind: pipelineRunKey, uid: "run-uid", limit: 30},
			slices.Concat(left("the first 4 of 34 lines are left out here, since Tekton Results asked for 30"), heads("test", "a"), tests)},
		{"the first lines", request{kind: taskRunKey, uid: "test-uid", limit: 10, direction: "forward"}, slices.Concat(tests[:10], left("the last 20 of 30 lines are left out here, since Tekton Results asked for 10"))},
		{"the first lines of several logs", request{kind: pipelineRunKey, uid: "run-uid", limit: 5, direction: "forward"},
			slices.Concat(heads("build", "a"), []string{"a 1", "a 2", "a 3"}, heads("build", "b"), []string{emptyLog}, heads("build", "sidecar-db"), []string{"db 1"}, heads("test", "a"), tests[:1],
				left("the last 29 of 34 lines are left out here, since Tekton Results asked for 5"))},
		{"the first lines, up to the end of a log", request{kind: pipelineRunKey, uid: "run-uid", limit: 3, direction: "forward"},
			slices.Concat(heads("build", "a"), []string{"a 1", "a 2", "a 3"}, left("the last 31 of 34 lines are left out here, since Tekton Results asked for 3"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.namespace = "ns"
			if diff := cmp.Diff(append(c.want, ""), w.texts(t, c.request)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	t.Run("a retry", func(t *testing.T) {
		w.pod(t, again, record.Pod{PodName: "run-build-pod-retry1", TaskRunUID: "build-uid", PipelineTask: "build", Created: start.Add(time.Hour)}, []string{"step-a"}, map[string][]byte{"step-a": numbered("again", 1)})
		got := w.texts(t, request{kind: taskRunKey, namespace: "ns", uid: "build-uid", container: containerKey, limit: 1700})
		want := slices.Concat(heads("build", "a"), ofBuild[:3], heads("build", "b"), ofBuild[3:4], heads("build", "sidecar-db"), ofBuild[4:], heads("build retry 1", "a"), []string{a + "again 1", ""})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	if w.log.Len() > 0 {
		t.Errorf("logged: %s", w.log.String())
	}
}

// TestTexts is about what lines may hold.
func TestTexts(t *testing.T) {
	line := func(b []byte, full bool, stream criline.Stream, text string) []byte {
		return criline.Append(b, start, stream, full, []byte(text))
	}
	marker := func(b []byte, m criline.Marker) []byte {
		b, err := criline.AppendMarker(b, start, m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	timed := func(timesAndTexts ...any) (b []byte) {
		for c := range slices.Chunk(timesAndTexts, 2) {
			b = criline.Append(b, c[0].(time.Time), criline.Stdout, true, []byte(c[1].(string)))
		}
		return b
	}
	const out, err = criline.Stdout, criline.Stderr
	for _, c := range []struct {
		name  string
		lines []byte
		want  []string
	}{
		{"JSON's own signs", line(nil, true, out, "\"\\</script>&\u2028\t\x00\x1b[31m\r"), []string{"\"\\</script>&\u2028\t\x00\x1b[31m\r", ""}},
		{"an empty line", line(line(nil, true, out, ""), true, out, ""), []string{"", "", ""}},
		{"no newline at the end", line(line(nil, true, out, "a"), false, out, "b"), []string{"a", "b"}},
		{"pieces of two streams", line(line(line(nil, false, out, "half "), true, err, "an error"), true, out, "done"), []string{"half an error", "done", ""}},
		{"bytes that are not UTF-8", line(nil, true, out, "a\xff\xfe\xe2\x82z\xe2\x82"), []string{"a\ufffd\ufffd\ufffd\ufffdz\ufffd\ufffd", ""}},
		{"a character that is cut into pieces", line(line(line(line(nil, false, out, "a\xf0"), false, out, "\x9f\x98"), false, out, "\x80b\xe2"), true, out, "\x82\xac"), []string{"a😀b€", ""}},
		{"half a character at the end", line(line(nil, false, out, "a\xf0"), true, out, "\x9f"), []string{"a\ufffd\ufffd", ""}},
		{"a half of a character before a gap", line(marker(line(nil, false, out, "a\xe2"), criline.Marker{Kind: criline.Gap, Reason: "killed", Stdout: 3, Unknown: true}), true, out, "\xacb"),
			[]string{"a\ufffd", "-- shiplog: at least 3 bytes are missing here (killed)", "\ufffdb", ""}},
		{"a marker with newlines", marker(nil, criline.Marker{Kind: criline.Gap, Reason: "x", Detail: "a\nb"}), []string{"-- shiplog: 0 bytes are missing here (x: a b)", ""}},
		{"times that a step has made up", timed(time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC), "far", time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), "long ago", start, "now"),
			[]string{"far", "long ago", "now", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.pod(t, alone, record.Pod{PodName: "alone-pod", TaskRunUID: alone.Run.UID}, []string{"step-a"}, map[string][]byte{"step-a": c.lines})
			if diff := cmp.Diff(c.want, w.texts(t, request{kind: taskRunKey, namespace: "ns", uid: alone.Run.UID, limit: 1700})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestStates is about what is said at the end of a log that is not whole.
func TestStates(t *testing.T) {
	w := newWorld(t)
	w.pod(t, alone, record.Pod{PodName: "alone-pod", TaskRunUID: alone.Run.UID}, []string{"step-running", "step-other"}, nil)
	archivetest.PutLog(t, w.store, layout.Container{Pod: alone, Container: "step-running"}, numbered("line", 2), 1)
	other := layout.Container{Pod: alone, Container: "step-other"}
	archivetest.PutLog(t, w.store, other, numbered("line", 2), 1)
	seal := archivetest.Seal(t, numbered("line", 2))
	seal.SHA256 = strings.Repeat("0", 64)
	archivetest.PutRecord(t, w.store, other.SealKey(), seal)
	got := w.texts(t, request{kind: taskRunKey, namespace: "ns", uid: alone.Run.UID, container: containerKey, limit: 1700})
	want := slices.Concat(behind("container-step-running: message=", "line 1", "line 2", "-- shiplog: still running: more will follow"), behind("container-step-other: message=", "line 1", "line 2"))
	if diff := cmp.Diff(want, got[:len(want)]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if last := got[len(want)]; len(got) != len(want)+2 || !strings.HasPrefix(last, "container-step-other: message=-- shiplog: ") || !strings.Contains(last, "is not what was sealed") {
		t.Errorf("the last of %d entries: %s", len(got), last)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.putRun(t)
	archivetest.PutRun(t, w.store, record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "looks-like-a-uid", UID: "another", Created: start})
	for _, c := range []struct {
		name string
		request
		status int
		says   string
	}{
		{"no token that is anybody's", request{kind: taskRunKey, namespace: "ns", uid: "build-uid", limit: 1, token: "x"}, 403, "no"},
		{"another's namespace", request{kind: taskRunKey, namespace: "other", uid: "build-uid", limit: 1, token: "ns"}, 403, "no"},
		{"a UID that there is not", request{kind: taskRunKey, namespace: "ns", uid: "none", limit: 1}, 404, "nothing in namespace"},
		{"a UID of another namespace", request{kind: taskRunKey, namespace: "other", uid: "build-uid", limit: 1}, 404, "nothing in namespace"},
		{"a TaskRun's for a PipelineRun", request{kind: pipelineRunKey, namespace: "ns", uid: "build-uid", limit: 1}, 404, "nothing in namespace"},
		{"a TaskRun's that has no PipelineRun, for one", request{kind: pipelineRunKey, namespace: "ns", uid: "alone-uid", limit: 1}, 404, "nothing in namespace"},
		{"a PipelineRun's for a TaskRun", request{kind: taskRunKey, namespace: "ns", uid: "run-uid", limit: 1}, 404, "nothing in namespace"},
		{"a name in the place of a UID", request{kind: pipelineRunKey, namespace: "ns", uid: "looks-like-a-uid", limit: 1}, 404, "nothing in namespace"},
		{"a TaskRun's name in the place of a UID", request{kind: taskRunKey, namespace: "ns", uid: "run-build", limit: 1}, 404, "nothing in namespace"},
		{"a run without a pod", request{kind: pipelineRunKey, namespace: "ns", uid: "another", limit: 1}, 404, "no container"},
		{"another query", request{kind: "pod", namespace: "ns", uid: "build-uid", limit: 1}, 400, "neither"},
		{"no limit", request{kind: taskRunKey, namespace: "ns", uid: "build-uid"}, 400, "LOGGING_PLUGIN_QUERY_LIMIT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, body, err := w.send(t, c.request)
			if err != nil || res.StatusCode != c.status || !strings.Contains(body, c.says) || strings.Contains(body, "success") {
				t.Errorf("%s %s %v, want %d and %q", res.Status, body, err, c.status, c.says)
			}
		})
	}
	for method, want := range map[string]int{http.MethodPost: 405, http.MethodHead: 405} {
		got := httptest.NewRecorder()
		New(Options{}).ServeHTTP(got, httptest.NewRequest(method, Path, nil))
		if got.Code != want {
			t.Errorf("%s: %d", method, got.Code)
		}
	}
	if w.log.Len() > 0 {
		t.Errorf("logged: %s", w.log.String())
	}
}

func TestStoreIsDown(t *testing.T) {
	q := request{kind: taskRunKey, namespace: "ns", uid: "test-uid", limit: 1700}
	t.Run("before the answer", func(t *testing.T) {
		w := newWorld(t)
		w.putRun(t)
		part := "v1-index/"
		w.faulty.down.Store(&part)
		if res, body, err := w.send(t, q); err != nil || res.StatusCode != http.StatusServiceUnavailable || strings.Contains(body, part) {
			t.Errorf("%s %s %v", res.Status, body, err)
		}
	})
	t.Run("within the answer", func(t *testing.T) {
		w := newWorld(t)
		w.putRun(t)
		segments, _ := archivetest.Segments(t, numbered("test", 30), 7)
		part := segments[2].Name()
		w.faulty.down.Store(&part)
		res, body, err := w.send(t, q)
		if res.StatusCode != http.StatusOK || !errors.Is(err, io.ErrUnexpectedEOF) || json.Valid([]byte(body)) {
			t.Errorf("%s %v: %s", res.Status, err, body)
		}
		w.server.Close()
		if log := w.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "the store is down") || strings.Contains(log, "test 1") {
			t.Errorf("logged: %s", log)
		}
	})
}

// TestEarlyHeader: Results waits 10 seconds for an answer's header, and then as long as it takes. So the header comes before the first segment is read.
func TestEarlyHeader(t *testing.T) {
	w := newWorld(t)
	w.putRun(t)
	sent := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, Path+"?"+url.Values{"query": {logQL("", namespaceKey, "", taskRunKey, "ns", "test-uid")}, "start": {"1"}, "end": {"1"}, "limit": {"1700"}}.Encode(), nil)
	r.Header.Set("Authorization", "Bearer ns")
	New(Options{Archive: backend.New(&watching{w.store, sent, t}), Gate: key{}, Log: slog.New(slog.DiscardHandler)}).ServeHTTP(sent, r)
	if sent.Code != http.StatusOK || !strings.Contains(sent.Body.String(), "test 30") {
		t.Errorf("%d %s", sent.Code, sent.Body)
	}
}

// watching sees to it that a header is sent before a segment is read.
type watching struct {
	*objectstore.Store
	sent *httptest.ResponseRecorder
	t    *testing.T
}

func (w *watching) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if k, err := layout.ParseKey(key); err == nil && k.Kind == layout.KindSegment && !w.sent.Flushed {
		w.t.Errorf("%s is read before the header is sent", key)
	}
	return w.Store.Get(ctx, key)
}
