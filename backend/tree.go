package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// Status says how far a container's log can be trusted.
type Status string

// The states of a log.
const (
	// Verified: sealed, and every byte that the container printed is there. The digest is checked when the log is read.
	Verified Status = "verified"
	// Gaps: sealed, and every byte that the seal counts is there, but the container printed more: the log says where.
	Gaps Status = "gaps"
	// Running: not sealed, and the pod has been heard of within the last AliveWithin.
	Running Status = "running"
	// Partial: not sealed, and the pod is not heard of any more. What is there ends at Container.LastSeen.
	Partial Status = "partial"
	// Damaged: segments are missing, or are not what the seal says.
	Damaged Status = "damaged"
	// NotCaptured: shiplog left the container alone, as it does with many sidecars.
	NotCaptured Status = "not captured"
	// Missed: shiplog did not capture a step that it should have. Its log was in its pod alone.
	Missed Status = "missed"
)

// AliveWithin is how long after its last sign of life a pod counts as running. Shippers give one each minute.
const AliveWithin = 3 * time.Minute

// Tree is what the archive holds of a run.
type Tree struct {
	Run      layout.Run  `json:"run"`
	Record   *record.Run `json:"record,omitempty"` // nil if run.json is missing
	TaskRuns []TaskRun   `json:"taskRuns"`         // in the order of their start
	At       time.Time   `json:"at"`               // when it was read, by the store's clock

	target Target
	stamp  stamp // of Record
}

// TaskRun is one TaskRun of a run. Each retry is another pod.
type TaskRun struct {
	Name         string `json:"name"`
	PipelineTask string `json:"pipelineTask,omitempty"`
	Pods         []Pod  `json:"pods"` // oldest first

	unique string // see UniqueLabel; "" before Tree.Sort
}

// Label is what a person calls the TaskRun: the pipeline's task, if there is one. The TaskRuns of a matrix have the same.
func (t TaskRun) Label() string { return cmp.Or(t.PipelineTask, t.Name) }

// UniqueLabel is Label where no other TaskRun of the tree could be meant, and otherwise the TaskRun's name: no two TaskRuns of a tree have the same. It is for names of files, and for what stands before lines of several logs.
func (t TaskRun) UniqueLabel() string { return cmp.Or(t.unique, t.Label()) }

// Pod is one pod of a TaskRun.
type Pod struct {
	Key        layout.Pod  `json:"-"`
	Record     *record.Pod `json:"record,omitempty"` // nil if pod.json is missing
	LastSeen   time.Time   `json:"lastSeen"`         // when the store last got something of the pod
	Containers []Container `json:"containers"`       // in the pod's order

	stamp stamp // of Record
}

// Container is one container's log.
type Container struct {
	Key      layout.Container     `json:"-"`
	Name     string               `json:"name"`
	Kind     record.ContainerKind `json:"kind,omitempty"`
	Status   Status               `json:"status"`
	Why      string               `json:"why,omitempty"` // explains a status, or why a log is empty
	Bytes    int64                `json:"bytes"`         // as printed, as far as archived
	Archive  int64                `json:"archiveBytes"`  // with the lines' prefixes
	Stored   int64                `json:"storedBytes"`   // compressed, in the store
	Lines    int64                `json:"lines"`
	LastSeen time.Time            `json:"lastSeen,omitzero"` // time of the last line
	// Estimated says that Bytes and Lines count some twice: a shipper that had lost its state shipped again what overlaps, and numbered it anew.
	Estimated bool             `json:"estimated,omitempty"`
	Waiting   *record.Waiting  `json:"waiting,omitempty"` // why the container could not start, if that is known
	Seal      *record.Seal     `json:"seal,omitempty"`
	Segments  []layout.Segment `json:"-"` // without those that others cover, in order

	over    string           // what of it is not read, since it is more than a log can have
	covered []layout.Segment // by Segments: read where one of these is corrupt
	early   []layout.Segment // behind a hole that the shipper is at: not read yet
	starts  []position       // where each of Segments begins
	badSeal string           // why there is a seal and it is not in Seal
	heard   time.Time        // when the store last got something of the pod, as far as was looked at

	sealStamp, waitingStamp stamp // of Seal, or badSeal, and of Waiting
}

// Label is what a person calls the container: a step without its prefix.
func (c Container) Label() string {
	if c.isStep() {
		return strings.TrimPrefix(c.Name, stepPrefix)
	}
	return c.Name
}

