package page

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	browserlog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/access"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
)

var screenshots = flag.String("screenshots", "", "folder to which the browser's pictures are written")

// browserTime bounds what one looks for on a page. It is long: a test with -race on a busy machine
// looks through 5 million lines in over half a minute.
const browserTime = 2 * time.Minute

// longLines is how many lines the long log has.
const longLines = 5_000_000

var begin = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// site is the page with a real archive behind it, whose readers a real API server knows.
type site struct {
	url   string
	token string // of somebody who may read namespace builds
	store *objectstore.Store
	data  string       // the store's files are somewhere below
	lines atomic.Int64 // requests for lines
	marks atomic.Int64 // and for groups and errors
	away  atomic.Bool  // requests for lines fail
	// instead answers in the place of the page and the API, if it is set.
	instead atomic.Pointer[http.HandlerFunc]
	gone    chan struct{} // of a request for groups and errors, nobody waited for the answer

	mu   sync.Mutex
	logs []string // what was logged
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{data: filepath.Dir(t.TempDir()), gone: make(chan struct{}, 10)}
	s.store, _ = archivetest.Start(t)
	cluster := apiserver.Start(t)
	for _, create := range []func() error{
		func() error {
			_, err := cluster.Core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "builds"}}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := cluster.Core.CoreV1().ServiceAccounts("builds").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "reader"}}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := cluster.Core.RbacV1().Roles("builds").Create(t.Context(), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods/log"}, Verbs: []string{"get"}}}}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := cluster.Core.RbacV1().RoleBindings("builds").Create(t.Context(), &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: "reader"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reader"},
				Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "builds", Name: "reader"}},
			}, metav1.CreateOptions{})
			return err
		},
		func() error {
			r, err := cluster.Core.CoreV1().ServiceAccounts("builds").CreateToken(t.Context(), "reader", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
			if err == nil {
				s.token = r.Status.Token
			}
			return err
		},
	} {
		if err := create(); err != nil {
			t.Fatal(err)
		}
	}
	gate, err := access.New(access.Options{
		Client: cluster.Core, Insecure: true,
		FormerNamespaces: true, // the runs of these tests are older than their namespace
	})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(s, nil))
	archive := backend.New(s.store)
	mux := http.NewServeMux()
	web := New(Options{Archive: archive, Gate: gate, Log: log})
	mux.Handle("/", web)
	mux.Handle(api.Base+"/", api.New(api.Options{Archive: archive, Gate: gate, Log: log}))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if instead := s.instead.Load(); instead != nil {
			(*instead)(w, r)
			return
		}
		if strings.HasPrefix(r.URL.Path, own+"/lines/") {
			s.lines.Add(1)
			if s.away.Load() {
				http.Error(w, `{"error":"the store is away"}`, http.StatusServiceUnavailable)
				return
			}
		}
		if strings.HasPrefix(r.URL.Path, own+"/marks/") {
			s.marks.Add(1)
			defer func() {
				if r.Context().Err() != nil {
					s.gone <- struct{}{}
				}
			}()
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// Write takes what is logged.
func (s *site) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logs = append(s.logs, string(b))
	return len(b), nil
}

// put stores the log of a step.
func (s *site) put(t *testing.T, c layout.Container, lines []byte, code int) {
	t.Helper()
	archivetest.PutLog(t, s.store, c, lines, 0)
	seal := archivetest.Seal(t, lines)
	seal.Exit.Code = code
	archivetest.PutRecord(t, s.store, c.SealKey(), seal)
}

func steps(names ...string) (all []record.Container) {
	for _, n := range names {
		all = append(all, record.Container{Name: "step-" + n, Kind: record.Step, Captured: true})
	}
	return all
}

