package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// None of these may reach a cluster: the state folder does not exist.
func TestCommandLine(t *testing.T) {
	t.Setenv("SHIPLOG_CLUSTER_DIR", filepath.Join(t.TempDir(), "none"))
	for _, tt := range []struct{ args, want string }{
		{"", "usage:"},
		{"bogus", "unknown command \"bogus\""},
		{"binary", "usage: binary NAME"},
		{"binary a b", "usage: binary NAME"},
		{"start", "usage: start PART"},
		{"stop nope", "there is no part \"nope\""},
		{"stop kubelet KILL", "not a positive number"},
		{"stop kubelet 0", "not a positive number"},
		{"load-image", "usage: load-image"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			if err := run(t.Context(), strings.Fields(tt.args)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
	for _, args := range []string{"env", "status", "stop kubelet", "start kubelet 9", "load-image a:b x=/y"} {
		t.Run(args, func(t *testing.T) {
			if err := run(t.Context(), strings.Fields(args)); !errors.Is(err, errNoCluster) {
				t.Errorf("got %v, want that no cluster is up", err)
			}
		})
	}
}
