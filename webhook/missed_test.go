package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const namespacePath = "/api/v1/namespaces/team"

// label gives the namespace shiplog's label, now.
func (w *world) label() {
	w.put(namespacePath, object{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": object{
			"name": "team", "uid": namespaceUID,
			"labels": object{contract.InjectKey: contract.InjectEnabled},
			"managedFields": []any{object{
				"manager": "kubectl-label", "operation": "Update", "time": stamp(time.Now()),
				"fieldsType": "FieldsV1",
				"fieldsV1": object{"f:metadata": object{
					"f:labels": object{"f:" + contract.InjectKey: object{}},
				}},
			}},
		},
	})
}

// annotateObject sets an annotation, as a person or Tekton does.
func (w *world) annotateObject(path, name, value string) {
	w.update(path, func(o object) {
		meta := o["metadata"].(object)
		if meta["annotations"] == nil {
			meta["annotations"] = object{}
		}
		meta["annotations"].(object)[name] = value
	})
}

// annotatePod annotates the pod of the run "r".
func (w *world) annotatePod(name, value string) {
	w.annotateObject(podPathOf("r-build-pod"), name, value)
}

// logs are the states of a run's logs as a reader of the archive finds them, as "task/step state:
// why".
func (w *world) logs(run layout.Run) (all []string) {
	w.t.Helper()
	tree, err := backend.New(w.store).Tree(w.t.Context(), backend.Target{Run: run})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if tree.Record == nil || tree.Record.State == "" {
		w.t.Errorf("run.json %+v, want one that says how the run ended", tree.Record)
	}
	for place := range tree.Containers() {
		c := place.Container
		all = append(all, fmt.Sprintf("%s %s: %s", placeName(place), c.Status, c.Why))
	}
	return all
}

const (
	noAnswer = "pod r-build-pod was not captured: " +
		"the webhook was not asked, or did not answer (no-answer)"
	podGone = "nothing of pod r-build-pod is in the archive, and the pod is gone (pod-gone)"
)

