package main

import (
	"context"
	"fmt"
	"math"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// limits knows the LimitRanges and ResourceQuotas of all namespaces. The API server holds a pod
// against them after admission webhooks, and refuses one that our container made too large, which
// no failurePolicy helps against. So our container is fitted into them, and a pod where that is not
// possible is left alone.
//
// What is known may be a moment old. A pod that a quota refuses because others came between is made again by Tekton, as without shiplog.
type limits struct {
	ranges, quotas cache.Indexer
	informers      []cache.Controller
}

// newLimits makes the watch. It sends nothing before run. Until it has listed all, every pod fits: a webhook that has just begun must not leave pods alone for want of knowledge.
func newLimits(config *rest.Config) (*limits, error) {
	conf := rest.CopyConfig(config)
	conf.Timeout = 0 // a watch has no end
	core, err := kubernetes.NewForConfig(conf)
	if err != nil {
		return nil, fmt.Errorf("watch limits: API client: %w", err)
	}
	l := &limits{}
	watch := func(resource string, of runtime.Object) cache.Indexer {
		store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ListerWatcher: cache.NewListWatchFromClient(core.CoreV1().RESTClient(), resource, metav1.NamespaceAll, fields.Everything()),
			ObjectType:    of,
			Handler:       cache.ResourceEventHandlerFuncs{},
			Indexers:      cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc},
		})
		l.informers = append(l.informers, informer)
		return store.(cache.Indexer) // with Indexers it is one
	}
	l.ranges = watch("limitranges", &corev1.LimitRange{})
	l.quotas = watch("resourcequotas", &corev1.ResourceQuota{})
	return l, nil
}

// run watches until the context ends.
func (l *limits) run(ctx context.Context) {
	var group sync.WaitGroup
	for _, informer := range l.informers {
		group.Go(func() { informer.RunWithContext(ctx) })
	}
	group.Wait()
}

// fit makes our container's resources such that the API server takes the pod with it, if it takes
// the pod without. Where that cannot be it says why.
func (l *limits) fit(
	pod *corev1.Pod, namespace string, ours shipperNeeds,
) (corev1.ResourceRequirements, reason) {
	ranges, err := l.ranges.ByIndex(cache.NamespaceIndex, namespace)
	if err != nil {
		return ours.wanted, "" // there is no such index, which cannot be
	}
	quotas, err := l.quotas.ByIndex(cache.NamespaceIndex, namespace)
	if err != nil || len(ranges)+len(quotas) == 0 {
		return ours.wanted, ""
	}
	var items []corev1.LimitRangeItem
	r := *ours.wanted.DeepCopy()
	for _, o := range ranges {
		applyDefaults(&r, o.(*corev1.LimitRange))
		items = append(items, o.(*corev1.LimitRange).Spec.Limits...)
	}
	before := podResources(&pod.Spec)
	after, fitted := before, ours.wanted
	if pod.Spec.Resources == nil { // a pod's own resources hold for all its containers together
		ours.wanted = r
		r = ours.squeeze(items, before)
		fitted = r
		after = corev1.ResourceRequirements{
			Requests: sum(before.Requests, r.Requests),
			Limits:   sum(before.Limits, r.Limits),
		}
	}
	if !ours.enough(r) {
		return fitted, limitRange
	}
	for _, item := range items {
		switch item.Type {
		case corev1.LimitTypeContainer:
			if !within(r, item) {
				return fitted, limitRange
			}
		case corev1.LimitTypePod:
			if within(before, item) && !within(after, item) {
				return fitted, limitRange
			}
		}
	}
	for _, o := range quotas {
		q := o.(*corev1.ResourceQuota)
		bare, full := corev1.ResourceList{}, quotaUsage(after)
		bestEffort := len(before.Requests) == 0 && len(before.Limits) == 0
		if counts(q, &pod.Spec, bestEffort) {
			bare = quotaUsage(before)
		}
		if !counts(q, &pod.Spec, false) {
			continue
		}
		if room := left(q); inside(bare, room) && !inside(full, room) {
			return fitted, resourceQuota
		}
	}
	return fitted, ""
}

// shipperNeeds are the resources that our container is to have, and the limits below which it is of
// no use. An equal resource has one value for request and limit, so that a pod stays Guaranteed.
type shipperNeeds struct {
	wanted corev1.ResourceRequirements
	least  corev1.ResourceList
	equal  bool // CPU and memory
}

