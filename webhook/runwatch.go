package main

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// runPage is how many runs or pods are asked for at once. One has tens of kilobytes.
const runPage = 100

// runObject is what is kept of a PipelineRun or TaskRun. It is never changed. It holds no maps, which take more room than all else together.
type runObject struct {
	metav1.ObjectMeta // name, namespace, UID, version and creation
	owner             // what it is
	ending
	pipelineRun *pipelineRun // that controls it, or nil: as with tickets, what other controllers make is a run of its own
	task        string       // the label of the pipeline's task
	annotations []annotation // of ours
	pods        []taskPod    // of a TaskRun that is not marked: of each try
	children    []string     // of a PipelineRun that is not marked: names of its TaskRuns
	refusal     *podRefusal  // of a TaskRun whose pod was not made
}

// pipelineRun is an owner reference.
type pipelineRun struct {
	name string
	uid  types.UID
}

// annotation is one of ourAnnotations.
type annotation struct{ name, value string }

var ourAnnotations = []string{contract.InjectKey, contract.LogsAnnotation, contract.SealedAnnotation, contract.SealedUIDAnnotation, contract.SealedReasonAnnotation}

// annotation looks up one of ourAnnotations.
func (o *runObject) annotation(name string) (value string, ok bool) {
	for _, a := range o.annotations {
		if a.name == name {
			return a.value, true
		}
	}
	return "", false
}

// taskPod is a pod that a TaskRun's status names.
type taskPod struct {
	name string
	ran  bool // one of its steps has started
}

// DeepCopyObject and GetObjectKind are for runtime.Object, which what a list returns has to be.
func (o *runObject) DeepCopyObject() runtime.Object {
	c := *o
	return &c
}

// GetObjectKind is empty, as of typed objects that come in a list.
func (o *runObject) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// archived is the run's place in the archive. It is of use for what key stands for: a PipelineRun, or a TaskRun without one.
func (o *runObject) archived() layout.Run {
	run := layout.Run{Namespace: o.Namespace, Name: o.Name, UID: string(o.UID)}
	if o.owner == taskRunOwner {
		run.Name = layout.NoPipelineRun
	}
	return run
}

// runKey names a run: a PipelineRun, or a TaskRun without one.
type runKey struct {
	owner
	namespace, name string
	uid             types.UID
}

func (k runKey) attrs() []any {
	return []any{"kind", k.kind, "namespace", k.namespace, "run", k.name, "runUID", string(k.uid)}
}

// key is the run that the object belongs to.
func (o *runObject) key() runKey {
	if pr := o.pipelineRun; pr != nil {
		return runKey{pipelineRunOwner, o.Namespace, pr.name, pr.uid}
	}
	return runKey{o.owner, o.Namespace, o.Name, o.UID}
}

// slimRun is slimOf for what a watch delivers.
func slimRun(o any) (any, error) {
	if obj, ok := o.(*unstructured.Unstructured); ok {
		return slimOf(obj), nil
	}
	return o, nil // slim already, or a notice of a deletion that was missed
}

// slimOf makes a runObject of what the API server has. It takes whatever shape that is: what is not as it should be looks as if it were not there.
func slimOf(obj *unstructured.Unstructured) *runObject {
	slim := &runObject{
		ObjectMeta: metav1.ObjectMeta{
			Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp(),
		},
		owner:  taskRunOwner,
		ending: endOf(obj),
	}
	annotations := obj.GetAnnotations()
	for _, name := range ourAnnotations {
		if v, ok := annotations[name]; ok {
			slim.annotations = append(slim.annotations, annotation{name, v})
		}
	}
	status, _ := obj.Object["status"].(map[string]any)
	if obj.GetKind() == pipelineRunOwner.kind {
		slim.owner = pipelineRunOwner
		if !marked(slim) {
			slim.children = taskRunsOf(status)
		}
		return slim
	}
	if ref := controlledBy(obj.GetOwnerReferences(), pipelineRunOwner); ref != nil {
		slim.pipelineRun = &pipelineRun{ref.Name, ref.UID}
	}
	slim.task = obj.GetLabels()[pipelineTaskLabel]
	slim.refusal = refusalOf(status)
	if !marked(slim) {
		slim.pods = podsOf(status, slim.CreationTimestamp.Time)
	}
	return slim
}

