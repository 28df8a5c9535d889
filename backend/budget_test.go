package backend

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/shiplog-dev/shiplog/internal/layout"
)

// many is a store with as many forged segments of one log.
func many(n int64) hostile {
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
		large.store, small.store = many(n), many(1000)
		large.trees = &budget{total: 2 * n * segmentCost, free: 2 * n * segmentCost}
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
		if _, err := small.Tree(ctx, Target{Run: run}); err != nil {
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
