// Command loss breaks all that the loss budget names, and writes what was measured to the table in docs/loss-budget.md. "make loss-budget" runs it.
//
// It runs the rows' tests at full length. What they hand in is all that gets into the table, by way of docs/loss-budget.json: a row that no test has measured is shown as not measured. With RUN=…, a regular expression as go test
// has it, only the tests that it matches are run, and what they measure takes the place of what was measured of these rows before.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"

	"github.com/shiplog-dev/shiplog/tests/loss/budget"
)

const (
	page = "docs/loss-budget.md"
	file = "docs/loss-budget.json"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "loss:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	tests, earlier := "^TestLoss", []budget.Result(nil)
	if only := os.Getenv("RUN"); only != "" {
		var err error
		if earlier, err = budget.Load(file); err != nil {
			return fmt.Errorf("RUN=%s adds to what was measured before: %w (run all rows first)", only, err)
		}
		tests = only
	}
	dir, err := os.MkdirTemp("", "shiplog-loss-report-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	up := exec.CommandContext(ctx, "go", "run", "./tests/cluster", "up")
	up.Stdout, up.Stderr = os.Stdout, os.Stderr
	if err := up.Run(); err != nil {
		return fmt.Errorf("bring the local cluster up: %w", err)
	}
	// The rows of the shipper's core with a clock of its own are beside it, those that need a cluster are among the end-to-end tests, and all others are here.
	cmd := exec.CommandContext(ctx, "go", "test", "-v", "-count=1", "-p=1", "-timeout=3h", "-tags=e2e", "-run="+tests, "./shipper", "./tests/loss/...", "./tests/e2e")
	cmd.Env = append(os.Environ(), budget.ReportEnv+"="+dir)
	if os.Getenv(budget.ScaleEnv) == "" {
		cmd.Env = append(cmd.Env, budget.ScaleEnv+"=all")
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	testErr := cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err() // the page stays as it was
	}
	results, err := budget.ReadResults(dir)
	if err != nil {
		return err
	}
	if err := write(budget.Merge(earlier, results)); err != nil {
		return err
	}
	fmt.Println("wrote", file, "and", page)
	if testErr != nil {
		return errors.Join(errors.New("a row does not hold"), testErr)
	}
	return nil
}

// write writes the results, and the table that is made of them.
func write(results []budget.Result) error {
	if err := budget.Save(file, results); err != nil {
		return err
	}
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	var days []string
	for _, r := range results {
		if !slices.Contains(days, r.Day) {
			days = append(days, r.Day)
		}
	}
	slices.Sort(days)
	made := fmt.Sprintf("Made by `make loss-budget` on %s, with %d processor cores.", strings.Join(days, " and "), runtime.NumCPU())
	text, err := budget.Replace(old, made+"\n\n"+budget.Table(results))
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	return os.WriteFile(page, text, 0o644)
}
