//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// exitCodeOf runs the CLI and returns all that it says, and its exit code.
func exitCodeOf(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var said strings.Builder
	err := stream(t.Context(), "", nil, &said, &said, env.cli, args...)
	var exit interface{ ExitCode() int }
	switch {
	case err == nil:
		return said.String(), 0
	case errors.As(err, &exit):
		return said.String(), exit.ExitCode()
	}
	t.Fatalf("shiplog %s: %v", strings.Join(args, " "), err)
	return "", 0
}

// checkMissed compares what Kubernetes and the archive say of a run of which a pod was not
// captured.
func checkMissed(t *testing.T, pr *tekton.PipelineRun, why string) {
	t.Helper()
	got := ours(pr.Annotations)
	value, reason := got[contract.SealedAnnotation], got[contract.SealedReasonAnnotation]
	if value != contract.SealedMissed || !strings.Contains(reason, why) {
		t.Errorf("%s has %v, want %s: %s", pr.Name, got, contract.SealedMissed, why)
	}
	events := eventsOf(t, pr)
	if len(events) != 1 || events[0].Reason != "ShiplogMissed" ||
		!strings.Contains(events[0].Message, why) {
		t.Errorf("events %+v, want one of what was missed", events)
	}
	checkMissedInArchive(t, pr, why)
}

// checkMissedInArchive asks the bucket alone.
func checkMissedInArchive(t *testing.T, pr *tekton.PipelineRun, why string) {
	t.Helper()
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"ls"}, 0},
		{[]string{"logs"}, 4},
		{[]string{"logs", "-f"}, 4},
		{[]string{"get", "--to", dir}, 4},
		{[]string{"verify"}, 4},
	} {
		said, code := exitCodeOf(t, append(c.args, "-n", pr.Namespace, string(pr.UID))...)
		if code != c.code || !strings.Contains(said, why) {
			t.Errorf("%v: exit code %d, want %d and %q:\n%s", c.args, code, c.code, why, said)
		}
	}
}

// awaitMissed waits until a TaskRun without PipelineRun is marked, and compares the reason.
func awaitMissed(t *testing.T, tr *tekton.TaskRun, why string) {
	t.Helper()
	var now tekton.TaskRun
	marked := func(ctx context.Context) (bool, error) {
		err := env.client.Get(ctx, client.ObjectKeyFromObject(tr), &now)
		return now.Annotations[contract.SealedUIDAnnotation] == string(now.UID), err
	}
	err := poll(t.Context(), "TaskRun "+tr.Name+" to be marked", marked)
	if err != nil {
		t.Fatal(err)
	}
	got := ours(now.Annotations)
	value, reason := got[contract.SealedAnnotation], got[contract.SealedReasonAnnotation]
	if value != contract.SealedMissed || !strings.Contains(reason, why) {
		t.Errorf("%s has %v, want %s: %s", now.Name, got, contract.SealedMissed, why)
	}
}

// missedSteps is the annotator's own count, of both replicas.
func missedSteps(t *testing.T) (sum float64) {
	t.Helper()
	var pods corev1.PodList
	err := env.client.List(t.Context(), &pods, client.InNamespace("shiplog-system"),
		client.MatchingLabels{"app.kubernetes.io/component": "annotator"})
	if err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items {
		path := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:8080/proxy/metrics", pod.Namespace, pod.Name)
		text, err := command(t.Context(), "", nil, env.kubectl, "get", "--raw", path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "shiplog_steps_missed_total "); ok {
				n, err := strconv.ParseFloat(value, 64)
				if err != nil {
					t.Fatal(err)
				}
				sum += n
			}
		}
	}
	return sum
}

