package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	"knative.dev/pkg/apis"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/placescripts"
)

// facts are what a user sees of the runs of a namespace.
type facts struct {
	fields map[string]string // by what it is, as "TaskRun a: status"
	logs   map[string]string // what the kubelet has, by "pod container"
}

// difference is one fact that is not the same with shiplog.
type difference struct{ what, without, with string }

// normal has what differs in each run replaced: the namespace, UIDs, times and digests.
func normal(text, namespace string) string {
	if namespace != "" {
		text = strings.ReplaceAll(text, namespace, "NAMESPACE")
	}
	for _, r := range replacements {
		text = r.pattern.ReplaceAllString(text, r.with)
	}
	return text
}

var replacements = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "UID"},
	{regexp.MustCompile(`\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?`), "TIME"},
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "DIGEST"},
}

// set keeps a fact; a value that is empty is none.
func (f facts) set(value, format string, args ...any) {
	if value != "" {
		f.fields[fmt.Sprintf(format, args...)] = value
	}
}

func (f facts) normalise(namespace string) facts {
	n := facts{fields: map[string]string{}, logs: map[string]string{}}
	for what, value := range f.fields {
		n.fields[normal(what, namespace)] = normal(value, namespace)
	}
	for what, value := range f.logs {
		n.logs[normal(what, namespace)] = normal(value, namespace)
	}
	return n
}

// compare returns what differs with shiplog. What differs between two runs without it is noise.
func compare(without, again, with facts) []difference {
	var found []difference
	fields := map[string]bool{}
	for what := range maps.Keys(without.fields) {
		fields[what] = true
	}
	for what := range maps.Keys(with.fields) {
		fields[what] = true
	}
	for _, what := range slices.Sorted(maps.Keys(fields)) {
		a, b, c := without.fields[what], again.fields[what], with.fields[what]
		if a == b && a != c {
			found = append(found, difference{what, a, c})
		}
	}
	logs := map[string]bool{}
	for _, f := range []facts{without, with} {
		for what := range f.logs {
			logs[what] = true
		}
	}
	for _, what := range slices.Sorted(maps.Keys(logs)) {
		_, inFirst := without.logs[what]
		_, inSecond := again.logs[what]
		_, inThird := with.logs[what]
		switch {
		case inFirst != inSecond:
		case inFirst != inThird:
			found = append(found, difference{what + ": log", thereIs(inFirst), thereIs(inThird)})
		default:
			a, b, c := without.logs[what], again.logs[what], with.logs[what]
			found = append(found, compareLogs(what, a, b, c)...)
		}
	}
	return found
}

func thereIs(b bool) string {
	if b {
		return "there is one"
	}
	return "there is none"
}

// compareLogs compares lines, in any order: the container runtime mixes stdout and stderr anew each
// time. Lines that both runs without shiplog have must be there with it, and as many others as they
// have.
func compareLogs(what, without, again, with string) []difference {
	a, b, c := lines(without), lines(again), lines(with)
	stable, noise := map[string]int{}, 0
	for line, n := range a {
		stable[line] = min(n, b[line])
		noise += n - stable[line]
	}
	var missing, more []string
	for line, n := range stable {
		if c[line] < n {
			missing = append(missing, line)
		}
	}
	others := 0
	for line, n := range c {
		if n > stable[line] {
			others += n - stable[line]
			more = append(more, line)
		}
	}
	otherNoise := total(b) - total(stable)
	fewest, most := min(noise, otherNoise), max(noise, otherNoise)
	if len(missing) == 0 && fewest <= others && others <= most {
		return nil
	}
	slices.Sort(missing)
	slices.Sort(more)
	return []difference{{what + ": log", quoted(missing, total(a)), quoted(more, total(c))}}
}

