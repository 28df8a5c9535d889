package api

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

func TestMain(m *testing.M) {
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", openapi3filter.RegisteredBodyDecoder("application/json")) // line by line
	goleak.VerifyTestMain(m)
}

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// keys opens the namespaces that the bearer token names.
type keys struct{}

func (keys) Allow(r *http.Request, namespace string) (backend.Reach, error) {
	allowed, err := keys{}.Allowed(r, []string{namespace})
	if err == nil && len(allowed) == 0 {
		err = &Error{http.StatusForbidden, "no"}
	}
	return backend.Reach{All: err == nil}, err
}

func (keys) Allowed(r *http.Request, namespaces []string) ([]string, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, &Error{http.StatusUnauthorized, "who are you"}
	}
	mine := strings.Split(token, ",")
	return slices.DeleteFunc(slices.Clone(namespaces), func(n string) bool { return !slices.Contains(mine, n) }), nil
}

// counting counts the requests to the store.
type counting struct {
	*objectstore.Store
	lists, gets atomic.Int64
	fail        atomic.Pointer[string] // a part of the keys that cannot be read
}

func (c *counting) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	c.gets.Add(1)
	if part := c.fail.Load(); part != nil && strings.Contains(key, *part) {
		return nil, fmt.Errorf("get %s: the store is down", key)
	}
	return c.Store.Get(ctx, key)
}

func (c *counting) List(ctx context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[objectstore.Entry, error] {
	c.lists.Add(1)
	return c.Store.List(ctx, prefix, delimiter, startAfter, limit)
}

// world is an archive, and an API before it.
type world struct {
	store  *objectstore.Store
	count  *counting
	server *httptest.Server
	router routers.Router
}

var (
	theRun = record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "run", UID: "11111111-2222-3333-4444-555555555555", Created: start, Pipeline: "ci", Tasks: []string{"build", "test"},
		Labels: map[string]string{"team": "a"}, State: record.Failed, Reason: "Failed", Started: start, Completed: start.Add(time.Hour)}
	run    = layout.Run{Namespace: "ns", Name: "run", UID: theRun.UID}
	build  = layout.Pod{Run: run, TaskRun: "run-build", PodUID: "pod-build"}
	retry  = layout.Pod{Run: run, TaskRun: "run-build", PodUID: "pod-retry"}
	test   = layout.Pod{Run: run, TaskRun: "run-test", PodUID: "pod-test"}
	long   = layout.Container{Pod: build, Container: "step-long"}
	mixed  = layout.Container{Pod: retry, Container: "step-long"}
	gaps   = layout.Container{Pod: test, Container: "step-gaps"}
	broken = layout.Container{Pod: test, Container: "step-broken"}
	going  = layout.Container{Pod: test, Container: "step-running"}
	silent = layout.Container{Pod: test, Container: "step-silent"}

	longLines  = archivetest.Lines(start, 1000, func(i int) string { return fmt.Sprintf("line %d", i+1) })
	mixedLines = func() (b []byte) {
		b = criline.Append(b, start, criline.Stdout, false, []byte("half "))
		b = criline.Append(b, start, criline.Stderr, true, []byte("an error"))
		b = criline.Append(b, start, criline.Stdout, true, []byte("done"))
		b = criline.Append(b, start, criline.Stdout, true, []byte("\xff\xfe not UTF-8"))
		return criline.Append(b, start, criline.Stdout, false, []byte("no newline"))
	}()
	gapLines = func() []byte {
		b := criline.Append(nil, start, criline.Stdout, true, []byte("before"))
		b, err := criline.AppendMarker(b, start, criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 17})
		if err != nil {
			panic(err)
		}
		return criline.Append(b, start, criline.Stdout, true, []byte("behind"))
	}()
)

