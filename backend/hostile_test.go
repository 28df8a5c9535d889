package backend

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// TestForgedPodRecord: names of a record that a tenant has overwritten do not get out of the place that the path names.
func TestForgedPodRecord(t *testing.T) {
	whole := lines(3)
	m := memory{}
	m.putLog(t, step, now, whole, len(whole))
	m.put(t, step.SealKey(), now, sealOf(whole))
	m.put(t, pod.PodKey(), now, record.Pod{
		Namespace: "other", PodName: "../pod", PodUID: "x/y", TaskRun: "../../run", TaskRunUID: "../uid", PipelineTask: "../../etc",
		Containers: []record.Container{
			{Name: "../../evil", Kind: record.Step, Captured: true}, {Name: "step-a/../x", Kind: record.Step, Captured: true}, {Name: "", Captured: true}, {Name: "step\x00", Captured: true},
			{Name: "step-b", Kind: record.Step, Captured: true}, {Name: "step-a", Kind: record.Step, Captured: true}, {Name: "step-a", Kind: record.Step, Captured: true},
		},
	})
	tree, err := archive(m).Tree(t.Context(), Target{Run: run})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for p := range tree.Containers() {
		got = append(got, p.Label(run)+p.Container.Name+" "+string(p.Container.Status))
		if err := p.Container.Key.Validate(); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([]string{"[run-build : b] step-b running", "[run-build : a] step-a verified"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r := tree.TaskRuns[0].Pods[0].Record
	r.Containers = nil
	if diff := cmp.Diff(&record.Pod{Namespace: "ns", PodUID: "pod-uid", TaskRun: "run-build"}, r); diff != "" {
		t.Errorf("of the record is left (-want +got):\n%s", diff)
	}
}

// TestForgedPointer: an object of the index does not lead into another namespace, nor to what is no name.
func TestForgedPointer(t *testing.T) {
	for _, c := range []struct {
		name    string
		pointer record.Pointer
		found   bool
	}{
		{"of the run", record.Pointer{Run: run, TaskRun: "run-build", PodUID: "pod-uid"}, true},
		{"of another namespace", record.Pointer{Run: layout.Run{Namespace: "other", Name: "run", UID: "run-uid"}}, false},
		{"out of the run", record.Pointer{Run: run, TaskRun: "../../other"}, false},
		{"out of the TaskRun", record.Pointer{Run: run, TaskRun: "run-build", PodUID: "../x"}, false},
		{"to nothing", record.Pointer{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			m.put(t, layout.UIDIndexKey("ns", "some-uid"), now, c.pointer)
			m.put(t, layout.PodIndexKey("ns", "some-pod", "pod-uid"), now, c.pointer)
			for _, ref := range []string{"some-uid", "some-pod"} {
				target, err := archive(m).Find(t.Context(), "ns", ref)
				var none *NotFoundError
				if c.found && err != nil || !c.found && !errors.As(err, &none) {
					t.Errorf("%s is %+v, error %v", ref, target, err)
				}
			}
		})
	}
}

// TestUniqueLabels: several TaskRuns of one task can be told apart; its retries are one TaskRun's.
func TestUniqueLabels(t *testing.T) {
	for _, c := range []struct {
		name string
		runs [][2]string // TaskRun and task
		want map[string]string
	}{
		{"a task each", [][2]string{{"run-build", "build"}, {"run-test", "test"}}, map[string]string{"run-build": "build", "run-test": "test"}},
		{"a matrix", [][2]string{{"run-build-0", "build"}, {"run-build-1", "build"}, {"run-test", "test"}}, map[string]string{"run-build-0": "run-build-0", "run-build-1": "run-build-1", "run-test": "test"}},
		{"without a task", [][2]string{{"alone", ""}}, map[string]string{"alone": "alone"}},
		{"a task of another TaskRun's name", [][2]string{{"run-build-0", "build"}, {"run-build-1", "build"}, {"run-x", "run-build-0"}},
			map[string]string{"run-build-0": "run-build-0", "run-build-1": "run-build-1", "run-x": "run-x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			for _, r := range c.runs {
				for _, uid := range []string{"first", "retry"} {
					p := layout.Pod{Run: run, TaskRun: r[0], PodUID: r[0] + "-" + uid}
					m.put(t, p.PodKey(), now, record.Pod{PodName: "p", PipelineTask: r[1], Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}}})
				}
			}
			tree, err := archive(m).Tree(t.Context(), Target{Run: run})
			if err != nil {
				t.Fatal(err)
			}
			got, labels := map[string]string{}, map[string]bool{}
			for p := range tree.Containers() {
				got[p.TaskRun.Name] = p.TaskRun.UniqueLabel()
				if label := p.Label(run); labels[label] {
					t.Errorf("two logs have the label %s", label)
				} else {
					labels[label] = true
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// hostile is a store with more objects than a test wants to make.
type hostile struct {
	memory
	keys func(yield func(string) bool)
	size int64
}

func (h hostile) List(ctx context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		for e, err := range h.memory.List(ctx, prefix, delimiter, startAfter, limit) {
			if !yield(e, err) {
				return
			}
		}
		for key := range h.keys {
			if strings.HasPrefix(key, prefix) && key > startAfter && !yield(objectstore.Entry{Key: key, Size: h.size, LastModified: now}, nil) {
				return
			}
		}
	}
}

// TestHostileObjects: what a tenant can put under the prefix of a pod takes bounded memory, and is said to be too much.
func TestHostileObjects(t *testing.T) {
	segments := func(yield func(string) bool) {
		for i := range int64(maxSegments + 100) {
			if !yield(step.SegmentKey(layout.Segment{Offset: i, Length: 1, First: now, Last: now})) {
				return
			}
		}
	}
	containers := func(file string) func(yield func(string) bool) {
		return func(yield func(string) bool) {
			for i := range 10 * maxContainers {
				if !yield(layout.Container{Pod: pod, Container: fmt.Sprintf("c%09d", i)}.Prefix() + file) {
					return
				}
			}
		}
	}
	list := func(field string, n int) []byte {
		return []byte(`{"` + field + `":[{}` + strings.Repeat(`,{}`, n-1) + `]}`)
	}
	none := func(func(string) bool) {}
	for _, c := range []struct {
		name       string
		store      hostile
		containers int // at most
		segments   int
		why        string // of the last of them
	}{
		{"more segments than a run has", hostile{memory{}, segments, 1}, 1, maxSegments, overSegments},
		{"more containers than a pod has", hostile{memory{}, containers("seal.json"), 1}, maxContainers + 1, 0, overContainers},
		{"large seals", hostile{memory{}, containers("seal.json"), 200 << 10}, maxContainers + 1, 0, overContainers},
		{"a pod's record with a million containers", hostile{memory{pod.PodKey(): {list("containers", 1_000_000), now}, step.SealKey(): {[]byte("{}"), now}}, none, 0}, 1, 0, `printed nothing, and how it ended is unknown ("")`},
		{"a seal with a million gaps", hostile{memory{step.SealKey(): {list("gaps", 1_000_000), now}}, none, 0}, 1, 0,
			step.SealKey() + " cannot be read: decode record.Seal: has more than the 262144 bytes that are allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := archive(c.store.memory)
			a.store = c.store
			tree, err := a.Tree(t.Context(), Target{Run: run})
			if err != nil {
				t.Fatal(err)
			}
			n, segments := 0, 0
			var last Container
			for p := range tree.Containers() {
				last = p.Container
				n++
				segments += len(last.Segments)
			}
			if n != c.containers || segments != c.segments || last.Why != c.why {
				t.Errorf("%d containers, %d segments, the last is %q (%s)\nwant %d, %d, %s", n, segments, last.Status, last.Why, c.containers, c.segments, c.why)
			}
			if strings.Contains(c.why, "more than") && last.Status != Damaged {
				t.Errorf("the last is %q", last.Status)
			}
		})
	}
	t.Run("one log", func(t *testing.T) {
		a := archive(nil)
		a.store = hostile{memory{}, segments, 1}
		got, err := a.Container(t.Context(), step)
		if err != nil || got.Status != Damaged || got.Why != overSegments || len(got.Segments) != maxSegments {
			t.Errorf("%v: %q (%s), %d segments", err, got.Status, got.Why, len(got.Segments))
		}
	})
	t.Run("seals beyond what a run's records may have", func(t *testing.T) {
		a := archive(nil)
		a.store = hostile{memory{}, containers("seal.json"), maxRecords / 100}
		tree, err := a.Tree(t.Context(), Target{Run: run})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for p := range tree.Containers() {
			if p.Container.Why == overRecords {
				n++
			}
		}
		if n != maxContainers-100 {
			t.Errorf("of %d logs the seal is not read, want %d", n, maxContainers-100)
		}
	})
}