// TestMissed ends runs of which pods were not captured, with two replicas.
func TestMissed(t *testing.T) {
	for _, c := range []struct {
		name string
		// unlabelled: the namespace does not have shiplog's label when the run begins.
		unlabelled bool
		// prepare changes the run "r", whose task is "build", before it ends. Its pod was not captured.
		prepare func(*world)
		// sealed and task are what the annotation of the run and of its TaskRun says at last.
		sealed, task string
		event        string // a part of it
		logs         []string
		steps        float64 // that are counted
	}{
		{
			name: "the webhook was away", sealed: "missed", task: "missed", steps: 1,
			event: "PipelineRun r ShiplogMissed: logs of steps are not in the archive; their " +
				"pods had the only copy: build/a: " + noAnswer,
			logs: []string{"build/a missed: " + noAnswer},
		},
		{
			name: "the pod says why", sealed: "missed", task: "missed", steps: 1,
			prepare: func(w *world) {
				w.annotatePod(contract.SkippedAnnotation, "pod=shipper-cannot-start")
			},
			event: "build/a: not captured in pod r-build-pod: shipper-cannot-start",
			logs:  []string{"build/a missed: not captured in pod r-build-pod: shipper-cannot-start"},
		},
		{
			name: "the pod says what a tenant typed", sealed: "missed", task: "missed", steps: 1,
			prepare: func(w *world) {
				w.annotatePod(contract.SkippedAnnotation, "pod="+strings.Repeat("x ", 9000))
			},
			event: "build/a: not captured in pod r-build-pod: unknown",
			logs:  []string{"build/a missed: not captured in pod r-build-pod: unknown"},
		},
		{name: "no label", unlabelled: true},
		{
			name: "the label came behind the run's pods", unlabelled: true,
			prepare: func(w *world) { after(time.Minute); w.label() },
		},
		{
			name: "the label came between two pods of the run", unlabelled: true,
			sealed: "missed", task: "missed", steps: 2,
			prepare: func(w *world) {
				after(time.Minute)
				w.label()
				w.addTask("r", "test")
				w.strip("r-test-pod")
				w.end(taskPath("r-test"), "True", "Succeeded")
			},
			event: "ShiplogMissed",
			logs: []string{
				"build/a missed: " + noAnswer,
				"test/a missed: " + strings.ReplaceAll(noAnswer, "build", "test"),
			},
		},
		{
			name: "the label was taken away, and others were captured", unlabelled: true,
			sealed: "missed", task: "missed", steps: 1,
			prepare: func(w *world) {
				w.addTask("r", "test")
				w.archive("r", "test")
				w.seal("r", "test")
				w.end(taskPath("r-test"), "True", "Succeeded")
			},
			event: "ShiplogMissed",
			logs: []string{
				"build/a missed: " + noAnswer, "test/a verified: printed nothing, exit code 0",
				"test/sidecar-x not captured: no-command",
			},
		},
		{
			name:    "the TaskRun opted out",
			prepare: func(w *world) { w.annotateObject(taskPath("r-build"), contract.InjectKey, "false") },
		},
		{
			name:    "the run opted out",
			prepare: func(w *world) { w.annotateObject(runPath("r"), contract.InjectKey, "false") },
		},
		{
			name:    "the pod opted out",
			prepare: func(w *world) { w.annotatePod(contract.InjectKey, "false") },
		},
		{
			name: "the TaskRun opted out, and another is captured", sealed: "true",
			prepare: func(w *world) {
				w.annotateObject(taskPath("r-build"), contract.InjectKey, "false")
				w.addTask("r", "test")
				w.archive("r", "test")
				w.seal("r", "test")
				w.end(taskPath("r-test"), "True", "Succeeded")
			},
			logs: []string{
				"test/a verified: printed nothing, exit code 0", "test/sidecar-x not captured: no-command",
			},
		},
		{
			name: "the pod is gone", sealed: "missed", task: "missed", steps: 1,
			prepare: func(w *world) { w.delete(podPathOf("r-build-pod")) },
			event:   "build/a: " + podGone, logs: []string{"build/a missed: " + podGone},
		},
		{
			name: "another's pod has the name", sealed: "missed", task: "missed", steps: 1,
			prepare: func(w *world) {
				w.addPod("r-build-pod", contract.TeePath)
				w.update(podPathOf("r-build-pod"), func(o object) {
					meta := o["metadata"].(object)
					meta["uid"] = "another"
					meta["ownerReferences"].([]any)[0].(object)["uid"] = "another"
				})
			},
			event: "build/a: " + podGone, logs: []string{"build/a missed: " + podGone},
		},
		{
			name: "it never had a pod",
			prepare: func(w *world) {
				w.delete(podPathOf("r-build-pod"))
				w.update(taskPath("r-build"), func(o object) { o["status"] = object{} })
			},
		},
		{
			name: "no step of the pod began",
			prepare: func(w *world) {
				w.update(taskPath("r-build"), func(o object) {
					waiting := object{"reason": "ImagePullBackOff"}
					o["status"].(object)["steps"] = []any{object{"name": "a", "waiting": waiting}}
				})
			},
		},
		{
			name: "two tries, none of them captured", sealed: "missed", task: "missed", steps: 2,
			prepare: func(w *world) {
				w.addPod("r-build-pod-retry1", contract.TeePath)
				w.strip("r-build-pod-retry1")
				w.delete(podPathOf("r-build-pod"))
				w.update(taskPath("r-build"), func(o object) {
					first := copied(o["status"].(object))
					o["status"].(object)["retriesStatus"] = []any{first}
					o["status"].(object)["podName"] = "r-build-pod-retry1"
				})
			},
			event: "build/a: " + podGone + "; build retry 1/a: pod r-build-pod-retry1 was not captured",
			logs: []string{
				"build/a missed: " + podGone,
				"build retry 1/a missed: " + strings.ReplaceAll(noAnswer, "build-pod", "build-pod-retry1"),
			},
		},
		{
			// The guard evicts a pod that waits for the shipper, and Tekton makes it anew under its name.
			name:   "a pod of that name is in the archive, and was replaced",
			sealed: "partial", task: "partial", steps: 1,
			prepare: func(w *world) {
				w.archive("r", "build")
				w.update(podPathOf("r-build-pod"), func(o object) {
					meta := o["metadata"].(object)
					meta["uid"], meta["creationTimestamp"] = "second", stamp(time.Now().Add(time.Second))
				})
			},
			event: "build retry 1/a: " + noAnswer,
			logs: []string{
				"build/a partial: the pod was last heard of at 2000-01-01T00:01:00Z; " +
					"whether it had started is unknown",
				"build/sidecar-x not captured: no-command",
				"build retry 1/a missed: " + noAnswer,
			},
		},
		{
			name: "one step of a pod was left alone", sealed: "missed", task: "missed", steps: 1,
			prepare: func(w *world) {
				w.archive("r", "build")
				w.seal("r", "build")
				storePut(w, place("r", "build").PodKey(), record.Pod{
					PodName: "r-build-pod", TaskRun: "r-build", PipelineTask: "build",
					Containers: []record.Container{
						{Name: "step-a", Kind: record.Step, Captured: true},
						{Name: "step-tiny", Kind: record.Step, Skipped: "memory-limit"},
					},
				})
			},
			event: "build/tiny: not captured in pod r-build-pod: memory-limit",
			logs: []string{
				"build/a verified: printed nothing, exit code 0",
				"build/tiny missed: not captured in pod r-build-pod: memory-limit",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				if !c.unlabelled {
					w.label()
					after(time.Minute)
				}
				one, two := w.start(""), w.start("")
				w.addRun("r", "build")
				w.strip("r-build-pod")
				if c.prepare != nil {
					c.prepare(w)
				}
				w.endRun("r", "build")
				after(15 * time.Minute)
				if got := w.annotations(t, runPath("r"))["sealed"]; got != c.sealed {
					t.Errorf("sealed is %q, want %q", got, c.sealed)
				}
				if got := w.annotations(t, taskPath("r-build"))["sealed"]; got != c.task {
					t.Errorf("the TaskRun's sealed is %q, want %q", got, c.task)
				}
				if diff := gocmp.Diff(c.logs, w.logs(place("r", "build").Run)); diff != "" {
					t.Errorf("logs in the archive (-want +got):\n%s", diff)
				}
				switch events := w.events(); {
				case c.event == "" && len(events) == 0:
				case c.event == "", len(events) != 1, !strings.Contains(events[0], c.event):
					t.Errorf("events %q, want one with %q", events, c.event)
				}
				// A replica that looks again before its watch has told it of its own mark counts again.
				counted := testutil.ToFloat64(one.missed) + testutil.ToFloat64(two.missed)
				if counted < c.steps || c.steps == 0 && counted > 0 {
					t.Errorf("%v steps are counted, want at least %v", counted, c.steps)
				}
				if n := testutil.ToFloat64(one.waiting) + testutil.ToFloat64(two.waiting); n != 0 {
					t.Errorf("%v runs are pending when all is done", n)
				}
			})
		})
	}
}

