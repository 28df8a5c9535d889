package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const (
	annotateWorkers = 4
	// lookTimeout bounds all that is done for a run at a time.
	lookTimeout = 2 * time.Minute
	// firstPoll and slowPoll are the pauses between looks at a run that has ended and whose logs are still coming. A shipper is done a second or two after the last step.
	firstPoll = 2 * time.Second
	slowPoll  = 30 * time.Second
	// stuckPoll is the pause where a TaskRun of a run that has ended has not ended itself.
	stuckPoll = 5 * time.Minute
	// certainAfter is how long logs have to look as if they would never be whole before that is said. Seen once is not enough: when a store is back that nobody could reach for a while, the first look is before the
	// shippers' next try; and a listing of many pages may have the seal and not the segments that came with it.
	certainAfter = backend.AliveWithin
	// recordSettle is how long after a run's end its run.json is looked at once more; see recordEnding. It is longer than a request for a ticket can take.
	recordSettle = time.Minute
	// retryFirst and retryMost are the pauses after failures.
	retryFirst = time.Second
	retryMost  = 5 * time.Minute
	// backlogPause spreads the runs that walk finds: each costs a request to the store or a few.
	backlogPause = 50 * time.Millisecond
	// maxPending bounds memory where nothing gets done for long. When so many runs wait for something,
	// no more are taken: those of tickets come back when the run ends, and all others with walk, once
	// there is room.
	maxPending = 20_000
	// walkRetry is the pause after a walk that failed.
	walkRetry = 30 * time.Second
	// unreadableAfter is how long the logs of a run may be unreadable, each time that they are looked at, before that is said. It is long: what is said is final.
	unreadableAfter = 6 * time.Hour
	// maxRunRecord is the largest run.json that is read.
	maxRunRecord = 4 << 20
)

// recordStore is where run.json is.
type recordStore interface {
	backend.Store
	Put(ctx context.Context, key string, body []byte) error
}

// annotator tells the cluster what the archive holds of its runs, and the archive how the runs ended. A run gets the address of its logs with its first ticket. When it has ended, run.json gets its state, and when
// nothing more will come of its logs, run and TaskRuns get contract.SealedAnnotation, and the run an event if something was lost.
//
// Every replica does all of it, and none leads. All that is done has the same outcome whoever does it and however often: a run.json has the same bytes, an event the same name, an annotation the same value. A leader would
// need rights to a Lease and leave gaps when it changes, to save what little is done twice: the replicas look at different moments, and who comes second sees in its watch that it is done.
//
// The address comes from the process that gives the tickets, by a linker: an annotator that does
// that alone. It keeps the runs that have not ended, which that process needs anyway.
//
// Nobody waits for it. It has goroutines and clients of its own; where the API server or the store is away, runs wait in its queue, and pods and tickets do not notice.
type annotator struct {
	linker  bool   // it does what ticketIssued says, and nothing else; see newLinker
	pageURL string // empty: no addresses
	store   recordStore
	archive *backend.Archive
	core    kubernetes.Interface
	tekton  dynamic.Interface
	watch   *runWatch
	queue   workqueue.TypedRateLimitingInterface[runKey]
	log     *slog.Logger

	done     *prometheus.CounterVec
	missed   prometheus.Counter // steps
	failures prometheus.Counter
	refused  prometheus.Counter
	waiting  prometheus.GaugeFunc

	mu        sync.Mutex
	pending   map[runKey]*pendingRun
	forbidden map[string]bool // the kinds of which it was said that we may not annotate them

	walks chan struct{} // holds one value if walk has something to do
	room  int           // maxPending
}

