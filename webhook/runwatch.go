package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
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
	"k8s.io/utils/lru"

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
	children    []string     // of a PipelineRun: names of its TaskRuns
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
	try  int32 // of the TaskRun, from 0. Tries whose pod was refused have none
	ran  bool  // one of its steps has started
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
		slim.children = taskRunsOf(status)
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
	for i, try := range triesOf(status) {
		if name, _ := try["podName"].(string); name != "" {
			pods = append(pods, taskPod{name, int32(i), ran(try, created)})
		}
	}
	return pods
}

// triesOf yields the status of each try of a TaskRun with its number, the last one's last.
func triesOf(status map[string]any) iter.Seq2[int, map[string]any] {
	return func(yield func(int, map[string]any) bool) {
		retries, _ := status["retriesStatus"].([]any)
		for i, try := range append(retries[:len(retries):len(retries)], any(status)) {
			try, _ := try.(map[string]any)
			if !yield(i, try) {
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

const (
	// maxEnded bounds how many runs and how many TaskRuns that have ended are kept at a time. Of what
	// does not fit only the key is known, and it is asked for when its turn comes.
	maxEnded = 20_000
	// maxSettled bounds how many are known to be done by nothing but our memory, in 16 bytes each.
	// One that is forgotten is looked at again, and nothing comes of it.
	maxSettled = 500_000
	// maxRefusals bounds the memory of the refusals that were handed on.
	maxRefusals = 4096
)

// runWatch knows the PipelineRuns and TaskRuns of all namespaces that have not ended, and those
// that ended while it watched and are not done. What is done is not kept: a cluster may have
// hundreds of thousands of them. What has ended and is not here is asked for.
//
// It does not ask which namespaces are labelled. What was captured is in the archive, and stays
// there when the label is taken away. Of what was not captured, inspect asks for the label.
type runWatch struct {
	tekton                 dynamic.Interface
	pipelineRuns, taskRuns *keptRuns
	// due says whether something is to be done about a run by itself.
	due func(*runObject) bool
	// changed hears of every change; before is nil where the object was not kept, after where it is
	// gone.
	changed func(before, after *runObject)
	// left hears that a list had runs that are due and have ended. They are not kept.
	left func()
	// onlyLive, if it is set before run, lets go of every run as it ends.
	onlyLive bool
	// refused hears of each refusal of a TaskRun's pod, if it is set before run.
	refused func(run *runObject, early bool)
	told    *lru.Cache // UID → the latest try whose refusal was handed on

	mu      sync.Mutex
	settled map[uidSum]struct{} // that have ended and are done, though no mark says so
}

// uidSum stands for a UID. A digest has one length, whatever the UID looks like.
type uidSum [16]byte

func sumOf(uid types.UID) (s uidSum) {
	sum := sha256.Sum256([]byte(uid))
	copy(s[:], sum[:])
	return s
}

// newRunWatch makes the watch. It sends nothing before run.
func newRunWatch(
	tekton dynamic.Interface,
	due func(*runObject) bool, changed func(before, after *runObject), left func(),
) *runWatch {
	w := &runWatch{
		tekton: tekton, due: due, changed: changed, left: left,
		told: lru.New(maxRefusals), settled: map[uidSum]struct{}{},
	}
	w.pipelineRuns = &keptRuns{
		watch: w, of: pipelineRunOwner,
		Indexer: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
	}
	w.taskRuns = &keptRuns{
		watch: w, of: taskRunOwner,
		Indexer: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{
			byPipelineRun: func(o any) ([]string, error) {
				if run, ok := o.(*runObject); ok && run.pipelineRun != nil {
					return []string{string(run.pipelineRun.uid)}, nil
				}
				return nil, nil
			},
		}),
	}
	return w
}

// keptRuns are the PipelineRuns or the TaskRuns that are kept. A reflector of client-go's fills it.
// It is no informer, since that keeps all that it lists.
type keptRuns struct {
	cache.Indexer
	watch  *runWatch
	of     owner
	synced atomic.Bool

	mu    sync.Mutex // of what is in the Indexer
	ended int        // that have ended, of those in it
}

// Add implements cache.ReflectorStore.
func (k *keptRuns) Add(o any) error { return k.Update(o) }

// Update implements cache.ReflectorStore.
func (k *keptRuns) Update(o any) error {
	run, ok := o.(*runObject)
	if !ok {
		return fmt.Errorf("watch %s: a %T came", k.of.resource, o)
	}
	before := k.keep(run)
	if before != nil && before.UID != run.UID { // it was deleted behind our back
		k.watch.changed(before, nil)
		before = nil
	}
	k.watch.noteRefusal(before, run)
	if before != nil || marked(run) || !k.watch.isSettled(run) {
		k.watch.changed(before, run)
	}
	return nil
}

// keep puts what is to be kept in place of what was, which it returns. Who reads meanwhile sees one
// of both.
func (k *keptRuns) keep(run *runObject) (before *runObject) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before = stored(k.Indexer, run.Namespace, run.Name, "")
	if run.over() {
		if before == nil || before.UID != run.UID || k.watch.onlyLive ||
			!before.over() && k.ended >= maxEnded {
			k.drop(before)
			return before
		}
		k.ended++ // until settle: a mark may be there before all is done, and TaskRuns wait for others
	}
	if before != nil && before.over() {
		k.ended--
	}
	_ = k.Indexer.Add(run) // it fails only where there is no key
	return before
}

// drop takes one away that is in the Indexer, or nil.
func (k *keptRuns) drop(run *runObject) {
	if run == nil {
		return
	}
	if run.over() {
		k.ended--
	}
	_ = k.Indexer.Delete(run) // as above
}

// Delete implements cache.ReflectorStore.
func (k *keptRuns) Delete(o any) error {
	run, ok := o.(*runObject)
	if !ok {
		return fmt.Errorf("watch %s: a %T went", k.of.resource, o)
	}
	k.mu.Lock()
	k.drop(stored(k.Indexer, run.Namespace, run.Name, run.UID))
	k.mu.Unlock()
	k.watch.unsettle(run)
	k.watch.changed(run, nil)
	return nil
}

// Replace implements cache.ReflectorStore. Of what has ended, the list has what was kept before.
func (k *keptRuns) Replace(list []any, _ string) error {
	here := make(map[types.UID]bool, len(list))
	for _, o := range list {
		if err := k.Update(o); err != nil {
			return err
		}
		here[o.(*runObject).UID] = true
	}
	for _, o := range k.Indexer.List() {
		if run := o.(*runObject); !here[run.UID] {
			if err := k.Delete(run); err != nil {
				return err
			}
		}
	}
	k.synced.Store(true)
	return nil
}

// list is what the reflector gets: all but what has ended and is not kept.
func (k *keptRuns) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	left := false
	all, err := listSlim(ctx, k.client(), o, func(run *runObject) bool {
		if !run.over() || stored(k.Indexer, run.Namespace, run.Name, run.UID) != nil {
			return true
		}
		k.watch.noteRefusal(nil, run)
		left = left || k.watch.due(run) && !k.watch.isSettled(run)
		return false
	})
	if err == nil && left {
		k.watch.left()
	}
	return all, err
}

func (k *keptRuns) client() dynamic.NamespaceableResourceInterface {
	return k.watch.tekton.Resource(tektonV1.WithResource(k.of.resource))
}

// run watches until the context ends.
func (k *keptRuns) run(ctx context.Context) {
	var streams sync.WaitGroup
	defer streams.Wait()
	source := &cache.ListWatch{
		ListWithContextFunc: k.list,
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			in, err := k.client().Watch(ctx, o)
			if err != nil {
				return nil, err
			}
			return slimEvents(in, &streams), nil
		},
	}
	cache.NewReflectorWithOptions(pagedSource{source}, &runObject{}, k, cache.ReflectorOptions{
		Name: k.of.resource,
	}).RunWithContext(ctx)
}

