package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/lru"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const (
	// hangAfter is how long our container may take to start where nothing says that it failed.
	hangAfter = time.Minute
	// remember is for how long it is known where shippers started, and where they did not.
	remember = time.Hour
	// mostTurns bounds how much longer a namespace waits where shippers start nowhere.
	mostTurns = 12
	// refusedFirst and refusedMost are the pauses after refusals. Each try costs a build.
	refusedFirst = time.Hour
	refusedMost  = 24 * time.Hour
	// replicasDiffer bounds by how much the ends of a pause differ between replicas.
	replicasDiffer = time.Minute
	// mostOwn bounds how many of a namespace's builds are known to be refused without us, too.
	mostOwn = 100
	// replacedTasks bounds the memory of which TaskRuns had a pod that was held back.
	replacedTasks = 16 << 10
)

// guard stops injecting where our container cannot be started, or is refused. No step of a pod
// starts before it, so an image that cannot be pulled would hold every build back until its
// timeout.
//
// What a tenant's pods do can stop injecting in that tenant's own namespaces alone: a pause is a
// namespace's, and only its own pods and TaskRuns begin it. After a pause one pod is let through.
// When it starts, all goes on as before. Where a node is at fault, no namespace pauses. Admission
// does not know on which node a pod will be, so a pod is replaced when it is there.
//
// All that it knows comes from objects, which every replica sees alike, so that replicas need not
// talk to each other. It does no I/O.
type guard struct {
	after time.Duration // for how long a pod is held back before it counts: a failed pull may succeed the next time
	retry time.Duration // how long the pause is
	now   func() time.Time
	// injects says whether pods of the namespace are injected. Nil: all are.
	injects func(namespace string) bool

	mu         sync.Mutex
	namespaces map[string]*pause
	// watched are the pods whose start would end a pause: those that were held back, and those that were let through.
	watched map[types.UID]watchedPod
	// replaced are the TaskRuns that had a pod that was held back. Their next one is left alone.
	replaced *lru.Cache
	// The outcomes in each namespace, by node, and on each node, by namespace.
	in, on map[string]*outcomes
	starts latest // anywhere, by node
}

// pause is the time in which nothing is injected in a namespace.
type pause struct {
	why   reason
	since time.Time
	until time.Time // from then on one pod is let through
	// Of refusals: how many there were, which build's the last was if it is not certain that it was
	// because of us, and which TaskRun was let through.
	refusals int
	whose    string
	tried    types.UID
}

// outcomes are the latest of a namespace or of a node.
type outcomes struct {
	starts, holds latest
	blamed        time.Time // of a node: when a pod was held back through its fault
	admitted      time.Time // of a namespace: when the latest pod was made that has our container
	refused       time.Time // of a namespace: when a pod was, perhaps because of us
	// own are builds of a namespace whose pods are refused without us, too, and when.
	own map[string]time.Time
}

// latest are the latest moments of something in two different places.
type latest [2]moment

// moment is when something was last so in a place: on a node, or in a namespace.
type moment struct {
	at    time.Time
	place string
}

// note takes a moment that may be older than those that are known.
func (l *latest) note(place string, at time.Time) {
	switch {
	case place == l[0].place && at.Before(l[0].at):
	case place == l[0].place:
		l[0].at = at
	case at.After(l[0].at):
		l[0], l[1] = moment{at, place}, l[0]
	case at.After(l[1].at):
		l[1] = moment{at, place}
	}
}

// elsewhere is the latest moment in another place, or zero.
func (l *latest) elsewhere(place string) time.Time {
	if l[0].place != place {
		return l[0].at
	}
	return l[1].at
}

// podRef names a pod.
type podRef struct {
	namespace, name string
	uid             types.UID
}

// watchedPod is a pod whose end of waiting is of interest.
type watchedPod struct {
	podRef
	held bool
}

// heldPod is a pod that our container holds back.
type heldPod struct {
	podRef
	node            string
	resourceVersion string
	owner           ownerRef  // the TaskRun
	since           time.Time // when our container could have started
	failure         record.Waiting
}

