package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// maxReason bounds contract.SealedReasonAnnotation, in bytes.
const maxReason = 512

// checkPageURL returns the base of the page's address without a final slash.
func checkPageURL(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("--page-url %q is not like https://logs.example.com", text)
	}
	return strings.TrimRight(text, "/"), nil
}

// marked says whether the object was annotated when no more of its logs was to come. An annotation that was copied from another object is none.
func marked(o *runObject) bool {
	sealed, _ := o.annotation(contract.SealedAnnotation)
	uid, _ := o.annotation(contract.SealedUIDAnnotation)
	return sealed != "" && uid == string(o.UID)
}

// foreign are the annotations of an object that has not ended yet that are not true of it. They come from another one: Tekton copies annotations from PipelineRun to TaskRun, and whoever runs something again may copy
// them to the new run. The PipelineRun's address is true of its TaskRuns.
//
// Tekton may write back what it read before (updateLabelsAndAnnotations in its reconcilers). Then the watch tells it, and it is taken away again.
func foreign(o *runObject) map[string]string {
	without := map[string]string{}
	for _, name := range []string{contract.SealedAnnotation, contract.SealedUIDAnnotation, contract.SealedReasonAnnotation} {
		if _, ok := o.annotation(name); ok {
			without[name] = ""
		}
	}
	if address, ok := o.annotation(contract.LogsAnnotation); ok {
		page, err := contract.ParsePage(address)
		if err != nil || page.Namespace != o.Namespace || page.UID != string(o.key().uid) {
			without[contract.LogsAnnotation] = ""
		}
	}
	return without
}

// address is that of the page that shows the object's logs.
func (a *annotator) address(o *runObject) string {
	page := contract.Page{Namespace: o.Namespace, UID: string(o.key().uid)}
	if o.pipelineRun != nil {
		page.Task = o.task
		if page.Validate() != nil { // whatever a tenant has typed
			page.Task = ""
		}
	}
	return page.Address(a.pageURL)
}

// mark annotates a run that has ended and of which no more will come: the TaskRuns first and the
// run last, since a run that is marked is not looked at again. From those that have opted out it
// takes away what they may have from elsewhere. It says whether the API server refused the run for
// good.
func (a *annotator) mark(ctx context.Context, run *runObject, tasks []*runObject, v verdict) (refused bool, err error) {
	for _, t := range tasks {
		if t == run {
			continue
		}
		want := a.marks(t, v.taskRuns[t.Name], v.describe(t.Name, missed))
		if _, _, err := a.annotateOrSkip(ctx, t, want); err != nil {
			return false, err
		}
	}
	want := a.marks(run, v.standing, v.describe("", missed))
	changed, refused, err := a.annotateOrSkip(ctx, run, want)
	if err != nil || !changed || v.standing == 0 {
		return refused, err
	}
	a.done.WithLabelValues(v.sealed()).Inc()
	a.missed.Add(float64(v.steps()))
	a.log.Info("no more of a run's logs will come", append(run.key().attrs(), "sealed", v.sealed())...)
	return false, nil
}

// marks are the annotations of an object that is done. One without a standing has no log that
// should be in the archive.
func (a *annotator) marks(o *runObject, s standing, reason string) map[string]string {
	want := map[string]string{contract.SealedAnnotation: "", contract.SealedUIDAnnotation: "", contract.SealedReasonAnnotation: "", contract.LogsAnnotation: ""}
	if s == 0 {
		return want
	}
	want[contract.SealedAnnotation], want[contract.SealedUIDAnnotation] = s.sealed(), string(o.UID)
	want[contract.SealedReasonAnnotation] = cut(reason, maxReason)
	switch {
	case a.pageURL != "":
		want[contract.LogsAnnotation] = a.address(o)
	default: // one from when there was an address stays if it is the object's own
		if _, ok := foreign(o)[contract.LogsAnnotation]; !ok {
			delete(want, contract.LogsAnnotation)
		}
	}
	return want
}

// tell makes the event on a run of which something is missing, or may be. It has one name for each run, so there is one, whoever makes it and whatever it says.
func (a *annotator) tell(ctx context.Context, run *runObject, v verdict) error {
	var reason, message string
	switch {
	case v.standing < doubtful:
		return nil
	case v.standing == doubtful:
		reason, message = "ShiplogLost", "some of what steps printed last may be missing in the archive: "
	case v.standing == lossy:
		reason, message = "ShiplogLost", "bytes that steps printed are not in the archive: "
	case v.standing == missed:
		reason = "ShiplogMissed"
		message = "logs of steps are not in the archive; their pods had the only copy: "
	default:
		reason, message = "ShiplogPartial", "the archive of this run is not complete, and will not be: "
	}
	about := corev1.ObjectReference{APIVersion: tektonV1.String(), Kind: run.kind, Namespace: run.Namespace, Name: run.Name, UID: run.UID}
	err := warn(ctx, a.core, time.Now(), "shiplog-lost-"+string(run.UID), reason, about, message+v.describe("", doubtful))
	if final(err) || apierrors.IsNotFound(err) { // as in a namespace that is being deleted, or is: it will not get better
		a.log.Warn("no event could be made", "error", err)
		return nil
	}
	return err
}

// annotateOrSkip is annotate, where a refusal for good costs nothing but that object's annotations. It is counted, and said: of all objects of a kind once where we may not annotate them.
func (a *annotator) annotateOrSkip(ctx context.Context, o *runObject, want map[string]string) (changed, refused bool, err error) {
	changed, err = a.annotate(ctx, o, want)
	if !final(err) {
		return changed, false, err
	}
	a.refused.Inc()
	if !apierrors.IsForbidden(err) {
		a.log.Warn("a run is not annotated: the API server does not take it, and is not asked again", append(o.key().attrs(), "error", err)...)
		return false, true, nil
	}
	a.mu.Lock()
	said := a.forbidden[o.kind]
	a.forbidden[o.kind] = true
	a.mu.Unlock()
	if !said {
		a.log.Warn("annotating runs is forbidden: give the ClusterRoles shiplog-webhook and "+
			"shiplog-annotator the verb patch for them, or look for a policy that forbids it. "+
			"This is not said again", append(o.key().attrs(), "error", err)...)
	}
	return false, true, nil
}

// annotate sets annotations and removes those whose value is empty, and says whether there was anything to do. An object that is gone needs none.
//
// The patch is a JSON merge patch that names nothing but these annotations, and the UID: the API server refuses another one of that name.
func (a *annotator) annotate(ctx context.Context, o *runObject, want map[string]string) (bool, error) {
	change := map[string]any{}
	for name, value := range want {
		switch have, ok := o.annotation(name); {
		case value == "" && ok:
			change[name] = nil
		case value != "" && value != have:
			change[name] = value
		}
	}
	if len(change) == 0 {
		return false, nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": o.UID, "annotations": change}})
	if err != nil {
		return false, fmt.Errorf("encode a patch: %w", err)
	}
	_, err = a.tekton.Resource(tektonV1.WithResource(o.resource)).Namespace(o.Namespace).Patch(ctx, o.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("annotate %s %s/%s: %w", o.kind, o.Namespace, o.Name, err)
	}
	return true, nil
}
