package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// watched is a store that counts what is asked of it.
type watched struct {
	growing
	list func(ctx context.Context) error // if set, it is called for each LIST, and may fail it

	mu          sync.Mutex
	gets, lists int
}

func (w *watched) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	w.mu.Lock()
	w.gets++
	w.mu.Unlock()
	return w.growing.Get(ctx, key)
}

func (w *watched) List(ctx context.Context, prefix, delimiter, startAfter string,
	limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		w.mu.Lock()
		w.lists++
		w.mu.Unlock()
		if w.list != nil {
			if err := w.list(ctx); err != nil {
				yield(objectstore.Entry{}, err)
				return
			}
		}
		w.growing.List(ctx, prefix, delimiter, startAfter, limit)(yield)
	}
}

// asked returns how many requests there were, and begins anew.
func (w *watched) asked() (gets, lists int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gets, lists = w.gets, w.lists
	w.gets, w.lists = 0, 0
	return gets, lists
}

// putTasks stores TaskRuns of so many steps each. All steps are sealed but the last one.
func (m memory) putTasks(t *testing.T, tasks, steps int, at time.Time) (last layout.Container) {
	t.Helper()
	whole := lines(2)
	for i := range tasks {
		p := layout.Pod{Run: run, TaskRun: fmt.Sprintf("run-%03d", i),
			PodUID: fmt.Sprintf("pod-%03d", i)}
		r := record.Pod{Created: at, PipelineTask: fmt.Sprintf("task-%03d", i)}
		for j := range steps {
			c := layout.Container{Pod: p, Container: fmt.Sprintf("step-%d", j)}
			r.Containers = append(r.Containers,
				record.Container{Name: c.Container, Kind: record.Step, Captured: true})
			if i == tasks-1 && j == steps-1 {
				m.putLog(t, c, at, whole, lineEnd(whole, 1))
				last = c
				continue
			}
			m.putLog(t, c, at, whole, len(whole))
			m.put(t, c.SealKey(), at, sealOf(whole))
		}
		m.put(t, p.PodKey(), at, r)
	}
	m.put(t, run.RunKey(), at, record.Run{Name: "run", Started: at})
	return last
}

func everything(TaskRun, Container) bool { return true }

// TestFollowRunIdle: who follows a run in which nothing happens asks for lists alone.
func TestFollowRunIdle(t *testing.T) {
	for _, c := range []struct {
		name   string
		target Target
		gets   int // in each look
	}{
		{"a run", Target{Run: run}, 0},
		{"a TaskRun of it: the run's record is not among its objects",
			Target{Run: run, TaskRun: "run-049"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &watched{growing: growing{memory{}}}
				s.putTasks(t, 50, 4, time.Now())
				const looks = 20
				enough := errors.New("enough")
				n := -1
				idle := func() error {
					switch n++; n {
					case 0:
						s.asked()
					case looks:
						return enough
					}
					return nil
				}
				var last error
				for _, err := range New(s).FollowRun(t.Context(), c.target, everything,
					LogOptions{Idle: idle}) {
					last = err
				}
				gets, lists := s.asked()
				if !errors.Is(last, enough) || gets != c.gets*looks || lists != looks {
					t.Errorf("%d looks cost %d GETs and %d LISTs, %v; want %d GETs and %d LISTs",
						looks, gets, lists, last, c.gets*looks, looks)
				}
			})
		})
	}
}

// TestFollowRunReadsWhatIsNew: a record that has changed is read, and no other.
func TestFollowRunReadsWhatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		s := &watched{growing: growing{memory{}}}
		c := s.putTasks(t, 50, 4, start)
		whole := lines(2)
		rest, b := segmentOf(t, whole, lineEnd(whole, 1), len(whole))
		s.put(t, c.SegmentKey(rest), start.Add(10*time.Second), b)
		s.put(t, c.SealKey(), start.Add(10*time.Second), sealOf(whole))
		ended := record.Run{Name: "run", State: record.Succeeded, Started: start,
			Completed: start.Add(20 * time.Second)}
		first := s.memory[run.RunKey()]
		_ = time.AfterFunc(5*time.Second, func() { s.asked() })
		s.list = func(context.Context) error { // run.json is there from the beginning
			if delete(s.memory, run.RunKey()); time.Since(start) < 20*time.Second {
				s.memory[run.RunKey()] = first
			} else {
				s.put(t, run.RunKey(), start.Add(20*time.Second), ended)
			}
			return nil
		}
		var got []string
		for l, err := range New(s).FollowRun(t.Context(), Target{Run: run}, everything,
			LogOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			if l.Container.Key == c {
				got = append(got, string(l.Line.Text)+string(l.Container.Status))
			}
		}
		want := []string{"line 0running", "line 1verified", "verified"}
		if gets, _ := s.asked(); !slices.Equal(got, want) || gets != 3 {
			t.Errorf("%q, %d GETs; want %q, and those of a segment, its seal and the run's record",
				got, gets, want)
		}
		if took := time.Since(start); took < 20*time.Second || took > 20*time.Second+FollowInterval {
			t.Errorf("ended after %s", took)
		}
	})
}

