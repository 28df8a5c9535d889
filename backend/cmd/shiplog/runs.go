package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/ktr0731/go-fuzzyfinder"
	"github.com/spf13/cobra"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// runLine is a run in a list, and in JSON.
type runLine struct {
	Name    string         `json:"name"`
	Kind    layout.RunKind `json:"kind"`
	UID     string         `json:"uid"`
	Created time.Time      `json:"created"`
	State   string         `json:"state,omitempty"` // "running", or one of record.RunState, if it is known: a bucket's list does not have it
	Prefix  string         `json:"prefix"`          // of its objects
}

// runs yields the runs of a kind ("" for any), newest first: those of the archive, and those that only the cluster has.
func (src *source) runs(ctx context.Context, kind layout.RunKind, limit int) iter.Seq2[runLine, error] {
	return func(yield func(runLine, error) bool) {
		present, err := src.clusterRuns(ctx, kind)
		if err != nil {
			if src.Archive == nil {
				yield(runLine{}, err)
				return
			}
			src.Notice(err)
		}
		now := map[string]string{} // states
		for _, r := range present {
			now[r.UID] = r.State
		}
		known := map[string]bool{}
		n := 0
		give := func(r runLine) bool {
			if known[r.UID] {
				return true
			}
			r.State = cmp.Or(now[r.UID], r.State)
			known[r.UID] = true
			n++
			return yield(r, nil) && n != limit
		}
		for r, err := range src.archiveRuns(ctx, kind) {
			if err != nil {
				if !errors.Is(err, errSkip) {
					yield(r, err)
				}
				return
			}
			for len(present) > 0 && present[0].Created.After(r.Created) {
				if !give(present[0]) {
					return
				}
				present = present[1:]
			}
			if !give(r) {
				return
			}
		}
		for _, r := range present {
			if !give(r) {
				return
			}
		}
	}
}

// running is the state of a run that has not ended, as far as is known.
const running = "running"

// stateOf is a run's state by its condition, as its record has it.
func stateOf(c *apis.Condition) string {
	switch {
	case c == nil || c.IsUnknown():
		return running
	case c.IsTrue():
		return string(record.Succeeded)
	case c.Reason == tekton.PipelineRunReasonCancelled.String() || c.Reason == tekton.TaskRunReasonCancelled.String():
		return string(record.Cancelled)
	default:
		return string(record.Failed)
	}
}

