//go:build linux

package hostile

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
)

var update = flag.Bool("update", false, "write what TestTenant measures into docs/security.md")

const (
	tenant   = "evil" // the namespace of who attacks
	innocent = "good" // and of who is there too
	// users is how many clients of the server the tenant is at most: the service accounts of so many
	// namespaces.
	users = 16
	// perUser is how many requests each of them has under way, and as many more that follow.
	perUser = 32
	// innocentPause is how often the other tenant reads.
	innocentPause = 100 * time.Millisecond
	// answerLimit is how long an answer may take for the other tenant before that fails the test. It
	// is no aim: the machine may be busy.
	answerLimit = 3 * time.Minute
)

// attackTime is how long an attack lasts. For the page it is longer, so that figures are of worse.
func attackTime() time.Duration {
	if *update {
		return 4 * time.Second
	}
	return 1500 * time.Millisecond
}

// world is what the processes are in.
type world struct {
	t        *testing.T
	store    *objectstore.Store // past the front
	front    *front
	settings objectstore.Config // by way of the front
	under    string             // what is put before each key
	cluster  apiserver.Server
	config   string // kubeconfig file of the administrator
	now      time.Time
	uids     map[string]types.UID // of namespaces
	tokens   []string             // the tenant's
	good     string               // the other tenant's
	writes   *errgroup.Group
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, now: time.Now().UTC().Truncate(time.Second), uids: map[string]types.UID{},
		writes: &errgroup.Group{},
	}
	w.cluster = apiserver.Start(t)
	store, config := archivetest.Start(t)
	w.store = store
	w.front, w.settings = newFront(t, config)
	w.writes.SetLimit(16)
	w.config = filepath.Join(t.TempDir(), "kubeconfig")
	admin := w.cluster.Admin
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		CurrentContext: "c",
		Contexts:       map[string]*clientcmdapi.Context{"c": {Cluster: "c", AuthInfo: "u"}},
		Clusters: map[string]*clientcmdapi.Cluster{
			"c": {Server: admin.Host, CertificateAuthorityData: admin.CAData},
		},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{
			"u": {ClientCertificateData: admin.CertData, ClientKeyData: admin.KeyData},
		},
	}, w.config)
	if err != nil {
		t.Fatal(err)
	}
	readers := []string{}
	for i := range users {
		readers = append(readers, fmt.Sprintf("%s-%d", tenant, i))
	}
	w.namespace(tenant)
	w.namespace(innocent)
	for _, namespace := range readers {
		w.namespace(namespace)
		w.tokens = append(w.tokens, w.token(namespace))
	}
	w.good = w.token(innocent)
	w.allow(tenant, readers...)
	w.allow(innocent, innocent)
	return w
}

// below is the same world with another archive in the same bucket.
func (w *world) below(t *testing.T, prefix string) *world {
	t.Helper()
	other := *w
	other.t, other.under = t, prefix+"/"
	other.settings.Prefix = prefix
	other.writes = &errgroup.Group{}
	other.writes.SetLimit(16)
	direct := w.settings
	direct.Prefix = prefix
	store, err := objectstore.New(t.Context(), direct)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	other.store = store
	return &other
}

func (w *world) namespace(name string) {
	w.t.Helper()
	core := w.cluster.Core.CoreV1()
	o := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	made, err := core.Namespaces().Create(w.t.Context(), o, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.uids[name] = made.UID
}

// token makes a service account in a namespace, and a token for it.
func (w *world) token(namespace string) string {
	w.t.Helper()
	accounts := w.cluster.Core.CoreV1().ServiceAccounts(namespace)
	o := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "reader"}}
	if _, err := accounts.Create(w.t.Context(), o, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	made, err := accounts.CreateToken(w.t.Context(), "reader", &authenticationv1.TokenRequest{},
		metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return made.Status.Token
}

// allow lets the readers of some namespaces read one's logs.
func (w *world) allow(namespace string, readers ...string) {
	w.t.Helper()
	rbac := w.cluster.Core.RbacV1()
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "logs"}, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{"pods/log"}, Verbs: []string{"get"},
	}}}
	if _, err := rbac.Roles(namespace).Create(w.t.Context(), role, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "logs"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "logs"},
	}
	for _, r := range readers {
		binding.Subjects = append(binding.Subjects,
			rbacv1.Subject{Kind: "ServiceAccount", Namespace: r, Name: "reader"})
	}
	_, err := rbac.RoleBindings(namespace).Create(w.t.Context(), binding, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
}

