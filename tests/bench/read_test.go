//go:build bench

package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/backend/compact"
	webpage "github.com/shiplog-dev/shiplog/backend/page"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// serveEnv makes this program the server that is measured: the address to listen on.
const serveEnv = "SHIPLOG_BENCH_SERVE"

func TestMain(m *testing.M) {
	if addr := os.Getenv(serveEnv); addr != "" {
		if err := serve(addr); err != nil {
			fmt.Fprintln(os.Stderr, "serve:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// delayEnv is how far that server's store is to be.
const delayEnv = "SHIPLOG_BENCH_DELAY"

// distant is a store that answers later.
type distant struct {
	*objectstore.Store
	delay time.Duration
}

func (d *distant) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	wait(d.delay)
	return d.Store.Get(ctx, key)
}

// List waits for each page, as many as it yields.
func (d *distant) List(ctx context.Context, prefix, delimiter, after string, limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		n := 0
		wait(d.delay)
		for e, err := range d.Store.List(ctx, prefix, delimiter, after, limit) {
			if n++; n%1000 == 0 {
				wait(d.delay)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// profileEnv names a file for a CPU profile of that server.
const profileEnv = "SHIPLOG_BENCH_PROFILE"

// open lets everybody read: who may is not measured here.
type open struct{}

func (open) Allow(*http.Request, string) (backend.Reach, error) {
	return backend.Reach{All: true}, nil
}
func (open) Allowed(_ *http.Request, namespaces []string) ([]string, error) {
	return namespaces, nil
}
func (open) Login(http.ResponseWriter, *http.Request, string) error { return nil }
func (open) Logout(http.ResponseWriter, *http.Request) error        { return nil }

// serve is the backend's HTTP API and its page, without the rest of the backend.
func serve(addr string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	config, err := objectstore.ConfigFromEnv()
	if err != nil {
		return err
	}
	store, err := objectstore.New(ctx, config)
	if err != nil {
		return err
	}
	delay, err := time.ParseDuration(cmp.Or(os.Getenv(delayEnv), "0"))
	if err != nil {
		return err
	}
	archive, quiet := backend.New(&distant{store, delay}), slog.New(slog.DiscardHandler)
	handler := http.NewServeMux()
	handler.Handle("/", webpage.New(webpage.Options{Archive: archive, Gate: open{}, Log: quiet}))
	handler.Handle(api.Base+"/", api.New(api.Options{Archive: archive, Gate: open{}, Log: quiet}))
	if name := os.Getenv(profileEnv); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer f.Close()
		defer pprof.StopCPUProfile()
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := httptest.Server{Listener: listener, Config: &http.Server{Handler: handler}}
	server.Start()
	<-ctx.Done()
	server.Close()
	return nil
}

// env is how the store is named to a program.
func (g *target) env() []string {
	return append(os.Environ(),
		"SHIPLOG_S3_BUCKET="+g.config.Bucket, "SHIPLOG_S3_ENDPOINT="+g.config.Endpoint, "SHIPLOG_S3_REGION="+g.config.Region, "SHIPLOG_S3_PATH_STYLE=true",
		"AWS_ACCESS_KEY_ID="+g.config.Credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+string(g.config.Credentials.SecretAccessKey))
}

// backend starts the server on one core.
func (g *target) backend(t *testing.T, delay time.Duration) (*process, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("taskset", "-c", "0", self)
	cmd.Env = append(g.env(), serveEnv+"="+addr, delayEnv+"="+delay.String())
	p := startProcess(t, cmd)
	base := "http://" + addr + api.Base
	p.until(t, time.Minute, "the server", func() bool {
		resp, err := http.Get(base + "/openapi.yaml")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
	return p, base
}

// address is that of a container's log.
func (p *pod) address(base string) string {
	return fmt.Sprintf("%s/containers/%s/%s/%s/%s/%s/%s", base, p.Run.Namespace, p.Run.Name, p.Run.UID, p.TaskRun, p.PodUID, p.containers[0])
}

// fetch reads an answer to its end, and says when its first byte was there.
func fetch(t *testing.T, address string, to io.Writer) (first, all time.Duration, n int64) {
	t.Helper()
	begun := time.Now()
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s: %s", address, resp.Status, b)
	}
	var b [1]byte
	if _, err := io.ReadFull(resp.Body, b[:]); err != nil {
		t.Fatal(err)
	}
	first = time.Since(begun)
	if _, err := to.Write(b[:]); err != nil {
		t.Fatal(err)
	}
	n, err = io.Copy(to, resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return first, time.Since(begun), n + 1
}

// needle is in the last line alone.
const needle = "error: the needle in the haystack"

func read(t *testing.T, r *results) {
	shipper, tee := binary(t, "./shipper"), binary(t, "./shipper/tee")
	g := newTarget(t, false)
	for _, megabytes := range []int64{1, 100, 1000} {
		in := text(t, megabytes*1_000_000, mixed)
		f, err := os.OpenFile(in, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(needle + "\n"); err != nil {
			t.Fatal(err)
		}
		f.Close()
		p := newPod(t, g, 1)
		p.fill(t, tee, p.containers[0], in)
		archive := p.size(t)
		p.drain(t, shipper, 0)
		ends(t, r, p, megabytes)
		if megabytes == 1000 {
			info, err := os.Stat(in)
			if err != nil {
				t.Fatal(err)
			}
			whole(t, r, p, archive, info.Size())
		}
		p.clear(t)
	}
	slow(t, r, g)
}

// far is how long a store that is not on this machine takes to answer; S3 has some 20 ms to the first byte.
const far = 20 * time.Millisecond

// slow measures the log of a step that printed a line a second for ten hours: 120 segments of a second, and the others of 5. It is compared with the same log when it is compacted.
func slow(t *testing.T, r *results, g *target) {
	const seconds = 10 * 3600
	begun := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	lines := archivetest.Lines(begun, seconds, func(i int) string {
		return fmt.Sprintf("waiting for the deployment to be ready: %d of 600 replicas", i/60)
	})
	var pods [2]*pod
	objects := [2]int{}
	for i := range pods {
		pods[i] = newPod(t, g, 1)
		c := layout.Container{Pod: pods[i].Pod, Container: pods[i].containers[0]}
		archivetest.PutLog(t, g.store, c, lines, 5)
		archivetest.PutRecord(t, g.store, c.SealKey(), archivetest.Seal(t, lines))
	}
	used := pods[1].compact(t)
	for i, p := range pods {
		_, objects[i] = p.archived(t)
	}
	what := fmt.Sprintf(" of 36,000 lines of ten hours in %d segments", objects[0])
	for _, store := range []struct {
		where string
		delay time.Duration
	}{{"", 0}, {fmt.Sprintf(", from a store that is %d ms away", far.Milliseconds()), far}} {
		server, base := g.backend(t, store.delay)
		for _, m := range []struct {
			what, query, aim string
		}{{"first byte", "?limitBytes=1", "50 ms"}, {"last 100 lines", "?tailLines=100", "50 ms"}, {"all", "", ""}} {
			if store.delay > 0 {
				m.aim = ""
			}
			var took [2]samples
			for i, kind := range []string{"as they came", "compacted"} {
				took[i] = samples{Name: "slow step, " + kind + ", " + m.what + store.where, Unit: "ms"}
			}
			for range 5 {
				for i, p := range pods {
					first, all, _ := fetch(t, p.address(base)+"/logs"+m.query, io.Discard)
					if m.what == "first byte" {
						all = first
					}
					took[i].add(all.Seconds() * 1000)
				}
			}
			r.keep(took[:]...)
			r.row(m.what+what+store.where, m.aim, took[0].median() <= 50, "not before it is compacted: a LIST has a thousand names, and it is known only behind the last where the log ends", "%v; compacted %v", took[0], took[1])
		}
		server.stop(t)
	}
	r.Text = append(r.Text, fmt.Sprintf(`Compacting that log made %d segments of %d, with %d GETs, %d PUT and %d DELETEs. A whole read costs %d requests before and %d after.`, objects[1], objects[0], used.gets, used.puts, used.deletes, objects[0]+(objects[0]+999)/1000, objects[1]+1))
}

// using counts what is asked of a store.
type using struct {
	*objectstore.Store
	gets, puts, deletes int
}

func (u *using) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	u.gets++
	return u.Store.Get(ctx, key)
}

func (u *using) Put(ctx context.Context, key string, body []byte) error {
	u.puts++
	return u.Store.Put(ctx, key, body)
}

func (u *using) Delete(ctx context.Context, key string) error {
	u.deletes++
	return u.Store.Delete(ctx, key)
}

// compact does what the compactor does, without the pause in between.
func (p *pod) compact(t *testing.T) *using {
	t.Helper()
	u := &using{Store: p.target.store}
	for waits := true; waits; {
		tree, err := backend.New(u).Tree(t.Context(), backend.Target{Run: p.Run})
		if err != nil {
			t.Fatal(err)
		}
		u.gets = max(0, u.gets-1) // of the seal
		waits = false
		for place := range tree.Containers() {
			o, err := compact.Log(t.Context(), u, place, time.Now().Add(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			waits = waits || o.Waits
		}
	}
	return u
}

// ends measures what a person sees first: a log's beginning, and its last lines.
func ends(t *testing.T, r *results, p *pod, megabytes int64) {
	server, base := p.target.backend(t, 0)
	first := samples{Name: fmt.Sprintf("first byte of %d MB", megabytes), Unit: "ms"}
	last := samples{Name: fmt.Sprintf("last 100 lines of %d MB", megabytes), Unit: "ms"}
	for range 20 {
		f, _, _ := fetch(t, p.address(base)+"/logs?limitBytes=1", io.Discard)
		first.add(f.Seconds() * 1000)
		var b bytes.Buffer
		_, all, _ := fetch(t, p.address(base)+"/logs?tailLines=100", &b)
		if n := bytes.Count(b.Bytes(), []byte("\n")); n != 100 {
			t.Fatalf("%d lines", n)
		}
		last.add(all.Seconds() * 1000)
	}
	server.stop(t)
	r.keep(first, last)
	aim := "50 ms"
	r.row(fmt.Sprintf("first byte of a log of %d MB", megabytes), aim, first.median() <= 50, "", "%v", first)
	other := ""
	if megabytes == 1000 {
		other = "; " + oneObject(t, r, p).String() + " with `aws s3 cp`, zstdcat and tail from one object"
	}
	r.row(fmt.Sprintf("last 100 lines of a log of %d MB", megabytes), aim, last.median() <= 50, "", "%v%s", last, other)
}

// segments saves a log's segments as files, in their order.
func (p *pod) segments(t *testing.T, dir string) {
	t.Helper()
	prefix := layout.Container{Pod: p.Pod, Container: p.containers[0]}.Prefix()
	for e, err := range p.target.store.List(t.Context(), prefix, "", "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(e.Key, ".log.zst") {
			continue
		}
		body, err := p.target.store.Get(t.Context(), e.Key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(body)
		body.Close()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(e.Key)), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// oneObject is what people do who have the log as one compressed object.
func oneObject(t *testing.T, r *results, p *pod) samples {
	t.Helper()
	dir := scratch(t)
	p.segments(t, dir)
	s := samples{Name: "aws s3 cp | zstdcat | tail -n 100 of 1000 MB", Unit: "ms"}
	if out, err := exec.Command("sh", "-c", "cat "+dir+"/*.log.zst > "+dir+"/one").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(dir + "/one")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.target.store.Put(t.Context(), "one.zst", b); err != nil {
		t.Fatal(err)
	}
	for range rounds(3) {
		begun := time.Now()
		cmd := exec.Command("sh", "-c", "aws --endpoint-url "+p.target.config.Endpoint+" s3 cp --quiet s3://"+p.target.config.Bucket+"/one.zst - | zstdcat | tail -n 100")
		cmd.Env = append(p.target.env(), "AWS_DEFAULT_REGION="+p.target.config.Region)
		out, err := cmd.Output()
		if err != nil || bytes.Count(out, []byte("\n")) != 100 {
			t.Fatalf("%d lines: %v", bytes.Count(out, []byte("\n")), err)
		}
		s.add(time.Since(begun).Seconds() * 1000)
	}
	r.keep(s)
	return s
}

// whole measures what reads all of a log.
func whole(t *testing.T, r *results, p *pod, archive, printed int64) {
	dir := scratch(t)
	p.segments(t, dir)
	server, base := p.target.backend(t, 0)
	shell := func(s *samples, command, want string) {
		t.Helper()
		begun := time.Now()
		out, err := exec.Command("taskset", "-c", "0", "sh", "-c", strings.ReplaceAll(command, "FILES", dir+"/*.log.zst")).Output()
		if err != nil || want != "" && !strings.Contains(string(out), want) {
			t.Fatalf("%s: %v: %.100s", command, err, out)
		}
		s.add(float64(archive) / 1e6 / time.Since(begun).Seconds())
	}
	all, allZstd := samples{Name: "whole log, backend", Unit: "MB/s"}, samples{Name: "whole log, zstdcat", Unit: "MB/s"}
	cpu := samples{Name: "whole log, backend, CPU for a GB", Unit: "s"}
	find, findGrep := samples{Name: "search, backend", Unit: "MB/s"}, samples{Name: "search, zstdcat | grep -F", Unit: "MB/s"}
	findRE, findRG := samples{Name: "search of a regular expression, backend", Unit: "MB/s"}, samples{Name: "search, zstdcat | rg -F", Unit: "MB/s"}
	search := func(s *samples, query url.Values) {
		t.Helper()
		var b bytes.Buffer
		_, took, _ := fetch(t, p.address(base)+"/search?"+query.Encode(), &b)
		var first struct{ Text string }
		if err := json.NewDecoder(&b).Decode(&first); err != nil || first.Text != needle {
			t.Fatalf("found %q: %v", first.Text, err)
		}
		s.add(float64(archive) / 1e6 / took.Seconds())
	}
	for range rounds(5) {
		before := server.cpu()
		_, took, n := fetch(t, p.address(base)+"/logs", io.Discard)
		if n != printed {
			t.Fatalf("%d bytes, not %d", n, printed)
		}
		all.add(float64(archive) / 1e6 / took.Seconds())
		cpu.add((server.cpu() - before).Seconds() / gb(archive))
		shell(&allZstd, "zstdcat FILES > /dev/null", "")
		search(&find, url.Values{"q": {needle}})
		shell(&findGrep, "zstdcat FILES | grep -F '"+needle+"'", needle)
		search(&findRE, url.Values{"q": {"error: the (needle|pin) in"}, "regexp": {"true"}})
		shell(&findRG, "zstdcat FILES | rg -F '"+needle+"'", needle)
	}
	rss := samples{Name: "backend, peak RSS", Unit: "MiB", Values: []float64{mib(server.peak())}}
	server.stop(t)
	r.keep(all, allZstd, cpu, find, findGrep, findRE, findRG, rss)
	r.row("whole log of 1 GB printed, checked, on one core", "300 MB/s", all.median() >= 300, "", "%v, CPU %v for a GB; zstdcat of the same segments as files, unchecked, %v", all, cpu, allZstd)
	r.row("memory after all of this", "64 MiB", rss.most() <= 64, "", "%v", rss)
	r.row("search of 1 GB printed for a literal, on one core", "no slower than `zstdcat \\| grep -F`", ratio(find, findGrep) >= 1, "", "%v; zstdcat \\| grep -F %v; zstdcat \\| rg -F %v: **%.2f times as fast as grep**", find, findGrep, findRG, ratio(find, findGrep))
	r.row("the same for a regular expression", "", true, "", "%v", findRE)
}
