package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is the least time between two wakes.
const settle = 25 * time.Millisecond

// startWatcher wakes the shipper when a container's folder changes, until the context ends. It is a hint: where it fails or misses something, the tick finds it. The caller
// waits for the group.
func startWatcher(ctx context.Context, logs []*containerLog, wake chan<- struct{}, log *slog.Logger) *sync.WaitGroup {
	var group sync.WaitGroup
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("changes are found by looking each second: the kernel's watches are used up", "error", err)
		return &group
	}
	for _, l := range logs {
		if err := watcher.Add(l.folder); err != nil {
			log.Warn("changes are found by looking each second", "container", l.name, "error", err)
		}
	}
	group.Go(func() {
		defer watcher.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case _, ok := <-watcher.Events:
				if !ok {
					return
				}
				// One wake is as good as many.
				select {
				case wake <- struct{}{}:
				default:
				}
				// A log that is written a thousand times a second needs no thousand looks. The kernel keeps what comes meanwhile.
				select {
				case <-ctx.Done():
					return
				case <-time.After(settle):
				}
			case <-watcher.Errors: // an overflow loses hints only
			}
		}
	})
	return &group
}
