package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// lists is a text that looks like each of the lists that are written element by element, and what
// JSON and HTML take for their own.
const lists = `"taskRuns":[],"pods":[],"containers":[],"runs":[]<&>` + "\u2028\x00\xff\\"

// treeWith is a tree of so many TaskRuns, pods of each, and containers of each pod.
func treeWith(taskRuns, pods, containers int) Tree {
	out := Tree{Run: run, Prefix: run.Prefix(), TaskRuns: []TaskRun{}, At: start}
	for i := range taskRuns {
		tr := TaskRun{Name: fmt.Sprintf("run-%d", i), PipelineTask: lists, Pods: []Pod{}}
		for j := range pods {
			key := layout.Pod{Run: run, TaskRun: tr.Name, PodUID: fmt.Sprintf("pod-%d", j)}
			pod := Pod{PodUID: key.PodUID, PodName: lists, LastSeen: start}
			pod.Containers = []Container{}
			if j > 0 {
				pod.Created = start.Add(time.Nanosecond)
			}
			for k := range containers {
				c := backend.Container{
					Key:  layout.Container{Pod: key, Container: fmt.Sprintf("step-%d", k)},
					Name: fmt.Sprintf("step-%d", k), Status: backend.Running, Why: lists,
				}
				if k > 0 {
					c.Status = backend.Gaps
					c.Seal = &record.Seal{Bytes: 1, Exit: &record.Exit{Code: k, Signal: lists}}
					c.Segments = []layout.Segment{{First: start, Last: start}}
				}
				pod.Containers = append(pod.Containers, containerOf(c))
			}
			tr.Pods = append(tr.Pods, pod)
		}
		out.TaskRuns = append(out.TaskRuns, tr)
	}
	return out
}

// runsWith is a page of so many runs.
func runsWith(n int) Runs {
	page := Runs{Runs: []Run{}}
	for i := range n {
		page.Runs = append(page.Runs, Run{
			Kind: layout.PipelineRun, Name: fmt.Sprintf("run-%d", i), UID: "uid", Created: start,
			Reason: lists, Labels: map[string]string{"runs": "[]", lists: lists},
		})
	}
	return page
}

// TestPieces: what is written element by element is byte for byte what it is as one text.
func TestPieces(t *testing.T) {
	tree := func(change func(*Tree), v Tree) Tree {
		change(&v)
		return v
	}
	for _, c := range []struct {
		name  string
		value any // a Tree or Runs
	}{
		{"a tree without a TaskRun", treeWith(0, 0, 0)},
		{"one TaskRun without a pod", treeWith(1, 0, 0)},
		{"a pod without a container", treeWith(1, 1, 0)},
		{"one container", treeWith(1, 1, 1)},
		{"some of each", treeWith(3, 2, 4)},
		{"more than is sent at once", treeWith(20, 3, 40)},
		{"all that a tree can have", tree(func(v *Tree) {
			v.Record = &record.Run{Kind: layout.PipelineRun, Name: lists, Tasks: []string{},
				Labels: map[string]string{"taskRuns": "[]", lists: lists}, Started: start}
			v.Others, v.TaskRun, v.PodUID = []layout.Run{run, {}}, lists, lists
		}, treeWith(2, 1, 1))},
		{"a page without a run", runsWith(0)},
		{"a page with one run", runsWith(1)},
		{"a page with many runs", runsWith(2000)},
		{"a page that is not the last", Runs{Runs: runsWith(2).Runs, Continue: lists}},
		{"a page without a run that is not the last", Runs{Runs: []Run{}, Continue: lists}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, err := json.Marshal(c.value)
			if err != nil {
				t.Fatal(err)
			}
			out := httptest.NewRecorder()
			switch v := c.value.(type) {
			case Tree:
				err = writeTree(out, v)
			case Runs:
				err = writeRuns(out, v)
			}
			if got := out.Body.String(); err != nil || got != string(want)+"\n" {
				t.Errorf("error %v, and JSON differs (-want +got):\n%.2000s", err,
					cmp.Diff(string(want)+"\n", got))
			}
		})
	}
}

// far is a time that JSON cannot hold.
var far = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)

// gone is a client who reads so many bytes.
type gone struct {
	reads  int
	writes int // that failed
}

var errGone = errors.New("the client is gone")

func (g *gone) Write(b []byte) (int, error) {
	if g.reads -= len(b); g.reads < 0 {
		g.writes++
		return 0, errGone
	}
	return len(b), nil
}

