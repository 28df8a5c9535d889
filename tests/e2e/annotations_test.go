//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// pageURL is the address of the web page, as the platform engineer has said it.
func pageURL(t *testing.T) string {
	t.Helper()
	var info corev1.ConfigMap
	if err := env.client.Get(t.Context(), client.ObjectKey{Namespace: "shiplog-system", Name: "shiplog-info"}, &info); err != nil {
		t.Fatal(err)
	}
	return info.Data["server"]
}

// awaitSealed waits until a run has the annotation that says that no more of its logs will come, and returns the run.
func awaitSealed(t *testing.T, pr *tekton.PipelineRun) *tekton.PipelineRun {
	t.Helper()
	now := &tekton.PipelineRun{}
	err := poll(t.Context(), "PipelineRun "+pr.Name+" to be sealed", func(ctx context.Context) (bool, error) {
		err := env.client.Get(ctx, client.ObjectKeyFromObject(pr), now)
		return now.Annotations[contract.SealedUIDAnnotation] == string(now.UID), err
	})
	if err != nil {
		tree, _ := command(context.WithoutCancel(t.Context()), "", nil, env.cli, "ls", "-n", pr.Namespace, string(pr.UID)) // only explains
		t.Fatalf("%v; annotations %v\n%s", err, now.Annotations, tree)
	}
	return now
}

// tasksOf are the TaskRuns of a run by the pipeline's tasks.
func tasksOf(t *testing.T, pr *tekton.PipelineRun) map[string]tekton.TaskRun {
	t.Helper()
	var list tekton.TaskRunList
	if err := env.client.List(t.Context(), &list, client.InNamespace(pr.Namespace), client.MatchingLabels{"tekton.dev/pipelineRun": pr.Name}); err != nil {
		t.Fatal(err)
	}
	tasks := map[string]tekton.TaskRun{}
	for _, tr := range list.Items {
		tasks[tr.Labels["tekton.dev/pipelineTask"]] = tr
	}
	return tasks
}

// ours are the annotations that shiplog sets on runs.
func ours(all map[string]string) map[string]string {
	found := map[string]string{}
	for _, name := range []string{contract.LogsAnnotation, contract.SealedAnnotation, contract.SealedReasonAnnotation, contract.SealedUIDAnnotation} {
		if v, ok := all[name]; ok {
			found[name] = v
		}
	}
	return found
}

// checkSealed compares the annotations of a run or TaskRun whose logs are all there.
func checkSealed(t *testing.T, object client.Object, page contract.Page, base string) {
	t.Helper()
	got := ours(object.GetAnnotations())
	want := map[string]string{contract.SealedAnnotation: contract.SealedTrue, contract.SealedUIDAnnotation: string(object.GetUID())}
	if base != "" {
		want[contract.LogsAnnotation] = page.Address(base)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) { // maps are printed in the order of their keys
		t.Errorf("%s has %v, want %v", object.GetName(), got, want)
	}
}

// eventsOf are the events of a run whose reason is ours.
func eventsOf(t *testing.T, object client.Object) (events []corev1.Event) {
	t.Helper()
	var list corev1.EventList
	if err := env.client.List(t.Context(), &list, client.InNamespace(object.GetNamespace())); err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Items {
		if e.InvolvedObject.UID == object.GetUID() && strings.HasPrefix(e.Reason, "Shiplog") {
			events = append(events, e)
		}
	}
	return events
}

