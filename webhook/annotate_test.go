package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const testPage = "https://logs.example.com"

// world is a cluster and a store, in a bubble of synctest.
type world struct {
	*cluster
	t     *testing.T
	store *memoryStore
}

// inWorld runs a test in a bubble.
func inWorld(t *testing.T, f func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, &world{newCluster(t), t, &memoryStore{}}) })
}

// start runs an annotator until the test ends.
func (w *world) start(pageURL string) *annotator {
	w.t.Helper()
	return w.startLogging(pageURL, slog.DiscardHandler)
}

// startLogging is start with a place for what is logged.
func (w *world) startLogging(pageURL string, log slog.Handler) *annotator {
	w.t.Helper()
	a, err := newAnnotator(w.config(), w.store, pageURL, prometheus.NewRegistry(), slog.New(log))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(beside(w.t, a.run))
	return a
}

// after lets time pass.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func runPath(name string) string  { return runsPath + "namespaces/team/pipelineruns/" + name }
func taskPath(name string) string { return runsPath + "namespaces/team/taskruns/" + name }
func podPathOf(name string) string {
	return "/api/v1/namespaces/team/pods/" + name
}

// created is an object that was made a moment ago.
func created(kind, name string) object {
	return object{
		"apiVersion": "tekton.dev/v1", "kind": kind,
		"metadata": object{"name": name, "namespace": "team", "uid": name + "-uid", "creationTimestamp": stamp(time.Now().Add(-time.Second))},
		"status":   object{},
	}
}

// addRun makes a PipelineRun with a TaskRun and a pod for each task.
func (w *world) addRun(name string, tasks ...string) {
	w.put(runPath(name), created("PipelineRun", name))
	for _, task := range tasks {
		w.addTask(name, task)
	}
}

// addTask makes a TaskRun of a PipelineRun, or one without, and its pod, which is injected and runs. It has the annotations of the PipelineRun, as Tekton makes it.
func (w *world) addTask(run, task string) {
	name := task
	o := created("TaskRun", name)
	if run != "" {
		name = run + "-" + task
		o = created("TaskRun", name)
		meta := o["metadata"].(object)
		meta["ownerReferences"] = []any{object{"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": run, "uid": run + "-uid", "controller": true}}
		meta["labels"] = object{pipelineTaskLabel: task}
		w.update(runPath(run), func(r object) {
			children, _ := r["status"].(object)["childReferences"].([]any)
			r["status"].(object)["childReferences"] = append(children, object{"kind": "TaskRun", "name": name, "pipelineTaskName": task})
			if annotations, ok := r["metadata"].(object)["annotations"]; ok {
				meta["annotations"] = annotations
			}
		})
	}
	o["status"] = triedOnce(name + "-pod")
	w.put(taskPath(name), o)
	w.addPod(name+"-pod", contract.TeePath)
}

// triedOnce is the status of a TaskRun whose pod has run.
func triedOnce(pod string) object {
	ended := object{"startedAt": stamp(time.Now()), "reason": "Completed"}
	steps := []any{object{"name": "a", "container": "step-a", "terminated": ended}}
	return object{"podName": pod, "steps": steps}
}

// addPod makes an injected pod of the TaskRun that it is named after, of a step with this command.
func (w *world) addPod(name, command string) {
	taskRun, _, _ := strings.Cut(name, "-pod")
	by := object{
		"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "name": taskRun, "uid": taskRun + "-uid",
		"controller": true,
	}
	w.put(podPathOf(name), object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{
			"name": name, "namespace": "team", "uid": name + "-uid", "creationTimestamp": stamp(time.Now()),
			"ownerReferences": []any{by},
		},
		"spec": object{
			"initContainers": []any{object{"name": contract.ShipperContainer, "restartPolicy": "Always"}},
			"containers":     []any{object{"name": "step-a", "command": []any{command}}},
		},
	})
}

// end ends a run or TaskRun.
func (w *world) end(path, status, reason string) {
	w.update(path, func(o object) {
		s := o["status"].(object)
		s["conditions"] = []any{object{"type": "Succeeded", "status": status, "reason": reason, "lastTransitionTime": stamp(time.Now())}}
		s["startTime"], s["completionTime"] = o["metadata"].(object)["creationTimestamp"], stamp(time.Now())
	})
}

// endRun ends a PipelineRun and its TaskRuns well.
func (w *world) endRun(name string, tasks ...string) {
	for _, task := range tasks {
		w.end(taskPath(name+"-"+task), "True", "Succeeded")
	}
	w.end(runPath(name), "True", "Succeeded")
}

func storePut[T record.Run | record.Pod | record.Alive | record.Seal](w *world, key string, v T) {
	w.t.Helper()
	b, err := record.Encode(v)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.Put(w.t.Context(), key, b); err != nil {
		w.t.Fatal(err)
	}
}

// place is where the log of a task's step is. Of a TaskRun without PipelineRun, run is empty.
func place(run, task string) layout.Container {
	in, taskRun := layout.Run{Namespace: "team", Name: run, UID: run + "-uid"}, run+"-"+task
	if run == "" {
		in, taskRun = layout.Run{Namespace: "team", Name: layout.NoPipelineRun, UID: task + "-uid"}, task
	}
	return layout.Container{Pod: layout.Pod{Run: in, TaskRun: taskRun, PodUID: taskRun + "-pod-uid"}, Container: "step-a"}
}

// strip makes a pod one that the webhook was not asked about.
func (w *world) strip(pod string) {
	w.update(podPathOf(pod), func(o object) {
		spec := o["spec"].(object)
		delete(spec, "initContainers")
		spec["containers"].([]any)[0].(object)["command"] = []any{"/tekton/bin/entrypoint"}
	})
}

// forget takes a pod's record out of the archive.
func (w *world) forget(run, task string) {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	delete(w.store.objects, place(run, task).PodKey())
}

// archive puts what the first ticket of a pod does.
func (w *world) archive(run, task string) {
	c := place(run, task)
	storePut(w, c.RunKey(), record.Run{Kind: layout.PipelineRun, Namespace: "team", Name: run, UID: c.UID, Created: time.Now()})
	storePut(w, c.PodKey(), record.Pod{
		Namespace: "team", PodName: c.TaskRun + "-pod", PodUID: c.PodUID, TaskRun: c.TaskRun, PipelineTask: task,
		Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}, {Name: "sidecar-x", Kind: record.Sidecar, Skipped: "no-command"}},
	})
}

// seal puts the seal of a step that printed nothing.
func (w *world) seal(run, task string) {
	storePut(w, place(run, task).SealKey(), record.Seal{End: record.EndExited, Exit: &record.Exit{}})
}

