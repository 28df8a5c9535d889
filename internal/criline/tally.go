package criline

import "time"

// Tally counts lines as they pass. The zero value is ready to use.
type Tally struct {
	Bytes          int64 // archive bytes: lines with their prefixes and newlines
	Lines          int64 // newlines printed
	Stdout, Stderr int64 // bytes printed
	First, Last    time.Time
	Gaps           []Marker
}

// Add counts one line.
func (t *Tally) Add(l Line) {
	t.Bytes += int64(PrefixLen+len(l.Text)) + 1
	if t.First.IsZero() {
		t.First = l.Time
	}
	t.Last = l.Time
	switch l.Stream {
	case Stdout:
		t.Stdout += l.Printed()
	case Stderr:
		t.Stderr += l.Printed()
	case Markers:
		if m, err := ParseMarker(l.Text); err == nil {
			t.Gaps = append(t.Gaps, m)
		}
		return
	}
	if l.Full {
		t.Lines++
	}
}

// AddRun counts more lines of that length in bytes, with their newlines, that have the prefix of a printed line that was added.
func (t *Tally) AddRun(like Line, lines, length int) {
	printed := int64(length - lines*PrefixLen)
	t.Bytes += int64(length)
	if like.Full {
		t.Lines += int64(lines)
	} else {
		printed -= int64(lines) // their newlines were not printed
	}
	switch like.Stream {
	case Stdout:
		t.Stdout += printed
	case Stderr:
		t.Stderr += printed
	}
}

// Printed is what was printed on both streams.
func (t Tally) Printed() int64 { return t.Stdout + t.Stderr }