// pagedSource is listed page by page. From a stream, client-go's reflector takes all at once.
type pagedSource struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is what client-go asks for.
func (pagedSource) IsWatchListSemanticsUnSupported() bool { return true }

// slimEvents makes runObjects of what a watch delivers, until it ends or is stopped.
func slimEvents(in watch.Interface, streams *sync.WaitGroup) watch.Interface {
	events := make(chan watch.Event)
	out := watch.NewProxyWatcher(events)
	streams.Go(func() {
		defer close(events)
		defer in.Stop()
		for {
			select {
			case <-out.StopChan():
				return
			case e, open := <-in.ResultChan():
				if !open {
					return
				}
				if obj, ok := e.Object.(*unstructured.Unstructured); ok && e.Type != watch.Error {
					e.Object = slimOf(obj) // of a bookmark, the version
				}
				select {
				case <-out.StopChan():
					return
				case events <- e:
				}
			}
		}
	})
	return out
}

// noteRefusal hands a refusal on that is another one than before. One that is there when the
// TaskRun is first seen is an early one.
func (w *runWatch) noteRefusal(before, run *runObject) {
	if w.refused == nil || run.refusal == nil {
		return
	}
	if try, ok := w.told.Get(run.UID); ok && try == run.refusal.try {
		return
	}
	w.told.Add(run.UID, run.refusal.try)
	w.refused(run, before == nil)
}

