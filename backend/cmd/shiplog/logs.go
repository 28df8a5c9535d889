package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// selection is what of a run is printed, and how.
type selection struct {
	task, step, container string
	all, raw, timestamps  bool
	tail                  int64
}

func logs(ctx context.Context, args []string, out *bufio.Writer, stderr io.Writer) error {
	var s settings
	var sel selection
	f := newFlags("logs", &s)
	f.StringVar(&sel.task, "task", "", "")
	f.StringVar(&sel.step, "step", "", "")
	f.StringVar(&sel.container, "container", "", "")
	f.BoolVar(&sel.all, "all", false, "")
	f.BoolVar(&sel.raw, "raw", false, "")
	f.BoolVar(&sel.timestamps, "timestamps", false, "")
	f.Int64Var(&sel.tail, "tail", 0, "")
	rest, err := parse(f, args)
	if err != nil {
		return err
	}
	switch {
	case len(rest) != 1:
		return usageError("logs: name one run")
	case sel.tail < 0:
		return usageError("logs: --tail %d is negative", sel.tail)
	case sel.raw && sel.timestamps:
		return usageError("logs: --raw prints what was printed, which has no timestamps")
	}
	archive, _, err := s.open(ctx)
	if err != nil {
		return err
	}
	target, err := find(ctx, archive, s.namespace, rest[0])
	if err != nil {
		return err
	}
	if len(target.Others) > 0 {
		fmt.Fprintf(stderr, "shiplog: %d more runs are named %s; this is the newest. \"shiplog ls\" shows their UIDs\n", len(target.Others), rest[0])
	}
	tree, err := archive.Tree(ctx, target)
	if err != nil {
		return err
	}
	p := &printer{out: out, notices: out, raw: sel.raw, timestamps: sel.timestamps}
	if sel.raw {
		p.notices = stderr
	}
	found := false
	for _, tr := range tree.TaskRuns {
		for i, pod := range tr.Pods {
			for _, c := range pod.Containers {
				if !sel.includes(tr, c) {
					continue
				}
				found = true
				if err := p.container(ctx, archive, label(tree, tr, i, c), c, sel.tail); err != nil {
					return err
				}
			}
		}
	}
	if !found {
		return fmt.Errorf("no container of run %s fits: \"shiplog ls -n %s %s\" shows what there is", rest[0], s.namespace, rest[0])
	}
	if p.worst != 0 {
		return &exitError{code: p.worst}
	}
	return nil
}

// includes says whether a container is to be printed. Steps are, unless something else is asked for.
func (s selection) includes(tr backend.TaskRun, c backend.Container) bool {
	if s.task != "" && s.task != tr.PipelineTask && s.task != tr.Name {
		return false
	}
	switch {
	case s.container != "":
		return c.Name == s.container
	case s.step != "":
		return (c.Kind == record.Step || c.Kind == "") && (c.Label() == s.step || c.Name == s.step)
	case s.all:
		return true
	default:
		return c.Kind == record.Step || c.Kind == "" && strings.HasPrefix(c.Name, "step-")
	}
}

// label is what stands before each line, as tkn has it: the task and the step in a PipelineRun, the step alone in a TaskRun.
func label(tree *backend.Tree, tr backend.TaskRun, retry int, c backend.Container) string {
	task := tr.Label()
	if retry > 0 {
		task += fmt.Sprintf(" retry %d", retry)
	}
	if tree.Run.Name == layout.NoPipelineRun {
		if retry > 0 {
			return fmt.Sprintf("[%s, retry %d] ", c.Label(), retry)
		}
		return "[" + c.Label() + "] "
	}
	return "[" + task + " : " + c.Label() + "] "
}

// printer prints logs and keeps the worst of what it sees.
type printer struct {
	out        *bufio.Writer
	notices    io.Writer
	raw        bool
	timestamps bool
	worst      int // exit code
}

func (p *printer) notice(label, format string, args ...any) error {
	_, err := fmt.Fprintf(p.notices, "%s-- shiplog: %s\n", label, fmt.Sprintf(format, args...))
	return err
}

func (p *printer) see(code int) { p.worst = worse(p.worst, code) }

func (p *printer) container(ctx context.Context, archive *backend.Archive, label string, c backend.Container, tail int64) error {
	marked := 0
	var open criline.Stream // the stream whose line is not ended yet
	endLine := func() error {
		if open == "" || p.raw {
			return nil
		}
		open = ""
		return p.out.WriteByte('\n')
	}
	for l, err := range archive.Lines(ctx, c, backend.LogOptions{Tail: tail}) {
		var digest *backend.DigestError
		if errors.As(err, &digest) {
			p.see(exitLost)
			if err := errors.Join(endLine(), p.notice(label, "%v", digest)); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if l.Stream == criline.Markers {
			p.see(exitLost)
			marked++
			if err := errors.Join(endLine(), p.gap(label, l.Line)); err != nil {
				return err
			}
			continue
		}
		if !p.raw && open != l.Stream {
			if err := errors.Join(endLine(), p.begin(label, l.Line)); err != nil {
				return err
			}
		}
		if _, err := p.out.Write(l.Text); err != nil {
			return err
		}
		open = l.Stream
		if l.Full {
			open = ""
			if err := p.out.WriteByte('\n'); err != nil {
				return err
			}
		}
	}
	if err := endLine(); err != nil {
		return err
	}
	if err := p.state(label, c, marked); err != nil {
		return err
	}
	if !p.raw { // tkn ends a step's log with a blank line
		return p.out.WriteByte('\n')
	}
	return nil
}

func (p *printer) begin(label string, l criline.Line) error {
	_, err := p.out.WriteString(label)
	if p.timestamps {
		_, err = p.out.WriteString(l.Time.Format(criline.TimeLayout) + " ")
	}
	return err
}

func (p *printer) gap(label string, l criline.Line) error {
	m, err := criline.ParseMarker(l.Text)
	if err != nil {
		return p.notice(label, "a notice that cannot be read: %v", err)
	}
	atLeast := ""
	if m.Unknown {
		atLeast = "at least "
	}
	detail := ""
	if m.Detail != "" {
		detail = ": " + m.Detail
	}
	return p.notice(label, "%s%d bytes are missing here (%s%s)", atLeast, m.Stdout+m.Stderr, m.Reason, detail)
}

// state says what the log's end means, unless all is well and there is something to see. The log itself has shown marked gaps.
func (p *printer) state(label string, c backend.Container, marked int) error {
	switch c.Status {
	case backend.Verified:
		switch {
		case c.Why == "" || p.raw:
		case len(c.Segments) > 0:
			return p.notice(label, "%s", c.Why)
		default:
			return p.notice(label, "this log is empty: %s", c.Why)
		}
		return nil
	case backend.Gaps:
		p.see(exitLost)
		if marked == 0 { // as with --tail
			return p.notice(label, "bytes are missing before this (%s)", c.Why)
		}
		return nil
	case backend.Running:
		p.see(exitRunning)
		if c.Why != "" {
			return p.notice(label, "%s", c.Why)
		}
		return p.notice(label, "still running: more will follow")
	case backend.Partial:
		p.see(exitPartial)
		return p.notice(label, "this log is partial: %s", c.Why)
	case backend.NotCaptured:
		return p.notice(label, "not captured: %s", c.Why)
	default:
		p.see(exitLost)
		return p.notice(label, "this log is %s: %s", c.Status, c.Why)
	}
}
