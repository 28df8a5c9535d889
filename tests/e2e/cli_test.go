//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// person runs commands as somebody who has a kubeconfig with a token, and may read runs, pods and logs of nsOn.
type person struct {
	env  []string
	wrap []string // before each command
	tkn  string
}

func newPerson(t *testing.T, name string) *person {
	t.Helper()
	ctx := t.Context()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: name}}
	objects := []client.Object{account,
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: name}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"pods", "pods/log"}, Verbs: []string{"get", "list", "watch"}},
			{APIGroups: []string{"tekton.dev"}, Resources: []string{"pipelineruns", "taskruns"}, Verbs: []string{"get", "list", "watch"}},
		}},
		&rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: nsOn, Name: name}},
		}}
	for _, o := range objects {
		if err := env.client.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	request := &authenticationv1.TokenRequest{}
	if err := env.client.SubResource("token").Create(ctx, account, request); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(env.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range config.Contexts {
		config.AuthInfos[c.AuthInfo] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
		c.Namespace = nsOn
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		t.Fatal(err)
	}
	out, err := command(ctx, "", nil, "go", "run", "../cluster", "binary", "tkn")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	bin := t.TempDir()
	for _, plugin := range []string{"tkn-shiplog", "kubectl-shiplog", "kubectl_complete-shiplog"} {
		if err := os.Symlink(env.cli, filepath.Join(bin, plugin)); err != nil {
			t.Fatal(err)
		}
	}
	p := &person{tkn: lines[len(lines)-1], wrap: inCluster(t)}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SHIPLOG_") && !strings.HasPrefix(v, "AWS_") && !strings.HasPrefix(v, "KUBECONFIG=") && !strings.HasPrefix(strings.ToLower(v), "http") && !strings.HasPrefix(strings.ToLower(v), "no_proxy") {
			p.env = append(p.env, v)
		}
	}
	p.env = append(p.env, "KUBECONFIG="+kubeconfig, "PATH="+bin+":"+os.Getenv("PATH"))
	tellWhereTheServerIs(t)
	return p
}

// tellWhereTheServerIs does what a platform engineer does once.
func tellWhereTheServerIs(t *testing.T) {
	t.Helper()
	var certificate corev1.Secret
	if err := env.client.Get(t.Context(), client.ObjectKey{Namespace: "shiplog-system", Name: "shiplog-backend-tls"}, &certificate); err != nil {
		t.Fatal(err)
	}
	info := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shiplog-system", Name: "shiplog-info"}, Data: map[string]string{
		"server": "https://shiplog-backend.shiplog-system.svc", "ca.crt": string(certificate.Data["ca.crt"]),
	}}
	err := env.client.Create(t.Context(), info)
	if apierrors.IsAlreadyExists(err) {
		err = env.client.Update(t.Context(), info)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// inCluster runs a command where the Service's address is reachable, in the node's network namespace, and where its name is known.
func inCluster(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(env.kubeconfig), "machine.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, _, _ := strings.Cut(string(b), " ")
	var service corev1.Service
	if err := env.client.Get(t.Context(), client.ObjectKey{Namespace: "shiplog-system", Name: "shiplog-backend"}, &service); err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"+service.Spec.ClusterIP+" shiplog-backend.shiplog-system.svc\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{"nsenter", "--net=/proc/" + pid + "/ns/net", "unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts}
}

// command is one of the person's.
func (p *person) command(t *testing.T, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), p.wrap[0], slices.Concat(p.wrap[1:], []string{name}, args)...)
	cmd.Env = p.env
	return cmd
}

