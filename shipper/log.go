package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

const (
	// trickle is how many segments a log may cut by age before it is cut at the slow interval, and pause the silence after which it starts anew. At
	// 1 s and 5 s this is two minutes of one line a second, and some 830 objects of an hour of them.
	trickle = 130
	pause   = 30 * time.Second
	// hurryInterval is the age at which logs are cut after SIGTERM, and one whose container has ended. It is not 0, since a step can make these marks itself, at any time.
	hurryInterval = 100 * time.Millisecond
	// batch is how many archive bytes are read and compressed at once.
	batch = 128 << 10
	// mostPassed is how many bytes of the spool one segment may pass over. Where they are lines, it is full before.
	mostPassed = 64 << 20
	// farthest is the largest offset that a log begins at. A step can name its first file by the largest number that there is, and nothing would have a place behind that.
	farthest = 1 << 62
)

// containerLog is one container's log on its way: what is in the spool behind the position is cut into a segment, recorded, uploaded, and deleted.
type containerLog struct {
	name    string
	folder  string
	reader  *spool.Reader // nil until the folder can be opened
	dir     stateDir
	shipper *shipper
	holder  *holder // nil where it could not be started

	state    state
	status   spool.Status
	end      *spool.End // what tee said at the end, if it did; as of the last look
	lastCut  time.Time
	lastData time.Time
	sealedAt time.Time // zero if this process has not sealed it
	byAge    int       // segments cut by age since the last pause
	unsaved  bool      // a failure to record was logged

	// What follows is of a container whose tee was killed, one after the other.
	dead    *spool.Held // until rest is begun
	rest    *rest       // until it is shipped
	drained bool        // it is known what the rest was, and it is shipped
	killed  bool        // all is shipped, and the container has not begun again

	// What follows is of an object that the store refuses. This log waits, and no other.
	refusals int
	wait     backoff
	holdTo   time.Time // nothing is tried before
}

// open opens the folder, if that is not done yet, and finds the position.
func (l *containerLog) open() error {
	if l.reader != nil {
		return nil
	}
	reader, err := spool.OpenReader(l.folder, &l.shipper.buffers)
	if err != nil {
		return err
	}
	l.state, err = l.dir.load(l.name)
	if err == nil {
		// An earlier shipper may have been killed before it had deleted what it had shipped, which tee counts as output that waits.
		shipped := l.state.Position
		if l.state.Pending != "" {
			shipped = l.state.Before.Position
		}
		if err := reader.Trim(shipped); err != nil {
			return errors.Join(err, reader.Close())
		}
		l.reader = reader
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		l.shipper.log.Warn("the position is lost: the log is shipped again from the first file in the spool", "container", l.name, "error", err)
	}
	// What is not in the spool any more was shipped. Without markers of the shipper's own, a spool file's base is its offset in the archive too, so that the log goes on
	// where it was or overlaps, and readers take what has one offset once.
	first, _, err := reader.First()
	if err != nil {
		return errors.Join(err, reader.Close())
	}
	l.state = state{Position: spool.Position{Base: first}, Bytes: min(first, farthest), Resumed: first > 0}
	l.reader = reader
	return nil
}

func (l *containerLog) close() error {
	var errs []error
	l.forgetDead()
	if l.rest != nil {
		l.rest.close()
	}
	if l.holder != nil {
		errs = append(errs, l.holder.close())
	}
	if l.reader != nil {
		errs = append(errs, l.reader.Close())
	}
	return errors.Join(errs...)
}

func (l *containerLog) look() error {
	if err := l.open(); err != nil {
		return err
	}
	// First, since tee says how the container ended before it lets go.
	if l.holder != nil && l.dead == nil && l.rest == nil {
		l.dead = l.holder.claimDead()
	}
	status, err := l.reader.Look(l.state.Position)
	if err != nil {
		return err
	}
	l.status, l.end = status, nil
	if status.Ended {
		if l.holder != nil {
			l.holder.release()
		}
		if end, ok := l.reader.End(); ok {
			l.end = &end
		}
	} else if l.holder != nil {
		if end, ok := l.holder.end(); ok { // the spool cannot be written
			l.status.Ended, l.end = true, &end
		}
	}
	if l.status.Ended || l.beganAgain() {
		l.forgetDead()
		l.unbury()
	} else if !l.killed {
		l.unbury() // the shipper began again: nobody knows what the container did meanwhile
	}
	return nil
}

