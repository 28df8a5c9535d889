package main

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// taskRunTestPod is the smallest pod that is injected.
func taskRunTestPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Labels:          map[string]string{"tekton.dev/taskRun": "r"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "tekton.dev/v1", Kind: "TaskRun", Name: "r", UID: "u", Controller: ptr.To(true)}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "step-a", Image: "i", Command: []string{"c"}}}},
	}
}

func TestDecidePod(t *testing.T) {
	container := func(p *corev1.Pod) *corev1.Container { return &p.Spec.Containers[0] }
	for name, tc := range map[string]struct {
		sidecars nativeSidecars
		change   func(*corev1.Pod)
		want     action
		reason   reason
	}{
		"plain": {sidecarsSupported, func(*corev1.Pod) {}, actionInject, ""},
		"opted out": {sidecarsSupported, func(p *corev1.Pod) {
			p.Annotations = map[string]string{"shiplog.dev/inject": "false"}
		}, actionSkip, optedOut},
		"annotation with another value": {sidecarsSupported, func(p *corev1.Pod) {
			p.Annotations = map[string]string{"shiplog.dev/inject": "true"}
		}, actionInject, ""},
		"no label":               {sidecarsSupported, func(p *corev1.Pod) { p.Labels = nil }, actionSkip, notTekton},
		"no owner":               {sidecarsSupported, func(p *corev1.Pod) { p.OwnerReferences = nil }, actionSkip, notTekton},
		"owner not controller":   {sidecarsSupported, func(p *corev1.Pod) { p.OwnerReferences[0].Controller = nil }, actionSkip, notTekton},
		"owner of another kind":  {sidecarsSupported, func(p *corev1.Pod) { p.OwnerReferences[0].Kind = "Job" }, actionSkip, notTekton},
		"owner of another group": {sidecarsSupported, func(p *corev1.Pod) { p.OwnerReferences[0].APIVersion = "tekton.dev.example/v1" }, actionSkip, notTekton},
		"owner v1beta1":          {sidecarsSupported, func(p *corev1.Pod) { p.OwnerReferences[0].APIVersion = "tekton.dev/v1beta1" }, actionInject, ""},
		"old Kubernetes":         {sidecarsUnsupported, func(*corev1.Pod) {}, actionSkip, kubernetesTooOld},
		"unknown Kubernetes":     {sidecarsUnknown, func(*corev1.Pod) {}, actionSkip, kubernetesUnknown},
		"opted out comes first": {sidecarsUnknown, func(p *corev1.Pod) {
			p.Annotations = map[string]string{"shiplog.dev/inject": "false"}
		}, actionSkip, optedOut},
		"Windows by OS": {sidecarsSupported, func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, actionSkip, windows},
		"Linux by OS":   {sidecarsSupported, func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Linux} }, actionInject, ""},
		"Windows by node selector": {sidecarsSupported, func(p *corev1.Pod) {
			p.Spec.NodeSelector = map[string]string{"kubernetes.io/os": "windows"}
		}, actionSkip, windows},
		"Windows by affinity": {sidecarsSupported, func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "kubernetes.io/os", Operator: "In", Values: []string{"windows"}}}}}}}}
		}, actionSkip, windows},
		"not Windows by affinity": {sidecarsSupported, func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "kubernetes.io/os", Operator: "NotIn", Values: []string{"windows"}}}}}}}}
		}, actionInject, ""},
		"shared process namespace":   {sidecarsSupported, func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = ptr.To(true) }, actionSkip, sharedProcesses},
		"unshared process namespace": {sidecarsSupported, func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = ptr.To(false) }, actionInject, ""},
		"host's processes":           {sidecarsSupported, func(p *corev1.Pod) { p.Spec.HostPID = true }, actionSkip, hostProcesses},
		"container by our name":      {sidecarsSupported, func(p *corev1.Pod) { container(p).Name = contract.ShipperContainer }, actionSkip, nameCollision},
		"init container by our name": {sidecarsSupported, func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: contract.ShipperContainer}}
		}, actionSkip, nameCollision},
		"volume by our name": {sidecarsSupported, func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: contract.SpoolVolume}}
		}, actionSkip, nameCollision},
		// Tekton does not check that a step's mounts have volumes, so a Task could ask for ours before they exist.
		"mount of our token": {sidecarsSupported, func(p *corev1.Pod) {
			container(p).VolumeMounts = []corev1.VolumeMount{{Name: contract.TokenVolume, MountPath: "/steal"}}
		}, actionSkip, nameCollision},
		"mount of our spool": {sidecarsSupported, func(p *corev1.Pod) {
			container(p).VolumeMounts = []corev1.VolumeMount{{Name: contract.SpoolVolume, MountPath: "/steal"}}
		}, actionSkip, nameCollision},
		"device of our spool": {sidecarsSupported, func(p *corev1.Pod) {
			container(p).VolumeDevices = []corev1.VolumeDevice{{Name: contract.SpoolVolume, DevicePath: "/dev/x"}}
		}, actionSkip, nameCollision},
		"nothing to capture":     {sidecarsSupported, func(p *corev1.Pod) { container(p).Command = nil }, actionSkip, nothingToCapture},
		"restart policy of pod":  {sidecarsSupported, func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure }, actionInject, ""},
		"host's network and IPC": {sidecarsSupported, func(p *corev1.Pod) { p.Spec.HostNetwork, p.Spec.HostIPC = true, true }, actionInject, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod := taskRunTestPod()
			tc.change(pod)
			if d := decide(pod, testSettings(), tc.sidecars); d.action != tc.want || d.reason != tc.reason {
				t.Errorf("%s %q, want %s %q", d.action, d.reason, tc.want, tc.reason)
			}
		})
	}
}

