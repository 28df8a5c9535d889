// Command shiplog reads the logs of Tekton runs: from their pods while these are there, and from the archive, which it asks through the shiplog server with the kubeconfig's token, or straight from S3. It is also "kubectl shiplog" and
// "tkn shiplog" where it is installed as kubectl-shiplog and tkn-shiplog.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

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
	return &exitError{exitUsage, fmt.Sprintf(format, args...) + "\nrun \"" + program() + " --help\" for usage"}
}

// program is what a person typed to run this.
func program() string {
	switch name := filepath.Base(os.Args[0]); name {
	case "kubectl-shiplog", "tkn-shiplog":
		return strings.Replace(name, "-", " ", 1)
	case kubectlComplete:
		return "kubectl shiplog"
	default:
		return "shiplog"
	}
}

// kubectlComplete is what kubectl looks for on PATH, and asks with the arguments of a plug-in that a person wants completed.
const kubectlComplete = "kubectl_complete-shiplog"

// arguments are those of a program of this name.
func arguments(name string, args []string) []string {
	if strings.TrimSuffix(filepath.Base(name), ".exe") == kubectlComplete {
		return append([]string{cobra.ShellCompRequestCmd}, args...)
	}
	return args
}

func main() {
	// A reader that has seen enough, as head has, ends us quietly: the write fails with EPIPE.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, arguments(os.Args[0], os.Args[1:]), os.Stdout, os.Stderr)
	code, why := exitOf(err, ctx.Err() != nil)
	stop()
	if why != "" {
		fmt.Fprintln(os.Stderr, "shiplog:", visibleText(why))
	}
	os.Exit(code)
}

// exitOf is the exit code of an error, and what is said of it.
func exitOf(err error, interrupted bool) (code int, why string) {
	var exit *exitError
	var gone *goneError
	switch {
	case err == nil, errors.As(err, &gone):
		return 0, ""
	case interrupted && errors.Is(err, context.Canceled):
		return 130, "" // as a shell says it of SIGINT
	case errors.As(err, &exit):
		return exit.code, exit.msg
	default:
		return exitFailed, err.Error()
	}
}

// goneError says that who read our output has seen enough. A connection that the other side has
// closed fails with EPIPE too, and that is a failure.
type goneError struct{ err error }

func (e *goneError) Error() string { return e.err.Error() }
func (e *goneError) Unwrap() error { return e.err }

// output is stdout, whose EPIPE is a goneError.
type output struct{ io.Writer }

func (o output) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		err = &goneError{err}
	}
	return n, err
}

// run is the program without its process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s := &settings{out: bufio.NewWriterSize(output{stdout}, 64<<10), stdout: stdout, stderr: stderr}
	root := newRoot(s)
	root.SetArgs(args)
	root.InitDefaultCompletionCmd(args...)
	refuseUnknown(root)
	err := root.ExecuteContext(ctx)
	// What was read is shown also if something went wrong behind it.
	if flushErr := s.out.Flush(); flushErr != nil && err == nil {
		return fmt.Errorf("write: %w", flushErr)
	}
	return err
}

// refuseUnknown makes commands that have others under them refuse what is none. Without it, they show their help, as if all were well.
func refuseUnknown(c *cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.HasSubCommands() && !sub.Runnable() {
			sub.Args = cobra.ArbitraryArgs
			sub.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return cmd.Help()
				}
				return usageError("%s: unknown command %q", cmd.Name(), args[0])
			}
		}
		refuseUnknown(sub)
	}
}

const about = `shiplog reads the logs of Tekton runs, also after their pods are gone.

RUN is the name or UID of a PipelineRun or TaskRun, or the name of a pod.

Where logs are read from:
  A pod that is still there is read as with kubectl. What has no pod any more is read from the archive, through the shiplog server, with
  the token of your kubeconfig. Its address comes from --server, SHIPLOG_SERVER, or the ConfigMap shiplog-info in shiplog-system.
  With --s3 s3://BUCKET/PREFIX, or SHIPLOG_S3_BUCKET (and SHIPLOG_S3_PREFIX, SHIPLOG_S3_ENDPOINT, SHIPLOG_S3_REGION), the archive is read straight
  from S3 and the cluster is not asked at all; keys as usual for AWS (AWS_ACCESS_KEY_ID, AWS_PROFILE, …).

Exit codes:
  0 all is verified; 1 an error; 2 wrong usage; 3 a log is still running; 5 a log is partial:
  nothing more was heard of its pod; 4 bytes are missing, or a step was not captured and its pod is
  gone. Of several logs the worst counts: 4, 5, 3. "pipelinerun logs" and "taskrun logs" have tkn's
  exit codes, and "search" those of grep: 1 nothing is found, 2 an error. 130 is of who has aborted
  a choice or pressed Ctrl-C.

Times are UTC, also in lists.

Log text is written as it was printed, as kubectl and tkn do: a terminal obeys what is in it, such as colours. All else that a tenant can
have written, as names and reasons, has control characters by their names, as \x1b; so have the hits of "search" on a terminal.`

// newRoot makes the command with all that is under it.
func newRoot(s *settings) *cobra.Command {
	root := &cobra.Command{
		Use: "shiplog", Short: "Read the logs of Tekton runs, also after their pods are gone", Long: about,
		SilenceErrors: true, SilenceUsage: true,
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: program()},
	}
	root.Args = cobra.ArbitraryArgs
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return usageError("unknown command %q", args[0])
	}
	root.SetOut(s.out)
	root.SetErr(s.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError("%s: %v", cmd.Name(), err) })
	s.flags(root)
	root.AddCommand(newLogs(s), newPipelineRun(s), newTaskRun(s), newLs(s), newGet(s), newSearch(s), newVerify(s), newOpen(s), newPrefix(s))
	for _, c := range root.Commands() {
		if c.Args == nil && c.HasParent() && !c.HasSubCommands() {
			c.Args = atMostOne
		}
	}
	return root
}

// atMostOne checks that a command has no more than one RUN.
func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError("%s: name one run, not %d", cmd.Name(), len(args))
	}
	return nil
}

// exactlyOne checks that a command has its RUN.
func exactlyOne(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError("%s: name one run", cmd.Name())
	}
	return nil
}
