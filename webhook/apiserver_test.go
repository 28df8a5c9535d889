package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
)

// realAPI is a real API server.
type realAPI struct{ apiserver.Server }

// roles are the documents of a kind in manifests/base/rbac.yaml.
func roles[T any](t *testing.T, kind string) (found []T) {
	t.Helper()
	text, err := os.ReadFile("../manifests/base/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var head metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatal(err)
		}
		if head.Kind != kind {
			continue
		}
		var v T
		if err := yaml.UnmarshalStrict([]byte(doc), &v); err != nil {
			t.Fatal(err)
		}
		found = append(found, v)
	}
	return found
}

// TestRBAC holds the manifest against the rights that there is a reason for. Whoever adds one adds it here.
func TestRBAC(t *testing.T) {
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},    // tickets
		{NonResourceURLs: []string{"/openid/v1/jwks"}, Verbs: []string{"get"}},                                            // made-up tokens
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"}},                   // tickets; pods that are held back
		{APIGroups: []string{""}, Resources: []string{"pods/eviction", "events"}, Verbs: []string{"create"}},              // these, too
		{APIGroups: []string{""}, Resources: []string{"limitranges", "resourcequotas"}, Verbs: []string{"list", "watch"}}, // pods that would not fit
		// names in the archive; annotations and states of runs
		{APIGroups: []string{"tekton.dev"}, Resources: []string{"taskruns", "pipelineruns"}, Verbs: []string{"get", "list", "watch", "patch"}},
	}
	got := roles[rbacv1.ClusterRole](t, "ClusterRole")
	if len(got) != 1 {
		t.Fatalf("%d ClusterRoles, want 1", len(got))
	}
	if diff := cmp.Diff(want, got[0].Rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
	if n := len(roles[rbacv1.Role](t, "Role")); n != 0 {
		t.Errorf("%d Roles, want none", n)
	}
}

