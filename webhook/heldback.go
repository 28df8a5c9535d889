package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/lru"
	"k8s.io/utils/ptr"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const (
	guardTick = time.Second
	// settle is how long after this replica has seen that a pod is held back it is replaced: by then every replica has seen it, and none injects its successor. It counts from the
	// sight and not from the pod's own times, since a replica that begins late finds pods that have been held back for long.
	settle = 3 * time.Second
	// replaceRetry is the pause after a failed attempt.
	replaceRetry = 10 * time.Second
	// eventsRetry is the pause between looks at the events of a pod.
	eventsRetry = 15 * time.Second
	// eventsAtOnce is of how many pods the events are asked for in one look, and eventsOfOne of how
	// many of one namespace.
	eventsAtOnce = 10
	eventsOfOne  = 3
	// replaceAtOnce is how many pods of a namespace are dealt with at a time, so that one namespace
	// does not keep the others waiting.
	replaceAtOnce = 20
	// recordedEntries bounds the memory of which waiting containers are in the archive.
	recordedEntries = 4096
)

// waitingPods watches the TaskRun pods that are Pending, which is all that the guard needs, and few of the pods that there are: a pod is Pending until all its containers have started
// once. It also watches the namespaces in which pods are injected.
type waitingPods struct {
	heldPods
	guard      *guard
	core       kubernetes.Interface
	store      cache.Store
	informer   cache.Controller
	namespaces *namespaces
	held       *prometheus.CounterVec
	replaced   prometheus.Counter
	refused    prometheus.Counter
	log        *slog.Logger

	handled map[types.UID]*handledPod // touched by the loop alone
	hangs   map[types.UID]*hangingPod // the same

	mu       sync.Mutex
	refusals []refusedPod                           // to be told
	failures map[boundPod]map[string]record.Waiting // to be recorded
	recorded *lru.Cache                             // boundPod → container → reason
	wake     chan struct{}
}

// heldPods is how to deal with pods that are held back.
type heldPods struct {
	replace bool
	// exists says whether there is such a run. A pod whose owner is none is not Tekton's, whatever
	// it says. Nil: all are taken to exist.
	exists func(runKey) bool
	// defaults are the settings of pods whose namespace has none of its own.
	defaults settings
	// record takes failures of other containers than ours. It may be nil.
	record func(context.Context, boundPod, map[string]record.Waiting) error
}

// hangingPod is what the events of a pod say of why it does not go on.
type hangingPod struct {
	next    time.Time // when to look again
	ours    bool      // it is because of us
	failure record.Waiting
}

// handledPod is what was done about a pod that is held back.
type handledPod struct {
	told bool
	next time.Time // when to try to replace it
}

