package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// missedPod is a pod that ran and of which the archive has nothing, though nobody has opted out of
// it.
type missedPod struct {
	task   *runObject
	try    int // of the TaskRun, from 0
	name   string
	object *corev1.Pod // nil if it is gone
}

// captured says whether shiplog is in the pod. Of one that is gone, nobody knows.
func (p missedPod) captured() bool {
	return p.object != nil && injected(p.object) && capturesAny(p.object)
}

// made is when the pod was made. One that is gone is as old as its TaskRun, as far as is known.
func (p missedPod) made() time.Time {
	if p.object == nil {
		return p.task.CreationTimestamp.Time
	}
	return p.object.CreationTimestamp.Time
}

// findMissed returns the pods of a run that ran and that the archive has nothing of. A pod of which
// no step has started has no log that could be missed. matters says whether a pod that is gone
// counts. If not, only what the API server has in memory is asked for.
func (a *annotator) findMissed(
	ctx context.Context, run *runObject, tasks []*runObject, tree *backend.Tree, matters bool,
) ([]missedPod, error) {
	var found []missedPod
	if hasOptedOut(run) {
		return nil, nil
	}
	for _, t := range tasks {
		if hasOptedOut(t) {
			continue
		}
		for _, pod := range t.pods {
			if !pod.ran {
				continue
			}
			// "0" takes what the API server has in memory, which may lack a pod: see ticketService.getPod.
			object, err := a.getPod(ctx, t, pod.name, "0")
			archived := inTree(tree, t.Name, pod.name, object)
			if err == nil && object == nil && !archived && matters {
				object, err = a.getPod(ctx, t, pod.name, "")
				archived = inTree(tree, t.Name, pod.name, object)
			}
			if err != nil {
				return nil, fmt.Errorf("get pod %s/%s: %w", run.Namespace, pod.name, err)
			}
			out := object != nil && object.Annotations[contract.InjectKey] == contract.InjectDisabled
			if !archived && !out {
				found = append(found, missedPod{t, int(pod.try), pod.name, object})
			}
		}
	}
	return found, nil
}

// hasOptedOut says whether somebody wants no log of the run or TaskRun.
func hasOptedOut(o *runObject) bool {
	inject, _ := o.annotation(contract.InjectKey)
	return inject == contract.InjectDisabled
}

// getPod returns a TaskRun's pod, or nil if it is gone. Another pod of its name is another pod.
func (a *annotator) getPod(
	ctx context.Context, task *runObject, name, version string,
) (*corev1.Pod, error) {
	o := metav1.GetOptions{ResourceVersion: version}
	pod, err := a.core.CoreV1().Pods(task.Namespace).Get(ctx, name, o)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if by := controlledBy(pod.OwnerReferences, taskRunOwner); by == nil || by.UID != task.UID {
		return nil, nil
	}
	return pod, nil
}

// inTree says whether the archive has a TaskRun's pod. A TaskRun may have had several of one name:
// Tekton makes a pod that was evicted anew under the name that it had. Of a pod that is gone, the
// name has to do, and one without a record may be any of that TaskRun's.
func inTree(tree *backend.Tree, taskRun, name string, pod *corev1.Pod) bool {
	for _, t := range tree.TaskRuns {
		if t.Name != taskRun {
			continue
		}
		for _, p := range t.Pods {
			switch {
			case pod != nil && p.Key.PodUID == string(pod.UID):
				return true
			case pod == nil && (p.Record == nil || p.Record.PodName == name):
				return true
			}
		}
	}
	return false
}

// ours says whether shiplog should have captured a run that the archive has nothing of: it is in
// one of its pods, or one was made since the namespace has shiplog's label. Most runs without an
// archive are none of ours.
func ours(pods []missedPod, label namespaceLabel) bool {
	return slices.ContainsFunc(pods, func(p missedPod) bool {
		return p.captured() || label.on && !p.made().Before(label.since)
	})
}

// namespaceLabel says whether the webhook is asked about pods of a namespace, and since when at the
// latest.
type namespaceLabel struct {
	on    bool
	since time.Time
}

// labelOf reads a namespace's label.
func (a *annotator) labelOf(ctx context.Context, namespace string) (namespaceLabel, error) {
	o := metav1.GetOptions{ResourceVersion: "0"}
	ns, err := a.core.CoreV1().Namespaces().Get(ctx, namespace, o)
	if apierrors.IsNotFound(err) { // it is being deleted with all that is in it
		return namespaceLabel{}, nil
	}
	if err != nil {
		return namespaceLabel{}, fmt.Errorf("get namespace %s: %w", namespace, err)
	}
	return readLabel(ns), nil
}

