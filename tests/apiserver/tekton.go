package apiserver

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

// The runs of Tekton.
var (
	PipelineRuns = schema.GroupVersionResource{
		Group: "tekton.dev", Version: "v1", Resource: "pipelineruns",
	}
	TaskRuns = schema.GroupVersionResource{
		Group: "tekton.dev", Version: "v1", Resource: "taskruns",
	}
)

// Tekton installs Tekton's own definitions of PipelineRun and TaskRun, and returns the
// administrator's client of them. Tekton's controller and webhook are not there: tests are these.
func (s Server) Tekton(t *testing.T) dynamic.Interface {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}",
		"github.com/tektoncd/pipeline")
	module, err := list.Output()
	if err != nil {
		t.Fatalf("find Tekton's module: %v", err)
	}
	client, err := dynamic.NewForConfig(s.Admin)
	if err != nil {
		t.Fatal(err)
	}
	crds := client.Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	})
	for _, r := range []schema.GroupVersionResource{PipelineRuns, TaskRuns} {
		file := "300-" + strings.TrimSuffix(r.Resource, "s") + ".yaml"
		dir := strings.TrimSpace(string(module))
		text, err := os.ReadFile(filepath.Join(dir, "config", "300-crds", file))
		if err != nil {
			t.Fatal(err)
		}
		crd := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, crd); err != nil {
			t.Fatal(err)
		}
		// By Tekton's webhook.
		unstructured.RemoveNestedField(crd.Object, "spec", "conversion")
		_, err = crds.Create(t.Context(), crd, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		served(t, client, r)
	}
	return client
}

// served waits until the API server serves a resource.
func served(t *testing.T, client dynamic.Interface, r schema.GroupVersionResource) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := client.Resource(r).List(ctx, metav1.ListOptions{})
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the API server does not serve %s: %v", r.Resource, err)
		}
	}
}
