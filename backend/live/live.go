// Package live joins the logs of pods that are still there with those of the archive. A reader sees each line once: from its pod while there is one, since that knows most, and from the archive when there is none any more.
package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// Archive is a bucket, or a server that reads it.
type Archive interface {
	// Tree finds a run by the name or UID of a PipelineRun or TaskRun ("" stands for both), or by a pod's name. Where there is none, the error is a *backend.NotFoundError.
	Tree(ctx context.Context, namespace string, kind layout.RunKind, ref string) (*backend.Tree, backend.Target, error)
	// Lines yields a container's lines, and with follow those that come. The container has its final state then.
	Lines(ctx context.Context, c *backend.Container, o backend.LogOptions, follow bool) iter.Seq2[backend.Line, error]
}

// Reader reads runs of a cluster and of an archive. Either may be nil.
type Reader struct {
	Archive Archive
	Cluster *Cluster
	// Notice is told what went wrong that something else stands in for. It may be called at the same time.
	Notice func(error)
}

// View is a run at one moment.
type View struct {
	// Tree has what the archive has of the run, and what only the cluster has.
	Tree *backend.Tree
	// Others are other runs of the archive that have the same name.
	Others []layout.Run
	// Outcome is how the run ended, if it is known, and Reason says why it failed.
	Outcome Outcome
	Reason  string
	// Failures are the TaskRuns of the run that have failed, as far as the cluster has them, in the order in which tkn prints their logs.
	Failures []Failure

	asked    string        // of the archive
	archived *backend.Tree // as the archive has it; nil where it has nothing

	over bool                      // no more pods are to be expected
	pods map[layout.Pod]corev1.Pod // that are there
	kept map[layout.Container]bool // in the archive
}

// Pods says whether the cluster has any of the run's pods.
func (v *View) Pods() bool { return len(v.pods) > 0 }

// Look reads what there is of a run. Where neither knows it, the error is a *backend.NotFoundError.
func (r *Reader) Look(ctx context.Context, namespace string, kind layout.RunKind, ref string) (*View, error) {
	return r.look(ctx, namespace, kind, ref, &View{})
}

