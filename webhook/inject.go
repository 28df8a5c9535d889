package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	evanphx "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kjson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/utils/ptr"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

const (
	// nonRoot is the UID and GID of the shipper, as of Tekton's own images.
	nonRoot = 65532
	// tokenSeconds is how long the projected token lives; the kubelet renews it after 80 % of that.
	tokenSeconds = 3600
	// spoolOverhead is what the spool volume holds beside the logs: tee, the shipper's state, and the lines with which a container overshoots its limit.
	spoolOverhead = 64 << 20
	// leastSpool is the least that is worth having in the spool of a pod: a minute of 1
	// MB/s while the store is away.
	leastSpool = 64 << 20
)

// tektonResultsSidecar is the container whose log Tekton reads results from.
const tektonResultsSidecar = "sidecar-tekton-log-results"

// tektonPrepare is Tekton's first init container, which installs what its others run.
const tektonPrepare = "prepare"

// skippedPointer is the JSON pointer (RFC 6901) to SkippedAnnotation, with its slash escaped.
const skippedPointer = "/metadata/annotations/shiplog.dev~1skipped"

// surroundings are what the webhook knows of the cluster when it decides about one pod.
type surroundings struct {
	sidecars nativeSidecars
	caBundle string // PEM
	// fit makes the shipper's resources such that the API server takes the pod with it, or says why
	// it would not. Nil: it does as they are.
	fit func(*corev1.Pod, shipperNeeds) (corev1.ResourceRequirements, reason)
	// paused says why shippers cannot be started now, or nothing. It is asked last, about a pod
	// that is injected otherwise: one that it lets through is to be made. Nil: they can.
	paused func(*corev1.Pod) reason
}

// inject decides about a pod, given as the API server sent it, and returns the JSON patch (RFC 6902) that carries the decision out. The patch names
// exact paths. The pod is never encoded again from our types: that would drop every field that is newer than they are, which is how other webhooks
// lose restartPolicy: Always (istio#49054).
func inject(raw []byte, s settings, around surroundings) (decision, []jsonpatch.Operation, error) {
	pod, err := decodePod(raw)
	if err != nil {
		return decision{}, nil, err
	}
	d := decide(pod, s, around.sidecars)
	if d.action == actionInject {
		var r reason
		if d.resources, r = around.hinders(pod, s); r != "" {
			d = skip(r)
		}
	}
	var patch []jsonpatch.Operation
	switch d.action {
	case actionRepair:
		patch = repairPatch(d)
	case actionUndo:
		if patch, err = undoPatch(pod, d); err != nil {
			// Yet another webhook was at it. As it is, the API server would refuse the pod for certain.
			d.action, d.reason = actionRepair, ""
			patch = repairPatch(d)
		}
	case actionInject:
		if patch, err = injectionPatch(raw, pod, d, s, around.caBundle); err != nil {
			return decision{}, nil, err
		}
	case actionSkip:
		if d.reason.silent() {
			return d, nil, nil
		}
		whole := contract.Skipped{Container: contract.SkippedPod, Reason: string(d.reason)}
		patch = annotate(pod, append([]contract.Skipped{whole}, d.skipped...))
	}
	after, size, err := checkPatch(raw, patch, d)
	if err != nil {
		return decision{}, nil, err
	}
	changed := len(patch) > 0 && (d.action == actionInject || d.action == actionSkip)
	if changed && outgrows(after, size) {
		return skip(podTooLarge), nil, nil // not even the annotation may fit
	}
	return d, patch, nil
}

// hinders says why a pod that could be injected is left alone for the cluster's sake, or nothing,
// and what resources the shipper has in it.
func (around surroundings) hinders(
	pod *corev1.Pod, s settings,
) (corev1.ResourceRequirements, reason) {
	var ours shipperNeeds
	// A pod's own resources no container's may exceed, and they alone make its QoS class.
	if pod.Spec.Resources == nil {
		ours = needsOfShipper(&pod.Spec, s)
	}
	resources := ours.wanted
	if around.fit != nil {
		var r reason
		if resources, r = around.fit(pod, ours); r != "" {
			return resources, r
		}
	}
	if around.paused != nil {
		return resources, around.paused(pod)
	}
	return resources, ""
}

