package access

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAPI answers reviews, and injects faults. A token is its user's name; "admin" may read everywhere, everybody else in the namespace of their name.
type fakeAPI struct {
	mu      sync.Mutex
	asked   map[string]int // by the last part of the path
	fault   func(w http.ResponseWriter, r *http.Request) bool
	reviews []authorizationv1.SubjectAccessReviewSpec
	// namespaces have their UIDs, and no others are there. nil stands for all of them.
	namespaces map[string]types.UID
}

// made is when all namespaces were made.
var made = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func (f *fakeAPI) namespace(w http.ResponseWriter, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	uid, ok := f.namespaces[name]
	if f.namespaces == nil {
		uid, ok = types.UID("uid-"+name), true
	}
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		status := apierrors.NewNotFound(corev1.Resource("namespaces"), name).Status()
		_ = json.NewEncoder(w).Encode(status)
		return
	}
	_ = json.NewEncoder(w).Encode(corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, UID: uid, CreationTimestamp: metav1.NewTime(made),
	}})
}

// makeAnew gives a namespace another UID; "" deletes it.
func (f *fakeAPI) makeAnew(name string, uid types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.namespaces = map[string]types.UID{}
	if uid != "" {
		f.namespaces[name] = uid
	}
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]++
	fault := f.fault
	f.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	name, isNamespace := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/")
	switch {
	case isNamespace && r.Method == http.MethodGet:
		f.namespace(w, name)
	case strings.HasSuffix(r.URL.Path, "/tokenreviews"):
		var v authenticationv1.TokenReview
		_ = json.NewDecoder(r.Body).Decode(&v) // the answer tells
		if user, ok := strings.CutPrefix(v.Spec.Token, "good-"); ok {
			v.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: v.Spec.Audiences,
				User: authenticationv1.UserInfo{Username: user, UID: "uid-" + user, Groups: []string{"g"}, Extra: map[string]authenticationv1.ExtraValue{"scopes": {"x"}}}}
			if user == "elsewhere" {
				v.Status.Audiences = []string{"other"}
			}
		}
		_ = json.NewEncoder(w).Encode(v)
	default:
		var v authorizationv1.SubjectAccessReview
		_ = json.NewDecoder(r.Body).Decode(&v)
		f.mu.Lock()
		f.reviews = append(f.reviews, v.Spec)
		f.mu.Unlock()
		v.Status.Allowed = v.Spec.User == "admin" || v.Spec.User == v.Spec.ResourceAttributes.Namespace
		_ = json.NewEncoder(w).Encode(v)
	}
}

func (f *fakeAPI) count(kind string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[kind]
}

