package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/live"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

func newGet(s *settings) *cobra.Command {
	sel := &selection{raw: true}
	var dir string
	c := &cobra.Command{
		Use: "get RUN", Short: "Save the logs of a run as files", Args: exactlyOne, ValidArgsFunction: s.complete(""),
		Long: `Save the logs of a run as files, byte for byte as they were printed: DIR/TASK/CONTAINER.log, and
DIR/TASK_retry1/… of a retry.
Of a task with several TaskRuns, as one with a matrix, it is DIR/TASKRUN/CONTAINER.log. Nothing is written outside DIR.
A file that is there already is written anew. What is not whole is saved as far as it goes, named on
stderr, and shown by the exit code. Where reading fails, what was read is kept as CONTAINER.log.*.part,
and the same command goes on behind it; such a log is not compared with its digest. Of a step that was
not captured there is no file: it is named in the same way.`,
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
	f.StringVarP(&sel.Container, "container", "c", "", "only this container, as step-x or sidecar-x")
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
	var wanted []backend.Place
	for p := range v.Tree.Containers() {
		if sel.Includes(p.TaskRun, p.Container) {
			wanted = append(wanted, p)
		}
	}
	if len(wanted) == 0 {
		return fmt.Errorf("no container of run %s fits: \"%s ls -n %s %s\" shows what there is", run, program(), src.namespace, run)
	}
	if dir == "" {
		dir = v.Tree.Run.Name
		if v.Tree.Run.Name == layout.NoPipelineRun {
			dir = run
		}
		if err := layout.CheckName("the run", dir); err != nil {
			return usageError("get: %v: say with --to where its logs go", err)
		}
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("make the folder of the logs: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the folder of the logs: %w", err)
	}
	defer root.Close()
	bar := s.progress(v, sel)
	worst, saved, refused := 0, 0, 0
	given := names{}
	for _, p := range wanted {
		name, err := given.file(p)
		if err != nil {
			fmt.Fprintf(s.stderr, "shiplog: a log is not saved: %s\n", visible(err.Error()))
			refused++
			continue
		}
		if p.Container.Status == backend.Missed { // an empty file would say that it printed nothing
			label := strings.TrimSuffix(name, ".log")
			fmt.Fprintf(s.stderr, "%s -- shiplog: %s\n", visible(label), visible(p.Container.Describe()))
			worst = worse(worst, exitCode(backend.Missed))
			continue
		}
		status, err := s.save(ctx, src, p, root, name, bar)
		if err != nil {
			return fmt.Errorf("save %s: %w", filepath.Join(dir, name), err)
		}
		worst = worse(worst, exitCode(status))
		saved++
	}
	_ = bar.Finish() // a bar that cannot be drawn does no harm
	fmt.Fprintf(s.stderr, "%d logs are in %s\n", saved, dir)
	if refused > 0 {
		return fmt.Errorf("%d logs are not saved: \"%s logs -n %s %s\" shows them", refused, program(), src.namespace, run)
	}
	if worst != 0 {
		return &exitError{code: worst}
	}
	return nil
}

// maxFileName is the longest name of a log's file, in bytes: file systems take 255, of which the
// name of a part has some more (see save).
const maxFileName = 255 - 1 - 64 - 5

// names are the files that logs of a run were given.
type names map[string]bool

// file is the file of a place's log. Names come from the pod's record, which a tenant can write, so what is no name of Kubernetes is no file's either, and no two logs have the same.
func (n names) file(p backend.Place) (string, error) {
	err := errors.Join(
		layout.CheckName("the name of its task", p.TaskRun.UniqueLabel()),
		layout.CheckName("the name of its container", p.Container.Name),
	)
	if err != nil {
		return "", fmt.Errorf("TaskRun %s: %w", p.TaskRun.Name, err)
	}
	folder := p.Folder()
	name := filepath.Join(folder, p.Container.Name+".log")
	for _, part := range []string{folder, p.Container.Name + ".log"} {
		if len(part) > maxFileName {
			return "", fmt.Errorf("TaskRun %s: the name of its log is too long for a file: %s",
				p.TaskRun.Name, part)
		}
	}
	if n[name] {
		return "", fmt.Errorf("TaskRun %s: another log is %s", p.TaskRun.Name, name)
	}
	n[name] = true
	return name, nil
}

// save writes one log as a file under root, which is there when it is whole, or as whole as it can be.
// What was read of it before an error is kept, and the next time it goes on there.
func (s *settings) save(ctx context.Context, src *source, p backend.Place, root *os.Root, name string, bar io.Writer) (status backend.Status, err error) {
	if err := root.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return "", err
	}
	// The pod's UID says of which log the part is. While it is written it has a name that nobody else
	// uses: of two who go on with a part, one begins anew.
	kept := fmt.Sprintf("%s.%s.part", name, p.Pod.Key.PodUID)
	part := fmt.Sprintf("%s.%s.part", name, rand.Text()[:8])
	if err := root.Rename(kept, part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	f, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return "", err
	}
	defer f.Close()
	have, err := f.Seek(0, io.SeekEnd)
	if err == nil && have > p.Container.Bytes { // it is of no log that is there now
		have, err = 0, errors.Join(f.Truncate(0), rewind(f))
	}
	if err != nil {
		return "", err
	}
	out := bufio.NewWriterSize(io.MultiWriter(f, harmless{bar}), 64<<10)
	defer func() {
		if err == nil {
			return
		}
		if flushed := out.Flush(); flushed != nil || root.Rename(part, kept) != nil {
			_ = root.Remove(part) // it is of no use
		}
	}()
	status = backend.Verified
	said := &notices{out: s.stderr, label: strings.TrimSuffix(name, ".log") + " "}
	printer := &backend.Printer{Out: out, Notices: said, Ends: said, Raw: true, Seen: func(seen backend.Status) { status = backend.Worse(status, seen) }}
	for l, err := range src.Archive.Lines(ctx, &p.Container, backend.LogOptions{FromByte: have}, false) {
		if skip := have - l.Offset; err == nil && skip > 0 && l.Stream != criline.Markers {
			if skip >= l.Printed() {
				continue
			}
			l.Text = l.Text[skip:] // its newline is left, if nothing else
		}
		if err := printer.Line(said.label, l, err); err != nil {
			return "", err
		}
	}
	if err := errors.Join(printer.End(said.label, p.Container), out.Flush(), f.Close()); err != nil {
		return "", err
	}
	return status, root.Rename(part, name)
}

