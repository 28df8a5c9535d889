package sequence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Rate is how fast records are printed. At most one of the two is set; without any, it is as fast as they are taken.
type Rate struct {
	Lines int64 // a second, each with a write of its own
	Bytes int64 // a second
}

func (r Rate) String() string {
	switch {
	case r.Lines > 0:
		return fmt.Sprintf("%d lines/s", r.Lines)
	case r.Bytes >= 1e6:
		return fmt.Sprintf("%g MB/s", float64(r.Bytes)/1e6)
	case r.Bytes > 0:
		return fmt.Sprintf("%g kB/s", float64(r.Bytes)/1e3)
	default:
		return "as fast as it goes"
	}
}

// Options say how much is printed. It ends with whichever limit comes first; without any, with the context.
type Options struct {
	Rate     Rate
	Records  int64
	Bytes    int64 // ends with the record that reaches it
	Duration time.Duration
	// Over, if set, is asked before each write, and ends it.
	Over func() bool
	// Count, if set, is called with all bytes that writes have taken so far, after each write.
	Count func(total int64) error
}

// Printed is what was printed.
type Printed struct{ Records, Bytes int64 }

const (
	// writeBytes is about what one write takes where there is no rate of lines.
	writeBytes = 32 << 10
	// beat is the time between two writes at a rate of bytes, unless they are smaller than a record.
	beat = 20 * time.Millisecond
)

// Print prints records 0, 1, 2… and returns how many, and the first error of a write. The context's end is a limit like the others, and no error.
func (s Stream) Print(ctx context.Context, w io.Writer, o Options) (Printed, error) {
	var done Printed
	begin := time.Now()
	var buf []byte
	over := func() bool {
		return ctx.Err() != nil || o.Records > 0 && done.Records >= o.Records || o.Bytes > 0 && done.Bytes >= o.Bytes ||
			o.Duration > 0 && time.Since(begin) >= o.Duration || o.Over != nil && o.Over()
	}
	for !over() {
		if wait := o.Rate.due(done) - time.Since(begin); wait > 0 {
			if o.Duration > 0 { // a last wait is not longer than the whole
				wait = min(wait, o.Duration-time.Since(begin))
			}
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				timer.Stop()
			case <-timer.C:
			}
			continue
		}
		buf = buf[:0]
		n := done.Records
		for {
			buf = s.Append(buf, n)
			n++
			if o.Rate.Lines > 0 || int64(len(buf)) >= o.Rate.piece() || o.Records > 0 && n >= o.Records || o.Bytes > 0 && done.Bytes+int64(len(buf)) >= o.Bytes {
				break
			}
		}
		written, err := w.Write(buf)
		done.Bytes += int64(written)
		if err == nil {
			done.Records = n
		}
		if o.Count != nil {
			err = errors.Join(err, o.Count(done.Bytes))
		}
		if err != nil {
			return done, fmt.Errorf("print record %d: %w", n-1, err)
		}
	}
	return done, nil
}

// due is how long after the beginning what comes behind so much may be printed.
func (r Rate) due(p Printed) time.Duration {
	switch {
	case r.Lines > 0:
		return time.Duration(float64(p.Records) / float64(r.Lines) * float64(time.Second))
	case r.Bytes > 0:
		return time.Duration(float64(p.Bytes) / float64(r.Bytes) * float64(time.Second))
	default:
		return 0
	}
}

// piece is about how much one write takes.
func (r Rate) piece() int64 {
	if r.Bytes > 0 {
		return min(writeBytes, int64(float64(r.Bytes)*beat.Seconds()))
	}
	return writeBytes
}
