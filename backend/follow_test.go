package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// growing is a store in which each object is there from its time on.
type growing struct{ memory }

func (g growing) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if o, ok := g.memory[key]; ok && o.modified.After(time.Now()) {
		return nil, fmt.Errorf("get %q: %w", key, fs.ErrNotExist)
	}
	return g.memory.Get(ctx, key)
}

func (g growing) List(ctx context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[objectstore.Entry, error] {
	there := memory{}
	for key, o := range g.memory {
		if !o.modified.After(time.Now()) {
			there[key] = o
		}
	}
	return there.List(ctx, prefix, delimiter, startAfter, limit)
}

// seen is when something was seen, since the beginning.
type seen struct {
	what string
	at   time.Duration
}

// within says whether what was seen is what was to be, each at its time or FollowInterval later.
func within(t *testing.T, got, want []seen) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("saw %v, want %v", got, want)
	}
	for i, w := range want {
		if got[i].what != w.what || got[i].at < w.at || got[i].at > w.at+FollowInterval {
			t.Errorf("saw %v, want %v", got[i], w)
		}
	}
}

func TestFollow(t *testing.T) {
	whole := lines(4)
	end := func(n int) int { return lineEnd(whole, n) }
	for _, c := range []struct {
		name   string
		put    func(t *testing.T, m memory, at func(time.Duration) time.Time)
		want   []seen
		ends   time.Duration
		status Status
	}{
		{"until the seal", func(t *testing.T, m memory, at func(time.Duration) time.Time) {
			for i := range 4 {
				s, b := segmentOf(t, whole, end(i), end(i+1))
				m.put(t, step.SegmentKey(s), at(time.Duration(i)*time.Second), b)
			}
			m.put(t, step.SealKey(), at(5*time.Second), sealOf(whole))
		}, []seen{{"line 0", 0}, {"line 1", time.Second}, {"line 2", 2 * time.Second}, {"line 3", 3 * time.Second}}, 5 * time.Second, Verified},
		{"until nothing is heard of the pod", func(t *testing.T, m memory, at func(time.Duration) time.Time) {
			m.putLog(t, step, at(0), whole, end(1))
			m.put(t, pod.AliveKey(), at(10*time.Minute), []byte("{}"))
			m.put(t, pod.PodKey(), at(2*time.Minute), record.Pod{})
		}, []seen{{"line 0", 0}}, 2*time.Minute + AliveWithin, Partial},
		{"silent beside a sidecar that is not", func(t *testing.T, m memory,
			at func(time.Duration) time.Time) {
			m.putLog(t, step, at(0), whole, end(1))
			sidecar := layout.Container{Pod: pod, Container: "sidecar-x"}
			for i := range 9 {
				s, b := segmentOf(t, lines(9), lineEnd(lines(9), i), lineEnd(lines(9), i+1))
				m.put(t, sidecar.SegmentKey(s), at(time.Duration(i)*time.Minute), b)
			}
			s, b := segmentOf(t, whole, end(1), end(2))
			m.put(t, step.SegmentKey(s), at(9*time.Minute), b)
			m.put(t, step.SealKey(), at(9*time.Minute), sealOf(whole[:end(2)]))
		}, []seen{{"line 0", 0}, {"line 1", 9 * time.Minute}}, 9 * time.Minute, Verified},
		{"the tail first", func(t *testing.T, m memory, at func(time.Duration) time.Time) {
			m.putLog(t, step, at(0), whole, end(1))
			s, b := segmentOf(t, whole, end(3), end(4))
			m.put(t, step.SegmentKey(s), at(time.Second), b)
			s, b = segmentOf(t, whole, end(1), end(2))
			m.put(t, step.SegmentKey(s), at(time.Minute), b)
			s, b = segmentOf(t, whole, end(2), end(3))
			m.put(t, step.SegmentKey(s), at(2*time.Minute), b)
			m.put(t, step.SealKey(), at(2*time.Minute), sealOf(whole))
		}, []seen{{"line 0", 0}, {"line 1", time.Minute}, {"line 2", 2 * time.Minute}, {"line 3",
			2 * time.Minute}}, 2 * time.Minute, Verified},
		{"the tail first, and nothing more", func(t *testing.T, m memory,
			at func(time.Duration) time.Time) {
			m.putLog(t, step, at(0), whole, end(1))
			s, b := segmentOf(t, whole, end(3), end(4))
			m.put(t, step.SegmentKey(s), at(time.Second), b)
		}, []seen{{"line 0", 0},
			{`{"kind":"gap","reason":"missing","stdout":14,"stderr":0,"unknown":true,"detail":"no object"}`, time.Second + AliveWithin}, {"line 3", time.Second + AliveWithin}},
			time.Second + AliveWithin, Damaged},
		{"while the pod lives", func(t *testing.T, m memory, at func(time.Duration) time.Time) {
			m.putLog(t, step, at(0), whole, end(1))
			m.put(t, pod.AliveKey(), at(time.Minute), []byte("{}"))
			s, b := segmentOf(t, whole, end(1), len(whole))
			m.put(t, step.SegmentKey(s), at(time.Minute+AliveWithin-time.Second), b)
			m.put(t, step.SealKey(), at(time.Minute+AliveWithin-time.Second), sealOf(whole))
		}, []seen{{"line 0", 0}, {"line 1", time.Minute + AliveWithin - time.Second}, {"line 2", time.Minute + AliveWithin - time.Second}, {"line 3", time.Minute + AliveWithin - time.Second}},
			time.Minute + AliveWithin - time.Second, Verified},
		{"what a shipper that had lost its state ships again, once", func(t *testing.T, m memory, at func(time.Duration) time.Time) {
			m.putLog(t, step, at(0), whole, end(2))
			s, b := segmentOf(t, whole, 0, end(3))
			m.put(t, step.SegmentKey(s), at(time.Second), b)
			s, b = segmentOf(t, whole, end(3), end(4))
			m.put(t, step.SegmentKey(s), at(2*time.Second), b)
			m.put(t, step.SealKey(), at(3*time.Second), sealOf(whole))
		}, []seen{{"line 0", 0}, {"line 1", 0}, {"line 2", time.Second}, {"line 3", 2 * time.Second}}, 3 * time.Second, Verified},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				m := memory{}
				c.put(t, m, start.Add)
				a := New(growing{m})
				k, err := a.Container(t.Context(), step)
				if err != nil {
					t.Fatal(err)
				}
				var got []seen
				for l, err := range a.Follow(t.Context(), &k, LogOptions{}) {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, seen{string(l.Text), time.Since(start)})
				}
				within(t, got, c.want)
				within(t, []seen{{string(k.Status), time.Since(start)}}, []seen{{string(c.status), c.ends}})
			})
		})
	}
}

