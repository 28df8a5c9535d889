//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// Where a case runs.
type place struct{ on, off string }

var (
	open       = place{nsOn, nsOff}
	restricted = place{nsOnRestricted, nsOffRestricted}
)

// secure is what Pod Security "restricted" asks of a step, as YAML for a step's indentation.
func secure(uid int) string {
	return fmt.Sprintf("securityContext: {runAsUser: %d, runAsNonRoot: true, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}", uid)
}

// everyByte is a shell command that prints 256 bytes: all values, with the newline replaced, so that it is one piece of one line.
const everyByte = `awk 'BEGIN { for (i = 0; i < 256; i++) printf "%c", (i == 10 ? 11 : i) }'`

// stepCase is a TaskRun that is run with and without shiplog.
type stepCase struct {
	name  string
	place place
	spec  string // TaskRunSpec as YAML
	// change is applied to the running TaskRun once its first step runs, as to cancel it.
	change func(*tekton.TaskRun)
	// want is what each container's log must be. A container that is not named is compared with what the kubelet has.
	want map[string]printed
	// hashed are the containers that say what they print in a result of their name: "<bytes> <sha256>".
	hashed []string
	// alone are the containers that must be left alone, as "<container>=<reason>".
	alone []string
	// podGone: Tekton deletes the pod (cancel, timeout), so what the kubelet has of its init containers is read while the pod lives.
	podGone bool
}

// hashing is a script that prints what gen makes, and says what it prints in a result. gen is run twice and must print the same.
func hashing(gen, result string) string {
	return fmt.Sprintf("gen() { %s; }; gen | wc -c | tr -d '\\n' > $(results.%s.path); printf ' ' >> $(results.%s.path); gen | sha256sum | cut -c1-64 | tr -d '\\n' >> $(results.%s.path); gen", gen, result, result, result)
}