// TestFollowersShareLooks: however many follow a run, each sees all, and they cost what one costs.
func TestFollowersShareLooks(t *testing.T) {
	cost := func(t *testing.T, followers int) (gets, lists int) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			s := &watched{growing: growing{memory{}}}
			c := s.putTasks(t, 5, 4, start)
			whole := lines(2)
			rest, b := segmentOf(t, whole, lineEnd(whole, 1), len(whole))
			s.put(t, c.SegmentKey(rest), start.Add(10*time.Second), b)
			a := New(s)
			a.trees = budgetOf(1 << 30)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			for i := range followers {
				wg.Go(func() {
					wait(ctx, time.Duration(i)*FollowInterval*3/10)
					n := 0
					for l, err := range a.FollowRun(ctx, Target{Run: run}, everything,
						LogOptions{}) {
						if err == nil && l.Line.Stream != "" {
							n++
						}
					}
					if n != 5*4*2 {
						t.Errorf("the follower %d saw %d lines, want %d", i, n, 5*4*2)
					}
				})
			}
			wait(ctx, 5*time.Second+FollowInterval/5) // not when they look
			s.asked()
			a.trees.mu.Lock()
			held := a.trees.total - a.trees.free
			a.trees.mu.Unlock()
			if one := int64(5*4*(entryCost+segmentCost) + 5*entryCost); held < one || held > 2*one {
				t.Errorf("%d bytes of memory are held, want about %d", held, one)
			}
			wait(ctx, 10*time.Second)
			gets, lists = s.asked()
			wg.Wait()
			if len(a.looks.followed) != 0 || a.trees.free != a.trees.total {
				t.Errorf("when all have gone, %d targets are followed, and %d bytes of memory held",
					len(a.looks.followed), a.trees.total-a.trees.free)
			}
		})
		return gets, lists
	}
	_, alone := cost(t, 1)
	const followers = 7
	if gets, lists := cost(t, followers); lists != alone || gets != followers {
		t.Errorf("%d LISTs and %d GETs, want %d LISTs as of one follower, and a GET of the new "+
			"segment for each of %d", lists, gets, alone, followers)
	}
}

// wait waits so long, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// TestFollowersOfOneLook: what becomes of the others where one looks for all.
func TestFollowersOfOneLook(t *testing.T) {
	down := errors.New("the store is down")
	for _, c := range []struct {
		name string
		// happens says what becomes of the first look, while all wait for it.
		happens func(cancel context.CancelFunc, answer chan<- error)
		want    []error // of the followers
		lists   int
	}{
		{"its error is theirs", func(_ context.CancelFunc, answer chan<- error) { answer <- down },
			[]error{down, down, down}, 1},
		{"who looks goes: another looks", func(cancel context.CancelFunc, answer chan<- error) {
			cancel()
			synctest.Wait()
			answer <- nil
		}, []error{context.Canceled, nil, nil}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &watched{growing: growing{memory{}}}
				s.putTasks(t, 2, 2, time.Now())
				answer := make(chan error)
				s.list = func(ctx context.Context) error {
					select {
					case err := <-answer:
						return err
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				a := New(s)
				ctx, cancel := context.WithCancel(t.Context())
				got := make([]error, 3)
				var wg sync.WaitGroup
				for i := range got {
					follower := t.Context()
					if i == 0 {
						follower = ctx
					}
					wg.Go(func() {
						for _, err := range a.FollowRun(follower, Target{Run: run}, everything,
							LogOptions{Idle: func() error { return io.EOF }}) {
							got[i] = err
						}
					})
					synctest.Wait()
				}
				c.happens(cancel, answer)
				wg.Wait()
				cancel()
				for i, err := range got {
					if want := cmp.Or(c.want[i], io.EOF); !errors.Is(err, want) {
						t.Errorf("follower %d: %v, want %v", i, err, want)
					}
				}
				if _, lists := s.asked(); lists != c.lists {
					t.Errorf("%d LISTs, want %d", lists, c.lists)
				}
			})
		})
	}
}