// TestFollowIsCancelled: who does not look any more ends it, without another request.
func TestFollowIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memory{}
		whole := lines(1)
		m.putLog(t, step, time.Now(), whole, len(whole))
		a := New(growing{m})
		k, err := a.Container(t.Context(), step)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var last error
		for _, err := range a.Follow(ctx, &k, LogOptions{}) {
			last = err
		}
		if !errors.Is(last, context.DeadlineExceeded) {
			t.Errorf("%v", last)
		}
	})
}

// TestFollowRun: lines of all of a run's containers, of pods too that come later, until the run is over.
func TestFollowRun(t *testing.T) {
	for _, completed := range []bool{true, false} {
		t.Run(fmt.Sprintf("its end is recorded: %v", completed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				m := memory{}
				second := layout.Container{Pod: layout.Pod{Run: run, TaskRun: "run-deploy", PodUID: "pod-2"}, Container: "step-b"}
				sidecar := step
				sidecar.Container = "sidecar-x"
				whole := lines(2)
				for i, c := range []layout.Container{step, sidecar, second} {
					m.put(t, c.PodKey(), start, record.Pod{TaskRun: c.TaskRun, PipelineTask: c.TaskRun, Created: start.Add(time.Duration(i) * time.Second), Containers: []record.Container{{Name: c.Container, Captured: true, Kind: record.Step}}})
				}
				delete(m, sidecar.PodKey())
				m.put(t, step.PodKey(), start, record.Pod{Containers: []record.Container{{Name: "step-a", Captured: true, Kind: record.Step}, {Name: "sidecar-x", Captured: true, Kind: record.Sidecar}}})
				m.put(t, second.PodKey(), start.Add(20*time.Second), record.Pod{Containers: []record.Container{{Name: "step-b", Captured: true, Kind: record.Step}}})
				m.putLog(t, step, start.Add(time.Second), whole, len(whole))
				m.put(t, step.SealKey(), start.Add(2*time.Second), sealOf(whole))
				m.putLog(t, sidecar, start, whole, len(whole))
				m.put(t, sidecar.SealKey(), start, sealOf(whole))
				m.putLog(t, second, start.Add(21*time.Second), whole, lineEnd(whole, 1))
				m.put(t, second.SealKey(), start.Add(22*time.Second), sealOf(whole[:lineEnd(whole, 1)]))
				over := 22*time.Second + AliveWithin
				if completed {
					over = 25 * time.Second
					// Once it is complete, and not before: the last object of a name counts here.
					m.put(t, run.RunKey(), start.Add(over), record.Run{State: record.Succeeded, Completed: start})
				}
				var got []seen
				steps := func(_ TaskRun, c Container) bool { return c.Kind == record.Step }
				for l, err := range New(growing{m}).FollowRun(t.Context(), Target{Run: run}, steps, LogOptions{}) {
					if err != nil {
						t.Fatal(err)
					}
					what := l.Container.Name + ": " + string(l.Line.Text)
					if l.Line.Stream == "" {
						what = l.Container.Name + " is " + string(l.Container.Status)
					}
					got = append(got, seen{what, time.Since(start)})
				}
				within(t, got, []seen{
					{"step-a: line 0", time.Second}, {"step-a: line 1", time.Second}, {"step-a is verified", 2 * time.Second},
					{"step-b: line 0", 21 * time.Second}, {"step-b is verified", 22 * time.Second},
				})
				within(t, []seen{{"over", time.Since(start)}}, []seen{{"over", over}})
			})
		})
	}
}

// TestFollowLines: what the options choose is chosen in a log that grows, too, and its end ends it.
func TestFollowLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		m := memory{}
		whole := lines(9)
		for i := range 9 {
			s, b := segmentOf(t, whole, lineEnd(whole, i), lineEnd(whole, i+1))
			m.put(t, step.SegmentKey(s), start.Add(time.Duration(i)*time.Second), b)
		}
		k, err := New(growing{m}).Container(t.Context(), step)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for l, err := range New(growing{m}).Follow(t.Context(), &k, LogOptions{FromLine: 3, ToLine: 4}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(l.Text))
		}
		if !slices.Equal(got, []string{"line 2", "line 3"}) {
			t.Errorf("%q", got)
		}
	})
}
