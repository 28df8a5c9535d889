package main

import (
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// fillMissed adds a run of which one pod of two was captured, but for a step, and one of which none
// was.
func fillMissed(t *testing.T, store *objectstore.Store) {
	t.Helper()
	add := func(name string) layout.Run {
		return archivetest.PutRun(t, store, record.Run{
			Kind: layout.PipelineRun, Namespace: "ns", Name: name, UID: "u-" + name, Created: start,
			State: record.Succeeded, Completed: start,
		})
	}
	pod := func(run layout.Run, task string, containers ...record.Container) layout.Pod {
		key := layout.Pod{Run: run, TaskRun: run.Name + "-" + task, PodUID: "p-" + task}
		archivetest.PutPod(t, store, key, record.Pod{
			PodName: key.TaskRun + "-pod", PipelineTask: task, Created: start, Containers: containers,
		})
		return key
	}
	some := add("some")
	captured := pod(some, "build",
		record.Container{Name: "step-a", Kind: record.Step, Captured: true},
		record.Container{Name: "step-tiny", Kind: record.Step, Skipped: "memory-limit"})
	pod(some, "test",
		record.Container{Name: "step-b", Kind: record.Step, Skipped: record.SkippedNoAnswer},
		record.Container{Name: "sidecar-db", Kind: record.Sidecar, Skipped: record.SkippedNoAnswer})
	put(t, store, logText{
		container: layout.Container{Pod: captured, Container: "step-a"}, sealed: true,
		lines: criline.Append(nil, start, criline.Stdout, true, []byte("hello")),
	})
	pod(add("none"), "build",
		record.Container{Name: "step-a", Kind: record.Step, Skipped: "limit-range"})
}

// TestMissed: of a step that was not captured every command names the pod, says why, and ends with
// the exit code of bytes that are missing.
func TestMissed(t *testing.T) {
	store, config := archivetest.Start(t)
	fillMissed(t, store)
	useBucket(t, config)
	const noAnswer = "pod some-test-pod was not captured: " +
		"the webhook was not asked, or did not answer (no-answer)"
	dir := t.TempDir()
	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{
			"ls", []string{"ls", "some"}, 0,
			[]string{"missed", noAnswer, "not captured in pod some-build-pod: memory-limit"},
		},
		{
			"logs", []string{"logs", "some"}, exitLost,
			[]string{
				"[build : a] hello\n", "[test : b] -- shiplog: this log is missing: " + noAnswer,
				"[build : tiny] -- shiplog: this log is missing: not captured in pod some-build-pod",
			},
		},
		{"logs of a step that is there", []string{"logs", "some", "--step", "a"}, 0, []string{"hello"}},
		{"logs of one that is not", []string{"logs", "some", "-s", "b"}, exitLost, []string{noAnswer}},
		{"raw logs", []string{"logs", "some", "--step", "b", "--raw"}, exitLost, []string{noAnswer}},
		{"logs that are followed", []string{"logs", "some", "-f"}, exitLost, []string{noAnswer}},
		{
			"logs of a sidecar, which is left alone", []string{"logs", "some", "--container", "sidecar-db"},
			0, []string{"not captured: no-answer"},
		},
		{
			"logs of a run of which there is nothing", []string{"logs", "none"}, exitLost,
			[]string{"not captured in pod none-build-pod: limit-range"},
		},
		{"by the pod's name", []string{"logs", "some-test-pod"}, exitLost, []string{noAnswer}},
		{
			"get", []string{"get", "some", "--to", dir}, exitLost,
			[]string{"test/step-b -- shiplog: this log is missing: " + noAnswer, "1 logs are in"},
		},
		{"verify", []string{"verify", "some"}, exitLost, []string{"missed", noAnswer}},
		{
			"verify a run of which there is nothing", []string{"verify", "none"}, exitLost,
			[]string{"missed", "nothing is archived of run none", "limit-range"},
		},
		{
			"search", []string{"search", "some", "hello"}, exitLost,
			[]string{"hello", "not all was searched: test/step-b: this log is missing: " + noAnswer},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, code := said(t, append(c.args, "-n", "ns"))
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.says {
				if !strings.Contains(got, want) {
					t.Errorf("%q does not say %q", got, want)
				}
			}
		})
	}
	want := map[string]string{filepath.ToSlash("build/step-a.log"): "hello\n"}
	if diff := cmp.Diff(want, filesIn(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// podLabels are those of a pod of the run "run".
var podLabels = map[string]string{
	pipeline.TaskRunLabelKey: "run-0", pipeline.TaskRunUIDLabelKey: "u-0",
	pipeline.PipelineRunLabelKey: "run", pipeline.PipelineRunUIDLabelKey: "u",
	pipeline.PipelineTaskLabelKey: "good",
}

// TestMissedWhilePodIsThere: a step that was not captured is read from its pod as long as that is
// there.
func TestMissedWhilePodIsThere(t *testing.T) {
	server := newFakeServer(t)
	step := fakeContainer("step-a", 0, "")
	step.Status, step.Why = backend.Missed, "not captured in pod run-0-pod: limit-range"
	server.containers = []fakeLog{step}
	pod := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "run-0-pod", UID: "p0", Labels: podLabels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "step-a"}}},
		Status: corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{{
			Name: "step-a", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}},
		}}},
	}
	cluster := &fakeCluster{
		run: tekton.PipelineRun{
			TypeMeta:   metav1.TypeMeta{Kind: "PipelineRun", APIVersion: "tekton.dev/v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "run", UID: "u"},
		},
		pods: []corev1.Pod{pod},
		logs: map[string]string{"run-0-pod/step-a": "from the pod\n"},
	}
	cluster.run.Status.SetCondition(&apis.Condition{
		Type: apis.ConditionSucceeded, Status: corev1.ConditionTrue,
	})
	api := httptest.NewTLSServer(cluster)
	defer api.Close()
	t.Setenv("KUBECONFIG", plainKubeconfig(t, api.URL, `{token: "t"}`))
	logs := []string{"logs", "run", "-n", "ns", "--server", server.URL}
	for _, c := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"from the pod", logs, 0, "[good : a] from the pod\n"},
		{"followed", append(logs, "-f"), 0, "[good : a] from the pod\n"},
		{"its last lines", append(logs, "--tail", "5"), 0, "[good : a] from the pod\n"},
		{"all lines", append(logs, "--tail", "-1"), 0, "[good : a] from the pod\n"},
		{"no line", append(logs, "--tail", "0"), 0, ""},
		{"no line, followed", append(logs, "--tail", "0", "-f"), 0, ""},
		{"from the archive", append(logs, "--archive"), exitLost, "this log is missing: " + step.Why},
		{"a list", []string{"ls", "run", "-n", "ns", "--server", server.URL}, 0, step.Why},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, code := said(t, c.args)
			more := c.says == "" && strings.Contains(got, "from the pod")
			if code != c.code || !strings.Contains(got, c.says) || more {
				t.Errorf("exit code %d: %q; want %d and %q", code, got, c.code, c.says)
			}
		})
	}
	t.Run("the pod is gone", func(t *testing.T) {
		cluster.pods = nil
		got, code := said(t, logs)
		if code != exitLost || !strings.Contains(got, "this log is missing: "+step.Why) {
			t.Errorf("exit code %d: %q; want %d and %q", code, got, exitLost, step.Why)
		}
	})
}