// settle lets go of a run that is done, and of its TaskRuns, and remembers those without a mark
// that says so. unmarked says of a run that is not kept that it has none.
func (w *runWatch) settle(key runKey, unmarked bool) {
	run := w.get(key)
	if run != nil && !run.over() {
		return // it goes on
	}
	if unmarked {
		w.remember(key.uid)
	}
	ended := []any{run}
	if key.owner == pipelineRunOwner {
		w.pipelineRuns.settle(run)
		ended, _ = w.taskRuns.ByIndex(byPipelineRun, string(key.uid)) // it fails only without the index
	}
	for _, o := range ended {
		if task := o.(*runObject); task != nil && task.key() == key {
			w.taskRuns.settle(task)
		}
	}
}

// settle lets go of one that has ended, or of nil.
func (k *keptRuns) settle(run *runObject) {
	if run == nil || !run.over() {
		return
	}
	k.mu.Lock()
	if stored(k.Indexer, run.Namespace, run.Name, "") == run { // and has not changed
		k.drop(run)
	}
	k.mu.Unlock()
	if !marked(run) { // a mark is the better memory
		k.watch.remember(run.UID)
	}
}

// remember notes that a run that has ended is done.
func (w *runWatch) remember(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for other := range w.settled {
		if len(w.settled) < maxSettled {
			break
		}
		delete(w.settled, other) // any
	}
	w.settled[sumOf(uid)] = struct{}{}
}

func (w *runWatch) isSettled(run *runObject) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, is := w.settled[sumOf(run.UID)]
	return is
}

func (w *runWatch) unsettle(run *runObject) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.settled, sumOf(run.UID))
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

// listSlim lists runs page by page, so that no more than a page of whole runs is in memory, and
// returns those that are to be kept.
func listSlim(
	ctx context.Context, client dynamic.ResourceInterface, o metav1.ListOptions,
	keep func(*runObject) bool,
) (*slimList, error) {
	return listPages(o, func(o metav1.ListOptions, all *slimList) (metav1.ListInterface, error) {
		page, err := client.List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			if run := slimOf(&page.Items[i]); keep(run) {
				all.Items = append(all.Items, run)
			}
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
	group.Go(func() { w.pipelineRuns.run(ctx) })
	group.Go(func() { w.taskRuns.run(ctx) })
	group.Wait()
}

// synced says whether all runs that have not ended are known.
func (w *runWatch) synced() bool { return w.pipelineRuns.synced.Load() && w.taskRuns.synced.Load() }

func (w *runWatch) kept(o owner) *keptRuns {
	if o == pipelineRunOwner {
		return w.pipelineRuns
	}
	return w.taskRuns
}

// get returns the run if it is kept, or nil.
func (w *runWatch) get(k runKey) *runObject {
	return stored(w.kept(k.owner).Indexer, k.namespace, k.name, k.uid)
}

// find returns the run, or nil if there is none. It asks for one that is not kept.
func (w *runWatch) find(ctx context.Context, k runKey) (*runObject, error) {
	if run := w.get(k); run != nil {
		return run, nil
	}
	obj, err := w.kept(k.owner).ask(ctx, k.namespace, k.name)
	if err != nil || obj == nil {
		return nil, err
	}
	if run := slimOf(obj); run.key() == k {
		return run, nil
	}
	return nil, nil
}

// ask asks for all of a run or TaskRun. It returns nil if there is none.
func (k *keptRuns) ask(
	ctx context.Context, namespace, name string,
) (*unstructured.Unstructured, error) {
	obj, err := k.client().Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %s %s/%s: %w", k.of.kind, namespace, name, err)
	}
	return obj, nil
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

// tasks returns the TaskRuns of a run that are there: those of a PipelineRun, or the TaskRun
// itself. Those that the PipelineRun names and that are not kept are asked for: they are done, or
// had ended before this process watched, or the watch of TaskRuns is behind that of PipelineRuns.
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
		// It may have come since the look above.
		task := stored(w.taskRuns.Indexer, run.Namespace, name, "")
		if task == nil {
			obj, err := w.taskRuns.ask(ctx, run.Namespace, name)
			if err != nil {
				return nil, err
			}
			if obj == nil {
				continue
			}
			task = slimOf(obj)
		}
		if task.key() == run.key() {
			tasks = append(tasks, task)
		}
	}
	return tasks, nil
}