// pendingRun is what is known of a run that something is to be done about.
type pendingRun struct {
	// links are the objects that a ticket was given for and that lack their address; gone is the run as it was when it was deleted. Both under the annotator's lock.
	links map[types.UID]*runObject
	gone  *runObject

	// The rest belongs to the worker that has the run.
	looks       int       // at logs that are still coming
	badSince    time.Time // since when every look found that logs are not whole, and that none is growing
	failedSince time.Time // since when no look could read the logs, though run.json could be read
	unmarked    bool      // it has ended, and had no mark when it was last looked at
	refused     bool      // the API server does not take what is to be said of the run
}

// poll is the pause until the next look.
func (p *pendingRun) poll() time.Duration {
	p.looks++
	return min(firstPoll<<min(p.looks-1, 10), slowPoll)
}

// newAnnotator makes an annotator. It sends nothing before run.
func newAnnotator(config *rest.Config, store recordStore, pageURL string, registry prometheus.Registerer, log *slog.Logger) (*annotator, error) {
	a, err := makeAnnotator(config, pageURL, registry, log)
	if err != nil {
		return nil, err
	}
	a.store, a.archive = store, backend.New(store)
	a.watch = newRunWatch(a.tekton, a.due, a.changed, a.left)
	a.done = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "shiplog_runs_sealed_total",
		Help: "Runs that this replica annotated when no more of their logs was to come, " +
			"by the annotation's value: true, partial, or missed.",
	}, []string{"sealed"})
	a.missed = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "shiplog_steps_missed_total",
		Help: "Steps of runs that this replica annotated whose logs should be in the archive, " +
			"which has nothing of them.",
	})
	for _, s := range []standing{durable, missed, damaged} {
		a.done.WithLabelValues(s.sealed())
	}
	for _, c := range []prometheus.Collector{a.done, a.missed} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("annotate runs: metrics: %w", err)
		}
	}
	return a, nil
}

// newLinker makes an annotator that is a linker.
func newLinker(
	config *rest.Config, pageURL string, registry prometheus.Registerer, log *slog.Logger,
) (*annotator, error) {
	a, err := makeAnnotator(config, pageURL, registry, log)
	if err != nil {
		return nil, err
	}
	a.linker = true
	a.watch = newRunWatch(a.tekton, func(*runObject) bool { return false },
		func(_, _ *runObject) {}, func() {})
	a.watch.onlyLive = true
	return a, nil
}

// makeAnnotator makes what an annotator and a linker have in common.
func makeAnnotator(
	config *rest.Config, pageURL string, registry prometheus.Registerer, log *slog.Logger,
) (*annotator, error) {
	conf := rest.CopyConfig(config)
	conf.Timeout = 0 // a watch has no end
	conf.QPS, conf.Burst = 50, 100
	core, err := kubernetes.NewForConfig(conf)
	if err != nil {
		return nil, fmt.Errorf("annotate runs: API client: %w", err)
	}
	tekton, err := dynamic.NewForConfig(conf)
	if err != nil {
		return nil, fmt.Errorf("annotate runs: API client: %w", err)
	}
	a := &annotator{
		pageURL: pageURL, core: core, tekton: tekton, log: log,
		pending: map[runKey]*pendingRun{}, forbidden: map[string]bool{},
		walks: make(chan struct{}, 1), room: maxPending,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[runKey](retryFirst, retryMost)),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shiplog_run_annotation_failures_total",
			Help: "Failed attempts to list runs, to annotate one or to record its state. " +
				"They are repeated.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shiplog_run_annotations_refused_total", Help: "PipelineRuns and TaskRuns whose annotations the API server refused for good, such as where the verb patch is missing.",
		}),
	}
	a.waiting = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shiplog_runs_pending", Help: "Runs that this replica has something to do about, or whose logs it waits for.",
	}, func() float64 { a.mu.Lock(); defer a.mu.Unlock(); return float64(len(a.pending)) })
	for _, c := range []prometheus.Collector{a.failures, a.refused, a.waiting} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("annotate runs: metrics: %w", err)
		}
	}
	return a, nil
}

