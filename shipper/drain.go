package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// sealConcurrency is how many seals are uploaded at once: they are small, and there is one for every container.
const sealConcurrency = 8

// firstTicketPatience is how long after SIGTERM a pod is held that never had a ticket. Where both
// replicas of the ticket service are replaced at once, it is away for some seconds, and a try that
// has begun at a dead address takes 10 s to fail; this is longer than both. It is short, since a
// pod that cannot reach the service at all is held for nothing, with its quota and its volumes.
const firstTicketPatience = 15 * time.Second

// drain ships everything that is left and seals every log. A native sidecar gets SIGTERM when all other containers have ended, so what is in the spool now is
// all there will be. It has its own deadline, not the context that SIGTERM ended; without one it ends when it is done or the kubelet kills it.
func (s *shipper) drain(ctx context.Context) error {
	if limit := time.Duration(s.config.DrainTimeout); limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	begin := time.Now()
	s.tickets.hurry()
	if err := s.tickets.first(ctx, firstTicketPatience); err != nil {
		s.log.Error("the logs of this pod are lost: it never had an upload ticket",
			"containers", s.config.Containers, "archiveBytes", s.backlog(), "error", err)
		return nil
	}
	var errs []error
	for left := s.logs; len(left) > 0; {
		var broken []error
		left, broken = s.drainOnce(ctx, left)
		errs = append(errs, broken...)
		if len(left) == 0 {
			break
		}
		// What the store refuses is tried again as long as there is time.
		soonest := slices.MinFunc(left, func(a, b *containerLog) int { return a.holdTo.Compare(b.holdTo) })
		timer := time.NewTimer(time.Until(soonest.holdTo))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("the store refuses objects of %d logs: %w", len(left), ctx.Err()))
			break
		}
	}
	err := errors.Join(errs...)
	if err == nil {
		s.log.Info("drained", "logs", len(s.logs), "took", time.Since(begin).Round(time.Millisecond))
	}
	return err
}

// backlog is how many archive bytes are in the spool and not shipped, as far as it can be read.
func (s *shipper) backlog() (bytes int64) {
	for _, l := range s.logs {
		bytes += l.backlog()
	}
	return bytes
}

// backlog is that of one log. One that cannot be opened or read has none.
func (l *containerLog) backlog() int64 {
	if l.open() != nil {
		return 0
	}
	n, _ := l.reader.Backlog(l.state.Position)
	return n
}

// drainOnce ships and seals the logs, and returns those of which the store refuses an object.
func (s *shipper) drainOnce(ctx context.Context, logs []*containerLog) (left []*containerLog, broken []error) {
	// If there is not time for everything: what is short first, then the ends of what is long, then the rest.
	behind := map[*containerLog]int64{}
	for _, l := range logs {
		behind[l] = l.backlog() // a log that cannot be opened or read says so below
	}
	logs = slices.Clone(logs)
	slices.SortStableFunc(logs, func(a, b *containerLog) int { return cmp.Compare(behind[a], behind[b]) })
	errs := make([]error, len(logs))
	var group errgroup.Group
	group.SetLimit(sealConcurrency)
	tails := false
	for i, l := range logs {
		if behind[l] >= tailFirst && !tails {
			for j := i; j < len(logs); j++ {
				errs[j] = logs[j].shipTail(ctx, behind[logs[j]])
			}
			tails = true
		}
		// A log that cannot be read must not keep the others from being shipped. It gets no seal, so that readers know that it is not whole.
		if errs[i] == nil {
			errs[i] = l.finish(ctx)
		}
		if errs[i] == nil && !l.state.Sealed {
			group.Go(func() error { errs[i] = l.seal(ctx, time.Now()); return nil })
		}
	}
	_ = group.Wait() // each has its own error
	for i, err := range errs {
		if refusal := (*refused)(nil); errors.As(err, &refusal) {
			left = append(left, logs[i])
		} else if err != nil {
			broken = append(broken, err)
		}
	}
	return left, broken
}

// finish ships all that is left of a log.
func (l *containerLog) finish(ctx context.Context) error {
	for {
		if err := l.look(); err != nil {
			return err
		}
		more, err := l.advance(ctx, true, time.Now())
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if l.rest == nil && (l.status.Ended || !l.beginRest(false)) {
		return nil
	}
	for {
		if more, err := l.shipRest(ctx); err != nil || !more {
			return err
		}
	}
}

const (
	// tailFirst is the backlog, in archive bytes, from which a log's end is shipped before what is in front of it. tailBytes is how much of the end.
	tailFirst = 8 << 20
	tailBytes = 256 << 10
)

// shipTail ships the end of a log that is far behind, as where the store was away. If the grace period is too short for all of it, that is what matters most: why the build failed. The
// end gets the name that it has when all is shipped in order, so this is no other segment, only an earlier one.
func (l *containerLog) shipTail(ctx context.Context, backlog int64) error {
	if l.state.TailAt > l.state.Bytes { // an earlier try has done it
		return nil
	}
	if err := l.look(); err != nil {
		return err
	}
	// A name holds how many lines and printed bytes are in front, so these are read, and not compressed. It takes a second for hundreds of megabytes.
	front, now := l.state, time.Now()
	read := l.spooled(true, now)
	for left := backlog - tailBytes; left > 0 && ctx.Err() == nil; {
		lines, tally, behind, err := read(front.Position, int(min(left, batch)))
		if err != nil {
			return err
		}
		if behind == front.Position {
			break
		}
		left -= behind.Since(front.Position)
		front.Position = behind
		if len(lines) > 0 {
			front.count(tally)
		}
	}
	state := l.state
	l.state = front
	_, name, body, err := l.cut(ctx, 2*tailBytes, true, now, read)
	l.state = state
	if err == nil && name != "" {
		err = l.shipper.upload.put(ctx, l.name+"/"+name, body)
	}
	if err != nil {
		return err
	}
	l.state.TailAt = front.Bytes
	if err := l.dir.save(l.name, l.state); err != nil {
		l.warnUnsaved(err)
	}
	return nil
}