// recordedStates reads the states of runs that a bucket's list does not have: one GET each.
func (src *source) recordedStates(ctx context.Context, runs []runLine) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i, r := range runs {
		if src.bucket == nil || r.State != "" {
			continue
		}
		index := layout.RunIndex{Namespace: src.namespace, Created: r.Created, Kind: r.Kind, Name: r.Name, UID: r.UID}
		group.Go(func() error {
			have, err := src.bucket.Run(ctx, index.Run())
			if err == nil {
				runs[i].State = cmp.Or(string(have.State), running)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

var errSkip = errors.New("no more")

// archiveRuns yields the runs of the archive.
func (src *source) archiveRuns(ctx context.Context, kind layout.RunKind) iter.Seq2[runLine, error] {
	return func(yield func(runLine, error) bool) {
		switch {
		case src.bucket != nil:
			for x, err := range src.bucket.Runs(ctx, src.namespace, nil, 0) {
				if err == nil && kind != "" && x.Kind != kind {
					continue
				}
				r := runLine{Name: x.Name, Kind: x.Kind, UID: x.UID, Created: x.Created}
				if err == nil {
					r.Prefix = x.Run().Prefix()
				}
				if !yield(r, err) || err != nil {
					return
				}
			}
		case src.server != nil:
			for x, err := range src.server.Runs(ctx, src.namespace, nil, 0) {
				if err == nil && kind != "" && x.Kind != kind {
					continue
				}
				if !yield(runLine{x.Name, x.Kind, x.UID, x.Created, cmp.Or(string(x.State), running), x.Prefix}, err) || err != nil {
					return
				}
			}
		}
	}
}

// clusterRuns are the runs that the cluster has, newest first.
func (src *source) clusterRuns(ctx context.Context, kind layout.RunKind) (all []runLine, err error) {
	if src.Cluster == nil {
		return nil, nil
	}
	if kind != layout.TaskRun {
		list, err := src.Cluster.Tekton.PipelineRuns(src.namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list the PipelineRuns of namespace %s: %w", src.namespace, err)
		}
		for _, pr := range list.Items {
			all = append(all, runLine{Name: pr.Name, Kind: layout.PipelineRun, UID: string(pr.UID), Created: pr.CreationTimestamp.Time, State: stateOf(pr.Status.GetCondition(apis.ConditionSucceeded))})
		}
	}
	if kind != layout.PipelineRun {
		list, err := src.Cluster.Tekton.TaskRuns(src.namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("list the TaskRuns of namespace %s: %w", src.namespace, err)
		}
		for _, tr := range list.Items {
			if kind == layout.TaskRun || len(tr.OwnerReferences) == 0 {
				all = append(all, runLine{Name: tr.Name, Kind: layout.TaskRun, UID: string(tr.UID), Created: tr.CreationTimestamp.Time, State: stateOf(tr.Status.GetCondition(apis.ConditionSucceeded))})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b runLine) int { return b.Created.Compare(a.Created) })
	return all, nil
}

// pick says how a run is found that nobody has named.
type pick struct {
	last, choose bool
	limit        int
}

// pick returns the run that was named, or the one that is meant.
func (s *settings) pick(ctx context.Context, src *source, kind layout.RunKind, how pick, args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	limit := how.limit
	if how.choose && limit == 5 { // which is meant for a short list
		limit = 100
	}
	var runs []runLine
	for r, err := range src.runs(ctx, kind, limit) {
		if err != nil {
			return "", err
		}
		runs = append(runs, r)
	}
	switch {
	case len(runs) == 0:
		return "", fmt.Errorf("there are no runs in namespace %s", src.namespace)
	case how.last, len(runs) == 1:
		return runs[0].UID, nil
	case !term.IsTerminal(int(os.Stdin.Fd())) || !isTerminal(s.stdout):
		return "", usageError("name one run, or use --last: namespace %s has several", src.namespace)
	}
	i, err := fuzzyfinder.Find(runs, func(i int) string {
		return fmt.Sprintf("%s  %s  %s", runs[i].Created.UTC().Format(time.RFC3339), runs[i].Kind, visible(runs[i].Name))
	}, fuzzyfinder.WithContext(ctx))
	if errors.Is(err, fuzzyfinder.ErrAbort) {
		return "", &exitError{code: 130}
	}
	if err != nil {
		return "", fmt.Errorf("choose a run: %w", err)
	}
	return runs[i].UID, nil
}

// complete offers the names of runs to a shell.
func (s *settings) complete(kind layout.RunKind) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		src, err := s.open(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer src.close()
		var names []string
		for r, err := range src.runs(cmd.Context(), kind, 50) {
			if err != nil {
				break
			}
			names = append(names, r.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func newLs(s *settings) *cobra.Command {
	var limit int
	var output string
	c := &cobra.Command{
		Use: "ls [RUN]", Short: "List the runs of a namespace, or what there is of one run",
		Long: "List the runs of a namespace, newest first, with their states, or what there is of one run: bytes, lines, and whether a log is verified, running, partial or has gaps.",
		Example: `  shiplog ls -n builds
  shiplog ls -n builds my-run`,
		ValidArgsFunction: s.complete(""),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case output != "" && output != "json":
				return usageError("ls: -o %q: only json is known", output)
			case limit < 0:
				return usageError("ls: --limit %d is negative", limit)
			}
			src, err := s.open(cmd.Context())
			if err != nil {
				return err
			}
			defer src.close()
			if len(args) == 0 {
				return s.listRuns(cmd.Context(), src, limit, output)
			}
			v, err := src.Look(cmd.Context(), src.namespace, "", args[0])
			if err != nil {
				return src.explain(err)
			}
			if output == "json" {
				e := json.NewEncoder(s.out)
				e.SetIndent("", "  ")
				return e.Encode(v.Tree)
			}
			return printTree(v.Tree, v.Others, s.out)
		},
	}
	c.Flags().IntVar(&limit, "limit", 50, "the most runs to list; 0: all")
	c.Flags().StringVarP(&output, "output", "o", "", "json for JSON: of runs one object a line (without its state where a bucket is read), of a run the tree")
	return c
}

func (s *settings) listRuns(ctx context.Context, src *source, limit int, output string) error {
	e := json.NewEncoder(s.out)
	var table []runLine
	for r, err := range src.runs(ctx, "", limit) {
		if err != nil {
			return err
		}
		if output == "json" { // one object a line, so that a long list needs no memory
			if err := e.Encode(r); err != nil {
				return err
			}
			continue
		}
		table = append(table, r)
	}
	switch {
	case output == "json":
		return nil
	case len(table) == 0:
		_, err := fmt.Fprintf(s.out, "There are no runs of namespace %q.\n", src.namespace)
		return err
	}
	if err := src.recordedStates(ctx, table); err != nil {
		return err
	}
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tKIND\tSTATE\tCREATED\tUID")
	for _, r := range table {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", visible(r.Name), r.Kind, visible(cmp.Or(r.State, "-")), r.Created.UTC().Format(time.RFC3339), visible(r.UID))
	}
	return w.Flush()
}

// printTree prints a run as a tree. Bytes are what was printed.
func printTree(tree *backend.Tree, others []layout.Run, out interface{ Write([]byte) (int, error) }) error {
	name, kind := tree.Run.Name, layout.PipelineRun
	if name == layout.NoPipelineRun {
		name, kind = tree.Run.UID, layout.TaskRun
	}
	created := ""
	if r := tree.Record; r != nil {
		name, kind, created = r.Name, r.Kind, "  created "+r.Created.UTC().Format(time.RFC3339)
	}
	fmt.Fprintf(out, "%s %s/%s  %s%s\n", visible(string(kind)), visible(tree.Run.Namespace), visible(name), visible(tree.Run.UID), created)
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
			fmt.Fprintf(out, "  %s%s  pod %s\n", visible(tr.UniqueLabel()), retry, visible(pod))
			w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			for _, c := range p.Containers {
				about := ""
				if c.Estimated {
					about = "about "
				}
				fmt.Fprintf(w, "    %s\t%s\t%s%d bytes\t%[3]s%[5]d lines\t%[6]s\n", visible(c.Name), c.Status, about, c.Bytes, c.Lines, visible(c.Why))
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, other := range others {
		fmt.Fprintf(out, "another run of this name: %s\n", visible(other.UID))
	}
	return nil
}
