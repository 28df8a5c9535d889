package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/live"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

func newGet(s *settings) *cobra.Command {
	sel := &selection{raw: true}
	var dir string
	c := &cobra.Command{
		Use: "get RUN", Short: "Save the logs of a run as files", Args: exactlyOne, ValidArgsFunction: s.complete(""),
		Long: `Save the logs of a run as files, byte for byte as they were printed: DIR/TASK/CONTAINER.log, and DIR/TASK.retry1/… of a retry.
A file that is there already is written anew. What is not whole is saved as far as it goes, named on stderr, and shown by the exit code.`,
		Example: "  shiplog get -n builds my-run --to logs",
		RunE:    func(cmd *cobra.Command, args []string) error { return s.get(cmd.Context(), sel, args[0], dir) },
	}
	f := c.Flags()
	f.StringVar(&dir, "to", "", "`DIR` to write into (default: the run's name)")
	sel.chooses(c)
	return c
}

// chooses are the flags of commands that take several logs.
func (sel *selection) chooses(c *cobra.Command) {
	f := c.Flags()
	f.StringSliceVarP(&sel.Tasks, "task", "t", nil, "only these tasks of the pipeline, or TaskRuns")
	f.StringSliceVarP(&sel.Steps, "step", "s", nil, "only these steps")
	f.StringVar(&sel.Container, "container", "", "only this container, as step-x or sidecar-x")
	f.BoolVarP(&sel.All, "all", "a", false, "init containers and sidecars too")
}

// lookInArchive finds a run in the archive alone.
func (s *settings) lookInArchive(ctx context.Context, src *source, run string) (*live.View, error) {
	if src.Archive == nil {
		return nil, &exitError{exitFailed, "this reads the archive, and none is known: use --server or --s3"}
	}
	src.Cluster = nil
	v, err := src.Look(ctx, src.namespace, "", run)
	if err != nil {
		return nil, src.explain(err)
	}
	return v, nil
}

func (s *settings) get(ctx context.Context, sel *selection, run, dir string) error {
	src, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer src.close()
	v, err := s.lookInArchive(ctx, src, run)
	if err != nil {
		return err
	}
	if dir == "" {
		dir = v.Tree.Run.Name
		if v.Tree.Run.Name == layout.NoPipelineRun {
			dir = run
		}
	}
	bar := s.progress(v, sel)
	worst, files := 0, 0
	for p := range v.Tree.Containers() {
		if !sel.Includes(p.TaskRun, p.Container) {
			continue
		}
		status, err := s.save(ctx, src, p, filepath.Join(dir, folder(p)), bar)
		if err != nil {
			return err
		}
		worst = worse(worst, exitCode(status))
		files++
	}
	_ = bar.Finish() // a bar that cannot be drawn does no harm
	if files == 0 {
		return fmt.Errorf("no container of run %s fits: \"%s ls -n %s %s\" shows what there is", run, program(), src.namespace, run)
	}
	fmt.Fprintf(s.stderr, "%d logs are in %s\n", files, dir)
	if worst != 0 {
		return &exitError{code: worst}
	}
	return nil
}

// folder is where a place's files go. The names are those of Kubernetes objects, which have no slash and no dot at their beginning.
func folder(p backend.Place) string {
	if p.Retry > 0 {
		return fmt.Sprintf("%s.retry%d", p.TaskRun.Label(), p.Retry)
	}
	return p.TaskRun.Label()
}

// save writes one log as <dir>/<container>.log, which is there when it is whole, or as whole as it can be.
func (s *settings) save(ctx context.Context, src *source, p backend.Place, dir string, bar io.Writer) (backend.Status, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, p.Container.Name+".*.part")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name()) // if it is not renamed
	defer f.Close()
	status := backend.Verified
	out := bufio.NewWriterSize(io.MultiWriter(f, bar), 64<<10)
	printer := &backend.Printer{Out: out, Notices: s.stderr, Ends: s.stderr, Raw: true, Seen: func(seen backend.Status) { status = backend.Worse(status, seen) }}
	label := p.TaskRun.Label() + "/" + p.Container.Name + " "
	for l, err := range src.Archive.Lines(ctx, &p.Container, backend.LogOptions{}, false) {
		if err := printer.Line(label, l, err); err != nil {
			return "", fmt.Errorf("save %s: %w", filepath.Join(dir, p.Container.Name+".log"), err)
		}
	}
	if err := errors.Join(printer.End(label, p.Container), out.Flush(), f.Chmod(0o644), f.Close()); err != nil {
		return "", fmt.Errorf("save %s: %w", filepath.Join(dir, p.Container.Name+".log"), err)
	}
	return status, os.Rename(f.Name(), filepath.Join(dir, p.Container.Name+".log"))
}

// progress shows on a terminal how many bytes were read of those that are wanted.
func (s *settings) progress(v *live.View, sel *selection) *progressbar.ProgressBar {
	var bytes int64
	for p := range v.Tree.Containers() {
		if sel.Includes(p.TaskRun, p.Container) {
			bytes += p.Container.Bytes
		}
	}
	return progressbar.NewOptions64(bytes, progressbar.OptionSetWriter(s.stderr), progressbar.OptionShowBytes(true), progressbar.OptionSetVisibility(s.watched()), progressbar.OptionClearOnFinish())
}

// watched says whether somebody sees a progress bar.
func (s *settings) watched() bool {
	f, ok := s.stderr.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func newVerify(s *settings) *cobra.Command {
	sel := &selection{Choice: backend.Choice{All: true}}
	c := &cobra.Command{
		Use: "verify RUN", Short: "Read all of a run and check its digests", Args: exactlyOne, ValidArgsFunction: s.complete(""),
		Long:    "Read every log of a run to its end and compare it with the digest that its pod has sealed it with. Nothing is printed of the logs.",
		Example: "  shiplog verify -n builds my-run",
		RunE:    func(cmd *cobra.Command, args []string) error { return s.verify(cmd.Context(), sel, args[0]) },
	}
	return c
}

func (s *settings) verify(ctx context.Context, sel *selection, run string) error {
	src, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer src.close()
	v, err := s.lookInArchive(ctx, src, run)
	if err != nil {
		return err
	}
	bar := s.progress(v, sel)
	worst := 0
	type row struct {
		label string
		c     backend.Container
		bytes int64
		why   string
	}
	var rows []row
	for p := range v.Tree.Containers() {
		c := p.Container
		r := row{label: folder(p) + "/" + c.Name}
		for l, err := range src.Archive.Lines(ctx, &c, backend.LogOptions{}, false) {
			var digest *backend.DigestError
			if errors.As(err, &digest) {
				c.Status, r.why = backend.Damaged, digest.Error()
				continue
			}
			if err != nil {
				return fmt.Errorf("verify %s: %w", r.label, err)
			}
			r.bytes += int64(len(l.Text))
			_ = bar.Add(len(l.Text))
		}
		if r.why == "" {
			r.why = c.Why
		}
		r.c = c
		rows = append(rows, r)
		worst = worse(worst, exitCode(c.Status))
	}
	_ = bar.Finish()
	return s.report(slices.Collect(func(yield func([5]string) bool) {
		for _, r := range rows {
			digest := "-"
			if r.c.Seal != nil {
				digest = r.c.Seal.SHA256
			}
			if !yield([5]string{r.label, string(r.c.Status), fmt.Sprintf("%d bytes", r.c.Bytes), digest, r.why}) {
				return
			}
		}
	}), worst)
}
