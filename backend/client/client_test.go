package client

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// open lets everybody in.
type open struct{}

func (open) Allow(*http.Request, string) (backend.Reach, error) {
	return backend.Reach{All: true}, nil
}
func (open) Allowed(_ *http.Request, all []string) ([]string, error) { return all, nil }

// read collects lines.
func read(lines iter.Seq2[backend.Line, error]) (out []backend.Line, errs []error) {
	for l, err := range lines {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.Text = bytes.Clone(l.Text)
		out = append(out, l)
	}
	return out, errs
}

// TestSameAsArchive: who asks the server is told what the archive itself says.
func TestSameAsArchive(t *testing.T) {
	store, _ := archivetest.Start(t)
	run := archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "run", UID: "uid-1", Created: start, Tasks: []string{"build", "test"}})
	pod := func(task, uid string, at int) layout.Pod {
		p := layout.Pod{Run: run, TaskRun: "run-" + task, PodUID: uid}
		archivetest.PutPod(t, store, p, record.Pod{PodName: p.TaskRun + map[string]string{"p1": "-pod", "p2": "-pod-retry1", "p3": "-pod"}[uid], TaskRunUID: "uid-" + task, PipelineTask: task, Created: start.Add(time.Duration(at) * time.Minute),
			Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}, {Name: "step-b", Kind: record.Step, Captured: true}, {Name: "sidecar-x", Kind: record.Sidecar, Skipped: "no-command"}}})
		return p
	}
	build, retry, test := pod("build", "p1", 1), pod("build", "p2", 2), pod("test", "p3", 0)
	long := archivetest.Lines(start, 300, func(i int) string { return fmt.Sprintf("line %d", i) })
	odd := criline.Append(nil, start, criline.Stdout, false, []byte("half \x00\xff"))
	odd = criline.Append(odd, start, criline.Stderr, true, nil)
	odd = criline.Append(odd, start, criline.Stdout, true, []byte(`</script>"\`))
	odd, err := criline.AppendMarker(odd, start, criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 3})
	if err != nil {
		t.Fatal(err)
	}
	odd = criline.Append(odd, start, criline.Stdout, false, []byte("the end"))
	put := func(p layout.Pod, name string, lines []byte, seal func(*record.Seal)) {
		k := layout.Container{Pod: p, Container: name}
		archivetest.PutLog(t, store, k, lines, 40)
		if seal != nil {
			s := archivetest.Seal(t, lines)
			seal(&s)
			archivetest.PutRecord(t, store, k.SealKey(), s)
		}
	}
	as := func(*record.Seal) {}
	put(build, "step-a", long, as)
	put(build, "step-b", odd, as)
	put(retry, "step-a", long, nil)
	put(retry, "step-b", nil, as)
	put(test, "step-a", long, func(s *record.Seal) { s.SHA256 = strings.Repeat("0", 64) })

	archive := backend.New(store)
	server := httptest.NewServer(api.New(api.Options{Archive: archive, Gate: open{}, Log: slog.New(slog.DiscardHandler)}))
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	c, err := New(server.URL+"/", http.DefaultClient)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"run", "uid-1", "run-build", "uid-test"} {
		target, err := archive.Find(t.Context(), "ns", ref)
		if err != nil {
			t.Fatal(err)
		}
		want, err := archive.Tree(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		got, gotTarget, err := c.Tree(t.Context(), "ns", "", ref)
		if err != nil {
			t.Fatal(err)
		}
		ignore := cmp.Options{
			cmpopts.IgnoreUnexported(backend.Container{}, backend.TaskRun{}, backend.Pod{},
				backend.Tree{}),
			cmpopts.IgnoreFields(backend.Container{}, "Segments"),
			cmpopts.IgnoreFields(backend.Tree{}, "At"), cmpopts.IgnoreFields(record.Pod{},
				"TaskRunUID", "Containers"), cmpopts.EquateEmpty(),
		}
		if diff := cmp.Diff(want, got, ignore); diff != "" {
			t.Errorf("%s (-archive +client):\n%s", ref, diff)
		}
		if diff := cmp.Diff(target, gotTarget); diff != "" {
			t.Errorf("%s (-archive +client):\n%s", ref, diff)
		}
		for place := range want.Containers() {
			for _, o := range []backend.LogOptions{{}, {Tail: 7}, {FromLine: 2, ToLine: 5}, {FromByte: 9}, {Since: start.Add(290 * time.Second)}} {
				wantLines, wantErrs := read(archive.Lines(t.Context(), place.Container, o))
				k := place.Container
				gotLines, gotErrs := read(c.Lines(t.Context(), &k, o, false))
				if diff := cmp.Diff(wantLines, gotLines, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("%s %+v (-archive +client):\n%s", place.Container.Key.Prefix(), o, diff)
				}
				if fmt.Sprint(wantErrs) != fmt.Sprint(gotErrs) {
					t.Errorf("%s %+v: errors %v, want %v", place.Container.Key.Prefix(), o, gotErrs, wantErrs)
				}
				if k.Status != place.Container.Status {
					t.Errorf("%s is %s, want %s", place.Container.Key.Prefix(), k.Status, place.Container.Status)
				}
			}
		}
	}
	t.Run("nothing of this name", func(t *testing.T) {
		var notFound *backend.NotFoundError
		for _, ref := range []string{"none", "", "a/b"} {
			if _, _, err := c.Tree(t.Context(), "ns", "", ref); !errors.As(err, &notFound) {
				t.Errorf("%q: %v", ref, err)
			}
		}
		k := backend.Container{Key: layout.Container{Pod: build, Container: "step-none"}}
		if _, errs := read(c.Lines(t.Context(), &k, backend.LogOptions{}, false)); len(errs) != 1 || !errors.Is(errs[0], fs.ErrNotExist) {
			t.Errorf("%v", errs)
		}
	})
	t.Run("runs", func(t *testing.T) {
		for i := range 5 {
			archivetest.PutRun(t, store, record.Run{Kind: layout.TaskRun, Namespace: "many", Name: fmt.Sprint("r", i), UID: fmt.Sprint("u", i), Created: start.Add(time.Duration(i) * time.Hour)})
		}
		for limit, want := range map[int]string{0: "r4 r3 r2 r1 r0", 3: "r4 r3 r2", 5: "r4 r3 r2 r1 r0"} {
			var names []string
			for r, err := range c.Runs(t.Context(), "many", url.Values{}, limit) {
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, r.Name)
			}
			if got := strings.Join(names, " "); got != want {
				t.Errorf("%d: %s, want %s", limit, got, want)
			}
		}
		if names, err := c.Namespaces(t.Context()); err != nil || strings.Join(names, " ") != "many ns" {
			t.Errorf("%v, %v", names, err)
		}
	})
	t.Run("content", func(t *testing.T) {
		r, n, err := c.Content(t.Context(), layout.Container{Pod: build, Container: "step-a"})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil || int64(len(b)) != n || !bytes.HasSuffix(b, []byte("\nline 299\n")) {
			t.Errorf("%d bytes of %d, %v", len(b), n, err)
		}
	})
}

// TestBrokenAnswers: what is not whole is an error, whatever is there of it.
func TestBrokenAnswers(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter){
		"broken off": func(w http.ResponseWriter) {
			fmt.Fprintln(w, `{"line":1,"offset":0,"time":"2026-11-23T12:00:00Z","stream":"stdout","text":"x"}`)
		},
		"in a line":    func(w http.ResponseWriter) { fmt.Fprint(w, `{"line":1,"off`) },
		"nothing":      func(http.ResponseWriter) {},
		"no JSON":      func(w http.ResponseWriter) { fmt.Fprintln(w, `<html>`) },
		"cut off":      func(w http.ResponseWriter) { w.Header().Set("Content-Length", "9999"); fmt.Fprintln(w, `{}`) },
		"another page": func(w http.ResponseWriter) { http.Error(w, "<html>", http.StatusBadGateway) },
		"one long line": func(w http.ResponseWriter) {
			_, _ = w.Write(bytes.Repeat([]byte("x"), maxEntry+1)) // the client hangs up
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
			defer server.Close()
			c, err := New(server.URL, server.Client())
			if err != nil {
				t.Fatal(err)
			}
			c.firstWait, c.patience = time.Millisecond, 20*time.Millisecond
			_, errs := read(c.Lines(t.Context(), &backend.Container{}, backend.LogOptions{}, false))
			if len(errs) != 1 {
				t.Errorf("errors %v", errs)
			}
		})
	}
	for _, address := range []string{"", "shiplog.example.com", "ftp://x", "https://x?y=z", ":"} {
		if _, err := New(address, nil); err == nil {
			t.Errorf("the address %q is taken", address)
		}
	}
}

