package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// counted counts what is read of a store.
type counted struct {
	memory
	gets int
	fail bool
}

func (c *counted) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	c.gets++
	if c.fail {
		return nil, errors.New("the store is down")
	}
	return c.memory.Get(ctx, key)
}

// anew is a namespace that was made at the time now, and its reach.
var anew = Reach{Namespace: record.Namespace{UID: "new", Created: now}}

// putPodOf stores a TaskRun of the same name in any run, with a log of one line.
func (m memory) putPodOf(t *testing.T, r record.Run) layout.Container {
	t.Helper()
	place := layout.Run{Namespace: "ns", Name: r.Name, UID: r.UID}
	if r.Kind == layout.TaskRun {
		place.Name = layout.NoPipelineRun
	}
	p := layout.Pod{Run: place, TaskRun: "task", PodUID: r.UID + "-pod"}
	c := layout.Container{Pod: p, Container: "step-a"}
	whole := lines(1)
	m.putLog(t, c, r.Created, whole, len(whole))
	m.put(t, c.SealKey(), r.Created, sealOf(whole))
	m.put(t, p.PodKey(), r.Created, record.Pod{PodName: "task-pod", Created: r.Created})
	m.put(t, layout.PodIndexKey("ns", "task-pod", p.PodUID), r.Created,
		record.Pointer{Run: place, TaskRun: "task", PodUID: p.PodUID})
	m.put(t, layout.UIDIndexKey("ns", r.UID), r.Created, record.Pointer{Run: place})
	x := layout.RunIndex{
		Namespace: "ns", Created: r.Created, Kind: r.Kind, Name: r.Name, UID: r.UID,
	}
	m.put(t, x.Key(), r.Created, []byte("{}"))
	m.put(t, place.RunKey(), r.Created, r)
	return c
}

// TestReach: who may read a namespace that was made anew, finds nothing of the former one.
func TestReach(t *testing.T) {
	old := record.Run{
		Kind: layout.PipelineRun, Name: "run", UID: "old-run", NamespaceUID: "old",
		Created: now.Add(-time.Hour),
	}
	older, oldest := old, old
	older.UID, oldest.UID = "older-run", "oldest-run"
	oldest.NamespaceUID = "" // its record is from before there were UIDs
	lone := record.Run{Kind: layout.TaskRun, Name: "lone", UID: "lone", Created: old.Created}
	mine := old
	mine.UID, mine.NamespaceUID, mine.Created = "new-run", "new", now.Add(time.Hour)

	for _, c := range []struct {
		name  string
		runs  []record.Run
		reach Reach
		want  map[string]string // what is found by a name: the UID of the run; "" is nothing
	}{
		{"the former one's alone", []record.Run{old, older, oldest, lone}, anew, map[string]string{
			"run": "", "old-run": "", "oldest-run": "", "task": "", "task-pod": "", "lone": "",
		}},
		{"both", []record.Run{old, older, oldest, lone, mine}, anew, map[string]string{
			"run": "new-run", "old-run": "", "new-run": "new-run", "task": "new-run",
			"task-pod": "new-run", "lone": "",
		}},
		{"who may read all", []record.Run{oldest, lone}, Reach{All: true}, map[string]string{
			"run": "oldest-run", "lone": "lone",
		}},
		{"no reach", []record.Run{mine}, Reach{}, map[string]string{"run": "", "new-run": ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			for _, r := range c.runs {
				m.putPodOf(t, r)
			}
			a := archive(m).Within(c.reach)
			for ref, want := range c.want {
				got, err := a.Find(t.Context(), "ns", ref)
				var none *NotFoundError
				nothing := errors.As(err, &none)
				if nothing != (want == "") || !nothing && (err != nil || got.Run.UID != want) {
					t.Errorf("%s: %v, %v; want %q", ref, got, err, want)
				}
				if !c.reach.All && len(got.Others) > 0 {
					t.Errorf("%s: others %v", ref, got.Others)
				}
			}
		})
	}
}

