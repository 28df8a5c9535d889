package backend

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// What trees and logs cost while somebody reads them, about, in bytes. A segment is in a list that
// grows, and again in the order of reading.
const (
	segmentCost = 160
	entryCost   = 1 << 10 // of a pod or a container
	// readCost is of a log while it is read: what decompresses it, what is asked for ahead, and what is
	// about to be sent. searchCost is what a search takes beside it: a long line of each stream.
	readCost   = 3 << 19
	searchCost = 4 * MaxSearchLine
	// recordCost is how many times its own size a record takes at most.
	recordCost = 2
)

// BusyError says that so much is being read, of its namespace above all, that a run or log does not
// fit in memory now.
type BusyError struct{}

func (*BusyError) Error() string {
	return "what is being read of this namespace now leaves no memory for more: try again later"
}

// HTTPStatus is what the sender of a request is answered.
func (*BusyError) HTTPStatus() int { return http.StatusServiceUnavailable }

// budget bounds what all trees and logs of a process hold together. Those of a namespace hold no more
// than is left to others, or three times as much as long as there are no others: no tenant's runs are
// so large, or so many, that those of others cannot be read.
type budget struct {
	total int64

	mu     sync.Mutex
	free   int64
	shares map[string]int64 // what those of a namespace hold
}

// newBudget is half of the process's memory, where that is bounded (GOMEMLIMIT), and otherwise nil.
func newBudget() *budget {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		return nil
	}
	return budgetOf(limit / 2)
}

func budgetOf(total int64) *budget {
	return &budget{total: total, free: total, shares: map[string]int64{}}
}

// lease is what one tree, or one log, holds of a budget.
type lease struct {
	of        *budget // nil: there is no bound
	namespace string

	held  int64 // under of.mu, as the next
	ended bool

	overwritten atomic.Int64 // bytes of records that were not in the listing
}

// lease begins one, for what is read of a namespace. It ends with the context, as that of a request
// does.
func (a *Archive) lease(ctx context.Context, namespace string) *lease {
	l := &lease{of: a.trees, namespace: namespace}
	if l.of != nil {
		context.AfterFunc(ctx, l.end)
	}
	return l
}

// hold takes n bytes for what is read of a namespace, until done is called.
func (a *Archive) hold(namespace string, n int64) (done func(), err error) {
	if a.trees == nil {
		return func() {}, nil
	}
	l := &lease{of: a.trees, namespace: namespace}
	return l.end, l.take(n)
}

// take asks for n bytes more. Where it is refused, nothing is held any more.
func (l *lease) take(n int64) error {
	if l.of == nil {
		return nil
	}
	b := l.of
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.ended { // what is read for it is dropped
		return nil
	}
	share, left := b.shares[l.namespace], b.free-n
	most := left
	if alone := share == b.total-b.free; alone {
		most = 3 * left
	}
	if share+n > most {
		l.giveBack()
		return &BusyError{}
	}
	b.free = left
	b.shares[l.namespace] = share + n
	l.held += n
	return nil
}

// giveBack gives back all. The caller holds of.mu.
func (l *lease) giveBack() {
	b := l.of
	b.free += l.held
	if b.shares[l.namespace] -= l.held; b.shares[l.namespace] == 0 {
		delete(b.shares, l.namespace)
	}
	l.held = 0
}

// join has the lease hold what another held, of the same namespace.
func (l *lease) join(o *lease) {
	if l.of == nil {
		return
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.held += o.held
	o.held = 0
	if l.ended {
		l.giveBack()
	}
}

// end gives back all.
func (l *lease) end() {
	if l.of == nil {
		return
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.giveBack()
	l.ended = true
}

// errOverwritten says that records have become larger since they were listed, by more than a run's
// may have together.
var errOverwritten = errors.New("it was overwritten by a larger one while it was read, as others were")

// payStep is how many bytes of a record that was overwritten are paid for at once.
const payStep = 4 << 10

// paying reads a record, and pays for what is behind the bytes that are paid for.
type paying struct {
	io.Reader
	paid  int64
	lease *lease
}

func (p *paying) Read(b []byte) (int, error) {
	if p.paid <= 0 {
		if p.lease.overwritten.Add(payStep) > maxRecords {
			return 0, errOverwritten
		}
		if err := p.lease.take(recordCost * payStep); err != nil {
			return 0, err
		}
		p.paid = payStep
	}
	n, err := p.Reader.Read(b[:min(int64(len(b)), p.paid)])
	p.paid -= int64(n)
	return n, err
}
