package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/placescripts"
)

// Tekton's results are in the termination messages of its steps, and the kubelet cuts each at its
// share of what it keeps of a pod. A share is smaller with each container that the spec has, so one
// more can cost a build its results. Sources: normalizeStatus in the kubelet's
// pkg/kubelet/status/status_manager.go, and pkg/kubelet/container/runtime.go.
const (
	podMessageBytes       = 12 << 10
	containerMessageBytes = 4 << 10
)

// messageBytes is what is kept of each message in a pod of so many containers, init containers
// included.
func messageBytes(containers int) int {
	return min(containerMessageBytes, podMessageBytes/max(containers, 1))
}

// What the API server takes of an object. A pod that comes close is left alone: it would be refused
// for what we add, whatever our failurePolicy.
const (
	// annotationBytes is for all keys and values together. Source: TotalAnnotationSizeLimitB in
	// apimachinery's pkg/api/validation/objectmeta.go.
	annotationBytes = 256 << 10
	// podBytes is what fits as JSON for certain: etcd takes 1.5 MiB as protobuf, which is not longer,
	// and the pod's status and managed fields come to it. Source: --max-request-bytes of etcd.
	podBytes = 1<<20 + 384<<10
)

// outgrows says whether the API server may refuse a patched pod for its size, in bytes of JSON.
func outgrows(pod *corev1.Pod, size int) bool {
	annotations := 0
	for key, value := range pod.Annotations {
		annotations += len(key) + len(value)
	}
	return annotations > annotationBytes || size > podBytes
}

// replaced is Tekton's init container place-scripts in a pod where the shipper takes its place, so
// that the pod has as many containers as without us. It does nothing but write files, and the
// shipper writes the same ones before anything else of the pod begins.
type replaced struct {
	index int                // in the pod's init containers
	mount corev1.VolumeMount // of the folder of the scripts
}

// replaceable finds place-scripts where it does nothing but that, or returns nil.
func replaceable(spec *corev1.PodSpec) *replaced {
	i := slices.IndexFunc(spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == placescripts.Container
	})
	if i < 0 || !slices.ContainsFunc(spec.InitContainers[:i], func(c corev1.Container) bool {
		return c.Name == tektonPrepare
	}) {
		return nil
	}
	c := &spec.InitContainers[i]
	if c.RestartPolicy != nil || !slices.Equal(c.Command, []string{"sh"}) ||
		len(c.Args) != 2 || c.Args[0] != "-c" {
		return nil
	}
	if _, err := placescripts.Parse(c.Args[1]); err != nil {
		return nil
	}
	m := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.MountPath == placescripts.Dir && !m.ReadOnly && m.SubPath+m.SubPathExpr == ""
	})
	if m < 0 {
		return nil
	}
	encoded, err := json.Marshal(c)
	// What the API server sent may be longer than this, by the fields that we do not know.
	if err != nil || len(encoded) > contract.MaxEnv/8*7 || refers(string(encoded)) {
		return nil
	}
	return &replaced{index: i, mount: c.VolumeMounts[m]}
}

// asEnv is the container for the shipper's environment, as the API server sent it.
func (r *replaced) asEnv(raw []byte) (corev1.EnvVar, error) {
	var pod struct {
		Spec struct {
			InitContainers []json.RawMessage `json:"initContainers"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(raw, &pod); err != nil {
		return corev1.EnvVar{}, fmt.Errorf("decode init containers: %w", err)
	}
	value := string(pod.Spec.InitContainers[r.index])
	if len(contract.PlaceScriptsEnv)+1+len(value) > contract.MaxEnv || refers(value) {
		return corev1.EnvVar{}, fmt.Errorf("init container %s has fields that shiplog does not know, "+
			"and with them it fits no environment variable", placescripts.Container)
	}
	return corev1.EnvVar{Name: contract.PlaceScriptsEnv, Value: value}, nil
}

// refers says whether the kubelet would expand something in the value of an environment variable.
func refers(value string) bool {
	return strings.Contains(value, "$(") || strings.Contains(value, "$$")
}

// replacedContainer is the init container whose place the shipper has taken, as it was, and nil
// where it has taken none.
func replacedContainer(shipper *corev1.Container) (json.RawMessage, error) {
	i := slices.IndexFunc(shipper.Env, func(e corev1.EnvVar) bool {
		return e.Name == contract.PlaceScriptsEnv
	})
	if i < 0 {
		return nil, nil
	}
	value := shipper.Env[i].Value
	if !json.Valid([]byte(value)) {
		return nil, errors.New(contract.PlaceScriptsEnv + " is no JSON")
	}
	return json.RawMessage(value), nil
}

// shortensResults says whether a step of the pod may have results, and less of them would be kept
// with one more container.
func shortensResults(spec *corev1.PodSpec) bool {
	n := len(spec.InitContainers) + len(spec.Containers)
	return messageBytes(n+1) < messageBytes(n) && slices.ContainsFunc(spec.Containers, hasResults)
}

// hasResults says whether a container is a step that puts results into its termination message:
// Tekton's entrypoint is told their names, and where results come from a sidecar's log, that.
// Source: orderContainers in Tekton's pkg/pod/entrypoint.go.
func hasResults(c corev1.Container) bool {
	if !strings.HasPrefix(c.Name, "step-") {
		return false
	}
	found := false
	for i, arg := range c.Args {
		if arg == "--" { // the step's own arguments follow
			break
		}
		if i+1 == len(c.Args) {
			break
		}
		switch value := c.Args[i+1]; strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-") {
		case "results", "step_results":
			found = found || value != ""
		case "result_from":
			if value != "termination-message" {
				return false
			}
		}
	}
	return found
}
