// Command shipper is the native sidecar: it reads what tee writes to the spool, and ships it to S3 in compressed segments with an upload ticket.
//
// A line's way through it: watch.go wakes, shipper.go looks at each container's log in turn, log.go cuts a segment and records it (state.go), upload.go
// sends it with a ticket (tickets.go), again and again if it must (retry.go), and drain.go ends it all when the pod ends.
//
// It holds no S3 key, knows nothing of Kubernetes but a token in a file, and always exits with 0: Tekton ranks a failed init container above the
// step's own failure (getFailureInfo in its pkg/pod/status.go), so a shipper's trouble would be reported as the build's.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

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
	if err := protect(func() error { return runFromEnv(ctx, log) }); err != nil {
		log.Error("shipper stopped; the kubelet starts it again while the pod lives", "error", err)
	}
}

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
	return install(config.Containers, contract.TeeSource, contract.VolumeMount)
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
