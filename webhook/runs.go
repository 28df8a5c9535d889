package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const (
	tektonGroup       = "tekton.dev"
	pipelineTaskLabel = "tekton.dev/pipelineTask"
	// stepPrefix begins the name of every container of a step (pkg/pod/pod.go of tektoncd/pipeline).
	stepPrefix = "step-"
)

// ownedPod is a pod with what owns it: all that its records are made of.
type ownedPod struct {
	pod         layout.Pod // where the logs are
	object      *corev1.Pod
	taskRun     *runObject
	pipelineRun *runObject                 // nil for a TaskRun without one
	whole       *unstructured.Unstructured // the run, which is one of these two, if it was asked for
}

// run is the PipelineRun, or the TaskRun without one.
func (r ownedPod) run() *runObject {
	if r.pipelineRun != nil {
		return r.pipelineRun
	}
	return r.taskRun
}

// owner is what an owner reference may point to.
type owner struct {
	kind, resource string
}

var (
	taskRunOwner     = owner{"TaskRun", "taskruns"}
	pipelineRunOwner = owner{"PipelineRun", "pipelineruns"}
)

// findOwners looks up the pod and its owners. Every name comes from the owner objects themselves, found by the pod's controller reference and checked
// by UID: a label is whatever a tenant types.
func (s *ticketService) findOwners(ctx context.Context, bound boundPod) (ownedPod, error) {
	pod, err := s.getPod(ctx, bound)
	if err != nil {
		return ownedPod{}, err
	}
	r := ownedPod{object: pod}
	ref := controlledBy(pod.OwnerReferences, taskRunOwner)
	if ref == nil {
		return ownedPod{}, refuse(refusedNotTekton, "pod %s/%s is not controlled by a TaskRun", pod.Namespace, pod.Name)
	}
	if r.taskRun, r.whole, err = s.owner(ctx, pod.Namespace, ref, taskRunOwner); err != nil {
		return ownedPod{}, err
	}
	if by := r.taskRun.pipelineRun; by != nil {
		ref := &metav1.OwnerReference{APIVersion: tektonV1.String(), Name: by.name, UID: by.uid}
		if r.pipelineRun, r.whole, err = s.owner(ctx, pod.Namespace, ref, pipelineRunOwner); err != nil {
			return ownedPod{}, err
		}
	}
	r.pod = layout.Pod{Run: r.run().archived(), TaskRun: r.taskRun.Name, PodUID: string(pod.UID)}
	if err := r.pod.Validate(); err != nil { // no API server lets such a name pass; if one does, it must not become a path
		return ownedPod{}, refuse(refusedOwnerMismatch, "pod %s/%s: %v", pod.Namespace, pod.Name, err)
	}
	return r, nil
}

// controlledBy returns the controller reference, if it points to such an owner.
func controlledBy(refs []metav1.OwnerReference, o owner) *metav1.OwnerReference {
	for _, ref := range refs {
		gv, err := schema.ParseGroupVersion(ref.APIVersion)
		if ref.Controller != nil && *ref.Controller && err == nil && gv.Group == tektonGroup && ref.Kind == o.kind {
			return &ref
		}
	}
	return nil
}

// apiVersion is a version that can stand in an address. The API server does not check this in an owner reference.
var apiVersion = regexp.MustCompile(`^v[0-9]+((alpha|beta)[0-9]+)?$`)

// owner returns the owner that the reference points to, if it is still the one that it meant. What is known of it already is good enough: names and UIDs do not change. Otherwise it is asked for, and returned as
// a whole, too.
func (s *ticketService) owner(ctx context.Context, namespace string, ref *metav1.OwnerReference, o owner) (*runObject, *unstructured.Unstructured, error) {
	if s.cfg.Known != nil {
		if run := s.cfg.Known(runKey{o, namespace, ref.Name, ref.UID}); run != nil {
			return run, nil, nil
		}
	}
	whole, err := s.getOwner(ctx, namespace, ref, o)
	if err != nil {
		return nil, nil, err
	}
	return slimOf(whole), whole, nil
}

// getOwner asks for the owner that the reference points to, in whatever version it names.
func (s *ticketService) getOwner(ctx context.Context, namespace string, ref *metav1.OwnerReference, o owner) (*unstructured.Unstructured, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil || !apiVersion.MatchString(gv.Version) {
		return nil, refuse(refusedOwnerMismatch, "%s %s/%s has the API version %q", o.kind, namespace, ref.Name, ref.APIVersion)
	}
	// Nor this. What is no name of Kubernetes' must become neither an address nor an object's name.
	if err := errors.Join(layout.CheckName(o.kind, ref.Name), layout.CheckUID(o.kind+" UID", string(ref.UID))); err != nil {
		return nil, refuse(refusedOwnerMismatch, "the owner reference: %v", err)
	}
	obj, err := s.tekton.Resource(gv.WithResource(o.resource)).Namespace(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, refuse(refusedOwnerMismatch, "there is no %s %s/%s", o.kind, namespace, ref.Name)
	case err != nil:
		return nil, clusterDown(fmt.Sprintf("get %s %s/%s", o.kind, namespace, ref.Name), err)
	case obj.GetUID() != ref.UID || obj.GetName() != ref.Name || obj.GetNamespace() != namespace:
		return nil, refuse(refusedOwnerMismatch, "%s %s/%s has UID %s, the owner reference means %s", o.kind, namespace, ref.Name, obj.GetUID(), ref.UID)
	}
	return obj, nil
}

