package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const tektonParts = `      - name: controller
        image: ko://github.com/tektoncd/pipeline/cmd/controller
        args: [
          "-entrypoint-image", "ko://github.com/tektoncd/pipeline/cmd/entrypoint",
          "-shell-image", "registry.example/busybox@sha256:0000",
          "-shell-image-win", "registry.example/powershell@sha256:0000",
        ]
---
data:
  set-security-context: "false"
`

func TestTektonYAML(t *testing.T) {
	got, err := withImages(tektonParts, registry{pull: "localhost:5000"})
	if err == nil {
		got, err = testedTekton(got)
	}
	if err != nil {
		t.Fatal(err)
	}
	want := `      - name: controller
        image: localhost:5000/tekton/controller:local
        args: [
          "-entrypoint-image", "localhost:5000/tekton/entrypoint:local",
          "-shell-image", "localhost:5000/tekton/shell:local",
          "-shell-image-win", "registry.example/powershell@sha256:0000",
        ]
---
data:
  set-security-context: "true"
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTektonYAMLOfAnotherShape(t *testing.T) {
	if _, err := withImages(strings.ReplaceAll(tektonParts, "ko://github.com/tektoncd/pipeline/cmd/controller", "ko://example.com/controller"), registry{}); err == nil {
		t.Error("an image of another repository is accepted")
	}
	if _, err := testedTekton(strings.ReplaceAll(tektonParts, "  set-security-context", "    set-security-context")); err == nil {
		t.Error("a flag at another indentation is accepted")
	}
}

func TestReadAll(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "b.yaml"), "b: 1\n")
	write(t, filepath.Join(dir, "a.yaml"), "a: 1") // without a newline at its end
	got, err := readAll(filepath.Join(dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "\n---\na: 1\n---\nb: 1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := readAll(filepath.Join(dir, "*.json")); err == nil {
		t.Error("a pattern without files is accepted")
	}
}

func TestUntil(t *testing.T) {
	tries := 0
	err := until(t.Context(), "it", time.Minute, func(context.Context) error {
		if tries++; tries < 2 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || tries != 2 {
		t.Errorf("%d tries, %v", tries, err)
	}
	broken := errors.New("broken")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := until(ctx, "the thing", time.Minute, func(context.Context) error { return broken }); !errors.Is(err, broken) || !strings.Contains(err.Error(), "the thing") {
		t.Errorf("got %v, want what was awaited and why it is not there", err)
	}
}
