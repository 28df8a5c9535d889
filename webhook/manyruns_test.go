package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// manyRuns is an API server that has so many TaskRuns that have ended, ten of each PipelineRun, and
// nothing else. It makes them as they are asked for.
type manyRuns struct {
	taskRuns int
	sealed   bool
	lists    atomic.Int64 // that were answered to their last page
	peak     atomic.Int64 // of the heap, as pages are asked for
}

// ServeHTTP implements http.Handler.
func (m *manyRuns) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	kind, n := "", m.taskRuns
	switch r.URL.Path {
	case runsPath + "taskruns":
		kind = "TaskRun"
	case runsPath + "pipelineruns":
		kind, n = "PipelineRun", m.taskRuns/10
	default:
		fail(w, http.StatusNotFound)
		return
	}
	if q.Get("sendInitialEvents") != "" { // lists in a watch came with Kubernetes 1.34
		fail(w, http.StatusUnprocessableEntity)
		return
	}
	if q.Get("watch") != "" {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	m.peak.Store(max(m.peak.Load(), int64(mem.HeapAlloc)))
	from, _ := strconv.Atoi(q.Get("continue"))
	limit, err := strconv.Atoi(q.Get("limit"))
	if err != nil {
		fail(w, http.StatusBadRequest)
		return
	}
	to, next := min(from+limit, n), ""
	if to < n {
		next = strconv.Itoa(to)
	} else {
		m.lists.Add(1)
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"apiVersion":"tekton.dev/v1","kind":"%sList",`+
		`"metadata":{"resourceVersion":"9","continue":%q},"items":[`, kind, next)
	for i := from; i < to; i++ {
		if i > from {
			fmt.Fprint(w, ",")
		}
		m.write(w, kind, i)
	}
	fmt.Fprint(w, "]}")
}

// write writes a run as Tekton leaves it, with about 2 KB of JSON.
func (m *manyRuns) write(w http.ResponseWriter, kind string, i int) {
	pipelineRun := i / 10
	uid, owner := fmt.Sprintf("22222222-2222-4222-8222-%012d", i), ""
	name := fmt.Sprintf("a-pipelinerun-of-a-name-%06d", i)
	if kind == "TaskRun" {
		name = fmt.Sprintf("a-pipelinerun-of-a-name-%06d-compile-everything-%d", pipelineRun, i%10)
		owner = fmt.Sprintf(`"ownerReferences":[{"apiVersion":"tekton.dev/v1","kind":"PipelineRun",`+
			`"name":"a-pipelinerun-of-a-name-%06d","uid":"33333333-3333-4333-8333-%012d",`+
			`"controller":true}],`, pipelineRun, pipelineRun)
	} else {
		uid = fmt.Sprintf("33333333-3333-4333-8333-%012d", i)
	}
	marks := ""
	if m.sealed {
		marks = fmt.Sprintf(`,%q:"true",%q:%q`,
			contract.SealedAnnotation, contract.SealedUIDAnnotation, uid)
	}
	fmt.Fprintf(w, `{"apiVersion":"tekton.dev/v1","kind":%q,"metadata":{"name":%q,"namespace":"team",`+
		`"uid":%q,"resourceVersion":"%d","creationTimestamp":"2026-03-04T05:06:07Z",%s`+
		`"labels":{"tekton.dev/pipelineTask":"compile-everything"},"annotations":{"other":"%s"%s}},`+
		`"spec":{"params":[{"name":"p","value":"%s"}]},"status":{"podName":"%s-pod",`+
		`"startTime":"2026-03-04T05:06:08Z","completionTime":"2026-03-04T05:07:08Z",`+
		`"conditions":[{"type":"Succeeded","status":"True","reason":"Succeeded"}],`+
		`"steps":[{"name":"s","terminated":{"startedAt":"2026-03-04T05:06:09Z"}}]}}`,
		kind, name, uid, i%9+1, owner, strings.Repeat("o", 300), marks, strings.Repeat("v", 500), name)
}

// watch runs an annotator with these runs until it knows them, and returns what is on the heap after
// that, and at most before.
func (m *manyRuns) watch(tb testing.TB) (kept, peak int64) {
	tb.Helper()
	server := httptest.NewServer(m)
	defer server.Close()
	defer server.CloseClientConnections()
	config := &rest.Config{
		Host: server.URL, ContentConfig: rest.ContentConfig{AcceptContentTypes: acceptedTypes},
	}
	before := heap()
	a, err := newAnnotator(config, &memoryStore{}, "", prometheus.NewRegistry(),
		slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	defer beside(tb, a.run)()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !a.watch.synced() {
		<-tick.C
	}
	kept = heap() - before
	runtime.KeepAlive(a)
	return kept, m.peak.Load() - before
}

// heap is what is on the heap and in use.
func heap() int64 {
	var mem runtime.MemStats
	runtime.GC()
	runtime.GC() // what is in a sync.Pool goes with the second
	runtime.ReadMemStats(&mem)
	return int64(mem.HeapAlloc)
}

// TestManyRuns: what has ended takes no memory, whether it is sealed, waits for its turn, or is none
// of ours.
func TestManyRuns(t *testing.T) {
	for name, sealed := range map[string]bool{"sealed": true, "not sealed": false} {
		t.Run(name, func(t *testing.T) {
			const n = 10_000
			m := &manyRuns{taskRuns: n, sealed: sealed}
			kept, _ := m.watch(t)
			if m.lists.Load() < 2 {
				t.Fatal("the runs were not listed")
			}
			t.Logf("%d bytes for %d TaskRuns", kept, n)
			if kept > 200*n { // an object has 1,500
				t.Errorf("%d bytes are kept of %d TaskRuns, want a few for each at most", kept, n)
			}
		})
	}
}

// newKeptRuns is a watch without a cluster, and what it tells.
func newKeptRuns() (w *runWatch, told *[]string) {
	told = &[]string{}
	w = newRunWatch(nil, func(o *runObject) bool { return o.over() && !marked(o) },
		func(before, after *runObject) {
			switch {
			case after == nil:
				*told = append(*told, "gone "+string(before.UID))
			case before == nil:
				*told = append(*told, "new "+string(after.UID))
			default:
				*told = append(*told, "changed "+string(after.UID))
			}
		}, func() { *told = append(*told, "left") })
	return w, told
}

// taskOf is a TaskRun of the PipelineRun r. It has ended if it has a state.
func taskOf(name, uid string, state record.RunState) *runObject {
	return &runObject{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: name, UID: types.UID(uid)},
		owner:      taskRunOwner, pipelineRun: &pipelineRun{"r", "r-uid"}, ending: ending{state: state},
	}
}

// TestKeptRuns: what the watch keeps and tells, and what it lets go.
func TestKeptRuns(t *testing.T) {
	live, ended := taskOf("a", "1", ""), taskOf("a", "1", record.Succeeded)
	for _, c := range []struct {
		name string
		do   func(w *runWatch, k *keptRuns) error
		told []string
		kept []*runObject
	}{
		{
			name: "one that has not ended is kept",
			do:   func(_ *runWatch, k *keptRuns) error { return k.Add(live) },
			told: []string{"new 1"}, kept: []*runObject{live},
		},
		{
			name: "one that ends is kept until it is settled",
			do: func(_ *runWatch, k *keptRuns) error {
				return errors.Join(k.Add(live), k.Update(ended))
			},
			told: []string{"new 1", "changed 1"}, kept: []*runObject{ended},
		},
		{
			name: "one that had ended is told of, and not kept",
			do:   func(_ *runWatch, k *keptRuns) error { return k.Add(ended) },
			told: []string{"new 1"},
		},
		{
			name: "with its PipelineRun a TaskRun is settled, and not told of again",
			do: func(w *runWatch, k *keptRuns) error {
				err := errors.Join(k.Add(live), k.Update(ended))
				w.settle(ended.key(), false)
				return errors.Join(err, k.Update(ended))
			},
			told: []string{"new 1", "changed 1"},
		},
		{
			name: "one of a PipelineRun that goes on stays",
			do: func(w *runWatch, k *keptRuns) error {
				run := &runObject{
					ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "r", UID: "r-uid"},
					owner:      pipelineRunOwner,
				}
				err := errors.Join(w.pipelineRuns.Add(run), k.Add(live), k.Update(ended))
				w.settle(ended.key(), false)
				return err
			},
			told: []string{"new r-uid", "new 1", "changed 1"}, kept: []*runObject{ended},
		},
		{
			name: "one that is made anew under its name is another one",
			do: func(_ *runWatch, k *keptRuns) error {
				return errors.Join(k.Add(live), k.Update(taskOf("a", "2", "")))
			},
			told: []string{"new 1", "gone 1", "new 2"}, kept: []*runObject{taskOf("a", "2", "")},
		},
		{
			name: "a deletion is told of, also of one that is not kept",
			do: func(_ *runWatch, k *keptRuns) error {
				return errors.Join(k.Add(live), k.Delete(live), k.Delete(ended))
			},
			told: []string{"new 1", "gone 1", "gone 1"},
		},
		{
			name: "a list takes away what is not in it",
			do: func(_ *runWatch, k *keptRuns) error {
				b := taskOf("b", "2", "")
				return errors.Join(k.Add(live), k.Add(b), k.Replace([]any{b}, "7"))
			},
			told: []string{"new 1", "new 2", "changed 2", "gone 1"},
			kept: []*runObject{taskOf("b", "2", "")},
		},
		{
			name: "so many that have ended are kept at most",
			do: func(_ *runWatch, k *keptRuns) error {
				k.ended = maxEnded
				return errors.Join(k.Add(live), k.Update(ended))
			},
			told: []string{"new 1", "changed 1"},
		},
		{
			name: "what is settled is bounded, and stands for nothing else",
			do: func(w *runWatch, _ *keptRuns) error {
				for i := range maxSettled + 10 {
					w.remember(types.UID(strconv.Itoa(i)))
				}
				last := taskOf("x", strconv.Itoa(maxSettled+9), record.Failed)
				if n := len(w.settled); n != maxSettled || !w.isSettled(last) ||
					w.isSettled(taskOf("x", "other", record.Failed)) {
					return fmt.Errorf("%d are settled, want %d, and the last of them", n, maxSettled)
				}
				return nil
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, told := newKeptRuns()
			if err := c.do(w, w.taskRuns); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(*told, c.told) {
				t.Errorf("told %q, want %q", *told, c.told)
			}
			var names, want []string
			for _, o := range w.taskRuns.List() {
				names = append(names, string(o.(*runObject).UID)+string(o.(*runObject).state))
			}
			for _, o := range c.kept {
				want = append(want, string(o.UID)+string(o.state))
			}
			if !slices.Equal(names, want) {
				t.Errorf("kept %q, want %q", names, want)
			}
		})
	}
}

// TestEndedBefore: runs that ended while nobody watched are done as any other, with their TaskRuns,
// and nothing is kept of them; and when a person takes a mark away it is made again.
func TestEndedBefore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, run := range []string{"archived", "foreign"} {
			w.addRun(run, "build")
			w.endRun(run, "build")
		}
		w.archive("archived", "build")
		w.seal("archived", "build")
		w.strip("foreign-build-pod")
		after(time.Hour)
		a := w.start("")
		after(2 * recordSettle)
		w.expect(runPath("archived"), "sealed=true")
		w.expect(taskPath("archived-build"), "sealed=true")
		w.expect(runPath("foreign"))
		if n := len(a.watch.pipelineRuns.List()) + len(a.watch.taskRuns.List()); n != 0 {
			t.Errorf("%d are kept", n)
		}
		reads := w.store.readCount()
		w.update(runPath("foreign"), func(o object) {
			o["metadata"].(object)["labels"] = object{"a": "b"}
		})
		after(time.Minute)
		if w.store.readCount() != reads {
			t.Errorf("%d reads more for a run that is none of ours and has got a label",
				w.store.readCount()-reads)
		}
		w.update(runPath("archived"), func(o object) { delete(o["metadata"].(object), "annotations") })
		after(time.Minute)
		w.expect(runPath("archived"), "sealed=true")
	})
}

// TestNoRoom: runs that end while so many wait that there is no room for them are done later.
func TestNoRoom(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("")
		a.mu.Lock()
		a.room = 10
		a.mu.Unlock()
		down := errors.New("no route to the store")
		const n = 50
		for i := range n {
			name := fmt.Sprintf("run-%02d", i)
			w.addRun(name, "build")
			w.archive(name, "build")
			w.seal(name, "build")
		}
		after(time.Second)
		w.store.fail(down, down)
		for i := range n {
			w.endRun(fmt.Sprintf("run-%02d", i), "build")
		}
		after(time.Minute)
		if pending := testutil.ToFloat64(a.waiting); pending != 10 {
			t.Errorf("%v runs are pending, want 10", pending)
		}
		w.store.fail(nil, nil)
		after(time.Hour)
		for i := range n {
			w.expect(runPath(fmt.Sprintf("run-%02d", i)), "sealed=true")
		}
		if kept := len(a.watch.pipelineRuns.List()) + len(a.watch.taskRuns.List()); kept != 0 {
			t.Errorf("%d are kept", kept)
		}
	})
}

// TestWalkContinues: a list takes as long as the runs in it, and the API server keeps a list for some
// minutes. It goes on from where it was, with what there is by then.
func TestWalkContinues(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next := r.URL.Query().Get("continue")
		asked = append(asked, next)
		page := func(name, next string) {
			o := created("PipelineRun", name)
			o["status"] = object{"conditions": []any{object{"type": "Succeeded", "status": "True"}}}
			answer(w, http.StatusOK, object{
				"apiVersion": "tekton.dev/v1", "kind": "PipelineRunList",
				"metadata": object{"continue": next}, "items": []any{o},
			})
		}
		switch next {
		case "":
			page("first", "old")
		case "old":
			answer(w, http.StatusGone, object{
				"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": http.StatusGone,
				"reason": "Expired", "metadata": object{"continue": "anew"},
			})
		default:
			page("second", "")
		}
	}))
	defer server.Close()
	a, err := newAnnotator(&rest.Config{Host: server.URL}, &memoryStore{}, "", prometheus.NewRegistry(),
		slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var queued []string
	var group sync.WaitGroup
	group.Go(func() { // walk waits for who works at the queue
		for range 2 {
			key, _ := a.queue.Get()
			queued = append(queued, key.name)
			a.queue.Done(key)
		}
	})
	if err := a.walkAll(t.Context(), pipelineRunOwner); err != nil {
		a.queue.ShutDown()
		t.Error(err)
	}
	group.Wait()
	if want := []string{"", "old", "anew"}; !slices.Equal(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}
	if want := []string{"first", "second"}; !slices.Equal(queued, want) {
		t.Errorf("queued %q, want %q", queued, want)
	}
}

// BenchmarkManyRuns is the start with 300,000 TaskRuns, as the process does it.
func BenchmarkManyRuns(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	for _, sealed := range []bool{true, false} {
		b.Run(fmt.Sprintf("sealed=%t", sealed), func(b *testing.B) {
			for b.Loop() {
				kept, peak := (&manyRuns{taskRuns: 300_000, sealed: sealed}).watch(b)
				b.ReportMetric(float64(kept)/(1<<20), "MiB-kept")
				b.ReportMetric(float64(peak)/(1<<20), "MiB-peak")
			}
			status, err := os.ReadFile("/proc/self/status")
			if err != nil {
				return // not Linux
			}
			_, rss, _ := strings.Cut(string(status), "VmHWM:")
			rss, _, _ = strings.Cut(rss, "kB")
			if kb, err := strconv.Atoi(strings.TrimSpace(rss)); err == nil {
				b.ReportMetric(float64(kb)/(1<<10), "MiB-RSS-with-the-API-server")
			}
		})
	}
}