// TestWebhookAway runs a pipeline in a labelled namespace while there is no webhook. The build does
// not notice, and nothing says that its logs are kept: the pods have the only copy.
func TestWebhookAway(t *testing.T) {
	defer scaleWebhook(t, "2")
	scaleWebhook(t, "0")
	run := finishRun(t, newPipelineRun(t, nsOn, "webhook-away", `
pipelineSpec:
  tasks:
    - {name: build, taskSpec: {steps: [{name: s, image: busybox, script: "echo only in the pod"}]}}
    - name: apart
      taskSpec:
        metadata: {annotations: {shiplog.dev/inject: "false"}}
        steps: [{name: c, image: busybox, script: "echo nobody wants this"}]
`, nil))
	if !run.Status.GetCondition("Succeeded").IsTrue() {
		t.Errorf("the run: %+v", run.Status.Conditions)
	}
	const greets = "pipelineSpec: {tasks: [{name: a, taskSpec: " +
		"{steps: [{name: s, image: busybox, script: echo hi}]}}]}"
	optedOut := finishRun(t, newPipelineRun(t, nsOn, "webhook-away-opted-out", greets,
		map[string]string{contract.InjectKey: contract.InjectDisabled}))
	elsewhere := finishRun(t, newPipelineRun(t, nsOff, "webhook-away", greets, nil))
	scaleWebhook(t, "2")

	run = awaitSealed(t, run)
	tasks := tasksOf(t, run)
	build := tasks["build"]
	why := "pod " + build.Status.PodName + " was not captured: " +
		"the webhook was not asked, or did not answer"
	checkMissed(t, run, why)
	if got := build.Annotations[contract.SealedAnnotation]; got != contract.SealedMissed {
		t.Errorf("the TaskRun's annotation is %q, want %q", got, contract.SealedMissed)
	}
	if got := ours(tasks["apart"].Annotations); len(got) > 0 {
		t.Errorf("the TaskRun that opted out has %v", got)
	}
	if n := missedSteps(t); n < 1 {
		t.Errorf("%v steps are counted as missed", n)
	}
	runs, _ := exitCodeOf(t, "ls", "-n", nsOn)
	if !strings.Contains(runs, string(run.UID)) || strings.Contains(runs, string(optedOut.UID)) {
		t.Errorf("the list has the run that opted out, or lacks the other:\n%s", runs)
	}

	// Who has a kubeconfig reads the pod as long as it is there.
	p := newPerson(t, "missed-reader")
	out, stderr, code := p.says(t, env.cli, "logs", run.Name)
	if code != 0 || !strings.Contains(out, "[build : s] only in the pod\n") {
		t.Errorf("exit code %d, %q, %s", code, out, stderr)
	}
	deleteRun(t, run)
	checkMissedInArchive(t, run, why)
	out, stderr, code = p.says(t, env.cli, "logs", string(run.UID))
	if code != 4 || !strings.Contains(stderr, why) {
		t.Errorf("exit code %d, %q, %s", code, out, stderr)
	}

	for _, pr := range []*tekton.PipelineRun{optedOut, elsewhere} {
		var now tekton.PipelineRun
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pr), &now); err != nil {
			t.Fatal(err)
		}
		if got := ours(now.Annotations); len(got) > 0 {
			t.Errorf("%s/%s has %v", pr.Namespace, pr.Name, got)
		}
		if events := eventsOf(t, pr); len(events) > 0 {
			t.Errorf("%s/%s has the events %+v", pr.Namespace, pr.Name, events)
		}
	}

	// A run that begins now is captured.
	next := awaitSealed(t, finishRun(t, newPipelineRun(t, nsOn, "webhook-back", greets, nil)))
	checkSealed(t, next, contract.Page{Namespace: nsOn, UID: string(next.UID)}, pageURL(t))
}

// TestAnnotatorAway runs a pipeline while there is no annotator. Its pod is captured, and it has the
// address of its logs, as ever. It is sealed when there is an annotator again.
func TestAnnotatorAway(t *testing.T) {
	defer scale(t, "annotator", "2")
	scale(t, "annotator", "0")
	run := finishRun(t, newPipelineRun(t, nsOn, "annotator-away", "pipelineSpec: {tasks: [{name: a, "+
		"taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}}]}", nil))
	page := contract.Page{Namespace: nsOn, UID: string(run.UID)}
	got := ours(run.Annotations)
	if got[contract.LogsAnnotation] != page.Address(pageURL(t)) || got[contract.SealedAnnotation] != "" {
		t.Errorf("without an annotator the run has %v, want the address of its logs alone", got)
	}
	scale(t, "annotator", "2")
	checkSealed(t, awaitSealed(t, run), page, pageURL(t))
	text, err := archivedText(t.Context(), nsOn, string(run.UID), "step-s")
	if err != nil || text != "hi\n" {
		t.Errorf("the archive has %q, %v", text, err)
	}
}

// TestMissedStep runs a pod of which one step has too little memory for tee: that step's log is in
// the pod alone, and the other one's is archived.
func TestMissedStep(t *testing.T) {
	t.Parallel()
	pr := finishRun(t, newPipelineRun(t, nsOn, "missed-step", `
pipelineSpec:
  tasks:
    - name: build
      taskSpec:
        steps:
          - {name: kept, image: busybox, script: "echo of the first step"}
          - name: tiny
            image: busybox
            script: "echo of the second step"
            computeResources: {limits: {memory: 31Mi}}
`, nil))
	if !pr.Status.GetCondition("Succeeded").IsTrue() {
		t.Fatalf("the run: %+v", pr.Status.Conditions)
	}
	pr = awaitSealed(t, pr)
	checkMissed(t, pr, "not captured in pod "+tasksOf(t, pr)["build"].Status.PodName+": memory-limit")
	got, err := archivedText(t.Context(), nsOn, string(pr.UID), "step-kept")
	if err != nil || got != "of the first step\n" {
		t.Errorf("the step that was captured: %q, %v", got, err)
	}
}