// hostile is what a step may print to deceive who reads.
var hostile = []string{
	`<script>document.title="owned"</script><img src=x onerror="document.title='owned'">`,
	"\x1b]8;;https://evil.example/\x1b\\a link\x1b]8;;\x1b\\ \x1b]0;title\x07and a title",
	"access \u202enetworg\u202c, and \u2066isolated\u2069",
	"\x1b[30;43m black on yellow \x1b[97;44m white on blue \x1b[0;40m plain on black \x1b[0m",
	"\x1b[2J\x1b[1;1Hcleared \x1b[31mred \x1b[1mbold\x1b[0m plain \x1b[38;2;255;0;128mpink\x1b[0m \x1b[48;5;21mblue\x1b[0m \x1b[",
	"bytes \xff\xfe and \x00 and \b",
}

// fill makes a run as there may be.
func (s *site) fill(t *testing.T) {
	t.Helper()
	archivetest.PutRun(t, s.store, record.Run{
		Kind: layout.PipelineRun, Namespace: "builds", Name: "build-7", UID: "run-7", Created: begin, Pipeline: "build", State: record.Failed, Reason: "Failed", Started: begin, Completed: begin.Add(95 * time.Second),
	})
	run := layout.Run{Namespace: "builds", Name: "build-7", UID: "run-7"}
	clone := layout.Pod{Run: run, TaskRun: "build-7-clone", PodUID: "pod-clone"}
	archivetest.PutPod(t, s.store, clone, record.Pod{PodName: "build-7-clone-pod", PipelineTask: "clone", Created: begin, Containers: steps("git", "quiet")})
	s.put(t, layout.Container{Pod: clone, Container: "step-git"}, archivetest.Lines(begin, len(hostile), func(i int) string { return hostile[i] }), 0)
	s.put(t, layout.Container{Pod: clone, Container: "step-quiet"}, nil, 0)

	build := layout.Pod{Run: run, TaskRun: "build-7-build", PodUID: "pod-build"}
	archivetest.PutPod(t, s.store, build, record.Pod{PodName: "build-7-build-pod", PipelineTask: "build", Created: begin.Add(10 * time.Second), Containers: steps("compile", "lint", "lost")})
	compile := archivetest.Lines(begin.Add(11*time.Second), 1200, func(i int) string {
		switch i + 1 {
		case 100:
			return "::group::Fetch modules"
		case 149:
			return "::endgroup::"
		case 700:
			return "::error file=main.go,line=7::undefined: shipper"
		default:
			return fmt.Sprintf("line %d of \x1b[32mcompile\x1b[0m", i+1)
		}
	})
	compile = criline.Append(compile, begin.Add(time.Hour), criline.Stderr, false, []byte("no newline at the end"))
	s.put(t, layout.Container{Pod: build, Container: "step-compile"}, compile, 2)
	s.put(t, layout.Container{Pod: build, Container: "step-lint"}, archivetest.Lines(begin.Add(14*time.Second), 1, func(int) string { return "Skipping step because a previous step failed" }), 1)
	gap, err := criline.AppendMarker(archivetest.Lines(begin, 2, func(i int) string { return fmt.Sprintf("kept %d", i+1) }), begin.Add(3*time.Second), criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 17})
	if err != nil {
		t.Fatal(err)
	}
	s.put(t, layout.Container{Pod: build, Container: "step-lost"}, append(gap, archivetest.Lines(begin.Add(4*time.Second), 1, func(int) string { return "behind the gap" })...), 0)

	// A run that goes on.
	archivetest.PutRun(t, s.store, record.Run{Kind: layout.PipelineRun, Namespace: "builds", Name: "now-8", UID: "run-8", Created: begin.Add(time.Hour), Pipeline: "build"})
	now := layout.Pod{Run: layout.Run{Namespace: "builds", Name: "now-8", UID: "run-8"}, TaskRun: "now-8-test", PodUID: "pod-now"}
	archivetest.PutPod(t, s.store, now, record.Pod{PodName: "now-8-test-pod", PipelineTask: "test", Created: begin.Add(time.Hour), Containers: steps("unit")})
	archivetest.PutLog(t, s.store, layout.Container{Pod: now, Container: "step-unit"}, archivetest.Lines(begin.Add(time.Hour), 400, func(i int) string { return fmt.Sprintf("test %d ok", i+1) }), 0)

	// A log of 5 million lines. Its segments have the same text.
	archivetest.PutRun(t, s.store, record.Run{Kind: layout.TaskRun, Namespace: "builds", Name: "long", UID: "run-long", Created: begin.Add(2 * time.Hour), State: record.Succeeded, Reason: "Succeeded", Started: begin, Completed: begin.Add(time.Hour)})
	long := layout.Container{Pod: layout.Pod{Run: layout.Run{Namespace: "builds", Name: layout.NoPipelineRun, UID: "run-long"}, TaskRun: "long", PodUID: "pod-long"}, Container: "step-long"}
	archivetest.PutPod(t, s.store, long.Pod, record.Pod{PodName: "long-pod", Created: begin, Containers: steps("long")})
	const each = 50_000
	segments, bodies := archivetest.Segments(t, archivetest.Lines(begin, each, func(i int) string { return fmt.Sprintf("%d of %d lines of a segment", i+1, each) }), 0)
	first := segments[0]
	for i := range int64(longLines / each) {
		x := first
		x.Offset, x.PrintedOffset, x.Line = i*first.Length, i*first.Printed, i*first.Lines
		archivetest.Put(t, s.store, long.SegmentKey(x), bodies[0])
	}
	n := int64(longLines / each)
	archivetest.PutRecord(t, s.store, long.SealKey(), record.Seal{
		Bytes: n * first.Length, Printed: record.Printed{Stdout: n * first.Printed}, Lines: longLines, Segments: n, End: record.EndExited, Exit: &record.Exit{}, First: first.First, Last: first.Last, Sealed: begin.Add(time.Hour),
	})
}

