package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/objectstore/s3test"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// The objects of the tests.
const (
	podUID         = "11111111-1111-4111-8111-111111111111"
	taskRunUID     = "22222222-2222-4222-8222-222222222222"
	pipelineRunUID = "33333333-3333-4333-8333-333333333333"
	namespaceUID   = "55555555-5555-4555-8555-555555555555"

	podPath         = "/api/v1/namespaces/team/pods/build-7-compile-pod"
	taskRunPath     = "/apis/tekton.dev/v1/namespaces/team/taskruns/build-7-compile"
	pipelineRunPath = "/apis/tekton.dev/v1/namespaces/team/pipelineruns/build-7"
	reviewPath      = "/apis/authentication.k8s.io/v1/tokenreviews"

	podPrefix = "v1/team/build-7/" + pipelineRunUID + "/build-7-compile/" + podUID + "/"
)

type object = map[string]any

// fakeAPI is an API server that knows a few objects and one token.
type fakeAPI struct {
	objects map[string]object // by path
	cached  map[string]object // what it answers to who takes what it has in memory, where that is older; nil is not there yet
	status  map[string]int    // paths that answer with an error
	review  authenticationv1.TokenReviewStatus
	forged  func(*http.Request) // called for each review of a token that is none; nil does nothing

	mu       sync.Mutex
	requests []string
	audience [][]string // of each token review
}

func newFakeAPI() *fakeAPI {
	controller := func(apiVersion, kind, name, uid string) []any {
		return []any{
			object{"apiVersion": "example.com/v1", "kind": kind, "name": "not-the-controller", "uid": "x"},
			object{"apiVersion": apiVersion, "kind": kind, "name": name, "uid": uid, "controller": true},
		}
	}
	return &fakeAPI{
		status: map[string]int{},
		review: authenticationv1.TokenReviewStatus{
			Authenticated: true,
			Audiences:     []string{contract.Audience},
			User: authenticationv1.UserInfo{
				Username: "system:serviceaccount:team:builder",
				Extra:    map[string]authenticationv1.ExtraValue{podNameExtra: {"build-7-compile-pod"}, podUIDExtra: {podUID}},
			},
		},
		objects: map[string]object{
			namespacePath: {
				"apiVersion": "v1", "kind": "Namespace",
				"metadata": object{
					"name": "team", "uid": namespaceUID, "creationTimestamp": "2026-03-01T00:00:00Z",
				},
			},
			podPath: {
				"apiVersion": "v1", "kind": "Pod",
				"metadata": object{
					"name": "build-7-compile-pod", "namespace": "team", "uid": podUID, "creationTimestamp": "2026-03-04T05:06:09Z",
					// Forged labels, which must not become names in the store.
					"labels":          object{"tekton.dev/taskRun": "forged", "tekton.dev/pipelineRun": "../../other", "app": "demo"},
					"annotations":     object{contract.SkippedAnnotation: contract.FormatSkipped([]contract.Skipped{{Container: "sidecar-db", Reason: "no-command"}})},
					"ownerReferences": controller("tekton.dev/v1", "TaskRun", "build-7-compile", taskRunUID),
				},
				"spec": object{
					"initContainers": []any{
						object{"name": contract.ShipperContainer, "restartPolicy": "Always", "command": []any{"/shipper"}},
						object{"name": "prepare", "command": []any{contract.TeePath}},
						object{"name": "place-scripts", "command": []any{"/ko-app/entrypoint"}},
						object{"name": "sidecar-proxy", "restartPolicy": "Always", "command": []any{contract.TeePath}},
					},
					"containers": []any{
						object{"name": "step-build", "command": []any{contract.TeePath}},
						object{"name": "step-test", "command": []any{contract.TeePath, "extra"}},
						object{"name": "sidecar-db"},
					},
				},
				"status": object{"phase": "Running"},
			},
			taskRunPath: {
				"apiVersion": "tekton.dev/v1", "kind": "TaskRun",
				"metadata": object{
					"name": "build-7-compile", "namespace": "team", "uid": taskRunUID, "creationTimestamp": "2026-03-04T05:06:08Z",
					"labels":          object{"tekton.dev/pipelineTask": "compile", "tekton.dev/pipelineRun": "forged"},
					"ownerReferences": controller("tekton.dev/v1", "PipelineRun", "build-7", pipelineRunUID),
				},
				"spec":   object{"taskRef": object{"name": "go-build"}},
				"status": object{"podName": "forged-pod"},
			},
			pipelineRunPath: {
				"apiVersion": "tekton.dev/v1", "kind": "PipelineRun",
				"metadata": object{
					"name": "build-7", "namespace": "team", "uid": pipelineRunUID, "creationTimestamp": "2026-03-04T05:06:07Z",
					"labels": object{"tekton.dev/pipeline": "build"},
				},
				"spec": object{"pipelineRef": object{"name": "build"}},
				"status": object{"pipelineSpec": object{
					"tasks":   []any{object{"name": "clone"}, object{"name": "compile"}},
					"finally": []any{object{"name": "report"}},
				}},
			},
		},
	}
}

