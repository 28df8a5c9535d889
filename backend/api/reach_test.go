package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// narrow is keys for who may read what is in one namespace, and not what was in a former one.
type narrow struct {
	keys
	namespace backend.Namespace
}

func (n narrow) Allow(r *http.Request, namespace string) (backend.Reach, error) {
	_, err := n.keys.Allow(r, namespace)
	return backend.Reach{Namespace: n.namespace}, err
}

// Names of what is in the archive, by where a route has them, and of what is not.
var (
	there = map[string]string{
		"{namespace}": "ns", "{run}": "run", "{taskrun}": "run-build", "{uid}": run.UID,
		"{taskRun}": build.TaskRun, "{pod}": build.PodUID, "{podname}": "run-build-pod",
		"{container}": long.Container, "{step}": "long",
	}
	thereByUID = map[string]string{"{run}": run.UID, "{taskrun}": "taskrun-build"}
	nowhere    = map[string]string{
		"{namespace}": "ns", "{run}": "none", "{taskrun}": "none-build", "{uid}": "none-uid",
		"{taskRun}": "none", "{pod}": "none-pod", "{podname}": "none-build-pod",
		"{container}": long.Container, "{step}": "long",
	}
)

// pathOf puts names into a route.
func pathOf(route string, names ...map[string]string) string {
	route = strings.ReplaceAll(route, "/pods/{pod}/", "/pods/{podname}/")
	route = strings.ReplaceAll(route, "/taskruns/{run}", "/taskruns/{taskrun}")
	for _, n := range names {
		for name, value := range n {
			route = strings.ReplaceAll(route, name, value)
		}
	}
	return route
}

// TestFormerNamespace: of a run of a former namespace, no route tells its people's successors more
// than of one that is not there. Whoever adds a route need not add it here.
func TestFormerNamespace(t *testing.T) {
	w := newWorld(t)
	readers := func(madeAt time.Time) http.Handler {
		return New(Options{
			Archive: backend.New(w.count), Log: slog.New(slog.DiscardHandler),
			Gate: narrow{namespace: backend.Namespace{UID: "u", Created: madeAt}},
		})
	}
	its, successors := readers(start.Add(-time.Hour)), readers(start.Add(time.Hour))
	ask := func(h http.Handler, method, path string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, Base+path, nil)
		r.Header.Set("Authorization", "Bearer ns")
		got := httptest.NewRecorder()
		h.ServeHTTP(got, r)
		return got
	}
	for route := range (&api{}).routes() {
		if !strings.Contains(route, "{namespace}") {
			continue
		}
		queries := []string{""}
		switch {
		case strings.HasSuffix(route, "/search"):
			queries = []string{"?q=line"}
		case strings.HasSuffix(route, "/logs"):
			queries = append(queries, "?format=ndjson", "?format=events", "?notices=true", "?tailLines=1",
				"?follow=true")
		}
		for _, query := range queries {
			t.Run(route+query, func(t *testing.T) {
				if query != "?follow=true" { // which ends when the run does
					if got := ask(its, http.MethodGet, pathOf(route, there)+query); got.Code != http.StatusOK {
						t.Errorf("its own people: %d %s", got.Code, got.Body)
					}
				}
				absent := ask(successors, http.MethodGet, pathOf(route, nowhere)+query)
				want := unnamed(absent.Body.String(), nowhere)
				status := http.StatusNotFound
				if !strings.Contains(route, "{run}") && !strings.Contains(route, "{pod}") { // a list
					status, want = http.StatusOK, `{"runs":[]}`+"\n"
				}
				for _, names := range [][]map[string]string{{there}, {thereByUID, there}} {
					path := pathOf(route, names...) + query
					got := ask(successors, http.MethodGet, path)
					if got.Code != status || unnamed(got.Body.String(), names...) != want {
						t.Errorf("%s: %d %s, want %d %s", path, got.Code, got.Body, status, want)
					}
					head := ask(successors, http.MethodHead, path)
					if head.Code != status || head.Header().Get(headerStatus) != "" {
						t.Errorf("HEAD %s: %d %v, want %d", path, head.Code, head.Header(), status)
					}
				}
			})
		}
	}
}

// unnamed is an answer without the names that were asked for.
func unnamed(body string, names ...map[string]string) string {
	for _, n := range names {
		for _, name := range n {
			body = strings.ReplaceAll(body, `\"`+name+`\"`, "NAME")
		}
	}
	return body
}

// TestListOfNewNamespace: a list shows the runs of the namespace alone, has its pages full, and
// does not look at what is behind.
func TestListOfNewNamespace(t *testing.T) {
	w := newWorld(t)
	put := func(uid, namespaceUID string, created time.Time) {
		archivetest.PutRun(t, w.store, record.Run{
			Kind: layout.PipelineRun, Namespace: "anew", Name: "run", UID: uid,
			NamespaceUID: namespaceUID, Created: created,
		})
	}
	for i := range 30 {
		put(fmt.Sprint("old-", i), "", start.Add(-time.Duration(i+2)*time.Minute))
	}
	put("former", "old", start.Add(time.Second)) // by a clock that is fast
	put("slow", "new", start.Add(-time.Second))  // by one that is slow
	for i := range 4 {
		put(fmt.Sprint("new-", i), "new", start.Add(time.Duration(i+1)*time.Minute))
	}
	w.server.Config.Handler = New(Options{
		Archive: backend.New(w.count), Log: slog.New(slog.DiscardHandler),
		Gate: narrow{namespace: backend.Namespace{UID: "new", Created: start}},
	})
	var got []string
	path := "/namespaces/anew/runs?limit=2"
	for page := path; page != ""; {
		w.count.gets.Store(0)
		w.count.lists.Store(0)
		res := w.get(t, page, "Authorization", "Bearer anew")
		var list Runs
		if err := json.Unmarshal([]byte(res.body), &list); err != nil {
			t.Fatal(err)
		}
		for _, r := range list.Runs {
			got = append(got, r.UID)
		}
		if gets := w.count.gets.Load(); gets > 4 || w.count.lists.Load() > 1 {
			t.Errorf("%s: %d GET, %d LIST", page, gets, w.count.lists.Load())
		}
		page = ""
		if list.Continue != "" {
			page = path + "&continue=" + list.Continue
		}
		if len(list.Runs) != 2 && page != "" {
			t.Errorf("a page of %d runs, and there is another", len(list.Runs))
		}
	}
	if want := "new-3 new-2 new-1 new-0 slow"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}