// run works until the context ends, and returns when all that it has begun has ended.
func (a *annotator) run(ctx context.Context) {
	var group sync.WaitGroup
	group.Go(func() { a.watch.run(ctx) })
	if !a.linker {
		group.Go(func() { a.walk(ctx) })
	}
	for range annotateWorkers {
		group.Go(func() { a.work(ctx) })
	}
	<-ctx.Done()
	a.queue.ShutDown()
	group.Wait()
}

// ticketIssued hears of a ticket. It never waits.
func (a *annotator) ticketIssued(pod ownedPod) {
	if a.pageURL == "" {
		return
	}
	task, run := pod.taskRun, pod.run()
	key := run.key()
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pending[key]
	if p == nil && len(a.pending) >= a.room {
		return
	}
	for _, o := range []*runObject{run, task} {
		if logs, _ := o.annotation(contract.LogsAnnotation); logs == a.address(o) {
			continue
		}
		if p == nil {
			p = &pendingRun{}
			a.pending[key] = p
		}
		if p.links == nil {
			p.links = map[types.UID]*runObject{}
		}
		p.links[o.UID] = o
	}
	if p != nil && len(p.links) > 0 {
		a.queue.Add(key)
	}
}

// changed hears of a change of a run or TaskRun.
func (a *annotator) changed(before, after *runObject) {
	if after == nil { // another one of the run may have waited for it
		a.mu.Lock()
		defer a.mu.Unlock()
		key := before.key()
		p := a.pending[key]
		if p == nil {
			return
		}
		if key.uid == before.UID && p.gone == nil {
			p.gone = before
		}
		a.queue.Add(key)
		return
	}
	ended := before != nil && !before.over() && after.over()
	if ended || a.due(after) && (before == nil || !a.due(before)) {
		a.add(after.key())
	}
}

// add queues a run, or leaves it to walk if there is no room.
func (a *annotator) add(key runKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending[key] == nil {
		if len(a.pending) >= a.room {
			a.left()
			return
		}
		a.pending[key] = &pendingRun{}
	}
	a.queue.Add(key)
}

// left has walk look for runs. It never waits.
func (a *annotator) left() {
	wake(a.walks)
}

// wake has the reader of a channel with room for one look. It never waits.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// walk queues the runs that have ended and are due, and that no watch tells of: they had ended
// before this process, or there was no room for them. They are listed as slowly as they get done,
// so they take no memory.
func (a *annotator) walk(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.walks:
		}
		for _, of := range []owner{pipelineRunOwner, taskRunOwner} {
			if err := a.walkAll(ctx, of); err != nil && ctx.Err() == nil {
				a.failures.Inc()
				a.log.Warn("the runs that had ended before could not be listed; it is tried again",
					"resource", of.resource, "error", err)
				a.left()
				_ = pauseFor(ctx, walkRetry) // walk looks itself whether it is to end
				break
			}
		}
	}
}

// walkAll is walk for PipelineRuns or TaskRuns.
func (a *annotator) walkAll(ctx context.Context, of owner) error {
	o := metav1.ListOptions{Limit: runPage}
	for {
		page, err := a.watch.kept(of).client().List(ctx, o)
		// A list of more than some minutes is continued with what there is by then.
		if status := apierrors.APIStatus(nil); apierrors.IsResourceExpired(err) &&
			errors.As(err, &status) && status.Status().Continue != "" {
			o.Continue = status.Status().Continue
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", of.resource, err)
		}
		for i := range page.Items {
			run := slimOf(&page.Items[i])
			if !run.over() || !a.due(run) || a.watch.isSettled(run) {
				continue
			}
			for a.busy() {
				if err := pauseFor(ctx, backlogPause); err != nil {
					return err
				}
			}
			a.add(run.key())
			if err := pauseFor(ctx, backlogPause); err != nil {
				return err
			}
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			return nil
		}
	}
}

// busy says whether walk adds no more for now: runs wait for a worker, and one that ends now would
// wait behind them, or half of what may be pending is.
func (a *annotator) busy() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.queue.Len() > 0 || len(a.pending) >= a.room/2
}