// segment puts a segment of 100 printed bytes. Nothing reads it.
func (w *world) segment(run, task string) {
	s := layout.Segment{Length: 140, Printed: 100, Lines: 1, First: time.Now(), Last: time.Now()}
	if err := w.store.Put(w.t.Context(), place(run, task).SegmentKey(s), make([]byte, 60)); err != nil {
		w.t.Fatal(err)
	}
}

// runRecord reads a run.json.
func (w *world) runRecord(run string) record.Run {
	w.t.Helper()
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	r, err := record.Decode[record.Run]([]byte(w.store.objects[place(run, "x").RunKey()]))
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// expect compares shiplog's annotations on an object, given as name=value.
func (w *world) expect(path string, want ...string) {
	w.t.Helper()
	var got []string
	for name, value := range w.annotations(w.t, path) {
		got = append(got, name+"="+value)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Errorf("after %s: %s has %q, want %q", time.Since(bubbleStart), path[strings.LastIndex(path, "/")+1:], got, want)
	}
}

// bubbleStart is when the time of every bubble begins.
var bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// TestSealed follows a run from its begin to its seal, with two replicas.
func TestSealed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		one := w.start(testPage)
		two := w.start(testPage)
		w.addRun("r", "build", "test")
		w.archive("r", "build")
		w.archive("r", "test")
		after(time.Minute)
		w.expect(runPath("r"))

		w.seal("r", "build")
		w.endRun("r", "build", "test")
		ended := time.Now().UTC().Truncate(time.Second)
		after(time.Second)
		if got := w.runRecord("r"); got.State != record.Succeeded || got.Reason != "Succeeded" || !got.Completed.Equal(ended) || got.Started.IsZero() {
			t.Errorf("run.json a second after the end: %+v", got)
		}
		after(time.Minute)
		w.expect(runPath("r")) // the shipper of test is still at it
		w.expect(taskPath("r-build"))
		if n := testutil.ToFloat64(one.waiting); n != 1 {
			t.Errorf("%v runs are pending, want 1", n)
		}

		w.seal("r", "test")
		after(time.Minute)
		w.expect(runPath("r"), "sealed=true", "logs="+testPage+"/ui/team/r-uid")
		w.expect(taskPath("r-build"), "sealed=true", "logs="+testPage+"/ui/team/r-uid#task=build")
		w.expect(taskPath("r-test"), "sealed=true", "logs="+testPage+"/ui/team/r-uid#task=test")
		if events := w.events(); len(events) > 0 {
			t.Errorf("events %q of a run that lost nothing", events)
		}
		after(2 * time.Minute)
		if n := testutil.ToFloat64(one.waiting) + testutil.ToFloat64(two.waiting); n != 0 {
			t.Errorf("%v runs are pending when all is done", n)
		}
		sealed := testutil.ToFloat64(one.done.WithLabelValues("true")) + testutil.ToFloat64(two.done.WithLabelValues("true"))
		if patches := w.called("PATCH " + runPath("r")); float64(patches) != sealed || patches < 1 || patches > 2 {
			t.Errorf("the run was patched %d times and counted %v times by two replicas", patches, sealed)
		}

		// Nothing more is asked for it, of nobody.
		reads, calls := w.store.readCount(), w.called("")
		after(time.Hour)
		if w.store.readCount() != reads || w.called("") != calls {
			t.Errorf("in an hour after all was done: %d reads and %d changes", w.store.readCount()-reads, w.called("")-calls)
		}
	})
}