// decodePod reads a pod as the API server does: field names are case-sensitive, unknown ones are passed over.
func decodePod(raw []byte) (*corev1.Pod, error) {
	var pod corev1.Pod
	if len(raw) == 0 {
		return nil, errors.New("decode pod: the request holds no object")
	}
	if err := kjson.Unmarshal(raw, &pod); err != nil {
		return nil, fmt.Errorf("decode pod: %w", err)
	}
	return &pod, nil
}

// checkPatch applies the patch as the API server will, with the library that it uses, and returns
// the pod that comes out, and its size as JSON in bytes. It is an error if that does not hold. The
// API server refuses the pod, whatever the failurePolicy says, when a patch does not apply
// (mutating/dispatcher.go: only errors of the call are ignored).
func checkPatch(raw []byte, patch []jsonpatch.Operation, d decision) (*corev1.Pod, int, error) {
	if len(patch) == 0 {
		return nil, 0, nil
	}
	encoded, err := json.Marshal(patch)
	if err != nil {
		return nil, 0, fmt.Errorf("encode patch: %w", err)
	}
	decoded, err := evanphx.DecodePatch(encoded)
	if err != nil {
		return nil, 0, fmt.Errorf("decode our own patch: %w", err)
	}
	patched, err := decoded.Apply(raw)
	if err != nil {
		return nil, 0, fmt.Errorf("apply our own patch: %w", err)
	}
	pod, err := decodePod(patched)
	if err != nil {
		return nil, 0, fmt.Errorf("our own patch spoils the pod: %w", err)
	}
	want := map[action]action{actionInject: actionNone, actionRepair: actionNone, actionUndo: actionSkip}[d.action]
	if again := decide(pod, settings{}, sidecarsSupported); want != "" && again.action != want {
		return nil, 0, fmt.Errorf("our own patch does not hold: a second pass would be %q", again.action)
	}
	return pod, len(patched), nil
}

func repairPatch(d decision) []jsonpatch.Operation {
	return []jsonpatch.Operation{op("add", fmt.Sprintf("/spec/initContainers/%d/restartPolicy", d.shipper), corev1.ContainerRestartPolicyAlways)}
}

// undoPatch takes back what injectionPatch has done. The original command line is behind tee's, all in one list; Kubernetes runs that the same.
func undoPatch(pod *corev1.Pod, d decision) ([]jsonpatch.Operation, error) {
	var patch []jsonpatch.Operation
	grace := time.Duration(-1)
	for _, c := range placedContainers(&pod.Spec) {
		if c.list == "initContainers" && c.index == d.shipper {
			continue
		}
		at := "/spec/" + c.list + "/" + strconv.Itoa(c.index)
		if slices.Equal(c.Command, []string{contract.TeePath}) {
			tee, err := contract.ParseTee(c.Args)
			if err == nil && len(tee.Argv) == 0 {
				err = errors.New("tee: no command")
			}
			if err != nil {
				return nil, fmt.Errorf("make container %s as it was: %w", c.Name, err)
			}
			grace = tee.Grace
			patch = append(patch, op("replace", at+"/command", tee.Argv), op("remove", at+"/args", nil))
		}
		for i, m := range slices.Backward(c.VolumeMounts) {
			if ourVolume(m.Name) {
				patch = append(patch, op("remove", at+"/volumeMounts/"+strconv.Itoa(i), nil))
			}
		}
	}
	for i, v := range slices.Backward(pod.Spec.Volumes) {
		if ourVolume(v.Name) {
			patch = append(patch, op("remove", "/spec/volumes/"+strconv.Itoa(i), nil))
		}
	}
	if grace >= 0 {
		patch = append(patch, op("add", "/spec/terminationGracePeriodSeconds", int64(grace/time.Second)))
	}
	patch = append(patch, annotate(pod, []contract.Skipped{{Container: contract.SkippedPod, Reason: string(d.reason)}})...)
	patch = append(patch, op("remove", "/spec/initContainers/"+strconv.Itoa(d.shipper), nil))
	return putBack(patch, pod, d.shipper)
}

