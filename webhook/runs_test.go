package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// The records of a whole run, as files under testdata/records named as the objects: what is there and what is in it.
func TestRecords(t *testing.T) {
	for _, c := range []struct {
		name  string
		world func(*fakeAPI)
	}{
		{"pipelinerun", func(*fakeAPI) {}},
		{"taskrun", func(f *fakeAPI) { delete(f.at(taskRunPath, "metadata"), "ownerReferences") }},
		// As after a renewed ticket of a shipper that is still at it.
		{"ended", func(f *fakeAPI) {
			status := f.at(pipelineRunPath, "status")
			status["conditions"] = []any{object{"type": "Succeeded", "status": "False", "reason": "Cancelled"}}
			status["startTime"], status["completionTime"] = "2026-03-04T05:06:08Z", "2026-03-04T05:16:08Z"
		}},
		// What a later Tekton might make of its objects must not cost the logs.
		{"odd-shapes", func(f *fakeAPI) {
			f.at(pipelineRunPath)["spec"] = object{"pipelineRef": "a string"}
			f.at(pipelineRunPath)["status"] = object{"pipelineSpec": object{"tasks": []any{"a string", object{"name": 7}, object{"name": "ok"}}, "finally": object{}}}
			delete(f.at(pipelineRunPath, "metadata"), "labels")
			delete(f.at(taskRunPath, "metadata"), "labels")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			api, store := newFakeAPI(), &memoryStore{}
			c.world(api)
			s := startService(t, api, store)
			if w := s.ask(t); w.Code != 200 {
				t.Fatalf("status %d: %s\n%s", w.Code, w.Body, s.log)
			}
			var got bytes.Buffer
			for _, key := range slices.Sorted(maps.Keys(store.objects)) {
				got.WriteString("-- " + key + " --\n")
				if err := json.Indent(&got, []byte(store.objects[key]), "", "  "); err != nil {
					t.Fatalf("%s: %v", key, err)
				}
			}
			file := filepath.Join("testdata", "records", c.name+".txt")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatalf("%v (go test ./webhook -update makes it)", err)
			}
			if got.String() != string(want) {
				t.Errorf("%s differs (go test ./webhook -update takes it over); got:\n%s", file, got.String())
			}
		})
	}
}