// at returns the object at a path of keys.
func (f *fakeAPI) at(path string, keys ...string) object {
	o := f.objects[path]
	for _, k := range keys {
		o = o[k].(object)
	}
	return o
}

// ownerRef is the controller reference of the object at path.
func (f *fakeAPI) ownerRef(path string) object {
	return f.at(path, "metadata")["ownerReferences"].([]any)[1].(object)
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, r.Method+" "+r.URL.Path)
	reply := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	failure := func(status int, reason string) {
		reply(status, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason, "message": "fake"})
	}
	if status := f.status[r.URL.Path]; status != 0 {
		failure(status, map[int]string{http.StatusForbidden: "Forbidden", http.StatusInternalServerError: "InternalError"}[status])
		return
	}
	if r.URL.Path == keysPath && r.Method == http.MethodGet {
		if r.Header.Get("Accept") != "application/jwk-set+json" {
			failure(http.StatusNotAcceptable, "NotAcceptable")
			return
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(apiSigner.keySet())
		return
	}
	if r.URL.Path == reviewPath && r.Method == http.MethodPost {
		var review authenticationv1.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			failure(http.StatusBadRequest, "BadRequest")
			return
		}
		f.audience = append(f.audience, review.Spec.Audiences)
		if review.Spec.Token != goodToken && f.forged != nil {
			f.mu.Unlock()
			f.forged(r)
			f.mu.Lock()
		}
		if review.Spec.Token == goodToken {
			review.Status = f.review
		} else {
			review.Status.Error = "invalid bearer token"
		}
		reply(http.StatusCreated, review)
		return
	}
	o := f.objects[r.URL.Path]
	if old, ok := f.cached[r.URL.Path]; ok && r.URL.Query().Get("resourceVersion") == "0" {
		o = old
	}
	if o != nil && r.Method == http.MethodGet {
		reply(http.StatusOK, o)
		return
	}
	failure(http.StatusNotFound, "NotFound")
}

// memoryStore keeps what is put, and signs anything.
type memoryStore struct {
	putErr, signErr, readErr error

	mu       sync.Mutex
	objects  map[string]string
	modified map[string]time.Time
	puts     []string
	reads    int
	signed   []string
}

func (m *memoryStore) Put(_ context.Context, key string, body []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.putErr != nil {
		return m.putErr
	}
	if m.objects == nil {
		m.objects, m.modified = map[string]string{}, map[string]time.Time{}
	}
	m.objects[key], m.modified[key] = string(body), time.Now()
	m.puts = append(m.puts, key)
	return nil
}

func (m *memoryStore) Get(_ context.Context, key string) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	if m.readErr != nil {
		return nil, m.readErr
	}
	body, ok := m.objects[key]
	if !ok {
		return nil, fmt.Errorf("get %s: %w", key, fs.ErrNotExist)
	}
	return io.NopCloser(strings.NewReader(body)), nil
}

// readCount is how often something was asked for.
func (m *memoryStore) readCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reads
}

// List lists what is there when it is called. What reads a run's tree needs no more of it than the prefix.
func (m *memoryStore) List(_ context.Context, prefix, _, startAfter string, limit int) iter.Seq2[objectstore.Entry, error] {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	var entries []objectstore.Entry
	for _, key := range slices.Sorted(maps.Keys(m.objects)) {
		if strings.HasPrefix(key, prefix) && key > startAfter && (limit == 0 || len(entries) < limit) {
			entries = append(entries, objectstore.Entry{Key: key, Size: int64(len(m.objects[key])), LastModified: m.modified[key]})
		}
	}
	err := m.readErr
	return func(yield func(objectstore.Entry, error) bool) {
		if err != nil {
			yield(objectstore.Entry{}, err)
			return
		}
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// fail sets the errors of all that follows.
func (m *memoryStore) fail(read, put error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readErr, m.putErr = read, put
}

func (m *memoryStore) SignUpload(_ context.Context, prefix string, maxBytes int64, lifetime time.Duration) (ticket.Ticket, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.signErr != nil {
		return ticket.Ticket{}, m.signErr
	}
	m.signed = append(m.signed, prefix)
	now := time.Now()
	return ticket.Ticket{
		URL: "https://s3.example.com/bucket", Fields: map[string]string{"policy": "signed-policy"}, Prefix: prefix, MaxBytes: maxBytes,
		Issued: now, Expires: now.Add(lifetime),
	}, nil
}

func (m *memoryStore) SignDownload(_ context.Context, key string, _ time.Duration) (string, error) {
	return "https://s3.example.com/bucket/" + key, nil
}

// service is a ticket service under test.
type service struct {
	*ticketService
	api *fakeAPI
	log *bytes.Buffer // read when no request is under way
}

// startService starts a ticket service on a fake API server, which must not leak anything.
func startService(t *testing.T, api *fakeAPI, store uploadStore) service {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	server := httptest.NewServer(api)
	t.Cleanup(func() {
		server.Close()
		goleak.VerifyNone(t, leaks)
	})
	var log bytes.Buffer
	h, err := newTicketService(ticketConfig{
		// The fake server reads JSON; left to itself the client may send protobuf.
		REST:  &rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeJSON}},
		Store: store, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.NewJSONHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return service{h, api, &log}
}

// ask sends a request as a shipper does.
func (s service) ask(t *testing.T, change ...func(*http.Request)) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, ticket.Path, nil)
	r.Header.Set("Authorization", "Bearer "+goodToken)
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if cc := w.Header().Get("Cache-Control"); cc != "no-store" {
		t.Errorf("Cache-Control is %q, want no-store", cc)
	}
	return w
}