// ownerRef names the object that controls a pod.
type ownerRef struct {
	apiVersion, kind, name string
	uid                    types.UID
}

func newGuard(after, retry time.Duration) *guard {
	return &guard{
		after: after, retry: retry, now: time.Now,
		namespaces: map[string]*pause{}, watched: map[types.UID]watchedPod{},
		replaced: lru.New(replacedTasks),
		in:       map[string]*outcomes{}, on: map[string]*outcomes{},
	}
}

// paused says why a pod that could be injected is to be left alone, or nothing. Where a pause is
// over it says nothing once, and begins another one. A dry run makes no pod, so it is not the one
// that is let through.
func (g *guard) paused(namespace string, taskRun types.UID, dryRun bool) reason {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.replaced.Get(taskRun); ok {
		return cannotStart
	}
	p := g.namespaces[namespace]
	if p == nil {
		return ""
	}
	now := g.now()
	if dryRun || now.Before(p.until) {
		return p.why
	}
	p.until, p.tried = now.Add(g.length(p, now)), taskRun
	return ""
}

// length is how long a pause is. Where shippers start nowhere, it is longer the more namespaces
// wait, so that not each of them has a build that waits for nothing.
func (g *guard) length(p *pause, now time.Time) time.Duration {
	switch {
	case p.why == shipperRefused:
		return min(refusedFirst<<min(p.refusals-1, 10), refusedMost)
	case g.nowhere(now):
		return g.retry * time.Duration(min(len(g.namespaces), mostTurns))
	}
	return g.retry
}

// nowhere says whether pods of several namespaces are held back, and no shipper has started
// anywhere of late.
func (g *guard) nowhere(now time.Time) bool {
	held := 0
	for _, p := range g.namespaces {
		if p.why == cannotStart && now.Before(p.until) {
			held++
		}
	}
	return held > 1 && now.Sub(g.starts[0].at) >= g.retry
}

// observe takes the pods that wait to be started, of TaskRuns that exist, and returns those that
// our container has held back for too long. Of the pods in hangs it is known that our container
// keeps them from going on, though it has not failed. The pods in gone were watched and do not wait
// any more: they have started, or they are deleted, and the caller is to find out which.
func (g *guard) observe(pods []*corev1.Pod,
	hangs map[types.UID]record.Waiting) (held []heldPod, gone []podRef) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	present := make(map[types.UID]bool, len(pods))
	for _, pod := range pods {
		present[pod.UID] = true
		g.saw(pod, now)
		h, isHeld := heldBack(pod, hangs, now)
		if isHeld && now.Sub(h.since) >= g.patience(h.node, now) {
			held = append(held, h)
			g.hold(h, now)
		}
	}
	for uid, w := range g.watched {
		if !present[uid] {
			gone = append(gone, w.podRef)
			delete(g.watched, uid)
		}
	}
	g.forgetOld(now)
	return held, gone
}

// seen takes a pod as it is now: what is over before observe looks at all of them is not missed.
func (g *guard) seen(pod *corev1.Pod) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.saw(pod, g.now())
}

// saw is seen for who has the lock.
func (g *guard) saw(pod *corev1.Pod, now time.Time) {
	if !weInjected(pod) {
		return
	}
	in := outcomesOf(g.in, pod.Namespace)
	made := pod.CreationTimestamp.Time
	if made.After(in.admitted) {
		in.admitted = made
	}
	status := shipperStatus(pod)
	_, watched := g.watched[pod.UID]
	switch p := g.namespaces[pod.Namespace]; {
	case started(status):
		at := now
		if r := status.State.Running; r != nil && !watched {
			at = r.StartedAt.Time
		}
		g.start(pod.Namespace, pod.Spec.NodeName, at, now)
		delete(g.watched, pod.UID)
	case p != nil && !watched && !made.Before(p.since.Truncate(time.Second)): // whole seconds
		// Some replica has let it through.
		g.watched[pod.UID] = watchedPod{podRef: podRef{pod.Namespace, pod.Name, pod.UID}}
		p.until = now.Add(g.length(p, now))
	}
}

