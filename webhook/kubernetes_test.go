package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/version"
)

func TestSupportsSidecars(t *testing.T) {
	for name, tc := range map[string]struct {
		major, minor string
		want         bool
		bad          bool
	}{
		"oldest":        {"1", "29", true, false},
		"before oldest": {"1", "28", false, false},
		"newer":         {"1", "36", true, false},
		"provider":      {"1", "29+", true, false},
		"old provider":  {"1", "28+", false, false},
		"major 2":       {"2", "0", true, false},
		"unstamped":     {"0", "0", false, false},
		"empty":         {"", "", false, true},
		"no number":     {"1", "x", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := supportsSidecars(&version.Info{Major: tc.major, Minor: tc.minor})
			if got != tc.want || (err != nil) != tc.bad {
				t.Errorf("%t, %v, want %t, error: %t", got, err, tc.want, tc.bad)
			}
		})
	}
}

// TestVersionGate follows the gate through an API server that is away at first, then there, then away, then upgraded.
func TestVersionGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type answer struct {
			info *version.Info
			err  error
		}
		var server atomic.Pointer[answer]
		server.Store(&answer{err: errors.New("connection refused")})
		gate := &versionGate{lookUp: func() (*version.Info, error) { a := server.Load(); return a.info, a.err }, log: slog.New(slog.DiscardHandler)}
		if err := gate.refresh(); err == nil || gate.sidecars() != sidecarsUnknown {
			t.Errorf("away: %v, %d, want an error and unknown", err, gate.sidecars())
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); gate.run(ctx) }()
		later := func(d time.Duration, info *version.Info, err error, want nativeSidecars, when string) {
			t.Helper()
			synctest.Wait()
			server.Store(&answer{info, err})
			<-time.After(d) // the bubble's clock
			synctest.Wait()
			if got := gate.sidecars(); got != want {
				t.Errorf("%s: %d, want %d", when, got, want)
			}
		}
		later(versionRetry, nil, errors.New("still away"), sidecarsUnknown, "still away")
		later(versionRetry, &version.Info{Major: "1", Minor: "28"}, nil, sidecarsUnsupported, "old")
		later(versionRetry, &version.Info{Major: "1", Minor: "36"}, nil, sidecarsUnsupported, "upgraded, not asked again yet")
		later(versionRefresh, &version.Info{Major: "1", Minor: "36"}, nil, sidecarsSupported, "upgraded")
		later(versionRefresh, nil, errors.New("away"), sidecarsSupported, "away again: what was known stays")
		stop()
		<-ended
	})
}
