package page

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/access"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// door is a Gate that knows one token, and lets it into one namespace. What the real one does is tested in package access, and with the page in TestBrowser.
type door struct {
	down      bool
	namespace backend.Namespace // what may be read; without a UID all
}

func (d *door) who(r *http.Request) error {
	switch {
	case d.down:
		return errors.New("the API server is away: secret detail")
	case r.Header.Get("Authorization") != "Bearer good":
		return &access.Error{Status: http.StatusUnauthorized, Message: "who are you?"}
	}
	return nil
}

func (d *door) Allow(r *http.Request, namespace string) (backend.Reach, error) {
	if err := d.who(r); err != nil {
		return backend.Reach{}, err
	}
	if namespace != "builds" {
		return backend.Reach{}, &access.Error{
			Status: http.StatusForbidden, Message: "you may not read " + namespace,
		}
	}
	if d.namespace.UID != "" {
		return backend.Reach{Namespace: d.namespace}, nil
	}
	return backend.Reach{All: true}, nil
}

func (d *door) Allowed(r *http.Request, all []string) ([]string, error) { return all, d.who(r) }

func (d *door) Login(w http.ResponseWriter, _ *http.Request, token string) error {
	if token == "guess" {
		return &access.Error{Status: http.StatusTooManyRequests, Message: "too many guesses"}
	}
	if token != "good" {
		return &access.Error{Status: http.StatusUnauthorized, Message: "the token is not valid"}
	}
	return nil
}

func (d *door) Logout(http.ResponseWriter, *http.Request) error { return nil }

// ask sends a request to the page of an archive, as somebody who may read namespace builds.
func ask(
	t *testing.T, h http.Handler, method, path string, form url.Values, header ...string,
) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(form.Encode()))
	r.Header.Set("Authorization", "Bearer good")
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLines(t *testing.T) {
	store, _ := archivetest.Start(t)
	h := New(Options{Archive: backend.New(store), Gate: &door{}, Log: slog.New(slog.DiscardHandler)})
	pod := layout.Pod{Run: layout.Run{Namespace: "builds", Name: "run", UID: "uid"}, TaskRun: "run-t", PodUID: "pod"}
	c := layout.Container{Pod: pod, Container: "step-a"}
	archivetest.PutPod(t, store, pod, record.Pod{PodName: "run-t-pod", Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}}})
	at := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Second) }
	var lines []byte
	lines = criline.Append(lines, at(0), criline.Stdout, true, []byte("::group::Get\x1b[1m modules"))
	lines = criline.Append(lines, at(1), criline.Stderr, false, []byte("half "))
	lines = criline.Append(lines, at(2), criline.Stderr, true, []byte("\x1b[31man error"))
	lines = criline.Append(lines, at(3), criline.Stdout, true, []byte("##[endgroup]"))
	lines, err := criline.AppendMarker(lines, at(4), criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 17})
	if err != nil {
		t.Fatal(err)
	}
	lines = criline.Append(lines, at(5), criline.Stdout, true, []byte("::error title=x::bad"))
	lines = criline.Append(lines, at(6), criline.Stdout, true, []byte(strings.Repeat("é", 5000)))
	lines = criline.Append(lines, at(7), criline.Stdout, false, []byte("open"))
	archivetest.PutLog(t, store, c, lines, 3)
	archivetest.PutRecord(t, store, c.SealKey(), archivetest.Seal(t, lines))

	const path = own + "/lines/builds/run/uid/run-t/pod/step-a"
	got := body(t, ask(t, h, http.MethodGet, path+"?from=1&count=100", nil))
	long := strings.Repeat("é", 4096)
	want := `{"rows":[{"n":1,"at":"2026-11-23T12:00:00Z","k":"group","s":[{"t":"Get"},{"t":" modules","c":"b"}]},` +
		`{"n":2,"at":"2026-11-23T12:00:01Z","s":[{"t":"half "},{"t":"an error","c":"f1"}],"e":true},` +
		`{"n":3,"at":"2026-11-23T12:00:03Z","k":"endgroup","s":[]},` +
		`{"n":4,"at":"2026-11-23T12:00:04Z","k":"error","s":[{"t":"bad"}],"gaps":["17 bytes are missing here (spool-limit)"]},` +
		`{"n":5,"at":"2026-11-23T12:00:06Z","s":[{"t":"` + long + `"}],"cut":1808},` +
		`{"n":6,"at":"2026-11-23T12:00:07Z","s":[{"t":"open"}]}],"lines":5,"status":"gaps","says":"bytes are missing before this (gaps: 1, bytes lost: 17)","bytes":10083}` + "\n"
	if diff := cmp.Diff(strings.ReplaceAll(want, long, "LONG"), strings.ReplaceAll(got, long, "LONG")); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if got := body(t, ask(t, h, http.MethodGet, path+"?from=3&count=1", nil)); !strings.HasPrefix(got, `{"rows":[{"n":3,`) || strings.Count(got, `"n":`) != 1 {
		t.Errorf("one line: %s", got)
	}
	marks := body(t, ask(t, h, http.MethodGet, strings.Replace(path, "/lines/", "/marks/", 1)+"?from=1", nil))
	if want := `{"marks":[{"n":1,"k":"group","at":"2026-11-23T12:00:00Z"},{"n":3,"k":"endgroup","at":"2026-11-23T12:00:03Z"}],"error":4,"likely":2,"lines":5,"status":"gaps"}` + "\n"; marks != want {
		t.Errorf("marks %s, want %s", marks, want)
	}
	for query, want := range map[string]int{"": 400, "?from=0&count=1": 400, "?from=1&count=1001": 400, "?from=x&count=1": 400, "?from=1e9&count=2": 400, "?from=99&count=1": 200} {
		if got := ask(t, h, http.MethodGet, path+query, nil); got.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", query, got.StatusCode, body(t, got), want)
		}
	}
}