func newFake(t *testing.T, o Options) (*fakeAPI, *Gate) {
	t.Helper()
	f := &fakeAPI{asked: map[string]int{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := kubernetes.NewForConfigAndClient(&rest.Config{Host: server.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, &http.Client{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	o.Client = client
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return f, g
}

// inProcess hands requests to a handler, without a connection.
type inProcess struct{ http.Handler }

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	p.ServeHTTP(w, r)
	return w.Result(), nil
}

// newFakeInProcess is newFake for tests with a clock of their own, which does not pass while somebody waits for a real connection.
func newFakeInProcess(t *testing.T, o Options) (*fakeAPI, *Gate) {
	t.Helper()
	f := &fakeAPI{asked: map[string]int{}}
	client, err := kubernetes.NewForConfigAndClient(&rest.Config{Host: "http://api", QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, &http.Client{Transport: inProcess{f}})
	if err != nil {
		t.Fatal(err)
	}
	o.Client = client
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return f, g
}

func request(method string, header ...string) *http.Request {
	r := httptest.NewRequest(method, "https://shiplog.example.com/", nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// status is what the sender is answered.
func status(err error) int {
	var e *Error
	switch {
	case err == nil:
		return 200
	case errors.As(err, &e):
		return e.HTTPStatus()
	default:
		return -1
	}
}

func TestAllow(t *testing.T) {
	proxy := Proxy{From: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, UserHeader: "X-Forwarded-User", GroupsHeader: "X-Forwarded-Groups"} // httptest's address is 192.0.2.1
	for _, c := range []struct {
		name      string
		options   Options
		header    []string
		namespace string
		want      int
	}{
		{"a token", Options{}, []string{"Authorization", "Bearer good-a"}, "a", 200},
		{"in small letters", Options{}, []string{"Authorization", "bearer  good-a "}, "a", 200},
		{"another namespace", Options{}, []string{"Authorization", "Bearer good-a"}, "b", 403},
		{"no token", Options{}, nil, "a", 401},
		{"a bad token", Options{}, []string{"Authorization", "Bearer bad"}, "a", 401},
		{"an empty token", Options{}, []string{"Authorization", "Bearer "}, "a", 401},
		{"a password", Options{}, []string{"Authorization", "Basic Zm9vOmJhcg=="}, "a", 401},
		{"two tokens", Options{}, []string{"Authorization", "Bearer good-a", "Authorization", "Bearer good-b"}, "a", 401},
		{"a token of the right audience", Options{Audiences: []string{"shiplog"}}, []string{"Authorization", "Bearer good-a"}, "a", 200},
		{"a token of another audience", Options{Audiences: []string{"shiplog"}}, []string{"Authorization", "Bearer good-elsewhere"}, "elsewhere", 401},
		{"a session", Options{}, []string{"Cookie", "__Host-shiplog=good-a"}, "a", 200},
		{"a session without TLS", Options{}, []string{"Cookie", "shiplog=good-a"}, "a", 401},
		{"a session without TLS, where that is allowed", Options{Insecure: true}, []string{"Cookie", "shiplog=good-a"}, "a", 200},
		{"two sessions", Options{}, []string{"Cookie", "__Host-shiplog=good-a; __Host-shiplog=good-b"}, "a", 401},
		{"a bad token goes before a session", Options{}, []string{"Authorization", "Bearer bad", "Cookie", "__Host-shiplog=good-a"}, "a", 401},
		{"a proxy", Options{Proxy: proxy}, []string{"X-Forwarded-User", "a"}, "a", 200},
		{"a proxy that is not believed", Options{}, []string{"X-Forwarded-User", "a"}, "a", 401},
		{"a proxy elsewhere", Options{Proxy: Proxy{From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, UserHeader: "X-Forwarded-User"}}, []string{"X-Forwarded-User", "a"}, "a", 401},
		{"a proxy that names two", Options{Proxy: proxy}, []string{"X-Forwarded-User", "a", "X-Forwarded-User", "b"}, "a", 401},
		{"a proxy that names nobody", Options{Proxy: proxy}, []string{"X-Forwarded-User", " "}, "a", 401},
		{"a proxy that names the system", Options{Proxy: proxy}, []string{"X-Forwarded-User", "system:admin"}, "system:admin", 401},
		{"a token goes before a proxy", Options{Proxy: proxy}, []string{"Authorization", "Bearer good-b", "X-Forwarded-User", "a"}, "a", 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, g := newFake(t, c.options)
			_, err := g.Allow(request("GET", c.header...), c.namespace)
			if got := status(err); got != c.want {
				t.Errorf("%d (%v), want %d", got, err, c.want)
			}
		})
	}
}

// TestWhatIsAsked: the API server is asked for exactly who it is, and for pods/log.
func TestWhatIsAsked(t *testing.T) {
	f, g := newFake(t, Options{Proxy: Proxy{From: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, UserHeader: "U", GroupsHeader: "G"}})
	if _, err := g.Allow(request("GET", "Authorization", "Bearer good-a"), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Allow(request("GET", "U", "b", "G", "one, two,system:masters", "G", "two,,three"), "b"); err != nil {
		t.Fatal(err)
	}
	resource := authorizationv1.ResourceAttributes{Namespace: "a", Verb: "get", Version: "v1", Resource: "pods", Subresource: "log"}
	if s := f.reviews[0]; s.User != "a" || s.UID != "uid-a" || !slices.Equal(s.Groups, []string{"g"}) || len(s.Extra["scopes"]) != 1 || *s.ResourceAttributes != resource {
		t.Errorf("asked for %+v", s)
	}
	if s := f.reviews[1].ResourceAttributes.Namespace; s != "" {
		t.Errorf("asked for %q, and not for every namespace", s)
	}
	if s := f.reviews[2]; s.User != "b" || !slices.Equal(s.Groups, []string{"one", "two", "three", "system:authenticated"}) {
		t.Errorf("asked for %+v", s)
	}
}

// TestCache: an answer holds for CacheTime, a no for less, and an error not at all.
func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		yes := true
		var fails error
		g, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		ask := func() (bool, error) {
			a, err := g.ask(t.Context(), g.reviews, "k", deniedTime, func(context.Context) (answer, error) {
				asked++
				return answer{yes: yes}, fails
			})
			return a.yes, err
		}
		expect := func(what string, want bool, count int) {
			t.Helper()
			if got, err := ask(); got != want || err != nil || asked != count {
				t.Errorf("%s: %v, %v, asked %d times; want %v, %d", what, got, err, asked, want, count)
			}
		}
		expect("at first", true, 1)
		yes = false
		time.Sleep(CacheTime - time.Millisecond)
		expect("within the time", true, 1)
		time.Sleep(2 * time.Millisecond)
		expect("behind it", false, 2)
		time.Sleep(deniedTime / 2)
		expect("a no, within its time", false, 2)
		yes = true
		time.Sleep(deniedTime)
		expect("a no, behind it", true, 3)
		time.Sleep(2 * CacheTime)
		fails = errors.New("down")
		if _, err := ask(); err == nil || asked != 4 {
			t.Errorf("%v, asked %d times", err, asked)
		}
		fails = nil
		expect("after an error", true, 5)
	})
}

// TestAskedOnce: many who ask the same at the same time cost one question, and that one of them leaves is nothing to the others.
func TestAskedOnce(t *testing.T) {
	f, g := newFake(t, Options{})
	release, arrived := make(chan struct{}), make(chan struct{}, 100)
	f.fault = func(http.ResponseWriter, *http.Request) bool { arrived <- struct{}{}; <-release; return false }
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() {
		_, err := g.Allow(request("GET", "Authorization", "Bearer good-a").WithContext(ctx), "a")
		first <- err
	}()
	<-arrived
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if _, err := g.Allow(request("GET", "Authorization", "Bearer good-a"), "a"); err != nil {
				t.Error(err)
			}
		})
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who leaves is told %v", err)
	}
	close(release)
	group.Wait()
	// All of the twenty may have come when the first question was answered already.
	if n := f.count("tokenreviews"); n > 2 {
		t.Errorf("asked %d times", n)
	}
}

// TestAPIServerFails: whatever the API server does wrong, nobody gets in, and the sender is not told what it was.
func TestAPIServerFails(t *testing.T) {
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"500":      func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "etcd is on fire", 500); return true },
		"403":      func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "etcd is on fire", 403); return true },
		"garbage":  func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "<html>"); return true },
		"hangs up": func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
		"reviews": func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "subjectaccessreviews") {
				http.Error(w, "etcd is on fire", 500)
				return true
			}
			return false
		},
		"namespaces": func(w http.ResponseWriter, r *http.Request) bool { // as without that right
			if strings.Contains(r.URL.Path, "/namespaces/") {
				http.Error(w, "etcd is on fire", 403)
				return true
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, g := newFake(t, Options{})
			f.fault = fault
			reach, err := g.Allow(request("GET", "Authorization", "Bearer good-a"), "a")
			none := reach == backend.Reach{}
			if !none || status(err) != 503 || strings.Contains(err.Error(), "fire") {
				t.Errorf("%+v, %v", reach, err)
			}
			f.mu.Lock()
			f.fault = nil
			f.mu.Unlock()
			if _, err := g.Allow(request("GET", "Authorization", "Bearer good-a"), "a"); err != nil {
				t.Errorf("when it is back: %v", err)
			}
		})
	}
}

