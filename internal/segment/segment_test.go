package segment

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

var update = flag.Bool("update", false, "write the golden files anew")

var start = time.Date(2026, 11, 23, 1, 2, 3, 4, time.UTC)

// logOf makes n lines on both streams, with a piece now and then.
func logOf(n int) (lines []byte, tally criline.Tally) {
	for i := range n {
		stream := criline.Stdout
		if i%3 == 2 {
			stream = criline.Stderr
		}
		from := len(lines)
		lines = criline.Append(lines, start.Add(time.Duration(i)*time.Millisecond), stream, i%5 != 4, fmt.Appendf(nil, "line %d: %x", i, i*i*7919))
		line, err := criline.Parse(lines[from : len(lines)-1])
		if err != nil {
			panic(err)
		}
		tally.Add(line)
	}
	return lines, tally
}

func newWriter(t testing.TB) *Writer {
	t.Helper()
	w, err := NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// write makes one segment of the lines; the bytes are the caller's.
func write(t testing.TB, w *Writer, lines []byte, tally criline.Tally) (layout.Segment, []byte) {
	t.Helper()
	w.Begin(1000, 500, 50)
	if err := w.Append(lines, tally); err != nil {
		t.Fatal(err)
	}
	s, body, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return s, bytes.Clone(body)
}

func read(s layout.Segment, src io.Reader) ([]byte, error) {
	r, err := NewReader(src, s)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func TestRoundTrip(t *testing.T) {
	w := newWriter(t)
	for _, n := range []int{1, 2, 1000, 100_000, 3} { // one writer, so that nothing of a large one is left in a small one
		lines, tally := logOf(n)
		s, body := write(t, w, lines, tally)
		want := layout.Segment{
			Offset: 1000, Length: int64(len(lines)), PrintedOffset: 500, Printed: tally.Printed(), Line: 50, Lines: tally.Lines,
			First: start, Last: start.Add(time.Duration(n-1) * time.Millisecond),
		}
		if s != want {
			t.Errorf("%d lines: %+v, want %+v", n, s, want)
		}
		if got, err := read(s, bytes.NewReader(body)); err != nil || !bytes.Equal(got, lines) {
			t.Errorf("%d lines: %d bytes, %v, want %d", n, len(got), err, len(lines))
		}
		if got, err := read(s, iotest.OneByteReader(bytes.NewReader(body))); err != nil || !bytes.Equal(got, lines) {
			t.Errorf("%d lines, byte by byte: %d bytes, %v", n, len(got), err)
		}
	}
}

// TestDeterministic: the same lines give the same bytes, whatever was before and however they were handed over.
func TestDeterministic(t *testing.T) {
	lines, tally := logOf(20_000)
	_, want := write(t, newWriter(t), lines, tally)
	w := newWriter(t)
	other, otherTally := logOf(7)
	write(t, w, other, otherTally)
	w.Begin(1000, 500, 50)
	for rest := lines; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n') + 1
		line, err := criline.Parse(rest[:i-1])
		if err != nil {
			t.Fatal(err)
		}
		var one criline.Tally
		one.Add(line)
		if err := w.Append(rest[:i], one); err != nil {
			t.Fatal(err)
		}
		rest = rest[i:]
	}
	s, got, err := w.Finish()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("line by line: %d bytes, %v, want %d", len(got), err, len(want))
	}
	if s.Length != int64(len(lines)) || s.Lines != tally.Lines || s.Printed != tally.Printed() {
		t.Errorf("%+v, want %+v", s, tally)
	}
}

// TestGolden reads a segment of a former release. Run with -update to write it anew; the name is in the file's name.
func TestGolden(t *testing.T) {
	lines, tally := logOf(200)
	if *update {
		s, body := write(t, newWriter(t), lines, tally)
		if err := os.WriteFile(filepath.Join("testdata", s.Name()), body, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob("testdata/*.log.zst")
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	s, err := layout.ParseSegmentName(filepath.Base(files[0]))
	if err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(s, bytes.NewReader(body)); err != nil || !bytes.Equal(got, lines) {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(lines))
	}
	// It is a plain zstd frame, which anything reads.
	plain, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if got, err := plain.DecodeAll(body, nil); err != nil || !bytes.Equal(got, lines) {
		t.Errorf("DecodeAll: %d bytes, %v", len(got), err)
	}
}

func TestCorrupt(t *testing.T) {
	lines, tally := logOf(5000)
	s, body := write(t, newWriter(t), lines, tally)
	flip := func(at int) []byte {
		b := bytes.Clone(body)
		b[at] ^= 0x55
		return b
	}
	shorter, longer := s, s
	shorter.Length--
	longer.Length++
	for name, tc := range map[string]struct {
		segment layout.Segment
		body    []byte
	}{
		"empty":                  {s, nil},
		"not zstd":               {s, []byte("<html>proxy error</html>")},
		"bad magic":              {s, flip(0)},
		"bad byte":               {s, flip(len(body) / 2)},
		"bad checksum":           {s, flip(len(body) - 1)},
		"cut in the middle":      {s, body[:len(body)/2]},
		"cut before checksum":    {s, body[:len(body)-4]},
		"cut by one":             {s, body[:len(body)-1]},
		"longer than its name":   {shorter, body},
		"shorter than its name":  {longer, body},
		"twice":                  {s, append(bytes.Clone(body), body...)},
		"garbage behind":         {s, append(bytes.Clone(body), "garbage"...)},
		"name says empty":        {layout.Segment{}, body},
		"a frame of another log": {longer, append(bytes.Clone(body), body[:20]...)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := read(tc.segment, bytes.NewReader(tc.body))
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || corrupt.Segment != tc.segment {
				t.Errorf("%d bytes, error %v", len(got), err)
			}
			if int64(len(got)) > tc.segment.Length {
				t.Errorf("%d bytes, more than the name says", len(got))
			}
		})
	}
}