// putBack puts the container whose place the shipper had back into it, behind prepare, which
// installs what it runs.
func putBack(
	patch []jsonpatch.Operation, pod *corev1.Pod, shipper int,
) ([]jsonpatch.Operation, error) {
	container, err := replacedContainer(&pod.Spec.InitContainers[shipper])
	if err != nil || container == nil {
		return patch, err
	}
	inits := slices.Delete(slices.Clone(pod.Spec.InitContainers), shipper, shipper+1)
	behind := slices.IndexFunc(inits, func(c corev1.Container) bool { return c.Name == tektonPrepare })
	if behind < 0 {
		return nil, errors.New("put back place-scripts: there is no init container prepare")
	}
	return append(patch, op("add", "/spec/initContainers/"+strconv.Itoa(behind+1), container)), nil
}

// injectionPatch makes the patch. Operations on containers come first, while their indices are still those of the pod.
func injectionPatch(
	raw []byte, pod *corev1.Pod, d decision, s settings, caBundle string,
) ([]jsonpatch.Operation, error) {
	raised, grace := gracePeriods(&pod.Spec, s.drainGrace)
	s.spoolLimit = spoolWithin(d.resources, s)

	var patch []jsonpatch.Operation
	names := make([]string, len(d.captured))
	for i, c := range d.captured {
		names[i] = c.Name
		patch = append(patch, capture(c, s, contract.Tee{
			Spool: contract.SpoolMount, Limit: s.spoolLimit, Grace: grace,
			// Tekton reads results from all that this container prints, up to the first line that is
			// none (extractResultsFromLogs in its internal/sidecarlogresults).
			Quiet: c.Name == tektonResultsSidecar,
		})...)
	}

	shipper, err := shipperContainer(&pod.Spec, s, d.resources,
		s.config(caBundle, names, waitsForShipper(&pod.Spec, s)))
	if err != nil {
		return nil, err
	}
	patch = append(patch, appendTo("/spec/volumes", len(pod.Spec.Volumes), spoolVolume(), tokenVolume())...)
	patch = append(patch, op("add", "/spec/terminationGracePeriodSeconds", raised))
	patch = append(patch, annotate(pod, d.skipped)...)
	if d.replaced != nil {
		env, err := d.replaced.asEnv(raw)
		if err != nil {
			return nil, err
		}
		shipper.Env = append(shipper.Env, env)
		shipper.VolumeMounts = append(shipper.VolumeMounts,
			corev1.VolumeMount{Name: d.replaced.mount.Name, MountPath: d.replaced.mount.MountPath})
		patch = append(patch, op("remove", "/spec/initContainers/"+strconv.Itoa(d.replaced.index), nil))
	}
	// Last, since it moves other init containers up by one. In front of those that run tee, which it
	// installs.
	if len(pod.Spec.InitContainers) == 0 {
		return append(patch, op("add", "/spec/initContainers", []corev1.Container{shipper})), nil
	}
	return append(patch, op("add", "/spec/initContainers/"+strconv.Itoa(d.at), shipper)), nil
}

// capture puts tee before a container's command. Kubernetes expands $(VAR), and $$ to $, in command and args alike and with the same variables, so a
// word may move from one to the other (ExpandContainerCommandAndArgs in pkg/kubelet/container/helpers.go).
func capture(c placedContainer, s settings, tee contract.Tee) []jsonpatch.Operation {
	tee.Argv = append(append([]string{}, c.Command...), c.Args...)
	at := "/spec/" + c.list + "/" + strconv.Itoa(c.index)
	patch := []jsonpatch.Operation{
		op("replace", at+"/command", []string{contract.TeePath}),
		op("add", at+"/args", tee.Args()), // "add" replaces what is there
	}
	return append(patch, appendTo(at+"/volumeMounts", len(c.VolumeMounts),
		corev1.VolumeMount{Name: contract.SpoolVolume, MountPath: contract.SpoolMount, SubPath: contract.LogsSubPath + "/" + c.Name},
		corev1.VolumeMount{Name: contract.SpoolVolume, MountPath: contract.TeeMount, SubPath: contract.BinSubPath, ReadOnly: true},
	)...)
}

