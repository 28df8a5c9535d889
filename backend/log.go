package backend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"runtime"
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

// Line is a line of a log, or a piece of one, and where it is.
type Line struct {
	criline.Line
	// Number is that of the line it belongs to, from 1: one more than the newlines that are archived before it, both streams together. Of two streams whose lines are mixed piece by piece, both pieces of
	// a line have the number that it had when they were printed.
	Number int64
	// Offset is how many printed bytes are archived before it, both streams together.
	Offset int64
}

// LogOptions choose what of a log is read. What is not zero holds together. Reading begins at the first segment that can hold something of it.
type LogOptions struct {
	// Tail, if positive, leaves only so many of the last ended lines, and what is behind them.
	// FollowRun yields all of the logs that come later.
	Tail int64
	// None leaves nothing of what is there when reading begins. FollowRun yields all of the logs that come later.
	None bool
	// FromLine and ToLine, if positive, are the numbers of the first and the last line.
	FromLine, ToLine int64
	// FromByte and ToByte, if positive, leave the lines that have at least a byte among the printed bytes from FromByte to before ToByte. Their text is whole.
	FromByte, ToByte int64
	// Since, if set, is the least time of the first line. Those behind it are read whatever their time is.
	Since time.Time
	// Idle, if set, is called by Follow and FollowRun each time when all that is there was yielded. Its error ends them.
	Idle func() error
	// Pass, if set, is called before each block of lines, so that others who wait for the processor
	// get their turn. Its error ends the reading.
	Pass func(context.Context) error

	// unchecked leaves out the comparison with the seal's digest. Each segment has a checksum of its own.
	unchecked bool
	// dull, if set, says of whole lines with their prefixes that none of them is of interest by itself. Then of these only lines are yielded that are put together of pieces.
	dull func(block []byte) bool
	// paid says that what it takes to read is paid for.
	paid bool
	// block, if set, is called behind lines that were read at once, where those that follow take longer. It returns false where no more are wanted.
	block func() bool
}

// Lines yields a container's lines in the order of the archive, and gaps as lines of the stream "marker" where they are. It reads one segment at a time: memory does not depend on the
// log. A line's text is good until the next one.
//
// Missing or corrupt segments become gaps with ReasonMissing where no other segment holds their bytes, and reading goes on behind them. A whole log whose digest is not the seal's ends with a *DigestError. Any other
// error is the store's, and ends the log.
func (a *Archive) Lines(ctx context.Context, c Container, o LogOptions) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		if !o.paid {
			done, err := a.hold(c.Key.Namespace, readCost)
			if err != nil {
				yield(Line{}, fmt.Errorf("read %s: %w", c.Key.Prefix(), err))
				return
			}
			defer done()
		}
		r := a.begin(c, o)
		r.blocks = a.take()
		defer a.spare.Put(r.blocks)
		if r.read(ctx, c, yield) {
			r.check(c, yield)
		}
	}
}

// reading is how far a container's log is read.
type reading struct {
	archive *Archive
	options LogOptions
	end     int64    // archive bytes
	at      position // of end
	named   int64    // printed bytes before end, as the names of segments count them
	// Of what is behind end: in a log that is followed, what was counted twice may turn out to be.
	least position

	unplaced  bool // of the segment that is read; see placed
	malformed int  // how many of its lines are none
	digest    hash.Hash
	whole     bool    // nothing is missing up to end
	blocks    *blocks // while it is read
	parser    criline.Parser
	// the last line of that stream has not ended; where options.dull is set
	pieces map[criline.Stream]bool
	since  bool // a line at or behind options.Since was there

	lists   int            // how often the log was listed anew
	dropped layout.Segment // corrupt, and the one of these that goes furthest
	why     error
}

// mostLists bounds how often a log is listed anew. It is compacted once.
const mostLists = 3

