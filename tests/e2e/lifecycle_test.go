//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// newPipelineRun makes a PipelineRun of a spec.
func newPipelineRun(t *testing.T, namespace, name, spec string, annotations map[string]string) *tekton.PipelineRun {
	t.Helper()
	pr := &tekton.PipelineRun{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: annotations}}
	if err := yaml.UnmarshalStrict([]byte(spec), &pr.Spec); err != nil {
		t.Fatalf("the spec's YAML: %v", err)
	}
	if err := env.client.Create(t.Context(), pr); err != nil {
		t.Fatal(err)
	}
	return pr
}

// deleteRun deletes a PipelineRun and waits until it and its pods are gone.
func deleteRun(t *testing.T, pr *tekton.PipelineRun) {
	t.Helper()
	if err := env.client.Delete(t.Context(), pr, client.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
		t.Fatal(err)
	}
	err := poll(t.Context(), "the pods of "+pr.Name+" to be gone", func(ctx context.Context) (bool, error) {
		var pods corev1.PodList
		err := env.client.List(ctx, &pods, client.InNamespace(pr.Namespace), client.MatchingLabels{"tekton.dev/pipelineRun": pr.Name})
		return len(pods.Items) == 0, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestArchiveOutlivesTheRun reads a run's logs by name and by UID after the run and its pods are deleted.
func TestArchiveOutlivesTheRun(t *testing.T) {
	t.Parallel()
	pr := newPipelineRun(t, nsOn, "outlived", `
pipelineSpec:
  tasks:
    - {name: first, taskSpec: {steps: [{name: a, image: busybox, script: "echo of the first task"}]}}
    - {name: second, runAfter: [first], taskSpec: {steps: [{name: b, image: busybox, script: "echo of the second task; printf end"}]}}
`, nil)
	finishRun(t, pr)
	deleteRun(t, pr)

	const want = "[first : a] of the first task\n\n[second : b] of the second task\n[second : b] end\n\n"
	for _, ref := range []string{pr.Name, string(pr.UID)} {
		sealed(t, nsOn, ref)
		got, err := command(t.Context(), "", nil, env.cli, "logs", "-n", nsOn, ref)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("logs %s (-want +got):\n%s", ref, diff)
		}
		tree, err := command(t.Context(), "", nil, env.cli, "ls", "-n", nsOn, ref)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{string(pr.UID), "step-a", "step-b", "verified"} {
			if !strings.Contains(tree, part) {
				t.Errorf("ls %s does not show %q:\n%s", ref, part, tree)
			}
		}
	}
	runs, err := command(t.Context(), "", nil, env.cli, "ls", "-n", nsOn)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(runs, string(pr.UID)) {
		t.Errorf("ls does not show the run:\n%s", runs)
	}
}

// TestRetry expects the logs of both tries, which are two pods of one TaskRun.
func TestRetry(t *testing.T) {
	t.Parallel()
	spec := `
pipelineSpec:
  tasks:
    - name: flaky
      retries: 1
      taskSpec: {steps: [{name: s, image: busybox, script: "echo try $(context.task.retry-count); [ $(context.task.retry-count) = 1 ]"}]}
`
	off := finishRun(t, newPipelineRun(t, nsOff, "retry", spec, nil))
	on := finishRun(t, newPipelineRun(t, nsOn, "retry", spec, nil))
	without, with := outcomes(t, off), outcomes(t, on)
	if diff := cmp.Diff(without, with); diff != "" {
		t.Errorf("Tekton reports another run with shiplog (-without +with):\n%s", diff)
	}
	if flaky := with["flaky"]; len(flaky.Retries) != 1 || flaky.Status != "True" {
		t.Errorf("the task was not retried once and then succeeded: %+v", flaky)
	}
	sealed(t, nsOn, "retry")
	got, err := command(t.Context(), "", nil, env.cli, "logs", "-n", nsOn, "retry")
	if err != nil {
		t.Fatal(err)
	}
	if want := "[flaky : s] try 0\n\n[flaky retry 1 : s] try 1\n\n"; got != want {
		t.Errorf("logs %q, want %q", got, want)
	}
}

// outcomes are what the run itself and each of its tasks report.
func outcomes(t *testing.T, pr *tekton.PipelineRun) map[string]result {
	t.Helper()
	c := pr.Status.GetCondition("Succeeded")
	all := map[string]result{"": {Status: string(c.Status), Reason: c.Reason, Message: c.Message}}
	var tasks tekton.TaskRunList
	if err := env.client.List(t.Context(), &tasks, client.InNamespace(pr.Namespace), client.MatchingLabels{"tekton.dev/pipelineRun": pr.Name}); err != nil {
		t.Fatal(err)
	}
	for _, tr := range tasks.Items {
		all[tr.Labels["tekton.dev/pipelineTask"]] = outcome(&tr)
	}
	return all
}

func taskSpec(t *testing.T, text string) tekton.TaskRunSpec {
	t.Helper()
	var spec tekton.TaskRunSpec
	if err := yaml.UnmarshalStrict([]byte(text), &spec); err != nil {
		t.Fatalf("the spec's YAML: %v", err)
	}
	return spec
}

// TestOptOut expects that an annotation on the TaskRun or PipelineRun keeps shiplog out of its pods.
func TestOptOut(t *testing.T) {
	t.Parallel()
	optOut := map[string]string{contract.InjectKey: contract.InjectDisabled}
	spec := taskSpec(t, "taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}")
	tr := finish(t, newTaskRun(t, nsOn, "opt-out", spec, optOut))
	checkUntouched(t, podOf(t, tr))

	pr := newPipelineRun(t, nsOn, "opt-out-run", "pipelineSpec: {tasks: [{name: a, taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}}]}", optOut)
	finishRun(t, pr)
	var pods corev1.PodList
	if err := env.client.List(t.Context(), &pods, client.InNamespace(nsOn), client.MatchingLabels{"tekton.dev/pipelineRun": pr.Name}); err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 {
		t.Fatalf("%d pods, want 1", len(pods.Items))
	}
	checkUntouched(t, &pods.Items[0])
}

func checkUntouched(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	b, err := json.Marshal(pod.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "/shiplog") || shipperOf(pod) != nil {
		t.Errorf("pod %s is touched: %s", pod.Name, b)
	}
	if v, ok := pod.Annotations[contract.SkippedAnnotation]; ok {
		t.Errorf("pod %s has the annotation %q", pod.Name, v)
	}
}

// TestUntouchedByteForByte creates the same pod where shiplog is on and where it is off (as a dry run through all of admission). Where shiplog has no business, both must be
// the same to the byte.
func TestUntouchedByteForByte(t *testing.T) {
	t.Parallel()
	// The pod that Tekton makes of this TaskRun, without what the API server adds.
	tr := finish(t, newTaskRun(t, nsOff, "template", taskSpec(t, "taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}"), nil))
	made := podOf(t, tr)
	template := func(change func(*corev1.Pod)) *corev1.Pod {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "probe", Labels: made.Labels, Annotations: map[string]string{}, OwnerReferences: made.OwnerReferences}, Spec: *made.Spec.DeepCopy()}
		pod.Spec.NodeName = ""
		// The service account's volume is added anew, under a random name.
		var volumes []corev1.Volume
		for _, v := range pod.Spec.Volumes {
			if !strings.HasPrefix(v.Name, "kube-api-access-") {
				volumes = append(volumes, v)
			}
		}
		pod.Spec.Volumes = volumes
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				var mounts []corev1.VolumeMount
				for _, m := range list[i].VolumeMounts {
					if !strings.HasPrefix(m.Name, "kube-api-access-") {
						mounts = append(mounts, m)
					}
				}
				list[i].VolumeMounts = mounts
			}
		}
		no := false
		pod.Spec.AutomountServiceAccountToken = &no
		change(pod)
		return pod
	}
	for _, c := range []struct {
		name     string
		change   func(*corev1.Pod)
		injected bool
	}{
		{"tekton pod, which proves that the probe works", func(*corev1.Pod) {}, true},
		{"opted out", func(p *corev1.Pod) { p.Annotations[contract.InjectKey] = contract.InjectDisabled }, false},
		{"not tekton's", func(p *corev1.Pod) { p.Labels, p.OwnerReferences = map[string]string{"app": "x"}, nil }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var specs []string
			for _, ns := range []string{nsOn, nsOff} {
				pod := template(c.change)
				pod.Namespace = ns
				if err := env.client.Create(t.Context(), pod, client.DryRunAll); err != nil {
					t.Fatal(err)
				}
				b, err := json.Marshal(map[string]any{"spec": pod.Spec, "labels": pod.Labels, "annotations": pod.Annotations})
				if err != nil {
					t.Fatal(err)
				}
				specs = append(specs, string(b))
			}
			if same := specs[0] == specs[1]; same == c.injected {
				t.Errorf("same with and without shiplog: %v, want %v:\n%s", same, !c.injected, cmp.Diff(specs[1], specs[0]))
			}
		})
	}
}