// TestFormerNamespace: of a run of a former namespace, no page tells its people's successors more
// than of one that is not there.
func TestFormerNamespace(t *testing.T) {
	store, _ := archivetest.Start(t)
	gate := &door{}
	h := New(Options{Archive: backend.New(store), Gate: gate, Log: slog.New(slog.DiscardHandler)})
	run := archivetest.PutRun(t, store, record.Run{
		Kind: layout.PipelineRun, Namespace: "builds", Name: "former", UID: "former-uid",
		Created: begin,
	})
	p := layout.Pod{Run: run, TaskRun: "former-t", PodUID: "pod"}
	c := layout.Container{Pod: p, Container: "step-a"}
	archivetest.PutPod(t, store, p, record.Pod{
		PodName: "former-t-pod", TaskRunUID: "task-uid", Created: begin,
	})
	lines := archivetest.Lines(begin, 3, func(int) string { return "a secret" })
	archivetest.PutLog(t, store, c, lines, 0)
	archivetest.PutRecord(t, store, c.SealKey(), archivetest.Seal(t, lines))
	const place = "/builds/former/former-uid/former-t/pod/step-a"
	for _, path := range []string{
		"/ui/builds/former", "/ui/builds/former-uid", "/ui/builds/former-t", "/ui/builds/task-uid",
		own + "/lines" + place + "?from=1&count=9", own + "/marks" + place + "?from=1",
		"/ui/builds",
	} {
		t.Run(path, func(t *testing.T) {
			gate.namespace = backend.Namespace{UID: "u", Created: begin.Add(-time.Hour)}
			if r := ask(t, h, http.MethodGet, path, nil); r.StatusCode != 200 {
				t.Errorf("its own people get %d", r.StatusCode)
			}
			gate.namespace = backend.Namespace{UID: "u", Created: begin.Add(time.Hour)}
			r := ask(t, h, http.MethodGet, path, nil)
			text, want := body(t, r), http.StatusNotFound
			other := strings.NewReplacer("former", "absent", "task-uid", "fast-uid").Replace(path)
			absent := ask(t, h, http.MethodGet, other, nil)
			if path == "/ui/builds" {
				want = http.StatusOK
			}
			if r.StatusCode != want || absent.StatusCode != want {
				t.Errorf("%d, and %d of what is not there", r.StatusCode, absent.StatusCode)
			}
			back := strings.NewReplacer("absent", "former", "fast-uid", "task-uid")
			said := back.Replace(body(t, absent))
			if diff := cmp.Diff(said, text); diff != "" {
				t.Errorf("(-what is not there +it):\n%s", diff)
			}
		})
	}
}

