package page

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

var errPage = errors.New("it cannot be shown")

// messagePage is what error.html shows.
type messagePage struct {
	Title string
	fails bool
}

func (s messagePage) Message() (string, error) {
	if s.fails {
		return "", errPage
	}
	return "a message", nil
}

// goneClient is a client who is gone.
type goneClient struct {
	*httptest.ResponseRecorder
	writes int
}

func (g *goneClient) Write([]byte) (int, error) {
	g.writes++
	return 0, io.ErrClosedPipe
}

// broken is what a handler breaks an answer off with, or nil.
func broken(f func()) (why any) {
	defer func() { why = recover() }()
	f()
	return nil
}

// TestShow: an error before anything of a page is sent is the caller's to answer. Behind that, the
// page is broken off.
func TestShow(t *testing.T) {
	short, long := "short", strings.Repeat("long ", lateBytes)
	for _, c := range []struct {
		name   string
		data   messagePage
		err    error
		broken any
		sent   bool
	}{
		{"a short page", messagePage{short, false}, nil, nil, true},
		{"a long page", messagePage{long, false}, nil, nil, true},
		{"an error at once", messagePage{short, true}, errPage, nil, false},
		{"an error in the middle", messagePage{long, true}, nil, http.ErrAbortHandler, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &page{Options{Log: slog.New(slog.DiscardHandler)}}
			out := httptest.NewRecorder()
			out.Code = 0
			var err error
			why := broken(func() { err = p.show(out, http.StatusTeapot, "error.html", c.data) })
			if !errors.Is(err, c.err) || why != c.broken {
				t.Errorf("error %v, broken off with %v; want %v, %v", err, why, c.err, c.broken)
			}
			sent, status := out.Body.Len() > 0, out.Code == http.StatusTeapot
			if sent != c.sent || sent != status {
				t.Errorf("%d bytes are sent with status %d", out.Body.Len(), out.Code)
			}
			var want bytes.Buffer
			_ = templates.ExecuteTemplate(&want, "error.html", c.data)
			if whole := out.Body.String() == want.String(); !c.data.fails && !whole {
				t.Errorf("the page is %.1000q", out.Body)
			}
			if strings.Contains(out.Body.String(), "</main>") == c.data.fails {
				t.Error("a page with an error looks whole, or one without it does not")
			}
		})
	}
	t.Run("who asked is gone", func(t *testing.T) {
		p := &page{Options{Log: slog.New(slog.DiscardHandler)}}
		for _, fails := range []bool{false, true} {
			client := &goneClient{ResponseRecorder: httptest.NewRecorder()}
			var err error
			data := messagePage{long, fails}
			why := broken(func() { err = p.show(client, http.StatusOK, "error.html", data) })
			if err != nil || why != nil || client.writes != 1 {
				t.Errorf("%d writes, error %v, broken off with %v", client.writes, err, why)
			}
		}
	})
}

// TestRowWriter: rows that are written as they come are byte for byte what they are as one text.
func TestRowWriter(t *testing.T) {
	piece := func(n int64, full bool, text string) backend.Line {
		return backend.Line{Number: n, Line: criline.Line{
			Time: begin, Stream: criline.Stdout, Full: full, Text: []byte(text),
		}}
	}
	var many []backend.Line
	for i := range int64(mostRows) {
		many = append(many, piece(i+1, true, strings.Repeat("<x>", int(i))))
	}
	for _, c := range []struct {
		name  string
		lines []backend.Line
		end   rowsEnd
	}{
		{"none", nil, rowsEnd{}},
		{"none, of a log that has some", nil, rowsEnd{7, State{"verified", "says", 9, "damage"}}},
		{"one", []backend.Line{piece(1, true, "\x1b[1mone\x00")}, rowsEnd{Lines: 1}},
		{"an empty one", []backend.Line{piece(1, true, "")}, rowsEnd{Lines: 1}},
		{"pieces", []backend.Line{piece(1, false, "a"), piece(1, false, "b"), piece(1, true, "c"),
			piece(2, false, "d"), piece(2, false, "e")}, rowsEnd{Lines: 1}},
		{"more than is sent at once", many, rowsEnd{Lines: mostRows}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rows := Rows{Rows: []Row{}, rowsEnd: c.end}
			for i, l := range c.lines {
				if i == 0 || c.lines[i-1].Number != l.Number {
					rows.Rows = append(rows.Rows, Row{Number: l.Number, Time: l.Time})
				}
				rows.Rows[len(rows.Rows)-1].add(l)
			}
			for i := range rows.Rows {
				rows.Rows[i].show()
			}
			want, err := json.Marshal(rows)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			out := &rowWriter{to: bufio.NewWriterSize(&got, rowBuffer)}
			for _, l := range c.lines {
				if err := out.add(l); err != nil {
					t.Fatal(err)
				}
			}
			if err := out.end(c.end); err != nil || got.String() != string(want)+"\n" {
				t.Errorf("error %v, and JSON differs (-want +got):\n%.2000s", err,
					cmp.Diff(string(want)+"\n", got.String()))
			}
		})
	}
}

