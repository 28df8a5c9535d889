//go:build linux

package hostile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
	"github.com/shiplog-dev/shiplog/tests/loss/rig"
)

// annotatedRuns is how many runs the tenant has that are annotated, for each attack.
const annotatedRuns = 8

// annotatorRows attacks the process that tells the cluster of runs what the archive holds. Another
// tenant waits until its own run is annotated.
func (w *world) annotatorRows(t *testing.T) (rows []measured) {
	binary := build(t, "./webhook")
	d := deployment(t, "annotator.yaml")
	runs := w.cluster.Tekton(t)
	for i, a := range annotatorAttacks() {
		t.Run("annotator-"+strings.ReplaceAll(a.name, " ", "-"), func(t *testing.T) {
			w := w.below(t, fmt.Sprintf("annotated-%d", i))
			s := start(t, binary, d, environment(w.settings), "--role=annotator",
				"--kubeconfig="+w.config, "--metrics-address=127.0.0.1:0", "--shutdown-delay=0s")
			if a.store != nil {
				for n := range annotatedRuns {
					made := newRun(t, runs, tenant, fmt.Sprintf("run-%d-%d", i, n))
					a.store(&hostileRun{w, w.record(tenant, made.GetName(), string(made.GetUID()))})
				}
				w.stored()
				for n := range annotatedRuns {
					endRun(t, runs, tenant, fmt.Sprintf("run-%d-%d", i, n))
				}
			}
			name := fmt.Sprintf("run-%d", i)
			made := newRun(t, runs, innocent, name)
			run := w.record(innocent, name, string(made.GetUID()))
			c := layout.Container{Pod: podOf(run, 0), Container: stepName}
			lines := archivetest.Lines(w.now, 10, innocentLine)
			archivetest.PutLog(t, w.store, c, lines, 0)
			archivetest.PutRecord(t, w.store, c.SealKey(), archivetest.Seal(t, lines))
			endRun(t, runs, innocent, name)
			begun := time.Now()
			rig.Until(t, "the other tenant's run is annotated", waitLimit, func() bool {
				have, err := runs.Resource(apiserver.PipelineRuns).Namespace(innocent).
					Get(t.Context(), name, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				select {
				case <-s.done:
					return true // stop says so
				default:
				}
				return have.GetAnnotations()[contract.SealedAnnotation] == contract.SealedTrue
			})
			took := time.Since(begun)
			most := s.stop()
			t.Logf("%.0f MiB of %d, another waits %s", mib(most), d.limit>>20, round(took))
			rows = append(rows, measured{"the annotator: " + a.name, a.bound, most, d.limit,
				round(took)})
		})
	}
	return rows
}

// newRun makes a PipelineRun.
func newRun(t *testing.T, client dynamic.Interface, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	made, err := client.Resource(apiserver.PipelineRuns).Namespace(namespace).Create(t.Context(),
		&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "tekton.dev/v1", "kind": "PipelineRun",
			"metadata": map[string]any{"name": name, "namespace": namespace},
			"spec":     map[string]any{"pipelineRef": map[string]any{"name": "p"}},
		}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// endRun has a PipelineRun end well, as Tekton says it.
func endRun(t *testing.T, client dynamic.Interface, namespace, name string) {
	t.Helper()
	of := client.Resource(apiserver.PipelineRuns).Namespace(namespace)
	run, err := of.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Format(time.RFC3339)
	run.Object["status"] = map[string]any{
		"startTime": now, "completionTime": now,
		"conditions": []any{map[string]any{
			"type": "Succeeded", "status": "True", "reason": "Completed", "lastTransitionTime": now,
		}},
	}
	if _, err := of.UpdateStatus(t.Context(), run, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func annotatorAttacks() []tenantAttack {
	const eight = ", in each of 8 runs"
	const bound = "trees take half of the memory, and four runs are looked at at once"
	return []tenantAttack{
		{name: "none", bound: "nobody attacks"},
		{
			name: "40,000 segments" + eight, bound: bound,
			store: func(r *hostileRun) {
				c := r.container(stepName)
				r.mass(mass{n: 40_000, key: func(i int) string {
					return c.SegmentKey(segmentOf(int64(i), 1))
				}, body: func(int) []byte { return nil }})
			},
		},
		{
			name: "100 seals of as many gaps as they may have" + eight, bound: bound,
			store: func(r *hostileRun) {
				large := markers()
				for i := range 100 {
					key := r.container(fmt.Sprintf("c%03d", i)).SealKey()
					r.put(key, []byte("{}"))
					r.front.swap(r.under+key, large)
				}
			},
		},
		{
			name: "10 pods' records of 1,000 containers with long reasons" + eight, bound: bound,
			store: func(r *hostileRun) {
				large := containers()
				for i := range 10 {
					r.put(podOf(r.Run, i).PodKey(), large)
				}
			},
		},
	}
}
