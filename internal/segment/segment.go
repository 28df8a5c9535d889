// Package segment owns the bytes of a segment: one zstd frame (RFC 8878) of whole CRI lines, so that zstdcat of a log's segments in name order is
// the log. What is in it stands in its name too (layout.Segment), and a reader checks one against the other.
package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// window is how far back a match may be, in bytes. Logs repeat themselves at once, and the memory of
// encoder and decoder grows with it.
const window = 256 << 10

// Writer makes one segment at a time. It keeps its memory for the next one. The same lines always give the same bytes.
type Writer struct {
	encoder *zstd.Encoder
	buf     bytes.Buffer
	segment layout.Segment
}

// NewWriter makes a Writer. Begin comes before the first Append.
func NewWriter() (*Writer, error) {
	w := &Writer{}
	encoder, err := zstd.NewWriter(&w.buf, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd encoder: %w", err)
	}
	w.encoder = encoder
	return w, nil
}

// Begin starts a segment behind what the log has so far.
func (w *Writer) Begin(offset, printedOffset, line int64) {
	w.buf.Reset()
	w.encoder.Reset(&w.buf)
	w.segment = layout.Segment{Offset: offset, PrintedOffset: printedOffset, Line: line}
}

// Append adds whole lines, which tally counts.
func (w *Writer) Append(lines []byte, tally criline.Tally) error {
	if _, err := w.encoder.Write(lines); err != nil {
		return fmt.Errorf("compress segment: %w", err)
	}
	if w.segment.First.IsZero() {
		w.segment.First = tally.First
	}
	w.segment.Last = tally.Last
	w.segment.Length += tally.Bytes
	w.segment.Printed += tally.Printed()
	w.segment.Lines += tally.Lines
	return nil
}

// Length is the number of archive bytes so far.
func (w *Writer) Length() int64 { return w.segment.Length }

// Finish ends the segment. The bytes are good until the next Begin.
func (w *Writer) Finish() (layout.Segment, []byte, error) {
	if err := w.encoder.Close(); err != nil {
		return layout.Segment{}, nil, fmt.Errorf("compress segment: %w", err)
	}
	return w.segment, w.buf.Bytes(), nil
}

// CorruptError says that a segment's bytes are not what its name says.
type CorruptError struct {
	Segment layout.Segment
	Err     error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("segment at offset %d is corrupt: %v", e.Segment.Offset, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// errLength is the cause of a CorruptError where the frame is whole but not of the length in the name.
var errLength = errors.New("length differs from the name")

// Reader reads the archive bytes of one segment after another. Its memory does not depend on their size. The zero value is ready for Open.
type Reader struct {
	decoder *zstd.Decoder // nil before the first Open: to make one costs more than to read a small segment
	segment layout.Segment
	read    int64
}

// NewReader is Open of a new Reader.
func NewReader(r io.Reader, want layout.Segment) (*Reader, error) {
	reader := &Reader{}
	return reader, reader.Open(r, want)
}

// Open begins with a segment whose name said want. An error of r is returned as it is; one of the bytes is a *CorruptError.
func (r *Reader) Open(from io.Reader, want layout.Segment) error {
	r.segment, r.read = want, 0
	if r.decoder == nil {
		var err error
		// One at a time: it has no goroutines that someone would have to end.
		if r.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(false), zstd.WithDecoderMaxWindow(window)); err != nil {
			return fmt.Errorf("make zstd decoder: %w", err)
		}
	}
	if err := r.decoder.Reset(newFrame(source{from}, want.Length)); err != nil {
		return &CorruptError{want, err}
	}
	return nil
}

// Read implements io.Reader. io.EOF says that the segment was as long as its name says.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.decoder.Read(p)
	r.read += int64(n)
	var src *sourceError
	switch {
	case errors.As(err, &src):
		return n, src.err
	case r.read > r.segment.Length:
		return 0, &CorruptError{r.segment, fmt.Errorf("%w: more than %d bytes", errLength, r.segment.Length)}
	case errors.Is(err, io.EOF) && r.read < r.segment.Length:
		return n, &CorruptError{r.segment, fmt.Errorf("%w: %d bytes, not %d", errLength, r.read, r.segment.Length)}
	case err == nil || err == io.EOF:
		return n, err
	default:
		return n, &CorruptError{r.segment, err}
	}
}

// source marks the errors of the store, so that they are not taken for corruption.
type source struct{ r io.Reader }

type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

func (s source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	return n, err
}
