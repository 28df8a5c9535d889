package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/pkg/browser"
	"github.com/spf13/cobra"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// report writes rows as a table.
func (s *settings) report(rows [][5]string, worst int) error {
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, strings.TrimRight(strings.Join(r[:], "\t"), "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if worst != 0 {
		return &exitError{code: worst}
	}
	return nil
}

func newSearch(s *settings) *cobra.Command {
	sel := &selection{}
	q := &backend.Query{}
	var around, limit int
	c := &cobra.Command{
		Use: "search RUN PATTERN", Short: "Search the logs of a run", ValidArgsFunction: s.complete(""),
		Long: "Search the logs of a run in the archive. What is found is printed with its line number, and the exit code is 1 if nothing is, as grep's.",
		Example: `  shiplog search -n builds my-run 'connection refused'
  shiplog search -n builds my-run -e 'error|fail(ed)?' -i -C 3`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError("search: name one run and one pattern")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if around < 0 || limit < 1 {
				return usageError("search: --context %d and --limit %d have to be at least 0 and 1", around, limit)
			}
			q.Pattern, q.Before, q.After = args[1], around, around
			return s.search(cmd.Context(), sel, *q, limit, args[0])
		},
	}
	f := c.Flags()
	f.BoolVarP(&q.Regexp, "regexp", "e", false, "PATTERN is a regular expression (RE2)")
	f.BoolVarP(&q.IgnoreCase, "ignore-case", "i", false, "upper and lower case are the same")
	f.IntVar(&around, "context", 0, "`N` lines before and behind each match")
	f.IntVar(&limit, "limit", 1000, "the most matches to print")
	sel.chooses(c)
	return c
}

// placed is a match of one of a run's logs.
type placed struct {
	label string
	match api.Match
}

func (s *settings) search(ctx context.Context, sel *selection, q backend.Query, limit int, run string) error {
	search, err := backend.NewSearch(q)
	if err != nil {
		return &exitError{exitUsage, err.Error()}
	}
	src, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer src.close()
	v, err := s.lookInArchive(ctx, src, run)
	if err != nil {
		return err
	}
	var found api.Found
	matches := src.searchBucket(ctx, v.Tree, sel, search, limit, &found)
	if src.server != nil {
		matches = src.searchServer(ctx, v.Tree, sel, q, limit, &found)
	}
	n := 0
	for m, err := range matches {
		if err != nil {
			return err
		}
		if n++; n > 1 && (q.Before > 0 || q.After > 0) {
			fmt.Fprintln(s.out, "--")
		}
		for _, l := range m.match.Before {
			fmt.Fprintf(s.out, "%s%d- %s\n", m.label, l.Line, l.Text)
		}
		fmt.Fprintf(s.out, "%s%d: %s\n", m.label, m.match.Line, m.match.Text)
		for _, l := range m.match.After {
			fmt.Fprintf(s.out, "%s%d- %s\n", m.label, l.Line, l.Text)
		}
	}
	if err := s.out.Flush(); err != nil {
		return err
	}
	for _, damage := range found.Found.Damage {
		fmt.Fprintln(s.stderr, "shiplog: not all was searched:", damage)
	}
	if found.Found.More {
		fmt.Fprintf(s.stderr, "shiplog: there are more than %d matches: use --limit\n", limit)
	}
	if n == 0 {
		fmt.Fprintf(s.stderr, "shiplog: nothing found in %d logs\n", found.Found.Logs)
		return &exitError{code: exitFailed}
	}
	return nil
}

// searchBucket searches here what it reads from S3.
func (src *source) searchBucket(ctx context.Context, tree *backend.Tree, sel *selection, search *backend.Search, limit int, found *api.Found) iter.Seq2[placed, error] {
	return func(yield func(placed, error) bool) {
		all := &found.Found
		for p := range tree.Containers() {
			if !sel.Includes(p.TaskRun, p.Container) {
				continue
			}
			all.Logs++
			if c := p.Container; c.Status == backend.Gaps || c.Status == backend.Damaged {
				all.Damage = append(all.Damage, c.Name+": "+c.Describe())
			}
			for m, err := range search.In(ctx, src.bucket, p.Container, backend.LogOptions{}) {
				var digest *backend.DigestError
				if errors.As(err, &digest) {
					all.Damage = append(all.Damage, digest.Error())
					continue
				}
				if err != nil {
					yield(placed{}, err)
					return
				}
				if all.Matches == limit {
					all.More = true
					return
				}
				all.Matches++
				if !yield(placed{p.Label(tree.Run), api.MatchOf(m)}, nil) {
					return
				}
			}
		}
	}
}

