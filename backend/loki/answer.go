package loki

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
)

// bufferSize is how much of an answer is collected before it is sent, in bytes.
const bufferSize = 64 << 10

// write writes a whole answer. An error, other than of the connection, is the store's.
func (h *handler) write(ctx context.Context, to io.Writer, q query, s selection) error {
	w := newEntries(to)
	// What Results reads: status, and under data the values of each result and stats.
	w.out.WriteString(`{"status":"success","data":{"resultType":"streams","result":[{"stream":{},"values":[`)
	if s.left > 0 && !q.forward {
		w.notice(time.Time{}, "", s.leftOut("first", q))
	}
	for _, p := range s.parts {
		if s.headers {
			w.notice(time.Time{}, "", strings.TrimSpace(p.Label(s.run)))
		}
		if q.labelled {
			w.prefix = "container-" + p.Container.Name + ": message="
		}
		if err := w.log(h.Archive.Lines(ctx, p.Container, p.options), p); err != nil {
			return err
		}
	}
	if s.left > 0 && q.forward {
		w.notice(time.Time{}, "", s.leftOut("last", q))
	}
	if err := w.finish(); err != nil {
		return err
	}
	w.out.WriteString("]}],\"stats\":{}}}\n")
	return w.out.Flush()
}

// leftOut says what the limit has left out.
func (s selection) leftOut(which string, q query) string {
	about := ""
	if s.about {
		about = "about "
	}
	return fmt.Sprintf("the %s %s%d of %d lines are left out here, since Tekton Results asked for %d (LOGGING_PLUGIN_QUERY_LIMIT); the archive has them", which, about, s.left, s.total, q.limit)
}

// entries writes the values of an answer: pairs of a time and a text. Results puts the texts together with newlines, in the order of the times as text, and of equal times in any order. So the times have the same number of digits,
// and each is greater than the one before.
type entries struct {
	out    *bufio.Writer // which keeps its first error, and returns it from then on
	prefix string        // of each text
	last   int64         // time of the last entry, in nanoseconds
	begun  bool          // there is an entry
	open   bool          // an entry that has not ended
	ended  bool          // a newline was printed behind the last entry, or it is a notice
	cut    []byte        // the first bytes of a character, of which the rest has not come

	quoted  bytes.Buffer
	encoder *json.Encoder // to quoted
}

func newEntries(to io.Writer) *entries {
	w := &entries{out: bufio.NewWriterSize(to, bufferSize)}
	w.encoder = json.NewEncoder(&w.quoted)
	w.encoder.SetEscapeHTML(false)
	return w
}

// log writes a container's log, with what there is to say of it.
func (w *entries) log(lines iter.Seq2[backend.Line, error], p part) error {
	marked := false
	for l, err := range lines {
		var digest *backend.DigestError
		switch {
		case errors.As(err, &digest):
			err = w.notice(time.Time{}, w.prefix, digest.Error())
		case err != nil:
		case l.Stream == criline.Markers:
			marked = true
			err = w.notice(l.Time, w.prefix, backend.DescribeMarker(l.Text))
		default:
			err = w.line(l)
		}
		if err != nil {
			return err
		}
	}
	said := p.Container.Describe()
	if said == "" || marked && p.Container.Status == backend.Gaps {
		return w.end()
	}
	return w.notice(time.Time{}, w.prefix, said)
}

// line writes a line, or a piece of one. As in a pod's log in Kubernetes, a piece goes on where the last one ended, of whichever stream it is.
func (w *entries) line(l backend.Line) error {
	if !w.open {
		w.begin(l.Time)
		w.text([]byte(w.prefix))
	}
	err := w.text(l.Text)
	if w.ended = l.Full; l.Full {
		err = w.end()
	}
	return err
}

// notice writes an entry of shiplog's own, as the CLI has them. Without a time it has that of the entry before.
func (w *entries) notice(at time.Time, prefix, said string) error {
	w.end()
	w.begin(at)
	w.ended = true
	w.text([]byte(prefix + "-- shiplog: " + strings.Join(strings.Fields(said), " "))) // in one line, whatever a step has put into a marker
	return w.end()
}

const (
	// leastTime and mostTime bound times, in seconds: nanoseconds between them have 19 digits, and leave room for more entries than there can be. A step can write any time into its own log.
	leastTime = 1_000_000_000
	mostTime  = 9_000_000_000
)

func (w *entries) begin(at time.Time) {
	ns := min(max(at.Unix(), leastTime), mostTime)*1_000_000_000 + int64(at.Nanosecond())
	w.last = max(ns, w.last+1)
	if w.begun {
		w.out.WriteByte(',')
	}
	w.begun, w.open = true, true
	w.out.WriteString("\n[\"" + strconv.FormatInt(w.last, 10) + "\",\"")
}

// text adds to an entry. JSON has no bytes that are not UTF-8: for each there is U+FFFD, as where Results itself reads such bytes.
func (w *entries) text(b []byte) error {
	if len(w.cut) > 0 {
		b = append(w.cut, b...)
	}
	whole := len(b) - cutRune(b)
	err := w.quote(b[:whole])
	w.cut = bytes.Clone(b[whole:])
	return err
}

func (w *entries) quote(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	w.quoted.Reset()
	if err := w.encoder.Encode(string(b)); err != nil {
		return err
	}
	q := w.quoted.Bytes()
	_, err := w.out.Write(q[1 : len(q)-2]) // without the quotes, and the newline behind them
	return err
}

// end ends an entry, if one is open.
func (w *entries) end() error {
	if !w.open {
		return nil
	}
	err := w.quote(w.cut)
	w.open, w.cut = false, nil
	if err == nil {
		_, err = w.out.WriteString("\"]")
	}
	return err
}

// finish adds an empty entry where the last line has ended: it makes Results put a newline behind that line, too.
func (w *entries) finish() error {
	if !w.ended {
		return nil
	}
	w.begin(time.Time{})
	return w.end()
}

// cutRune is how many bytes at the end of b are the beginning of a character that goes on.
func cutRune(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		tail := b[len(b)-n:]
		if utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