// TestVerdicts ends runs whose archives differ.
func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		name string
		// prepare makes the run "r", whose task is "build", before it ends; nothing is sealed in it.
		prepare func(*world)
		// soon and late are what the annotation says 20 seconds and 10 minutes after the end; empty: it is not there.
		soon, late string
		reason     []string // parts of the reason that it is partial
		event      []string // parts of the event, if there is one
		task       string   // what it says of the TaskRun, or "none"; as late if empty
	}{
		{name: "sealed and empty", prepare: func(w *world) { w.archive("r", "build"); w.seal("r", "build") }, soon: "true", late: "true"},
		{
			name: "gaps", soon: "true", late: "true", event: []string{"PipelineRun r ShiplogLost: ", "build/a: 30 bytes lost in gaps of the log: 2 (spool-limit)"},
			prepare: func(w *world) {
				w.archive("r", "build")
				storePut(w, place("r", "build").SealKey(), record.Seal{
					End: record.EndExited, GapCount: 2, Lost: record.Printed{Stdout: 20, Stderr: 10},
					Gaps: []criline.Marker{{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 20}, {Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stderr: 10}},
				})
			},
		},
		{
			name: "gaps of unknown size", soon: "true", late: "true", event: []string{"ShiplogLost", "build/a: at least 5 bytes lost in gaps of the log: 1 (killed)"},
			prepare: func(w *world) {
				w.archive("r", "build")
				storePut(w, place("r", "build").SealKey(), record.Seal{
					End: record.EndKilled, GapCount: 1, Lost: record.Printed{Stdout: 5}, Gaps: []criline.Marker{{Kind: criline.Gap, Reason: criline.ReasonKilled, Stdout: 5, Unknown: true}},
				})
			},
		},
		{
			name: "killed, and its pipes not drained", soon: "true", late: "true",
			event: []string{"PipelineRun r ShiplogLost: some of what steps printed last may be missing in the archive: build/a: killed: some of its last output may be missing"},
			prepare: func(w *world) {
				w.archive("r", "build")
				w.segment("r", "build")
				storePut(w, place("r", "build").SealKey(), record.Seal{End: record.EndKilled, Bytes: 140, Printed: record.Printed{Stdout: 100}, Segments: 1})
			},
		},
		{
			name: "killed, and its pipes drained", soon: "true", late: "true",
			prepare: func(w *world) {
				w.archive("r", "build")
				storePut(w, place("r", "build").SealKey(), record.Seal{End: record.EndKilled, Drained: true})
			},
		},
		{
			name: "run.json is damaged", late: "partial", reason: []string{"run.json: it cannot be read"}, event: []string{"ShiplogPartial: ", "run.json: it cannot be read"}, task: "true",
			prepare: func(w *world) {
				w.archive("r", "build")
				w.seal("r", "build")
				if err := w.store.Put(w.t.Context(), place("r", "build").RunKey(), []byte("{")); err != nil {
					w.t.Fatal(err)
				}
			},
		},
		{
			name: "segments are missing", late: "partial",
			reason: []string{"build/a: the last 77 archive bytes are missing"}, event: []string{"ShiplogPartial", "build/a: the last 77 archive bytes are missing"},
			prepare: func(w *world) {
				w.archive("r", "build")
				storePut(w, place("r", "build").SealKey(), record.Seal{End: record.EndExited, Bytes: 77})
			},
		},
		{
			name: "seal that is none", late: "partial", reason: []string{"build/a: 100 bytes are archived", "seal.json cannot be read"}, event: []string{"ShiplogPartial", "seal.json cannot be read"},
			prepare: func(w *world) {
				w.archive("r", "build")
				w.segment("r", "build")
				if err := w.store.Put(w.t.Context(), place("r", "build").SealKey(), []byte("{")); err != nil {
					w.t.Fatal(err)
				}
			},
		},
		{
			name: "shipper gone", late: "partial", reason: []string{"build/a: 100 bytes are archived, the log is not sealed, and the pod was last heard of at 2000-01-01T00:"},
			event:   []string{"PipelineRun r ShiplogPartial: ", "build/a: 100 bytes are archived"},
			prepare: func(w *world) { w.archive("r", "build"); w.segment("r", "build") },
		},
		{
			name: "not in the archive though it was injected", late: "missed",
			reason: []string{
				"build/a: nothing of pod r-build-pod is in the archive, though shiplog was in it",
			},
			event:   []string{"ShiplogMissed: ", "build/a: nothing of pod r-build-pod"},
			prepare: func(*world) {},
		},
		{
			name: "the same, and its pod is gone", prepare: func(w *world) { w.delete(podPathOf("r-build-pod")) },
		},
		{
			name: "not injected", prepare: func(w *world) {
				w.strip("r-build-pod")
			},
		},
		{
			name: "injected, and its only container is not captured", prepare: func(w *world) { w.addPod("r-build-pod", "/bin/sh") },
		},
		{
			name: "one task of two not injected", soon: "missed", late: "missed",
			reason: []string{"build/a: pod r-build-pod was not captured: the webhook was not asked"},
			event:  []string{"PipelineRun r ShiplogMissed: ", "build/a: pod r-build-pod was not captured"},
			prepare: func(w *world) {
				w.addTask("r", "other")
				w.archive("r", "other")
				w.seal("r", "other")
				w.end(taskPath("r-other"), "True", "Succeeded")
				w.strip("r-build-pod")
			},
		},
		{
			name: "one task of two is gone with its pod", soon: "missed", late: "missed",
			reason: []string{"build/a: nothing of pod r-build-pod is in the archive, and the pod is gone"},
			event:  []string{"ShiplogMissed"},
			prepare: func(w *world) {
				w.addTask("r", "other")
				w.archive("r", "other")
				w.seal("r", "other")
				w.end(taskPath("r-other"), "True", "Succeeded")
				w.delete(podPathOf("r-build-pod"))
			},
		},
		{
			name: "one task of two opted out, and its pod is gone", soon: "true", late: "true", task: "none",
			prepare: func(w *world) {
				w.addTask("r", "other")
				w.archive("r", "other")
				w.seal("r", "other")
				w.end(taskPath("r-other"), "True", "Succeeded")
				w.delete(podPathOf("r-build-pod"))
				w.update(taskPath("r-build"), func(o object) {
					o["metadata"].(object)["annotations"] = object{contract.InjectKey: contract.InjectDisabled}
				})
			},
		},
		{
			name: "cancelled before its pod began, which is gone", soon: "true", late: "true", task: "none",
			prepare: func(w *world) {
				w.addTask("r", "other")
				w.archive("r", "other")
				w.seal("r", "other")
				w.end(taskPath("r-other"), "True", "Succeeded")
				w.delete(podPathOf("r-build-pod"))
				w.update(taskPath("r-build"), func(o object) {
					o["status"].(object)["steps"] = []any{object{"name": "a", "terminated": object{"startedAt": o["metadata"].(object)["creationTimestamp"], "reason": "TaskRunCancelled"}}}
				})
			},
		},
		{
			name: "a retry of which the first pod was not captured", soon: "missed", late: "missed",
			reason: []string{"build/a: pod r-build-pod was not captured"},
			event:  []string{"ShiplogMissed"},
			prepare: func(w *world) {
				w.archive("r", "build")
				// What is in the archive is the second pod.
				w.forget("r", "build")
				second := place("r", "build")
				second.PodUID = "r-build-pod-retry1-uid"
				storePut(w, second.PodKey(), record.Pod{
					PodName: "r-build-pod-retry1", TaskRun: "r-build", Created: time.Now().Add(time.Hour),
					Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}},
				})
				storePut(w, second.SealKey(), record.Seal{End: record.EndExited, Exit: &record.Exit{}})
				w.addPod("r-build-pod-retry1", contract.TeePath)
				w.strip("r-build-pod")
				w.update(taskPath("r-build"), func(o object) {
					first := copied(o["status"].(object))
					o["status"].(object)["retriesStatus"] = []any{first}
					o["status"].(object)["podName"] = "r-build-pod-retry1"
				})
			},
		},
		{
			name: "TaskRun deleted", soon: "true", late: "true", task: "gone",
			prepare: func(w *world) { w.archive("r", "build"); w.seal("r", "build"); w.delete(taskPath("r-build")) },
		},
		{
			name: "with a custom run and a run of its own", soon: "true", late: "true",
			prepare: func(w *world) {
				w.archive("r", "build")
				w.seal("r", "build")
				w.update(runPath("r"), func(o object) {
					s := o["status"].(object)
					s["childReferences"] = append(s["childReferences"].([]any), object{"kind": "CustomRun", "name": "c"}, object{"kind": "PipelineRun", "name": "p"}, "odd")
				})
			},
		},
		{
			name: "no pod.json", soon: "true", late: "true",
			prepare: func(w *world) {
				w.archive("r", "build")
				w.seal("r", "build")
				w.store.mu.Lock()
				defer w.store.mu.Unlock()
				w.store.objects[place("r", "build").PodKey()] = "overwritten by a tenant"
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.start("")
				w.addRun("r", "build")
				c.prepare(w)
				if w.cluster.has(taskPath("r-build")) {
					w.end(taskPath("r-build"), "True", "Succeeded")
				}
				w.end(runPath("r"), "True", "Succeeded")
				check := func(value string) {
					t.Helper()
					got := w.annotations(t, runPath("r"))
					if got["sealed"] != value {
						t.Errorf("%s after the begin: sealed is %q, want %q", time.Since(bubbleStart), got["sealed"], value)
					}
					for _, part := range c.reason {
						if reasoned(value) && !strings.Contains(got["sealed-reason"], part) {
							t.Errorf("the reason is %q, want %q in it", got["sealed-reason"], part)
						}
					}
					if !reasoned(value) && got["sealed-reason"] != "" {
						t.Errorf("sealed is %q for the reason %q", value, got["sealed-reason"])
					}
				}
				after(20 * time.Second)
				check(c.soon)
				after(10 * time.Minute)
				check(c.late)
				switch c.task {
				case "gone":
				case "none":
					w.expect(taskPath("r-build"))
				default:
					if got, want := w.annotations(t, taskPath("r-build"))["sealed"], cmp.Or(c.task, c.late); got != want {
						t.Errorf("the TaskRun's annotation is %q, want %q", got, want)
					}
				}
				events := w.events()
				if (len(events) > 0) != (c.event != nil) || len(events) > 1 {
					t.Fatalf("events %q, want one with %q", events, c.event)
				}
				for _, part := range c.event {
					if !strings.Contains(events[0], part) {
						t.Errorf("event %q, want %q in it", events[0], part)
					}
				}
			})
		})
	}
}