// start notes that a shipper has started, which ends its namespace's pause.
func (g *guard) start(namespace, node string, at, now time.Time) {
	if now.Sub(at) > remember {
		return
	}
	nowhere := g.nowhere(now)
	outcomesOf(g.in, namespace).starts.note(node, at)
	outcomesOf(g.on, node).starts.note(namespace, at)
	g.starts.note(node, at)
	if p := g.namespaces[namespace]; p != nil && !at.Before(p.since.Truncate(time.Second)) {
		delete(g.namespaces, namespace)
	}
	if !nowhere || g.nowhere(now) {
		return
	}
	for _, p := range g.namespaces { // what was wrong everywhere is mended: each may try
		if p.why == cannotStart {
			p.until = now
		}
	}
}

// recovered is to be called when a pod has started that was watched.
func (g *guard) recovered(namespace, node string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	g.start(namespace, node, now, now)
}

// hold notes that a pod is held back, and begins the pause of its namespace, or goes on with it, if
// that is not its node's fault.
func (g *guard) hold(h heldPod, now time.Time) {
	if !g.watched[h.uid].held {
		g.watched[h.uid] = watchedPod{h.podRef, true}
		g.replaced.Add(h.owner.uid, nil)
		outcomesOf(g.in, h.namespace).holds.note(h.node, now)
		outcomesOf(g.on, h.node).holds.note(h.namespace, now)
	}
	if g.nodeAtFault(h.namespace, h.node, now) {
		outcomesOf(g.on, h.node).blamed = now
		return
	}
	if g.injects != nil && !g.injects(h.namespace) {
		return
	}
	p := g.namespaces[h.namespace]
	if p == nil {
		p = &pause{why: cannotStart, since: now}
		g.namespaces[h.namespace] = p
	}
	if p.why == cannotStart { // the other pauses are longer
		p.until = now.Add(g.length(p, now))
	}
}

// nodeAtFault says whether a pod of the namespace is held back because of its node: on other nodes
// the namespace's shippers start. Where nothing is known of other nodes, it is the node's fault if
// another namespace's pods were held back on it as well, and shippers start elsewhere.
func (g *guard) nodeAtFault(namespace, node string, now time.Time) bool {
	in, on := outcomesOf(g.in, namespace), outcomesOf(g.on, node)
	started, held := in.starts.elsewhere(node), in.holds.elsewhere(node)
	switch recent := func(at time.Time) bool { return now.Sub(at) < remember }; {
	case recent(held) && held.After(started): // it has the same trouble on several nodes
		return false
	case recent(started):
		return true
	default:
		others := on.holds.elsewhere(namespace)
		return recent(others) && others.After(on.starts[0].at) &&
			now.Sub(g.starts.elsewhere(node)) < g.retry
	}
}

// patience is for how long a failure may last on a node. On one that is known to be at fault there
// is none.
func (g *guard) patience(node string, now time.Time) time.Duration {
	if o := g.on[node]; o != nil && o.atFault(now, g.retry) {
		return 0
	}
	return g.after
}

// atFault says whether a node was to blame of late, and no shipper has started there since.
func (o *outcomes) atFault(now time.Time, lately time.Duration) bool {
	return now.Sub(o.blamed) < lately && o.blamed.After(o.starts[0].at)
}

// outcomesOf looks up or begins the outcomes of a namespace or node.
func outcomesOf(all map[string]*outcomes, name string) *outcomes {
	if all[name] == nil {
		all[name] = &outcomes{}
	}
	return all[name]
}

// forgetOld bounds what is remembered.
func (g *guard) forgetOld(now time.Time) {
	for _, all := range []map[string]*outcomes{g.in, g.on} {
		for name, o := range all {
			newest := slices.MaxFunc(
				[]time.Time{o.starts[0].at, o.holds[0].at, o.blamed, o.admitted, o.refused},
				time.Time.Compare,
			)
			if now.Sub(newest) > refusedMost {
				delete(all, name)
			}
		}
	}
}