// shipperContainer is the native sidecar. Its postStart hook installs tee; the kubelet starts nothing further until the hook has returned. It has no
// probes: one that fails would restart it, and there is nothing in it that a restart mends.
func shipperContainer(spec *corev1.PodSpec, s settings, resources corev1.ResourceRequirements,
	config contract.Config) (corev1.Container, error) {
	encoded, err := config.Encode()
	if err != nil {
		return corev1.Container{}, err
	}
	c := corev1.Container{
		Name:            contract.ShipperContainer,
		Image:           s.shipperImage,
		ImagePullPolicy: s.imagePullPolicy,
		Command:         []string{contract.ShipperBinary},
		Env:             []corev1.EnvVar{{Name: contract.ConfigEnv, Value: encoded}},
		RestartPolicy:   ptr.To(corev1.ContainerRestartPolicyAlways),
		Lifecycle: &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{contract.ShipperBinary, "install"}},
		}},
		VolumeMounts: []corev1.VolumeMount{
			{Name: contract.SpoolVolume, MountPath: contract.VolumeMount},
			{Name: contract.TokenVolume, MountPath: contract.TokenMount, ReadOnly: true},
		},
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot:             ptr.To(true),
			Privileged:               ptr.To(false),
			AllowPrivilegeEscalation: ptr.To(false),
			ReadOnlyRootFilesystem:   ptr.To(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
	// OpenShift fills in the profile where its SCC demands one. An SCC that names none, such as
	// Tekton's pipelines-scc, refuses a pod for a container that asks for one.
	if !s.openShift || everyContainerHasSeccomp(spec) {
		c.SecurityContext.SeccompProfile = &corev1.SeccompProfile{
			Type: corev1.SeccompProfileTypeRuntimeDefault,
		}
	}
	// The kubelet does not begin a container as root that must not be, and Tekton fails the TaskRun
	// for that. An SCC that lets a pod be root takes any other UID, too.
	if !s.openShift || isRoot(spec.SecurityContext) {
		c.SecurityContext.RunAsUser, c.SecurityContext.RunAsGroup = ptr.To[int64](nonRoot), ptr.To[int64](nonRoot)
	}
	c.Resources = resources
	if limit, limited := resources.Limits[corev1.ResourceMemory]; limited {
		// The Go runtime collects earlier rather than being killed. A tenth is left for what it
		// does not count.
		c.Env = append(c.Env,
			corev1.EnvVar{Name: "GOMEMLIMIT", Value: strconv.FormatInt(limit.Value()/10*9, 10)})
	}
	return c, nil
}

// isRoot says whether a pod asks for root in each container that asks for nothing else.
func isRoot(c *corev1.PodSecurityContext) bool {
	return c != nil && c.RunAsUser != nil && *c.RunAsUser == 0
}

// everyContainerHasSeccomp says whether the pod's own containers ask for a profile, so that the
// pod's SCC allows it.
func everyContainerHasSeccomp(spec *corev1.PodSpec) bool {
	return !slices.ContainsFunc(placedContainers(spec), func(c placedContainer) bool {
		return c.SecurityContext == nil || c.SecurityContext.SeccompProfile == nil
	})
}

