//go:build linux

// Package rig is a pod without Kubernetes, for tests that break things: a spool volume, the real shipper in a root folder that is like its image, the real tee with a step that prints a
// sequence, a real S3 server with a proxy before it, a ticket service that signs real POST policies, and the real CLI, which reads what is there.
package rig

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/objectstore/s3test"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/ticket"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// bin is the folder of the binaries.
var bin string

// Main builds the binaries, and runs the tests. It is for TestMain.
func Main(m *testing.M) (code int) {
	dir, err := os.MkdirTemp("", "shiplog-loss-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	for name, pkg := range map[string]string{
		"shipper": "shipper", "tee": "shipper/tee", "shiplog": "backend/cmd/shiplog", "sequence": "tests/loss/sequence/cmd",
	} {
		// As the Makefile builds them.
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(bin, name), "github.com/shiplog-dev/shiplog/"+pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
			return 1
		}
	}
	return m.Run()
}

// NeedRoot leaves a test out for those who may not mount or change the root folder. CI may.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs root, and CI must run it")
	}
	t.Skip("left out: it needs root, for a root folder of the shipper's own")
}

// strace and chroot are the programs' paths, where they are.
var (
	strace, straceErr = exec.LookPath("strace")
	chroot, chrootErr = exec.LookPath("chroot")
)

// needStrace leaves a test out where strace is missing. It must be there in CI.
func needStrace(t testing.TB) {
	t.Helper()
	err := errors.Join(straceErr, chrootErr)
	if err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs strace, and CI must run it: %v", err)
	}
	t.Skipf("left out: it kills processes at one system call: %v", err)
}

const (
	namespace = "builds"
	token     = "a-pod's-token"
	// shipperUser is who the shipper runs as; steps run as root. It owns nothing but what it makes.
	shipperUser = 65532
)

// Pod is a pod.
type Pod struct {
	Config  contract.Config
	S3      *Proxy
	Tickets *TicketService
	OnDeath func() // is called when a shipper's process has ended, before the next begins

	t      testing.TB
	root   string // the shipper's
	volume string // where the spool is
	store  objectstore.Config
	direct *objectstore.Store // past the proxy
	key    layout.Pod

	mu      sync.Mutex
	shipper *shipperProcess
	log     bytes.Buffer // the shippers'
	moments []Moment     // at which no shipper was killed yet
}

// Options say what a pod is like. The zero value is like an installation without settings.
type Options struct {
	Containers []string
	// Limit is the most unshipped output of all containers together, 1 GiB if it is not set.
	Limit int64
	// DiskFree is how many percent of the disk the spool leaves free.
	DiskFree int64
	// Mount, if set, mounts the volume's file system.
	Mount func(t testing.TB, dir string)
}