// gapAtEnd returns the gap that tee could not mark itself, if it is not marked yet.
func (l *containerLog) gapAtEnd() *criline.Marker {
	if l.end == nil || l.end.Gap == nil || l.state.EndMarked == l.end.Printed.Total() {
		return nil
	}
	return l.end.Gap
}

// interval is the age at which the log is cut now.
func (l *containerLog) interval() time.Duration {
	if l.byAge >= trickle {
		return time.Duration(l.shipper.config.SlowFlushInterval)
	}
	return time.Duration(l.shipper.config.FlushInterval)
}

// due says whether a segment is to be cut now, and otherwise how long to wait.
func (l *containerLog) due(now time.Time, hurry bool) (bool, time.Duration) {
	switch {
	case l.state.Pending != "":
		return true, 0
	case l.status.Available == 0 && l.gapAtEnd() == nil:
		return false, tick
	case l.status.Available >= l.shipper.config.SegmentBytes || l.status.More:
		return true, 0
	}
	interval := l.interval()
	if hurry || l.status.Ended {
		interval = min(interval, hurryInterval)
	}
	if wait := interval - now.Sub(l.lastCut); wait > 0 {
		return false, wait
	}
	return true, 0
}

// put uploads one of the log's objects. One that the store refuses is left for a later pass, so that it does not hold up the other logs.
func (l *containerLog) put(ctx context.Context, name string, body []byte, now time.Time) error {
	err := l.shipper.upload.put(ctx, l.name+"/"+name, body)
	var refusal *refused
	switch {
	case errors.As(err, &refusal):
		if l.refusals == 0 {
			l.shipper.log.Warn("failed; trying again until it succeeds", "what", "upload "+l.name+"/"+name, "error", err)
		}
		l.refusals++
		l.holdTo = now.Add(l.wait.next())
	case err == nil && l.refusals > 0:
		l.shipper.log.Info("recovered", "what", "upload "+l.name+"/"+name, "failures", l.refusals)
		l.refusals, l.wait, l.holdTo = 0, 0, time.Time{}
	}
	return err
}

// ship cuts and uploads one segment if it is due, and seals the log when its container has ended and all is shipped. It returns how long nothing will be due.
func (l *containerLog) ship(ctx context.Context, now time.Time, hurry bool) (time.Duration, error) {
	if l.status.Available > 0 {
		if now.Sub(l.lastData) >= pause {
			l.byAge = 0
		}
		l.lastData = now
	}
	if wait := l.holdTo.Sub(now); wait > 0 {
		return wait, nil
	}
	if l.dead != nil || l.rest != nil || l.killed {
		return l.shipDead(ctx, now)
	}
	due, wait := l.due(now, hurry)
	empty := false
	if due {
		byAge := l.status.Available < l.shipper.config.SegmentBytes
		cut, err := l.advance(ctx, l.status.Ended, now)
		if err != nil {
			return tick, err
		}
		l.lastCut = now
		if !byAge {
			l.byAge = 0
		} else if cut {
			l.byAge++
		}
		if cut {
			return 0, l.look() // there may be more
		}
		// The rest of a line is still to come; or it never will, where tee could not take back what it had of it at its end.
		wait, empty = tick, true
	}
	if l.status.Ended && !l.state.Sealed {
		if err := l.look(); err != nil || !empty && (l.status.Available > 0 || l.gapAtEnd() != nil) {
			return wait, err
		}
		// A container that runs again is sealed again, but a step that makes its own end.json at every line does not get a seal for each.
		if l.sealedLately(now) {
			return tick, nil
		}
		if err := l.seal(ctx, now); err != nil {
			return tick, err
		}
	}
	return wait, nil
}

