// Command cmd prints a sequence, and checks one. It is a step's program in tests of what shiplog loses.
//
//	cmd print [-seed N] [-lines N | -rate BYTES] [-records N] [-bytes N] [-for DURATION] [-until FILE] [-stderr] [-count FILE] [-exit CODE] [-stubborn]
//	cmd check [-seed N] [-printed BYTES] [-cri] < LOG
//
// print ends when the file of -until is there, with the given code, ignores SIGTERM if it is stubborn, and writes the number of bytes that it has printed to a file after each write, if it is told to. check reads what was printed on one stream, or with -cri the
// archive's lines with their markers (as zstdcat prints the segments), whose stdout it checks. It prints a report as JSON, and ends with 1 if the log is not whole.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

const (
	exitNotWhole = 1
	exitFailed   = 2
)

func main() {
	code, err := run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sequence:", err)
		code = exitFailed
	}
	os.Exit(code)
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	if len(args) == 0 {
		return 0, errors.New("say print or check")
	}
	switch args[0] {
	case "print":
		return print(args[1:], stdout, stderr)
	case "check":
		return check(args[1:], stdin, stdout)
	default:
		return 0, fmt.Errorf("%q is neither print nor check", args[0])
	}
}

func print(args []string, stdout, stderr io.Writer) (int, error) {
	var o sequence.Options
	f := flag.NewFlagSet("print", flag.ContinueOnError)
	seed := f.Uint64("seed", 0, "which sequence")
	f.Int64Var(&o.Rate.Lines, "lines", 0, "lines a second")
	f.Int64Var(&o.Rate.Bytes, "rate", 0, "bytes a second")
	f.Int64Var(&o.Records, "records", 0, "how many records")
	f.Int64Var(&o.Bytes, "bytes", 0, "how many bytes, up to the end of a record")
	f.DurationVar(&o.Duration, "for", 0, "how long")
	until := f.String("until", "", "file whose being there ends it")
	toStderr := f.Bool("stderr", false, "print to stderr")
	count := f.String("count", "", "file for the number of bytes")
	exit := f.Int("exit", 0, "exit code")
	stubborn := f.Bool("stubborn", false, "ignore SIGTERM")
	if err := f.Parse(args); err != nil {
		return 0, err
	}
	if *stubborn {
		signal.Ignore(syscall.SIGTERM)
	}
	to := stdout
	if *toStderr {
		to = stderr
	}
	if *count != "" {
		c, err := os.OpenFile(*count, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		// Always as many digits, so that a reader finds a whole number at any moment.
		o.Count = func(total int64) error { _, err := c.WriteAt(fmt.Appendf(nil, "%20d", total), 0); return err }
	}
	if *until != "" {
		o.Over = func() bool { _, err := os.Lstat(*until); return err == nil }
	}
	_, err := sequence.Stream{Seed: *seed}.Print(context.Background(), to, o)
	return *exit, err
}

func check(args []string, stdin io.Reader, stdout io.Writer) (int, error) {
	f := flag.NewFlagSet("check", flag.ContinueOnError)
	seed := f.Uint64("seed", 0, "which sequence")
	printed := f.Int64("printed", -1, "how many bytes were printed, if that is known")
	cri := f.Bool("cri", false, "the archive's lines")
	if err := f.Parse(args); err != nil {
		return 0, err
	}
	c := sequence.NewChecker(sequence.Stream{Seed: *seed})
	var err error
	if *cri {
		err = readLines(c, stdin)
	} else {
		_, err = io.Copy(c, stdin)
	}
	if err != nil {
		return 0, fmt.Errorf("read the log: %w", err)
	}
	report := c.Finish(*printed)
	e := json.NewEncoder(stdout)
	e.SetIndent("", "  ")
	if err := e.Encode(report); err != nil {
		return 0, err
	}
	if !report.Whole() {
		return exitNotWhole, nil
	}
	return 0, nil
}

// readLines gives the archive's lines to the checker.
func readLines(c *sequence.Checker, r io.Reader) error {
	lines := bufio.NewReaderSize(r, criline.MaxLen)
	for {
		text, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(text) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		l, err := criline.Parse(text[:len(text)-1])
		if err != nil {
			return err
		}
		if err := c.Line(l, criline.Stdout); err != nil {
			return err
		}
	}
}