// TestMissedAlone: a TaskRun without PipelineRun is found by its name, its UID and its pod's name,
// and in the list of runs.
func TestMissedAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.label()
		w.start(testPage)
		w.addTask("", "alone")
		w.strip("alone-pod")
		w.end(taskPath("alone"), "False", "Failed")
		after(time.Minute)
		why := strings.ReplaceAll(noAnswer, "r-build-pod", "alone-pod")
		w.expect(taskPath("alone"), "sealed=missed", "sealed-reason=alone/a: "+why,
			"logs="+testPage+"/ui/team/alone-uid")
		archive := backend.New(w.store)
		for _, ref := range []string{"alone", "alone-uid", "alone-pod"} {
			target, err := archive.Find(t.Context(), "team", ref)
			if err != nil {
				t.Fatal(err)
			}
			if got := w.logs(target.Run); !slices.Equal(got, []string{"alone/a missed: " + why}) {
				t.Errorf("%s has the logs %q", ref, got)
			}
		}
		var runs []string
		for x, err := range archive.Runs(t.Context(), "team", nil, 0) {
			if err != nil {
				t.Fatal(err)
			}
			runs = append(runs, x.Name)
		}
		if !slices.Equal(runs, []string{"alone"}) {
			t.Errorf("runs %q", runs)
		}
	})
}

// TestMissedIsRecordedFirst: as long as the archive cannot say that a log was missed, the run does
// not get the mark that a pruner waits for; people are told at once.
func TestMissedIsRecordedFirst(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.label()
		w.start("")
		w.addRun("r", "build")
		w.strip("r-build-pod")
		w.store.fail(nil, errors.New("access denied"))
		w.endRun("r", "build")
		after(time.Hour)
		w.expect(runPath("r"))
		const told = "build: nothing of pod r-build-pod is in the archive"
		if events := w.events(); len(events) != 1 || !strings.Contains(events[0], told) {
			t.Errorf("events %q, want one with %q", events, told)
		}
		w.store.fail(nil, nil)
		after(2 * retryMost)
		w.expect(runPath("r"), "sealed=missed", "sealed-reason=build/a: "+noAnswer)
	})
}

