package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
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

func (g *guardTest) advance(d time.Duration) { g.clock = g.clock.Add(d) }

// pod is an injected pod that was made now, on node n, with a status as a kubelet reports it.
func (g *guardTest) pod(namespace, name string, status corev1.PodStatus) *corev1.Pod {
	return g.podOn("n", namespace, name, status)
}

func (g *guardTest) podOn(node, namespace, name string, status corev1.PodStatus) *corev1.Pod {
	uid := types.UID(namespace + "/" + name)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:         namespace,
			Name:              name,
			UID:               uid,
			CreationTimestamp: metav1.NewTime(g.clock),
			OwnerReferences: []metav1.OwnerReference{
				{
					APIVersion: "tekton.dev/v1",
					Kind:       "TaskRun",
					Name:       name,
					UID:        "run of " + uid,
					Controller: ptr.To(true),
				},
			},
		},
		Spec:   corev1.PodSpec{NodeName: node, InitContainers: ourContainer},
		Status: status,
	}
}

// held is a pod that has been held back for a minute.
func (g *guardTest) heldOn(node, namespace, name string) *corev1.Pod {
	return g.podOn(node, namespace, name, notPulled(g.clock.Add(-time.Minute)))
}

// startedOn is a pod whose shipper has started now.
func (g *guardTest) startedOn(node, namespace, name string) *corev1.Pod {
	return g.podOn(node, namespace, name, shipperRunsSince(g.clock))
}

func (g *guardTest) expect(t *testing.T, when string, paused map[string]bool) {
	t.Helper()
	for namespace, want := range paused {
		if got := g.isPaused(namespace); got != want {
			t.Errorf("%s: %s is paused: %t, want %t", when, namespace, got, want)
		}
	}
}

// isPaused asks as a dry run, which changes nothing.
func (g *guard) isPaused(namespace string) bool {
	return g.paused(namespace, "another", true) != ""
}

// lets says whether a new pod of the namespace is injected.
func (g *guardTest) lets(namespace string) bool {
	return g.paused(namespace, "another", false) == ""
}

// TestGuard follows a namespace through a fault and back, while another one has its own.
func TestGuard(t *testing.T) {
	g := newGuardTest()
	a := g.pod("a", "1", notPulled(g.clock))
	g.advance(19 * time.Second)
	if held, _ := g.observe([]*corev1.Pod{a}, nil); len(held) != 0 {
		t.Errorf("%d pods count as held back before their time", len(held))
	}
	g.expect(t, "a failed pull", map[string]bool{"a": false, "b": false})

	g.advance(time.Second)
	held, _ := g.observe([]*corev1.Pod{a}, nil)
	if len(held) != 1 || held[0].failure.Reason != "ImagePullBackOff" {
		t.Errorf("held back: %+v, want the pod and why", held)
	}
	g.expect(t, "a pod is held back", map[string]bool{"a": true, "b": false})

	// It is replaced. The pause ends for one pod at a time.
	if _, gone := g.observe(nil, nil); len(gone) != 1 || gone[0].name != "1" {
		t.Errorf("gone: %v, want the pod", gone)
	}
	g.advance(5*time.Minute - 1)
	if g.lets("a") {
		t.Error("the pause ends too early")
	}
	g.advance(1)
	if got := g.paused("a", "run of a/1", false); got != cannotStart {
		t.Errorf("the TaskRun whose pod was replaced is left alone for %q, want %q", got,
			cannotStart)
	}
	if !g.isPaused("a") || !g.lets("a") || g.lets("a") {
		t.Error("not exactly one pod is let through, which is no dry run")
	}
	probe := g.pod("a", "2", notPulled(g.clock))
	g.observe([]*corev1.Pod{probe}, nil)
	g.advance(20 * time.Second)
	b := g.pod("b", "1", notPulled(g.clock.Add(-time.Minute)))
	if held, _ := g.observe([]*corev1.Pod{probe, b}, nil); len(held) != 2 {
		t.Errorf("%d pods are held back, want 2", len(held))
	}
	g.expect(t, "two namespaces", map[string]bool{"a": true, "b": true, "c": false})
	if nowhere, namespaces, nodes := g.pauses(); !nowhere || namespaces != 2 || nodes != 0 {
		t.Errorf("the metrics say %t, %d and %d, want true, 2 and 0", nowhere, namespaces, nodes)
	}

	// A pod that was held back starts by itself, when the kubelet's next try succeeds.
	b.Status = shipperRunsSince(g.clock)
	g.observe([]*corev1.Pod{probe, b}, nil)
	g.expect(t, "a pod starts", map[string]bool{"b": false, "c": false, "a": true})
	g.advance(time.Hour)
	g.observe([]*corev1.Pod{probe}, nil)
	g.expect(t, "a pod is held back for an hour: nothing is let through", map[string]bool{"a": true})
	g.recovered("a", "n")
	g.expect(t, "all is well", map[string]bool{"a": false, "b": false})
}

