package backend

import (
	"context"
	"iter"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// These are the types of other packages that this package's functions take and return, under names that other modules can use.
type (
	// Config says where the bucket is.
	Config = objectstore.Config
	// Credentials are keys of the bucket; nil stands for what the AWS SDK finds.
	Credentials = objectstore.Credentials
	// Entry is an object, or a common prefix.
	Entry = objectstore.Entry
	// Run, RunIndex, PodKey, ContainerKey and Segment are what objects are named after.
	Run          = layout.Run
	RunIndex     = layout.RunIndex
	PodKey       = layout.Pod
	ContainerKey = layout.Container
	Segment      = layout.Segment
	// RunRecord, PodRecord and Seal are run.json, pod.json and seal.json.
	RunRecord = record.Run
	PodRecord = record.Pod
	Seal      = record.Seal
	// Namespace is one of those that had a name one after the other.
	Namespace = record.Namespace
	// Stream is where a line comes from, and Marker the text of a line of the stream "marker".
	Stream = criline.Stream
	Marker = criline.Marker
)

// ConfigFromEnv reads where the bucket is from the variables that the README lists.
func ConfigFromEnv() (Config, error) { return objectstore.ConfigFromEnv() }

// Open makes an Archive of a bucket. It sends nothing yet. The caller ends it with Close. Each of wrap, if there are any, sees all that is asked of the store.
func Open(ctx context.Context, config Config, wrap ...func(Store) Store) (*Archive, error) {
	store, err := objectstore.New(ctx, config)
	if err != nil {
		return nil, err
	}
	var wrapped Store = store
	for _, w := range wrap {
		wrapped = w(wrapped)
	}
	a := New(wrapped)
	a.now = store.Now // which what is around it does not have
	a.close = store.Close
	a.base = "s3://" + config.Bucket + "/"
	if p := strings.Trim(config.Prefix, "/"); p != "" {
		a.base += p + "/"
	}
	return a, nil
}

// Close closes idle connections.
func (a *Archive) Close() {
	if a.close != nil {
		a.close()
	}
}

// URL is where an object, or a prefix, is in the bucket, as s3://bucket/key. It needs an Archive of Open.
func (a *Archive) URL(key string) string { return a.base + key }

// Object is an object of a run.
type Object struct {
	Key      string    `json:"key"` // without what Config.Prefix adds
	URL      string    `json:"url"`
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"modified"`
}

// Objects yields the objects of a target in the order of their keys, so that the segments of each container are in the order of its log. It costs one LIST for each 1000 of them.
func (a *Archive) Objects(ctx context.Context, target Target) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		if err := a.admit(ctx, target.Run); err != nil {
			yield(Object{}, err)
			return
		}
		for e, err := range a.store.List(ctx, target.Prefix(), "", "", 0) {
			if !yield(Object{e.Key, a.URL(e.Key), e.Size, e.LastModified}, err) || err != nil {
				return
			}
		}
	}
}
