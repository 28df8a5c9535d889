package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The shipper runs in every pod, beside code that is not trusted: it stays small, holds no client of Kubernetes or of S3, and needs no C library.
func TestDeps(t *testing.T) {
	list := exec.Command("go", "list", "-deps", ".")
	list.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 50 {
		t.Fatalf("only %d packages: %v", len(deps), deps)
	}
	const module = "github.com/shiplog-dev/shiplog/"
	allowed := map[string]string{
		module:                                   "its own packages, but not the store's client",
		"github.com/klauspost/compress":          "zstd",
		"golang.org/x/crypto/x509roots/fallback": "the image holds no CA certificates",
		"golang.org/x/sync/errgroup":             "seals at the same time",
		"golang.org/x/sys":                       "openat",
	}
	for _, dep := range deps {
		if first, _, _ := strings.Cut(dep, "/"); !strings.Contains(first, ".") {
			continue // the standard library
		}
		ok := false
		for prefix := range allowed {
			ok = ok || strings.HasPrefix(dep, prefix)
		}
		if !ok || strings.HasPrefix(dep, module+"internal/objectstore") {
			t.Errorf("the shipper imports %s", dep)
		}
	}
}
