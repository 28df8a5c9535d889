package backend

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// many is a store with as many forged segments of one log.
func many(n int64) hostile { return manyOf(step.Namespace, n) }

// manyOf is many, of a log in another namespace.
func manyOf(namespace string, n int64) hostile {
	step := step
	step.Namespace = namespace
	return hostile{memory{}, func(yield func(string) bool) {
		for i := range n {
			s := layout.Segment{Offset: i, Length: 1, First: now, Last: now}
			if !yield(step.SegmentKey(s)) {
				return
			}
		}
	}, 1}
}

// TestBudget: a tenant's large runs take no memory of others', neither as trees nor as logs, and
// what they took is there again when they are read.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 20_000
		large, small := archive(nil), archive(nil)
		large.store, small.store = many(n), manyOf("other", 1000)
		large.trees = budgetOf(2 * n * segmentCost)
		small.trees = large.trees
		read := func(ctx context.Context) error {
			_, err := large.Tree(ctx, Target{Run: run})
			return err
		}
		ctx, end := context.WithCancel(t.Context())
		defer end()
		if err := read(ctx); err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"tree": read(ctx),
			"log":  func() error { _, err := large.Container(ctx, step); return err }(),
		} {
			var busy *BusyError
			if !errors.As(err, &busy) {
				t.Errorf("a second %s: %v, want a *BusyError", name, err)
			}
		}
		another := Target{Run: layout.Run{Namespace: "other", Name: run.Name, UID: run.UID}}
		if _, err := small.Tree(ctx, another); err != nil {
			t.Errorf("another's tree: %v", err)
		}
		end()
		synctest.Wait()
		if large.trees.free != large.trees.total {
			t.Errorf("%d bytes of %d are free in the end", large.trees.free, large.trees.total)
		}
		if err := read(t.Context()); err != nil {
			t.Errorf("when nobody reads: %v", err)
		}
	})
}

// TestShares: of as much as is read, the runs of a namespace leave to others what they hold
// themselves, whether they are large or many.
func TestShares(t *testing.T) {
	const total = 64 << 20
	for _, c := range []struct {
		name   string
		leases []int64 // each of a namespace of its own
		step   int64   // what is asked for at once
		least  int64   // what is free when all have taken what they get
	}{
		{"one that is large", []int64{total}, 1 << 20, total / 4},
		{"many that are small", []int64{total}, 1 << 10, total / 4},
		{"two namespaces", []int64{total, total}, 1 << 20, total / 8},
		{"four namespaces", []int64{total, total, total, total}, 1 << 20, total / 32},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &Archive{trees: budgetOf(total)}
			ctx, end := context.WithCancel(t.Context())
			for i, most := range c.leases {
				for range most / c.step { // each is another request
					if a.lease(ctx, fmt.Sprint(i)).take(c.step) != nil {
						break
					}
				}
			}
			if a.trees.free < c.least {
				t.Errorf("%d bytes are free, want %d", a.trees.free, c.least)
			}
			end()
		})
	}
}

// TestOverwritten: what a record has more when it is read than when it was listed is paid for, and is
// bounded for a run where nothing else is.
func TestOverwritten(t *testing.T) {
	seal := []byte(`{"end":"` + strings.Repeat("x", 200<<10) + `"}`)
	m := memory{}
	for i := range 400 {
		m[layout.Container{Pod: pod, Container: fmt.Sprintf("c%03d", i)}.SealKey()] = object{seal, now}
	}
	for _, c := range []struct {
		name  string
		trees *budget
		busy  bool
	}{
		{"there is no bound", nil, false},
		{"it does not fit", budgetOf(32 << 20), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := archive(nil)
			a.store, a.trees = smaller{m}, c.trees
			tree, err := a.Tree(t.Context(), Target{Run: run})
			var busy *BusyError
			if errors.As(err, &busy) != c.busy {
				t.Fatalf("%v", err)
			}
			if c.busy {
				return
			}
			refused := 0
			for p := range tree.Containers() {
				if strings.Contains(p.Container.Why, errOverwritten.Error()) {
					refused++
				}
			}
			if most := maxRecords / len(seal); refused < 400-most-1 {
				t.Errorf("%d of 400 seals are refused", refused)
			}
		})
	}
}

// smaller is a store whose objects have 10 bytes when they are listed.
type smaller struct{ memory }

func (s smaller) List(ctx context.Context, prefix, delimiter, startAfter string,
	limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		for e, err := range s.memory.List(ctx, prefix, delimiter, startAfter, limit) {
			e.Size = min(e.Size, 10)
			if !yield(e, err) {
				return
			}
		}
	}
}
