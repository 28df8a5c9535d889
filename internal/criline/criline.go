// Package criline owns the line format of the archive: the CRI log format that the kubelet writes, with a fixed prefix of
// [PrefixLen] bytes:
//
//	2006-01-02T15:04:05.000000000Z stdout F text
//
// The time is UTC with nine digits, so that prefixes have one length and text order is time order. The tag is F where the
// text ends a line, and P where it is a piece of a line that goes on. A log that does not end with a newline ends with a P.
// A third stream, "marker", carries shiplog's own notices (see [Marker]); a step cannot write to it, because whatever a step prints
// stands behind a prefix that says stdout or stderr.
//
// The format is docs/format.md; it must not change.
package criline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/shiplog-dev/shiplog/internal/visible"
)

// Stream names where a line comes from.
type Stream string

// The streams. All have six letters, so that every prefix has the same length.
const (
	Stdout  Stream = "stdout"
	Stderr  Stream = "stderr"
	Markers Stream = "marker"
)

const (
	// TimeLayout is the time format of a line, always in UTC.
	TimeLayout = "2006-01-02T15:04:05.000000000Z"
	// PrefixLen is the number of bytes before a line's text.
	PrefixLen = len(TimeLayout) + 1 + 6 + 1 + 1 + 1
	// MaxText is the largest number of bytes of text that a writer puts behind one prefix. Longer lines are cut into P pieces.
	MaxText = 64 << 10
	// MaxLen is the largest length of a whole line with its prefix and newline. What is longer was not written by shiplog.
	MaxLen = PrefixLen + MaxText + 1
)

// ErrMalformed is wrapped by every error of Parse.
var ErrMalformed = errors.New("malformed CRI line")

// Line is one parsed line. Text shares the memory that was parsed.
type Line struct {
	Time   time.Time
	Stream Stream
	Full   bool // F: a newline followed the text when it was printed
	Text   []byte
}

// Printed is the number of bytes that the container printed for this line: its text, and the newline of a full line. A marker's is 0.
func (l Line) Printed() int64 {
	switch {
	case l.Stream == Markers:
		return 0
	case l.Full:
		return int64(len(l.Text)) + 1
	default:
		return int64(len(l.Text))
	}
}

// Append adds one line with its prefix and newline to dst. The text must not contain a newline and be at most MaxText long.
func Append(dst []byte, t time.Time, s Stream, full bool, text []byte) []byte {
	dst = AppendPrefix(dst, t, s, full)
	dst = append(dst, text...)
	return append(dst, '\n')
}

// AppendPrefix adds a line's prefix to dst.
func AppendPrefix(dst []byte, t time.Time, s Stream, full bool) []byte {
	dst = t.UTC().AppendFormat(dst, TimeLayout)
	dst = append(dst, ' ')
	dst = append(dst, s...)
	if full {
		return append(dst, " F "...)
	}
	return append(dst, " P "...)
}

// Parse reads one line, given without its final newline.
func Parse(line []byte) (Line, error) {
	if len(line) < PrefixLen {
		return Line{}, fmt.Errorf("%w: %d bytes are shorter than the prefix of %d", ErrMalformed, len(line), PrefixLen)
	}
	if len(line) >= MaxLen {
		return Line{}, fmt.Errorf("%w: %d bytes are longer than the limit of %d", ErrMalformed, len(line), MaxLen-1)
	}
	t, err := parseTime(line[:len(TimeLayout)])
	if err != nil {
		return Line{}, err
	}
	rest := line[len(TimeLayout):PrefixLen]
	if rest[0] != ' ' || rest[7] != ' ' || rest[9] != ' ' {
		return Line{}, fmt.Errorf("%w: no blanks between time, stream and tag", ErrMalformed)
	}
	l := Line{Time: t, Text: line[PrefixLen:]}
	switch string(rest[1:7]) {
	case string(Stdout):
		l.Stream = Stdout
	case string(Stderr):
		l.Stream = Stderr
	case string(Markers):
		l.Stream = Markers
	default:
		return Line{}, fmt.Errorf("%w: unknown stream %q", ErrMalformed, rest[1:7])
	}
	switch rest[8] {
	case 'F':
		l.Full = true
	case 'P':
	default:
		return Line{}, fmt.Errorf("%w: unknown tag %q", ErrMalformed, rest[8])
	}
	return l, nil
}

// Parser parses lines that stand one behind another. Output that was read at once has one prefix on all of its lines, which a Parser reads once. The zero value is ready to use.
type Parser struct {
	prefix [PrefixLen]byte
	line   Line // that prefix; no stream is none yet
}

// Parse is the function Parse.
func (p *Parser) Parse(line []byte) (Line, error) {
	if len(line) >= PrefixLen && len(line) < MaxLen && string(line[:PrefixLen]) == string(p.prefix[:]) && p.line.Stream != "" {
		l := p.line
		l.Text = line[PrefixLen:]
		return l, nil
	}
	l, err := Parse(line)
	if err == nil {
		copy(p.prefix[:], line)
		p.line = Line{Time: l.Time, Stream: l.Stream, Full: l.Full}
	}
	return l, err
}