// failing is a store of which some objects cannot be read.
type failing struct {
	*objectstore.Store
	keys map[string]bool
}

func (f failing) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if f.keys[key] {
		return nil, fmt.Errorf("get %s: %w", key, errPage)
	}
	return f.Store.Get(ctx, key)
}

// TestLinesBreakOff: lines of which some are sent when the store fails do not look like all of
// them, and before that the viewer is told of the error.
func TestLinesBreakOff(t *testing.T) {
	store, _ := archivetest.Start(t)
	pod := layout.Pod{
		Run:     layout.Run{Namespace: "builds", Name: "run", UID: "uid"},
		TaskRun: "run-t", PodUID: "pod",
	}
	c := layout.Container{Pod: pod, Container: "step-a"}
	archivetest.PutPod(t, store, pod, record.Pod{PodName: "run-t-pod", Created: begin})
	lines := archivetest.Lines(begin, 300, func(int) string { return strings.Repeat("x", 1000) })
	archivetest.PutLog(t, store, c, lines, 100)
	archivetest.PutRecord(t, store, c.SealKey(), archivetest.Seal(t, lines))
	segments, _ := archivetest.Segments(t, lines, 100)
	const path = own + "/lines/builds/run/uid/run-t/pod/step-a?from=1&count=1000"
	for _, at := range []struct {
		name    string
		segment int // that cannot be read
		status  int
	}{
		{"none", -1, http.StatusOK},
		{"the first segment", 0, http.StatusServiceUnavailable},
		{"the last segment", 2, http.StatusOK},
	} {
		t.Run(at.name, func(t *testing.T) {
			keys := map[string]bool{}
			if at.segment >= 0 {
				keys[c.SegmentKey(segments[at.segment])] = true
			}
			h := New(Options{
				Archive: backend.New(failing{store, keys}), Gate: &door{},
				Log: slog.New(slog.DiscardHandler),
			})
			out := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
			r.Header.Set("Authorization", "Bearer good")
			why := broken(func() { h.ServeHTTP(out, r) })
			wantBroken := any(nil)
			if at.segment > 0 {
				wantBroken = http.ErrAbortHandler
			}
			whole := json.Valid(out.Body.Bytes())
			if out.Code != at.status || why != wantBroken || whole == (why != nil) {
				t.Errorf("%d, broken off with %v, %d bytes, as JSON whole: %v", out.Code, why,
					out.Body.Len(), whole)
			}
		})
	}
}

// TestSaysLittle: a run's page tells a bounded part of what a state means, which a tenant may have
// written for each of many containers.
func TestSaysLittle(t *testing.T) {
	for _, c := range []struct {
		name, why string
		most      int
	}{
		{"short", "it went wrong", len("this log is missing: it went wrong")},
		{"long", strings.Repeat("wrong\n", 1000), maxSays},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := stepOf(backend.Place{Container: backend.Container{
				Name: "step-a", Status: backend.Missed, Why: c.why,
			}}, "build").Says
			if len(got) > c.most || len(got) < min(c.most, maxSays)-20 ||
				!strings.HasPrefix(got, "this log is missing: ") || strings.Contains(got, "\n") {
				t.Errorf("%d bytes: %q", len(got), got)
			}
		})
	}
}
