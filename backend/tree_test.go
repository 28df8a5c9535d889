package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// TestStatusAtItsEdges holds the rules of docs/format.md where one state becomes another.
func TestStatusAtItsEdges(t *testing.T) {
	whole := lines(9)
	third, sixth := lineEnd(whole, 3), lineEnd(whole, 6)
	old := now.Add(-time.Hour)
	one := record.Pod{PodName: "p", Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}}}
	for _, c := range []struct {
		name string
		make func(t *testing.T, m memory)
		want Status
		why  string
	}{
		{"heard of just within the limit", func(t *testing.T, m memory) {
			m.putLog(t, step, now.Add(-AliveWithin+1), whole, third)
		}, Running, ""},
		{"heard of at the limit", func(t *testing.T, m memory) {
			m.putLog(t, step, now.Add(-AliveWithin), whole, third)
		}, Partial, "the pod was last heard of at 2026-11-23T11:57:00Z"},
		{"captured, without an object of its own", func(t *testing.T, m memory) { m.put(t, pod.PodKey(), now, one) }, Running, ""},
		{"captured, without an object of its own, long ago", func(t *testing.T, m memory) {
			m.put(t, pod.PodKey(), old, one)
		}, Partial, "the pod was last heard of at 2026-11-23T11:00:00Z; whether it had started is unknown"},
		{"went on behind its seal, and then died", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, third, sixth)
			m.put(t, step.SealKey(), old, sealOf(whole[:third]))
		}, Partial, "the pod was last heard of at 2026-11-23T11:00:00Z"},
		{"a hole shows before the seal", func(t *testing.T, m memory) {
			s, b := segmentOf(t, whole, third, sixth)
			m.put(t, step.SegmentKey(s), now, b)
		}, Running,
			"still running: more will follow; its end is there, and what is before it is on its way",
		},
		{"a hole, and no seal will come", func(t *testing.T, m memory) {
			s, b := segmentOf(t, whole, third, sixth)
			m.put(t, step.SegmentKey(s), old, b)
		}, Damaged, fmt.Sprintf("%d archive bytes are missing at offset 0", third)},
		{"a seal without any segment", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, sealOf(whole))
		}, Damaged, fmt.Sprintf("the last %d archive bytes are missing", len(whole))},
		{"empty, with the exit code", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, record.Seal{End: record.EndExited, Exit: &record.Exit{Code: 137}})
		}, Verified, "printed nothing, exit code 137"},
		{"no pod.json", func(t *testing.T, m memory) {
			delete(m, pod.PodKey())
			m.putLog(t, step, old, whole, len(whole))
			m.put(t, step.SealKey(), old, sealOf(whole))
		}, Verified, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			m.put(t, pod.PodKey(), old, one)
			c.make(t, m)
			got := onlyContainer(t, m)
			if got.Status != c.want || got.Why != c.why {
				t.Errorf("status %q (%s), want %q (%s)", got.Status, got.Why, c.want, c.why)
			}
		})
	}
}

