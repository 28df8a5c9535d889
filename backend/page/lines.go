package page

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/internal/criline"
)

const (
	// mostRows is how many lines the viewer may ask for at once.
	mostRows = 1000
	// maxRow is how much of a line is shown, in bytes. The rest is in the download.
	maxRow = 8 << 10
	// mostGaps is how many gaps of a line are described. A container can forge any number in its own
	// log.
	mostGaps = 20
	// mostSpans is how many pieces a line is shown in. One of control characters alone has a piece for
	// each, and one of colours some hundreds.
	mostSpans = 1000
	// mostMarks is how many beginnings and ends of groups are found in a log.
	mostMarks = 5000
	// maxMarked is how much of a line that came in pieces is looked at, in bytes.
	maxMarked = 64 << 10
)

// Row is a line as the viewer shows it: all that has its number, as a terminal would have it, of both streams.
type Row struct {
	Number int64     `json:"n"`
	Time   time.Time `json:"at"`
	Kind   string    `json:"k,omitempty"` // group, endgroup, error, warning, notice or debug, of a line that is a workflow command
	Spans  []Span    `json:"s"`
	Stderr bool      `json:"e,omitempty"`   // some of it
	Cut    int64     `json:"cut,omitempty"` // bytes that are not shown
	Gaps   []string  `json:"gaps,omitempty"`

	text []byte
	more int // gaps that are not described
}

// Rows is an answer to the viewer.
type Rows struct {
	Rows []Row `json:"rows"`
	rowsEnd
}

// rowsEnd is what stands behind the rows.
type rowsEnd struct {
	Lines int64 `json:"lines"` // of the log that have ended
	State
}

// State is how a log stands.
type State struct {
	Status string `json:"status"`
	Says   string `json:"says,omitempty"`
	Bytes  int64  `json:"bytes"`
	Damage string `json:"damage,omitempty"` // what was found while it was read
}

