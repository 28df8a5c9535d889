package api

import (
	"archive/zip"
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// find resolves the run of a path.
func (a *api) find(r *http.Request, kind string) (backend.Target, error) {
	namespace, ref := r.PathValue("namespace"), r.PathValue("run")
	switch kind {
	case "pipelineruns":
		return a.Archive.FindPipelineRun(r.Context(), namespace, ref)
	case "taskruns":
		return a.Archive.FindTaskRun(r.Context(), namespace, ref)
	default:
		return a.Archive.Find(r.Context(), namespace, ref)
	}
}

func placeOf(p backend.Place) *Place {
	return &Place{p.TaskRun.Name, p.TaskRun.PipelineTask, p.Retry, p.Container.Name}
}

// choiceOf reads which containers of a run are asked for.
func choiceOf(p *params) backend.Choice {
	return backend.Choice{Tasks: p.texts("task"), Steps: p.texts("step"), Container: p.text("container"), All: p.flag("all")}
}

// severalLogs answers with the logs of a run, one after the other, or as they come.
func (a *api) severalLogs(kind string) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		p := readParams(r)
		l, wanted := logParamsOf(r, p), choiceOf(p)
		if l.options.FromByte > 0 {
			p.fail(badParameter("fromByte", fmt.Sprint(l.options.FromByte), "is for the log of one container"))
		}
		if err := p.done(); err != nil {
			return err
		}
		target, err := a.find(r, kind)
		if err != nil {
			return err
		}
		read := a.Archive.Tree
		if l.follow {
			read = a.Archive.TreeToFollow
		}
		ctx, seen := context.WithCancel(r.Context())
		defer seen()
		tree, err := read(ctx, target)
		if err != nil {
			return err
		}
		worst := backend.Status("")
		for place := range tree.Containers() {
			if wanted.Includes(place.TaskRun, place.Container) {
				worst = backend.Worse(worst, place.Container.Status)
			}
		}
		if worst == "" && !l.follow {
			return &Error{http.StatusNotFound, "no container of the run fits"}
		}
		h := w.Header()
		h.Set("Vary", "Accept")
		h.Set(headerStatus, string(worst))
		if l.download {
			attach(h, runName(tree)+".log")
		}
		return a.streamSeveral(w, r, tree, seen, target, l, wanted)
	}
}

// runName is what a person calls a run.
func runName(t *backend.Tree) string {
	switch {
	case t.Record != nil && layout.CheckName("run", t.Record.Name) == nil:
		return t.Record.Name
	case t.Run.Name != layout.NoPipelineRun:
		return t.Run.Name
	default:
		return t.Run.UID
	}
}

// severalWriter is a writer that is told whose lines come.
type severalWriter interface {
	writer
	at(backend.Place)
}

func (n *lineWriter) at(p backend.Place)  { n.place = placeOf(p) }
func (e *eventWriter) at(p backend.Place) { e.place = placeOf(p) }

// labelled writes lines behind the names of their task and step.
type labelled struct {
	*textWriter
	run   layout.Run
	label string
}

func (t *labelled) at(p backend.Place)                   { t.label = p.Label(t.run) }
func (t *labelled) line(l backend.Line, err error) error { return t.printer.Line(t.label, l, err) }
func (t *labelled) end(c backend.Container) error        { return t.printer.End(t.label, c) }

// streamSeveral calls seen when the tree is needed no more: who follows may stay for hours.
func (a *api) streamSeveral(w http.ResponseWriter, r *http.Request, tree *backend.Tree,
	seen func(), target backend.Target, l logParams, wanted backend.Choice) error {
	l.notices = true // who reads several logs in one text, would take what is missing of one for silence
	var to severalWriter
	switch l.format {
	case formatNDJSON:
		to = &lineWriter{out: newOut(w)}
	case formatEvents:
		to = &eventWriter{out: newOut(w)}
	default:
		to = &labelled{textWriter: newTextWriter(w, l), run: tree.Run}
	}
	w.Header().Set("Content-Type", to.contentType())
	if headersOnly(w, r) {
		return nil
	}
	lines := a.Archive.RunLines(r.Context(), tree, wanted.Includes, l.options)
	if l.follow {
		if err := longLived(w); err != nil {
			return err
		}
		// The first flush sends the headers, when the run has been looked at: a client that has them
		// gets what is printed from then on.
		unbuffered(w)
		l.options.Idle = func() error {
			seen()
			return to.flush()
		}
		lines = a.Archive.FollowRun(r.Context(), target, wanted.Includes, l.options)
	}
	worst := backend.Status("")
	for line, err := range lines {
		if line.Container.Key.Container != "" {
			to.at(line.Place)
		}
		if err == nil && line.Line.Stream == "" { // the end of one
			worst = backend.Worse(worst, line.Container.Status)
			err = to.end(line.Container)
		} else {
			err = to.line(line.Line, err)
		}
		if errors.Is(err, errEnough) {
			break
		}
		if err != nil {
			return err
		}
	}
	w.Header().Set(http.TrailerPrefix+headerStatus, string(worst))
	return to.flush()
}

// treeFile is the file of a zip that is no log.
const treeFile = "tree.json"

// zip answers with a file for each container of a run, all of them, and the tree as tree.json.
func (a *api) zip(kind string) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		p := readParams(r)
		timestamps, wanted := p.flag("timestamps"), choiceOf(p)
		if err := p.done(); err != nil {
			return err
		}
		target, err := a.find(r, kind)
		if err != nil {
			return err
		}
		tree, err := a.Archive.Tree(r.Context(), target)
		if err != nil {
			return err
		}
		if len(wanted.Tasks) == 0 && len(wanted.Steps) == 0 && wanted.Container == "" {
			wanted.All = true
		}
		w.Header().Set("Content-Type", "application/zip")
		attach(w.Header(), runName(tree)+".zip")
		if headersOnly(w, r) {
			return nil
		}
		z := zip.NewWriter(w)
		if err := a.zipTree(r.Context(), z, tree, wanted, timestamps); err != nil {
			return err
		}
		return z.Close()
	}
}

func (a *api) zipTree(ctx context.Context, z *zip.Writer, tree *backend.Tree, wanted backend.Choice, timestamps bool) error {
	f, err := z.Create(treeFile)
	if err != nil {
		return err
	}
	if err := writeTree(f, treeOf(tree)); err != nil {
		return err
	}
	for place := range tree.Containers() {
		if !wanted.Includes(place.TaskRun, place.Container) {
			continue
		}
		folder := place.Folder()
		if folder == treeFile { // which a TaskRun may be called
			folder += "_"
		}
		f, err := z.CreateHeader(&zip.FileHeader{Name: folder + "/" + place.Container.Name + ".log", Method: zip.Deflate, Modified: place.Container.LastSeen})
		if err != nil {
			return err
		}
		if err := a.writeText(ctx, f, place.Container, timestamps); err != nil {
			return err
		}
	}
	return nil
}

// writeText writes a log with its notices: a file outlives what else says that something is missing.
func (a *api) writeText(ctx context.Context, f interface{ Write([]byte) (int, error) }, c backend.Container, timestamps bool) error {
	b := bufio.NewWriterSize(f, 64<<10)
	p := &backend.Printer{Out: b, Notices: b, Ends: b, Timestamps: timestamps}
	for l, err := range a.Archive.Lines(ctx, c, backend.LogOptions{}) {
		if err := p.Line("", l, err); err != nil {
			return err
		}
	}
	if err := p.End("", c); err != nil {
		return err
	}
	return b.Flush()
}