// TestReach: who may read a namespace reads what is in the one of that name now.
func TestReach(t *testing.T) {
	all := backend.Reach{All: true}
	of := func(uid string) backend.Reach {
		return backend.Reach{Namespace: backend.Namespace{UID: uid, Created: made}}
	}
	for _, c := range []struct {
		name         string
		options      Options
		gone         bool
		token        string
		want         backend.Reach
		present      backend.Reach // whoever looks
		namespaces   int           // how often it is asked for, at two requests
		reviewsAsked int
	}{
		{"who may read it", Options{}, false, "good-a", of("uid-a"), of("uid-a"), 1, 2},
		{"who may read all", Options{}, false, "good-admin", all, of("uid-a"), 0, 2},
		{"a namespace that is gone", Options{}, true, "good-a", all, all, 1, 2},
		{
			"where former ones are shown", Options{FormerNamespaces: true}, false, "good-a",
			all, all, 0, 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, g := newFake(t, c.options)
			if c.gone {
				f.makeAnew("a", "")
			}
			for range 2 {
				got, err := g.Allow(request("GET", "Authorization", "Bearer "+c.token), "a")
				if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
					t.Errorf("%v (-want +got):\n%s", err, diff)
				}
			}
			if n := f.count("a"); n != c.namespaces {
				t.Errorf("the namespace was asked for %d times, want %d", n, c.namespaces)
			}
			if n := f.count("subjectaccessreviews"); n != c.reviewsAsked {
				t.Errorf("%d reviews, want %d", n, c.reviewsAsked)
			}
			got, err := g.Present(t.Context(), "a")
			if diff := cmp.Diff(c.present, got); err != nil || diff != "" {
				t.Errorf("whoever looks: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// TestReachAnew: who gets a role in a namespace that was made anew meets no answer about the former
// one, though others have asked for that a moment ago.
func TestReachAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFakeInProcess(t, Options{})
		f.makeAnew("a", "old")
		everybody := false
		f.fault = func(w http.ResponseWriter, r *http.Request) bool {
			if !everybody || !strings.HasSuffix(r.URL.Path, "/subjectaccessreviews") {
				return false
			}
			var v authorizationv1.SubjectAccessReview
			_ = json.NewDecoder(r.Body).Decode(&v)
			v.Status.Allowed = v.Spec.ResourceAttributes.Namespace == "a"
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v)
			return true
		}
		allow := func(who, token, want string) {
			t.Helper()
			got, err := g.Allow(request("GET", "Authorization", "Bearer "+token), "a")
			if got.All || got.Namespace.UID != want || (err == nil) != (want != "") {
				t.Errorf("%s: %+v, %v; want %q", who, got, err, want)
			}
		}
		allow("the former one's people", "good-a", "old")
		allow("who may not", "good-b", "")
		f.makeAnew("a", "new")
		everybody = true
		time.Sleep(deniedTime)
		allow("the former one's people, for a moment", "good-a", "old")
		allow("the new one's people", "good-b", "new")
		if got, err := g.Present(t.Context(), "a"); err != nil || got.Namespace.UID != "new" {
			t.Errorf("whoever looks: %+v, %v", got, err)
		}
		time.Sleep(CacheTime)
		allow("all people", "good-a", "new")
	})
}

