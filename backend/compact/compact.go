// Package compact puts the many small segments of a slow step's log together, once the log is sealed.
//
// It needs nothing of the format but what is there (docs/format.md, "Order, overlap, holes"): of two segments at one offset a reader takes the longer one. So the large segments are stored first. Only in a later pass, when
// nobody can still be at a list that was begun before, and when they were read back and their bytes have the seal's digest, the small ones are deleted. There is no moment at which a log has less. A reader that has an
// older list of its objects lists them again. What is done twice, or by two at once, or broken off, has the same outcome: the same segments have the same names and bytes whoever makes them.
package compact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

const (
	// segmentBytes is how many archive bytes a segment gets at most: twice as many as the shipper gives it where a step prints fast, so that a part of a log stays cheap to read.
	segmentBytes = 8 << 20
	// leastSaved is how many segments less a log must become. Those that a step of a few minutes leaves are read in some tenths of a second anyway, and not worth a request for each.
	leastSaved = 100
	// atOnce is how many objects are asked for, or deleted, at the same time.
	atOnce = 16
	// batchBytes bounds what is held of a group's objects at once, but for a single one that is larger.
	batchBytes = 1 << 20
	// mostLength is the longest segment of a log that is looked at, in archive bytes, and mostRatio how
	// many times larger than its objects such a log may be: a log of small segments is far below both,
	// and one that was forged to be unpacked for hours is not.
	mostLength = 2 * segmentBytes
	mostRatio  = 1000
	// settle is how long large segments are there beside the small ones: longer than a reader takes from one page of a list to the next.
	settle = 15 * time.Minute
)

// Store is what has to be done beside listing. *objectstore.Store is one.
type Store interface {
	Get(ctx context.Context, key string) (io.ReadCloser, error)
	Put(ctx context.Context, key string, body []byte) error
	Delete(ctx context.Context, key string) error
}

// Outcome is what was done to a log.
type Outcome struct {
	Stored  int  // large segments
	Deleted int  // small ones
	Waits   bool // there is something left to do, later
}

// Log does the next thing that is to be done about a container's log, if there is any: it stores large segments, or deletes the small ones that these hold. Now is compared with when the store last got something of the pod.
func Log(ctx context.Context, store Store, place backend.Place, now time.Time) (Outcome, error) {
	c := place.Container
	if !whole(c) {
		return Outcome{}, nil
	}
	m := &maker{store: store, key: c.Key, buf: make([]byte, 128<<10)}
	var o Outcome
	var err error
	switch groups := plan(c); {
	case len(c.Covered()) > 0 && now.Sub(place.Pod.LastSeen) < settle:
		o.Waits = true
	case len(c.Covered()) > 0:
		o.Deleted, err = m.drop(ctx, c)
	case groups != nil:
		o.Stored, err = m.combine(ctx, groups)
		o.Waits = true
	}
	if err != nil {
		return Outcome{Waits: true}, fmt.Errorf("compact %s: %w", c.Key.Prefix(), err)
	}
	return o, nil
}

// whole says whether a log is sealed with its digest, and its segments follow one another. Where a shipper had lost its state, numbers begin anew, or segments overlap; that is rare, and stays as it is.
func whole(c backend.Container) bool {
	if c.Status != backend.Verified && c.Status != backend.Gaps || c.Seal == nil || c.Seal.SHA256 == "" {
		return false
	}
	var end layout.Segment
	for _, s := range c.Segments {
		if s.Length > mostLength || s.Offset != end.End() || s.PrintedOffset != end.PrintedOffset+end.Printed || s.Line != end.Line+end.Lines {
			return false
		}
		end = s
	}
	return end.End() == c.Seal.Bytes && c.Archive/mostRatio <= c.Stored
}

// forged says whether an error is of what is in the store, and not of reaching it: trying again has
// the same outcome.
func forged(err error) bool {
	var corrupt *segment.CorruptError
	var digest *backend.DigestError
	return errors.As(err, &corrupt) || errors.As(err, &digest)
}

