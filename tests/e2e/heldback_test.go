//go:build e2e

package e2e

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// changeWebhook changes the webhook's container, and changes it back when the test ends.
func changeWebhook(t *testing.T, change func(*corev1.Container)) {
	t.Helper()
	key := client.ObjectKey{Namespace: "shiplog-system", Name: "shiplog-webhook"}
	set := func(ctx context.Context, change func(*corev1.Container)) error {
		var d appsv1.Deployment
		if err := env.client.Get(ctx, key, &d); err != nil {
			return err
		}
		before := d.DeepCopy()
		change(&d.Spec.Template.Spec.Containers[0])
		if err := env.client.Patch(ctx, &d, client.MergeFrom(before)); err != nil {
			return err
		}
		if _, err := command(ctx, "", nil, env.kubectl, "-n", key.Namespace, "rollout", "status", "deployment/"+key.Name, "--timeout=5m"); err != nil {
			return err
		}
		// The replicas of before serve until they have ended: the API server keeps its connections.
		return poll(ctx, "the replicas of before to end", func(ctx context.Context) (bool, error) {
			var pods corev1.PodList
			err := env.client.List(ctx, &pods, client.InNamespace(key.Namespace),
				client.MatchingLabels{"app.kubernetes.io/component": "webhook"})
			return len(pods.Items) == 2, err
		})
	}
	var d appsv1.Deployment
	if err := env.client.Get(t.Context(), key, &d); err != nil {
		t.Fatal(err)
	}
	before := d.Spec.Template.Spec.Containers[0].DeepCopy()
	t.Cleanup(func() {
		if err := set(context.Background(), func(c *corev1.Container) { *c = *before }); err != nil {
			t.Errorf("set the webhook back: %v", err)
		}
	})
	if err := set(t.Context(), change); err != nil {
		t.Fatal(err)
	}
}

// shipperImage is where the webhook's container names the shipper's image.
func shipperImage(webhook *corev1.Container) *string {
	i := slices.IndexFunc(webhook.Env, func(e corev1.EnvVar) bool {
		return e.Name == "SHIPLOG_SHIPPER_IMAGE"
	})
	return &webhook.Env[i].Value
}

// expectEvent waits for an event of this reason among those of a field selector.
func expectEvent(t *testing.T, namespace, selector, reason string) {
	t.Helper()
	var events string
	ask := func(ctx context.Context) (bool, error) {
		got, err := command(ctx, "", nil, env.kubectl, "-n", namespace, "get", "events",
			"--field-selector", selector, "-o",
			"jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}")
		if err != nil {
			return false, err
		}
		events = got
		return strings.Contains("\n"+events, "\n"+reason+": "), nil
	}
	if err := poll(t.Context(), "an event "+reason+" of "+selector, ask); err != nil {
		t.Fatalf("%v\n%s", err, events)
	}
	t.Logf("events:\n%s", events)
}

