// Package page owns the web page: the runs of a namespace, the tree of a run, and its logs. Templates make all but the lines, which viewer.js asks for as they are looked at.
//
// A request's way through it: page.go routes it, sees to the session, and makes pages of errors; runs.go and run.go make the pages, and lines.go answers the viewer. What a log line may look like is decided in ansi.go.
package page

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/turns"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// Base begins the path of every page: contract.Page makes the addresses of runs.
const Base = "/ui"

// own begins what is the page's own: no namespace is called so.
const own = Base + "/-"

// Gate says who may read, and keeps the session.
type Gate interface {
	api.Gate
	// Login begins a session with a token, and Logout ends it.
	Login(w http.ResponseWriter, r *http.Request, token string) error
	Logout(w http.ResponseWriter, r *http.Request) error
}

// Options make a page.
type Options struct {
	Archive *backend.Archive
	Gate    Gate
	Log     *slog.Logger
	// Turns are what searches share, and what looks for marks takes one of, too. nil stands for
	// twice as many as there are processors.
	Turns *turns.Pool
}

type page struct{ Options }

//go:embed static
var static embed.FS

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"bytes": sizeOf, "ago": ago, "lower": strings.ToLower, "took": took, "stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339) }, "base": func() string { return Base }, "own": func() string { return own }, "api": func() string { return api.Base },
}).ParseFS(templateFiles, "templates/*.html"))

// policy lets a page load nothing but its own script and style, and send its forms nowhere else. Log text that became HTML could do nothing.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// maxForm bounds what is posted, in bytes.
const maxForm = 64 << 10

// New makes the handler of every path under Base, and of "/", which leads there.
func New(o Options) http.Handler {
	if o.Turns == nil {
		o.Turns = turns.New(2 * runtime.GOMAXPROCS(0))
	}
	p := &page{o}
	mux := http.NewServeMux()
	handle := func(pattern string, h func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			header(w)
			if err := h(w, r); err != nil {
				p.fail(w, r, err)
			}
		})
	}
	// in asks the gate before anything of the namespace is looked at. What answers has an archive
	// that holds nothing else than who asks may read.
	in := func(pattern string, h func(*page, http.ResponseWriter, *http.Request) error) {
		handle("GET "+pattern, func(w http.ResponseWriter, r *http.Request) error {
			namespace := r.PathValue("namespace")
			if err := layout.CheckName("namespace", namespace); err != nil {
				return &api.Error{Status: http.StatusBadRequest, Message: err.Error()}
			}
			reach, err := p.Gate.Allow(r, namespace)
			if err != nil {
				return err
			}
			within := *p
			within.Archive = p.Archive.Within(reach)
			return h(&within, w, r)
		})
	}
	const container = "/{namespace}/{run}/{uid}/{taskRun}/{pod}/{container}"
	handle("GET /{$}", func(w http.ResponseWriter, r *http.Request) error {
		http.Redirect(w, r, Base+"/", http.StatusFound)
		return nil
	})
	handle("GET "+Base+"/{$}", p.namespaces)
	handle("GET "+own+"/login", p.login)
	handle("POST "+own+"/login", p.loggedIn)
	handle("POST "+own+"/logout", p.logout)
	mux.Handle("GET "+own+"/static/", p.files())
	in(own+"/lines"+container, (*page).lines)
	in(own+"/marks"+container, (*page).marks)
	in(Base+"/{namespace}", (*page).runs)
	in(Base+"/{namespace}/{run}", (*page).run)
	handle("/", func(http.ResponseWriter, *http.Request) error {
		return &api.Error{Status: http.StatusNotFound, Message: "there is no such page"}
	})
	return mux
}

func header(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "same-origin") // with no-referrer, browsers do not say where the login form is from (Fetch, 3.1: Origin)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}

// files serves the script and the style.
func (p *page) files() http.Handler {
	files, err := fs.Sub(static, "static")
	if err != nil {
		panic(err) // it is in the binary
	}
	serve := http.StripPrefix(own+"/static/", http.FileServerFS(files))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header(w)
		if strings.HasSuffix(r.URL.Path, "/") { // of which there would be a list
			p.fail(w, r, &api.Error{Status: http.StatusNotFound, Message: "there is no such page"})
			return
		}
		w.Header().Set("Cache-Control", "no-cache") // of the program, and not of a log
		serve.ServeHTTP(w, r)
	})
}

