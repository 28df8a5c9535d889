package compact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
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

const (
	// logTime bounds what is done for a log in a pass, and namespaceTime for all logs of a namespace:
	// what a tenant stores does not keep others waiting.
	logTime       = 10 * time.Minute
	namespaceTime = 20 * time.Minute
)

// Compactor looks at the newer runs of all namespaces, again and again, until all logs of a run are sealed and put together. It keeps only the UIDs of those, and which logs cannot be; a new one, or a second beside it, looks at all of them again.
type Compactor struct {
	options Options
	seen    map[string]seen // by namespace

	logTime, namespaceTime time.Duration

	stored, deleted, failures prometheus.Counter
	now                       func() time.Time
}

// seen is what is known of a namespace.
type seen struct {
	done    map[string]bool           // UIDs of runs of which nothing more will come
	refused map[layout.Container]bool // logs of other runs that are not tried again
}

func newSeen() seen { return seen{map[string]bool{}, map[layout.Container]bool{}} }

// New makes a Compactor.
func New(o Options) (*Compactor, error) {
	c := &Compactor{
		options: o, now: o.Archive.Now, logTime: logTime, namespaceTime: namespaceTime,
		stored:   prometheus.NewCounter(prometheus.CounterOpts{Name: "shiplog_compaction_stored_segments_total", Help: "Large segments that were stored in the place of small ones."}),
		deleted:  prometheus.NewCounter(prometheus.CounterOpts{Name: "shiplog_compaction_deleted_segments_total", Help: "Small segments that were deleted, since large ones hold their bytes."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "shiplog_compaction_failures_total", Help: "Runs and logs that could not be compacted. What the store cannot give is tried again with the next pass; what was forged, or takes too long, is not."}),
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
	now := map[string]seen{}
	for namespace, err := range c.options.Archive.Namespaces(ctx, "") {
		if err != nil {
			return fmt.Errorf("list namespaces: %w", err)
		}
		known, err := c.namespace(ctx, namespace)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("list the runs of %s: %w", namespace, err)
		}
		now[namespace] = known
	}
	c.seen = now
	return nil
}

// namespace looks at a namespace's runs, for as long as that may take, and returns what is known of
// them now. An error is the store's, of the list.
func (c *Compactor) namespace(pass context.Context, namespace string) (seen, error) {
	ctx, cancel := context.WithTimeout(pass, c.namespaceTime)
	defer cancel()
	oldest := c.now().Add(-c.options.Since)
	before, now := c.seen[namespace], newSeen()
	for x, err := range c.options.Archive.Runs(ctx, namespace, nil, 0) {
		if err == nil && x.Created.Before(oldest) {
			break // the newest come first
		}
		if err == nil && (before.done[x.UID] || c.run(ctx, backend.Target{Run: x.Run()}, before, now)) {
			now.done[x.UID] = true
		}
		if ctx.Err() != nil && pass.Err() == nil {
			c.options.Log.Warn("the rest of a namespace is left for the next pass",
				"namespace", namespace, "after", c.namespaceTime.String())
			maps.Copy(now.done, before.done)
			maps.Copy(now.refused, before.refused)
			return now, nil
		}
		if err != nil {
			return now, err
		}
	}
	return now, nil
}

// run does what is to be done about the logs of a run, and says whether nothing will be any more.
// What was found of the namespace before, it adds to what is known now.
func (c *Compactor) run(pass context.Context, target backend.Target, before, now seen) (done bool) {
	ctx, cancel := context.WithCancel(pass) // what is held of the run ends with it
	defer cancel()
	failed := func(err error) {
		if ctx.Err() == nil {
			c.failures.Inc()
			c.options.Log.Error("not compacted", "run", target.Prefix(), "error", err)
		}
	}
	tree, err := c.options.Archive.Tree(ctx, target)
	if errors.Is(err, fs.ErrNotExist) {
		return false // the index comes before the logs
	}
	if err != nil {
		failed(err)
		var busy *backend.BusyError // only one run is read at a time: it will not fit later either
		return errors.As(err, &busy)
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
		if before.refused[place.Container.Key] {
			now.refused[place.Container.Key] = true
			continue
		}
		o, err := c.log(ctx, place)
		if err != nil {
			failed(err)
			if ctx.Err() == nil && (forged(err) || errors.Is(err, context.DeadlineExceeded)) {
				now.refused[place.Container.Key] = true
				continue
			}
		}
		if done = done && !o.Waits; o.Stored > 0 || o.Deleted > 0 {
			c.stored.Add(float64(o.Stored))
			c.deleted.Add(float64(o.Deleted))
			c.options.Log.Info("compacted", "log", place.Container.Key.Prefix(), "stored", o.Stored, "deleted", o.Deleted)
		}
	}
	return done
}

// log is Log, for as long as one may take.
func (c *Compactor) log(ctx context.Context, place backend.Place) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, c.logTime)
	defer cancel()
	return Log(ctx, c.options.Store, place, c.now())
}

// has says whether a log of the pod is in that state.
func has(p backend.Pod, status backend.Status) bool {
	return slices.ContainsFunc(p.Containers, func(c backend.Container) bool { return c.Status == status })
}
