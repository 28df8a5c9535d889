// Command shipper is the native sidecar: it reads what tee writes to the spool, and ships it to S3 in compressed segments with an upload ticket.
//
// A line's way through it: watch.go wakes, shipper.go looks at each container's log in turn, log.go cuts a segment and records it (state.go), upload.go
// sends it with a ticket (tickets.go), again and again if it must (retry.go), and drain.go ends it all when the pod ends.
// share.go divides the spool among the containers. hold.go holds what outlives a tee that is
// killed, and dead.go ships it.
//
// It holds no S3 key, knows nothing of Kubernetes but a token in a file, and always exits with 0: Tekton ranks a failed init container above the
// step's own failure (getFailureInfo in its pkg/pod/status.go), so a shipper's trouble would be reported as the build's.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	_ "golang.org/x/crypto/x509roots/fallback" // the image holds no CA certificates of its own

	"github.com/shiplog-dev/shiplog/internal/contract"
)

func main() {
	// Nearly all memory is in a few buffers that are used again and again. A small heap is worth more here than fewer collections.
	debug.SetGCPercent(50)

	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if len(os.Args) > 1 && os.Args[1] == "install" {
		if err := installFromEnv(); err != nil {
			// The kubelet shows this text in an event, and tries again: without tee the step containers cannot start.
			fmt.Fprintln(os.Stderr, "shipper install:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	for {
		stopping := ctx.Err() != nil
		err := protect(func() error { return runFromEnv(ctx, log) })
		if err != nil {
			log.Error("shipper stopped", "error", err)
		}
		// What failed before SIGTERM is begun once more after it, since only a run that sees SIGTERM drains the spool.
		if err == nil || stopping || errors.Is(err, context.DeadlineExceeded) {
			return
		}
		// Begin again in this process. If it ended, the kubelet would kill the postStart hook with it, back off, and the pod's steps would wait.
		select {
		case <-ctx.Done():
		case <-time.After(restartDelay):
		}
	}
}

// restartDelay is the time between a failure that ended everything and the next beginning.
const restartDelay = time.Second

// protect makes an error of a panic, so that the exit code stays 0.
func protect(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

func installFromEnv() error {
	config, err := contract.Decode(os.Getenv(contract.ConfigEnv))
	if err != nil {
		return err
	}
	if err := placeScripts(os.Getenv(contract.PlaceScriptsEnv), "/"); err != nil {
		return err
	}
	return install(config, contract.TeeSource, contract.VolumeMount)
}

func runFromEnv(ctx context.Context, log *slog.Logger) error {
	config, err := contract.Decode(os.Getenv(contract.ConfigEnv))
	if err != nil {
		return err
	}
	s, err := newShipper(config, contract.VolumeMount, contract.TokenFile, log)
	if err != nil {
		return err
	}
	return s.run(ctx)
}