// readLabel reads the label, and when the API server noted that somebody set it. That time also
// moves when the same tool sets other fields. Where it noted nothing, the label counts as always
// there: what is said too often is better than a log that is lost in silence.
func readLabel(ns *corev1.Namespace) namespaceLabel {
	if ns.Labels[contract.InjectKey] != contract.InjectEnabled {
		return namespaceLabel{}
	}
	label := namespaceLabel{on: true}
	for _, entry := range ns.ManagedFields {
		var fields struct {
			Metadata struct {
				Labels map[string]any `json:"f:labels"`
			} `json:"f:metadata"`
		}
		if entry.Time == nil || entry.FieldsV1 == nil {
			continue
		}
		if err := json.Unmarshal(entry.FieldsV1.Raw, &fields); err != nil {
			continue // as if it were not noted
		}
		if _, sets := fields.Metadata.Labels["f:"+contract.InjectKey]; !sets {
			continue
		}
		// Several may have set the same label. It is there since the first did.
		if label.since.IsZero() || entry.Time.Time.Before(label.since) {
			label.since = entry.Time.Time
		}
	}
	return label
}

// recordMissed puts what a first ticket would have put of these pods, and pod.json says why there
// is nothing else. A reader who has the store alone learns of them only so. Whoever records them,
// and however often, writes the same.
func (a *annotator) recordMissed(
	ctx context.Context, run *runObject, archived bool, pods []missedPod,
) error {
	for _, p := range pods {
		owned, rec, err := a.missedRecord(ctx, run, p)
		if err != nil {
			return err
		}
		if owned.object == nil { // its TaskRun has been deleted, and is none of the run's any more
			continue
		}
		objects, err := owned.objectsWith(rec)
		if err != nil {
			return err
		}
		for key, body := range objects {
			if err := a.store.Put(ctx, key, body); err != nil {
				return fmt.Errorf("record that pod %s/%s has no log: %w", run.Namespace, p.name, err)
			}
		}
	}
	if archived {
		return nil
	}
	// The last, since a run that has this counts as archived.
	whole, err := a.get(ctx, run)
	if err != nil || whole == nil { // nil: it was deleted meanwhile, as were its pods
		return err
	}
	rec := runRecord(whole, run.owner)
	inNamespace(ctx, a.core, a.log, &rec)
	body, err := record.Encode(rec)
	if err != nil {
		return err
	}
	if err := a.store.Put(ctx, run.archived().RunKey(), body); err != nil {
		return fmt.Errorf("record a run whose pods have no logs: %w", err)
	}
	return nil
}

// get asks for all of a run or TaskRun. It returns nil if that is gone, also where another one has
// its name.
func (a *annotator) get(ctx context.Context, o *runObject) (*unstructured.Unstructured, error) {
	whole, err := a.watch.kept(o.owner).ask(ctx, o.Namespace, o.Name)
	if err != nil || whole == nil || whole.GetUID() != o.UID {
		return nil, err
	}
	return whole, nil
}

// missedRecord makes pod.json of a pod that the archive has nothing of. Of one that is gone the
// TaskRun still has the steps; if that is gone too, what it returns has no object.
func (a *annotator) missedRecord(ctx context.Context, run *runObject, p missedPod) (
	ownedPod, record.Pod, error,
) {
	owned := ownedPod{object: p.object, taskRun: p.task}
	if run.owner == pipelineRunOwner {
		owned.pipelineRun = run
	}
	var rec record.Pod
	if p.object == nil {
		whole, err := a.get(ctx, p.task)
		if err != nil || whole == nil {
			return owned, rec, err
		}
		owned.object = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: p.task.Namespace, Name: p.name, UID: types.UID(layout.GonePodUID(p.try)),
			CreationTimestamp: p.task.CreationTimestamp,
		}}
		rec = owned.podRecord()
		rec.Containers = stepsOf(whole, p.name)
	} else {
		rec = owned.podRecord()
		rec.Containers = missedContainers(rec.Containers, injected(p.object))
	}
	owned.pod = layout.Pod{Run: run.archived(), TaskRun: p.task.Name, PodUID: string(owned.object.UID)}
	return owned, rec, owned.pod.Validate()
}

// missedContainers are a pod's containers where the archive has nothing of it.
func missedContainers(all []record.Container, injected bool) []record.Container {
	out := slices.Clone(all)
	for i := range out {
		c := &out[i]
		switch {
		case c.Captured:
			c.Captured, c.Skipped = false, record.SkippedNothingArrived
		case c.Skipped == record.SkippedUnknown && !injected:
			c.Skipped = record.SkippedNoAnswer
		case layout.CheckName("reason", c.Skipped) != nil: // a tenant can type the annotation, too
			c.Skipped = record.SkippedUnknown
		}
	}
	return out
}

// stepsOf reads the steps of a TaskRun's pod that is gone.
func stepsOf(taskRun *unstructured.Unstructured, pod string) (steps []record.Container) {
	status, _ := taskRun.Object["status"].(map[string]any)
	for _, try := range triesOf(status) {
		if try["podName"] != pod {
			continue
		}
		list, _ := try["steps"].([]any)
		for _, s := range list {
			step, _ := s.(map[string]any)
			name, _ := step["container"].(string)
			if title, _ := step["name"].(string); name == "" {
				name = stepPrefix + title
			}
			c := record.Container{Name: name, Kind: record.Step, Skipped: record.SkippedPodGone}
			isStep := strings.HasPrefix(name, stepPrefix) && layout.CheckName("step", name) == nil
			if isStep && !slices.Contains(steps, c) {
				steps = append(steps, c)
			}
		}
	}
	return steps
}