// TestTreeToFollow: the tree that is shown before a run is followed is the follower's first look.
func TestTreeToFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &watched{growing: growing{memory{}}}
		s.putTasks(t, 2, 2, time.Now())
		a := New(s)
		ctx, seen := context.WithCancel(t.Context())
		tree, err := a.TreeToFollow(ctx, Target{Run: run})
		if err != nil {
			t.Fatal(err)
		}
		want, err := a.Tree(t.Context(), Target{Run: run})
		if err != nil || !reflect.DeepEqual(tree, want) {
			t.Errorf("%+v, %v; want %+v", tree, err, want)
		}
		s.asked()
		for _, err := range a.FollowRun(t.Context(), Target{Run: run}, everything,
			LogOptions{None: true, Idle: func() error { return io.EOF }}) {
			if err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		if gets, lists := s.asked(); lists != 0 {
			t.Errorf("following behind it costs %d LISTs and %d GETs", lists, gets)
		}
		seen()
		synctest.Wait()
		if len(a.looks.followed) != 0 {
			t.Error("it is followed in the end")
		}
	})
}

// TestAgain: whatever has changed since an earlier tree, it is read as if there had been none.
func TestAgain(t *testing.T) {
	old, later := now.Add(-time.Hour), now.Add(-time.Minute)
	whole := lines(4)
	third := lineEnd(whole, 3)
	of := func(kind record.ContainerKind) record.Pod {
		return record.Pod{PodName: "p", PipelineTask: "build",
			Containers: []record.Container{{Name: "step-a", Kind: kind, Captured: true}}}
	}
	for _, c := range []struct {
		name   string
		change func(t *testing.T, m memory)
		gets   int
	}{
		{"nothing", func(*testing.T, memory) {}, 0},
		{"the run's record", func(t *testing.T, m memory) {
			m.put(t, run.RunKey(), later, record.Run{Name: "run", Completed: later})
		}, 1},
		{"the run's record is gone", func(_ *testing.T, m memory) { delete(m, run.RunKey()) }, 0},
		{"the run's record is spoiled", func(t *testing.T, m memory) {
			m.put(t, run.RunKey(), later, []byte("garbage"))
		}, 1},
		{"the pod's record", func(t *testing.T, m memory) {
			m.put(t, pod.PodKey(), later, of(record.Sidecar))
		}, 1},
		{"the pod's record, in the same second and of the same size",
			func(t *testing.T, m memory) { m.put(t, pod.PodKey(), old, of(record.Init)) }, 1},
		{"the pod's record is gone", func(_ *testing.T, m memory) { delete(m, pod.PodKey()) }, 0},
		{"a seal", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), later, sealOf(whole[:third]))
		}, 1},
		{"a seal is spoiled", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), later, []byte("garbage"))
		}, 1},
		{"segments are gone", func(t *testing.T, m memory) {
			s, _ := segmentOf(t, whole, 0, third)
			delete(m, step.SegmentKey(s))
		}, 0},
		{"why a container waits", func(t *testing.T, m memory) {
			waits := layout.Container{Pod: pod, Container: "step-b"}
			m.put(t, waits.WaitingKey(), later, record.Waiting{Reason: "ErrImagePull"})
		}, 1},
		{"another pod", func(t *testing.T, m memory) {
			other := layout.Pod{Run: run, TaskRun: "run-build", PodUID: "pod-2"}
			m.put(t, other.PodKey(), later, of(record.Step))
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			m.put(t, run.RunKey(), old, record.Run{Name: "run"})
			m.put(t, pod.PodKey(), old, of(record.Step))
			m.put(t, layout.Container{Pod: pod, Container: "step-b"}.WaitingKey(), old,
				record.Waiting{Reason: "ImagePullBackOff"})
			m.putLog(t, step, old, whole, third, len(whole))
			m.put(t, step.SealKey(), old, sealOf(whole))
			s := &watched{growing: growing{m}}
			a := New(tagged{s})
			a.now = func() time.Time { return now }
			earlier, err := a.Tree(t.Context(), Target{Run: run})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				c.change(t, m)
				s.asked()
				got, err := a.Again(t.Context(), earlier)
				if err != nil {
					t.Fatal(err)
				}
				if gets, _ := s.asked(); gets != c.gets {
					t.Errorf("%d GETs, want %d", gets, c.gets)
				}
				want, err := a.Tree(t.Context(), Target{Run: run})
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%+v\nwant %+v", got, want)
				}
				earlier, c.gets = got, 0 // and it is known then
				c.change = func(*testing.T, memory) {}
			}
		})
	}
}

