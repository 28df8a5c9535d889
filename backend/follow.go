package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"time"

	"github.com/shiplog-dev/shiplog/internal/layout"
)

// FollowInterval is how often Follow and FollowRun look for more. A line is in the store about a second after it was printed.
const FollowInterval = 500 * time.Millisecond

// Container reads the state of one container's log, without the rest of its run: one LIST for each 1000 segments, and a GET of its seal. Where it has none, another LIST asks when its pod was last heard of;
// where it has no segment either, it costs what Tree costs for its pod. A container of which nothing is known is an error that wraps fs.ErrNotExist.
func (a *Archive) Container(ctx context.Context, key layout.Container) (Container, error) {
	return a.one(ctx, key, a.lease(ctx, key.Namespace))
}

// one is Container, paid for by l.
func (a *Archive) one(ctx context.Context, key layout.Container, l *lease) (Container, error) {
	if err := key.Validate(); err != nil {
		return Container{}, err
	}
	if err := a.admit(ctx, key.Run); err != nil {
		return Container{}, err
	}
	p := Pod{Key: key.Pod}
	c := Container{Key: key, Name: key.Container}
	sealed, err := a.listContainer(ctx, &c, &p, l)
	if err != nil {
		return Container{}, err
	}
	if len(c.Segments) == 0 { // why that is, the rest of the pod says
		return a.containerInTree(ctx, key, l)
	}
	if err := a.judgeOne(ctx, &c, &p, sealed, l); err != nil {
		return Container{}, err
	}
	return c, nil
}

// containerInTree reads a container by way of its pod.
func (a *Archive) containerInTree(ctx context.Context, key layout.Container, l *lease) (Container, error) {
	tree, err := a.tree(ctx, Target{Run: key.Run, TaskRun: key.TaskRun, PodUID: key.PodUID}, l, nil)
	if err != nil {
		return Container{}, err
	}
	for _, tr := range tree.TaskRuns {
		for _, p := range tr.Pods {
			for _, c := range p.Containers {
				if c.Name == key.Container {
					return c, nil
				}
			}
		}
	}
	return Container{}, nothingUnder(key.Prefix())
}

// listContainer adds the objects of a container behind its last segment, for which it pays, and says whether there is a seal.
func (a *Archive) listContainer(ctx context.Context, c *Container, p *Pod, l *lease) (sealed bool, err error) {
	after := ""
	if n := len(c.Segments); n > 0 {
		after = c.Key.SegmentKey(c.Segments[n-1])
	}
	for e, err := range a.store.List(ctx, c.Key.Prefix(), "", after, 0) {
		if err != nil {
			return false, fmt.Errorf("list the container: %w", err)
		}
		key, err := layout.ParseKey(e.Key)
		if err != nil || key.Container != c.Key {
			continue // not ours; a later version may put other objects there
		}
		p.heard(e.LastModified)
		switch key.Kind {
		case layout.KindSegment:
			if len(c.Segments) >= maxSegments {
				c.over = overSegments
				continue
			}
			if err := l.take(segmentCost); err != nil {
				return false, fmt.Errorf("list the container: %w", err)
			}
			c.Segments = append(c.Segments, key.Segment)
			c.Stored += e.Size
		case layout.KindSeal:
			sealed = true
		}
	}
	return sealed, nil
}

func (p *Pod) heard(t time.Time) {
	if t.After(p.LastSeen) {
		p.LastSeen = t
	}
}

// judgeOne reads what a container's status depends on beside its segments, and pays for it.
func (a *Archive) judgeOne(ctx context.Context, c *Container, p *Pod, sealed bool,
	l *lease) error {
	if sealed {
		if err := a.readSeal(ctx, c, 0, l); err != nil {
			return err
		}
	}
	c.judge(p, a.now())
	if c.Status == Verified || c.Status == Gaps {
		return nil // whether the pod is alive does not matter
	}
	if err := a.lookAgain(ctx, c, p); err != nil {
		return err
	}
	if err := a.listen(ctx, p); err != nil {
		return err
	}
	c.judge(p, a.now())
	return nil
}

// lookAgain lists a container whose segments do not reach as far as its seal says. The seal is read
// behind the list, whose pages are not of one moment either: what is missing may have come since.
func (a *Archive) lookAgain(ctx context.Context, c *Container, p *Pod) error {
	if c.Seal == nil || c.Status != Damaged || c.over != "" {
		return nil
	}
	again := Container{Key: c.Key}
	if _, err := a.listContainer(ctx, &again, p, &lease{}); err != nil { // as much as before
		return err
	}
	c.Segments, c.covered, c.early, c.Stored, c.over = again.Segments, nil, nil, again.Stored,
		again.over
	c.judge(p, a.now())
	return nil
}