// reasoned says whether a value of the annotation comes with a reason.
func reasoned(value string) bool { return value == "partial" || value == "missed" }

// TestStandaloneTaskRun: a TaskRun that no PipelineRun controls is a run of its own, whoever made it.
func TestStandaloneTaskRun(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start(testPage)
		w.addTask("", "alone")
		w.addTask("", "looped")
		w.update(taskPath("looped"), func(o object) {
			o["metadata"].(object)["ownerReferences"] = []any{object{"apiVersion": "tekton.dev/v1beta1", "kind": "CustomRun", "name": "loop", "uid": "x", "controller": true}}
			o["metadata"].(object)["labels"] = object{"tekton.dev/pipelineRun": "r", pipelineTaskLabel: "build"} // such controllers copy labels
		})
		for _, name := range []string{"alone", "looped"} {
			w.archive("", name)
			w.seal("", name)
			w.end(taskPath(name), "False", "TaskRunCancelled")
		}
		after(time.Minute)
		for _, name := range []string{"alone", "looped"} {
			w.expect(taskPath(name), "sealed=true", "logs="+testPage+"/ui/team/"+name+"-uid")
			var got record.Run
			if err := json.Unmarshal([]byte(w.store.objects[place("", name).RunKey()]), &got); err != nil || got.State != record.Cancelled || got.Reason != "TaskRunCancelled" {
				t.Errorf("run.json of %s: %+v, %v", name, got, err)
			}
		}
	})
}

// TestWaitsForShippers: as long as a pod gives signs of life, a run waits for it.
func TestWaitsForShippers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start("")
		w.addRun("r", "build")
		w.archive("r", "build")
		w.endRun("r", "build")
		for range 30 {
			storePut(w, place("r", "build").AliveKey(), record.Alive{Time: time.Now()})
			after(time.Minute)
			w.expect(runPath("r"))
		}
		w.seal("r", "build")
		after(time.Minute)
		w.expect(runPath("r"), "sealed=true")
	})
}

// TestSignOfLifeBeginsAnew: a run whose pod was silent for a while, and is again, gets its time anew.
func TestSignOfLifeBeginsAnew(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start("")
		w.addRun("r", "build")
		w.archive("r", "build")
		w.endRun("r", "build")
		after(backend.AliveWithin + certainAfter - time.Minute)
		storePut(w, place("r", "build").AliveKey(), record.Alive{Time: time.Now()})
		after(backend.AliveWithin + certainAfter - time.Minute)
		w.expect(runPath("r"))
		after(3 * time.Minute)
		if got := w.annotations(t, runPath("r"))["sealed"]; got != contract.SealedPartial {
			t.Errorf("sealed is %q, want %q", got, contract.SealedPartial)
		}
	})
}

// TestWaitsForTaskRuns: Tekton calls a PipelineRun cancelled before its TaskRuns have ended.
func TestWaitsForTaskRuns(t *testing.T) {
	for _, c := range []struct {
		name string
		then func(*world)
	}{
		{"which end", func(w *world) { w.end(taskPath("r-build"), "False", "TaskRunCancelled") }},
		{"which are deleted", func(w *world) { w.delete(taskPath("r-build")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.start("")
				w.addRun("r", "build")
				w.archive("r", "build")
				w.seal("r", "build")
				w.end(runPath("r"), "False", "Cancelled")
				after(time.Minute)
				w.expect(runPath("r"))
				if got := w.runRecord("r"); got.State != record.Cancelled {
					t.Errorf("run.json says %q meanwhile, want %q", got.State, record.Cancelled)
				}
				c.then(w)
				after(time.Second)
				w.expect(runPath("r"), "sealed=true")
			})
		})
	}
}

// TestForgedOwner: a TaskRun that names a run as its owner from elsewhere neither holds it up nor spoils it, and learns nothing of it.
func TestForgedOwner(t *testing.T) {
	for _, c := range []struct {
		name, namespace, owner string
	}{
		{"in another namespace", "other", "r"},
		{"under another name", "team", "x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.start("")
				w.addRun("r", "build")
				w.archive("r", "build")
				w.segment("r", "build")
				forged := created("TaskRun", "forged")
				forged["metadata"].(object)["namespace"] = c.namespace
				forged["metadata"].(object)["ownerReferences"] = []any{object{"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": c.owner, "uid": "r-uid", "controller": true}}
				forged["status"] = triedOnce("forged-pod")
				path := runsPath + "namespaces/" + c.namespace + "/taskruns/forged"
				w.put(path, forged)
				w.endRun("r", "build")
				after(10 * time.Minute)
				if got := w.annotations(t, runPath("r")); got["sealed"] != "partial" || strings.Contains(got["sealed-reason"], "forged") {
					t.Errorf("the run has %v, want that it is partial by its own log alone", got)
				}
				w.expect(path)
			})
		})
	}
}

// TestWatchBehind: the watch of TaskRuns may be behind that of PipelineRuns. A TaskRun that it does not know yet is not taken for one that is gone.
func TestWatchBehind(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start("")
		w.addRun("r")
		after(time.Second)
		w.hold("taskruns")
		w.addTask("r", "build")
		w.archive("r", "build")
		w.seal("r", "build")
		w.end(runPath("r"), "False", "Cancelled")
		after(time.Minute)
		w.expect(runPath("r"))
		w.end(taskPath("r-build"), "False", "TaskRunCancelled")
		w.hold("")
		after(time.Minute)
		w.expect(runPath("r"), "sealed=true")
		w.expect(taskPath("r-build"), "sealed=true")
	})
}

