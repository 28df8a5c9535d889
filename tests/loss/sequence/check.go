package sequence

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// maxShown is how many findings of a kind are described.
const maxShown = 5

// Finding is what is wrong in one way.
type Finding struct {
	Count int64    `json:"count"` // records, or lines
	Bytes int64    `json:"bytes"`
	First []string `json:"first,omitempty"`
}

func (f *Finding) add(count, bytes int64, format string, args ...any) {
	f.Count += count
	f.Bytes += bytes
	if len(f.First) < maxShown {
		f.First = append(f.First, fmt.Sprintf(format, args...))
	}
}

// Report is what a log holds of a stream. A byte that was printed is in Bytes, in Missing, Declared, End, or stands for a line in Changed.
type Report struct {
	Records int64 `json:"records"` // whole and right
	Bytes   int64 `json:"bytes"`   // right, each once: those of records that a gap or the log's end cuts are counted too

	Missing   Finding `json:"missing"`   // records that are not there, and nothing says so
	Doubled   Finding `json:"doubled"`   // records that come again
	Reordered Finding `json:"reordered"` // records that come later than they should
	Changed   Finding `json:"changed"`   // lines that are no record of the stream
	Undue     Finding `json:"undue"`     // records that are there, though a gap marker says that they are lost

	Gaps     int64 `json:"gaps"`     // gap markers
	Declared int64 `json:"declared"` // bytes that they say are lost. With Unknown, as many as are
	Unknown  int64 `json:"unknown"`  // markers that say that they do not know
	End      int64 `json:"end"`      // bytes that are not there at the end
	Beyond   int64 `json:"beyond"`   // bytes behind what was printed
}

// Right says that all that is there is right, and that what is not there is declared or missing at the end.
func (r Report) Right() bool {
	return r.Missing.Count+r.Doubled.Count+r.Reordered.Count+r.Changed.Count+r.Undue.Count+r.Beyond == 0
}

// Whole says that all that was printed is there, once, in order.
func (r Report) Whole() bool { return r.Right() && r.Gaps == 0 && r.End == 0 }

// Lost is how many printed bytes are not there as they were printed, whatever is said about them.
func (r Report) Lost(printed int64) int64 { return printed - r.Bytes }

// String is for a test's message.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d records and %d bytes are right", r.Records, r.Bytes)
	for _, f := range []struct {
		what string
		Finding
	}{{"missing", r.Missing}, {"doubled", r.Doubled}, {"reordered", r.Reordered}, {"changed", r.Changed}, {"declared lost but there", r.Undue}} {
		if f.Count > 0 {
			fmt.Fprintf(&b, "; %s: %d, %d bytes (%s)", f.what, f.Count, f.Bytes, strings.Join(f.First, "; "))
		}
	}
	if r.Gaps > 0 {
		fmt.Fprintf(&b, "; %d gap markers declare %d bytes lost, %d of them not exactly", r.Gaps, r.Declared, r.Unknown)
	}
	if r.Beyond > 0 {
		fmt.Fprintf(&b, "; %d bytes more than were printed", r.Beyond)
	}
	if r.End > 0 {
		fmt.Fprintf(&b, "; %d bytes are missing at the end", r.End)
	}
	return b.String()
}

// span is records that are not there.
type span struct {
	from, to int64
	declared bool // by a gap marker
}

// Checker reads what a container printed on one stream, and the gap markers in between.
type Checker struct {
	stream Stream
	report Report

	next   int64  // the record that should come
	offset int64  // how much of it is behind: right, or lost in a gap
	at     int64  // bytes of the stream that are behind, up to there
	whole  bool   // nothing of the record was lost
	line   []byte // the beginning of a line
	want   []byte // record wantOf
	wantOf int64
	absent []span
	bad    []badLine // since the last right line: what they stand for is not known yet
	adrift bool      // behind a gap of unknown length: where the stream goes on is not known
}

type badLine struct {
	bytes int64
	what  string
}

// NewChecker makes a Checker.
func NewChecker(s Stream) *Checker { return &Checker{stream: s, whole: true, wantOf: -1} }

func (c *Checker) record(n int64) []byte {
	if c.wantOf != n {
		c.want, c.wantOf = c.stream.Append(c.want[:0], n), n
	}
	return c.want
}

// Write takes what was printed. It never fails.
func (c *Checker) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			c.line = append(c.line, p...)
			break
		}
		line := p[:i+1]
		if len(c.line) > 0 {
			line = append(c.line, line...)
			c.line = line[:0]
		}
		c.take(line)
		p = p[i+1:]
	}
	return n, nil
}

// sure says that the place in the stream is known.
func (c *Checker) sure() bool { return len(c.bad) == 0 && !c.adrift }

// take takes one line with its newline.
func (c *Checker) take(line []byte) {
	if c.sure() && bytes.Equal(line, c.record(c.next)[c.offset:]) {
		c.right(int64(len(line)))
		return
	}
	n, ok := c.stream.Parse(line)
	switch {
	case !ok:
		c.bad = append(c.bad, badLine{int64(len(line)), fmt.Sprintf("where record %d should be: %.60q", c.next, line)})
	case n >= c.next:
		c.resume(n)
		c.right(int64(len(line)) - c.offset)
	default:
		c.late(n, int64(len(line)))
	}
}