func rewind(f io.Seeker) error {
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// harmless drops errors: a log is saved also where its progress cannot be shown, as when it has become longer than it was.
type harmless struct{ w io.Writer }

func (h harmless) Write(b []byte) (int, error) {
	_, _ = h.w.Write(b)
	return len(b), nil
}

// progress shows on a terminal how many bytes were read of those that are wanted.
func (s *settings) progress(v *live.View, sel *selection) *progressbar.ProgressBar {
	var bytes int64
	for p := range v.Tree.Containers() {
		if sel.Includes(p.TaskRun, p.Container) {
			bytes += p.Container.Bytes
		}
	}
	return progressbar.NewOptions64(bytes, progressbar.OptionSetWriter(s.stderr), progressbar.OptionShowBytes(true), progressbar.OptionSetVisibility(isTerminal(s.stderr)), progressbar.OptionClearOnFinish())
}

func newVerify(s *settings) *cobra.Command {
	sel := &selection{Choice: backend.Choice{All: true}}
	c := &cobra.Command{
		Use: "verify RUN", Short: "Read all of a run and check its digests", Args: exactlyOne, ValidArgsFunction: s.complete(""),
		Long: `Read every log of a run to its end and compare it with the digest that its pod has sealed it with. Nothing is printed of the logs, but how each stands, how many bytes of it
were read, and its digest. The exit code is 5 where nothing of the run is archived: then nobody knows what was printed.`,
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
	worst, archived := 0, 0
	type row struct {
		label string
		c     backend.Container
		bytes int64 // that were read
		why   string
	}
	var rows []row
	for p := range v.Tree.Containers() {
		c := p.Container
		r := row{label: p.Folder() + "/" + c.Name}
		damaged := ""
		for l, err := range src.Archive.Lines(ctx, &c, backend.LogOptions{}, false) {
			var digest *backend.DigestError
			if errors.As(err, &digest) {
				damaged = digest.Error()
				continue
			}
			if err != nil {
				return fmt.Errorf("verify %s: %w", r.label, err)
			}
			if l.Stream == criline.Markers {
				if m, err := criline.ParseMarker(l.Text); damaged == "" && (err != nil || m.Reason == backend.ReasonMissing) {
					damaged = backend.DescribeMarker(l.Text)
				}
				continue
			}
			r.bytes += l.Printed()
			_ = bar.Add64(l.Printed()) // as in get
		}
		r.why = c.Why
		if damaged != "" && c.Status != backend.Damaged {
			c.Status, r.why = backend.Damaged, damaged
		}
		r.c = c
		rows = append(rows, r)
		worst = worse(worst, exitCode(c.Status))
		if c.Status != backend.NotCaptured && c.Status != backend.Missed {
			archived++
		}
	}
	_ = bar.Finish()
	if archived == 0 {
		fmt.Fprintf(s.stderr, "shiplog: nothing is archived of run %s: there is nothing to verify\n", run)
		worst = worse(worst, exitPartial)
	}
	return s.report(slices.Collect(func(yield func([5]string) bool) {
		for _, r := range rows {
			digest := "-"
			if r.c.Seal != nil {
				digest = r.c.Seal.SHA256
			}
			if !yield([5]string{visible(r.label), string(r.c.Status), fmt.Sprintf("%d bytes", r.bytes), visible(digest), visible(r.why)}) {
				return
			}
		}
	}), worst)
}