// New makes a pod whose containers have not started yet.
func New(t testing.TB, o Options) *Pod {
	t.Helper()
	NeedRoot(t)
	p := &Pod{t: t, root: t.TempDir(), store: s3test.Start(t, s3test.Versity)}
	p.volume = filepath.Join(p.root, contract.VolumeMount)
	p.S3 = newProxy(t, p.store.Endpoint)
	p.key = layout.Pod{
		Run:     layout.Run{Namespace: namespace, Name: "run", UID: "5a5c6b0e-run"},
		TaskRun: "run-task", PodUID: "5a5c6b0e-pod",
	}
	p.direct = p.open(p.store)
	p.Tickets = newTicketService(t, p)
	p.Config = contract.Config{
		TicketURL: p.Tickets.URL + ticket.Path, Containers: o.Containers, SegmentBytes: 4 << 20,
		FlushInterval: contract.Duration(time.Second), SlowFlushInterval: contract.Duration(5 * time.Second),
		SpoolLimit: cmp.Or(o.Limit, 1<<30), DiskFree: o.DiskFree,
	}
	p.writeRecords()

	// The shipper's root folder, as in its image, and with the /proc that each container has.
	for _, dir := range []string{contract.VolumeMount, contract.TokenMount, "proc"} {
		if err := os.MkdirAll(filepath.Join(p.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	proc := filepath.Join(p.root, "proc")
	if err := unix.Mount("/proc", proc, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount /proc for the shipper: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(proc, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the shipper's /proc: %v", err)
		}
	})
	if err := os.Chmod(p.root, 0o755); err != nil {
		t.Fatal(err)
	}
	if o.Mount != nil {
		o.Mount(t, p.volume)
	}
	if err := os.Chmod(p.volume, 0o777); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"shipper": contract.ShipperBinary, "tee": contract.TeeSource} {
		if err := os.Link(filepath.Join(bin, from), filepath.Join(p.root, to)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.root, contract.TokenFile), []byte(token), 0o644); err != nil {
		t.Fatal(err)
	}
	// The postStart hook.
	if out, err := p.shipperCommand("install").CombinedOutput(); err != nil {
		t.Fatalf("shipper install: %v\n%s", err, out)
	}
	return p
}

// AwaitShipper waits until a shipper that was started looks at the spool, which takes it less time than the kubelet takes from the postStart hook to the first container.
func (p *Pod) AwaitShipper() {
	p.t.Helper()
	Until(p.t, "a shipper that looks at the spool", time.Minute, p.shipper.running)
}

func (p *Pod) open(c objectstore.Config) *objectstore.Store {
	p.t.Helper()
	s, err := objectstore.New(p.t.Context(), c)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(s.Close)
	return s
}

// writeRecords writes what the ticket service writes with the pod's first ticket.
func (p *Pod) writeRecords() {
	p.t.Helper()
	run, err := record.Encode(record.Run{
		Kind: layout.PipelineRun, Namespace: namespace, Name: p.key.Name, UID: p.key.UID, Created: time.Now().UTC(), Tasks: []string{"task"},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	r := record.Pod{
		Namespace: namespace, PodName: "run-task-pod", PodUID: p.key.PodUID, TaskRun: p.key.TaskRun, TaskRunUID: "5a5c6b0e-task", PipelineTask: "task", Created: time.Now().UTC(),
	}
	for _, name := range p.Config.Containers {
		r.Containers = append(r.Containers, record.Container{Name: name, Kind: record.Step, Captured: true})
	}
	pod, err := record.Encode(r)
	if err != nil {
		p.t.Fatal(err)
	}
	for key, b := range map[string][]byte{p.key.RunKey(): run, p.key.PodKey(): pod} {
		if err := p.direct.Put(p.t.Context(), key, b); err != nil {
			p.t.Fatal(err)
		}
	}
}

// Folder is a container's folder in the spool.
func (p *Pod) Folder(container string) string {
	return filepath.Join(p.volume, contract.LogsSubPath, container)
}

// StateFolder is the shipper's own.
func (p *Pod) StateFolder() string { return filepath.Join(p.volume, contract.StateSubPath) }

// Volume is the folder of the whole volume.
func (p *Pod) Volume() string { return p.volume }

// EnsureBucket makes the bucket of a store's config.
func (p *Pod) EnsureBucket(bucket string) {
	p.t.Helper()
	c := p.store
	c.Bucket = bucket
	if err := p.open(c).EnsureBucket(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
}

// Use makes another bucket the archive. Its records are written anew.
func (p *Pod) Use(bucket string) {
	p.t.Helper()
	p.store.Bucket = bucket
	p.direct = p.open(p.store)
	p.writeRecords()
}

// Objects are the names of the container's objects, in order.
func (p *Pod) Objects(container string) (names []string) {
	p.t.Helper()
	prefix := layout.Container{Pod: p.key, Container: container}.Prefix()
	for e, err := range p.direct.List(p.t.Context(), prefix, "", "", 0) {
		if err != nil {
			p.t.Fatal(err)
		}
		names = append(names, strings.TrimPrefix(e.Key, prefix))
	}
	return names
}

// Seal is a container's seal.
func (p *Pod) Seal(container string) record.Seal {
	p.t.Helper()
	r, err := p.direct.Get(p.t.Context(), layout.Container{Pod: p.key, Container: container}.SealKey())
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		p.t.Fatal(err)
	}
	seal, err := record.Decode[record.Seal](b)
	if err != nil {
		p.t.Fatal(err)
	}
	return seal
}

// TicketService signs POST policies for the pod.
type TicketService struct {
	URL string

	pod   *Pod
	mu    sync.Mutex
	sign  func(ctx context.Context) (ticket.Ticket, error)
	calls int
}

func newTicketService(t testing.TB, p *Pod) *TicketService {
	s := &TicketService{pod: p}
	s.Sign(func(ctx context.Context) (ticket.Ticket, error) { return s.Good(ctx, nil) })
	server := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// Good signs a ticket as the ticket service does, for the pod's prefix and through the proxy. What is to be otherwise is changed first.
func (s *TicketService) Good(ctx context.Context, change func(c *objectstore.Config, maxBytes *int64, lifetime *time.Duration)) (ticket.Ticket, error) {
	c, maxBytes, lifetime := s.pod.store, int64(64<<20), 6*time.Hour
	c.Endpoint = s.pod.S3.URL
	if change != nil {
		change(&c, &maxBytes, &lifetime)
	}
	store, err := objectstore.New(ctx, c)
	if err != nil {
		return ticket.Ticket{}, err
	}
	defer store.Close()
	return store.SignUpload(ctx, s.pod.key.Prefix(), maxBytes, lifetime)
}

// Sign sets how tickets are signed. An error is answered as 503.
func (s *TicketService) Sign(sign func(ctx context.Context) (ticket.Ticket, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sign = sign
}

// Calls is how many tickets were asked for.
func (s *TicketService) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func (s *TicketService) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != ticket.Path || r.Header.Get("Authorization") != "Bearer "+token {
		http.Error(w, "no", http.StatusForbidden)
		return
	}
	s.mu.Lock()
	s.calls++
	sign := s.sign
	s.mu.Unlock()
	t, err := sign(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_ = json.NewEncoder(w).Encode(t)
}

// Reading is what the reader says of a container's log.
type Reading struct {
	Report sequence.Report
	Status backend.Status
	Why    string
	Exit   int    // the exit code of "shiplog logs"
	Said   string // its stderr
}

// Told is what the reader says, in a few words.
func (r Reading) Told() string {
	told := string(r.Status)
	if r.Report.Gaps > 0 {
		told += ", bytes are missing"
	}
	if r.Why != "" {
		why, _, _ := strings.Cut(r.Why, " at 2")
		told += ": " + why
	}
	return fmt.Sprintf("%s; exit code %d", told, r.Exit)
}

// Read reads a container's log with the CLI, and checks it. Ahead is how far the reader's clock is ahead of the store's.
func (p *Pod) Read(container string, seed uint64, printed int64, ahead time.Duration) Reading {
	p.t.Helper()
	c := p.store
	if ahead > 0 {
		c.Endpoint = newAgeing(p.t, c.Endpoint, ahead)
	}
	var r Reading
	var out, said bytes.Buffer
	cli := func(stdout io.Writer, args ...string) int {
		cmd := exec.Command(filepath.Join(bin, "shiplog"), args...)
		cmd.Env = []string{
			objectstore.EnvBucket + "=" + c.Bucket, objectstore.EnvEndpoint + "=" + c.Endpoint, objectstore.EnvRegion + "=" + c.Region,
			"AWS_ACCESS_KEY_ID=" + c.Credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + string(c.Credentials.SecretAccessKey),
		}
		said.Reset()
		cmd.Stdout, cmd.Stderr = stdout, &said
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			p.t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode()
	}
	if code := cli(&out, "ls", "-n", namespace, "-o", "json", p.key.Name); code != 0 {
		p.t.Fatalf("shiplog ls: exit code %d: %s", code, &said)
	}
	var tree backend.Tree
	if err := json.Unmarshal(out.Bytes(), &tree); err != nil {
		p.t.Fatal(err)
	}
	for _, listed := range tree.TaskRuns[0].Pods[0].Containers {
		if listed.Name == container {
			r.Status, r.Why = listed.Status, listed.Why
		}
	}
	check := sequence.NewChecker(sequence.Stream{Seed: seed})
	r.Exit = cli(check, "logs", "-n", namespace, "--container", container, "--raw", p.key.Name)
	r.Said = said.String()
	r.Report = check.Finish(printed)
	if strings.Contains(r.Said, "bytes are missing here") {
		// Where they are missing is in the archive's lines.
		r.Report = p.readLines(container, seed, printed)
	}
	return r
}

// readLines checks a log with its gap markers.
func (p *Pod) readLines(container string, seed uint64, printed int64) sequence.Report {
	p.t.Helper()
	archive := backend.New(p.direct)
	tree, err := archive.Tree(p.t.Context(), backend.Target{Run: p.key.Run})
	if err != nil {
		p.t.Fatal(err)
	}
	check := sequence.NewChecker(sequence.Stream{Seed: seed})
	for _, c := range tree.TaskRuns[0].Pods[0].Containers {
		if c.Name != container {
			continue
		}
		for l, err := range archive.Lines(p.t.Context(), c, backend.LogOptions{}) {
			if err == nil {
				err = check.Line(l.Line, "stdout")
			}
			if err != nil {
				p.t.Fatal(err)
			}
		}
	}
	return check.Finish(printed)
}