// plan says which segments are put together; a group of one stays as it is. It is nil where that is not worth it.
func plan(c backend.Container) (groups [][]layout.Segment) {
	for _, s := range c.Segments {
		last := len(groups) - 1
		if last >= 0 && s.End()-groups[last][0].Offset <= segmentBytes {
			groups[last] = append(groups[last], s)
		} else {
			groups = append(groups, []layout.Segment{s})
		}
	}
	if len(groups) > len(c.Segments)/4 || len(c.Segments)-len(groups) < leastSaved {
		return nil
	}
	return groups
}

// maker works on one log.
type maker struct {
	store  Store
	key    layout.Container
	reader segment.Reader
	buf    []byte
}

// combine stores each group as one segment.
func (m *maker) combine(ctx context.Context, groups [][]layout.Segment) (stored int, err error) {
	w, err := segment.NewWriter()
	if err != nil {
		return 0, err
	}
	for _, group := range groups {
		if len(group) == 1 {
			continue
		}
		w.Begin(group[0].Offset, group[0].PrintedOffset, group[0].Line)
		for rest := group; len(rest) > 0; {
			batch := rest[:batchOf(rest)]
			rest = rest[len(batch):]
			if err := m.append(ctx, w, batch); err != nil {
				return stored, err
			}
		}
		made, body, err := w.Finish()
		if err != nil {
			return stored, err
		}
		if err := m.store.Put(ctx, m.key.SegmentKey(made), body); err != nil {
			return stored, err
		}
		stored++
	}
	return stored, nil
}

// batchOf is how many of the segments are read at once.
func batchOf(segments []layout.Segment) int {
	total := int64(0)
	for i, s := range segments {
		if total += segment.MaxStored(s.Length); i > 0 && (i == atOnce || total > batchBytes) {
			return i
		}
	}
	return len(segments)
}

// append adds segments to one that is made.
func (m *maker) append(ctx context.Context, w *segment.Writer, batch []layout.Segment) error {
	bodies, err := m.fetch(ctx, batch)
	if err != nil {
		return err
	}
	for i, s := range batch {
		counts := criline.Tally{Stdout: s.Printed, Lines: s.Lines, First: s.First, Last: s.Last} // as its name has them, with its first bytes
		err := m.read(bytes.NewReader(bodies[i]), s, func(b []byte) error {
			counts.Bytes = int64(len(b))
			err := w.Append(b, counts)
			counts.Stdout, counts.Lines = 0, 0
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// drop deletes what others hold, when these were read and have the seal's digest.
func (m *maker) drop(ctx context.Context, c backend.Container) (deleted int, err error) {
	digest := sha256.New()
	for _, s := range c.Segments {
		object, err := m.store.Get(ctx, m.key.SegmentKey(s))
		if err != nil {
			return 0, err
		}
		err = m.read(object, s, func(b []byte) error { _, err := digest.Write(b); return err })
		object.Close() // opened for reading: there is nothing to lose
		if err != nil {
			return 0, err
		}
	}
	if sum := hex.EncodeToString(digest.Sum(nil)); sum != c.Seal.SHA256 {
		return 0, &backend.DigestError{Container: c.Key, Want: c.Seal.SHA256, Have: sum}
	}
	covered := c.Covered()
	return len(covered), each(ctx, len(covered), func(ctx context.Context, i int) error {
		return m.store.Delete(ctx, m.key.SegmentKey(covered[i]))
	})
}

// fetch gets the objects of a batch. Of one that is larger than a segment of its length can be,
// there is a byte too many.
func (m *maker) fetch(ctx context.Context, group []layout.Segment) ([][]byte, error) {
	bodies := make([][]byte, len(group))
	return bodies, each(ctx, len(group), func(ctx context.Context, i int) error {
		object, err := m.store.Get(ctx, m.key.SegmentKey(group[i]))
		if err != nil {
			return err
		}
		defer object.Close() // opened for reading: there is nothing to lose
		bodies[i], err = io.ReadAll(io.LimitReader(object, segment.MaxStored(group[i].Length)+1))
		return err
	})
}

// each does f for each of n, several at a time.
func each(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error { return f(ctx, i) })
	}
	return group.Wait()
}

// read hands on the bytes of a segment, and fails where they are not what its name says.
func (m *maker) read(object io.Reader, s layout.Segment, to func([]byte) error) error {
	if err := m.reader.Open(object, s); err != nil {
		return err
	}
	for {
		n, err := m.reader.Read(m.buf)
		if n > 0 {
			if err := to(m.buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