// put stores an object, soon.
func (w *world) put(key string, body []byte) {
	w.writes.Go(func() error { return w.store.Put(w.t.Context(), key, body) })
}

// stored waits until all that was put is stored.
func (w *world) stored() {
	w.t.Helper()
	if err := w.writes.Wait(); err != nil {
		w.t.Fatal(err)
	}
}

// run stores the record of a run, and what leads to it.
func (w *world) run(namespace, name string) layout.Run {
	w.t.Helper()
	return w.record(namespace, name, name+"-uid")
}

// record is run, with a UID.
func (w *world) record(namespace, name, uid string) layout.Run {
	w.t.Helper()
	r := record.Run{
		Kind: layout.PipelineRun, Namespace: namespace, Name: name, UID: uid,
		NamespaceUID: string(w.uids[namespace]), Created: w.now, Started: w.now,
	}
	if namespace == innocent { // the tenant's is followed
		r.Completed, r.State = w.now, record.Succeeded
	}
	return archivetest.PutRun(w.t, w.store, r)
}

// innocentLines are what the other tenant's step has printed.
const innocentLines = 2000

func innocentLine(i int) string { return fmt.Sprintf("line %d of who does no harm", i) }

// innocentRun stores the other tenant's run: one log, in so many segments.
func (w *world) innocentRun(name string, segments int) layout.Container {
	w.t.Helper()
	pod := layout.Pod{Run: w.run(innocent, name), TaskRun: name + "-build", PodUID: "pod-uid"}
	c := layout.Container{Pod: pod, Container: "step-a"}
	archivetest.PutPod(w.t, w.store, pod, record.Pod{
		PodName: name + "-build-pod", TaskRunUID: name + "-build-uid", PipelineTask: "build",
		Created: w.now,
		Containers: []record.Container{
			{Name: c.Container, Kind: record.Step, Captured: true},
		},
	})
	lines := archivetest.Lines(w.now, innocentLines, innocentLine)
	archivetest.PutLog(w.t, w.store, c, lines, innocentLines/segments)
	archivetest.PutRecord(w.t, w.store, c.SealKey(), archivetest.Seal(w.t, lines))
	return c
}

// server is the backend's process.
type server struct {
	*service
	url    string
	client *http.Client
}

// startServer starts the process that serves readers, and waits until it does.
func (w *world) startServer(t *testing.T, binary string, d deployed) *server {
	t.Helper()
	s := &server{client: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 2 * users * perUser, DisableCompression: true,
	}}}
	s.service = start(t, binary, d, environment(w.settings), "--host=127.0.0.1", "--port=0", "--cert-dir=",
		"--metrics-address=127.0.0.1:0", "--shutdown-delay=0s", "--kubeconfig="+w.config)
	t.Cleanup(s.client.CloseIdleConnections)
	s.url = "http://" + s.await("it serves", func(said string) string {
		for line := range strings.Lines(said) {
			var l struct{ Msg, Address string }
			if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "serving" {
				return l.Address
			}
		}
		return ""
	})
	return s
}

// get begins to read an answer.
func (s *server) get(ctx context.Context, path, token, coding string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if coding != "" {
		req.Header.Set("Accept-Encoding", coding)
	}
	return s.client.Do(req)
}

