package main

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// tektonFlags is the ConfigMap in Tekton's namespace that holds its feature flags, and
	// tektonSidecarFlag the one that makes a TaskRun wait for our container.
	tektonFlags       = "feature-flags"
	tektonSidecarFlag = "enable-kubernetes-sidecar"

	tektonRefresh = time.Minute
)

// tektonGate knows Tekton's feature flags, as far as they matter. Admission only reads what the
// last look-up said, so it never waits for the API server.
type tektonGate struct {
	lookUp  func(context.Context) (flags map[string]string, err error)
	log     *slog.Logger
	sidecar atomic.Bool
	failing bool // so that a failure is logged once
}

// newTektonGate makes the gate on the flags in a namespace.
func newTektonGate(config *rest.Config, namespace string, log *slog.Logger) (*tektonGate, error) {
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	return &tektonGate{log: log, lookUp: func(ctx context.Context) (map[string]string, error) {
		c, err := core.CoreV1().ConfigMaps(namespace).Get(ctx, tektonFlags, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("look up Tekton's feature flags in namespace %s "+
				"(--tekton-namespace names another): %w", namespace, err)
		}
		return c.Data, nil
	}}, nil
}

// kubernetesSidecar says whether TaskRuns are complete only when every init container has ended.
func (g *tektonGate) kubernetesSidecar() bool { return g.sidecar.Load() }

// refresh looks the flags up. When that fails, what was known stays.
func (g *tektonGate) refresh(ctx context.Context) {
	flags, err := g.lookUp(ctx)
	if err != nil {
		if !g.failing && ctx.Err() == nil {
			g.log.Warn("TaskRuns are judged by their pods and --tekton-kubernetes-sidecar alone",
				"error", err)
		}
		g.failing = true
		return
	}
	g.failing = false
	on, err := strconv.ParseBool(flags[tektonSidecarFlag])
	if on = on && err == nil; g.sidecar.Swap(on) != on {
		g.log.Info("Tekton's feature flags", tektonSidecarFlag, on)
	}
}

// run refreshes from time to time, until the context ends.
func (g *tektonGate) run(ctx context.Context) {
	for pauseFor(ctx, tektonRefresh) == nil {
		g.refresh(ctx)
	}
}
