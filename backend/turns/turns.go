// Package turns shares what a process can do at once among those who ask for it: a request that is
// work for a processor waits for its turn, and gives it up while it waits for its reader.
package turns

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"
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
	waiting []*waiter
	came    int // how many have waited
}

type waiter struct {
	client string
	place  int           // in the order in which they came
	given  chan struct{} // closed when it has the turn
}

// New makes a Pool of n turns.
func New(n int) *Pool { return &Pool{free: n, held: map[string]int{}} }

// turn is one that is held, but between pause and resume. It is for one goroutine.
type turn struct {
	pool   *Pool
	client string
	held   bool
	// If set, alive is called each time that the wait for a turn has lasted for so long.
	alive func() error
	every time.Duration
}

// turn is one that is not held yet.
func (p *Pool) turn(ctx context.Context) *turn {
	t := &turn{pool: p}
	if c, ok := ctx.Value(clientKey{}).(Client); ok {
		t.client = c.Client()
	}
	return t
}

// resume waits for the turn.
func (t *turn) resume(ctx context.Context) error {
	if t.held {
		return nil
	}
	p := t.pool
	p.mu.Lock()
	w := p.newWaiter(t.client)
	t.held = p.enter(w)
	p.mu.Unlock()
	if t.held {
		return nil
	}
	return t.wait(ctx, w)
}

// newWaiter is somebody who has come. The caller holds the lock.
func (p *Pool) newWaiter(client string) *waiter {
	p.came++
	return &waiter{client, p.came, make(chan struct{})}
}

// enter has somebody wait, unless a turn is free: then it is theirs. The caller holds the lock.
func (p *Pool) enter(w *waiter) (held bool) {
	if p.free > 0 {
		p.free--
		p.held[w.client]++
		return true
	}
	p.waiting = append(p.waiting, w)
	return false
}

// leave has somebody wait no more, unless the turn is theirs already. The caller holds the lock.
func (p *Pool) leave(w *waiter) (held bool) {
	i := slices.Index(p.waiting, w)
	if i < 0 {
		return true
	}
	p.waiting = slices.Delete(p.waiting, i, i+1)
	return false
}

func (t *turn) wait(ctx context.Context, w *waiter) error {
	p := t.pool
	var silence <-chan time.Time
	if t.alive != nil {
		ticker := time.NewTicker(t.every)
		defer ticker.Stop()
		silence = ticker.C
	}
	for {
		select {
		case <-w.given:
			t.held = true
			return nil
		case <-ctx.Done():
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.leave(w) { // and nobody wants it
				p.give(t.client)
			}
			return context.Cause(ctx)
		case <-silence:
		}
		// Whoever is told may take their time, and must not hold a turn then.
		p.mu.Lock()
		t.held = p.leave(w)
		p.mu.Unlock()
		if t.held {
			return nil
		}
		if err := t.alive(); err != nil {
			return err
		}
		p.mu.Lock()
		t.held = p.enter(w)
		p.mu.Unlock()
		if t.held {
			return nil
		}
	}
}

// pause gives the turn up. Without one it does nothing.
func (t *turn) pause() {
	if !t.held {
		return
	}
	t.held = false
	t.pool.mu.Lock()
	defer t.pool.mu.Unlock()
	t.pool.give(t.client)
}

// pass lets another client go first that waits and holds fewer turns.
func (t *turn) pass(ctx context.Context) error {
	p := t.pool
	p.mu.Lock()
	next := p.next()
	if !t.held || next < 0 || p.held[p.waiting[next].client] >= p.held[t.client] {
		p.mu.Unlock()
		return nil
	}
	w := p.newWaiter(t.client)
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
	p.waiting = slices.Delete(p.waiting, i, i+1)
	p.held[w.client]++
	close(w.given)
}

// next is the waiter whose client holds the fewest turns, and of several the first. It is -1 where
// nobody waits.
func (p *Pool) next() int {
	best := -1
	for i, w := range p.waiting {
		if best < 0 || cmp.Or(
			cmp.Compare(p.held[w.client], p.held[p.waiting[best].client]),
			cmp.Compare(w.place, p.waiting[best].place),
		) < 0 {
			best = i
		}
	}
	return best
}

// Answer is an answer that is work for a processor. It holds a turn, but not while it writes to its
// client, who may take their time to read. It is for one goroutine.
//
// While it has nothing to say, since it works or waits for its turn, it sends line breaks, so that
// nobody on the way takes it for dead. So its format must allow for one before a line or a value, as
// NDJSON and JSON do.
type Answer struct {
	http.ResponseWriter
	ctx    context.Context
	turn   *turn
	sent   time.Time
	inLine bool
}

// Answer waits for a turn to make an answer, of which the headers are sent. It is never silent for
// much longer than the time that every says. The error is that of the request's context, or of a
// client who is gone.
func (p *Pool) Answer(ctx context.Context, w http.ResponseWriter, every time.Duration,
) (*Answer, error) {
	a := &Answer{ResponseWriter: w, ctx: ctx, turn: p.turn(ctx), sent: time.Now()}
	a.turn.alive, a.turn.every = a.keepAlive, every
	return a, a.turn.resume(ctx)
}

// Done gives the turn up. No more is written then.
func (a *Answer) Done() { a.turn.pause() }

// Pass lets another client go first that waits and holds fewer turns. Whoever works for long calls
// it once in a while.
func (a *Answer) Pass(ctx context.Context) error {
	if time.Since(a.sent) > a.turn.every {
		a.turn.pause()
		if err := a.keepAlive(); err != nil {
			return err
		}
		if err := a.turn.resume(ctx); err != nil {
			return err
		}
	}
	return a.turn.pass(ctx)
}

// keepAlive sends a line break, unless it would be within a line. No turn is held.
func (a *Answer) keepAlive() error {
	if a.inLine {
		return nil
	}
	a.sent = time.Now()
	if _, err := a.ResponseWriter.Write([]byte("\n")); err != nil {
		return err
	}
	err := http.NewResponseController(a.ResponseWriter).Flush()
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

func (a *Answer) Write(b []byte) (int, error) {
	a.turn.pause()
	n, err := a.ResponseWriter.Write(b)
	if len(b) > 0 {
		a.sent, a.inLine = time.Now(), b[len(b)-1] != '\n'
	}
	if err == nil {
		err = a.turn.resume(a.ctx)
	}
	return n, err
}

// FlushError is for http.ResponseController.
func (a *Answer) FlushError() error {
	a.turn.pause()
	if err := http.NewResponseController(a.ResponseWriter).Flush(); err != nil {
		return err
	}
	return a.turn.resume(a.ctx)
}

// Unwrap is for http.ResponseController.
func (a *Answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