func TestAnswers(t *testing.T) {
	store, _ := archivetest.Start(t)
	gate := &door{}
	h := New(Options{Archive: backend.New(store), Gate: gate, Log: slog.New(slog.DiscardHandler)})
	archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "builds", Name: "run", UID: "uid", Created: begin, Pipeline: `<b>"&`})
	for _, c := range []struct {
		name, path string
		status     int
		want       string
	}{
		{"the begin", "/", 302, ""},
		{"namespaces", "/ui/", 200, `href="/ui/builds"`},
		{"runs", "/ui/builds", 200, `&lt;b&gt;&#34;&amp;`},
		{"a run", "/ui/builds/uid", 200, "Nothing of this run is archived yet."},
		{"a run by its name", "/ui/builds/run", 200, `data-uid="uid"`},
		{"no run", "/ui/builds/none", 404, "none"},
		{"another namespace", "/ui/other", 403, "you may not read other"},
		{"another namespace's run", "/ui/other/run", 403, "you may not read other"},
		{"no name", "/ui/UPPER", 400, "namespace"},
		{"dots", "/ui/builds/..%2f..", 404, ""},
		{"a parameter that nobody knows", "/ui/builds?nme=x", 400, "nme"},
		{"a cursor that is none", "/ui/builds?continue=x", 400, "continue"},
		{"no page", "/ui/builds/run/more", 404, "no such page"},
		{"the style", own + "/static/page.css", 200, ".row"},
		{"no list of files", own + "/static/", 404, "no such page"},
		{"no file", own + "/static/../page.go", 307, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := ask(t, h, http.MethodGet, c.path, nil)
			text := body(t, r)
			if r.StatusCode != c.status || !strings.Contains(text, c.want) {
				t.Errorf("%d, want %d and %q:\n%s", r.StatusCode, c.status, c.want, text)
			}
			if strings.HasPrefix(r.Header.Get("Content-Type"), "text/html") && c.status != 302 && c.status != 307 && r.Header.Get("Content-Security-Policy") != policy {
				t.Error("a page without the policy")
			}
		})
	}
	t.Run("nobody is led to the login", func(t *testing.T) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/ui/builds?name=a%26b", nil))
		if got, want := w.Header().Get("Location"), own+"/login?next=%2Fui%2Fbuilds%3Fname%3Da%2526b"; w.Code != 302 || got != want {
			t.Errorf("%d %s, want %s", w.Code, got, want)
		}
		w = httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, own+"/lines/builds/run/uid/t/p/c?from=1&count=1", nil))
		if w.Code != 401 {
			t.Errorf("the viewer gets %d", w.Code)
		}
	})
	t.Run("login", func(t *testing.T) {
		for token, want := range map[string]int{"good": 303, "bad-token": 401, "": 401} {
			r := ask(t, h, http.MethodPost, own+"/login", url.Values{"token": {token}, "next": {"/ui/builds/run#step=a/b&L=1"}})
			text := body(t, r)
			if r.StatusCode != want || token != "" && strings.Contains(text, token) {
				t.Errorf("%q: %d\n%s", token, r.StatusCode, text)
			}
			if want == 303 && r.Header.Get("Location") != "/ui/builds/run#step=a/b&L=1" {
				t.Errorf("to %s", r.Header.Get("Location"))
			}
		}
		if r := ask(t, h, http.MethodPost, own+"/logout", url.Values{}); r.StatusCode != 303 {
			t.Errorf("logout: %d", r.StatusCode)
		}
		if r := ask(t, h, http.MethodPost, own+"/login", url.Values{"token": {strings.Repeat("x", maxForm)}}); r.StatusCode != 400 {
			t.Errorf("a form that is too long: %d", r.StatusCode)
		}
		if r := ask(t, h, http.MethodPost, own+"/login", url.Values{"token": {"guess"}}); r.StatusCode != 429 || r.Header.Get("Retry-After") == "" {
			t.Errorf("too many guesses: %d", r.StatusCode)
		}
		slow := httptest.NewRequest(http.MethodPost, own+"/login", iotest.ErrReader(os.ErrDeadlineExceeded))
		slow.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, slow)
		if w.Code != 408 {
			t.Errorf("a form that does not come in time: %d", w.Code)
		}
	})
	t.Run("the API server is away", func(t *testing.T) {
		gate.down = true
		r := ask(t, h, http.MethodGet, "/ui/builds", nil)
		if text := body(t, r); r.StatusCode != 503 || strings.Contains(text, "secret detail") {
			t.Errorf("%d\n%s", r.StatusCode, text)
		}
	})
}

