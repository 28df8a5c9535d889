package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/fatih/color"
	"github.com/spf13/cobra"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/live"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// selection is what of a run is printed, and how.
type selection struct {
	kind layout.RunKind // of what RUN names; "" for any
	pick pick
	backend.Choice
	raw, timestamps, prefix       bool
	follow, archive, exitLikeARun bool
	tail                          int64 // lines, or allLines
}

// allLines is a --tail that leaves nothing out, as kubectl has it.
const allLines = -1

// options choose the lines that --tail asks for.
func (sel *selection) options() backend.LogOptions {
	return backend.LogOptions{Tail: max(0, sel.tail), None: sel.tail == 0}
}

// exit codes of -E, as tkn's.
const (
	exitRunFailed  = 1
	exitRunUnknown = 2
)

func newLogs(s *settings) *cobra.Command {
	sel := &selection{tail: allLines}
	c := &cobra.Command{
		Use: "logs [RUN]", Short: "Print the logs of a run",
		Long: "Print the logs of a run, each line with its task and step. A pod that is there is read itself, and the archive has the rest.",
		Example: `  shiplog logs -n builds my-run
  shiplog logs -n builds my-run -f --task build
  shiplog logs -n builds my-run -t build -s compile --tail 100 --timestamps
  shiplog logs -n builds my-run -t build -s compile --raw > compile.log`,
		ValidArgsFunction: s.complete(""),
		RunE:              func(cmd *cobra.Command, args []string) error { return s.logs(cmd.Context(), sel, args) },
	}
	f := c.Flags()
	sel.common(c)
	f.StringSliceVarP(&sel.Tasks, "task", "t", nil, "only these tasks of the pipeline, or TaskRuns")
	f.StringSliceVarP(&sel.Steps, "step", "s", nil, "only these steps")
	f.BoolVar(&sel.timestamps, "timestamps", false, "begin each line with its time")
	f.StringVarP(&sel.Container, "container", "c", "", "only this container, as step-x or sidecar-x")
	f.Int64Var(&sel.tail, "tail", allLines, "only the last `N` ended lines of each log, and what is "+
		"behind them; 0: nothing of what is there; -1: all")
	f.BoolVar(&sel.raw, "raw", false, "exactly the bytes that were printed, and nothing else; from the archive")
	return c
}

// newPipelineRun makes "pipelinerun logs", with tkn's flags.
func newPipelineRun(s *settings) *cobra.Command {
	sel := &selection{
		kind: layout.PipelineRun, tail: allLines,
		Choice: backend.Choice{Sidecars: true}, // which tkn takes for steps
	}
	c := &cobra.Command{
		Use: "logs [PIPELINERUN]", Short: "Print the logs of a PipelineRun, with tkn's flags and exit codes", ValidArgsFunction: s.complete(layout.PipelineRun), Args: atMostOne,
		RunE: func(cmd *cobra.Command, args []string) error { return s.tknLogs(cmd.Context(), sel, args) },
	}
	sel.common(c)
	f := c.Flags()
	f.StringSliceVarP(&sel.Tasks, "task", "t", nil, "only these tasks")
	f.BoolVar(&sel.timestamps, "timestamps", false, "begin each line with its time")
	f.BoolVarP(&sel.exitLikeARun, "exit-with-pipelinerun-error", "E", false, "exit with the PipelineRun's: 0 succeeded or not over, 1 failed, 2 not known")
	parent := &cobra.Command{Use: "pipelinerun", Aliases: []string{"pr", "pipelineruns"}, Short: "PipelineRuns, as with tkn"}
	s.likeTknFlags(parent)
	parent.AddCommand(c)
	return parent
}

// newTaskRun makes "taskrun logs", with tkn's flags.
func newTaskRun(s *settings) *cobra.Command {
	sel := &selection{kind: layout.TaskRun, tail: allLines, Choice: backend.Choice{Sidecars: true}}
	c := &cobra.Command{
		Use: "logs [TASKRUN]", Short: "Print the logs of a TaskRun, with tkn's flags and exit codes", ValidArgsFunction: s.complete(layout.TaskRun), Args: atMostOne,
		RunE: func(cmd *cobra.Command, args []string) error { return s.tknLogs(cmd.Context(), sel, args) },
	}
	sel.common(c)
	f := c.Flags()
	f.StringSliceVarP(&sel.Steps, "step", "s", nil, "only these steps")
	f.BoolVarP(&sel.timestamps, "timestamps", "t", false, "begin each line with its time")
	parent := &cobra.Command{Use: "taskrun", Aliases: []string{"tr", "taskruns"}, Short: "TaskRuns, as with tkn"}
	s.likeTknFlags(parent)
	parent.AddCommand(c)
	return parent
}

