package live

import (
	"context"
	"errors"
	"io/fs"
	"iter"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// Bucket is an Archive that is read straight from S3.
type Bucket struct{ *backend.Archive }

// Tree implements Archive.
func (b Bucket) Tree(ctx context.Context, namespace string, kind layout.RunKind, ref string) (*backend.Tree, backend.Target, error) {
	find := b.Find
	switch kind {
	case layout.PipelineRun:
		find = b.FindPipelineRun
	case layout.TaskRun:
		find = b.FindTaskRun
	}
	target, err := find(ctx, namespace, ref)
	if err != nil {
		return nil, target, err
	}
	tree, err := b.Archive.Tree(ctx, target)
	return tree, target, notFound(err, namespace, ref)
}

// Again reads what an earlier tree is of anew, as backend.Archive does.
func (b Bucket) Again(ctx context.Context, earlier *backend.Tree) (*backend.Tree, error) {
	tree, err := b.Archive.Again(ctx, earlier)
	return tree, notFound(err, earlier.Run.Namespace, earlier.Run.UID)
}

// notFound makes a *backend.NotFoundError where nothing is there: the index comes before the logs,
// and goes behind them.
func notFound(err error, namespace, ref string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &backend.NotFoundError{Namespace: namespace, Ref: ref}
	}
	return err
}

// Lines implements Archive.
func (b Bucket) Lines(ctx context.Context, c *backend.Container, o backend.LogOptions, follow bool) iter.Seq2[backend.Line, error] {
	if follow {
		return b.Follow(ctx, c, o)
	}
	return func(yield func(backend.Line, error) bool) {
		if c.Status == backend.Running { // more may have come since
			now, err := b.Container(ctx, c.Key)
			if err != nil {
				yield(backend.Line{}, err)
				return
			}
			kind := c.Kind
			*c = now
			c.Kind = kind
		}
		b.Archive.Lines(ctx, *c, o)(yield)
	}
}