// stepPrefix begins the names of steps' containers, and of no others.
const stepPrefix = "step-"

// isStep also knows a step by its name, where the pod's record was not read.
func (c Container) isStep() bool {
	return c.Kind == record.Step || c.Kind == "" && strings.HasPrefix(c.Name, stepPrefix)
}

// recordConcurrency is how many small objects are read at once.
const recordConcurrency = 16

// What a tree holds at most, far beyond what any run has: whoever can write under a pod's prefix can make as many objects as they like, and must not fill the memory of all who read.
const (
	maxSegments   = 500_000 // of a run: some 100 MB. A step that prints all the time makes one in 5 s, 17,000 a day
	maxContainers = record.MaxContainers
	maxRecords    = 64 << 20 // bytes of a run's records
)

var (
	overSegments   = fmt.Sprintf("there are more than %d segments: those of this log are not all read", maxSegments)
	overContainers = fmt.Sprintf("the pod has objects of more than %d containers: this one and those behind it are not read", maxContainers)
	overRecords    = fmt.Sprintf("seal.json is not read: the run's records have more than %d bytes together", maxRecords)
)

// listed is what the listing of a run holds.
type listed struct {
	run             stamp // of run.json
	pods            map[layout.Pod]*Pod
	containers      map[layout.Container]int // where in their pods' Containers they are
	sealed, waiting map[layout.Container]stamp
	records         map[layout.Pod]stamp // of pod.json
	segments        int
	recordBytes     int64
	lease           *lease
}

func (l *listed) pod(key layout.Pod) *Pod {
	if l.pods[key] == nil {
		l.pods[key] = &Pod{Key: key}
	}
	return l.pods[key]
}

// container returns nil where the pod has more than it can have; the last of those that it has says so.
func (l *listed) container(p *Pod, key layout.Container) *Container {
	if i, ok := l.containers[key]; ok {
		return &p.Containers[i]
	}
	if len(p.Containers) > maxContainers {
		return nil
	}
	l.containers[key] = len(p.Containers)
	p.Containers = append(p.Containers, Container{Key: key, Name: key.Container})
	c := &p.Containers[len(p.Containers)-1]
	if len(p.Containers) > maxContainers {
		c.over = overContainers
	}
	return c
}

// fits says whether another record can be read.
func (l *listed) fits(e objectstore.Entry) bool {
	l.recordBytes += e.Size
	return l.recordBytes <= maxRecords
}

// add takes note of an object, and pays for it.
func (l *listed) add(key layout.Key, e objectstore.Entry) error {
	entries := len(l.pods) + len(l.containers)
	l.note(key, e)
	cost := int64(len(l.pods)+len(l.containers)-entries) * entryCost
	switch {
	case key.Kind != layout.KindSegment:
		cost += recordCost * min(e.Size, maxRecords)
	case l.segments <= maxSegments:
		cost += segmentCost
	}
	return l.lease.take(cost)
}

// note takes note of an object.
func (l *listed) note(key layout.Key, e objectstore.Entry) {
	p := l.pod(key.Container.Pod)
	p.heard(e.LastModified)
	if key.Kind == layout.KindPod {
		if l.fits(e) {
			l.records[p.Key] = stampOf(e)
		}
		return
	}
	if key.Kind != layout.KindSeal && key.Kind != layout.KindWaiting && key.Kind != layout.KindSegment {
		return
	}
	c := l.container(p, key.Container)
	if c == nil || c.over == overContainers {
		return
	}
	switch key.Kind {
	case layout.KindSeal:
		if l.fits(e) {
			l.sealed[key.Container] = stampOf(e)
		} else {
			c.badSeal = overRecords
		}
	case layout.KindWaiting:
		if l.fits(e) {
			l.waiting[key.Container] = stampOf(e)
		}
	case layout.KindSegment:
		if l.segments++; l.segments > maxSegments {
			c.over = overSegments
			return
		}
		c.Segments = append(c.Segments, key.Segment)
		c.Stored += e.Size
	}
}

// stamp tells an object from what was there under its name before, as far as a LIST tells them
// apart. The zero value is of no object.
type stamp struct {
	size, modified int64
	tag            string
}

func stampOf(e objectstore.Entry) stamp {
	return stamp{e.Size, e.LastModified.UnixNano(), e.ETag}
}

