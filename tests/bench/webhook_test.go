//go:build bench

package bench

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/ticket"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
)

const webhookNamespace = "bench"

// service is a webhook on one core, with a real API server and a real S3 server.
type service struct {
	api     apiserver.Server
	tekton  dynamic.Interface
	token   string // the webhook's own, with its own rights
	process *process
	base    string
	client  *http.Client
}

// webhook measures admission, tickets, and the memory that they take.
func webhook(t *testing.T, r *results) {
	const tickets = 2000
	pods := 10_000
	if testing.Short() {
		pods = 2 * tickets
	}
	path := binary(t, "./webhook")
	g := newTarget(t, false)
	s := &service{api: apiserver.Start(t)}
	s.installTekton(t)
	s.installRights(t)
	made := s.createPods(t, pods, 2*tickets)
	// The others are not measured, yet.
	pinned(t, os.Getpid(), "1")
	for _, name := range []string{"kube-apiserver", "etcd", "versitygw"} {
		s.pin(t, name, "1")
	}
	s.start(t, g, path, "--page-url=https://logs.example.com")
	start := s.peak("at its start")
	s.admit(t, r)
	admitted, file := s.peak("after the admissions"), mib(s.process.program())
	annotated := s.tickets(t, "of new pods, whose runs are annotated", made[:tickets])
	ticketed := s.peak("after the tickets")
	s.process.stop(t)

	s.start(t, g, path)
	first, again := s.tickets(t, "of new pods", made[tickets:2*tickets]), s.tickets(t, "renewed", made[tickets:2*tickets])
	s.process.stop(t)
	pinned(t, os.Getpid(), fmt.Sprintf("0-%d", goruntime.NumCPU()-1))

	r.keep(first, again, annotated, start, admitted, ticketed)
	r.row(fmt.Sprintf("peak RSS with %d pods, %d of them pending, and as many TaskRuns, after these admissions", pods, 2*tickets), "64 MiB", admitted.most() <= 64, "", "%v, of which %.0f MiB are pages of the program's file; at its start it was %v", admitted, file, start)
	r.row("tickets, API server and etcd on the same core, of pods that are new", "200/s", first.median() >= 200, whyTickets, "%v; the S3 server is on the other core", first)
	r.row("the same, renewed", "200/s", again.median() >= 200, whyTickets, "%v", again)
	r.row("the same of new pods, while their runs get the annotation of their page", "", true, "", "%v", annotated)
	r.row(fmt.Sprintf("peak RSS after %d such tickets, 32 at once and as fast as the core gives them", tickets), "", true, "", "%v; the pod's limit is 256 MiB", ticketed)
}

// tickets asks for a ticket for each of the pods, with the API server on the webhook's core.
func (s *service) tickets(t *testing.T, name string, pods []*corev1.Pod) samples {
	t.Helper()
	tokens := make([]string, len(pods))
	parallel(t, len(pods), func(i int) error {
		review, err := s.api.Core.CoreV1().ServiceAccounts(webhookNamespace).CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{contract.Audience}, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pods[i].Name, UID: pods[i].UID},
		}}, metav1.CreateOptions{})
		if err == nil {
			tokens[i] = review.Status.Token
		}
		return err
	})
	for _, name := range []string{"kube-apiserver", "etcd"} {
		s.pin(t, name, "0")
	}
	begun := time.Now()
	parallel(t, len(pods), func(i int) error { return s.ticket(tokens[i]) })
	rate := samples{Name: "tickets, " + name, Unit: "/s", Values: []float64{float64(len(pods)) / time.Since(begun).Seconds()}}
	for _, name := range []string{"kube-apiserver", "etcd"} {
		s.pin(t, name, "1")
	}
	return rate
}

// peak is what the webhook has taken at most so far.
func (s *service) peak(when string) samples {
	return samples{Name: "webhook, peak RSS " + when, Unit: "MiB", Values: []float64{mib(s.process.peak())}}
}

const whyTickets = "the API server needs more of the core for the token and the pod than the webhook for all else"

// installTekton installs Tekton's own definitions of its runs.
func (s *service) installTekton(t *testing.T) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/tektoncd/pipeline").Output()
	if err != nil {
		t.Fatalf("find Tekton's module: %v", err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "config", "300-crds")
	if _, err := envtest.InstallCRDs(s.api.Admin, envtest.CRDInstallOptions{Paths: []string{filepath.Join(dir, "300-pipelinerun.yaml"), filepath.Join(dir, "300-taskrun.yaml")}}); err != nil {
		t.Fatal(err)
	}
	if s.tekton, err = dynamic.NewForConfig(s.api.Admin); err != nil {
		t.Fatal(err)
	}
}