func authorization(value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", value) }
}

func TestTicketRefusals(t *testing.T) {
	for _, c := range []struct {
		name    string
		world   func(*fakeAPI)
		putErr  error
		signErr error
		request func(*http.Request)
		status  int
		reason  refusal
	}{
		{name: "no header", request: func(r *http.Request) { r.Header.Del("Authorization") }, status: 401, reason: refusedNoToken},
		{name: "another scheme", request: authorization("Basic " + goodToken), status: 401, reason: refusedNoToken},
		{name: "empty token", request: authorization("Bearer  "), status: 401, reason: refusedNoToken},
		{name: "token without scheme", request: authorization(goodToken), status: 401, reason: refusedNoToken},
		{name: "endless token", request: authorization("Bearer " + strings.Repeat("x", maxToken+1)), status: 401, reason: refusedInvalidToken},
		{name: "forged token", request: authorization("Bearer forged"), status: 401, reason: refusedInvalidToken},
		{
			name: "expired, or for another audience", status: 401, reason: refusedInvalidToken,
			world: func(f *fakeAPI) {
				f.review = authenticationv1.TokenReviewStatus{Error: "[token has expired, token audiences are invalid]"}
			},
		},
		{name: "server that knows no audiences", world: func(f *fakeAPI) { f.review.Audiences = nil }, status: 401, reason: refusedWrongAudience},
		{name: "accepted for another audience", world: func(f *fakeAPI) { f.review.Audiences = []string{"https://kubernetes.default.svc"} }, status: 401, reason: refusedWrongAudience},
		{name: "token of a user", world: func(f *fakeAPI) { f.review.User.Username = "team:builder" }, status: 401, reason: refusedNotBound},
		{name: "account without namespace", world: func(f *fakeAPI) { f.review.User.Username = "system:serviceaccount::builder" }, status: 401, reason: refusedNotBound},
		{name: "token bound to nothing", world: func(f *fakeAPI) { f.review.User.Extra = nil }, status: 401, reason: refusedNotBound},
		{name: "no pod UID", world: func(f *fakeAPI) { delete(f.review.User.Extra, podUIDExtra) }, status: 401, reason: refusedNotBound},
		{name: "empty pod UID", world: func(f *fakeAPI) { f.review.User.Extra[podUIDExtra] = authenticationv1.ExtraValue{""} }, status: 401, reason: refusedNotBound},
		{name: "two pods", world: func(f *fakeAPI) { f.review.User.Extra[podNameExtra] = authenticationv1.ExtraValue{"a", "b"} }, status: 401, reason: refusedNotBound},

		{name: "pod gone", world: func(f *fakeAPI) { delete(f.objects, podPath) }, status: 403, reason: refusedNoPod},
		{name: "pod in another namespace", world: func(f *fakeAPI) { f.review.User.Username = "system:serviceaccount:other:builder" }, status: 403, reason: refusedNoPod},
		{name: "another pod of that name", world: func(f *fakeAPI) { f.at(podPath, "metadata")["uid"] = "another" }, status: 403, reason: refusedOtherPod},
		{name: "pod succeeded", world: func(f *fakeAPI) { f.at(podPath, "status")["phase"] = "Succeeded" }, status: 403, reason: refusedFinished},
		{name: "pod failed", world: func(f *fakeAPI) { f.at(podPath, "status")["phase"] = "Failed" }, status: 403, reason: refusedFinished},
		{
			name: "not injected", status: 403, reason: refusedNotInjected,
			world: func(f *fakeAPI) {
				spec := f.at(podPath, "spec")
				spec["initContainers"] = spec["initContainers"].([]any)[1:]
			},
		},
		{
			name: "shipper is no init container", status: 403, reason: refusedNotInjected,
			world: func(f *fakeAPI) {
				spec := f.at(podPath, "spec")
				init := spec["initContainers"].([]any)
				spec["initContainers"], spec["containers"] = init[1:], append(spec["containers"].([]any), init[0])
			},
		},
		{name: "no owner", world: func(f *fakeAPI) { delete(f.at(podPath, "metadata"), "ownerReferences") }, status: 403, reason: refusedNotTekton},
		{name: "owner that is not the controller", world: func(f *fakeAPI) { f.ownerRef(podPath)["controller"] = false }, status: 403, reason: refusedNotTekton},
		{name: "owner of another group", world: func(f *fakeAPI) { f.ownerRef(podPath)["apiVersion"] = "tekton.dev.evil.example/v1" }, status: 403, reason: refusedNotTekton},
		{name: "owner of the core group", world: func(f *fakeAPI) { f.ownerRef(podPath)["apiVersion"] = "v1" }, status: 403, reason: refusedNotTekton},
		{name: "owner of another kind", world: func(f *fakeAPI) { f.ownerRef(podPath)["kind"] = "CustomRun" }, status: 403, reason: refusedNotTekton},
		{name: "PipelineRun owns the pod", world: func(f *fakeAPI) { f.ownerRef(podPath)["kind"] = "PipelineRun" }, status: 403, reason: refusedNotTekton},
		{name: "owner's version is a path", world: func(f *fakeAPI) { f.ownerRef(podPath)["apiVersion"] = "tekton.dev/.." }, status: 403, reason: refusedOwnerMismatch},
		{name: "TaskRun gone", world: func(f *fakeAPI) { delete(f.objects, taskRunPath) }, status: 403, reason: refusedOwnerMismatch},
		{name: "another TaskRun of that name", world: func(f *fakeAPI) { f.at(taskRunPath, "metadata")["uid"] = "another" }, status: 403, reason: refusedOwnerMismatch},
		{name: "owner reference with a forged UID", world: func(f *fakeAPI) { f.ownerRef(podPath)["uid"] = "forged" }, status: 403, reason: refusedOwnerMismatch},
		{name: "PipelineRun gone", world: func(f *fakeAPI) { delete(f.objects, pipelineRunPath) }, status: 403, reason: refusedOwnerMismatch},
		{name: "another PipelineRun of that name", world: func(f *fakeAPI) { f.at(pipelineRunPath, "metadata")["uid"] = "another" }, status: 403, reason: refusedOwnerMismatch},
		{
			name: "UID that is a path", status: 403, reason: refusedOwnerMismatch,
			world: func(f *fakeAPI) {
				f.at(taskRunPath, "metadata")["uid"] = "../x"
				f.ownerRef(podPath)["uid"] = "../x"
				delete(f.at(taskRunPath, "metadata"), "ownerReferences")
			},
		},

		{name: "GET", request: func(r *http.Request) { r.Method = http.MethodGet }, status: 405, reason: refusedMethod},
		{name: "PUT", request: func(r *http.Request) { r.Method = http.MethodPut }, status: 405, reason: refusedMethod},

		{name: "no token review", world: func(f *fakeAPI) { f.status[reviewPath] = 500 }, status: 503, reason: refusedClusterDown},
		{name: "token review not allowed", world: func(f *fakeAPI) { f.status[reviewPath] = 403 }, status: 503, reason: refusedClusterDown},
		{name: "pod cannot be read", world: func(f *fakeAPI) { f.status[podPath] = 500 }, status: 503, reason: refusedClusterDown},
		{name: "TaskRun not allowed", world: func(f *fakeAPI) { f.status[taskRunPath] = 403 }, status: 503, reason: refusedClusterDown},
		{name: "PipelineRun cannot be read", world: func(f *fakeAPI) { f.status[pipelineRunPath] = 500 }, status: 503, reason: refusedClusterDown},
		{name: "store down", putErr: errors.New("no route to store"), status: 503, reason: refusedStoreDown},
		{name: "cannot sign", signErr: errors.New("credentials are gone"), status: 503, reason: refusedStoreDown},
	} {
		t.Run(c.name, func(t *testing.T) {
			api, store := newFakeAPI(), &memoryStore{putErr: c.putErr, signErr: c.signErr}
			if c.world != nil {
				c.world(api)
			}
			if c.request == nil {
				c.request = func(*http.Request) {}
			}
			s := startService(t, api, store)
			w := s.ask(t, c.request)
			var got ticket.Refusal
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatalf("body %q: %v", w.Body, err)
			}
			if w.Code != c.status || got.Reason != string(c.reason) || got.Message == "" {
				t.Errorf("status %d, reason %q, message %q; want %d, %q and a message", w.Code, got.Reason, got.Message, c.status, c.reason)
			}
			if len(store.signed) > 0 {
				t.Errorf("signed %q", store.signed)
			}
			if c.status < 500 && len(store.puts) > 0 {
				t.Errorf("wrote %q", store.puts)
			}
			for header, want := range map[string]bool{"Retry-After": c.status == 503, "Allow": c.status == 405, "WWW-Authenticate": c.status == 401} {
				if has := w.Header().Get(header) != ""; has != want {
					t.Errorf("header %s is there: %v, want %v", header, has, want)
				}
			}
			if n := testutil.ToFloat64(s.refused.WithLabelValues(string(c.reason))); n != 1 {
				t.Errorf("counted %v refusals of that reason, want 1", n)
			}
			if n := testutil.ToFloat64(s.issued); n != 0 {
				t.Errorf("counted %v tickets, want none", n)
			}
			if lines := strings.Count(s.log.String(), "\n"); lines != 1 || !strings.Contains(s.log.String(), string(c.reason)) {
				t.Errorf("want one line in the log, with the reason:\n%s", s.log)
			}
			if strings.Contains(s.log.String()+w.Body.String(), goodToken) {
				t.Error("the token is in the log or in the answer")
			}
		})
	}
}