// TestMissed: a step that pod.json calls not captured is missed, unless somebody wanted it so or
// there is a log all the same.
func TestMissed(t *testing.T) {
	whole := lines(3)
	for _, c := range []struct {
		name      string
		container record.Container
		sealed    bool
		want      Status
		why       string
	}{
		{
			name:      "left alone",
			container: record.Container{Name: "step-a", Kind: record.Step, Skipped: "memory-limit"},
			want:      Missed, why: "not captured in pod p: memory-limit",
		},
		{
			name:      "without a reason",
			container: record.Container{Name: "step-a", Kind: record.Step},
			want:      Missed, why: "not captured in pod p: unknown",
		},
		{
			name:      "no answer of the webhook",
			container: record.Container{Name: "step-a", Kind: record.Step, Skipped: record.SkippedNoAnswer},
			want:      Missed,
			why: "pod p was not captured: the webhook was not asked, or did not answer " +
				"(no-answer)",
		},
		{
			name:      "the pod was gone",
			container: record.Container{Name: "step-a", Kind: record.Step, Skipped: record.SkippedPodGone},
			want:      Missed, why: "nothing of pod p is in the archive, and the pod is gone (pod-gone)",
		},
		{
			name: "nothing arrived",
			container: record.Container{
				Name: "step-a", Kind: record.Step, Skipped: record.SkippedNothingArrived,
			},
			want: Missed,
			why:  "nothing of pod p is in the archive, though shiplog was in it (nothing-arrived)",
		},
		{
			name: "opted out",
			container: record.Container{
				Name: "step-a", Kind: record.Step, Skipped: record.SkippedOptedOut,
			},
			want: NotCaptured, why: "opted-out",
		},
		{
			name: "an init container",
			container: record.Container{
				Name: "step-a", Kind: record.Init, Skipped: "memory-limit",
			},
			want: NotCaptured, why: "memory-limit",
		},
		{
			name: "its log has come since",
			container: record.Container{
				Name: "step-a", Kind: record.Step, Skipped: record.SkippedNothingArrived,
			},
			sealed: true, want: Verified,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			p := record.Pod{PodName: "p", Containers: []record.Container{c.container}}
			m.put(t, pod.PodKey(), now.Add(-time.Hour), p)
			if c.sealed {
				m.putLog(t, step, now, whole, len(whole))
				m.put(t, step.SealKey(), now, sealOf(whole))
			}
			got := onlyContainer(t, m)
			if got.Status != c.want || got.Why != c.why {
				t.Errorf("status %q (%s), want %q (%s)", got.Status, got.Why, c.want, c.why)
			}
		})
	}
}

