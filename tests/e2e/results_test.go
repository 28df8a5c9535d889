//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	tektonresult "github.com/tektoncd/pipeline/pkg/result"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// kept is what the kubelet keeps of each termination message in a pod of so many containers: 4 KiB
// at most, and 12 KiB for all. Source: normalizeStatus in its pkg/kubelet/status/status_manager.go.
func kept(containers int) int { return min(4096, 12288/containers) }

// valueOf is a shell command that prints a result's value which makes a step's termination message
// exactly so long.
func valueOf(t *testing.T, message int, name string, kind tektonresult.ResultType) string {
	t.Helper()
	rest, err := json.Marshal([]tektonresult.RunResult{
		{Key: name, Value: "", ResultType: kind},
		{Key: "StartedAt", Value: "2006-01-02T15:04:05.000Z", ResultType: tektonresult.InternalTektonResultType},
	})
	if err != nil {
		t.Fatal(err)
	}
	return random(message - len(rest))
}

// random is a shell command that prints so many characters that do not compress, and always the same.
func random(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return fmt.Sprintf(`awk 'BEGIN { srand(%d); for (i = 0; i < %[1]d; i++) printf "%%s", substr("%s", int(rand() * 64) + 1, 1) }'`, n, letters)
}

// TestResults runs Tasks with results around each size at which the kubelet cuts a message, with
// shiplog and without: what becomes of the TaskRun is the same.
func TestResults(t *testing.T) {
	type resultCase struct {
		name string
		spec string // TaskRunSpec as YAML
		// alone: with one more container results would be cut, and the pod is left alone.
		alone bool
	}
	script := func(name, text string) string {
		return fmt.Sprintf("    - {name: %s, image: busybox, script: %q}\n", name, text)
	}
	var cases []resultCase
	for _, size := range []int{kept(4), kept(4) + 1, kept(3), kept(3) + 1} {
		cases = append(cases, resultCase{
			name: fmt.Sprintf("one-script-%d", size),
			spec: "taskSpec:\n  results: [{name: r}]\n  steps:\n" +
				script("s", valueOf(t, size, "r", tektonresult.TaskRunResultType)+" > $(results.r.path)"),
		})
	}
	for _, n := range []int{4, 5, 7, 12, 20} {
		var spec strings.Builder
		spec.WriteString("taskSpec:\n  steps:\n")
		for i := range n - 2 { // prepare and place-scripts are the others
			size := []int{kept(n), kept(n+1) + 1, kept(n) - 1, kept(n + 1)}[i%4]
			fmt.Fprintf(&spec, "    - {name: s%d, image: busybox, results: [{name: r}], script: %q}\n", i,
				valueOf(t, size, "r", tektonresult.StepResultType)+" > $(step.results.r.path)")
		}
		cases = append(cases, resultCase{name: fmt.Sprintf("steps-in-%d-containers", n), spec: spec.String()})
	}
	command := func(name, text string) string {
		return fmt.Sprintf("    - {name: %s, image: busybox, command: [sh, -c, %q]}\n", name, text)
	}
	const withResult = "taskSpec:\n  results: [{name: r}]\n  steps:\n"
	cases = append(cases,
		resultCase{name: "sidecar-with-a-message", spec: withResult +
			script("s", random(2000)+" > $(results.r.path); sleep 3") + "  sidecars:\n" +
			script("c", `head -c 3000 /dev/zero | tr '\0' y > /dev/termination-log`)},
		resultCase{name: "killed-with-results", spec: withResult +
			script("s", random(3500)+" > $(results.r.path); kill -9 $$")},
		resultCase{name: "goes-on-with-results", spec: withResult +
			strings.Replace(script("s", random(2500)+" > $(results.r.path); exit 3"), "name: s,", "name: s, onError: continue,", 1) +
			script("after", "echo after")},
		resultCase{name: "working-dir", spec: withResult +
			strings.Replace(script("s", random(2800)+" > $(results.r.path)"), "name: s,", "name: s, workingDir: /workspace/a,", 1)},
		resultCase{name: "commands-alone", alone: true, spec: withResult +
			command("a", random(3700)+" > $(results.r.path)") + command("b", "echo b")},
		resultCase{name: "one-command", spec: withResult + command("a", random(3700)+" > $(results.r.path)")},
	)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			spec := taskSpec(t, c.spec)
			on := newTaskRun(t, nsOn, "result-"+c.name, spec, nil)
			off := newTaskRun(t, nsOff, "result-"+c.name, spec, nil)
			on, off = finish(t, on), finish(t, off)
			if diff := cmp.Diff(outcome(off), outcome(on)); diff != "" {
				t.Errorf("with shiplog it became something else (-without +with):\n%s", diff)
			}
			if diff := cmp.Diff(sidecarMessages(off), sidecarMessages(on)); diff != "" {
				t.Errorf("sidecars' messages with shiplog (-without +with):\n%s", diff)
			}
			pod, bare := podOf(t, on), podOf(t, off)
			if c.alone {
				if shipperOf(pod) != nil || pod.Annotations[contract.SkippedAnnotation] != "pod=results-at-risk" {
					t.Errorf("it was not left alone: %q", pod.Annotations[contract.SkippedAnnotation])
				}
				return
			}
			if shipperOf(pod) == nil {
				t.Fatalf("nothing was injected: %q", pod.Annotations[contract.SkippedAnnotation])
			}
			count := func(inits, containers int) int { return kept(inits + containers) }
			if count(len(pod.Spec.InitContainers), len(pod.Spec.Containers)) != count(len(bare.Spec.InitContainers), len(bare.Spec.Containers)) {
				t.Errorf("the kubelet keeps less of each message: %d and %d containers, %d and %d without",
					len(pod.Spec.InitContainers), len(pod.Spec.Containers), len(bare.Spec.InitContainers), len(bare.Spec.Containers))
			}
			sealed(t, nsOn, on.Name)
		})
	}
}

// sidecarMessages are the termination messages of a TaskRun's sidecars.
func sidecarMessages(tr *tekton.TaskRun) []string {
	var messages []string
	for _, s := range tr.Status.Sidecars {
		if s.Terminated != nil {
			messages = append(messages, s.Name+": "+s.Terminated.Message)
		}
	}
	return messages
}