// leave forgets a namespace: it is deleted, or not injected any more.
func (g *guard) leave(namespace string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.namespaces, namespace)
	delete(g.in, namespace)
}

// refusedPod is a pod that the API server refused when Tekton wanted to make it, and the TaskRun
// failed.
type refusedPod struct {
	taskRun *runObject
	// ours says that the message names what we have added to the pod. Otherwise a policy has
	// refused it with words that may be about anything in it.
	ours bool
	// early says that it is not known what has happened since, as when the webhook has just begun.
	early bool
	until time.Time // from when one is tried again
}

// build is what runs of the same task of a pipeline have in common, or TaskRuns of the same name
// but for what is behind the last hyphen.
func (r refusedPod) build() string {
	if r.taskRun.task != "" {
		return r.taskRun.task
	}
	if i := strings.LastIndex(r.taskRun.Name, "-"); i > 0 {
		return r.taskRun.Name[:i]
	}
	return r.taskRun.Name
}

// refused takes a refusal, and says whether injecting stops in the namespace, and until when.
//
// Nobody can try again but with a build, which fails for good if the pod is refused once more. So
// the pauses are long. A message that does not name us counts if there is no sign that pods with us
// pass. If the same build is refused without us, too, it is the user's own affair for a while.
func (g *guard) refused(r refusedPod) (until time.Time, stops bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, namespace := g.now(), r.taskRun.Namespace
	_, replaced := g.replaced.Get(r.taskRun.UID)
	if replaced || g.injects != nil && !g.injects(namespace) {
		return time.Time{}, false
	}
	at := now
	if r.early {
		if at = r.taskRun.completed; !r.ours || now.Sub(at) >= refusedFirst {
			return time.Time{}, false
		}
	}
	in, p := outcomesOf(g.in, namespace), g.namespaces[namespace]
	if p != nil && now.Before(p.until.Add(-replicasDiffer)) && r.taskRun.UID != p.tried && !r.early {
		if !r.ours && now.Sub(p.since) >= settle { // it has no container of ours
			in.refusedWithout(r.build(), now)
			if p.why == shipperRefused && p.whose == r.build() {
				delete(g.namespaces, namespace)
			}
		}
		return time.Time{}, false
	}
	if !r.ours {
		before := in.refused
		in.refused = now
		passes := in.admitted.After(before) && now.Sub(in.admitted) < remember
		if passes || now.Sub(in.own[r.build()]) < remember {
			return time.Time{}, false
		}
	}
	if p == nil {
		p = &pause{since: at}
		g.namespaces[namespace] = p
	}
	p.why, p.whose = shipperRefused, ""
	if !r.ours {
		p.whose = r.build()
	}
	if !r.early || p.refusals == 0 {
		p.refusals++
	}
	if end := at.Add(g.length(p, now)); end.After(p.until) {
		p.until = end
	}
	return p.until, true
}

// refusedWithout notes a build whose pod is refused without us, too.
func (o *outcomes) refusedWithout(build string, now time.Time) {
	maps.DeleteFunc(o.own, func(_ string, at time.Time) bool { return now.Sub(at) >= remember })
	if o.own == nil {
		o.own = map[string]time.Time{}
	}
	if len(o.own) < mostOwn {
		o.own[build] = now
	}
}

