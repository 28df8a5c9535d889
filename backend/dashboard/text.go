package dashboard

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
)

// level is how the Dashboard's page shows a line that begins with it (packages/components/src/components/Log/Log.jsx). It hides none of these.
type level string

const (
	levelNotice  level = "notice"
	levelWarning level = "warning"
	levelError   level = "error"
)

// bufferSize is how much of an answer is collected before it is sent, in bytes.
const bufferSize = 64 << 10

// text writes a log as the kubelet writes that of a pod with timestamps, so that both look the same on the Dashboard's page: each line behind the time of its beginning, in nine digits and UTC, and a piece of a line where the last
// one ended, of whichever stream it is (k8s.io/cri-client, pkg/logs/logs.go). Without times and notices, it is what the container printed.
type text struct {
	out   *bufio.Writer
	last  time.Time // of the last line
	open  bool      // the last line has not ended
	begun bool      // there is a line
}

func newText(w io.Writer) *text { return &text{out: bufio.NewWriterSize(w, bufferSize)} }

// log writes a container's log, and what there is to say of it. It returns errors of the store, and of the connection.
func (t *text) log(lines iter.Seq2[backend.Line, error], c backend.Container) error {
	marked := false
	for l, err := range lines {
		var digest *backend.DigestError
		switch {
		case errors.As(err, &digest):
			err = t.notice(levelWarning, t.latest(), digest.Error())
		case err != nil:
		case l.Stream == criline.Markers:
			marked = true
			err = t.notice(levelWarning, l.Time, backend.DescribeMarker(l.Text))
		default:
			err = t.line(l)
		}
		if err != nil {
			return err
		}
	}
	said := c.Describe()
	if said == "" || marked && c.Status == backend.Gaps { // the log itself has shown its gaps
		return nil
	}
	return t.notice(t.levelOf(c), t.endOf(c), said)
}

// levelOf is that of what a log's state means.
func (t *text) levelOf(c backend.Container) level {
	switch c.Status {
	case backend.Verified, backend.NotCaptured, backend.Running:
		if !t.begun {
			return levelNotice
		}
	}
	return levelWarning
}

// endOf is the time at which a log's state is said.
func (t *text) endOf(c backend.Container) time.Time {
	if !t.begun && c.Seal != nil && !c.Seal.Sealed.IsZero() {
		return c.Seal.Sealed
	}
	return t.latest()
}

// latest is the time of the last line, or now if there is none.
func (t *text) latest() time.Time {
	if t.begun {
		return t.last
	}
	return time.Now()
}

// line writes a line, or a piece of one.
func (t *text) line(l backend.Line) error {
	if !t.open {
		t.stamp(l.Time)
	}
	t.open = !l.Full
	_, err := t.out.Write(l.Text) // the writer keeps its first error, and returns it from then on
	if l.Full {
		err = t.out.WriteByte('\n')
	}
	return err
}

func (t *text) stamp(at time.Time) {
	t.begun, t.last = true, at
	t.out.WriteString(at.UTC().Format(criline.TimeLayout) + " ")
}

// notice writes a line of shiplog's own.
func (t *text) notice(as level, at time.Time, said string) error {
	if t.open {
		t.out.WriteByte('\n')
		t.open = false
	}
	t.stamp(at)
	_, err := fmt.Fprintf(t.out, "::%s::shiplog: %s\n", as, strings.Join(strings.Fields(said), " ")) // in one line, whatever a step has put into a marker
	return err
}