func newWorld(t *testing.T) *world {
	t.Helper()
	store, _ := archivetest.Start(t)
	archivetest.PutRun(t, store, theRun)
	steps := func(names ...string) (out []record.Container) {
		for _, n := range names {
			out = append(out, record.Container{Name: n, Kind: record.Step, Captured: true})
		}
		return append(out, record.Container{Name: "sidecar-db", Kind: record.Sidecar, Skipped: "no-command"})
	}
	archivetest.PutPod(t, store, build, record.Pod{PodName: "run-build-pod", TaskRunUID: "taskrun-build", PipelineTask: "build", Created: start.Add(time.Minute), Containers: steps("step-long")})
	archivetest.PutPod(t, store, retry, record.Pod{PodName: "run-build-pod-retry1", TaskRunUID: "taskrun-build", PipelineTask: "build", Created: start.Add(2 * time.Minute), Containers: steps("step-long")})
	archivetest.PutPod(t, store, test, record.Pod{PodName: "run-test-pod", TaskRunUID: "taskrun-test", PipelineTask: "test", Created: start,
		Containers: steps("step-gaps", "step-broken", "step-running", "step-silent")})
	for c, lines := range map[layout.Container][]byte{long: longLines, mixed: mixedLines, gaps: gapLines, broken: longLines, silent: nil} {
		each := 100
		if c == mixed {
			each = 2
		}
		archivetest.PutLog(t, store, c, lines, each)
		archivetest.PutRecord(t, store, c.SealKey(), archivetest.Seal(t, lines))
	}
	segments, _ := archivetest.Segments(t, longLines, 100)
	archivetest.Put(t, store, broken.SegmentKey(segments[5]), []byte("garbage"))
	archivetest.PutLog(t, store, going, longLines, 100)
	other := theRun
	other.Namespace, other.Name, other.UID = "other", "secret", "99999999-2222-3333-4444-555555555555"
	archivetest.PutRun(t, store, other)

	w := &world{store: store, count: &counting{Store: store}}
	w.server = httptest.NewServer(New(Options{Archive: backend.New(w.count), Gate: keys{}, Log: slog.New(slog.DiscardHandler)}))
	t.Cleanup(w.server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	doc.Servers = openapi3.Servers{{URL: w.server.URL + Base}}
	if w.router, err = gorillamux.NewRouter(doc); err != nil {
		t.Fatal(err)
	}
	return w
}

// answer is a response, read to its end.
type reply struct {
	*http.Response
	body string
	err  error // of the body
}

// get asks, and compares request and answer with what openapi.yaml says of them.
func (w *world) get(t *testing.T, path string, headers ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+Base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer ns")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, readErr := io.ReadAll(res.Body)
	if readErr == nil && res.StatusCode != http.StatusNotFound || strings.Contains(string(body), "archive") {
		w.check(t, req, res, body)
	}
	return reply{res, string(body), readErr}
}

// check validates an exchange.
func (w *world) check(t *testing.T, req *http.Request, res *http.Response, body []byte) {
	t.Helper()
	route, path, err := w.router.FindRoute(req)
	if err != nil {
		t.Errorf("%s: %v", req.URL, err)
		return
	}
	in := &openapi3filter.RequestValidationInput{Request: req, PathParams: path, Route: route, Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}}
	if err := openapi3filter.ValidateRequest(t.Context(), in); err != nil && res.StatusCode < 300 {
		t.Errorf("%s is answered with %d; openapi.yaml says of it: %v", req.URL, res.StatusCode, err)
	}
	bodies := [][]byte{body}
	ndjson := strings.HasPrefix(res.Header.Get("Content-Type"), "application/x-ndjson")
	if ndjson {
		bodies = bytes.Split(bytes.TrimSuffix(body, []byte("\n")), []byte("\n"))
	}
	for _, b := range bodies {
		header := res.Header.Clone()
		out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: res.StatusCode, Header: header, Body: io.NopCloser(bytes.NewReader(b))}
		if err := openapi3filter.ValidateResponse(t.Context(), out); err != nil {
			t.Errorf("%s: the answer %.300q is not as openapi.yaml says: %v", req.URL, b, err)
			return
		}
	}
}

func path(c layout.Container) string {
	return "/containers/" + strings.TrimSuffix(strings.TrimPrefix(c.Prefix(), "v1/"), "/")
}

