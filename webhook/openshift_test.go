package main

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// scc is what OpenShift holds a pod's containers against, as far as they can differ in it.
type scc struct {
	name                     string
	uidRange                 bool // MustRunAsRange: a UID of the namespace's range, which OpenShift fills in
	seccompProfiles          []corev1.SeccompProfileType
	allowPrivilegeEscalation bool
	allowedCapabilities      []corev1.Capability
	volumes                  []string
}

// sccs are as they are published: restricted-v2 is OpenShift's own for all pods, pipelines-scc is
// what the operator of Tekton gives to the service accounts of TaskRuns.
var sccs = []scc{
	{
		name: "restricted-v2", uidRange: true,
		seccompProfiles:     []corev1.SeccompProfileType{corev1.SeccompProfileTypeRuntimeDefault},
		allowedCapabilities: []corev1.Capability{"NET_BIND_SERVICE"},
		volumes: []string{"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
			"projected", "secret"},
	},
	{
		name: "pipelines-scc", allowPrivilegeEscalation: true,
		volumes: []string{"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"},
	},
}

// refusals says what an SCC does not allow in a pod. What a container leaves out, OpenShift fills in
// with what the SCC allows, and what only restricts it is allowed by each.
func (s scc) refusals(spec *corev1.PodSpec) (all []string) {
	refuse := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if spec.HostNetwork || spec.HostPID || spec.HostIPC {
		refuse("the host's namespaces")
	}
	for _, v := range spec.Volumes {
		if kind := volumeKind(v); !slices.Contains(s.volumes, kind) {
			refuse("volume %s of kind %s", v.Name, kind)
		}
	}
	profile := func(of string, p *corev1.SeccompProfile) {
		if p != nil && !slices.Contains(s.seccompProfiles, p.Type) {
			refuse("seccomp profile %s of %s", p.Type, of)
		}
	}
	if c := spec.SecurityContext; c != nil {
		profile("the pod", c.SeccompProfile)
		if c.RunAsUser != nil && s.uidRange {
			refuse("UID %d of the pod", *c.RunAsUser)
		}
	}
	for _, c := range placedContainers(spec) {
		sc := c.SecurityContext
		if sc == nil {
			continue
		}
		profile(c.Name, sc.SeccompProfile)
		if sc.RunAsUser != nil && s.uidRange {
			refuse("UID %d of %s", *sc.RunAsUser, c.Name)
		}
		if sc.Privileged != nil && *sc.Privileged {
			refuse("%s is privileged", c.Name)
		}
		if sc.AllowPrivilegeEscalation != nil && *sc.AllowPrivilegeEscalation && !s.allowPrivilegeEscalation {
			refuse("%s may escalate", c.Name)
		}
		if sc.Capabilities != nil {
			for _, add := range sc.Capabilities.Add {
				if !slices.Contains(s.allowedCapabilities, add) {
					refuse("%s adds %s", c.Name, add)
				}
			}
		}
	}
	return all
}

func volumeKind(v corev1.Volume) string {
	switch {
	case v.EmptyDir != nil:
		return "emptyDir"
	case v.Projected != nil:
		return "projected"
	case v.DownwardAPI != nil:
		return "downwardAPI"
	case v.Secret != nil:
		return "secret"
	case v.ConfigMap != nil:
		return "configMap"
	case v.PersistentVolumeClaim != nil:
		return "persistentVolumeClaim"
	case v.CSI != nil:
		return "csi"
	}
	return "another"
}

// TestOpenShift: what an SCC allows without shiplog, it allows with it.
func TestOpenShift(t *testing.T) {
	allowed := map[string]int{}
	for _, c := range taskRunPods() {
		t.Run(c.name, func(t *testing.T) {
			raw := c.build(t)
			s := c.settingsFor()
			s.openShift = true
			d, patch, err := inject(raw, s, onSupported)
			if err != nil {
				t.Fatal(err)
			}
			before, after := decodeTestPod(t, raw), decodeTestPod(t, apply(t, raw, patch))
			for _, scc := range sccs {
				if len(scc.refusals(&before.Spec)) > 0 {
					continue
				}
				if d.action == actionInject {
					allowed[scc.name]++
				}
				if r := scc.refusals(&after.Spec); len(r) > 0 {
					t.Errorf("%s refuses it with shiplog: %q", scc.name, r)
				}
			}
		})
	}
	for _, scc := range sccs {
		if allowed[scc.name] < 10 {
			t.Errorf("%s allows only %d of the injected pods, which says little", scc.name, allowed[scc.name])
		}
	}
}

// The shipper asks for a seccomp profile on OpenShift where all others do.
func TestOpenShiftSeccomp(t *testing.T) {
	profile := &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	for name, c := range map[string]struct {
		contexts []*corev1.SecurityContext // of the steps
		want     bool
	}{
		"none says anything": {[]*corev1.SecurityContext{nil, nil}, false},
		"one asks for one":   {[]*corev1.SecurityContext{profile, {}}, false},
		"all ask for one":    {[]*corev1.SecurityContext{profile, profile}, true},
	} {
		t.Run(name, func(t *testing.T) {
			pod := taskRunTestPod()
			pod.Spec.Containers = nil
			for i, sc := range c.contexts {
				pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
					Name: fmt.Sprintf("step-%d", i), Image: "i", Command: []string{"c"}, SecurityContext: sc,
				})
			}
			shipper := shipperOnOpenShift(t, pod)
			if got := shipper.SecurityContext.SeccompProfile != nil; got != c.want {
				t.Errorf("asks for a profile: %t, want %t", got, c.want)
			}
		})
	}
}

// shipperOnOpenShift is the shipper's container in a pod.
func shipperOnOpenShift(t *testing.T, pod *corev1.Pod) corev1.Container {
	t.Helper()
	raw := encoded(t, pod)
	s := testSettings()
	s.openShift = true
	_, patch, err := inject(raw, s, onSupported)
	if err != nil {
		t.Fatal(err)
	}
	return decodeTestPod(t, apply(t, raw, patch)).Spec.InitContainers[0]
}

// TestOpenShiftRoot: in a pod that is root the shipper asks for another UID. Where it names none it
// has the pod's, and must not be root, so the kubelet would not begin it, and Tekton fail the run.
func TestOpenShiftRoot(t *testing.T) {
	for name, c := range map[string]struct {
		pod  *corev1.PodSecurityContext
		want *int64
	}{
		"the pod says nothing": {nil, nil},
		"it names no UID":      {&corev1.PodSecurityContext{FSGroup: ptr.To[int64](1)}, nil},
		"another UID":          {&corev1.PodSecurityContext{RunAsUser: ptr.To[int64](1000)}, nil},
		"root":                 {&corev1.PodSecurityContext{RunAsUser: ptr.To[int64](0)}, ptr.To[int64](nonRoot)},
	} {
		t.Run(name, func(t *testing.T) {
			pod := taskRunTestPod()
			pod.Spec.SecurityContext = c.pod
			shipper := shipperOnOpenShift(t, pod)
			if got := shipper.SecurityContext.RunAsUser; !ptr.Equal(got, c.want) {
				t.Errorf("it runs as %v, want %v", ptr.Deref(got, -1), ptr.Deref(c.want, -1))
			}
		})
	}
}