// tagged is a store whose lists have ETags.
type tagged struct{ *watched }

func (s tagged) List(ctx context.Context, prefix, delimiter, startAfter string,
	limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		for e, err := range s.watched.List(ctx, prefix, delimiter, startAfter, limit) {
			e.ETag = fmt.Sprintf("%q", s.memory[e.Key].body)
			if !yield(e, err) {
				return
			}
		}
	}
}

// slowSort is Sort as it was first: it looks for each TaskRun's place in the pipeline at each
// comparison.
func slowSort(t *Tree) {
	t.label()
	rank := func(tr TaskRun) int {
		if t.Record != nil {
			if i := slices.Index(t.Record.Tasks, tr.PipelineTask); i >= 0 {
				return i
			}
		}
		return math.MaxInt
	}
	unknown := func(tr TaskRun) int {
		if tr.Pods[0].created().IsZero() {
			return 1
		}
		return 0
	}
	slices.SortFunc(t.TaskRuns, func(a, b TaskRun) int {
		return cmp.Or(unknown(a)-unknown(b), a.Pods[0].created().Compare(b.Pods[0].created()),
			cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
	})
}

// randomTree is one of TaskRuns that differ in all that their order depends on, and each in name.
func randomTree(random *rand.Rand, tasks int) *Tree {
	t := &Tree{}
	if random.IntN(4) > 0 {
		t.Record = &record.Run{}
		for range random.IntN(tasks + 1) {
			t.Record.Tasks = append(t.Record.Tasks, fmt.Sprintf("task-%d", random.IntN(tasks)))
		}
	}
	for i := range tasks {
		tr := TaskRun{Name: fmt.Sprintf("run-%d", i), Pods: []Pod{{}}}
		if random.IntN(5) > 0 {
			tr.PipelineTask = fmt.Sprintf("task-%d", random.IntN(tasks))
		}
		if random.IntN(5) > 0 {
			created := now.Add(time.Duration(random.IntN(3)) * time.Second)
			tr.Pods[0].Record = &record.Pod{Created: created}
		}
		t.TaskRuns = append(t.TaskRuns, tr)
	}
	random.Shuffle(tasks, func(i, j int) {
		t.TaskRuns[i], t.TaskRuns[j] = t.TaskRuns[j], t.TaskRuns[i]
	})
	return t
}

func TestSort(t *testing.T) {
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 1))
		got := randomTree(random, 1+random.IntN(20))
		want := *got
		want.TaskRuns = slices.Clone(got.TaskRuns)
		got.Sort()
		slowSort(&want)
		if !reflect.DeepEqual(got.TaskRuns, want.TaskRuns) {
			t.Fatalf("seed %d: %+v\nwant %+v", seed, got.TaskRuns, want.TaskRuns)
		}
	}
}

// BenchmarkSort sorts a run of 10,000 tasks that begin together.
func BenchmarkSort(b *testing.B) {
	const tasks = 10_000
	tree := &Tree{Record: &record.Run{}}
	for i := range tasks {
		name := fmt.Sprintf("task-%05d", i)
		tree.Record.Tasks = append(tree.Record.Tasks, name)
		tree.TaskRuns = append(tree.TaskRuns, TaskRun{Name: "run-" + name, PipelineTask: name,
			Pods: []Pod{{Record: &record.Pod{Created: now}}}})
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(tasks, func(i, j int) {
		tree.TaskRuns[i], tree.TaskRuns[j] = tree.TaskRuns[j], tree.TaskRuns[i]
	})
	shuffled := tree.TaskRuns
	b.ReportAllocs()
	for b.Loop() {
		tree.TaskRuns = slices.Clone(shuffled)
		tree.Sort()
	}
}