// TestStoreComesBack: while nobody can reach the store, no shipper gives a sign of life. When it is back, the shippers get their time.
func TestStoreComesBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("")
		w.addRun("r", "build")
		w.archive("r", "build")
		w.segment("r", "build")
		w.endRun("r", "build")
		after(4 * time.Minute) // silent, but not for long enough
		down := errors.New("no route to the store")
		w.store.fail(down, down)
		after(2 * time.Hour)
		w.expect(runPath("r"))
		if testutil.ToFloat64(a.failures) < 10 {
			t.Errorf("%v failures are counted", testutil.ToFloat64(a.failures))
		}
		w.store.fail(nil, nil)
		after(retryMost) // the longest pause, and the shipper's is shorter
		w.seal("r", "build")
		storePut(w, place("r", "build").SealKey(), record.Seal{End: record.EndExited, Bytes: 140, Printed: record.Printed{Stdout: 100}, Segments: 1})
		after(time.Minute)
		w.expect(runPath("r"), "sealed=true")
		if events := w.events(); len(events) > 0 {
			t.Errorf("events %q", events)
		}
	})
}

// unlistable is a store that cannot list.
type unlistable struct{ *memoryStore }

func (unlistable) List(context.Context, string, string, string, int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		yield(objectstore.Entry{}, errors.New("more than can be held"))
	}
}

// TestUnreadable: a run whose logs cannot be read although the store is there is not waited for for ever.
func TestUnreadable(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("")
		a.archive = backend.New(unlistable{w.store})
		w.addRun("r", "build")
		w.archive("r", "build")
		w.endRun("r", "build")
		after(unreadableAfter - time.Minute)
		w.expect(runPath("r"))
		if n := w.store.readCount(); n > int(unreadableAfter/retryMost)+20 {
			t.Errorf("%d reads in %s", n, unreadableAfter)
		}
		if got := w.runRecord("r"); got.State != record.Succeeded {
			t.Errorf("run.json says %q, want %q", got.State, record.Succeeded)
		}
		after(3 * retryMost)
		const reason = "all logs: they could not be read for 6h0m0s"
		w.expect(runPath("r"), "sealed=partial", "sealed-reason="+reason)
		if got := w.annotations(t, taskPath("r-build"))["sealed"]; got != contract.SealedPartial {
			t.Errorf("the TaskRun's annotation is %q, want %q", got, contract.SealedPartial)
		}
		if events := w.events(); len(events) != 1 || !strings.Contains(events[0], "ShiplogPartial") || !strings.Contains(events[0], reason) {
			t.Errorf("events %q", events)
		}
		after(5 * time.Minute)
		if n := testutil.ToFloat64(a.waiting); n != 0 {
			t.Errorf("%v runs are pending", n)
		}
	})
}

// TestRecordFails: a run whose state cannot be recorded is not marked, and what it lost is told all the same.
func TestRecordFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start("")
		w.addRun("r", "build")
		w.archive("r", "build")
		storePut(w, place("r", "build").SealKey(), record.Seal{End: record.EndExited, GapCount: 1, Lost: record.Printed{Stdout: 9}})
		w.store.fail(nil, errors.New("access denied"))
		w.endRun("r", "build")
		after(time.Minute)
		w.expect(runPath("r"))
		if events := w.events(); len(events) != 1 || !strings.Contains(events[0], "ShiplogLost") {
			t.Errorf("events %q, want one of what was lost", events)
		}
		w.store.fail(nil, nil)
		after(2 * retryMost)
		w.expect(runPath("r"), "sealed=true")
	})
}

// TestAPIServerComesBack: while it refuses patches and events, nothing is given up, and all is done once.
func TestAPIServerComesBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("")
		w.addRun("r", "build")
		w.archive("r", "build")
		storePut(w, place("r", "build").SealKey(), record.Seal{End: record.EndExited, Bytes: 77})
		w.refuseWith(func(method, _ string) int {
			if method != http.MethodGet {
				return http.StatusInternalServerError
			}
			return 0
		})
		w.endRun("r", "build")
		after(time.Hour)
		w.expect(runPath("r"))
		if n := w.called("POST"); n < 10 || n > 100 {
			t.Errorf("tried %d times in an hour", n)
		}
		w.refuseWith(func(method, path string) int { // events alone are not allowed: that costs the event
			if strings.Contains(path, "/events") {
				return http.StatusForbidden
			}
			return 0
		})
		after(10 * time.Minute)
		w.expect(runPath("r"), "sealed=partial", "sealed-reason=build/a: the last 77 archive bytes are missing")
		if testutil.ToFloat64(a.done.WithLabelValues("partial")) != 1 {
			t.Error("the run is not counted once")
		}
	})
}

// TestRefusedForGood: what the API server will never take is not tried for ever, and costs nothing but the annotations of the objects that it does not take.
func TestRefusedForGood(t *testing.T) {
	for _, refused := range []struct {
		name, path string
	}{
		{"the run", runPath("r")},
		{"a TaskRun", taskPath("r-build")},
	} {
		for _, status := range []int{http.StatusBadRequest, http.StatusForbidden, http.StatusUnprocessableEntity} {
			t.Run(fmt.Sprintf("%s, %d", refused.name, status), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					a := w.start(testPage)
					w.refuseWith(func(method, path string) int {
						if method == http.MethodPatch && path == refused.path {
							return status
						}
						return 0
					})
					w.addRun("r", "build", "test")
					for _, task := range []string{"build", "test"} {
						w.archive("r", task)
						w.seal("r", task)
						a.ticketIssued(w.ticketFor("r-" + task))
					}
					w.endRun("r", "build", "test")
					after(time.Hour)
					for path, fragment := range map[string]string{runPath("r"): "", taskPath("r-build"): "#task=build", taskPath("r-test"): "#task=test"} {
						if path == refused.path {
							w.expect(path)
						} else {
							w.expect(path, "sealed=true", "logs="+testPage+"/ui/team/r-uid"+fragment)
						}
					}
					tried := w.called("PATCH " + refused.path)
					if tried < 1 || tried > 3 { // the address, and what is said at the end; once more where a look was agreed upon before
						t.Errorf("tried %d times in an hour", tried)
					}
					if n := testutil.ToFloat64(a.refused); n != float64(tried) {
						t.Errorf("%v refusals are counted, and there were %d", n, tried)
					}
					if n := testutil.ToFloat64(a.waiting) + testutil.ToFloat64(a.failures); n != 0 {
						t.Errorf("%v runs are pending, and %v failures are counted", testutil.ToFloat64(a.waiting), testutil.ToFloat64(a.failures))
					}
				})
			})
		}
	}
	t.Run("what is not true of a run that has not ended", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			w.addRun("r", "build", "test")
			for _, path := range []string{runPath("r"), taskPath("r-build"), taskPath("r-test")} {
				w.update(path, func(o object) {
					o["metadata"].(object)["annotations"] = object{contract.SealedAnnotation: "true", contract.SealedUIDAnnotation: o["metadata"].(object)["uid"]}
				})
			}
			w.refuseWith(func(method, path string) int {
				if method == http.MethodPatch && path == taskPath("r-build") {
					return http.StatusUnprocessableEntity
				}
				return 0
			})
			w.start("")
			after(time.Minute)
			w.expect(taskPath("r-build"), "sealed=true")
			w.expect(taskPath("r-test"))
			w.expect(runPath("r"))
		})
	})
	t.Run("another address than before", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			w.addRun("r", "build")
			for _, path := range []string{runPath("r"), taskPath("r-build")} {
				w.update(path, func(o object) {
					o["metadata"].(object)["annotations"] = object{contract.SealedAnnotation: "true", contract.SealedUIDAnnotation: o["metadata"].(object)["uid"]}
				})
			}
			w.endRun("r", "build")
			w.refuseWith(func(method, path string) int {
				if method == http.MethodPatch && path == taskPath("r-build") {
					return http.StatusUnprocessableEntity
				}
				return 0
			})
			w.start(testPage)
			after(time.Minute)
			w.expect(taskPath("r-build"), "sealed=true")
			w.expect(runPath("r"), "sealed=true", "logs="+testPage+"/ui/team/r-uid")
		})
	})
}

