package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

func TestRefusalOf(t *testing.T) {
	with := func(status, reason, message string) string {
		return fmt.Sprintf(`"conditions":[{"type":"Other"},{"type":"Succeeded",`+
			`"status":%q,"reason":%q,"message":%q}]`, status, reason, message)
	}
	refused := with("False", "PodCreationFailed", "m")
	for name, tc := range map[string]struct {
		status string // without its braces
		want   *podRefusal
	}{
		"runs":                            {`"podName":"p",` + with("Unknown", "Running", ""), nil},
		"no status":                       {``, nil},
		"odd":                             {`"conditions":["x",{"type":1}],"retriesStatus":"y"`, nil},
		"refused":                         {refused, &podRefusal{"m", 0}},
		"Pod Security":                    {with("False", "PodAdmissionFailed", "m"), &podRefusal{"m", 0}},
		"over the quota":                  {with("Unknown", "ExceededResourceQuota", "m"), nil},
		"a container that cannot be made": {`"podName":"p",` + refused, nil},
		"tried again": {
			with("Unknown", "ToBeRetried", "") + `,"retriesStatus":[{"podName":"p",` +
				with("False", "Failed", "") + `},{` + refused + `}]`,
			&podRefusal{"m", 1},
		},
		"refused twice": {
			with("False", "PodCreationFailed", "n") + `,"retriesStatus":[{` + refused + `}]`,
			&podRefusal{"n", 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var status map[string]any
			if err := json.Unmarshal([]byte("{"+tc.status+"}"), &status); err != nil {
				t.Fatal(err)
			}
			diff := cmp.Diff(tc.want, refusalOf(status), cmp.AllowUnexported(podRefusal{}))
			if diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestTaskRunRefused: which of Tekton's messages stop injecting, in a namespace of which nothing
// else is known.
func TestTaskRunRefused(t *testing.T) {
	const (
		tekton  = `failed to create task run pod "build-1": %s. Maybe invalid TaskSpec`
		denied  = `admission webhook "policy" denied the request: `
		kyverno = "admission webhook \"validate.kyverno.svc-fail\" denied the request: \n\n" +
			"resource Pod/a/build-1-pod was blocked due to the following policies \n\n"
		forbidden = `pods "build-1-pod" is forbidden: `
		pss       = forbidden + `violates PodSecurity "restricted:latest": `
	)
	for name, tc := range map[string]struct {
		message, annotation string
		ours, stops         bool // ours: it is certain that it is because of us
	}{
		// The next three are as Kyverno 1.19.1 says it.
		"Kyverno's ClusterPolicy, by path": {
			message: kyverno + "registries:\n  ours: 'validation error: images must come from " +
				"our registry. rule ours failed at path /spec/initContainers/0/image/'\n",
			ours: true, stops: true,
		},
		"Kyverno's signatures": {
			message: kyverno + "signatures:\n  signed: 'failed to verify image " +
				"shiplog.example/shipper:v1: .attestors[0].entries[0].keys: no match'\n",
			ours: true, stops: true,
		},
		"Kyverno's ValidatingPolicy, in general words": {
			message: `admission webhook "vpol.validate.kyverno.svc-fail" denied the request: ` +
				`Policy vpol failed: images must come from our registry`,
			stops: true,
		},
		"without its version": {
			message: forbidden + `image shiplog.example/shipper@sha256:1 is not allowed`,
			ours:    true, stops: true,
		},
		"in general words": {message: denied + `images must be ours`, stops: true},
		"an admission policy": {
			message: forbidden + `ValidatingAdmissionPolicy 'registries' with binding 'b' ` +
				`denied request: images must be ours`,
			stops: true,
		},
		"Pod Security, our container": {
			message: pss + `allowPrivilegeEscalation != false (container "shiplog-shipper" ` +
				`must set securityContext.allowPrivilegeEscalation=false)`,
			ours: true, stops: true,
		},
		"Pod Security, another container": {
			message: pss + `privileged (container "step-a" must not set securityContext)`,
		},
		"OpenShift": {
			message: forbidden + `unable to validate against any security context constraint: ` +
				`[provider "anyuid": Forbidden: not usable by user or serviceaccount]`,
			stops: true,
		},
		"ImagePolicyWebhook": {
			message: forbidden + `image policy webhook backend denied one or more images: ask us`,
			stops:   true,
		},
		"ImagePolicyWebhook without a reason": {
			message: forbidden + `one or more images rejected by webhook backend`,
			stops:   true,
		},
		"PodTolerationRestriction": {
			message: `pod tolerations (possibly merged with namespace default tolerations) ` +
				`conflict with its namespace whitelist`,
			stops: true,
		},
		"no service account": {
			message: forbidden + `error looking up service account a/builder: not found`,
		},
		"no valid pod": {
			message: `Pod "build-1-pod" is invalid: spec.containers[0].image: Required value`,
		},
		"a webhook that is away": {
			message: `Internal error occurred: failed calling webhook "policy": EOF`,
		},
		"Tekton's own error": {message: `translating TaskSpec to Pod: failed to get the image`},
		"a run that opted out": {
			message: denied + `images must be ours`, annotation: contract.InjectDisabled,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &waitingPods{
				guard:    newGuard(time.Minute, time.Hour),
				heldPods: heldPods{defaults: settings{shipperImage: "shiplog.example/shipper:v1"}},
				refused:  prometheus.NewCounter(prometheus.CounterOpts{}),
				log:      slog.New(slog.DiscardHandler),
			}
			run := &runObject{
				ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "build-1", UID: "u"},
				refusal:    &podRefusal{fmt.Sprintf(tekton, tc.message), 0},
			}
			if tc.annotation != "" {
				run.annotations = []annotation{{contract.InjectKey, tc.annotation}}
			}
			w.taskRunRefused(run, false)
			if tc.stops && (len(w.refusals) != 1 || w.refusals[0].ours != tc.ours) {
				t.Errorf("refusals %+v, want one, and that it is ours: %t", w.refusals, tc.ours)
			}
			if got := w.guard.isPaused("a"); got != tc.stops || len(w.refusals) > 0 != tc.stops {
				t.Errorf("injecting stops: %t, and %d refusals are told; want %t", got,
					len(w.refusals), tc.stops)
			}
		})
	}
}

// podsRefused has a real API server refuse pods by a ValidatingAdmissionPolicy, behind our webhook
// as it is installed, with the rights of the manifest. Tekton's part, which is to fail the TaskRun
// with the API server's words, is the test's.
func podsRefused(t *testing.T, api realAPI) {
	tekton := api.Tekton(t)
	config := api.asWebhook(t)
	var ahead atomic.Int64
	begin := time.Now()
	g := newGuard(time.Minute, 5*time.Minute)
	g.now = func() time.Time { return begin.Add(time.Duration(ahead.Load())) }
	w, err := newWaitingPods(config, g, heldPods{defaults: testSettings()},
		prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	asWebhook, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	runs := newRunWatch(asWebhook,
		func(*runObject) bool { return false }, func(_, _ *runObject) {}, func() {})
	runs.refused = w.taskRunRefused
	defer beside(t, w.run, runs.run)()
	until(t, "the watches to have listed",
		func() bool {
			return runs.synced() && w.informer.HasSynced() && w.namespaces.informer.HasSynced()
		})
	admission := newTestAdmission()
	admission.guard = g

	policies := api.Core.AdmissionregistrationV1()
	// refuse makes a policy for a namespace, and waits until it holds.
	refuse := func(
		t *testing.T, namespace string, v admissionregistrationv1.Validation,
	) (remove func()) {
		t.Helper()
		pods := admissionregistrationv1.NamedRuleWithOperations{
			RuleWithOperations: admissionregistrationv1.RuleWithOperations{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule: admissionregistrationv1.Rule{
					APIGroups:   []string{""},
					APIVersions: []string{"v1"},
					Resources:   []string{"pods"},
				},
			},
		}
		_, err := policies.ValidatingAdmissionPolicies().
			Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicy{
				ObjectMeta: metav1.ObjectMeta{Name: namespace},
				Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
					FailurePolicy: ptr.To(admissionregistrationv1.Fail),
					MatchConstraints: &admissionregistrationv1.MatchResources{
						ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{pods},
					},
					Validations: []admissionregistrationv1.Validation{v},
				},
			}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = policies.ValidatingAdmissionPolicyBindings().
			Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
				ObjectMeta: metav1.ObjectMeta{Name: namespace},
				Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
					PolicyName: namespace,
					ValidationActions: []admissionregistrationv1.ValidationAction{
						admissionregistrationv1.Deny,
					},
					MatchResources: &admissionregistrationv1.MatchResources{
						NamespaceSelector: &metav1.LabelSelector{
							MatchLabels: map[string]string{corev1.LabelMetadataName: namespace}},
					},
				},
			}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		bare := decodeTestPod(t, podWith("", ""))
		until(
			t,
			"the policy to hold",
			func() bool { _, err := api.create(t.Context(), namespace, bare, true); return err != nil },
		)
		return func() {
			bindings := policies.ValidatingAdmissionPolicyBindings()
			if err := bindings.Delete(t.Context(), namespace, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			withOurs := bare.DeepCopy() // in the pause our webhook adds nothing to it
			withOurs.Spec.InitContainers = []corev1.Container{
				{Name: "i", Image: "shiplog.example/i", Command: []string{"i"}},
			}
			until(
				t,
				"the policy to be gone",
				func() bool { _, err := api.create(t.Context(), namespace, withOurs, true); return err == nil },
			)
		}
	}
	// build makes a TaskRun and its pod. If the pod is refused, the TaskRun fails as in
	// handlePodCreationError of Tekton's pkg/reconciler/taskrun.
	build := func(t *testing.T, namespace, name string) (*corev1.Pod, error) {
		t.Helper()
		client := tekton.Resource(tektonV1.WithResource(taskRunOwner.resource)).Namespace(namespace)
		run, err := client.Create(
			t.Context(),
			&unstructured.Unstructured{
				Object: object{"apiVersion": "tekton.dev/v1", "kind": "TaskRun",
					"metadata": object{
						"name":      name,
						"namespace": namespace,
					}, "spec": object{"taskRef": object{"name": "t"}}},
			},
			metav1.CreateOptions{},
		)
		if err != nil {
			t.Fatal(err)
		}
		pod := decodeTestPod(t, podWith("", ""))
		pod.Name = name + "-pod"
		pod.OwnerReferences[0].Name, pod.OwnerReferences[0].UID = name, run.GetUID()
		made, refusal := api.create(t.Context(), namespace, pod, false)
		if refusal == nil {
			return made, nil
		}
		now := stamp(time.Now())
		run.Object["status"] = object{
			"podName":        "",
			"completionTime": now,
			"conditions": []any{
				object{
					"type":               "Succeeded",
					"status":             "False",
					"reason":             "PodCreationFailed",
					"lastTransitionTime": now,
					"message": fmt.Sprintf(
						"failed to create task run pod %q: %v. Maybe missing or invalid Task %s/t",
						name,
						refusal,
						namespace,
					),
				},
			},
		}
		if _, err := client.UpdateStatus(t.Context(), run, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		return nil, refusal
	}
	for _, namespace := range []string{"refuses-image", "refuses-vaguely", "refuses-all"} {
		api.namespace(t, namespace)
		api.label(t, namespace, contract.InjectKey, contract.InjectEnabled)
	}
	api.installWebhook(t, admission, "refuses-image")
	noShipper := `!has(object.spec.initContainers) || ` +
		`object.spec.initContainers.all(c, !c.image.startsWith("shiplog.example/"))`
	for namespace, v := range map[string]admissionregistrationv1.Validation{
		"refuses-image": {
			Expression:        noShipper,
			MessageExpression: `"not allowed: " + object.spec.initContainers[0].image`,
		},
		"refuses-vaguely": {Expression: noShipper, Message: "images must come from our registry"},
	} {
		t.Run(namespace, func(t *testing.T) {
			until(t, "the namespace in the watch", func() bool { return g.injects(namespace) })
			before := testutil.ToFloat64(w.refused)
			remove := refuse(t, namespace, v)
			if _, err := build(t, namespace, "one"); err == nil {
				t.Fatal("the API server takes a pod that the policy refuses")
			}
			until(t, "injecting to stop in the namespace",
				func() bool { return g.isPaused(namespace) })
			second, err := build(t, namespace, "two")
			if err != nil {
				t.Fatalf("the next build fails as well: %v", err)
			}
			if got := second.Annotations[contract.SkippedAnnotation]; injected(second) ||
				got != "pod=shipper-refused" {
				t.Errorf("it is injected: %t, annotation %q", injected(second), got)
			}
			until(t, "an event on the TaskRun", func() bool {
				list, err := api.Core.CoreV1().
					Events(namespace).
					List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.kind=TaskRun,involvedObject.name=one"})
				if err != nil {
					t.Fatal(err)
				}
				return len(list.Items) == 1 && list.Items[0].Reason == "ShiplogRefused" &&
					strings.Contains(list.Items[0].Message, testSettings().shipperImage)
			})
			if got := testutil.ToFloat64(w.refused) - before; got != 1 {
				t.Errorf("the metric counts %v refusals, want 1", got)
			}
			// The policy is changed, and after the pause it shows.
			remove()
			if third, err := build(t, namespace, "three"); err != nil || injected(third) {
				t.Errorf("within the pause a pod is injected: %t, %v",
					err == nil && injected(third), err)
			}
			ahead.Add(int64(refusedFirst))
			fourth, err := build(t, namespace, "four")
			if err != nil || !injected(fourth) {
				t.Fatalf("after the pause no pod is injected: %v", err)
			}
			running := shipperRunsSince(g.now())
			api.setStatus(t, fourth, running)
			until(t, "injecting to go on", func() bool { return !g.isPaused(namespace) })
		})
	}
	t.Run("refuses-all", func(t *testing.T) {
		until(t, "the namespace in the watch", func() bool { return g.injects("refuses-all") })
		refuse(
			t,
			"refuses-all",
			admissionregistrationv1.Validation{
				Expression: `object.spec.containers.all(c, c.image != "i")`,
				Message:    "images must come from our registry",
			},
		)
		if _, err := build(t, "refuses-all", "build-one"); err == nil {
			t.Fatal("the API server takes a pod that the policy refuses")
		}
		until(t, "injecting to stop in the namespace",
			func() bool { return g.isPaused("refuses-all") })
		ahead.Add(int64(settle))
		if _, err := build(t, "refuses-all", "build-two"); err == nil {
			t.Fatal("the API server takes a pod that the policy refuses")
		}
		until(t, "injecting to go on, since without us the pod is refused as well",
			func() bool { return !g.isPaused("refuses-all") })
		if _, err := build(t, "refuses-all", "build-three"); err == nil {
			t.Fatal("the API server takes a pod that the policy refuses")
		}
		until(t, "the third TaskRun in the watch", func() bool {
			o := stored(runs.taskRuns, "refuses-all", "build-three", "")
			return o != nil && o.refusal != nil
		})
		if g.isPaused("refuses-all") {
			t.Error("injecting stops again")
		}
	})
}