// pauseFor waits, or until the context ends, which is its error.
func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// due says whether the object by itself is a reason to look at its run.
func (a *annotator) due(o *runObject) bool {
	switch {
	case !o.over():
		return len(foreign(o)) > 0
	case o.pipelineRun == nil && (!marked(o) || time.Since(o.completed) < recordSettle):
		return true
	}
	logs, _ := o.annotation(contract.LogsAnnotation)
	return marked(o) && a.pageURL != "" && logs != a.address(o)
}

// work takes runs from the queue until that is shut down. All failures end here, and are tried again from here.
func (a *annotator) work(ctx context.Context) {
	for {
		key, ended := a.queue.Get()
		if ended {
			return
		}
		again, err := a.lookSafely(ctx, key)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			a.failures.Inc()
			if a.queue.NumRequeues(key) == 0 { // and not each time: a store that is away for long fails for every run
				a.log.Warn("a run could not be annotated, or its state not be recorded; it is tried again", append(key.attrs(), "error", err)...)
			}
			a.queue.AddRateLimited(key)
		case again > 0:
			a.queue.Forget(key)
			a.queue.AddAfter(key, again+rand.N(again/2+1)) // so that replicas look at different moments
		default:
			a.queue.Forget(key)
			if p := a.forget(key); p != nil {
				a.watch.settle(key, p.unmarked)
			}
		}
		a.queue.Done(key)
	}
}

// final says that trying again is of no use: the object does not fit Tekton's schema or its webhook's rules, which may be stricter than when it was made, it is another one of that name, or we may not change it.
func final(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsForbidden(err)
}

// lookSafely is look, where a fault of ours costs the run's annotations and not the process: all
// other runs are in it, and with a linker admission.
func (a *annotator) lookSafely(ctx context.Context, key runKey) (again time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return a.look(ctx, key)
}

// state returns what is pending of a run.
func (a *annotator) state(key runKey) *pendingRun {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending[key] == nil {
		a.pending[key] = &pendingRun{}
	}
	return a.pending[key]
}

// forget ends what was pending of a run and returns it, or nil if something has come meanwhile.
func (a *annotator) forget(key runKey) *pendingRun {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pending[key]
	if p == nil || len(p.links) > 0 || p.gone != nil {
		return nil
	}
	delete(a.pending, key)
	return p
}

// look does what there is to do about a run, and says after which time to look again; 0 means when something changes. Without addresses the rest is done all the same.
func (a *annotator) look(ctx context.Context, key runKey) (again time.Duration, err error) {
	p := a.state(key)
	linkErr := a.link(ctx, p)
	if a.linker {
		return 0, linkErr
	}
	again, err = a.lookOn(ctx, p, key)
	return again, errors.Join(linkErr, err)
}

// lookOn is look but for the addresses.
func (a *annotator) lookOn(ctx context.Context, p *pendingRun, key runKey) (again time.Duration, err error) {
	a.mu.Lock()
	gone := p.gone
	a.mu.Unlock()
	if gone != nil {
		return 0, a.recordGone(ctx, p, gone)
	}
	if !a.watch.synced() {
		return firstPoll, nil
	}
	run, err := a.watch.find(ctx, key)
	switch {
	case err != nil:
		return 0, err
	case run == nil:
		return 0, nil // it is gone
	case !run.over():
		tasks, err := a.watch.tasks(ctx, run)
		if err != nil {
			return 0, err
		}
		return 0, a.clean(ctx, run, tasks)
	}
	return a.conclude(ctx, p, run)
}