// TestShipperImageMissing takes the shipper's image away. Builds must go on without shiplog, those that wait already too, and with it when the image is there again.
func TestShipperImageMissing(t *testing.T) {
	missing := fmt.Sprintf("e2e/shipper-%d:v1", time.Now().UnixNano())
	var real string
	changeWebhook(t, func(c *corev1.Container) {
		image := shipperImage(c)
		real, *image = *image, "localhost:5000/"+missing
		c.Args = append(c.Args, "--held-back-after=5s", "--held-back-retry=20s")
	})
	spec := taskSpec(t, "taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}")
	stuck := newTaskRun(t, nsOn, "image-missing", spec, nil)
	first := &corev1.Pod{}
	err := poll(t.Context(), "the pod of "+stuck.Name, func(ctx context.Context) (bool, error) {
		err := env.client.Get(ctx, client.ObjectKey{Namespace: nsOn, Name: stuck.Name + "-pod"}, first)
		return err == nil, client.IgnoreNotFound(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	if shipperOf(first) == nil {
		t.Fatalf("pod %s is not injected, so nothing holds it back", first.Name)
	}
	done := finish(t, stuck)
	if !done.Status.GetCondition("Succeeded").IsTrue() {
		t.Errorf("the TaskRun that was stuck: %+v", done.Status.Conditions)
	}
	t.Logf("the TaskRun that was stuck took %s", took(done))
	second := podOf(t, done)
	if second.UID == first.UID || shipperOf(second) != nil || second.Annotations[contract.SkippedAnnotation] != "pod=shipper-cannot-start" {
		t.Errorf("its pod %s (before %s) has the annotation %q", second.UID, first.UID, second.Annotations[contract.SkippedAnnotation])
	}
	awaitMissed(t, done, "not captured in pod "+second.Name+": shipper-cannot-start")
	expectEvent(t, nsOn, "involvedObject.uid="+string(first.UID), "ShiplogHeldBack")

	later := finish(t, newTaskRun(t, nsOn, "image-missing-later", spec, nil))
	if pod := podOf(t, later); shipperOf(pod) != nil || !later.Status.GetCondition("Succeeded").IsTrue() {
		t.Errorf("the next TaskRun, in %s: %+v", took(later), later.Status.Conditions)
	}

	// The image comes back, as when the registry does.
	host := func(ref string) string {
		return strings.Replace(ref, "localhost:5000", os.Getenv("SHIPLOG_REGISTRY"), 1)
	}
	if _, err := command(t.Context(), "", nil, os.Getenv("CRANE"), "copy", "--insecure", host(real), host("localhost:5000/"+missing)); err != nil {
		t.Fatal(err)
	}
	n := 0
	next := func() *corev1.Pod {
		n++
		done := finish(t, newTaskRun(t, nsOn, fmt.Sprintf("image-back-%d", n), spec, nil))
		if !done.Status.GetCondition("Succeeded").IsTrue() {
			t.Errorf("%s: %+v", done.Name, done.Status.Conditions)
		}
		return podOf(t, done)
	}
	err = poll(t.Context(), "a pod to be injected again", func(context.Context) (bool, error) { return shipperOf(next()) != nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	// That one has started, so all are injected.
	for range 2 {
		if pod := next(); shipperOf(pod) == nil {
			t.Errorf("pod %s is not injected: %v", pod.Name, pod.Annotations)
		}
	}
}

// TestShipperHangs has a shipper whose postStart hook never returns, of which the kubelet says
// nothing in the pod's status while it lasts. The build must go on without it.
func TestShipperHangs(t *testing.T) {
	host := os.Getenv("SHIPLOG_REGISTRY")
	name := fmt.Sprintf("e2e/shipper-hangs-%d:v1", time.Now().UnixNano())
	layer := filepath.Join(t.TempDir(), "layer.tar")
	file, err := os.Create(layer)
	if err != nil {
		t.Fatal(err)
	}
	script := []byte("#!/bin/sh\nexec sleep 3600\n")
	w := tar.NewWriter(file)
	if err := w.WriteHeader(&tar.Header{Name: "shipper", Mode: 0o755, Size: int64(len(script))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(script); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = command(t.Context(), "", nil, os.Getenv("CRANE"), "append", "--insecure",
		"--platform", "linux/"+runtime.GOARCH,
		"-b", host+"/busybox:latest", "-f", layer, "-t", host+"/"+name)
	if err != nil {
		t.Fatal(err)
	}
	changeWebhook(t, func(c *corev1.Container) {
		*shipperImage(c) = "localhost:5000/" + name
	})
	spec := taskSpec(t, "taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}")
	done := finish(t, newTaskRun(t, nsOn, "shipper-hangs", spec, nil))
	pod := podOf(t, done)
	if !done.Status.GetCondition("Succeeded").IsTrue() || shipperOf(pod) != nil ||
		pod.Annotations[contract.SkippedAnnotation] != "pod=shipper-cannot-start" {
		t.Errorf("the TaskRun: %+v, its pod has the annotation %q", done.Status.Conditions,
			pod.Annotations[contract.SkippedAnnotation])
	}
	t.Logf("it took %s", took(done))
	expectEvent(t, nsOn, "involvedObject.kind=Pod,involvedObject.name="+pod.Name, "ShiplogHeldBack")
	later := finish(t, newTaskRun(t, nsOn, "shipper-hangs-later", spec, nil))
	if pod := podOf(t, later); shipperOf(pod) != nil {
		t.Error("the next TaskRun's pod is injected")
	}
}

// TestShipperRefused has a policy that refuses the shipper's image. One build fails, and the next
// ones must not.
func TestShipperRefused(t *testing.T) {
	t.Parallel()
	ns := &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{
			Name:   "e2e-refused-" + strconv.FormatInt(time.Now().UnixNano(), 36),
			Labels: map[string]string{contract.InjectKey: contract.InjectEnabled},
		},
	}
	if err := env.client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	if err := serviceAccount(t.Context(), ns.Name); err != nil {
		t.Fatal(err)
	}
	apply := func(text string) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "policy.yaml")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := command(t.Context(), "", nil, env.kubectl, "apply", "-f", path); err != nil {
			t.Fatal(err)
		}
	}
	apply(fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: %[1]s}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  validations:
    - expression: object.spec.initContainers.all(c, c.name != %[2]q)
      messageExpression: "'not allowed: ' + object.spec.initContainers[0].image"
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: %[1]s}
spec:
  policyName: %[1]s
  validationActions: [Deny]
  matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}}
`, ns.Name, contract.ShipperContainer))
	t.Cleanup(func() {
		ctx := context.Background()
		for _, args := range [][]string{
			{"delete", "validatingadmissionpolicybinding", ns.Name},
			{"delete", "validatingadmissionpolicy", ns.Name},
			{"delete", "namespace", ns.Name, "--wait=false"},
		} {
			if _, err := command(ctx, "", nil, env.kubectl, args...); err != nil {
				t.Error(err)
			}
		}
	})
	spec := taskSpec(t, "taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}")
	n := 0
	next := func() *tekton.TaskRun {
		n++
		return finish(t, newTaskRun(t, ns.Name, fmt.Sprintf("build-%d", n), spec, nil))
	}
	err := poll(t.Context(), "the policy to hold", func(ctx context.Context) (bool, error) {
		c := corev1.Container{Name: contract.ShipperContainer, Image: "busybox"}
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "p"},
			Spec: corev1.PodSpec{
				InitContainers: []corev1.Container{c},
				Containers:     []corev1.Container{{Name: "c", Image: "busybox"}},
			},
		}
		err := env.client.Create(ctx, pod, client.DryRunAll)
		return err != nil && strings.Contains(err.Error(), "not allowed"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Another test may have taken the webhook away, and then the pod is not injected.
	var refused *tekton.TaskRun
	err = poll(t.Context(), "a pod to be refused", func(context.Context) (bool, error) {
		refused = next()
		return !refused.Status.GetCondition("Succeeded").IsTrue(), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := refused.Status.GetCondition("Succeeded"); got.Reason != "PodCreationFailed" {
		t.Fatalf("the TaskRun failed with %+v, want that its pod was refused", got)
	}
	t.Logf("Tekton says: %s", refused.Status.GetCondition("Succeeded").Message)
	expectEvent(t, ns.Name, "involvedObject.name="+refused.Name, "ShiplogRefused")
	for range 3 {
		done := next()
		if !done.Status.GetCondition("Succeeded").IsTrue() {
			t.Fatalf("%s: %+v", done.Name, done.Status.Conditions)
		}
		got := podOf(t, done).Annotations[contract.SkippedAnnotation]
		if got != "pod=shipper-refused" && got != "" { // none: the webhook was away
			t.Errorf("%s: the pod's annotation is %q", done.Name, got)
		}
	}
}