// TestGuardAlike: replicas that see the same decide the same, also one that begins in the middle of it.
func TestGuardAlike(t *testing.T) {
	one, two := newGuardTest(), newGuardTest()
	stuck := one.pod("a", "1", notPulled(one.clock))
	one.advance(20 * time.Second)
	two.clock = one.clock
	one.observe([]*corev1.Pod{stuck}, nil)
	two.observe([]*corev1.Pod{stuck}, nil)
	for _, g := range []*guardTest{one, two} {
		g.expect(t, "held back", map[string]bool{"a": true, "b": false})
		g.observe(nil, nil)
		g.advance(5 * time.Minute)
	}
	if !one.lets("a") {
		t.Fatal("none is let through")
	}
	probe := one.pod("a", "2", corev1.PodStatus{Phase: corev1.PodPending})
	one.seen(probe)
	two.seen(probe)
	two.expect(t, "the other replica has let one through", map[string]bool{"a": true})
	if two.lets("a") {
		t.Error("both replicas let one through")
	}
	probe.Status = shipperRunsSince(one.clock)
	for _, g := range []*guardTest{one, two} {
		g.seen(probe)
		g.expect(t, "it has started", map[string]bool{"a": false})
	}
}

// TestGuardOldStart: a pod whose shipper started before the fault does not end the pause, however
// often it is seen.
func TestGuardOldStart(t *testing.T) {
	g := newGuardTest()
	old := g.startedOn("n", "a", "old")
	g.advance(time.Minute)
	g.observe([]*corev1.Pod{old, g.heldOn("n", "a", "1")}, nil)
	g.observe([]*corev1.Pod{old}, nil)
	g.expect(t, "a fault", map[string]bool{"a": true})
}

// TestGuardNodes: a node that is at fault stops no namespace.
func TestGuardNodes(t *testing.T) {
	type seen struct {
		start, held string // "node namespace"
	}
	for name, tc := range map[string]struct {
		history []seen
		paused  []string
		nodes   int
	}{
		"no shipper is known to have started": {history: []seen{{held: "bad a"}},
			paused: []string{"a"}},
		"its shippers start elsewhere": {history: []seen{{start: "good a"}, {held: "bad a"}},
			nodes: 1},
		"they start there, too": {history: []seen{{start: "bad a"}, {held: "bad a"}},
			paused: []string{"a"}},
		"others start elsewhere": {history: []seen{{start: "good b"}, {held: "bad a"}},
			paused: []string{"a"}},
		"two namespaces on one node, while others start elsewhere": {
			history: []seen{{start: "good c"}, {held: "bad a"}, {held: "bad b"}},
			paused:  []string{"a"},
			nodes:   1},
		"two namespaces on one node, where a third starts": {
			history: []seen{{start: "good c"}, {held: "bad a"}, {start: "bad c"}, {held: "bad b"}},
			paused:  []string{"a", "b"}},
		"a namespace on two nodes": {
			history: []seen{{start: "good a"}, {held: "bad a"}, {held: "worse a"}},
			paused:  []string{"a"},
			nodes:   1},
		"a namespace on two nodes, and it has started since": {
			history: []seen{{held: "bad a"}, {start: "good a"}, {held: "worse a"}}, nodes: 1},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuardTest()
			for i, s := range tc.history {
				g.advance(10 * time.Second)
				node, namespace, held := strings.Cut(s.held, " ")
				if held {
					pod := g.heldOn(node, namespace, fmt.Sprint(i))
					if got, _ := g.observe([]*corev1.Pod{pod}, nil); len(got) != 1 {
						t.Fatalf("%d pods are held back, want 1", len(got))
					}
				} else {
					node, namespace, _ = strings.Cut(s.start, " ")
					g.observe([]*corev1.Pod{g.startedOn(node, namespace, fmt.Sprint(i))}, nil)
				}
			}
			want := map[string]bool{"a": false, "b": false, "c": false}
			for _, namespace := range tc.paused {
				want[namespace] = true
			}
			g.expect(t, "then", want)
			if _, _, nodes := g.pauses(); nodes != tc.nodes {
				t.Errorf("%d nodes are at fault, want %d", nodes, tc.nodes)
			}
		})
	}
}