// TestTreeOrder expects tasks in the order of their start, and then in the pipeline's, pods oldest first, the pod's order of containers, and nothing of what is not asked for.
func TestTreeOrder(t *testing.T) {
	m := memory{}
	m.put(t, run.RunKey(), now, record.Run{Kind: layout.PipelineRun, Name: "run", Tasks: []string{"fetch", "build", "clean"}})
	put := func(taskRun, task, uid string, created time.Time) {
		p := layout.Pod{Run: run, TaskRun: taskRun, PodUID: uid}
		m.put(t, p.PodKey(), now, record.Pod{PodName: taskRun + "-pod", TaskRun: taskRun, PipelineTask: task, Created: created, Containers: []record.Container{
			{Name: "prepare", Kind: record.Init, Captured: true}, {Name: "step-b", Kind: record.Step, Captured: true}, {Name: "step-a", Kind: record.Step, Captured: true},
		}})
		for _, name := range []string{"step-a", "step-b", "unknown"} {
			m.put(t, layout.Container{Pod: p, Container: name}.SealKey(), now, record.Seal{End: record.EndKilled})
		}
		m.put(t, p.Prefix()+"later.json", now, []byte("of a later version"))
	}
	put("run-clean", "clean", "u1", now)
	put("run-custom", "unlisted", "u2", now)
	put("run-build", "build", "u0-retry", now.Add(time.Minute))
	put("run-build", "build", "u9-first", now)
	put("run-fetch", "fetch", "u4", now.Add(time.Hour))

	for _, c := range []struct {
		name   string
		target Target
		want   []string
	}{
		{"run", Target{Run: run}, []string{"build/u9-first", "build/u0-retry", "clean/u1", "unlisted/u2", "fetch/u4"}},
		{"TaskRun", Target{Run: run, TaskRun: "run-build"}, []string{"build/u9-first", "build/u0-retry"}},
		{"pod", Target{Run: run, TaskRun: "run-build", PodUID: "u0-retry"}, []string{"build/u0-retry"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := archive(m).Tree(t.Context(), c.target)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, tr := range tree.TaskRuns {
				for _, p := range tr.Pods {
					got = append(got, tr.Label()+"/"+p.Key.PodUID)
					var names []string
					for _, c := range p.Containers {
						names = append(names, c.Name)
					}
					if want := []string{"prepare", "step-b", "step-a", "unknown"}; !slices.Equal(names, want) {
						t.Errorf("containers %v, want %v", names, want)
					}
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	for name, target := range map[string]Target{
		"a run without objects":                           {Run: layout.Run{Namespace: "ns", Name: "run", UID: "none"}},
		"a TaskRun that is not in it":                     {Run: run, TaskRun: "none"},
		"a TaskRun of which one has the name's beginning": {Run: run, TaskRun: "run-buil"},
	} {
		if _, err := archive(m).Tree(t.Context(), target); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want fs.ErrNotExist", name, err)
		}
	}
}

// failing is a store whose Get of one key fails.
type failing struct {
	memory
	key string
	err error
}

func (f failing) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if key == f.key {
		return nil, f.err
	}
	return f.memory.Get(ctx, key)
}

// TestStoreError expects that an error of the store ends a log with that error, and is no gap: the bytes may be there.
func TestStoreError(t *testing.T) {
	whole := lines(9)
	third, sixth := lineEnd(whole, 3), lineEnd(whole, 6)
	m := memory{}
	m.putLog(t, step, now, whole, third, sixth, len(whole))
	m.put(t, step.SealKey(), now, sealOf(whole))
	middle, _ := segmentOf(t, whole, third, sixth)
	down := errors.New("the store is down")
	a := archive(failing{m, step.SegmentKey(middle), down})
	var got []byte
	var last error
	for l, err := range a.Lines(t.Context(), onlyContainer(t, m), LogOptions{}) {
		if last = err; err == nil {
			got = criline.Append(got, l.Time, l.Stream, l.Full, l.Text)
		}
	}
	if !errors.Is(last, down) || string(got) != string(whole[:third]) {
		t.Errorf("the log is %q and ends with %v, want %q and %v", got, last, whole[:third], down)
	}

	a.store = failing{m, step.SealKey(), down}
	if _, err := a.Tree(t.Context(), Target{Run: run}); !errors.Is(err, down) {
		t.Errorf("tree: %v, want %v", err, down)
	}
	a.store = failing{m, layout.UIDIndexKey("ns", "run"), down}
	if _, err := a.Find(t.Context(), "ns", "run"); !errors.Is(err, down) {
		t.Errorf("find: %v, want %v", err, down)
	}
}

// TestMissingMarker expects a reader's gap to say what it is, at its place.
func TestMissingMarker(t *testing.T) {
	whole := lines(9)
	third, sixth := lineEnd(whole, 3), lineEnd(whole, 6)
	middle, _ := segmentOf(t, whole, third, sixth)
	m := memory{}
	m.putLog(t, step, now.Add(-time.Hour), whole, third, sixth, len(whole))
	delete(m, step.SegmentKey(middle))
	n := 0
	for l, err := range archive(m).Lines(t.Context(), onlyContainer(t, m), LogOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n != 4 {
			continue
		}
		mark, err := criline.ParseMarker(l.Text)
		if l.Stream != criline.Markers || err != nil || mark.Kind != criline.Gap || mark.Reason != ReasonMissing || !mark.Unknown || mark.Stdout == 0 {
			t.Errorf("behind the third line is %s %q (%v), want a gap with the reason %q", l.Stream, l.Text, err, ReasonMissing)
		}
	}
	if n != 7 {
		t.Errorf("%d lines, want 3, a gap, and 3", n)
	}
}

// TestNeverStartedBecauseOfAnother: steps start only after all init containers.
func TestNeverStartedBecauseOfAnother(t *testing.T) {
	prepare := layout.Container{Pod: pod, Container: "prepare"}
	for _, c := range []struct {
		name string
		make func(t *testing.T, m memory)
		want string
	}{
		{"init container without its image", func(t *testing.T, m memory) {
			m.put(t, prepare.SealKey(), now, record.Seal{End: record.EndNeverStarted})
			m.put(t, prepare.WaitingKey(), now, record.Waiting{Reason: "InvalidImageName", Message: "X"})
		}, "never started: nor did prepare before it: image pull failed (InvalidImageName: X)"},
		{"init container that failed", func(t *testing.T, m memory) {
			m.put(t, prepare.SealKey(), now, record.Seal{End: record.EndExited, Exit: &record.Exit{Code: 7}})
		}, "never started: prepare before it failed with exit code 7"},
		{"init container that succeeded", func(t *testing.T, m memory) {
			m.put(t, prepare.SealKey(), now, record.Seal{End: record.EndExited, Exit: &record.Exit{}})
		}, "never started: why is unknown"},
		{"a step beside it without its image", func(t *testing.T, m memory) {
			m.put(t, layout.Container{Pod: pod, Container: "step-b"}.WaitingKey(), now, record.Waiting{Reason: "ErrImagePull"})
		}, "never started: why is unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			m.put(t, pod.PodKey(), now, record.Pod{PodName: "p", Containers: []record.Container{
				{Name: "prepare", Kind: record.Init, Captured: true}, {Name: "step-b", Kind: record.Step, Captured: true}, {Name: "step-a", Kind: record.Step, Captured: true}}})
			m.put(t, step.SealKey(), now, record.Seal{End: record.EndNeverStarted})
			c.make(t, m)
			tree, err := archive(m).Tree(t.Context(), Target{Run: run})
			if err != nil {
				t.Fatal(err)
			}
			if got := tree.TaskRuns[0].Pods[0].Containers[2]; got.Name != "step-a" || got.Why != c.want {
				t.Errorf("%s: %q, want %q", got.Name, got.Why, c.want)
			}
		})
	}
}

