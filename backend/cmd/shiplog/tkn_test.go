package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/pkg/apis"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// fakeCluster answers as an API server does that has one PipelineRun.
type fakeCluster struct {
	run      tekton.PipelineRun
	taskRuns []tekton.TaskRun
	pods     []corev1.Pod
	logs     map[string]string // by pod and container
	logged   func()            // if set, it is called behind each log, and may change the rest

	mu sync.Mutex // one request is answered at a time
}

func (c *fakeCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	var answer any = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound}
	status := http.StatusNotFound
	found := func(v any) { answer, status = v, http.StatusOK }
	_, path, _ := strings.Cut(r.URL.Path, "/namespaces/ns/")
	kind, name, _ := strings.Cut(path, "/")
	switch {
	case kind == "pipelineruns" && name == c.run.Name:
		found(c.run)
	case kind == "taskruns" && name == "":
		found(tekton.TaskRunList{Items: c.taskRuns})
	case kind == "taskruns":
		for _, tr := range c.taskRuns {
			if tr.Name == name {
				found(tr)
			}
		}
	case kind == "pods" && name == "":
		var list corev1.PodList
		for _, pod := range c.pods {
			if strings.Contains(r.URL.Query().Get("labelSelector"), pipeline.TaskRunLabelKey+"="+pod.Labels[pipeline.TaskRunLabelKey]) || !strings.Contains(r.URL.Query().Get("labelSelector"), pipeline.TaskRunLabelKey) {
				list.Items = append(list.Items, pod)
			}
		}
		found(list)
	case kind == "pods" && strings.HasSuffix(name, "/log"):
		pod := strings.TrimSuffix(name, "/log")
		lines := slices.Collect(strings.Lines(c.logs[pod+"/"+r.URL.Query().Get("container")]))
		if tail, err := strconv.Atoi(r.URL.Query().Get("tailLines")); err == nil {
			lines = lines[max(0, len(lines)-tail):]
		}
		for _, line := range lines {
			fmt.Fprintf(w, "2026-11-23T12:00:00.000000000Z %s", line)
		}
		if c.logged != nil {
			c.logged()
		}
		return
	case kind == "pods":
		for _, pod := range c.pods {
			if pod.Name == name {
				found(pod)
			}
		}
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
}

