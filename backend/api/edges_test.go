package api

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// TestDocument: openapi.yaml names every route, and no other.
func TestDocument(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	var said, served []string
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			said = append(said, method+" "+path)
		}
	}
	for path := range (&api{}).routes() {
		served = append(served, "GET "+path)
	}
	slices.Sort(said)
	slices.Sort(served)
	if diff := cmp.Diff(served, said); diff != "" {
		t.Errorf("(-served +said):\n%s", diff)
	}
	// What is registered is what is asked for.
	h := New(Options{Archive: backend.New(inMemory{}), Gate: keys{}, Log: slog.New(slog.DiscardHandler)})
	for _, path := range served {
		w := httptest.NewRecorder()
		path = strings.NewReplacer("GET ", "", "{namespace}", "ns", "{", "", "}", "").Replace(path)
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, Base+path, nil))
		if want := http.StatusUnauthorized; w.Code != want && path != "/openapi.yaml" {
			t.Errorf("%s: %d to nobody, want %d", path, w.Code, want)
		}
	}
}

// inMemory is a store whose objects may share their bytes.
type inMemory map[string][]byte

func (m inMemory) Get(_ context.Context, key string) (io.ReadCloser, error) {
	b, ok := m[key]
	if !ok {
		return nil, fmt.Errorf("get %s: %w", key, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (m inMemory) List(_ context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		var keys []string
		for key := range m {
			if strings.HasPrefix(key, prefix) && key > startAfter {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		seen := map[string]bool{}
		for _, key := range keys {
			e := objectstore.Entry{Key: key, Size: int64(len(m[key])), LastModified: time.Now()}
			if i := strings.Index(key[len(prefix):], delimiter); delimiter != "" && i >= 0 {
				e = objectstore.Entry{Key: key[:len(prefix)+i+1], IsPrefix: true}
			}
			if seen[e.Key] {
				continue
			}
			seen[e.Key] = true
			if !yield(e, nil) {
				return
			}
			if limit--; limit == 0 {
				return
			}
		}
	}
}

func (m inMemory) put(t *testing.T, key string, v any) {
	t.Helper()
	var err error
	switch v := v.(type) {
	case record.Pod:
		m[key], err = record.Encode(v)
	case record.Seal:
		m[key], err = record.Encode(v)
	case record.Pointer:
		m[key], err = record.Encode(v)
	case []byte:
		m[key] = v
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (m inMemory) putLog(t *testing.T, c layout.Container, lines []byte, each int) {
	t.Helper()
	segments, bodies := archivetest.Segments(t, lines, each)
	for i, s := range segments {
		m[c.SegmentKey(s)] = bodies[i]
	}
	m.put(t, c.SealKey(), archivetest.Seal(t, lines))
}

// ask is a request with the right to read namespace ns.
func ask(t *testing.T, method, path string, headers ...string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, Base+path, nil)
	r.Header.Set("Authorization", "Bearer ns")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

// counted counts the requests to a store, each page of a listing as one.
type counted struct {
	backend.Store
	lists, gets atomic.Int64
	wait        chan struct{} // a Get of a segment waits for it, if it is set
	waiting     chan struct{} // one for each that waits
}

func (c *counted) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	c.gets.Add(1)
	if c.wait != nil && strings.HasSuffix(key, ".log.zst") && strings.Contains(key, "/"+slow.Container+"/") {
		c.waiting <- struct{}{}
		select {
		case <-c.wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return c.Store.Get(ctx, key)
}

func (c *counted) List(ctx context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		c.lists.Add(1)
		n := 0
		for e, err := range c.Store.List(ctx, prefix, delimiter, startAfter, limit) {
			if n++; n%1000 == 0 {
				c.lists.Add(1)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// firstWrite is a client that leaves when it has seen the first bytes.
type firstWrite struct {
	*httptest.ResponseRecorder
	seen func()
}

func (w firstWrite) Write(b []byte) (int, error) {
	w.seen()
	return 0, errors.New("the client has left")
}

// TestCostOfALargeLog: of a log of 500 MB, the first byte and the last 100 lines cost one LIST and two GETs, of which one is for the seal.
func TestCostOfALargeLog(t *testing.T) {
	const segments, size = 125, 4 << 20 // 524 MB of archive, which is never in memory: all objects share one body
	var text []byte
	var lines int64
	for at := start; len(text) < size-200; at = at.Add(time.Microsecond) {
		text = criline.Append(text, at, criline.Stdout, true, fmt.Appendf(nil, "compile example.com/pkg/internal/layer/%d: nothing new", lines))
		lines++
	}
	w, err := segment.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	printed := int64(len(text)) - lines*int64(criline.PrefixLen)
	w.Begin(0, 0, 0)
	if err := w.Append(text, criline.Tally{Bytes: int64(len(text)), Stdout: printed, Lines: lines, First: start, Last: start.Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	s, body, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	m := inMemory{}
	for i := range int64(segments) {
		n := s
		n.Offset, n.PrintedOffset, n.Line = i*s.Length, i*s.Printed, i*s.Lines
		m[long.SegmentKey(n)] = body
	}
	m.put(t, long.SealKey(), record.Seal{Bytes: segments * s.Length, Segments: segments, End: record.EndExited, Exit: &record.Exit{}, SHA256: strings.Repeat("00", 32), Sealed: start})
	total := segments * s.Printed
	for _, c := range []struct {
		name, query string
		header      []string
		lines       int // of the answer; 0: it is left at its first byte
	}{
		{"first byte", "", nil, 0},
		{"first byte with times", "?timestamps=true", nil, 0},
		{"first byte as NDJSON", "?format=ndjson", nil, 0},
		{"last 100 lines", "?tailLines=100", nil, 100},
		{"last 100 lines as NDJSON", "?tailLines=100&format=ndjson", nil, 101},
		{"last bytes", "", []string{"Range", "bytes=-1000"}, 1000 * int(lines) / int(printed)},
		{"lines in the middle", fmt.Sprintf("?fromLine=%d&toLine=%d", 60*lines+10, 60*lines+19), nil, 10},
		{"headers", "HEAD", nil, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := &counted{Store: m}
			h := New(Options{Archive: backend.New(store), Gate: keys{}, Log: slog.New(slog.DiscardHandler)})
			method := http.MethodGet
			if c.query == "HEAD" {
				method, c.query = http.MethodHead, ""
			}
			out := httptest.NewRecorder()
			r := ask(t, method, path(long)+"/logs"+c.query, c.header...)
			seen := false
			check := func() {
				if lists, gets := store.lists.Load(), store.gets.Load(); !seen && (lists != 1 || gets > 2) {
					t.Errorf("%d LIST, %d GET, want 1 and at most 2", lists, gets)
				}
				seen = true
			}
			if c.lines == 0 {
				func() {
					defer func() { _ = recover() }() // http.ErrAbortHandler: nobody listens
					h.ServeHTTP(firstWrite{out, check}, r)
				}()
				if !seen {
					t.Errorf("%d: nothing is written", out.Code)
				}
				return
			}
			h.ServeHTTP(out, r)
			check()
			if out.Code >= 300 || c.lines > 0 && bytes.Count(out.Body.Bytes(), []byte("\n")) < c.lines-1 || c.lines < 0 && out.Body.Len() > 0 {
				t.Errorf("%d: %d lines, want %d", out.Code, bytes.Count(out.Body.Bytes(), []byte("\n")), c.lines)
			}
			if c.lines < 0 && out.Header().Get("Content-Length") != fmt.Sprint(total) {
				t.Errorf("Content-Length %s, want %d", out.Header().Get("Content-Length"), total)
			}
		})
	}
}

// TestHead: the headers of an answer cost nothing that only its body needs, and do not wait for a log to end.
func TestHead(t *testing.T) {
	m := inMemory{}
	m.putLog(t, long, longLines, 100)
	m.put(t, long.PodKey(), record.Pod{PodName: "p", PipelineTask: "build", Containers: []record.Container{{Name: long.Container, Kind: record.Step, Captured: true}}})
	m.putLog(t, going, longLines, 100)
	delete(m, going.SealKey())
	m.put(t, layout.UIDIndexKey("ns", run.UID), record.Pointer{Run: run})
	for _, c := range []struct{ name, path, contentType string }{
		{"a sealed log", path(long) + "/logs", "text/plain; charset=utf-8"},
		{"a sealed log with times", path(long) + "/logs?timestamps=true", "text/plain; charset=utf-8"},
		{"a running log", path(going) + "/logs", "text/plain; charset=utf-8"},
		{"a running log that is followed", path(going) + "/logs?follow=true&format=ndjson", "application/x-ndjson"},
		{"events", path(going) + "/logs?follow=true&format=events", "text/event-stream"},
		{"a run", "/namespaces/ns/pipelineruns/" + run.UID + "/logs", "text/plain; charset=utf-8"},
		{"a run that is followed", "/namespaces/ns/pipelineruns/" + run.UID + "/logs?follow=true", "text/plain; charset=utf-8"},
		{"zip", "/namespaces/ns/pipelineruns/" + run.UID + "/logs.zip", "application/zip"},
		{"search", path(long) + "/search?q=x", "application/x-ndjson"},
		{"search of a run", "/namespaces/ns/pipelineruns/" + run.UID + "/search?q=x", "application/x-ndjson"},
		{"objects", "/namespaces/ns/pipelineruns/" + run.UID + "/objects", "application/json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := &segmentless{m}
			h := New(Options{Archive: backend.New(store), Gate: keys{}, Log: slog.New(slog.DiscardHandler)})
			out := httptest.NewRecorder()
			h.ServeHTTP(out, ask(t, http.MethodHead, c.path))
			if out.Code != http.StatusOK || out.Body.Len() > 0 || out.Header().Get("Content-Type") != c.contentType {
				t.Errorf("%d, %d bytes, %s", out.Code, out.Body.Len(), out.Header().Get("Content-Type"))
			}
		})
	}
}

// segmentless is a store whose segments cannot be read.
type segmentless struct{ inMemory }

func (s *segmentless) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if strings.HasSuffix(key, ".log.zst") {
		return nil, errors.New("a segment is read")
	}
	return s.inMemory.Get(ctx, key)
}

// TestEventsEnd: an EventSource that has seen the end asks once more, and is told that there is nothing.
func TestEventsEnd(t *testing.T) {
	m := inMemory{}
	m.putLog(t, mixed, mixedLines, 0)
	m.putLog(t, silent, nil, 0)
	m.putLog(t, going, mixedLines, 0)
	delete(m, going.SealKey())
	h := New(Options{Archive: backend.New(m), Gate: keys{}, Log: slog.New(slog.DiscardHandler)})
	get := func(t *testing.T, c layout.Container, last string) *httptest.ResponseRecorder {
		out := httptest.NewRecorder()
		header := []string{"Accept", "text/event-stream"}
		if last != "" {
			header = append(header, "Last-Event-ID", last)
		}
		h.ServeHTTP(out, ask(t, http.MethodGet, path(c)+"/logs", header...))
		return out
	}
	for _, c := range []struct {
		name   string
		log    layout.Container
		again  int // the answer to who has seen the end
		repeat bool
	}{
		{"sealed", mixed, http.StatusNoContent, false}, {"sealed and empty", silent, http.StatusNoContent, false}, {"running", going, http.StatusOK, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			first := get(t, c.log, "")
			last := ""
			for line := range strings.Lines(first.Body.String()) {
				if id, ok := strings.CutPrefix(strings.TrimSpace(line), "id: "); ok {
					last = id
				}
			}
			if last == "" || !strings.Contains(first.Body.String(), "event: end") {
				t.Fatalf("last ID %q: %s", last, first.Body)
			}
			again := get(t, c.log, last)
			if again.Code != c.again || strings.Contains(again.Body.String(), "event: end") != c.repeat || strings.Contains(again.Body.String(), "event: line") {
				t.Errorf("behind %q: %d %s", last, again.Code, again.Body)
			}
			// Who has seen all lines, but not the end, is told of it.
			if before := get(t, c.log, strings.TrimSuffix(last, endID)); before.Code != http.StatusOK || !strings.Contains(before.Body.String(), "event: end") || strings.Contains(before.Body.String(), "event: line") {
				t.Errorf("behind the last line: %d %s", before.Code, before.Body)
			}
		})
	}
}

// TestEventsGoOn: an EventSource whose connection breaks gets what it asked for, and no more.
func TestEventsGoOn(t *testing.T) {
	m := inMemory{}
	m.putLog(t, long, longLines, 100)
	archive := backend.New(m)
	h := New(Options{Archive: archive, Gate: keys{}, Log: slog.New(slog.DiscardHandler)})
	for _, c := range []struct {
		name, query string
		last        int // the line that came last
		want        []string
	}{
		{"to a line", "?toLine=5", 3, []string{"line 4", "line 5"}},
		{"all lines were there", "?toLine=5", 5, nil},
		{"from a line to a line", "?fromLine=2&toLine=5", 4, []string{"line 5"}},
		{"the last lines", "?tailLines=2", 999, []string{"line 1000"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := fmt.Sprint(len(lineRange(1, c.last)))
			out := httptest.NewRecorder()
			header := []string{"Accept", "text/event-stream", "Last-Event-ID", id}
			h.ServeHTTP(out, ask(t, http.MethodGet, path(long)+"/logs"+c.query, header...))
			var got []string
			for line := range strings.Lines(out.Body.String()) {
				if _, text, ok := strings.Cut(line, `"text":"`); ok {
					text, _, _ = strings.Cut(text, `"`)
					got = append(got, text)
				}
			}
			ended := strings.Contains(out.Body.String(), "event: end")
			if diff := cmp.Diff(c.want, got); diff != "" || !ended {
				t.Errorf("%d (-want +got):\n%s", out.Code, diff)
			}
		})
	}
}

// TestFilesOfAZip: each log has a file of its own, and none is outside of the folder where they are unpacked, whatever a tenant has put into the record of a pod.
func TestFilesOfAZip(t *testing.T) {
	for _, c := range []struct {
		name string
		pods map[string]record.Pod // by TaskRun
		want []string
	}{
		{"a matrix", map[string]record.Pod{
			"run-build-0": {PodName: "p0", PipelineTask: "build"}, "run-build-1": {PodName: "p1", PipelineTask: "build"}, "run-test": {PodName: "p2", PipelineTask: "test"},
		}, []string{"run-build-0/step-a.log", "run-build-1/step-a.log", "test/step-a.log", "tree.json"}},
		{"tasks that are called as files or retries are", map[string]record.Pod{
			"run-a": {PodName: "p0", PipelineTask: "build"},
			"run-b": {PodName: "p1", PipelineTask: "build-retry1"},
			"run-c": {PodName: "p2", PipelineTask: "build.retry1"}, "tree.json": {PodName: "p3"},
		}, []string{
			"build-retry1/step-a.log", "build.retry1/step-a.log",
			"build/step-a.log", "build_retry1/step-a.log", "tree.json", "tree.json_/step-a.log",
		}},
		{"a forged record", map[string]record.Pod{
			"run-build": {PodName: "../x", PipelineTask: "../../etc", Containers: []record.Container{{Name: "../../passwd", Captured: true}, {Name: "step-a", Captured: true}, {Name: "step-a", Captured: true}}},
		}, []string{"run-build/step-a.log", "tree.json"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := inMemory{}
			m.put(t, layout.UIDIndexKey("ns", run.UID), record.Pointer{Run: run})
			for taskRun, r := range c.pods {
				uid := "pod-" + strings.ReplaceAll(taskRun, ".", "-")
				pod := layout.Pod{Run: run, TaskRun: taskRun, PodUID: uid}
				k := layout.Container{Pod: pod, Container: "step-a"}
				m.put(t, k.PodKey(), r)
				m.putLog(t, k, mixedLines, 0)
				if taskRun == "run-a" { // a retry
					k.PodUID += "-again"
					m.put(t, k.PodKey(), r)
					m.putLog(t, k, mixedLines, 0)
				}
			}
			h := New(Options{Archive: backend.New(m), Gate: keys{}, Log: slog.New(slog.DiscardHandler)})
			out := httptest.NewRecorder()
			h.ServeHTTP(out, ask(t, http.MethodGet, "/namespaces/ns/pipelineruns/"+run.UID+"/logs.zip"))
			z, err := zip.NewReader(bytes.NewReader(out.Body.Bytes()), int64(out.Body.Len()))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range z.File {
				got = append(got, f.Name)
			}
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// slow is the log whose segments the test of searches holds back.
var slow = layout.Container{Pod: build, Container: "step-slow"}

// TestSearchesAtOnce: as many searches as may run leave who reads answered; one more waits, and begins when another ends.
func TestSearchesAtOnce(t *testing.T) {
	m := inMemory{}
	m.putLog(t, slow, mixedLines, 0)
	m.putLog(t, long, longLines, 100)
	most := 2 * runtime.GOMAXPROCS(0)
	store := &counted{Store: m, wait: make(chan struct{}), waiting: make(chan struct{}, 10*most)}
	h := New(Options{Archive: backend.New(store), Gate: keys{}, Log: slog.New(slog.DiscardHandler)})
	var searches sync.WaitGroup
	answers := make(chan int, most)
	for range most {
		searches.Go(func() {
			out := httptest.NewRecorder()
			h.ServeHTTP(out, ask(t, http.MethodGet, path(slow)+"/search?q=half"))
			answers <- out.Code
		})
	}
	for range most {
		<-store.waiting
	}

	out := httptest.NewRecorder()
	h.ServeHTTP(out, ask(t, http.MethodGet, path(long)+"/logs?tailLines=1"))
	if out.Code != http.StatusOK || out.Body.String() != "line 1000\n" {
		t.Errorf("who reads is answered with %d %q", out.Code, out.Body)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(context.DeadlineExceeded)
	gets := store.gets.Load()
	out = httptest.NewRecorder()
	why := any(nil)
	func() {
		defer func() { why = recover() }()
		h.ServeHTTP(out, ask(t, http.MethodGet, path(long)+"/search?q=x").WithContext(ctx))
	}()
	if why != http.ErrAbortHandler || out.Body.Len() > 0 || store.gets.Load() > gets+1 {
		t.Errorf("a search for which there is no room, and no time, ends with %v and %q, for %d GET", why, out.Body, store.gets.Load()-gets)
	}

	more := make(chan string, 1)
	searches.Go(func() {
		out := httptest.NewRecorder()
		h.ServeHTTP(out, ask(t, http.MethodGet, path(long)+"/search?q="+url.QueryEscape("line 1000")))
		last := ""
		for s := bufio.NewScanner(out.Body); s.Scan(); {
			last = s.Text()
		}
		more <- last
	})
	select {
	case last := <-more:
		t.Errorf("one search more than may run did not wait: %s", last)
	default:
	}
	close(store.wait)
	searches.Wait()
	for range most {
		if code := <-answers; code != http.StatusOK {
			t.Errorf("a search is answered with %d", code)
		}
	}
	if last := <-more; !strings.Contains(last, `"matches":1`) {
		t.Errorf("the search that waited found %s", last)
	}
}

// coded is an error of S3.
// TestMissed: nowhere does a step that was not captured look like one that printed nothing.
func TestMissed(t *testing.T) {
	w := newWorld(t)
	key := layout.Container{
		Pod:       layout.Pod{Run: run, TaskRun: "run-missed", PodUID: "pod-missed"},
		Container: "step-a",
	}
	archivetest.PutPod(t, w.store, key.Pod, record.Pod{
		PodName: "run-missed-pod", TaskRunUID: "taskrun-missed", PipelineTask: "missed", Created: start,
		Containers: []record.Container{{Name: "step-a", Kind: record.Step, Skipped: "limit-range"}},
	})
	const why = "this log is missing: not captured in pod run-missed-pod: limit-range"
	for _, c := range []struct {
		name, path string
		status     int
		want       string
	}{
		{"text", path(key) + "/logs", 404, why},
		{"text with times", path(key) + "/logs?timestamps=true", 404, why},
		{"text that is followed", path(key) + "/logs?follow=true", 404, why},
		{"by step", "/namespaces/ns/taskruns/run-missed/steps/a/logs", 404, why},
		{"by pod", "/namespaces/ns/pods/run-missed-pod/containers/step-a/logs", 404, why},
		{"text with notices", path(key) + "/logs?notices=true", 200, "-- shiplog: " + why + "\n"},
		{
			"NDJSON", path(key) + "/logs?format=ndjson", 200,
			`{"end":{"status":"missed","why":"not captured in pod run-missed-pod: limit-range",` +
				`"says":"` + why + `","bytes":0,"lines":0}}` + "\n",
		},
		{
			"several", "/namespaces/ns/taskruns/run-missed/logs", 200,
			"[missed : a] -- shiplog: " + why + "\n",
		},
		{"state", path(key), 200, `"status":"missed"`},
		{"tree", "/namespaces/ns/taskruns/run-missed", 200, `"podName":"run-missed-pod"`},
		{"search", path(key) + "/search?q=x", 200, `"damage":["step-a: ` + why + `"]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.get(t, c.path)
			if got.StatusCode != c.status || got.err != nil || !strings.Contains(got.body, c.want) {
				t.Errorf("%d, %v: %q; want %d and %q", got.StatusCode, got.err, got.body, c.status, c.want)
			}
			logs := strings.Contains(c.path, "/logs")
			if status := got.Header.Get(headerStatus); logs && status != string(backend.Missed) {
				t.Errorf("%s: %q", headerStatus, status)
			}
		})
	}
}

type coded string

func (c coded) Error() string     { return string(c) }
func (c coded) ErrorCode() string { return string(c) }

func TestTold(t *testing.T) {
	for _, c := range []struct {
		name   string
		err    error
		status int
	}{
		{"a key that is too long", fmt.Errorf("list: %w", coded("KeyTooLongError")), http.StatusNotFound},
		{"a key that can be none", fmt.Errorf("get: %w", coded("InvalidArgument")), http.StatusNotFound},
		{"no right", fmt.Errorf("get: %w", coded("AccessDenied")), http.StatusServiceUnavailable},
		{"nothing there", fmt.Errorf("get: %w", fs.ErrNotExist), http.StatusNotFound},
		{"no such run", &backend.NotFoundError{Namespace: "ns", Ref: "x"}, http.StatusNotFound},
		{"anything else", io.ErrUnexpectedEOF, http.StatusServiceUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			if status, message, known := Told(c.err); status != c.status || message == "" || known != (status != http.StatusServiceUnavailable) {
				t.Errorf("%d %q, known %t, want %d", status, message, known, c.status)
			}
		})
	}
}