// pauses are the numbers for the metrics: whether shippers start nowhere, paused namespaces, and
// nodes at fault.
func (g *guard) pauses() (nowhere bool, namespaces, nodes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	for _, o := range g.on {
		if o.atFault(now, g.retry) {
			nodes++
		}
	}
	for _, p := range g.namespaces {
		if now.Before(p.until) {
			namespaces++
		}
	}
	return g.nowhere(now), namespaces, nodes
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

// heldBack says whether the pod waits for our container, which cannot be started or hangs, and
// nothing behind it has run.
func heldBack(pod *corev1.Pod, hangs map[types.UID]record.Waiting, now time.Time) (heldPod, bool) {
	status := shipperStatus(pod)
	if !waitsForUs(pod, status) {
		return heldPod{}, false
	}
	owner := controlledBy(pod.OwnerReferences, taskRunOwner)
	if owner == nil {
		return heldPod{}, false // nobody would make it anew
	}
	h := heldPod{
		podRef:          podRef{pod.Namespace, pod.Name, pod.UID},
		node:            pod.Spec.NodeName,
		resourceVersion: pod.ResourceVersion,
		owner:           ownerRef{owner.APIVersion, owner.Kind, owner.Name, owner.UID},
	}
	since, certain := couldStart(pod)
	h.since = since
	if failure, failed := startFailure(*status); failed {
		h.failure = failure
		return h, true
	}
	if now.Sub(since) < hangAfter {
		return heldPod{}, false
	}
	if certain {
		h.failure = record.Waiting{
			Reason: reasonHangs,
			Message: fmt.Sprintf("the pod's sandbox and volumes are there since %s",
				since.UTC().Format(time.RFC3339)),
		}
		return h, true
	}
	var known bool
	h.failure, known = hangs[pod.UID]
	return h, known
}

// Why a pod is held back where the kubelet does not say that our container failed.
const (
	reasonHangs = "StartHangs" // a pull, or a postStart hook, that does not end
	reasonMount = "FailedMount"
)

// waitsForUs says whether our container has not started, and nothing behind it in the pod has run.
func waitsForUs(pod *corev1.Pod, status *corev1.ContainerStatus) bool {
	if !weInjected(pod) || status == nil || pod.DeletionTimestamp != nil ||
		pod.Status.Phase != corev1.PodPending ||
		started(status) {
		return false
	}
	before := true
	s := &pod.Status
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for _, c := range list {
			switch {
			case c.Name == contract.ShipperContainer:
				before = false
			case !before && (c.State.Running != nil || c.State.Terminated != nil):
				return false
			}
		}
	}
	return true
}

// couldStart is when our container could start: when the pod's sandbox was there, and what is in
// front of it had started. It is in the pod, so that all replicas take the same time, and one that
// was restarted too. It is certain if the pod says that all this is there. An older kubelet says so
// only when our container has started.
func couldStart(pod *corev1.Pod) (at time.Time, certain bool) {
	at = pod.CreationTimestamp.Time
	if pod.Status.StartTime != nil {
		at = pod.Status.StartTime.Time
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReadyToStartContainers && c.Status == corev1.ConditionTrue {
			at, certain = c.LastTransitionTime.Time, true
		}
	}
	if hasImageVolume(pod) { // whose image may still be on its way
		certain = false
	}
	for _, c := range pod.Status.InitContainerStatuses {
		if c.Name == contract.ShipperContainer {
			return at, certain
		}
		switch { // sidecars of others
		case c.State.Running != nil && started(&c):
			at = laterOf(at, c.State.Running.StartedAt.Time)
		case c.State.Terminated != nil:
			at = laterOf(at, c.State.Terminated.FinishedAt.Time)
		default:
			certain = false
		}
	}
	return at, certain
}

// hasImageVolume says whether the pod has volumes that are images. The kubelet pulls them when the
// sandbox is there, before it starts containers (SyncPod in Kubernetes' pkg/kubelet/kuberuntime).
func hasImageVolume(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Image != nil })
}

func laterOf(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// maxFailure bounds what is kept of Kubernetes' own words, in bytes.
const maxFailure = 1 << 10

// startFailure says why a container is not started, if it is a failure and not just a matter of time.
func startFailure(status corev1.ContainerStatus) (record.Waiting, bool) {
	w := status.State.Waiting
	if w == nil {
		return record.Waiting{}, false
	}
	failure := record.Waiting{Reason: w.Reason, Message: cut(w.Message, maxFailure)}
	switch w.Reason { // pkg/kubelet/container/sync_result.go and pkg/kubelet/kuberuntime/kuberuntime_container.go in Kubernetes
	case "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError", "PostStartHookError", "CrashLoopBackOff":
		return failure, true
	}
	return failure, failure.IsImage()
}
