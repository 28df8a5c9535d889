// Package loki serves the archive to Tekton Results in the place of a Grafana Loki: it answers the one request that the log plug-in of Results sends where its setting LOGS_TYPE is Loki. With it, an unmodified Results, tkn-results, opc
// and the OpenShift console show what is in the archive. It is no Loki: any other query is refused.
//
// A request's way through it: query.go reads what is asked for, loki.go finds it and decides what of it is given, and answer.go writes that.
package loki

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const (
	// Path is what Results asks for, behind its settings LOGGING_PLUGIN_API_URL and LOGGING_PLUGIN_PROXY_PATH.
	Path = "/loki/api/v1/query_range"
	// DefaultPath is Path behind the LOGGING_PLUGIN_PROXY_PATH that Results has where nothing else is set.
	DefaultPath = "/api/logs/v1/application" + Path
)

// Gate says who may read. An error with a method HTTPStatus() int says what its sender is told; of any other it is told nothing.
type Gate interface {
	// Allow returns no error if who sent the request may read the logs of a namespace. Results
	// sends the token of its own service account, whoever asks it: it has asked itself what they
	// may.
	Allow(r *http.Request, namespace string) (backend.Reach, error)
	// Present says which runs are read for somebody who does not say who looks.
	Present(ctx context.Context, namespace string) (backend.Reach, error)
}

// Options make a handler.
type Options struct {
	Archive *backend.Archive
	Gate    Gate
	Log     *slog.Logger
}

type handler struct{ Options }

// New makes the handler for Path and DefaultPath. It answers with the logs of a TaskRun or PipelineRun by its UID: one container after the other, in the order of the run.
//
// Of more lines than the request's limit, it gives the last, or the first if the direction is forward, and says in a line of its own how many it left out; lines are counted by their newlines. start and end choose nothing: the UID
// says what is meant, and the clock that made them is not the one that stamped the lines.
func New(o Options) http.Handler { return &handler{o} }

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts, q, err := h.find(r)
	if err != nil {
		api.WriteError(w, r, err, h.Log)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	err = http.NewResponseController(w).Flush() // Results waits 10 s for the header, and as long as it takes for the rest
	if err == nil {
		err = h.write(r.Context(), w, q, parts)
	}
	if err != nil {
		if r.Context().Err() == nil {
			h.Log.Error("broke an answer to Tekton Results off", "namespace", q.namespace, "uid", q.uid, "error", err)
		}
		panic(http.ErrAbortHandler) // half of an answer must not look whole
	}
}

// selection is what of a run is given.
type selection struct {
	run     layout.Run
	parts   []part
	headers bool // a line before each container's log says whose it is
	// left is how many of total lines are left out; about says that both count some twice.
	left, total int64
	about       bool
}

// part is a container's log, or a part of it.
type part struct {
	backend.Place
	options backend.LogOptions
	cut     bool // its end is left out
}

// find reads the request, asks whether it is allowed, and looks up what it asks for.
func (h *handler) find(r *http.Request) (selection, query, error) {
	if r.Method != http.MethodGet {
		return selection{}, query{}, &api.Error{Status: http.StatusMethodNotAllowed, Message: "only GET is there"}
	}
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return selection{}, q, err
	}
	if _, err := h.Gate.Allow(r, q.namespace); err != nil { // it is Results whose reach that is
		return selection{}, q, err
	}
	reach, err := h.Gate.Present(r.Context(), q.namespace)
	if err != nil {
		return selection{}, q, err
	}
	archive := h.Archive.Within(reach)
	look := archive.FindPipelineRun
	if q.kind == layout.TaskRun {
		look = archive.FindTaskRun
	}
	target, err := look(r.Context(), q.namespace, q.uid)
	if err != nil {
		return selection{}, q, err
	}
	tree, err := archive.Tree(r.Context(), target)
	if err != nil {
		return selection{}, q, err
	}
	if !isUID(tree, target, q) {
		return selection{}, q, &backend.NotFoundError{Namespace: q.namespace, Ref: q.uid}
	}
	s := choose(tree, q)
	if len(s.parts) == 0 {
		err = &api.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("the archive has no container of %s %s", q.kind, q.uid)}
	}
	return s, q, err
}

// isUID says whether a target has the UID that was asked for, and not a name that looks like it.
func isUID(tree *backend.Tree, t backend.Target, q query) bool {
	if t.TaskRun == "" {
		return t.Run.UID == q.uid
	}
	for place := range tree.Containers() {
		if r := place.Pod.Record; r != nil && r.TaskRunUID != q.uid {
			return false
		}
	}
	return true
}

// choose decides which lines are given.
func choose(tree *backend.Tree, q query) selection {
	s := selection{run: tree.Run}
	pods := map[layout.Pod]bool{}
	for place := range tree.Containers() {
		if !says(place.Container) {
			continue
		}
		s.parts = append(s.parts, part{Place: place})
		s.total += place.Container.Lines
		s.about = s.about || place.Container.Estimated
		pods[place.Pod.Key] = true
	}
	// A line says at most which container it is of.
	s.headers = len(pods) > 1 || !q.labelled && len(s.parts) > 1
	if s.left = max(0, s.total-q.limit); s.left == 0 {
		return s
	}
	if q.forward {
		s.parts = firstLines(s.parts, q.limit)
	} else {
		s.parts = lastLines(s.parts, q.limit)
	}
	return s
}

// firstLines leaves the first n lines.
func firstLines(parts []part, n int64) []part {
	for i := range parts {
		p := &parts[i]
		switch {
		case n == 0:
			return parts[:i]
		case p.Container.Lines > n:
			p.options.ToLine, p.cut = n, true
			return parts[:i+1]
		}
		n -= p.Container.Lines
	}
	return parts
}

// lastLines leaves the last n lines.
func lastLines(parts []part, n int64) []part {
	for i := len(parts) - 1; i >= 0; i-- {
		p := &parts[i]
		switch {
		case n == 0:
			return parts[i+1:]
		case p.Container.Lines > n:
			p.options.Tail = n
			return parts[i:]
		}
		n -= p.Container.Lines
	}
	return parts
}

// says whether there is something to say of a container. Of a step there always is, if only why it printed nothing.
func says(c backend.Container) bool {
	step := c.Kind == record.Step || c.Kind == "" && strings.HasPrefix(c.Name, "step-")
	return step || c.Bytes > 0 || c.Status == backend.Gaps || c.Status == backend.Damaged
}
