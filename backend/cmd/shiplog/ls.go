package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

func list(ctx context.Context, args []string, out io.Writer) error {
	var s settings
	f := newFlags("ls", &s)
	limit := f.Int("limit", 50, "")
	f.StringVar(&s.output, "o", "", "")
	rest, err := parse(f, args)
	if err != nil {
		return err
	}
	switch {
	case len(rest) > 1:
		return usageError("ls: name at most one run")
	case s.output != "" && s.output != "json":
		return usageError("ls: -o %q: only json is known", s.output)
	case *limit < 0:
		return usageError("ls: --limit %d is negative", *limit)
	}
	archive, _, err := s.open(ctx)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return listRuns(ctx, archive, s, *limit, out)
	}
	target, err := find(ctx, archive, s.namespace, rest[0])
	if err != nil {
		return err
	}
	tree, err := archive.Tree(ctx, target)
	if err != nil {
		return err
	}
	if s.output == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(tree)
	}
	return printTree(tree, target, out)
}

// runLine is a run in JSON.
type runLine struct {
	Name    string         `json:"name"`
	Kind    layout.RunKind `json:"kind"`
	UID     string         `json:"uid"`
	Created time.Time      `json:"created"`
	Prefix  string         `json:"prefix"`
}

func listRuns(ctx context.Context, archive *backend.Archive, s settings, limit int, out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	e := json.NewEncoder(out)
	n := 0
	for x, err := range archive.Runs(ctx, s.namespace, nil, limit) {
		if err != nil {
			return err
		}
		if s.output == "json" { // one object a line, so that a long list needs no memory
			if err := e.Encode(runLine{x.Name, x.Kind, x.UID, x.Created, x.Run().Prefix()}); err != nil {
				return err
			}
			continue
		}
		if n++; n == 1 {
			fmt.Fprintln(w, "NAME\tKIND\tCREATED\tUID")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", x.Name, x.Kind, x.Created.Format(time.RFC3339), x.UID)
	}
	if n == 0 && s.output == "" {
		fmt.Fprintf(w, "The archive holds no runs of namespace %q.\n", s.namespace)
	}
	return w.Flush()
}

// printTree prints a run as a tree. Bytes are what was printed.
func printTree(tree *backend.Tree, target backend.Target, out io.Writer) error {
	name, kind := tree.Run.Name, layout.PipelineRun
	if name == layout.NoPipelineRun {
		name, kind = tree.Run.UID, layout.TaskRun
	}
	created := ""
	if r := tree.Record; r != nil {
		name, kind, created = r.Name, r.Kind, "  created "+r.Created.Format(time.RFC3339)
	}
	fmt.Fprintf(out, "%s %s/%s  %s%s\n", kind, tree.Run.Namespace, name, tree.Run.UID, created)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight|tabwriter.DiscardEmptyColumns)
	for _, tr := range tree.TaskRuns {
		for i, p := range tr.Pods {
			retry := ""
			if i > 0 {
				retry = fmt.Sprintf(" (retry %d)", i)
			}
			pod := p.Key.PodUID
			if p.Record != nil {
				pod = p.Record.PodName
			}
			if err := w.Flush(); err != nil {
				return err
			}
			fmt.Fprintf(out, "  %s%s  pod %s\n", tr.Label(), retry, pod)
			w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			for _, c := range p.Containers {
				about := ""
				if c.Estimated {
					about = "about "
				}
				fmt.Fprintf(w, "    %s\t%s\t%s%d bytes\t%[3]s%[5]d lines\t%[6]s\n", c.Name, c.Status, about, c.Bytes, c.Lines, c.Why)
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, other := range target.Others {
		fmt.Fprintf(out, "another run of this name: %s\n", other.UID)
	}
	return nil
}
