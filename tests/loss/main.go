// Command loss breaks all that the loss budget names, and writes what was measured to the table in docs/loss-budget.md. "make loss-budget" runs it.
//
// It runs the rows' tests at full length. What they hand in is all that gets into the table: a row that no test has measured in this run is shown as not measured.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"time"

	"github.com/shiplog-dev/shiplog/tests/loss/budget"
)

const page = "docs/loss-budget.md"

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
	cmd := exec.CommandContext(ctx, "go", "test", "-v", "-count=1", "-p=1", "-timeout=3h", "-tags=e2e", "-run=^TestLoss", "./shipper", "./tests/loss/...", "./tests/e2e")
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
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	made := fmt.Sprintf("Made by `make loss-budget` on %s, with %d processor cores.", time.Now().UTC().Format(time.DateOnly), runtime.NumCPU())
	text, err := budget.Replace(old, made+"\n\n"+budget.Table(results))
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	if err := os.WriteFile(page, text, 0o644); err != nil {
		return err
	}
	fmt.Println("wrote", page)
	if testErr != nil {
		return errors.Join(errors.New("a row does not hold"), testErr)
	}
	return nil
}