// installRights makes the webhook's service account with the rights that it is installed with. An administrator's certificate, in its place, would cost the API server a check of its signature for each request.
func (s *service) installRights(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("../../manifests/base/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const namespace, account = "shiplog-system", "shiplog-webhook" // as there
	_, err = s.api.Core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		if err != nil {
			break
		}
		var is metav1.TypeMeta
		var role rbacv1.ClusterRole
		var binding rbacv1.ClusterRoleBinding
		if err = yaml.Unmarshal([]byte(doc), &is); err != nil {
			break
		}
		switch is.Kind {
		case "ClusterRole":
			if err = yaml.Unmarshal([]byte(doc), &role); err == nil {
				_, err = s.api.Core.RbacV1().ClusterRoles().Create(t.Context(), &role, metav1.CreateOptions{})
			}
		case "ClusterRoleBinding":
			if err = yaml.Unmarshal([]byte(doc), &binding); err == nil {
				_, err = s.api.Core.RbacV1().ClusterRoleBindings().Create(t.Context(), &binding, metav1.CreateOptions{})
			}
		case "ServiceAccount":
			_, err = s.api.Core.CoreV1().ServiceAccounts(namespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{})
		}
	}
	if err != nil {
		t.Fatalf("install the webhook's rights: %v", err)
	}
	token, err := s.api.Core.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.token = token.Status.Token
}

// createPods makes TaskRuns, ten in a PipelineRun, and their pods as the webhook leaves them, the first of them pending and the others running.
func (s *service) createPods(t *testing.T, n, pending int) []*corev1.Pod {
	t.Helper()
	for _, err := range []error{
		second(s.api.Core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: webhookNamespace}}, metav1.CreateOptions{})),
		second(s.api.Core.CoreV1().ServiceAccounts(webhookNamespace).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile("../../webhook/testdata/command.out.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var model corev1.Pod
	if err := yaml.Unmarshal(text, &model); err != nil {
		t.Fatal(err)
	}
	runs := make([]types.UID, (n+9)/10)
	create := func(kind, name string, spec, status map[string]any, owners ...metav1.OwnerReference) (types.UID, error) {
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "tekton.dev/v1", "kind": kind, "spec": spec}}
		o.SetName(name)
		o.SetNamespace(webhookNamespace)
		o.SetOwnerReferences(owners)
		resource := schema.GroupVersionResource{Group: "tekton.dev", Version: "v1", Resource: strings.ToLower(kind) + "s"}
		client := s.tekton.Resource(resource).Namespace(webhookNamespace)
		got, err := client.Create(t.Context(), o, metav1.CreateOptions{})
		if err == nil && status != nil {
			got.Object["status"] = status
			got, err = client.UpdateStatus(t.Context(), got, metav1.UpdateOptions{})
		}
		if err != nil {
			return "", err
		}
		return got.GetUID(), nil
	}
	yes := true
	owner := func(kind, name string, uid types.UID) metav1.OwnerReference {
		return metav1.OwnerReference{APIVersion: "tekton.dev/v1", Kind: kind, Name: name, UID: uid, Controller: &yes}
	}
	var tasks []any // Tekton has them in the PipelineRun's status before it makes a TaskRun
	for i := range 10 {
		tasks = append(tasks, map[string]any{"name": fmt.Sprintf("task-%d", i), "taskRef": map[string]any{"name": "build"}})
	}
	parallel(t, len(runs), func(i int) (err error) {
		runs[i], err = create("PipelineRun", fmt.Sprintf("run-%04d", i), map[string]any{"pipelineRef": map[string]any{"name": "build"}}, map[string]any{"pipelineSpec": map[string]any{"tasks": tasks}})
		return err
	})
	pods := make([]*corev1.Pod, n)
	parallel(t, n, func(i int) error {
		name, run := fmt.Sprintf("run-%04d-task-%05d", i/10, i), fmt.Sprintf("run-%04d", i/10)
		uid, err := create("TaskRun", name, map[string]any{"taskRef": map[string]any{"name": "build"}}, nil, owner("PipelineRun", run, runs[i/10]))
		if err != nil {
			return err
		}
		pod := model.DeepCopy()
		pod.Namespace, pod.Name = webhookNamespace, name+"-pod"
		pod.Labels["tekton.dev/taskRun"], pod.Labels["tekton.dev/pipelineRun"] = name, run
		pod.OwnerReferences = []metav1.OwnerReference{owner("TaskRun", name, uid)}
		client := s.api.Core.CoreV1().Pods(webhookNamespace)
		if pods[i], err = client.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil || i < pending {
			return err
		}
		pods[i].Status.Phase = corev1.PodRunning
		pods[i], err = client.UpdateStatus(t.Context(), pods[i], metav1.UpdateOptions{})
		return err
	})
	return pods
}

