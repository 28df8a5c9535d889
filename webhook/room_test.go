package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/placescripts"
)

// scriptedPod is what Tekton makes of a Task of one script with a result, and its place-scripts.
func scriptedPod(t *testing.T) (*corev1.Pod, *corev1.Container) {
	t.Helper()
	built := taskRunPod{name: "scripted", spec: v1.TaskSpec{
		Results: []v1.TaskResult{{Name: "digest"}},
		Steps:   []v1.Step{step("s", script("echo $(HOME) $$(NOT)"))},
	}}
	pod := decodeTestPod(t, built.build(t))
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == placescripts.Container
	})
	return pod, &pod.Spec.InitContainers[i]
}

func encoded(t *testing.T, pod *corev1.Pod) []byte {
	t.Helper()
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestMessageBytes(t *testing.T) {
	for containers, want := range map[int]int{0: 4096, 1: 4096, 2: 4096, 3: 4096, 4: 3072, 5: 2457, 20: 614} {
		if got := messageBytes(containers); got != want {
			t.Errorf("%d containers: %d bytes, want %d", containers, got, want)
		}
	}
}

// TestReplacePlaceScripts: the shipper takes the place of place-scripts where that does nothing but
// what the shipper knows; a pod whose results would be cut shorter otherwise is left alone.
func TestReplacePlaceScripts(t *testing.T) {
	scriptOf := func(bytes int) string {
		return fmt.Sprintf("scriptfile=\"/tekton/scripts/script-0-a\"\n"+
			"touch ${scriptfile} && chmod +x ${scriptfile}\ncat > ${scriptfile} << '_EOF_'\n%s\n_EOF_\n"+
			"/tekton/bin/entrypoint decode-script \"${scriptfile}\"\n",
			base64.StdEncoding.EncodeToString(bytesOf(bytes)))
	}
	for name, c := range map[string]struct {
		change   func(*corev1.Container)
		replaced bool
	}{
		"as Tekton makes it": {func(*corev1.Container) {}, true},
		"with a security context": {func(c *corev1.Container) {
			c.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr.To[int64](0)}
		}, true},
		"with the token that admission adds": {func(c *corev1.Container) {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "kube-api-access", MountPath: "/var/run/x"})
		}, true},
		"as large as its own arguments may be": {func(c *corev1.Container) { c.Args[1] = scriptOf(75_000) }, true},
		"too large for a variable":             {func(c *corev1.Container) { c.Args[1] = scriptOf(95_000) }, false},
		"more in its text":                     {func(c *corev1.Container) { c.Args[1] += "echo\n" }, false},
		"another shell":                        {func(c *corev1.Container) { c.Command = []string{"pwsh"} }, false},
		"wrapped by another webhook": {func(c *corev1.Container) {
			c.Command, c.Args = []string{"/wrap"}, append([]string{"sh"}, c.Args...)
		}, false},
		"more arguments":        {func(c *corev1.Container) { c.Args = append(c.Args, "x") }, false},
		"another option":        {func(c *corev1.Container) { c.Args[0] = "-ec" }, false},
		"a native sidecar":      {func(c *corev1.Container) { c.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways) }, false},
		"no folder for scripts": {func(c *corev1.Container) { c.VolumeMounts = nil }, false},
		"a folder that is read-only": {func(c *corev1.Container) {
			for i := range c.VolumeMounts {
				c.VolumeMounts[i].ReadOnly = true
			}
		}, false},
		"a part of a volume": {func(c *corev1.Container) {
			for i := range c.VolumeMounts {
				c.VolumeMounts[i].SubPath = "a"
			}
		}, false},
		"a variable that the kubelet expands": {func(c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", Value: "$(B)"}}
		}, false},
		"a dollar that the kubelet halves": {func(c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", Value: "$$"}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			pod, container := scriptedPod(t)
			c.change(container)
			raw := encoded(t, pod)
			before := len(pod.Spec.InitContainers) + len(pod.Spec.Containers)
			d, patch, err := inject(raw, testSettings(), onSupported)
			if err != nil {
				t.Fatal(err)
			}
			if !c.replaced {
				if d.action != actionSkip || d.reason != resultsAtRisk {
					t.Errorf("%s %q, want the pod to be left alone for its results", d.action, d.reason)
				}
				return
			}
			out := apply(t, raw, patch)
			checkOutcome(t, testSettings(), raw, out, d)
			after := decodeTestPod(t, out)
			if got := len(after.Spec.InitContainers) + len(after.Spec.Containers); got != before {
				t.Errorf("%d containers, %d before", got, before)
			}
			shipper := after.Spec.InitContainers[0]
			i := slices.IndexFunc(shipper.Env, func(e corev1.EnvVar) bool { return e.Name == contract.PlaceScriptsEnv })
			if i < 0 || len(contract.PlaceScriptsEnv)+1+len(shipper.Env[i].Value) > contract.MaxEnv {
				t.Fatalf("variable %d of %d", i, len(shipper.Env))
			}
			text, err := contract.PlacedScripts(shipper.Env[i].Value)
			if err != nil || text != container.Args[1] {
				t.Errorf("the shipper places %q, %v, want %q", text, err, container.Args[1])
			}
			undoReplaced(t, raw, out)
		})
	}
}