// lines keeps what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// count is how many lines have this in them.
func (l *lines) count(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

// TestNoPatch: without annotations, be it that the verb patch is missing or that the API server is in trouble, states are recorded and losses told all the same.
func TestNoPatch(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		after  time.Duration
		// pending is how many runs wait then.
		pending float64
		// most is how many patches there may be.
		most int
	}{
		{name: "forbidden", status: http.StatusForbidden, after: 5 * time.Hour, most: 50},
		{name: "in trouble", status: http.StatusInternalServerError, after: time.Minute, pending: 11, most: 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				said := &lines{}
				a := w.startLogging(testPage, slog.NewTextHandler(said, nil))
				w.refuseWith(func(method, _ string) int {
					if method == http.MethodPatch {
						return c.status
					}
					return 0
				})
				names := []string{"deleted"}
				for i := range 10 {
					names = append(names, fmt.Sprintf("r%d", i))
				}
				for _, name := range names {
					w.addRun(name, "build")
					w.archive(name, "build")
					a.ticketIssued(w.ticketFor(name + "-build"))
					storePut(w, place(name, "build").SealKey(), record.Seal{End: record.EndExited, GapCount: 1, Lost: record.Printed{Stdout: 9}})
				}
				after(time.Second)
				for _, name := range names {
					w.endRun(name, "build")
				}
				w.delete(runPath("deleted"))
				w.delete(taskPath("deleted-build"))
				after(c.after)
				for _, name := range names {
					if got := w.runRecord(name); got.State != record.Succeeded {
						t.Errorf("run.json of %s says %q, want %q", name, got.State, record.Succeeded)
					}
				}
				// The one that is deleted may have got its event before.
				events := slices.DeleteFunc(w.events(), func(e string) bool { return strings.HasPrefix(e, "PipelineRun deleted ") })
				if len(events) != 10 || !strings.Contains(events[0], "ShiplogLost") {
					t.Errorf("events %q, want one for each of the runs that are there", events)
				}
				if n := testutil.ToFloat64(a.waiting); n != c.pending {
					t.Errorf("%v runs are pending, want %v", n, c.pending)
				}
				if n := w.called("PATCH"); n > c.most {
					t.Errorf("%d patches, want at most %d", n, c.most)
				}
				if n := said.count("level=WARN"); c.status == http.StatusForbidden && n != 2 {
					t.Errorf("%d warnings, want one for each kind:\n%s", n, said.text.String())
				}
			})
		})
	}
}

// TestDeletedRun: a pruner may delete a run while we are at it. Its state is recorded all the same.
func TestDeletedRun(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start(testPage)
		down := errors.New("no route to the store")
		w.addRun("r", "build")
		w.archive("r", "build")
		after(time.Second) // one that ended before the watch knew it is found by its object alone
		w.store.fail(down, down)
		w.endRun("r", "build")
		after(time.Second)
		w.delete(runPath("r"))
		w.delete(taskPath("r-build"))
		after(time.Minute)
		w.store.fail(nil, nil)
		after(10 * time.Minute)
		if got := w.runRecord("r"); got.State != record.Succeeded {
			t.Errorf("run.json says %q, want %q", got.State, record.Succeeded)
		}
		if n := w.called(""); n != 0 {
			t.Errorf("%d requests to change what is gone", n)
		}
		if n := testutil.ToFloat64(a.waiting); n != 0 {
			t.Errorf("%v runs are pending", n)
		}
		// Another one of that name is another run.
		w.put(runPath("r"), func() object { o := created("PipelineRun", "r"); o["metadata"].(object)["uid"] = "second"; return o }())
		w.end(runPath("r"), "True", "Succeeded")
		after(time.Minute)
		w.expect(runPath("r"))
	})
}

// TestDeletedRunsAreBounded: of runs that are deleted while the store is away, no more than so many are kept.
func TestDeletedRunsAreBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("")
		down := errors.New("no route to the store")
		w.store.fail(down, down)
		for i := range maxPending + 10 {
			run := &runObject{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: fmt.Sprint(i), UID: types.UID(fmt.Sprint(i))}, owner: pipelineRunOwner, ending: ending{state: record.Succeeded, completed: time.Now()}}
			a.changed(nil, run)
			a.changed(run, nil)
		}
		after(10 * time.Second)
		if n := testutil.ToFloat64(a.waiting); n != maxPending {
			t.Errorf("%v runs are pending, want %d", n, maxPending)
		}
		w.store.fail(nil, nil)
		after(2 * retryMost)
		if n := testutil.ToFloat64(a.waiting); n != 0 {
			t.Errorf("%v runs are pending", n)
		}
	})
}

// TestAnotherOfItsName: a run that was deleted and made anew behind our back does not get what its predecessor earned.
func TestAnotherOfItsName(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("")
		w.addRun("r", "build")
		after(time.Second)
		old := a.watch.get(runKey{pipelineRunOwner, "team", "r", "r-uid"})
		if old == nil {
			t.Fatal("the watch does not know the run")
		}
		w.delete(runPath("r"))
		anew := created("PipelineRun", "r")
		anew["metadata"].(object)["uid"] = "second"
		w.put(runPath("r"), anew)
		if changed, err := a.annotate(t.Context(), old, map[string]string{contract.SealedAnnotation: contract.SealedTrue}); changed || err == nil || !final(err) {
			t.Errorf("annotated: %t, %v, want an error that is final", changed, err)
		}
		w.expect(runPath("r"))
	})
}

