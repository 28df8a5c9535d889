//go:build bench

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/objectstore/s3test"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// target is an S3 server, and a ticket service that signs with the webhook's own code.
type target struct {
	config  objectstore.Config
	store   *objectstore.Store
	tickets *httptest.Server
	pods    int
}

func newTarget(t *testing.T, withTLS bool) *target {
	t.Helper()
	t.Setenv("TMPDIR", scratch(t)) // where the server keeps its objects
	g := &target{}
	if withTLS {
		g.config = s3test.StartTLS(t, s3test.Versity)
	} else {
		g.config = s3test.Start(t, s3test.Versity)
	}
	var err error
	if g.store, err = objectstore.New(t.Context(), g.config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.store.Close)
	g.tickets = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ticket, err := g.store.SignUpload(r.Context(), podOf(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")).Prefix(), 64<<20, time.Hour)
		if err == nil {
			err = json.NewEncoder(w).Encode(ticket)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	t.Cleanup(g.tickets.Close)
	return g
}

// podOf is the pod whose token that is: its number.
func podOf(token string) layout.Pod {
	return layout.Pod{
		Run:     layout.Run{Namespace: "bench", Name: "run", UID: "00000000-0000-4000-8000-" + token},
		TaskRun: "task", PodUID: "00000000-0000-4000-9000-" + token,
	}
}

// pod is a folder that looks to the shipper like its own container.
type pod struct {
	target     *target
	root       string
	containers []string
	config     contract.Config
	layout.Pod
}

func newPod(t *testing.T, g *target, containers int) *pod {
	t.Helper()
	g.pods++
	token := fmt.Sprintf("%012d", g.pods)
	p := &pod{target: g, root: scratch(t), Pod: podOf(token)}
	for i := range containers {
		p.containers = append(p.containers, fmt.Sprintf("step-%02d", i))
	}
	p.config = contract.Config{
		TicketURL: g.tickets.URL, Containers: p.containers,
		SegmentBytes: 6 << 20, FlushInterval: contract.Duration(time.Second), SlowFlushInterval: contract.Duration(5 * time.Second),
	}
	for _, dir := range []string{contract.VolumeMount, contract.TokenMount, "/tmp"} {
		if err := os.MkdirAll(filepath.Join(p.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.root, contract.TokenFile), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range p.containers {
		if err := os.MkdirAll(p.spool(name), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *pod) spool(container string) string {
	return filepath.Join(p.root, contract.VolumeMount, contract.LogsSubPath, container)
}

// fill has tee write what a step prints, as tee does.
func (p *pod) fill(t *testing.T, tee, container, name string) {
	t.Helper()
	args := contract.Tee{Spool: p.spool(container), Limit: 1 << 40, Argv: []string{"cat", name}}.Args()
	if out, err := exec.Command(tee, args...).Output(); err != nil || len(out) == 0 {
		t.Fatalf("tee: %v", err)
	}
}

// size is what is in the spool, in archive bytes.
func (p *pod) size(t *testing.T) (n int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(p.root, contract.VolumeMount, contract.LogsSubPath), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(d.Name(), ".log") {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// shipper starts the shipper on so many cores, 0 for all.
func (p *pod) shipper(t *testing.T, path string, cores int) *process {
	t.Helper()
	own := filepath.Join(p.root, "shipper")
	if err := copyFile(own, path); err != nil {
		t.Fatal(err)
	}
	config, err := p.config.Encode()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/shipper")
	if cores == 1 {
		cmd = exec.Command("taskset", "-c", "0", "chroot", p.root, "/shipper")
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: p.root}
		cmd.Dir = "/"
	}
	cmd.Env = append(os.Environ(), contract.ConfigEnv+"="+config)
	return startProcess(t, cmd)
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// sealed says whether every log is in the store to its end.
func (p *pod) sealed(ctx context.Context) bool {
	for _, name := range p.containers {
		body, err := p.target.store.Get(ctx, layout.Container{Pod: p.Pod, Container: name}.SealKey())
		if err != nil {
			return false
		}
		body.Close()
	}
	return true
}

// drain runs the shipper until all logs are sealed.
func (p *pod) drain(t *testing.T, shipper string, cores int) cost {
	t.Helper()
	s := p.shipper(t, shipper, cores)
	s.until(t, 10*time.Minute, "the seals", func() bool { return p.sealed(t.Context()) })
	return s.stop(t)
}

// archived reads the logs back, whole, and counts their archive bytes and segments.
func (p *pod) archived(t *testing.T) (bytes int64, segments int) {
	t.Helper()
	a := backend.New(p.target.store)
	tree, err := a.Tree(t.Context(), backend.Target{Run: p.Run})
	if err != nil {
		t.Fatal(err)
	}
	for place := range tree.Containers() {
		c := place.Container
		if c.Status != backend.Verified {
			t.Fatalf("%s is %s: %s", c.Key.Container, c.Status, c.Why)
		}
		bytes += c.Seal.Bytes
		segments += len(c.Segments)
		for _, err := range a.Lines(t.Context(), c, backend.LogOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return bytes, segments
}

// collector has an OpenTelemetry Collector ship the same files in its cheapest set-up: the lines as they are, nothing parsed, and zstd.
func (p *pod) collector(t *testing.T, path string, size int64) cost {
	t.Helper()
	cfg := p.target.config
	prefix := fmt.Sprintf("collector-%d", p.target.pods)
	text := fmt.Sprintf(`
receivers:
  filelog:
    include: ["%s/*/*.log"]
    start_at: beginning
    poll_interval: 200ms
    max_log_size: 1MiB
    encoding: utf-8-raw
    preserve_leading_whitespaces: true
    preserve_trailing_whitespaces: true
exporters:
  awss3:
    marshaler: body
    s3uploader:
      endpoint: %s
      region: %s
      s3_bucket: %s
      s3_prefix: %s
      s3_force_path_style: true
      compression: zstd
    sending_queue:
      enabled: true
      block_on_overflow: true
      num_consumers: 1
      sizer: bytes
      queue_size: 64000000
      batch: {flush_timeout: 1s, min_size: 8000000, max_size: 16000000}
service:
  telemetry: {metrics: {level: none}, logs: {level: warn}}
  pipelines:
    logs: {receivers: [filelog], exporters: [awss3]}
`, filepath.Join(p.root, contract.VolumeMount, contract.LogsSubPath), cfg.Endpoint, cfg.Region, cfg.Bucket, prefix)
	config := filepath.Join(p.root, "collector.yaml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--config", "file:"+config)
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+cfg.Credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY="+string(cfg.Credentials.SecretAccessKey))
	if cfg.CABundle != "" {
		ca := filepath.Join(p.root, "ca.pem")
		if err := os.WriteFile(ca, []byte(cfg.CABundle), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, "AWS_CA_BUNDLE="+ca)
	}
	c := startProcess(t, cmd)
	// It never ends. It is done when nothing has come for 5 s, and what it had used by the last change is what it took.
	var stored int64
	var at time.Time
	var used cost
	c.until(t, 10*time.Minute, "the collector", func() bool {
		var now int64
		for e, err := range p.target.store.List(t.Context(), prefix+"/", "", "", 0) {
			if err != nil {
				t.Fatal(err)
			}
			now += e.Size
		}
		if now != stored || stored == 0 {
			stored, at = now, time.Now()
			used = cost{wall: time.Since(c.begun), cpu: c.cpu()}
		}
		return stored > 0 && time.Since(at) > 5*time.Second
	})
	used.peak = c.stop(t).peak
	if got := p.decompressed(t, prefix+"/"); got != size {
		t.Fatalf("the collector has shipped %d bytes of %d\n%s", got, size, c.stderr.String())
	}
	return used
}

// decompressed counts what zstd frames under a prefix hold.
func (p *pod) decompressed(t *testing.T, prefix string) (n int64) {
	t.Helper()
	cmd := exec.Command("zstd", "-dcq")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the objects; Wait is behind the reading of all that comes of them
		defer in.Close()
		for e, err := range p.target.store.List(t.Context(), prefix, "", "", 0) {
			if err != nil {
				t.Error(err)
				return
			}
			body, err := p.target.store.Get(t.Context(), e.Key)
			if err != nil {
				t.Error(err)
				return
			}
			_, err = io.Copy(in, body)
			body.Close()
			if err != nil && !errors.Is(err, syscall.EPIPE) {
				t.Error(err)
				return
			}
		}
	}()
	n, err = io.Copy(io.Discard, out)
	if err = errors.Join(err, cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	return n
}

// limit is the least that it can take: zstd -1 over the same files, and one PUT.
func (p *pod) limit(t *testing.T) cost {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(p.root, contract.VolumeMount, contract.LogsSubPath, "*", "*.log"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	out, err := os.Create(filepath.Join(p.root, "limit.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	zstd := exec.Command("zstd", append([]string{"-1", "-q", "-c", "--single-thread"}, files...)...)
	zstd.Stdout = out
	c := startProcess(t, zstd).end(t)
	cfg := p.target.config
	args := []string{"-sSf", "-T", out.Name(), "--aws-sigv4", "aws:amz:" + cfg.Region + ":s3", "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-K", "-", cfg.Endpoint + "/" + cfg.Bucket + "/limit.zst"}
	if cfg.CABundle != "" {
		ca := filepath.Join(p.root, "limit.pem")
		if err := os.WriteFile(ca, []byte(cfg.CABundle), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--cacert", ca)
	}
	curl := exec.Command("curl", args...)
	curl.Stdin = strings.NewReader(fmt.Sprintf("user = %q\n", cfg.Credentials.AccessKeyID+":"+string(cfg.Credentials.SecretAccessKey)))
	put := startProcess(t, curl).end(t)
	return cost{wall: c.wall + put.wall, cpu: c.cpu + put.cpu}
}

// clear empties the spool.
func (p *pod) clear(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(p.root); err != nil {
		t.Fatal(err)
	}
}

func ship(t *testing.T, r *results) {
	shipper, tee, collector := binary(t, "./shipper"), binary(t, "./shipper/tee"), component(t, "otelcol")
	for _, c := range []struct {
		shape shape
		size  int64
		tls   bool
	}{
		{mixed, 300_000_000, false}, {short, 100_000_000, false}, {long, 300_000_000, false}, {mixed, 300_000_000, true}, {mixed, 1_000_000_000, false},
	} {
		name := fmt.Sprintf("%s lines, %d MB printed, %s", c.shape, c.size/1_000_000, map[bool]string{false: "http", true: "TLS"}[c.tls])
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			compare(t, r, name, c.shape, c.size, c.tls, shipper, tee, collector)
		})
	}
	t.Run("memory", func(t *testing.T) { memory(t, r, shipper, tee) })
}

// storedName is a sample that growth is computed from.
const storedName = "shipper, GB stored for a GB of mixed lines"

// kept is the size of the pod's objects.
func (p *pod) kept(t *testing.T) (n int64) {
	t.Helper()
	for e, err := range p.target.store.List(t.Context(), p.Pod.Prefix(), "", "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		n += e.Size
	}
	return n
}

func compare(t *testing.T, r *results, name string, s shape, size int64, withTLS bool, shipper, tee, collector string) {
	in := text(t, size, s)
	g := newTarget(t, withTLS)
	ours, theirs, least := samples{Name: "shipper, CPU for a GB, " + name, Unit: "s"}, samples{Name: "collector, CPU for a GB, " + name, Unit: "s"}, samples{Name: "limit, CPU for a GB, " + name, Unit: "s"}
	rss, theirRSS := samples{Name: "shipper, peak RSS, " + name, Unit: "MiB"}, samples{Name: "collector, peak RSS, " + name, Unit: "MiB"}
	speed, objects := samples{Name: "shipper, one log on one core, " + name, Unit: "MB/s"}, samples{Name: "shipper, segments, " + name}
	stored := samples{Name: storedName}
	var archived int64
	for range rounds(3) {
		p := newPod(t, g, 1)
		p.fill(t, tee, p.containers[0], in)
		archive := p.size(t)
		archived = archive
		c := p.limit(t)
		least.add(c.cpu.Seconds() / gb(archive))
		c = p.collector(t, collector, archive)
		theirs.add(c.cpu.Seconds() / gb(archive))
		theirRSS.add(mib(c.peak))
		c = p.drain(t, shipper, 0)
		ours.add(c.cpu.Seconds() / gb(archive))
		rss.add(mib(c.peak))
		got, segments := p.archived(t)
		if got != archive {
			t.Fatalf("%d bytes are archived, %d were in the spool", got, archive)
		}
		objects.add(float64(segments))
		stored.add(float64(p.kept(t)) / float64(archive))
		p.clear(t)

		p = newPod(t, g, 1)
		p.fill(t, tee, p.containers[0], in)
		c = p.drain(t, shipper, 1)
		speed.add(float64(archive) / 1e6 / c.wall.Seconds())
		p.clear(t)
	}
	r.keep(ours, theirs, least, rss, theirRSS, speed, objects)
	if s == mixed && size < 1_000_000_000 && !withTLS {
		r.keep(stored)
	}
	r.row("CPU for a GB, "+name, "collector ÷ 5", ratio(theirs, ours) >= 5, "the collector pays for each line, and there are few; compression is most of what is left, and both do it", "%v; the collector %v: **%.1f times less**", ours, theirs, ratio(theirs, ours))
	r.row("the same", "2.5 times `zstd -1` and one PUT", ratio(ours, least) <= 2.5, "", "the limit %v: **%.2f times the limit**", least, ratio(ours, least))
	r.row("peak RSS, "+name, "20 MiB", rss.most() <= 20, "", "%v; the collector %v", rss, theirRSS)
	r.row("one log on one core, "+name, "150 MB/s", speed.median() >= 150, "", "%v", speed)
	if size >= 1_000_000_000 {
		r.row("segments of 1 GB printed at once", "300", objects.most() <= 300, "they are of 6 MiB of archive, and the prefixes of short lines are much of that; `--segment-bytes` changes it", "%v; for a GB of archive %.0f", objects, objects.median()/gb(archived))
	}
}

// memory measures what grows with neither the log nor the number of containers: the shipper's memory, and its CPU for a byte.
func memory(t *testing.T, r *results, shipper, tee string) {
	g := newTarget(t, false)
	in := text(t, 1_000_000_000, mixed)
	table := "| printed | containers | CPU for a GB | peak RSS |\n|---|---|---|---|\n"
	for _, c := range []struct {
		megabytes  int64
		containers int
	}{{1, 1}, {10, 1}, {100, 1}, {1000, 1}, {10_000, 1}, {1000, 20}} {
		p := newPod(t, g, c.containers)
		live := p.shipper(t, shipper, 0)
		p.feed(t, tee, in, c.megabytes*1_000_000)
		live.until(t, 20*time.Minute, "the seals", func() bool { return p.sealed(t.Context()) })
		used := live.stop(t)
		archive, _ := p.archived(t)
		cpu := samples{Name: fmt.Sprintf("shipper, CPU for a GB, %d MB of %d containers, while they print", c.megabytes, c.containers), Unit: "s"}
		cpu.add(used.cpu.Seconds() / gb(archive))
		rss := samples{Name: fmt.Sprintf("shipper, peak RSS, %d MB of %d containers, while they print", c.megabytes, c.containers), Unit: "MiB"}
		rss.add(mib(used.peak))
		r.keep(cpu, rss)
		table += fmt.Sprintf("| %d MB | %d | %v | %v |\n", c.megabytes, c.containers, cpu, rss)
		if c.megabytes >= 1000 {
			r.row(fmt.Sprintf("peak RSS, %d GB printed by %d containers while it is shipped", c.megabytes/1000, c.containers), "20 MiB", rss.most() <= 20, "", "%v", rss)
		}
		p.clear(t)
	}
	r.Text = append(r.Text, "What the shipper takes while steps print, by how much they print (one run each; of 1 MB nearly all is the process's own start):\n\n"+table)

	p := newPod(t, g, 5)
	live := p.shipper(t, shipper, 0)
	wait(5 * time.Second) // until it has begun
	const idle = time.Minute
	before := live.cpu()
	wait(idle)
	used := (live.cpu() - before).Seconds() / idle.Seconds() * 1000
	now := samples{Name: "shipper, RSS, idle, 5 containers", Unit: "MiB", Values: []float64{mib(live.resident())}}
	cpu := samples{Name: "shipper, CPU, idle, 5 containers", Unit: "millicores", Values: []float64{used}}
	live.stop(t)
	r.keep(now, cpu)
	r.row("idle, 5 containers that print nothing", "10 MiB, 1 millicore", now.most() <= 10 && used <= 1, "", "%v, %v", now, cpu)
}

func wait(d time.Duration) { <-time.After(d) }

// feed has steps print so much in all, at most so fast that nothing has to be dropped: the shipper is measured, not the limit of the spool.
func (p *pod) feed(t *testing.T, tee, name string, size int64) {
	t.Helper()
	const most = 256 << 20
	var steps []*step
	for _, container := range p.containers {
		steps = append(steps, p.printing(t, tee, container))
	}
	in, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	buf := make([]byte, 1<<20)
	for i := 0; size > 0; i++ {
		n, err := in.Read(buf[:min(int64(len(buf)), size)])
		if errors.Is(err, io.EOF) {
			_, err = in.Seek(0, io.SeekStart)
		}
		if err != nil {
			t.Fatal(err)
		}
		steps[i%len(steps)].print(t, buf[:n])
		size -= int64(n)
		for i%16 == 0 && p.spooled() > most {
			wait(10 * time.Millisecond)
		}
	}
	for _, s := range steps {
		s.in.Close()
		s.tee.end(t)
	}
}

// spooled is what is in the spool now, while the shipper deletes it.
func (p *pod) spooled() (n int64) {
	for _, name := range p.containers {
		files, err := os.ReadDir(p.spool(name))
		if err != nil {
			continue
		}
		for _, f := range files {
			if _, ok := spool.ParseLogName(f.Name()); !ok {
				continue
			}
			if info, err := f.Info(); err == nil {
				n += info.Size()
			}
		}
	}
	return n
}
