package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// selection is what of a run is printed, and how.
type selection struct {
	task, step, container string
	all, raw, timestamps  bool
	follow                bool
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
	f.BoolVar(&sel.follow, "f", false, "")
	f.BoolVar(&sel.follow, "follow", false, "")
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
	case sel.raw && sel.follow && sel.container == "" && sel.step == "":
		return usageError("logs: --raw --follow prints what one log has, as it comes: choose it with --step or --container")
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
	worst := 0
	p := &backend.Printer{Out: out, Notices: out, Raw: sel.raw, Timestamps: sel.timestamps, Seen: func(s backend.Status) { worst = worse(worst, exitCode(s)) }}
	if sel.raw {
		p.Notices = stderr
	}
	found := false
	show := archive.RunLines(ctx, tree, sel.includes, backend.LogOptions{Tail: sel.tail})
	if sel.follow {
		show = archive.FollowRun(ctx, target, sel.includes, backend.LogOptions{Tail: sel.tail, Idle: out.Flush})
	}
	for l, err := range show {
		if err == nil {
			found = true
		}
		label := l.Label(tree.Run)
		if err == nil && l.Line.Stream == "" { // the end of one
			err = p.End(label, l.Container)
			if err == nil && !sel.raw && !sel.follow { // tkn ends a step's log with a blank line
				err = out.WriteByte('\n')
			}
		} else {
			err = p.Line(label, l.Line, err)
		}
		if err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("no container of run %s fits: \"shiplog ls -n %s %s\" shows what there is", rest[0], s.namespace, rest[0])
	}
	if worst != 0 {
		return &exitError{code: worst}
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

// exitCode is what a log's state means to a script.
func exitCode(s backend.Status) int {
	switch s {
	case backend.Gaps, backend.Damaged:
		return exitLost
	case backend.Partial:
		return exitPartial
	case backend.Running:
		return exitRunning
	default:
		return 0
	}
}