// begin chooses where to begin.
func (a *Archive) begin(c Container, o LogOptions) *reading {
	if o.None {
		o.FromByte = max(o.FromByte, c.Bytes)
	}
	if o.Tail > 0 {
		o.FromLine = max(o.FromLine, c.Lines-o.Tail+1)
	}
	r := &reading{archive: a, options: o, digest: sha256.New(), since: o.Since.IsZero(),
		pieces: map[criline.Stream]bool{}}
	if first := c.first(o); first > 0 {
		before, at := c.Segments[first-1], c.starts[first-1]
		r.end, r.named = before.End(), before.PrintedOffset+before.Printed
		r.at = position{at.lines + before.Lines, at.printed + before.Printed}
	} else {
		r.whole = true
	}
	return r
}

// first is the index of the segment to begin with.
func (c Container) first(o LogOptions) int {
	for i, s := range c.Segments {
		behind := position{c.starts[i].lines + s.Lines, c.starts[i].printed + s.Printed}
		// A line begins behind the newline of the one before it, in the same segment or a later one.
		if behind.lines >= o.FromLine-1 && (o.FromByte <= 0 || behind.printed > o.FromByte) && !s.Last.Before(o.Since) {
			return i
		}
	}
	return max(0, len(c.Segments)-1)
}

// wants says whether a line is among what the options choose, and whether any behind it can be.
func (r *reading) wants(l Line) (wanted, more bool) {
	o := r.options
	if o.ToLine > 0 && l.Number > o.ToLine || o.ToByte > 0 && l.Offset >= o.ToByte {
		return false, false
	}
	r.since = r.since || !l.Time.Before(o.Since)
	begun := l.Offset+max(1, l.Printed()) > o.FromByte
	return r.since && begun && l.Number >= o.FromLine, true
}

// read yields the container's lines behind what is read. It returns false where nothing more is wanted, or an error was yielded.
func (r *reading) read(ctx context.Context, c Container, yield func(Line, error) bool) bool {
	missing := func(at time.Time, n int64, why error) bool {
		r.whole = false
		l, err := missingLine(at, n, why)
		if err != nil {
			yield(Line{}, err)
			return false
		}
		placed := Line{Line: l, Number: r.at.lines + 1, Offset: r.at.printed}
		wanted, more := r.wants(placed)
		return more && (!wanted || yield(placed, nil))
	}
	var next window
	defer next.drop()
	order, reads := c.readingOrder(), 0
	for i, p := range order {
		s := *p.Segment
		if s.End() <= r.end {
			continue // others held it
		}
		if p.overlaps {
			// Another segment holds at least a part of it. Lines of a corrupt frame can be decompressed before its checksum is seen, so it is looked at first.
			err := r.archive.checkSegment(ctx, c.Key, s, r.blocks)
			var corrupt *segment.CorruptError
			if errors.As(err, &corrupt) {
				if s.End() > r.dropped.End() {
					r.dropped, r.why = s, err
				}
				continue
			}
			if errors.Is(err, fs.ErrNotExist) {
				next.drop()
				return r.again(ctx, c, s, err, yield)
			}
			if err != nil {
				yield(Line{}, err)
				return false
			}
		}
		if s.Offset > r.end {
			cause := errors.New("no object")
			if r.dropped.End() > r.end {
				cause = r.why
			}
			if !missing(s.First, s.PrintedOffset-r.named, cause) {
				return false
			}
		}
		r.unplaced = p.unplaced
		if !p.unplaced {
			r.at = p.start
		}
		offset, shown := s.Offset, int64(0)
		r.malformed = 0
		get := next.take(s)
		if get == nil {
			get = func() (io.ReadCloser, error) { return r.archive.store.Get(ctx, c.Key.SegmentKey(s)) }
		}
		// Who wants a little has it in the first segment, or in the first two. So no more is asked for ahead than was read.
		if reads++; reads > 2 && r.options.ToLine <= 0 && r.options.ToByte <= 0 {
			next.fill(ctx, r.archive, c.Key, order[i+1:], s.End(), min(reads-1, mostAhead))
		}
		for block, err := range segmentBlocks(get, s, r.blocks) {
			if ctx.Err() != nil { // what is in memory goes on for as long as a search takes
				yield(Line{}, context.Cause(ctx))
				return false
			}
			if r.options.Pass != nil {
				if err := r.options.Pass(ctx); err != nil {
					yield(Line{}, err)
					return false
				}
			}
			var corrupt *segment.CorruptError
			if errors.As(err, &corrupt) {
				if !missing(s.First, s.Printed-shown, err) {
					return false
				}
				break
			}
			if errors.Is(err, fs.ErrNotExist) {
				next.drop()
				return r.again(ctx, c, s, err, yield)
			}
			if err != nil {
				yield(Line{}, err)
				return false
			}
			more := r.lines(block, &offset, &shown, func(raw []byte, err error) bool {
				if r.malformed++; r.malformed > mostMalformed {
					return true
				}
				return missing(s.First, int64(len(raw)), err)
			}, yield)
			if !more {
				return false
			}
			if r.malformed > mostMalformed { // it was never meant to be read
				if !missing(s.First, s.Printed-shown, errMalformed) {
					return false
				}
				break
			}
		}
		r.end, r.named, r.least = s.End(), s.PrintedOffset+s.Printed, r.at
	}
	if r.dropped.End() > r.end {
		lost := r.dropped.PrintedOffset + r.dropped.Printed - r.named
		r.end, r.named = r.dropped.End(), r.dropped.PrintedOffset+r.dropped.Printed
		return missing(r.dropped.First, lost, r.why)
	}
	return true
}

