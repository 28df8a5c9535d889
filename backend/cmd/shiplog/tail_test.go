package main

import (
	"net/http/httptest"
	"strings"
	"testing"

	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
)

// TestFollowFromNow: of a log that has ended, "--tail 0 -f" shows nothing, and of one that grows
// while another is read, all that came meanwhile.
func TestFollowFromNow(t *testing.T) {
	server := newFakeServer(t)
	ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	state := func(names string, s corev1.ContainerState) (all []corev1.ContainerStatus) {
		for _, name := range strings.Fields(names) {
			all = append(all, corev1.ContainerStatus{Name: name, State: s})
		}
		return all
	}
	pod := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "run-0-pod", UID: "p0", Labels: podLabels},
		Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "step-a"}, {Name: "step-b"}, {Name: "step-c"},
		}},
		Status: corev1.PodStatus{
			Phase:             corev1.PodRunning,
			ContainerStatuses: append(state("step-a step-b", ended), state("step-c", running)...),
		},
	}
	cluster := &fakeCluster{
		run: tekton.PipelineRun{
			TypeMeta:   metav1.TypeMeta{Kind: "PipelineRun", APIVersion: "tekton.dev/v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "run", UID: "u"},
		},
		pods: []corev1.Pod{pod},
		logs: map[string]string{
			"run-0-pod/step-a": "a\n", "run-0-pod/step-b": "b\n", "run-0-pod/step-c": "c\n",
		},
	}
	cluster.logged = func() { // that is how long the others take
		cluster.pods[0].Status.Phase = corev1.PodSucceeded
		cluster.pods[0].Status.ContainerStatuses = state("step-a step-b step-c", ended)
	}
	cluster.run.Status.SetCondition(&apis.Condition{
		Type: apis.ConditionSucceeded, Status: corev1.ConditionTrue,
	})
	api := httptest.NewTLSServer(cluster)
	defer api.Close()
	t.Setenv("KUBECONFIG", plainKubeconfig(t, api.URL, `{token: "t"}`))
	args := []string{"logs", "run", "-n", "ns", "--server", server.URL, "--tail", "0", "-f"}
	got, code := said(t, args)
	if want := "\n\n[good : c] c\n\n"; code != 0 || got != want {
		t.Errorf("exit code %d, %q; want %q", code, got, want)
	}
}
