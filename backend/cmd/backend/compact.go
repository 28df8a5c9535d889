package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/compact"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// compactCommand is the first argument of a process that compacts and serves no reader. It needs keys that may put and delete, which those that serve should not have.
const compactCommand = "compact"

// compactOptions are its flags.
type compactOptions struct {
	every, since time.Duration
	metricsAddr  string
}

func parseCompactFlags(args []string) (compactOptions, error) {
	var o compactOptions
	f := flag.NewFlagSet("backend "+compactCommand, flag.ContinueOnError)
	f.DurationVar(&o.every, "every", 10*time.Minute, "pause between two looks at all runs that are new enough")
	f.DurationVar(&o.since, "since", 48*time.Hour, "how old a run may be, by its creation, to be looked at; older ones stay as they are")
	f.StringVar(&o.metricsAddr, "metrics-address", ":8080", "address of /metrics, /healthz and /readyz")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown arguments %q: everything behind %s is a flag", f.Args(), compactCommand)
	}
	if o.every <= 0 || o.since <= 0 {
		return o, fmt.Errorf("--every %s and --since %s must be positive", o.every, o.since)
	}
	return o, nil
}

// runCompact compacts until leaving ends. What was begun is broken off then; the next process goes on.
func runCompact(leaving context.Context, o compactOptions, log *slog.Logger) error {
	config, err := objectstore.ConfigFromEnv()
	if err != nil {
		return fmt.Errorf("S3 settings: %w", err)
	}
	store, err := objectstore.New(leaving, config)
	if err != nil {
		return err
	}
	defer store.Close()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	compactor, err := compact.New(compact.Options{Archive: backend.New(store), Store: store, Since: o.since, Metrics: registry, Log: log})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.metricsAddr)
	if err != nil {
		return fmt.Errorf("serve metrics and health: %w", err)
	}
	side := &http.Server{
		Handler: sideRoutes(registry, leaving), ReadTimeout: headerTimeout, WriteTimeout: sideTimeout, IdleTimeout: idleTimeout,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	working, stop := context.WithCancel(leaving)
	defer stop()
	served := make(chan error, 1)
	go func() { // ends with side.Close, and is waited for below
		defer stop()
		served <- side.Serve(listener)
	}()
	log.Info("compacting", "every", o.every.String(), "since", o.since.String())
	compactor.Run(working, o.every)
	err = side.Close()
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve metrics and health: %w", serveErr))
	}
	return err
}
