// Command mutate changes a package in small ways, one at a time, and lists the changes that no test of
// the package notices. "make mutate" runs it.
//
// All changes are compiled into one test binary, as choices at run time, and the environment says
// which one is active. The checkout is not touched. A test sees a change only if it reaches it, so
// each test is run unchanged first, to learn what it reaches. A change is noticed if a test fails,
// hangs or ends the process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// options are the flags and what else a run depends on.
type options struct {
	patterns   []string // packages
	diff       string
	limit      time.Duration
	least      float64
	run, skip  *regexp.Regexp
	workers    int
	verbose    bool
	list       bool
	equivalent string // the list's text
	notTried   []leftOut
	out        io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	o := options{equivalent: equivalentText, notTried: notTried, out: os.Stdout}
	err := o.parse(os.Args[1:])
	if err == nil {
		err = mutate(ctx, o)
	}
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func (o *options) parse(args []string) error {
	flags := flag.NewFlagSet("mutate", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: mutate [flags] [package…]")
		flags.PrintDefaults()
	}
	flags.StringVar(&o.diff, "diff", "", "change only lines that differ from the git `revision`")
	flags.DurationVar(&o.limit, "limit", 0, "stop after this time, and say what was not tried")
	flags.Float64Var(&o.least, "least", 0, "fail if a smaller `percentage` is noticed")
	flags.IntVar(&o.workers, "parallel", runtime.NumCPU(), "how many changes are tried at once")
	flags.BoolVar(&o.verbose, "v", false, "list every change")
	flags.BoolVar(&o.list, "list", false, "only list the changes that would be tried")
	run := flags.String("run", "", "run only the tests whose names match the `regexp`")
	skip := flags.String("skip", "", "do not run the tests whose names match the `regexp`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if o.run, err = regexp.Compile(*run); err != nil {
		return err
	}
	if *skip != "" {
		if o.skip, err = regexp.Compile(*skip); err != nil {
			return err
		}
	}
	o.patterns = flags.Args()
	if len(o.patterns) == 0 && o.diff == "" {
		return errors.New("name a package, as in: make mutate PKG=./internal/criline, or -diff")
	}
	o.workers = max(1, o.workers)
	return nil
}

// mutate runs the packages one after another.
func mutate(ctx context.Context, o options) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	root := strings.TrimSpace(string(out))
	entries, err := parseEquivalent(o.equivalent)
	if err != nil {
		return fmt.Errorf("equivalent.txt: %w", err)
	}
	var faults []error
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(e.folder))); err != nil {
			faults = append(faults, fmt.Errorf("equivalent.txt:%d: there is no %s", e.at, e.folder))
		}
	}
	var only lines
	if o.diff != "" {
		if only, err = touched(ctx, root, o.diff); err != nil {
			return err
		}
		if len(o.patterns) == 0 {
			for _, folder := range only.folders() {
				if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(folder))); err == nil {
					o.patterns = append(o.patterns, filepath.Join(root, filepath.FromSlash(folder)))
				}
			}
		}
	}
	end := time.Now().Add(o.limit)
	var total tally
	for i, pattern := range o.patterns {
		// What one package leaves over, the next ones have.
		ctx, cancel := ctx, context.CancelFunc(func() {})
		if o.limit > 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(len(o.patterns)-i))
		}
		t, err := mutatePackage(ctx, o, pattern, only, entries)
		cancel()
		total.add(t)
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", strings.TrimPrefix(pattern, root+"/"), err))
		}
	}
	if err := ctx.Err(); err != nil {
		return errors.New("interrupted")
	}
	if len(o.patterns) != 1 {
		fmt.Fprintln(o.out, total.line("all"))
	}
	if share, ok := total.share(); ok && share < o.least {
		faults = append(faults, fmt.Errorf("%.1f %% are noticed, want at least %g %%", share, o.least))
	}
	return errors.Join(faults...)
}

// mutatePackage tries the changes of one package.
func mutatePackage(ctx context.Context, o options, pattern string, only lines, entries []equivalent) (t tally, err error) {
	interrupted := ctx
	src, err := load(ctx, pattern)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		fmt.Fprintf(o.out, "%s: not tried, there was no time to build it\n", pattern)
		return t, nil
	}
	if err != nil {
		return t, err
	}
	if reason, is := packageLeftOut(o.notTried, src.short); is {
		fmt.Fprintf(o.out, "%s: left out, since %s\n", src.short, reason)
		return t, nil
	}
	if !src.tests {
		fmt.Fprintf(o.out, "%s: left out, since it has no tests of its own\n", src.short)
		return t, nil
	}
	all, err := choose(src, func(*change) bool { return true })
	if err != nil {
		return t, err
	}
	is, stale := matchEquivalent(entries, src.short, append(all.changes, all.left...))
	var faults []error
	for _, e := range stale {
		faults = append(faults, fmt.Errorf("equivalent.txt:%d: there is no such change of %s", e.at, e.function))
	}
	program := all
	if only != nil {
		wanted := map[*change]bool{}
		for _, c := range all.changes {
			wanted[c] = only[c.file][c.line]
		}
		for _, f := range src.files {
			program.sites[f] = keep(program.sites[f], func(c *change) bool { return wanted[c] })
		}
		program.count(src)
		if _, err := program.write(src); err != nil {
			return t, err
		}
	}
	if o.list {
		for _, c := range program.changes {
			fmt.Fprintln(o.out, c)
		}
	}
	if o.list || len(program.changes) == 0 {
		return t, errors.Join(faults...)
	}
	if o.verbose {
		for _, c := range program.left {
			fmt.Fprintf(o.out, "%s: cannot be made a choice\n", c)
		}
	}
	results, err := try(ctx, o, src, program)
	if err != nil && interrupted.Err() == nil {
		return t, errors.Join(append(faults, err)...)
	}
	for _, c := range program.changes {
		r := results[c]
		t.count(r.outcome, is[c])
		switch {
		case is[c] && r.outcome == noticed:
			faults = append(faults, fmt.Errorf("%s: listed as equivalent, but noticed by %s", c, strings.Join(r.by, ", ")))
		case is[c] && o.verbose:
			fmt.Fprintf(o.out, "%s: equivalent\n", c)
		case o.verbose && r.outcome == noticed:
			fmt.Fprintf(o.out, "%s: noticed by %s\n", c, strings.Join(r.by, ", "))
		case !is[c] && r.outcome != noticed && (o.verbose || r.outcome != untried):
			fmt.Fprintf(o.out, "%s: %s\n", c, r.outcome)
		}
	}
	fmt.Fprintln(o.out, t.line(src.short))
	return t, errors.Join(faults...)
}

// try builds a program and tries its changes. Those that the results do not have were not tried.
func try(ctx context.Context, o options, src *source, p *program) (map[*change]result, error) {
	work, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	b := &bench{src: src, program: p, work: work, workers: o.workers}
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	out := testsLeftOut(o.notTried, src.short)
	err = b.list(ctx, func(name string) bool {
		return o.run.MatchString(name) && (o.skip == nil || !o.skip.MatchString(name)) &&
			(out == nil || !out.MatchString(name))
	})
	if err != nil {
		return nil, err
	}
	if err := b.survey(ctx); err != nil {
		return nil, err
	}
	results := map[*change]result{}
	b.try(ctx, func(c *change, r result) { results[c] = r })
	return results, nil
}
