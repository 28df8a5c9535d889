package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/pkg/browser"
	"github.com/spf13/cobra"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/internal/contract"
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
	var around, before, after, limit int
	c := &cobra.Command{
		Use: "search RUN PATTERN", Short: "Search the logs of a run", ValidArgsFunction: s.complete(""),
		Long: `Search the logs of a run in the archive. What is found is printed with its line number.

The exit code is 0 if something is found and all was searched, 1 if nothing is found, and 2 for an error, as grep's. Where not all could be searched it is
4 (bytes are missing, or a step was not captured), 5 (a log is partial) or 3 (a log is still
running), whatever was found.`,
		Example: `  shiplog search -n builds my-run 'connection refused'
  shiplog search -n builds my-run -e 'error|fail(ed)?' -i --around 3
  shiplog search -n builds my-run panic: -A 20 --task build`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError("search: name one run and one pattern")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 || limit > api.MostMatches {
				return usageError("search: --limit %d is not 1 to %d", limit, api.MostMatches)
			}
			q.Pattern, q.Before, q.After = args[1], around, around
			if cmd.Flags().Changed("before") {
				q.Before = before
			}
			if cmd.Flags().Changed("after") {
				q.After = after
			}
			return searchFailed(s.search(cmd.Context(), sel, *q, limit, args[0]))
		},
	}
	f := c.Flags()
	f.BoolVarP(&q.Regexp, "regexp", "e", false, "PATTERN is a regular expression (RE2)")
	f.BoolVarP(&q.IgnoreCase, "ignore-case", "i", false, "upper and lower case are the same")
	f.IntVar(&around, "around", 0, "`N` lines before and behind each match")
	f.IntVarP(&before, "before", "B", 0, "`N` lines before each match")
	f.IntVarP(&after, "after", "A", 0, "`N` lines behind each match")
	most := fmt.Sprintf("the most matches to print, up to %d", api.MostMatches)
	f.IntVar(&limit, "limit", 1000, most)
	sel.chooses(c)
	return c
}

// searchFailed gives errors another exit code than "nothing found" has.
func searchFailed(err error) error {
	var exit *exitError
	var gone *goneError
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.As(err, &gone):
		return err
	case errors.As(err, &exit) && (exit.code != exitFailed || exit.msg == ""):
		return err
	default:
		return &exitError{exitUsage, err.Error()}
	}
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
		matches = src.searchServer(ctx, v.Tree, run, sel, q, limit, &found)
	}
	text := func(l string) string { return l }
	if isTerminal(s.stdout) {
		text = func(l string) string { return visibleTabbed(l) }
	}
	n := 0
	for m, err := range matches {
		if err != nil {
			return err
		}
		label := visible(m.label)
		if n++; n > 1 && (q.Before > 0 || q.After > 0) {
			fmt.Fprintln(s.out, "--")
		}
		for _, l := range m.match.Before {
			fmt.Fprintf(s.out, "%s%d- %s\n", label, l.Line, text(l.Text))
		}
		fmt.Fprintf(s.out, "%s%d: %s\n", label, m.match.Line, text(m.match.Text))
		for _, l := range m.match.After {
			fmt.Fprintf(s.out, "%s%d- %s\n", label, l.Line, text(l.Text))
		}
	}
	if err := s.out.Flush(); err != nil {
		return err
	}
	all := found.Found
	for _, why := range slices.Concat(all.Damage, all.Unfinished) {
		fmt.Fprintln(s.stderr, "shiplog: not all was searched:", visible(why))
	}
	if all.More {
		fmt.Fprintf(s.stderr, "shiplog: there are more than %d matches: use --limit\n", limit)
	}
	if n == 0 {
		fmt.Fprintf(s.stderr, "shiplog: nothing found in %d logs\n", all.Logs)
	}
	if code := searched(all.Damage, all.Unfinished, v.Tree, sel); code != 0 {
		return &exitError{code: code}
	}
	if n == 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}

// searched is the exit code of how complete what was searched is.
func searched(damage, unfinished []string, tree *backend.Tree, sel *selection) int {
	switch {
	case len(damage) > 0:
		return exitLost
	case len(unfinished) == 0:
		return 0
	}
	code := exitRunning
	for p := range tree.Containers() {
		if sel.Includes(p.TaskRun, p.Container) && p.Container.Status == backend.Partial {
			code = exitPartial
		}
	}
	return code
}

// nameOf is what a log is called where it is said that not all of it was searched, as the server does.
func nameOf(p backend.Place) string {
	task := p.TaskRun.UniqueLabel()
	if p.Retry > 0 {
		task += fmt.Sprintf(" retry %d", p.Retry)
	}
	return task + "/" + p.Container.Name
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
			switch c := p.Container; {
			case c.Status.Lost():
				all.Damage = append(all.Damage, nameOf(p)+": "+c.Describe())
			case c.Status == backend.Running, c.Status == backend.Partial:
				all.Unfinished = append(all.Unfinished, nameOf(p)+": "+c.Describe())
			}
			var missing []*backend.MissingError
			for m, err := range search.In(ctx, src.bucket, p.Container, backend.LogOptions{}) {
				var lacks *backend.MissingError
				if errors.As(err, &lacks) {
					missing = append(missing, lacks)
					continue
				}
				if err != nil {
					yield(placed{}, err)
					return
				}
				if all.Matches == limit {
					all.More = true
					break
				}
				all.Matches++
				if !yield(placed{p.Label(tree.Run), api.MatchOf(m)}, nil) {
					return
				}
			}
			if n := len(missing); n > 0 { // in the server's words
				said := fmt.Sprintf("%s: could not be searched at byte %d: %s",
					nameOf(p), missing[0].Offset, missing[0].Reason)
				if n > 1 {
					said += fmt.Sprintf(" (and at %d more)", n-1)
				}
				all.Damage = append(all.Damage, said)
			}
			if all.More {
				return
			}
		}
	}
}

// searchServer has the server search what it finds for the same words as the tree.
func (src *source) searchServer(ctx context.Context, tree *backend.Tree, run string,
	sel *selection, q backend.Query, limit int, found *api.Found) iter.Seq2[placed, error] {
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
	labels := map[api.Place]string{}
	for p := range tree.Containers() {
		labels[api.Place{TaskRun: p.TaskRun.Name, Task: p.TaskRun.PipelineTask, Retry: p.Retry, Container: p.Container.Name}] = p.Label(tree.Run)
	}
	return func(yield func(placed, error) bool) {
		for m, err := range src.server.Search(ctx, src.namespace, "", run, query, found) {
			label := ""
			if m.Place != nil {
				ok := false
				if label, ok = labels[*m.Place]; !ok { // it has begun since the tree was read
					label = fmt.Sprintf("[%s : %s] ", m.Place.TaskRun, m.Place.Container)
				}
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
