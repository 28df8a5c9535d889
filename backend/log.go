package backend

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"

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
// Missing or corrupt segments become gaps with ReasonMissing, and reading goes on behind them. A whole log whose digest is not the seal's ends with a *DigestError. Any other
// error is the store's, and ends the log.
func (a *Archive) Lines(ctx context.Context, c Container, o LogOptions) iter.Seq2[criline.Line, error] {
	return func(yield func(criline.Line, error) bool) {
		first, skip := 0, int64(0)
		if o.Tail > 0 {
			first, skip = tail(c.Segments, o.Tail)
		}
		whole := first == 0
		digest := sha256.New()
		var end, printed int64 // where the last segment ended, in archive and in printed bytes
		if first > 0 {
			s := c.Segments[first-1]
			end, printed = s.End(), s.PrintedOffset+s.Printed
		}
		for _, s := range c.Segments[first:] {
			if s.Offset > end {
				whole = false
				if !yield(missing(s, s.PrintedOffset-printed, errors.New("no object"))) {
					return
				}
			}
			at, shown := s.Offset, int64(0)
			for raw, err := range a.segmentLines(ctx, c.Key, s) {
				var corrupt *segment.CorruptError
				if errors.As(err, &corrupt) {
					whole = false
					if !yield(missing(s, s.Printed-shown, err)) {
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
					if !yield(missing(s, int64(len(raw)), err)) {
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

// missing makes the marker of a gap in the archive itself.
func missing(s layout.Segment, n int64, err error) (criline.Line, error) {
	marked, encodeErr := criline.AppendMarker(nil, s.First, criline.Marker{
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