// listen finds out whether a pod of which was nothing heard is silent or gone: its sign of life
// says so, and where its shipper has others to upload, these do.
func (a *Archive) listen(ctx context.Context, p *Pod) error {
	silent := func(d time.Duration) bool { return a.now().Sub(p.LastSeen) >= d }
	if !silent(AliveWithin / 2) {
		return nil
	}
	ask := func(prefix string, most int) error {
		for e, err := range a.store.List(ctx, prefix, "", "", most) {
			if err != nil {
				return fmt.Errorf("list the pod: %w", err)
			}
			if _, err := layout.ParseKey(e.Key); err == nil {
				p.heard(e.LastModified)
			}
		}
		return nil
	}
	if err := ask(p.Key.AliveKey(), 1); err != nil || !silent(AliveWithin) {
		return err
	}
	return ask(p.Key.Prefix(), 0)
}

// Follow yields a container's lines as they are archived, and then says nothing more: when it is sealed, or its pod is not heard of any more, or o wants no more. c is kept up to date, and has the final state then.
// Each FollowInterval costs a LIST. The end of ctx ends it with ctx's error.
func (a *Archive) Follow(ctx context.Context, c *Container, o LogOptions) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		p := Pod{Key: c.Key.Pod, LastSeen: c.heard}
		l := a.lease(ctx, c.Key.Namespace) // for what comes
		r := a.begin(*c, o)
		for begun := false; ; {
			more, err := r.once(ctx, *c, yield)
			var busy *BusyError
			switch {
			case errors.As(err, &busy) && begun: // it goes on when there is memory again
			case err != nil:
				yield(Line{}, err)
				return
			case !more:
				return
			case c.Status != Running:
				r.check(*c, yield)
				return
			default:
				begun = true
			}
			if err := o.pause(ctx, FollowInterval); err != nil {
				yield(Line{}, err)
				return
			}
			err = a.refreshOrNot(ctx, c, &p, l)
			if errors.As(err, &busy) { // it goes on when there is memory again
				continue
			}
			if err != nil {
				yield(Line{}, err)
				return
			}
		}
	}
}

// once is read, and holds what that takes no longer than it lasts: a follow waits most of the time.
func (r *reading) once(ctx context.Context, c Container, yield func(Line, error) bool) (more bool,
	err error) {
	done, err := r.archive.hold(c.Key.Namespace, readCost)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", c.Key.Prefix(), err)
	}
	defer done()
	r.blocks = r.archive.take()
	defer r.archive.spare.Put(r.blocks)
	return r.read(ctx, c, yield), nil
}

// refreshOrNot is refresh. With an error, the container is as it was, and so is what l holds.
func (a *Archive) refreshOrNot(ctx context.Context, c *Container, p *Pod, l *lease) error {
	now, come := *c, &lease{of: l.of, namespace: l.namespace}
	if err := a.refresh(ctx, &now, p, come); err != nil {
		come.end()
		return err
	}
	*c = now
	l.join(come)
	return nil
}

// refresh looks for what has come to a container, and pays for it.
func (a *Archive) refresh(ctx context.Context, c *Container, p *Pod, l *lease) error {
	sealed, err := a.listContainer(ctx, c, p, l)
	if err != nil {
		return err
	}
	if sealed || len(c.Segments) == 0 || len(c.early) > 0 {
		// All of it: of a shipper that had lost its state, segments are before those that were there.
		whole, err := a.one(ctx, c.Key, &lease{}) // l has paid for nearly all of it
		if err != nil {
			return err
		}
		if whole.Kind == "" {
			whole.Kind = c.Kind
		}
		*c = whole
		p.heard(c.heard)
		return nil
	}
	return a.judgeOne(ctx, c, p, false, l)
}