// again goes on with a new list where a segment is not there any more: another one holds its bytes since the log was compacted (package compact).
func (r *reading) again(ctx context.Context, c Container, gone layout.Segment, why error, yield func(Line, error) bool) bool {
	now, err := r.archive.Container(ctx, c.Key)
	if err == nil && (r.lists == mostLists || slices.Contains(now.Segments, gone) || slices.Contains(now.covered, gone)) {
		err = why // it is there for whoever lists
	}
	if err != nil {
		yield(Line{}, err)
		return false
	}
	r.lists++
	return r.read(ctx, now, yield)
}

// mostMalformed is how many lines of a segment may be none before the rest of it is taken for missing:
// in a small object there can be a billion, and each is told of.
const mostMalformed = 1000

var errMalformed = fmt.Errorf("more than %d lines of the segment are none", mostMalformed)

// linesAtOnce is how many lines are read before others get the processor. Who reads little takes
// many steps, each of which waits for all who read much.
const linesAtOnce = 128

// lines yields the lines of a block that begins at an offset in the archive bytes, and adds to that offset and to the printed bytes of the segment.
func (r *reading) lines(block []byte, offset, shown *int64, malformed func([]byte, error) bool, yield func(Line, error) bool) bool {
	known := *offset < r.end // an earlier segment held some of it
	if !known && r.whole && !r.options.unchecked {
		r.digest.Write(block)
	}
	dull := r.options.dull != nil && r.options.dull(block)
	for n := 1; len(block) > 0; n++ {
		if n%linesAtOnce == 0 {
			runtime.Gosched()
		}
		raw := block[:bytes.IndexByte(block, '\n')+1]
		block = block[len(raw):]
		if *offset >= r.end {
			r.at = position{max(r.at.lines, r.least.lines), max(r.at.printed, r.least.printed)}
		}
		*offset += int64(len(raw))
		parsed, err := r.parser.Parse(raw[:len(raw)-1])
		l := Line{Line: parsed, Number: r.at.lines + 1, Offset: r.at.printed}
		printed := l.Printed()
		*shown += printed
		if !r.unplaced || *offset > r.end {
			r.at.printed += printed
			if l.Full && l.Stream != criline.Markers {
				r.at.lines++
			}
		}
		if known {
			if *offset <= r.end {
				continue
			}
			if r.whole && !r.options.unchecked {
				r.digest.Write(raw)
			}
		}
		if err != nil {
			if !malformed(raw, err) {
				return false
			}
			if r.malformed > mostMalformed {
				break // what is before it was read all the same
			}
			continue
		}
		if dull && l.Full && !r.pieces[l.Stream] {
			if !known && l.Stream != criline.Markers {
				lines, length := r.parser.Run(block)
				block = block[length:]
				*offset += int64(length)
				printed := int64(length - lines*criline.PrefixLen)
				*shown += printed
				r.at.printed += printed
				r.at.lines += int64(lines)
			}
			continue
		}
		if r.options.dull != nil {
			r.pieces[l.Stream] = !l.Full
		}
		if l.Stream == criline.Markers && !isGap(l.Text) {
			continue
		}
		wanted, more := r.wants(l)
		if !more || wanted && !yield(l, nil) {
			return false
		}
	}
	return r.options.block == nil || r.options.block()
}

