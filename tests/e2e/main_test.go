//go:build e2e

// Package e2e runs real TaskRuns on the local cluster, with and without shiplog, and compares what was printed with what is in the archive.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// env is what the tests share: the cluster, and the CLI as a user has it.
var env struct {
	client     client.Client
	cli        string // path of the shiplog binary
	kubectl    string
	kubeconfig string
	vars       []string // the variables of "cluster env"
}

// The namespaces: with shiplog and without, each open and with Pod Security "restricted".
const (
	nsOn            = "e2e-on"
	nsOff           = "e2e-off"
	nsOnRestricted  = "e2e-on-restricted"
	nsOffRestricted = "e2e-off-restricted"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := setUp(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// setUp deploys the checkout's shiplog to the running local cluster and makes the namespaces anew.
func setUp(ctx context.Context) error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	out, err := command(ctx, root, nil, "go", "run", "./tests/cluster", "env")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		if v := strings.TrimSpace(strings.TrimPrefix(line, "export ")); !strings.HasPrefix(v, "PATH=") { // which is for a shell to expand
			env.vars = append(env.vars, v)
		}
	}
	vars := map[string]string{}
	for _, v := range env.vars {
		name, value, _ := strings.Cut(v, "=")
		vars[name] = strings.Trim(value, "'\"")
		if name == "CRANE" || strings.HasPrefix(name, "SHIPLOG_") || strings.HasPrefix(name, "AWS_") { // for those tests that read S3 themselves, or push images
			if err := os.Setenv(name, vars[name]); err != nil {
				return err
			}
		}
	}
	env.kubectl, env.kubeconfig = vars["KUBECTL"], vars["KUBECONFIG"]
	env.cli = filepath.Join(root, "bin", "shiplog")

	deploy := []string{"REGISTRY=localhost:5000/shiplog", "PUSH_REGISTRY=" + vars["SHIPLOG_REGISTRY"] + "/shiplog"}
	if _, err := command(ctx, root, deploy, "tests/deploy.sh"); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", vars["KUBECONFIG"])
	if err != nil {
		return err
	}
	config.QPS, config.Burst = -1, -1
	s := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(s), tekton.AddToScheme(s)); err != nil {
		return err
	}
	if env.client, err = client.New(config, client.Options{Scheme: s}); err != nil {
		return err
	}
	var waits []func() error
	for _, ns := range []string{nsOn, nsOff, nsOnRestricted, nsOffRestricted} {
		object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{}}}
		if strings.HasPrefix(ns, "e2e-on") {
			object.Labels[contract.InjectKey] = contract.InjectEnabled
		}
		if strings.HasSuffix(ns, "-restricted") {
			object.Labels["pod-security.kubernetes.io/enforce"] = "restricted"
		}
		if err := env.client.Delete(ctx, object.DeepCopy()); client.IgnoreNotFound(err) != nil {
			return err
		}
		waits = append(waits, func() error {
			return poll(ctx, "namespace "+ns+" to be made anew", func(ctx context.Context) (bool, error) {
				err := env.client.Create(ctx, object.DeepCopy())
				if apierrors.IsAlreadyExists(err) {
					return false, nil // the last run's is still being deleted
				}
				return err == nil, err
			})
		})
	}
	for _, w := range waits {
		if err := w(); err != nil {
			return err
		}
	}
	for _, ns := range []string{nsOn, nsOff, nsOnRestricted, nsOffRestricted} {
		if err := serviceAccount(ctx, ns); err != nil {
			return err
		}
	}
	return nil
}

// serviceAccount waits until a new namespace has the service account that TaskRuns need.
func serviceAccount(ctx context.Context, namespace string) error {
	return poll(ctx, "the service account of namespace "+namespace, func(ctx context.Context) (bool, error) {
		err := env.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "default"}, &corev1.ServiceAccount{})
		return err == nil, client.IgnoreNotFound(err)
	})
}

// command runs a program with the cluster's variables and returns its standard output.
func command(ctx context.Context, dir string, extra []string, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	err := stream(ctx, dir, extra, &stdout, &stderr, name, args...)
	if err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

func stream(ctx context.Context, dir string, extra []string, stdout, stderr io.Writer, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), env.vars...), extra...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd.Run()
}

// waitLimit bounds each wait. It is far above what anything takes, since the machine may be busy; that something is fast, no test here says.
const waitLimit = 5 * time.Minute

// poll asks until a condition holds, and says what it waited for when it does not.
func poll(ctx context.Context, what string, ask func(context.Context) (bool, error)) error {
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, waitLimit, true, ask)
	if err != nil {
		return fmt.Errorf("waited %s for %s: %w", waitLimit, what, err)
	}
	return nil
}

// printed is what a log must be: how many bytes, with which SHA-256. Logs of hundreds of MB are compared as such.
type printed struct {
	bytes int64
	sum   string
}

