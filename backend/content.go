package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// Content is exactly what a container printed, as far as it is archived, as a file: both streams together, in the order of the log. It fits http.ServeContent. The caller ends it with Close.
type Content struct {
	archive   *Archive
	ctx       context.Context
	container Container

	done func() // gives back what is held

	offset int64 // of the next Read
	rest   []byte
	next   func() ([]byte, error, bool) // nil while nothing is read
	stop   func()
}

// Content opens a container's log. Its size is Container.Bytes. A Read fails where bytes of the archive are missing that Container.Status does not tell of, and at the end of a log whose digest is not the seal's.
// It holds memory until it is closed; where there is none, the error is a *BusyError.
func (a *Archive) Content(ctx context.Context, c Container) (*Content, error) {
	done, err := a.hold(c.Key.Namespace, readCost)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", c.Key.Prefix(), err)
	}
	return &Content{archive: a, ctx: ctx, container: c, done: done}, nil
}

// Seek implements io.Seeker.
func (c *Content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.offset
	case io.SeekEnd:
		offset += c.container.Bytes
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d: is before the beginning", offset)
	}
	if offset != c.offset {
		c.end()
		c.offset = offset
	}
	return offset, nil
}

// Close ends the reading.
func (c *Content) Close() {
	c.end()
	c.done()
}

// end ends the reading at a place.
func (c *Content) end() {
	if c.stop != nil {
		c.stop()
	}
	c.next, c.stop, c.rest = nil, nil, nil
}

// errChanged is the cause of a Read's error where a log is not as it was when its state was read.
var errChanged = errors.New("bytes of the archive are missing")

// Read implements io.Reader.
func (c *Content) Read(p []byte) (int, error) {
	if c.next == nil {
		c.next, c.stop = iter.Pull2(c.text())
	}
	for len(c.rest) == 0 {
		text, err, ok := c.next()
		if !ok {
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		c.rest = text
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	c.offset += int64(n)
	return n, nil
}

// text yields what was printed behind the offset, as many lines at once as were read at once: to change between reading and writing costs more than a line, and to read another segment costs a
// request that may be one too many. What is yielded is good until the next.
func (c *Content) text() iter.Seq2[[]byte, error] {
	from := c.offset
	return func(yield func([]byte, error) bool) {
		text := make([]byte, 0, blockBytes)
		o := LogOptions{FromByte: from, paid: true, block: func() bool {
			more := len(text) == 0 || yield(text, nil)
			text = text[:0]
			return more
		}}
		for l, err := range c.archive.Lines(c.ctx, c.container, o) {
			if err == nil && l.Stream == criline.Markers {
				m, markerErr := criline.ParseMarker(l.Text)
				if markerErr != nil || m.Reason != ReasonMissing || c.container.Status == Damaged {
					continue
				}
				err = fmt.Errorf("read %s at %d: %w: %s", c.container.Key.Prefix(), l.Offset, errChanged, m.Detail)
			}
			if err != nil {
				if len(text) == 0 || yield(text, nil) {
					yield(nil, err)
				}
				return
			}
			before := len(text)
			text = append(text, l.Text...)
			if l.Full {
				text = append(text, '\n')
			}
			if skip := from - l.Offset; skip > 0 { // Lines gives whole lines
				text = append(text[:before], text[before+int(min(skip, int64(len(text)-before))):]...)
			}
		}
	}
}