// TestOneFrame: what a decoder would pass over in silence is no segment, however it is cut into
// reads.
func TestOneFrame(t *testing.T) {
	lines, tally := logOf(5000)
	s, body := write(t, newWriter(t), lines, tally)
	skipped := append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 1, 0}, make([]byte, 1<<16)...)
	empty := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0} // a frame of no byte
	wide := bytes.Clone(body)
	wide[5] = 9<<3 | 1 // 512 KiB and an eighth
	// A block of no byte, again and again, before those that hold the lines.
	const header = 6
	nothing := append(bytes.Clone(body[:header]), make([]byte, 3*100_000)...)
	nothing = append(nothing, body[header:]...)
	for name, b := range map[string][]byte{
		"a skippable frame before": append(bytes.Clone(skipped), body...),
		"a skippable frame behind": append(bytes.Clone(body), skipped...),
		"an empty frame before":    append(bytes.Clone(empty), body...),
		"an empty frame behind":    append(bytes.Clone(body), empty...),
		"a window of 576 KiB":      wide,
		"blocks without a byte":    nothing,
	} {
		t.Run(name, func(t *testing.T) {
			for _, r := range []io.Reader{bytes.NewReader(b), iotest.OneByteReader(bytes.NewReader(b))} {
				_, err := read(s, r)
				var corrupt *CorruptError
				if !errors.As(err, &corrupt) {
					t.Errorf("%v", err)
				}
			}
		})
	}
	if body[4]&singleSegment != 0 || body[5] != 8<<3 {
		t.Errorf("the frame begins with % x: its window is not %d", body[:header], window)
	}
}

// TestReadersTakeLittle: what a segment asks for does not make a reader's memory grow.
func TestReadersTakeLittle(t *testing.T) {
	var b bytes.Buffer
	e, err := zstd.NewWriter(&b, zstd.WithWindowSize(8<<20), zstd.WithEncoderCRC(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(e, zeros{}, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	readers := make([]Reader, 32)
	for i := range readers {
		err := readers[i].Open(bytes.NewReader(b.Bytes()), layout.Segment{Length: 64 << 20})
		if err == nil {
			_, err = io.CopyN(io.Discard, &readers[i], 9<<20)
		}
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 32<<20 {
		t.Errorf("%d readers hold %d bytes", len(readers), held)
	}
	runtime.KeepAlive(readers)
}

// TestSourceErrors: a broken connection is not taken for a corrupt segment.
func TestSourceErrors(t *testing.T) {
	lines, tally := logOf(5000)
	s, body := write(t, newWriter(t), lines, tally)
	for name, broken := range map[string]error{"reset": errors.New("connection reset"), "cut": io.ErrUnexpectedEOF} {
		for _, at := range []int{0, 1, 4, len(body) / 2, len(body) - 1} {
			t.Run(fmt.Sprintf("%s at %d", name, at), func(t *testing.T) {
				_, err := read(s, io.MultiReader(bytes.NewReader(body[:at]), iotest.ErrReader(broken)))
				var corrupt *CorruptError
				if errors.As(err, &corrupt) || !errors.Is(err, broken) {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

// TestBomb: a small object that decompresses to a lot, or asks for a large window, costs little.
func TestBomb(t *testing.T) {
	var bomb bytes.Buffer
	e, err := zstd.NewWriter(&bomb, zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(e, zeros{}, 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	wide := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8} // a frame with a window of 2 TiB
	for name, body := range map[string][]byte{"1 GiB of zeros": bomb.Bytes(), "2 TiB window": wide} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := read(layout.Segment{Length: 1000}, bytes.NewReader(body))
			runtime.ReadMemStats(&after)
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) {
				t.Errorf("%v", err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
				t.Errorf("%d bytes allocated", used)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// FuzzReader: whatever an object holds, the reader returns its log or an error, and never more bytes than the name says.
func FuzzReader(f *testing.F) {
	lines, tally := logOf(20)
	s, body := write(f, newWriter(f), lines, tally)
	f.Add(body, s.Length)
	f.Add(body[:len(body)-3], s.Length)
	f.Add([]byte(strings.Repeat("x", 40)), int64(3))
	f.Fuzz(func(t *testing.T, body []byte, length int64) {
		got, err := read(layout.Segment{Length: length}, io.LimitReader(bytes.NewReader(body), 1<<20))
		if int64(len(got)) > max(length, 0) {
			t.Fatalf("%d bytes, the name says %d", len(got), length)
		}
		if err == nil && int64(len(got)) != length {
			t.Fatalf("%d bytes and no error, the name says %d", len(got), length)
		}
	})
}

// FuzzRoundTrip: what is written is read.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("2026-11-23T01:02:03.000000000Z stdout F a\n"))
	w := newWriter(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		s, body := write(t, w, content, criline.Tally{Bytes: int64(len(content))})
		if got, err := read(s, bytes.NewReader(body)); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("%q, %v, want %q", got, err, content)
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	lines, tally := logOf(30_000)
	w := newWriter(b)
	b.SetBytes(int64(len(lines)))
	b.ReportAllocs()
	for b.Loop() {
		write(b, w, lines, tally)
	}
}

func BenchmarkReader(b *testing.B) {
	lines, tally := logOf(30_000)
	s, body := write(b, newWriter(b), lines, tally)
	b.SetBytes(int64(len(lines)))
	b.ReportAllocs()
	for b.Loop() {
		r, err := NewReader(bytes.NewReader(body), s)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
	}
}