// browser is a real Chromium.
type browser struct {
	*testing.T
	ctx context.Context
	s   *site
}

func newBrowser(t *testing.T, s *site) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("NOT TESTED in a browser: %v", err)
		}
		t.Skipf("NOT TESTED in a browser: %v (install Debian's package chromium)", err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.WindowSize(1280, 900), chromedp.UserDataDir(t.TempDir()))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium's own sandbox does not run as root
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(allocator, chromedp.WithErrorf(func(string, ...any) {})) // of messages that a newer browser sends
	b := &browser{t, ctx, s}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	// Whatever the page's script does wrong is an error, and so is what the policy forbids.
	var listeners sync.WaitGroup
	exceptions, entries := chromedp.Events(ctx, runtime.ExceptionThrown), chromedp.Events(ctx, browserlog.EntryAdded)
	listeners.Go(func() {
		for e, err := range exceptions {
			if err != nil {
				return
			}
			t.Errorf("the page's script: %s in line %d: %v", e.ExceptionDetails.Text, e.ExceptionDetails.LineNumber, e.ExceptionDetails.Exception.Description)
		}
	})
	listeners.Go(func() {
		for e, err := range entries {
			if err != nil {
				return
			}
			if e.Entry.Level == "error" && e.Entry.Source != "network" {
				t.Errorf("the browser says: %s: %s", e.Entry.Source, e.Entry.Text)
			}
		}
	})
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("end the browser: %v", err)
		}
		end()
		listeners.Wait()
	})
	return b
}

// run runs an action within browserTime.
func run[T any](b *browser, action chromedp.Action[T]) T {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserTime)
	defer cancel()
	result, err := chromedp.Run(ctx, action)
	if err != nil {
		text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("location + '\\n' + document.body.innerText")) // only explains
		b.Fatalf("%v; the page:\n%.4000s", err, text)
	}
	return result
}

// do runs actions.
func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	for _, a := range actions {
		run(b, a)
	}
}

