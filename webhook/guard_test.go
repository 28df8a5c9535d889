package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// guardTest is a guard with a clock of its own.
type guardTest struct {
	*guard
	clock time.Time
}

func newGuardTest() *guardTest {
	g := &guardTest{guard: newGuard(20*time.Second, 5*time.Minute), clock: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	g.now = func() time.Time { return g.clock }
	return g
}

// pod is an injected pod that was made now, with a status as a kubelet reports it.
func (g *guardTest) pod(namespace, name string, status corev1.PodStatus) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name), CreationTimestamp: metav1.NewTime(g.clock)},
		Spec:       corev1.PodSpec{InitContainers: []corev1.Container{{Name: contract.ShipperContainer}}},
		Status:     status,
	}
}

func (g *guardTest) expect(t *testing.T, when string, paused map[string]bool) {
	t.Helper()
	for namespace, want := range paused {
		if got := g.paused(namespace, true); got != want { // a dry run changes nothing
			t.Errorf("%s: %s is paused: %t, want %t", when, namespace, got, want)
		}
	}
}

// TestGuard follows two namespaces through a fault of one, of both, and back.
func TestGuard(t *testing.T) {
	g := newGuardTest()
	a := g.pod("a", "1", notPulled(g.clock))
	g.clock = g.clock.Add(19 * time.Second)
	if held, _ := g.observe([]*corev1.Pod{a}); len(held) != 0 {
		t.Errorf("%d pods count as held back before their time", len(held))
	}
	g.expect(t, "a failed pull", map[string]bool{"a": false, "b": false})

	g.clock = g.clock.Add(time.Second)
	held, _ := g.observe([]*corev1.Pod{a})
	if len(held) != 1 || held[0].failure.Reason != "ImagePullBackOff" {
		t.Errorf("held back: %+v, want the pod and why", held)
	}
	g.expect(t, "a pod is held back", map[string]bool{"a": true, "b": false})

	// It is replaced. The pause ends for one pod at a time.
	if _, gone := g.observe(nil); len(gone) != 1 || gone[0].name != "1" {
		t.Errorf("gone: %v, want the pod", gone)
	}
	g.clock = g.clock.Add(5*time.Minute - 1)
	if !g.paused("a", false) {
		t.Error("the pause ends too early")
	}
	g.clock = g.clock.Add(1)
	if !g.paused("a", true) || g.paused("a", false) || !g.paused("a", false) {
		t.Error("not exactly one pod is let through, which is no dry run")
	}
	probe := g.pod("a", "2", notPulled(g.clock))
	g.observe([]*corev1.Pod{probe})
	g.clock = g.clock.Add(20 * time.Second)
	b := g.pod("b", "1", notPulled(g.clock.Add(-time.Minute)))
	if held, _ := g.observe([]*corev1.Pod{probe, b}); len(held) != 2 {
		t.Errorf("%d pods are held back, want 2", len(held))
	}
	g.expect(t, "two namespaces", map[string]bool{"a": true, "b": true, "c": true})
	if cluster, namespaces := g.pauses(); cluster != 1 || namespaces != 2 {
		t.Errorf("the metric says %d and %d, want 1 and 2", cluster, namespaces)
	}

	// A pod that was held back starts by itself, when the kubelet's next try succeeds.
	b.Status = shipperRuns()
	g.observe([]*corev1.Pod{probe, b})
	g.expect(t, "a pod starts", map[string]bool{"b": false, "c": false, "a": true})
	g.clock = g.clock.Add(time.Hour)
	g.expect(t, "a pod is held back for an hour: nothing is let through", map[string]bool{"a": true})
	g.recovered("a")
	g.expect(t, "all is well", map[string]bool{"a": false, "b": false})
}

// TestGuardAlike: replicas that see the same decide the same, also one that begins in the middle of it.
func TestGuardAlike(t *testing.T) {
	one, two := newGuardTest(), newGuardTest()
	stuck := one.pod("a", "1", notPulled(one.clock))
	one.clock = one.clock.Add(20 * time.Second)
	two.clock = one.clock
	one.observe([]*corev1.Pod{stuck})
	two.observe([]*corev1.Pod{stuck})
	for _, g := range []*guardTest{one, two} {
		g.expect(t, "held back", map[string]bool{"a": true, "b": false})
		g.observe(nil)
		g.clock = g.clock.Add(5 * time.Minute)
	}
	if one.paused("a", false) {
		t.Fatal("none is let through")
	}
	probe := one.pod("a", "2", corev1.PodStatus{Phase: corev1.PodPending})
	one.observe([]*corev1.Pod{probe})
	two.observe([]*corev1.Pod{probe})
	two.expect(t, "the other replica has let one through", map[string]bool{"a": true})
	if !two.paused("a", false) {
		t.Error("both replicas let one through")
	}
	probe.Status = shipperRuns()
	for _, g := range []*guardTest{one, two} {
		g.observe([]*corev1.Pod{probe})
		g.expect(t, "it has started", map[string]bool{"a": false})
	}
}

