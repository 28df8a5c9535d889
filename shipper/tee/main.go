//go:build linux

// Command tee is PID 1 of each captured container. It runs the container's command, copies what that prints to the container's own stdout and stderr, and
// to the spool as CRI lines. It knows nothing of S3 or Kubernetes.
//
//	/shiplog/bin/tee --spool DIR --limit BYTES --grace DURATION [--quiet] -- COMMAND [ARG…]
//
// Whatever happens to the copy, the command runs as it would without tee, and tee ends as it does: with its exit code, or 128 + the number of
// the signal that killed it. Where the copy cannot be set up, the command gets the container's own stdout and stderr.
//
// The files: main.go sets up and ends, child.go runs the command as an init process does, copy.go is the way of the bytes, offer.go lets the shipper hold what outlives tee.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// The exit codes of a shell for a command that could not be started.
const (
	exitUsage         = 2
	exitNotExecutable = 126
	exitNotFound      = 127
)

func main() {
	// Memory and CPU of tee count in the step's own limits, also on a node with a hundred cores. Copying allocates nothing, but counting the spool at
	// each rotation does. 50 lets the heap grow to 2 MiB; with less the collector runs in each short step, too.
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(50)

	opts, err := contract.ParseTee(os.Args[1:])
	if err != nil {
		// Only the webhook writes these arguments. If they are wrong all the same, the step must not suffer for it.
		i := slices.Index(os.Args, "--")
		if i < 0 || i+1 == len(os.Args) {
			fmt.Fprintf(os.Stderr, "shiplog: %v\n", err)
			os.Exit(exitUsage)
		}
		opts = contract.Tee{Argv: os.Args[i+1:], Grace: noGrace}
	}
	var exit record.Exit
	if err == nil {
		exit, err = capture(opts)
	}
	if err != nil {
		if !opts.Quiet {
			fmt.Fprintf(os.Stderr, "shiplog: this log is not kept: %v\n", err)
		}
		exit = run(opts, nil, false)
	}
	os.Exit(exit.Code)
}

// capture runs the command with its output captured. An error says that the capture could not be set up: then stdout and stderr are what they were, and
// nothing has been run.
func capture(opts contract.Tee) (record.Exit, error) {
	// Tekton stops a sidecar by swapping its image for one that holds nothing; the container then starts once more, without its command. That is no news
	// for the sidecar's log, which has ended.
	_, statErr := os.Lstat(filepath.Join(opts.Spool, spool.EndFile))
	again := statErr == nil
	w, err := spool.NewWriter(opts.Spool, opts.Limit)
	if err != nil {
		return record.Exit{}, err
	}
	c, err := startCopy(w, spool.NewHand(w.Again()))
	if err != nil {
		return record.Exit{}, err
	}
	held := func() bool { return false }
	if files := c.outlives(); files != nil {
		o := startOffer(opts.Spool, files)
		defer o.end()
		held = o.taken
	}
	exit := run(opts, w.Term, again)
	endOthers()
	c.drain()
	c.end(w, exit, held(), opts.Quiet)
	return exit, nil
}

// endOthers kills what else runs in the container, as the kernel does when its process 1 ends. It comes before the pipes are drained, so that nothing is printed behind that and lost.
func endOthers() {
	if os.Getpid() != 1 {
		return
	}
	if unix.Kill(-1, unix.SIGKILL) != nil {
		return // there is none
	}
	// All are children of process 1 now. One that cannot be killed, as while its disk does not answer, must not hold up the container.
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return // all have ended
			}
			if pid == 0 {
				break
			}
		}
	}
}

// run runs the command to its end. What it has to say goes to fd 2, and so through the capture, as the shell's or the container runtime's own words would. With again, a
// command that is not there is not worth a word.
func run(opts contract.Tee, onTerm func() error, again bool) record.Exit {
	c, err := startChild(opts.Argv)
	if err != nil {
		missing := errors.Is(err, syscall.ENOENT)
		if !missing || !again {
			fmt.Fprintf(os.Stderr, "shiplog: %v\n", err)
		}
		if missing {
			return record.Exit{Code: exitNotFound}
		}
		return record.Exit{Code: exitNotExecutable}
	}
	status := c.wait(opts.Grace, onTerm)
	if status.Signaled() {
		return record.Exit{Code: 128 + int(status.Signal()), Signal: status.Signal().String()}
	}
	return record.Exit{Code: status.ExitStatus()}
}
