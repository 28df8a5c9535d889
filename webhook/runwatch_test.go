package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// fromJSON reads an object as the client does.
func fromJSON(t testing.TB, text string) *unstructured.Unstructured {
	t.Helper()
	obj := &unstructured.Unstructured{}
	if err := json.Unmarshal([]byte(text), &obj.Object); err != nil {
		t.Fatal(err)
	}
	return obj
}

func TestSlimOf(t *testing.T) {
	created := metav1.NewTime(time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC))
	for _, c := range []struct {
		name, json string
		want       *runObject
	}{
		{
			name: "PipelineRun",
			json: `{"apiVersion":"tekton.dev/v1","kind":"PipelineRun","metadata":{"name":"r","namespace":"team","uid":"u","resourceVersion":"7","creationTimestamp":"2026-03-04T05:06:07Z",
				"labels":{"tekton.dev/pipelineTask":"x"},"annotations":{"shiplog.dev/logs":"l","other":"x"},"managedFields":[{"manager":"m"}]},
				"spec":{"pipelineRef":{"name":"p"}},
				"status":{"childReferences":[{"kind":"TaskRun","name":"a"},{"kind":"CustomRun","name":"b"},{"kind":"TaskRun"},"odd"],"startTime":"2026-03-04T05:06:08Z","completionTime":"2026-03-04T05:07:08Z",
				"conditions":[{"type":"Other","status":"True"},{"type":"Succeeded","status":"False","reason":"PipelineRunTimeout"}]}}`,
			want: &runObject{
				ObjectMeta:  metav1.ObjectMeta{Name: "r", Namespace: "team", UID: "u", ResourceVersion: "7", CreationTimestamp: created},
				owner:       pipelineRunOwner,
				ending:      ending{record.Failed, "PipelineRunTimeout", created.Add(time.Second), created.Add(time.Minute + time.Second)},
				annotations: []annotation{{contract.LogsAnnotation, "l"}},
				children:    []string{"a"},
			},
		},
		{
			name: "TaskRun with retries",
			json: `{"apiVersion":"tekton.dev/v1","kind":"TaskRun","metadata":{"name":"t","namespace":"team","uid":"u","creationTimestamp":"2026-03-04T05:06:07Z",
				"labels":{"tekton.dev/pipelineTask":"build","other":"x"},
				"ownerReferences":[{"apiVersion":"v1","kind":"Other","name":"o","uid":"x"},{"apiVersion":"tekton.dev/v1","kind":"PipelineRun","name":"r","uid":"ru","controller":true}]},
				"status":{"podName":"p3","steps":[{"waiting":{"reason":"x"}}],"conditions":[{"type":"Succeeded","status":"Unknown","reason":"ToBeRetried"}],
				"retriesStatus":[{"podName":"p1","steps":[{"terminated":{"startedAt":"2026-03-04T05:06:07Z"}}]},{"podName":"p2","steps":[{},{"running":{"startedAt":"2026-03-04T05:06:09Z"}}]},{"podName":""}]}}`,
			want: &runObject{
				ObjectMeta:  metav1.ObjectMeta{Name: "t", Namespace: "team", UID: "u", CreationTimestamp: created},
				owner:       taskRunOwner,
				pipelineRun: &pipelineRun{"r", "ru"},
				task:        "build",
				pods:        []taskPod{{"p1", 0, false}, {"p2", 1, true}, {"p3", 3, false}},
			},
		},
		{
			name: "TaskRun that is done",
			json: `{"kind":"TaskRun","metadata":{"name":"t","uid":"u","annotations":{"shiplog.dev/sealed":"true","shiplog.dev/sealed-uid":"u"}},"status":{"podName":"p"}}`,
			want: &runObject{
				ObjectMeta: metav1.ObjectMeta{Name: "t", UID: "u"}, owner: taskRunOwner,
				annotations: []annotation{{contract.SealedAnnotation, "true"}, {contract.SealedUIDAnnotation, "u"}},
			},
		},
		{
			name: "TaskRun of another controller",
			json: `{"kind":"TaskRun","metadata":{"name":"t","ownerReferences":[{"apiVersion":"tekton.dev/v1beta1","kind":"CustomRun","name":"c","uid":"x","controller":true}]}}`,
			want: &runObject{ObjectMeta: metav1.ObjectMeta{Name: "t"}, owner: taskRunOwner},
		},
		{
			name: "nothing is as it should be",
			json: `{"kind":"TaskRun","metadata":{"name":"t","annotations":"x","labels":[]},"status":{"podName":7,"steps":{"a":1},"retriesStatus":[1,null,{"podName":{}}],"conditions":{"type":"Succeeded"}}}`,
			want: &runObject{ObjectMeta: metav1.ObjectMeta{Name: "t"}, owner: taskRunOwner},
		},
		{
			name: "no status to speak of",
			json: `{"kind":"PipelineRun","metadata":{"name":"r"},"status":[]}`,
			want: &runObject{ObjectMeta: metav1.ObjectMeta{Name: "r"}, owner: pipelineRunOwner},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := slimOf(fromJSON(t, c.json))
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(runObject{}, owner{}, ending{}, pipelineRun{}, annotation{}, taskPod{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever the API server sends, the watch goes on: a panic in it would end the process.
func FuzzSlimOf(f *testing.F) {
	f.Add(`{"kind":"TaskRun","metadata":{"ownerReferences":[{"controller":true}]},"status":{"retriesStatus":[{}],"steps":[{"running":{"startedAt":1}}],"conditions":[{"type":"Succeeded","status":"True"}]}}`)
	f.Add(`{"kind":"PipelineRun","metadata":{"annotations":{"shiplog.dev/sealed":"x"}},"status":{"childReferences":[null]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		obj := &unstructured.Unstructured{}
		if json.Unmarshal([]byte(text), &obj.Object) != nil || obj.Object == nil {
			return
		}
		slim := slimOf(obj)
		_, _, _ = slim.key(), foreign(slim), marked(slim)
	})
}

// TestMemoryLimits: the collector works harder before a container's memory limit is reached.
func TestMemoryLimits(t *testing.T) {
	for _, name := range []string{"deployment.yaml", "annotator.yaml", "backend.yaml"} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile("../manifests/base/" + name)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(text), "\n---\n")
			var d appsv1.Deployment
			if err := yaml.UnmarshalStrict([]byte(first), &d); err != nil {
				t.Fatal(err)
			}
			c := d.Spec.Template.Spec.Containers[0]
			i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "GOMEMLIMIT" })
			if i < 0 {
				t.Fatal("GOMEMLIMIT is missing")
			}
			soft, err := resource.ParseQuantity(strings.TrimSuffix(c.Env[i].Value, "B")) // the Go runtime's MiB is Kubernetes' Mi
			if err != nil {
				t.Fatal(err)
			}
			if share := soft.AsApproximateFloat64() / c.Resources.Limits.Memory().AsApproximateFloat64(); share < 0.85 || share > 0.95 {
				t.Errorf("GOMEMLIMIT is %s, which is %.2f of the limit %s, want 0.9", c.Env[i].Value, share, c.Resources.Limits.Memory())
			}
		})
	}
}

// TestRunObjectIsSmall: 10,000 runs with three TaskRuns each fit well into the webhook's memory.
func TestRunObjectIsSmall(t *testing.T) {
	step := `{"name":"s","terminated":{"startedAt":"2026-03-04T05:06:09Z","message":"` + strings.Repeat("m", 2048) + `"}}`
	text := `{"apiVersion":"tekton.dev/v1","kind":"TaskRun","metadata":{"name":"a-taskrun-of-a-name-as-tekton-makes-it-%d","namespace":"team","uid":"22222222-2222-4222-8222-%012d","resourceVersion":"123456789",
		"creationTimestamp":"2026-03-04T05:06:07Z","managedFields":[{"manager":"` + strings.Repeat("x", 8<<10) + `"}],"labels":{"tekton.dev/pipelineTask":"compile-everything"},
		"annotations":{"other":"` + strings.Repeat("o", 1024) + `","shiplog.dev/logs":"https://logs.example.com/ui/team/22222222-2222-4222-8222-222222222222#task=compile-everything","shiplog.dev/sealed":"true","shiplog.dev/sealed-uid":"22222222-2222-4222-8222-222222222222"},
		"ownerReferences":[{"apiVersion":"tekton.dev/v1","kind":"PipelineRun","name":"a-pipelinerun-of-a-name","uid":"33333333-3333-4333-8333-333333333333","controller":true}]},
		"spec":{"params":[{"name":"p","value":"` + strings.Repeat("v", 4096) + `"}]},
		"status":{"podName":"a-taskrun-of-a-name-as-tekton-makes-it-pod","completionTime":"2026-03-04T05:07:08Z","startTime":"2026-03-04T05:06:08Z","conditions":[{"type":"Succeeded","status":"True","reason":"Succeeded","message":"all well"}],
		"steps":[` + step + `,` + step + `,` + step + `]}}`
	const n = 10_000
	kept := make([]*runObject, n)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range kept {
		kept[i] = slimOf(fromJSON(t, fmt.Sprintf(text, i, i)))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("a TaskRun of %d bytes of JSON is kept in %d bytes, 40,000 of them in %d MiB", len(text), each, each*4*n>>20)
	if each <= 0 || each > 2<<10 {
		t.Errorf("a TaskRun is kept in %d bytes, want at most 2 KiB", each)
	}
	runtime.KeepAlive(kept)
}