// lines answers with some lines of a log: from, and count.
func (p *page) lines(w http.ResponseWriter, r *http.Request) error {
	c, err := p.container(r)
	if err != nil {
		return err
	}
	from, err := number(r, "from", 1, 1<<60)
	if err != nil {
		return err
	}
	count, err := number(r, "count", 1, mostRows)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	out := &rowWriter{to: bufio.NewWriterSize(w, rowBuffer)}
	end := rowsEnd{c.Lines, State{Status: string(c.Status), Says: c.Describe(), Bytes: c.Bytes}}
	o := backend.LogOptions{FromLine: from, ToLine: from + count - 1}
	for l, err := range p.Archive.Lines(r.Context(), c, o) {
		var digest *backend.DigestError
		switch {
		case errors.As(err, &digest):
			end.Damage = "what is archived is not what was sealed"
			continue
		case err == nil:
			err = out.add(l)
		}
		switch {
		case err == nil:
		case !out.sent():
			return err
		default: // it must not look whole
			if r.Context().Err() == nil {
				p.Log.Error("broke an answer off", "path", r.URL.Path, "error", err)
			}
			panic(http.ErrAbortHandler)
		}
	}
	if err := out.end(end); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// rowBuffer is how much of an answer is collected before it is sent, in bytes.
const rowBuffer = 64 << 10

// rowWriter writes Rows as JSON, each row when it is whole: all of them together can take a hundred
// times the memory of what they show.
type rowWriter struct {
	to      *bufio.Writer
	row     *Row // the last one, of which pieces may come
	written int  // bytes
}

// sent says whether something of the answer is on its way.
func (o *rowWriter) sent() bool { return o.written > o.to.Buffered() }

// add puts a piece of a line to the others that have its number.
func (o *rowWriter) add(l backend.Line) error {
	if o.row != nil && o.row.Number != l.Number {
		if err := o.flush(); err != nil {
			return err
		}
	}
	if o.row == nil {
		o.row = &Row{Number: l.Number, Time: l.Time}
	}
	o.row.add(l)
	return nil
}

// flush writes the last row.
func (o *rowWriter) flush() error {
	before := ","
	if o.written == 0 {
		before = `{"rows":[`
	}
	var b []byte
	if o.row != nil {
		o.row.show()
		var err error
		if b, err = json.Marshal(o.row); err != nil {
			return err
		}
		o.row = nil
	}
	return o.write(before, b)
}

func (o *rowWriter) write(before string, b []byte) error {
	o.written += len(before) + len(b)
	if _, err := o.to.WriteString(before); err != nil {
		return err
	}
	_, err := o.to.Write(b)
	return err
}

// end writes what is behind the rows, and sends all.
func (o *rowWriter) end(end rowsEnd) error {
	if o.row != nil || o.written == 0 {
		if err := o.flush(); err != nil {
			return err
		}
	}
	b, err := json.Marshal(end)
	if err != nil {
		return err
	}
	if err := o.write("],", append(b[1:], '\n')); err != nil {
		return err
	}
	return o.to.Flush()
}

// add puts a piece of the line to it.
func (r *Row) add(l backend.Line) {
	if l.Stream == criline.Markers {
		if len(r.Gaps) == mostGaps {
			r.more++
			return
		}
		m, err := criline.ParseMarker(l.Text)
		if err != nil {
			r.Gaps = append(r.Gaps, "bytes are missing here")
			return
		}
		r.Gaps = append(r.Gaps, backend.DescribeGap(m))
		return
	}
	r.Stderr = r.Stderr || l.Stream == criline.Stderr
	room := max(0, maxRow-len(r.text))
	n := min(len(l.Text), room)
	r.text = append(r.text, l.Text[:n]...)
	r.Cut += int64(len(l.Text) - n)
}

// command is a line that a workflow command begins, as GitHub Actions, Azure Pipelines and others write them.
var command = regexp.MustCompile(`^\s*(?:::(group|endgroup|error|warning|notice|debug)(?: [^:]*)?::|##\[(group|endgroup|error|warning|debug|section)\])`)

// show makes spans of a line's text.
func (r *Row) show() {
	if r.more > 0 {
		r.Gaps = append(r.Gaps, fmt.Sprintf("bytes are missing here in %d more places", r.more))
	}
	if r.Cut > 0 { // not within a character
		for i := len(r.text) - 1; i >= max(0, len(r.text)-utf8.UTFMax); i-- {
			if utf8.RuneStart(r.text[i]) {
				if !utf8.FullRune(r.text[i:]) {
					r.Cut += int64(len(r.text) - i)
					r.text = r.text[:i]
				}
				break
			}
		}
	}
	text := string(r.text)
	if m := command.FindStringSubmatch(text); m != nil {
		if r.Kind = cmp.Or(m[1], m[2]); r.Kind == "section" {
			r.Kind = "notice"
		}
		text = text[len(m[0]):]
	}
	var rest int
	r.Spans, rest = spans(text, mostSpans)
	r.Cut += int64(rest)
	if r.Spans == nil {
		r.Spans = []Span{}
	}
}

// Mark is a line that begins or ends what can be folded.
type Mark struct {
	Number int64     `json:"n"`
	Kind   string    `json:"k"` // group or endgroup
	Time   time.Time `json:"at"`
}

// Marks is the answer to where they are.
type Marks struct {
	Marks  []Mark `json:"marks"`
	Error  int64  `json:"error,omitempty"`  // the number of the first line that is marked as an error
	Likely int64  `json:"likely,omitempty"` // the number of the first line that reads like one, if there was none before it that is marked
	More   bool   `json:"more,omitempty"`   // there are more marks than are found
	Lines  int64  `json:"lines"`            // of the log that have ended: what came later was not looked at
	Status string `json:"status"`
}

// What most tools write of an error, where none is marked as one.
var (
	likelyWords = []string{"error", "fatal", "panic", "failed", "failure", "exception", "cannot", "undefined"}
	likelyError = regexp.MustCompile(`(?i)\b(` + strings.Join(likelyWords, "|") + `)\b`)
)

// marks answers with the marks of a log from a line on. All of it is read, once.
func (p *page) marks(w http.ResponseWriter, r *http.Request) error {
	c, err := p.container(r)
	if err != nil {
		return err
	}
	from, err := number(r, "from", 1, 1<<60)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	// All of the log is read before there is an answer: who waits is told at once that one comes, and
	// once in a while that it is still to come, with a blank, which JSON may begin with.
	if err := api.SendHeaders(w); err != nil {
		return nil // who asked is gone
	}
	to, err := p.Turns.Answer(r.Context(), w, api.KeepAlive)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer to.Done()
	out := marker{Marks: Marks{Marks: []Mark{}, Lines: c.Lines, Status: string(c.Status)}}
	open := map[criline.Stream]*backend.Line{} // lines of which there are pieces
	o := backend.LogOptions{FromLine: from, Pass: to.Pass}
	for l, err := range p.Archive.Lines(r.Context(), c, o) {
		var digest *backend.DigestError
		switch {
		case errors.As(err, &digest): // that is said where the log is shown
			continue
		case err != nil: // it must not look whole
			if r.Context().Err() == nil {
				p.Log.Error("broke an answer off", "path", r.URL.Path, "error", err)
			}
			panic(http.ErrAbortHandler)
		case l.Stream == criline.Markers:
			continue
		}
		if before := open[l.Stream]; before != nil {
			before.Text = append(before.Text, l.Text[:min(len(l.Text), max(0, maxMarked-len(before.Text)))]...)
			if !l.Full {
				continue
			}
			delete(open, l.Stream)
			l = *before
		} else if !l.Full {
			l.Text = bytes.Clone(l.Text)
			open[l.Stream] = &l
			continue
		}
		if out.add(l); out.More && out.Error > 0 {
			break
		}
	}
	for _, stream := range []criline.Stream{criline.Stdout, criline.Stderr} { // lines that have not ended
		if l := open[stream]; l != nil {
			out.add(*l)
		}
	}
	return writeJSON(to, out.Marks)
}

// marker finds marks.
type marker struct {
	Marks
	lower []byte
}

// add looks at a line.
func (m *marker) add(l backend.Line) {
	text := bytes.TrimLeft(l.Text, " \t")
	if bytes.HasPrefix(text, []byte("::")) || bytes.HasPrefix(text, []byte("##[")) {
		if groups := command.FindSubmatch(text); groups != nil {
			switch kind := cmp.Or(string(groups[1]), string(groups[2])); {
			case kind == "error" && m.Error == 0:
				m.Error = l.Number
			case kind != "group" && kind != "endgroup":
			case len(m.Marks.Marks) == mostMarks:
				m.More = true
			default:
				m.Marks.Marks = append(m.Marks.Marks, Mark{l.Number, kind, l.Time})
			}
			return
		}
	}
	if m.Error == 0 && m.Likely == 0 && m.likely(l.Text) {
		m.Likely = l.Number
	}
}

// likely says whether a line tells of an error. Most hold none of the words, and the expression takes some twenty times as long to see that.
func (m *marker) likely(text []byte) bool {
	m.lower = m.lower[:0]
	for _, c := range text {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		m.lower = append(m.lower, c)
	}
	return slices.ContainsFunc(likelyWords, func(w string) bool { return bytes.Contains(m.lower, []byte(w)) }) && likelyError.Match(text)
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // who asked may be gone: the viewer stops what it does not need any more
	return nil
}

func (p *page) container(r *http.Request) (backend.Container, error) {
	key, err := api.ContainerKey(r)
	if err != nil {
		return backend.Container{}, err
	}
	return p.Archive.Container(r.Context(), key)
}

// number reads a parameter.
func number(r *http.Request, name string, least, most int64) (int64, error) {
	v := r.URL.Query().Get(name)
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < least || n > most {
		return 0, &api.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("%s=%q: want a whole number from %d to %d", name, v, least, most)}
	}
	return n, nil
}