// ticketFor is what the ticket service tells of a TaskRun's pod.
func (w *world) ticketFor(taskRun string) ownedPod {
	w.mu.Lock()
	defer w.mu.Unlock()
	read := func(path string) *runObject {
		return slimOf(&unstructured.Unstructured{Object: copied(w.objects[path])})
	}
	owned := ownedPod{taskRun: read(taskPath(taskRun))}
	if by := owned.taskRun.pipelineRun; by != nil {
		owned.pipelineRun = read(runPath(by.name))
	}
	return owned
}

// TestLinks: the address is there with the first ticket, and is each object's own.
func TestLinks(t *testing.T) {
	const link = "logs=" + testPage + "/ui/team/r-uid"
	t.Run("first ticket", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			a := w.start(testPage)
			w.addRun("r", "build")
			after(time.Second)
			w.expect(runPath("r"))
			a.ticketIssued(w.ticketFor("r-build"))
			synctest.Wait()
			w.expect(runPath("r"), link)
			w.expect(taskPath("r-build"), link+"#task=build")

			// The next TaskRun inherits the PipelineRun's, which is right, and gets its own with its ticket.
			w.addTask("r", "test")
			after(time.Minute)
			w.expect(taskPath("r-test"), link)
			a.ticketIssued(w.ticketFor("r-test"))
			synctest.Wait()
			w.expect(taskPath("r-test"), link+"#task=test")

			// Tickets are renewed.
			before := w.called("PATCH")
			a.ticketIssued(w.ticketFor("r-test"))
			after(time.Minute)
			if n := w.called("PATCH"); n != before {
				t.Errorf("%d patches for a renewed ticket", n-before)
			}
			// Of the third nothing is captured.
			w.addTask("r", "windows")
			w.strip("r-windows-pod")
			w.archive("r", "build")
			w.archive("r", "test")
			w.seal("r", "build")
			w.seal("r", "test")
			w.endRun("r", "build", "test", "windows")
			after(time.Minute)
			w.expect(taskPath("r-test"), link+"#task=test", "sealed=true")
			w.expect(taskPath("r-windows"), link+"#task=windows", "sealed=missed",
				"sealed-reason=windows/a: pod r-windows-pod was not captured: "+
					"the webhook was not asked, or did not answer (no-answer)")
		})
	})
	t.Run("hostile label", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			a := w.start(testPage)
			w.addRun("r", "build")
			w.update(taskPath("r-build"), func(o object) { o["metadata"].(object)["labels"] = object{pipelineTaskLabel: "../../x?y#z"} })
			a.ticketIssued(w.ticketFor("r-build"))
			synctest.Wait()
			w.expect(taskPath("r-build"), link)
		})
	})
	t.Run("not configured", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			a := w.start("")
			w.addRun("r", "build")
			w.archive("r", "build")
			a.ticketIssued(w.ticketFor("r-build"))
			w.seal("r", "build")
			w.endRun("r", "build")
			after(time.Minute)
			w.expect(runPath("r"), "sealed=true")
		})
	})
	t.Run("another address than before", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			w.addRun("r", "build")
			for path, uid := range map[string]string{runPath("r"): "r-uid", taskPath("r-build"): "r-build-uid"} {
				w.update(path, func(o object) {
					o["metadata"].(object)["annotations"] = object{contract.SealedAnnotation: "true", contract.SealedUIDAnnotation: uid, contract.LogsAnnotation: "https://old.example.com/ui/team/r-uid"}
				})
			}
			w.endRun("r", "build")
			after(time.Hour)
			w.start(testPage)
			after(time.Minute)
			w.expect(runPath("r"), "sealed=true", link)
			w.expect(taskPath("r-build"), "sealed=true", link+"#task=build")
		})
	})
	t.Run("no longer configured", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			a := w.start(testPage)
			w.addRun("r", "build")
			a.ticketIssued(w.ticketFor("r-build"))
			synctest.Wait()
			w.start("")
			a.pageURL = ""
			w.archive("r", "build")
			w.seal("r", "build")
			w.endRun("r", "build")
			after(time.Minute)
			w.expect(runPath("r"), "sealed=true", link)
		})
	})
}

// TestLinker: what runs beside admission gives addresses, looks at no archive and marks nothing, and
// keeps no run that has ended.
func TestLinker(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, err := newLinker(w.config(), testPage, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer beside(t, a.run)()
		w.addRun("r", "build")
		w.archive("r", "build")
		w.seal("r", "build")
		after(time.Second)
		key := runKey{pipelineRunOwner, "team", "r", "r-uid"}
		if a.watch.get(key) == nil {
			t.Fatal("a run that goes on is not known")
		}
		a.ticketIssued(w.ticketFor("r-build"))
		after(time.Second)
		w.expect(runPath("r"), "logs="+testPage+"/ui/team/r-uid")
		w.expect(taskPath("r-build"), "logs="+testPage+"/ui/team/r-uid#task=build")
		w.endRun("r", "build")
		after(2 * recordSettle)
		w.expect(runPath("r"), "logs="+testPage+"/ui/team/r-uid")
		if n := len(a.watch.pipelineRuns.List()) + len(a.watch.taskRuns.List()); n != 0 {
			t.Errorf("%d runs are kept", n)
		}
		if n := testutil.ToFloat64(a.waiting); n != 0 {
			t.Errorf("%v runs are pending", n)
		}
	})
}

// TestTicketsDoNotWait: with an API server that hangs, a ticket costs nothing, and what waits is bounded.
func TestTicketsDoNotWait(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addRun("r", "build")
		owned := w.ticketFor("r-build")
		hangs := make(chan struct{})
		w.refuseWith(func(string, string) int { <-hangs; return http.StatusInternalServerError })
		a := w.start(testPage)
		begin := time.Now()
		for i := range maxPending + 10 {
			another := *owned.pipelineRun
			another.UID = types.UID(fmt.Sprintf("uid-%d", i))
			owned.pipelineRun = &another
			a.ticketIssued(owned)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("the tickets waited %s", took)
		}
		if n := testutil.ToFloat64(a.waiting); n != maxPending {
			t.Errorf("%v runs are pending, want %d", n, maxPending)
		}
		close(hangs)
	})
}