func TestNext(t *testing.T) {
	for address, want := range map[string]string{
		"/ui/builds":                      "/ui/builds",
		"/ui/builds?name=x#step=a/b&L=1":  "/ui/builds?name=x#step=a/b&L=1",
		"":                                "/ui/",
		"/":                               "/ui/",
		"//evil.example/ui/":              "/ui/",
		"https://evil.example/ui/":        "/ui/",
		"/ui/../../evil":                  "/ui/",
		"/ui//evil.example":               "/ui/",
		`/ui/\evil.example`:               "/ui/",
		"javascript:alert(1)//ui/":        "/ui/",
		"/ui/%0d%0aSet-Cookie:%20a=b":     "/ui/%0D%0ASet-Cookie:%20a=b",
		"/ui/builds\r\nSet-Cookie: a=b":   "/ui/",
		"http:/ui/builds":                 "/ui/",
		"/api/v1/namespaces/builds/runs":  "/ui/",
		"/ui/builds/run#" + "\u202e":      "/ui/builds/run#%E2%80%AE",
		"/ui/-/login?next=/ui/-/login":    "/ui/-/login?next=/ui/-/login",
		"/ui/builds/../builds/run":        "/ui/",
		"/ui/builds/run/":                 "/ui/builds/run/",
		"@evil.example/ui/":               "/ui/",
		"/ui/builds?continue=a%2Fb%3D%3D": "/ui/builds?continue=a%2Fb%3D%3D",
	} {
		if got := nextOf(address); !strings.EqualFold(got, want) {
			t.Errorf("%q leads to %q, want %q", address, got, want)
		}
	}
}