// recordWaiting writes why captured containers of the pod did not start: waiting.json for each. Whichever replica writes it says the same.
func (s *ticketService) recordWaiting(ctx context.Context, bound boundPod, failures map[string]record.Waiting) error {
	owned, err := s.findOwners(ctx, bound)
	if err != nil {
		return err
	}
	for _, c := range containers(owned.object) {
		failure, failed := failures[c.Name]
		if !failed || !c.Captured {
			continue
		}
		body, err := record.Encode(failure)
		if err != nil {
			return err
		}
		key := layout.Container{Pod: owned.pod, Container: c.Name}
		if err := key.Validate(); err != nil {
			return err
		}
		if err := s.cfg.Store.Put(ctx, key.WaitingKey(), body); err != nil {
			return err
		}
	}
	return nil
}

// objects are the pod's record and the index objects, by key. They depend on nothing but the objects in the cluster, so whichever replica writes them writes the same.
func (r ownedPod) objects() (map[string][]byte, error) { return r.objectsWith(r.podRecord()) }

// objectsWith is objects with another record of the pod.
func (r ownedPod) objectsWith(pod record.Pod) (map[string][]byte, error) {
	run := r.run()
	kind := layout.TaskRun
	if r.pipelineRun != nil {
		kind = layout.PipelineRun
	}
	wholeRun := record.Pointer{Run: r.pod.Run}
	wholeTask := record.Pointer{Run: r.pod.Run, TaskRun: r.pod.TaskRun}
	onePod := record.Pointer{Run: r.pod.Run, TaskRun: r.pod.TaskRun, PodUID: r.pod.PodUID}
	index := layout.RunIndex{
		Namespace: run.Namespace, Created: createdAt(run.CreationTimestamp), Kind: kind, Name: run.Name, UID: string(run.UID),
	}
	pointers := map[string]record.Pointer{
		index.Key(): wholeRun,
		layout.PodIndexKey(r.pod.Namespace, r.object.Name, r.pod.PodUID): onePod,
		layout.UIDIndexKey(r.pod.Namespace, r.pod.Run.UID):               wholeRun,
		layout.UIDIndexKey(r.pod.Namespace, string(r.taskRun.UID)):       wholeTask, // without a PipelineRun it is the key above
	}
	out := make(map[string][]byte, len(pointers)+1)
	var err error
	if out[r.pod.PodKey()], err = record.Encode(pod); err != nil {
		return nil, err
	}
	for key, p := range pointers {
		if out[key], err = record.Encode(p); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// runRecord makes run.json of a PipelineRun, or of a TaskRun without one.
func runRecord(obj *unstructured.Unstructured, o owner) record.Run {
	kind, ref := layout.TaskRun, "taskRef"
	if o == pipelineRunOwner {
		kind, ref = layout.PipelineRun, "pipelineRef"
	}
	out := record.Run{
		Kind: kind, Namespace: obj.GetNamespace(), Name: obj.GetName(), UID: string(obj.GetUID()),
		Created: createdAt(obj.GetCreationTimestamp()), Labels: obj.GetLabels(),
	}
	// Absent, or of another shape in a version to come: the field stays empty, the logs are archived all the same.
	out.Pipeline, _, _ = unstructured.NestedString(obj.Object, "spec", ref, "name")
	endOf(obj).in(&out)
	if o == pipelineRunOwner {
		for _, list := range []string{"tasks", "finally"} {
			out.Tasks = append(out.Tasks, taskNames(obj, list)...)
		}
	}
	return out
}

// namespaceTimeout bounds the question for a run's namespace.
const namespaceTimeout = 2 * time.Second

// inNamespace puts into a run's record which namespace it is of. Where that cannot be found out,
// the record lacks it and nothing else. It is asked for while a pod of the run is there, since a
// namespace goes after all that is in it; one that is younger than the run is another one.
func inNamespace(
	ctx context.Context, core kubernetes.Interface, log *slog.Logger, run *record.Run,
) {
	ctx, cancel := context.WithTimeout(ctx, namespaceTimeout)
	defer cancel()
	ns, err := core.CoreV1().Namespaces().Get(ctx, run.Namespace, metav1.GetOptions{})
	if err != nil {
		log.WarnContext(ctx, "a run is recorded without the UID of its namespace",
			"kind", run.Kind, "namespace", run.Namespace, "run", run.Name, "error", err)
		return
	}
	namespace := record.Namespace{UID: string(ns.UID), Created: ns.CreationTimestamp.Time}
	if !run.Created.Before(namespace.Since()) {
		run.NamespaceUID = namespace.UID
	}
}

// ending is how a run ended. Without a state it has not ended yet.
type ending struct {
	state              record.RunState
	reason             string
	started, completed time.Time
}

func (e ending) over() bool { return e.state != "" }

// in puts it into run.json.
func (e ending) in(r *record.Run) {
	r.State, r.Reason, r.Started, r.Completed = e.state, e.reason, e.started, e.completed
}

// endOf reads how a PipelineRun or TaskRun ended: from its condition Succeeded, which Tekton sets to True or False once (IsDone in pkg/apis/pipeline/v1). While a TaskRun has retries left it stays Unknown.
func endOf(obj *unstructured.Unstructured) ending {
	status, _ := obj.Object["status"].(map[string]any)
	condition := succeeded(status)
	var e ending
	e.reason, _ = condition["reason"].(string)
	switch {
	case condition["status"] == "True":
		e.state = record.Succeeded
	case condition["status"] != "False":
		return ending{}
	// PipelineRunReasonCancelled, which a PipelineRun that was stopped gracefully has too, and
	// TaskRunReasonCancelled.
	case e.reason == "Cancelled" || e.reason == "TaskRunCancelled":
		e.state = record.Cancelled
	default:
		e.state = record.Failed
	}
	e.started, e.completed = statusTime(status["startTime"]), statusTime(status["completionTime"])
	if e.completed.IsZero() { // a run that was refused before it began has none
		e.completed = statusTime(condition["lastTransitionTime"])
	}
	return e
}

// succeeded is the condition of a status that says how a run or TaskRun ended, or nil.
func succeeded(status map[string]any) map[string]any {
	conditions, _ := status["conditions"].([]any)
	for _, c := range conditions {
		if condition, _ := c.(map[string]any); condition["type"] == "Succeeded" {
			return condition
		}
	}
	return nil
}

// statusTime reads a time of an object, or gives the zero time.
func statusTime(v any) time.Time {
	text, _ := v.(string)
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// taskNames reads the names of the tasks that Tekton resolved, which are there as soon as it has created the first TaskRun.
func taskNames(pipelineRun *unstructured.Unstructured, list string) []string {
	tasks, _, _ := unstructured.NestedSlice(pipelineRun.Object, "status", "pipelineSpec", list)
	var names []string
	for _, t := range tasks {
		task, _ := t.(map[string]any)
		if name, _ := task["name"].(string); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// podRecord makes pod.json.
func (r ownedPod) podRecord() record.Pod {
	return record.Pod{
		Namespace: r.object.Namespace, PodName: r.object.Name, PodUID: string(r.object.UID),
		TaskRun: r.taskRun.Name, TaskRunUID: string(r.taskRun.UID),
		PipelineTask: r.taskRun.task,
		Created:      createdAt(r.object.CreationTimestamp),
		Containers:   containers(r.object),
		Labels:       r.object.Labels,
	}
}

// createdAt has whole seconds and UTC, whatever made it, so that the same object gives the same bytes.
func createdAt(t metav1.Time) time.Time { return t.UTC().Truncate(time.Second) }

// containers lists the pod's containers as pod.json has them. The shipper is not among them: it is no part of what the user runs.
func containers(pod *corev1.Pod) []record.Container {
	reasons := map[string]string{}
	for _, s := range contract.ParseSkipped(pod.Annotations[contract.SkippedAnnotation]) {
		reasons[s.Container] = s.Reason
	}
	for _, name := range contract.ParseExclude(pod.Annotations[contract.ExcludeAnnotation]) {
		reasons[name] = record.SkippedOptedOut // also where the webhook was not asked
	}
	describe := func(c corev1.Container, kind record.ContainerKind) record.Container {
		out := record.Container{Name: c.Name, Kind: kind, Captured: slices.Equal(c.Command, []string{contract.TeePath})}
		if !out.Captured {
			out.Skipped = record.SkippedUnknown
			for _, name := range []string{contract.SkippedPod, c.Name} { // the container's own reason is the better one
				if reason, ok := reasons[name]; ok {
					out.Skipped = reason
				}
			}
		}
		return out
	}
	var out []record.Container
	for _, c := range pod.Spec.InitContainers {
		switch {
		case c.Name == contract.ShipperContainer:
		case c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways:
			out = append(out, describe(c, record.Sidecar))
		default:
			out = append(out, describe(c, record.Init))
		}
	}
	for _, c := range pod.Spec.Containers {
		kind := record.Sidecar
		if strings.HasPrefix(c.Name, stepPrefix) {
			kind = record.Step
		}
		out = append(out, describe(c, kind))
	}
	return out
}