// breaking passes on so many bytes of each answer, and then breaks the connection.
type breaking struct {
	http.ResponseWriter
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	_, _ = b.ResponseWriter.Write(p[:n])
	if b.left == 0 {
		_ = http.NewResponseController(b.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func (b *breaking) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// TestFollowGoesOn: wherever a followed answer breaks off, each line is told once, those that printed nothing too.
func TestFollowGoesOn(t *testing.T) {
	store, _ := archivetest.Start(t)
	run := archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "run", UID: "uid-1", Created: start})
	gap := criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 3}
	var lines []byte
	for i := range 6 {
		var err error
		if i == 0 || i == 3 { // two at one place, and at the beginning
			for range 2 {
				if lines, err = criline.AppendMarker(lines, start, gap); err != nil {
					t.Fatal(err)
				}
			}
		}
		lines = criline.Append(lines, start, criline.Stdout, true, nil)
		lines = criline.Append(lines, start, criline.Stdout, false, []byte("half"))
		lines = criline.Append(lines, start, criline.Stderr, true, fmt.Appendf(nil, "line %d \xff", i))
		lines = criline.Append(lines, start, criline.Stdout, true, nil)
	}
	archive := backend.New(store)
	api := api.New(api.Options{Archive: archive, Gate: open{}, Log: slog.New(slog.DiscardHandler)})
	for _, each := range []int{0, 1, 3} {
		key := layout.Container{Pod: layout.Pod{Run: run, TaskRun: "tr", PodUID: fmt.Sprint("pod-", each)}, Container: "step-a"}
		archivetest.PutLog(t, store, key, lines, each)
		archivetest.PutRecord(t, store, key.SealKey(), archivetest.Seal(t, lines))
		whole, err := archive.Container(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		want, errs := read(archive.Lines(t.Context(), whole, backend.LogOptions{}))
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		for _, o := range []backend.LogOptions{{}, {Tail: 9}, {FromLine: 4}} {
			want, _ := read(archive.Lines(t.Context(), whole, o))
			for _, bytes := range []int{700, 901, 1497} {
				follow := bytes != 901 // whether or not it is followed, it goes on
				t.Run(fmt.Sprintf("segments of %d, tail %d, from line %d, %d bytes", each, o.Tail, o.FromLine, bytes), func(t *testing.T) {
					answers := 0
					server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if answers++; answers%3 == 2 { // the server is being replaced
							http.Error(w, "no", http.StatusServiceUnavailable)
							return
						}
						api.ServeHTTP(&breaking{w, bytes}, r)
					}))
					defer server.Close()
					defer server.Client().CloseIdleConnections()
					c, err := New(server.URL, server.Client())
					if err != nil {
						t.Fatal(err)
					}
					c.firstWait, c.patience = time.Millisecond, 5*time.Second
					told := 0
					c.Notice = func(error) { told++ }
					k := backend.Container{Key: key}
					got, errs := read(c.Lines(t.Context(), &k, o, follow))
					if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || len(errs) > 0 {
						t.Errorf("errors %v (-want +got):\n%s", errs, diff)
					}
					if k.Status != whole.Status || answers < 2 || told != answers-1 {
						t.Errorf("%s after %d answers, %d notices", k.Status, answers, told)
					}
				})
			}
		}
		if len(want) != 28 {
			t.Errorf("%d lines", len(want))
		}
	}
}

