package main

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/version"
)

const (
	// oldestMinor is the oldest Kubernetes 1.x whose native sidecars are on by default.
	oldestMinor = 29

	versionRetry   = 15 * time.Second // while the version is unknown
	versionRefresh = 10 * time.Minute // a cluster may be upgraded under us
)

// versionGate knows whether the cluster runs native sidecars. Admission only reads what the last look-up said, so it never waits for the API server.
type versionGate struct {
	lookUp func() (*version.Info, error)
	log    *slog.Logger
	state  atomic.Int32
}

// sidecars is what is known now.
func (g *versionGate) sidecars() nativeSidecars { return nativeSidecars(g.state.Load()) }

// refresh looks the version up. When that fails, what was known stays.
func (g *versionGate) refresh() error {
	info, err := g.lookUp()
	if err != nil {
		return fmt.Errorf("look up the version of Kubernetes: %w", err)
	}
	supported, err := supportsSidecars(info)
	if err != nil {
		return err
	}
	state := sidecarsUnsupported
	if supported {
		state = sidecarsSupported
	}
	if nativeSidecars(g.state.Swap(int32(state))) != state {
		g.log.Info("Kubernetes version", "version", info.GitVersion, "nativeSidecars", supported)
	}
	return nil
}

// run refreshes until the context ends.
func (g *versionGate) run(ctx context.Context) {
	for {
		wait := versionRefresh
		if g.sidecars() == sidecarsUnknown {
			wait = versionRetry
		}
		if pauseFor(ctx, wait) != nil {
			return
		}
		if err := g.refresh(); err != nil {
			g.log.Warn("pods are judged by what was known before", "error", err)
		}
	}
}

// supportsSidecars reads the version as Tekton does (IsNativeSidecarSupport in its pkg/pod): providers write minor versions such as "29+".
func supportsSidecars(info *version.Info) (bool, error) {
	major, err1 := strconv.Atoi(info.Major)
	minor, err2 := strconv.Atoi(strings.TrimRight(info.Minor, "+"))
	if err1 != nil || err2 != nil {
		return false, fmt.Errorf("look up the version of Kubernetes: %q.%q is no version", info.Major, info.Minor)
	}
	return major > 1 || major == 1 && minor >= oldestMinor, nil
}
