package backend

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// ReasonMissing is the reason of a gap that is not in the archive: bytes of the archive itself are missing, or cannot be decompressed. The reader makes the marker.
const ReasonMissing criline.Reason = "missing"

// DigestError says that a whole log was read whose bytes are not those that were sealed.
type DigestError struct {
	Container  layout.Container
	Want, Have string
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("the log under %s is not what was sealed: its SHA-256 is %s, not %s", e.Container.Prefix(), e.Have, e.Want)
}

// LogOptions choose what of a log is read.
type LogOptions struct {
	// Tail, if positive, leaves only so many of the last ended lines, and what is behind them.
	Tail int64
}

// Lines yields a container's lines in the order of the archive, and gaps as lines of the stream "marker" where they are. It reads one segment at a time: memory does not depend on the
// log. A line's text is good until the next one.
//
// Missing or corrupt segments become gaps with ReasonMissing where no other segment holds their bytes, and reading goes on behind them. A whole log whose digest is not the seal's ends with a *DigestError. Any other
// error is the store's, and ends the log.
func (a *Archive) Lines(ctx context.Context, c Container, o LogOptions) iter.Seq2[criline.Line, error] {
	return func(yield func(criline.Line, error) bool) {
		first, skip := 0, int64(0)
		if o.Tail > 0 {
			first, skip = tail(c.Segments, o.Tail)
		}
		whole := first == 0
		digest := sha256.New()
		var end, printed int64 // how far the log is read, in archive and in printed bytes
		if first > 0 {
			s := c.Segments[first-1]
			end, printed = s.End(), s.PrintedOffset+s.Printed
		}
		var dropped layout.Segment // corrupt, and the one of these that goes furthest
		var why error
		for _, p := range c.readingOrder() {
			s := p.Segment
			if s.End() <= end {
				continue // others held it
			}
			if p.overlaps {
				// Another segment holds at least a part of it. Lines of a corrupt frame can be decompressed before its checksum is seen, so it is looked at first.
				err := a.checkSegment(ctx, c.Key, s)
				var corrupt *segment.CorruptError
				if errors.As(err, &corrupt) {
					if s.End() > dropped.End() {
						dropped, why = s, err
					}
					continue
				}
				if err != nil {
					yield(criline.Line{}, err)
					return
				}
			}
			if s.Offset > end {
				whole = false
				cause := errors.New("no object")
				if dropped.End() > end {
					cause = why
				}
				if !yield(missing(s.First, s.PrintedOffset-printed, cause)) {
					return
				}
			}
			at, shown := s.Offset, int64(0)
			for raw, err := range a.segmentLines(ctx, c.Key, s) {
				var corrupt *segment.CorruptError
				if errors.As(err, &corrupt) {
					whole = false
					if !yield(missing(s.First, s.Printed-shown, err)) {
						return
					}
					break
				}
				if err != nil {
					yield(criline.Line{}, err)
					return
				}
				at += int64(len(raw))
				l, err := criline.Parse(raw[:len(raw)-1])
				shown += l.Printed()
				if at <= end {
					continue // an earlier segment held it
				}
				digest.Write(raw)
				if err != nil {
					whole = false
					if !yield(missing(s.First, int64(len(raw)), err)) {
						return
					}
					continue
				}
				wanted := skip <= 0
				if l.Full && l.Stream != criline.Markers {
					skip--
				}
				if wanted && !yield(l, nil) {
					return
				}
			}
			end, printed = s.End(), s.PrintedOffset+s.Printed
		}
		if dropped.End() > end {
			whole = false
			if !yield(missing(dropped.First, dropped.PrintedOffset+dropped.Printed-printed, why)) {
				return
			}
		}
		// A shipper that had lost its state, and went on, has no digest of the whole.
		if c.Seal != nil && c.Seal.SHA256 != "" && whole && end == c.Seal.Bytes {
			if have := fmt.Sprintf("%x", digest.Sum(nil)); have != c.Seal.SHA256 {
				yield(criline.Line{}, &DigestError{c.Key, c.Seal.SHA256, have})
			}
		}
	}
}

// tail returns the index of the segment to begin with for the last n lines, and how many newlines to skip from there on. It begins one line early, which may have begun in the segment
// before.
func tail(segments []layout.Segment, n int64) (first int, skip int64) {
	lines := int64(0)
	for first = len(segments); first > 0 && lines <= n; {
		first--
		s := segments[first]
		lines += s.Lines
		if first > 0 {
			// Lines that the segment before holds too count once. Line numbers begin anew only where a shipper had lost its state.
			if before := segments[first-1]; s.Line >= before.Line {
				lines -= max(0, before.Line+before.Lines-s.Line)
			}
		}
	}
	return first, lines - n
}

// placed is a segment, and whether another holds some of its bytes too.
type placed struct {
	layout.Segment
	overlaps bool
}

// readingOrder are all of the container's segments by offset, and of two with the same offset the longer first. Those that others cover are among them: one of the others may be corrupt.
func (c Container) readingOrder() []placed {
	order := make([]placed, 0, len(c.Segments)+len(c.covered))
	for _, s := range slices.Concat(c.Segments, c.covered) {
		order = append(order, placed{Segment: s})
	}
	slices.SortFunc(order, func(a, b placed) int { return compareSegments(a.Segment, b.Segment) })
	end, last := int64(0), 0 // of what is before, and where it is
	for i, p := range order {
		if p.Offset < end {
			order[i].overlaps, order[last].overlaps = true, true
		}
		if p.End() > end {
			end, last = p.End(), i
		}
	}
	return order
}

// checkSegment reads a segment to its end.
func (a *Archive) checkSegment(ctx context.Context, c layout.Container, s layout.Segment) error {
	for _, err := range a.segmentLines(ctx, c, s) {
		if err != nil {
			return err
		}
	}
	return nil
}

// missing makes the marker of a gap in the archive itself.
func missing(at time.Time, n int64, err error) (criline.Line, error) {
	marked, encodeErr := criline.AppendMarker(nil, at, criline.Marker{
		Kind: criline.Gap, Reason: ReasonMissing, Stdout: max(0, n), Unknown: true, Detail: err.Error(),
	})
	if encodeErr != nil {
		return criline.Line{}, encodeErr
	}
	return criline.Parse(marked[:len(marked)-1])
}

// segmentLines yields the lines of one segment with their newlines.
func (a *Archive) segmentLines(ctx context.Context, c layout.Container, s layout.Segment) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		object, err := a.store.Get(ctx, c.SegmentKey(s))
		if err != nil {
			yield(nil, err)
			return
		}
		defer object.Close()
		r, err := segment.NewReader(object, s)
		if err != nil {
			yield(nil, err)
			return
		}
		defer r.Close()
		lines := bufio.NewReaderSize(r, criline.MaxLen)
		for {
			raw, err := lines.ReadSlice('\n')
			switch {
			case err == nil:
				if !yield(raw, nil) {
					return
				}
			case errors.Is(err, io.EOF) && len(raw) == 0:
				return
			case errors.Is(err, io.EOF), errors.Is(err, bufio.ErrBufferFull):
				yield(nil, &segment.CorruptError{Segment: s, Err: criline.ErrMalformed})
				return
			default:
				yield(nil, err)
				return
			}
		}
	}
}