// sealedLately says whether it is too early for another seal.
func (l *containerLog) sealedLately(now time.Time) bool {
	least := time.Duration(l.shipper.config.SlowFlushInterval)
	return !l.sealedAt.IsZero() && now.Sub(l.sealedAt) < least
}

// advance ships the pending segment, or cuts the next one and ships that. It returns false if there was nothing to cut. The context's end leaves everything as if the shipper
// had been killed.
func (l *containerLog) advance(ctx context.Context, final bool, now time.Time) (bool, error) {
	limit, before := l.shipper.config.SegmentBytes, l.state
	if l.state.Pending != "" {
		body, err := l.dir.loadSegment(l.name, l.state.PendingSum)
		if err == nil {
			return true, l.uploadPending(ctx, body, now)
		}
		l.shipper.log.Warn("a segment is cut again", "container", l.name, "error", err)
		l.drained = false // what was not in the spool is gone
		if s, err := layout.ParseSegmentName(l.state.Pending); err == nil {
			limit = s.Length // the same piece, if the spool still has it
		}
		l.state = *l.state.Before
		if err := l.look(); err != nil { // the reader is behind the segment
			return false, err
		}
	}
	if l.state.TailAt > l.state.Bytes {
		limit = min(limit, l.state.TailAt-l.state.Bytes)
	}
	next, name, body, err := l.cut(ctx, limit, final, now, l.spooled(final, now))
	if err != nil {
		l.state = before // what was pending still is
		return false, err
	}
	if name == "" {
		l.state.Position = next.Position
		return false, nil
	}
	return true, l.shipNew(ctx, next, body, now)
}

// shipNew records a segment that was just cut, and uploads it.
func (l *containerLog) shipNew(ctx context.Context, next state, body []byte, now time.Time) error {
	// Recorded first, so that whatever happens the same bytes go under the same name. If it cannot be recorded, as on a full disk, shipping goes on: it makes room.
	err := l.dir.saveSegment(l.name, body)
	if err == nil {
		err = l.dir.save(l.name, next)
	}
	if err != nil {
		l.warnUnsaved(err)
	}
	l.state = next
	return l.uploadPending(ctx, body, now)
}

func (l *containerLog) uploadPending(ctx context.Context, body []byte, now time.Time) error {
	if err := l.put(ctx, l.state.Pending, body, now); err != nil {
		return err
	}
	return l.shipped()
}

// shipped records that the pending segment is in the store, and deletes what was shipped.
func (l *containerLog) shipped() error {
	l.state.Pending, l.state.PendingSum, l.state.Before = "", nil, nil
	saveErr := l.dir.save(l.name, l.state)
	trimErr := l.reader.Trim(l.state.Position)
	if saveErr != nil {
		saveErr = l.dir.save(l.name, l.state) // on a full disk there is room now
	}
	if saveErr != nil {
		l.warnUnsaved(saveErr)
	} else {
		l.unsaved = false
	}
	return trimErr
}

func (l *containerLog) warnUnsaved(err error) {
	if !l.unsaved {
		l.shipper.log.Warn("the position is not recorded: a restart of the shipper would ship some lines twice", "container", l.name, "error", err)
		l.unsaved = true
	}
}

// source reads lines behind a position, as spool.Reader.Next does.
type source func(at spool.Position, limit int) (lines []byte, tally criline.Tally, behind spool.Position, err error)

// spooled reads the spool.
func (l *containerLog) spooled(final bool, now time.Time) source {
	return func(at spool.Position, limit int) ([]byte, criline.Tally, spool.Position, error) {
		// tee has ended the log itself: then what is behind its last whole line is none.
		whole := final && l.end == nil && (l.state.Rest == nil || *l.state.Rest != at)
		return l.reader.Next(at, limit, whole, now)
	}
}

