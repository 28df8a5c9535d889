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

	offset int64 // of the next Read
	rest   []byte
	next   func() (Line, error, bool) // nil while nothing is read
	stop   func()
}

// Content opens a container's log. Its size is Container.Bytes. A Read fails where bytes of the archive are missing that Container.Status does not tell of, and at the end of a log whose digest is not the seal's.
func (a *Archive) Content(ctx context.Context, c Container) *Content {
	return &Content{archive: a, ctx: ctx, container: c}
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
		c.Close()
		c.offset = offset
	}
	return offset, nil
}

// Close ends the reading.
func (c *Content) Close() {
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
		lines := c.archive.Lines(c.ctx, c.container, LogOptions{FromByte: c.offset})
		c.next, c.stop = iter.Pull2(lines)
	}
	for len(c.rest) == 0 {
		l, err, ok := c.next()
		switch {
		case !ok:
			return 0, io.EOF
		case err != nil:
			return 0, err
		case l.Stream == criline.Markers:
			m, err := criline.ParseMarker(l.Text)
			if err == nil && m.Reason == ReasonMissing && c.container.Status != Damaged {
				return 0, fmt.Errorf("read %s at %d: %w: %s", c.container.Key.Prefix(), c.offset, errChanged, m.Detail)
			}
			continue
		}
		c.rest = l.Text
		if l.Full {
			c.rest = append(c.rest, '\n') // where it is in the segment, too
		}
		if before := c.offset - l.Offset; before > 0 { // Lines gives whole lines
			c.rest = c.rest[min(before, int64(len(c.rest))):]
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	c.offset += int64(n)
	return n, nil
}