// TestGuardNodePatience: on a node that is at fault pods are not waited for, until a shipper starts
// there.
func TestGuardNodePatience(t *testing.T) {
	g := newGuardTest()
	g.observe([]*corev1.Pod{g.startedOn("good", "a", "1")}, nil)
	g.observe([]*corev1.Pod{g.heldOn("bad", "a", "2")}, nil)
	fails := g.podOn("bad", "b", "3", notPulled(g.clock))
	if held, _ := g.observe([]*corev1.Pod{fails}, nil); len(held) != 1 {
		t.Error("a pod on the node is waited for")
	}
	elsewhere := g.podOn("good", "b", "4", notPulled(g.clock))
	if held, _ := g.observe([]*corev1.Pod{elsewhere}, nil); len(held) != 0 {
		t.Error("a pod on another node is not waited for")
	}
	g.advance(time.Second)
	g.observe([]*corev1.Pod{g.startedOn("bad", "c", "5")}, nil)
	fails = g.podOn("bad", "b", "6", notPulled(g.clock))
	if held, _ := g.observe([]*corev1.Pod{fails}, nil); len(held) != 0 {
		t.Error("the node is at fault, though a shipper has started on it since")
	}
}

// TestGuardUnlabelled: a pod in a namespace where nothing is injected is replaced, and stops
// nothing.
func TestGuardUnlabelled(t *testing.T) {
	g := newGuardTest()
	g.injects = func(namespace string) bool { return namespace == "a" }
	held, _ := g.observe([]*corev1.Pod{g.heldOn("n", "a", "1"), g.heldOn("n", "b", "1")}, nil)
	if len(held) != 2 {
		t.Errorf("%d pods are to be replaced, want both", len(held))
	}
	g.expect(t, "one namespace has no label", map[string]bool{"a": true, "b": false})
	g.leave("a")
	g.expect(t, "the label is taken away and set again", map[string]bool{"a": false})
}

// simulation is a cluster with the real guard: each second pods come, start or are held back, and
// are replaced.
type simulation struct {
	*guardTest
	random  *rand.Rand
	broken  func(namespace, node string) bool
	nodes   int
	waiting map[types.UID]*simulatedPod
	n       int

	injected, alone, held map[string]int // pods by namespace; the last had to be replaced
}

type simulatedPod struct {
	*corev1.Pod
	broken  bool
	replace time.Time
}

func newSimulation(nodes int, broken func(namespace, node string) bool) *simulation {
	return &simulation{
		guardTest: newGuardTest(),
		random:    rand.New(rand.NewPCG(1, 2)),
		broken:    broken,
		nodes:     nodes,
		waiting:   map[types.UID]*simulatedPod{},
		injected:  map[string]int{},
		alone:     map[string]int{},
		held:      map[string]int{},
	}
}

// build is a TaskRun of which Tekton makes the pod now.
func (s *simulation) build(namespace string) {
	s.n++
	name := fmt.Sprint(s.n)
	if s.paused(namespace, types.UID("run of "+namespace+"/"+name), false) != "" {
		s.alone[namespace]++
		return
	}
	s.injected[namespace]++
	s.add(namespace, name)
}

// add makes an injected pod.
func (s *simulation) add(namespace, name string) {
	node := fmt.Sprint("node-", s.random.IntN(s.nodes))
	pod := s.podOn(node, namespace, name, corev1.PodStatus{Phase: corev1.PodPending})
	s.waiting[pod.UID] = &simulatedPod{Pod: pod, broken: s.broken(namespace, node)}
}

