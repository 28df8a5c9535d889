package model

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// oneFollowed is of how many histories one is followed: it takes as many requests as others take
// together.
const oneFollowed = 10

// TestFollowModel follows logs and runs of random histories from a random moment to their end. What
// comes is what is archived then, once, and it ends when and as the slow reader says.
func TestFollowModel(t *testing.T) {
	n, seeds := asked(t)
	each(t, n/oneFollowed, seeds, func(t *testing.T, seed uint64,
		writer *segment.Writer) (err error) {
		synctest.Test(t, func(t *testing.T) { err = follows(t.Context(), seed, writer) })
		return err
	})
}

// late is how much later than a state begins a follower sees it: its interval, and the requests.
const late = backend.FollowInterval + 5*time.Second

func follows(ctx context.Context, seed uint64, writer *segment.Writer) error {
	w := newWorld(seed, false, writer)
	rnd := rand.New(rand.NewPCG(seed, 3))
	p := w.pods[rnd.IntN(len(w.pods))]
	l := p.logs[rnd.IntN(len(p.logs))]
	if !pass(ctx,
		p.begin.Add(time.Second+time.Duration(rnd.Int64N(int64(p.end.Sub(p.begin)+time.Second))))) {
		return nil
	}
	s := newStore(w.events, time.Now)
	s.page = 2 + rnd.IntN(20)
	if rnd.IntN(2) == 0 { // requests take time, and what comes meanwhile is in the next page
		var mu sync.Mutex // records are asked for several at a time
		s.each = func() {
			mu.Lock()
			takes := time.Duration(rnd.Int64N(int64(100 * time.Millisecond)))
			mu.Unlock()
			pass(ctx, time.Now().Add(takes))
		}
	}
	if rnd.IntN(3) == 0 {
		return s.followRun(ctx, w, p)
	}
	return s.follow(ctx, p, l)
}

// pass waits until a moment.
func pass(ctx context.Context, until time.Time) bool {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// at is a store with the same history, at a moment.
func (s *store) at(now time.Time) *store {
	at := newStore(s.events, func() time.Time { return now })
	at.advance()
	return at
}

// expect says what a follower that began and ended at these moments had to see of a log.
func (s *store) expect(p *pod, l *log, began, ended time.Time, state backend.Status,
	got iter.Seq2[backend.Line, error]) error {
	// What was requested last is of a moment between these.
	fits := func(f func(now time.Time, t truth) error) error {
		err := errors.New("never")
		for _, now := range s.moments(ended.Add(-late), ended) {
			if err = f(now, s.at(now).read(p, l, now)); err == nil {
				return nil
			}
		}
		return err
	}
	if err := fits(func(now time.Time, t truth) error {
		if t.status != state {
			return fmt.Errorf("ended as %s, want %s at %s", state, t.status, now.Sub(epoch))
		}
		if t.status == backend.Running {
			return errors.New("ended while it runs")
		}
		return same(got, t.pieces, t.estimated)
	}); err != nil {
		return err
	}
	// It ended as soon as it could.
	var since time.Time // when it was not running any more
	for _, now := range s.moments(began, ended) {
		at := s.at(now)
		switch {
		case !at.knows(p, l) || at.read(p, l, now).status == backend.Running:
			since = time.Time{}
		case since.IsZero():
			since = now
		case now.Sub(since) > late:
			return fmt.Errorf("ended at %s, and could have at %s", ended.Sub(epoch),
				since.Sub(epoch))
		}
	}
	return nil
}

// moments are those at which something may change.
func (s *store) moments(from, to time.Time) []time.Time {
	moments := []time.Time{from, to}
	for _, e := range s.events {
		for _, at := range []time.Time{e.at, e.at.Add(backend.AliveWithin)} {
			if at.After(from) && at.Before(to) {
				moments = append(moments, at)
			}
		}
	}
	slices.SortFunc(moments, time.Time.Compare)
	return moments
}

func (s *store) follow(ctx context.Context, p *pod, l *log) error {
	a := backend.New(s)
	began := time.Now()
	c, err := a.Container(ctx, l.key)
	if err != nil {
		if now := s.at(began); !now.knows(p, l) {
			return nil
		}
		return fmt.Errorf("%s: %w", l.key.Prefix(), err)
	}
	label := c.Label()
	got := &collected{}
	for l, err := range a.Follow(ctx, &c, backend.LogOptions{}) {
		got.add(l, err)
	}
	if c.Label() != label {
		return fmt.Errorf("%s: is called %q first, and then %q", l.key.Prefix(), label, c.Label())
	}
	if err := s.expect(p, l, began, time.Now(), c.Status, got.all); err != nil {
		return fmt.Errorf("%s followed from %s to %s: %w", l.key.Prefix(), began.Sub(epoch),
			time.Since(epoch), err)
	}
	return nil
}

// collected are lines that were read.
type collected struct {
	lines []backend.Line
	err   error
}

func (c *collected) add(l backend.Line, err error) {
	l.Text = slices.Clone(l.Text) // which is valid until the next line only
	c.lines = append(c.lines, l)
	c.err = errors.Join(c.err, err)
}

func (c *collected) all(yield func(backend.Line, error) bool) {
	if c.err != nil {
		yield(backend.Line{}, c.err)
		return
	}
	for _, l := range c.lines {
		if !yield(l, nil) {
			return
		}
	}
}

func (s *store) followRun(ctx context.Context, w *world, p *pod) error {
	a := backend.New(s)
	began := time.Now()
	logs := map[layout.Container]*collected{}
	ended := map[layout.Container]time.Time{}
	states := map[layout.Container]backend.Status{}
	labels := map[layout.Container]string{}
	for l, err := range a.FollowRun(ctx, backend.Target{Run: p.key.Run}, func(backend.TaskRun,
		backend.Container) bool {
		return true
	}, backend.LogOptions{}) {
		if err != nil {
			return fmt.Errorf("%s: %w", p.key.Run.Prefix(), err)
		}
		key := l.Container.Key
		if logs[key] == nil {
			logs[key] = &collected{}
			labels[key] = l.Container.Label()
		}
		if labels[key] != l.Container.Label() {
			return fmt.Errorf("%s: is called %q first, and then %q", key.Prefix(), labels[key],
				l.Container.Label())
		}
		if l.Line.Stream == "" {
			ended[key], states[key] = time.Now(), l.Container.Status
			continue
		}
		logs[key].add(l.Line, nil)
	}
	over := s.at(time.Now())
	for _, other := range w.pods {
		for _, l := range other.logs {
			if other.key.Run != p.key.Run || !over.knows(other, l) {
				continue
			}
			if ended[l.key].IsZero() {
				// The run was over before, as far as was known.
				return fmt.Errorf("%s followed from %s to %s: %s did not end", p.key.Run.Prefix(),
					began.Sub(epoch), time.Since(epoch), l.key.Prefix())
			}
			if err := s.expect(other, l, began, ended[l.key], states[l.key],
				logs[l.key].all); err != nil {
				return fmt.Errorf("%s in its run followed from %s: %w", l.key.Prefix(),
					began.Sub(epoch), err)
			}
		}
	}
	return nil
}