// TestPiecesBreakOff: an error in the middle is told of, and what is written until then is not
// whole.
func TestPiecesBreakOff(t *testing.T) {
	small := func() Tree { return treeWith(2, 2, 2) }
	large := func() Tree { return treeWith(20, 3, 40) }
	for _, c := range []struct {
		name  string
		make  func() Tree
		spoil func(*Tree)
		sent  bool // some of it
	}{
		{"the tree", large, func(v *Tree) { v.At = far }, false},
		{"a pod of a small one", small,
			func(v *Tree) { v.TaskRuns[1].Pods[0].Created = far }, false},
		{"a container of a small one", small,
			func(v *Tree) { v.TaskRuns[1].Pods[1].Containers[1].First = far }, false},
		{"the first pod", large, func(v *Tree) { v.TaskRuns[0].Pods[0].LastSeen = far }, false},
		{"the last pod", large, func(v *Tree) { v.TaskRuns[19].Pods[2].LastSeen = far }, true},
		{"the last container", large,
			func(v *Tree) { v.TaskRuns[19].Pods[2].Containers[39].First = far }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := c.make()
			c.spoil(&tree)
			var out bytes.Buffer
			err := writeTree(&out, tree)
			if err == nil || json.Valid(out.Bytes()) || (out.Len() > 0) != c.sent {
				t.Errorf("%d bytes are written, with the end %.100q, error %v", out.Len(),
					out.Bytes()[max(0, out.Len()-100):], err)
			}
		})
	}
	t.Run("a run of a list", func(t *testing.T) {
		for _, n := range []int{0, 1999} {
			page, out := runsWith(2000), httptest.NewRecorder()
			page.Runs[n].Started = far
			err := writeRuns(out, page)
			if err == nil || json.Valid(out.Body.Bytes()) || (out.Body.Len() > 0) != (n > 0) {
				t.Errorf("run %d: %d bytes are written, error %v", n, out.Body.Len(), err)
			}
		}
	})
	t.Run("a client who is gone", func(t *testing.T) {
		client := &gone{reads: 100 << 10}
		err := writeTree(client, large())
		if !errors.Is(err, errGone) || client.writes != 1 {
			t.Errorf("error %v, and %d more writes", err, client.writes-1)
		}
	})
}

// distant is a store that has one pod's objects from a time that JSON cannot hold.
type distant struct {
	inMemory
	pod layout.Pod
}

func (d distant) List(ctx context.Context, prefix, delimiter, startAfter string, limit int,
) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		for e, err := range d.inMemory.List(ctx, prefix, delimiter, startAfter, limit) {
			if strings.HasPrefix(e.Key, d.pod.Prefix()) {
				e.LastModified = far
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// TestAnswerBreaksOff: who asks for a tree of which something is on its way when there is an error,
// has no whole answer. Before that they are told of the error.
func TestAnswerBreaksOff(t *testing.T) {
	const of = "/namespaces/ns/pipelineruns/"
	for _, c := range []struct {
		name   string
		before int // pods that can be written
		path   string
		status int
	}{
		{"a tree, at once", 1, "", http.StatusServiceUnavailable},
		{"a tree, in the middle", 200, "", http.StatusOK},
		{"a zip, at once", 1, "/logs.zip", http.StatusServiceUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := inMemory{}
			pod := layout.Pod{Run: run}
			for i := range c.before + 1 {
				pod.TaskRun, pod.PodUID = fmt.Sprintf("run-%03d", i), fmt.Sprintf("pod-%03d", i)
				m.put(t, pod.PodKey(), record.Pod{
					PodName: strings.Repeat("p", 60),
					Created: start.Add(time.Duration(i) * time.Second),
					Containers: []record.Container{
						{Name: "step-a", Kind: record.Step, Captured: true},
					},
				})
			}
			m.put(t, layout.UIDIndexKey("ns", run.UID), record.Pointer{Run: run})
			server := httptest.NewServer(New(Options{
				Archive: backend.New(distant{m, pod}), Gate: keys{},
				Log: slog.New(slog.DiscardHandler),
			}))
			defer server.Close()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet,
				server.URL+Base+of+run.UID+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer ns")
			res, err := server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			switch whole := json.Valid(b); {
			case res.StatusCode != c.status:
				t.Errorf("%d, want %d", res.StatusCode, c.status)
			case c.status == http.StatusOK && (err == nil || whole || len(b) == 0):
				t.Errorf("%d bytes, error %v, as JSON whole: %v", len(b), err, whole)
			case c.status != http.StatusOK && (err != nil || !whole):
				t.Errorf("%.300q, error %v", b, err)
			}
		})
	}
}
