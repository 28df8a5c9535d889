package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

const (
	// tick is how often the spool is looked at when nothing says that it changed.
	tick = time.Second
	// aliveInterval is how long the store may hear nothing of a living pod. Readers take a pod for dead after three times as long.
	aliveInterval = time.Minute
)

// shipper drives the logs of all containers, one after the other, in one goroutine: memory does not grow with their number, and S3, which they share, is what is slow.
type shipper struct {
	config  contract.Config
	logs    []*containerLog
	upload  *uploader
	tickets *tickets
	segment *segment.Writer // one for all logs, as are the buffers
	buffers spool.Buffers
	wake    chan struct{}
	log     *slog.Logger

	trouble   string // what was last logged of a failed pass
	uploads   int64  // as of when the store last heard of this pod
	heardFrom time.Time
}

func newShipper(config contract.Config, volume, tokenFile string, log *slog.Logger) (*shipper, error) {
	// The kubelet runs the postStart hook beside this process, not before it, so the folders may not be there yet.
	if err := makeFolders(config.Containers, volume); err != nil {
		return nil, err
	}
	dir := stateDir(filepath.Join(volume, contract.StateSubPath))
	writer, err := segment.NewWriter()
	if err != nil {
		return nil, err
	}
	t, err := newTickets(config, tokenFile, filepath.Join(string(dir), "ticket"), log)
	if err != nil {
		return nil, err
	}
	s := &shipper{
		config: config, tickets: t, segment: writer, wake: make(chan struct{}, 1), log: log,
		upload: &uploader{tickets: t, retry: retrier{log: log}},
	}
	for _, name := range config.Containers {
		l := &containerLog{name: name, folder: filepath.Join(volume, contract.LogsSubPath, name), dir: dir, shipper: s}
		s.logs = append(s.logs, l)
		// A step that runs as root can close its folder to us. Then its log waits until it is open again, and no other.
		if err := l.open(); err != nil {
			log.Warn("a log cannot be opened; trying again until it can be", "container", name, "error", err)
		}
	}
	return s, nil
}

func (s *shipper) close() error {
	var errs []error
	for _, l := range s.logs {
		errs = append(errs, l.close())
	}
	s.upload.closeIdle()
	s.tickets.close()
	return errors.Join(errs...)
}

// run ships until the context ends, which is SIGTERM, and then drains.
func (s *shipper) run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.close()) }()
	for _, l := range s.logs {
		holder, err := startHolder(l.folder)
		if err != nil {
			s.log.Warn("if this container is killed, what it printed last is lost", "container", l.name, "error", err)
		}
		l.holder = holder
	}
	watching, stop := context.WithCancel(ctx)
	limit := newSharing(s.config, s.logs, s.log)
	watcher := startWatcher(watching, s.logs, limit, s.wake)
	defer watcher.Wait()
	defer stop()

	s.tickets.look(time.Now()) // so that a ticket is there when the first line is
	for {
		next, err := s.pass(ctx, time.Now())
		if ctx.Err() != nil {
			break
		}
		s.report(err)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			break
		}
	}
	return s.drain(context.WithoutCancel(ctx))
}

// report logs the error of a pass when it begins, changes, or ends.
func (s *shipper) report(err error) {
	trouble := ""
	if err != nil {
		trouble = err.Error()
	}
	switch {
	case trouble == s.trouble:
	case trouble != "":
		s.log.Warn("shipping is interrupted", "error", err)
	default:
		s.log.Info("shipping goes on")
	}
	s.trouble = trouble
}

// pass ships what is due in every log, and returns the time until the next pass is worth while.
func (s *shipper) pass(ctx context.Context, now time.Time) (time.Duration, error) {
	next := tick
	var errs []error
	hurry := false
	for _, l := range s.logs {
		if err := l.look(); err != nil {
			errs = append(errs, err)
		}
		// SIGTERM reaches a step at the start of the pod's grace period, and us only after the last step has ended.
		hurry = hurry || l.status.Term
	}
	for _, l := range s.logs {
		wait, err := l.ship(ctx, now, hurry)
		if refusal := (*refused)(nil); errors.As(err, &refusal) {
			wait = l.holdTo.Sub(now) // it is logged already
		} else if err != nil {
			errs = append(errs, err)
		}
		next = min(next, wait)
		if ctx.Err() != nil {
			return next, errors.Join(errs...)
		}
	}
	if err := s.keepAlive(ctx, now); err != nil {
		errs = append(errs, err)
	}
	return next, errors.Join(errs...)
}

// keepAlive tells readers that a silent pod lives.
func (s *shipper) keepAlive(ctx context.Context, now time.Time) error {
	if uploads := s.upload.uploads.Load(); uploads != s.uploads || s.heardFrom.IsZero() {
		s.uploads, s.heardFrom = uploads, now
	}
	if now.Sub(s.heardFrom) < aliveInterval {
		return nil
	}
	b, err := record.Encode(record.Alive{Time: now.UTC()})
	if err != nil {
		return err
	}
	s.heardFrom = now // also if it is refused: then the next minute's is the next try
	return s.upload.put(ctx, layout.AliveFile, b)
}
