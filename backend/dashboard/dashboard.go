// Package dashboard serves the archive to the Tekton Dashboard, as its flag --external-logs asks for the logs of pods that are gone.
//
// The Dashboard's own server asks, for whoever looks at it, and passes on neither who that is nor any header (pkg/endpoints/externallogs.go and pkg/utils/proxy.go of github.com/tektoncd/dashboard, read at commit 01cbf712). So it is the
// Dashboard that is known here, by what stands in its flag: a user and password, or a secret as the first part of the path. tenants.go owns that, dashboard.go finds the log, and text.go writes it.
package dashboard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/access"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// Base begins the path of every request: the Dashboard's flag is --external-logs=http://NAME:PASSWORD@HOST/external-logs or --external-logs=http://HOST/external-logs/SECRET.
const Base = "/external-logs"

// Options make a handler.
type Options struct {
	Archive *backend.Archive
	Tenants *Tenants
	// Gate says which runs are read of a namespace. What a tenant may read goes by the namespace's
	// name, and a Dashboard does not say who looks.
	Gate Gate
	Log  *slog.Logger
}

// Gate knows namespaces.
type Gate interface {
	// Present says which runs are read for somebody who does not say who looks.
	Present(ctx context.Context, namespace string) (backend.Reach, error)
}

type handler struct{ Options }

// New makes the handler of every path under Base. Behind it, and the secret if there is one, the Dashboard appends /NAMESPACE/POD/CONTAINER, the pod by its name: a retry is another pod. Its parameters startTime and completionTime are
// those of the TaskRun, and choose nothing: the name says which pod is meant.
//
// Whoever mounts it must not log the paths of its requests: they may hold a secret.
func New(o Options) http.Handler { return &handler{o} }

// request is what a path asks for.
type request struct {
	secret                    string // empty: there is none
	namespace, pod, container string
}

// parsePath reads a path. Names are checked before anything is asked: no trick with dots, slashes or percent signs goes further.
func parsePath(path string) (request, error) {
	rest, ok := strings.CutPrefix(path, Base+"/")
	parts := strings.Split(rest, "/")
	var q request
	if len(parts) == 4 && parts[0] != "" {
		q.secret, parts = parts[0], parts[1:]
	}
	if !ok || len(parts) != 3 {
		return q, fmt.Errorf("the path must be %s/NAMESPACE/POD/CONTAINER, with a secret before NAMESPACE if that is how you are known", Base)
	}
	if strings.ContainsFunc(q.secret, func(c rune) bool { return c != '-' && c != '_' && !letterOrDigit(c) }) {
		return q, errors.New("a secret in the path has letters, digits, - and _ alone")
	}
	q.namespace, q.pod, q.container = parts[0], parts[1], parts[2]
	return q, errors.Join(layout.CheckName("namespace", q.namespace), layout.CheckName("pod", q.pod), layout.CheckName("container", q.container))
}

func letterOrDigit(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// notFound is said of what there is not, and of what one may not read, in the same words.
const notFound = "the archive has no log of this container, or you may not read it"

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "only GET is there", http.StatusMethodNotAllowed)
		return
	}
	q, err := parsePath(r.URL.EscapedPath())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	who := h.identify(r, q)
	if err := count(r, q, who); err != nil {
		w.Header().Set("Retry-After", "5")
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return
	}
	switch {
	case who == nil && q.secret == "":
		// Without a challenge: the Dashboard passes it on to the browsers of its users, who would be asked for a password that is not theirs. Go's client sends the one in the flag unasked.
		http.Error(w, fmt.Sprintf("this needs the name and password of a tenant; a password has at least %d bytes", MinSecret), http.StatusUnauthorized)
		return
	case who == nil || !who.mayRead(q.namespace):
		http.Error(w, notFound, http.StatusNotFound)
		return
	}
	c, err := h.find(r, q)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, notFound, http.StatusNotFound)
	case err != nil && r.Context().Err() != nil: // nobody listens any more
	case err != nil:
		h.failed("cannot answer the Dashboard", q, err)
		w.Header().Set("Retry-After", "5")
		http.Error(w, "the archive cannot be read now: try again later", http.StatusServiceUnavailable)
	default:
		h.serve(w, r, q, c)
	}
}

func (h *handler) failed(what string, q request, err error) {
	h.Log.Error(what, "namespace", q.namespace, "pod", q.pod, "container", q.container, "error", err)
}

// identify returns the tenant who sent the request, or nil.
func (h *handler) identify(r *http.Request, q request) *tenant {
	if q.secret != "" {
		return h.Tenants.byPathSecret(q.secret)
	}
	name, password, _ := r.BasicAuth()
	return h.Tenants.byPassword(name, password)
}

// count says whether there are too many requests of a tenant's, or too many secrets that are nobody's from an address. A right one is always let in: all have so many bytes that none is guessed.
func count(r *http.Request, q request, who *tenant) error {
	if who != nil {
		return access.Know(r, "dashboard "+who.name, q.namespace)
	}
	if _, _, sent := r.BasicAuth(); sent || q.secret != "" {
		return access.Failed(r)
	}
	return nil
}

// find reads the state of the container's log: two LISTs, and a GET for the pod's place, its
// record, the run's and the seal.
func (h *handler) find(r *http.Request, q request) (backend.Container, error) {
	reach, err := h.Gate.Present(r.Context(), q.namespace)
	if err != nil {
		return backend.Container{}, err
	}
	archive := h.Archive.Within(reach)
	target, err := archive.FindPod(r.Context(), q.namespace, q.pod)
	var none *backend.NotFoundError
	if errors.As(err, &none) {
		return backend.Container{}, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return backend.Container{}, err
	}
	return archive.Container(r.Context(), layout.Container{
		Pod: layout.Pod{Run: target.Run, TaskRun: target.TaskRun, PodUID: target.PodUID}, Container: q.container,
	})
}

// serve writes the log. A body that ends too early must not look whole: the connection is broken off. The Dashboard does not notice that (it ends its own answer as if all had come), so the last line says it too.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, q request, c backend.Container) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8") // anything but text/plain, the Dashboard's page takes for JSON
	t := newText(w)
	err := t.log(h.Archive.Lines(r.Context(), c, backend.LogOptions{}), c)
	if err == nil {
		err = t.out.Flush()
	}
	if err == nil {
		return
	}
	if r.Context().Err() == nil {
		h.failed("broke a log off for the Dashboard", q, err)
		_ = t.notice(levelError, t.latest(), "the log breaks off here, since the archive cannot be read now: load it again") // and no more, whether or not it can be sent
		_ = t.out.Flush()
		_ = http.NewResponseController(w).Flush()
	}
	panic(http.ErrAbortHandler)
}
