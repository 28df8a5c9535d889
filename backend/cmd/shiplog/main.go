// Command shiplog reads the logs of Tekton runs from S3: "shiplog ls" says what is there and how complete it is, "shiplog logs" prints it. It needs the bucket only,
// not the cluster.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

const usage = `shiplog reads the logs of Tekton runs from S3.

usage:
  shiplog ls [-n NAMESPACE] [--limit N] [-o json]          the runs of a namespace, newest first
  shiplog ls [-n NAMESPACE] [-o json] RUN                  what the archive holds of one run
  shiplog logs [-n NAMESPACE] RUN [flags]                  the logs of a run
  shiplog prefix [-n NAMESPACE] RUN                        where the run's objects are, as s3://…

RUN is the name or UID of a PipelineRun or TaskRun, or the name of a pod.

flags of logs:
  --task NAME        only this task of the pipeline (or TaskRun)
  --step NAME        only this step
  --container NAME   only this container, as sidecar-x or step-x
  --all              init containers and sidecars too
  --timestamps       begin each line with its time
  -f, --follow       go on as the logs grow, until the run is over
  --tail N           only the last N ended lines of each container, and what is behind them
  --raw              exactly the bytes that were printed, and nothing else

settings:
  --s3-url s3://BUCKET/PREFIX, --s3-endpoint URL, or SHIPLOG_S3_BUCKET, SHIPLOG_S3_PREFIX, SHIPLOG_S3_ENDPOINT, SHIPLOG_S3_REGION;
  keys as usual for AWS (AWS_ACCESS_KEY_ID, AWS_PROFILE, …); SHIPLOG_NAMESPACE is the default of -n

exit code of logs: 0 all is verified; 3 a log is still running; 5 a log is partial: nothing more was heard of its pod; 4 bytes are missing. Of several
  logs the worst counts, in this order. Of every command: 1 error; 2 wrong usage
`

// exitError ends the program with a code.
type exitError struct {
	code int
	msg  string // may be empty: all is said already
}

func (e *exitError) Error() string { return e.msg }

const (
	exitFailed  = 1
	exitUsage   = 2
	exitRunning = 3 // more will follow: ask again
	exitLost    = 4 // bytes that were printed are not there, and it is known
	exitPartial = 5 // nobody knows whether more was printed
)

// worse returns the exit code of two logs that have one each.
func worse(a, b int) int {
	for _, code := range []int{exitLost, exitPartial, exitRunning} {
		if a == code || b == code {
			return code
		}
	}
	return 0
}

func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Sprintf(format, args...) + "\nrun \"shiplog --help\" for usage"}
}

func main() {
	// A reader that has seen enough, as head has, ends us quietly: the write fails with EPIPE.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	var exit *exitError
	switch {
	case err == nil, errors.Is(err, syscall.EPIPE), errors.Is(err, flag.ErrHelp):
	case errors.As(err, &exit):
		if exit.msg != "" {
			fmt.Fprintln(os.Stderr, "shiplog:", exit.msg)
		}
		os.Exit(exit.code)
	default:
		fmt.Fprintln(os.Stderr, "shiplog:", err)
		os.Exit(exitFailed)
	}
}

// settings are the flags that all commands have.
type settings struct {
	namespace string
	s3URL     string
	endpoint  string
	output    string
}

func newFlags(name string, s *settings) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	namespace := os.Getenv("SHIPLOG_NAMESPACE")
	if namespace == "" {
		namespace = "default"
	}
	f.StringVar(&s.namespace, "n", namespace, "")
	f.StringVar(&s.namespace, "namespace", namespace, "")
	f.StringVar(&s.s3URL, "s3-url", "", "")
	f.StringVar(&s.endpoint, "s3-endpoint", "", "")
	return f
}

// parse reads flags before, between and behind the arguments.
func parse(f *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := f.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, usageError("%s: %v", f.Name(), err)
		}
		args = f.Args()
		if len(args) == 0 {
			return rest, nil
		}
		rest = append(rest, args[0])
		args = args[1:]
	}
}

// run is the program without its process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return &exitError{code: exitUsage}
	}
	out := bufio.NewWriterSize(stdout, 64<<10)
	var err error
	switch args[0] {
	case "ls":
		err = list(ctx, args[1:], out)
	case "logs":
		err = logs(ctx, args[1:], out, stderr)
	case "prefix":
		err = prefix(ctx, args[1:], out)
	case "help", "-h", "-help", "--help":
		_, err = io.WriteString(out, usage)
	default:
		err = usageError("unknown command %q", args[0])
	}
	if errors.Is(err, flag.ErrHelp) {
		_, err = io.WriteString(out, usage)
	}
	// What was read is shown also if something went wrong behind it.
	if flushErr := out.Flush(); flushErr != nil && err == nil {
		return fmt.Errorf("write: %w", flushErr)
	}
	return err
}

// config is where the archive is: what the environment says, and over it the flags.
func (s settings) config() (objectstore.Config, error) {
	if s.s3URL == "" && os.Getenv(objectstore.EnvBucket) == "" {
		return objectstore.Config{}, usageError("where is the archive? Set %s (and %s for a store other than AWS), or use --s3-url s3://BUCKET/PREFIX",
			objectstore.EnvBucket, objectstore.EnvEndpoint)
	}
	config, err := objectstore.ConfigFromEnv()
	if s.s3URL != "" {
		u, parseErr := url.Parse(s.s3URL)
		if parseErr != nil || u.Scheme != "s3" || u.Host == "" {
			return config, usageError("--s3-url %q is not like s3://BUCKET/PREFIX", s.s3URL)
		}
		config.Bucket, config.Prefix = u.Host, strings.Trim(u.Path, "/")
	}
	if s.endpoint != "" {
		config.Endpoint, config.PathStyle = s.endpoint, true
	}
	if s.s3URL != "" || s.endpoint != "" { // which may have mended what was wrong
		err = config.Validate()
	}
	return config, err
}

// open connects to the archive.
func (s settings) open(ctx context.Context) (*backend.Archive, objectstore.Config, error) {
	config, err := s.config()
	if err != nil {
		return nil, config, err
	}
	store, err := objectstore.New(ctx, config)
	if err != nil {
		return nil, config, err
	}
	return backend.New(store), config, nil
}

// find resolves RUN, and explains what to do if there is none.
func find(ctx context.Context, archive *backend.Archive, namespace, ref string) (backend.Target, error) {
	target, err := archive.Find(ctx, namespace, ref)
	var notFound *backend.NotFoundError
	if errors.As(err, &notFound) {
		return target, fmt.Errorf("%w\n\"shiplog ls -n %s\" lists the runs that are there", err, namespace)
	}
	return target, err
}

func prefix(ctx context.Context, args []string, out io.Writer) error {
	var s settings
	f := newFlags("prefix", &s)
	rest, err := parse(f, args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return usageError("prefix: name one run")
	}
	archive, config, err := s.open(ctx)
	if err != nil {
		return err
	}
	target, err := find(ctx, archive, s.namespace, rest[0])
	if err != nil {
		return err
	}
	base := "s3://" + config.Bucket + "/"
	if p := strings.Trim(config.Prefix, "/"); p != "" {
		base += p + "/"
	}
	if target.TaskRun == "" {
		_, err := fmt.Fprintln(out, base+target.Run.Prefix())
		return err
	}
	tree, err := archive.Tree(ctx, target)
	if err != nil {
		return err
	}
	for _, tr := range tree.TaskRuns {
		for _, p := range tr.Pods {
			if _, err := fmt.Fprintln(out, base+p.Key.Prefix()); err != nil {
				return err
			}
		}
	}
	return nil
}
