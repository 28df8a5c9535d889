package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// TestTektonGate: what the flags say holds after at most a minute, and stays where they cannot be read.
func TestTektonGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards flags and fails
		var flags map[string]string
		var fails error
		var log bytes.Buffer
		gate := &tektonGate{
			lookUp: func(context.Context) (map[string]string, error) {
				mu.Lock()
				defer mu.Unlock()
				return flags, fails
			},
			log: slog.New(slog.NewTextHandler(&log, nil)),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); gate.run(ctx) }()
		for _, step := range []struct {
			name  string
			flags map[string]string
			fails error
			want  bool
		}{
			{"not set", map[string]string{}, nil, false},
			{"set", map[string]string{tektonSidecarFlag: "true"}, nil, true},
			{"cannot be read", nil, errors.New("forbidden"), true},
			{"cannot be read again", nil, errors.New("forbidden"), true},
			{"no boolean", map[string]string{tektonSidecarFlag: "maybe"}, nil, false},
			{"set again", map[string]string{tektonSidecarFlag: "1"}, nil, true},
			{"unset", map[string]string{tektonSidecarFlag: "false"}, nil, false},
		} {
			mu.Lock()
			flags, fails = step.flags, step.fails
			mu.Unlock()
			time.Sleep(tektonRefresh)
			synctest.Wait()
			if got := gate.kubernetesSidecar(); got != step.want {
				t.Errorf("%s: %t, want %t", step.name, got, step.want)
			}
		}
		if n := strings.Count(log.String(), "forbidden"); n != 1 {
			t.Errorf("the failure is logged %d times:\n%s", n, log.String())
		}
		cancel()
		<-done
	})
}

// The drain is bounded where Tekton's flags say that TaskRuns wait for it.
func TestAdmissionAsksTekton(t *testing.T) {
	for name, waited := range map[string]func() bool{
		"unknown": nil, "on": func() bool { return true }, "off": func() bool { return false },
	} {
		t.Run(name, func(t *testing.T) {
			p := newTestAdmission()
			p.waited = waited
			resp := p.Handle(t.Context(), admission.Request{AdmissionRequest: creation(podWith("", ""))})
			bounded := bytes.Contains(resp.Patch, []byte(`drainTimeout`))
			if want := waited != nil && waited(); bounded != want || len(resp.Patch) == 0 {
				t.Errorf("the drain is bounded: %t, want %t", bounded, want)
			}
		})
	}
}

// tektonFlagsAreRead: the webhook may read the flags with the rights of the manifest, and no other
// ConfigMap.
func tektonFlagsAreRead(t *testing.T, api realAPI) {
	api.namespace(t, "tekton")
	for _, name := range []string{tektonFlags, "other"} {
		if _, err := api.Core.CoreV1().ConfigMaps("tekton").Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{tektonSidecarFlag: "true"},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	gate, err := newTektonGate(api.asWebhook(t), "tekton", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the flags to be read", func() bool {
		gate.refresh(t.Context()) // roles that were just made may take a moment
		return gate.kubernetesSidecar()
	})
	elsewhere, err := newTektonGate(api.asWebhook(t), "nowhere", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := elsewhere.lookUp(t.Context()); err == nil || !strings.Contains(err.Error(), "--tekton-namespace") {
		t.Errorf("in a namespace without them: %v", err)
	}
}