// asWebhook is a client with the rights of the manifest, and no others.
func (a realAPI) asWebhook(t *testing.T) *rest.Config {
	t.Helper()
	for _, r := range roles[rbacv1.ClusterRole](t, "ClusterRole") {
		if _, err := a.Core.RbacV1().ClusterRoles().Create(t.Context(), &r, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	bindings := roles[rbacv1.ClusterRoleBinding](t, "ClusterRoleBinding")
	for _, b := range bindings {
		if _, err := a.Core.RbacV1().ClusterRoleBindings().Create(t.Context(), &b, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	subject := bindings[0].Subjects[0]
	conf := rest.CopyConfig(a.Admin)
	conf.AcceptContentTypes = acceptedTypes
	conf.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + subject.Namespace + ":" + subject.Name}
	return conf
}

func (a realAPI) namespace(t *testing.T, name string) {
	t.Helper()
	if _, err := a.Core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// As a controller does.
	for _, account := range []string{"default", "builder"} {
		if _, err := a.Core.CoreV1().ServiceAccounts(name).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// create makes the pod, as a dry run or not.
func (a realAPI) create(ctx context.Context, namespace string, pod *corev1.Pod, dryRun bool) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	pod.Namespace = namespace
	var o metav1.CreateOptions
	if dryRun {
		o.DryRun = []string{metav1.DryRunAll}
	}
	return a.Core.CoreV1().Pods(namespace).Create(ctx, pod, o)
}

// until waits for a condition, for as long as the test may take.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited for: %s", what)
		}
	}
}

// TestOnAPIServer asks a real API server what the tests of the same names below can only suppose.
func TestOnAPIServer(t *testing.T) {
	api := realAPI{apiserver.Start(t)}
	t.Run("golden pods are valid", func(t *testing.T) { goldenPodsAreValid(t, api) })
	t.Run("damaged pods stay as valid as they were", func(t *testing.T) { damagedPodsStayValid(t, api) })
	t.Run("what does not fit is foreseen", func(t *testing.T) { misfitsAreForeseen(t, api) })
	t.Run("pods that are held back", func(t *testing.T) { podsHeldBack(t, api) })
	t.Run("containers that wait are recorded", func(t *testing.T) { waitingIsRecorded(t, api) })
	t.Run("made-up tokens are known", func(t *testing.T) { tokensAreTold(t, api) })
	t.Run("runs are annotated", func(t *testing.T) { runsAreAnnotated(t, api) })
	t.Run("a webhook behind ours", func(t *testing.T) { webhooksBehindOurs(t, api) })
}

// tokensAreTold: the webhook's rights let it have the API server's keys, and with them it knows
// which tokens the API server has signed.
func tokensAreTold(t *testing.T, api realAPI) {
	api.namespace(t, "tokens")
	pod, err := api.create(t.Context(), "tokens", &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec: corev1.PodSpec{
			ServiceAccountName: "builder",
			Containers:         []corev1.Container{{Name: "c", Image: "i"}},
		},
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(audience string, bound bool) string {
		t.Helper()
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{audience}, ExpirationSeconds: ptr.To[int64](tokenSeconds),
		}}
		if bound {
			request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{
				Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID,
			}
		}
		accounts := api.Core.CoreV1().ServiceAccounts("tokens")
		answer, err := accounts.CreateToken(t.Context(), "builder", request, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Status.Token
	}
	var log strings.Builder // requests come one after the other
	s, err := newTicketService(ticketConfig{
		REST: api.asWebhook(t), Store: &memoryStore{}, Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	good, want := issue(contract.Audience, true), boundPod{"tokens", "p", string(pod.UID)}
	for name, c := range map[string]struct {
		token  string
		reason refusal
	}{
		"as issued":          {good, ""},
		"of another key":     {newSigner("x").token(nil), ""},
		"changed":            {good[:len(good)-20] + strings.Repeat("A", 20), refusedInvalidToken},
		"another audience":   {issue("x", true), refusedInvalidToken},
		"not bound to a pod": {issue(contract.Audience, false), refusedNotBound},
	} {
		got, proven, err := s.keys.look(t.Context(), c.token)
		var refused *refusedError
		switch {
		case name == "of another key":
			if err != nil || proven {
				t.Errorf("%s: proven %v, %v; want a doubt", name, proven, err)
			}
		case c.reason == "" && (err != nil || !proven || got != want):
			t.Errorf("%s: %+v, proven %v, %v\n%s", name, got, proven, err, log.String())
		case c.reason != "" && (!errors.As(err, &refused) || refused.reason != c.reason):
			t.Errorf("%s: error %v, want %s", name, err, c.reason)
		}
	}
	// What is looked at before says the same as the API server.
	if reviewed, err := s.reviewToken(t.Context(), good); err != nil || reviewed != want {
		t.Errorf("reviewed: %+v, %v", reviewed, err)
	}
}

// goldenPodsAreValid: the API server accepts each golden pod as Tekton makes it, and as we patch it. Where the pod's own containers fit Pod Security "restricted", so does ours.
func goldenPodsAreValid(t *testing.T, api realAPI) {
	api.namespace(t, "golden")
	api.namespace(t, "golden-restricted")
	ns, err := api.Core.CoreV1().Namespaces().Get(t.Context(), "golden-restricted", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ns.Labels["pod-security.kubernetes.io/enforce"] = "restricted"
	if _, err := api.Core.CoreV1().Namespaces().Update(t.Context(), ns, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	done := map[string]int{}
	for _, c := range taskRunPods() {
		for _, namespace := range []string{"golden", "golden-restricted"} {
			t.Run(c.name+"/"+namespace, func(t *testing.T) {
				text, err := os.ReadFile("testdata/" + c.name + ".in.yaml")
				if err != nil {
					t.Fatal(err)
				}
				raw, err := yaml.YAMLToJSON(text)
				if err != nil {
					t.Fatal(err)
				}
				if namespace == "golden-restricted" {
					raw = restrict(t, raw)
				}
				d, patch, err := inject(raw, c.settingsFor(), onSupported)
				if err != nil {
					t.Fatal(err)
				}
				before, after := decodeTestPod(t, raw), decodeTestPod(t, apply(t, raw, patch))
				if _, err := api.create(t.Context(), namespace, before, true); err != nil {
					if namespace == "golden" {
						t.Fatalf("the API server refuses Tekton's own pod: %v", err)
					}
					return // such as one for Windows
				}
				made, err := api.create(t.Context(), namespace, after, true)
				if err != nil {
					t.Fatalf("the API server refuses the patched pod: %v", err)
				}
				if d.action != actionInject {
					return
				}
				done[namespace]++
				if p := made.Spec.InitContainers[0]; p.Name != contract.ShipperContainer || p.RestartPolicy == nil || *p.RestartPolicy != corev1.ContainerRestartPolicyAlways {
					t.Errorf("the API server made %s with restartPolicy %v the first init container", p.Name, p.RestartPolicy)
				}
				// The API server's own word on the class, where ours is only a copy of its rule.
				if bare := qosClass(before); bare == corev1.PodQOSGuaranteed && made.Status.QOSClass != bare {
					t.Errorf("QoS class %s became %s", bare, made.Status.QOSClass)
				}
			})
		}
	}
	t.Logf("injected and accepted: %v", done)
	if done["golden"] < 20 || done["golden-restricted"] < 15 {
		t.Errorf("%v: the test compares too little", done)
	}
}

// restrict gives all containers of a pod what Pod Security "restricted" asks for.
func restrict(t *testing.T, raw []byte) []byte {
	t.Helper()
	pod := decodeTestPod(t, raw)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: ptr.To(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	for _, c := range placedContainers(&pod.Spec) {
		c.SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: ptr.To(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
	}
	out, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// damagedPodsStayValid: whatever the pod, one that the API server would take is taken after the patch too. One that it refuses anyway may become anything.
func damagedPodsStayValid(t *testing.T, api realAPI) {
	api.namespace(t, "damaged")
	pods := goldenPods(t)
	p := newTestAdmission()
	taken, patched := 0, 0
	for which := range pods {
		for seed := range uint64(30) {
			raw := damagedPod(t, pods, uint(which), seed)
			var before corev1.Pod
			if json.Unmarshal(raw, &before) != nil {
				continue
			}
			if _, err := api.create(t.Context(), "damaged", &before, true); err != nil {
				continue
			}
			taken++
			out := admitted(t, p, raw)
			if out == nil {
				continue
			}
			patched++
			if _, err := api.create(t.Context(), "damaged", decodeTestPod(t, out), true); err != nil {
				t.Errorf("pod %d seed %d: the API server takes the pod, and not the patched one: %v\n%s", which, seed, err, raw)
			}
		}
	}
	t.Logf("%d damaged pods were taken as they were, %d of them were patched", taken, patched)
	if patched < 100 {
		t.Errorf("only %d pods were patched: the test compares too little", patched)
	}
}

// misfitsAreForeseen holds misfit against what the API server says to the bare pod and to the injected one.
func misfitsAreForeseen(t *testing.T, api realAPI) {
	list := func(pairs ...string) corev1.ResourceList {
		l := corev1.ResourceList{}
		for i := 0; i < len(pairs); i += 2 {
			l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
		}
		return l
	}
	limitRangeOf := func(items ...corev1.LimitRangeItem) *corev1.LimitRange {
		return &corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: items}}
	}
	quota := func(hard, used corev1.ResourceList, scopes ...corev1.ResourceQuotaScope) *corev1.ResourceQuota {
		return &corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{Hard: hard, Scopes: scopes}, Status: corev1.ResourceQuotaStatus{Hard: hard, Used: used}}
	}
	requests := func(requests, limits corev1.ResourceList) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
		}
	}
	watch, err := newLimits(api.asWebhook(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { watch.run(ctx) })
	defer group.Wait()
	defer stop()

	container, podType := corev1.LimitTypeContainer, corev1.LimitTypePod
	half := requests(list("cpu", "500m", "memory", "512Mi"), list("cpu", "500m", "memory", "512Mi"))
	for i, c := range []struct {
		name  string
		limit *corev1.LimitRange
		quota *corev1.ResourceQuota
		pod   func(*corev1.Pod)
		want  reason
	}{
		{name: "nothing", want: ""},
		{name: "defaults alone", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Default: list("memory", "1Gi", "cpu", "1"), DefaultRequest: list("memory", "1Mi", "cpu", "1m")}), want: ""},
		{name: "container: maximum above", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("cpu", "2", "memory", "1Gi")}), want: ""},
		{name: "container: CPU maximum below ours", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("cpu", "500m")}), want: limitRange},
		{name: "container: memory maximum equal to ours", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("memory", "64Mi")}), want: ""},
		{name: "container: minimum above ours", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Min: list("memory", "128Mi")}), pod: half, want: limitRange},
		{name: "container: minimum below ours", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Min: list("memory", "16Mi", "cpu", "5m")}), pod: half, want: ""},
		{name: "container: ratio below ours", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, MaxLimitRequestRatio: list("cpu", "10")}), pod: requests(list("cpu", "1"), list("cpu", "2")), want: limitRange},
		{name: "container: ratio as of a Guaranteed pod", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, MaxLimitRequestRatio: list("cpu", "1")}), pod: half, want: ""},
		{name: "container: ratio of memory as ours", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, MaxLimitRequestRatio: list("memory", "2")}), pod: half, want: ""},
		{name: "container: maximum of storage, which is a default too", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("ephemeral-storage", "1Gi")}), want: limitRange},
		{name: "container: maximum of storage with room for the spool", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("ephemeral-storage", "2Gi")}), want: ""},
		{name: "container: storage, less than the spool may need", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("ephemeral-storage", "1Gi")}),
			pod: requests(nil, list("ephemeral-storage", "1Gi")), want: limitRange},
		{name: "container: no defaults for a minimum", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Min: list("ephemeral-storage", "1Mi")}),
			pod: requests(list("ephemeral-storage", "1Mi"), nil), want: ""},
		{name: "pod: room", limit: limitRangeOf(corev1.LimitRangeItem{Type: podType, Max: list("memory", "576Mi")}), pod: half, want: ""},
		{name: "pod: no room", limit: limitRangeOf(corev1.LimitRangeItem{Type: podType, Max: list("memory", "575Mi")}), pod: half, want: limitRange},
		{name: "pod: no room before us either", limit: limitRangeOf(corev1.LimitRangeItem{Type: podType, Max: list("memory", "100Mi")}), pod: half, want: ""},
		{name: "pod: an init container counts where it is more", limit: limitRangeOf(corev1.LimitRangeItem{Type: podType, Max: list("memory", "1Gi")}), pod: func(p *corev1.Pod) {
			half(p)
			p.Spec.InitContainers = []corev1.Container{{Name: "prepare", Image: "i", Resources: corev1.ResourceRequirements{Limits: list("memory", "1Gi")}}}
		}, want: limitRange},
		{name: "pod: a native sidecar counts beside the steps", limit: limitRangeOf(corev1.LimitRangeItem{Type: podType, Max: list("memory", "1Gi")}), pod: func(p *corev1.Pod) {
			half(p)
			p.Spec.InitContainers = []corev1.Container{{Name: "side", Image: "i", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways), Resources: corev1.ResourceRequirements{Limits: list("memory", "500Mi")}}}
		}, want: limitRange},
		{name: "quota: room", quota: quota(list("requests.memory", "1Gi"), list("requests.memory", "400Mi")), pod: half, want: ""},
		{name: "quota: exactly full with us", quota: quota(list("requests.cpu", "1"), list("requests.cpu", "400m")), pod: half, want: ""},
		{name: "quota: no room for us", quota: quota(list("limits.memory", "1Gi"), list("limits.memory", "512Mi")), pod: half, want: resourceQuota},
		{name: "quota: never room for us", quota: quota(list("memory", "512Mi"), nil), pod: half, want: resourceQuota},
		{name: "quota: no room without us either", quota: quota(list("memory", "1Gi"), list("memory", "1Gi")), pod: half, want: ""},
		{name: "quota: of pods with a deadline", quota: quota(list("memory", "512Mi"), nil, corev1.ResourceQuotaScopeTerminating), pod: half, want: ""},
		{name: "quota: of pods without a deadline", quota: quota(list("memory", "512Mi"), nil, corev1.ResourceQuotaScopeNotTerminating), pod: half, want: resourceQuota},
		{name: "quota: of best effort", quota: quota(list("pods", "1"), nil, corev1.ResourceQuotaScopeBestEffort), want: ""},
		{name: "quota: of more than best effort, which we make of it", quota: quota(list("pods", "1"), list("pods", "1"), corev1.ResourceQuotaScopeNotBestEffort), want: resourceQuota},
	} {
		t.Run(c.name, func(t *testing.T) {
			namespace := fmt.Sprintf("limits-%d", i)
			api.namespace(t, namespace)
			objects := 0
			if c.limit != nil {
				c.limit.Name = "l"
				if _, err := api.Core.CoreV1().LimitRanges(namespace).Create(t.Context(), c.limit, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				objects++
			}
			if c.quota != nil {
				c.quota.Name = "q"
				status := c.quota.Status
				q, err := api.Core.CoreV1().ResourceQuotas(namespace).Create(t.Context(), c.quota, metav1.CreateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				for name := range status.Hard { // as the quota controller does
					if _, ok := status.Used[name]; !ok {
						status.Used = sum(status.Used, corev1.ResourceList{name: resource.MustParse("0")})
					}
				}
				q.Status = status
				if q, err = api.Core.CoreV1().ResourceQuotas(namespace).UpdateStatus(t.Context(), q, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				until(t, "the quota's status in the cache", func() bool {
					o, ok, err := watch.quotas.GetByKey(namespace + "/q")
					return err == nil && ok && o.(*corev1.ResourceQuota).ResourceVersion == q.ResourceVersion
				})
			}
			if c.limit != nil {
				until(t, "the LimitRange in the cache", func() bool { _, ok, err := watch.ranges.GetByKey(namespace + "/l"); return err == nil && ok })
			}
			pod := taskRunTestPod()
			pod.Name = "p"
			if c.pod != nil {
				c.pod(pod)
			}
			// A webhook sees the pod with the defaults that the API server has given it.
			seen, bareErr := api.create(t.Context(), namespace, pod, true)
			if bareErr != nil {
				seen = pod
			}
			seen.ObjectMeta, seen.Status = pod.ObjectMeta, corev1.PodStatus{}
			raw, err := json.Marshal(seen)
			if err != nil {
				t.Fatal(err)
			}
			_, patch, err := inject(raw, testSettings(), onSupported)
			if err != nil {
				t.Fatal(err)
			}
			_, fullErr := api.create(t.Context(), namespace, decodeTestPod(t, apply(t, raw, patch)), true)
			got := watch.misfit(seen, namespace, shipperResources(&seen.Spec, testSettings(), 1))
			if got != c.want {
				t.Errorf("misfit says %q, want %q; the API server says %v to the pod alone and %v with our container (%d objects)", got, c.want, bareErr, fullErr, objects)
			}
			if refused := bareErr == nil && fullErr != nil; refused != (got != "") {
				t.Errorf("misfit says %q, but the API server says %v to the pod alone and %v with our container", got, bareErr, fullErr)
			}
		})
	}
}

// heldPodIn makes an injected pod and gives it the status that a kubelet reports.
func (a realAPI) heldPodIn(t *testing.T, namespace, name string, status corev1.PodStatus) *corev1.Pod {
	t.Helper()
	raw := podWith("", "")
	_, patch, err := inject(raw, testSettings(), onSupported)
	if err != nil {
		t.Fatal(err)
	}
	pod := decodeTestPod(t, apply(t, raw, patch))
	pod.Name = name
	made, err := a.create(t.Context(), namespace, pod, false)
	if err != nil {
		t.Fatal(err)
	}
	return a.setStatus(t, made, status)
}

func (a realAPI) setStatus(t *testing.T, pod *corev1.Pod, status corev1.PodStatus) *corev1.Pod {
	t.Helper()
	pod.Status = status
	made, err := a.Core.CoreV1().Pods(pod.Namespace).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func waitingState(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

// notPulled is the status of a pod whose first image cannot be pulled.
func notPulled(since time.Time) corev1.PodStatus {
	return corev1.PodStatus{
		Phase:      corev1.PodPending,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(since)}},
		InitContainerStatuses: []corev1.ContainerStatus{
			{Name: contract.ShipperContainer, Image: "i", Started: ptr.To(false), State: waitingState("ImagePullBackOff", "Back-off pulling image")}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "step-a", Image: "i", Started: ptr.To(false), State: waitingState("PodInitializing", "")}},
	}
}

// shipperRuns is the status of a pod that goes on.
func shipperRuns() corev1.PodStatus {
	s := notPulled(time.Now())
	s.InitContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
	s.InitContainerStatuses[0].Started = ptr.To(true)
	return s
}

// podsHeldBack goes through it all with the rights of the manifest: held back, told, replaced, paused, one let through, recovered.
func podsHeldBack(t *testing.T, api realAPI) {
	for _, ns := range []string{"held-a", "held-b", "held-c"} {
		api.namespace(t, ns)
	}
	// The clock stands still but where the test moves it, so that nothing depends on how fast the machine is. It begins in the past: pods are made after it.
	begin := time.Now().Add(-time.Minute)
	var ahead atomic.Int64
	now := func() time.Time { return begin.Add(time.Duration(ahead.Load())) }
	start := func(registry *prometheus.Registry, replace bool) (*waitingPods, func()) {
		g := newGuard(time.Minute, time.Hour)
		g.now = now
		w, err := newWaitingPods(api.asWebhook(t), g, replace, nil, registry, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { w.run(ctx) })
		return w, func() { stop(); group.Wait() }
	}
	registry := prometheus.NewRegistry()
	one, stopOne := start(registry, true)
	defer stopOne()
	two, stopTwo := start(prometheus.NewRegistry(), true) // two replicas
	defer stopTwo()

	// Of a pod that was replaced before it began to watch, a replica knows nothing.
	until(t, "both to watch", func() bool { return one.informer.HasSynced() && two.informer.HasSynced() })

	paused := func(w *waitingPods, namespace string) bool { return w.guard.paused(namespace, true) }
	long := begin.Add(-10 * time.Minute)
	stuck := api.heldPodIn(t, "held-a", "stuck", notPulled(long))
	fresh := api.heldPodIn(t, "held-b", "fresh", notPulled(begin))
	busyStatus := notPulled(long)
	busyStatus.ContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
	api.heldPodIn(t, "held-c", "busy", busyStatus)

	for i, w := range []*waitingPods{one, two} {
		until(t, fmt.Sprintf("replica %d to stop injecting in held-a", i), func() bool { return paused(w, "held-a") })
		if paused(w, "held-b") || paused(w, "held-c") {
			t.Errorf("replica %d has stopped in namespaces without a held pod too", i)
		}
	}
	if _, err := api.Core.CoreV1().Pods("held-a").Get(t.Context(), "stuck", metav1.GetOptions{}); err != nil {
		t.Errorf("the pod, before every replica knows of it: %v", err)
	}
	ahead.Add(int64(settle))
	until(t, "the held pod to be replaced", func() bool {
		_, err := api.Core.CoreV1().Pods("held-a").Get(t.Context(), "stuck", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	for namespace, name := range map[string]string{"held-b": "fresh", "held-c": "busy"} {
		if _, err := api.Core.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Errorf("pod %s, which is not to be replaced: %v", name, err)
		}
	}
	var events *corev1.EventList
	until(t, "an event for the pod and one for its TaskRun", func() bool {
		var err error
		if events, err = api.Core.CoreV1().Events("held-a").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		return len(events.Items) >= 2
	})
	var about []string
	for _, e := range events.Items {
		about = append(about, e.InvolvedObject.Kind+" "+e.InvolvedObject.Name+" "+e.Reason)
		if e.InvolvedObject.Kind == "Pod" && (e.InvolvedObject.UID != stuck.UID || !strings.Contains(e.Message, "ImagePullBackOff")) {
			t.Errorf("event %+v, want one about the pod %s with Kubernetes' reason", e, stuck.UID)
		}
	}
	slices.Sort(about)
	if want := []string{"Pod stuck ShiplogHeldBack", "TaskRun r ShiplogReplacedPod"}; !slices.Equal(about, want) {
		t.Errorf("events %q, want one of each, from both replicas together: %q", about, want)
	}
	if got := testutil.ToFloat64(one.held.WithLabelValues("ImagePullBackOff")); got != 1 {
		t.Errorf("the metric counts %v held pods, want 1", got)
	}
	if got := testutil.ToFloat64(one.replaced) + testutil.ToFloat64(two.replaced); got != 1 {
		t.Errorf("the replicas say that they replaced %v pods, want 1", got)
	}

	// A second namespace: the whole cluster.
	api.setStatus(t, fresh, notPulled(long))
	until(t, "both replicas to stop injecting everywhere", func() bool { return paused(one, "held-c") && paused(two, "elsewhere") })
	ahead.Add(int64(settle))
	until(t, "the second held pod to be replaced", func() bool {
		_, err := api.Core.CoreV1().Pods("held-b").Get(t.Context(), "fresh", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP shiplog_injection_paused 1 while no pod of the cluster is injected, since shiplog's container cannot be started.
# TYPE shiplog_injection_paused gauge
shiplog_injection_paused 1
# HELP shiplog_injection_paused_namespaces Namespaces in which no pod is injected, since shiplog's container could not be started there.
# TYPE shiplog_injection_paused_namespaces gauge
shiplog_injection_paused_namespaces 2
`), "shiplog_injection_paused", "shiplog_injection_paused_namespaces"); err != nil {
		t.Error(err)
	}
	if _, err := api.Core.CoreV1().Pods("held-c").Get(t.Context(), "busy", metav1.GetOptions{}); err != nil {
		t.Errorf("the pod of which something has run: %v", err)
	}

	// After the pause one pod is let through. The other replica sees it, and lets none.
	ahead.Store(int64(2 * time.Hour))
	if one.guard.paused("held-c", false) {
		t.Fatal("after the pause no pod is let through")
	}
	if !one.guard.paused("held-c", false) {
		t.Error("a second pod is let through at once")
	}
	probe := api.heldPodIn(t, "held-c", "probe", corev1.PodStatus{Phase: corev1.PodPending})
	until(t, "the other replica to see the pod", func() bool {
		two.guard.mu.Lock()
		defer two.guard.mu.Unlock()
		_, ok := two.guard.watched[probe.UID]
		return ok
	})
	if !two.guard.paused("held-c", false) {
		t.Error("the other replica lets one through as well")
	}
	if !paused(one, "held-c") {
		t.Error("injecting goes on before the pod has started")
	}
	// It starts so fast that nobody sees it Pending with a shipper that runs.
	running := shipperRuns()
	running.Phase = corev1.PodRunning
	api.setStatus(t, probe, running)
	until(t, "both replicas to inject again", func() bool { return !paused(one, "held-c") && !paused(two, "held-c") })
	if !paused(one, "held-a") {
		t.Error("the namespace that has a fault of its own is injected before a pod has started there")
	}
}

// waitingIsRecorded: the watch sees with the rights of the manifest which containers of a running pod cannot be started, and hands it on once.
func waitingIsRecorded(t *testing.T, api realAPI) {
	api.namespace(t, "waits")
	type call struct {
		pod      boundPod
		failures map[string]record.Waiting
	}
	calls := make(chan call, 100)
	w, err := newWaitingPods(api.asWebhook(t), newGuard(time.Minute, time.Hour), false, func(_ context.Context, pod boundPod, failures map[string]record.Waiting) error {
		calls <- call{pod, failures}
		return nil
	}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { w.run(ctx) })
	defer group.Wait()
	defer stop()

	status := shipperRuns()
	status.ContainerStatuses[0].State = waitingState("ErrImagePull", "not found")
	pod := api.heldPodIn(t, "waits", "p", status)
	want := call{boundPod{"waits", "p", string(pod.UID)}, map[string]record.Waiting{"step-a": {Reason: "ErrImagePull", Message: "not found"}}}
	if diff := cmp.Diff(want, <-calls, cmp.AllowUnexported(call{}, boundPod{})); diff != "" {
		t.Errorf("first (-want +got):\n%s", diff)
	}
	status.ContainerStatuses[0].State = waitingState("ErrImagePull", "not found, 2nd try") // no news
	pod = api.setStatus(t, pod, status)
	status.ContainerStatuses[0].State = waitingState("ImagePullBackOff", "Back-off")
	api.setStatus(t, pod, status)
	want.failures = map[string]record.Waiting{"step-a": {Reason: "ImagePullBackOff", Message: "Back-off"}}
	if diff := cmp.Diff(want, <-calls, cmp.AllowUnexported(call{}, boundPod{})); diff != "" {
		t.Errorf("second (-want +got):\n%s", diff)
	}
}

// webhooksBehindOurs puts our handler and one that drops restartPolicy into the API server, as MutatingWebhookConfigurations, and makes pods. Ours is that of the manifest.
func webhooksBehindOurs(t *testing.T, api realAPI) {
	api.namespace(t, "behind")
	ns, err := api.Core.CoreV1().Namespaces().Get(t.Context(), "behind", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ns.Labels[contract.InjectKey] = contract.InjectEnabled
	if _, err := api.Core.CoreV1().Namespaces().Update(t.Context(), ns, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../manifests/base/webhook.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var ours admissionregistrationv1.MutatingWebhookConfiguration
	if err := yaml.UnmarshalStrict(text, &ours); err != nil {
		t.Fatal(err)
	}
	serve := func(h http.Handler, c *admissionregistrationv1.MutatingWebhookConfiguration) {
		t.Helper()
		server := httptest.NewTLSServer(h)
		t.Cleanup(server.Close)
		ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
		c.Webhooks[0].ClientConfig = admissionregistrationv1.WebhookClientConfig{URL: ptr.To(server.URL + admissionPath), CABundle: ca}
		c.Webhooks[0].TimeoutSeconds = ptr.To[int32](30) // the machine may be busy
	}
	p := newTestAdmission()
	serve(p, &ours)
	made, err := api.Core.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), &ours, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := api.Core.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.WithoutCancel(t.Context()), made.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}()
	bare := decodeTestPod(t, podWith("", ""))
	until(t, "the API server to call our webhook", func() bool {
		pod, err := api.create(t.Context(), "behind", bare, true)
		if err != nil {
			t.Fatal(err)
		}
		return injected(pod)
	})
	for _, policy := range []admissionregistrationv1.ReinvocationPolicyType{admissionregistrationv1.NeverReinvocationPolicy, admissionregistrationv1.IfNeededReinvocationPolicy} {
		t.Run(string(policy), func(t *testing.T) {
			c := ours.DeepCopy()
			c.ObjectMeta = metav1.ObjectMeta{Name: "z-behind"}
			c.Webhooks[0].Name, c.Webhooks[0].ReinvocationPolicy = "drops.example.com", &policy
			dropped := make(chan struct{}, 1000)
			serve(dropsRestartPolicy(dropped), c)
			if _, err := api.Core.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := api.Core.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.WithoutCancel(t.Context()), c.Name, metav1.DeleteOptions{}); err != nil {
					t.Error(err)
				}
			}()
			var pod *corev1.Pod
			var err error
			until(t, "the API server to call the webhook behind ours", func() bool {
				pod, err = api.create(t.Context(), "behind", bare, true)
				return len(dropped) > 0
			})
			if err != nil {
				t.Fatalf("the API server refuses the pod: %v", err)
			}
			if got := pod.Annotations[contract.SkippedAnnotation]; len(pod.Spec.InitContainers) != 0 || got != "pod=restart-policy-dropped" {
				t.Errorf("annotation %q and init containers %+v, want none of ours", got, pod.Spec.InitContainers)
			}
			if c := pod.Spec.Containers[0]; !slices.Equal(c.Command, []string{"/tekton/bin/entrypoint", "--", "a"}) || len(c.Args) > 0 {
				t.Errorf("the step runs %q %q, want what it ran before", c.Command, c.Args)
			}
		})
	}
}

// dropsRestartPolicy is a webhook that was built before containers had a restartPolicy, and writes the whole pod anew.
func dropsRestartPolicy(dropped chan<- struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var pod corev1.Pod
		if err := json.Unmarshal(review.Request.Object.Raw, &pod); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var patch []map[string]any
		for i := range pod.Spec.InitContainers {
			if pod.Spec.InitContainers[i].RestartPolicy != nil {
				patch = append(patch, map[string]any{"op": "remove", "path": fmt.Sprintf("/spec/initContainers/%d/restartPolicy", i)})
				dropped <- struct{}{}
			}
		}
		encoded, err := json.Marshal(patch)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if len(patch) > 0 {
			review.Response.Patch, review.Response.PatchType = encoded, ptr.To(admissionv1.PatchTypeJSONPatch)
		}
		_ = json.NewEncoder(w).Encode(review)
	})
}