// TestDecidePlace: our container goes behind the native sidecars of others that begin before
// Tekton's containers, and what begins before it is not captured.
func TestDecidePlace(t *testing.T) {
	plain := func(name string) corev1.Container { return corev1.Container{Name: name, Command: []string{"c"}} }
	native := func(name string) corev1.Container {
		c := plain(name)
		c.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
		return c
	}
	for name, tc := range map[string]struct {
		inits   []corev1.Container
		at      int
		earlier []string
	}{
		"no init containers":            {nil, 0, nil},
		"Tekton's alone":                {[]corev1.Container{plain("prepare"), plain("place-scripts")}, 0, nil},
		"another init container":        {[]corev1.Container{plain("vault-agent-init"), plain("prepare")}, 0, nil},
		"a mesh":                        {[]corev1.Container{plain("istio-init"), native("istio-proxy"), plain("prepare")}, 2, []string{"istio-init", "istio-proxy"}},
		"two sidecars of others":        {[]corev1.Container{native("a"), plain("b"), native("c"), plain("d"), plain("prepare")}, 3, []string{"a", "b", "c"}},
		"one behind Tekton's":           {[]corev1.Container{plain("prepare"), native("istio-proxy")}, 0, nil},
		"Tekton's own sidecar":          {[]corev1.Container{plain("prepare"), native("sidecar-db")}, 0, nil},
		"one where there is no prepare": {[]corev1.Container{native("istio-proxy"), plain("other")}, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			pod := taskRunTestPod()
			pod.Spec.InitContainers = tc.inits
			raw := encoded(t, pod)
			d, patch, err := inject(raw, testSettings(), onSupported)
			if err != nil || d.action != actionInject {
				t.Fatalf("%s %q, %v", d.action, d.reason, err)
			}
			after := decodeTestPod(t, apply(t, raw, patch))
			if at := injectedShipper(after); at != tc.at {
				t.Errorf("it is at %d, want %d", at, tc.at)
			}
			var earlier []string
			for _, s := range d.skipped {
				if s.Reason != string(startsEarlier) {
					t.Errorf("%s is left alone: %s", s.Container, s.Reason)
				}
				earlier = append(earlier, s.Container)
			}
			if !slices.Equal(earlier, tc.earlier) {
				t.Errorf("%v begin before it, want %v", earlier, tc.earlier)
			}
		})
	}
}

func TestDecideExclude(t *testing.T) {
	for name, tc := range map[string]struct {
		value    string
		excluded []string
	}{
		"one":                   {"step-a", []string{"step-a"}},
		"two, with a space":     {" step-a , sidecar-c,", []string{"step-a", "sidecar-c"}},
		"one that is not there": {"step-x", nil},
		"the step's own name":   {"a", nil},
		"empty":                 {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			pod := taskRunTestPod()
			pod.Annotations = map[string]string{contract.ExcludeAnnotation: tc.value}
			for _, name := range []string{"step-b", "sidecar-c"} {
				pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: name, Command: []string{"c"}})
			}
			d := decide(pod, testSettings(), sidecarsSupported)
			var got []string
			for _, s := range d.skipped {
				if s.Reason == string(optedOut) {
					got = append(got, s.Container)
				}
			}
			if !slices.Equal(got, tc.excluded) || len(d.captured)+len(got) != 3 {
				t.Errorf("excluded are %v, captured %d", got, len(d.captured))
			}
		})
	}
}

