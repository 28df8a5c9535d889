package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// cluster is an API server within a bubble of synctest: it is reached through pipes, so time passes while it is waited for. It knows PipelineRuns, TaskRuns, pods and events, and only what the annotator asks: list, watch, get,
// merge patch, create. TestOnAPIServer asks a real one the same.
type cluster struct {
	mu      sync.Mutex
	version int
	objects map[string]object // by path, as /apis/tekton.dev/v1/namespaces/team/taskruns/a
	history []change
	wake    chan struct{} // closed and made anew with each change
	calls   []string      // of what changes something: method and path
	refuse  func(method, path string) int
	held    string // the resource whose changes no watch hears of
	conns   chan net.Conn
	closed  chan struct{}
}

type change struct {
	version        int
	kind, resource string
	object         object
}

const runsPath = "/apis/tekton.dev/v1/"

// acceptedTypes are those that run asks for.
const acceptedTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON

// newCluster starts a cluster that ends with the bubble's test.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{objects: map[string]object{}, wake: make(chan struct{}), conns: make(chan net.Conn), closed: make(chan struct{}), refuse: func(string, string) int { return 0 }}
	server := &http.Server{Handler: c}
	var group sync.WaitGroup
	group.Go(func() { _ = server.Serve(c) }) // until Close
	t.Cleanup(func() {
		server.Close()
		group.Wait()
	})
	return c
}

// Accept, Close and Addr are for net.Listener.
func (c *cluster) Accept() (net.Conn, error) {
	select {
	case conn := <-c.conns:
		return conn, nil
	case <-c.closed:
		return nil, net.ErrClosed
	}
}

func (c *cluster) Close() error   { close(c.closed); return nil }
func (c *cluster) Addr() net.Addr { return &net.UnixAddr{Name: "cluster"} }

// config is how a client reaches it.
func (c *cluster) config() *rest.Config {
	return &rest.Config{
		Host:          "http://cluster",
		ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeJSON, AcceptContentTypes: acceptedTypes},
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			near, far := net.Pipe()
			select {
			case c.conns <- far:
				return near, nil
			case <-c.closed:
				return nil, net.ErrClosed
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}
}

// resourceOf is the resource of a path of a run, such as taskruns.
func resourceOf(path string) string {
	part := strings.Split(strings.TrimPrefix(path, runsPath), "/")
	return part[min(2, len(part)-1)]
}

// put makes or replaces an object, as its controller does.
func (c *cluster) put(path string, o object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kind := "MODIFIED"
	if c.objects[path] == nil {
		kind = "ADDED"
	}
	c.set(kind, path, o)
}

// set is put for who has the lock. Objects are copied, so that no one changes what another reads.
func (c *cluster) set(kind, path string, o object) {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err) // the tests' own objects
	}
	c.version++
	var stored object
	if err := json.Unmarshal(b, &stored); err != nil {
		panic(err)
	}
	stored["metadata"].(object)["resourceVersion"] = fmt.Sprint(c.version)
	if kind == "DELETED" {
		delete(c.objects, path)
	} else {
		c.objects[path] = stored
	}
	c.history = append(c.history, change{c.version, kind, resourceOf(path), stored})
	close(c.wake)
	c.wake = make(chan struct{})
}

// update changes an object, as Tekton or a person does.
func (c *cluster) update(path string, change func(object)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := copied(c.objects[path])
	change(o)
	c.set("MODIFIED", path, o)
}

func copied(o object) object {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var out object
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}

func (c *cluster) has(path string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.objects[path] != nil
}

func (c *cluster) delete(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.set("DELETED", path, c.objects[path])
}

// annotations are those that shiplog sets on an object, but for the UID, which must be the object's own where it is there.
func (c *cluster) annotations(t *testing.T, path string) map[string]string {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	meta := c.objects[path]["metadata"].(object)
	out := map[string]string{}
	all, _ := meta["annotations"].(object)
	for name, v := range all {
		if rest, ours := strings.CutPrefix(name, "shiplog.dev/"); ours && name != contract.InjectKey {
			out[rest] = v.(string)
		}
	}
	if uid, ok := out["sealed-uid"]; ok && uid != meta["uid"] {
		t.Errorf("%s has %s %q, and its UID is %q", path, contract.SealedUIDAnnotation, uid, meta["uid"])
	}
	if (out["sealed"] == "") != (out["sealed-uid"] == "") {
		t.Errorf("%s has only one of %s and %s: %v", path, contract.SealedAnnotation, contract.SealedUIDAnnotation, out)
	}
	delete(out, "sealed-uid")
	return out
}

