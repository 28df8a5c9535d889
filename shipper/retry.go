package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"
)

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// retrier is the one place where things are tried again. Nothing is permanent: a bucket may be made, a quota raised, a clock set right, and giving up would
// lose the log. What differs is how soon it is tried again: an error may say so (retryAfter); and who waits for it: all logs, since they have the store in common, or only the one
// whose object the store does not want (refused).
type retrier struct {
	log *slog.Logger
	// most is the longest backoff; 0 means maxBackoff.
	most time.Duration
	// hurry, where it is closed, ends the wait that is under way, and most is maxBackoff from then
	// on.
	hurry <-chan struct{}
}

// backoff is the time before the next try at most.
type backoff time.Duration

// next returns how long to wait for what waits no longer than maxBackoff.
func (b *backoff) next() time.Duration { return b.within(firstBackoff, maxBackoff) }

// within returns how long to wait. Full jitter: the shippers of many pods must not come back in
// step.
func (b *backoff) within(first, longest time.Duration) time.Duration {
	most := min(max(time.Duration(*b), first), longest)
	*b = backoff(min(2*most, longest))
	return time.Duration(rand.Int64N(int64(most))) + most/10
}

// refused is an error that is about one object, and not about the store, the ticket or the way there: other objects may be welcome.
type refused struct{ error }

func (e *refused) Unwrap() error { return e.error }

// retryAfter is an error that says when to try again at the earliest.
type retryAfter struct {
	error
	delay time.Duration
}

func (e *retryAfter) Unwrap() error { return e.error }

// do tries until it succeeds, it is refused, or the context ends, whose error it then returns together with the last try's. The first failure and the recovery are logged, not each try.
func (r retrier) do(ctx context.Context, what string, try func(context.Context) error) error {
	var wait backoff
	most, hurry := cmp.Or(r.most, maxBackoff), r.hurry
	failures, begin := 0, time.Now()
	for {
		err := try(ctx)
		if err == nil {
			if failures > 0 {
				r.log.Info("recovered", "what", what, "failures", failures, "after", time.Since(begin).Round(time.Millisecond))
			}
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		if refusal := (*refused)(nil); errors.As(err, &refusal) {
			return err
		}
		failures++
		if failures == 1 {
			r.log.Warn("failed; trying again until it succeeds", "what", what, "error", err)
		}
		delay := wait.within(firstBackoff, most)
		var after *retryAfter
		if errors.As(err, &after) {
			delay = max(delay, after.delay)
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		case <-timer.C:
		case <-hurry:
			timer.Stop()
			wait, most, hurry = 0, min(most, maxBackoff), nil
		}
	}
}
