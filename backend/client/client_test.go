package client

import (
	"bytes"
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

func (open) Allow(*http.Request, string) error                       { return nil }
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
			cmpopts.IgnoreUnexported(backend.Container{}), cmpopts.IgnoreFields(backend.Container{}, "Segments"), cmpopts.IgnoreFields(record.Pod{}, "TaskRunUID", "Containers"), cmpopts.EquateEmpty(),
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