// TestTicketIsTold: who wants to know hears of each ticket that is given, with the owners, and of no other request.
func TestTicketIsTold(t *testing.T) {
	var told []ownedPod
	store := &memoryStore{}
	s := startService(t, newFakeAPI(), store)
	s.cfg.Issued = func(pod ownedPod) { told = append(told, pod) }
	s.ask(t, authorization("Bearer forged"))
	store.signErr = errors.New("credentials are gone")
	s.ask(t)
	if len(told) != 0 {
		t.Errorf("told of %d tickets that were not given", len(told))
	}
	store.signErr = nil
	s.ask(t)
	if len(told) != 1 || told[0].taskRun.GetUID() != taskRunUID || told[0].pipelineRun.GetUID() != pipelineRunUID {
		t.Errorf("told of %+v, want the pod's owners once", told)
	}
}

func TestTicketServiceDown(t *testing.T) {
	t.Run("API server gone", func(t *testing.T) {
		server := httptest.NewServer(newFakeAPI())
		server.Close()
		h, err := newTicketService(ticketConfig{REST: &rest.Config{Host: server.URL}, Store: &memoryStore{}, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if w := (service{ticketService: h}).ask(t); w.Code != 503 {
			t.Errorf("status %d, want 503", w.Code)
		}
	})
	t.Run("all slots taken", func(t *testing.T) {
		s := startService(t, newFakeAPI(), &memoryStore{})
		for range cap(s.slots) {
			s.slots <- struct{}{}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w := s.ask(t, func(r *http.Request) { *r = *r.WithContext(ctx) })
		if w.Code != 503 || !strings.Contains(w.Body.String(), string(refusedBusy)) {
			t.Errorf("status %d %s, want 503 %s", w.Code, w.Body, refusedBusy)
		}
		for range cap(s.slots) {
			<-s.slots
		}
		if w := s.ask(t); w.Code != 200 {
			t.Errorf("status %d with free slots: %s", w.Code, w.Body)
		}
		if len(s.slots) != 0 {
			t.Errorf("%d slots are taken after the request", len(s.slots))
		}
	})
}

func TestTicketConfig(t *testing.T) {
	good := func() ticketConfig {
		return ticketConfig{REST: &rest.Config{Host: "http://127.0.0.1:1"}, Store: &memoryStore{}, Metrics: prometheus.NewRegistry()}
	}
	for _, c := range []struct {
		name   string
		change func(*ticketConfig)
		ok     bool
	}{
		{"defaults", func(*ticketConfig) {}, true},
		{"no cluster", func(c *ticketConfig) { c.REST = nil }, false},
		{"no store", func(c *ticketConfig) { c.Store = nil }, false},
		{"negative lifetime", func(c *ticketConfig) { c.Lifetime = -1 }, false},
		{"negative size", func(c *ticketConfig) { c.MaxBytes = -1 }, false},
		{"negative concurrency", func(c *ticketConfig) { c.Concurrency = -1 }, false},
		{"negative places", func(c *ticketConfig) { c.Doubtful = -1 }, false},
		{"negative burst", func(c *ticketConfig) { c.Burst = -1 }, false},
		{"negative timeout", func(c *ticketConfig) { c.Timeout = -1 }, false},
		{"two services on one registry", func(c *ticketConfig) {
			if _, err := newTicketService(*c); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good()
			c.change(&cfg)
			h, err := newTicketService(cfg)
			if (err == nil) != c.ok {
				t.Fatalf("error %v, want one: %v", err, !c.ok)
			}
			if err != nil {
				return
			}
			got := h.cfg
			if got.Lifetime != 6*time.Hour || got.MaxBytes != 64<<20 {
				t.Errorf("lifetime %s, largest object %d; want 6h and 64 MiB", got.Lifetime, got.MaxBytes)
			}
		})
	}
}

// The rights of the ClusterRole must be enough: these requests and no others are made, and one look at each object.
func TestTicketRequests(t *testing.T) {
	s := startService(t, newFakeAPI(), &memoryStore{})
	if w := s.ask(t); w.Code != 200 {
		t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
	}
	want := []string{
		"GET " + keysPath, "POST " + reviewPath, "GET " + podPath, "GET " + taskRunPath, "GET " + pipelineRunPath,
		"GET " + namespacePath,
	}
	if !slices.Equal(s.api.requests, want) {
		t.Errorf("requests\n%q, want\n%q", s.api.requests, want)
	}
	if len(s.api.audience) != 1 || !slices.Equal(s.api.audience[0], []string{contract.Audience}) {
		t.Errorf("reviewed for audiences %q, want %q", s.api.audience, contract.Audience)
	}
	if n := testutil.ToFloat64(s.issued); n != 1 {
		t.Errorf("counted %v tickets, want 1", n)
	}
	if log := s.log.String(); strings.Contains(log, goodToken) || strings.Contains(log, "signed-policy") {
		t.Errorf("the log holds a secret:\n%s", log)
	}
}

// TestTicketKnownRuns: what the watch knows is not asked for again, but for what run.json needs, once.
func TestTicketKnownRuns(t *testing.T) {
	api, store := newFakeAPI(), &memoryStore{}
	s := startService(t, api, store)
	known := map[runKey]*runObject{}
	for _, path := range []string{taskRunPath, pipelineRunPath} {
		run := slimOf(&unstructured.Unstructured{Object: api.objects[path]})
		known[runKey{run.owner, run.Namespace, run.Name, run.UID}] = run
	}
	s.cfg.Known = func(k runKey) *runObject { return known[k] }
	for _, want := range [][]string{
		{
			"GET " + keysPath, "POST " + reviewPath, "GET " + podPath, "GET " + pipelineRunPath,
			"GET " + namespacePath,
		},
		{"POST " + reviewPath, "GET " + podPath},
	} {
		api.requests = nil
		if w := s.ask(t); w.Code != 200 {
			t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
		}
		if !slices.Equal(api.requests, want) {
			t.Errorf("requests\n%q, want\n%q", api.requests, want)
		}
	}
	asked := &memoryStore{}
	if w := startService(t, newFakeAPI(), asked).ask(t); w.Code != 200 || !maps.Equal(store.objects, asked.objects) {
		t.Errorf("status %d; stored\n%q, want what is stored where nothing is known:\n%q", w.Code, store.objects, asked.objects)
	}
}

// TestTicketPodBehind: an API server whose memory is a moment old gives no wrong answer.
func TestTicketPodBehind(t *testing.T) {
	before := newFakeAPI().objects[podPath]
	before["metadata"].(object)["uid"] = "44444444-4444-4444-8444-444444444444"
	for name, old := range map[string]object{"not there yet": nil, "the one before it": before} {
		t.Run(name, func(t *testing.T) {
			api := newFakeAPI()
			api.cached = map[string]object{podPath: old}
			s := startService(t, api, &memoryStore{})
			if w := s.ask(t); w.Code != 200 {
				t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
			}
		})
	}
}

func TestTicketBodyIsIgnored(t *testing.T) {
	s := startService(t, newFakeAPI(), &memoryStore{})
	read := false
	w := s.ask(t, func(r *http.Request) {
		r.Body = io.NopCloser(readerFunc(func([]byte) (int, error) { read = true; return 0, io.ErrUnexpectedEOF }))
	})
	if w.Code != 200 || read {
		t.Errorf("status %d, body was read: %v", w.Code, read)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestTicketPrefix(t *testing.T) {
	for _, c := range []struct {
		name   string
		world  func(*fakeAPI)
		prefix string
	}{
		{"of a PipelineRun, whatever the labels say", func(*fakeAPI) {}, podPrefix},
		{"of a TaskRun alone", func(f *fakeAPI) { delete(f.at(taskRunPath, "metadata"), "ownerReferences") },
			"v1/team/_/" + taskRunUID + "/build-7-compile/" + podUID + "/"},
		{"TaskRun controlled by something else", func(f *fakeAPI) { f.ownerRef(taskRunPath)["apiVersion"] = "example.com/v1" },
			"v1/team/_/" + taskRunUID + "/build-7-compile/" + podUID + "/"},
		{"older API version", func(f *fakeAPI) {
			f.ownerRef(podPath)["apiVersion"] = "tekton.dev/v1beta1"
			f.objects[strings.Replace(taskRunPath, "/v1/", "/v1beta1/", 1)] = f.objects[taskRunPath]
			delete(f.objects, taskRunPath)
		}, podPrefix},
		{"pod that is being deleted", func(f *fakeAPI) { f.at(podPath, "metadata")["deletionTimestamp"] = "2026-03-04T05:07:00Z" }, podPrefix},
		{"pod that is pending", func(f *fakeAPI) { f.at(podPath, "status")["phase"] = "Pending" }, podPrefix},
	} {
		t.Run(c.name, func(t *testing.T) {
			api, store := newFakeAPI(), &memoryStore{}
			c.world(api)
			s := startService(t, api, store)
			w := s.ask(t)
			tk, err := ticket.Decode(w.Body.Bytes())
			if w.Code != 200 || err != nil {
				t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
			}
			if tk.Prefix != c.prefix || !slices.Equal(store.signed, []string{c.prefix}) {
				t.Errorf("prefix %q, signed %q, want %q", tk.Prefix, store.signed, c.prefix)
			}
			if tk.MaxBytes != 64<<20 || tk.Expires.Sub(tk.Issued) != 6*time.Hour {
				t.Errorf("%d bytes for %s", tk.MaxBytes, tk.Expires.Sub(tk.Issued))
			}
		})
	}
}

// TestTicketNamespace: run.json says which namespace the run is of. Where that is not known, it
// says nothing, and the ticket is given all the same.
func TestTicketNamespace(t *testing.T) {
	made := func(at string) func(*fakeAPI) {
		return func(f *fakeAPI) { f.at(namespacePath, "metadata")["creationTimestamp"] = at }
	}
	answers := func(status int) func(*fakeAPI) {
		return func(f *fakeAPI) { f.status[namespacePath] = status }
	}
	for _, c := range []struct {
		name   string
		world  func(*fakeAPI)
		want   string
		logged bool
	}{
		{"a PipelineRun's", func(*fakeAPI) {}, namespaceUID, false},
		{"of a TaskRun alone", func(f *fakeAPI) {
			delete(f.at(taskRunPath, "metadata"), "ownerReferences")
		}, namespaceUID, false},
		{"younger by another clock", made("2026-03-04T05:06:08Z"), namespaceUID, false},
		{"made anew since", made("2026-03-04T06:00:00Z"), "", false},
		{"gone", func(f *fakeAPI) { delete(f.objects, namespacePath) }, "", true},
		{"without the right", answers(http.StatusForbidden), "", true},
		{"the API server fails", answers(http.StatusInternalServerError), "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			api, store := newFakeAPI(), &memoryStore{}
			c.world(api)
			s := startService(t, api, store)
			if w := s.ask(t); w.Code != 200 {
				t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
			}
			found := 0
			for key, body := range store.objects {
				if !strings.HasSuffix(key, layout.RunFile) {
					continue
				}
				found++
				run, err := record.Decode[record.Run]([]byte(body))
				if err != nil || run.NamespaceUID != c.want {
					t.Errorf("%q, %v; want %q", run.NamespaceUID, err, c.want)
				}
			}
			if logged := strings.Contains(s.log.String(), "without the UID"); logged != c.logged {
				t.Errorf("it is logged: %t, want %t\n%s", logged, c.logged, s.log)
			}
			if found != 1 {
				t.Errorf("%d run.json, want 1", found)
			}
		})
	}
}

func TestTicketRecordsAreIdempotent(t *testing.T) {
	api, store := newFakeAPI(), &memoryStore{}
	delete(api.objects[pipelineRunPath], "status") // the PipelineRun's tasks are not yet known
	s := startService(t, api, store)
	for range 3 {
		if w := s.ask(t); w.Code != 200 {
			t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
		}
	}
	first := slices.Sorted(maps.Keys(store.objects))
	if got := slices.Sorted(slices.Values(store.puts)); !slices.Equal(got, first) {
		t.Errorf("put %q, want each once: %q", got, first)
	}

	store.puts = nil
	api.mu.Lock()
	api.objects[pipelineRunPath] = newFakeAPI().objects[pipelineRunPath]
	api.mu.Unlock()
	if w := s.ask(t); w.Code != 200 {
		t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
	}
	if want := []string{"v1/team/build-7/" + pipelineRunUID + "/run.json"}; !slices.Equal(store.puts, want) {
		t.Errorf("put %q when the tasks became known, want %q", store.puts, want)
	}

	before := maps.Clone(store.objects)
	again := startService(t, newFakeAPI(), store) // another replica, or this one after a restart
	if w := again.ask(t); w.Code != 200 {
		t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
	}
	if !maps.Equal(before, store.objects) {
		t.Errorf("another replica wrote\n%q, want\n%q", store.objects, before)
	}

	t.Run("written again after a failure", func(t *testing.T) {
		store := &memoryStore{putErr: errors.New("down")}
		s := startService(t, newFakeAPI(), store)
		if w := s.ask(t); w.Code != 503 {
			t.Fatalf("status %d, want 503", w.Code)
		}
		store.putErr = nil
		if w := s.ask(t); w.Code != 200 || !maps.Equal(store.objects, before) {
			t.Errorf("status %d, objects\n%q, want\n%q", w.Code, store.objects, before)
		}
	})
}

func TestTicketsAtOnce(t *testing.T) {
	store := &memoryStore{}
	s := startService(t, newFakeAPI(), store)
	s.cfg.Log = slog.New(slog.DiscardHandler) // the test's buffer is for one at a time
	s.cfg.Burst = 100                         // all are of one pod here
	var group sync.WaitGroup
	for range 100 {
		group.Go(func() {
			if w := s.ask(t); w.Code != 200 {
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
		})
	}
	group.Wait()
	if len(store.signed) != 100 {
		t.Errorf("%d tickets, want 100", len(store.signed))
	}
	if once := slices.Sorted(maps.Keys(store.objects)); !slices.Equal(slices.Sorted(slices.Values(store.puts)), once) {
		t.Errorf("put %q, want each once", store.puts)
	}
}

// heldStore shows the context of each Put, which it holds until it is released.
type heldStore struct {
	memoryStore
	contexts chan context.Context
	release  chan struct{}
}

func (h *heldStore) Put(ctx context.Context, key string, body []byte) error {
	h.contexts <- ctx
	<-h.release
	return h.memoryStore.Put(ctx, key, body)
}

// What is written for several requests does not end with the one that began it, but has an end.
func TestTicketRecordsOutliveARequest(t *testing.T) {
	store := &heldStore{contexts: make(chan context.Context, 100), release: make(chan struct{})}
	s := startService(t, newFakeAPI(), store)
	asked, gone := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // ends when the store is released
		defer close(done)
		s.ask(t, func(r *http.Request) { *r = *r.WithContext(asked) })
	}()
	put := <-store.contexts
	gone()
	if put.Err() != nil {
		t.Errorf("it has ended with the request: %v", put.Err())
	}
	if deadline, ok := put.Deadline(); !ok || time.Until(deadline) > s.cfg.Timeout {
		t.Errorf("its deadline is %v, %v", deadline, ok)
	}
	close(store.release)
	<-done
}

// The whole way on a real store: the ticket works, stays in its prefix, and the log can be found by every index.
func TestTicketOnRealStore(t *testing.T) {
	for _, server := range s3test.Servers {
		t.Run(string(server), func(t *testing.T) {
			cfg := s3test.Start(t, server)
			cfg.Prefix = "team-a/shiplog"
			store, err := objectstore.New(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			s := startService(t, newFakeAPI(), store)
			t.Cleanup(store.Close) // before the service's look for leaks
			w := s.ask(t)
			tk, err := ticket.Decode(w.Body.Bytes())
			if w.Code != 200 || err != nil {
				t.Fatalf("status %d, %v: %s\n%s", w.Code, err, w.Body, s.log)
			}
			if want := "team-a/shiplog/" + podPrefix; tk.Prefix != want {
				t.Fatalf("prefix %q, want %q", tk.Prefix, want)
			}
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			upload := func(tk ticket.Ticket, name string) int {
				t.Helper()
				return s3test.Upload(t, client, tk, name, []byte("a segment"))
			}
			if got := upload(tk, "step-build/x.log.zst"); got != 204 {
				t.Errorf("upload: status %d, want 204", got)
			}
			other := tk
			other.Prefix = strings.Replace(tk.Prefix, podUID, taskRunUID, 1)
			if got := upload(other, "step-build/x.log.zst"); got != 403 {
				t.Errorf("upload for another pod: status %d, want 403", got)
			}

			var keys []string
			for e, err := range store.List(t.Context(), "", "", "", 0) {
				if err != nil {
					t.Fatal(err)
				}
				keys = append(keys, e.Key)
			}
			created := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
			index := layout.RunIndex{Namespace: "team", Created: created, Kind: layout.PipelineRun, Name: "build-7", UID: pipelineRunUID}
			want := []string{
				layout.PodIndexKey("team", "build-7-compile-pod", podUID), index.Key(), layout.UIDIndexKey("team", taskRunUID), layout.UIDIndexKey("team", pipelineRunUID),
				"v1/team/build-7/" + pipelineRunUID + "/run.json", podPrefix + "pod.json", podPrefix + "step-build/x.log.zst",
			}
			slices.Sort(want)
			if !slices.Equal(keys, want) {
				t.Errorf("objects\n%s\nwant\n%s", strings.Join(keys, "\n"), strings.Join(want, "\n"))
			}

			run := layout.Run{Namespace: "team", Name: "build-7", UID: pipelineRunUID}
			for key, want := range map[string]record.Pointer{
				index.Key(): {Run: run},
				layout.UIDIndexKey("team", pipelineRunUID):                {Run: run},
				layout.UIDIndexKey("team", taskRunUID):                    {Run: run, TaskRun: "build-7-compile"},
				layout.PodIndexKey("team", "build-7-compile-pod", podUID): {Run: run, TaskRun: "build-7-compile", PodUID: podUID},
			} {
				if got := load[record.Pointer](t, store, key); got != want {
					t.Errorf("%s holds %+v, want %+v", key, got, want)
				}
			}
			if got := load[record.Run](t, store, run.RunKey()); !got.Created.Equal(created) || !slices.Equal(got.Tasks, []string{"clone", "compile", "report"}) {
				t.Errorf("run.json holds %+v", got)
			}
			if _, err := store.Get(t.Context(), "v1/team/forged/run.json"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a forged name was written: %v", err)
			}
		})
	}
}

func load[T record.Pointer | record.Run | record.Pod](t *testing.T, store *objectstore.Store, key string) T {
	t.Helper()
	r, err := store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	v, err := record.Decode[T](b)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", key, err))
	}
	return v
}
