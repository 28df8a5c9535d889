package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

const (
	// slowestFlush bounds a namespace's flush interval: what is not cut yet is lost with the node.
	slowestFlush = time.Minute
	// settingsEvents is how many namespaces with bad settings wait for their event. Those beyond it
	// have only the log line and the warnings.
	settingsEvents = 100
)

// mostCPU and mostMemory bound what a namespace may have the scheduler reserve for the shipper,
// where the operator has not set more: a pod that fits on no node never starts.
var (
	mostCPU    = resource.MustParse("1")
	mostMemory = resource.MustParse("1Gi")
)

// settingsAnnotations are what a namespace may set itself.
var settingsAnnotations = []string{
	contract.SpoolLimitAnnotation, contract.FlushIntervalAnnotation,
	contract.CPURequestAnnotation, contract.CPULimitAnnotation,
	contract.MemoryRequestAnnotation, contract.MemoryLimitAnnotation,
}

// namespaces is what is known of the namespaces in which pods are injected: that they are, and
// their own settings. It is read from memory, so that admission waits for nobody.
type namespaces struct {
	core     kubernetes.Interface
	defaults settings
	store    cache.Store
	informer cache.Controller
	bad      chan badSettings
	log      *slog.Logger
}

// badSettings is a namespace whose settings cannot be used.
type badSettings struct {
	namespace *corev1.Namespace
	err       error
}

// newNamespaces makes the watch. It sends nothing before run. Left hears of a namespace in which
// pods are injected no more.
func newNamespaces(core kubernetes.Interface, defaults settings, left func(namespace string),
	log *slog.Logger) *namespaces {
	n := &namespaces{
		core: core, defaults: defaults, log: log, bad: make(chan badSettings, settingsEvents),
	}
	client := core.CoreV1().Namespaces()
	labelled := func(o metav1.ListOptions) metav1.ListOptions {
		o.LabelSelector = contract.InjectKey + "=" + contract.InjectEnabled
		return o
	}
	n.store, n.informer = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return client.List(ctx, labelled(o))
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return client.Watch(ctx, labelled(o))
			},
		},
		ObjectType: &corev1.Namespace{},
		Transform:  slimNamespace,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { n.check(nil, o) },
			UpdateFunc: n.check,
			DeleteFunc: func(o any) {
				if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o); err == nil {
					left(key)
				}
			},
		},
	})
	return n
}

// slimNamespace keeps of a namespace what is looked at.
func slimNamespace(o any) (any, error) {
	ns, ok := o.(*corev1.Namespace)
	if !ok {
		return o, nil // a notice of a deletion that was missed
	}
	slim := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: ns.Name, UID: ns.UID, ResourceVersion: ns.ResourceVersion,
	}}
	for _, key := range settingsAnnotations {
		if value, ok := ns.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&slim.ObjectMeta, key, value)
		}
	}
	return slim, nil
}

// run watches until the context ends, and returns when all that it has begun has ended.
func (n *namespaces) run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { n.informer.RunWithContext(ctx) })
	defer group.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case bad := <-n.bad:
			n.tell(ctx, bad)
		}
	}
}

// injects says whether pods of the namespace are injected. Until all are listed, all are taken to
// be.
func (n *namespaces) injects(namespace string) bool {
	_, found, err := n.store.GetByKey(namespace)
	return found || err != nil || !n.informer.HasSynced()
}

// own are the defaults with what the namespace sets itself. A namespace that is not known has
// the defaults, and one whose settings cannot be used has them with an error.
func (n *namespaces) own(namespace string) (settings, error) {
	o, found, err := n.store.GetByKey(namespace)
	if err != nil || !found {
		return n.defaults, nil
	}
	return n.defaults.ofNamespace(o.(*corev1.Namespace).Annotations)
}

// check logs settings that cannot be used, when they are first seen and when they have changed.
func (n *namespaces) check(before, after any) {
	ns, ok := after.(*corev1.Namespace)
	if !ok {
		return
	}
	_, err := n.defaults.ofNamespace(ns.Annotations)
	if err == nil {
		return
	}
	if old, ok := before.(*corev1.Namespace); ok {
		if _, was := n.defaults.ofNamespace(old.Annotations); was != nil && was.Error() == err.Error() {
			return
		}
	}
	n.log.Warn("the settings of a namespace cannot be used; its pods get the defaults",
		"namespace", ns.Name, "error", err)
	select {
	case n.bad <- badSettings{ns, err}:
	default:
	}
}