// enough says whether our container can work with these limits.
func (n shipperNeeds) enough(r corev1.ResourceRequirements) bool {
	for name, least := range n.least {
		if limit, limited := r.Limits[name]; limited && limit.Cmp(least) < 0 {
			return false
		}
	}
	return true
}

// squeeze brings what is wanted into the ranges of containers, and into what is left of the ranges
// of pods when the pod's other containers have theirs. Where ranges contradict each other, or leave
// too little, what comes out fits none; fit finds that.
func (n shipperNeeds) squeeze(
	items []corev1.LimitRangeItem, others corev1.ResourceRequirements,
) corev1.ResourceRequirements {
	r := *n.wanted.DeepCopy()
	for name := range n.wanted.Limits {
		limit, request := amount(name, r.Limits[name]), amount(name, r.Requests[name])
		least, most, ratio := bounds(name, items, others)
		limit = max(min(limit, most), least)
		request = min(max(min(request, most), least), limit)
		equal := n.equal && name != corev1.ResourceEphemeralStorage
		if within := limit <= limitFor(request, ratio); !within && !equal {
			// A lower limit of CPU costs nobody anything, up to a point. Beyond it, and for what
			// would be killed or evicted at a lower limit, the request becomes higher.
			if floor, ok := n.least[name]; ok && name == corev1.ResourceCPU {
				limit = max(limitFor(request, ratio), least, min(limit, amount(name, floor)))
			}
			request = max(request, int64(math.Ceil(float64(limit)/ratio)))
		}
		if equal {
			request = limit
		}
		r.Limits[name] = withAmount(r.Limits[name], name, limit)
		r.Requests[name] = withAmount(r.Requests[name], name, request)
	}
	return r
}

// limitFor is the highest limit that a ratio allows to a request.
func limitFor(request int64, ratio float64) int64 {
	limit := float64(request) * ratio
	if ratio == 0 || limit >= math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(limit)
}

// bounds are what ranges ask of one container of a pod, as amounts: the least and the most, and the
// ratio of limit to request, or 0.
func bounds(
	name corev1.ResourceName, items []corev1.LimitRangeItem, others corev1.ResourceRequirements,
) (least, most int64, ratio float64) {
	most = math.MaxInt64
	for _, item := range items {
		var used int64
		switch {
		case item.Type == corev1.LimitTypeContainer:
			if q, ok := item.Min[name]; ok {
				least = max(least, amount(name, q))
			}
		// Of others that are not within it the pod is refused anyway.
		case item.Type == corev1.LimitTypePod && within(others, item):
			used = amount(name, others.Limits[name])
		default:
			continue
		}
		if q, ok := item.Max[name]; ok {
			most = min(most, amount(name, q)-used)
		}
		// What has the ratio, added to what has it, has it again.
		if q, ok := item.MaxLimitRequestRatio[name]; ok &&
			(ratio == 0 || q.AsApproximateFloat64() < ratio) {
			ratio = q.AsApproximateFloat64()
		}
	}
	return least, most, ratio
}

// amount is a quantity in the unit in which LimitRanges compare it.
func amount(name corev1.ResourceName, q resource.Quantity) int64 {
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// withAmount is the quantity, with another amount if it has not that one.
func withAmount(q resource.Quantity, name corev1.ResourceName, n int64) resource.Quantity {
	switch {
	case amount(name, q) == n:
		return q
	case name == corev1.ResourceCPU:
		return *resource.NewMilliQuantity(n, resource.DecimalSI)
	}
	return *resource.NewQuantity(n, resource.BinarySI)
}

// applyDefaults fills in what a LimitRange gives to containers that say nothing, as the API server does once more behind the webhooks.
func applyDefaults(r *corev1.ResourceRequirements, l *corev1.LimitRange) {
	for _, item := range l.Spec.Limits {
		if item.Type != corev1.LimitTypeContainer {
			continue
		}
		for name, q := range item.Default {
			if _, ok := r.Limits[name]; !ok {
				r.Limits = sum(r.Limits, corev1.ResourceList{name: q})
			}
		}
		for name, q := range item.DefaultRequest {
			if _, ok := r.Requests[name]; !ok {
				r.Requests = sum(r.Requests, corev1.ResourceList{name: q})
			}
		}
	}
}

// podResources are what the API server counts for the pod: its containers and native sidecars together, or an init container with the native sidecars before it, if that is more.
// Source: PodRequests in k8s.io/component-helpers/resource.
func podResources(spec *corev1.PodSpec) corev1.ResourceRequirements {
	if spec.Resources != nil {
		return corev1.ResourceRequirements{Requests: spec.Resources.Requests, Limits: spec.Resources.Limits}
	}
	count := func(of func(*corev1.Container) corev1.ResourceList) corev1.ResourceList {
		var total, sidecars, peak corev1.ResourceList
		for i := range spec.InitContainers {
			c := &spec.InitContainers[i]
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
				sidecars = sum(sidecars, of(c))
				peak = highest(peak, sidecars)
				continue
			}
			peak = highest(peak, sum(sidecars, of(c)))
		}
		total = sidecars
		for i := range spec.Containers {
			total = sum(total, of(&spec.Containers[i]))
		}
		return sum(highest(total, peak), spec.Overhead)
	}
	return corev1.ResourceRequirements{
		Requests: count(func(c *corev1.Container) corev1.ResourceList { return c.Resources.Requests }),
		Limits:   count(func(c *corev1.Container) corev1.ResourceList { return c.Resources.Limits }),
	}
}