// TestLateShipper: a pod that was captured and of which nothing came is missed after a while, and a
// shipper that comes later makes good what was said of it in the archive.
func TestLateShipper(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.start("")
		w.addRun("r", "build")
		w.endRun("r", "build")
		after(certainAfter - time.Second)
		w.expect(runPath("r"))
		run := place("r", "build").Run
		if got := w.logs(run); got != nil {
			t.Errorf("logs %q before it is certain", got)
		}
		after(2 * time.Minute)
		const why = "nothing of pod r-build-pod is in the archive, " +
			"though shiplog was in it (nothing-arrived)"
		w.expect(runPath("r"), "sealed=missed", "sealed-reason=build/a: "+why)
		if got := w.logs(run); !slices.Equal(got, []string{"build/a missed: " + why}) {
			t.Errorf("logs %q", got)
		}
		w.seal("r", "build")
		whole := []string{"build/a verified: printed nothing, exit code 0"}
		if got := w.logs(run); !slices.Equal(got, whole) {
			t.Errorf("logs %q once the shipper has come", got)
		}
	})
}

// TestReadLabel reads since when a namespace is labelled.
func TestReadLabel(t *testing.T) {
	first := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	entry := func(at time.Time, fields string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{
			Time: &metav1.Time{Time: at}, FieldsV1: &metav1.FieldsV1{Raw: []byte(fields)},
		}
	}
	const sets = `{"f:metadata":{"f:labels":{".":{},"f:shiplog.dev/inject":{}}}}`
	on := map[string]string{contract.InjectKey: contract.InjectEnabled}
	for _, c := range []struct {
		name   string
		labels map[string]string
		fields []metav1.ManagedFieldsEntry
		since  time.Time
		on     bool
	}{
		{name: "no label"},
		{name: "another value", labels: map[string]string{contract.InjectKey: "true"}},
		{name: "nothing is noted", labels: on, on: true},
		{
			name: "set once", labels: on, since: first, on: true,
			fields: []metav1.ManagedFieldsEntry{entry(first, sets)},
		},
		{
			name: "set by two", labels: on, since: first, on: true,
			fields: []metav1.ManagedFieldsEntry{entry(first.Add(time.Hour), sets), entry(first, sets)},
		},
		{
			name: "other fields before", labels: on, since: first.Add(time.Hour), on: true,
			fields: []metav1.ManagedFieldsEntry{
				entry(first, `{"f:metadata":{"f:labels":{"f:team":{}}}}`),
				entry(first, `{"f:metadata":{"f:annotations":{"f:shiplog.dev/inject":{}}}}`),
				entry(first.Add(time.Hour), sets),
			},
		},
		{
			name: "what cannot be read", labels: on, on: true,
			fields: []metav1.ManagedFieldsEntry{
				entry(first, `[`), {FieldsV1: &metav1.FieldsV1{Raw: []byte(sets)}}, {},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Labels: c.labels, ManagedFields: c.fields}}
			if got := readLabel(ns); !got.since.Equal(c.since) || got.on != c.on {
				t.Errorf("%+v; want %s, %t", got, c.since, c.on)
			}
		})
	}
}

// TestOurs: a run that the archive has nothing of is shiplog's business where it is in one of its
// pods, or where one was made under the label.
func TestOurs(t *testing.T) {
	at := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	pod := func(made time.Time, command string) missedPod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(made)}}
		p.Spec.Containers = []corev1.Container{{Name: "step-a", Command: []string{command}}}
		if command == contract.TeePath {
			p.Spec.InitContainers = []corev1.Container{{Name: contract.ShipperContainer}}
		}
		return missedPod{object: p}
	}
	gone := func(made time.Time) missedPod {
		task := &runObject{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(made)}}
		return missedPod{task: task}
	}
	const bare = "/tekton/bin/entrypoint"
	labelled := namespaceLabel{on: true, since: at}
	for _, c := range []struct {
		name  string
		pods  []missedPod
		label namespaceLabel
		want  bool
	}{
		{"no pods", nil, labelled, false},
		{"no label", []missedPod{pod(at, bare), gone(at)}, namespaceLabel{}, false},
		{"shiplog is in it", []missedPod{pod(at, contract.TeePath)}, namespaceLabel{}, true},
		{"made with the label", []missedPod{pod(at, bare)}, labelled, true},
		{"made before", []missedPod{pod(at.Add(-time.Second), bare)}, labelled, false},
		{"one before, one behind", []missedPod{gone(at.Add(-1)), pod(at, bare)}, labelled, true},
		{"gone, and made with the label", []missedPod{gone(at)}, labelled, true},
		{"gone, and made before", []missedPod{gone(at.Add(-time.Second))}, labelled, false},
		{"the label was always there", []missedPod{pod(at, bare)}, namespaceLabel{on: true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ours(c.pods, c.label); got != c.want {
				t.Errorf("%t, want %t", got, c.want)
			}
		})
	}
}