// newWaitingPods makes the watch. It sends nothing before run.
func newWaitingPods(config *rest.Config, g *guard, how heldPods, registry prometheus.Registerer,
	log *slog.Logger) (*waitingPods, error) {
	conf := rest.CopyConfig(config)
	conf.Timeout = 0               // a watch has no end
	conf.QPS, conf.Burst = 50, 100 // hundreds may be held back at once, with three requests each
	core, err := kubernetes.NewForConfig(conf)
	if err != nil {
		return nil, fmt.Errorf("watch pods: API client: %w", err)
	}
	w := &waitingPods{
		heldPods: how, guard: g, core: core, log: log,
		handled: map[types.UID]*handledPod{}, hangs: map[types.UID]*hangingPod{},
		failures: map[boundPod]map[string]record.Waiting{},
		recorded: lru.New(recordedEntries), wake: make(chan struct{}, 1),
		held: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shiplog_pods_held_back_total", Help: "Pods that shiplog's container held back, since it could not be started, by Kubernetes' reason.",
		}, []string{"reason"}),
		replaced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shiplog_pods_replaced_total", Help: "Pods that were held back and evicted by this replica, so that Tekton makes them anew.",
		}),
	}
	w.refused = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "shiplog_pods_refused_total",
		Help: "Pods that were refused with shiplog's container in them, so that injecting stopped there.",
	})
	nowhere := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shiplog_injection_paused",
		Help: "1 while shiplog's container starts nowhere, and holds back pods of several namespaces.",
	}, func() float64 {
		if nowhere, _, _ := g.pauses(); nowhere {
			return 1
		}
		return 0
	})
	namespaces := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shiplog_injection_paused_namespaces",
		Help: "Namespaces where no pod is injected: shiplog's container does not start, or is refused.",
	}, func() float64 { _, n, _ := g.pauses(); return float64(n) })
	nodes := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shiplog_injection_failing_nodes",
		Help: "Nodes on which shiplog's container cannot be started, while it starts on others.",
	}, func() float64 { _, _, n := g.pauses(); return float64(n) })
	all := []prometheus.Collector{w.held, w.replaced, w.refused, nowhere, namespaces, nodes}
	for _, c := range all {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("watch pods: metrics: %w", err)
		}
	}
	w.namespaces = newNamespaces(core, how.defaults, g.leave, log)
	g.injects = w.namespaces.injects
	pods := core.CoreV1().Pods(metav1.NamespaceAll)
	pending := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector = "tekton.dev/taskRun"
		o.FieldSelector = "status.phase=" + string(corev1.PodPending)
		return o
	}
	w.store, w.informer = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return listPods(ctx, pods, pending(o))
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return pods.Watch(ctx, pending(o))
			},
		},
		ObjectType: &corev1.Pod{},
		Transform:  slimPod,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    w.changed,
			UpdateFunc: func(_, o any) { w.changed(o) },
		},
	})
	return w, nil
}

// changed hears of a pod that waits.
func (w *waitingPods) changed(o any) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	if w.counts(pod) {
		w.guard.seen(pod)
	}
	w.noteFailures(pod)
}

// counts says whether the pod is one that Tekton made and we injected: only such a pod says
// anything about our container.
func (w *waitingPods) counts(pod *corev1.Pod) bool {
	owner := controlledBy(pod.OwnerReferences, taskRunOwner)
	return weInjected(pod) && owner != nil &&
		(w.exists == nil || w.exists(runKey{taskRunOwner, pod.Namespace, owner.Name, owner.UID}))
}

// ourContainer is in every pod that slimPod keeps and that we injected. It is never changed; one
// for each would be half of all that is kept.
var ourContainer = []corev1.Container{{
	Name: contract.ShipperContainer, Command: []string{contract.ShipperBinary},
	Env: []corev1.EnvVar{{Name: contract.ConfigEnv, Value: "{}"}},
	VolumeMounts: []corev1.VolumeMount{
		{Name: contract.SpoolVolume, MountPath: contract.VolumeMount},
	},
}}

// imageVolume is in every pod that slimPod keeps and that has one.
var imageVolume = []corev1.Volume{{
	VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{}},
}}

// weInjected says whether we injected the pod, as far as its shape can tell. The image is not
// looked at: a webhook may have put a mirror's in its place.
func weInjected(pod *corev1.Pod) bool {
	i := injectedShipper(pod)
	return i >= 0 &&
		slices.Equal(pod.Spec.InitContainers[i].Command, []string{contract.ShipperBinary})
}

// slimPod keeps of a pod what the guard looks at.
func slimPod(o any) (any, error) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil // a notice of a deletion that was missed
	}
	return slimPodOf(pod), nil
}

