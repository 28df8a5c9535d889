package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/shiplog-dev/shiplog/internal/layout"
)

const (
	// publishLook is how often it is looked whether the CA has changed, and publishInterval how
	// often it is written all the same: a lifecycle rule of the bucket may have deleted it.
	publishLook, publishInterval = 30 * time.Second, 10 * time.Minute
	// publishTimeout bounds one try.
	publishTimeout = 20 * time.Second
)

// caPublisher keeps the CA that shippers trust in the bucket, where those find it whose pods have
// been made under another one. See layout.CAKey.
type caPublisher struct {
	read  func() (string, error) // PEM; "" means that the system's roots are trusted
	store interface {
		Put(ctx context.Context, key string, body []byte) error
	}
	log *slog.Logger
}

// run publishes until ctx ends.
func (p *caPublisher) run(ctx context.Context) {
	var written string
	var at time.Time
	trouble := ""
	tick := time.NewTicker(publishLook)
	defer tick.Stop()
	for {
		bundle, err := p.read()
		if err == nil && bundle != "" && (bundle != written || time.Since(at) >= publishInterval) {
			if err = p.put(ctx, bundle); err == nil {
				written, at = bundle, time.Now()
			}
		}
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			trouble = ""
		case trouble != err.Error(): // once, and not at each try
			trouble = err.Error()
			p.log.Warn("the CA is not published: pods that were made under another one will get no ticket",
				"error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *caPublisher) put(ctx context.Context, bundle string) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	return p.store.Put(ctx, layout.CAKey, []byte(bundle))
}