// taskRunsOf reads the names of the TaskRuns of a PipelineRun.
func taskRunsOf(status map[string]any) (names []string) {
	children, _ := status["childReferences"].([]any)
	for _, c := range children {
		child, _ := c.(map[string]any)
		if name, _ := child["name"].(string); name != "" && child["kind"] == taskRunOwner.kind {
			names = append(names, name)
		}
	}
	return names
}

// podsOf reads the pods of a TaskRun: retryTaskRun in Tekton's pkg/reconciler/taskrun keeps the status of each try.
func podsOf(status map[string]any, created time.Time) (pods []taskPod) {
	for try := range triesOf(status) {
		if name, _ := try["podName"].(string); name != "" {
			pods = append(pods, taskPod{name, ran(try, created)})
		}
	}
	return pods
}

// triesOf yields the status of each try of a TaskRun, the last one's last.
func triesOf(status map[string]any) iter.Seq[map[string]any] {
	return func(yield func(map[string]any) bool) {
		retries, _ := status["retriesStatus"].([]any)
		for _, try := range append(retries[:len(retries):len(retries)], any(status)) {
			try, _ := try.(map[string]any)
			if !yield(try) {
				return
			}
		}
	}
}

// ran says whether a step has started, by the status of a try. A step that never did gets the TaskRun's creation as its start when the TaskRun is cancelled (terminateStepsInPod in Tekton's
// pkg/reconciler/taskrun); no container starts within the second in which its TaskRun was made.
func ran(try map[string]any, created time.Time) bool {
	steps, _ := try["steps"].([]any)
	for _, s := range steps {
		step, _ := s.(map[string]any)
		for _, state := range []string{"running", "terminated"} {
			state, _ := step[state].(map[string]any)
			if statusTime(state["startedAt"]).After(created) {
				return true
			}
		}
	}
	return false
}

var tektonV1 = schema.GroupVersion{Group: tektonGroup, Version: "v1"}

// byPipelineRun is the index of TaskRuns by the UID of their PipelineRun.
const byPipelineRun = "pipelineRun"

// runWatch knows the PipelineRuns and TaskRuns of all namespaces.
//
// It does not ask which namespaces are labelled. What was captured is in the archive, and stays there when the label is taken away; and what was not is left alone, whatever the label says.
type runWatch struct {
	tekton                 dynamic.Interface
	pipelineRuns, taskRuns cache.Indexer
	informers              []cache.Controller
	// refused hears of each refusal of a TaskRun's pod, if it is set before run.
	refused func(run *runObject, early bool)
}

// newRunWatch makes the watch, which tells changed of every change; one of the two is nil where the object is new or gone. It sends nothing before run.
func newRunWatch(tekton dynamic.Interface, changed func(before, after *runObject, initial bool)) *runWatch {
	w := &runWatch{tekton: tekton}
	handler := cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(o any, initial bool) {
			if o, ok := o.(*runObject); ok {
				changed(nil, o, initial)
				w.noteRefusal(nil, o, initial)
			}
		},
		UpdateFunc: func(before, after any) {
			b, okBefore := before.(*runObject)
			a, okAfter := after.(*runObject)
			if okBefore && okAfter {
				changed(b, a, false)
				w.noteRefusal(b.refusal, a, false)
			}
		},
		DeleteFunc: func(o any) {
			if unseen, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = unseen.Obj
			}
			if o, ok := o.(*runObject); ok {
				changed(o, nil, false)
			}
		},
	}
	watched := func(of owner, indexers cache.Indexers) cache.Indexer {
		sample := &unstructured.Unstructured{}
		sample.SetGroupVersionKind(tektonV1.WithKind(of.kind))
		client := tekton.Resource(tektonV1.WithResource(of.resource))
		store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ListerWatcher: &cache.ListWatch{
				ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
					return listSlim(ctx, client, o)
				},
				WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
					return client.Watch(ctx, o)
				},
			},
			ObjectType: sample, Transform: slimRun, Handler: handler, Indexers: indexers,
		})
		w.informers = append(w.informers, informer)
		return store.(cache.Indexer) // with Indexers it is one
	}
	w.pipelineRuns = watched(pipelineRunOwner, cache.Indexers{})
	w.taskRuns = watched(taskRunOwner, cache.Indexers{byPipelineRun: func(o any) ([]string, error) {
		if run, ok := o.(*runObject); ok && run.pipelineRun != nil {
			return []string{string(run.pipelineRun.uid)}, nil
		}
		return nil, nil
	}})
	return w
}

