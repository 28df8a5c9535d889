package main

import (
	"math"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// action is what is done to a pod.
type action string

const (
	actionInject action = "injected"
	actionRepair action = "repaired"  // our container is there, but lost its restartPolicy, which is put back
	actionUndo   action = "undone"    // the same, and the pod is made as it was
	actionNone   action = "unchanged" // already injected
	actionSkip   action = "skipped"
)

// reason is why a pod or a container is left alone. The values are shown to people and are labels of metrics, so they are few and do not change.
type reason string

const (
	// The pod is none of ours; it stays untouched.
	optedOut       reason = record.SkippedOptedOut
	notTekton      reason = "not-tekton"
	notPodCreation reason = "not-a-pod-creation"

	// The pod cannot be injected; it gets the annotation that says so.
	kubernetesTooOld  reason = "kubernetes-too-old"
	kubernetesUnknown reason = "kubernetes-version-unknown"
	windows           reason = "windows"
	sharedProcesses   reason = "share-process-namespace"
	hostProcesses     reason = "host-pid"
	nameCollision     reason = "name-collision"
	nothingToCapture  reason = "nothing-to-capture"
	limitRange        reason = "limit-range"
	resourceQuota     reason = "resource-quota"
	cannotStart       reason = "shipper-cannot-start"
	resultsAtRisk     reason = "results-at-risk"
	podTooLarge       reason = "pod-too-large"
	shipperRefused    reason = "shipper-refused"
	policyDropped     reason = "restart-policy-dropped"

	// The container is left alone; the others are captured.
	noCommand     reason = "no-command"
	hasTTY        reason = "tty"
	hasStdin      reason = "stdin"
	memoryLimit   reason = "memory-limit"
	mountConflict reason = "mount-conflict"
	startsEarlier reason = "starts-earlier"
	signalsAll    reason = "signals-all"
	processOne    reason = "process-1"
)

// explanation completes the sentence "the logs of this pod are not archived: …".
func (r reason) explanation() string {
	switch r {
	case kubernetesTooOld:
		return "this Kubernetes is older than 1.29, which brought native sidecars"
	case kubernetesUnknown:
		return "the version of Kubernetes is not known yet; it is looked up again"
	case windows:
		return "it runs on Windows"
	case sharedProcesses:
		return "with shareProcessNamespace a step could read the shipper's files"
	case hostProcesses:
		return "with hostPID a step could read the shipper's files"
	case nameCollision:
		return "it has a container, volume or volumeMount with a name that shiplog reserves"
	case limitRange:
		return "a LimitRange of the namespace does not allow the shipper's resources"
	case resourceQuota:
		return "a ResourceQuota of the namespace has no room for the shipper"
	case cannotStart:
		return "the shipper's container could not be started in other pods, and would hold this one back; it is tried again"
	case podTooLarge:
		return "with what shiplog adds the API server could refuse it for its size"
	case resultsAtRisk:
		return "with one more container in it the kubelet would cut its results shorter"
	case shipperRefused:
		return "a policy refused another pod of the namespace with the shipper in it; it is tried again"
	case policyDropped:
		return "another webhook drops restartPolicy: Always of the shipper's container"
	case nothingToCapture:
		return "no container of it can be captured; the annotation " + contract.SkippedAnnotation + " says why"
	}
	return string(r)
}

// silent says that the pod is none of ours.
func (r reason) silent() bool { return r == optedOut || r == notTekton || r == notPodCreation }

// nativeSidecars is whether the cluster's API server and kubelets run native sidecars.
type nativeSidecars int32

const (
	sidecarsUnknown nativeSidecars = iota
	sidecarsUnsupported
	sidecarsSupported
)

// placedContainer is a container and its place in the pod's spec.
type placedContainer struct {
	*corev1.Container
	list  string // "initContainers" or "containers"
	index int
}

// decision is what to do to a pod, and why.
type decision struct {
	action   action
	reason   reason             // with actionSkip and actionUndo
	captured []placedContainer  // with actionInject: in the pod's order, init containers first
	skipped  []contract.Skipped // with actionInject and nothingToCapture: containers left alone
	shipper  int                // with actionRepair and actionUndo: the index of our init container
	replaced *replaced          // with actionInject: the init container whose place ours takes, or nil
	at       int                // with actionInject: the index that our init container gets
	// resources are the shipper's, with actionInject.
	resources corev1.ResourceRequirements
}

func skip(r reason) decision { return decision{action: actionSkip, reason: r} }

// decide says what to do to a pod. It looks at nothing but its arguments.
func decide(pod *corev1.Pod, s settings, sidecars nativeSidecars) decision {
	if pod.Annotations[contract.InjectKey] == contract.InjectDisabled {
		return skip(optedOut)
	}
	if !isTaskRunPod(pod) {
		return skip(notTekton)
	}
	// What has been injected stays as it is, whatever the rest of the pod has become.
	if i := injectedShipper(pod); i >= 0 {
		if p := pod.Spec.InitContainers[i].RestartPolicy; p != nil && *p == corev1.ContainerRestartPolicyAlways {
			return decision{action: actionNone}
		}
		if s.repairRestartPolicy {
			return decision{action: actionRepair, shipper: i}
		}
		return decision{action: actionUndo, reason: policyDropped, shipper: i}
	}
	// It is not injected a second time: the same would happen again.
	if slices.Contains(contract.ParseSkipped(pod.Annotations[contract.SkippedAnnotation]), contract.Skipped{Container: contract.SkippedPod, Reason: string(policyDropped)}) {
		return skip(policyDropped)
	}
	switch {
	case sidecars == sidecarsUnknown:
		return skip(kubernetesUnknown)
	case sidecars != sidecarsSupported:
		return skip(kubernetesTooOld)
	case runsOnWindows(&pod.Spec):
		return skip(windows)
	case pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace:
		return skip(sharedProcesses)
	case pod.Spec.HostPID:
		return skip(hostProcesses)
	case usesOurNames(&pod.Spec):
		return skip(nameCollision)
	}

	d := decision{
		action: actionInject, replaced: replaceable(&pod.Spec), at: behindSidecars(&pod.Spec),
	}
	if d.replaced == nil && !s.resultsAtRisk && shortensResults(&pod.Spec) {
		return skip(resultsAtRisk)
	}
	exclude := contract.ParseExclude(pod.Annotations[contract.ExcludeAnnotation])
	scripts := scriptsOf(&pod.Spec)
	for _, c := range placedContainers(&pod.Spec) {
		if d.replaced != nil && c.list == "initContainers" && c.index == d.replaced.index {
			continue
		}
		r := leaveAlone(c.Container, scripts, s)
		switch {
		case slices.Contains(exclude, c.Name):
			r = optedOut
		case c.list == "initContainers" && c.index < d.at:
			r = startsEarlier // there is no tee yet
		}
		if r != "" {
			d.skipped = append(d.skipped, contract.Skipped{Container: c.Name, Reason: string(r)})
		} else {
			d.captured = append(d.captured, c)
		}
	}
	if len(d.captured) == 0 {
		d.action, d.reason = actionSkip, nothingToCapture
	}
	return d
}

// behindSidecars is the index among the init containers behind the native sidecars of others that
// begin before Tekton's own containers. The kubelet stops sidecars in the opposite order, and such
// a one may be a mesh's proxy, without which our container reaches nothing.
func behindSidecars(spec *corev1.PodSpec) (at int) {
	for i, c := range spec.InitContainers {
		switch {
		case c.Name == tektonPrepare:
			return at
		case c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways &&
			!strings.HasPrefix(c.Name, "sidecar-"):
			at = i + 1
		}
	}
	return 0 // this is not the order that Tekton makes
}

// isTaskRunPod asks for the label, by which the API server selects, and for the owner, which a label alone does not prove.
func isTaskRunPod(pod *corev1.Pod) bool {
	if pod.Labels["tekton.dev/taskRun"] == "" {
		return false
	}
	owner := metav1.GetControllerOfNoCopy(pod)
	return owner != nil && owner.Kind == "TaskRun" && strings.HasPrefix(owner.APIVersion, "tekton.dev/")
}

// injectedShipper is the index of the init container that we injected, or -1. The name alone does not make it ours.
func injectedShipper(pod *corev1.Pod) int {
	return slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == contract.ShipperContainer &&
			slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == contract.ConfigEnv && e.Value != "" }) &&
			slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
				return m.Name == contract.SpoolVolume && m.MountPath == contract.VolumeMount
			})
	})
}