func TestAllowed(t *testing.T) {
	f, g := newFake(t, Options{})
	all := []string{"c", "a", "b"}
	for _, c := range []struct {
		token, want string
		asked       int
	}{
		{"good-admin", "c a b", 1},
		{"good-b", "b", 4},
		{"good-none", "", 4},
		{"good-none", "", 0},
	} {
		before := f.count("subjectaccessreviews")
		got, err := g.Allowed(request("GET", "Authorization", "Bearer "+c.token), all)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, %v, want %s", c.token, got, err, c.want)
		}
		if asked := f.count("subjectaccessreviews") - before; asked != c.asked {
			t.Errorf("%s: the API server was asked %d times, want %d", c.token, asked, c.asked)
		}
	}
	before := f.count("subjectaccessreviews")
	if _, err := g.Allowed(request("GET"), nil); status(err) != 401 {
		t.Errorf("nobody is told %v", err)
	}
	if f.count("subjectaccessreviews") != before {
		t.Error("asked for nobody")
	}
}

// TestAllowedAgain: in a list a no holds as long as a yes, and for a namespace alone it is asked again sooner.
func TestAllowedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFakeInProcess(t, Options{})
		r := request("GET", "Authorization", "Bearer good-none")
		asked := func(what string, want int) {
			t.Helper()
			if got := f.count("subjectaccessreviews"); got != want {
				t.Errorf("%s: asked %d times, want %d", what, got, want)
			}
		}
		list := func() {
			t.Helper()
			if _, err := g.Allowed(r, []string{"a", "b"}); err != nil {
				t.Error(err)
			}
		}
		list()
		asked("the first list", 3)
		time.Sleep(2 * deniedTime)
		list()
		asked("a list while a no holds", 3)
		if _, err := g.Allow(r, "a"); status(err) != 403 {
			t.Error(err)
		}
		asked("a namespace alone", 4)
		time.Sleep(CacheTime)
		list()
		asked("a list behind it", 7)
	})
}

// TestListsInTurn: who asks for many lists at the same time has one of them asked for at a time.
func TestListsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFakeInProcess(t, Options{})
		release := make(chan struct{})
		f.fault = func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "subjectaccessreviews") {
				<-release
			}
			return false
		}
		namespaces := func(i int) (n []string) {
			for j := range reviewsAtOnce {
				n = append(n, fmt.Sprintf("ns-%d-%d", i, j))
			}
			return n
		}
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for i := range 5 {
			group.Go(func() {
				_, err := g.Allowed(request("GET", "Authorization", "Bearer good-none").WithContext(ctx), namespaces(i))
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		release <- struct{}{} // the question for all namespaces
		synctest.Wait()
		if got := f.count("subjectaccessreviews"); got != 1+reviewsAtOnce {
			t.Errorf("%d questions at the same time, want %d", got-1, reviewsAtOnce)
		}
		cancel()
		close(release)
		group.Wait()
		if len(g.listing) > 0 {
			t.Errorf("kept: %v", g.listing)
		}
	})
}

