package main

import (
	stdcmp "cmp"
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
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
)

// realAPI is a real API server.
type realAPI struct{ apiserver.Server }

// The manifests that have the rights of the two roles.
const (
	webhookRights   = "rbac.yaml"
	annotatorRights = "annotator.yaml"
)

// roles are the documents of a kind in a file of manifests/base.
func roles[T any](t *testing.T, file, kind string) (found []T) {
	t.Helper()
	text, err := os.ReadFile("../manifests/base/" + file)
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

// TestRBAC holds the manifests against the rights that there is a reason for. Whoever adds one adds it
// here.
func TestRBAC(t *testing.T) {
	webhook := []rbacv1.PolicyRule{
		{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}}, // tickets
		// Made-up tokens.
		{NonResourceURLs: []string{"/openid/v1/jwks"}, Verbs: []string{"get"}},
		// Tickets; pods that are held back.
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"}},
		// These, too.
		{APIGroups: []string{""}, Resources: []string{"pods/eviction", "events"}, Verbs: []string{"create"}},
		// Of pods that do not start.
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"list"}},
		// Those in which pods are injected, and the one that a run is in.
		{
			APIGroups: []string{""}, Resources: []string{"namespaces"},
			Verbs: []string{"get", "list", "watch"},
		},
		// Pods that would not fit.
		{APIGroups: []string{""}, Resources: []string{"limitranges", "resourcequotas"}, Verbs: []string{"list", "watch"}},
		// Tekton's.
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"feature-flags"}, Verbs: []string{"get"}},
		// Names in the archive; refused pods; the address of logs.
		{APIGroups: []string{"tekton.dev"}, Resources: []string{"taskruns", "pipelineruns"}, Verbs: []string{"get", "list", "watch", "patch"}},
	}
	annotator := []rbacv1.PolicyRule{
		// Annotations and states of runs.
		{APIGroups: []string{"tekton.dev"}, Resources: []string{"taskruns", "pipelineruns"}, Verbs: []string{"get", "list", "watch", "patch"}},
		// What a run lost.
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create"}},
		// Pods that were not captured, runs that should have been, and the namespace that these
		// are in.
		{APIGroups: []string{""}, Resources: []string{"pods", "namespaces"}, Verbs: []string{"get"}},
	}
	for file, want := range map[string][]rbacv1.PolicyRule{
		webhookRights: webhook, annotatorRights: annotator,
	} {
		t.Run(file, func(t *testing.T) {
			got := roles[rbacv1.ClusterRole](t, file, "ClusterRole")
			if len(got) != 1 {
				t.Fatalf("%d ClusterRoles, want 1", len(got))
			}
			if diff := cmp.Diff(want, got[0].Rules); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
			if n := len(roles[rbacv1.Role](t, file, "Role")); n != 0 {
				t.Errorf("%d Roles, want none", n)
			}
		})
	}
}

// asWebhook is a client with the rights of the webhook's manifest, and no others.
func (a realAPI) asWebhook(t *testing.T) *rest.Config {
	t.Helper()
	return a.withRights(t, webhookRights)
}

// asAnnotator is the same for the annotator.
func (a realAPI) asAnnotator(t *testing.T) *rest.Config {
	t.Helper()
	return a.withRights(t, annotatorRights)
}