// look is Look for who has looked before.
func (r *Reader) look(ctx context.Context, namespace string, kind layout.RunKind, ref string,
	earlier *View) (*View, error) {
	v := &View{pods: map[layout.Pod]corev1.Pod{}, kept: map[layout.Container]bool{}}
	var now *present
	var clusterErr, archiveErr error
	var notFound *backend.NotFoundError // in the archive
	if r.Cluster != nil {
		now, clusterErr = r.Cluster.look(ctx, namespace, kind, ref)
	}
	if r.Archive != nil {
		asked := ref
		if now != nil {
			asked = now.uid // an older run may have had the same name
		}
		archiveErr = r.readArchive(ctx, v, namespace, kind, asked, earlier)
		if errors.As(archiveErr, &notFound) {
			archiveErr = nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case now == nil && v.Tree == nil && clusterErr == nil && archiveErr == nil:
		return nil, &backend.NotFoundError{Namespace: namespace, Ref: ref}
	case now == nil && v.Tree == nil && notFound != nil: // and what the cluster has is not known
		return nil, fmt.Errorf("%w; pods were not looked for: %w", notFound, clusterErr)
	case now == nil && v.Tree == nil:
		return nil, errors.Join(clusterErr, archiveErr)
	case clusterErr != nil:
		r.notice(fmt.Errorf("only the archive is read: %w", clusterErr))
	case archiveErr != nil:
		r.notice(fmt.Errorf("only pods are read: %w", archiveErr))
	}
	if v.Tree != nil {
		for p := range v.Tree.Containers() {
			v.kept[p.Container.Key] = len(p.Container.Segments) > 0 || p.Container.Seal != nil || p.Container.Bytes > 0
		}
		v.over = v.Tree.Over(v.Tree.At)
		if rec := v.Tree.Record; rec != nil {
			v.Outcome, v.Reason = outcomeOfRecord(rec)
		}
	}
	if now != nil {
		v.add(now)
	} else if r.Cluster != nil && clusterErr == nil {
		v.over = true // the cluster has deleted it
	}
	return v, nil
}

// again is an Archive for which it is cheaper to read a tree for the second time: of what an
// earlier one is of, it reads what is new.
type again interface {
	Again(ctx context.Context, earlier *backend.Tree) (*backend.Tree, error)
}

// readArchive reads a run's tree, from the archive alone.
func (r *Reader) readArchive(ctx context.Context, v *View, namespace string, kind layout.RunKind,
	ref string, earlier *View) (err error) {
	v.asked = ref
	if archive, ok := r.Archive.(again); ok && earlier.archived != nil && earlier.asked == ref {
		v.archived, err = archive.Again(ctx, earlier.archived)
		v.Others = earlier.Others
	} else {
		var target backend.Target
		v.archived, target, err = r.Archive.Tree(ctx, namespace, kind, ref)
		v.Others = target.Others
	}
	v.Tree = v.archived
	return err
}

func (r *Reader) notice(err error) {
	if r.Notice != nil {
		r.Notice(err)
	}
}

func outcomeOfRecord(rec *backend.RunRecord) (Outcome, string) {
	switch rec.State {
	case "":
		return "", ""
	case record.Succeeded:
		return Succeeded, ""
	default:
		return Failed, rec.Reason
	}
}

// add puts what the cluster has into the tree.
func (v *View) add(now *present) {
	v.over, v.Outcome, v.Reason, v.Failures = now.done, now.outcome, now.reason, now.failures
	own := backend.Tree{Run: now.run}
	if v.archived != nil { // which stays as it is
		own = *v.archived
		own.TaskRuns = slices.Clone(own.TaskRuns)
		for i := range own.TaskRuns {
			own.TaskRuns[i].Pods = slices.Clone(own.TaskRuns[i].Pods)
		}
	}
	v.Tree = &own
	taskRuns := map[string]int{} // where they are
	for i, tr := range own.TaskRuns {
		taskRuns[tr.Name] = i
	}
	for _, pod := range now.pods {
		key, ok := podKey(&pod)
		if !ok {
			continue
		}
		v.pods[key] = pod
		i, ok := taskRuns[key.TaskRun]
		if !ok {
			i = len(own.TaskRuns)
			taskRuns[key.TaskRun] = i
			own.TaskRuns = append(own.TaskRuns, backend.TaskRun{Name: key.TaskRun,
				PipelineTask: pod.Labels["tekton.dev/pipelineTask"]})
		}
		addPod(&own.TaskRuns[i], key, &pod)
	}
	own.Sort()
	places := map[string]int{}
	for i, name := range now.order {
		places[name] = i
	}
	place := func(tr backend.TaskRun) int {
		if i, ok := places[tr.Name]; ok {
			return i
		}
		return len(now.order)
	}
	slices.SortStableFunc(own.TaskRuns, func(a, b backend.TaskRun) int {
		return place(a) - place(b)
	})
}

func addPod(tr *backend.TaskRun, key layout.Pod, pod *corev1.Pod) {
	j := slices.IndexFunc(tr.Pods, func(p backend.Pod) bool { return p.Key == key })
	if j < 0 {
		tr.Pods = append(tr.Pods, backend.Pod{Key: key})
		j = len(tr.Pods) - 1
	}
	p := &tr.Pods[j]
	if p.Record == nil {
		p.Record = &backend.PodRecord{Namespace: pod.Namespace, PodName: pod.Name, PodUID: key.PodUID, TaskRun: key.TaskRun, PipelineTask: tr.PipelineTask, Created: pod.CreationTimestamp.Time}
	}
	all := containersOf(key, pod)
	for i, c := range all {
		if k := slices.IndexFunc(p.Containers, func(kept backend.Container) bool { return kept.Name == c.Name }); k >= 0 {
			all[i] = p.Containers[k]
		}
	}
	p.Containers = all
}

// Choose says which containers are wanted.
type Choose func(backend.TaskRun, backend.Container) bool

// Show yields the lines of a view's containers as they are now, one log after the other, and behind each its state, with a line of no stream. Containers that have not begun are left out.
func (r *Reader) Show(ctx context.Context, v *View, choose Choose, o backend.LogOptions) iter.Seq2[backend.PlacedLine, error] {
	return func(yield func(backend.PlacedLine, error) bool) {
		for place := range v.Tree.Containers() {
			if !choose(place.TaskRun, place.Container) || !v.begun(place.Container) {
				continue
			}
			for l, err := range r.lines(ctx, v.pod(place), &place.Container, v.kept[place.Container.Key], o, false) {
				if !yield(backend.PlacedLine{Place: place, Line: l}, err) {
					return
				}
			}
			if !yield(backend.PlacedLine{Place: place}, nil) {
				return
			}
		}
	}
}

func (v *View) pod(p backend.Place) *corev1.Pod {
	if pod, ok := v.pods[p.Pod.Key]; ok {
		return &pod
	}
	return nil
}

// begun says whether a container has a log.
func (v *View) begun(c backend.Container) bool {
	pod, ok := v.pods[c.Key.Pod]
	return !ok || v.kept[c.Key] || started(stateOf(&pod, c.Name))
}

// logsEnded are the containers whose logs grow no more.
func (v *View) logsEnded() map[layout.Container]bool {
	ended := map[layout.Container]bool{}
	for p := range v.Tree.Containers() {
		if pod := v.pod(p); pod != nil {
			ended[p.Container.Key] = stateOf(pod, p.Container.Name).Terminated != nil
		} else {
			ended[p.Container.Key] = p.Container.Status != backend.Running
		}
	}
	return ended
}

// turnover is about how much of a log, in bytes, the kubelet is sure to give out: it keeps files of 10 MiB unless it was told otherwise (containerLogMaxSize, kubelet.config.k8s.io/v1beta1), and gives out the youngest. A log that has
// become longer is read from the archive. mostLines bounds what a seam remembers.
const (
	turnover  = 8 << 20
	mostLines = 1 << 18
)

// lines yields a container's log from where it is: the pod, if there is one, and what that does not have from the archive.
func (r *Reader) lines(ctx context.Context, pod *corev1.Pod, c *backend.Container, kept bool, o backend.LogOptions, follow bool) iter.Seq2[backend.Line, error] {
	long := c.Bytes+c.Lines*int64(criline.PrefixLen) > turnover
	switch {
	case pod == nil, kept && (long || tailOf(o) != nil):
		return r.Archive.Lines(ctx, c, o, follow)
	case kept && c.Status != backend.Running:
		if lines := r.ended(ctx, pod, *c); lines != nil {
			return lines
		}
		return r.Archive.Lines(ctx, c, o, follow)
	default:
		return r.growing(ctx, pod, c, kept, o, follow)
	}
}

// tailOf is how many of the last lines are wanted of what is there, or nil for all of them.
func tailOf(o backend.LogOptions) *int64 {
	switch {
	case o.None:
		return new(int64)
	case o.Tail > 0:
		return &o.Tail
	default:
		return nil
	}
}

// ended returns a log that has ended, from its pod, if that has every byte of what was archived; otherwise nil.
func (r *Reader) ended(ctx context.Context, pod *corev1.Pod, c backend.Container) iter.Seq2[backend.Line, error] {
	var all []backend.Line
	var size int64
	for l, err := range r.Cluster.lines(ctx, pod, c.Name, false, nil) {
		if err != nil {
			return nil
		}
		l.Text = bytes.Clone(l.Text) // which is valid until the next line only
		all = append(all, l)
		if size += int64(len(l.Text)); l.Full {
			size++
		}
		if size > c.Bytes {
			return nil
		}
	}
	if size != c.Bytes || c.Status != backend.Verified {
		return nil
	}
	return func(yield func(backend.Line, error) bool) {
		for _, l := range all {
			if !yield(l, nil) {
				return
			}
		}
	}
}

// growing yields a log that may grow: from the pod, and where that stops, or the log becomes long, from the archive.
func (r *Reader) growing(ctx context.Context, pod *corev1.Pod, c *backend.Container, kept bool, o backend.LogOptions, follow bool) iter.Seq2[backend.Line, error] {
	return func(yield func(backend.Line, error) bool) {
		s := &seam{}
		joins := r.Archive != nil && tailOf(o) == nil // the archive can go on where the pod's log stops
		size, elsewhere := int64(0), false
		for l, err := range r.Cluster.lines(ctx, pod, c.Name, follow, tailOf(o)) {
			if err != nil {
				if !joins || ctx.Err() != nil {
					yield(l, err)
					return
				}
				r.notice(err)
				break
			}
			if size == 0 && kept && joins && !r.begins(ctx, *c, l) {
				elsewhere = true // the kubelet has thrown the beginning away
				break
			}
			if !yield(l, nil) {
				return
			}
			size += int64(len(l.Text) + criline.PrefixLen)
			if !joins {
				continue
			}
			s.show(l)
			if size > turnover || s.lines >= mostLines {
				if elsewhere = r.keeps(ctx, *c); elsewhere {
					break
				}
				joins = false
			}
		}
		if !elsewhere && (r.endedInPod(ctx, pod, c, follow) || !joins) {
			if ctx.Err() != nil {
				yield(backend.Line{}, context.Cause(ctx))
			}
			return
		}
		s.stop()
		c.Status, c.Why = backend.Running, "" // as far as the archive is asked
		for l, err := range s.rest(r.Archive.Lines(ctx, c, backend.LogOptions{Idle: o.Idle}, follow)) {
			if errors.Is(err, fs.ErrNotExist) {
				c.Status, c.Why = backend.Partial, "its pod is gone, and the archive does not have it"
				return
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

// firstLines is how many lines of the archive the first of a pod's log is looked for in: of two streams, either may come first.
const firstLines = 16

// begins says whether a pod's log begins with l as the archive does. Where the archive cannot say, it does.
func (r *Reader) begins(ctx context.Context, c backend.Container, l backend.Line) bool {
	n := 0
	unfinished := map[criline.Stream]bool{}
	for kept, err := range r.Archive.Lines(ctx, &c, backend.LogOptions{ToLine: firstLines}, false) {
		first := !unfinished[kept.Stream]
		unfinished[kept.Stream] = !kept.Full
		if err != nil || kept.Stream != criline.Markers && first && sameBeginning(l, kept) {
			return true
		}
		n++
	}
	return n == 0
}

// sameBeginning says whether two lines, or the first pieces of them, can be of the same line.
func sameBeginning(a, b backend.Line) bool {
	switch {
	case a.Full && b.Full:
		return bytes.Equal(a.Text, b.Text)
	case a.Full:
		return bytes.HasPrefix(a.Text, b.Text)
	case b.Full:
		return bytes.HasPrefix(b.Text, a.Text)
	default:
		return bytes.HasPrefix(a.Text, b.Text) || bytes.HasPrefix(b.Text, a.Text)
	}
}

// keeps says whether the archive has a container's log.
func (r *Reader) keeps(ctx context.Context, c backend.Container) bool {
	for _, err := range r.Archive.Lines(ctx, &c, backend.LogOptions{ToLine: 1}, false) {
		return err == nil
	}
	return false
}

// endedInPod says whether what a pod's log gave is all there is for now: its container has ended and its pod was left alone, or nobody waits for more. It notes the log's state.
func (r *Reader) endedInPod(ctx context.Context, pod *corev1.Pod, c *backend.Container, follow bool) bool {
	now, err := r.Cluster.Core.Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil || now.UID != pod.UID || now.DeletionTimestamp != nil {
		if r.Archive == nil {
			c.Status, c.Why = backend.Partial, "its pod is gone"
		}
		return ctx.Err() != nil
	}
	if stateOf(now, c.Name).Terminated != nil {
		c.Status, c.Why = backend.Verified, ""
		return true
	}
	return !follow
}

// lookAgain is how often Follow looks for pods and containers that are new.
const lookAgain = time.Second

// Follow yields the lines of a run's containers as they come, those of several TaskRuns mixed, and behind each log its state, with a line of no stream. It ends when the run is over and all its logs are.
func (r *Reader) Follow(ctx context.Context, namespace string, kind layout.RunKind, ref string, choose Choose, o backend.LogOptions) iter.Seq2[backend.PlacedLine, error] {
	return func(yield func(backend.PlacedLine, error) bool) {
		ctx, stop := context.WithCancelCause(ctx)
		f := &following{Reader: r, choose: choose, o: o, out: make(chan item), ended: map[layout.Container]bool{}, busy: map[string]bool{}}
		f.o.Idle = nil // which is not for several at once
		f.wg.Go(func() {
			if err := f.watch(ctx, namespace, kind, ref); err != nil {
				f.send(ctx, item{err: err})
			}
		})
		done := make(chan struct{})
		go func() { f.wg.Wait(); close(done) }()
		defer func() { stop(context.Canceled); <-done }()
		for {
			select {
			case x := <-f.out:
				if !yield(x.line, x.err) || x.err != nil && !isDigest(x.err) {
					return
				}
				continue
			default:
			}
			if o.Idle != nil {
				if err := o.Idle(); err != nil {
					yield(backend.PlacedLine{}, err)
					return
				}
			}
			select {
			case x := <-f.out:
				if !yield(x.line, x.err) || x.err != nil && !isDigest(x.err) {
					return
				}
			case <-done:
				return
			}
		}
	}
}

func isDigest(err error) bool {
	var digest *backend.DigestError
	return errors.As(err, &digest)
}

// following reads several TaskRuns' logs at the same time.
type following struct {
	*Reader
	choose Choose
	o      backend.LogOptions
	out    chan item
	wg     sync.WaitGroup

	// What follows is of watch.
	mu    sync.Mutex
	ended map[layout.Container]bool
	// first are logs that had begun when following began.
	first map[layout.Container]bool
	// old are logs that had ended when following began. Of any other that is read later, all is
	// wanted: what it has got until then came while others were read.
	old map[layout.Container]bool
	// busy are TaskRuns of which some goroutine reads a container: they are read one after the
	// other, retries too.
	busy map[string]bool
}

type item struct {
	line backend.PlacedLine
	err  error
}

// send hands a line on, and says whether somebody took it.
func (f *following) send(ctx context.Context, x item) bool {
	select {
	case f.out <- x:
		return true
	case <-ctx.Done():
		return false
	}
}

// watch looks at the run until it is over, and has each TaskRun's containers read in their order.
func (f *following) watch(ctx context.Context, namespace string, kind layout.RunKind, ref string) error {
	earlier, drop := &View{}, func() {}
	defer func() { drop() }()
	for first := true; ; first = false {
		drop() // what the look before holds of the memory
		looks, end := context.WithCancel(ctx)
		drop = end
		v, err := f.look(looks, namespace, kind, ref, earlier)
		var gone *backend.NotFoundError
		if errors.As(err, &gone) && !first {
			return nil // and there is no archive
		}
		if err != nil && (first || ctx.Err() != nil) {
			return err
		}
		if err != nil { // the store, or the cluster, for the moment
			f.notice(err)
		} else if earlier = v; f.begin(ctx, v) {
			return nil
		}
		timer := time.NewTimer(lookAgain)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}

// begin has what is new read, and says whether all is read and nothing more is to be expected.
func (f *following) begin(ctx context.Context, v *View) (over bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	over = v.over
	next := map[string]bool{}
	first := f.first == nil
	if first {
		f.first, f.old = map[layout.Container]bool{}, v.logsEnded()
		for place := range v.Tree.Containers() {
			f.first[place.Container.Key] = v.begun(place.Container)
		}
	}
	for place := range v.Tree.Containers() {
		c, key := place.Container, place.TaskRun.Name
		if !f.choose(place.TaskRun, c) || f.ended[c.Key] || next[key] {
			continue
		}
		pod := v.pod(place)
		if pod != nil && (v.over || terminal(pod)) && !v.begun(c) {
			// It never ran, and where the run is over it never will: a pod of a lost node stays as
			// it is.
			continue
		}
		next[key], over = true, false
		if f.busy[key] || !v.begun(c) {
			continue
		}
		f.busy[key] = true
		o := f.o
		if !f.first[c.Key] { // the last lines are those of what was there
			o.Tail = 0
		}
		if !first && !f.old[c.Key] {
			o.None = false
		}
		f.wg.Go(func() { f.read(ctx, pod, place, v.kept[c.Key], o) })
	}
	return over
}

// read reads one container's log to its end.
func (f *following) read(
	ctx context.Context, pod *corev1.Pod, place backend.Place, kept bool, o backend.LogOptions,
) {
	for l, err := range f.lines(ctx, pod, &place.Container, kept, o, true) {
		l.Text = slices.Clone(l.Text) // which is valid until the next line only
		if !f.send(ctx, item{backend.PlacedLine{Place: place, Line: l}, err}) {
			return
		}
	}
	f.send(ctx, item{line: backend.PlacedLine{Place: place}})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended[place.Container.Key], f.busy[place.TaskRun.Name] = true, false
}