// TestManyNamespaces: a list of many does not flood the API server, and leaves what is known of others.
func TestManyNamespaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFakeInProcess(t, Options{})
		other := request("GET", "Authorization", "Bearer good-other")
		if _, err := g.Allow(other, "other"); err != nil {
			t.Fatal(err)
		}
		names := make([]string, 2*reviewBurst)
		for i := range names {
			names[i] = fmt.Sprint("ns-", i)
		}
		before, begun := f.count("subjectaccessreviews"), time.Now()
		if _, err := g.Allowed(request("GET", "Authorization", "Bearer good-none"), names); err != nil {
			t.Fatal(err)
		}
		asked, took := f.count("subjectaccessreviews")-before, time.Since(begun)
		if asked != len(names)+1 || took < reviewBurst*time.Second/reviewRate-time.Second {
			t.Errorf("%d questions in %s", asked, took)
		}
		before = f.count("subjectaccessreviews")
		if _, err := g.Allow(other, "other"); err != nil || f.count("subjectaccessreviews") != before {
			t.Errorf("another user is asked for again: %v", err)
		}
	})
}

func TestSession(t *testing.T) {
	_, g := newFake(t, Options{})
	for _, c := range []struct {
		name, token string
		header      []string
		want        int
	}{
		{"a token", "good-a\n", nil, 200},
		{"from our page", "good-a", []string{"Sec-Fetch-Site", "same-origin", "Origin", "https://shiplog.example.com"}, 200},
		{"from another page", "good-a", []string{"Origin", "https://evil.example.com"}, 403},
		{"from another page that hides where it is", "good-a", []string{"Origin", "null"}, 403},
		{"from another site", "good-a", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"from another host of the site", "good-a", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"a bad token", "bad", nil, 401},
		{"nothing", "", nil, 401},
		{"what would be another cookie", "good-a; Path=/x", nil, 401},
		{"two lines", "good-a\r\nX: y", nil, 401},
		{"a book", strings.Repeat("x", maxToken+1), nil, 401},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			err := g.Login(w, request("POST", c.header...), c.token)
			if status(err) != c.want {
				t.Fatalf("%v, want %d", err, c.want)
			}
			cookies := w.Result().Cookies()
			if err != nil {
				if len(cookies) > 0 {
					t.Errorf("a session all the same: %v", cookies)
				}
				return
			}
			k := cookies[0]
			if !k.HttpOnly || !k.Secure || k.SameSite != http.SameSiteLaxMode || k.Path != "/" || k.Domain != "" || k.MaxAge != int(SessionTime.Seconds()) {
				t.Errorf("the cookie is %v", k)
			}
			r := request("GET")
			r.AddCookie(k)
			if _, err := g.Allow(r, "a"); err != nil {
				t.Errorf("the session is nobody's: %v", err)
			}
			r = request("POST")
			r.AddCookie(k)
			if _, err := g.Allow(r, "a"); status(err) != 401 {
				t.Errorf("the session does more than read: %v", err)
			}
		})
	}
	w := httptest.NewRecorder()
	if err := g.Logout(w, request("POST")); err != nil || w.Result().Cookies()[0].MaxAge >= 0 {
		t.Errorf("%v, %v", err, w.Result().Cookies())
	}
	if err := g.Logout(httptest.NewRecorder(), request("POST", "Sec-Fetch-Site", "cross-site")); status(err) != 403 {
		t.Errorf("another page logs out: %v", err)
	}
}