// needsOfShipper keep a Guaranteed pod Guaranteed, and leave room for the spool where the pod's
// local storage is limited.
func needsOfShipper(spec *corev1.PodSpec, s settings) shipperNeeds {
	// With less CPU the start of the pod would take longer, with less memory the shipper could be
	// killed.
	storage := resource.NewQuantity(s.usefulSpool()+spoolOverhead, resource.BinarySI)
	n := shipperNeeds{least: corev1.ResourceList{
		corev1.ResourceCPU:              smaller(s.guaranteedCPU, s.cpuLimit),
		corev1.ResourceMemory:           s.memoryRequest,
		corev1.ResourceEphemeralStorage: *storage,
	}}
	r := corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: s.cpuRequest, corev1.ResourceMemory: s.memoryRequest},
		Limits:   corev1.ResourceList{corev1.ResourceCPU: s.cpuLimit, corev1.ResourceMemory: s.memoryLimit},
	}
	if n.equal = isGuaranteed(spec); n.equal {
		same := corev1.ResourceList{corev1.ResourceCPU: s.guaranteedCPU, corev1.ResourceMemory: s.memoryLimit}
		r.Requests, r.Limits = same.DeepCopy(), same
	}
	for _, c := range placedContainers(spec) {
		if _, limited := c.Resources.Limits[corev1.ResourceEphemeralStorage]; limited {
			// The kubelet holds the pod's emptyDirs against the sum of its containers' limits. The
			// request is what the spool holds while the store keeps up; without it the API server would
			// take the limit, and the pod might fit on no node.
			limit, request := s.spoolLimit+spoolOverhead, int64(spoolOverhead)
			r.Limits[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(limit, resource.BinarySI)
			r.Requests[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(request, resource.BinarySI)
			break
		}
	}
	n.wanted = r
	return n
}

// spoolWithin is how much the pod may have in the spool: less than usual where a LimitRange
// left the shipper less local storage.
func spoolWithin(resources corev1.ResourceRequirements, s settings) int64 {
	limit, limited := resources.Limits[corev1.ResourceEphemeralStorage]
	if !limited {
		return s.spoolLimit
	}
	return min(s.spoolLimit, limit.Value()-spoolOverhead)
}

// isGuaranteed says whether the pod's QoS class is Guaranteed, as ComputePodQOS in Kubernetes' pkg/apis/core/v1/helper/qos does: every container
// limits CPU and memory, and requests as much. A request that is missing is its limit, by the API server's defaults.
func isGuaranteed(spec *corev1.PodSpec) bool {
	for _, c := range placedContainers(spec) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, limited := c.Resources.Limits[name]
			request, requested := c.Resources.Requests[name]
			if !limited || limit.Sign() <= 0 || requested && request.Cmp(limit) != 0 {
				return false
			}
		}
	}
	return true
}

// spoolVolume has no sizeLimit: the kubelet evicts a pod that exceeds one, and a build must not fail because it prints much. tee bounds what it
// writes instead.
func spoolVolume() corev1.Volume {
	return corev1.Volume{Name: contract.SpoolVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
}

// tokenVolume is mounted by the shipper alone.
func tokenVolume() corev1.Volume {
	return corev1.Volume{Name: contract.TokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience:          contract.Audience,
			ExpirationSeconds: ptr.To[int64](tokenSeconds),
			Path:              path.Base(contract.TokenFile),
		}}},
	}}}
}

// annotate sets SkippedAnnotation, or removes one that does not hold, such as one that a tenant typed.
func annotate(pod *corev1.Pod, skipped []contract.Skipped) []jsonpatch.Operation {
	old, present := pod.Annotations[contract.SkippedAnnotation]
	value := contract.FormatSkipped(skipped)
	switch {
	case value == "" && present:
		return []jsonpatch.Operation{op("remove", skippedPointer, nil)}
	case value == old:
		return nil
	case len(pod.Annotations) == 0:
		return []jsonpatch.Operation{op("add", "/metadata/annotations", map[string]string{contract.SkippedAnnotation: value})}
	}
	return []jsonpatch.Operation{op("add", skippedPointer, value)}
}

// appendTo adds values to an array, which it makes where it is missing, null or empty.
func appendTo[T any](at string, length int, values ...T) []jsonpatch.Operation {
	if length == 0 {
		return []jsonpatch.Operation{op("add", at, values)}
	}
	patch := make([]jsonpatch.Operation, len(values))
	for i, v := range values {
		patch[i] = op("add", at+"/-", v)
	}
	return patch
}

func op(operation, at string, value any) jsonpatch.Operation {
	return jsonpatch.Operation{Operation: operation, Path: at, Value: value}
}