// bytesOf is a script of so many bytes.
func bytesOf(n int) []byte { return bytes.Repeat([]byte("x"), n) }

// undoReplaced: where another webhook drops our restartPolicy, place-scripts is what it was.
func undoReplaced(t *testing.T, raw, injected []byte) {
	t.Helper()
	dropped := bytes.Replace(injected, []byte(`"restartPolicy":"Always",`), nil, 1)
	d, patch, err := inject(dropped, testSettings(), onSupported)
	if err != nil || d.action != actionUndo {
		t.Fatalf("%s, %v, want undone", d.action, err)
	}
	want, got := decodeMap(t, raw), decodeMap(t, apply(t, dropped, patch))
	inits := func(m map[string]any) any { return child(m, "spec")["initContainers"] }
	// Of a container that was captured the command line is in one list now.
	for _, m := range []map[string]any{want, got} {
		for _, v := range inits(m).([]any) {
			c := v.(map[string]any)
			command, _ := c["command"].([]any)
			args, _ := c["args"].([]any)
			c["command"], c["args"] = append(slices.Clone(command), args...), nil
		}
	}
	if diff := cmp.Diff(inits(want), inits(got)); diff != "" {
		t.Errorf("undone, the init containers are (-before +after):\n%s", diff)
	}
}

// Without prepare nobody knows where place-scripts was.
func TestUndoWithoutPrepare(t *testing.T) {
	pod, _ := scriptedPod(t)
	raw := encoded(t, pod)
	_, patch, err := inject(raw, testSettings(), onSupported)
	if err != nil {
		t.Fatal(err)
	}
	injected := bytes.ReplaceAll(apply(t, raw, patch), []byte(`"name":"prepare"`), []byte(`"name":"other"`))
	dropped := bytes.Replace(injected, []byte(`"restartPolicy":"Always",`), nil, 1)
	if d, _, err := inject(dropped, testSettings(), onSupported); err != nil || d.action != actionRepair {
		t.Errorf("%s, %v, want it to be repaired", d.action, err)
	}
}