func slimPodOf(pod *corev1.Pod) *corev1.Pod {
	slim := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp,
	}}
	if owner := metav1.GetControllerOf(pod); owner != nil {
		slim.OwnerReferences = []metav1.OwnerReference{*owner}
	}
	if weInjected(pod) {
		slim.Spec.InitContainers = ourContainer
	}
	if hasImageVolume(pod) {
		slim.Spec.Volumes = imageVolume
	}
	slim.Spec.NodeName = pod.Spec.NodeName
	slim.Status.Phase, slim.Status.StartTime = pod.Status.Phase, pod.Status.StartTime
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReadyToStartContainers {
			slim.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime}}
		}
	}
	statuses := func(list []corev1.ContainerStatus) (out []corev1.ContainerStatus) {
		for _, c := range list {
			s := corev1.ContainerStatus{Name: c.Name, Started: c.Started}
			switch {
			case c.State.Waiting != nil:
				s.State.Waiting = &corev1.ContainerStateWaiting{
					Reason: c.State.Waiting.Reason, Message: cut(c.State.Waiting.Message, maxFailure),
				}
			case c.State.Running != nil:
				s.State.Running = &corev1.ContainerStateRunning{
					StartedAt: c.State.Running.StartedAt,
				}
			case c.State.Terminated != nil:
				s.State.Terminated = &corev1.ContainerStateTerminated{
					FinishedAt: c.State.Terminated.FinishedAt,
				}
			}
			out = append(out, s)
		}
		return out
	}
	slim.Status.InitContainerStatuses = statuses(pod.Status.InitContainerStatuses)
	slim.Status.ContainerStatuses = statuses(pod.Status.ContainerStatuses)
	return slim
}

// listPods lists page by page, as listSlim does and for the same reason: where a cluster is full, 10,000 pods are pending.
func listPods(ctx context.Context, client typedcorev1.PodInterface, o metav1.ListOptions) (*slimList, error) {
	return listPages(o, func(o metav1.ListOptions, all *slimList) (metav1.ListInterface, error) {
		page, err := client.List(ctx, o)
		if err != nil {
			return nil, err
		}
		for i := range page.Items {
			all.Items = append(all.Items, slimPodOf(&page.Items[i]))
		}
		return page, nil
	})
}

// run watches until the context ends, and returns when all that it has begun has ended.
func (w *waitingPods) run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { w.informer.RunWithContext(ctx) })
	group.Go(func() { w.namespaces.run(ctx) })
	group.Go(func() { w.recordFailures(ctx) })
	defer group.Wait()
	tick := time.NewTicker(guardTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.look(ctx)
		}
	}
}

// look shows the guard the pods, and does what is to be done about those that are held back.
func (w *waitingPods) look(ctx context.Context) {
	w.tellRefusals(ctx)
	if !w.informer.HasSynced() {
		return // pods that are not listed yet would look as if they were gone
	}
	objects := w.store.List()
	pods := make([]*corev1.Pod, 0, len(objects))
	for _, o := range objects {
		if pod := o.(*corev1.Pod); w.counts(pod) {
			pods = append(pods, pod)
		}
	}
	held, gone := w.guard.observe(pods, w.hanging(ctx, pods))
	for _, ref := range gone {
		w.resolve(ctx, ref)
	}
	slices.SortFunc(held, func(a, b heldPod) int { return a.since.Compare(b.since) })
	now := w.guard.now()
	still := make(map[types.UID]*handledPod, len(held))
	of := map[string]int{} // namespace
	for _, h := range held {
		done := w.handled[h.uid]
		if done == nil {
			done = &handledPod{next: now.Add(settle)}
			w.held.WithLabelValues(h.failure.Reason).Inc()
			w.log.Warn("shiplog's container does not start and holds a pod back",
				"namespace", h.namespace, "pod", h.name, "node", h.node, "reason", h.failure.Reason)
		}
		still[h.uid] = done
		if done.told && (!w.replace || now.Before(done.next)) {
			continue
		}
		if of[h.namespace]++; of[h.namespace] > replaceAtOnce {
			continue
		}
		if !done.told {
			done.told = w.tell(ctx, h)
		}
		if w.replace && !now.Before(done.next) && !w.evict(ctx, h) {
			done.next = now.Add(replaceRetry)
		}
	}
	w.handled = still
}