// cut makes a segment of at least limit archive bytes, if there are as many, of what read returns behind the position. It returns the state behind the segment, and no
// name where there is nothing to cut. The body is good until the next cut of any log.
func (l *containerLog) cut(ctx context.Context, limit int64, final bool, now time.Time, read source) (next state, name string, body []byte, err error) {
	next = l.state
	w := l.shipper.segment
	w.Begin(l.state.Bytes, l.state.Printed.Total(), l.state.Lines)
	digest, err := l.state.digest()
	if err != nil {
		return l.state, "", nil, err
	}
	atEnd, passed := false, int64(0)
	for w.Length() < limit && passed < max(mostPassed, limit) {
		if err := ctx.Err(); err != nil {
			return l.state, "", nil, err
		}
		lines, tally, behind, err := read(next.Position, int(min(limit-w.Length(), batch)))
		if err != nil {
			return l.state, "", nil, err
		}
		moved := behind != next.Position
		passed = addUpTo(passed, behind.Since(next.Position))
		next.Position = behind
		if len(lines) > 0 {
			if err := w.Append(lines, tally); err != nil {
				return l.state, "", nil, err
			}
			digest.Write(lines)
			next.count(tally)
		} else if !moved {
			atEnd = true
			break
		}
	}
	if gap := l.gapAtEnd(); gap != nil && final && atEnd {
		at := l.end.Last
		if year := at.UTC().Year(); at.IsZero() || year < 0 || year > 9999 { // only a step says so, and a line has four digits for it
			at = now
		}
		line, tally, err := markerAt(at, *gap)
		if err != nil {
			return l.state, "", nil, err
		}
		if err := w.Append(line, tally); err != nil {
			return l.state, "", nil, err
		}
		digest.Write(line)
		next.count(tally)
		next.EndMarked = l.end.Printed.Total()
	}
	if w.Length() == 0 {
		return next, "", nil, nil
	}
	seg, body, err := w.Finish()
	if err != nil {
		return l.state, "", nil, err
	}
	if err := next.setDigest(digest); err != nil {
		return l.state, "", nil, err
	}
	next.Segments++
	next.Sealed = false // a container that runs again goes on behind its seal, and is sealed anew
	sum, before := sha256.Sum256(body), l.state
	next.Pending, next.PendingSum, next.Before = seg.Name(), sum[:], &before
	return next, next.Pending, body, nil
}

// markerAt makes the line of a gap.
func markerAt(at time.Time, gap criline.Marker) (line []byte, tally criline.Tally, err error) {
	gap.Kind = criline.Gap
	if line, err = criline.AppendMarker(nil, at, gap); err != nil {
		return nil, tally, err
	}
	parsed, err := criline.Parse(line[:len(line)-1])
	if err != nil {
		return nil, tally, err
	}
	tally.Add(parsed)
	return line, tally, nil
}

// seal uploads seal.json: nothing will follow.
func (l *containerLog) seal(ctx context.Context, now time.Time) error {
	digest, err := l.state.digest()
	if err != nil {
		return err
	}
	seal := record.Seal{
		Bytes: l.state.Bytes, Printed: l.state.Printed, Lines: l.state.Lines, Segments: l.state.Segments,
		Gaps: l.state.Gaps, GapCount: l.state.GapCount, Lost: l.state.Lost,
		First: l.state.First, Last: l.state.Last, Sealed: now.UTC(),
	}
	if !l.state.Resumed {
		seal.SHA256 = fmt.Sprintf("%x", digest.Sum(nil))
	}
	switch {
	case l.end != nil:
		seal.End, seal.Exit = record.EndExited, &l.end.Exit
	case l.status.Started || l.state.Segments > 0:
		seal.End, seal.Drained = record.EndKilled, l.drained
	default:
		seal.End = record.EndNeverStarted
	}
	body, err := record.Encode(seal)
	if err != nil {
		return err
	}
	if err := l.put(ctx, layout.SealFile, body, now); err != nil {
		return err
	}
	l.state.Sealed, l.state.Killed, l.sealedAt = true, l.killed, now
	if err := l.dir.save(l.name, l.state); err != nil {
		l.warnUnsaved(err)
	}
	return nil
}