// runsOnWindows reads what the scheduler and Tekton go by: the pod's OS, or the well-known label in its node selector or required affinity.
func runsOnWindows(spec *corev1.PodSpec) bool {
	if spec.OS != nil && spec.OS.Name == corev1.Windows {
		return true
	}
	if spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows) {
		return true
	}
	if spec.Affinity == nil || spec.Affinity.NodeAffinity == nil || spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return false
	}
	terms := spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	return slices.ContainsFunc(terms, func(t corev1.NodeSelectorTerm) bool {
		return slices.ContainsFunc(t.MatchExpressions, func(r corev1.NodeSelectorRequirement) bool {
			return r.Key == corev1.LabelOSStable && r.Operator == corev1.NodeSelectorOpIn && slices.Contains(r.Values, string(corev1.Windows))
		})
	})
}

// usesOurNames says whether the pod has a container or volume by our names, or a container that mounts a volume which only we will add. The
// latter is how a Task could get at the shipper's token: the API server checks mounts against volumes after admission.
func usesOurNames(spec *corev1.PodSpec) bool {
	if slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return ourVolume(v.Name) }) {
		return true
	}
	return slices.ContainsFunc(placedContainers(spec), func(c placedContainer) bool {
		return c.Name == contract.ShipperContainer ||
			slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
				return ourVolume(m.Name)
			}) ||
			slices.ContainsFunc(c.VolumeDevices, func(d corev1.VolumeDevice) bool {
				return ourVolume(d.Name)
			})
	})
}