func (a realAPI) withRights(t *testing.T, file string) *rest.Config {
	t.Helper()
	for _, r := range roles[rbacv1.ClusterRole](t, file, "ClusterRole") {
		if _, err := a.Core.RbacV1().ClusterRoles().Create(t.Context(), &r, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	bindings := roles[rbacv1.ClusterRoleBinding](t, file, "ClusterRoleBinding")
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

// label sets a label of a namespace.
func (a realAPI) label(t *testing.T, namespace, key, value string) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value)
	_, err := a.Core.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType,
		[]byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
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

// beside runs each until the returned function is called, which waits for their ends.
func beside(t testing.TB, runs ...func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for _, run := range runs {
		group.Go(func() { run(ctx) })
	}
	return func() { cancel(); group.Wait() }
}

// TestOnAPIServer asks a real API server what the tests of the same names below can only suppose.
func TestOnAPIServer(t *testing.T) {
	api := realAPI{apiserver.Start(t)}
	t.Run("golden pods are valid", func(t *testing.T) { goldenPodsAreValid(t, api) })
	t.Run("damaged pods stay as valid as they were", func(t *testing.T) { damagedPodsStayValid(t, api) })
	t.Run("Tekton's flags are read", func(t *testing.T) { tektonFlagsAreRead(t, api) })
	t.Run("what is too large is foreseen", func(t *testing.T) { sizesAreForeseen(t, api) })
	t.Run("the shipper is fitted into limits", func(t *testing.T) { shipperIsFitted(t, api) })
	t.Run("pods that are held back", func(t *testing.T) { podsHeldBack(t, api) })
	t.Run("pods that hang", func(t *testing.T) { podsThatHang(t, api) })
	t.Run("containers that wait are recorded", func(t *testing.T) { waitingIsRecorded(t, api) })
	t.Run("made-up tokens are known", func(t *testing.T) { tokensAreTold(t, api) })
	t.Run("runs are annotated", func(t *testing.T) { runsAreAnnotated(t, api) })
	t.Run("pods that a policy refuses", func(t *testing.T) { podsRefused(t, api) })
	t.Run("a namespace's own settings", func(t *testing.T) { namespacesAreFollowed(t, api) })
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
	api.label(t, "golden-restricted", "pod-security.kubernetes.io/enforce", "restricted")
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
				p := made.Spec.InitContainers[d.at]
				if p.Name != contract.ShipperContainer || p.RestartPolicy == nil || *p.RestartPolicy != corev1.ContainerRestartPolicyAlways {
					t.Errorf("the API server made %s with restartPolicy %v init container %d", p.Name, p.RestartPolicy, d.at)
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

// shipperIsFitted holds fit against what the API server says to the bare pod and to the injected
// one.
func shipperIsFitted(t *testing.T, api realAPI) {
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
	defer beside(t, watch.run)()

	container, podType := corev1.LimitTypeContainer, corev1.LimitTypePod
	half := requests(list("cpu", "500m", "memory", "512Mi"), list("cpu", "500m", "memory", "512Mi"))
	for i, c := range []struct {
		name   string
		limit  *corev1.LimitRange
		second *corev1.LimitRange
		quota  *corev1.ResourceQuota
		pod    func(*corev1.Pod)
		want   reason
		ours   string // the shipper's "cpu memory" as request-limit, where they are others than usual
	}{
		{name: "nothing", want: ""},
		{name: "defaults alone", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Default: list("memory", "1Gi", "cpu", "1"), DefaultRequest: list("memory", "1Mi", "cpu", "1m")}), want: ""},
		{name: "container: maximum above", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("cpu", "2", "memory", "1Gi")}), want: ""},
		{name: "container: CPU maximum below ours",
			limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("cpu", "500m")}),
			ours:  "10m-500m 32Mi-64Mi"},
		{name: "container: minimum of CPU above our request",
			limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Min: list("cpu", "50m")}),
			ours:  "50m-1 32Mi-64Mi"},
		{name: "container: minimum of CPU above our limit",
			limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Min: list("cpu", "2")}),
			ours:  "2-2 32Mi-64Mi"},
		{name: "container: ratio of 10",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, MaxLimitRequestRatio: list("cpu", "10")}),
			pod: requests(list("cpu", "500m"), list("cpu", "1")), ours: "10m-100m 32Mi-64Mi"},
		{name: "container: ratio of 4, with a minimum",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Min: list("cpu", "50m"), MaxLimitRequestRatio: list("cpu", "4")}),
			pod: requests(list("cpu", "500m"), list("cpu", "1")), ours: "50m-200m 32Mi-64Mi"},
		{name: "container: ratio of 3",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, MaxLimitRequestRatio: list("cpu", "3")}),
			pod: requests(list("cpu", "500m"), list("cpu", "1")), ours: "34m-100m 32Mi-64Mi"},
		{name: "container: ratio of memory below ours",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, MaxLimitRequestRatio: list("memory", "1500m")}),
			pod:  requests(list("memory", "500Mi"), list("memory", "600Mi")),
			ours: "10m-1 44739243-64Mi"},
		{name: "container: minimum, maximum and ratio",
			limit: limitRangeOf(corev1.LimitRangeItem{Type: container,
				Min: list("cpu", "50m", "memory", "50Mi"), Max: list("cpu", "500m", "memory", "1Gi"),
				MaxLimitRequestRatio: list("cpu", "10", "memory", "1")}),
			pod:  requests(list("cpu", "500m", "memory", "1Gi"), list("cpu", "500m", "memory", "1Gi")),
			ours: "100m-100m 64Mi-64Mi"},
		{name: "container: defaults, minimum, maximum and ratio",
			limit: limitRangeOf(corev1.LimitRangeItem{Type: container,
				Default:        list("cpu", "400m", "memory", "512Mi"),
				DefaultRequest: list("cpu", "100m", "memory", "256Mi"),
				Min:            list("cpu", "50m", "memory", "50Mi"), Max: list("cpu", "500m", "memory", "1Gi"),
				MaxLimitRequestRatio: list("cpu", "10", "memory", "2")}), ours: "50m-500m 50Mi-64Mi"},
		{name: "container: two ranges",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Min: list("cpu", "20m"), Max: list("cpu", "600m")}),
			second: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Min: list("cpu", "30m"), Max: list("cpu", "700m")}),
			ours: "30m-600m 32Mi-64Mi"},
		{name: "container: maximum of CPU below what the start needs",
			limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("cpu", "99m")}),
			want:  limitRange},
		{name: "container: maximum of memory below our limit",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Max: list("memory", "40Mi")}),
			ours: "10m-1 32Mi-40Mi"},
		{name: "container: a Guaranteed pod below the maximum",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Max: list("cpu", "500m", "memory", "512Mi")}),
			pod:  half,
			ours: "100m-100m 64Mi-64Mi"},
		{name: "container: a Guaranteed pod above the minimum",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Min: list("cpu", "250m", "memory", "100Mi")}),
			pod:  half,
			ours: "250m-250m 100Mi-100Mi"},
		{name: "container: a Guaranteed pod and a small maximum of memory",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Max: list("memory", "48Mi"), Min: list("memory", "32Mi")}),
			pod:  requests(list("cpu", "500m", "memory", "48Mi"), list("cpu", "500m", "memory", "48Mi")),
			ours: "100m-100m 48Mi-48Mi"},
		{name: "container: defaults, and a pod with resources of its own",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type:    container,
				Default: list("cpu", "400m", "memory", "512Mi"), DefaultRequest: list("cpu", "100m"),
			}),
			pod: func(p *corev1.Pod) {
				own := list("cpu", "2", "memory", "2Gi")
				p.Spec.Resources = &corev1.ResourceRequirements{Requests: own, Limits: own}
			}, ours: "0-0 0-0"},
		{name: "container: another resource by default",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Default: list("example.com/part", "1"),
				DefaultRequest: list("example.com/part", "1")})},
		{name: "container: memory maximum equal to ours", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("memory", "64Mi")}), want: ""},
		{name: "container: minimum above ours",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Min: list("memory", "128Mi")}),
			pod:  half,
			ours: "100m-100m 128Mi-128Mi"},
		{name: "container: minimum below ours", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Min: list("memory", "16Mi", "cpu", "5m")}), pod: half, want: ""},
		{name: "container: ratio below ours",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, MaxLimitRequestRatio: list("cpu", "10")}),
			pod:  requests(list("cpu", "1"), list("cpu", "2")),
			ours: "10m-100m 32Mi-64Mi"},
		{name: "container: ratio as of a Guaranteed pod", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, MaxLimitRequestRatio: list("cpu", "1")}), pod: half, want: ""},
		{name: "container: ratio of memory as ours", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, MaxLimitRequestRatio: list("memory", "2")}), pod: half, want: ""},
		{name: "container: maximum of storage, which is a default too",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Max: list("ephemeral-storage", "1Gi")}),
			want: ""},
		{name: "container: maximum of storage that is too small for a spool",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, Max: list("ephemeral-storage", "127Mi")}),
			want: limitRange},
		{name: "container: ratio of storage",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: container, MaxLimitRequestRatio: list("ephemeral-storage", "4")}),
			pod:  requests(list("ephemeral-storage", "1Gi"), list("ephemeral-storage", "2Gi")),
			want: ""},
		{name: "container: maximum of storage with room for the spool", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("ephemeral-storage", "2Gi")}), want: ""},
		{name: "container: storage, less than the spool may need", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Max: list("ephemeral-storage", "1Gi")}),
			pod: requests(nil, list("ephemeral-storage", "1Gi")), want: ""},
		{name: "container: no defaults for a minimum", limit: limitRangeOf(corev1.LimitRangeItem{Type: container, Min: list("ephemeral-storage", "1Mi")}),
			pod: requests(list("ephemeral-storage", "1Mi"), nil), want: ""},
		{name: "pod: room", limit: limitRangeOf(corev1.LimitRangeItem{Type: podType, Max: list("memory", "576Mi")}), pod: half, want: ""},
		{name: "pod: no room",
			limit: limitRangeOf(corev1.LimitRangeItem{Type: podType, Max: list("memory", "512Mi")}),
			pod:   half,
			want:  limitRange},
		{name: "pod: less room than we want",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: podType, Max: list("memory", "552Mi", "cpu", "620m")}),
			pod:  half,
			ours: "100m-100m 40Mi-40Mi"},
		{name: "pod: less room than we want in a Burstable pod",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: podType, Max: list("memory", "552Mi", "cpu", "700m")}),
			pod:  requests(list("cpu", "100m", "memory", "100Mi"), list("cpu", "500m", "memory", "512Mi")),
			ours: "10m-200m 32Mi-40Mi"},
		{name: "pod: less room than the shipper needs",
			limit: limitRangeOf(corev1.LimitRangeItem{Type: podType, Max: list("memory", "543Mi")}),
			pod:   half,
			want:  limitRange},
		{name: "pod: ratio",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: podType, MaxLimitRequestRatio: list("cpu", "2")}),
			pod:  requests(list("cpu", "1"), list("cpu", "2")),
			ours: "50m-100m 32Mi-64Mi"},
		{name: "pod and container: ranges for both",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: podType, Max: list("cpu", "1")}, corev1.LimitRangeItem{
				Type: container, Min: list("cpu", "50m"), MaxLimitRequestRatio: list("cpu", "5")}),
			pod: requests(list("cpu", "100m"), list("cpu", "500m")), ours: "50m-250m 32Mi-64Mi"},
		{name: "pod: minimum",
			limit: limitRangeOf(corev1.LimitRangeItem{
				Type: podType, Min: list("cpu", "500m", "memory", "512Mi")}),
			pod: half},
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
			for name, l := range map[string]*corev1.LimitRange{"l": c.limit, "m": c.second} {
				if l == nil {
					continue
				}
				l.Name = name
				client := api.Core.CoreV1().LimitRanges(namespace)
				if _, err := client.Create(t.Context(), l, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				until(t, "the LimitRange in the cache", func() bool {
					_, ok, err := watch.ranges.GetByKey(namespace + "/" + name)
					return err == nil && ok
				})
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
			foresees := onSupported
			foresees.fit = func(pod *corev1.Pod, ours shipperNeeds) (corev1.ResourceRequirements, reason) {
				return watch.fit(pod, namespace, ours)
			}
			d, patch, err := inject(raw, testSettings(), foresees)
			if err != nil {
				t.Fatal(err)
			}
			full := decodeTestPod(t, apply(t, raw, patch))
			made, fullErr := api.create(t.Context(), namespace, full, true)
			if d.reason != c.want {
				t.Errorf("left alone for %q, want %q", d.reason, c.want)
			}
			if bareErr == nil && fullErr != nil {
				t.Errorf("the API server takes the pod alone, and not what we make of it: %v",
					fullErr)
			}
			if d.action != actionInject {
				// A plain installation's container would have been refused, too.
				_, patch, err := inject(raw, testSettings(), onSupported)
				if err != nil {
					t.Fatal(err)
				}
				plain := decodeTestPod(t, apply(t, raw, patch))
				if _, err := api.create(t.Context(), namespace, plain, true); err == nil {
					t.Error("the pod is left alone, and the API server would have taken it")
				}
				return
			}
			if bareErr == nil && fullErr == nil && qosClass(seen) == corev1.PodQOSGuaranteed &&
				made.Status.QOSClass != corev1.PodQOSGuaranteed {
				t.Errorf("a Guaranteed pod became %s", made.Status.QOSClass)
			}
			r := full.Spec.InitContainers[0].Resources
			got := fmt.Sprintf("%s-%s %s-%s", r.Requests.Cpu(), r.Limits.Cpu(), r.Requests.Memory(),
				r.Limits.Memory())
			usual := "10m-1 32Mi-64Mi"
			if qosClass(seen) == corev1.PodQOSGuaranteed {
				usual = "100m-100m 64Mi-64Mi"
			}
			if want := stdcmp.Or(c.ours, usual); got != want {
				t.Errorf("the shipper has %s, want %s", got, want)
			}
			if limit, limited := r.Limits[corev1.ResourceEphemeralStorage]; limited {
				tee, err := contract.ParseTee(full.Spec.Containers[0].Args)
				if err != nil {
					t.Fatal(err)
				}
				if tee.Limit < leastSpool || tee.Limit+spoolOverhead > limit.Value() {
					t.Errorf(
						"the spool may have %d bytes, and the shipper's storage is limited to %d",
						tee.Limit,
						limit.Value(),
					)
				}
			}
		})
	}
}