// printed is what a container printed.
func printed(t *testing.T, lines []byte) string {
	t.Helper()
	var b strings.Builder
	for line := range bytes.Lines(lines) {
		l, err := criline.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		if l.Stream != criline.Markers {
			b.Write(l.Text)
			if l.Full {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// lineRange are lines of longLines as printed, from 1.
func lineRange(from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

func TestAPI(t *testing.T) {
	w := newWorld(t)
	t.Run("one log as text", func(t *testing.T) { oneText(t, w) })
	t.Run("one log as NDJSON", func(t *testing.T) { oneNDJSON(t, w) })
	t.Run("ranges", func(t *testing.T) { ranges(t, w) })
	t.Run("what a request costs", func(t *testing.T) { cost(t, w) })
	t.Run("several logs", func(t *testing.T) { several(t, w) })
	t.Run("zip", func(t *testing.T) { zipped(t, w) })
	t.Run("search", func(t *testing.T) { searched(t, w) })
	t.Run("lists and trees", func(t *testing.T) { listed(t, w) })
	t.Run("bad requests", func(t *testing.T) { bad(t, w) })
	t.Run("who may not", func(t *testing.T) { forbidden(t, w) })
	t.Run("the store is down", func(t *testing.T) { down(t, w) })
	t.Run("follow", func(t *testing.T) { follow(t, w) })
}

func oneText(t *testing.T, w *world) {
	all := printed(t, longLines)
	for _, c := range []struct {
		name, path string
		want       string
		status     backend.Status
	}{
		{"whole", path(long) + "/logs", all, backend.Verified},
		{"by step", "/namespaces/ns/taskruns/run-build/steps/long/logs?retry=0", all, backend.Verified},
		{"by step, of the last retry", "/namespaces/ns/taskruns/taskrun-build/steps/long/logs", printed(t, mixedLines), backend.Verified},
		{"by pod", "/namespaces/ns/pods/run-build-pod/containers/step-long/logs", all, backend.Verified},
		{"bytes that are not UTF-8, two streams", path(mixed) + "/logs", printed(t, mixedLines), backend.Verified},
		{"tailLines", path(long) + "/logs?tailLines=3", lineRange(998, 1000), backend.Verified},
		{"tailLines=0", path(long) + "/logs?tailLines=0", "", backend.Verified},
		{"lines", path(long) + "/logs?fromLine=99&toLine=102", lineRange(99, 102), backend.Verified},
		{"behind the end", path(long) + "/logs?fromLine=5000", "", backend.Verified},
		{"fromByte", path(long) + fmt.Sprintf("/logs?fromByte=%d", len(all)-6), all[len(all)-6:], backend.Verified},
		{"sinceTime", path(long) + "/logs?sinceTime=" + start.Add(997*time.Second).Format(time.RFC3339), lineRange(998, 1000), backend.Verified},
		{"limitBytes", path(long) + "/logs?limitBytes=10", all[:10], backend.Verified},
		{"limitBytes in the middle", path(long) + "/logs?limitBytes=9&fromLine=300", lineRange(300, 301)[:9], backend.Verified},
		{"limitBytes beyond the end", path(long) + "/logs?limitBytes=1000000", all, backend.Verified},
		{"timestamps", path(long) + "/logs?timestamps=true&toLine=1", "2026-11-23T12:00:00.000000000Z line 1\n", backend.Verified},
		{"timestamps of two streams", path(mixed) + "/logs?timestamps=true&toLine=2", "2026-11-23T12:00:00.000000000Z half \n2026-11-23T12:00:00.000000000Z an error\n2026-11-23T12:00:00.000000000Z done\n", backend.Verified},
		{"gaps, exactly", path(gaps) + "/logs", "before\nbehind\n", backend.Gaps},
		{"gaps, told", path(gaps) + "/logs?notices=true", "before\n-- shiplog: 17 bytes are missing here (spool-limit)\nbehind\n", backend.Gaps},
		{"empty", path(silent) + "/logs", "", backend.Verified},
		{"empty, told", path(silent) + "/logs?notices=1", "-- shiplog: this log is empty: printed nothing, exit code 0\n", backend.Verified},
		{"running", path(going) + "/logs", all, backend.Running},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.get(t, c.path)
			if got.StatusCode != 200 || got.err != nil || got.body != c.want || got.Header.Get(headerStatus) != string(c.status) {
				t.Errorf("%d, %v, %s: %.200q of %d bytes, want %.200q of %d", got.StatusCode, got.err, got.Header.Get(headerStatus), got.body, len(got.body), c.want, len(c.want))
			}
			if trailer := got.Trailer.Get(headerStatus); trailer != "" && trailer != string(c.status) {
				t.Errorf("the trailer says %s", trailer)
			}
		})
	}
	t.Run("what is damaged does not look whole", func(t *testing.T) {
		if got := w.get(t, path(broken)+"/logs"); got.StatusCode != 200 || got.err == nil || strings.Contains(got.body, "line 501\n") || !strings.Contains(got.body, "line 500\n") {
			t.Errorf("%d, %v: %d bytes", got.StatusCode, got.err, len(got.body))
		}
		got := w.get(t, path(broken)+"/logs?notices=true")
		if got.err != nil || !strings.Contains(got.body, "line 500\n-- shiplog: at least") || !strings.HasSuffix(got.body, lineRange(601, 1000)) {
			t.Errorf("with notices: %v, %d bytes", got.err, len(got.body))
		}
	})
	t.Run("unharmed by a path from the answer", func(t *testing.T) {
		got := w.get(t, path(long)+"/logs?download=true")
		if d := got.Header.Get("Content-Disposition"); d != `attachment; filename="run-build-step-long.log"` {
			t.Error(d)
		}
	})
}

func oneNDJSON(t *testing.T, w *world) {
	got := w.get(t, path(mixed)+"/logs", "Accept", "text/html, application/x-ndjson;q=0.9, */*;q=0.1")
	want := `{"line":1,"offset":0,"time":"2026-11-23T12:00:00Z","stream":"stdout","text":"half ","partial":true}
{"line":1,"offset":5,"time":"2026-11-23T12:00:00Z","stream":"stderr","text":"an error"}
{"line":2,"offset":14,"time":"2026-11-23T12:00:00Z","stream":"stdout","text":"done"}
{"line":3,"offset":19,"time":"2026-11-23T12:00:00Z","stream":"stdout","base64":"//4gbm90IFVURi04"}
{"line":4,"offset":32,"time":"2026-11-23T12:00:00Z","stream":"stdout","text":"no newline","partial":true}
{"end":{"status":"verified","bytes":42,"lines":3,"exit":{"code":0}}}
`
	if diff := cmp.Diff(want, got.body); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got = w.get(t, path(gaps)+"/logs?format=ndjson&fromLine=2")
	want = `{"line":2,"offset":7,"time":"2026-11-23T12:00:00Z","stream":"marker","gap":{"kind":"gap","reason":"spool-limit","stdout":17,"stderr":0}}
{"line":2,"offset":7,"time":"2026-11-23T12:00:00Z","stream":"stdout","text":"behind"}
{"end":{"status":"gaps","why":"gaps: 1, bytes lost: 17","says":"bytes are missing before this (gaps: 1, bytes lost: 17)","bytes":14,"lines":2,"exit":{"code":0}}}
`
	if diff := cmp.Diff(want, got.body); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func ranges(t *testing.T, w *world) {
	all := printed(t, longLines)
	first := w.get(t, path(long)+"/logs")
	tag := first.Header.Get("ETag")
	if tag == "" || first.ContentLength != int64(len(all)) {
		t.Fatalf("ETag %q, length %d", tag, first.ContentLength)
	}
	for _, c := range []struct {
		name   string
		header []string
		status int
		want   string
	}{
		{"a part", []string{"Range", "bytes=100-199"}, 206, all[100:200]},
		{"the end", []string{"Range", "bytes=-7"}, 206, all[len(all)-7:]},
		{"from somewhere", []string{"Range", fmt.Sprintf("bytes=%d-", len(all)-9)}, 206, all[len(all)-9:]},
		{"of what I have", []string{"Range", "bytes=0-1", "If-Range", tag}, 206, all[:2]},
		{"of what I have not", []string{"Range", "bytes=0-1", "If-Range", `"other"`}, 200, all},
		{"several", []string{"Range", "bytes=0-1,5-6"}, 200, all},
		{"very many", []string{"Range", "bytes=0-0" + strings.Repeat(",5-5", 1000)}, 200, all},
		{"behind the end", []string{"Range", "bytes=9999999-"}, 416, ""},
		{"no range", []string{"Range", "lines=1-2"}, 416, ""},
		{"I have it", []string{"If-None-Match", tag}, 304, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.get(t, path(long)+"/logs", c.header...)
			if got.StatusCode != c.status || got.StatusCode < 300 && got.body != c.want {
				t.Errorf("%d: %.100q", got.StatusCode, got.body)
			}
		})
	}
}

// cost counts what the issue of a large log is about: the first byte and the last lines cost one LIST and two GETs, one of them for the seal.
func cost(t *testing.T, w *world) {
	for name, query := range map[string]string{"first line": "?toLine=1", "last lines": "?tailLines=50", "lines": "?fromLine=450&toLine=455", "last bytes": "?fromByte=8800", "range": ""} {
		t.Run(name, func(t *testing.T) {
			w.count.lists.Store(0)
			w.count.gets.Store(0)
			header := []string{}
			if query == "" {
				header = []string{"Range", "bytes=5000-5010"}
			}
			if got := w.get(t, path(long)+"/logs"+query, header...); got.StatusCode >= 300 || got.body == "" {
				t.Errorf("%d %q", got.StatusCode, got.body)
			}
			if lists, gets := w.count.lists.Load(), w.count.gets.Load(); lists != 1 || gets > 2 {
				t.Errorf("%d LIST, %d GET", lists, gets)
			}
		})
	}
}

func several(t *testing.T, w *world) {
	got := w.get(t, "/namespaces/ns/pipelineruns/run/logs?task=build&tailLines=1")
	want := "[build : long] line 1000\n[build retry 1 : long] \xff\xfe not UTF-8\n[build retry 1 : long] no newline\n"
	if got.body != want {
		t.Errorf("got %q, want %q", got.body, want)
	}
	got = w.get(t, "/namespaces/ns/taskruns/run-test/logs?step=gaps")
	if want := "[test : gaps] before\n[test : gaps] -- shiplog: 17 bytes are missing here (spool-limit)\n[test : gaps] behind\n"; got.body != want || got.Header.Get(headerStatus) != "gaps" {
		t.Errorf("%s: got %q, want %q", got.Header.Get(headerStatus), got.body, want)
	}
	got = w.get(t, "/namespaces/ns/pipelineruns/"+theRun.UID+"/logs?format=ndjson&container=step-gaps&tailLines=1")
	if want := `{"taskRun":"run-test","task":"test","retry":0,"container":"step-gaps","line":2,"offset":7,"time":"2026-11-23T12:00:00Z","stream":"stdout","text":"behind"}`; !strings.Contains(got.body, want) {
		t.Errorf("got %s", got.body)
	}
	if !strings.HasSuffix(strings.TrimSpace(got.body), `"exit":{"code":0}}}`) {
		t.Errorf("got %s", got.body)
	}
	if got = w.get(t, "/namespaces/ns/pipelineruns/run/logs?all=true&task=build"); !strings.Contains(got.body, "[build : sidecar-db] -- shiplog: not captured: no-command\n") {
		t.Errorf("%.300s", got.body)
	}
	if got = w.get(t, "/namespaces/ns/pipelineruns/run/logs?task=build&tailLines=0"); got.StatusCode != 200 || got.body != "" {
		t.Errorf("tailLines=0: %d %.100q", got.StatusCode, got.body)
	}
	if got = w.get(t, "/namespaces/ns/pipelineruns/run/logs?step=nope"); got.StatusCode != 404 {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
}

func zipped(t *testing.T, w *world) {
	got := w.get(t, "/namespaces/ns/pipelineruns/run/logs.zip")
	z, err := zip.NewReader(strings.NewReader(got.body), int64(len(got.body)))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name] = string(b)
	}
	for name, want := range map[string]string{
		"build/step-long.log": printed(t, longLines), "build/sidecar-db.log": "-- shiplog: not captured: no-command\n",
		"test/step-gaps.log": "before\n-- shiplog: 17 bytes are missing here (spool-limit)\nbehind\n",
	} {
		if files[name] != want {
			t.Errorf("%s: %.100q", name, files[name])
		}
	}
	if !json.Valid([]byte(files["tree.json"])) || len(files) != 10 {
		t.Errorf("%d files", len(files))
	}
}

func searched(t *testing.T, w *world) {
	lines := func(r reply) (texts []string, last string) {
		all := strings.Split(strings.TrimSpace(r.body), "\n")
		for _, l := range all[:len(all)-1] {
			var m struct {
				MatchLine
				Start, End int
			}
			if err := json.Unmarshal([]byte(l), &m); err != nil {
				t.Fatal(err)
			}
			texts = append(texts, fmt.Sprintf("%d %s[%s]%s", m.Line, m.Text[:m.Start], m.Text[m.Start:m.End], m.Text[m.End:]))
		}
		return texts, all[len(all)-1]
	}
	for _, c := range []struct {
		name, path string
		want       []string
		last       string
	}{
		{"one log", path(long) + "/search?q=line+99", []string{"99 [line 99]", "990 [line 99]0"}, `"more":true`},
		{"regular expression", path(long) + "/search?regexp=true&q=" + url.QueryEscape(`^line 7[0-1]$`), []string{"70 [line 70]", "71 [line 71]"}, `"matches":2,"more":false,"logs":1`},
		{"no match", path(long) + "/search?q=nothing", nil, `"matches":0,"more":false`},
		{"behind bytes that are not UTF-8", path(mixed) + "/search?q=UTF", []string{"3 \uFFFD not [UTF]-8"}, `"matches":1`},
		{"in pieces", path(mixed) + "/search?q=half+done", []string{"1 [half done]"}, `"matches":1`},
		{"a run", "/namespaces/ns/pipelineruns/run/search?task=test&q=behind", []string{"2 [behind]"}, `"damage":["test/step-gaps: bytes are missing before this (gaps: 1, bytes lost: 17)","test/step-broken: could not be searched at byte `},
		{"a run of which not all has ended", "/namespaces/ns/pipelineruns/run/search?task=test&q=behind", []string{"2 [behind]"}, `"unfinished":["test/step-running: still running: more will follow"]`},
		{"a corrupt log", path(broken) + "/search?q=line+550", nil, `{"found":{"matches":0,"more":false,"logs":1,"bytes":8893,"damage":["step-broken: could not be searched at byte 4392: at least 900 bytes are missing here (missing: `},
		{"a running log", path(going) + "/search?q=line+551", []string{"551 [line 551]"}, `"unfinished":["step-running: still running: more will follow"]`},
		{"with context", path(long) + "/search?before=1&after=2&q=line+551", []string{"551 [line 551]"}, `"matches":1`},
		{"with context, in a run", "/namespaces/ns/taskruns/run-build/search?before=20&after=20&q=LINE+1000&ignoreCase=true", []string{"1000 [line 1000]"}, `"matches":1`},
		{"a TaskRun", "/namespaces/ns/taskruns/run-build/search?ignoreCase=true&q=LINE+1000", []string{"1000 [line 1000]"}, `"logs":2`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.last, `"more":true`) {
				c.path += "&limit=2"
			}
			texts, last := lines(w.get(t, c.path))
			if !slices.Equal(texts, c.want) || !strings.Contains(last, c.last) {
				t.Errorf("%q %s", texts, last)
			}
		})
	}
}

