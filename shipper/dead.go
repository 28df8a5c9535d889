package main

import (
	"bytes"
	"context"
	"math"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// A container whose tee was killed is shipped to its end and sealed at once, and not only at the
// pod's end: by then the network may be gone, as where a mesh's sidecar ends before the shipper.

// rest is what a killed tee had not written to the spool.
type rest struct {
	held  *spool.Held // nil when all of it is read
	known bool        // what tee had in hand is
	gap   *criline.Marker
	text  []byte
	out   []byte
}

func (r *rest) close() {
	if r.held != nil {
		r.held.Close()
		r.held = nil
	}
}

// beganAgain says whether the container runs again, as far as tee has said.
func (l *containerLog) beganAgain() bool {
	return (l.dead != nil || l.killed) && l.holder != nil && l.holder.renewed()
}

// forgetDead lets go of what is not begun. The next tee marks the gap.
func (l *containerLog) forgetDead() {
	if l.dead != nil {
		l.dead.Close()
		l.dead = nil
	}
}

// unbury makes a log that was sealed as a killed container's be sealed anew.
func (l *containerLog) unbury() {
	if l.killed || l.state.Killed {
		l.killed, l.drained, l.state.Killed, l.state.Sealed = false, false, false, false
	}
}

// shipDead ships one more segment of a container whose tee was killed, and seals its log when there
// is no more. It returns how long nothing will be due.
//
// Where processes of the container live on, it takes tee's place: nobody else empties their pipes,
// and they would wait for ever.
func (l *containerLog) shipDead(ctx context.Context, now time.Time) (time.Duration, error) {
	// What is in the spool, but not while the rest is in front of it.
	if l.state.Pending != "" || l.rest == nil && l.status.Available > 0 {
		more, err := l.advance(ctx, false, now)
		if err != nil {
			return tick, err
		}
		if more {
			l.unbury() // if it was sealed, somebody has gone on
			return 0, l.look()
		}
	}
	if l.dead != nil {
		// What the next tee has written must not count as this one's.
		if l.beganAgain() {
			return 0, l.look()
		}
		if !l.beginRest(true) {
			l.killed = true
		}
	}
	if l.rest != nil {
		before := l.state.Bytes
		more, err := l.shipRest(ctx)
		switch {
		case err != nil:
			return tick, err
		case more && l.state.Bytes-before < spool.ChunkBytes: // it trickles
			return l.interval(), nil
		case more:
			return 0, nil
		case l.rest != nil:
			return l.interval(), nil // there may be more
		}
		l.killed = true
		if err := l.look(); err != nil || !l.killed { // it runs again
			return 0, err
		}
	}
	if l.state.Sealed {
		return tick, nil
	}
	// A step can make all of this up, and does not get a seal for each time.
	if l.sealedLately(now) {
		return tick, nil
	}
	return tick, l.seal(ctx, now)
}

// beginRest begins with the rest, when all of the spool is shipped. It says whether there is one.
// With goOn, it is also begun where it has no end yet.
func (l *containerLog) beginRest(goOn bool) bool {
	held := l.dead
	l.dead = nil
	if held == nil && l.holder != nil {
		held = l.holder.claim()
	}
	if held == nil {
		return false
	}
	printed, lost := l.state.Printed, l.state.Lost
	keptStdout := addUpTo(printed.Stdout, lost.Stdout)
	keptStderr := addUpTo(printed.Stderr, lost.Stderr)
	if l.state.Resumed { // the counts do not begin with the log
		keptStdout, keptStderr = math.MaxInt64, math.MaxInt64
	}
	stdout, stderr, known := held.Begin(keptStdout, keptStderr)
	known = known && !l.state.Resumed
	if over := held.Over(); over && !known || !over && !goOn {
		held.Close()
		return false
	}
	l.rest = &rest{held: held, known: known, text: make([]byte, spool.ChunkBytes)}
	switch {
	case !known:
		l.rest.gap = &criline.Marker{
			Kind: criline.Gap, Reason: criline.ReasonKilled, Unknown: true,
			Detail: "tee was killed; what it had in hand may be missing",
		}
	case stdout > 0 || stderr > 0:
		l.rest.gap = &criline.Marker{
			Kind: criline.Gap, Reason: criline.ReasonKilled, Stdout: stdout, Stderr: stderr,
		}
	}
	at := l.state.Position
	l.state.Rest = &at
	return true
}

// shipRest ships a segment of the rest, if there is something. It can be called again after an
// error. When all is shipped, there is no rest any more.
func (l *containerLog) shipRest(ctx context.Context) (more bool, err error) {
	now := time.Now()
	if now.Before(l.state.Last) { // times do not go back within a log, whatever the node's clock does
		now = l.state.Last
	}
	// What is read from a pipe is gone from there, so that cutting must not end in the middle.
	next, name, body, err := l.cut(context.WithoutCancel(ctx), l.shipper.config.SegmentBytes, false,
		now, l.readRest(now))
	if err != nil {
		return false, err
	}
	if name != "" {
		return true, l.shipNew(ctx, next, body, now)
	}
	if l.rest.held == nil {
		l.rest = nil
	}
	return false, nil
}

// readRest reads the rest. The position in the spool stays.
func (l *containerLog) readRest(now time.Time) source {
	return func(at spool.Position, _ int) ([]byte, criline.Tally, spool.Position, error) {
		r := l.rest
		if gap := r.gap; gap != nil {
			r.gap = nil
			lines, tally, err := markerAt(now, *gap)
			return lines, tally, at, err
		}
		var tally criline.Tally
		if r.held == nil {
			return nil, tally, at, nil
		}
		over := r.held.Over() // asked first: what comes behind the answer is read
		stream, n, err := r.held.Next(r.text)
		switch {
		case err != nil:
			l.shipper.log.Warn("the last output of a killed container is not archived",
				"container", l.name, "error", err)
			r.close()
			return nil, tally, at, nil
		case n == 0:
			if over {
				l.drained = r.known
				r.close()
			}
			return nil, tally, at, nil
		}
		r.out = r.out[:0]
		for text := range bytes.Lines(r.text[:n]) {
			line := criline.Line{Time: now, Stream: stream}
			line.Text, line.Full = bytes.CutSuffix(text, []byte{'\n'})
			r.out = criline.Append(r.out, line.Time, line.Stream, line.Full, line.Text)
			tally.Add(line)
		}
		return r.out, tally, at, nil
	}
}