// show makes a page of a template.
func (p *page) show(w http.ResponseWriter, status int, name string, data any) error {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	to := &late{response: w, status: status}
	if err := templates.ExecuteTemplate(to, name, data); err != nil && to.gone == nil {
		if to.sent { // half a page must not look whole
			p.Log.Error("broke a page off", "page", name, "error", err)
			panic(http.ErrAbortHandler)
		}
		return fmt.Errorf("make the page %s: %w", name, err)
	}
	to.end()
	return nil
}

// lateBytes is how much of a page is collected before it is sent.
const lateBytes = 256 << 10

// late sends a page once there is much of it: an error before that is answered with another page.
type late struct {
	response http.ResponseWriter
	status   int
	b        bytes.Buffer
	sent     bool
	gone     error // who asked is
}

func (l *late) Write(b []byte) (int, error) {
	l.b.Write(b)
	if l.b.Len() < lateBytes {
		return len(b), nil
	}
	l.end()
	return len(b), l.gone
}

// end sends what there is.
func (l *late) end() {
	if !l.sent {
		l.sent = true
		l.response.WriteHeader(l.status)
	}
	if l.gone == nil {
		_, l.gone = l.response.Write(l.b.Bytes())
	}
	l.b.Reset()
}

// fail answers with an error: to the viewer as JSON, and otherwise as a page. Who is nobody is led to the login.
func (p *page) fail(w http.ResponseWriter, r *http.Request, err error) {
	if strings.HasPrefix(r.URL.Path, own+"/lines/") || strings.HasPrefix(r.URL.Path, own+"/marks/") {
		api.WriteError(w, r, err, p.Log)
		return
	}
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		return // nobody listens any more
	}
	status, message, known := api.Told(err)
	if !known {
		p.Log.Error("cannot show a page", "path", r.URL.Path, "error", err)
	}
	if status == http.StatusUnauthorized && r.Method == http.MethodGet && r.URL.Path != own+"/login" {
		http.Redirect(w, r, own+"/login?"+url.Values{"next": {r.URL.RequestURI()}}.Encode(), http.StatusFound)
		return
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "5")
	}
	if err := p.show(w, status, "error.html", errorPage{Title: http.StatusText(status), Message: message}); err != nil {
		p.Log.Error("cannot show an error", "error", err)
	}
}

type errorPage struct{ Title, Message string }

type loginPage struct{ Title, Next, Message string }

func (p *page) login(w http.ResponseWriter, r *http.Request) error {
	return p.show(w, http.StatusOK, "login.html", loginPage{"Log in", nextOf(r.URL.Query().Get("next")), ""})
}

// loggedIn begins the session. What is typed is in no answer and no log.
func (p *page) loggedIn(w http.ResponseWriter, r *http.Request) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); errors.Is(err, os.ErrDeadlineExceeded) {
		return &api.Error{Status: http.StatusRequestTimeout, Message: "the form did not come in time: send it again"}
	} else if err != nil {
		return &api.Error{Status: http.StatusBadRequest, Message: "the form cannot be read"}
	}
	next := nextOf(r.PostForm.Get("next"))
	if err := p.Gate.Login(w, r, r.PostForm.Get("token")); err != nil {
		status, message, known := api.Told(err)
		if !known || status != http.StatusUnauthorized {
			return err
		}
		return p.show(w, status, "login.html", loginPage{"Log in", next, message})
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
	return nil
}

func (p *page) logout(w http.ResponseWriter, r *http.Request) error {
	if err := p.Gate.Logout(w, r); err != nil {
		return err
	}
	http.Redirect(w, r, own+"/login", http.StatusSeeOther)
	return nil
}

// nextOf is where somebody goes who has logged in: a page of ours, whatever the address says.
func nextOf(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, Base+"/") || path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") || strings.Contains(address, `\`) {
		return Base + "/"
	}
	return u.String()
}

// sizeOf is a size as people read it.
func sizeOf(n int64) string {
	const k = 1024
	if n < k {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/k, 0
	for f >= k && unit < 4 {
		f, unit = f/k, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[unit])
}

// took is a duration as people read it.
func took(d time.Duration) string {
	switch {
	case d < 0:
		return ""
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm %02ds", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%dh %02dm", int(d.Hours()), int(d.Minutes())%60)
	}
}

// ago is how long ago something was.
func ago(t time.Time) string {
	switch d := time.Since(t); {
	case t.IsZero():
		return ""
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}
