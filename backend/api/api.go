// Package api owns the HTTP API: it finds out what is asked for and who asks, and writes what package backend reads. It keeps nothing between two requests.
//
// A request's way through it: api.go routes it and makes errors of what goes wrong, params.go reads what it asks for, and then it ends in runs.go (lists and trees), logs.go (the log of one container), several.go (the logs of
// several) or search.go. What clients can rely on is openapi.yaml, which is served, and which a test compares with what the handlers do.
package api

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"runtime"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/turns"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// Base begins the path of every request.
const Base = "/api/v1"

// Gate says who may read. An error with a method HTTPStatus() int says what its sender is told; of any other it is told nothing.
type Gate interface {
	// Allow returns which runs of a namespace who sent the request may read. Where they may read
	// none of it, there is an error.
	Allow(r *http.Request, namespace string) (backend.Reach, error)
	// Allowed returns those of the namespaces that who sent the request may read.
	Allowed(r *http.Request, namespaces []string) ([]string, error)
}

// Options make an API.
type Options struct {
	Archive *backend.Archive
	Gate    Gate
	Log     *slog.Logger
	// Turns are what searches share. nil stands for twice as many as there are processors: the
	// others wait, and who reads does not wait for them.
	Turns *turns.Pool
}

type api struct{ Options }

//go:embed openapi.yaml
var openAPI []byte

// handler answers one kind of request. Where nothing of the answer is sent yet, WriteError makes an answer of its error.
type handler func(w http.ResponseWriter, r *http.Request) error

// New makes the handler of every path under Base.
func New(o Options) http.Handler {
	if o.Turns == nil {
		o.Turns = turns.New(2 * runtime.GOMAXPROCS(0))
	}
	a := &api{o}
	mux := http.NewServeMux()
	for path, h := range a.routes() {
		mux.HandleFunc("GET "+Base+path, func(w http.ResponseWriter, r *http.Request) {
			out := &answer{ResponseWriter: w}
			err := h(out, r)
			switch {
			case err == nil:
			case out.begun: // a body that ends here must not look whole
				if r.Context().Err() == nil {
					a.Log.Error("broke an answer off", "path", r.URL.Path, "error", err)
				}
				_ = http.NewResponseController(w).Flush() // what there is, is right
				panic(http.ErrAbortHandler)
			default:
				WriteError(w, r, err, a.Log)
			}
		})
	}
	mux.HandleFunc(Base+"/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			WriteError(w, r, &Error{http.StatusMethodNotAllowed, "only GET and HEAD are there"}, a.Log)
			return
		}
		WriteError(w, r, &Error{http.StatusNotFound, "no such path: see " + Base + "/openapi.yaml"}, a.Log)
	})
	return mux
}

// routes are all paths under Base. Each answers GET, and HEAD.
func (a *api) routes() map[string]handler {
	routes := map[string]handler{
		"/namespaces": a.namespaces,
		"/openapi.yaml": func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Content-Type", "application/yaml")
			_, err := w.Write(openAPI)
			return err
		},
	}
	// in asks the gate before anything of the namespace is looked at. What answers has an archive
	// that holds nothing else than who asks may read.
	in := func(path string, h func(*api, http.ResponseWriter, *http.Request) error) {
		routes[path] = func(w http.ResponseWriter, r *http.Request) error {
			namespace := r.PathValue("namespace")
			if err := layout.CheckName("namespace", namespace); err != nil {
				return badRequest(err)
			}
			reach, err := a.Gate.Allow(r, namespace)
			if err != nil {
				return err
			}
			within := *a
			within.Archive = a.Archive.Within(reach)
			return h(&within, w, r)
		}
	}
	for _, kind := range []string{"runs", "pipelineruns", "taskruns"} {
		of := "/namespaces/{namespace}/" + kind + "/{run}"
		for path, answers := range map[string]func(a *api, kind string) handler{
			"/namespaces/{namespace}/" + kind: (*api).runs,
			of:                                (*api).tree,
			of + "/objects":                   (*api).objects,
			of + "/logs":                      (*api).severalLogs,
			of + "/logs.zip":                  (*api).zip,
			of + "/search":                    (*api).searchSeveral,
		} {
			in(path, func(a *api, w http.ResponseWriter, r *http.Request) error {
				return answers(a, kind)(w, r)
			})
		}
	}
	in("/namespaces/{namespace}/taskruns/{run}/steps/{step}/logs", (*api).stepLog)
	in("/namespaces/{namespace}/pods/{pod}/containers/{container}/logs", (*api).podLog)
	in("/containers/{namespace}/{run}/{uid}/{taskRun}/{pod}/{container}/logs", (*api).containerLog)
	in("/containers/{namespace}/{run}/{uid}/{taskRun}/{pod}/{container}/search", (*api).searchOne)
	in("/containers/{namespace}/{run}/{uid}/{taskRun}/{pod}/{container}", (*api).container)
	return routes
}

// Error is an error that its sender is told.
type Error struct {
	Status  int // HTTP
	Message string
}

func (e *Error) Error() string { return e.Message }

// HTTPStatus is what the sender is answered.
func (e *Error) HTTPStatus() int { return e.Status }

func badRequest(err error) error { return &Error{http.StatusBadRequest, err.Error()} }

func badParameter(name, value, want string) error {
	return &Error{http.StatusBadRequest, fmt.Sprintf("%s=%q: %s", name, value, want)}
}

// headersOnly ends the answer to a HEAD whose headers are set, before what only its body needs is read or waited for.
func headersOnly(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodHead {
		return false
	}
	w.WriteHeader(http.StatusOK)
	return true
}

// answer knows whether something of it is sent.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (a *answer) WriteHeader(status int) {
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// noName are S3's errors of a key that no object can have, such as one that is too long together with the prefix that the operator chose. Only names in a request can cause them here.
var noName = map[string]bool{"KeyTooLongError": true, "KeyTooLong": true, "InvalidArgument": true, "InvalidObjectName": true}

// Told is what the sender of a request is told of an error. Of what is not their fault it tells no more than that, and says so with known.
func Told(err error) (status int, message string, known bool) {
	var told interface {
		error
		HTTPStatus() int
	}
	var notFound *backend.NotFoundError
	var pattern *backend.PatternError
	var store interface {
		error
		ErrorCode() string // S3's
	}
	switch {
	case errors.As(err, &told):
		return told.HTTPStatus(), told.Error(), true
	case errors.As(err, &pattern), errors.Is(err, layout.ErrName):
		return http.StatusBadRequest, err.Error(), true
	case errors.As(err, &notFound):
		return http.StatusNotFound, err.Error(), true
	case errors.Is(err, fs.ErrNotExist), errors.As(err, &store) && noName[store.ErrorCode()]:
		return http.StatusNotFound, "the archive holds nothing of this name", true
	default:
		return http.StatusServiceUnavailable, "the archive cannot be read now: try again later", false
	}
}

// WriteError answers with an error as JSON. What is not the sender's fault is logged.
func WriteError(w http.ResponseWriter, r *http.Request, err error, log *slog.Logger) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		return // nobody listens any more
	}
	status, message, known := Told(err)
	if !known {
		log.Error("request failed", "path", r.URL.Path, "error", err)
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "5")
	}
	h := w.Header()
	for _, name := range []string{"Content-Disposition", "Content-Length", "ETag", "Trailer"} {
		h.Del(name)
	}
	var unknown interface {
		error
		Challenge() string
	}
	if errors.As(err, &unknown) && unknown.Challenge() != "" {
		h.Set("WWW-Authenticate", unknown.Challenge())
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": message}) // the sender may be gone
}

// writeJSON answers with a value.
func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
