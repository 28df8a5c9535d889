package backend

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// Printer writes logs as people read them: "[task : step] line", and notices where something is to be said: Line for each line, and End at each log's end. Lines of several logs may be mixed. A Printer is for one goroutine.
type Printer struct {
	Out *bufio.Writer
	// Notices is where it is said that bytes are missing at a place, and Ends how a log stands at its end. nil leaves them out.
	Notices, Ends io.Writer
	// Raw writes exactly what was printed: no label, no time, and no line is ended that was not.
	Raw bool
	// Timestamps begins each line with its time in nine digits.
	Timestamps bool
	// Seen is told the state of each log, and of what was found while it was read: Damaged for a gap that is not in the archive.
	Seen func(Status)

	open   criline.Stream // the stream whose line is not ended yet
	label  string         // of that line
	marked map[string]int // gaps that were shown, by label
}

// Label is what stands before each line, as tkn has it: the task and the step in a PipelineRun, the step alone in a TaskRun.
func (p Place) Label(run layout.Run) string {
	if run.Name == layout.NoPipelineRun {
		if p.Retry > 0 {
			return fmt.Sprintf("[%s, retry %d] ", p.Container.Label(), p.Retry)
		}
		return "[" + p.Container.Label() + "] "
	}
	task := p.TaskRun.UniqueLabel()
	if p.Retry > 0 {
		task += fmt.Sprintf(" retry %d", p.Retry)
	}
	return "[" + task + " : " + p.Container.Label() + "] "
}

// Folder is the name of a folder for the logs of the place's pod. No other pod of the tree has the
// same: names of TaskRuns and tasks have no underscore.
func (p Place) Folder() string {
	if p.Retry > 0 {
		return fmt.Sprintf("%s_retry%d", p.TaskRun.UniqueLabel(), p.Retry)
	}
	return p.TaskRun.UniqueLabel()
}

func (p *Printer) see(s Status) {
	if p.Seen != nil {
		p.Seen(s)
	}
}

func notice(w io.Writer, label, format string, args ...any) error {
	if w == nil {
		return nil
	}
	_, err := fmt.Fprintf(w, "%s-- shiplog: %s\n", label, fmt.Sprintf(format, args...))
	return err
}

// endLine ends a line that another interrupts.
func (p *Printer) endLine() error {
	if p.open == "" || p.Raw {
		return nil
	}
	p.open = ""
	return p.Out.WriteByte('\n')
}

// Line writes a line, or what err says of the log. It returns err if it is not of the log but of the store, and any of Out.
func (p *Printer) Line(label string, l Line, err error) error {
	var digest *DigestError
	if errors.As(err, &digest) {
		p.see(Damaged)
		return errors.Join(p.endLine(), notice(p.Ends, label, "%v", digest))
	}
	if err != nil {
		return err
	}
	if l.Stream == criline.Markers {
		return errors.Join(p.endLine(), p.gap(label, l))
	}
	if !p.Raw && (p.open != l.Stream || p.label != label) {
		if err := p.endLine(); err != nil {
			return err
		}
		if _, err := p.Out.WriteString(label); err != nil {
			return err
		}
		if p.Timestamps {
			if _, err := p.Out.WriteString(l.Time.Format(criline.TimeLayout) + " "); err != nil {
				return err
			}
		}
	}
	if _, err := p.Out.Write(l.Text); err != nil {
		return err
	}
	p.open, p.label = l.Stream, label
	if l.Full {
		p.open = ""
		return p.Out.WriteByte('\n')
	}
	return nil
}

func (p *Printer) gap(label string, l Line) error {
	if p.marked == nil {
		p.marked = map[string]int{}
	}
	p.marked[label]++
	p.see(Gaps)
	if m, err := criline.ParseMarker(l.Text); err == nil && m.Reason == ReasonMissing {
		p.see(Damaged)
	}
	return notice(p.Notices, label, "%s", DescribeMarker(l.Text))
}

// DescribeMarker puts the text of a line of the stream "marker" into words.
func DescribeMarker(text []byte) string {
	m, err := criline.ParseMarker(text)
	if err != nil {
		return fmt.Sprintf("a notice that cannot be read: %v", err)
	}
	return DescribeGap(m)
}

// DescribeGap puts a marker into words.
func DescribeGap(m criline.Marker) string {
	atLeast, detail := "", ""
	if m.Unknown {
		atLeast = "at least "
	}
	if m.Detail != "" {
		detail = ": " + m.Detail
	}
	return fmt.Sprintf("%s%d bytes are missing here (%s%s)", atLeast, m.Stdout+m.Stderr, m.Reason, detail)
}

// End ends a log, and says what its end means, unless all is well and there is something to see.
func (p *Printer) End(label string, c Container) error {
	if err := p.endLine(); err != nil {
		return err
	}
	p.see(c.Status)
	marked := p.marked[label]
	delete(p.marked, label)
	said := c.Describe()
	if said == "" || c.Status == Gaps && marked > 0 || c.Status == Verified && p.Raw { // the log itself has shown its gaps
		return nil
	}
	return notice(p.Ends, label, "%s", said)
}

// Describe says what a log's state means to who reads it, or "" where all is well and there is something to see.
func (c Container) Describe() string {
	switch c.Status {
	case Verified:
		if c.Why == "" || len(c.Segments) > 0 || c.Bytes > 0 {
			return c.Why
		}
		return "this log is empty: " + c.Why
	case Gaps:
		return fmt.Sprintf("bytes are missing before this (%s)", c.Why)
	case Running:
		if c.Why != "" {
			return c.Why
		}
		return "still running: more will follow"
	case Partial:
		return "this log is partial: " + c.Why
	case NotCaptured:
		return "not captured: " + c.Why
	case Missed:
		return "this log is missing: " + c.Why
	default:
		return fmt.Sprintf("this log is %s: %s", c.Status, c.Why)
	}
}

// Worse returns the one of two states that a reader has to know of: bytes are missing, perhaps, not yet, or not.
func Worse(a, b Status) Status {
	for _, s := range []Status{Damaged, Missed, Gaps, Partial, Running, NotCaptured, Verified} {
		if a == s || b == s {
			return s
		}
	}
	return a
}

// Lost says whether bytes of the log are missing for good, as far as the archive knows.
func (s Status) Lost() bool { return s == Gaps || s == Damaged || s == Missed }