// ourVolume says whether a volume is one that we add.
func ourVolume(name string) bool {
	return name == contract.SpoolVolume || name == contract.TokenVolume
}

// placedContainers are the pod's containers in its order, init containers first. Ephemeral containers are added to a running pod only.
func placedContainers(spec *corev1.PodSpec) []placedContainer {
	var all []placedContainer
	for i := range spec.InitContainers {
		all = append(all, placedContainer{&spec.InitContainers[i], "initContainers", i})
	}
	for i := range spec.Containers {
		all = append(all, placedContainer{&spec.Containers[i], "containers", i})
	}
	return all
}

// leaveAlone says why a container cannot be captured, or nothing. scripts are those of the pod.
func leaveAlone(c *corev1.Container, scripts map[string]string, s settings) reason {
	limit, limited := c.Resources.Limits[corev1.ResourceMemory]
	switch {
	case len(c.Command) == 0:
		return noCommand // it is only in the image, which the webhook does not read
	case c.TTY:
		return hasTTY // the process would see pipes where it was promised a terminal
	case c.Stdin:
		return hasStdin // somebody may attach to it
	case limited && limit.Sign() > 0 && limit.Cmp(s.minMemoryLimit) < 0:
		return memoryLimit // tee shares the container's limit
	case mountsOurPaths(c):
		return mountConflict
	}
	return needsProcessOne(c, scripts)
}

// mountsOurPaths says whether the container has a mount at, below or above our mounts. One above may be read-only, and then the runtime cannot make
// our mount points in it.
func mountsOurPaths(c *corev1.Container) bool {
	conflict := func(p string) bool {
		p = path.Clean("/" + p)
		return p == "/" || p == contract.VolumeMount || strings.HasPrefix(p, contract.VolumeMount+"/")
	}
	return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return conflict(m.MountPath) }) ||
		slices.ContainsFunc(c.VolumeDevices, func(d corev1.VolumeDevice) bool { return conflict(d.DevicePath) })
}

// waitsForShipper says whether the TaskRun is complete only when the shipper has ended: always with Tekton's enable-kubernetes-sidecar, which also
// shows in the pod, since Tekton's own sidecars are then native ones.
// Source: Tekton's areInitContainersDone in pkg/pod/status.go.
func waitsForShipper(spec *corev1.PodSpec, s settings) bool {
	return s.kubernetesSidecar || slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool {
		return strings.HasPrefix(c.Name, "sidecar-") && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

// gracePeriods are the pod's grace period in seconds with the shipper's share, and the one that tee keeps for the step.
func gracePeriods(spec *corev1.PodSpec, drain time.Duration) (raised int64, tee time.Duration) {
	// The kubelet multiplies seconds to nanoseconds, so the most that makes sense is what fits then.
	const most = int64(math.MaxInt64 / time.Second)
	old := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if spec.TerminationGracePeriodSeconds != nil {
		old = *spec.TerminationGracePeriodSeconds
	}
	if old < 0 {
		old = 1 // as the API server takes it
	}
	old = min(old, most)
	return min(old, most-int64(drain/time.Second)) + int64(drain/time.Second), time.Duration(old) * time.Second
}