// heldPodIn makes an injected pod of a TaskRun, and gives it the status that a kubelet reports. No
// scheduler is here, so it names its node.
func (a realAPI) heldPodIn(t *testing.T, namespace, name string, status corev1.PodStatus) *corev1.Pod {
	t.Helper()
	pod := decodeTestPod(t, injectedTestPod(t))
	pod.Name, pod.Spec.NodeName = name, "node"
	pod.OwnerReferences[0].Name, pod.OwnerReferences[0].UID = "run-"+name, types.UID(
		"run-"+namespace+"-"+name,
	)
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
func shipperRuns() corev1.PodStatus { return shipperRunsSince(time.Now()) }

func shipperRunsSince(at time.Time) corev1.PodStatus {
	s := notPulled(at)
	s.InitContainerStatuses[0].State = corev1.ContainerState{
		Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(at)},
	}
	s.InitContainerStatuses[0].Started = ptr.To(true)
	return s
}

// podsHeldBack goes through it all with the rights of the manifest: held back, told, replaced, paused, one let through, recovered.
func podsHeldBack(t *testing.T, api realAPI) {
	for _, ns := range []string{"held-a", "held-b", "held-c"} {
		api.namespace(t, ns)
		api.label(t, ns, contract.InjectKey, contract.InjectEnabled)
	}
	api.namespace(t, "unlabelled")
	// The clock stands still but where the test moves it, so that nothing depends on how fast the machine is. It begins in the past: pods are made after it.
	begin := time.Now().Add(-time.Minute)
	var ahead atomic.Int64
	now := func() time.Time { return begin.Add(time.Duration(ahead.Load())) }
	exists := func(k runKey) bool { return k.name != "run-forged" }
	start := func(registry *prometheus.Registry, replace bool) (*waitingPods, func()) {
		g := newGuard(time.Minute, time.Hour)
		g.now = now
		w, err := newWaitingPods(api.asWebhook(t), g, heldPods{replace: replace, exists: exists},
			registry, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return w, beside(t, w.run)
	}
	registry := prometheus.NewRegistry()
	one, stopOne := start(registry, true)
	defer stopOne()
	two, stopTwo := start(prometheus.NewRegistry(), true) // two replicas
	defer stopTwo()

	// Of a pod that was replaced before it began to watch, a replica knows nothing.
	for _, w := range []*waitingPods{one, two} {
		until(t, "both to watch",
			func() bool { return w.informer.HasSynced() && w.namespaces.informer.HasSynced() })
	}
	paused := func(w *waitingPods, namespace string) bool { return w.guard.isPaused(namespace) }
	there := func(namespace, name string) bool {
		_, err := api.Core.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	long := begin.Add(-10 * time.Minute)
	stuck := api.heldPodIn(t, "held-a", "stuck", notPulled(long))
	api.heldPodIn(t, "held-b", "fresh", notPulled(begin))
	busyStatus := notPulled(long)
	busyStatus.ContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
	api.heldPodIn(t, "held-c", "busy", busyStatus)
	api.heldPodIn(t, "held-c", "forged", notPulled(long)) // of a TaskRun that does not exist
	api.heldPodIn(t, "unlabelled", "stuck", notPulled(long))

	for i, w := range []*waitingPods{one, two} {
		until(t, fmt.Sprintf("replica %d to stop injecting in held-a", i), func() bool { return paused(w, "held-a") })
		// Those pods too that begin no pause: what is seen after the clock is put ahead waits.
		until(t, fmt.Sprintf("replica %d to see both pods that are held back", i), func() bool {
			return testutil.ToFloat64(w.held.WithLabelValues("ImagePullBackOff")) == 2
		})
		for _, namespace := range []string{"held-b", "held-c", "unlabelled"} {
			if paused(w, namespace) {
				t.Errorf("replica %d has stopped in %s too, where no pod that counts is held", i,
					namespace)
			}
		}
	}
	if !there("held-a", "stuck") {
		t.Error("the pod is replaced before every replica knows of it")
	}
	ahead.Add(int64(settle))
	until(t, "the held pods to be replaced",
		func() bool { return !there("held-a", "stuck") && !there("unlabelled", "stuck") })
	for namespace, name := range map[string]string{"held-b": "fresh", "held-c": "busy"} {
		if !there(namespace, name) {
			t.Errorf("pod %s/%s is replaced", namespace, name)
		}
	}
	if !there("held-c", "forged") {
		t.Error("the pod of a TaskRun that does not exist is replaced")
	}
	if got := one.guard.paused("held-a", types.UID("run-held-a-stuck"), true); got != cannotStart {
		t.Errorf("the next pod of the TaskRun is left alone for %q", got)
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
	if want := []string{"Pod stuck ShiplogHeldBack", "TaskRun run-stuck ShiplogReplacedPod"}; !slices.Equal(
		about,
		want,
	) {
		t.Errorf("events %q, want one of each, from both replicas together: %q", about, want)
	}
	if got := testutil.ToFloat64(one.held.WithLabelValues("ImagePullBackOff")); got != 2 {
		t.Errorf("the metric counts %v held pods, want 2", got)
	}
	if got := testutil.ToFloat64(one.replaced) + testutil.ToFloat64(two.replaced); got != 2 {
		t.Errorf("the replicas say that they replaced %v pods, want 2", got)
	}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP shiplog_injection_paused 1 while shiplog's container starts nowhere, and holds back pods of several namespaces.
# TYPE shiplog_injection_paused gauge
shiplog_injection_paused 0
# HELP shiplog_injection_paused_namespaces Namespaces where no pod is injected: shiplog's container does not start, or is refused.
# TYPE shiplog_injection_paused_namespaces gauge
shiplog_injection_paused_namespaces 1
`), "shiplog_injection_paused", "shiplog_injection_paused_namespaces"); err != nil {
		t.Error(err)
	}

	// After the pause one pod is let through. The other replica sees it, and lets none.
	ahead.Store(int64(2 * time.Hour))
	letsOne := func(w *waitingPods) bool { return w.guard.paused("held-a", "probe", false) == "" }
	if !letsOne(one) {
		t.Fatal("after the pause no pod is let through")
	}
	if letsOne(one) {
		t.Error("a second pod is let through at once")
	}
	probe := api.heldPodIn(t, "held-a", "probe", corev1.PodStatus{Phase: corev1.PodPending})
	until(t, "the other replica to see the pod", func() bool {
		two.guard.mu.Lock()
		defer two.guard.mu.Unlock()
		_, ok := two.guard.watched[probe.UID]
		return ok
	})
	if letsOne(two) {
		t.Error("the other replica lets one through as well")
	}
	if !paused(one, "held-a") {
		t.Error("injecting goes on before the pod has started")
	}
	// It starts so fast that nobody sees it Pending with a shipper that runs.
	running := shipperRuns()
	running.Phase = corev1.PodRunning
	api.setStatus(t, probe, running)
	until(t, "both replicas to inject again",
		func() bool { return !paused(one, "held-a") && !paused(two, "held-a") })
}

// podsThatHang: the kubelet's events tell which pods wait for us, and these are replaced.
func podsThatHang(t *testing.T, api realAPI) {
	api.namespace(t, "hangs")
	api.label(t, "hangs", contract.InjectKey, contract.InjectEnabled)
	began := metav1.NewTime(time.Now().Add(-10 * time.Minute))
	w, err := newWaitingPods(api.asWebhook(t), newGuard(20*time.Second, time.Hour),
		heldPods{replace: true}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	waits := corev1.PodStatus{
		Phase:     corev1.PodPending,
		StartTime: &began,
		InitContainerStatuses: []corev1.ContainerStatus{
			{
				Name:    contract.ShipperContainer,
				Image:   "i",
				Started: ptr.To(false),
				State:   waitingState("PodInitializing", ""),
			},
		},
	}
	for name, e := range map[string]*corev1.Event{
		"hook": {
			Reason: "Started", Message: "Started container", FirstTimestamp: began,
			InvolvedObject: corev1.ObjectReference{
				FieldPath: "spec.initContainers{" + contract.ShipperContainer + "}",
			},
		},
		"token": {
			Reason: "FailedMount", FirstTimestamp: began,
			Message: `MountVolume.SetUp failed for volume "` + contract.TokenVolume + `" : no token`,
		},
		"theirs": {
			Reason: "FailedMount", FirstTimestamp: began,
			Message: `MountVolume.SetUp failed for volume "settings" : configmap "x" not found`,
		},
		"silent": nil,
	} {
		pod := api.heldPodIn(t, "hangs", name, waits)
		if e == nil {
			continue
		}
		e.ObjectMeta = metav1.ObjectMeta{Name: name, Namespace: "hangs"}
		about := &e.InvolvedObject
		about.Kind, about.Namespace, about.Name, about.UID = "Pod", "hangs", name, pod.UID
		e.Source.Component, e.LastTimestamp, e.Type = "kubelet", metav1.Now(), corev1.EventTypeNormal
		events := api.Core.CoreV1().Events("hangs")
		if _, err := events.Create(t.Context(), e, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	defer beside(t, w.run)()
	names := func() (all []string) {
		list, err := api.Core.CoreV1().Pods("hangs").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Items {
			all = append(all, p.Name)
		}
		return all
	}
	until(t, "the pods that wait for us to be replaced, and no others",
		func() bool { return slices.Equal(names(), []string{"silent", "theirs"}) })
	if !w.guard.isPaused("hangs") {
		t.Error("injecting goes on")
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
	note := func(_ context.Context, pod boundPod, failures map[string]record.Waiting) error {
		calls <- call{pod, failures}
		return nil
	}
	w, err := newWaitingPods(api.asWebhook(t), newGuard(time.Minute, time.Hour),
		heldPods{record: note}, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer beside(t, w.run)()

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
	api.label(t, "behind", contract.InjectKey, contract.InjectEnabled)
	ours := api.installWebhook(t, newTestAdmission(), "behind")
	bare := decodeTestPod(t, podWith("", ""))
	for _, policy := range []admissionregistrationv1.ReinvocationPolicyType{admissionregistrationv1.NeverReinvocationPolicy, admissionregistrationv1.IfNeededReinvocationPolicy} {
		t.Run(string(policy), func(t *testing.T) {
			c := ours.DeepCopy()
			c.ObjectMeta = metav1.ObjectMeta{Name: "z-behind"}
			c.Webhooks[0].Name, c.Webhooks[0].ReinvocationPolicy = "drops.example.com", &policy
			dropped := make(chan struct{}, 1000)
			serveAs(t, dropsRestartPolicy(dropped), c)
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

// serveAs starts a server for the first webhook of the configuration, and names it there.
func serveAs(t *testing.T, h http.Handler,
	c *admissionregistrationv1.MutatingWebhookConfiguration) {
	t.Helper()
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	c.Webhooks[0].ClientConfig = admissionregistrationv1.WebhookClientConfig{
		URL:      ptr.To(server.URL + admissionPath),
		CABundle: ca,
	}
	c.Webhooks[0].TimeoutSeconds = ptr.To[int32](30) // the machine may be busy
}

// installWebhook puts our handler into the API server, with the manifest's configuration, until the
// test ends, and waits until it is called for pods of the namespace.
func (a realAPI) installWebhook(t *testing.T, h http.Handler,
	namespace string) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	text, err := os.ReadFile("../manifests/base/webhook.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var ours admissionregistrationv1.MutatingWebhookConfiguration
	if err := yaml.UnmarshalStrict(text, &ours); err != nil {
		t.Fatal(err)
	}
	serveAs(t, h, &ours)
	configurations := a.Core.AdmissionregistrationV1().MutatingWebhookConfigurations()
	made, err := configurations.Create(t.Context(), &ours, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := configurations.Delete(ctx, made.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	bare := decodeTestPod(t, podWith("", ""))
	until(t, "the API server to call our webhook", func() bool {
		pod, err := a.create(t.Context(), namespace, bare, true)
		if err != nil {
			t.Fatal(err)
		}
		return injected(pod)
	})
	return &ours
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
