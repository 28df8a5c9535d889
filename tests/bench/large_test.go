//go:build bench

package bench

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend/archivetest"
	webpage "github.com/shiplog-dev/shiplog/backend/page"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// requests are what was asked of a store.
type requests struct{ lists, gets atomic.Int64 }

func (q *requests) reset() { q.lists.Store(0); q.gets.Store(0) }

func (q *requests) String() string {
	return fmt.Sprintf("%d LIST, %d GET", q.lists.Load(), q.gets.Load())
}

// counted is the same target behind a proxy that counts what is asked of it, for programs whose
// requests cannot be counted from within.
func (g *target) counted(t *testing.T) (*target, *requests) {
	t.Helper()
	at, err := url.Parse(g.config.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	q := &requests{}
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
		Rewrite: func(r *httputil.ProxyRequest) {
			if r.In.URL.Query().Has("list-type") {
				q.lists.Add(1)
			} else {
				q.gets.Add(1)
			}
			// The Host stays what the client has signed.
			r.Out.URL.Scheme, r.Out.URL.Host = at.Scheme, at.Host
		},
	})
	t.Cleanup(proxy.Close)
	behind := *g
	behind.config.Endpoint = proxy.URL
	return &behind, q
}

// place puts an object into the folder of a server that keeps objects as files.
func place(t *testing.T, bucket, key string, body []byte) {
	t.Helper()
	name := filepath.Join(bucket, key)
	err := os.WriteFile(name, body, 0o644)
	if os.IsNotExist(err) {
		if err = os.MkdirAll(filepath.Dir(name), 0o755); err == nil {
			err = os.WriteFile(name, body, 0o644)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func placeRecord[T record.Run | record.Pod | record.Seal](t *testing.T, bucket, key string, v T) {
	t.Helper()
	b, err := record.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	place(t, bucket, key, b)
}

// largeNamespace is of all that is measured here.
const largeNamespace = "bench"

// begun is when what is measured here began.
var begun = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// largeRun is a run of many TaskRuns. All its steps are sealed but the last one, whose pod lives.
type largeRun struct {
	layout.Run
	name  string
	last  layout.Pod
	alive string // the file of that pod's sign of life
}

// putLargeRun makes a run with objects as they are in life: for each pod its record, and for each
// step a segment and a seal.
func (g *target) putLargeRun(t *testing.T, bucket, name string, tasks, steps int) largeRun {
	t.Helper()
	r := record.Run{Kind: layout.PipelineRun, Namespace: largeNamespace, Name: name,
		UID: "00000000-0000-4000-a000-" + fmt.Sprintf("%012d", tasks), Created: begun,
		Started: begun}
	for i := range tasks {
		r.Tasks = append(r.Tasks, fmt.Sprintf("task-%05d", i))
	}
	run := largeRun{Run: archivetest.PutRun(t, g.store, r), name: name}
	lines := archivetest.Lines(begun, 50, func(i int) string {
		return fmt.Sprintf("compile example.com/pkg/internal/layer/%d", i)
	})
	segments, bodies := archivetest.Segments(t, lines, 0)
	seal := archivetest.Seal(t, lines)
	for i := range tasks {
		p := layout.Pod{Run: run.Run, TaskRun: name + "-" + r.Tasks[i],
			PodUID: fmt.Sprintf("00000000-0000-4000-9000-%012d", i)}
		rec := record.Pod{Namespace: largeNamespace, PodName: p.TaskRun + "-pod", PodUID: p.PodUID,
			TaskRun: p.TaskRun, PipelineTask: r.Tasks[i], Created: begun,
			TaskRunUID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i)}
		for j := range steps {
			c := layout.Container{Pod: p, Container: fmt.Sprintf("step-s%d", j)}
			rec.Containers = append(rec.Containers,
				record.Container{Name: c.Container, Kind: record.Step, Captured: true})
			place(t, bucket, c.SegmentKey(segments[0]), bodies[0])
			if i < tasks-1 || j < steps-1 {
				placeRecord(t, bucket, c.SealKey(), seal)
			}
		}
		placeRecord(t, bucket, p.PodKey(), rec)
		run.last = p
	}
	archivetest.Put(t, g.store, run.last.AliveKey(), []byte("{}"))
	run.alive = filepath.Join(bucket, run.last.AliveKey())
	return run
}

// live makes the last pod be heard of now.
func (r largeRun) live(t *testing.T) {
	t.Helper()
	if err := os.Chtimes(r.alive, time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// measured is a table of what was asked of the store, and what it took.
type measured struct {
	results *results
	asked   *requests
	rows    []string
}

func (m *measured) add(what string, took samples, peak samples) {
	m.results.keep(took, peak)
	m.rows = append(m.rows, fmt.Sprintf("| %s | %d | %d | %v | %v |", what, m.asked.lists.Load(),
		m.asked.gets.Load(), took, peak))
}

// command measures a program that ends by itself, which may say with its exit code that a run runs.
func (m *measured) command(t *testing.T, g *target, what string, args ...string) {
	t.Helper()
	took := samples{Name: what + ", time", Unit: "s"}
	peak := samples{Name: what + ", peak RSS", Unit: "MiB"}
	for range rounds(3) {
		m.asked.reset()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = g.env()
		var failed error
		p := startProcess(t, cmd)
		tick := time.NewTicker(5 * time.Millisecond)
		most := int64(0)
		for now := p.peak(); now > 0; now = p.peak() { // a process that has ended has none
			most = now
			<-tick.C
		}
		tick.Stop()
		took.add(time.Since(p.begun).Seconds())
		peak.add(mib(most))
		failed = p.cmd.Wait()
		var exit *exec.ExitError
		if failed != nil && (!errors.As(failed, &exit) || p.stderr.Len() > 0) {
			t.Fatalf("%s: %v\n%s", what, failed, p.stderr.String())
		}
	}
	m.add(what, took, peak)
}

// answer measures a request to the server. It returns the answer's ETag.
func (m *measured) answer(t *testing.T, server *process, what, address, tag string) string {
	t.Helper()
	took := samples{Name: what + ", time", Unit: "s"}
	peak := samples{Name: what + ", peak RSS of the server so far", Unit: "MiB"}
	found := ""
	for range rounds(3) {
		m.asked.reset()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tag != "" {
			r.Header.Set("If-None-Match", tag)
		}
		begun := time.Now()
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode >= 400 {
			t.Fatalf("%s: %s, %d bytes, %v", address, resp.Status, n, err)
		}
		took.add(time.Since(begun).Seconds())
		found = resp.Header.Get("ETag")
	}
	peak.add(mib(server.peak()))
	m.add(what, took, peak)
	return found
}

// idle is for how long is followed what does not change.
const idle = 10 * time.Second

// follow measures some who follow a run in which nothing happens, from when all of them have begun.
func (m *measured) follow(t *testing.T, server *process, what, address string, followers int) {
	t.Helper()
	var open []io.Closer
	for range followers {
		resp, err := http.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, resp.Body)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", address, resp.Status)
		}
	}
	m.asked.reset()
	before := server.cpu()
	wait(idle)
	cpu := samples{Name: what + ", CPU of the server for each second", Unit: "s",
		Values: []float64{(server.cpu() - before).Seconds() / idle.Seconds()}}
	peak := samples{Name: what + ", peak RSS of the server so far", Unit: "MiB",
		Values: []float64{mib(server.peak())}}
	m.results.keep(cpu, peak)
	m.rows = append(m.rows, fmt.Sprintf("| %s | %.1f | %.1f | %v of CPU | %v |", what,
		float64(m.asked.lists.Load())/idle.Seconds(), float64(m.asked.gets.Load())/idle.Seconds(),
		cpu, peak))
	var wg sync.WaitGroup
	for _, o := range open {
		wg.Go(func() { o.Close() })
	}
	wg.Wait()
}

// followCommand measures a program that follows a run in which nothing happens.
func (m *measured) followCommand(t *testing.T, g *target, what string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = g.env()
	p := startProcess(t, cmd)
	// Until it has looked for the first times, and asks for nothing else any more.
	for quiet := 0; quiet < 2; {
		m.asked.reset()
		wait(3 * time.Second)
		if m.asked.gets.Load() == 0 && m.asked.lists.Load() > 0 {
			quiet++
		} else if time.Since(p.begun) > 3*time.Minute {
			break // it asks all the time
		}
	}
	m.asked.reset()
	before := p.cpu()
	wait(idle)
	cpu := samples{Name: what + ", CPU for each second", Unit: "s",
		Values: []float64{(p.cpu() - before).Seconds() / idle.Seconds()}}
	lists, gets := m.asked.lists.Load(), m.asked.gets.Load()
	peak := samples{Name: what + ", peak RSS", Unit: "MiB",
		Values: []float64{mib(p.stop(t).peak)}}
	m.results.keep(cpu, peak)
	m.rows = append(m.rows, fmt.Sprintf("| %s | %.1f | %.1f | %v of CPU | %v |", what,
		float64(lists)/idle.Seconds(), float64(gets)/idle.Seconds(), cpu, peak))
}

// large measures lists, trees, pages and followers of a large run and of a large namespace.
func large(t *testing.T, r *results) {
	cli := binary(t, "./backend/cmd/shiplog")
	g := newTarget(t, false)
	bucket := g.folder(t)
	const many, ordinary, others = 10_000, 50, 100_000
	big := g.putLargeRun(t, bucket, "big", many, 2)
	small := g.putLargeRun(t, bucket, "small", ordinary, 4)
	for i := range others {
		x := layout.RunIndex{Namespace: largeNamespace, Kind: layout.PipelineRun,
			Created: begun.Add(-time.Duration(i) * time.Second),
			Name:    fmt.Sprintf("build-%06d", i), UID: fmt.Sprintf("00000000-0000-4000-b000-%012d", i)}
		placeRecord(t, bucket, x.Run().RunKey(), record.Run{Kind: x.Kind, Namespace: x.Namespace,
			Name: x.Name, UID: x.UID, Created: x.Created, State: record.Succeeded})
		place(t, bucket, x.Key(), []byte("{}"))
	}
	through, asked := g.counted(t)
	m := &measured{results: r, asked: asked}

	ls := func(what string, args ...string) {
		t.Helper()
		m.command(t, through, what, append([]string{cli, "ls", "-n", largeNamespace}, args...)...)
	}
	ls("`shiplog ls` in a namespace of 100,000 runs")
	ls("all of them: `shiplog ls --limit 0 -o json`", "--limit", "0", "-o", "json")
	big.live(t)
	ls("`shiplog ls RUN` of 10,000 TaskRuns", big.name)
	small.live(t)
	ls("`shiplog ls RUN` of 50 TaskRuns", small.name)

	server, base := through.backend(t, 0)
	ui := strings.TrimSuffix(base, "/api/v1") + webpage.Base + "/" + largeNamespace
	m.answer(t, server, "the page of the namespace", ui, "")
	m.answer(t, server, "the page that is behind all of 10,000 others that are named otherwise",
		ui+"?name=build-010000", "")
	for _, run := range []struct {
		largeRun
		what string
	}{{small, "50"}, {big, "10,000"}} {
		run.live(t)
		m.answer(t, server, "the tree of the API, "+run.what+" TaskRuns",
			base+"/namespaces/"+largeNamespace+"/pipelineruns/"+run.name, "")
		m.answer(t, server, "the page of a run of "+run.what+" TaskRuns", ui+"/"+run.name, "")
		tag := m.answer(t, server, "the same, with the tag of a page that has changed",
			ui+"/"+run.name, `"x"`)
		m.answer(t, server, "the same, when nothing has changed", ui+"/"+run.name, tag)
	}
	once := m.rows
	m.rows = nil
	for _, run := range []struct {
		largeRun
		what string
	}{{small, "50"}, {big, "10,000"}} {
		address := base + "/namespaces/" + largeNamespace + "/pipelineruns/" + run.name +
			"/logs?follow=true&tailLines=0"
		for _, followers := range []int{1, 10} {
			run.live(t)
			m.follow(t, server, fmt.Sprintf("%d of the API's followers of a run of %s TaskRuns",
				followers, run.what), address, followers)
		}
		run.live(t)
		m.followCommand(t, through, "`shiplog logs --follow` of a run of "+run.what+" TaskRuns", cli,
			"logs", "-n", largeNamespace, run.name, "--follow", "--tail", "0")
	}
	server.stop(t)
	head := "| what | LIST | GET | %s | peak RSS |\n|---|---|---|---|---|\n"
	r.Text = append(r.Text, largeIntroduction+fmt.Sprintf(head, "time")+strings.Join(once, "\n")+"\n",
		"Followers of a run in which nothing happens, for each second of ten:\n\n"+
			fmt.Sprintf(head, "time")+strings.Join(m.rows, "\n")+"\n")
}

const largeIntroduction = `A run of 10,000 TaskRuns has 20,000 steps, one of 50 has 200; all of them
but one are sealed, and each has one segment. The objects are put into the server's folder as files,
as it puts them itself. Requests are counted on their way to the S3 server, by a proxy, which takes a
part of the time, as the server does, on the same cores. How busy the machine is changes times, and
not requests. The server for readers is one process in all rows, so its peak only grows:

`