func TestDecideContainer(t *testing.T) {
	mount := func(at string) func(*corev1.Container) {
		return func(c *corev1.Container) { c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: at}} }
	}
	memory := func(limit string) func(*corev1.Container) {
		return func(c *corev1.Container) { c.Resources.Limits = quantities("1", limit) }
	}
	for name, tc := range map[string]struct {
		change func(*corev1.Container)
		want   reason
	}{
		"plain":                   {func(*corev1.Container) {}, ""},
		"arguments alone":         {func(c *corev1.Container) { c.Command, c.Args = nil, []string{"x"} }, noCommand},
		"empty command":           {func(c *corev1.Container) { c.Command = []string{} }, noCommand},
		"terminal":                {func(c *corev1.Container) { c.TTY = true }, hasTTY},
		"standard input":          {func(c *corev1.Container) { c.Stdin = true }, hasStdin},
		"memory below":            {memory("33554431"), memoryLimit},
		"memory at the threshold": {memory("32Mi"), ""},
		"memory above":            {memory("1Gi"), ""},
		"memory not limited":      {func(c *corev1.Container) { c.Resources.Requests = quantities("1", "1Mi") }, ""},
		"mount of the spool":      {mount("/shiplog/spool"), mountConflict},
		"mount of tee":            {mount("/shiplog/bin/"), mountConflict},
		"mount above":             {mount("/shiplog"), mountConflict},
		"mount below":             {mount("/shiplog/bin/x"), mountConflict},
		"mount beside":            {mount("/shiplog/x"), mountConflict},
		"mount unclean":           {mount("/a/../shiplog//bin"), mountConflict},
		"mount relative":          {mount("shiplog/bin"), mountConflict},
		"mount of the root":       {mount("/"), mountConflict},
		"mount of a like name":    {mount("/shiplogs"), ""},
		"device": {func(c *corev1.Container) {
			c.VolumeDevices = []corev1.VolumeDevice{{Name: "v", DevicePath: "/shiplog/bin"}}
		}, mountConflict},
	} {
		t.Run(name, func(t *testing.T) {
			c := taskRunTestPod().Spec.Containers[0]
			tc.change(&c)
			if got := leaveAlone(&c, nil, testSettings()); got != tc.want {
				t.Errorf("reason %q, want %q", got, tc.want)
			}
		})
	}
}

func TestGracePeriods(t *testing.T) {
	const most = int64(math.MaxInt64 / time.Second)
	for name, tc := range map[string]struct {
		pod    *int64
		raised int64
		tee    time.Duration
	}{
		"unset":        {nil, 60, 30 * time.Second},
		"set":          {ptr.To[int64](120), 150, 2 * time.Minute},
		"zero":         {ptr.To[int64](0), 30, 0},
		"negative":     {ptr.To[int64](-5), 31, time.Second},
		"near the end": {ptr.To(most - 10), most, time.Duration(most-10) * time.Second},
		"largest":      {ptr.To[int64](math.MaxInt64), most, time.Duration(most) * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			raised, tee := gracePeriods(&corev1.PodSpec{TerminationGracePeriodSeconds: tc.pod}, 30*time.Second)
			if raised != tc.raised || tee != tc.tee {
				t.Errorf("%d s and %v, want %d s and %v", raised, tee, tc.raised, tc.tee)
			}
			args := contract.Tee{Spool: "/s", Limit: 1, Grace: tee, Argv: []string{"c"}}.Args()
			if back, err := contract.ParseTee(args); err != nil || back.Grace != tee {
				t.Errorf("tee reads %v, %v", back.Grace, err)
			}
		})
	}
}

// TestGuaranteed holds isGuaranteed against the plain form of Kubernetes' own rule, over combinations of requests and limits.
func TestGuaranteed(t *testing.T) {
	lists := []corev1.ResourceList{nil, quantities("1", "1Gi"), quantities("1000m", "1024Mi"), quantities("1", "2Gi"), quantities("0", "1Gi"),
		{corev1.ResourceCPU: quantities("1", "1")[corev1.ResourceCPU]}, {corev1.ResourceMemory: quantities("1", "1Gi")[corev1.ResourceMemory]}}
	count := 0
	for i, requests := range lists {
		for j, limits := range lists {
			for _, init := range []bool{false, true} {
				t.Run(fmt.Sprintf("requests %d limits %d init %t", i, j, init), func(t *testing.T) {
					pod := taskRunTestPod()
					pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
					if init {
						pod.Spec.InitContainers = []corev1.Container{{Name: "i", Resources: corev1.ResourceRequirements{Limits: quantities("1", "1Gi")}}}
					}
					want := qosClass(pod) == corev1.PodQOSGuaranteed
					if requests != nil && limits != nil {
						for name, q := range requests {
							if limit, ok := limits[name]; ok && q.Cmp(limit) > 0 {
								return // no such pod can be
							}
						}
					}
					if got := isGuaranteed(&pod.Spec); got != want {
						t.Errorf("guaranteed: %t, want %t", got, want)
					}
					if want {
						count++
					}
				})
			}
		}
	}
	if count == 0 {
		t.Error("no combination was Guaranteed: the test compares nothing")
	}
}

// TestReasons asks that each reason can stand in the annotation and be explained.
func TestReasons(t *testing.T) {
	for _, r := range []reason{kubernetesTooOld, kubernetesUnknown, windows, sharedProcesses, hostProcesses, nameCollision, nothingToCapture, limitRange, resourceQuota, cannotStart, policyDropped} {
		if r.silent() || r.explanation() == string(r) {
			t.Errorf("%s has no explanation", r)
		}
	}
	for _, r := range []reason{kubernetesTooOld, kubernetesUnknown, windows, sharedProcesses, hostProcesses, nameCollision, nothingToCapture, limitRange, resourceQuota, cannotStart, policyDropped, noCommand, hasTTY, hasStdin, memoryLimit, mountConflict, signalsAll, processOne} {
		one := []contract.Skipped{{Container: "step-a", Reason: string(r)}}
		if got := contract.ParseSkipped(contract.FormatSkipped(one)); len(got) != 1 || got[0] != one[0] {
			t.Errorf("%s does not survive the annotation: %v", r, got)
		}
	}
}