func second[T any](_ T, err error) error { return err }

// parallel runs f for each of n, 32 at once.
func parallel(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	next := make(chan int)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// start starts the webhook on one core.
func (s *service) start(t *testing.T, g *target, path string, flags ...string) {
	t.Helper()
	dir := t.TempDir()
	example := httptest.NewTLSServer(nil) // for its certificate
	defer example.Close()
	cert := example.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	kubeconfig, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"bench": {Server: s.api.Admin.Host, CertificateAuthorityData: s.api.Admin.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"bench": {Token: s.token}},
		Contexts:       map[string]*clientcmdapi.Context{"bench": {Cluster: "bench", AuthInfo: "bench"}},
		CurrentContext: "bench",
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"tls.crt": public, "ca.crt": public, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), "kubeconfig": kubeconfig,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	port, metrics := freePort(t), freePort(t)
	args := append([]string{"-c", "0", path, "--host=127.0.0.1", "--port=" + port, "--metrics-address=127.0.0.1:" + metrics, "--cert-dir=" + dir, "--kubeconfig=" + filepath.Join(dir, "kubeconfig"),
		"--shipper-image=registry.example.com/shiplog-shipper:bench"}, flags...)
	cmd := exec.Command("taskset", args...)
	cmd.Env = g.env()
	s.process = startProcess(t, cmd)
	s.base = "https://127.0.0.1:" + port
	s.client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 64, ForceAttemptHTTP2: true}}
	s.process.until(t, time.Minute, "the webhook", func() bool {
		resp, err := http.Get("http://127.0.0.1:" + metrics + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	wait(20 * time.Second) // it has listed all pods and runs
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// admit sends 200 pods a second, whether or not those before are answered.
func (s *service) admit(t *testing.T, r *results) {
	t.Helper()
	const rate, seconds = 200, 60
	text, err := os.ReadFile("../../webhook/testdata/admitted.in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	review := admissionv1.AdmissionReview{Request: &admissionv1.AdmissionRequest{
		UID: "1", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		Namespace: webhookNamespace, Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: raw},
	}}
	review.SetGroupVersionKind(admissionv1.SchemeGroupVersion.WithKind("AdmissionReview"))
	body, err := json.Marshal(review)
	if err != nil {
		t.Fatal(err)
	}
	took := samples{Name: "admission at 200/s", Unit: "ms", Values: make([]float64, rate*seconds)}
	before := s.process.cpu()
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	var wg sync.WaitGroup
	for i := range took.Values {
		due := <-tick.C
		wg.Go(func() {
			if err := s.mutate(body); err != nil {
				t.Error(err)
			}
			took.Values[i] = time.Since(due).Seconds() * 1000
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	cpu := samples{Name: "admission at 200/s, CPU for each", Unit: "ms", Values: []float64{(s.process.cpu() - before).Seconds() * 1000 / rate / seconds}}
	r.keep(took, cpu)
	r.row("admission, 200 pods a second for a minute, on one core", "p99 10 ms", took.percentile(99) <= 10, "", "median %.2g ms, p99 %.2g ms, longest %.2g ms; CPU %v for each", took.median(), took.percentile(99), took.most(), cpu)
}

func (s *service) mutate(body []byte) error {
	resp, err := s.client.Post(s.base+"/mutate-pods", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(resp.Body).Decode(&review); err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	if review.Response == nil || !review.Response.Allowed || len(review.Response.Patch) == 0 {
		return fmt.Errorf("not injected: %+v", review.Response)
	}
	return nil
}

func (s *service) ticket(token string) error {
	req, err := http.NewRequest(http.MethodPost, s.base+ticket.Path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	_, err = ticket.Decode(b)
	return err
}

// pin puts a process that this one has started on some cores.
func (s *service) pin(t *testing.T, name, cores string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue // ended
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		fields := strings.Fields(rest)
		exe, err := os.Readlink(filepath.Join(filepath.Dir(stat), "exe"))
		if err != nil || len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) || filepath.Base(exe) != name {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if err != nil {
			t.Fatal(err)
		}
		pinned(t, pid, cores)
		return
	}
	t.Fatalf("no process %s", name)
}

// pinned has a process run on these cores alone.
func pinned(t *testing.T, pid int, cores string) {
	t.Helper()
	if out, err := exec.Command("taskset", "-a", "-c", "-p", cores, strconv.Itoa(pid)).CombinedOutput(); err != nil {
		t.Fatalf("taskset: %v\n%s", err, out)
	}
}