// unlisted is the stamp of a record that is not among what was listed, and will not change.
var unlisted = stamp{tag: "unlisted"}

// Tree reads what there is of a target: one LIST for each 1000 objects, and a GET for run.json and for each pod's and container's record. An archive without any object
// of the run is an error that wraps fs.ErrNotExist.
//
// Where the process's memory is bounded (GOMEMLIMIT), trees share a part of it, and one that does not
// fit now is a *BusyError. A tree holds its part until ctx ends, so ctx must be no longer than its use.
func (a *Archive) Tree(ctx context.Context, target Target) (*Tree, error) {
	return a.tree(ctx, target, a.lease(ctx, target.Run.Namespace), nil)
}

// Again reads the target of one of the Archive's trees anew. It is Tree, but of the records only
// those are read that are new or have changed. The others are the earlier tree's.
func (a *Archive) Again(ctx context.Context, earlier *Tree) (*Tree, error) {
	return a.tree(ctx, earlier.target, a.lease(ctx, earlier.Run.Namespace), earlier)
}

// tree is Tree, or with an earlier one Again, paid for by l.
func (a *Archive) tree(ctx context.Context, target Target, l *lease, earlier *Tree) (*Tree, error) {
	if err := a.admit(ctx, target.Run); err != nil {
		return nil, err
	}
	tree := &Tree{Run: target.Run, target: target}
	all := listed{
		pods: map[layout.Pod]*Pod{}, containers: map[layout.Container]int{},
		sealed: map[layout.Container]stamp{}, waiting: map[layout.Container]stamp{},
		records: map[layout.Pod]stamp{}, lease: l,
	}
	found := false
	for e, err := range a.store.List(ctx, target.Prefix(), "", "", 0) {
		if err != nil {
			return nil, fmt.Errorf("list run: %w", err)
		}
		key, err := layout.ParseKey(e.Key)
		if err != nil {
			continue // not ours; a later version may put other objects there
		}
		found = true
		if key.Kind == layout.KindRun {
			all.run = stampOf(e)
		} else if target.holds(key.Container.Pod) {
			if err := all.add(key, e); err != nil {
				return nil, fmt.Errorf("list run: %w", err)
			}
		}
	}
	if !found {
		return nil, nothingUnder(target.Prefix())
	}

	if earlier == nil {
		earlier = &Tree{}
	}
	before := map[layout.Pod]*Pod{}
	for _, tr := range earlier.TaskRuns {
		for i := range tr.Pods {
			before[tr.Pods[i].Key] = &tr.Pods[i]
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(recordConcurrency)
	group.Go(func() error { return a.readRun(ctx, tree, all.run, earlier, l) })
	for key, p := range all.pods {
		group.Go(func() error { return a.readPod(ctx, p, &all, before[key]) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	tree.arrange(all.pods)
	tree.At = a.now()
	return tree, nil
}

// readRun reads run.json, which is not among the objects of a part of a run.
func (a *Archive) readRun(ctx context.Context, t *Tree, now stamp, earlier *Tree, l *lease,
) (err error) {
	part := t.target.TaskRun != ""
	if part {
		now = unlisted
	}
	t.Record, t.stamp, err = reread(ctx, a.store, t.Run.RunKey(), now, earlier.Record,
		earlier.stamp, l)
	if part && (t.Record == nil || t.Record.Completed.IsZero()) {
		t.stamp = stamp{} // it will change
	}
	return err
}

// readPod reads the records of a pod and of its containers, and judges their logs.
func (a *Archive) readPod(ctx context.Context, p *Pod, all *listed, earlier *Pod) (err error) {
	if earlier == nil {
		earlier = &Pod{}
	}
	p.Record, p.stamp, err = reread(ctx, a.store, p.Key.PodKey(), all.records[p.Key],
		earlier.Record, earlier.stamp, all.lease)
	if err != nil {
		return err
	}
	if p.Record != nil && p.Record != earlier.Record {
		*p.Record = known(*p.Record, p.Key)
	}
	p.order()
	before := make(map[string]*Container, len(earlier.Containers))
	for i := range earlier.Containers {
		before[earlier.Containers[i].Name] = &earlier.Containers[i]
	}
	sealed := make([]bool, len(p.Containers)) // since then
	for i := range p.Containers {
		c := &p.Containers[i]
		was := before[c.Name]
		if was == nil {
			was = &Container{}
		}
		switch now := all.sealed[c.Key]; {
		case now == stamp{}:
		case now == was.sealStamp:
			c.Seal, c.badSeal, c.sealStamp = was.Seal, was.badSeal, now
		default:
			if err := a.readSeal(ctx, c, now.size, all.lease); err != nil {
				return err
			}
			if sealed[i] = c.Seal != nil || c.badSeal != ""; sealed[i] {
				c.sealStamp = now
			}
		}
		if len(c.Segments) == 0 {
			c.Waiting, c.waitingStamp, err = reread(ctx, a.store, c.Key.WaitingKey(),
				all.waiting[c.Key], was.Waiting, was.waitingStamp, all.lease)
			if err != nil {
				return err
			}
		}
	}
	for i := range p.Containers { // now that all that is known of the pod is read
		p.Containers[i].judge(p, a.now())
		if !sealed[i] {
			continue // all that a seal of before counts was there before the list
		}
		if err := a.lookAgain(ctx, &p.Containers[i], p); err != nil {
			return err
		}
	}
	return nil
}

// reread returns a record as it was read before where its object has the same stamp, and otherwise
// as it is now, with the stamp of what was read. Without an object, and where that is no record, it
// is nil.
func reread[T record.Run | record.Pod | record.Waiting](ctx context.Context, store Store,
	key string, now stamp, was *T, before stamp, l *lease) (*T, stamp, error) {
	switch now {
	case before:
		return was, now, nil
	case stamp{}:
		return nil, now, nil
	}
	r, err := readListed[T](ctx, store, key, now.size, l)
	switch {
	case err == nil:
		return &r, now, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, stamp{}, nil
	}
	return nil, now, ignoreAbsent(err)
}

// readSeal reads a container's seal, if it is one. So many bytes of it are paid for.
func (a *Archive) readSeal(ctx context.Context, c *Container, paid int64, l *lease) error {
	s, err := readListed[record.Seal](ctx, a.store, c.Key.SealKey(), paid, l)
	var bad *recordError
	switch {
	case err == nil:
		c.Seal = &s
	case errors.As(err, &bad):
		c.badSeal = bad.Error()
	}
	return ignoreAbsent(err)
}

// ignoreAbsent leaves errors of the store: a record that is not there, or that is not one, leaves out what it would have said.
func ignoreAbsent(err error) error {
	var bad *recordError
	if errors.Is(err, fs.ErrNotExist) || errors.As(err, &bad) {
		return nil
	}
	return err
}

// Prefix is what the keys of all of the target's objects begin with, and no others. Of a part of a run, run.json is not among them.
func (t Target) Prefix() string {
	switch {
	case t.TaskRun == "":
		return t.Run.Prefix()
	case t.PodUID == "":
		return t.Run.Prefix() + t.TaskRun + "/"
	default:
		return layout.Pod{Run: t.Run, TaskRun: t.TaskRun, PodUID: t.PodUID}.Prefix()
	}
}

// holds says whether a pod belongs to the target.
func (t Target) holds(p layout.Pod) bool {
	return (t.TaskRun == "" || t.TaskRun == p.TaskRun) && (t.PodUID == "" || t.PodUID == p.PodUID)
}

// known leaves of a pod's record what can be so. A tenant can overwrite the record of its own pods, and what it names ends up in names of files: what the path says counts, and what is no name of Kubernetes is left out.
func known(r record.Pod, key layout.Pod) record.Pod {
	r.Namespace, r.TaskRun, r.PodUID = key.Namespace, key.TaskRun, key.PodUID
	if layout.CheckName("pod", r.PodName) != nil {
		r.PodName = ""
	}
	if layout.CheckName("task", r.PipelineTask) != nil {
		r.PipelineTask = ""
	}
	if layout.CheckUID("TaskRun UID", r.TaskRunUID) != nil {
		r.TaskRunUID = ""
	}
	seen := map[string]bool{}
	r.Containers = slices.DeleteFunc(r.Containers, func(c record.Container) bool {
		again := seen[c.Name]
		seen[c.Name] = true
		return again || layout.CheckName("container", c.Name) != nil
	})
	return r
}

// order puts the containers in the order of the pod's record, which also names those that have no object.
func (p *Pod) order() {
	if p.Record == nil {
		return
	}
	listed := map[string]Container{}
	for _, c := range p.Containers {
		listed[c.Name] = c
	}
	var ordered []Container
	for _, r := range p.Record.Containers {
		c, ok := listed[r.Name]
		if !ok {
			c = Container{Key: layout.Container{Pod: p.Key, Container: r.Name}, Name: r.Name}
		}
		delete(listed, r.Name)
		c.Kind = r.Kind
		if !r.Captured {
			c.Status, c.Why = NotCaptured, r.Skipped
		}
		if r.Missed() {
			c.Status, c.Why = Missed, whyMissed(r.Skipped, cmp.Or(p.Record.PodName, p.Key.PodUID))
		}
		ordered = append(ordered, c)
	}
	for _, c := range p.Containers {
		if _, ok := listed[c.Name]; ok {
			ordered = append(ordered, c)
		}
	}
	p.Containers = ordered
}

// judge finds the container's status from its segments and its seal.
func (c *Container) judge(p *Pod, now time.Time) {
	c.heard = p.LastSeen
	nothing := len(c.Segments) == 0 && c.Seal == nil && c.badSeal == "" && c.over == ""
	if (c.Status == NotCaptured || c.Status == Missed) && nothing {
		return
	}
	c.Why = ""
	segments, covered, whole := contiguous(slices.Concat(c.Segments, c.covered, c.early))
	// Several may read the same tree, and one of them add what comes: not to the others' array.
	c.Segments, c.covered, c.early = slices.Clip(segments), slices.Clip(covered), nil
	hole, alive := "", now.Sub(p.LastSeen) < AliveWithin
	if i := slices.IndexFunc(segments,
		func(s layout.Segment) bool { return s.Offset > whole }); i >= 0 {
		hole = fmt.Sprintf("%d archive bytes are missing at offset %d", segments[i].Offset-whole,
			whole)
		// A log that is far behind at its pod's end has its own end shipped first. What is before
		// it is on its way, as long as no seal counts it and the pod is alive.
		if alive && c.over == "" && c.badSeal == "" && (c.Seal == nil || c.Seal.Bytes <= whole) {
			behind := func(s layout.Segment) bool { return s.Offset > whole }
			c.Segments, c.early = slices.Clip(segments[:i]), slices.Clone(segments[i:])
			for _, s := range covered {
				if behind(s) {
					c.early = append(c.early, s)
				}
			}
			c.covered = slices.DeleteFunc(covered, behind)
			segments, hole = c.Segments, ""
		}
	}
	c.count()
	end := int64(0)
	if len(segments) > 0 {
		end = segments[len(segments)-1].End()
	}
	switch {
	case c.over != "":
		c.Status, c.Why = Damaged, c.over
	case hole != "":
		c.Status, c.Why = Damaged, hole
	case c.badSeal != "":
		c.Status, c.Why = Damaged, c.badSeal
	case len(c.early) > 0:
		c.Status, c.Why = Running,
			"still running: more will follow; its end is there, and what is before it is on its way"
	case c.Seal != nil && end < c.Seal.Bytes:
		c.Status, c.Why = Damaged, fmt.Sprintf("the last %d archive bytes are missing", c.Seal.Bytes-end)
	case c.Seal != nil && end == c.Seal.Bytes && c.Seal.GapCount > 0:
		c.Status, c.Why = Gaps, fmt.Sprintf("gaps: %d, bytes lost: %d", c.Seal.GapCount, c.Seal.Lost.Total())
		if c.Bytes == 0 { // a log that shows nothing must not look like one of a container that printed nothing
			c.Why = "all that it printed is missing; " + c.Why
		}
	case c.Seal != nil && end == c.Seal.Bytes:
		c.Status = Verified
		switch {
		case end == 0:
			c.Why = p.whyEmpty(*c)
		case c.Seal.End == record.EndKilled && !c.Seal.Drained:
			c.Why = "killed: some of its last output may be missing"
		}
	case alive: // not sealed, or it went on behind the seal
		c.Status = Running
		if c.Waiting != nil {
			c.Why = "not started yet: " + whyWaiting(*c.Waiting)
		}
	default:
		c.Status, c.Why = Partial, "the pod was last heard of at "+p.LastSeen.UTC().Format(time.RFC3339)
		switch {
		case c.Waiting != nil:
			c.Why += "; until then it had not started: " + whyWaiting(*c.Waiting)
		case end == 0:
			c.Why += "; whether it had started is unknown"
		}
	}
}

// position is a place in a log, by what is archived before it.
type position struct {
	lines   int64 // newlines
	printed int64 // bytes
}

// behind is the place so far behind another.
func (p position) behind(o position) position {
	return position{o.lines + p.lines, o.printed + p.printed}
}

// count sums up what was printed, and finds where each segment begins. What overlaps counts once,
// as far as names tell; see Container.Estimated for the rest.
func (c *Container) count() {
	c.Bytes, c.Lines, c.Archive, c.Estimated, c.starts = 0, 0, 0, false, nil
	var known *places // needed where segments overlap
	end := int64(0)
	for _, s := range c.Segments {
		if s.Offset < end {
			known = placesOf(slices.Concat(c.Segments, c.covered))
			break
		}
		end = s.End()
	}
	end = 0
	for i, s := range c.Segments {
		start := position{c.Lines, c.Bytes} // behind what is before it
		if s.Offset < end {
			at, ok := known.at(s.Offset)
			if !ok {
				at, ok = segmentWithin(c.Segments[i-1], s)
				at = at.behind(c.starts[i-1])
			}
			ok = ok && at.lines <= c.Lines && at.lines+s.Lines >= c.Lines &&
				at.printed <= c.Bytes && at.printed+s.Printed >= c.Bytes
			if ok {
				start = at
			} else { // it counts twice what both hold, and numbers of before do not fit any more
				c.Estimated = true
				known.anchors = map[int32]position{} // to clear it takes as long as it ever was large
			}
		}
		if known != nil {
			known.anchor(s.Offset, start)
		}
		c.starts = append(c.starts, start)
		c.Bytes, c.Lines = start.printed+s.Printed, start.lines+s.Lines
		c.Archive += s.End() - max(end, s.Offset)
		c.LastSeen = s.Last
		end = s.End()
	}
}

// segmentWithin is how far behind a segment's beginning another begins that meets no other, if both are
// numbered alike. That is sure where the numbers are those of whole lines that take just the
// archive bytes between: a numbering that began anew later leaves some over. So do pieces of lines
// and markers.
func segmentWithin(by, s layout.Segment) (position, bool) {
	between := position{s.Line - by.Line, s.PrintedOffset - by.PrintedOffset}
	if between.lines < 0 || between.lines > by.Lines || between.printed < 0 ||
		between.printed > by.Printed ||
		s.Offset-by.Offset != between.printed+between.lines*int64(criline.PrefixLen) {
		return position{}, false
	}
	return between, true
}

// whyEmpty explains a sealed log without a byte.
func (p *Pod) whyEmpty(c Container) string {
	switch {
	case c.Seal.End == record.EndNeverStarted && c.Waiting != nil:
		return "never started: " + whyWaiting(*c.Waiting)
	case c.Seal.End == record.EndNeverStarted:
		for _, before := range p.Containers { // init containers run one after the other, and steps after all of them
			if before.Name == c.Name {
				break
			}
			if before.Kind == record.Init && before.Waiting != nil {
				return "never started: nor did " + before.Name + " before it: " + whyWaiting(*before.Waiting)
			}
			if before.Kind == record.Init && before.Seal != nil && before.Seal.Exit != nil && before.Seal.Exit.Code != 0 {
				return fmt.Sprintf("never started: %s before it failed with exit code %d", before.Name, before.Seal.Exit.Code)
			}
		}
		return "never started: why is unknown"
	case c.Seal.End == record.EndKilled && c.Seal.Drained:
		return "killed before its first byte"
	case c.Seal.End == record.EndKilled:
		return "killed: whether it had printed anything is unknown"
	case c.Seal.End == record.EndExited && c.Seal.Exit != nil && c.Seal.Exit.Signal != "":
		return fmt.Sprintf("printed nothing, exit code %d (%s)", c.Seal.Exit.Code, c.Seal.Exit.Signal)
	case c.Seal.End == record.EndExited && c.Seal.Exit != nil:
		return fmt.Sprintf("printed nothing, exit code %d", c.Seal.Exit.Code)
	default: // a value that a later version writes is shown as it is
		return fmt.Sprintf("printed nothing, and how it ended is unknown (%q)", c.Seal.End)
	}
}

// whyMissed names the pod that alone had a step's log, and puts the reason into words.
func whyMissed(reason, pod string) string {
	switch reason {
	case record.SkippedNoAnswer:
		return fmt.Sprintf("pod %s was not captured: the webhook was not asked, or did not answer (%s)",
			pod, reason)
	case record.SkippedPodGone:
		return fmt.Sprintf("nothing of pod %s is in the archive, and the pod is gone (%s)", pod, reason)
	case record.SkippedNothingArrived:
		return fmt.Sprintf("nothing of pod %s is in the archive, though shiplog was in it (%s)",
			pod, reason)
	}
	return fmt.Sprintf("not captured in pod %s: %s", pod, cmp.Or(reason, record.SkippedUnknown))
}

// whyWaiting puts Kubernetes' reason into words, and keeps it.
func whyWaiting(w record.Waiting) string {
	what := "it could not be started"
	if w.IsImage() {
		what = "image pull failed"
	}
	return what + " (" + strings.Join(strings.Fields(w.Reason+": "+w.Message), " ") + ")"
}

// Covered are the segments of which others hold every byte. A reader needs them where one of those is corrupt.
func (c Container) Covered() []layout.Segment { return c.covered }

// contiguous returns the segments in order, those that others cover apart, and where the first hole
// begins, or the end. Segments that overlap hold the same bytes where they do, since what was
// written at an offset never changes.
func contiguous(segments []layout.Segment) (kept, covered []layout.Segment, whole int64) {
	slices.SortFunc(segments, compareSegments)
	segments = slices.Compact(segments) // a log that is followed is listed again and again
	end, hole := int64(0), false
	for _, s := range segments {
		hole = hole || s.Offset > end
		if s.End() > end {
			kept = append(kept, s)
			end = s.End()
		} else {
			covered = append(covered, s)
		}
		if !hole {
			whole = end
		}
	}
	return kept, covered, whole
}

// compareSegments orders segments by offset, and of two with the same offset the longer first.
func compareSegments(a, b layout.Segment) int {
	return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(b.Length, a.Length))
}

// arrange puts pods under their TaskRuns.
func (t *Tree) arrange(pods map[layout.Pod]*Pod) {
	byName := map[string]*TaskRun{}
	for _, p := range pods {
		tr := byName[p.Key.TaskRun]
		if tr == nil {
			tr = &TaskRun{Name: p.Key.TaskRun}
			byName[tr.Name] = tr
		}
		tr.Pods = append(tr.Pods, *p)
	}
	for _, tr := range byName {
		slices.SortFunc(tr.Pods, func(a, b Pod) int {
			return cmp.Or(a.created().Compare(b.created()), cmp.Compare(a.Key.PodUID, b.Key.PodUID))
		})
		for _, p := range tr.Pods {
			if p.Record != nil {
				tr.PipelineTask = cmp.Or(tr.PipelineTask, p.Record.PipelineTask)
			}
		}
		t.TaskRuns = append(t.TaskRuns, *tr)
	}
	t.Sort()
}

// Sort finds out what each TaskRun is called, and puts them into the order of their start: as their first pods were made, and of those that were made within the same second, as the pipeline has them.
func (t *Tree) Sort() {
	t.label()
	ranks := map[string]int{}
	if t.Record != nil {
		for i, task := range slices.Backward(t.Record.Tasks) {
			ranks[task] = i // of a task that is there twice, the first place
		}
	}
	rank := func(tr TaskRun) int {
		if i, ok := ranks[tr.PipelineTask]; ok {
			return i
		}
		return math.MaxInt
	}
	unknown := func(tr TaskRun) int {
		if tr.Pods[0].created().IsZero() {
			return 1
		}
		return 0
	}
	slices.SortFunc(t.TaskRuns, func(a, b TaskRun) int {
		return cmp.Or(unknown(a)-unknown(b), a.Pods[0].created().Compare(b.Pods[0].created()), cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
	})
}

// label sets UniqueLabel. A label that is another TaskRun's name is not used either, so that those that stand for themselves, and the names, are all different.
func (t *Tree) label() {
	labels, names := map[string]int{}, map[string]bool{}
	for _, tr := range t.TaskRuns {
		labels[tr.Label()]++
		names[tr.Name] = true
	}
	for i := range t.TaskRuns {
		tr := &t.TaskRuns[i]
		tr.unique = tr.Label()
		if labels[tr.unique] > 1 || names[tr.unique] {
			tr.unique = tr.Name
		}
	}
}

func (p Pod) created() time.Time {
	if p.Record == nil {
		return time.Time{}
	}
	return p.Record.Created
}