// hanging finds the pods that wait for our container and would go on without it, where only their
// events say so.
func (w *waitingPods) hanging(
	ctx context.Context, pods []*corev1.Pod,
) map[types.UID]record.Waiting {
	now, asked, of := w.guard.now(), 0, map[string]int{} // by namespace
	still, found := map[types.UID]*hangingPod{}, map[types.UID]record.Waiting{}
	for _, pod := range pods {
		status := shipperStatus(pod)
		if !waitsForUs(pod, status) || pod.Status.StartTime == nil {
			continue
		}
		_, failed := startFailure(*status)
		if since, certain := couldStart(pod); certain || failed || now.Sub(since) < hangAfter {
			continue
		}
		h := w.hangs[pod.UID]
		if h == nil {
			h = &hangingPod{}
		}
		still[pod.UID] = h
		if !now.Before(h.next) && asked < eventsAtOnce && of[pod.Namespace] < eventsOfOne {
			asked++
			of[pod.Namespace]++
			h.next = now.Add(eventsRetry)
			if failure, ours, err := w.askEvents(ctx, pod); err != nil { // what was known stays
				w.log.Warn("the events of a pod that does not start could not be read",
					"namespace", pod.Namespace, "pod", pod.Name, "error", err)
			} else {
				h.failure, h.ours = failure, ours
			}
		}
		if h.ours {
			found[pod.UID] = h.failure
		}
	}
	w.hangs = still
	return found
}

// askEvents reads what the events of a pod say of us.
func (w *waitingPods) askEvents(
	ctx context.Context, pod *corev1.Pod,
) (failure record.Waiting, ours bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, kubernetesTimeout)
	defer cancel()
	list, err := w.core.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "involvedObject.uid=" + string(pod.UID), Limit: mostEvents,
	})
	if err != nil {
		return record.Waiting{}, false, err
	}
	failure, ours = readEvents(list.Items, w.guard.now())
	return failure, ours, nil
}

// resolve finds out what has become of a pod that waits no more.
func (w *waitingPods) resolve(ctx context.Context, ref podRef) {
	ctx, cancel := context.WithTimeout(ctx, kubernetesTimeout)
	defer cancel()
	pod, err := w.core.CoreV1().Pods(ref.namespace).Get(ctx, ref.name, metav1.GetOptions{})
	if err != nil || pod.UID != ref.uid {
		return // it is gone, or not known: the next pod that is let through will tell
	}
	if pod.Status.Phase == corev1.PodRunning || pod.Status.Phase == corev1.PodSucceeded || started(shipperStatus(pod)) {
		w.log.Info("shiplog's container has started in a pod that was watched",
			"namespace", ref.namespace, "pod", ref.name)
		w.guard.recovered(ref.namespace, pod.Spec.NodeName)
	}
}

// tell makes an event on the pod. All replicas give it the same name, so there is one.
func (w *waitingPods) tell(ctx context.Context, h heldPod) bool {
	what := "this pod starts when the kubelet succeeds"
	if w.replace {
		what = "this pod is replaced by one without it"
	}
	return w.event(ctx, "shiplog-held-back-"+string(h.uid), "ShiplogHeldBack",
		corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: h.namespace, Name: h.name, UID: h.uid, FieldPath: "spec.initContainers{" + contract.ShipperContainer + "}"},
		fmt.Sprintf("shiplog's container does not start: %s (%s: %s)",
			what, h.failure.Reason, h.failure.Message))
}

// event makes an event, and says whether it is there.
func (w *waitingPods) event(ctx context.Context, name, reason string, about corev1.ObjectReference, message string) bool {
	ctx, cancel := context.WithTimeout(ctx, kubernetesTimeout)
	defer cancel()
	err := warn(ctx, w.core, w.guard.now(), name, reason, about, message)
	if err != nil {
		w.log.Warn("no event could be made", "namespace", about.Namespace, "about", about.Name, "error", err)
		// Such as in a namespace that is being deleted: it will not get better.
		return final(err) || apierrors.IsNotFound(err)
	}
	return true
}