// isGap says whether a marker is one that a reader shows: one of a kind that a later version writes is passed over. What is no marker is shown, since something is wrong there.
func isGap(text []byte) bool {
	m, err := criline.ParseMarker(text)
	return err != nil || m.Kind == criline.Gap
}

// check compares the digest of what was read with the seal's. A shipper that had lost its state, and went on, has no digest of the whole.
func (r *reading) check(c Container, yield func(Line, error) bool) {
	if r.options.unchecked || c.Seal == nil || c.Seal.SHA256 == "" || !r.whole || r.end != c.Seal.Bytes {
		return
	}
	if have := fmt.Sprintf("%x", r.digest.Sum(nil)); have != c.Seal.SHA256 {
		yield(Line{}, &DigestError{c.Key, c.Seal.SHA256, have})
	}
}

// placed is a segment, where it begins, and whether another holds some of its bytes too.
type placed struct {
	*layout.Segment
	start    position
	unplaced bool // where it begins is not known: its lines go on where those before it ended
	overlaps bool
}

// readingOrder are all of the container's segments by offset, and of two with the same offset the longer first. Those that others cover are among them: one of the others may be corrupt.
func (c Container) readingOrder() []placed {
	order := make([]placed, 0, len(c.Segments)+len(c.covered))
	for i := range c.Segments {
		order = append(order, placed{Segment: &c.Segments[i], start: c.starts[i]})
	}
	if len(c.covered) > 0 {
		known := placesOf(slices.Concat(c.Segments, c.covered))
		for i, s := range c.Segments {
			known.anchor(s.Offset, c.starts[i])
		}
		for j := range c.covered {
			s := &c.covered[j]
			at, ok := known.at(s.Offset)
			if i, _ := slices.BinarySearchFunc(c.Segments, *s, compareSegments); !ok && i > 0 {
				at, ok = segmentWithin(c.Segments[i-1], *s)
				at = at.behind(c.starts[i-1])
			}
			order = append(order, placed{Segment: s, start: at, unplaced: !ok || c.Estimated})
		}
	}
	slices.SortFunc(order, func(a, b placed) int { return compareSegments(*a.Segment, *b.Segment) })
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
func (a *Archive) checkSegment(ctx context.Context, c layout.Container, s layout.Segment,
	b *blocks) error {
	get := func() (io.ReadCloser, error) { return a.store.Get(ctx, c.SegmentKey(s)) }
	for _, err := range segmentBlocks(get, s, b) {
		if err != nil {
			return err
		}
	}
	return nil
}

// missingLine makes the marker of a gap in the archive itself.
func missingLine(at time.Time, n int64, why error) (criline.Line, error) {
	marked, err := criline.AppendMarker(nil, at, criline.Marker{
		Kind: criline.Gap, Reason: ReasonMissing, Stdout: max(0, n), Unknown: true, Detail: why.Error(),
	})
	if err != nil {
		return criline.Line{}, err
	}
	return criline.Parse(marked[:len(marked)-1])
}

// blockBytes is how much of a segment is decompressed at once. A line always fits.
const blockBytes = 4 * criline.MaxLen

// blocks is what decompresses one segment after another, and into what.
type blocks struct {
	reader segment.Reader
	memory []byte
}

// take returns blocks that nobody uses: to make them costs more than to read a small log. The
// caller puts them into a.spare.
func (a *Archive) take() *blocks {
	if b, ok := a.spare.Get().(*blocks); ok {
		return b
	}
	return &blocks{}
}

// A window is of so many segments, but only of one where they are large: several hide a store's delay, which for the small ones of a slow step is nearly all of their time.
const (
	mostAhead  = 8
	bytesAhead = 4 << 20 // of archive
)

// window holds the segments that are asked for while one is read, in the order in which they will be.
type window struct{ queue []*ahead }

// ahead is one of them.
type ahead struct {
	segment layout.Segment
	get     func() (io.ReadCloser, error)
	cancel  context.CancelFunc
	done    chan struct{} // closed when what follows is set
	object  io.ReadCloser
	err     error
}

// fill asks for what is behind end, as the reading will, until so many are asked for.
func (w *window) fill(ctx context.Context, a *Archive, c layout.Container, behind []placed, end int64, most int) {
	n, total := 0, int64(0)
	for _, p := range behind {
		if p.End() <= end {
			continue // others held it
		}
		end = p.End()
		total += p.Length
		if n == most || n > 0 && total > bytesAhead {
			return
		}
		if n == len(w.queue) {
			w.queue = append(w.queue, a.fetchAhead(ctx, c, *p.Segment))
		}
		n++
	}
}

func (a *Archive) fetchAhead(ctx context.Context, c layout.Container, s layout.Segment) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	f := &ahead{segment: s, cancel: cancel, done: make(chan struct{})}
	f.get = func() (io.ReadCloser, error) { return a.store.Get(ctx, c.SegmentKey(s)) }
	go func() { // ends with the answer; take's function and drop wait for it
		defer close(f.done)
		f.object, f.err = f.get()
	}()
	return f
}