// events are those that were made, as "Kind name Reason: message".
func (c *cluster) events() (all []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, path := range slices.Sorted(maps.Keys(c.objects)) {
		if strings.Contains(path, "/events/") {
			e := c.objects[path]
			about := e["involvedObject"].(object)
			all = append(all, fmt.Sprintf("%s %s %s: %s", about["kind"], about["name"], e["reason"], e["message"]))
		}
	}
	return all
}

// called is how often something was changed at a path that has this in it.
func (c *cluster) called(part string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, call := range c.calls {
		if strings.Contains(call, part) {
			n++
		}
	}
	return n
}

// refuseWith makes the server answer with an error where f says so.
func (c *cluster) refuseWith(f func(method, path string) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = f
}

// hold keeps the changes of a resource from all watches until hold is called with another one.
func (c *cluster) hold(resource string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = resource
	close(c.wake)
	c.wake = make(chan struct{})
}

// ServeHTTP implements http.Handler.
func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if r.Method == http.MethodGet && r.URL.Query().Get("watch") != "" {
		c.serveWatch(w, r)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Method != http.MethodGet {
		c.calls = append(c.calls, r.Method+" "+path)
	}
	if status := c.refuse(r.Method, path); status != 0 {
		fail(w, status)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		fail(w, http.StatusBadRequest)
		return
	}
	switch o := c.objects[path]; {
	case r.Method == http.MethodGet && strings.HasPrefix(path, runsPath) && !strings.Contains(path, "/namespaces/"):
		c.answerList(w, path)
	case r.Method == http.MethodPost && strings.HasSuffix(path, "/events"):
		c.createEvent(w, path, body)
	case o == nil:
		fail(w, http.StatusNotFound)
	case r.Method == http.MethodPatch:
		c.answerPatch(w, path, body)
	case r.Method == http.MethodGet:
		answer(w, http.StatusOK, o)
	default:
		fail(w, http.StatusMethodNotAllowed)
	}
}

func (c *cluster) answerList(w http.ResponseWriter, path string) {
	items := []any{}
	for _, p := range slices.Sorted(maps.Keys(c.objects)) {
		if strings.HasPrefix(p, runsPath) && resourceOf(p) == resourceOf(path) {
			items = append(items, c.objects[p])
		}
	}
	answer(w, http.StatusOK, object{"apiVersion": "tekton.dev/v1", "kind": "List", "metadata": object{"resourceVersion": fmt.Sprint(c.version)}, "items": items})
}

func (c *cluster) createEvent(w http.ResponseWriter, path string, body []byte) {
	var event object
	if err := json.Unmarshal(body, &event); err != nil {
		fail(w, http.StatusBadRequest)
		return
	}
	path += "/" + event["metadata"].(object)["name"].(string)
	if c.objects[path] != nil {
		fail(w, http.StatusConflict)
		return
	}
	c.objects[path] = event
	answer(w, http.StatusCreated, event)
}

func (c *cluster) answerPatch(w http.ResponseWriter, path string, body []byte) {
	before, err := json.Marshal(c.objects[path])
	if err != nil {
		fail(w, http.StatusInternalServerError)
		return
	}
	after, err := jsonpatch.MergePatch(before, body)
	var o object
	if err == nil {
		err = json.Unmarshal(after, &o)
	}
	switch {
	case err != nil:
		fail(w, http.StatusBadRequest)
	case o["metadata"].(object)["uid"] != c.objects[path]["metadata"].(object)["uid"]:
		fail(w, http.StatusUnprocessableEntity)
	default:
		c.set("MODIFIED", path, o)
		answer(w, http.StatusOK, c.objects[path])
	}
}

// serveWatch streams what has changed since a version. It does not stream lists, as older API servers do not.
func (c *cluster) serveWatch(w http.ResponseWriter, r *http.Request) {
	var since int
	if _, err := fmt.Sscan(r.URL.Query().Get("resourceVersion"), &since); err != nil || r.URL.Query().Get("sendInitialEvents") != "" {
		fail(w, http.StatusUnprocessableEntity)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	for {
		c.mu.Lock()
		wake := c.wake
		var news []change
		for _, h := range c.history {
			if c.held == resourceOf(r.URL.Path) {
				break
			}
			if h.version > since && h.resource == resourceOf(r.URL.Path) {
				news = append(news, h)
			}
			since = max(since, h.version)
		}
		c.mu.Unlock()
		for _, n := range news {
			_ = json.NewEncoder(w).Encode(object{"type": n.kind, "object": n.object}) // the client is gone, if this fails
		}
		w.(http.Flusher).Flush()
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		}
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// fail answers with a Status, as the API server does.
func fail(w http.ResponseWriter, status int) {
	reasons := map[int]string{400: "BadRequest", 403: "Forbidden", 404: "NotFound", 409: "AlreadyExists", 422: "Invalid", 500: "InternalError"}
	answer(w, status, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reasons[status], "message": "fake"})
}

// stamp is a time as Kubernetes writes it.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