// evict removes a pod of which nothing has run, so that Tekton makes it anew. The eviction holds for the very state of the pod that was seen. It leaves no time to end: the kubelet would
// report such a pod as failed, and Tekton the TaskRun. A pod that is simply gone is made again (reconcile in Tekton's pkg/reconciler/taskrun/taskrun.go).
//
// It says whether there is nothing to wait for: the pod is gone, or has changed and is looked at again.
func (w *waitingPods) evict(ctx context.Context, h heldPod) bool {
	ctx, cancel := context.WithTimeout(ctx, kubernetesTimeout)
	defer cancel()
	err := w.core.CoreV1().Pods(h.namespace).EvictV1(ctx, &policyv1.Eviction{
		ObjectMeta: metav1.ObjectMeta{Namespace: h.namespace, Name: h.name},
		DeleteOptions: &metav1.DeleteOptions{
			GracePeriodSeconds: ptr.To[int64](0),
			Preconditions:      &metav1.Preconditions{UID: &h.uid, ResourceVersion: &h.resourceVersion},
		},
	})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // such as: another replica was faster
		return true
	case err != nil:
		w.log.Warn("a pod that is held back could not be replaced", "namespace", h.namespace, "pod", h.name, "error", err)
		return false
	}
	w.replaced.Inc()
	w.log.Info("replaced a pod that was held back", "namespace", h.namespace, "pod", h.name)
	w.event(ctx, "shiplog-replaced-"+string(h.uid), "ShiplogReplacedPod",
		corev1.ObjectReference{APIVersion: h.owner.apiVersion, Kind: h.owner.kind, Namespace: h.namespace, Name: h.owner.name, UID: h.owner.uid},
		fmt.Sprintf("pod %s was removed before anything of it ran, since shiplog's container held it back (%s); its successor runs without shiplog", h.name, h.failure.Reason))
	return true
}

// noteFailures queues what is to be recorded of a pod whose shipper runs: which other containers cannot be started.
func (w *waitingPods) noteFailures(pod *corev1.Pod) {
	if w.record == nil || !started(shipperStatus(pod)) {
		return
	}
	failures := map[string]record.Waiting{}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, c := range list {
			if f, failed := startFailure(c); failed && c.Name != contract.ShipperContainer {
				failures[c.Name] = f
			}
		}
	}
	if len(failures) == 0 {
		return
	}
	w.mu.Lock()
	w.failures[boundPod{pod.Namespace, pod.Name, string(pod.UID)}] = failures
	w.mu.Unlock()
	wake(w.wake)
}

// recordFailures writes what noteFailures queues.
func (w *waitingPods) recordFailures(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		w.mu.Lock()
		queue := w.failures
		w.failures = map[boundPod]map[string]record.Waiting{}
		w.mu.Unlock()
		for pod, failures := range queue {
			w.recordPod(ctx, pod, failures)
		}
	}
}

func (w *waitingPods) recordPod(ctx context.Context, pod boundPod, failures map[string]record.Waiting) {
	ctx, cancel := context.WithTimeout(ctx, 2*kubernetesTimeout)
	defer cancel()
	done := map[string]string{} // container → reason: the message has a time in it now and then
	if v, ok := w.recorded.Get(pod); ok {
		done = v.(map[string]string)
	}
	for name, f := range failures {
		if done[name] == f.Reason {
			delete(failures, name)
		}
	}
	if len(failures) == 0 {
		return
	}
	err := w.record(ctx, pod, failures)
	var refused *refusedError
	switch {
	case errors.As(err, &refused) && refused.reason != refusedClusterDown:
		w.log.Debug("not recorded why a container waits", append(pod.attrs(), "error", err)...)
	case err != nil:
		w.log.Warn("not recorded why a container waits: its log will not say so", append(pod.attrs(), "error", err)...)
	default:
		for name, f := range failures {
			done[name] = f.Reason
		}
		w.recorded.Add(pod, done)
	}
}