// Run returns how many lines at the beginning of b, with their newlines, have the prefix of the last line that was good, and their length in bytes.
func (p *Parser) Run(b []byte) (lines, length int) {
	if p.line.Stream == "" {
		return 0, 0
	}
	for {
		rest := b[length:]
		if len(rest) <= PrefixLen || [PrefixLen]byte(rest) != p.prefix { // as a string it would be allocated
			return lines, length
		}
		i := bytes.IndexByte(rest[PrefixLen:], '\n')
		if i < 0 || i > MaxText {
			return lines, length
		}
		lines++
		length += PrefixLen + i + 1
	}
}

// parseTime is time.Parse(TimeLayout) for the one shape that is allowed; it is on the path of every line.
func parseTime(b []byte) (time.Time, error) {
	n := digits{b: b}
	year, month, day := n.two(0)*100+n.two(2), n.two(5), n.two(8)
	hour, minute, sec := n.two(11), n.two(14), n.two(17)
	nano := n.two(20)*10_000_000 + n.two(22)*100_000 + n.two(24)*1000 + n.two(26)*10 + n.one(28)
	if n.bad || b[4] != '-' || b[7] != '-' || b[10] != 'T' || b[13] != ':' || b[16] != ':' || b[19] != '.' || b[29] != 'Z' ||
		month < 1 || month > 12 || day < 1 || day > daysIn(month, year) || hour > 23 || minute > 59 || sec > 59 {
		return time.Time{}, fmt.Errorf("%w: time %q is not like %s", ErrMalformed, b, TimeLayout)
	}
	return time.Date(year, time.Month(month), day, hour, minute, sec, nano, time.UTC), nil
}

// digits reads decimal digits. bad says that there was another character.
type digits struct {
	b   []byte
	bad bool
}

func (d *digits) one(at int) int {
	c := d.b[at] - '0'
	d.bad = d.bad || c > 9
	return int(c)
}

func (d *digits) two(at int) int { return d.one(at)*10 + d.one(at+1) }

func daysIn(month, year int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// Marker is a notice of shiplog's own within a log, the JSON text of a full line of the stream "marker".
type Marker struct {
	// Kind is "gap": bytes that were printed here and are not in the archive.
	Kind string `json:"kind"`
	// Reason says why, as one of the Reason constants.
	Reason Reason `json:"reason"`
	// Stdout and Stderr count the lost bytes; Unknown says that at least these were lost.
	Stdout  int64 `json:"stdout"`
	Stderr  int64 `json:"stderr"`
	Unknown bool  `json:"unknown,omitempty"`
	// Detail is free text for a person, such as an error.
	Detail string `json:"detail,omitempty"`
}

// Gap is the kind of a marker for lost bytes.
const Gap = "gap"

// What is longer in a marker is cut where it is read, in bytes.
const (
	maxWord   = 64   // Kind and Reason
	maxDetail = 1000 // Detail
)

// UnmarshalJSON implements json.Unmarshaler. A container can forge a marker in its own log, and a
// seal holds some: their texts are one line each, without what a terminal obeys.
func (m *Marker) UnmarshalJSON(b []byte) error {
	type plain Marker // without this method
	if err := json.Unmarshal(b, (*plain)(m)); err != nil {
		return err
	}
	m.Kind = visible.Line(m.Kind, maxWord)
	m.Reason = Reason(visible.Line(string(m.Reason), maxWord))
	m.Detail = visible.Line(m.Detail, maxDetail)
	return nil
}

// Reason says why bytes are missing.
type Reason string

// The reasons for a gap.
const (
	ReasonSpoolLimit Reason = "spool-limit" // unshipped bytes reached the spool limit
	ReasonDiskLow    Reason = "disk-low"    // the node's disk had too little room for unshipped bytes
	ReasonSpoolError Reason = "spool-error" // the spool could not be written, as ENOSPC or EIO
	ReasonMalformed  Reason = "malformed"   // the spool held bytes that are no CRI lines
	ReasonTruncated  Reason = "truncated"   // spool bytes vanished before they were shipped
	ReasonKilled     Reason = "killed"      // tee had taken them, and was killed before they were in the spool
)

// AppendMarker adds a marker line to dst.
func AppendMarker(dst []byte, t time.Time, m Marker) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return dst, fmt.Errorf("encode marker: %w", err)
	}
	if len(text) > MaxText {
		return dst, fmt.Errorf("encode marker: %d bytes are over the limit of %d", len(text), MaxText)
	}
	return Append(dst, t, Markers, true, text), nil
}

// ParseMarker reads the text of a line of the stream "marker".
func ParseMarker(text []byte) (Marker, error) {
	var m Marker
	if err := json.Unmarshal(text, &m); err != nil {
		return Marker{}, fmt.Errorf("parse marker: %w", err)
	}
	return m, nil
}