// searchServer has the server search.
func (src *source) searchServer(ctx context.Context, tree *backend.Tree, sel *selection, q backend.Query, limit int, found *api.Found) iter.Seq2[placed, error] {
	query := url.Values{"q": {q.Pattern}, "limit": {strconv.Itoa(limit)}, "before": {strconv.Itoa(q.Before)}, "after": {strconv.Itoa(q.After)},
		"regexp": {strconv.FormatBool(q.Regexp)}, "ignoreCase": {strconv.FormatBool(q.IgnoreCase)}}
	for name, values := range map[string][]string{"task": sel.Tasks, "step": sel.Steps} {
		if len(values) > 0 {
			query[name] = values
		}
	}
	if sel.Container != "" {
		query.Set("container", sel.Container)
	}
	if sel.All {
		query.Set("all", "true")
	}
	kind := layout.PipelineRun
	if tree.Run.Name == layout.NoPipelineRun {
		kind = layout.TaskRun
	}
	labels := map[api.Place]string{}
	for p := range tree.Containers() {
		labels[api.Place{TaskRun: p.TaskRun.Name, Task: p.TaskRun.PipelineTask, Retry: p.Retry, Container: p.Container.Name}] = p.Label(tree.Run)
	}
	return func(yield func(placed, error) bool) {
		for m, err := range src.server.Search(ctx, src.namespace, kind, tree.Run.UID, query, found) {
			label := ""
			if m.Place != nil {
				label = labels[*m.Place]
			}
			if !yield(placed{label, m}, err) || err != nil {
				return
			}
		}
	}
}

func newOpen(s *settings) *cobra.Command {
	var task string
	var show bool
	c := &cobra.Command{
		Use: "open RUN", Short: "Open the page of a run in the browser", Args: exactlyOne, ValidArgsFunction: s.complete(""),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := s.open(cmd.Context())
			if err != nil {
				return err
			}
			defer src.close()
			if src.server == nil {
				return usageError("open: a bucket has no page: use --server")
			}
			v, err := src.Look(cmd.Context(), src.namespace, "", args[0])
			if err != nil {
				return src.explain(err)
			}
			page := contract.Page{Namespace: v.Tree.Run.Namespace, UID: v.Tree.Run.UID, Task: task}
			if err := page.Validate(); err != nil {
				return usageError("open: %v", err)
			}
			address := page.Address(src.base)
			fmt.Fprintln(s.out, address)
			if show {
				return nil
			}
			browser.Stdout, browser.Stderr = s.stderr, s.stderr
			if err := browser.OpenURL(address); err != nil {
				return fmt.Errorf("open the page in a browser: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&task, "task", "t", "", "this task of the run")
	c.Flags().BoolVar(&show, "print", false, "print the address only")
	return c
}

func newPrefix(s *settings) *cobra.Command {
	return &cobra.Command{
		Use: "prefix RUN", Short: "Print where the run's objects are, as s3://…", Args: exactlyOne, ValidArgsFunction: s.complete(""),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !s.bucket() {
				return usageError("prefix: say which bucket, with --s3")
			}
			src, err := s.open(cmd.Context())
			if err != nil {
				return err
			}
			defer src.close()
			target, err := src.bucket.Find(cmd.Context(), src.namespace, args[0])
			if err != nil {
				return src.explain(err)
			}
			if target.TaskRun == "" {
				_, err := fmt.Fprintln(s.out, src.bucket.URL(target.Run.Prefix()))
				return err
			}
			tree, err := src.bucket.Tree(cmd.Context(), target)
			if err != nil {
				return err
			}
			for _, tr := range tree.TaskRuns {
				for _, p := range tr.Pods {
					if _, err := fmt.Fprintln(s.out, src.bucket.URL(p.Key.Prefix())); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
}