// TestGuardOldFault: a fault of yesterday in one namespace and one of today in another are two faults.
func TestGuardOldFault(t *testing.T) {
	g := newGuardTest()
	g.observe([]*corev1.Pod{g.pod("a", "1", notPulled(g.clock.Add(-time.Minute)))})
	g.observe(nil)
	g.clock = g.clock.Add(24 * time.Hour)
	g.observe([]*corev1.Pod{g.pod("b", "1", notPulled(g.clock.Add(-time.Minute)))})
	g.expect(t, "a day later", map[string]bool{"b": true, "c": false})
}

func TestHeldBack(t *testing.T) {
	long := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   bool
	}{
		"image cannot be pulled": {func(*corev1.Pod) {}, true},
		"first failure":          {func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].State = waitingState("ErrImagePull", "") }, true},
		"bad name":               {func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].State = waitingState("InvalidImageName", "") }, true},
		"never pulled":           {func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].State = waitingState("ErrImageNeverPull", "") }, true},
		"cannot be made": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = waitingState("CreateContainerError", "")
		}, true},
		"cannot be configured": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = waitingState("CreateContainerConfigError", "")
		}, true},
		"cannot be run":            {func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].State = waitingState("RunContainerError", "") }, true},
		"ends at once":             {func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].State = waitingState("CrashLoopBackOff", "") }, true},
		"a matter of time":         {func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].State = waitingState("PodInitializing", "") }, false},
		"being made":               {func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].State = waitingState("ContainerCreating", "") }, false},
		"runs":                     {func(p *corev1.Pod) { p.Status = shipperRuns() }, false},
		"started, and waits again": {func(p *corev1.Pod) { p.Status.InitContainerStatuses[0].Started = ptr.To(true) }, false},
		"no status yet":            {func(p *corev1.Pod) { p.Status.InitContainerStatuses = nil }, false},
		"a step waits": {func(p *corev1.Pod) {
			s := shipperRuns()
			s.ContainerStatuses[0].State = waitingState("ErrImagePull", "")
			p.Status = s
		}, false},
		"deleted": {func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: long} }, false},
		"failed":  {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, false},
		"something has run before": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses = append(p.Status.InitContainerStatuses, corev1.ContainerStatus{Name: "prepare", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}})
		}, false},
		"something runs": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			pod := newGuardTest().pod("a", "1", notPulled(long))
			tc.change(pod)
			for form, p := range map[string]*corev1.Pod{"whole": pod, "slim": slimmed(t, pod)} {
				if _, got := heldBack(p, shipperStatus(p)); got != tc.want {
					t.Errorf("%s: held back: %t, want %t", form, got, tc.want)
				}
			}
		})
	}
}

// TestCouldStart: the time comes from the pod, whatever is there of it.
func TestCouldStart(t *testing.T) {
	made, startedAt, ready := time.Unix(1000, 0), time.Unix(2000, 0), time.Unix(3000, 0)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(made)}}
	for _, step := range []struct {
		name   string
		change func()
		want   time.Time
	}{
		{"made", func() {}, made},
		{"taken by a kubelet", func() { pod.Status.StartTime = &metav1.Time{Time: startedAt} }, startedAt},
		{"sandbox not there yet", func() {
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(ready)}}
		}, startedAt},
		{"sandbox there", func() { pod.Status.Conditions[0].Status = corev1.ConditionTrue }, ready},
	} {
		if step.change(); !couldStart(pod).Equal(step.want) {
			t.Errorf("%s: %v, want %v", step.name, couldStart(pod), step.want)
		}
	}
}

func slimmed(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	o, err := slimPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	return o.(*corev1.Pod)
}

// TestSlimPodIsSmall: 10,000 pods that wait at once fit well into the webhook's memory.
func TestSlimPodIsSmall(t *testing.T) {
	pods := goldenPods(t)
	largest := pods[0]
	for _, p := range pods {
		if len(p) > len(largest) {
			largest = p
		}
	}
	pod := decodeTestPod(t, largest)
	pod.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: strings.Repeat("x", 8<<10)}}
	pod.Status = notPulled(time.Now())
	encoded, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	const n = 10_000
	kept := make([]*corev1.Pod, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range kept {
		fresh := decodeTestPod(t, encoded)
		fresh.Name = fmt.Sprintf("%s-%d", fresh.Name, i)
		kept[i] = slimmed(t, fresh)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("a pod of %d bytes of JSON is kept in %d bytes, %d of them in %d KiB", len(encoded), each, n, each*n>>10)
	if each <= 0 || each > 4<<10 {
		t.Errorf("a pod is kept in %d bytes, want at most 4 KiB", each)
	}
	runtime.KeepAlive(kept)
}
