// Command tekton runs Tekton's own examples and its own end-to-end suite on the local cluster,
// without shiplog and with it, and prints what differs. It exits with 1 if anything does.
//
// Both come from Tekton's Go module, of the version that runs on the cluster. What differs between
// two runs without shiplog is noise. What cannot run here is named, with the reason.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	run      *regexp.Regexp
	half     string
	limit    time.Duration
	parallel int
	deploy   bool
	keep     bool
	list     bool
}

func main() {
	var o options
	pattern := flag.String("run", ".", "run only the examples and tests that match `REGEXP`")
	flag.StringVar(&o.half, "half", "both", "examples, suite or both")
	flag.DurationVar(&o.limit, "limit", 5*time.Minute, "how long an example or a test may take")
	flag.IntVar(&o.parallel, "parallel", 2, "how many examples or tests run at once")
	flag.BoolVar(&o.deploy, "deploy", true, "install this checkout's shiplog first")
	flag.BoolVar(&o.keep, "keep", false, "keep the namespaces of the examples")
	flag.BoolVar(&o.list, "list", false, "only print what would run and what is left out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if o.run, err = regexp.Compile(*pattern); err == nil {
		err = run(ctx, o)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tekton:", err)
		os.Exit(1)
	}
}

// errDiffers says that the report has differences.
var errDiffers = errors.New("something differs with shiplog: see above")

func run(ctx context.Context, o options) (err error) {
	halves := []string{"examples", "suite"}
	switch o.half {
	case "both":
	case "examples", "suite":
		halves = []string{o.half}
	default:
		return fmt.Errorf("-half is %q: want examples, suite or both", o.half)
	}
	c, err := newCluster(ctx, o.deploy && !o.list)
	if err != nil {
		return err
	}
	if !o.keep && !o.list {
		defer func() { err = errors.Join(err, c.cleanUp(context.WithoutCancel(ctx))) }()
	}
	if !o.list {
		back, configErr := c.configure(ctx)
		if configErr != nil {
			return configErr
		}
		defer func() { err = errors.Join(err, back(context.WithoutCancel(ctx))) }()
	}
	differs := false
	for _, half := range halves {
		r := report{half: half, version: c.module.Version, list: o.list}
		if half == "examples" {
			err = c.runExamples(ctx, o, &r)
		} else {
			err = c.runSuite(ctx, o, &r)
		}
		r.print(os.Stdout)
		if err != nil {
			return err
		}
		differs = differs || r.differs()
	}
	if differs {
		return errDiffers
	}
	return nil
}

// progress says on standard error what has just ended.
func progress(name, state string) {
	fmt.Fprintf(os.Stderr, "%s  %-60s %s\n", time.Now().UTC().Format(time.TimeOnly), name, state)
}
