package page

import (
	"bufio"
	"bytes"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
)

// TestManyGaps: of a log of markers alone, one row tells some and counts the others.
func TestManyGaps(t *testing.T) {
	row := &Row{Number: 1}
	for range 1000 {
		row.add(backend.Line{Number: 1, Line: criline.Line{
			Stream: criline.Markers, Full: true, Text: []byte(`{"kind":"gap","reason":"a\nb"}`),
		}})
	}
	row.show()
	gaps := row.Gaps
	if len(gaps) != mostGaps+1 || !strings.Contains(gaps[mostGaps], "in 980 more places") {
		t.Errorf("the row has %d gaps: %q", len(gaps), gaps)
	}
	if !strings.Contains(gaps[0], "(a b)") {
		t.Errorf("a gap is %q", gaps[0])
	}
}

// TestManySpans: a row of control characters alone is shown in a bounded number of pieces, and the
// rest of it is counted.
func TestManySpans(t *testing.T) {
	row := &Row{Number: 1}
	row.add(backend.Line{Number: 1, Line: criline.Line{
		Stream: criline.Stdout, Full: true, Text: bytes.Repeat([]byte{1}, maxRow+5),
	}})
	row.show()
	if len(row.Spans) != mostSpans || row.Cut != maxRow-mostSpans+5 {
		t.Errorf("%d pieces, and %d bytes are not shown", len(row.Spans), row.Cut)
	}
}

// TestRowsTakeLittle: the rows of an answer are written as they come, so that they do not take memory
// together.
func TestRowsTakeLittle(t *testing.T) {
	text := bytes.Repeat([]byte{1}, maxRow)
	out := &rowWriter{to: bufio.NewWriterSize(io.Discard, rowBuffer)}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range int64(mostRows) {
		err := out.add(backend.Line{Number: i + 1, Line: criline.Line{
			Stream: criline.Stdout, Full: true, Text: text,
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 8<<20 {
		t.Errorf("%d rows hold %d bytes", mostRows, held)
	}
	if err := out.end(rowsEnd{}); err != nil || !out.sent() {
		t.Errorf("%d bytes are written, error %v", out.written, err)
	}
}