// compareArchive compares what the kubelet has of a log with what was printed, as the archive has
// it. The kubelet ends lines that nobody ended, and may have the two streams in another order.
func compareArchive(what, kubelet, archive string) []difference {
	size := func(text string) int { return len(text) - strings.Count(text, "\n") }
	var missing []string
	for line := range strings.Lines(kubelet) {
		if !strings.Contains(archive, strings.TrimSuffix(line, "\n")) {
			missing = append(missing, line)
		}
	}
	if len(missing) == 0 && size(kubelet) == size(archive) {
		return nil
	}
	return []difference{{
		what + ": log", quoted(missing, total(lines(kubelet))),
		fmt.Sprintf("%d bytes, and %d of the kubelet", len(archive), len(kubelet)),
	}}
}

func lines(text string) map[string]int {
	n := map[string]int{}
	for line := range strings.Lines(text) {
		n[line]++
	}
	return n
}

func total(n map[string]int) (sum int) {
	for _, count := range n {
		sum += count
	}
	return sum
}

// quoted shows the first lines of some that only one side has.
func quoted(some []string, all int) string {
	const most = 3
	text := fmt.Sprintf("%d lines", all)
	for i, line := range some {
		if i == most {
			return fmt.Sprintf("%s and %d more", text, len(some)-most)
		}
		text += fmt.Sprintf(", alone %q", line)
	}
	return text
}

// gather collects the facts of all runs of a namespace. It waits until their pods have ended.
func (c *cluster) gather(ctx context.Context, namespace string) (facts, []corev1.Pod, error) {
	f := facts{fields: map[string]string{}, logs: map[string]string{}}
	in := client.InNamespace(namespace)
	var pods corev1.PodList
	err := poll(ctx, settleLimit, "pods of "+namespace, func(ctx context.Context) (bool, error) {
		if err := c.client.List(ctx, &pods, in, client.HasLabels{"tekton.dev/taskRun"}); err != nil {
			return false, err
		}
		return !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return !ended(&p) }), nil
	})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return f, nil, err // else the phase says it
	}
	var runs tekton.PipelineRunList
	var tasks tekton.TaskRunList
	if err := errors.Join(c.client.List(ctx, &runs, in), c.client.List(ctx, &tasks, in)); err != nil {
		return f, nil, err
	}
	for i := range runs.Items {
		f.pipelineRun(&runs.Items[i])
	}
	for i := range tasks.Items {
		f.taskRun("TaskRun "+tasks.Items[i].Name, &tasks.Items[i].Status)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		f.pod(pod)
		for _, name := range containers(pod) {
			if !hasRun(pod, name) {
				continue
			}
			text, err := c.kubeletLog(ctx, pod, name)
			if err != nil { // as of a container that could not be started: a fact like others
				f.set(err.Error(), "pod %s: log of %s", pod.Name, name)
				continue
			}
			f.logs[pod.Name+" "+name] = text
		}
	}
	return f, pods.Items, nil
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// expected says whether a container is there with shiplog alone, or without it alone: what
// docs/transparency.md says of it is no finding.
func expected(container string) bool {
	return container == contract.ShipperContainer || container == placescripts.Container
}

// containers names a pod's containers, but for those.
func containers(pod *corev1.Pod) []string {
	var names []string
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if !expected(container.Name) {
			names = append(names, container.Name)
		}
	}
	return names
}

// hasRun says whether a container has ever been started, so that there is a log of it.
func hasRun(pod *corev1.Pod, container string) bool {
	statuses := slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses)
	return slices.ContainsFunc(statuses, func(s corev1.ContainerStatus) bool {
		return s.Name == container && s.ContainerID != ""
	})
}

func (f facts) condition(what string, condition *apis.Condition) {
	if condition != nil {
		f.set(string(condition.Status), "%s: status", what)
		f.set(condition.Reason, "%s: reason", what)
		f.set(condition.Message, "%s: message", what)
	}
}