func listed(t *testing.T, w *world) {
	for i := range 7 {
		r := record.Run{Kind: layout.PipelineRun, Namespace: "many", Name: fmt.Sprintf("run-%d", i), UID: fmt.Sprintf("uid-%d", i), Created: start.Add(time.Duration(i) * time.Minute), Pipeline: "p" + fmt.Sprint(i%2)}
		if i == 3 {
			r.Kind, r.Labels = layout.TaskRun, map[string]string{"team": "b"}
		}
		if i < 2 {
			r.State = record.Succeeded
		}
		archivetest.PutRun(t, w.store, r)
	}
	page := func(query string) (names []string, next string) {
		got := w.get(t, "/namespaces/many/"+query, "Authorization", "Bearer many")
		var p Runs
		if err := json.Unmarshal([]byte(got.body), &p); err != nil {
			t.Fatalf("%s: %v", got.body, err)
		}
		for _, r := range p.Runs {
			names = append(names, strings.TrimPrefix(r.Name, "run-"))
		}
		return names, p.Continue
	}
	at := func(i int) string { return start.Add(time.Duration(i) * time.Minute).Format(time.RFC3339) }
	for _, c := range []struct{ name, query, want string }{
		{"all", "runs", "6 5 4 3 2 1 0"},
		{"PipelineRuns", "pipelineruns", "6 5 4 2 1 0"},
		{"TaskRuns", "taskruns", "3"},
		{"name", "runs?name=un-5", "5"},
		{"pipeline", "runs?pipeline=p1", "5 3 1"},
		{"state", "runs?state=succeeded", "1 0"},
		{"running", "runs?state=running", "6 5 4 3 2"},
		{"label", "runs?label=team=b", "3"},
		{"no such label", "runs?label=team=b&label=x=y", ""},
		{"since", "runs?since=" + at(5), "6 5"},
		{"until", "runs?until=" + at(1), "1 0"},
		{"until the zero time", "runs?until=0001-01-01T00:00:00Z", ""},
		{"until long before all", "runs?until=1969-12-31T23:59:59Z", ""},
		{"until long behind all", "runs?until=9999-12-31T00:00:00Z", "6 5 4 3 2 1 0"},
		{"since the zero time", "runs?since=0001-01-01T00:00:00Z", "6 5 4 3 2 1 0"},
		{"between", "runs?since=" + at(2) + "&until=" + at(3), "3 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			names, next := page(c.query)
			if got := strings.Join(names, " "); got != c.want || next != "" {
				t.Errorf("%s, continue %q; want %s", got, next, c.want)
			}
			// Page by page it is the same.
			for limit := range 4 {
				var all []string
				next, join := "", "?"
				if strings.Contains(c.query, "?") {
					join = "&"
				}
				for range 10 {
					query := c.query + join + fmt.Sprintf("limit=%d", limit+1)
					if next != "" {
						query += "&continue=" + next
					}
					names, n := page(query)
					if len(names) > limit+1 {
						t.Errorf("a page of %d, %d were asked for", len(names), limit+1)
					}
					all = append(all, names...)
					if next = n; next == "" {
						break
					}
				}
				if got := strings.Join(all, " "); got != c.want {
					t.Errorf("in pages of %d: %s, want %s", limit+1, got, c.want)
				}
			}
		})
	}
	var one Container
	if err := json.Unmarshal([]byte(w.get(t, path(gaps)).body), &one); err != nil || one.Status != backend.Gaps || one.Path != strings.TrimPrefix(path(gaps), "/containers/") || len(one.Gaps) != 1 {
		t.Errorf("%v: %+v", err, one)
	}
	got := w.get(t, "/namespaces", "Authorization", "Bearer other,none")
	if got.body != `{"namespaces":["other"]}`+"\n" {
		t.Error(got.body)
	}
	var tree Tree
	if err := json.Unmarshal([]byte(w.get(t, "/namespaces/ns/pipelineruns/run").body), &tree); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tr := range tree.TaskRuns {
		for _, p := range tr.Pods {
			for _, c := range p.Containers {
				names = append(names, fmt.Sprintf("%s/%s %s %d", p.PodName, c.Name, c.Status, c.Lines))
			}
		}
	}
	want := []string{
		"run-test-pod/step-gaps gaps 2", "run-test-pod/step-broken verified 1000", "run-test-pod/step-running running 1000", "run-test-pod/step-silent verified 0", "run-test-pod/sidecar-db not captured 0",
		"run-build-pod/step-long verified 1000", "run-build-pod/sidecar-db not captured 0", "run-build-pod-retry1/step-long verified 3", "run-build-pod-retry1/sidecar-db not captured 0",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var objects struct {
		Prefix  string
		Objects []backend.Object
	}
	if err := json.Unmarshal([]byte(w.get(t, "/namespaces/ns/taskruns/taskrun-build/objects").body), &objects); err != nil {
		t.Fatal(err)
	}
	if objects.Prefix != run.Prefix()+"run-build/" || len(objects.Objects) != 2+10+1+3+1 {
		t.Errorf("%d objects under %s", len(objects.Objects), objects.Prefix)
	}
}