// TestReachOfRun: whoever has the place of a run's log, reads it only within their reach.
func TestReachOfRun(t *testing.T) {
	for _, c := range []struct {
		name  string
		put   func(t *testing.T, m memory, key string)
		reach Reach
		want  bool
	}{
		{"the namespace's", func(t *testing.T, m memory, key string) {
			m.put(t, key, now, record.Run{NamespaceUID: "new", Created: now})
		}, anew, true},
		{"a former one's", func(t *testing.T, m memory, key string) {
			m.put(t, key, now, record.Run{NamespaceUID: "old", Created: now})
		}, anew, false},
		{"a former one's, for who may read all", func(t *testing.T, m memory, key string) {
			m.put(t, key, now, record.Run{NamespaceUID: "old", Created: now})
		}, Reach{All: true}, true},
		{"without a record", func(*testing.T, memory, string) {}, anew, false},
		{"with a damaged record", func(t *testing.T, m memory, key string) {
			m.put(t, key, now, []byte("{"))
		}, anew, false},
		{
			"without a record, for who may read all", func(*testing.T, memory, string) {},
			Reach{All: true}, true,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			whole := lines(1)
			long := now.Add(-time.Hour) // so that nobody waits for more
			m.putLog(t, step, long, whole, len(whole))
			m.put(t, step.SealKey(), long, sealOf(whole))
			c.put(t, m, run.RunKey())
			a := archive(m).Within(c.reach)
			ways := map[string]func() error{
				"tree": func() error {
					_, err := a.Tree(t.Context(), Target{Run: run})
					return err
				},
				"tree of a TaskRun": func() error {
					_, err := a.Tree(t.Context(), Target{Run: run, TaskRun: pod.TaskRun})
					return err
				},
				"container": func() error { _, err := a.Container(t.Context(), step); return err },
				"objects": func() (err error) {
					for _, err = range a.Objects(t.Context(), Target{Run: run}) {
						if err != nil {
							break
						}
					}
					return err
				},
				"follow": func() (err error) {
					all, target := func(TaskRun, Container) bool { return true }, Target{Run: run}
					for _, err = range a.FollowRun(t.Context(), target, all, LogOptions{}) {
						if err != nil {
							break
						}
					}
					return err
				},
			}
			for way, ask := range ways {
				err := ask()
				if c.want && err != nil || !c.want && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v, want it there: %t", way, err, c.want)
				}
			}
			_, err := a.Run(t.Context(), run)
			if former := errors.Is(err, ErrFormer); former == c.want {
				t.Errorf("the record: %v, want it within reach: %t", err, c.want)
			}
		})
	}
}

// TestReachOfList: a list ends where the namespace begins, however much is behind.
func TestReachOfList(t *testing.T) {
	m := memory{}
	put := func(uid string, created time.Time) {
		m.putPodOf(t, record.Run{Kind: layout.PipelineRun, Name: "r", UID: uid, Created: created})
	}
	for i := range 50 {
		put(fmt.Sprint("old-", i), now.Add(-time.Duration(i+2)*time.Minute))
	}
	put("new-0", now)
	put("slow-clock", now.Add(-time.Second))
	var got []string
	for x, err := range archive(m).Within(anew).Runs(t.Context(), "ns", nil, 0) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, x.UID)
	}
	if want := "new-0 slow-clock"; strings.Join(got, " ") != want {
		t.Errorf("listed %v, want %s", got, want)
	}
}

// TestReachCosts: which namespace a run is of is read once, and not at all for who may read all. A
// store that is down is no answer.
func TestReachCosts(t *testing.T) {
	store := &counted{memory: memory{}}
	c := store.putPodOf(t, record.Run{
		Kind: layout.PipelineRun, Name: "run", UID: "u", NamespaceUID: "new", Created: now,
	})
	a := archive(store)
	cost := func(what string, a *Archive, want int) {
		t.Helper()
		store.gets = 0
		if _, err := a.Container(t.Context(), c); err != nil || store.gets != want {
			t.Errorf("%s: %d GET, %v; want %d", what, store.gets, err, want)
		}
	}
	cost("all", a.Within(Reach{All: true}), 1)
	store.fail = true
	_, err := a.Within(anew).Container(t.Context(), c)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("while the store is down: %v", err)
	}
	store.fail = false
	cost("the first time", a.Within(anew), 2)
	cost("for the next reader", a.Within(anew), 1)
	other := Reach{Namespace: record.Namespace{UID: "newer", Created: now.Add(time.Hour)}}
	if _, err := a.Within(other).Container(t.Context(), c); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("when the namespace was made anew again: %v", err)
	}
	for i := range mostOrigins + 10 {
		a.origins.add(layout.Run{UID: fmt.Sprint(i)}, record.Run{})
	}
	if n := len(a.origins.runs); n > mostOrigins {
		t.Errorf("%d are kept, more than %d", n, mostOrigins)
	}
}
