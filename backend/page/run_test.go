package page

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// counting counts the GETs of a store.
type counting struct {
	*objectstore.Store
	mu   sync.Mutex // guards gets, while a page is read
	gets []string
}

func (c *counting) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	c.mu.Lock()
	c.gets = append(c.gets, key)
	c.mu.Unlock()
	return c.Store.Get(ctx, key)
}

// TestRefresh: a page of which nothing is new is not read again, and one is of which something is.
func TestRefresh(t *testing.T) {
	store, _ := archivetest.Start(t)
	counted := &counting{Store: store}
	h := New(Options{Archive: backend.New(counted), Gate: &door{}, Log: slog.New(slog.DiscardHandler)})
	r := record.Run{Kind: layout.TaskRun, Namespace: "builds", Name: "run", UID: "uid", Created: begin}
	run := archivetest.PutRun(t, store, r)
	pod := layout.Pod{Run: run, TaskRun: "run", PodUID: "pod"}
	archivetest.PutPod(t, store, pod, record.Pod{PodName: "p", Containers: steps("a")})
	c := layout.Container{Pod: pod, Container: "step-a"}
	get := func(tag string) *http.Response {
		t.Helper()
		return ask(t, h, http.MethodGet, "/ui/builds/uid", nil, "If-None-Match", tag)
	}
	// latest is the tag of the page as it is, in the same minute in which it is asked for again.
	latest := func() (tag string) {
		t.Helper()
		for range 2 {
			minute := time.Now().Truncate(tagAge)
			tag = get(`""`).Header.Get("ETag")
			counted.gets = nil
			res := get(tag)
			if !minute.Equal(time.Now().Truncate(tagAge)) {
				continue
			}
			records := slices.DeleteFunc(counted.gets, func(key string) bool {
				return strings.HasPrefix(key, layout.IndexVersion)
			})
			if res.StatusCode != http.StatusNotModified || body(t, res) != "" || tag == "" || len(records) > 0 {
				t.Fatalf("with the tag %q: %d, and %d GETs", tag, res.StatusCode, len(records))
			}
			break
		}
		return tag
	}
	tag := latest()
	for _, change := range []struct {
		name string
		make func()
		want string
	}{
		{"a log grows", func() {
			archivetest.PutLog(t, store, c, archivetest.Lines(begin, 7, func(int) string { return "x" }), 0)
		}, "7 lines"},
		{"the run ends", func() {
			r.State, r.Completed = record.Failed, begin.Add(time.Hour)
			archivetest.PutRun(t, store, r)
		}, `data-over="true"`},
	} {
		t.Run(change.name, func(t *testing.T) {
			change.make()
			res := get(tag)
			if text := body(t, res); res.StatusCode != http.StatusOK || !strings.Contains(text, change.want) {
				t.Errorf("%d, %.2000s; want %q", res.StatusCode, text, change.want)
			}
			tag = latest()
		})
	}
	if res := ask(t, h, http.MethodGet, "/ui/builds/uid", nil); res.Header.Get("ETag") != "" {
		t.Error("who only looks at the page costs a list more")
	}
}

// TestNamesOfSteps: the address of a step means that step alone, whatever else is in its pod.
func TestNamesOfSteps(t *testing.T) {
	pod := backend.Pod{}
	for _, c := range []struct {
		name string
		kind record.ContainerKind
	}{
		{"proxy", record.Init}, {"step-compile", record.Step}, {"step-proxy", record.Step},
		{"step-step-compile", record.Step}, {"sidecar-db", record.Sidecar},
	} {
		pod.Containers = append(pod.Containers, backend.Container{Name: c.name, Kind: c.kind})
	}
	var got []string
	for _, c := range pod.Containers {
		got = append(got, stepOf(backend.Place{Pod: pod, Container: c, Retry: 1}, "build").ID)
	}
	want := []string{
		"build/proxy&retry=1", "build/compile&retry=1", "build/step-proxy&retry=1",
		"build/step-step-compile&retry=1", "build/sidecar-db&retry=1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	slices.Sort(got)
	if len(slices.Compact(got)) != len(want) {
		t.Errorf("two steps have the same address: %q", got)
	}
}