// TestFailsLikeTkn compares with what tkn v0.44.0 writes of such a run (pkg/log and pkg/pods), on both streams.
func TestFailsLikeTkn(t *testing.T) {
	at := func(minute int) metav1.Time { return metav1.NewTime(start.Add(time.Duration(minute) * time.Minute)) }
	condition := func(status corev1.ConditionStatus, message string) apis.Condition {
		return apis.Condition{Type: apis.ConditionSucceeded, Status: status, Message: message}
	}
	c := &fakeCluster{logs: map[string]string{}}
	c.run = tekton.PipelineRun{TypeMeta: metav1.TypeMeta{Kind: "PipelineRun", APIVersion: "tekton.dev/v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "run", UID: "u-run"}}
	c.run.Status.SetCondition(new(condition(corev1.ConditionFalse, "Tasks Completed: 3 (Failed: 2)")))
	for i, task := range []string{"flaky", "refused", "well"} {
		tr := tekton.TaskRun{TypeMeta: metav1.TypeMeta{Kind: "TaskRun", APIVersion: "tekton.dev/v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "run-" + task, UID: types.UID("u-" + task), Labels: map[string]string{
			pipeline.PipelineTaskLabelKey: task, pipeline.PipelineRunLabelKey: "run", pipeline.PipelineRunUIDLabelKey: "u-run",
		}}}
		tr.Status.CompletionTime, tr.Status.PodName = new(at(i)), tr.Name+"-pod"
		tr.Status.SetCondition(new(condition(corev1.ConditionFalse, "it \x1b[31mfailed")))
		switch task {
		case "refused":
			tr.Status.PodName = ""
		case "well":
			tr.Status.SetCondition(new(condition(corev1.ConditionTrue, "")))
		}
		c.taskRuns = append(c.taskRuns, tr)
	}
	addPod := func(taskRun, name string, minute int, codes ...int32) {
		pod := corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("u-" + name), CreationTimestamp: at(minute), Labels: map[string]string{
			pipeline.TaskRunLabelKey: taskRun, pipeline.TaskRunUIDLabelKey: "u-" + strings.TrimPrefix(taskRun, "run-"), pipeline.PipelineRunLabelKey: "run", pipeline.PipelineRunUIDLabelKey: "u-run", pipeline.PipelineTaskLabelKey: strings.TrimPrefix(taskRun, "run-"),
		}}}
		pod.Status.Phase = corev1.PodFailed
		for i, code := range codes {
			step := "step-" + string(rune('a'+i))
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: step})
			pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{Name: step, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: "Error", Message: "[]"}}})
			c.logs[name+"/"+step] = "of " + name + " " + step + "\n"
		}
		c.pods = append(c.pods, pod)
	}
	addPod("run-flaky", "run-flaky-pod", 0, 1, 1)
	addPod("run-flaky", "run-flaky-pod-retry1", 1, 3, 1, 1)
	addPod("run-well", "run-well-pod", 2, 0)
	server := httptest.NewTLSServer(c)
	defer server.Close()
	t.Setenv(objectstore.EnvBucket, "")
	t.Setenv("KUBECONFIG", plainKubeconfig(t, server.URL, `{token: "t"}`))

	const flaky, well = "[flaky : a] of run-flaky-pod step-a\n\n[flaky : a] of run-flaky-pod-retry1 step-a\n\n[flaky : b] of run-flaky-pod-retry1 step-b\n\n", "[well : a] of run-well-pod step-a\n\n"
	const failed, refused, ended = `task flaky has failed: it \x1b[31mfailed
failed to get logs for task flaky : container step-a has failed  : []
failed to get logs for task flaky : container step-b has failed  : []
`, "task refused has failed: it \\x1b[31mfailed\npod for taskrun run-refused not available yet\n", "Tasks Completed: 3 (Failed: 2)\n"
	for _, k := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"all", []string{"pr", "logs", "run"}, 0, flaky + well, failed + refused + ended},
		{"the run's exit code", []string{"pr", "logs", "run", "-E"}, 1, flaky + well, failed + refused + ended},
		{"one task", []string{"pr", "logs", "run", "-t", "well"}, 0, well, ended},
		{"followed", []string{"pr", "logs", "run", "-f", "-t", "flaky"}, 0, flaky, failed + ended},
		{"a TaskRun", []string{"tr", "logs", "run-flaky"}, 0, strings.ReplaceAll(flaky, "[flaky : ", "["), strings.ReplaceAll(failed, "failed to get logs for task flaky : ", "")},
	} {
		t.Run(k.name, func(t *testing.T) {
			got, code := said(t, append(k.args, "-n", "ns"))
			stdout, stderr, _ := strings.Cut(got, "--- stderr\n")
			stderr, _, _ = strings.Cut(stderr, "--- error\n")
			notice, stderr, _ := strings.Cut(stderr, "\n")
			if diff := cmp.Diff(k.stdout, stdout); diff != "" || code != k.code || !strings.HasPrefix(notice, "shiplog: no archive: ") {
				t.Errorf("exit code %d, want %d; %q; stdout (-want +got):\n%s", code, k.code, notice, diff)
			}
			if diff := cmp.Diff(k.stderr, stderr); diff != "" {
				t.Errorf("stderr (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("a run that goes on", func(t *testing.T) {
		c.run.Status.SetCondition(new(condition(corev1.ConditionUnknown, "")))
		if got, code := said(t, []string{"pr", "logs", "run", "-E", "-n", "ns"}); code != 0 {
			t.Errorf("exit code %d: %s", code, got)
		}
	})
}