// second lets a second pass.
func (s *simulation) second() {
	s.advance(time.Second)
	var pods []*corev1.Pod
	for uid, p := range s.waiting {
		switch age := s.clock.Sub(p.CreationTimestamp.Time); {
		case age >= 2*time.Second && p.broken:
			p.Status = notPulled(p.CreationTimestamp.Time)
		case age >= 6*time.Second:
			delete(s.waiting, uid) // all of it runs
			continue
		case age >= 2*time.Second:
			p.Status = shipperRunsSince(p.CreationTimestamp.Add(2 * time.Second))
		}
		pods = append(pods, p.Pod)
	}
	held, _ := s.observe(pods, nil)
	for _, h := range held {
		p := s.waiting[h.uid]
		if p.replace.IsZero() {
			p.replace = s.clock.Add(settle)
		}
		if !s.clock.Before(p.replace) {
			delete(s.waiting, h.uid)
			s.held[h.namespace]++
			if s.paused(h.namespace, h.owner.uid, false) == "" {
				panic("the TaskRun of a pod that was replaced is injected again")
			}
		}
	}
}

func ns(i int) string { return fmt.Sprintf("ns-%03d", i) }

// TestGuardSimulated lets hours pass in clusters where something is broken. What is said is what
// must hold; the numbers are in docs/decisions.md.
func TestGuardSimulated(t *testing.T) {
	sumOf := func(of map[string]int, but ...string) (n int) {
		for namespace, k := range of {
			for _, b := range but {
				if namespace == b {
					k = 0
				}
			}
			n += k
		}
		return n
	}
	t.Run("two of 200 namespaces without a pull secret, a quiet cluster", func(t *testing.T) {
		s := newSimulation(10,
			func(namespace, _ string) bool { return namespace == ns(0) || namespace == ns(1) })
		for range 6 * 3600 {
			if s.random.IntN(60) == 0 { // a build a minute, so one in three hours for a namespace
				s.build(ns(s.random.IntN(200)))
			}
			if s.random.IntN(300) == 0 {
				s.build(ns(s.random.IntN(2)))
			}
			s.second()
		}
		t.Logf("injected %d, left alone %d, held back %d", sumOf(s.injected), sumOf(s.alone),
			sumOf(s.held))
		if n := sumOf(s.alone, ns(0), ns(1)); n != 0 || sumOf(s.held, ns(0), ns(1)) != 0 {
			t.Errorf("%d pods of healthy namespaces are left alone", n)
		}
		if s.alone[ns(0)] == 0 || s.alone[ns(1)] == 0 {
			t.Error("in the broken namespaces injecting does not stop")
		}
	})
	t.Run("a tenant holds pods back in two namespaces, as many as they like", func(t *testing.T) {
		evil := func(namespace, _ string) bool { return strings.HasPrefix(namespace, "evil") }
		s := newSimulation(10, evil)
		for i := range 3 * 3600 {
			if i%60 == 0 {
				s.add(fmt.Sprint("evil-", i%120/60), fmt.Sprint("made by hand ", i))
			}
			if s.random.IntN(60) == 0 {
				s.build(ns(s.random.IntN(20)))
			}
			s.second()
		}
		t.Logf("injected %d, left alone %d", sumOf(s.injected), sumOf(s.alone))
		if n := sumOf(s.alone); n != 0 || sumOf(s.injected) < 150 {
			t.Errorf("%d pods of others are left alone, and %d injected", n, sumOf(s.injected))
		}
	})
	t.Run("one of 20 nodes is bad", func(t *testing.T) {
		s := newSimulation(20, func(_, node string) bool { return node == "node-7" })
		for range 3600 {
			s.build(ns(s.random.IntN(50)))
			s.second()
		}
		share := float64(sumOf(s.alone)) / float64(s.n)
		t.Logf("%d builds, %d left alone, %d replaced on the node", s.n, sumOf(s.alone),
			sumOf(s.held))
		if share > 0.01 {
			t.Errorf("%.1f %% of the pods are left alone", 100*share)
		}
		if _, namespaces, nodes := s.pauses(); namespaces != 0 || nodes != 1 {
			t.Errorf("%d namespaces pause and %d nodes are at fault, want none and one", namespaces,
				nodes)
		}
	})
	t.Run("no shipper starts anywhere for two hours", func(t *testing.T) {
		bad := true
		s := newSimulation(20, func(string, string) bool { return bad })
		for range 2 * 3600 {
			s.build(ns(s.random.IntN(200)))
			s.second()
		}
		t.Logf("%d builds, %d held back", s.n, sumOf(s.held))
		if nowhere, namespaces, _ := s.pauses(); !nowhere || namespaces != 200 {
			t.Errorf("nowhere: %t, and %d namespaces pause, want all", nowhere, namespaces)
		}
		// One for each namespace and hour after the first ones, of which more than one can be on
		// the way.
		if n := sumOf(s.held); n > 1200 {
			t.Errorf("%d of %d builds are held back", n, s.n)
		}
		bad = false
		begin := s.clock
		for s.clock.Sub(begin) < time.Hour {
			s.build(ns(s.random.IntN(200)))
			s.second()
			if _, namespaces, _ := s.pauses(); namespaces <= 10 {
				break
			}
		}
		t.Logf("after %v 95 %% of the namespaces are injected again", s.clock.Sub(begin))
		if s.clock.Sub(begin) > 30*time.Minute {
			t.Error("it takes too long until shippers are injected again")
		}
	})
}

