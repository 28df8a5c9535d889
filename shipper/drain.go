package main

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"
)

// sealConcurrency is how many seals are uploaded at once: they are small, and there is one for every container.
const sealConcurrency = 8

// drain ships everything that is left and seals every log. A native sidecar gets SIGTERM when all other containers have ended, so what is in the spool now is
// all there will be. It has its own deadline, not the context that SIGTERM ended; without one it ends when it is done or the kubelet kills it.
func (s *shipper) drain(ctx context.Context) error {
	if limit := time.Duration(s.config.DrainTimeout); limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	begin := time.Now()
	var errs []error
	var group errgroup.Group
	group.SetLimit(sealConcurrency)
	for _, l := range s.logs {
		// A log that cannot be read must not keep the others from being shipped. It gets no seal, so that readers know that it is not whole.
		if err := l.finish(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		if !l.state.Sealed {
			group.Go(func() error { return l.seal(ctx, time.Now()) })
		}
	}
	err := errors.Join(append(errs, group.Wait())...)
	if err == nil {
		s.log.Info("drained", "logs", len(s.logs), "took", time.Since(begin).Round(time.Millisecond))
	}
	return err
}

// finish ships all that is left of a log.
func (l *containerLog) finish(ctx context.Context) error {
	for {
		if err := l.look(); err != nil {
			return err
		}
		if more, err := l.advance(ctx, true, time.Now()); err != nil || !more {
			return err
		}
	}
}
