// Package backend reads the archive: it finds runs, says how complete their logs are, and streams them. It needs nothing but the object store. The CLI stands on it, and so
// will the HTTP service.
//
// Reading begins with archive.go (which runs are there), goes on with tree.go (what a run holds, and its state), and ends with log.go (the lines).
package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// Store is what reading needs of the object store. *objectstore.Store is one.
type Store interface {
	// Get opens an object. The error wraps fs.ErrNotExist if there is none.
	Get(ctx context.Context, key string) (io.ReadCloser, error)
	// List yields objects in the order of their keys; see objectstore.Store.
	List(ctx context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[objectstore.Entry, error]
}

// Archive reads a store. Its methods may be called at the same time.
type Archive struct {
	store   Store
	now     func() time.Time
	base    string     // see URL
	close   func()     // nil where the store is the caller's
	spare   *sync.Pool // of *blocks
	trees   *budget
	reach   *Reach // nil is all
	origins *origins
	looks   *looks
}

// New makes an Archive. A store with a method Now() time.Time says what time it is for the store,
// whose times tell a running log from a partial one: this machine's clock may be off.
func New(store Store) *Archive {
	a := &Archive{
		store: store, now: time.Now, spare: &sync.Pool{}, trees: newBudget(),
		origins: &origins{runs: map[layout.Run]record.Run{}},
		looks:   &looks{followed: map[layout.Pod]*followed{}},
	}
	if s, ok := store.(interface{ Now() time.Time }); ok {
		a.now = s.Now
	}
	return a
}

// Now is what time it is for the store.
func (a *Archive) Now() time.Time { return a.now() }

// readRecord reads and decodes a JSON object.
func readRecord[T record.Any](ctx context.Context, store Store, key string) (T, error) {
	return readListed[T](ctx, store, key, record.Limit[T](), &lease{})
}

// readListed is readRecord for an object of which so many bytes are paid for, as the listing had it.
// What it has more, since it was overwritten, is paid for as it is read.
func readListed[T record.Any](ctx context.Context, store Store, key string, paid int64,
	l *lease) (T, error) {
	var zero T
	r, err := store.Get(ctx, key)
	if err != nil {
		return zero, err
	}
	defer r.Close()
	// One byte more says that this is the end, and one more than the limit that Decode is to refuse it.
	b, err := io.ReadAll(io.LimitReader(&paying{r, paid + 1, l}, record.Limit[T]()+1))
	if errors.Is(err, errOverwritten) {
		return zero, &recordError{key, err}
	}
	if err != nil {
		return zero, fmt.Errorf("read %s: %w", key, err)
	}
	v, err := record.Decode[T](b)
	if err != nil {
		return zero, &recordError{key, err}
	}
	return v, nil
}

// recordError says that an object is there and is not what its name says. Whoever can write under a pod's prefix can cause it, so it must not keep anybody from reading the rest.
type recordError struct {
	key string
	err error
}

func (e *recordError) Error() string { return fmt.Sprintf("%s cannot be read: %v", e.key, e.err) }
func (e *recordError) Unwrap() error { return e.err }

// Runs yields a namespace's runs, newest first, at most limit of them (0: all). With after, only those that come behind it in this order. It costs one LIST for each 1000
// runs. Of an archive within a reach it ends where only runs of former namespaces follow; a few of
// these, from about the time when the namespace was made, may be among the last: Run knows them.
func (a *Archive) Runs(ctx context.Context, namespace string, after *layout.RunIndex, limit int) iter.Seq2[layout.RunIndex, error] {
	return func(yield func(layout.RunIndex, error) bool) {
		start := ""
		if after != nil {
			start = after.Key()
		}
		for e, err := range a.store.List(ctx, layout.RunIndexPrefix(namespace), "", start, limit) {
			if err != nil {
				yield(layout.RunIndex{}, fmt.Errorf("list runs: %w", err))
				return
			}
			x, err := layout.ParseRunIndexKey(e.Key)
			if err != nil {
				continue // not ours; a later version may put other objects there
			}
			if !a.all() && x.Created.Before(a.reach.Namespace.Since()) {
				return // as are all behind it
			}
			if !yield(x, nil) {
				return
			}
		}
	}
}

// Target is what a name or UID stands for: a run, or a part of it.
type Target struct {
	Run     layout.Run
	TaskRun string // if not empty, this TaskRun alone
	PodUID  string // if not empty, this pod alone
	// Others are more runs of the same name, newest first.
	Others []layout.Run
}

// NotFoundError says that nothing in the archive has this name or UID.
type NotFoundError struct{ Namespace, Ref string }

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("nothing in namespace %q is named %q: there is no PipelineRun, TaskRun or pod of that name or UID in the archive", e.Namespace, e.Ref)
}

