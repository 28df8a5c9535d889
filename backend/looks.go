package backend

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shiplog-dev/shiplog/internal/layout"
)

// looks are those of all who follow something, by what it is: a whole run, a TaskRun, or a pod.
type looks struct {
	mu       sync.Mutex
	followed map[layout.Pod]*followed
}

// followed is a target that some follow. They share its looks, whoever of them looks. So nobody
// looks for long after the last of them has gone, and no goroutine is needed.
type followed struct {
	archive   *Archive // of any reach: whoever joins is in reach
	target    Target
	followers int // guarded by archive.looks.mu

	// turn holds one value while somebody looks, or takes what others saw. It guards the rest.
	turn    chan struct{}
	last    *look // what others may use; nil where there is none
	earlier *Tree // of the last look without an error
}

// look is what was seen of a target at one time. It is several followers', and not to be changed.
type look struct {
	tree *Tree
	err  error
	done time.Time // by the clock of this machine

	lease *lease
	users atomic.Int32 // the tree's part of the budget is given back by the last of them
}

// drop ends the use of a look, if there is one.
func (l *look) drop() {
	if l != nil && l.users.Add(-1) == 0 {
		l.lease.end()
	}
}

// key is what a target is among those that are followed.
func (t Target) key() layout.Pod {
	return layout.Pod{Run: t.Run, TaskRun: t.TaskRun, PodUID: t.PodUID}
}

// join begins to follow a target. Without an error, the caller leaves it.
func (a *Archive) join(ctx context.Context, target Target) (*followed, error) {
	if err := a.admit(ctx, target.Run); err != nil {
		return nil, err
	}
	a.looks.mu.Lock()
	defer a.looks.mu.Unlock()
	f := a.looks.followed[target.key()]
	if f == nil {
		whole := *a
		whole.reach = nil
		f = &followed{archive: &whole, target: target, turn: make(chan struct{}, 1)}
		a.looks.followed[target.key()] = f
	}
	f.followers++
	return f, nil
}

func (f *followed) leave() {
	looks := f.archive.looks
	looks.mu.Lock()
	defer looks.mu.Unlock()
	if f.followers--; f.followers == 0 {
		delete(looks.followed, f.target.key())
		f.last.drop()
	}
}

// next returns a look that is not the one that the caller has, and drops that one. It is the last
// one of another follower, or where that is FollowInterval old, a new one. Its error reaches all
// who wait for it, but not that of ctx: then another of them looks. The caller drops the look, also
// one with an error.
func (f *followed) next(ctx context.Context, have *look) (*look, error) {
	have.drop()
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if l := f.last; l != nil && l != have && time.Since(l.done) < FollowInterval {
		l.users.Add(1)
		return l, l.err
	}
	f.last.drop()
	f.last = nil
	l := &look{lease: &lease{of: f.archive.trees, namespace: f.target.Run.Namespace}}
	l.tree, l.err = f.archive.tree(ctx, f.target, l.lease, f.earlier)
	if ctx.Err() != nil {
		l.lease.end()
		return nil, context.Cause(ctx)
	}
	var busy *BusyError
	if l.err == nil {
		f.earlier = l.tree
	} else {
		l.lease.end()
	}
	if errors.As(l.err, &busy) {
		f.earlier = nil // nobody pays for it any more, and that may be so for long
	}
	l.done = time.Now()
	l.users.Store(2) // f, and the caller
	f.last = l
	return l, l.err
}

// TreeToFollow is Tree for who is about to follow the target with FollowRun, whose first look it is
// then. Where others follow it already, it is as they saw it at most FollowInterval ago. It is
// theirs too, and not to be changed. Its part of the memory is held until ctx ends, as with Tree.
func (a *Archive) TreeToFollow(ctx context.Context, target Target) (*Tree, error) {
	f, err := a.join(ctx, target)
	if err != nil {
		return nil, err
	}
	l, err := f.next(ctx, nil)
	done := func() {
		l.drop()
		f.leave()
	}
	if err != nil {
		done()
		return nil, err
	}
	context.AfterFunc(ctx, done)
	return l.tree, nil
}