// TestTree: what a run's page says of each state that a log may have.
func TestTree(t *testing.T) {
	run := layout.Run{Namespace: "builds", Name: "run", UID: "uid"}
	pod := layout.Pod{Run: run, TaskRun: "run-t", PodUID: "pod"}
	of := func(name string, c backend.Container) backend.Container {
		c.Name, c.Kind, c.Key = "step-"+name, record.Step, layout.Container{Pod: pod, Container: "step-" + name}
		return c
	}
	tree := &backend.Tree{Run: run, TaskRuns: []backend.TaskRun{{Name: "run-t", PipelineTask: "t", Pods: []backend.Pod{
		{Key: pod, Containers: []backend.Container{
			of("good", backend.Container{Status: backend.Verified, Bytes: 1, Seal: &record.Seal{Exit: &record.Exit{}, First: begin, Last: begin.Add(3 * time.Second)}}),
			of("bad", backend.Container{Status: backend.Verified, Bytes: 1, Seal: &record.Seal{Exit: &record.Exit{Code: 2}}}),
			of("killed", backend.Container{Status: backend.Verified, Bytes: 1, Seal: &record.Seal{End: record.EndKilled}}),
		}},
		{Key: pod, Containers: []backend.Container{
			of("lives", backend.Container{Status: backend.Running, Bytes: 1, LastSeen: begin.Add(time.Minute), Segments: []layout.Segment{{First: begin}}}),
			of("waits", backend.Container{Status: backend.Running, Why: "the image cannot be pulled: ErrImagePull"}),
			of("silent", backend.Container{Status: backend.Partial, Why: "nothing was heard since noon"}),
			of("alone", backend.Container{Status: backend.NotCaptured, Why: "terminal"}),
			of("missed", backend.Container{Status: backend.Missed, Why: "not captured in pod p: quota"}),
		}},
	}}}}
	data := runPageOf(tree, "pipelineruns", begin)
	var got []string
	for _, task := range data.Tasks {
		for _, s := range task.Steps {
			got = append(got, fmt.Sprintf("%s %s failed=%t took=%s empty=%t %s", s.ID, s.Status, s.Failed, took(s.Took), s.Empty, s.Says))
		}
	}
	want := []string{
		"t/good verified failed=false took=3.0s empty=false ",
		"t/bad verified failed=true took= empty=false ",
		"t/killed verified failed=true took= empty=false ",
		"t/lives&retry=1 running failed=false took=1m 00s empty=false still running: more will follow",
		"t/waits&retry=1 running failed=false took= empty=true the image cannot be pulled: ErrImagePull",
		"t/silent&retry=1 partial failed=false took= empty=true this log is partial: nothing was heard since noon",
		"t/alone&retry=1 not captured failed=false took= empty=true not captured: terminal",
		"t/missed&retry=1 missed failed=false took= empty=true " +
			"this log is missing: not captured in pod p: quota",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if data.Failed != "t/bad" || data.Logs != "missed" || len(data.Tasks) != 2 {
		t.Errorf("failed %q, logs %q, %d tasks", data.Failed, data.Logs, len(data.Tasks))
	}
}

// TestLogs: what the run's page says of all its logs together.
func TestLogs(t *testing.T) {
	of := func(kind record.ContainerKind, status backend.Status, bytes int64) backend.Container {
		return backend.Container{Name: "c", Kind: kind, Status: status, Bytes: bytes}
	}
	for _, c := range []struct {
		name string
		all  []backend.Container
		want string
	}{
		{"nothing", nil, ""},
		{"Tekton's own init container alone", []backend.Container{of(record.Init, backend.Verified, 0)}, ""},
		{"all left alone", []backend.Container{of(record.Step, backend.NotCaptured, 0), of(record.Sidecar, backend.NotCaptured, 0)}, "not captured"},
		{"one left alone, before", []backend.Container{of(record.Step, backend.NotCaptured, 0), of(record.Step, backend.Verified, 1)}, "verified"},
		{"one left alone, behind", []backend.Container{of(record.Step, backend.Verified, 1), of(record.Sidecar, backend.NotCaptured, 0)}, "verified"},
		{"one is missed", []backend.Container{
			of(record.Step, backend.Missed, 0), of(record.Step, backend.Verified, 1),
		}, "missed"},
		{"one runs", []backend.Container{of(record.Step, backend.Verified, 1), of(record.Step, backend.Running, 0)}, "running"},
		{"an init container lost all", []backend.Container{of(record.Init, backend.Damaged, 0), of(record.Step, backend.Verified, 1)}, "damaged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := &backend.Tree{TaskRuns: []backend.TaskRun{{Name: "t", Pods: []backend.Pod{{Containers: c.all}}}}}
			if got := runPageOf(tree, "pipelineruns", begin).Logs; got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestFailed: the failed step is one that made the run fail, and not one that was tried again with success.
func TestFailed(t *testing.T) {
	pod := func(code int) backend.Pod {
		return backend.Pod{Containers: []backend.Container{{Name: "step-s", Kind: record.Step, Status: backend.Verified, Seal: &record.Seal{Exit: &record.Exit{Code: code}}}}}
	}
	for _, c := range []struct {
		name     string
		taskRuns []backend.TaskRun
		want     string
	}{
		{"none", []backend.TaskRun{{Name: "a", Pods: []backend.Pod{pod(0)}}}, ""},
		{"the first of two", []backend.TaskRun{{Name: "a", Pods: []backend.Pod{pod(1)}}, {Name: "b", Pods: []backend.Pod{pod(1)}}}, "a/s"},
		{"behind one that was tried again with success", []backend.TaskRun{{Name: "a", Pods: []backend.Pod{pod(1), pod(0)}}, {Name: "b", Pods: []backend.Pod{pod(1)}}}, "b/s"},
		{"the last try", []backend.TaskRun{{Name: "a", Pods: []backend.Pod{pod(1), pod(1)}}}, "a/s&retry=1"},
		{"a try alone", []backend.TaskRun{{Name: "a", Pods: []backend.Pod{pod(1), pod(0)}}}, "a/s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := &backend.Tree{TaskRuns: c.taskRuns}
			tree.Sort()
			if got := runPageOf(tree, "pipelineruns", begin).Failed; got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestNames: two steps never have the same address.
func TestNames(t *testing.T) {
	for _, c := range []struct {
		name     string
		taskRuns []backend.TaskRun
		want     string
	}{
		{"tasks of a pipeline", []backend.TaskRun{{Name: "r-a", PipelineTask: "a"}, {Name: "r-b", PipelineTask: "b"}}, "a/s b/s"},
		{"a TaskRun alone", []backend.TaskRun{{Name: "r"}}, "r/s"},
		{"a matrix", []backend.TaskRun{{Name: "r-a-0", PipelineTask: "a"}, {Name: "r-b", PipelineTask: "b"}, {Name: "r-a-1", PipelineTask: "a"}}, "r-a-0/s r-a-1/s b/s"},
		{"a task that is called as another's TaskRun", []backend.TaskRun{{Name: "r-a", PipelineTask: "b"}, {Name: "b", PipelineTask: "c"}}, "c/s r-a/s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := &backend.Tree{}
			for _, tr := range c.taskRuns {
				tr.Pods = []backend.Pod{{Containers: []backend.Container{{Name: "step-s", Kind: record.Step}}}}
				tree.TaskRuns = append(tree.TaskRuns, tr)
			}
			tree.Sort()
			var got []string
			for _, task := range runPageOf(tree, "pipelineruns", begin).Tasks {
				got = append(got, task.Steps[0].ID)
			}
			if got := strings.Join(got, " "); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestMarks(t *testing.T) {
	mark := func(n int64, kind string) Mark { return Mark{n, kind, begin.Add(time.Duration(n-1) * time.Second)} }
	many := func(n int, text func(i int) string, more ...string) []byte {
		return archivetest.Lines(begin, n+len(more), func(i int) string {
			if i < n {
				return text(i)
			}
			return more[i-n]
		})
	}
	for _, c := range []struct {
		name  string
		lines []byte
		from  int64
		want  Marks // of which Marks is what is found last
	}{
		{"nothing", many(3, func(int) string { return "fine" }), 1, Marks{Lines: 3}},
		{"groups", many(0, nil, "::group::a", "x", "::endgroup::", "  ##[group]b"), 1, Marks{Marks: []Mark{mark(4, "group")}, Lines: 4}},
		{"from a line on", many(0, nil, "::group::a", "an error", "::endgroup::", "an exception"), 3, Marks{Marks: []Mark{mark(3, "endgroup")}, Likely: 4, Lines: 4}},
		{"a likely error before one that is marked", many(0, nil, "it failed", "::error::bad"), 1, Marks{Likely: 1, Error: 2, Lines: 2}},
		{"a likely error behind one that is marked", many(0, nil, "::error::bad", "it failed"), 1, Marks{Error: 1, Lines: 2}},
		{"an error behind many warnings", many(mostMarks+10, func(int) string { return "::warning::w" }, "::error::bad", "::group::g"), 1, Marks{Marks: []Mark{mark(mostMarks+12, "group")}, Error: mostMarks + 11, Lines: mostMarks + 12}},
		{"an error behind more groups than are kept", many(mostMarks+10, func(int) string { return "::group::g" }, "::error::bad"), 1, Marks{Marks: []Mark{mark(mostMarks, "group")}, More: true, Error: mostMarks + 11, Lines: mostMarks + 11}},
		{"pieces", criline.Append(criline.Append(nil, begin, criline.Stdout, false, []byte("::gr")), begin, criline.Stdout, true, []byte("oup::g")), 1, Marks{Marks: []Mark{mark(1, "group")}, Lines: 1}},
		{"a line that has not ended", criline.Append(nil, begin, criline.Stderr, false, []byte("::error::bad")), 1, Marks{Error: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			store, _ := archivetest.Start(t)
			h := New(Options{Archive: backend.New(store), Gate: &door{}, Log: slog.New(slog.DiscardHandler)})
			k := layout.Container{Pod: layout.Pod{Run: layout.Run{Namespace: "builds", Name: "run", UID: "uid"}, TaskRun: "run-t", PodUID: "pod"}, Container: "step-a"}
			archivetest.PutLog(t, store, k, c.lines, 0)
			archivetest.PutRecord(t, store, k.SealKey(), archivetest.Seal(t, c.lines))
			var got Marks
			if err := json.Unmarshal([]byte(body(t, ask(t, h, http.MethodGet, fmt.Sprintf("%s/marks/builds/run/uid/run-t/pod/step-a?from=%d", own, c.from), nil))), &got); err != nil {
				t.Fatal(err)
			}
			got.Marks = got.Marks[max(0, len(got.Marks)-1):]
			c.want.Status = string(backend.Verified)
			if len(c.want.Marks) == 0 {
				c.want.Marks = []Mark{}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("marks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 << 30: "5.0 GiB"} {
		if got := sizeOf(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-1: "", 0: "0.0s", 9900 * time.Millisecond: "9.9s", 59 * time.Second: "59s", 61 * time.Second: "1m 01s", 25 * time.Hour: "25h 00m"} {
		if got := took(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}