// TestSilence: an answer in which nothing happens, and which somebody on the way closes again and
// again, is no failure, and what comes at last is not missed: also where the log was empty at first
// and its last lines were asked for.
func TestSilence(t *testing.T) {
	const line = `{"line":%d,"offset":%d,"time":"2026-11-23T12:00:00Z","stream":"stdout","text":"x"}` + "\n"
	answers := 0
	var queries []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers++
		queries = append(queries, r.URL.RawQuery)
		if answers == 1 {
			w.Header().Set(api.HeaderBytes, "0")
		}
		fmt.Fprint(w, "\n\n") // there is nothing new
		if answers == 9 {
			fmt.Fprintf(w, line, 1, 0)
			fmt.Fprint(w, "\n")
			fmt.Fprintf(w, line, 2, 2)
			fmt.Fprint(w, `{"end":{"status":"verified","bytes":4,"lines":2}}`+"\n")
		}
	}))
	defer server.Close()
	c, err := New(server.URL, server.Client())
	if err != nil {
		t.Fatal(err)
	}
	c.firstWait, c.mostWait, c.patience, c.settled = time.Millisecond, time.Millisecond, 0, 0
	c.Notice = func(err error) { t.Errorf("a notice: %v", err) }
	lines, errs := read(c.Lines(t.Context(), &backend.Container{}, backend.LogOptions{Tail: 1}, true))
	if len(lines) != 2 || len(errs) != 0 || answers != 9 {
		t.Errorf("%d lines, errors %v, after %d answers", len(lines), errs, answers)
	}
	if !strings.Contains(queries[0], "tailLines=1") || strings.Contains(queries[1], "tailLines") {
		t.Errorf("asked %q", queries)
	}
}