// TestMissedContainers: what pod.json says of the containers of a pod that the archive has nothing
// of.
func TestMissedContainers(t *testing.T) {
	step := func(captured bool, skipped string) record.Container {
		return record.Container{Name: "step-a", Kind: record.Step, Captured: captured, Skipped: skipped}
	}
	for _, c := range []struct {
		name     string
		injected bool
		in, want record.Container
	}{
		{"captured, and nothing came", true, step(true, ""), step(false, "nothing-arrived")},
		{"a step is left alone", true, step(false, "memory-limit"), step(false, "memory-limit")},
		{"changed by others behind us", true, step(false, "unknown"), step(false, "unknown")},
		{"the pod says why", false, step(false, "limit-range"), step(false, "limit-range")},
		{"the pod says nothing", false, step(false, "unknown"), step(false, "no-answer")},
		{"the pod says what no webhook writes", false, step(false, "\x1b[31m"), step(false, "unknown")},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := missedContainers([]record.Container{c.in}, c.injected)
			if diff := gocmp.Diff([]record.Container{c.want}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestStepsOf reads the steps of a pod that is gone out of its TaskRun, whatever shape that has.
func TestStepsOf(t *testing.T) {
	step := func(name string) record.Container {
		return record.Container{Name: name, Kind: record.Step, Skipped: record.SkippedPodGone}
	}
	named := object{"name": "a", "container": "step-a"}
	for _, c := range []struct {
		name   string
		status any
		want   []record.Container
	}{
		{name: "no status"},
		{name: "a status that is none", status: "odd"},
		{
			name:   "the last try",
			status: object{"podName": "p", "steps": []any{named, object{"name": "b"}}},
			want:   []record.Container{step("step-a"), step("step-b")},
		},
		{
			name: "an earlier try",
			status: object{
				"podName":       "p-retry1",
				"steps":         []any{object{"container": "step-z"}},
				"retriesStatus": []any{"odd", object{"podName": "p", "steps": []any{named}}},
			},
			want: []record.Container{step("step-a")},
		},
		{
			name:   "steps that are none",
			status: object{"podName": "p", "steps": []any{"odd", object{"container": "../x"}, named, named}},
			want:   []record.Container{step("step-a")},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := stepsOf(&unstructured.Unstructured{Object: object{"status": c.status}}, "p")
			if diff := gocmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestInTree tells pods of one name apart by their UIDs, as long as they are there.
func TestInTree(t *testing.T) {
	pods := func(all ...backend.Pod) *backend.Tree {
		return &backend.Tree{TaskRuns: []backend.TaskRun{{Name: "r-build", Pods: all}}}
	}
	known := backend.Pod{Key: layout.Pod{PodUID: "one"}, Record: &record.Pod{PodName: "p"}}
	unknown := backend.Pod{Key: layout.Pod{PodUID: "one"}}
	pod := func(uid string) *corev1.Pod {
		p := &corev1.Pod{}
		p.UID = "one"
		if uid != "" {
			p.UID = "two"
		}
		return p
	}
	for _, c := range []struct {
		name          string
		tree          *backend.Tree
		taskRun, pods string
		pod           *corev1.Pod
		want          bool
	}{
		{"nothing", &backend.Tree{}, "r-build", "p", nil, false},
		{"it is there", pods(known), "r-build", "p", pod(""), true},
		{"another TaskRun's", pods(known), "r-test", "p", nil, false},
		{"another of its name is there", pods(known), "r-build", "p", pod("two"), false},
		{"it is gone", pods(known), "r-build", "p", nil, true},
		{"it is gone, and the archive has another", pods(known), "r-build", "p-retry1", nil, false},
		{"it is gone, and one has no record", pods(unknown), "r-build", "p", nil, true},
		{"another than the one without a record", pods(unknown), "r-build", "p", pod("two"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := inTree(c.tree, c.taskRun, c.pods, c.pod); got != c.want {
				t.Errorf("%t, want %t", got, c.want)
			}
		})
	}
}