// TestGuardRefusals: pods that a policy refuses, each with what the guard makes of it.
func TestGuardRefusals(t *testing.T) {
	const ours, anybodys = true, false // what the message is about
	g := newGuardTest()
	refuse := func(name string, ours bool) bool {
		t.Helper()
		run := &runObject{
			ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, UID: types.UID(name)},
		}
		_, stops := g.refused(refusedPod{taskRun: run, ours: ours})
		return stops
	}
	begin := func() { g = newGuardTest() }
	expect := func(t *testing.T, what string, got, want bool) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %t, want %t", what, got, want)
		}
	}
	t.Run("our image", func(t *testing.T) {
		begin()
		expect(t, "stops", refuse("1", ours), true)
		if got := g.paused("a", "next", false); got != shipperRefused {
			t.Errorf("the next is left alone for %q", got)
		}
		g.expect(t, "others", map[string]bool{"b": false})
		expect(t, "one that was on its way", refuse("2", ours), false)
		// Each try costs a build, so the pauses grow.
		for i, hours := range []time.Duration{1, 2, 4, 8, 16, 24, 24} {
			g.advance(hours*time.Hour - time.Second)
			expect(t, fmt.Sprintf("pause %d is over early", i), g.lets("a"), false)
			g.advance(time.Second)
			try := types.UID(fmt.Sprint("try ", i))
			expect(t, fmt.Sprintf("pause %d ends", i), g.paused("a", try, false) == "", true)
			expect(t, "another pod is left alone meanwhile", g.lets("a"), false)
			expect(t, "it is refused again", refuse(string(try), ours), true)
		}
		g.advance(24 * time.Hour)
		expect(t, "one is let through", g.lets("a"), true)
		g.observe([]*corev1.Pod{g.startedOn("n", "a", "good")}, nil)
		g.expect(t, "it has started", map[string]bool{"a": false})
		expect(t, "it is refused a year later", refuse("later", ours), true)
		g.advance(time.Hour)
		expect(t, "the pauses begin anew", g.lets("a"), true)
	})
	t.Run("something in the pod, which without us is refused as well", func(t *testing.T) {
		begin()
		expect(t, "stops", refuse("build-1", anybodys), true)
		g.advance(time.Minute)
		expect(t, "the same build again", refuse("build-2", anybodys), false)
		g.expect(t, "it is the user's own affair", map[string]bool{"a": false})
		expect(t, "once more", refuse("build-3", anybodys), false)
		expect(t, "another build", refuse("deploy-1", anybodys), true)
		g.advance(time.Hour)
		expect(t, "the build an hour later", refuse("build-4", anybodys), true)
	})
	t.Run("something in the pod, which without us is not refused", func(t *testing.T) {
		begin()
		expect(t, "stops", refuse("build-1", anybodys), true)
		g.advance(58 * time.Minute)
		expect(t, "another build is refused without us", refuse("deploy-1", anybodys), false)
		g.expect(t, "after that", map[string]bool{"a": true})
		g.advance(2 * time.Minute)
		expect(t, "the pause is over", g.paused("a", "build-2", false) == "", true)
		expect(t, "the build is refused again", refuse("build-2", anybodys), true)
		g.expect(t, "after that", map[string]bool{"a": true})
	})
	t.Run("our image, and without us something else", func(t *testing.T) {
		begin()
		expect(t, "stops", refuse("build-1", ours), true)
		g.advance(time.Minute)
		expect(t, "the same build again", refuse("build-2", anybodys), false)
		g.expect(t, "it was because of us all the same", map[string]bool{"a": true})
	})
	t.Run("something in the pod, while others pass with us", func(t *testing.T) {
		begin()
		g.seen(g.pod("a", "1", corev1.PodStatus{Phase: corev1.PodPending}))
		expect(t, "the first stops", refuse("1", anybodys), false)
		g.advance(time.Minute)
		g.seen(g.pod("a", "2", corev1.PodStatus{Phase: corev1.PodPending}))
		expect(t, "the second, since when one has passed, stops", refuse("2", anybodys), false)
		g.advance(time.Minute)
		expect(t, "the third, since when none has passed, stops", refuse("3", anybodys), true)
	})
	t.Run("one that another replica has let through a moment earlier", func(t *testing.T) {
		for _, about := range []bool{ours, anybodys} {
			begin()
			expect(t, "stops", refuse("1", about), true)
			g.advance(time.Hour - 2*time.Second)
			expect(t, "it is refused again", refuse("2", about), true)
			g.advance(2 * time.Second)
			expect(t, "this replica lets one through as well", g.lets("a"), false)
		}
	})
	t.Run("in a namespace without the label", func(t *testing.T) {
		begin()
		g.injects = func(string) bool { return false }
		expect(t, "stops", refuse("1", ours), false)
	})
	t.Run("found when the webhook begins", func(t *testing.T) {
		begin()
		early := func(name string, ours bool, ago time.Duration) bool {
			run := &runObject{
				ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name},
				ending:     ending{completed: g.clock.Add(-ago)},
			}
			_, stops := g.refused(refusedPod{taskRun: run, ours: ours, early: true})
			return stops
		}
		expect(t, "one of yesterday stops", early("1", ours, 24*time.Hour), false)
		expect(t, "one that may be about anything stops", early("2", anybodys, time.Minute), false)
		expect(t, "one of half an hour ago stops", early("3", ours, 30*time.Minute), true)
		expect(t, "one of before that stops", early("4", ours, 40*time.Minute), true)
		g.advance(30*time.Minute - 1)
		g.expect(t, "until an hour is over", map[string]bool{"a": true})
		g.advance(1)
		expect(t, "then one is let through", g.lets("a"), true)
	})
}