func TestEndOf(t *testing.T) {
	begin := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	condition := func(status, reason string) string {
		return `{"conditions":[{"type":"Succeeded","status":"` + status + `","reason":"` + reason + `","lastTransitionTime":"2026-03-04T05:06:09Z"}],"startTime":"2026-03-04T05:06:07Z","completionTime":"2026-03-04T05:06:08Z"}`
	}
	for _, c := range []struct {
		name, status string
		want         ending
	}{
		{"not begun", `{}`, ending{}},
		{"running", condition("Unknown", "Running"), ending{}},
		{"finally tasks of a cancelled one", condition("Unknown", "CancelledRunningFinally"), ending{}},
		{"to be retried", condition("Unknown", "ToBeRetried"), ending{}},
		{"well", condition("True", "Completed"), ending{record.Succeeded, "Completed", begin, begin.Add(time.Second)}},
		{"failed", condition("False", "Failed"), ending{record.Failed, "Failed", begin, begin.Add(time.Second)}},
		{"PipelineRun cancelled", condition("False", "Cancelled"), ending{record.Cancelled, "Cancelled", begin, begin.Add(time.Second)}},
		{"TaskRun cancelled", condition("False", "TaskRunCancelled"), ending{record.Cancelled, "TaskRunCancelled", begin, begin.Add(time.Second)}},
		{"timed out", condition("False", "TaskRunTimeout"), ending{record.Failed, "TaskRunTimeout", begin, begin.Add(time.Second)}},
		{
			"refused before it began", `{"conditions":[{"type":"Succeeded","status":"False","reason":"CouldntGetPipeline","lastTransitionTime":"2026-03-04T05:06:07Z"}]}`,
			ending{record.Failed, "CouldntGetPipeline", time.Time{}, begin},
		},
		{"no times", `{"conditions":[{"type":"Succeeded","status":"True","lastTransitionTime":7}],"completionTime":"yesterday"}`, ending{state: record.Succeeded}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := endOf(fromJSON(t, `{"status":`+c.status+`}`)); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestContainers(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	tee := []string{contract.TeePath}
	for _, c := range []struct {
		name    string
		skipped string
		exclude string
		init    []corev1.Container
		others  []corev1.Container
		want    []record.Container
	}{
		{name: "empty pod"},
		{
			name: "the shipper is left out",
			init: []corev1.Container{{Name: contract.ShipperContainer, RestartPolicy: &always}},
		},
		{
			name:   "kinds, in the pod's order",
			init:   []corev1.Container{{Name: "working-dir", Command: tee}, {Name: "sidecar-native", RestartPolicy: &always, Command: tee}, {Name: "step-init", Command: tee}},
			others: []corev1.Container{{Name: "step-b", Command: tee}, {Name: "step-a", Command: tee}, {Name: "sidecar-x", Command: tee}, {Name: "injected-by-mesh", Command: tee}, {Name: "stepladder", Command: tee}},
			want: []record.Container{
				{Name: "working-dir", Kind: record.Init, Captured: true}, {Name: "sidecar-native", Kind: record.Sidecar, Captured: true}, {Name: "step-init", Kind: record.Init, Captured: true},
				{Name: "step-b", Kind: record.Step, Captured: true}, {Name: "step-a", Kind: record.Step, Captured: true},
				{Name: "sidecar-x", Kind: record.Sidecar, Captured: true}, {Name: "injected-by-mesh", Kind: record.Sidecar, Captured: true}, {Name: "stepladder", Kind: record.Sidecar, Captured: true},
			},
		},
		{
			name:    "reasons",
			skipped: contract.FormatSkipped([]contract.Skipped{{Container: "step-a", Reason: "no-command"}, {Container: "step-b", Reason: "memory-limit"}}),
			others:  []corev1.Container{{Name: "step-a"}, {Name: "step-b", Command: []string{"/bin/sh"}}, {Name: "step-c", Command: []string{"/bin/sh"}}},
			want: []record.Container{
				{Name: "step-a", Kind: record.Step, Skipped: "no-command"}, {Name: "step-b", Kind: record.Step, Skipped: "memory-limit"}, {Name: "step-c", Kind: record.Step, Skipped: record.SkippedUnknown},
			},
		},
		{
			name:    "reason for the whole pod",
			skipped: contract.SkippedPod + "=shared-process-namespace,step-b=no-command",
			others:  []corev1.Container{{Name: "step-a"}, {Name: "step-b"}},
			want:    []record.Container{{Name: "step-a", Kind: record.Step, Skipped: "shared-process-namespace"}, {Name: "step-b", Kind: record.Step, Skipped: "no-command"}},
		},
		{
			name:    "captured, whatever the annotation says",
			skipped: "step-a=forged",
			others:  []corev1.Container{{Name: "step-a", Command: tee}},
			want:    []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}},
		},
		{
			name:    "excluded by the user, in a pod that the webhook never saw",
			exclude: "step-a, step-x",
			others:  []corev1.Container{{Name: "step-a"}, {Name: "step-b"}},
			want: []record.Container{
				{Name: "step-a", Kind: record.Step, Skipped: "opted-out"}, {Name: "step-b", Kind: record.Step, Skipped: record.SkippedUnknown},
			},
		},
		{
			name:    "annotation that is no list",
			skipped: strings.Repeat("=,", 50),
			others:  []corev1.Container{{Name: "step-a"}},
			want:    []record.Container{{Name: "step-a", Kind: record.Step, Skipped: record.SkippedUnknown}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{InitContainers: c.init, Containers: c.others}}
			pod.Annotations = map[string]string{
				contract.SkippedAnnotation: c.skipped, contract.ExcludeAnnotation: c.exclude,
			}
			if got := containers(pod); !slices.Equal(got, c.want) {
				t.Errorf("got\n%+v, want\n%+v", got, c.want)
			}
		})
	}
}

// TestRecordWaiting: waiting.json is written for captured containers alone, at the place where the reader looks.
func TestRecordWaiting(t *testing.T) {
	store := &memoryStore{}
	s := startService(t, newFakeAPI(), store)
	err := s.recordWaiting(t.Context(), boundPod{"team", "build-7-compile-pod", podUID}, map[string]record.Waiting{
		"step-build": {Reason: "ErrImagePull", Message: "not found"},
		"sidecar-db": {Reason: "ErrImagePull"}, // not captured
		"step-other": {Reason: "ErrImagePull"}, // not in the pod
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{podPrefix + "step-build/waiting.json": `{"reason":"ErrImagePull","message":"not found"}` + "\n"}
	if !maps.Equal(store.objects, want) {
		t.Errorf("stored %q, want %q", store.objects, want)
	}
	if err := s.recordWaiting(t.Context(), boundPod{"team", "build-7-compile-pod", "another-uid"}, map[string]record.Waiting{"step-build": {Reason: "ErrImagePull"}}); err == nil {
		t.Error("recorded for a pod that has another UID")
	}
}