func bad(t *testing.T, w *world) {
	for _, c := range []struct {
		name, path string
		status     int
	}{
		{"unknown run", "/namespaces/ns/pipelineruns/none", 404},
		{"unknown TaskRun", "/namespaces/ns/taskruns/none/logs", 404},
		{"a TaskRun where a PipelineRun is asked for", "/namespaces/ns/pipelineruns/taskrun-build", 404},
		{"a PipelineRun where a TaskRun is asked for", "/namespaces/ns/taskruns/" + theRun.UID, 404},
		{"unknown step", "/namespaces/ns/taskruns/run-build/steps/none/logs", 404},
		{"unknown retry", "/namespaces/ns/taskruns/run-build/steps/long/logs?retry=7", 404},
		{"unknown pod", "/namespaces/ns/pods/none/containers/step-long/logs", 404},
		{"unknown container", path(long) + "-none/logs", 404},
		{"unknown path", "/nope", 404},
		{"path trick", "/containers/ns/run/" + theRun.UID + "/run-build/..%2fx/step-long/logs", 400},
		{"path trick in the namespace", "/namespaces/ns%2f..%2fother/runs", 400},
		{"a name that is none", "/namespaces/ns/pods/x/containers/STEP/logs", 404},
		{"unknown parameter", path(long) + "/logs?tail=3", 400},
		{"no number", path(long) + "/logs?tailLines=x", 400},
		{"negative", path(long) + "/logs?tailLines=-1", 400},
		{"too large", path(long) + "/logs?limitBytes=99999999999999999999", 400},
		{"twice", path(long) + "/logs?tailLines=1&tailLines=2", 400},
		{"no time", path(long) + "/logs?sinceTime=yesterday", 400},
		{"no boolean", path(long) + "/logs?follow=maybe", 400},
		{"lines that end before they begin", path(long) + "/logs?fromLine=5&toLine=4", 400},
		{"unknown format", path(long) + "/logs?format=xml", 400},
		{"limitBytes of NDJSON", path(long) + "/logs?format=ndjson&limitBytes=3", 400},
		{"follow to a line", path(long) + "/logs?follow=true&toLine=3", 400},
		{"no query that can be read", path(long) + "/logs?a=%zz", 400},
		{"event ID", path(long) + "/logs?format=events", 400},
		{"nothing to search for", path(long) + "/search", 400},
		{"no regular expression", path(long) + "/search?regexp=true&q=(", 400},
		{"a large regular expression", path(long) + "/search?regexp=true&q=" + url.QueryEscape("((x{100}){100}){10}"), 400},
		{"too many matches", path(long) + "/search?q=x&limit=10001", 400},
		{"limit of nothing", "/namespaces/ns/runs?limit=0", 400},
		{"cursor", "/namespaces/ns/runs?continue=abc", 400},
		{"empty cursor", "/namespaces/ns/runs?continue=", 400},
		{"a run's name with a NUL", "/namespaces/ns/pipelineruns/%00", 404},
		{"a TaskRun's name with a NUL", "/namespaces/ns/taskruns/a%00b/logs", 404},
		{"a run's name that is too long", "/namespaces/ns/pipelineruns/" + strings.Repeat("a", 300), 404},
		{"a run's name that is longer than a key", "/namespaces/ns/pipelineruns/" + strings.Repeat("a", 1100), 404},
		{"a run's name as long as one can be", "/namespaces/ns/pipelineruns/" + strings.Repeat("a", 253), 404},
		{"a TaskRun's name that is too long", "/namespaces/ns/taskruns/" + strings.Repeat("a", 1100) + "/logs", 404},
		{"a TaskRun's name as long as one can be", "/namespaces/ns/taskruns/" + strings.Repeat("a", 253), 404},
		{"a pod's name that is too long", "/namespaces/ns/pods/" + strings.Repeat("a", 1100) + "/containers/step-a/logs", 404},
		{"a namespace that is too long", "/namespaces/" + strings.Repeat("a", 300) + "/runs", 400},
		{"a container's path that is longer than a key", "/containers/ns/" + strings.Repeat("a", 253) + "/u/" + strings.Repeat("a", 253) + "/u/" + strings.Repeat("a", 253) + "/logs", 404},
		{"cursor of another namespace", "/namespaces/ns/runs?continue=" + base64.RawURLEncoding.EncodeToString([]byte("../../x")), 400},
		{"state", "/namespaces/ns/runs?state=done", 400},
		{"label", "/namespaces/ns/runs?label=x", 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			header := []string{}
			if c.name == "event ID" {
				header = []string{"Last-Event-ID", "x"}
			}
			got := w.get(t, c.path, header...)
			var body struct{ Error string }
			if err := json.Unmarshal([]byte(got.body), &body); err != nil || got.StatusCode != c.status || len(body.Error) < 5 {
				t.Errorf("%d %q, want %d with a reason", got.StatusCode, got.body, c.status)
			}
		})
	}
	res, err := http.Post(w.server.URL+Base+"/namespaces/ns/runs", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered with %d", res.StatusCode)
	}
}