func TestHeldBack(t *testing.T) {
	long := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	running := func(since time.Time) corev1.ContainerState {
		return corev1.ContainerState{
			Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(since)},
		}
	}
	inFront := func(p *corev1.Pod, c corev1.ContainerStatus) {
		s := &p.Status.InitContainerStatuses
		*s = append([]corev1.ContainerStatus{c}, *s...)
	}
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
		"by its name alone ours": {func(p *corev1.Pod) {
			p.Spec.InitContainers[0].Command = []string{"sleep"}
		}, false},
		"of no TaskRun": {func(p *corev1.Pod) { p.OwnerReferences = nil }, false},
		"hangs": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = waitingState("PodInitializing", "")
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(long.Add(-2 * time.Minute))
		}, true},
		"runs and has not started": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = running(long)
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(long.Add(-2 * time.Minute))
		}, true},
		"waits for the image of a volume": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = waitingState("PodInitializing", "")
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(long.Add(-2 * time.Minute))
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "model",
				VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "m"}}})
		}, false},
		"waits for its sandbox": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = waitingState("PodInitializing", "")
			p.Status.StartTime = &metav1.Time{Time: long.Add(-time.Hour)}
			p.Status.Conditions = nil
		}, false},
		"another's sidecar in front of ours has started": {func(p *corev1.Pod) {
			inFront(p, corev1.ContainerStatus{Name: "mesh", Started: ptr.To(true), State: running(long)})
		}, true},
		"another's sidecar in front of ours hangs": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses[0].State = waitingState("PodInitializing", "")
			inFront(p, corev1.ContainerStatus{Name: "mesh", State: waitingState("PodInitializing", "")})
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(long.Add(-2 * time.Minute))
		}, false},
		"something has run before": {func(p *corev1.Pod) {
			p.Status.InitContainerStatuses = append(p.Status.InitContainerStatuses, corev1.ContainerStatus{Name: "prepare", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}})
		}, false},
		"something runs": {func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			pod := newGuardTest().pod("a", "1", notPulled(long))
			pod.Spec = decodeTestPod(t, injectedTestPod(t)).Spec
			tc.change(pod)
			slim := slimmed(t, pod)
			// A list is slim before it is transformed.
			for form, p := range map[string]*corev1.Pod{
				"whole": pod, "slim": slim, "slim twice": slimmed(t, slim),
			} {
				if _, got := heldBack(p, nil, long); got != tc.want {
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
		step.change()
		if got, certain := couldStart(pod); !got.Equal(step.want) ||
			certain != (step.want == ready) {
			t.Errorf("%s: %v, certain: %t, want %v", step.name, got, certain, step.want)
		}
	}
}

// injectedTestPod is a pod as we inject it.
func injectedTestPod(t *testing.T) []byte {
	t.Helper()
	raw := podWith("", "")
	_, patch, err := inject(raw, testSettings(), onSupported)
	if err != nil {
		t.Fatal(err)
	}
	return apply(t, raw, patch)
}

// TestReadEvents: what a kubelet's events say of a pod that has not started.
func TestReadEvents(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	event := func(ago time.Duration, reason, message string) corev1.Event {
		at := metav1.NewTime(now.Add(-ago))
		return corev1.Event{
			Source:         corev1.EventSource{Component: "kubelet"},
			Reason:         reason,
			Message:        message,
			FirstTimestamp: at,
			LastTimestamp:  at,
		}
	}
	of := func(container string, e corev1.Event) corev1.Event {
		e.InvolvedObject.FieldPath = "spec.initContainers{" + container + "}"
		return e
	}
	shippers := func(e corev1.Event) corev1.Event { return of(contract.ShipperContainer, e) }
	told := shippers(event(time.Hour, "ShiplogHeldBack", "shiplog's container does not start"))
	told.Source.Component = "shiplog-webhook"
	token := event(time.Second, "FailedMount",
		`MountVolume.SetUp failed for volume "shiplog-token" : failed to fetch token`)
	theirs := event(time.Second, "FailedMount",
		`MountVolume.SetUp failed for volume "settings" : configmap "x" not found`)
	oldTheirs := event(4*time.Minute, "FailedMount",
		`MountVolume.SetUp failed for volume "settings" : configmap "x" not found`)
	all := func(events ...corev1.Event) []corev1.Event { return events }
	pulling := func(ago time.Duration) corev1.Event { return event(ago, "Pulling", "Pulling image") }
	listed := func(names string) corev1.Event {
		return event(0, "FailedMount", "Unable to attach or mount volumes: unmounted volumes=["+
			names+"], unattached volumes=[], failed to process volumes=[]: timed out")
	}
	disk := event(0, "FailedMount", `MountVolume.MountDevice failed for volume "pvc-1" : rpc error`)
	for name, tc := range map[string]struct {
		events []corev1.Event
		want   string
	}{
		"none":                      {nil, ""},
		"scheduled":                 {all(event(time.Hour, "Scheduled", "assigned")), ""},
		"our image is being pulled": {all(shippers(pulling(59 * time.Second))), ""},
		"for a minute":              {all(shippers(pulling(time.Minute))), reasonHangs},
		"our hook hangs": {
			all(shippers(event(2*time.Minute, "Pulled", "")), shippers(event(time.Minute, "Started", ""))),
			reasonHangs,
		},
		"another's image in front":     {all(of("mesh", pulling(time.Hour))), ""},
		"what we have said ourselves":  {all(told), ""},
		"our volume is missing":        {all(token), reasonMount},
		"the user's volume is missing": {all(theirs), ""},
		"both are":                     {all(token, theirs), ""},
		"the user's was, and is not":   {all(token, oldTheirs), reasonMount},
		"ours was, and is not":         {all(event(4*time.Minute, "FailedMount", token.Message)), ""},
		"ours, by the list":            {all(listed("shiplog-token shiplog-spool")), reasonMount},
		"the user's too, by the list":  {all(listed("shiplog-token ws-1")), ""},
		"the user's disk":              {all(token, disk), ""},
	} {
		t.Run(name, func(t *testing.T) {
			failure, ours := readEvents(tc.events, now)
			if failure.Reason != tc.want || ours != (tc.want != "") {
				t.Errorf("%q %t, want %q", failure.Reason, ours, tc.want)
			}
		})
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