// find looks for what has a name. Where there is nothing, its error wraps fs.ErrNotExist.
type find func(ctx context.Context, namespace, name string) (Target, error)

// Find resolves what a person types. It tries, in this order, and ends with the first that is there: a UID of a PipelineRun or TaskRun (one GET); a PipelineRun's name (one
// LIST, and a GET for each run where several have had the name: the newest is taken); a TaskRun's
// name (by its pods' names, which Tekton derives from it: two LISTs and two GETs, and some more
// where several have had the name at about the same time); a pod's name (one LIST and two GETs);
// and last the name of a TaskRun without PipelineRun whose pod is named otherwise, since the name
// was long (all LISTs of the namespace's runs). Nothing found is a *NotFoundError.
func (a *Archive) Find(ctx context.Context, namespace, ref string) (Target, error) {
	return a.firstOf(ctx, namespace, ref, a.findUID, a.findRun, a.findTaskRun, a.findPod,
		a.findInIndex)
}

// FindPipelineRun is Find for the UID or name of a PipelineRun alone.
func (a *Archive) FindPipelineRun(ctx context.Context, namespace, ref string) (Target, error) {
	byUID := func(ctx context.Context, namespace, uid string) (Target, error) {
		t, err := a.findUID(ctx, namespace, uid)
		if err == nil && t.TaskRun != "" {
			return Target{}, fs.ErrNotExist
		}
		return t, err
	}
	return a.firstOf(ctx, namespace, ref, byUID, a.findRun)
}

// FindTaskRun is Find for the UID or name of a TaskRun alone.
func (a *Archive) FindTaskRun(ctx context.Context, namespace, ref string) (Target, error) {
	byUID := func(ctx context.Context, namespace, uid string) (Target, error) {
		t, err := a.findUID(ctx, namespace, uid)
		if err == nil && t.TaskRun == "" && t.Run.Name != layout.NoPipelineRun {
			return Target{}, fs.ErrNotExist
		}
		return t, err
	}
	return a.firstOf(ctx, namespace, ref, byUID, a.findTaskRun, a.findInIndex)
}

// FindPod is Find for the name of a pod alone.
func (a *Archive) FindPod(ctx context.Context, namespace, name string) (Target, error) {
	return a.firstOf(ctx, namespace, name, a.findPod)
}

// firstOf returns what the first of them finds within the archive's reach.
func (a *Archive) firstOf(ctx context.Context, namespace, ref string,
	finds ...find) (Target, error) {
	notFound := &NotFoundError{namespace, ref}
	// What can be no name is in no key, and some stores fail on a key that is too long or holds a NUL, where others find nothing.
	if layout.CheckName("name", ref) != nil && layout.CheckUID("UID", ref) != nil {
		return Target{}, notFound
	}
	for _, f := range finds {
		t, err := f(ctx, namespace, ref)
		if err == nil && !t.within(namespace) {
			continue
		}
		if err == nil {
			err = a.admit(ctx, t.Run)
		}
		// An object that cannot be read must not hide the others.
		if ignoreAbsent(err) != nil || err == nil {
			return t, err
		}
	}
	return Target{}, notFound
}

// within says whether a target is one of the namespace that was asked for, and of names: an object of the index must not lead out of what its reader may see.
func (t Target) within(namespace string) bool {
	return t.Run.Namespace == namespace && t.Run.Validate() == nil && (t.TaskRun == "" || layout.CheckName("TaskRun", t.TaskRun) == nil) && (t.PodUID == "" || layout.CheckUID("pod UID", t.PodUID) == nil)
}

