// Package turns shares what a process can do at once among those who ask for it: a request that is
// work for a processor waits for its turn, and gives it up while it waits for its reader.
package turns

import (
	"context"
	"net/http"
	"sync"
)

// Client is who has sent a request.
type Client interface {
	// Client is the same for all requests that share. It is "" while nobody knows.
	Client() string
}

type clientKey struct{}

// With returns a context of a request that a client has sent.
func With(ctx context.Context, c Client) context.Context {
	return context.WithValue(ctx, clientKey{}, c)
}

// Pool is a number of turns. Its methods may be called at the same time.
type Pool struct {
	mu      sync.Mutex
	free    int
	held    map[string]int // by client
	waiting []*waiter      // in the order in which they came
}

type waiter struct {
	client string
	given  chan struct{} // closed when it has the turn
}

// New makes a Pool of n turns.
func New(n int) *Pool { return &Pool{free: n, held: map[string]int{}} }

// Turn is one that is held, but between Pause and Resume. It is for one goroutine.
type Turn struct {
	pool   *Pool
	client string
	held   bool
}

// Take waits for a turn. Its error is the context's.
func (p *Pool) Take(ctx context.Context) (*Turn, error) {
	t := &Turn{pool: p}
	if c, ok := ctx.Value(clientKey{}).(Client); ok {
		t.client = c.Client()
	}
	return t, t.Resume(ctx)
}

// Resume waits for the turn again.
func (t *Turn) Resume(ctx context.Context) error {
	if t.held {
		return nil
	}
	p := t.pool
	p.mu.Lock()
	if p.free > 0 {
		p.free--
		p.held[t.client]++
		p.mu.Unlock()
		t.held = true
		return nil
	}
	w := &waiter{t.client, make(chan struct{})}
	p.waiting = append(p.waiting, w)
	p.mu.Unlock()
	return t.wait(ctx, w)
}

func (t *Turn) wait(ctx context.Context, w *waiter) error {
	select {
	case <-w.given:
		t.held = true
		return nil
	case <-ctx.Done():
	}
	p := t.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-w.given: // and nobody wants it
		p.give(t.client)
	default:
		for i := range p.waiting {
			if p.waiting[i] == w {
				p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
				break
			}
		}
	}
	return context.Cause(ctx)
}

// Pause gives the turn up. Without one it does nothing.
func (t *Turn) Pause() {
	if !t.held {
		return
	}
	t.held = false
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	t.pool.give(t.client)
}

// Pass lets another client go first that waits and holds fewer turns. Whoever works for long calls
// it once in a while.
func (t *Turn) Pass(ctx context.Context) error {
	p := t.pool
	p.mu.Lock()
	next := p.next()
	if !t.held || next < 0 || p.held[p.waiting[next].client] >= p.held[t.client] {
		p.mu.Unlock()
		return nil
	}
	w := &waiter{t.client, make(chan struct{})}
	p.waiting = append(p.waiting, w)
	t.held = false
	p.give(t.client)
	p.mu.Unlock()
	return t.wait(ctx, w)
}

// give takes a turn from a client and gives it to who waits. The caller holds the lock.
func (p *Pool) give(from string) {
	if p.held[from]--; p.held[from] == 0 {
		delete(p.held, from)
	}
	i := p.next()
	if i < 0 {
		p.free++
		return
	}
	w := p.waiting[i]
	p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
	p.held[w.client]++
	close(w.given)
}

// next is the waiter whose client holds the fewest turns, and of several the first. It is -1 where
// nobody waits.
func (p *Pool) next() int {
	best := -1
	for i, w := range p.waiting {
		if best < 0 || p.held[w.client] < p.held[p.waiting[best].client] {
			best = i
		}
	}
	return best
}

// Writer gives the turn up while it writes to a client, who may take their time to read.
func (t *Turn) Writer(ctx context.Context, w http.ResponseWriter) http.ResponseWriter {
	return &writer{w, t, ctx}
}

type writer struct {
	http.ResponseWriter
	turn *Turn
	ctx  context.Context
}

func (w *writer) Write(b []byte) (int, error) {
	w.turn.Pause()
	n, err := w.ResponseWriter.Write(b)
	if err == nil {
		err = w.turn.Resume(w.ctx)
	}
	return n, err
}

// FlushError is for http.ResponseController.
func (w *writer) FlushError() error {
	w.turn.Pause()
	if err := http.NewResponseController(w.ResponseWriter).Flush(); err != nil {
		return err
	}
	return w.turn.Resume(w.ctx)
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