// within says whether resources are what a LimitRange allows. Source: plugin/pkg/admission/limitranger in Kubernetes.
func within(r corev1.ResourceRequirements, item corev1.LimitRangeItem) bool {
	for name, least := range item.Min {
		request, requested := r.Requests[name]
		limit, limited := r.Limits[name]
		if !requested || request.Cmp(least) < 0 || limited && limit.Cmp(least) < 0 {
			return false
		}
	}
	for name, most := range item.Max {
		request, requested := r.Requests[name]
		limit, limited := r.Limits[name]
		if !limited || limit.Cmp(most) > 0 || requested && request.Cmp(most) > 0 {
			return false
		}
	}
	for name, most := range item.MaxLimitRequestRatio {
		request, limit := r.Requests[name], r.Limits[name]
		if request.Sign() == 0 || limit.Sign() == 0 || limit.AsApproximateFloat64()/request.AsApproximateFloat64() > most.AsApproximateFloat64() {
			return false
		}
	}
	return true
}

// counts says whether a quota is for such a pod. With our container no pod is of the class BestEffort. Scopes that are not told apart here are taken to hold: at worst a pod is left
// alone that would have fitted.
func counts(q *corev1.ResourceQuota, spec *corev1.PodSpec, bestEffort bool) bool {
	terminating := spec.ActiveDeadlineSeconds != nil && *spec.ActiveDeadlineSeconds >= 0
	for _, scope := range q.Spec.Scopes {
		switch scope {
		case corev1.ResourceQuotaScopeTerminating:
			if !terminating {
				return false
			}
		case corev1.ResourceQuotaScopeNotTerminating:
			if terminating {
				return false
			}
		case corev1.ResourceQuotaScopeBestEffort:
			if !bestEffort {
				return false
			}
		case corev1.ResourceQuotaScopeNotBestEffort:
			if bestEffort {
				return false
			}
		}
	}
	return true
}

// quotaUsage is what a quota counts of the resources. Source: pkg/quota/v1/evaluator/core/pods.go in Kubernetes.
func quotaUsage(r corev1.ResourceRequirements) corev1.ResourceList {
	usage := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("1")}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if q, ok := r.Requests[name]; ok {
			usage[name], usage["requests."+name] = q, q
		}
		if q, ok := r.Limits[name]; ok {
			usage["limits."+name] = q
		}
	}
	return usage
}

// left is what a quota has to give.
func left(q *corev1.ResourceQuota) corev1.ResourceList {
	room := corev1.ResourceList{}
	for name, hard := range q.Spec.Hard {
		hard = hard.DeepCopy()
		hard.Sub(q.Status.Used[name])
		room[name] = hard
	}
	return room
}

// inside says whether there is room for what is used.
func inside(usage, room corev1.ResourceList) bool {
	for name, q := range usage {
		if r, ok := room[name]; ok && q.Cmp(r) > 0 {
			return false
		}
	}
	return true
}

// sum adds lists. It changes neither.
func sum(a, b corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for _, list := range []corev1.ResourceList{a, b} {
		for name, q := range list {
			total := out[name].DeepCopy()
			total.Add(q)
			out[name] = total
		}
	}
	return out
}

// highest has the larger of each. It changes neither.
func highest(a, b corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for _, list := range []corev1.ResourceList{a, b} {
		for name, q := range list {
			if old, ok := out[name]; !ok || q.Cmp(old) > 0 {
				out[name] = q.DeepCopy()
			}
		}
	}
	return out
}
