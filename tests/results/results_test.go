// Package results tests that Tekton Results, as it is, serves the archive: its real API server on a real PostgreSQL asks our handler for logs in a real S3 server, a real Kubernetes API server says that it may, and tkn-results prints them.
package results

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/access"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/backend/loki"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const namespace = "builds"

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// world is everything between a user of tkn-results and the bucket.
type world struct {
	store *objectstore.Store
	url   string // of Results
	home  string // of the user

	mu       sync.Mutex
	requests []string // the paths and queries that Results sent
}

// faulty is a store that has lost its objects of one pod, from the second segment on, since it was asked what there is.
type faulty struct{ *objectstore.Store }

func (f faulty) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if k, err := layout.ParseKey(key); err == nil && k.Kind == layout.KindSegment && k.Container.PodUID == brokenPod && k.Segment.Offset > 0 {
		return nil, fmt.Errorf("get %s: the store is down", key)
	}
	return f.Store.Get(ctx, key)
}

// newWorld starts Results with its own settings, but for those that are given. Its service account has the ClusterRole of docs/reading.md in every namespace, or in one alone.
func newWorld(t *testing.T, settings map[string]string, everywhere bool) *world {
	t.Helper()
	binaries := built(t)
	cluster := apiserver.Start(t)
	w := &world{home: t.TempDir()}
	w.store, _ = archivetest.Start(t)
	gate, err := access.New(access.Options{
		Client:           cluster.Core,
		FormerNamespaces: true, // the runs of these tests are older than their namespaces
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := loki.New(loki.Options{Archive: backend.New(faulty{w.store}), Gate: gate, Log: slog.New(slog.DiscardHandler)})
	mux := http.NewServeMux()
	for _, path := range []string{loki.Path, loki.DefaultPath} {
		mux.HandleFunc(path, func(rw http.ResponseWriter, r *http.Request) {
			w.mu.Lock()
			w.requests = append(w.requests, r.URL.Path+" "+r.URL.Query().Encode())
			w.mu.Unlock()
			handler.ServeHTTP(rw, r)
		})
	}
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)

	token := filepath.Join(w.home, "token")
	if err := os.WriteFile(token, []byte(resultsToken(t, cluster, everywhere)), 0o600); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	all := map[string]string{"LOGGING_PLUGIN_TOKEN_PATH": token, "AUTH_DISABLE": "true"} // who may ask Results is its own affair
	maps.Copy(all, settings)
	all["LOGGING_PLUGIN_API_URL"] = server.URL
	w.url = startResults(t, binaries, all, "LOGGING_PLUGIN_CA_CERT="+string(ca))
	if c := w.tkn(t, "config", "set", "--host="+w.url, "--token=none", "--kubeconfig="+w.kubeconfig(t)); c.code != 0 {
		t.Fatalf("tkn-results config set: %+v", c)
	}
	return w
}

// resultsToken is a token of the service account that Results has, with the rights that docs/reading.md gives it: in every namespace, or in one alone.
func resultsToken(t *testing.T, cluster apiserver.Server, everywhere bool) string {
	t.Helper()
	const home, name = "tekton-pipelines", "tekton-results-api"
	for _, n := range []string{home, namespace} {
		if _, err := cluster.Core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cluster.Core.CoreV1().ServiceAccounts(home).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	role, binding, ok := strings.Cut(documented(t, "results-rights"), "\n---\n")
	if !ok {
		t.Fatal("docs/reading.md gives no role and binding")
	}
	var r rbacv1.ClusterRole
	var b rbacv1.ClusterRoleBinding
	if err := yaml.UnmarshalStrict([]byte(role), &r); err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict([]byte(binding), &b); err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.Core.RbacV1().ClusterRoles().Create(t.Context(), &r, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var err error
	if everywhere {
		_, err = cluster.Core.RbacV1().ClusterRoleBindings().Create(t.Context(), &b, metav1.CreateOptions{})
	} else {
		_, err = cluster.Core.RbacV1().RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{ObjectMeta: b.ObjectMeta, RoleRef: b.RoleRef, Subjects: b.Subjects}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	token, err := cluster.Core.CoreV1().ServiceAccounts(home).CreateToken(t.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return token.Status.Token
}

// documented is the block of docs/reading.md behind a comment of this name, without its indentation.
func documented(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/reading.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "<!-- "+name+" -->\n")
	var lines []string
	for i, line := range strings.Split(rest, "\n") {
		line = strings.TrimPrefix(line, "   ")
		if i == 0 {
			ok = ok && strings.HasPrefix(line, "```")
			continue
		}
		if line == "```" {
			break
		}
		lines = append(lines, line)
	}
	if !ok {
		t.Fatalf("docs/reading.md has no block %s", name)
	}
	return strings.Join(lines, "\n")
}

// documentedSettings are those that docs/reading.md gives.
func documentedSettings(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.SplitSeq(documented(t, "results-settings"), "\n") {
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			t.Fatalf("docs/reading.md: %q is no setting", line)
		}
		out[name] = value
	}
	return out
}

// kubeconfig is the user's, of a cluster that tkn-results does not ask.
func (w *world) kubeconfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(w.home, "kubeconfig")
	if _, err := os.Stat(file); err == nil {
		return file
	}
	const text = `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}], users: [{name: u, user: {}}]}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// command is what came of a command.
type command struct {
	stdout, stderr string
	code           int
}

// tkn runs tkn-results.
func (w *world) tkn(t *testing.T, args ...string) command {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(built(t), "tkn-results"), args...)
	cmd.Env = []string{"HOME=" + w.home, "PATH=" + os.Getenv("PATH")}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return command{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// logs prints the log of a TaskRun or PipelineRun, as a user does.
func (w *world) logs(t *testing.T, namespace, kind, name string) command {
	t.Helper()
	return w.tkn(t, kind, "logs", name, "-n", namespace, "--kubeconfig="+w.kubeconfig(t))
}

// show compares what is printed of a run's log.
func (w *world) show(t *testing.T, kind, name, want string) {
	t.Run(kind+" "+name, func(t *testing.T) {
		got := w.logs(t, namespace, kind, name)
		if got.code != 0 || got.stderr != "" {
			t.Errorf("ended with %d: %s", got.code, got.stderr)
		}
		if diff := cmp.Diff(want, got.stdout); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// refuse sees to it that nothing is printed of a run's log, and that this is an error. Results tells no more than this of any; its own log does.
func (w *world) refuse(t *testing.T, why, namespace, name, says string) {
	t.Run(why, func(t *testing.T) {
		got := w.logs(t, namespace, "taskrun", name)
		if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, says) || !strings.Contains(got.stderr, "(code: 500)") {
			t.Errorf("%+v", got)
		}
	})
}

// post sends something to Results as its watcher does.
func (w *world) post(t *testing.T, path string, v any) {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"/apis/results.tekton.dev/v1alpha2/parents/"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("POST %s: %s %s %v", path, res.Status, text, err)
	}
}

// record makes a Result, and in it a record of each object.
func (w *world) record(t *testing.T, objects ...metav1.Object) {
	t.Helper()
	parent := objects[0].GetNamespace()
	result := parent + "/results/" + string(objects[0].GetUID())
	w.post(t, parent+"/results", map[string]any{"name": result})
	for _, o := range objects {
		data, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		kind := "tekton.dev/v1.TaskRun"
		if _, ok := o.(*pipelinev1.PipelineRun); ok {
			kind = "tekton.dev/v1.PipelineRun"
		}
		w.post(t, result+"/records", map[string]any{
			"name": result + "/records/" + string(o.GetUID()), "data": map[string]any{"type": kind, "value": base64.StdEncoding.EncodeToString(data)},
		})
	}
}

func meta(name, uid string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}
}

func at(d time.Duration) *metav1.Time { return &metav1.Time{Time: start.Add(d)} }

func taskRun(name, uid string) *pipelinev1.TaskRun {
	tr := &pipelinev1.TaskRun{TypeMeta: metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "TaskRun"}, ObjectMeta: meta(name, uid)}
	tr.Status.StartTime, tr.Status.CompletionTime = at(0), at(time.Minute)
	return tr
}

func pipelineRun(name, uid string) *pipelinev1.PipelineRun {
	pr := &pipelinev1.PipelineRun{TypeMeta: metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "PipelineRun"}, ObjectMeta: meta(name, uid)}
	pr.Status.StartTime, pr.Status.CompletionTime = at(0), at(time.Minute)
	return pr
}

const (
	runUID   = "11111111-1111-4111-8111-111111111111"
	buildUID = "22222222-2222-4222-8222-222222222222"
	testUID  = "33333333-3333-4333-8333-333333333333"
	loneUID  = "44444444-4444-4444-8444-444444444444"
	longUID  = "55555555-5555-4555-8555-555555555555"
	oldUID   = "66666666-6666-4666-8666-666666666666"

	brokenPod = "pod-broken"
	// foreign is a namespace in which Results may not read where it may not read everywhere.
	foreign = "foreign"
)

// printed are what the steps print. Each is archived in lines of both streams, in several segments.
var printed = struct{ compile, link, unit, lone, long string }{
	compile: "compiling\n\x1b[32mok\x1b[0m\t\"quoted\" \\ <b>&amp;\u2028\n\n  indented\r\n",
	link:    "linking\n",
	unit:    "ünit 😀\nhalf a line",
	lone:    "only one step\n\nwith an empty line, NUL \x00, and \xff\xfe that are not UTF-8\n" + strings.Repeat("long ", 40_000) + "\nlast\n",
	long: func() string {
		var b strings.Builder
		for i := range 2000 {
			fmt.Fprintf(&b, "line %d\n", i+1)
		}
		return b.String()
	}(),
}

// archiveLines are the archive's lines of what was printed, with long lines in pieces, a microsecond apart.
func archiveLines(printed string) (b []byte) {
	streams := []criline.Stream{criline.Stdout, criline.Stderr}
	n := 0
	add := func(full bool, text string) {
		b = criline.Append(b, start.Add(time.Duration(n)*time.Microsecond), streams[n/3%2], full, []byte(text))
		n++
	}
	for line := range strings.Lines(printed) {
		text, full := strings.CutSuffix(line, "\n")
		for len(text) > criline.MaxText {
			b = criline.Append(b, start.Add(time.Duration(n)*time.Microsecond), streams[n/3%2], false, []byte(text[:criline.MaxText]))
			text = text[criline.MaxText:]
		}
		add(full, text)
	}
	return b
}

// archive stores a run of two tasks, and TaskRuns without one: with any bytes, with many lines, with a fault, and in another namespace. Results has the records of all, and of one more.
func (w *world) archive(t *testing.T) {
	t.Helper()
	run := archivetest.PutRun(t, w.store, record.Run{Kind: layout.PipelineRun, Namespace: namespace, Name: "my-run", UID: runUID, Created: start, Tasks: []string{"build", "test"}})
	lone := layout.Run{Namespace: namespace, Name: layout.NoPipelineRun, UID: loneUID}
	w.putPod(t, layout.Pod{Run: run, TaskRun: "my-run-build", PodUID: "pod-1"}, "build", buildUID, "step-compile", printed.compile, "step-link", printed.link)
	w.putPod(t, layout.Pod{Run: run, TaskRun: "my-run-test", PodUID: "pod-2"}, "test", testUID, "step-unit", printed.unit)
	w.putPod(t, layout.Pod{Run: lone, TaskRun: "lone", PodUID: "pod-3"}, "", loneUID, "step-only", printed.lone)
	long := layout.Run{Namespace: namespace, Name: layout.NoPipelineRun, UID: longUID}
	w.putPod(t, layout.Pod{Run: long, TaskRun: "long", PodUID: "pod-4"}, "", longUID, "step-print", printed.long)
	broken := layout.Run{Namespace: namespace, Name: layout.NoPipelineRun, UID: "broken"}
	w.putPod(t, layout.Pod{Run: broken, TaskRun: "broken", PodUID: brokenPod}, "", broken.UID, "step-print", printed.long)
	other := layout.Run{Namespace: foreign, Name: layout.NoPipelineRun, UID: "other"}
	w.putPod(t, layout.Pod{Run: other, TaskRun: "other", PodUID: "pod-5"}, "", other.UID, "step-print", printed.link)

	w.record(t, pipelineRun("my-run", runUID), taskRun("my-run-build", buildUID), taskRun("my-run-test", testUID))
	w.record(t, taskRun("lone", loneUID))
	w.record(t, taskRun("long", longUID))
	w.record(t, taskRun("broken", broken.UID))
	w.record(t, taskRun("before-shiplog", oldUID))
	elsewhere := taskRun("other", other.UID)
	elsewhere.Namespace = foreign
	w.record(t, elsewhere)
}

// putPod archives a pod whose steps are names and what they print.
func (w *world) putPod(t *testing.T, p layout.Pod, task, uid string, steps ...string) {
	t.Helper()
	r := record.Pod{PodName: p.TaskRun + "-pod", TaskRunUID: uid, PipelineTask: task, Created: start}
	for s := range slices.Chunk(steps, 2) {
		lines := archiveLines(s[1])
		c := layout.Container{Pod: p, Container: s[0]}
		archivetest.PutLog(t, w.store, c, lines, 500)
		archivetest.PutRecord(t, w.store, c.SealKey(), archivetest.Seal(t, lines))
		r.Containers = append(r.Containers, record.Container{Name: s[0], Kind: record.Step, Captured: true})
	}
	archivetest.PutPod(t, w.store, p, r)
}

// shown is what Results makes of what was printed: U+FFFD for each byte that is not UTF-8, which its JSON cannot hold.
func shown(printed string) string {
	var b strings.Builder
	for _, r := range printed { // where such a byte is U+FFFD, too
		b.WriteRune(r)
	}
	return b.String()
}

// behind puts a prefix before each line, and ends the last one, as where another log follows.
func behind(prefix, printed string) string {
	var b strings.Builder
	for line := range strings.Lines(shown(printed)) {
		b.WriteString(prefix + strings.TrimSuffix(line, "\n") + "\n")
	}
	return b.String()
}

// TestAsDocumented is Results with the settings of docs/reading.md, but a smaller limit.
func TestAsDocumented(t *testing.T) {
	settings := documentedSettings(t)
	settings["LOGGING_PLUGIN_QUERY_LIMIT"] = "1500"
	w := newWorld(t, settings, true)
	w.archive(t)
	build := "-- shiplog: [build : compile]\n" + shown(printed.compile) + "-- shiplog: [build : link]\n" + shown(printed.link)
	w.show(t, "taskrun", "lone", shown(printed.lone))
	w.show(t, "taskrun", "my-run-test", printed.unit) // without a newline at its end
	w.show(t, "taskrun", "my-run-build", build)
	w.show(t, "pipelinerun", "my-run", build+"-- shiplog: [test : unit]\n"+printed.unit)
	_, end, _ := strings.Cut(printed.long, "line 500\n")
	w.show(t, "taskrun", "long", "-- shiplog: the first 500 of 2000 lines are left out here, since Tekton Results asked for 1500 (LOGGING_PLUGIN_QUERY_LIMIT); the archive has them\n"+end)

	w.refuse(t, "not in the archive", namespace, "before-shiplog", "Error fetching log data")
	w.refuse(t, "broken off", namespace, "broken", "Error streaming log")
}

// TestAsItComes is Results with its own settings: lines stand behind their container's name, and of a long log there is the beginning.
func TestAsItComes(t *testing.T) {
	w := newWorld(t, map[string]string{"LOGS_API": "true", "LOGS_TYPE": "Loki"}, false)
	w.archive(t)
	compile, link := behind("container-step-compile: message=", printed.compile), behind("container-step-link: message=", printed.link)
	unit := strings.TrimSuffix(behind("container-step-unit: message=", printed.unit), "\n")
	w.show(t, "taskrun", "lone", behind("container-step-only: message=", printed.lone))
	w.show(t, "taskrun", "my-run-build", compile+link)
	w.show(t, "pipelinerun", "my-run", "-- shiplog: [build : compile]\n"+compile+"-- shiplog: [build : link]\n"+link+"-- shiplog: [test : unit]\n"+unit)
	first, _, _ := strings.Cut(printed.long, "line 1701\n")
	w.show(t, "taskrun", "long", behind("container-step-print: message=", first)+
		"-- shiplog: the last 300 of 2000 lines are left out here, since Tekton Results asked for 1700 (LOGGING_PLUGIN_QUERY_LIMIT); the archive has them\n")

	w.refuse(t, "no right", foreign, "other", "Error fetching log data")

	// What Results sends is what package loki's own tests take it to be.
	query := func(key, uid string) string {
		return loki.DefaultPath + " " + url.Values{
			"direction": {"forward"}, "limit": {"1700"}, "start": {strconv.FormatInt(start.Unix(), 10)}, "end": {strconv.FormatInt(start.Add(11*time.Minute).Unix(), 10)}, // a minute, and LOGGING_PLUGIN_FORWARDER_DELAY_DURATION
			"query": {`{ log_type="application",kubernetes_namespace_name="builds" }|json uid="kubernetes.labels.tekton_dev_` + key + `UID", container="kubernetes.container_name", message="message" |uid="` + uid +
				`"| line_format "container-{{.container}}: message={{.message}}"`},
		}.Encode()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	want := []string{query("taskRun", loneUID), query("taskRun", buildUID), query("pipelineRun", runUID), query("taskRun", longUID)}
	if diff := cmp.Diff(want, w.requests[:min(len(want), len(w.requests))]); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}