// TestCounts: what segments hold twice counts once, and where names do not say how much that is, the numbers are said to be estimates.
func TestCounts(t *testing.T) {
	whole := lines(9)
	third, fifth, sixth := lineEnd(whole, 3), lineEnd(whole, 5), lineEnd(whole, 6)
	renumbered := func(t *testing.T, m memory, from, to int) { // as a shipper does that has lost its state
		s, b := segmentOf(t, whole, from, to)
		s.PrintedOffset, s.Line = 0, 0
		m.put(t, step.SegmentKey(s), now, b)
	}
	put := func(t *testing.T, m memory, from, to int) {
		s, b := segmentOf(t, whole, from, to)
		m.put(t, step.SegmentKey(s), now.Add(-time.Hour), b)
	}
	for _, c := range []struct {
		name      string
		make      func(t *testing.T, m memory)
		lines     int64
		estimated bool
	}{
		{"one numbering", func(t *testing.T, m memory) { m.putLog(t, step, now, whole, third, sixth, len(whole)) }, 9, false},
		{"overlap in one numbering", func(t *testing.T, m memory) { put(t, m, 0, fifth); put(t, m, third, len(whole)) }, 9, false},
		{"shipped again from the start", func(t *testing.T, m memory) { put(t, m, 0, fifth); put(t, m, 0, third); put(t, m, third, len(whole)) }, 9, false},
		{"numbered anew, without an overlap", func(t *testing.T, m memory) { put(t, m, 0, third); renumbered(t, m, third, len(whole)) }, 9, false},
		{"numbered anew, with an overlap", func(t *testing.T, m memory) { put(t, m, 0, fifth); renumbered(t, m, third, len(whole)) }, 11, true},
		{"a hole", func(t *testing.T, m memory) { put(t, m, 0, third); put(t, m, sixth, len(whole)) }, 6, false},
		{"numbered anew, and the first that is so is covered", func(t *testing.T, m memory) {
			put(t, m, 0, fifth)
			renumbered(t, m, third, fifth)
			s, b := segmentOf(t, whole, fifth, len(whole))
			s.PrintedOffset, s.Line = 2*int64(len("line 0\n")), 2
			m.put(t, step.SegmentKey(s), now, b)
		}, 9, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			c.make(t, m)
			got := onlyContainer(t, m)
			if got.Lines != c.lines || got.Estimated != c.estimated {
				t.Errorf("%d lines (estimated %t), want %d (%t)", got.Lines, got.Estimated, c.lines, c.estimated)
			}
			if want := c.lines * int64(len("line 0\n")); got.Bytes != want {
				t.Errorf("%d bytes, want %d", got.Bytes, want)
			}
		})
	}
}