// says runs a command and returns what it writes and its exit code.
func (p *person) says(t *testing.T, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := p.command(t, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// same checks that two commands say the same on stdout and stderr, with the same exit code.
func (p *person) same(t *testing.T, want, got []string) string {
	t.Helper()
	wantOut, wantErr, wantCode := p.says(t, want[0], want[1:]...)
	gotOut, gotErr, gotCode := p.says(t, got[0], got[1:]...)
	sameSaid(t, want, got, wantOut, gotOut, wantCode, gotCode)
	if diff := gocmp.Diff(withoutNotices(wantErr), withoutNotices(gotErr)); diff != "" {
		t.Errorf("stderr of %s and of %s (-first +second):\n%s", strings.Join(want, " "), strings.Join(got, " "), diff)
	}
	return wantOut
}

// sameOut checks stdout and the exit code alone.
func (p *person) sameOut(t *testing.T, want, got []string) {
	t.Helper()
	wantOut, _, wantCode := p.says(t, want[0], want[1:]...)
	gotOut, _, gotCode := p.says(t, got[0], got[1:]...)
	sameSaid(t, want, got, wantOut, gotOut, wantCode, gotCode)
}

func sameSaid(t *testing.T, want, got []string, wantOut, gotOut string, wantCode, gotCode int) {
	t.Helper()
	if diff := gocmp.Diff(wantOut, gotOut); diff != "" || wantCode != gotCode {
		t.Errorf("%s: exit code %d\n%s: exit code %d\n(-first +second):\n%s", strings.Join(want, " "), wantCode, strings.Join(got, " "), gotCode, diff)
	}
}

// withoutNotices leaves out what shiplog alone has to say of a log: that it is empty, and why.
func withoutNotices(stderr string) string {
	var b strings.Builder
	for line := range strings.Lines(stderr) {
		if !strings.Contains(line, "-- shiplog: ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// TestCLILikeTkn compares the CLI with Tekton's own, while the pods are there and after they and the run are gone.
func TestCLILikeTkn(t *testing.T) {
	t.Parallel()
	p := newPerson(t, "cli-tkn")
	pr := newPipelineRun(t, nsOn, "like-tkn", `
pipelineSpec:
  tasks:
    - {name: second, runAfter: [first], taskSpec: {steps: [{name: b, image: busybox, script: "echo of the second task; printf 'no newline'"}, {name: silent, image: busybox, script: "true"}]}}
    - name: first
      taskSpec:
        steps: [{name: a, image: busybox, script: "for i in 1 2 3; do echo line $i; done; echo; sleep 1; echo to stderr >&2; sleep 1; printf '\\033[31mred\\033[0m\\n'"}]
  finally:
    - {name: fails, taskSpec: {steps: [{name: c, image: busybox, script: "echo fails; exit 3"}, {name: never, image: busybox, script: "echo never"}]}}
`, nil)
	finishRun(t, pr)
	sealed(t, nsOn, pr.Name)
	taskRun := pr.Name + "-second"
	p.same(t, []string{p.tkn, "pipelinerun", "logs", pr.Name, "--timestamps"}, []string{env.cli, "pipelinerun", "logs", pr.Name, "--timestamps"})
	p.same(t, []string{p.tkn, "pr", "logs", pr.Name, "-t", "first", "--prefix=false"}, []string{env.cli, "pr", "logs", pr.Name, "-t", "first", "--prefix=false"})
	p.same(t, []string{p.tkn, "pr", "logs", pr.Name, "-E"}, []string{env.cli, "pr", "logs", pr.Name, "-E"})
	p.same(t, []string{p.tkn, "pr", "logs", pr.Name, "-f", "-t", "second"}, []string{env.cli, "pr", "logs", pr.Name, "-f", "-t", "second"})
	p.same(t, []string{p.tkn, "pr", "logs", pr.Name, "-E"}, []string{p.tkn, "shiplog", "pr", "logs", pr.Name, "-E"}) // the plug-in
	tr := p.same(t, []string{p.tkn, "taskrun", "logs", taskRun}, []string{env.cli, "tr", "logs", taskRun})
	p.same(t, []string{p.tkn, "tr", "logs", taskRun, "-s", "b", "-t"}, []string{env.cli, "tr", "logs", taskRun, "-s", "b", "-t"})
	all := p.same(t, []string{p.tkn, "pipelinerun", "logs", pr.Name}, []string{env.cli, "pipelinerun", "logs", pr.Name})
	p.sameOut(t, []string{p.tkn, "pr", "logs", pr.Name}, []string{env.cli, "pr", "logs", pr.Name, "--archive"}) // which knows less of failures
	p.sameOut(t, []string{p.tkn, "pr", "logs", "none"}, []string{env.cli, "pr", "logs", "none"})
	p.sameOut(t, []string{p.tkn, "tr", "logs", "none"}, []string{env.cli, "tr", "logs", "none"})
	inPluginsDir := *p
	dir := t.TempDir()
	if err := os.Symlink(env.cli, filepath.Join(dir, "tkn-shiplog")); err != nil {
		t.Fatal(err)
	}
	inPluginsDir.env = append(slices.Clone(p.env), "PATH="+os.Getenv("PATH"), "TKN_PLUGINS_DIR="+dir)
	inPluginsDir.same(t, []string{p.tkn, "pr", "logs", pr.Name}, []string{p.tkn, "shiplog", "pr", "logs", pr.Name})

	// tkn takes the shipper for a step too.
	everything := func(program string) (lines []string) {
		out, stderr, code := p.says(t, program, "pr", "logs", pr.Name, "-a")
		if code != 0 {
			t.Errorf("%s pr logs -a: exit code %d, stderr %q", program, code, stderr)
		}
		for line := range strings.Lines(out) {
			if line != "\n" && !strings.Contains(line, " : "+contract.ShipperContainer+"] ") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	if diff := gocmp.Diff(everything(p.tkn), everything(env.cli)); diff != "" {
		t.Errorf("-a (-tkn +shiplog):\n%s", diff)
	}
	otherCommands(t, p, pr)

	check := func(when string) {
		t.Helper()
		for args, want := range map[string]string{"pr logs " + pr.Name: all, "tr logs " + taskRun: tr, "pr logs -f " + pr.Name + " --task=second": strings.ReplaceAll(tr, "[", "[second : ")} {
			got, stderr, code := p.says(t, env.cli, strings.Fields(args)...)
			if diff := gocmp.Diff(want, got); diff != "" || code != 0 {
				t.Errorf("%s, %s: exit code %d, stderr %q (-tkn's before +shiplog's now):\n%s", when, args, code, stderr, diff)
			}
		}
	}
	if err := env.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(nsOn), client.MatchingLabels{"tekton.dev/pipelineRun": pr.Name}); err != nil {
		t.Fatal(err)
	}
	noPods(t, pr)
	check("without the pods")
	deleteRun(t, pr)
	check("without the run")
	got, _, code := p.says(t, env.kubectl, "shiplog", "ls", pr.Name)
	if code != 0 || strings.Count(got, "verified") < 6 {
		t.Errorf("kubectl shiplog ls: exit code %d:\n%s", code, got)
	}
}

// otherCommands runs once each what is not tkn's, as somebody with a kubeconfig alone.
func otherCommands(t *testing.T, p *person, pr *tekton.PipelineRun) {
	t.Helper()
	dir := t.TempDir()
	page := fmt.Sprintf("/ui/%s/%s", nsOn, pr.UID)
	for _, c := range []struct {
		args []string
		want string // on stdout
	}{
		{[]string{env.cli, "search", pr.Name, "line 2", "--around", "1"}, "[first : a] 2: line 2\n"},
		{[]string{env.cli, "verify", pr.Name}, "verified"},
		{[]string{env.cli, "open", "--print", pr.Name}, page},
		{[]string{env.cli, "get", pr.Name, "--to", dir}, ""},
		{[]string{env.cli, "ls", "--limit", "0"}, pr.Name},
		{[]string{env.kubectl, "__complete", "shiplog", "logs", ""}, ":4\n"},
	} {
		out, stderr, code := p.says(t, c.args[0], c.args[1:]...)
		if code != 0 || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit code %d, %q does not say %q; stderr %q", strings.Join(c.args, " "), code, out, c.want, stderr)
		}
	}
	saved, err := os.ReadFile(filepath.Join(dir, "second", "step-b.log"))
	if want := "of the second task\nno newline"; err != nil || string(saved) != want {
		t.Errorf("saved is %q, want %q, error %v", saved, want, err)
	}
	bucket := "s3://" + os.Getenv("SHIPLOG_S3_BUCKET")
	if out, err := command(t.Context(), "", nil, env.cli, "logs", "-n", nsOn, "--s3", bucket, "-t", "first", pr.Name); err != nil || !strings.Contains(out, "[first : a] line 3\n") {
		t.Errorf("logs --s3 %s: %v, %q", bucket, err, out)
	}
}

// TestCLIFailsLikeTkn compares retries, of which tkn shows nothing behind a container that ended with exit code 1, and all that is said on stderr.
func TestCLIFailsLikeTkn(t *testing.T) {
	t.Parallel()
	p := newPerson(t, "cli-tkn-fails")
	pr := newPipelineRun(t, nsOn, "fails-like-tkn", `
pipelineSpec:
  tasks:
    - {name: flaky, retries: 1, taskSpec: {steps: [{name: a, image: busybox, script: "echo tried; exit 1"}, {name: b, image: busybox, script: "echo never"}]}}
    - {name: well, taskSpec: {steps: [{name: c, image: busybox, script: "echo well"}]}}
`, nil)
	finishRun(t, pr)
	sealed(t, nsOn, pr.Name)
	for _, args := range [][]string{{"pr", "logs", pr.Name}, {"pr", "logs", pr.Name, "-E"}, {"pr", "logs", pr.Name, "-t", "well"}, {"pr", "logs", pr.Name, "-f", "-t", "flaky"}, {"tr", "logs", pr.Name + "-flaky"}} { // with -f, tkn prints tasks in no certain order
		p.same(t, append([]string{p.tkn}, args...), append([]string{env.cli}, args...))
	}
}

// TestCLIFollowsLikeTkn follows a run from before it prints to its end.
func TestCLIFollowsLikeTkn(t *testing.T) {
	t.Parallel()
	p := newPerson(t, "cli-tkn-follows")
	pr := newPipelineRun(t, nsOn, "follows-like-tkn", `
pipelineSpec:
  tasks:
    - {name: only, taskSpec: {steps: [{name: a, image: busybox, script: "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.5; done"}, {name: b, image: busybox, script: "echo and more"}]}}
`, nil)
	podOfRun(t, &tekton.TaskRun{ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: pr.Name + "-only"}})
	var wg sync.WaitGroup
	said := make([]string, 2)
	errs := make([]bytes.Buffer, 2)
	for i, program := range []string{p.tkn, env.cli} {
		cmd := p.command(t, program, "pr", "logs", "-f", pr.Name)
		cmd.Stderr = &errs[i]
		wg.Go(func() {
			out, err := cmd.Output()
			said[i] = string(out)
			if err != nil {
				t.Errorf("%s: %v, %s", program, err, errs[i].String())
			}
		})
	}
	wg.Wait()
	if diff := gocmp.Diff(said[0], said[1]); diff != "" || !strings.Contains(said[0], "and more") {
		t.Errorf("-f (-tkn +shiplog):\n%s", diff)
	}
	if diff := gocmp.Diff(withoutNotices(errs[0].String()), withoutNotices(errs[1].String())); diff != "" {
		t.Errorf("stderr of -f (-tkn +shiplog):\n%s", diff)
	}
}

func noPods(t *testing.T, pr *tekton.PipelineRun) {
	t.Helper()
	err := poll(t.Context(), "the pods of "+pr.Name+" to be gone", func(ctx context.Context) (bool, error) {
		var pods corev1.PodList
		err := env.client.List(ctx, &pods, client.InNamespace(pr.Namespace), client.MatchingLabels{"tekton.dev/pipelineRun": pr.Name})
		return len(pods.Items) == 0, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCLIFollowsPastThePod deletes a pod while its log is followed. Each line is shown once: from the pod as long as it is there, and the rest from the archive.
func TestCLIFollowsPastThePod(t *testing.T) {
	t.Parallel()
	p := newPerson(t, "cli-follow")
	var spec tekton.TaskRunSpec
	err := yaml.UnmarshalStrict([]byte(`
taskSpec:
  steps:
    - name: s
      image: busybox
      script: |
        trap 'echo was told; exit 0' TERM
        i=0
        while true; do i=$((i+1)); echo "line $i"; echo "error $((i%3))" >&2; sleep 0.01; done
    - {name: after, image: busybox, script: "echo never"}
`), &spec)
	if err != nil {
		t.Fatal(err)
	}
	tr := newTaskRun(t, nsOn, "follow-past", spec, nil)
	cmd := p.command(t, env.cli, "logs", "-f", "--prefix=false", tr.Name)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	got := &lineWaiter{wanted: 200, there: make(chan struct{})}
	cmd.Stdout = got
	podOfRun(t, tr)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-got.there:
	case <-t.Context().Done():
		t.Fatal("nothing is shown: ", stderr.String())
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: tr.Name + "-pod"}}
	if err := env.client.Delete(t.Context(), pod, client.GracePeriodSeconds(5)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, stderr.String())
	}
	sealed(t, nsOn, tr.Name)
	archived, err := archivedText(t.Context(), nsOn, tr.Name, "step-s")
	if err != nil {
		t.Fatal(err)
	}
	shown := strings.Split(strings.TrimSpace(got.String()), "\n")
	for _, stream := range []string{"line ", "error "} {
		if diff := gocmp.Diff(only(strings.Split(archived, "\n"), stream), only(shown, stream)); diff != "" {
			t.Errorf("%slines (-archived +shown):\n%s", stream, diff)
		}
	}
	if n := len(only(shown, "line ")); n < 100 {
		t.Errorf("only %d lines", n)
	}
	t.Logf("followed %d lines past the end of the pod; stderr %q", len(shown), stderr.String())
}

// only are the lines that begin so.
func only(lines []string, prefix string) (out []string) {
	for _, l := range lines {
		if strings.HasPrefix(l, prefix) {
			out = append(out, l)
		}
	}
	return out
}

// lineWaiter closes there when so many lines were written.
type lineWaiter struct {
	mu     sync.Mutex
	b      bytes.Buffer
	wanted int
	there  chan struct{}
}

func (w *lineWaiter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.wanted
	w.wanted -= bytes.Count(b, []byte("\n"))
	if before > 0 && w.wanted <= 0 {
		close(w.there)
	}
	return w.b.Write(b)
}

func (w *lineWaiter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// podOfRun waits until a TaskRun has its pod.
func podOfRun(t *testing.T, tr *tekton.TaskRun) {
	t.Helper()
	err := poll(t.Context(), "the pod of "+tr.Name, func(ctx context.Context) (bool, error) {
		var pod corev1.Pod
		err := env.client.Get(ctx, client.ObjectKey{Namespace: tr.Namespace, Name: tr.Name + "-pod"}, &pod)
		return err == nil, client.IgnoreNotFound(err)
	})
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", tr.Name, err))
	}
}