func stepCases() []stepCase {
	return []stepCase{
		{
			name: "script-as-uid-0", place: open, hashed: []string{"step-s"},
			spec: `
taskSpec:
  results: [{name: step-s}]
  steps: [{name: s, image: busybox, script: "` + hashing("seq 1 100000", "step-s") + `"}]`,
		},
		{
			name: "script-as-uid-1000", place: restricted, hashed: []string{"step-s"},
			spec: `
taskSpec:
  results: [{name: step-s}]
  steps: [{name: s, image: busybox, ` + secure(1000) + `, script: "` + hashing("seq 1 50000", "step-s") + `"}]`,
		},
		{
			name: "two-users-in-one-pod", place: restricted, hashed: []string{"step-a", "step-b"},
			spec: `
taskSpec:
  results: [{name: step-a}, {name: step-b}]
  steps:
    - {name: a, image: busybox, ` + secure(65532) + `, script: "` + hashing("seq 1 20000", "step-a") + `"}
    - {name: b, image: busybox, ` + secure(1000) + `, script: "` + hashing("seq 5 9", "step-b") + `"}`,
		},
		{
			name: "command-with-args", place: restricted, want: map[string]printed{"step-s": text("1\n2\n3\n")},
			spec: `
taskSpec:
  steps: [{name: s, image: busybox, ` + secure(65532) + `, command: [/bin/seq], args: ["1", "3"]}]`,
		},
		{
			name: "in-the-hosts-network", place: open, want: map[string]printed{"step-s": text("at home\n")},
			spec: `
podTemplate: {hostNetwork: true, dnsPolicy: Default}
taskSpec:
  steps: [{name: s, image: busybox, script: "echo at home"}]`,
		},
		{
			name: "both-streams", place: open,
			spec: `
taskSpec:
  steps: [{name: s, image: busybox, script: "for i in $(seq 300); do echo out $i; echo err $i >&2; done"}]`,
		},
		{
			name: "failing-step-and-skipped-step", place: open,
			want: map[string]printed{"step-fails": text("about to fail\n")},
			spec: `
taskSpec:
  steps:
    - {name: fails, image: busybox, script: "echo about to fail; exit 3"}
    - {name: skipped, image: busybox, script: "echo never"}`,
		},
		{
			name: "failing-step-with-on-error-continue", place: open,
			want: map[string]printed{"step-goes-on": text("gone on\n")},
			spec: `
taskSpec:
  steps:
    - {name: fails, image: busybox, onError: continue, script: "echo failing; exit 7"}
    - {name: goes-on, image: busybox, script: "echo gone on"}`,
		},
		{
			name: "command-does-not-exist", place: open,
			spec: `
taskSpec:
  steps: [{name: s, image: busybox, command: [/does/not/exist]}]`,
		},
		{
			name: "killed-by-a-signal", place: open,
			spec: `
taskSpec:
  steps: [{name: s, image: busybox, script: "echo before; kill -9 $$; echo after"}]`,
		},
		{
			name: "timed-out", place: open, podGone: true, want: map[string]printed{"step-s": text("started\nstopping\n")},
			spec: `
timeout: 45s
taskSpec:
  steps: [{name: s, image: busybox, script: "trap 'echo stopping; exit 1' TERM; echo started; sleep 1000 & wait"}]`,
		},
		{
			name: "cancelled", place: open, podGone: true, want: map[string]printed{"step-s": text("started\nstopping\n")},
			change: func(tr *tekton.TaskRun) { tr.Spec.Status = tekton.TaskRunSpecStatusCancelled },
			spec: `
taskSpec:
  steps: [{name: s, image: busybox, script: "trap 'echo stopping; exit 1' TERM; echo started; sleep 1000 & wait"}]`,
		},
		{
			// Once the steps are done Tekton swaps the sidecar's image, and the kubelet's copy is that of what starts then.
			name: "sidecar-with-script", place: open, want: map[string]printed{"sidecar-helper": text("sidecar up\n")},
			spec: `
taskSpec:
  sidecars: [{name: helper, image: busybox, script: "echo sidecar up; while true; do sleep 1; done"}]
  steps: [{name: s, image: busybox, script: "echo step; sleep 2"}]`,
		},
		{
			// Tekton's entrypoint is spared as process 1, and the step ends as its script does.
			name: "signals-all-processes", place: open,
			want:  map[string]printed{"step-before": text("before\n"), "step-after": text("after\n")},
			alone: []string{"step-trap=signals-all", "step-kills=signals-all"},
			spec: `
taskSpec:
  steps:
    - {name: before, image: busybox, script: "echo before"}
    - {name: trap, image: busybox, script: "sleep 1000 & trap 'kill -- -1' EXIT; echo trapped"}
    - {name: kills, image: busybox, script: "sleep 1000 & kill -9 -1; echo alive"}
    - {name: after, image: busybox, script: "echo after"}`,
		},
		{
			// The careless one has no handler for SIGTERM: as process 1 it goes on to the end of the
			// grace period, and is killed then. Tekton reports with what a sidecar ended.
			name: "sidecars-as-process-1", place: open,
			want: map[string]printed{
				"sidecar-careless": text("careless\n"), "step-s": text("step\n"),
			},
			alone: []string{"sidecar-first=process-1"},
			spec: `
taskSpec:
  sidecars:
    - name: first
      image: busybox
      script: "[ $$ = 1 ] || exit 100; while true; do sleep 1; done"
    - name: careless
      image: busybox
      script: "echo careless; while true; do sleep 1; done"
  steps: [{name: s, image: busybox, script: "echo step; sleep 2"}]`,
		},
		{
			name: "stdout-config", place: open, want: map[string]printed{"step-s": text("to both\n")},
			spec: `
taskSpec:
  results: [{name: copy}]
  steps: [{name: s, image: busybox, stdoutConfig: {path: $(results.copy.path)}, script: "echo to both"}]`,
		},
		{
			name: "results", place: restricted, want: map[string]printed{"step-s": text("printed\n")},
			spec: `
taskSpec:
  results: [{name: r}, {name: list, type: array}]
  steps: [{name: s, image: busybox, ` + secure(65532) + `, script: "echo printed; printf value > $(results.r.path); printf '[\"a\",\"b\"]' > $(results.list.path)"}]`,
		},
		{
			name: "background-process-holds-stdout", place: open, want: map[string]printed{"step-s": text("now\n")},
			spec: `
taskSpec:
  steps: [{name: s, image: busybox, script: "(sleep 1000; echo late) & echo now"}]`,
		},
		{
			name: "writes-to-proc-1-fd-1", place: open, want: map[string]printed{"step-s": text("direct\nthrough process 1\n")},
			spec: `
taskSpec:
  steps: [{name: s, image: busybox, script: "echo direct; echo through process 1 > /proc/1/fd/1"}]`,
		},
		{
			name: "prints-nothing", place: open, want: map[string]printed{"step-s": text("")},
			spec: `
taskSpec:
  steps: [{name: s, image: busybox, script: "true"}]`,
		},
		{
			name: "50-mb-line-of-every-byte", place: open, hashed: []string{"step-s"},
			spec: `
taskSpec:
  results: [{name: step-s}]
  steps: [{name: s, image: busybox, script: "` + strings.ReplaceAll(hashing(`cat /tmp/50`, "step-s"), "gen() {", `x() { `+strings.ReplaceAll(everyByte, `"`, `\"`)+`; }; x > /tmp/1; for i in $(seq 8); do cat /tmp/1 /tmp/1 /tmp/1 /tmp/1 /tmp/1 /tmp/1 > /tmp/2; mv /tmp/2 /tmp/1; [ $(wc -c < /tmp/1) -gt 2000000 ] && break; done; while [ $(wc -c < /tmp/1) -lt 50000000 ]; do cat /tmp/1 /tmp/1 > /tmp/2; mv /tmp/2 /tmp/1; done; head -c 50000000 /tmp/1 > /tmp/50; gen() {`) + `"}]`,
		},
		{
			name: "300-mb", place: restricted,
			want: map[string]printed{"step-s": mustGenerate("yes 'a line of a build log that is not very long, but there are many of them, as in life 0123456789' | head -c 300000000")},
			spec: `
taskSpec:
  steps: [{name: s, image: busybox, ` + secure(65532) + `, script: "yes 'a line of a build log that is not very long, but there are many of them, as in life 0123456789' | head -c 300000000"}]`,
		},
	}
}