// TestFollowGivesUp: without a line for long, or where it is refused, a followed answer is an error.
func TestFollowGivesUp(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int // of the second answer
		want   string
	}{
		{"nothing more comes", http.StatusOK, "nothing more came for 20ms"},
		{"the server does not come back", http.StatusBadGateway, "nothing more came for 20ms"},
		{"not allowed any more", http.StatusForbidden, "answered with 403"},
		{"not there any more", http.StatusNotFound, "answered with 404"},
	} {
		t.Run(c.name, func(t *testing.T) {
			answers := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if answers++; answers > 1 {
					w.WriteHeader(c.status)
					return
				}
				fmt.Fprintln(w, `{"line":1,"offset":0,"time":"2026-11-23T12:00:00Z","stream":"stdout","text":"x"}`)
			}))
			defer server.Close()
			client, err := New(server.URL, server.Client())
			if err != nil {
				t.Fatal(err)
			}
			client.firstWait, client.mostWait, client.patience = time.Millisecond, time.Millisecond, 20*time.Millisecond
			lines, errs := read(client.Lines(t.Context(), &backend.Container{}, backend.LogOptions{}, true))
			if len(lines) != 1 || len(errs) != 1 || !strings.Contains(errs[0].Error(), c.want) {
				t.Errorf("%d lines, errors %v; want one that says %q", len(lines), errs, c.want)
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		defer server.Close()
		client, err := New(server.URL, server.Client())
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		client.firstWait, client.Notice = time.Hour, func(error) { stop() }
		_, errs := read(client.Lines(ctx, &backend.Container{}, backend.LogOptions{}, true))
		if len(errs) != 1 || !errors.Is(errs[0], context.Canceled) {
			t.Errorf("errors %v", errs)
		}
	})
	t.Run("never begun", func(t *testing.T) {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
		defer server.Close()
		client, err := New(server.URL, server.Client())
		if err != nil {
			t.Fatal(err)
		}
		if _, errs := read(client.Lines(t.Context(), &backend.Container{}, backend.LogOptions{}, true)); len(errs) != 1 {
			t.Errorf("errors %v", errs)
		}
	})
}

// TestFollowFromNow: who follows from now on misses nothing, also where the answer breaks off
// before the first line.
func TestFollowFromNow(t *testing.T) {
	var asked []url.Values
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query())
		if len(asked) == 1 {
			w.Header().Set(api.HeaderBytes, "7")
			return
		}
		const line = `{"line":%d,"offset":%d,"time":"2026-11-23T12:00:00Z","stream":"stdout","text":%q}` + "\n"
		fmt.Fprintf(w, line, 1, 0, "before")
		fmt.Fprintf(w, line, 2, 7, "x")
		fmt.Fprintln(w, `{"end":{"status":"verified","bytes":9,"lines":2}}`)
	}))
	defer server.Close()
	c, err := New(server.URL, server.Client())
	if err != nil {
		t.Fatal(err)
	}
	c.firstWait = time.Millisecond
	o := backend.LogOptions{None: true}
	lines, errs := read(c.Lines(t.Context(), &backend.Container{}, o, true))
	if len(errs) > 0 || len(lines) != 1 || string(lines[0].Text) != "x" {
		t.Errorf("%v, errors %v; want the line that came meanwhile", lines, errs)
	}
	want := []url.Values{
		{"format": {"ndjson"}, "follow": {"true"}, "tailLines": {"0"}},
		{"format": {"ndjson"}, "follow": {"true"}, "fromByte": {"6"}},
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

// TestRedirect: a token is shown to no other host.
func TestRedirect(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("another host was asked: %v", r.Header) }))
	defer other.Close()
	for _, status := range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL+"/x", status) }))
			defer server.Close()
			c, err := New(server.URL, server.Client())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Namespaces(t.Context()); err == nil || !strings.Contains(err.Error(), other.URL) || !strings.Contains(err.Error(), "--server") {
				t.Errorf("error %v, want one that says where it leads, and what to do", err)
			}
		})
	}
}

// TestContentHasALength: a server compresses for whoever asks, and then the length is not known.
func TestContentHasALength(t *testing.T) {
	const text = "printed"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = io.WriteString(z, text)
			_ = z.Close()
			return
		}
		_, _ = io.WriteString(w, text)
	}))
	defer server.Close()
	c, err := New(server.URL, server.Client())
	if err != nil {
		t.Fatal(err)
	}
	body, size, err := c.Content(t.Context(), layout.Container{Container: "step-a"})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); err != nil || string(b) != text || size != int64(len(text)) {
		t.Errorf("%q of %d bytes, %v", b, size, err)
	}
}