// common are the flags of all three.
func (sel *selection) common(c *cobra.Command) {
	f := c.Flags()
	f.BoolVarP(&sel.All, "all", "a", false, "init containers and sidecars too")
	f.BoolVarP(&sel.follow, "follow", "f", false, "go on as the logs grow, until the run is over")
	f.BoolVar(&sel.prefix, "prefix", true, "begin each line with its task and step")
	f.BoolVar(&sel.archive, "archive", false, "read the archive only, even while pods are there")
	f.BoolVarP(&sel.pick.last, "last", "L", false, "the newest run")
	f.BoolVarP(&sel.pick.choose, "fzf", "F", false, "choose a run from a list")
	f.IntVar(&sel.pick.limit, "limit", 5, "how many runs there are to choose from; with --fzf 100")
}

// tknLogs prints logs with tkn's exit codes: a log that is not whole is no failure.
func (s *settings) tknLogs(ctx context.Context, sel *selection, args []string) error {
	err := s.logs(ctx, sel, args)
	if sel.exitLikeARun {
		return err
	}
	return notWhole(err)
}

// notWhole drops what says how complete a log is.
func notWhole(err error) error {
	var exit *exitError
	if errors.As(err, &exit) {
		switch exit.code {
		case exitRunning, exitLost, exitPartial:
			return nil
		}
	}
	return err
}

// check finds flags that do not go together.
func (sel *selection) check() error {
	switch {
	case sel.tail < allLines:
		return usageError("logs: --tail %d is not at least -1", sel.tail)
	case sel.raw && sel.follow && sel.Container == "" && len(sel.Steps) != 1:
		return usageError("logs: --raw --follow prints what one log has, as it comes: choose it with --step or --container")
	case sel.raw && sel.timestamps:
		return usageError("logs: --raw prints what was printed, which has no timestamps")
	case sel.All && len(sel.Steps) > 0:
		return usageError("logs: --all and --step do not go together")
	case sel.pick.limit < 1:
		return usageError("logs: --limit %d is not at least 1", sel.pick.limit)
	}
	return nil
}

func (s *settings) logs(ctx context.Context, sel *selection, args []string) error {
	if err := sel.check(); err != nil {
		return err
	}
	src, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer src.close()
	run, err := s.pick(ctx, src, sel.kind, sel.pick, args)
	if err != nil {
		return err
	}
	if (sel.raw || sel.archive) && src.Archive != nil {
		src.Cluster = nil
	}
	v, err := src.Look(ctx, src.namespace, sel.kind, run)
	if err != nil {
		return src.explain(err)
	}
	if len(v.Others) > 0 {
		fmt.Fprintf(s.stderr, "shiplog: %d more runs are named %s; this is the newest. \"%s ls\" shows their UIDs\n", len(v.Others), run, program())
	}
	o := sel.options()
	lines := src.Show(ctx, v, sel.Includes, o)
	if sel.follow {
		o.Idle = s.out.Flush
		lines = src.Follow(ctx, src.namespace, sel.kind, run, sel.Includes, o)
	}
	worst, found := 0, false
	said, ends := &notices{out: s.out}, &notices{out: afterOutput{s}}
	p := &backend.Printer{Out: s.out, Notices: said, Ends: ends, Raw: sel.raw, Timestamps: sel.timestamps, Seen: func(status backend.Status) { worst = worse(worst, exitCode(status)) }}
	if sel.raw {
		p.Notices = p.Ends
	}
	paint := painter{on: s.colors(s.stdout)}
	tkn := s.likeTkn(src, sel, v)
	for l, err := range lines {
		found = found || err == nil
		if err == nil {
			hidden, err := tkn.before(l.Place)
			if err != nil {
				return err
			}
			if hidden {
				continue
			}
		}
		label := ""
		if sel.prefix {
			label = paint.paint(l.Container.Label(), visible(sel.label(l.Place, v)))
		}
		said.label, ends.label = label, label
		if err == nil && l.Line.Stream == "" { // the end of one
			if err = p.End(label, l.Container); err == nil && !sel.raw { // tkn ends a step's log with a blank line
				err = s.out.WriteByte('\n')
			}
			if err == nil {
				err = tkn.after(ctx, l.Place)
			}
		} else {
			err = p.Line(label, l.Line, err)
		}
		if err != nil {
			return err
		}
	}
	if !found && !begins(v, sel) {
		return fmt.Errorf("no container of run %s fits: \"%s ls -n %s %s\" shows what there is", run, program(), src.namespace, run)
	}
	if err := tkn.end(); err != nil {
		return err
	}
	return s.ending(ctx, src, sel, run, v, worst)
}

// label is what stands before each line. As tkn has it, the task only where a PipelineRun is printed, and retries look the same.
func (sel *selection) label(p backend.Place, v *live.View) string {
	run := v.Tree.Run
	if sel.kind == layout.TaskRun {
		run.Name = layout.NoPipelineRun
	}
	if sel.kind != "" {
		p.Retry = 0
	}
	return p.Label(run)
}