// mustGenerate runs a shell command here and measures what it prints.
func mustGenerate(script string) printed {
	cmd := exec.Command("sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		panic(err)
	}
	p, err := measure(out)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		panic(err)
	}
	return p
}

// TestSteps runs each case with and without shiplog. The archive must be what was printed, and Tekton must report the same run.
func TestSteps(t *testing.T) {
	t.Parallel()
	for _, c := range stepCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var spec tekton.TaskRunSpec
			if err := yaml.UnmarshalStrict([]byte(c.spec), &spec); err != nil {
				t.Fatalf("the case's YAML: %v", err)
			}
			off, _ := runCase(t, c, c.place.off, spec)
			on, logs := runCase(t, c, c.place.on, spec)
			t.Logf("without shiplog %s, with shiplog %s from creation to completion", took(off), took(on))

			if diff := cmp.Diff(outcome(off), outcome(on)); diff != "" {
				t.Errorf("Tekton reports another run with shiplog (-without +with):\n%s", diff)
			}
			if !c.podGone {
				podEnded(t, on)
			}
			if len(c.alone) == 0 {
				sealed(t, on.Namespace, on.Name)
			} else {
				checkAlone(t, c, off, on)
			}
			checkArchive(t, c, on, logs)
		})
	}
}

// runCase runs a case to its end. Of a pod that Tekton deletes it returns what the kubelet had of each init container.
func runCase(t *testing.T, c stepCase, namespace string, spec tekton.TaskRunSpec) (*tekton.TaskRun, map[string]string) {
	t.Helper()
	tr := newTaskRun(t, namespace, c.name, spec, nil)
	logs := map[string]string{}
	if c.podGone {
		for _, container := range waitForStep(t, tr).Spec.InitContainers {
			if container.Name == contract.ShipperContainer {
				continue
			}
			var err error
			if logs[container.Name], err = command(t.Context(), "", nil, env.kubectl, "-n", namespace, "logs", tr.Name+"-pod", "-c", container.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c.change != nil {
		var live tekton.TaskRun
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(tr), &live); err != nil {
			t.Fatal(err)
		}
		before := live.DeepCopy()
		c.change(&live)
		if err := env.client.Patch(t.Context(), &live, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
	}
	return finish(t, tr), logs
}

// podEnded waits until every container of the pod has ended: a TaskRun is done before its sidecars are.
func podEnded(t *testing.T, tr *tekton.TaskRun) {
	t.Helper()
	err := poll(t.Context(), "the pod of "+tr.Name+" to end", func(context.Context) (bool, error) {
		phase := podOf(t, tr).Status.Phase
		return phase == corev1.PodSucceeded || phase == corev1.PodFailed, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// took is how long a TaskRun took, by Tekton's own times, which have whole seconds.
func took(tr *tekton.TaskRun) time.Duration {
	return tr.Status.CompletionTime.Sub(tr.CreationTimestamp.Time)
}

// result is what a TaskRun reports, without names, times and image digests.
type result struct {
	Status, Reason, Message string
	Steps                   []stepResult
	Results                 []string
	Sidecars                int
	Retries                 []result
}

type stepResult struct {
	Name              string
	ExitCode          int32
	Reason            string
	TerminationReason string
	Message           string // what Tekton shows of the termination message
	Results           []string
}

func outcome(tr *tekton.TaskRun) result {
	r := outcomeOf(&tr.Status)
	for _, try := range tr.Status.RetriesStatus {
		r.Retries = append(r.Retries, outcomeOf(&try))
	}
	return r
}

func outcomeOf(status *tekton.TaskRunStatus) result {
	var r result
	if c := status.GetCondition("Succeeded"); c != nil {
		r.Status, r.Reason, r.Message = string(c.Status), c.Reason, c.Message
	}
	for _, s := range status.Steps {
		step := stepResult{Name: s.Name, TerminationReason: s.TerminationReason}
		if s.Terminated != nil {
			step.ExitCode, step.Reason, step.Message = s.Terminated.ExitCode, s.Terminated.Reason, s.Terminated.Message
		}
		for _, x := range s.Results {
			step.Results = append(step.Results, resultText(x.Name, x.Value))
		}
		r.Steps = append(r.Steps, step)
	}
	for _, x := range status.Results {
		r.Results = append(r.Results, resultText(x.Name, x.Value))
	}
	slices.Sort(r.Results)
	r.Sidecars = len(status.Sidecars)
	return r
}

func resultText(name string, value tekton.ResultValue) string {
	b, err := value.MarshalJSON()
	if err != nil {
		b = []byte(err.Error())
	}
	return name + "=" + string(b)
}

// checkArchive compares the archive with what was printed. Of a pod that is gone, logs is what the kubelet had of it.
func checkArchive(t *testing.T, c stepCase, tr *tekton.TaskRun, logs map[string]string) {
	t.Helper()
	want := map[string]printed{}
	for name, p := range c.want {
		want[name] = p
	}
	for _, name := range c.hashed {
		want[name] = resultNamed(t, tr, name)
	}
	for name, p := range want {
		got, err := archived(t.Context(), tr.Namespace, tr.Name, "", name)
		if err != nil {
			t.Error(err)
		} else if got != p {
			t.Errorf("%s: archived %s, printed %s", name, got, p)
		} else {
			t.Logf("%s: %s archived and printed", name, got)
		}
	}
	if c.podGone {
		for name, kubelet := range logs {
			sameLines(t, tr, name, kubelet)
		}
		return
	}
	pod := podOf(t, tr)
	for _, container := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		_, done := want[container.Name]
		if done || shipperOf(pod).Name == container.Name || reasonOf(c, container.Name) != "" {
			continue
		}
		if len(container.Command) == 0 || container.Command[0] != "/shiplog/bin/tee" {
			t.Errorf("%s is not captured: command %q", container.Name, container.Command)
			continue
		}
		// The kubelet's copy of a short log is whole.
		kubelet, err := command(t.Context(), "", nil, env.kubectl, "-n", pod.Namespace, "logs", pod.Name, "-c", container.Name)
		if err != nil {
			t.Error(err)
			continue
		}
		sameLines(t, tr, container.Name, kubelet)
	}
}

// reasonOf is why a case wants a container left alone, or nothing.
func reasonOf(c stepCase, container string) string {
	for _, alone := range c.alone {
		if name, reason, _ := strings.Cut(alone, "="); name == container {
			return reason
		}
	}
	return ""
}

// checkAlone waits for the logs that must be archived, and checks that no more containers are left
// alone than a case wants, and that all sidecars ended as without shiplog.
func checkAlone(t *testing.T, c stepCase, off, on *tekton.TaskRun) {
	t.Helper()
	podEnded(t, off)
	pod := podOf(t, on)
	alone := pod.Annotations[contract.SkippedAnnotation]
	if alone != strings.Join(c.alone, ",") {
		t.Errorf("left alone are %q, want %q", alone, c.alone)
	}
	without := sidecarEnds(podOf(t, off))
	for name, code := range sidecarEnds(pod) {
		if want, known := without[name]; known && code != want {
			t.Errorf("%s ended with %d, and with %d without shiplog", name, code, want)
		}
	}
	for _, container := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		reason := reasonOf(c, container.Name)
		switch {
		case container.Name == shipperOf(pod).Name:
		case reason == "":
			sealed(t, on.Namespace, on.Name, "--container", container.Name)
		default:
			if container.Command[0] == contract.TeePath {
				t.Errorf("%s is captured", container.Name)
			}
			said, _ := exitCodeOf(t, "logs", "-n", on.Namespace, "--container", container.Name, on.Name)
			if !strings.Contains(said, "not captured") || !strings.Contains(said, reason) {
				t.Errorf("of %s the archive says %q, want that it is not captured: %s",
					container.Name, said, reason)
			}
		}
	}
}

// sidecarEnds are the exit codes with which a pod's sidecars ended before Tekton swapped their
// images. The kubelet forgets one now and then.
func sidecarEnds(pod *corev1.Pod) map[string]int32 {
	ends := map[string]int32{}
	for _, s := range pod.Status.ContainerStatuses {
		if end := s.LastTerminationState.Terminated; end != nil {
			ends[s.Name] = end.ExitCode
		}
	}
	return ends
}

// resultNamed reads what a step has said that it printed.
func resultNamed(t *testing.T, tr *tekton.TaskRun, name string) printed {
	t.Helper()
	for _, r := range tr.Status.Results {
		if r.Name == name {
			var p printed
			if _, err := fmt.Sscanf(r.Value.StringVal, "%d %s", &p.bytes, &p.sum); err != nil {
				t.Fatalf("result %s %q: %v", name, r.Value.StringVal, err)
			}
			return p
		}
	}
	t.Fatalf("the TaskRun has no result %s", name)
	return printed{}
}

// sameLines compares one container's archive with the kubelet's copy. The mutual order of stdout and stderr differs within that.
func sameLines(t *testing.T, tr *tekton.TaskRun, container, kubelet string) {
	t.Helper()
	got, err := archivedText(t.Context(), tr.Namespace, tr.Name, container)
	if err != nil {
		t.Error(err)
		return
	}
	a, b := sortedLines(got), sortedLines(kubelet)
	slices.Sort(a)
	slices.Sort(b)
	if diff := cmp.Diff(b, a); diff != "" {
		t.Errorf("%s: the archive is not what the kubelet has (-kubelet +archive):\n%s", container, diff)
	}
}

// waitForStep waits until the TaskRun's first step runs and has printed.
func waitForStep(t *testing.T, tr *tekton.TaskRun) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	live := &tekton.TaskRun{}
	err := poll(t.Context(), "a step of "+tr.Name+" to print", func(ctx context.Context) (bool, error) {
		if err := env.client.Get(ctx, client.ObjectKeyFromObject(tr), live); err != nil || live.Status.PodName == "" {
			return false, err
		}
		if err := env.client.Get(ctx, client.ObjectKey{Namespace: tr.Namespace, Name: live.Status.PodName}, pod); err != nil {
			return false, client.IgnoreNotFound(err)
		}
		var out bytes.Buffer
		err := stream(ctx, "", nil, &out, io.Discard, env.kubectl, "-n", tr.Namespace, "logs", pod.Name, "-c", pod.Spec.Containers[0].Name)
		return err == nil && out.Len() > 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}