// noteRefusal hands a refusal on that is another one than before.
func (w *runWatch) noteRefusal(before *podRefusal, run *runObject, early bool) {
	if w.refused != nil && run.refusal != nil && (before == nil || before.try != run.refusal.try) {
		w.refused(run, early)
	}
}

// slimList is a list of what is kept of objects. None of them keeps the others in memory, as items of a typed list do.
type slimList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []runtime.Object
}

// DeepCopyObject is for runtime.Object.
func (l *slimList) DeepCopyObject() runtime.Object {
	c := *l
	c.Items = make([]runtime.Object, len(l.Items))
	for i, o := range l.Items {
		c.Items[i] = o.DeepCopyObject()
	}
	return &c
}

// listSlim lists all runs page by page, so that no more than a page of whole runs is in memory. An API server that streams lists (Kubernetes 1.34 and newer) is not asked so. An older one sends all at once to
// whoever takes what its cache holds: hundreds of megabytes where there are 10,000 runs.
func listSlim(ctx context.Context, client dynamic.ResourceInterface, o metav1.ListOptions) (*slimList, error) {
	return listPages(o, func(o metav1.ListOptions, all *slimList) (metav1.ListInterface, error) {
		page, err := client.List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			all.Items = append(all.Items, slimOf(&page.Items[i]))
		}
		return page, nil
	})
}

// listPages asks for one page after the other. Each time, list adds what is kept of a page.
func listPages(o metav1.ListOptions, list func(metav1.ListOptions, *slimList) (metav1.ListInterface, error)) (*slimList, error) {
	all := &slimList{}
	o.ResourceVersion, o.ResourceVersionMatch, o.Limit, o.Continue = "", "", runPage, ""
	for {
		page, err := list(o, all)
		if err != nil {
			return nil, err
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			all.ResourceVersion = page.GetResourceVersion()
			return all, nil
		}
	}
}

// run watches until the context ends.
func (w *runWatch) run(ctx context.Context) {
	var group sync.WaitGroup
	for _, informer := range w.informers {
		group.Go(func() { informer.RunWithContext(ctx) })
	}
	group.Wait()
}

// synced says whether all runs are known.
func (w *runWatch) synced() bool {
	for _, informer := range w.informers {
		if !informer.HasSynced() {
			return false
		}
	}
	return true
}

// get returns the run, or nil.
func (w *runWatch) get(k runKey) *runObject {
	store := w.taskRuns
	if k.owner == pipelineRunOwner {
		store = w.pipelineRuns
	}
	return stored(store, k.namespace, k.name, k.uid)
}

// stored looks one up. An empty UID stands for any.
func stored(store cache.Store, namespace, name string, uid types.UID) *runObject {
	o, found, err := store.GetByKey(namespace + "/" + name)
	if err != nil || !found {
		return nil
	}
	run, ok := o.(*runObject)
	if !ok || uid != "" && run.UID != uid {
		return nil
	}
	return run
}

// tasks returns the TaskRuns of a run that are there: those of a PipelineRun, or the TaskRun itself. The watch of TaskRuns may be behind that of PipelineRuns, so those that the PipelineRun names and that are not known are
// asked for.
func (w *runWatch) tasks(ctx context.Context, run *runObject) ([]*runObject, error) {
	if run.owner == taskRunOwner {
		return []*runObject{run}, nil
	}
	found, err := w.taskRuns.ByIndex(byPipelineRun, string(run.UID))
	if err != nil {
		return nil, fmt.Errorf("find the TaskRuns: %w", err)
	}
	var tasks []*runObject
	for _, o := range found {
		// An owner reference is whatever a tenant types, also in another namespace.
		if task := o.(*runObject); task.key() == run.key() {
			tasks = append(tasks, task)
		}
	}
	for _, name := range run.children {
		if slices.ContainsFunc(tasks, func(t *runObject) bool { return t.Name == name }) {
			continue
		}
		task := stored(w.taskRuns, run.Namespace, name, "") // it may have come since the look above
		if task == nil {
			obj, err := w.tekton.Resource(tektonV1.WithResource(taskRunOwner.resource)).Namespace(run.Namespace).Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("get TaskRun %s/%s: %w", run.Namespace, name, err)
			}
			task = slimOf(obj)
		}
		if task.key() == run.key() {
			tasks = append(tasks, task)
		}
	}
	return tasks, nil
}