// until waits until a JavaScript expression is true.
func (b *browser) until(what, expression string) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, browserTime)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool]("!!("+expression+")", chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(browserTime))); err != nil {
		text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("location + '\\n' + document.body.innerText")) // only explains
		b.Fatalf("%s: %v; the page:\n%.4000s", what, err, text)
	}
}

// evaluate returns what a JavaScript expression is.
func evaluate[T any](b *browser, expression string) T {
	b.Helper()
	return run(b, chromedp.Evaluate[T](expression))
}

func (b *browser) text(selector string) string {
	b.Helper()
	return evaluate[string](b, fmt.Sprintf(`[...document.querySelectorAll(%q)].map((e) => e.innerText).join("\n")`, selector))
}

// open goes to a page, and waits until it is there.
func (b *browser) open(path string) {
	b.Helper()
	b.do(chromedp.Navigate("about:blank"), chromedp.Navigate(b.s.url+path), chromedp.WaitVisible("main"))
}

// picture keeps what is seen, if that is asked for.
func (b *browser) picture(name string) {
	b.Helper()
	png := run(b, chromedp.CaptureScreenshot())
	if len(png) < 1000 {
		b.Errorf("the picture %s has %d bytes", name, len(png))
	}
	if *screenshots != "" {
		if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), png, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

func (b *browser) login() {
	b.Helper()
	b.do(chromedp.WaitVisible("#login"), chromedp.SetValue(`#login input[name="token"]`, b.s.token), chromedp.Click("#login button"), chromedp.WaitVisible("header form"))
}

// TestBrowser reads logs as a person does, in a real Chromium.
func TestBrowser(t *testing.T) {
	s := newSite(t)
	s.fill(t)
	b := newBrowser(t, s)
	part := func(name string, f func(b *browser)) {
		if !t.Run(name, func(t *testing.T) { f(&browser{t, b.ctx, s}) }) && name == "login" {
			t.FailNow() // nobody can see the rest
		}
	}

	part("login", func(b *browser) {
		b.do(chromedp.Navigate(s.url+"/ui/builds/run-7#step=build/compile&L=3-4"), chromedp.WaitVisible("#login"))
		b.picture("login")
		b.readable("login")
		b.do(chromedp.SetValue(`#login input[name="token"]`, "not-a-token"), chromedp.Click("#login button"), chromedp.WaitVisible(".message.bad"))
		if text := b.text(".message.bad"); !strings.Contains(text, "token") || strings.Contains(text, "not-a-token") {
			b.Errorf("a wrong token: %q", text)
		}
		b.login()
		// One is where one wanted to go, with the lines that the fragment names.
		b.until("the lines of the address", `document.querySelectorAll(".row.picked:not(.waiting)").length === 2`)
		if text := b.text(".row.picked"); !strings.Contains(text, "line 3 of compile") || !strings.Contains(text, "line 4 of compile") {
			b.Errorf("picked: %q", text)
		}
		if cookies := evaluate[string](b, "document.cookie"); cookies != "" {
			b.Errorf("a script can read the cookie %q", cookies)
		}
	})

	part("namespaces and runs", func(b *browser) {
		b.open("/")
		if text := b.text(".list"); text != "builds" {
			b.Errorf("namespaces: %q", text)
		}
		b.do(chromedp.Click(".list a"), chromedp.WaitVisible(".runs"))
		if text := b.text(".runs tbody tr td:first-child"); text != "long TaskRun\nnow-8\nbuild-7" {
			b.Errorf("runs: %q", text)
		}
		b.picture("runs")
		b.readable("runs")
		b.do(chromedp.SetValue(`.filter select`, "failed"), chromedp.Click(".filter button"), chromedp.WaitReady(`.filter option[selected]`))
		if text := b.text(".runs tbody tr td:first-child"); text != "build-7" {
			b.Errorf("failed runs: %q", text)
		}
	})

	part("tree", func(b *browser) {
		b.open("/ui/builds/run-7")
		text := b.text("#run")
		for _, want := range []string{"build-7", "failed", "clone", "git", "printed nothing, exit code 0", "exit 2", "gaps", "took 1m 35s"} {
			if !strings.Contains(text, want) {
				b.Errorf("the tree lacks %q:\n%s", want, text)
			}
		}
		b.picture("tree")
		b.readable("tree")
	})

	part("hostile text", func(b *browser) {
		b.open("/ui/builds/run-7#step=clone/git")
		b.until("the log", `document.querySelectorAll(".row:not(.waiting)").length >= 6`)
		text := b.text(".row .text")
		for _, want := range []string{hostile[0], "a link and a title", "U+202E", "U+2066", "cleared red bold plain pink blue ESC[", "bytes \ufffd\ufffd and NUL and BS"} {
			if !strings.Contains(text, want) {
				b.Errorf("the log lacks %q:\n%q", want, text)
			}
		}
		title := evaluate[string](b, "document.title")
		links := evaluate[int](b, `document.querySelectorAll(".row .text a, .row .text img, .row .text script").length`)
		colour := evaluate[int](b, `[...document.querySelectorAll(".row .text span")].filter((e) => getComputedStyle(e).color === "rgb(255, 0, 128)").length`)
		if title == "owned" || strings.Contains(title, "title") || links != 0 || colour != 1 {
			b.Errorf("title %q, %d elements that the log has made, %d in the colour that it asked for", title, links, colour)
		}
		b.picture("hostile")
		b.readable("hostile")
	})

	part("failed step, first error, groups", func(b *browser) {
		b.open("/ui/builds/run-7")
		b.do(chromedp.Click("#go-failed"))
		b.until("the end of the step that failed", `[...document.querySelectorAll(".row .text")].some((e) => e.innerText === "no newline at the end")`)
		b.picture("failed")
		b.readable("failed")
		b.do(chromedp.Click("#go-error"))
		b.until("the first error", `document.querySelector(".row.picked.error")?.innerText.includes("undefined: shipper")`)
		if hash := evaluate[string](b, "location.hash"); hash != "#step=build/compile&L=700" {
			b.Errorf("the address ends with %q", hash)
		}
		evaluate[string](b, `location.hash = "#step=build/compile&L=99"`)
		b.until("the group", `document.querySelector(".row.group .fold")`)
		b.do(chromedp.Click(".row.group .fold"))
		b.until("the lines behind the folded group", `[...document.querySelectorAll(".row .number")].map((e) => e.innerText).join(" ").includes("100 150 151")`)
		b.picture("folded")
		evaluate[string](b, `location.hash = "#step=build/compile&L=120-122"`)
		b.until("folded lines that the address names", `document.querySelectorAll(".row.picked:not(.waiting)").length === 3`)
	})

	part("gap", func(b *browser) {
		b.open("/ui/builds/run-7#step=build/lost")
		b.until("the gap", `document.querySelector(".gap")?.innerText.includes("17 bytes are missing here")`)
	})

	part("keys, times, wrap, dark", func(b *browser) {
		b.open("/ui/builds/run-7#step=build/compile&L=1")
		b.until("the log", `document.querySelector(".row.picked:not(.waiting)")`)
		b.do(chromedp.KeyEvent("t"), chromedp.WaitVisible(".row .time"))
		if text := b.text(".row.picked .time"); text != "12:00:11.000 " && text != "12:00:11.000" {
			b.Errorf("time %q", text)
		}
		b.do(chromedp.KeyEvent("w"))
		b.until("wrapped lines", `getComputedStyle(document.querySelector(".row .text")).whiteSpace.startsWith("pre-wrap") || getComputedStyle(document.querySelector(".row .text")).textWrapMode === "wrap"`)
		b.do(chromedp.Click("#theme"), chromedp.Click("#theme"))
		b.until("the dark theme", `getComputedStyle(document.body).backgroundColor === "rgb(13, 17, 23)"`)
		b.picture("dark")
		b.do(chromedp.KeyEvent("G"))
		b.until("the end", `[...document.querySelectorAll(".row .number")].some((e) => e.innerText === "1201")`)
		b.do(chromedp.KeyEvent("g"))
		b.until("the begin", `[...document.querySelectorAll(".row .number")].some((e) => e.innerText === "1")`)
		if got := run(b, chromedp.Evaluate[string](`fetch(document.querySelector(".logbar a[download]").href).then((r) => r.status + " " + r.headers.get("content-disposition"))`, chromedp.EvalAwaitPromise)); got != `200 attachment; filename="build-7-build-step-compile.log"` {
			b.Errorf("the download is %s", got)
		}
		b.do(chromedp.KeyEvent("k"))
		b.until("the step before", `document.activeElement.closest(".step").dataset.step === "clone/quiet"`)
		b.do(chromedp.KeyEvent("k"), chromedp.KeyEvent("j"), chromedp.KeyEvent(kb.Enter))
		b.until("the step that was opened", `document.activeElement.getAttribute("aria-expanded") === "true" && document.activeElement.closest(".step").dataset.step === "clone/quiet"`)
		b.do(chromedp.KeyEvent("?"), chromedp.WaitVisible("#help"), chromedp.KeyEvent(kb.Escape), chromedp.WaitNotVisible("#help"))
		b.do(chromedp.KeyEvent("w"), chromedp.KeyEvent("t"), chromedp.Click("#theme"))
	})

	part("search", func(b *browser) {
		b.open("/ui/builds/run-7")
		b.do(chromedp.KeyEvent("/"))
		b.until("the focus", `document.activeElement.name === "q"`)
		evaluate[string](b, `document.activeElement.value = ""`) // a key that is only simulated is typed though the page prevents it
		b.do(chromedp.SendKeys(`#search input[type="search"]`, "UNDEFINED: ship"+kb.Enter), chromedp.WaitVisible("#found a"))
		b.until("what was found", `document.querySelector("#found").innerText.includes("1 line in")`)
		if text := b.text("#found .message.bad"); !strings.Contains(text, "Not all could be searched of:") || !strings.Contains(text, "build/step-lost: bytes are missing") {
			b.Errorf("of the log with a gap: %q", text)
		}
		b.picture("search-gaps")
		b.readable("search-gaps")
		b.do(chromedp.Click("#found a"))
		b.until("the line", `document.querySelector(".row.picked.error:not(.waiting)")`)
		b.picture("search")
		b.readable("search")
		b.do(chromedp.SetValue(`#search input[type="search"]`, "(("), chromedp.Click(`#search input[name="regexp"]`), chromedp.Click(`#search button`), chromedp.WaitVisible("#found .bad"))
		if text := b.text("#found .bad"); !strings.Contains(text, "((") {
			b.Errorf("a pattern that is none: %q", text)
		}
	})

	part("live", func(b *browser) {
		b.open("/ui/builds/run-8#step=test/unit")
		b.until("the end so far", `[...document.querySelectorAll(".row:not(.waiting) .number")].some((e) => e.innerText === "400")`)
		c := layout.Container{Pod: layout.Pod{Run: layout.Run{Namespace: "builds", Name: "now-8", UID: "run-8"}, TaskRun: "now-8-test", PodUID: "pod-now"}, Container: "step-unit"}
		all := archivetest.Lines(begin.Add(time.Hour), 900, func(i int) string { return fmt.Sprintf("test %d ok", i+1) })
		more := func(lines, from int) {
			b.Helper()
			before, _ := archivetest.Segments(b.T, firstLines(all, from), 0)
			segments, bodies := archivetest.Segments(b.T, firstLines(all, lines)[before[0].Length:], 0)
			x := segments[0]
			x.Offset, x.PrintedOffset, x.Line = before[0].Length, before[0].Printed, before[0].Lines
			archivetest.Put(b.T, s.store, c.SegmentKey(x), bodies[0])
		}
		more(600, 400)
		b.until("what came", `[...document.querySelectorAll(".row:not(.waiting) .number")].some((e) => e.innerText === "600")`)
		b.picture("live")
		b.readable("live")
		b.do(chromedp.Click(".pause"))
		b.until("the pause", `document.querySelector(".state").innerText === "paused"`)
		asked := s.lines.Load()
		more(700, 600)
		// The tree is asked for again, and tells of the new lines, when the log would have been asked for several times.
		b.until("the tree with what came during the pause", `document.querySelector(".head").innerText.includes("700 lines")`)
		if now := s.lines.Load(); now != asked {
			b.Errorf("%d requests for lines during the pause", now-asked)
		}
		if text := b.text(".row .number"); !strings.HasSuffix(text, "600") {
			b.Errorf("shown during the pause:\n%s", text)
		}
		b.do(chromedp.Click(".pause"))
		b.until("what came during the pause", `[...document.querySelectorAll(".row:not(.waiting) .number")].some((e) => e.innerText === "700")`)
		if s.lines.Load() == asked {
			b.Error("nothing was asked for after the pause")
		}
		more(900, 700)
		seal := archivetest.Seal(b.T, all)
		archivetest.PutRecord(b.T, s.store, c.SealKey(), seal)
		b.until("the end", `[...document.querySelectorAll(".row:not(.waiting) .number")].some((e) => e.innerText === "900")`)
		b.until("the state", `document.querySelector(".step").dataset.status === "verified" && document.querySelector(".pause").hidden`)
	})

	part("5 million lines", func(b *browser) {
		before := s.lines.Load()
		b.open(fmt.Sprintf("/ui/builds/run-long#step=long/long&L=%d", longLines/2))
		b.until("the line", fmt.Sprintf(`document.querySelector(".row.picked:not(.waiting) .number")?.innerText === "%d"`, longLines/2))
		b.do(chromedp.KeyEvent("G"))
		b.until("the end", fmt.Sprintf(`[...document.querySelectorAll(".row:not(.waiting) .number")].some((e) => e.innerText === "%d")`, longLines))
		b.picture("long")
		// Down from the middle, as a wheel does it: each turn moves by a few lines, though a pixel of the scroll bar is a dozen.
		evaluate[float64](b, `document.querySelector(".log").scrollTop = document.querySelector(".log").scrollHeight / 3`)
		const top = `Number(document.querySelector(".row .number").innerText)`
		b.until("lines", fmt.Sprintf(`%s < %d && document.querySelectorAll(".row.waiting").length === 0`, top, longLines/2))
		from := evaluate[int](b, top)
		evaluate[bool](b, `document.querySelector(".log").dispatchEvent(new WheelEvent("wheel", {deltaY: 180, bubbles: true, cancelable: true}))`)
		b.until("the next lines", fmt.Sprintf(`%s > %d && document.querySelectorAll(".row.waiting").length === 0`, top, from))
		to := evaluate[int](b, top)
		if to-from < 5 || to-from > 15 {
			b.Errorf("180 px moved from line %d to %d, want 10 lines", from, to)
		}
		elements := evaluate[int](b, `document.querySelectorAll("*").length`)
		if asked := s.lines.Load() - before; asked > 12 || elements > 2000 {
			b.Errorf("%d requests for lines and %d elements: only what is seen is to be loaded", asked, elements)
		}

		// So many turns of the wheel, and jumps by the scroll bar, one in each frame. How fast that is depends on the machine, so it is only told.
		type frames struct {
			Median, P99, Worst float64
			Rows, Chunks       int
		}
		const scroll = `new Promise((done) => {
			const view = document.querySelector(".log"), times = [];
			let rows = 0, chunks = 0, last = performance.now();
			const frame = (now) => {
				times.push(now - last);
				last = now;
				rows = Math.max(rows, document.querySelectorAll(".row").length);
				chunks = Math.max(chunks, Number(document.querySelector(".open").dataset.chunks));
				if (times.length > 600) {
					times.sort((a, b) => a - b);
					done({Median: times[300], P99: times[594], Worst: times[600], Rows: rows, Chunks: chunks});
					return;
				}
				if (times.length % 10 === 0) view.scrollTop = view.scrollHeight * times.length / 601;
				else view.dispatchEvent(new WheelEvent("wheel", {deltaY: 700, bubbles: true, cancelable: true}));
				requestAnimationFrame(frame);
			};
			requestAnimationFrame(frame);
		})`
		f := run(b, chromedp.Evaluate[frames](scroll, chromedp.EvalAwaitPromise))
		b.Logf("frames while 5 million lines are scrolled: median %.1f ms, 99 of 100 within %.1f ms, all within %.1f ms; %d rows, %d chunks", f.Median, f.P99, f.Worst, f.Rows, f.Chunks)
		if f.Rows > 100 || f.Chunks > 40 || f.Chunks == 0 {
			b.Errorf("%d rows are drawn, and %d chunks in memory: want no more than 100 and 40", f.Rows, f.Chunks)
		}

		began := time.Now()
		b.do(chromedp.Click("#go-error"))
		b.until("what was found", `document.querySelector(".state").innerText.includes("no line tells of an error")`)
		b.Logf("5 million lines without an error are looked through in %s", time.Since(began).Round(10*time.Millisecond))
		asked := s.marks.Load()
		b.do(chromedp.Click("#go-error"))
		b.until("what was found", `document.querySelector(".state").innerText.includes("no line tells of an error")`)
		if s.marks.Load() != asked {
			b.Error("what is known was looked for again")
		}
		b.do(chromedp.Click(".head"), chromedp.Click(".head"), chromedp.WaitVisible(".log"), chromedp.Click("#go-error"), chromedp.Click(".head"))
		ctx, cancel := context.WithTimeout(b.ctx, browserTime)
		defer cancel()
		select {
		case <-s.gone:
		case <-ctx.Done():
			b.Error("the log is read on though the step was closed")
		}
	})

	part("phone", func(b *browser) {
		b.do(chromedp.EmulateViewport(390, 800, chromedp.EmulateMobile))
		b.open("/ui/builds/run-7#step=build/compile&L=1")
		b.until("the log", `document.querySelector(".row.picked:not(.waiting)")`)
		if wide := evaluate[int](b, "document.documentElement.scrollWidth"); wide > 390 {
			b.Errorf("the page is %d px wide on a phone of 390", wide)
		}
		b.picture("phone")
		b.do(chromedp.EmulateReset())
	})

	part("not found, not allowed", func(b *browser) {
		b.open("/ui/builds/no-such-run")
		if text := b.text("main"); !strings.Contains(text, "Not Found") {
			b.Errorf("a run that is not there: %q", text)
		}
		b.open("/ui/other")
		if text := b.text("main"); !strings.Contains(text, "you may not read") {
			b.Errorf("a namespace that one may not read: %q", text)
		}
	})

	part("logout", func(b *browser) {
		b.open("/ui/builds")
		b.do(chromedp.Click("header form button"), chromedp.WaitVisible("#login"))
		b.do(chromedp.Navigate(s.url+"/ui/builds"), chromedp.WaitVisible("#login"))
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.logs) > 0 {
		t.Errorf("logged: %q", s.logs)
	}
}

// firstLines are so many archive lines.
func firstLines(lines []byte, n int) []byte {
	at := 0
	for range n {
		at += strings.IndexByte(string(lines[at:]), '\n') + 1
	}
	return lines[:at]
}