// answer reads a whole answer.
func (s *server) answer(ctx context.Context, path, token string) (status int, b []byte, err error) {
	resp, err := s.get(ctx, path, token, "")
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err = io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// latency is how long answers took.
type latency struct{ median, most time.Duration }

func latencyOf(took []time.Duration) latency {
	slices.Sort(took)
	if len(took) == 0 {
		return latency{}
	}
	return latency{took[len(took)/2], took[len(took)-1]}
}

func (l latency) String() string { return fmt.Sprintf("%s, %s", round(l.median), round(l.most)) }

// round leaves two digits.
func round(d time.Duration) string {
	for _, unit := range []time.Duration{time.Second, 100 * time.Millisecond, 10 * time.Millisecond,
		time.Millisecond, 100 * time.Microsecond} {
		if d >= 10*unit {
			return d.Round(unit).String()
		}
	}
	return d.Round(10 * time.Microsecond).String()
}

// innocentPaths are what the other tenant reads, whose answers are always the same.
func innocentPaths(c layout.Container) []string {
	of := "/api/v1/namespaces/" + innocent + "/runs"
	return []string{
		"/api/v1/containers/" + api.PathOf(c) + "/logs",
		of + "/" + c.Run.Name + "/logs",
		of + "/" + c.Run.Name + "/search?q=1999",
		"/ui/-/lines/" + api.PathOf(c) + "?from=1&count=1000",
		of + "?limit=50&name=" + c.Run.Name,
	}
}

// innocentReads reads as the other tenant until the context ends, and at least once each. Whatever
// the tenant does, the answers are as they were before.
func (s *server) innocentReads(ctx context.Context, token string, want map[string][]byte) latency {
	s.t.Helper()
	tick := time.NewTicker(innocentPause)
	defer tick.Stop()
	limit, cancel := context.WithTimeout(s.t.Context(), answerLimit)
	defer cancel()
	var took []time.Duration
	paths := slices.Sorted(func(yield func(string) bool) {
		for path := range want {
			if !yield(path) {
				return
			}
		}
	})
	for i := 0; i < len(paths) || ctx.Err() == nil; i++ {
		path := paths[i%len(paths)]
		begun := time.Now()
		status, b, err := s.answer(limit, path, token)
		took = append(took, time.Since(begun))
		if err != nil || status != http.StatusOK || !bytes.Equal(b, want[path]) {
			s.t.Errorf("the other tenant's %s has status %d, error %v, %d bytes: %.300s", path, status,
				err, len(b), b)
			return latencyOf(took)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return latencyOf(took)
}

// hostileReads reads as the tenant until the context ends: as many requests at once as so many of
// its users may have, and as many that follow. Some read as slowly as they can. Not every attack has
// logs, but every run has a page: one that is not found fails the test.
func (s *server) hostileReads(ctx context.Context, tokens []string, paths, follows []string) map[int]int {
	var group sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	reader := func(n int, token string, paths []string) {
		for i := n; ctx.Err() == nil && len(paths) > 0; i++ {
			coding := []string{"", "zstd", "gzip"}[i%3]
			resp, err := s.get(ctx, paths[i%len(paths)], token, coding)
			if err != nil {
				continue
			}
			mu.Lock()
			statuses[resp.StatusCode]++
			mu.Unlock()
			path := resp.Request.URL.Path
			if resp.StatusCode == http.StatusNotFound && strings.HasPrefix(path, "/ui/"+tenant) {
				s.t.Errorf("%s is not found", path)
			}
			if n%4 == 1 && resp.StatusCode == http.StatusOK {
				_, _ = io.CopyN(io.Discard, resp.Body, 1000) // it may be shorter
				<-ctx.Done()
			}
			_, _ = io.Copy(io.Discard, resp.Body) // broken off, it may be
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				select {
				case <-time.After(20 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		}
	}
	for _, token := range tokens {
		for n := range perUser {
			group.Go(func() { reader(n, token, paths) })
			group.Go(func() { reader(n, token, follows) })
		}
	}
	group.Wait()
	return statuses
}

// measured is a row of the page.
type measured struct {
	attack, bound string
	memory, limit int64 // bytes
	waits         string
}

// TestTenant plays a tenant who writes the worst objects that it can think of below the prefix of its
// own pod, and has them read, each attack by as many requests as it may send. No process of shiplog's
// is killed for want of memory, within the limits of the manifests, and another tenant is answered
// rightly all the while.
//
// What was measured goes into docs/security.md with -update. How fast it is fails nothing.
func TestTenant(t *testing.T) {
	w := newWorld(t)
	backend := build(t, "./backend/cmd/backend")
	compactor := compactorAttacks()
	last := len(compactor) - 1
	var stalled []measured
	var group sync.WaitGroup
	group.Go(func() { stalled = w.compactorRows(t, backend, compactor[last:]) })
	rows := w.serverRows(t, backend)
	rows = append(rows, w.compactorRows(t, backend, compactor[:last])...)
	annotator := w.annotatorRows(t)
	group.Wait()
	rows = append(append(rows, stalled...), annotator...)
	if t.Failed() || t.Skipped() {
		return
	}
	holdPage(t, rows)
}

// serverRows attacks the process that serves readers, anew for each attack.
func (w *world) serverRows(t *testing.T, binary string) (rows []measured) {
	d := deployment(t, "backend.yaml")
	c := w.innocentRun("run", 50)
	want := map[string][]byte{}
	for _, a := range tenantAttacks() {
		t.Run(strings.ReplaceAll(a.name, " ", "-"), func(t *testing.T) {
			var run layout.Run
			if a.store != nil {
				run = w.run(tenant, fmt.Sprintf("run-%d", len(rows)))
				a.store(&hostileRun{world: w, Run: run})
				w.stored()
			}
			s := w.startServer(t, binary, d)
			for _, path := range innocentPaths(c) {
				status, b, err := s.answer(t.Context(), path, w.good)
				if err != nil || status != http.StatusOK {
					t.Fatalf("%s: status %d, %v: %s", path, status, err, b)
				}
				if want[path] == nil {
					want[path] = b
				}
			}
			checkInnocent(t, want[innocentPaths(c)[0]])
			if a.says != nil {
				a.says(t, &reading{s, w.tokens[0], run})
			}
			ctx, cancel := context.WithTimeout(t.Context(), attackTime())
			defer cancel()
			var statuses map[int]int
			var group sync.WaitGroup
			if a.store != nil {
				paths, follows := a.paths(run), a.follows(run)
				group.Go(func() {
					statuses = s.hostileReads(ctx, w.tokens[:max(1, a.users)], paths, follows)
				})
			}
			waits := s.innocentReads(ctx, w.good, want)
			cancel()
			group.Wait()
			said, _ := s.journal.now()
			if strings.Contains(said, "panic") {
				t.Errorf("the process has panicked:\n%s", tail(said))
			}
			most := s.stop()
			t.Logf("%.0f MiB of %d, another waits %s; answers: %v", mib(most), d.limit>>20, waits,
				statuses)
			rows = append(rows, measured{a.name, a.bound, most, d.limit, waits.String()})
		})
	}
	return rows
}

// checkInnocent holds the other tenant's log against what was printed.
func checkInnocent(t *testing.T, log []byte) {
	t.Helper()
	var b strings.Builder
	for i := range innocentLines {
		b.WriteString(innocentLine(i) + "\n")
	}
	if string(log) != b.String() {
		t.Fatalf("the other tenant's log has %d bytes, want %d", len(log), b.Len())
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// reading is how a tenant looks at a run of its own.
type reading struct {
	*server
	token string
	run   layout.Run
}

// of is the path of the run.
func (r *reading) of(more string) string {
	return "/api/v1/namespaces/" + tenant + "/runs/" + r.run.Name + more
}

// read reads a whole answer, and fails the test where it is none.
func (r *reading) read(t *testing.T, path string) []byte {
	t.Helper()
	status, b, err := r.answer(t.Context(), path, r.token)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%s: status %d, %v: %.300s", path, status, err, b)
	}
	return b
}

// states are what the tree says of each log.
func (r *reading) states(t *testing.T) (states []string) {
	t.Helper()
	var tree api.Tree
	if err := json.Unmarshal(r.read(t, r.of("")), &tree); err != nil {
		t.Fatal(err)
	}
	for _, task := range tree.TaskRuns {
		for _, p := range task.Pods {
			for _, c := range p.Containers {
				states = append(states, strings.TrimSpace(string(c.Status)+": "+c.Why))
			}
		}
	}
	return states
}

// The table is between these lines of the page.
const (
	securityPage = "../../docs/security.md"
	tableBegins  = "<!-- measured by go test ./tests/hostile -run Tenant -update -->\n"
	tableEnds    = "<!-- end of what is measured -->\n"
)

// holdPage holds the page to the attacks and their bounds, and with -update writes what was measured.
// Figures move from machine to machine, so they are held to nothing.
func holdPage(t *testing.T, rows []measured) {
	t.Helper()
	page, err := os.ReadFile(securityPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), tableBegins)
	table, after, closed := strings.Cut(rest, tableEnds)
	if !ok || !closed {
		t.Fatalf("%s has no place for the table", securityPage)
	}
	if *update {
		table = "\n" + tableOf(rows) + "\n"
		text := before + tableBegins + table + tableEnds + after
		if err := os.WriteFile(securityPage, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var want, have []string
	for _, r := range rows {
		want = append(want, fmt.Sprintf("| %s | %s ", r.attack, r.bound))
	}
	for line := range strings.Lines(table) {
		if cells := strings.SplitN(line, "|", 4); len(cells) == 4 && cells[1] != " attack " && cells[1] != "---" {
			have = append(have, "|"+cells[1]+"|"+cells[2])
		}
	}
	if !slices.Equal(want, have) {
		t.Errorf("%s tells of other attacks: run this test with -update", securityPage)
	}
}

func tableOf(rows []measured) string {
	var b strings.Builder
	b.WriteString("| attack | bound | most memory | another tenant waits |\n|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %.0f of %.0f MiB | %s |\n", r.attack, r.bound, mib(r.memory),
			mib(r.limit), r.waits)
	}
	return b.String()
}