// pause waits until it is time to look again, or returns ctx's error.
func (o LogOptions) pause(ctx context.Context, d time.Duration) error {
	if o.Idle != nil {
		if err := o.Idle(); err != nil {
			return err
		}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// Place says which container of a run a line is of.
type Place struct {
	TaskRun   TaskRun
	Retry     int // which of the TaskRun's pods, from 0
	Pod       Pod
	Container Container
}

// FollowRun yields the lines of a target's containers for which choose is true, as they are archived. It ends when the run has ended, and all of them are sealed or not heard of any more; of a run whose end nobody has recorded, when that is so of
// all its pods for AliveWithin. A state is yielded for each container when it has its final one, with
// a line of no stream.
//
// Each FollowInterval costs a LIST for each 1000 objects of the run, and a GET for each record that
// is new or has changed, however many follow the same target here at the same time. What is yielded
// is theirs too, and not to be changed.
func (a *Archive) FollowRun(ctx context.Context, target Target, choose func(TaskRun, Container) bool, o LogOptions) iter.Seq2[PlacedLine, error] {
	return func(yield func(PlacedLine, error) bool) {
		f, err := a.join(ctx, target)
		if err != nil {
			yield(PlacedLine{}, err)
			return
		}
		defer f.leave()
		r := &runFollow{
			archive: a, followed: f, choose: choose, yield: yield,
			readings: map[layout.Container]*reading{}, ended: map[layout.Container]bool{},
		}
		defer func() { r.now.drop() }()
		for {
			running, more := r.look(ctx, o)
			if !more {
				return
			}
			if !running {
				return
			}
			o.None, o.Tail = false, 0 // of what comes from now on, nothing was there
			if err := o.pause(ctx, time.Until(r.now.done.Add(FollowInterval))); err != nil {
				yield(PlacedLine{}, err)
				return
			}
		}
	}
}

// runFollow is what FollowRun knows from one look to the next.
type runFollow struct {
	archive  *Archive
	followed *followed
	choose   func(TaskRun, Container) bool
	yield    func(PlacedLine, error) bool
	readings map[layout.Container]*reading
	ended    map[layout.Container]bool
	now      *look // the last one, of an error too
	begun    bool  // lines of one look were read
}

// look yields what has come to the run. It says whether the run still runs, and whether to go on.
func (f *runFollow) look(ctx context.Context, o LogOptions) (running, more bool) {
	a := f.archive
	done := func() {}
	var err error
	if f.now, err = f.followed.next(ctx, f.now); err == nil {
		done, err = a.hold(f.followed.target.Run.Namespace, readCost)
	}
	var busy *BusyError
	if errors.As(err, &busy) && f.begun { // it goes on when there is memory again
		return true, true
	}
	if err != nil {
		f.yield(PlacedLine{}, err)
		return false, false
	}
	defer done()
	f.begun = true
	shared := a.take() // only one log is read at a time
	defer a.spare.Put(shared)
	tree := f.now.tree
	running = !tree.Over(a.now())
	for place := range tree.Containers() {
		c := place.Container
		if f.ended[c.Key] || !f.choose(place.TaskRun, c) {
			continue
		}
		r := f.readings[c.Key]
		if r == nil {
			r = a.begin(c, o)
			f.readings[c.Key] = r
		}
		r.blocks = shared
		show := func(l Line, err error) bool { return f.yield(PlacedLine{place, l}, err) }
		stopped := false
		more := r.read(ctx, c, func(l Line, err error) bool {
			stopped = !show(l, err) || err != nil
			return !stopped
		})
		if stopped {
			return false, false
		}
		if more && c.Status == Running {
			running = true
			continue
		}
		f.ended[c.Key] = true
		if more {
			r.check(c, show)
		}
		delete(f.readings, c.Key)
		if !f.yield(PlacedLine{Place: place}, nil) {
			return false, false
		}
	}
	return running, true
}

// RunLines yields the lines of a tree's containers for which choose is true, one log after the other, in the way of FollowRun.
func (a *Archive) RunLines(ctx context.Context, tree *Tree, choose func(TaskRun, Container) bool, o LogOptions) iter.Seq2[PlacedLine, error] {
	return func(yield func(PlacedLine, error) bool) {
		for place := range tree.Containers() {
			if !choose(place.TaskRun, place.Container) {
				continue
			}
			for l, err := range a.Lines(ctx, place.Container, o) {
				if !yield(PlacedLine{place, l}, err) {
					return
				}
			}
			if !yield(PlacedLine{Place: place}, nil) {
				return
			}
		}
	}
}

// PlacedLine is a line of one of several containers. Without a stream, it says that its container's log has ended.
type PlacedLine struct {
	Place
	Line Line
}

// Containers yields the tree's containers in its order.
func (t *Tree) Containers() iter.Seq[Place] {
	return func(yield func(Place) bool) {
		for _, tr := range t.TaskRuns {
			for i, p := range tr.Pods {
				for _, c := range p.Containers {
					if !yield(Place{tr, i, p, c}) {
						return
					}
				}
			}
		}
	}
}

// Over says whether no more pods are to be expected: the run's record says that it has ended, or nothing was heard of any of its pods for AliveWithin.
func (t *Tree) Over(now time.Time) bool {
	if t.Record != nil && !t.Record.Completed.IsZero() {
		return true
	}
	for _, tr := range t.TaskRuns {
		for _, p := range tr.Pods {
			if now.Sub(p.LastSeen) < AliveWithin {
				return false
			}
		}
	}
	return true
}

// nothingUnder says that there is no object.
func nothingUnder(prefix string) error {
	return fmt.Errorf("the archive holds nothing under %s: %w", prefix, fs.ErrNotExist)
}
