package backend

import (
	"context"
	"math"
	"net/http"
	"runtime/debug"
	"sync"
)

// What trees and logs cost while somebody reads them, about, in bytes. A segment is in a list that
// grows, and again in the order of reading.
const (
	segmentCost = 160
	entryCost   = 1 << 10 // of a pod or a container
	// recordCost is how many times its own size a record takes at most.
	recordCost = 2
	// smallCost is what each tree may take of the part that is kept from large ones: no tenant's run
	// is so large that others' cannot be read.
	smallCost = 2 << 20
)

// BusyError says that so much of other runs is being read that a run does not fit in memory now.
type BusyError struct{}

func (*BusyError) Error() string {
	return "the run is large, and what is being read now leaves it no memory: try again later"
}

// HTTPStatus is what the sender of a request is answered.
func (*BusyError) HTTPStatus() int { return http.StatusServiceUnavailable }

// budget bounds what all trees and logs of a process hold together.
type budget struct {
	total int64

	mu   sync.Mutex
	free int64
}

// newBudget is half of the process's memory, where that is bounded (GOMEMLIMIT), and otherwise nil.
func newBudget() *budget {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		return nil
	}
	return &budget{total: limit / 2, free: limit / 2}
}

// lease is what one tree, or one log, holds of a budget.
type lease struct {
	of *budget // nil: there is no bound

	held  int64 // under of.mu, as the rest
	ended bool
}

// lease begins one. It ends with the context, as that of a request does.
func (a *Archive) lease(ctx context.Context) *lease {
	l := &lease{of: a.trees}
	if l.of != nil {
		context.AfterFunc(ctx, l.end)
	}
	return l
}

// take asks for n bytes more. Where it is refused, nothing is held any more.
func (l *lease) take(n int64) error {
	if l.of == nil {
		return nil
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	if l.ended { // what is read for it is dropped
		return nil
	}
	kept := int64(0)
	if l.held+n > smallCost {
		kept = l.of.total / 4
	}
	if l.of.free-n < kept {
		l.of.free += l.held
		l.held = 0
		return &BusyError{}
	}
	l.of.free -= n
	l.held += n
	return nil
}

// end gives back all.
func (l *lease) end() {
	if l.of == nil {
		return
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.of.free += l.held
	l.held, l.ended = 0, true
}