// runRecord reads a run's run.json.
func runRecord(t *testing.T, pr *tekton.PipelineRun) record.Run {
	t.Helper()
	r, err := openStore(t).Get(t.Context(), layout.Run{Namespace: pr.Namespace, Name: pr.Name, UID: string(pr.UID)}.RunKey())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	run, err := record.Decode[record.Run](text)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// TestLossIsTold: a run that lost bytes is sealed, and an event on it says so. Its step throws away what is in its spool once that is archived, and so what it prints next.
func TestLossIsTold(t *testing.T) {
	t.Parallel()
	pr := newPipelineRun(t, nsOn, "annotated-lossy", `
pipelineSpec:
  tasks:
    - name: build
      taskSpec:
        steps:
          - name: lossy
            image: busybox
            script: |
              seq 1 5000
              until [ -e /tmp/go ]; do sleep 0.1; done
              for log in /shiplog/spool/*.log; do : > $log; done
              echo last
`, nil)
	a, pod := archive(t), ""
	err := poll(t.Context(), "the first lines of "+pr.Name+" to be archived", func(ctx context.Context) (bool, error) {
		target, err := a.Find(ctx, pr.Namespace, string(pr.UID))
		if err != nil {
			return false, nil // not yet
		}
		tree, err := a.Tree(ctx, target)
		if err != nil {
			return false, err
		}
		for place := range tree.Containers() {
			if place.Container.Name == "step-lossy" && place.Container.Lines >= 5000 && place.Pod.Record != nil {
				pod = place.Pod.Record.PodName
			}
		}
		return pod != "", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := command(t.Context(), "", nil, env.kubectl, "-n", nsOn, "exec", pod, "-c", "step-lossy", "--", "touch", "/tmp/go"); err != nil {
		t.Fatal(err)
	}
	done := awaitSealed(t, finishRun(t, pr))
	checkSealed(t, done, contract.Page{Namespace: nsOn, UID: string(done.UID)}, pageURL(t))
	events := eventsOf(t, done)
	if len(events) != 1 || events[0].Reason != "ShiplogLost" || !strings.Contains(events[0].Message, "build/lossy: ") || !strings.Contains(events[0].Message, "lost in gaps of the log: ") || !strings.Contains(events[0].Message, "truncated") {
		t.Errorf("events %+v, want one of what was lost", events)
	}
	// It is true: the exit code says that bytes are missing.
	_, err = command(t.Context(), "", nil, env.cli, "logs", "-n", nsOn, "--all", "--tail", "1", string(done.UID))
	var exit interface{ ExitCode() int }
	if !errors.As(err, &exit) || exit.ExitCode() != 4 {
		t.Errorf("shiplog logs ends with %v, want exit code 4", err)
	}
}

// TestAnnotations runs pipelines with Tekton's own controller and webhook, and reads what the control panel shows of them.
func TestAnnotations(t *testing.T) {
	t.Parallel()
	base := pageURL(t)
	spec := `
pipelineSpec:
  tasks:
    - {name: first, taskSpec: {steps: [{name: a, image: busybox, script: "echo of the first task"}]}}
    - {name: second, runAfter: [first], taskSpec: {steps: [{name: b, image: busybox, script: "echo of the second task"}]}}
    - name: apart
      taskSpec:
        metadata: {annotations: {shiplog.dev/inject: "false"}}
        steps: [{name: c, image: busybox, script: "echo not captured"}]
`
	// Of this one nothing is captured. It ends first.
	optedOut := newPipelineRun(t, nsOn, "annotated-not", "pipelineSpec: {tasks: [{name: a, taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}}]}",
		map[string]string{contract.InjectKey: contract.InjectDisabled})
	finishRun(t, optedOut)

	check := func(t *testing.T, pr *tekton.PipelineRun) *tekton.PipelineRun {
		t.Helper()
		done := awaitSealed(t, finishRun(t, pr))
		page := contract.Page{Namespace: nsOn, UID: string(done.UID)}
		checkSealed(t, done, page, base)
		tasks := tasksOf(t, done)
		for _, name := range []string{"first", "second"} {
			tr := tasks[name]
			page.Task = name
			checkSealed(t, &tr, page, base)
		}
		if got := ours(tasks["apart"].Annotations); len(got) > 0 {
			t.Errorf("the task that is not captured has %v", got)
		}
		// It is true: the exit code 0 of "shiplog logs" says that every log is verified.
		if _, err := command(t.Context(), "", nil, env.cli, "logs", "-n", nsOn, "--all", "--tail", "1", string(done.UID)); err != nil {
			t.Errorf("the run is annotated as sealed: %v", err)
		}
		if events := eventsOf(t, done); len(events) > 0 {
			t.Errorf("events of a run that lost nothing: %+v", events)
		}
		c, got := done.Status.GetCondition("Succeeded"), runRecord(t, done)
		if got.State != record.Succeeded || got.Reason != c.Reason || !got.Started.Equal(done.Status.StartTime.Time) || !got.Completed.Equal(done.Status.CompletionTime.Time) {
			t.Errorf("run.json says %q %q from %s to %s, the run %s %q from %s to %s", got.State, got.Reason, got.Started, got.Completed, c.Status, c.Reason, done.Status.StartTime, done.Status.CompletionTime)
		}
		return done
	}
	first := check(t, newPipelineRun(t, nsOn, "annotated", spec, nil))

	// Somebody makes it again, with all its annotations, as tools that run something again do.
	again := newPipelineRun(t, nsOn, "annotated-again", spec, first.Annotations)
	err := poll(t.Context(), "the copied annotations to be taken away", func(ctx context.Context) (bool, error) {
		var now tekton.PipelineRun
		err := env.client.Get(ctx, client.ObjectKeyFromObject(again), &now)
		_, sealed := now.Annotations[contract.SealedAnnotation]
		foreign := now.Annotations[contract.LogsAnnotation] != "" && !strings.Contains(now.Annotations[contract.LogsAnnotation], string(again.UID))
		return !sealed && !foreign || now.Annotations[contract.SealedUIDAnnotation] == string(again.UID), err
	})
	if err != nil {
		t.Error(err)
	}
	check(t, again)

	failed := finishRun(t, newPipelineRun(t, nsOn, "annotated-failed", "pipelineSpec: {tasks: [{name: a, taskSpec: {steps: [{name: s, image: busybox, script: exit 3}]}}]}", nil))
	checkSealed(t, awaitSealed(t, failed), contract.Page{Namespace: nsOn, UID: string(failed.UID)}, base)
	if got := runRecord(t, failed); got.State != record.Failed {
		t.Errorf("run.json of a run that failed says %q", got.State)
	}

	var now tekton.PipelineRun
	if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(optedOut), &now); err != nil {
		t.Fatal(err)
	}
	if got := ours(now.Annotations); len(got) > 0 {
		t.Errorf("the run that opted out has %v", got)
	}
}
