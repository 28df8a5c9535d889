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
	Tail int64 // if positive, only the last lines
}

// Lines yields a container's lines in the order of the archive, and gaps as lines of the stream "marker" where they are. It reads one segment at a time: memory does not depend on the
// log. A line's text is good until the next one.
//
// Missing or corrupt segments become gaps with ReasonMissing, and reading goes on behind them. A whole log whose digest is not the seal's ends with a *DigestError. Any other
// error is the store's, and ends the log.
func (a *Archive) Lines(ctx context.Context, c Container, o LogOptions) iter.Seq2[criline.Line, error] {
	return func(yield func(criline.Line, error) bool) {
		segments, skip := c.Segments, int64(0)
		if o.Tail > 0 {
			segments, skip = tail(c.Segments, o.Tail)
		}
		whole := len(segments) == len(c.Segments)
		digest := sha256.New()
		end := int64(0)
		if len(segments) > 0 && !whole {
			end = segments[0].Offset
		}
		for _, s := range segments {
			if s.Offset > end {
				whole = false
				if !yield(missing(s, s.Offset-end, errors.New("no object"))) {
					return
				}
			}
			line := s.Line
			for raw, err := range a.segmentLines(ctx, c.Key, s, end-s.Offset) {
				var corrupt *segment.CorruptError
				if errors.As(err, &corrupt) {
					whole = false
					if !yield(missing(s, s.Length, err)) {
						return
					}
					break
				}
				if err != nil {
					yield(criline.Line{}, err)
					return
				}
				digest.Write(raw)
				l, err := criline.Parse(raw[:len(raw)-1])
				if err != nil {
					whole = false
					if !yield(missing(s, int64(len(raw)), err)) {
						return
					}
					continue
				}
				wanted := line >= skip || l.Stream == criline.Markers
				if l.Full && l.Stream != criline.Markers {
					line++
				}
				if wanted && !yield(l, nil) {
					return
				}
			}
			end = s.End()
		}
		// A shipper that had lost its state, and went on, has no digest of the whole.
		if c.Seal != nil && c.Seal.SHA256 != "" && whole && end == c.Seal.Bytes {
			if have := fmt.Sprintf("%x", digest.Sum(nil)); have != c.Seal.SHA256 {
				yield(criline.Line{}, &DigestError{c.Key, c.Seal.SHA256, have})
			}
		}
	}
}

// tail returns the segments that hold the last n lines, and the number of the first of these.
func tail(segments []layout.Segment, n int64) ([]layout.Segment, int64) {
	if len(segments) == 0 {
		return nil, 0
	}
	last := segments[len(segments)-1]
	first := max(0, last.Line+last.Lines-n)
	// Line numbers rise with the segments.
	i, _ := slices.BinarySearchFunc(segments, first, func(s layout.Segment, first int64) int {
		if s.Line+s.Lines <= first {
			return -1
		}
		return 1
	})
	return segments[min(i, len(segments)-1):], first
}

// missing makes the marker of a gap in the archive itself.
func missing(s layout.Segment, n int64, err error) (criline.Line, error) {
	marked, encodeErr := criline.AppendMarker(nil, s.First, criline.Marker{
		Kind: criline.Gap, Reason: ReasonMissing, Stdout: n, Unknown: true, Detail: err.Error(),
	})
	if encodeErr != nil {
		return criline.Line{}, encodeErr
	}
	return criline.Parse(marked[:len(marked)-1])
}

// segmentLines yields the lines of one segment with their newlines, without the first skip archive bytes, which an earlier segment held.
func (a *Archive) segmentLines(ctx context.Context, c layout.Container, s layout.Segment, skip int64) iter.Seq2[[]byte, error] {
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
		if skip > 0 {
			if _, err := io.CopyN(io.Discard, r, skip); err != nil {
				yield(nil, err)
				return
			}
		}
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