// conclude does what there is to do about a run that has ended.
func (a *annotator) conclude(ctx context.Context, p *pendingRun, run *runObject) (again time.Duration, err error) {
	p.unmarked = !marked(run)
	archived, recordErr := a.recordEnding(ctx, run)
	if recordErr != nil && !archived { // nothing can be read
		p.badSince, p.failedSince = time.Time{}, time.Time{} // what was not seen in between is not known
		return 0, recordErr
	}
	tasks, err := a.watch.tasks(ctx, run)
	if err != nil {
		p.badSince = time.Time{}
		return 0, errors.Join(recordErr, err)
	}
	if marked(run) || p.refused {
		rest := min(recordSettle-time.Since(run.completed), recordSettle)
		return max(rest, 0), errors.Join(recordErr, a.keepLinks(ctx, run, tasks))
	}
	for _, t := range tasks {
		if !t.over() {
			return stuckPoll, recordErr // such as one that is being cancelled. Its end or its deletion is a change, for which nobody has to wait so long
		}
	}
	v, absent, captured, err := a.inspect(ctx, run, tasks, archived)
	switch {
	case err == nil:
		p.failedSince = time.Time{}
	case archived && !p.failedSince.IsZero() && time.Since(p.failedSince) >= unreadableAfter:
		a.log.Warn("the logs of a run cannot be read, and that is said of it soon", append(run.key().attrs(), "since", p.failedSince, "error", err)...)
		v, captured = unreadable(tasks), true
	default:
		p.badSince = time.Time{}
		if p.failedSince.IsZero() {
			p.failedSince = time.Now()
		}
		return 0, errors.Join(recordErr, err)
	}
	switch {
	case !captured, v.standing < damaged:
	case v.standing == growing:
		p.badSince = time.Time{}
		return p.poll(), recordErr
	case p.badSince.IsZero():
		p.badSince = time.Now()
		return p.poll(), recordErr
	case time.Since(p.badSince) < certainAfter:
		return p.poll(), recordErr
	}
	if !captured {
		v = verdict{}
	}
	if len(absent) > 0 {
		if err := a.recordMissed(ctx, run, archived, absent); err != nil {
			return 0, errors.Join(recordErr, err, a.tell(ctx, run, v))
		}
		return firstPoll, recordErr // then it is told as every reader of the archive sees it
	}
	// The marks come last: a run that has them is not looked at again.
	if err := errors.Join(recordErr, a.tell(ctx, run, v)); err != nil {
		return 0, err
	}
	if p.refused, err = a.mark(ctx, run, tasks, v); err != nil || !captured {
		return 0, err
	}
	return recordSettle, nil
}

// link gives those objects their address for which a ticket was given.
func (a *annotator) link(ctx context.Context, p *pendingRun) error {
	a.mu.Lock()
	var links []*runObject
	for _, o := range p.links {
		links = append(links, o)
	}
	a.mu.Unlock()
	for _, o := range links {
		if _, _, err := a.annotateOrSkip(ctx, o, map[string]string{contract.LogsAnnotation: a.address(o)}); err != nil {
			return err
		}
		a.mu.Lock()
		if p.links[o.UID] == o {
			delete(p.links, o.UID)
		}
		a.mu.Unlock()
	}
	return nil
}

