package main

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// guard stops injecting where our container cannot be started. It is the first of the pod's init containers, so that nothing else of the pod starts before it has: an image that
// cannot be pulled would hold every build back until its timeout.
//
// It stops for the namespace in which a pod is held back, and for the whole cluster once that is so in two namespaces: one namespace may have a fault of its own, such as
// pull credentials. After a pause it lets one pod through. When that one starts, all goes on as before.
//
// All that it knows comes from pods, which every replica sees alike, so that replicas need not talk to each other. It does no I/O.
type guard struct {
	after time.Duration // for how long a pod is held back before it counts: a failed pull may succeed the next time
	retry time.Duration // how long the pause is
	now   func() time.Time

	mu         sync.Mutex
	cluster    *pause
	namespaces map[string]*pause
	// watched are the pods whose start would end a pause: those that were held back, and those that were let through.
	watched map[types.UID]podRef
}

// pause is a scope in which nothing is injected.
type pause struct {
	since time.Time
	last  time.Time // when a pod was last seen to be held back
	until time.Time // from then on one pod is let through
}

// podRef names a pod.
type podRef struct {
	namespace, name string
	uid             types.UID
}

// heldPod is a pod that our container holds back.
type heldPod struct {
	podRef
	resourceVersion string
	owner           *ownerRef // the TaskRun
	since           time.Time // when our container could have started
	failure         record.Waiting
}

// ownerRef names the object that controls a pod.
type ownerRef struct {
	apiVersion, kind, name string
	uid                    types.UID
}

func newGuard(after, retry time.Duration) *guard {
	return &guard{after: after, retry: retry, now: time.Now, namespaces: map[string]*pause{}, watched: map[types.UID]podRef{}}
}

// paused says whether a pod of the namespace, which could be injected otherwise, is to be left alone. Where the pause is over it says no once, and begins another one. A dry run
// makes no pod, so it is not the one that is let through.
func (g *guard) paused(namespace string, dryRun bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.cluster
	if p == nil {
		p = g.namespaces[namespace]
	}
	if p == nil {
		return false
	}
	now := g.now()
	if dryRun || now.Before(p.until) {
		return true
	}
	g.extend(namespace, now)
	return false
}

// extend begins the pause of the namespace and the cluster, where there is one, anew.
func (g *guard) extend(namespace string, now time.Time) {
	for _, p := range []*pause{g.cluster, g.namespaces[namespace]} {
		if p != nil {
			p.until = now.Add(g.retry)
		}
	}
}

// observe takes the pods that wait to be started, and returns those that our container has held back for too long. The pods in gone were watched and do not wait any more:
// they have started, or they are deleted, and the caller is to find out which.
func (g *guard) observe(pods []*corev1.Pod) (held []heldPod, gone []podRef) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	present := make(map[types.UID]bool, len(pods))
	for _, pod := range pods {
		ref := podRef{pod.Namespace, pod.Name, pod.UID}
		present[pod.UID] = true
		status := shipperStatus(pod)
		h, isHeld := heldBack(pod, status)
		_, watched := g.watched[pod.UID]
		switch {
		case isHeld && now.Sub(h.since) >= g.after:
			held = append(held, h)
			g.watched[pod.UID] = ref
			g.hold(pod.Namespace, now)
		case watched && started(status):
			g.recoverLocked(pod.Namespace)
			delete(g.watched, pod.UID)
		case !watched && injected(pod) && g.madeInPause(pod):
			g.watched[pod.UID] = ref // some replica has let it through
			g.extend(pod.Namespace, now)
		}
	}
	for uid, ref := range g.watched {
		if !present[uid] {
			gone = append(gone, ref)
			delete(g.watched, uid)
		}
	}
	return held, gone
}

