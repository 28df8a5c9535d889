//go:build e2e

package e2e

import (
	_ "embed"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

//go:embed probe.sh
var probe string

// visible are the things of which a step, or who looks at its pod, sees something else with shiplog.
// docs/transparency.md has a row with the reason for each. A new difference has to be mended, or
// written down in both places.
var visible = []string{
	"pid", "parent", "process-1", "processes", "mounts", "root", "scripts", "oom-score-adj",
	"pod: qos-class", "pod: grace-period", "pod: init-containers", "pod: volumes",
	"kubectl get pod",
}

// TestTransparency runs a step that prints what it sees, in a namespace with shiplog and in one
// without. All is the same, but for what is written down.
func TestTransparency(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		place place
		more  string // of the step
	}{
		{"as-root", open, ""},
		{"restricted", restricted, secure(1000)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			on, off := probeIn(t, c.place.on, c.more), probeIn(t, c.place.off, c.more)
			if len(on) < 40 || len(on) != len(off) {
				t.Fatalf("%d things seen with shiplog, %d without", len(on), len(off))
			}
			for name, with := range on {
				without, ok := off[name]
				switch differs := !ok || with != without; {
				case differs && !slices.Contains(visible, name):
					t.Errorf("%s differs, and is not written down:\nwith    %s\nwithout %s", name, with, without)
				case differs:
					t.Logf("%s:\nwith    %s\nwithout %s", name, with, without)
				}
			}
			if c.place == open { // what is written down is still so
				for _, name := range visible {
					if on[name] == off[name] {
						t.Errorf("%s is the same: take it off the list and out of docs/transparency.md (%q)", name, on[name])
					}
				}
			}
		})
	}
}

// TestTransparencyDocument: each thing that differs has its row in the document.
func TestTransparencyDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/transparency.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range visible {
		if !strings.Contains(string(text), "\n| "+name+" |") {
			t.Errorf("docs/transparency.md has no row %q", name)
		}
	}
}

// probeIn returns what is seen in a namespace, by the name of the thing.
func probeIn(t *testing.T, namespace, more string) map[string]string {
	t.Helper()
	if more != "" {
		more += ", "
	}
	step := fmt.Sprintf("    - {name: probe, image: busybox, %s"+
		"env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], script: %q}\n", more, probe)
	spec := taskSpec(t, "taskSpec:\n  steps:\n"+step)
	tr := finish(t, newTaskRun(t, namespace, "probe-"+strconv.Itoa(len(more)), spec, nil))
	if !tr.IsSuccessful() {
		t.Fatalf("the probe failed: %+v", tr.Status.Conditions)
	}
	pod := podOf(t, tr)
	log, err := command(t.Context(), "", nil, env.kubectl, "-n", namespace, "logs", pod.Name, "-c", "step-probe")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{"kubectl logs": fmt.Sprint(len(strings.Split(log, "\n")), " lines")}
	for line := range strings.Lines(log) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || seen[name] != "" {
			t.Errorf("the probe printed %q", line)
		}
		seen[name] = strings.TrimSpace(value)
	}
	names := func(containers []corev1.Container) (all []string) {
		for _, c := range containers {
			all = append(all, c.Name)
		}
		return all
	}
	var volumes []string
	for _, v := range pod.Spec.Volumes {
		if !strings.HasPrefix(v.Name, "kube-api-access-") {
			volumes = append(volumes, v.Name)
		}
	}
	seen["pod: qos-class"] = string(pod.Status.QOSClass)
	seen["pod: grace-period"] = fmt.Sprint(*pod.Spec.TerminationGracePeriodSeconds)
	seen["pod: init-containers"] = fmt.Sprint(names(pod.Spec.InitContainers))
	seen["pod: containers"] = fmt.Sprint(names(pod.Spec.Containers))
	seen["pod: volumes"] = fmt.Sprint(volumes)
	seen["pod: count of containers"] = fmt.Sprint(len(pod.Spec.InitContainers) + len(pod.Spec.Containers))
	seen["pod: security-context"] = fmt.Sprintf("%+v", pod.Spec.SecurityContext)
	seen["pod: restart-policy"] = string(pod.Spec.RestartPolicy)
	seen["TaskRun"] = fmt.Sprintf("%+v", outcome(tr))
	table, err := command(t.Context(), "", nil, env.kubectl, "-n", namespace, "get", "pod", pod.Name, "--no-headers")
	if err != nil {
		t.Fatal(err)
	}
	if columns := strings.Fields(table); len(columns) > 2 {
		seen["kubectl get pod"] = columns[1] + " " + columns[2] // READY and STATUS
	}
	return seen
}