// forbidden: who may not read a namespace is told the same of what is there and what is not.
func forbidden(t *testing.T, w *world) {
	for _, header := range [][]string{{"Authorization", "Bearer nothing"}, {"Authorization", ""}} {
		seen := map[string]string{}
		for _, p := range []string{
			"/namespaces/ns/runs", "/namespaces/ns/pipelineruns/run", "/namespaces/ns/pipelineruns/none", "/namespaces/none/pipelineruns/run", "/namespaces/ns/pipelineruns/run/logs?format=xml",
			path(long) + "/logs", path(long) + "-none/logs", path(long) + "/search", "/namespaces/ns/pods/run-build-pod/containers/step-long/logs",
		} {
			w.count.lists.Store(0)
			w.count.gets.Store(0)
			got := w.get(t, p, header...)
			seen[fmt.Sprint(got.StatusCode, got.body, got.Header.Get(headerStatus))] = p
			if w.count.lists.Load()+w.count.gets.Load() > 0 {
				t.Errorf("%s: the store was asked", p)
			}
		}
		if len(seen) != 1 {
			t.Errorf("%d different answers: %v", len(seen), seen)
		}
	}
}

func down(t *testing.T, w *world) {
	part := ".log.zst"
	w.count.fail.Store(&part)
	defer w.count.fail.Store(nil)
	for _, p := range []string{path(long) + "/logs?toLine=3", path(long) + "/logs?format=ndjson", "/namespaces/ns/pipelineruns/run/logs"} {
		if got := w.get(t, p); got.StatusCode != 503 || got.Header.Get("Retry-After") == "" || strings.Contains(got.body, "log.zst") {
			t.Errorf("%s: %d %q", p, got.StatusCode, got.body)
		}
	}
	// A search has sent its headers before it reads.
	if got := w.get(t, path(long)+"/search?q=x"); got.err == nil {
		t.Errorf("a search looks whole: %d %q", got.StatusCode, got.body)
	}
	// In the middle, all that is left is to break off.
	segments, _ := archivetest.Segments(t, longLines, 100)
	later := segments[5].Name()
	w.count.fail.Store(&later)
	for _, p := range []string{path(long) + "/logs", path(going) + "/logs", path(going) + "/logs?format=ndjson", path(long) + "/logs?timestamps=true", "/namespaces/ns/pipelineruns/run/logs.zip"} {
		if got := w.get(t, p); got.StatusCode == 200 && got.err == nil && got.body != "" {
			t.Errorf("%s: looks whole with %d bytes", p, len(got.body))
		}
	}
}

