package compact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shiplog-dev/shiplog/backend"
)

// Options configure a Compactor. Only Metrics may be left out.
type Options struct {
	Archive *backend.Archive
	Store   Store
	// Since is how old a run may be, by its creation, to be looked at. Older ones are left as they are.
	Since time.Duration
	// Metrics nil means that nothing is counted.
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Compactor looks at the newer runs of all namespaces, again and again, until all logs of a run are sealed and put together. It keeps only the UIDs of those; a new one, or a second beside it, looks at all of them again.
type Compactor struct {
	options Options
	done    map[string]bool // UIDs of runs of which nothing more will come

	stored, deleted, failures prometheus.Counter
	now                       func() time.Time
}

// New makes a Compactor.
func New(o Options) (*Compactor, error) {
	c := &Compactor{
		options: o, now: o.Archive.Now,
		stored:   prometheus.NewCounter(prometheus.CounterOpts{Name: "shiplog_compaction_stored_segments_total", Help: "Large segments that were stored in the place of small ones."}),
		deleted:  prometheus.NewCounter(prometheus.CounterOpts{Name: "shiplog_compaction_deleted_segments_total", Help: "Small segments that were deleted, since large ones hold their bytes."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "shiplog_compaction_failures_total", Help: "Runs and logs that could not be compacted. It is tried again with the next pass."}),
	}
	if o.Metrics != nil {
		for _, m := range []prometheus.Collector{c.stored, c.deleted, c.failures} {
			if err := o.Metrics.Register(m); err != nil {
				return nil, fmt.Errorf("compaction: metrics: %w", err)
			}
		}
	}
	return c, nil
}

// Run makes a pass at once, and then one in each interval, until the context ends.
func (c *Compactor) Run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := c.Pass(ctx); err != nil && ctx.Err() == nil {
			c.options.Log.Error("compaction stopped, and goes on with the next pass", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Pass looks once at all runs that are new enough. An error is the store's, of a list; what is wrong with one log is logged, and holds up no other.
func (c *Compactor) Pass(ctx context.Context) error {
	oldest := c.now().Add(-c.options.Since)
	done := map[string]bool{}
	for namespace, err := range c.options.Archive.Namespaces(ctx, "") {
		if err != nil {
			return fmt.Errorf("list namespaces: %w", err)
		}
		for x, err := range c.options.Archive.Runs(ctx, namespace, nil, 0) {
			if err != nil {
				return fmt.Errorf("list the runs of %s: %w", namespace, err)
			}
			if x.Created.Before(oldest) {
				break // the newest come first
			}
			if c.done[x.UID] || c.run(ctx, backend.Target{Run: x.Run()}) {
				done[x.UID] = true
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	c.done = done
	return nil
}

// run does what is to be done about the logs of a run, and says whether nothing will be any more.
func (c *Compactor) run(ctx context.Context, target backend.Target) (done bool) {
	failed := func(err error) {
		if ctx.Err() == nil {
			c.failures.Inc()
			c.options.Log.Error("not compacted", "run", target.Prefix(), "error", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx) // which ends what the tree takes of the memory
	defer cancel()
	tree, err := c.options.Archive.Tree(ctx, target)
	if errors.Is(err, fs.ErrNotExist) {
		return false // the index comes before the logs
	}
	if err != nil {
		failed(err)
		return false
	}
	done = tree.Over(c.now())
	for place := range tree.Containers() {
		// What is stored of a pod is a sign of its life, which tells the states of its logs that are not sealed.
		if has(place.Pod, backend.Running) {
			done = false
			continue
		}
		if has(place.Pod, backend.Partial) {
			continue
		}
		o, err := Log(ctx, c.options.Store, place, c.now())
		if err != nil {
			failed(err)
		}
		if done = done && !o.Waits; o.Stored > 0 || o.Deleted > 0 {
			c.stored.Add(float64(o.Stored))
			c.deleted.Add(float64(o.Deleted))
			c.options.Log.Info("compacted", "log", place.Container.Key.Prefix(), "stored", o.Stored, "deleted", o.Deleted)
		}
	}
	return done
}

// has says whether a log of the pod is in that state.
func has(p backend.Pod, status backend.Status) bool {
	return slices.ContainsFunc(p.Containers, func(c backend.Container) bool { return c.Status == status })
}