func (a *Archive) findUID(ctx context.Context, namespace, uid string) (Target, error) {
	if layout.CheckUID("UID", uid) != nil {
		return Target{}, fs.ErrNotExist
	}
	p, err := readRecord[record.Pointer](ctx, a.store, layout.UIDIndexKey(namespace, uid))
	return targetOf(p), err
}

// Namespaces yields the namespaces that the archive has runs of, in the order of their keys: with
// after, only those behind it. It costs one LIST for each 1000.
func (a *Archive) Namespaces(ctx context.Context, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		const root = layout.IndexVersion + "/"
		start := ""
		if after != "" {
			start = root + after + "0" // the first text behind all that begin with "after/"
		}
		for e, err := range a.store.List(ctx, root, "/", start, 0) {
			if err != nil {
				yield("", fmt.Errorf("list namespaces: %w", err))
				return
			}
			name := strings.TrimSuffix(strings.TrimPrefix(e.Key, root), "/")
			if !e.IsPrefix || layout.CheckName("namespace", name) != nil {
				continue // not ours; a later version may put other objects there
			}
			if !yield(name, nil) {
				return
			}
		}
	}
}

// Run reads a run's record. Where there is none, the error wraps fs.ErrNotExist, and where the
// run is out of the archive's reach it is ErrFormer. It holds memory as Tree does, until ctx ends.
func (a *Archive) Run(ctx context.Context, run layout.Run) (record.Run, error) {
	r, err := readListed[record.Run](ctx, a.store, run.RunKey(), 0, a.lease(ctx, run.Namespace))
	if !a.all() && ignoreAbsent(err) == nil && (err != nil || !a.reach.Namespace.Holds(r)) {
		return record.Run{}, ErrFormer
	}
	var bad *recordError
	if errors.As(err, &bad) {
		return r, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return r, err
}

func targetOf(p record.Pointer) Target {
	return Target{Run: p.Run, TaskRun: p.TaskRun, PodUID: p.PodUID}
}

// findRun takes the last of the runs that had the name, within the archive's reach.
func (a *Archive) findRun(ctx context.Context, namespace, name string) (Target, error) {
	type candidate struct {
		run     layout.Run
		former  bool
		created time.Time // of several
	}
	var found []candidate
	prefix := layout.NamePrefix(namespace, name)
	for e, err := range a.store.List(ctx, prefix, "/", "", 0) {
		if err != nil {
			return Target{}, fmt.Errorf("find run %s: %w", name, err)
		}
		run := layout.Run{Namespace: namespace, Name: name, UID: strings.TrimSuffix(strings.TrimPrefix(e.Key, prefix), "/")}
		if e.IsPrefix && run.Validate() == nil {
			found = append(found, candidate{run: run})
		}
	}
	several := len(found) > 1
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(recordConcurrency)
	for i := range found {
		c := &found[i]
		group.Go(func() error {
			err := a.admit(ctx, c.run)
			if c.former = errors.Is(err, ErrFormer); c.former {
				return nil
			}
			if err == nil && several {
				c.created, err = a.created(ctx, c.run)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return Target{}, err
	}
	found = slices.DeleteFunc(found, func(c candidate) bool { return c.former })
	if len(found) == 0 {
		return Target{}, fs.ErrNotExist
	}
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(b.created.Compare(a.created), cmp.Compare(a.run.UID, b.run.UID))
	})
	t := Target{Run: found[0].run}
	for _, c := range found[1:] {
		t.Others = append(t.Others, c.run)
	}
	return t, nil
}

// created is when a run was made. Where its record does not say, the store knows when something of
// it was stored.
func (a *Archive) created(ctx context.Context, run layout.Run) (time.Time, error) {
	r, err := readRecord[record.Run](ctx, a.store, run.RunKey())
	if ignoreAbsent(err) != nil || err == nil {
		return r.Created, err
	}
	for e, err := range a.store.List(ctx, run.Prefix(), "", "", 1) {
		return e.LastModified, err
	}
	return time.Time{}, nil
}

// findPod takes the last of the pods that had the name.
func (a *Archive) findPod(ctx context.Context, namespace, name string) (Target, error) {
	pointers, err := a.podPointers(ctx, layout.PodIndexPrefix(namespace, name), "",
		func(pod string) bool { return pod == name })
	if err != nil {
		return Target{}, fmt.Errorf("find pod %s: %w", name, err)
	}
	p, err := a.newestPod(ctx, pointers, func(record.Pointer) bool { return true })
	return targetOf(p), err
}

// findTaskRun uses that Tekton names a TaskRun's pods <TaskRun>-pod and <TaskRun>-pod-retry<N>.
// Other TaskRuns' names may begin so, too, and there may be any number of them: they are not
// listed, as far as names tell.
func (a *Archive) findTaskRun(ctx context.Context, namespace, name string) (Target, error) {
	first := name + "-pod"
	if layout.CheckName("pod", first) != nil { // Tekton has shortened it
		return Target{}, fs.ErrNotExist
	}
	pointers, err := a.podPointers(ctx, layout.PodIndexPrefix(namespace, first), "",
		func(pod string) bool { return pod == first })
	if err == nil {
		retry := first + "-retry"
		isRetry := func(pod string) bool {
			n := strings.TrimPrefix(pod, retry)
			return n != "" && strings.Trim(n, "0123456789") == ""
		}
		prefix := strings.TrimSuffix(layout.PodIndexPrefix(namespace, retry), "/")
		var retries []objectstore.Entry
		// Digits are behind the slash.
		retries, err = a.podPointers(ctx, prefix, prefix+"/", isRetry)
		pointers = append(pointers, retries...)
	}
	if err != nil {
		return Target{}, fmt.Errorf("find TaskRun %s: %w", name, err)
	}
	p, err := a.newestPod(ctx, pointers, func(p record.Pointer) bool { return p.TaskRun == name })
	return Target{Run: p.Run, TaskRun: p.TaskRun}, err
}

// podPointers lists the pointers of the pods whose name fits, up to the first key behind the
// digits.
func (a *Archive) podPointers(ctx context.Context, prefix, after string,
	fits func(pod string) bool) (pointers []objectstore.Entry, err error) {
	for e, err := range a.store.List(ctx, prefix, "", after, 0) {
		if err != nil {
			return nil, err
		}
		if after != "" && e.Key > prefix+":" {
			break
		}
		if _, pod, _, err := layout.ParsePodIndexKey(e.Key); err == nil && fits(pod) {
			pointers = append(pointers, e)
		}
	}
	return pointers, nil
}

// newestPod reads the pointers of pods, the youngest first, until the others cannot be of one that
// was made later, and returns that of the last pod for which fits is true and which is within the
// archive's reach. A pointer may be written again while its pod lives, so its own time is no more
// than a bound.
func (a *Archive) newestPod(ctx context.Context, pointers []objectstore.Entry,
	fits func(record.Pointer) bool) (newest record.Pointer, err error) {
	youngest := func(a, b objectstore.Entry) int { return b.LastModified.Compare(a.LastModified) }
	slices.SortFunc(pointers, youngest)
	found := false
	var made time.Time
	for _, e := range pointers {
		if found && e.LastModified.Before(made) {
			break
		}
		p, err := readRecord[record.Pointer](ctx, a.store, e.Key)
		if ignoreAbsent(err) != nil {
			return newest, err
		}
		if err != nil || !fits(p) {
			continue
		}
		if err := a.admit(ctx, p.Run); errors.Is(err, ErrFormer) {
			continue
		} else if err != nil {
			return newest, err
		}
		created := e.LastModified
		r, err := readRecord[record.Pod](ctx, a.store,
			layout.Pod{Run: p.Run, TaskRun: p.TaskRun, PodUID: p.PodUID}.PodKey())
		if ignoreAbsent(err) != nil {
			return newest, err
		}
		if err == nil && !r.Created.IsZero() && r.Created.Before(created) {
			created = r.Created
		}
		if !found || created.After(made) {
			found, newest, made = true, p, created
		}
	}
	if !found {
		return newest, fs.ErrNotExist
	}
	return newest, nil
}

func (a *Archive) findInIndex(ctx context.Context, namespace, name string) (Target, error) {
	for x, err := range a.Runs(ctx, namespace, nil, 0) {
		if err != nil {
			return Target{}, err
		}
		if x.Kind == layout.TaskRun && x.Name == name {
			return Target{Run: x.Run()}, nil
		}
	}
	return Target{}, fs.ErrNotExist
}