// TestForeignAnnotations: what was copied to a run or TaskRun from another one is taken away, and never counts.
func TestForeignAnnotations(t *testing.T) {
	stolen := object{contract.SealedAnnotation: "true", contract.SealedUIDAnnotation: "first-uid", contract.LogsAnnotation: testPage + "/ui/team/first-uid", "example.com/mine": "stays"}
	copyTo := func(o object) { o["metadata"].(object)["annotations"] = maps.Clone(stolen) }
	t.Run("run again", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			w.start("")
			synctest.Wait() // it has listed what is there: what it hears of before waits for firstPoll
			w.addRun("r")
			w.update(runPath("r"), copyTo)
			w.addTask("r", "build") // which Tekton gives them to
			w.archive("r", "build")
			w.expectAnnotation(runPath("r"), "example.com/mine", "stays")
			after(time.Second)
			w.expect(runPath("r"))
			w.expect(taskPath("r-build"))
			w.expectAnnotation(taskPath("r-build"), "example.com/mine", "stays")

			w.update(runPath("r"), copyTo) // Tekton writes back what it read before
			after(time.Second)
			w.expect(runPath("r"))
			w.seal("r", "build")
			w.endRun("r", "build")
			after(time.Minute)
			w.expect(runPath("r"), "sealed=true")
			w.expectAnnotation(runPath("r"), "example.com/mine", "stays")
		})
	})
	t.Run("ended before it was seen", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			for _, name := range []string{"archived", "not-archived"} {
				w.addRun(name)
				w.update(runPath(name), copyTo)
				w.addTask(name, "build")
				w.delete(podPathOf(name + "-build-pod"))
				w.endRun(name, "build")
			}
			w.archive("archived", "build")
			after(time.Hour)
			w.start("")
			after(time.Minute)
			w.expectAnnotation(runPath("archived"), contract.SealedUIDAnnotation, "first-uid") // until it is known what is true of it
			after(10 * time.Minute)
			if got := w.annotations(t, runPath("archived")); got["sealed"] != "partial" || got["logs"] != "" {
				t.Errorf("the run that is archived has %v", got)
			}
			w.expect(runPath("not-archived"))
			w.expect(taskPath("not-archived-build"))
		})
	})
	t.Run("address alone", func(t *testing.T) {
		for address, kept := range map[string]bool{
			testPage + "/ui/team/r-uid": true, testPage + "/ui/team/other-uid": false, testPage + "/ui/other/r-uid": false, "javascript:alert(1)": false, "": false,
		} {
			inWorld(t, func(t *testing.T, w *world) {
				w.start(testPage)
				synctest.Wait() // it has listed what is there: what it hears of before waits for firstPoll
				w.addRun("r")
				w.update(runPath("r"), func(o object) { o["metadata"].(object)["annotations"] = object{contract.LogsAnnotation: address} })
				after(time.Second)
				if _, has := w.annotations(t, runPath("r"))["logs"]; has != kept {
					t.Errorf("%q is kept: %t, want %t", address, has, kept)
				}
			})
		}
	})
}

// expectAnnotation compares one annotation of an object.
func (w *world) expectAnnotation(path, name, want string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	all, _ := w.objects[path]["metadata"].(object)["annotations"].(object)
	if all[name] != want {
		w.t.Errorf("%s of %s is %v, want %q", name, path, all[name], want)
	}
}

// TestOlderState: a request for a ticket that read the run just before its end writes its record after it.
func TestOlderState(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start("")
		w.addRun("r", "build")
		w.archive("r", "build")
		w.seal("r", "build")
		older := w.runRecord("r")
		w.endRun("r", "build")
		after(20 * time.Second) // as long as a request for a ticket may take
		if got := w.runRecord("r"); got.State != record.Succeeded {
			t.Fatalf("run.json says %q, want %q", got.State, record.Succeeded)
		}
		w.expect(runPath("r"), "sealed=true")
		storePut(w, place("r", "build").RunKey(), older)
		after(2 * time.Minute)
		want := older
		want.State, want.Reason = record.Succeeded, "Succeeded"
		got := w.runRecord("r")
		want.Started, want.Completed = got.Started, got.Completed
		if diff := gocmp.Diff(want, got); diff != "" || got.Completed.IsZero() {
			t.Errorf("run.json (-want +got):\n%s", diff)
		}
	})
}

// TestBacklog: runs that were there before are looked at one after the other, and do not hold up those that end now. Those that are done cost nothing.
func TestBacklog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const n = 200
		for i := range n {
			name := fmt.Sprintf("old-%03d", i)
			w.addRun(name)
			w.endRun(name)
			done := fmt.Sprintf("done-%03d", i)
			w.addRun(done)
			w.endRun(done)
			w.update(runPath(done), func(o object) {
				o["metadata"].(object)["annotations"] = object{contract.SealedAnnotation: "true", contract.SealedUIDAnnotation: done + "-uid"}
			})
		}
		after(time.Hour)
		a := w.start("")
		w.addRun("fresh", "build")
		w.archive("fresh", "build")
		w.seal("fresh", "build")
		after(time.Second)
		w.endRun("fresh", "build")
		after(time.Second)
		w.expect(runPath("fresh"), "sealed=true")
		if w.store.readCount() > n/2 {
			t.Errorf("%d reads after two seconds: the %d old runs are not looked at in turn", w.store.readCount(), n)
		}
		after(n*backlogPause + 2*recordSettle)
		if left := testutil.ToFloat64(a.waiting); left != 0 {
			t.Errorf("%v runs are left", left)
		}
		if w.store.readCount() < n || w.store.readCount() > n+20 {
			t.Errorf("%d reads for %d runs that are not in the archive", w.store.readCount(), n)
		}
	})
}

// TestFaultOfOurs: a panic costs a run its annotations, and neither the process nor the other runs.
func TestFaultOfOurs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.start("")
		a.archive = nil
		w.addRun("r", "build")
		w.archive("r", "build")
		w.endRun("r", "build")
		after(time.Minute)
		if n := testutil.ToFloat64(a.failures); n < 2 {
			t.Errorf("%v failures, want one for each try", n)
		}
	})
}

func TestCheckPageURL(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		bad            bool
	}{
		{name: "none"},
		{name: "host", in: "https://logs.example.com", want: "https://logs.example.com"},
		{name: "final slash", in: "https://logs.example.com/", want: "https://logs.example.com"},
		{name: "path and port", in: "http://example.com:8080/logs/", want: "http://example.com:8080/logs"},
		{name: "no scheme", in: "logs.example.com", bad: true},
		{name: "another scheme", in: "ftp://logs.example.com", bad: true},
		{name: "no host", in: "https://", bad: true},
		{name: "path alone", in: "/ui", bad: true},
		{name: "query", in: "https://logs.example.com?x=1", bad: true},
		{name: "fragment", in: "https://logs.example.com#x", bad: true},
		{name: "password", in: "https://a:b@logs.example.com", bad: true},
		{name: "control character", in: "https://logs.example.com/\n", bad: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := checkPageURL(c.in)
			if got != c.want || (err != nil) != c.bad {
				t.Errorf("%q, %v, want %q and an error: %t", got, err, c.want, c.bad)
			}
		})
	}
}