// begins says whether there is something that fits, though nothing of it has begun.
func begins(v *live.View, sel *selection) bool {
	for p := range v.Tree.Containers() {
		if sel.Includes(p.TaskRun, p.Container) {
			return true
		}
	}
	return false
}

// ending says why a run failed, and returns the exit code.
func (s *settings) ending(ctx context.Context, src *source, sel *selection, run string, v *live.View, worst int) error {
	if sel.follow || sel.exitLikeARun { // which has taken its time
		now, err := src.Look(ctx, src.namespace, sel.kind, run)
		if err == nil {
			v = now
		}
	}
	said := sel.kind == layout.TaskRun && len(v.Failures) > 0
	if v.Outcome == live.Failed && v.Reason != "" && !sel.raw && !said {
		if err := s.complain(v.Reason); err != nil {
			return err
		}
	}
	if sel.exitLikeARun {
		return exitLikeARun(v.Outcome)
	}
	if worst != 0 {
		return &exitError{code: worst}
	}
	return nil
}

// exitLikeARun is what -E exits with, as tkn does (github.com/tektoncd/cli, pkg/cmd/pipelinerun: prStatusToUnixStatus): a run that goes on is no failure.
func exitLikeARun(outcome live.Outcome) error {
	switch outcome {
	case live.Succeeded, live.Unfinished:
		return nil
	case live.Failed:
		return &exitError{code: exitRunFailed}
	default:
		return &exitError{code: exitRunUnknown}
	}
}

// complain says in red what went wrong with a run.
func (s *settings) complain(what string) error {
	if err := s.out.Flush(); err != nil {
		return err
	}
	red := color.New(color.FgRed)
	if s.colors(s.stderr) {
		red.EnableColor()
	} else {
		red.DisableColor()
	}
	_, err := red.Fprintln(s.stderr, visibleText(what))
	return err
}

// likeTkn is what "pipelinerun logs" and "taskrun logs" say on stderr beside the logs, as tkn v0.44.0 does (github.com/tektoncd/cli, pkg/log).
type likeTkn struct {
	s        *settings
	src      *source
	sel      *selection
	failures []live.Failure // not said yet
	failed   map[layout.Pod]bool
}

func (s *settings) likeTkn(src *source, sel *selection, v *live.View) *likeTkn {
	t := &likeTkn{s: s, src: src, sel: sel, failed: map[layout.Pod]bool{}}
	if sel.kind != "" && !sel.raw {
		t.failures = v.Failures
	}
	return t
}

// before says of a TaskRun that it has failed. Of a pod of which a container has ended with exit code 1, nothing more is shown.
func (t *likeTkn) before(p backend.Place) (hidden bool, err error) {
	if i := slices.IndexFunc(t.failures, func(f live.Failure) bool { return f.TaskRun == p.TaskRun.Name }); i >= 0 {
		said := t.failures[:i+1]
		t.failures = t.failures[i+1:]
		err = t.say(said)
	}
	return t.failed[p.Pod.Key], err
}

// after says how a container has failed.
func (t *likeTkn) after(ctx context.Context, p backend.Place) error {
	if t.sel.kind == "" {
		return nil
	}
	said := t.src.ContainerFailed(ctx, p)
	if said == "" {
		return nil
	}
	t.failed[p.Pod.Key] = true
	if t.sel.kind == layout.PipelineRun {
		said = fmt.Sprintf("failed to get logs for task %s : %s", p.TaskRun.Label(), said)
	}
	return t.s.complain(said)
}

// end says what has failed before it had a log.
func (t *likeTkn) end() error { return t.say(t.failures) }

func (t *likeTkn) say(failures []live.Failure) error {
	for _, f := range failures {
		if len(t.sel.Tasks) > 0 && !slices.Contains(t.sel.Tasks, f.Task) && !slices.Contains(t.sel.Tasks, f.TaskRun) {
			continue
		}
		if err := t.s.out.Flush(); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(t.s.stderr, "task %s has failed: %s\n", visible(f.Task), visibleText(f.Message)); err != nil {
			return err
		}
		if f.NoPod {
			if err := t.s.complain(fmt.Sprintf("pod for taskrun %s not available yet", f.TaskRun)); err != nil {
				return err
			}
		}
	}
	return nil
}

// afterOutput writes notices to stderr, behind what was printed before them.
type afterOutput struct{ s *settings }

func (w afterOutput) Write(b []byte) (int, error) {
	if err := w.s.out.Flush(); err != nil {
		return 0, err
	}
	return w.s.stderr.Write(b)
}

var _ io.Writer = afterOutput{}

// exitCode is what a log's state means to a script.
func exitCode(s backend.Status) int {
	switch {
	case s.Lost():
		return exitLost
	case s == backend.Partial:
		return exitPartial
	case s == backend.Running:
		return exitRunning
	default:
		return 0
	}
}