// follow: what is printed is there soon, and the stream ends with the log.
func follow(t *testing.T, w *world) {
	for _, c := range []struct {
		name, query string
		header      []string
		want        []string // what is seen, in this order
	}{
		{"text", "?follow=true&tailLines=1", nil, []string{"line 10", "line 11", "line 12"}},
		{"nothing of what was there", "?follow=true&tailLines=0", nil, []string{"line 11", "line 12"}},
		{"NDJSON", "?follow=true&format=ndjson&tailLines=1", nil, []string{`"text":"line 10"`, `"text":"line 11"`, `"text":"line 12"`, `{"end":{"status":"verified"`}},
		{"events", "?follow=true&format=events&tailLines=1", nil, []string{"id: ", "event: line", `"text":"line 10"`, `"text":"line 11"`, `"text":"line 12"`, "event: end", `{"end":{"status":"verified"`}},
		{
			"events of what comes from now on", "?follow=true&format=events&tailLines=0", nil,
			[]string{
				fmt.Sprint("id: ", len(lineRange(1, 10))),
				`"text":"line 11"`, `"text":"line 12"`, "event: end",
			},
		},
		{"events from where it was", "?follow=true&format=events", []string{"Last-Event-ID", fmt.Sprint(len(lineRange(1, 9)))}, []string{`"text":"line 10"`, `"text":"line 11"`, `"text":"line 12"`, "event: end"}},
		{"a run", "run?follow=true&tailLines=1", nil, []string{"[build : f] line 10", "[build : f] line 11", "[build : f] line 12"}},
		{"a run without what was there", "run?follow=true&tailLines=0", nil, []string{"[build : f] line 11", "[build : f] line 12"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := theRun
			r.Name, r.UID, r.Completed = "follow-"+strings.ReplaceAll(strings.ToLower(c.name), " ", "-"), "follow-"+strings.ReplaceAll(c.name, " ", "-"), time.Time{}
			run := archivetest.PutRun(t, w.store, r)
			k := layout.Container{Pod: layout.Pod{Run: run, TaskRun: r.Name + "-build", PodUID: "pod"}, Container: "step-f"}
			archivetest.PutPod(t, w.store, k.Pod, record.Pod{PodName: r.Name + "-pod", PipelineTask: "build", Containers: []record.Container{{Name: "step-f", Kind: record.Step, Captured: true}}})
			segments, bodies := archivetest.Segments(t, longLines[:bytes.Index(longLines, []byte("line 13\n"))-criline.PrefixLen], 1)
			for i := range 10 {
				archivetest.Put(t, w.store, k.SegmentKey(segments[i]), bodies[i])
			}
			p := path(k) + "/logs" + c.query
			if query, ok := strings.CutPrefix(c.query, "run"); ok {
				p = "/namespaces/ns/pipelineruns/" + r.Name + "/logs" + query
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.server.URL+Base+p, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer ns")
			for i := 0; i < len(c.header); i += 2 {
				req.Header.Set(c.header[i], c.header[i+1])
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			lines := bufio.NewScanner(res.Body)
			for i, want := range c.want {
				if strings.Contains(want, "line 11") { // it is printed when what was there before has been seen
					for i := 10; i < 12; i++ {
						archivetest.Put(t, w.store, k.SegmentKey(segments[i]), bodies[i])
					}
				}
				if strings.Contains(want, "line 12") {
					archivetest.PutRecord(t, w.store, k.SealKey(), archivetest.Seal(t, longLines[:segments[11].End()]))
					r.Completed = time.Now()
					archivetest.PutRun(t, w.store, r)
				}
				found := false
				for !found && lines.Scan() {
					found = strings.Contains(lines.Text(), want)
					if i == 0 && strings.Contains(lines.Text(), "line 9\"") {
						t.Errorf("it begins too early: %s", lines.Text())
					}
				}
				if !found {
					t.Fatalf("it ended before %q: %v", want, lines.Err())
				}
			}
			for lines.Scan() {
				if strings.Contains(lines.Text(), "line 1") {
					t.Errorf("%s comes behind the end", lines.Text())
				}
			}
			if err := lines.Err(); err != nil {
				t.Errorf("the answer is broken off: %v", err)
			}
			if s := res.Trailer.Get(headerStatus); s != string(backend.Verified) {
				t.Errorf("the trailer says %q", s)
			}
		})
	}
	t.Run("the reader leaves", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, w.server.URL+Base+path(going)+"/logs?follow=true", nil)
			req.Header.Set("Authorization", "Bearer ns")
			if res, err := http.DefaultClient.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
		cancel()
		group.Wait() // that the handler ends, the leak check sees
	})
}