// tell makes an event in the namespace. All replicas give it the same name, so there is one.
func (n *namespaces) tell(ctx context.Context, bad badSettings) {
	ctx, cancel := context.WithTimeout(ctx, kubernetesTimeout)
	defer cancel()
	ns := bad.namespace
	sum := sha256.Sum256([]byte(string(ns.UID) + bad.err.Error()))
	err := warn(ctx, n.core, time.Now(), fmt.Sprintf("shiplog-settings-%x", sum[:8]),
		"ShiplogSettings",
		// Namespaced, although namespaces are not: that is where people look for events.
		corev1.ObjectReference{
			APIVersion: "v1", Kind: "Namespace", Namespace: ns.Name, Name: ns.Name, UID: ns.UID,
		},
		"pods get shiplog's default settings: "+bad.err.Error())
	if err != nil {
		n.log.Warn("no event could be made", "namespace", ns.Name, "error", err)
	}
}

// ofNamespace returns the settings with those in a namespace's annotations. If any of these is bad,
// none is taken, and the error says all that is wrong.
//
// Whoever may change a namespace need not be the operator. So a namespace can only ask for what
// harms nobody else: no more of the node's disk and of the store's requests than the operator
// allows, and no shipper that is killed for want of memory or that fits on no node.
func (s *settings) ofNamespace(annotations map[string]string) (settings, error) {
	own := *s
	if len(annotations) == 0 {
		return own, nil
	}
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	for _, a := range []struct {
		key string
		set func(string) error
	}{
		{contract.SpoolLimitAnnotation, bytesFlag{&own.spoolLimit}.Set},
		{contract.FlushIntervalAnnotation, own.setFlushInterval},
		{contract.CPURequestAnnotation, quantityFlag{&own.cpuRequest}.Set},
		{contract.CPULimitAnnotation, quantityFlag{&own.cpuLimit}.Set},
		{contract.MemoryRequestAnnotation, quantityFlag{&own.memoryRequest}.Set},
		{contract.MemoryLimitAnnotation, quantityFlag{&own.memoryLimit}.Set},
	} {
		if text, ok := annotations[a.key]; ok {
			if err := a.set(text); err != nil {
				bad(a.key, "%w", err)
			}
		}
	}
	if len(errs) > 0 {
		return *s, errors.Join(errs...)
	}

	least, most := s.usefulSpool(), max(s.maxSpoolLimit, s.spoolLimit)
	if own.spoolLimit < least || own.spoolLimit > most {
		bad(contract.SpoolLimitAnnotation, "%s is not between %s and %s",
			bytesFlag{&own.spoolLimit}, bytesFlag{&least}, bytesFlag{&most})
	}
	if slowest := max(slowestFlush, s.flushInterval); own.flushInterval < s.flushInterval ||
		own.flushInterval > slowest {
		bad(contract.FlushIntervalAnnotation, "%v is not between %v and %v",
			own.flushInterval, s.flushInterval, slowest)
	}
	for _, r := range []struct {
		requestKey, limitKey       string
		request, limit             resource.Quantity
		leastRequest, least, bound resource.Quantity
	}{
		{
			contract.CPURequestAnnotation, contract.CPULimitAnnotation, own.cpuRequest, own.cpuLimit,
			resource.Quantity{}, smaller(s.guaranteedCPU, s.cpuLimit), larger(s.cpuLimit, mostCPU),
		},
		{
			contract.MemoryRequestAnnotation, contract.MemoryLimitAnnotation,
			own.memoryRequest, own.memoryLimit,
			s.memoryRequest, s.memoryRequest, larger(s.memoryLimit, mostMemory),
		},
	} {
		if r.limit.Cmp(r.least) < 0 || r.limit.Cmp(r.bound) > 0 {
			bad(r.limitKey, "%s is not between %s and %s", &r.limit, &r.least, &r.bound)
		}
		if r.request.Sign() <= 0 || r.request.Cmp(r.leastRequest) < 0 || r.request.Cmp(r.limit) > 0 {
			bad(r.requestKey, "%s is not between %s and the limit %s",
				&r.request, &r.leastRequest, &r.limit)
		}
	}
	if len(errs) > 0 {
		return *s, errors.Join(errs...)
	}
	return own, nil
}

// setFlushInterval sets the interval, and with it the slow one, which is never shorter.
func (s *settings) setFlushInterval(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration such as 5s: %w", text, err)
	}
	s.flushInterval, s.slowFlushInterval = d, max(d, s.slowFlushInterval)
	return nil
}

func smaller(a, b resource.Quantity) resource.Quantity {
	if a.Cmp(b) < 0 {
		return a
	}
	return b
}

func larger(a, b resource.Quantity) resource.Quantity {
	if a.Cmp(b) > 0 {
		return a
	}
	return b
}