func (f facts) pipelineRun(pr *tekton.PipelineRun) {
	what := "PipelineRun " + pr.Name
	f.condition(what, pr.Status.GetCondition(apis.ConditionSucceeded))
	for _, result := range pr.Status.Results {
		f.set(text(result.Value), "%s: result %s", what, result.Name)
	}
	for _, child := range pr.Status.ChildReferences {
		f.set(child.Kind+" of task "+child.PipelineTaskName, "%s: child %s", what, child.Name)
	}
	for _, task := range pr.Status.SkippedTasks {
		f.set(string(task.Reason), "%s: skipped task %s", what, task.Name)
	}
}

func (f facts) taskRun(what string, status *tekton.TaskRunStatus) {
	f.condition(what, status.GetCondition(apis.ConditionSucceeded))
	for _, result := range status.Results {
		f.set(string(result.Type)+" "+text(result.Value), "%s: result %s", what, result.Name)
	}
	f.artifacts(what, status.Artifacts)
	for i, step := range status.Steps {
		what := fmt.Sprintf("%s: step %d %s", what, i+1, step.Name)
		f.set(step.TerminationReason, "%s: termination reason", what)
		f.state(what, step.ContainerState)
		for _, result := range step.Results {
			f.set(text(result.Value), "%s: result %s", what, result.Name)
		}
		f.artifacts(what, &tekton.Artifacts{Inputs: step.Inputs, Outputs: step.Outputs})
	}
	for _, sidecar := range status.Sidecars {
		what := what + ": sidecar " + sidecar.Name
		f.set(sidecar.Container, "%s: container", what)
	}
	for i := range status.RetriesStatus {
		f.taskRun(fmt.Sprintf("%s: try %d", what, i+1), &status.RetriesStatus[i])
	}
}

func (f facts) artifacts(what string, artifacts *tekton.Artifacts) {
	if artifacts == nil {
		return
	}
	for _, a := range artifacts.Inputs {
		f.set(fmt.Sprint(a.Values), "%s: input %s", what, a.Name)
	}
	for _, a := range artifacts.Outputs {
		f.set(fmt.Sprint(a.Values), "%s: output %s", what, a.Name)
	}
}

func (f facts) state(what string, state corev1.ContainerState) {
	switch {
	case state.Terminated != nil:
		t := state.Terminated
		f.set("terminated", "%s: state", what)
		f.set(fmt.Sprint(t.ExitCode), "%s: exit code", what)
		f.set(t.Reason, "%s: reason", what)
		f.set(t.Message, "%s: termination message", what)
	case state.Running != nil:
		f.set("running", "%s: state", what)
	case state.Waiting != nil:
		f.set("waiting "+state.Waiting.Reason, "%s: state", what)
	}
}

func (f facts) pod(pod *corev1.Pod) {
	what := "pod " + pod.Name
	f.set(string(pod.Status.Phase), "%s: phase", what)
	f.set(pod.Status.Reason, "%s: reason", what)
	if pod.Status.QOSClass == corev1.PodQOSGuaranteed { // the others are one with shiplog
		f.set(string(pod.Status.QOSClass), "%s: QoS class", what)
	}
	f.set(strings.Join(containers(pod), " "), "%s: containers", what)
	statuses := slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses)
	for _, status := range statuses {
		if expected(status.Name) {
			continue
		}
		what := what + ": container " + status.Name
		f.set(fmt.Sprint(status.RestartCount), "%s: restarts", what)
		// Once the steps are done Tekton gives a sidecar an image without its command. The runtime
		// cannot begin that, and tee says 127 in its place.
		if t := status.State.Terminated; t != nil && strings.HasPrefix(status.Name, "sidecar-") &&
			(t.Reason == "StartError" || t.ExitCode == 127) {
			f.set("its command is not there", "%s: state", what)
			continue
		}
		if t := status.State.Terminated; t != nil { // the message is Tekton's own, with times in it
			f.set(fmt.Sprint(t.ExitCode), "%s: exit code", what)
			f.set(t.Reason, "%s: reason", what)
		} else {
			f.state(what, status.State)
		}
	}
}

func text(value tekton.ResultValue) string {
	b, err := value.MarshalJSON()
	if err != nil {
		return err.Error()
	}
	return string(b)
}