func (p printed) String() string { return fmt.Sprintf("%d bytes, sha256 %.16s…", p.bytes, p.sum) }

// measure reads to the end.
func measure(r io.Reader) (printed, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return printed{n, hex.EncodeToString(h.Sum(nil))}, err
}

func text(s string) printed {
	p, err := measure(strings.NewReader(s))
	if err != nil {
		panic(err) // a strings.Reader does not fail
	}
	return p
}

// openStore opens the cluster's store.
func openStore(t *testing.T) *objectstore.Store {
	t.Helper()
	config, err := objectstore.ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	store, err := objectstore.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// archived reads one container's printed bytes from S3 through the CLI, as a user does. Only a verified log is accepted.
func archived(ctx context.Context, namespace, run, task, container string) (printed, error) {
	args := []string{"logs", "-n", namespace, "--raw", "--container", container}
	if task != "" {
		args = append(args, "--task", task)
	}
	hash := sha256.New()
	var stderr bytes.Buffer
	counter := &countingWriter{w: hash}
	if err := stream(ctx, "", nil, counter, &stderr, env.cli, append(args, run)...); err != nil {
		return printed{}, fmt.Errorf("shiplog %s %s: %w: %s", strings.Join(args, " "), run, err, stderr.String())
	}
	return printed{counter.n, hex.EncodeToString(hash.Sum(nil))}, nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// archivedText is archived for logs that fit into memory.
func archivedText(ctx context.Context, namespace, run, container string) (string, error) {
	return command(ctx, "", nil, env.cli, "logs", "-n", namespace, "--raw", "--container", container, run)
}

// sortedLines makes two texts comparable whose lines of stdout and stderr are in another mutual order.
func sortedLines(s string) []string {
	var lines []string
	scanner := bufio.NewScanner(strings.NewReader(s))
	scanner.Buffer(nil, 64<<20)
	for scanner.Scan() {
		lines = append(lines, scanner.Text())
	}
	return lines
}

// newTaskRun makes a TaskRun of a spec.
func newTaskRun(t *testing.T, namespace, name string, spec tekton.TaskRunSpec, annotations map[string]string) *tekton.TaskRun {
	t.Helper()
	tr := &tekton.TaskRun{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: annotations}, Spec: spec}
	if err := env.client.Create(t.Context(), tr); err != nil {
		t.Fatal(err)
	}
	return tr
}

// finish waits until the TaskRun is done.
func finish(t *testing.T, tr *tekton.TaskRun) *tekton.TaskRun {
	t.Helper()
	done := &tekton.TaskRun{}
	err := poll(t.Context(), "TaskRun "+tr.Namespace+"/"+tr.Name+" to end", func(ctx context.Context) (bool, error) {
		err := env.client.Get(ctx, client.ObjectKeyFromObject(tr), done)
		return done.IsDone(), err
	})
	if err != nil {
		t.Fatalf("%v; status %+v", err, done.Status.Conditions)
	}
	return done
}

// finishRun waits until the PipelineRun is done.
func finishRun(t *testing.T, pr *tekton.PipelineRun) *tekton.PipelineRun {
	t.Helper()
	done := &tekton.PipelineRun{}
	err := poll(t.Context(), "PipelineRun "+pr.Namespace+"/"+pr.Name+" to end", func(ctx context.Context) (bool, error) {
		err := env.client.Get(ctx, client.ObjectKeyFromObject(pr), done)
		return done.IsDone(), err
	})
	if err != nil {
		t.Fatalf("%v; status %+v", err, done.Status.Conditions)
	}
	return done
}

// sealed waits until the run's archive is complete, or the logs that which selects are. The exit
// code 0 of "shiplog logs" says that every log is verified.
func sealed(t *testing.T, namespace, run string, which ...string) {
	t.Helper()
	args := append([]string{"logs", "-n", namespace, "--tail", "1"}, which...)
	if len(which) == 0 {
		args = append(args, "--all")
	}
	var last error
	err := poll(t.Context(), "the archive of "+run+" to be complete", func(ctx context.Context) (bool, error) {
		_, last = command(ctx, "", nil, env.cli, append(args, run)...)
		return last == nil, nil
	})
	if err != nil {
		tree, _ := command(context.WithoutCancel(t.Context()), "", nil, env.cli, "ls", "-n", namespace, run) // only explains
		t.Fatalf("%v: %v\n%s", err, last, tree)
	}
}

// podOf returns the pod of a TaskRun.
func podOf(t *testing.T, tr *tekton.TaskRun) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := env.client.Get(t.Context(), client.ObjectKey{Namespace: tr.Namespace, Name: tr.Status.PodName}, pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

// shipperOf returns the injected native sidecar, or nil.
func shipperOf(pod *corev1.Pod) *corev1.Container {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == contract.ShipperContainer {
			return &pod.Spec.InitContainers[i]
		}
	}
	return nil
}