// take returns what waits for the segment's object, or nil if another one is next: where one was corrupt, what others held of it is read.
func (w *window) take(s layout.Segment) func() (io.ReadCloser, error) {
	if len(w.queue) == 0 || w.queue[0].segment != s {
		w.drop()
		return nil
	}
	f := w.queue[0]
	w.queue = w.queue[1:]
	return func() (io.ReadCloser, error) {
		<-f.done
		if f.err != nil {
			f.cancel()
			return nil, f.err
		}
		return &idle{ReadCloser: f.object, get: f.get, cancel: f.cancel}, nil
	}
}

// drop ends all that was asked for and is not wanted.
func (w *window) drop() {
	for _, f := range w.queue {
		f.cancel()
		<-f.done
		if f.err == nil {
			f.object.Close() // opened for reading: there is nothing to lose
		}
	}
	w.queue = nil
}

// idle is an object that was opened before it was needed. It ends its context when it is closed.
type idle struct {
	io.ReadCloser
	get    func() (io.ReadCloser, error)
	cancel context.CancelFunc
	begun  bool
}

// Read implements io.Reader. Where who reads is slow, the store may have closed the connection before the first byte was wanted: then the object is opened once more.
func (f *idle) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	begun := f.begun
	f.begun = true
	if begun || n > 0 || err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	again, getErr := f.get()
	if getErr != nil {
		return 0, getErr
	}
	f.ReadCloser.Close() // opened for reading: there is nothing to lose
	f.ReadCloser = again
	return f.ReadCloser.Read(p)
}

func (f *idle) Close() error {
	defer f.cancel()
	return f.ReadCloser.Close()
}

// segmentBlocks yields the lines of one segment with their newlines, many at once. They are good until the next ones.
func segmentBlocks(get func() (io.ReadCloser, error), s layout.Segment, b *blocks) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		object, err := get()
		if err != nil {
			yield(nil, err)
			return
		}
		defer object.Close()
		if err := b.reader.Open(object, s); err != nil {
			yield(nil, err)
			return
		}
		if b.memory == nil {
			b.memory = make([]byte, blockBytes)
		}
		block, held := b.memory, 0 // held bytes are the beginning of a line
		for {
			n, err := b.reader.Read(block[held:])
			have := held + n
			end := held + bytes.LastIndexByte(block[held:have], '\n') + 1
			if end > held {
				if !yield(block[:end], nil) {
					return
				}
				held = copy(block, block[end:have])
			} else {
				held = have
			}
			switch {
			case errors.Is(err, io.EOF) && held == 0:
				return
			case errors.Is(err, io.EOF), err == nil && held >= criline.MaxLen:
				yield(nil, &segment.CorruptError{Segment: s, Err: criline.ErrMalformed})
				return
			case err != nil:
				yield(nil, err)
				return
			}
		}
	}
}