// hold begins or goes on with the pause of a namespace in which a pod is held back.
func (g *guard) hold(namespace string, now time.Time) {
	begin := func(p *pause) *pause {
		if p == nil {
			p = &pause{since: now}
		}
		p.last, p.until = now, now.Add(g.retry)
		return p
	}
	g.namespaces[namespace] = begin(g.namespaces[namespace])
	recent := 0
	for _, p := range g.namespaces {
		if now.Sub(p.last) < g.retry {
			recent++
		}
	}
	if recent >= 2 || g.cluster != nil {
		g.cluster = begin(g.cluster)
	}
}

// madeInPause says whether the pod was made after injecting had stopped. Creation times are whole seconds.
func (g *guard) madeInPause(pod *corev1.Pod) bool {
	for _, p := range []*pause{g.cluster, g.namespaces[pod.Namespace]} {
		if p != nil && !pod.CreationTimestamp.Time.Before(p.since.Truncate(time.Second)) {
			return true
		}
	}
	return false
}

// recovered is to be called when a pod has started that was watched.
func (g *guard) recovered(namespace string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.recoverLocked(namespace)
}

// recoverLocked ends the pause of the namespace and that of the cluster. Other namespaces find out for themselves.
func (g *guard) recoverLocked(namespace string) {
	g.cluster = nil
	delete(g.namespaces, namespace)
}

// pauses are the numbers for the metric.
func (g *guard) pauses() (cluster, namespaces int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cluster != nil {
		cluster = 1
	}
	return cluster, len(g.namespaces)
}

// shipperStatus is the status of our container, or nil.
func shipperStatus(pod *corev1.Pod) *corev1.ContainerStatus {
	for i := range pod.Status.InitContainerStatuses {
		if pod.Status.InitContainerStatuses[i].Name == contract.ShipperContainer {
			return &pod.Status.InitContainerStatuses[i]
		}
	}
	return nil
}

// started says whether our container has started and its postStart hook is through, so that the pod goes on.
func started(status *corev1.ContainerStatus) bool {
	return status != nil && status.Started != nil && *status.Started
}

// heldBack says whether the pod waits for our container, which cannot be started, and nothing else of it has run.
func heldBack(pod *corev1.Pod, status *corev1.ContainerStatus) (heldPod, bool) {
	if status == nil || pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodPending || started(status) {
		return heldPod{}, false
	}
	failure, failed := startFailure(*status)
	if !failed {
		return heldPod{}, false
	}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, c := range list {
			if c.Name != contract.ShipperContainer && (c.State.Running != nil || c.State.Terminated != nil) {
				return heldPod{}, false
			}
		}
	}
	h := heldPod{
		podRef:          podRef{pod.Namespace, pod.Name, pod.UID},
		resourceVersion: pod.ResourceVersion,
		since:           couldStart(pod),
		failure:         failure,
	}
	if len(pod.OwnerReferences) > 0 {
		o := controlledBy(pod.OwnerReferences, taskRunOwner)
		if o != nil {
			h.owner = &ownerRef{o.APIVersion, o.Kind, o.Name, o.UID}
		}
	}
	return h, true
}

// couldStart is when the pod's sandbox was there, so that its first container could start. It is in the pod, so that all replicas take the same time, and one that was restarted too.
func couldStart(pod *corev1.Pod) time.Time {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	if pod.Status.StartTime != nil {
		return pod.Status.StartTime.Time
	}
	return pod.CreationTimestamp.Time
}

// maxFailure bounds what is kept of Kubernetes' own words, in bytes.
const maxFailure = 1 << 10

// startFailure says why a container is not started, if it is a failure and not just a matter of time.
func startFailure(status corev1.ContainerStatus) (record.Waiting, bool) {
	w := status.State.Waiting
	if w == nil {
		return record.Waiting{}, false
	}
	failure := record.Waiting{Reason: w.Reason, Message: w.Message[:min(len(w.Message), maxFailure)]}
	switch w.Reason { // pkg/kubelet/container/sync_result.go and pkg/kubelet/kuberuntime/kuberuntime_container.go in Kubernetes
	case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError", "PostStartHookError", "CrashLoopBackOff":
		return failure, true
	}
	return failure, failure.IsImage()
}