func TestResultsAtRisk(t *testing.T) {
	args := func(more ...string) []string {
		return append(append([]string{"-post_file", "/tekton/run/0/out"}, more...), "-entrypoint", "sh", "--", "x")
	}
	pod := func(inits, steps int, args []string) *corev1.Pod {
		p := taskRunTestPod()
		p.Spec.Containers[0].Command, p.Spec.Containers[0].Args = []string{"/tekton/bin/entrypoint"}, args
		for i := range inits {
			p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: fmt.Sprintf("init-%d", i), Command: []string{"c"}})
		}
		for i := range steps - 1 {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprintf("step-%d", i), Command: []string{"c"}})
		}
		return p
	}
	results := args("-results", "digest,url")
	for name, c := range map[string]struct {
		pod    *corev1.Pod
		atRisk bool
	}{
		"two containers":                         {pod(1, 1, results), false},
		"three":                                  {pod(1, 2, results), true},
		"three, two of them init containers":     {pod(2, 1, results), true},
		"twenty":                                 {pod(2, 18, results), true},
		"no results":                             {pod(2, 1, args()), false},
		"results of the step":                    {pod(2, 1, args("-step_results", "digest")), true},
		"two dashes":                             {pod(2, 1, args("--results", "digest")), true},
		"results that other steps have":          {pod(2, 1, args("-results", "")), false},
		"the step's own argument":                {pod(2, 1, append(args(), "-results", "x")), false},
		"at the end":                             {pod(2, 1, []string{"-results"}), false},
		"from a sidecar's log":                   {pod(2, 1, args("-result_from", "sidecar-logs", "-results", "digest")), false},
		"from a sidecar's log, said behind them": {pod(2, 1, args("-results", "digest", "-result_from", "sidecar-logs")), false},
		"from the message, and said":             {pod(2, 1, args("-result_from", "termination-message", "-results", "digest")), true},
	} {
		t.Run(name, func(t *testing.T) {
			s := testSettings()
			d := decide(c.pod, s, sidecarsSupported)
			if got := d.action == actionSkip && d.reason == resultsAtRisk; got != c.atRisk {
				t.Errorf("%s %q, want at risk: %t", d.action, d.reason, c.atRisk)
			}
			s.resultsAtRisk = true
			if d := decide(c.pod, s, sidecarsSupported); d.action != actionInject {
				t.Errorf("%s %q where the operator takes the risk", d.action, d.reason)
			}
		})
	}
	t.Run("another container's arguments", func(t *testing.T) {
		p := pod(2, 1, results)
		p.Spec.Containers[0].Name = "sidecar-s"
		if d := decide(p, testSettings(), sidecarsSupported); d.action != actionInject {
			t.Errorf("%s %q", d.action, d.reason)
		}
	})
	if text := resultsAtRisk.explanation(); !strings.Contains(text, "results") {
		t.Errorf("explained as %q", text)
	}
}

// sizesAreForeseen: a pod that the API server takes for its size it takes with shiplog, too.
func sizesAreForeseen(t *testing.T, api realAPI) {
	api.namespace(t, "sizes")
	injected, alone := 0, 0
	try := func(t *testing.T, pod *corev1.Pod, want map[action]bool) bool {
		t.Helper()
		raw := encoded(t, pod)
		d, patch, err := inject(raw, testSettings(), onSupported)
		if err != nil {
			t.Fatal(err)
		}
		if !want[d.action] {
			t.Errorf("%s %q", d.action, d.reason)
		}
		// Not as dry runs, which etcd does not see.
		bare := pod.DeepCopy()
		bare.Name += "-bare"
		if _, err := api.create(t.Context(), "sizes", bare, false); err != nil {
			return false
		}
		if d.action == actionInject {
			injected++
		} else {
			alone++
		}
		if _, err := api.create(t.Context(), "sizes", decodeTestPod(t, apply(t, raw, patch)), false); err != nil {
			t.Errorf("%s %q: the API server takes the pod alone, and refuses it with shiplog: %.200v", d.action, d.reason, err)
		}
		return true
	}
	either := map[action]bool{actionInject: true, actionSkip: true}

	t.Run("annotations", func(t *testing.T) {
		// One container is left alone, so that the pod gets an annotation that says so.
		for _, room := range []int{400, 60, 50, 45, 40, 30, 20, 10, 1, 0} {
			pod, _ := scriptedPod(t)
			pod.Name = fmt.Sprintf("annotations-%d", room)
			pod.Spec.Containers[0].TTY = true
			size := 0
			for key, value := range pod.Annotations {
				size += len(key) + len(value)
			}
			pod.Annotations["a"] = strings.Repeat("x", annotationBytes-size-len("a")-room)
			if !try(t, pod, either) {
				t.Errorf("%d bytes of room: the API server refuses the pod alone", room)
			}
		}
	})
	t.Run("object", func(t *testing.T) {
		taken := 0
		for size := 1_000_000; size <= 1_650_000; size += 50_000 {
			pod, _ := scriptedPod(t)
			pod.Name = fmt.Sprintf("object-%d", size)
			for i := range 10 {
				pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env,
					corev1.EnvVar{Name: fmt.Sprintf("X%d", i), Value: strings.Repeat("x", size/10)})
			}
			want := either
			if size <= 1_300_000 {
				want = map[action]bool{actionInject: true}
			}
			if try(t, pod, want) {
				taken = size
			}
		}
		if taken < 1_400_000 || taken >= 1_650_000 {
			t.Errorf("the largest that the API server took is %d: the limit is elsewhere", taken)
		}
	})
	if injected == 0 || alone == 0 {
		t.Errorf("%d injected, %d left alone: want both", injected, alone)
	}
}