// recordGone records how a run ended that has been deleted since.
func (a *annotator) recordGone(ctx context.Context, p *pendingRun, gone *runObject) error {
	if gone.over() {
		if _, err := a.recordEnding(ctx, gone); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p.gone = nil
	return nil
}

// clean takes from a run that has not ended, and from its TaskRuns, what is not true of them.
func (a *annotator) clean(ctx context.Context, run *runObject, tasks []*runObject) error {
	for _, o := range append(tasks[:len(tasks):len(tasks)], run) {
		if o.over() {
			continue
		}
		if _, _, err := a.annotateOrSkip(ctx, o, foreign(o)); err != nil {
			return err
		}
	}
	return nil
}

// keepLinks gives a run that is done its address again, and its TaskRuns: since when it was done the address was another, or none.
func (a *annotator) keepLinks(ctx context.Context, run *runObject, tasks []*runObject) error {
	if a.pageURL == "" {
		return nil
	}
	for _, o := range append(tasks[:len(tasks):len(tasks)], run) {
		if !marked(o) {
			continue
		}
		if _, _, err := a.annotateOrSkip(ctx, o, map[string]string{contract.LogsAnnotation: a.address(o)}); err != nil {
			return err
		}
	}
	return nil
}

// recordEnding puts how a run ended into its run.json, and says whether there is one: a run without has nothing in the archive, since the first ticket is given after it is written. One that is damaged stays as it is;
// inspect finds it, too.
//
// The ticket service writes the same object, at each first ticket of a pod, as the run is when it asks for it. Once the run has ended, that has the same ending. A request that asked just before the end and writes after
// what is written here puts the older state back: until the next look, which is at the latest recordSettle after the end. It is left so if no replica runs until then.
// Two replicas write the same, or one of them writes what a ticket has put meanwhile back to what it was a moment before: labels that somebody has changed just then.
func (a *annotator) recordEnding(ctx context.Context, run *runObject) (bool, error) {
	key := run.archived().RunKey()
	have, err := a.readRun(ctx, key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, errDamaged):
		return true, nil
	case err != nil:
		return false, err
	}
	want := have
	run.in(&want)
	if want.State == have.State && want.Reason == have.Reason && want.Started.Equal(have.Started) && want.Completed.Equal(have.Completed) {
		return true, nil
	}
	body, err := record.Encode(want)
	if err != nil {
		return true, err
	}
	if err := a.store.Put(ctx, key, body); err != nil {
		return true, fmt.Errorf("record the run's state: %w", err)
	}
	return true, nil
}

// errDamaged says that a record is there and cannot be read.
var errDamaged = errors.New("the record is damaged")

// readRun reads a run.json.
func (a *annotator) readRun(ctx context.Context, key string) (record.Run, error) {
	r, err := a.store.Get(ctx, key)
	if err != nil {
		return record.Run{}, err
	}
	defer r.Close()
	body, err := io.ReadAll(io.LimitReader(r, maxRunRecord))
	if err != nil {
		return record.Run{}, fmt.Errorf("read %s: %w", key, err)
	}
	run, err := record.Decode[record.Run](body)
	if err != nil {
		return record.Run{}, fmt.Errorf("read %s: %w: %w", key, errDamaged, err)
	}
	return run, nil
}

// inspect holds a run that has ended against the archive. It returns the pods of which the archive
// has nothing though it should, and says whether anything of the run was captured or should have
// been.
func (a *annotator) inspect(
	ctx context.Context, run *runObject, tasks []*runObject, archived bool,
) (v verdict, absent []missedPod, captured bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout/2) // so that there is time to say what comes of it
	defer cancel()
	tree := &backend.Tree{}
	if archived {
		if tree, err = a.archive.Tree(ctx, backend.Target{Run: run.archived()}); err != nil {
			return verdict{}, nil, false, err
		}
		if v = judge(tree, nil, tree.At); v.standing == growing { // it is looked at again anyway
			return v, nil, true, nil
		}
	}
	var label namespaceLabel // asked for where the archive does not say whether the run is ours
	if !archived {
		if label, err = a.labelOf(ctx, run.Namespace); err != nil {
			return verdict{}, nil, false, err
		}
	}
	absent, err = a.findMissed(ctx, run, tasks, tree, archived || label.on)
	if err != nil || !archived && !ours(absent, label) {
		return verdict{}, nil, false, err
	}
	v = judge(tree, absent, tree.At)
	if archived && tree.Record == nil {
		v.standing = max(v.standing, damaged)
		v.findings = append(v.findings, finding{where: "run.json", standing: damaged, why: "it cannot be read"})
	}
	return v, absent, true, nil
}

// capturesAny says whether any container of an injected pod is captured.
func capturesAny(pod *corev1.Pod) bool {
	for _, c := range containers(pod) {
		if c.Captured {
			return true
		}
	}
	return false
}