// right counts the rest of record next, or the whole.
func (c *Checker) right(bytes int64) {
	c.report.Bytes += bytes
	if c.whole {
		c.report.Records++
	}
	c.at += bytes
	c.next, c.offset, c.whole = c.next+1, 0, true
}

// resume goes on at record n, behind what is not there.
func (c *Checker) resume(n int64) {
	if c.adrift && len(c.bad) > 0 {
		c.bad = c.bad[1:] // the rest of a record whose beginning is lost
	}
	stand := min(int64(len(c.bad)), n-c.next) // each bad line stands for a record
	if c.adrift {
		stand = 0
	}
	c.settle()
	if n == c.next {
		if c.offset > 0 {
			c.report.Undue.add(1, c.offset, "the beginning of record %d", n)
		}
		c.adrift = false
		return
	}
	from, lost := c.next+stand, int64(0)
	for i := c.next; i < n; i++ {
		rest := int64(len(c.record(i))) - c.offset
		c.at += rest
		c.offset = 0
		if i >= from {
			lost += rest
		}
	}
	switch {
	case c.adrift:
		c.report.Declared += lost
		c.absent = append(c.absent, span{from, n, true})
	case n > from:
		c.report.Missing.add(n-from, lost, "records %d to %d", from, n-1)
		c.absent = append(c.absent, span{from, n, false})
	}
	c.adrift = false
	c.next, c.whole = n, true
}

// settle counts the bad lines as changed, and returns their bytes.
func (c *Checker) settle() (bytes int64) {
	for _, l := range c.bad {
		c.report.Changed.add(1, l.bytes, "%s", l.what)
		bytes += l.bytes
	}
	c.bad = c.bad[:0]
	return bytes
}

// late takes a record that should have come before.
func (c *Checker) late(n, size int64) {
	i := slices.IndexFunc(c.absent, func(s span) bool { return s.from <= n && n < s.to })
	if i < 0 {
		c.report.Doubled.add(1, size, "record %d, where %d should be", n, c.next)
		return
	}
	s := c.absent[i]
	if s.declared {
		c.report.Undue.add(1, size, "record %d", n)
	} else {
		c.report.Missing.Count--
		c.report.Missing.Bytes -= size
		c.report.Reordered.add(1, size, "record %d, where %d should be", n, c.next)
		c.report.Bytes += size
	}
	c.absent = slices.Replace(c.absent, i, i+1, span{s.from, n, s.declared}, span{n + 1, s.to, s.declared})
}

// Line takes a line of the archive: text of the stream that is checked, or a marker. Lines of the other stream do not count.
func (c *Checker) Line(l criline.Line, of criline.Stream) error {
	switch l.Stream {
	case criline.Markers:
		m, err := criline.ParseMarker(l.Text)
		if err != nil {
			return err
		}
		lost := m.Stdout
		if of == criline.Stderr {
			lost = m.Stderr
		}
		c.Gap(m, lost)
	case of:
		_, _ = c.Write(l.Text) // it never fails
		if l.Full {
			_, _ = c.Write(newline)
		}
	}
	return nil
}

var newline = []byte{'\n'}

// Gap takes a marker that stands here in the log and says that so many bytes of this stream are lost. Markers of other kinds do not count.
func (c *Checker) Gap(m criline.Marker, lost int64) {
	if m.Kind != criline.Gap {
		return
	}
	c.report.Gaps++
	c.cut()
	if m.Unknown {
		c.report.Unknown++
		c.adrift = true
	}
	if c.adrift {
		return // Declared grows when the stream is found again
	}
	c.report.Declared += lost
	for lost > 0 {
		rest := int64(len(c.record(c.next))) - c.offset
		step := min(lost, rest)
		lost -= step
		c.at += step
		if step < rest {
			c.offset += step
			c.whole = false
			return
		}
		if c.offset == 0 {
			c.skip(c.next)
		}
		c.next, c.offset, c.whole = c.next+1, 0, true
	}
}

// skip notes that a record is lost in a gap.
func (c *Checker) skip(n int64) {
	if last := len(c.absent) - 1; last >= 0 && c.absent[last].declared && c.absent[last].to == n {
		c.absent[last].to = n + 1
		return
	}
	c.absent = append(c.absent, span{n, n + 1, true})
}

// cut takes the beginning of a line whose rest does not follow.
func (c *Checker) cut() {
	line := c.line
	c.line = nil
	if len(line) == 0 {
		return
	}
	if c.sure() && bytes.HasPrefix(c.record(c.next)[c.offset:], line) {
		c.report.Bytes += int64(len(line))
		c.offset += int64(len(line))
		c.at += int64(len(line))
		c.whole = false
		return
	}
	c.bad = append(c.bad, badLine{int64(len(line)), fmt.Sprintf("a piece where record %d should be: %.60q", c.next, line)})
}

// Finish says what the log is, given how many bytes were printed in all; -1 if that is not known. The Checker takes no more after it.
func (c *Checker) Finish(printed int64) Report {
	c.cut()
	if c.adrift && len(c.bad) > 0 {
		c.bad = c.bad[1:]
	}
	stand := c.settle()
	if printed >= 0 && c.adrift {
		c.report.Declared += max(0, printed-c.at)
	} else if printed >= 0 {
		c.report.End, c.report.Beyond = max(0, printed-c.at-stand), max(0, c.at-printed)
	}
	return c.report
}
