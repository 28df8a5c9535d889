package dashboard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/access"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	start  = time.Date(2026, 11, 23, 12, 0, 0, 500_000_000, time.UTC)
	run    = layout.Run{Namespace: "ns", Name: "run", UID: "run-uid"}
	pod    = layout.Pod{Run: run, TaskRun: "run-build", PodUID: "pod-uid"}
	retry  = layout.Pod{Run: run, TaskRun: "run-build", PodUID: "retry-uid"}
	silent = layout.Pod{Run: run, TaskRun: "run-silent", PodUID: "silent-uid"}

	password = strings.Repeat("p", MinSecret)
	secret   = strings.Repeat("s", MinSecret)
)

// faulty is a store with faults.
type faulty struct {
	*objectstore.Store
	down atomic.Pointer[string] // a part of the keys that cannot be read or listed
	old  string                 // a part of the keys that the store got long ago
}

func (f *faulty) isDown(key string) error {
	if part := f.down.Load(); part != nil && strings.Contains(key, *part) {
		return fmt.Errorf("read %s: the store is down", key)
	}
	return nil
}

func (f *faulty) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if err := f.isDown(key); err != nil {
		return nil, err
	}
	return f.Store.Get(ctx, key)
}

func (f *faulty) List(ctx context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		if err := f.isDown(prefix); err != nil {
			yield(objectstore.Entry{}, err)
			return
		}
		for e, err := range f.Store.List(ctx, prefix, delimiter, startAfter, limit) {
			if f.old != "" && strings.Contains(e.Key, f.old) {
				e.LastModified = start
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// gone is a Gate of namespaces that are not there any more.
type gone struct{}

func (gone) Present(context.Context, string) (backend.Reach, error) {
	return backend.Reach{All: true}, nil
}

// present is a Gate of a namespace.
type present struct{ namespace backend.Namespace }

func (p present) Present(context.Context, string) (backend.Reach, error) {
	return backend.Reach{Namespace: p.namespace}, nil
}

// world is a real archive, and what a Dashboard asks.
type world struct {
	store  *objectstore.Store
	faulty *faulty
	server *httptest.Server
	log    bytes.Buffer // read it when the server has answered
}

func newWorld(t *testing.T) *world {
	t.Helper()
	store, _ := archivetest.Start(t)
	w := &world{store: store, faulty: &faulty{Store: store, old: "/silent-uid/"}}
	tenants, err := parseTenants(fmt.Appendf(nil, `{"tenants":[
{"name":"team","namespaces":["ns","empty"],"passwordSHA256":"%s","pathSecretSHA256":"%s"},
{"name":"all","namespaces":["*"],"passwordSHA256":"%[1]s"}]}`, sha(password), sha(secret)))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(Base+"/", New(Options{
		Archive: backend.New(w.faulty), Tenants: tenants, Gate: gone{},
		Log: slog.New(slog.NewTextHandler(&w.log, nil)),
	}))
	w.server = httptest.NewServer(mux)
	t.Cleanup(w.server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return w
}

// put stores pods and their containers. Lines of nil are of a container that has a seal alone.
func (w *world) put(t *testing.T) {
	t.Helper()
	step := func(names ...string) (out []record.Container) {
		for _, n := range names {
			out = append(out, record.Container{Name: n, Kind: record.Step, Captured: true})
		}
		return append(out, record.Container{Name: "sidecar-db", Kind: record.Sidecar, Skipped: "its command is only in its image"})
	}
	archivetest.PutRun(t, w.store, record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "run", UID: run.UID, Created: start})
	archivetest.PutPod(t, w.store, pod, record.Pod{PodName: "run-build-pod", TaskRunUID: "taskrun", Created: start, Containers: step(
		"step-plain", "step-mixed", "step-gap", "step-empty", "step-killed", "step-running", "step-waiting", "step-damaged", "step-forged"),
	})
	archivetest.PutPod(t, w.store, retry, record.Pod{PodName: "run-build-pod-retry1", TaskRunUID: "taskrun", Created: start, Containers: step("step-plain")})
	archivetest.PutPod(t, w.store, silent, record.Pod{PodName: "run-silent-pod", TaskRunUID: "other", Created: start, Containers: step("step-plain")})
	for c, lines := range map[layout.Container][]byte{
		{Pod: pod, Container: "step-plain"}: plainLines, {Pod: pod, Container: "step-mixed"}: mixedLines, {Pod: pod, Container: "step-gap"}: gapLines,
		{Pod: pod, Container: "step-empty"}: nil, {Pod: pod, Container: "step-forged"}: forgedLines, {Pod: retry, Container: "step-plain"}: retryLines,
	} {
		archivetest.PutLog(t, w.store, c, lines, 2)
		seal := archivetest.Seal(t, lines)
		if lines == nil {
			seal.Sealed = start.Add(time.Hour)
		}
		archivetest.PutRecord(t, w.store, c.SealKey(), seal)
	}
	killed := layout.Container{Pod: pod, Container: "step-killed"}
	archivetest.PutLog(t, w.store, killed, plainLines, 2)
	seal := archivetest.Seal(t, plainLines)
	seal.End, seal.Exit = record.EndKilled, nil
	archivetest.PutRecord(t, w.store, killed.SealKey(), seal)

	damaged := layout.Container{Pod: pod, Container: "step-damaged"}
	archivetest.PutLog(t, w.store, damaged, plainLines, 2)
	seal = archivetest.Seal(t, plainLines)
	seal.SHA256 = sha("other")
	archivetest.PutRecord(t, w.store, damaged.SealKey(), seal)

	archivetest.PutLog(t, w.store, layout.Container{Pod: pod, Container: "step-running"}, plainLines, 2)
	archivetest.PutLog(t, w.store, layout.Container{Pod: silent, Container: "step-plain"}, plainLines, 2)
}

var (
	plainLines = archivetest.Lines(start, 3, func(i int) string { return fmt.Sprintf("line %d", i+1) })
	retryLines = archivetest.Lines(start, 1, func(int) string { return "again" })
	mixedLines = func() (b []byte) {
		at := func(n int) time.Time { return start.Add(time.Duration(n) * time.Nanosecond) }
		b = criline.Append(b, at(0), criline.Stdout, false, []byte("half "))
		b = criline.Append(b, at(1), criline.Stderr, true, []byte("an error"))
		b = criline.Append(b, at(2), criline.Stdout, true, []byte("::error::done\r"))
		b = criline.Append(b, at(3), criline.Stdout, true, nil)
		b = criline.Append(b, at(4), criline.Stdout, true, []byte("\xff\xfe\x00 not UTF-8"))
		return criline.Append(b, at(5), criline.Stdout, false, []byte("no newline"))
	}()
	gapLines    = withMarker(criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 17})
	forgedLines = withMarker(criline.Marker{Kind: criline.Gap, Reason: "x", Detail: "all is well\n2026-11-23T12:00:00.000000000Z fine"})
)

func withMarker(m criline.Marker) []byte {
	b := criline.Append(nil, start, criline.Stdout, false, []byte("before"))
	b, err := criline.AppendMarker(b, start.Add(time.Second), m)
	if err != nil {
		panic(err)
	}
	return criline.Append(b, start.Add(2*time.Second), criline.Stdout, true, []byte("behind"))
}

// answer is what came of a request.
type answer struct {
	*http.Response
	body string
	err  error // of the body
}

// get asks as the Dashboard's proxy does: without a header, but what the URL's user makes Go's client add.
func (w *world) get(t *testing.T, user, path string) answer {
	t.Helper()
	address := w.server.URL
	if user != "" {
		address = strings.Replace(address, "http://", "http://"+user+"@", 1)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+Base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return answer{res, string(body), err}
}

// TestDocumentedTenants: what docs/reading.md gives as an example is taken.
func TestDocumentedTenants(t *testing.T) {
	text, err := os.ReadFile("../../docs/reading.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "<!-- dashboard-tenants -->\n   ```yaml\n")
	example, _, ok := strings.Cut(rest, "   ```\n")
	if !ok {
		t.Fatal("docs/reading.md has no example of tenants")
	}
	tenants, err := parseTenants([]byte(example))
	if err != nil || len(tenants.tenants) != 1 {
		t.Errorf("%+v, %v:\n%s", tenants, err, example)
	}
}

// stamped is a line as the Dashboard's page takes it apart.
var stamped = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z `)

func TestLogs(t *testing.T) {
	w := newWorld(t)
	w.put(t)
	const (
		t0 = "2026-11-23T12:00:00.500000000Z "
		t1 = "2026-11-23T12:00:01.500000000Z "
		t2 = "2026-11-23T12:00:02.500000000Z "
		th = "2026-11-23T13:00:00.500000000Z "
	)
	plain := t0 + "line 1\n" + t1 + "line 2\n" + t2 + "line 3\n"
	for _, c := range []struct{ name, path, want string }{
		{"all is well", "/ns/run-build-pod/step-plain", plain},
		{"with the Dashboard's times", "/ns/run-build-pod/step-plain?startTime=2026-11-23T12%3A00%3A02Z&completionTime=2026-11-23T12%3A00%3A02Z", plain},
		{"without a parameter", "/ns/run-build-pod/step-plain?", plain},
		{"two streams, pieces, bytes", "/ns/run-build-pod/step-mixed", t0 + "half an error\n2026-11-23T12:00:00.500000002Z ::error::done\r\n2026-11-23T12:00:00.500000003Z \n" +
			"2026-11-23T12:00:00.500000004Z \xff\xfe\x00 not UTF-8\n2026-11-23T12:00:00.500000005Z no newline"},
		{"a retry", "/ns/run-build-pod-retry1/step-plain", t0 + "again\n"},
		{"a gap", "/ns/run-build-pod/step-gap", t0 + "before\n" + t1 + "::warning::shiplog: 17 bytes are missing here (spool-limit)\n" + t2 + "behind\n"},
		{"a marker with a newline", "/ns/run-build-pod/step-forged", t0 + "before\n" + t1 + "::warning::shiplog: 0 bytes are missing here (x: all is well 2026-11-23T12:00:00.000000000Z fine)\n" + t2 + "behind\n"},
		{"nothing printed", "/ns/run-build-pod/step-empty", th + "::notice::shiplog: this log is empty: printed nothing, exit code 0\n"},
		{"killed", "/ns/run-build-pod/step-killed", plain + t2 + "::warning::shiplog: killed: some of its last output may be missing\n"},
		{"running", "/ns/run-build-pod/step-running", plain + t2 + "::warning::shiplog: still running: more will follow\n"},
		{"silent", "/ns/run-silent-pod/step-plain", plain + t2 + "::warning::shiplog: this log is partial: the pod was last heard of at 2026-11-23T12:00:00Z\n"},
		{"not what was sealed", "/ns/run-build-pod/step-damaged", plain + t2 + "::warning::shiplog: the log under v1/ns/run/run-uid/run-build/pod-uid/step-damaged/ is not what was sealed: its SHA-256 is " +
			sha(string(plainLines)) + ", not " + sha("other") + "\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.get(t, "team:"+password, c.path)
			if got.StatusCode != http.StatusOK || got.err != nil {
				t.Fatalf("%s, %v: %s", got.Status, got.err, got.body)
			}
			if diff := cmp.Diff(c.want, got.body); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if h := got.Header.Get("Content-Type"); h != "text/plain; charset=utf-8" {
				t.Errorf("Content-Type %s", h)
			}
		})
	}
	for name, path := range map[string]string{"not started yet": "/ns/run-build-pod/step-waiting", "not captured": "/ns/run-build-pod/sidecar-db"} { // said at the time of the request
		t.Run(name, func(t *testing.T) {
			got := w.get(t, "team:"+password, path)
			line := stamped.ReplaceAllString(got.body, "")
			want := map[string]string{"not started yet": "::notice::shiplog: still running: more will follow\n", "not captured": "::notice::shiplog: not captured: its command is only in its image\n"}[name]
			if got.StatusCode != http.StatusOK || line != want || line == got.body {
				t.Errorf("%s %q, want a time and %q", got.Status, got.body, want)
			}
		})
	}
}

// TestExact: without the times, a log is what was printed.
func TestExact(t *testing.T) {
	w := newWorld(t)
	w.put(t)
	var printed []byte
	for line := range bytes.Lines(mixedLines) {
		l, err := criline.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		printed = append(printed, l.Text...)
		if l.Full {
			printed = append(printed, '\n')
		}
	}
	var got strings.Builder
	for line := range strings.Lines(w.get(t, "team:"+password, "/ns/run-build-pod/step-mixed").body) {
		if !stamped.MatchString(line) {
			t.Errorf("the line %q has no time", line)
		}
		got.WriteString(stamped.ReplaceAllString(line, ""))
	}
	if diff := cmp.Diff(string(printed), got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestFormerNamespace: a Dashboard shows nothing of a namespace that had the name before, also
// where it may show every namespace: it does not say who looks.
func TestFormerNamespace(t *testing.T) {
	w := newWorld(t)
	w.put(t)
	tenants, err := parseTenants(fmt.Appendf(nil,
		`{"tenants":[{"name":"all","namespaces":["*"],"pathSecretSHA256":"%s"}]}`, sha(secret)))
	if err != nil {
		t.Fatal(err)
	}
	madeAt := func(at time.Time) Gate { return present{backend.Namespace{UID: "u", Created: at}} }
	for _, c := range []struct {
		name string
		gate Gate
		want int
	}{
		{"made before the run", madeAt(start.Add(-time.Hour)), 200},
		{"made anew", madeAt(start.Add(time.Hour)), 404},
		{"gone", gone{}, 200},
		{"the API server is away", away{}, 503},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := New(Options{
				Archive: backend.New(w.store), Tenants: tenants, Gate: c.gate,
				Log: slog.New(slog.DiscardHandler),
			})
			got := httptest.NewRecorder()
			path := Base + "/" + secret + "/ns/run-build-pod/step-plain"
			h.ServeHTTP(got, httptest.NewRequest(http.MethodGet, path, nil))
			if got.Code != c.want || c.want == 404 && got.Body.String() != notFound+"\n" {
				t.Errorf("%d %q, want %d", got.Code, got.Body, c.want)
			}
		})
	}
}

// away is a Gate that cannot be asked.
type away struct{}

func (away) Present(context.Context, string) (backend.Reach, error) {
	return backend.Reach{}, errors.New("the API server is away")
}

func TestWhoMayRead(t *testing.T) {
	w := newWorld(t)
	w.put(t)
	const there = "/ns/run-build-pod/step-plain"
	for _, c := range []struct {
		name, user, path string
		want             int
	}{
		{"a name and password", "team:" + password, there, 200},
		{"another's, for every namespace", "all:" + password, there, 200},
		{"a path secret", "", "/" + secret + there, 200},
		{"a path secret, and a password that is wrong", "team:wrong", "/" + secret + there, 200},
		{"nobody", "", there, 401},
		{"a wrong password", "team:" + password + "p", there, 401},
		{"no password", "team:", there, 401},
		{"the path secret as password", "team:" + secret, there, 401},
		{"a name that there is not", "nobody:" + password, there, 401},
		{"a wrong path secret", "", "/" + secret + "s" + there, 404},
		{"the password as path secret", "", "/" + password + there, 404},
		{"a good password and a wrong path secret", "team:" + password, "/wrong" + there, 404},
		{"another's namespace", "team:" + password, "/other/run-build-pod/step-plain", 404},
		{"another's namespace, by path secret", "", "/" + secret + "/other/run-build-pod/step-plain", 404},
		{"a namespace that there is not", "all:" + password, "/none/run-build-pod/step-plain", 404},
		{"one's own namespace without logs", "team:" + password, "/empty/run-build-pod/step-plain", 404},
		{"a pod that there is not", "team:" + password, "/ns/none/step-plain", 404},
		{"a run's name", "team:" + password, "/ns/run/step-plain", 404},
		{"a TaskRun's name", "team:" + password, "/ns/run-build/step-plain", 404},
		{"a container that there is not", "team:" + password, "/ns/run-build-pod/step-none", 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.get(t, c.user, c.path)
			if got.StatusCode != c.want {
				t.Errorf("%s, want %d: %s", got.Status, c.want, got.body)
			}
			// The Dashboard passes it on to browsers, which would ask for a password.
			if challenge := got.Header.Get("WWW-Authenticate"); challenge != "" {
				t.Errorf("WWW-Authenticate: %q", challenge)
			}
			if c.want == 404 && got.body != notFound+"\n" {
				t.Errorf("the answer tells more than another 404: %q", got.body)
			}
		})
	}
	if w.log.Len() > 0 {
		t.Errorf("logged: %s", w.log.String())
	}
}

// TestGuesses: passwords and secrets that are nobody's are bounded by the address that they are from, and a right one is let in all the same.
func TestGuesses(t *testing.T) {
	gate, err := access.New(access.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tenants, err := parseTenants(fmt.Appendf(nil, `{"tenants":[{"name":"team","namespaces":["ns"],"passwordSHA256":"%s","pathSecretSHA256":"%s"}]}`, sha(password), sha(secret)))
	if err != nil {
		t.Fatal(err)
	}
	limits := access.DefaultLimits()
	limits.Failures, limits.Burst = 0, 2
	for _, c := range []struct {
		name, user, password, secret string
		want                         []int
	}{
		{"a wrong password", "team", "wrong", "", []int{401, 401, 429, 429}},
		{"a wrong path secret", "", "", "/wrong", []int{404, 404, 429, 429}},
		{"nothing, which is no guess", "", "", "", []int{401, 401, 401, 401}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := gate.Wrap(limits, New(Options{Tenants: tenants, Log: slog.New(slog.DiscardHandler)}))
			ask := func(user, password, secret string) *httptest.ResponseRecorder {
				r := httptest.NewRequest(http.MethodGet, Base+secret+"/other/pod/step-a", nil) // a namespace that is not the tenant's: the archive is not asked
				if user != "" {
					r.SetBasicAuth(user, password)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				return w
			}
			for i, want := range c.want {
				got := ask(c.user, c.password, c.secret)
				if got.Code != want || (got.Header().Get("Retry-After") != "") != (want == 429) {
					t.Errorf("guess %d: %d, want %d", i, got.Code, want)
				}
			}
			if got := ask("team", password, ""); got.Code != 404 {
				t.Errorf("the right password: %d", got.Code)
			}
			if got := ask("", "", "/"+secret); got.Code != 404 {
				t.Errorf("the right path secret: %d", got.Code)
			}
		})
	}
}

func TestPaths(t *testing.T) {
	for _, path := range []string{
		"", "/", "/ns", "/ns/pod", "/ns/pod/", "//ns/pod/c", "/ns//c", "/ns/pod/c/", "/secret/ns/pod/c/more", "/../ns/pod/c", "/ns/../c", "/ns/pod/..", "/ns/./c", "/ns/pod/%2e%2e", "/ns/pod/..%2Fc", "/ns/pod%2Fother/c",
		"/secret/ns/pod/%00", "/NS/pod/c", "/ns/pod_/c", "/ns/" + strings.Repeat("a", 254) + "/c", "/ns/pod/c%20", "/ns/pod/c\\",
	} {
		if got, err := parsePath(Base + path); err == nil {
			t.Errorf("%q is taken for %+v", path, got)
		}
	}
	for _, path := range []string{"/other/ns/pod/c", "/external-log/ns/pod/c", ""} {
		if got, err := parsePath(path); err == nil {
			t.Errorf("%q is taken for %+v", path, got)
		}
	}
	want := request{secret: "secret", namespace: "ns", pod: "pod.1", container: "step-a"}
	if got, err := parsePath(Base + "/secret/ns/pod.1/step-a"); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	// As it is mounted: the mux sends paths with dots elsewhere, and what is left is refused before the archive or the tenants are asked.
	handler := http.NewServeMux()
	handler.Handle(Base+"/", New(Options{}))
	for path, want := range map[string]int{"/ns/pod": 400, "/ns/pod/..%2Fc": 400, "/ns/pod/%2e%2e": 400, "/ns/../../c": 307, "/NS/pod/c": 400, "/a/b/c/d/e": 400} {
		got := httptest.NewRecorder()
		handler.ServeHTTP(got, httptest.NewRequest(http.MethodGet, Base+path, nil))
		if got.Code != want {
			t.Errorf("%s: %d %s, want %d", path, got.Code, got.Body, want)
		}
	}
	for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		got := httptest.NewRecorder()
		handler.ServeHTTP(got, httptest.NewRequest(method, Base+"/ns/pod/c", nil))
		if got.Code != http.StatusMethodNotAllowed || got.Header().Get("Allow") != "GET" {
			t.Errorf("%s: %d", method, got.Code)
		}
	}
}

func TestStoreIsDown(t *testing.T) {
	for name, part := range map[string]string{"the index": "v1-index/", "the list": "/step-plain/", "the seal": "seal.json"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.put(t)
			w.faulty.down.Store(&part)
			got := w.get(t, "", "/"+secret+"/ns/run-build-pod/step-plain")
			if got.StatusCode != http.StatusServiceUnavailable || got.Header.Get("Retry-After") == "" || strings.Contains(got.body, part) {
				t.Errorf("%s %s", got.Status, got.body)
			}
			w.server.Close()
			if log := w.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "the store is down") || strings.Contains(log, secret) {
				t.Errorf("logged: %s", log)
			}
		})
	}
}

// TestBrokenOff: a body that ends too early does not look whole, and says so itself. The Dashboard's proxy (pkg/utils/proxy.go, commit 01cbf712) logs that it could not copy all, and ends its own answer as if it had: its page shows the last line
// and no error.
func TestBrokenOff(t *testing.T) {
	w := newWorld(t)
	w.put(t)
	segments, _ := archivetest.Segments(t, plainLines, 2)
	part := segments[1].Name()
	w.faulty.down.Store(&part)
	got := w.get(t, "team:"+password, "/ns/run-build-pod/step-plain")
	const t1 = "2026-11-23T12:00:01.500000000Z "
	want := "2026-11-23T12:00:00.500000000Z line 1\n" + t1 + "line 2\n" + t1 + "::error::shiplog: the log breaks off here, since the archive cannot be read now: load it again\n"
	if got.StatusCode != http.StatusOK || !errors.Is(got.err, io.ErrUnexpectedEOF) || got.body != want {
		t.Errorf("%s, %v: %q", got.Status, got.err, got.body)
	}
	w.server.Close()
	if log := w.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "the store is down") || strings.Contains(log, "line 1") {
		t.Errorf("logged: %s", log)
	}
}

// TestMemory: a log is written while it is read. When the first byte of a segment is read, all but the buffer of those before it is with the client.
func TestMemory(t *testing.T) {
	w := newWorld(t)
	const segments, each = 40, 128 << 10
	var lines []byte
	for i := range segments * each / 1024 {
		lines = criline.Append(lines, start.Add(time.Duration(i)), criline.Stdout, true, bytes.Repeat([]byte{'a' + byte(i%26)}, 1023))
	}
	archivetest.PutPod(t, w.store, pod, record.Pod{PodName: "run-build-pod", Containers: []record.Container{{Name: "step-large", Kind: record.Step, Captured: true}}})
	c := layout.Container{Pod: pod, Container: "step-large"}
	archivetest.PutLog(t, w.store, c, lines, each/1024)
	archivetest.PutRecord(t, w.store, c.SealKey(), archivetest.Seal(t, lines))
	client := &countingClient{ResponseRecorder: httptest.NewRecorder()}
	store := &lagging{Store: w.store, client: client}
	tenants, err := parseTenants([]byte(`{"tenants":[{"name":"a","namespaces":["*"],"pathSecretSHA256":"` + sha(secret) + `"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	handler := New(Options{
		Archive: backend.New(store), Tenants: tenants, Gate: gone{}, Log: slog.New(slog.DiscardHandler),
	})
	handler.ServeHTTP(client, httptest.NewRequest(http.MethodGet, Base+"/"+secret+"/ns/run-build-pod/step-large", nil))
	if store.segments != segments || client.got < segments*each {
		t.Errorf("%d segments were read, and %d bytes written", store.segments, client.got)
	}
	if limit := int64(bufferSize + criline.MaxLen); store.most > limit {
		t.Errorf("%d printed bytes were read and not written, more than %d", store.most, limit)
	}
}

// countingClient counts what it is sent, and keeps nothing.
type countingClient struct {
	*httptest.ResponseRecorder
	got int64
}

func (c *countingClient) Write(b []byte) (int, error) {
	c.got += int64(len(b))
	return len(b), nil
}

// lagging finds out how far a client is behind what is read. Segments are asked for ahead of that, by other goroutines, and read by one.
type lagging struct {
	*objectstore.Store
	client         *countingClient
	segments       int
	most, position int64 // printed bytes
}

func (l *lagging) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	object, err := l.Store.Get(ctx, key)
	if k, notOurs := layout.ParseKey(key); err == nil && notOurs == nil && k.Kind == layout.KindSegment {
		object = &laggingObject{ReadCloser: object, of: l, printed: k.Segment.Printed}
	}
	return object, err
}

type laggingObject struct {
	io.ReadCloser
	of      *lagging
	printed int64
	begun   bool
}

func (o *laggingObject) Read(b []byte) (int, error) {
	if l := o.of; !o.begun {
		o.begun = true
		l.segments++
		l.most = max(l.most, l.position-l.client.got)
		l.position += o.printed
	}
	return o.ReadCloser.Read(b)
}