// TestRealAPIServer: a real API server's roles decide.
func TestRealAPIServer(t *testing.T) {
	api := apiserver.Start(t)
	for _, name := range []string{"mine", "other"} {
		if _, err := api.Core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := api.Core.CoreV1().ServiceAccounts("mine").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "reader"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "logs"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods/log"}, Verbs: []string{"get"}}}}
	if _, err := api.Core.RbacV1().Roles("mine").Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "logs"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "logs"}, Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "mine", Name: "reader"}}}
	if _, err := api.Core.RbacV1().RoleBindings("mine").Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token := func(audiences ...string) string {
		r, err := api.Core.CoreV1().ServiceAccounts("mine").CreateToken(t.Context(), "reader", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Token
	}
	good, elsewhere := token(), token("elsewhere")
	newGate := func(o Options) *Gate {
		o.Client = api.Core
		g, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	expect := func(what string, g *Gate, token, namespace string, want int) {
		t.Helper()
		if _, err := g.Allow(request("GET", "Authorization", "Bearer "+token), namespace); status(err) != want {
			t.Errorf("%s: %v, want %d", what, err, want)
		}
	}
	g := newGate(Options{})
	expect("where there is a role", g, good, "mine", 200)
	expect("where there is none", g, good, "other", 403)
	expect("where there is no namespace", g, good, "nowhere", 403)
	expect("a token for somebody else", g, elsewhere, "mine", 401)
	expect("a token for somebody else, who we are", newGate(Options{Audiences: []string{"elsewhere"}}), elsewhere, "mine", 200)
	expect("what is no token", g, "x.y.z", "mine", 401)
	if got, err := g.Allowed(request("GET", "Authorization", "Bearer "+good), []string{"mine", "other"}); err != nil || !slices.Equal(got, []string{"mine"}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := api.Core.RbacV1().RoleBindings("mine").Delete(t.Context(), "logs", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("without the role, as far as is known", g, good, "mine", 200)
	// The API server's own view of its roles is a moment behind.
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := newGate(Options{}).Allow(request("GET", "Authorization", "Bearer "+good), "mine")
		if status(err) == 403 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("without the role: %v", err)
		}
	}
	if err := api.Core.CoreV1().ServiceAccounts("mine").Delete(t.Context(), "reader", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		_, err := newGate(Options{}).Allow(request("GET", "Authorization", "Bearer "+good), "mine")
		if status(err) == 401 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a token of an account that is gone: %v", err)
		}
	}
}

// TestMadeAnew: with the rights of the manifest, a real API server says which namespace it is,
// when it was deleted and made anew too.
func TestMadeAnew(t *testing.T) {
	api := apiserver.Start(t)
	config := rest.CopyConfig(api.Admin)
	const account = "system:serviceaccount:shiplog-system:shiplog-backend"
	config.Impersonate = rest.ImpersonationConfig{UserName: account}
	asBackend, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	grant(t, api.Core)
	namespaces := api.Core.CoreV1().Namespaces()
	create := func() *corev1.Namespace {
		t.Helper()
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team"}}
		ns, err := namespaces.Create(t.Context(), ns, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
	reach := func() backend.Reach {
		t.Helper()
		g, err := New(Options{Client: asBackend})
		if err != nil {
			t.Fatal(err)
		}
		got, err := g.reach(t.Context(), Identity{User: "reader"}, "team")
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	expect := func(when string, want *corev1.Namespace) {
		t.Helper()
		got := reach()
		if got.All || got.Namespace.UID != string(want.UID) ||
			!got.Namespace.Created.Equal(want.CreationTimestamp.Time) {
			t.Errorf("%s: %+v, want %s of %s", when, got, want.UID, want.CreationTimestamp)
		}
	}
	former := create()
	expect("at first", former)
	if err := namespaces.Delete(t.Context(), "team", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("while it is being deleted", former)
	// As the controller does when nothing is left in it.
	empty, err := namespaces.Get(t.Context(), "team", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	empty.Spec.Finalizers = nil
	if _, err := namespaces.Finalize(t.Context(), empty, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := reach(); !got.All {
		t.Errorf("while there is none: %+v", got)
	}
	anew := create()
	expect("when it was made anew", anew)
	run := record.Run{NamespaceUID: string(former.UID), Created: time.Now().Add(time.Hour)}
	if anew.UID == former.UID || reach().Namespace.Holds(run) {
		t.Error("a run of the former one is the new one's")
	}
}

// grant makes the ClusterRole of manifests/base/backend.yaml, and binds it.
func grant(t *testing.T, core kubernetes.Interface) {
	t.Helper()
	text, err := os.ReadFile("../../manifests/base/backend.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rbac := core.RbacV1()
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "ClusterRole":
			var v rbacv1.ClusterRole
			if err = yaml.UnmarshalStrict([]byte(doc), &v); err == nil {
				_, err = rbac.ClusterRoles().Create(t.Context(), &v, metav1.CreateOptions{})
			}
		case "ClusterRoleBinding":
			var v rbacv1.ClusterRoleBinding
			if err = yaml.UnmarshalStrict([]byte(doc), &v); err == nil {
				_, err = rbac.ClusterRoleBindings().Create(t.Context(), &v, metav1.CreateOptions{})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
