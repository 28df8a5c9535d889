package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// realRuns makes and changes runs as Tekton does.
type realRuns struct {
	client dynamic.Interface
	t      *testing.T
}

func (r realRuns) of(kind string) dynamic.ResourceInterface {
	resource := taskRunOwner.resource
	if kind == pipelineRunOwner.kind {
		resource = pipelineRunOwner.resource
	}
	return r.client.Resource(tektonV1.WithResource(resource)).Namespace("runs")
}

// create makes one of a minimal spec.
func (r realRuns) create(kind, name string, meta object) *unstructured.Unstructured {
	r.t.Helper()
	spec := object{"taskRef": object{"name": "t"}}
	if kind == pipelineRunOwner.kind {
		spec = object{"pipelineRef": object{"name": "p"}}
	}
	meta["name"], meta["namespace"] = name, "runs"
	made, err := r.of(kind).Create(r.t.Context(), &unstructured.Unstructured{Object: object{"apiVersion": "tekton.dev/v1", "kind": kind, "metadata": meta, "spec": spec}}, metav1.CreateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return made
}

// status sets fields of the status.
func (r realRuns) status(kind, name string, fields object) *unstructured.Unstructured {
	r.t.Helper()
	current, err := r.of(kind).Get(r.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	for field, v := range fields {
		if err := unstructured.SetNestedField(current.Object, v, "status", field); err != nil {
			r.t.Fatal(err)
		}
	}
	updated, err := r.of(kind).UpdateStatus(r.t.Context(), current, metav1.UpdateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return updated
}

// ended is the status of a run that has ended well.
func ended() object {
	now := stamp(time.Now())
	return object{"startTime": now, "completionTime": now, "conditions": []any{object{"type": "Succeeded", "status": "True", "reason": "Completed", "lastTransitionTime": now}}}
}

func (r realRuns) annotations(kind, name string) map[string]string {
	r.t.Helper()
	o, err := r.of(kind).Get(r.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return o.GetAnnotations()
}

// runsAreAnnotated follows a run on a real API server with Tekton's own definitions and the rights of the manifest, with two replicas, from its first ticket to the event on what it lost.
func runsAreAnnotated(t *testing.T, api realAPI) {
	api.namespace(t, "runs")
	runs := realRuns{api.Tekton(t), t}
	store := &memoryStore{}
	put := func(key string, body []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Put(t.Context(), key, body); err != nil {
			t.Fatal(err)
		}
	}
	var stops []func()
	run := func(a *annotator) {
		stop := beside(t, a.run)
		stops = append(stops, stop)
		t.Cleanup(stop)
	}
	start := func(config *rest.Config) *annotator {
		a, err := newAnnotator(config, store, testPage, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		run(a)
		return a
	}
	one := start(api.asAnnotator(t))

	// A run that somebody makes again with all its annotations.
	pr := runs.create("PipelineRun", "r", object{"annotations": object{
		"example.com/mine": "stays", contract.SealedAnnotation: "true", contract.SealedUIDAnnotation: "another", contract.LogsAnnotation: testPage + "/ui/runs/another",
	}})
	until(t, "what was copied to be taken away", func() bool {
		a := runs.annotations("PipelineRun", "r")
		return len(a) == 1 && a["example.com/mine"] == "stays"
	})
	tr := runs.create("TaskRun", "r-build", object{
		"labels":          object{pipelineTaskLabel: "build"},
		"ownerReferences": []any{object{"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": "r", "uid": string(pr.GetUID()), "controller": true}},
	})
	runs.status("PipelineRun", "r", object{"childReferences": []any{object{"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "name": "r-build", "pipelineTaskName": "build"}}})
	linker, err := newLinker(api.asWebhook(t), testPage, prometheus.NewRegistry(),
		slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	run(linker)
	linker.ticketIssued(ownedPod{taskRun: slimOf(tr), pipelineRun: slimOf(pr)})
	link := contract.Page{Namespace: "runs", UID: string(pr.GetUID())}.Address(testPage)
	until(t, "both to have their address", func() bool {
		return runs.annotations("PipelineRun", "r")[contract.LogsAnnotation] == link && runs.annotations("TaskRun", "r-build")[contract.LogsAnnotation] == link+"#task=build"
	})

	place := layout.Container{Pod: layout.Pod{Run: layout.Run{Namespace: "runs", Name: "r", UID: string(pr.GetUID())}, TaskRun: "r-build", PodUID: "pod-uid"}, Container: "step-a"}
	runJSON, err := record.Encode(record.Run{Kind: layout.PipelineRun, Namespace: "runs", Name: "r", UID: place.UID, Created: time.Now()})
	put(place.RunKey(), runJSON, err)
	podJSON, err := record.Encode(record.Pod{PodName: "r-build-pod", TaskRun: "r-build", PipelineTask: "build", Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}}})
	put(place.PodKey(), podJSON, err)
	sealJSON, err := record.Encode(record.Seal{End: record.EndExited, GapCount: 1, Lost: record.Printed{Stdout: 9}})
	put(place.SealKey(), sealJSON, err)

	two := start(api.asAnnotator(t)) // which lists what the other one saw come
	until(t, "both replicas to know the runs", func() bool { return one.watch.synced() && two.watch.synced() })
	fields := ended()
	fields["podName"] = "r-build-pod"
	runs.status("TaskRun", "r-build", fields)
	runs.status("PipelineRun", "r", ended())
	for kind, name := range map[string]string{"PipelineRun": "r", "TaskRun": "r-build"} {
		until(t, kind+" to be sealed", func() bool { return runs.annotations(kind, name)[contract.SealedAnnotation] == contract.SealedTrue })
	}
	if a := runs.annotations("PipelineRun", "r"); a[contract.SealedUIDAnnotation] != string(pr.GetUID()) || a["example.com/mine"] != "stays" || a[contract.LogsAnnotation] != link {
		t.Errorf("annotations of the PipelineRun: %v", a)
	}
	body, err := store.Get(t.Context(), place.RunKey())
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := record.Decode[record.Run](text); err != nil || got.State != record.Succeeded || got.Reason != "Completed" || got.Completed.IsZero() {
		t.Errorf("run.json %s, %v, want the state", text, err)
	}
	until(t, "both replicas to have seen that it is done", func() bool {
		for _, a := range []*annotator{one, two} {
			run := a.watch.get(runKey{pipelineRunOwner, "runs", "r", pr.GetUID()})
			if run != nil && !marked(run) {
				return false
			}
		}
		return true
	})
	events, err := api.Core.CoreV1().Events("runs").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(events.Items) != 1 || events.Items[0].InvolvedObject.UID != pr.GetUID() || events.Items[0].Reason != "ShiplogLost" || !strings.Contains(events.Items[0].Message, "build/a: 9 bytes lost") {
		t.Errorf("events %+v, want one on the PipelineRun", events.Items)
	}

	t.Run("another one of the name", func(t *testing.T) {
		old := slimOf(pr)
		old.UID = "another"
		if changed, err := two.annotate(t.Context(), old, map[string]string{contract.SealedReasonAnnotation: "x"}); changed || err == nil || !final(err) {
			t.Errorf("annotated: %t, %v, want an error that is final", changed, err)
		}
	})
	t.Run("pages", func(t *testing.T) {
		for i := range runPage + 5 {
			runs.create("TaskRun", fmt.Sprintf("many-%d", i), object{})
		}
		pages := &pageCounter{}
		conf := api.asAnnotator(t)
		conf.Wrap(func(next http.RoundTripper) http.RoundTripper { pages.next = next; return pages })
		client, err := dynamic.NewForConfig(conf)
		if err != nil {
			t.Fatal(err)
		}
		list, err := listSlim(t.Context(),
			client.Resource(tektonV1.WithResource(taskRunOwner.resource)),
			metav1.ListOptions{ResourceVersion: "0"}, func(*runObject) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != runPage+6 || list.ResourceVersion == "" || pages.n != 2 {
			t.Errorf("%d TaskRuns at version %q in %d requests, want %d in 2", len(list.Items), list.ResourceVersion, pages.n, runPage+6)
		}
	})
	t.Run("a pod that was not captured", func(t *testing.T) {
		missedPodsAreRecorded(t, api, runs, store)
	})
	t.Run("without the verb patch", func(t *testing.T) {
		for _, stop := range stops {
			stop()
		}
		three := start(api.withoutPatch(t))
		// What ends before it is listed is found by its PipelineRun's status, which this one has not.
		until(t, "the runs to be listed", three.watch.synced)
		pr := runs.create("PipelineRun", "unpatched", object{})
		tr := runs.create("TaskRun", "unpatched-build", object{
			"ownerReferences": []any{object{"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": "unpatched", "uid": string(pr.GetUID()), "controller": true}},
		})
		step := place
		step.Run, step.TaskRun = layout.Run{Namespace: "runs", Name: "unpatched", UID: string(pr.GetUID())}, "unpatched-build"
		runJSON, err := record.Encode(record.Run{Kind: layout.PipelineRun, Namespace: "runs", Name: "unpatched", UID: step.UID, Created: time.Now()})
		put(step.RunKey(), runJSON, err)
		put(step.SealKey(), sealJSON, nil)
		three.ticketIssued(ownedPod{taskRun: slimOf(tr), pipelineRun: slimOf(pr)})
		fields := ended()
		fields["podName"] = "unpatched-build-pod"
		runs.status("TaskRun", "unpatched-build", fields)
		runs.status("PipelineRun", "unpatched", ended())
		until(t, "the event on what was lost", func() bool {
			event, err := api.Core.CoreV1().Events("runs").Get(t.Context(), "shiplog-lost-"+string(pr.GetUID()), metav1.GetOptions{})
			return err == nil && event.Reason == "ShiplogLost"
		})
		if got, err := three.readRun(t.Context(), step.RunKey()); err != nil || got.State != record.Succeeded {
			t.Errorf("run.json says %q, %v, want %q", got.State, err, record.Succeeded)
		}
		// The addresses of both, and what is said of both at the end.
		until(t, "all to be refused", func() bool { return testutil.ToFloat64(three.refused) >= 4 })
		if a := runs.annotations("PipelineRun", "unpatched"); len(a) > 0 {
			t.Errorf("annotations %v", a)
		}
	})
}

// missedPodsAreRecorded: the API server notes when a namespace was labelled, and a run whose pod
// was made since then without shiplog is marked and in the archive.
func missedPodsAreRecorded(t *testing.T, api realAPI, runs realRuns, store *memoryStore) {
	patch := func(manager, body string) *corev1.Namespace {
		t.Helper()
		ns, err := api.Core.CoreV1().Namespaces().Patch(t.Context(), "runs", types.MergePatchType,
			[]byte(body), metav1.PatchOptions{FieldManager: manager})
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
	ns, err := api.Core.CoreV1().Namespaces().Get(t.Context(), "runs", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if readLabel(ns).on {
		t.Fatal("the namespace counts as labelled before it is")
	}
	begin := time.Now().Truncate(time.Second)
	ns = patch("somebody", `{"metadata":{"labels":{"shiplog.dev/inject":"enabled"}}}`)
	label := readLabel(ns)
	if !label.on || label.since.Before(begin) || label.since.After(time.Now()) {
		t.Errorf("labelled %t since %s, want %s or a moment later", label.on, label.since, begin)
	}
	ns = patch("somebody-else", `{"metadata":{"annotations":{"example.com/note":"x"}}}`)
	if again := readLabel(ns); !again.on || !again.since.Equal(label.since) {
		t.Errorf("%+v once another field is set, want %+v", again, label)
	}

	pr := runs.create("PipelineRun", "missed", object{})
	tr := runs.create("TaskRun", "missed-build", object{
		"labels": object{pipelineTaskLabel: "build"},
		"ownerReferences": []any{object{
			"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": "missed",
			"uid": string(pr.GetUID()), "controller": true,
		}},
	})
	pod, err := api.create(t.Context(), "runs", &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:        "missed-build-pod",
			Annotations: map[string]string{contract.SkippedAnnotation: "pod=limit-range"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "tekton.dev/v1", Kind: "TaskRun", Name: tr.GetName(), UID: tr.GetUID(),
				Controller: ptr.To(true),
			}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "step-a", Image: "busybox", Command: []string{"/tekton/bin/entrypoint"},
		}}},
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	fields := ended()
	fields["podName"] = pod.Name
	ran := object{"startedAt": stamp(time.Now().Add(time.Minute)), "exitCode": int64(0)}
	fields["steps"] = []any{object{"name": "a", "container": "step-a", "terminated": ran}}
	runs.status("TaskRun", "missed-build", fields)
	runs.status("PipelineRun", "missed", ended())
	for kind, name := range map[string]string{"PipelineRun": "missed", "TaskRun": "missed-build"} {
		until(t, kind+" to be marked", func() bool {
			return runs.annotations(kind, name)[contract.SealedAnnotation] == contract.SealedMissed
		})
	}
	const why = "not captured in pod missed-build-pod: limit-range"
	reason := runs.annotations("PipelineRun", "missed")[contract.SealedReasonAnnotation]
	if reason != "build/a: "+why {
		t.Errorf("the reason is %q", reason)
	}
	named := "shiplog-lost-" + string(pr.GetUID())
	event, err := api.Core.CoreV1().Events("runs").Get(t.Context(), named, metav1.GetOptions{})
	if err != nil || event.Reason != "ShiplogMissed" || !strings.Contains(event.Message, why) {
		t.Errorf("event %+v, %v", event, err)
	}
	archive := backend.New(store)
	target, err := archive.Find(t.Context(), "runs", string(tr.GetUID()))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := archive.Tree(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for place := range tree.Containers() {
		c := place.Container
		found = append(found, fmt.Sprintf("%s %s %s", place.Pod.Key.PodUID, c.Status, c.Why))
	}
	if !slices.Equal(found, []string{string(pod.UID) + " missed " + why}) {
		t.Errorf("the archive has %q", found)
	}
}

// withoutPatch is a client with the rights of the manifest but the verb patch.
func (a realAPI) withoutPatch(t *testing.T) *rest.Config {
	t.Helper()
	conf := a.asAnnotator(t)
	role := roles[rbacv1.ClusterRole](t, annotatorRights, "ClusterRole")[0]
	role.Name = "without-patch"
	for i, rule := range role.Rules {
		role.Rules[i].Verbs = slices.DeleteFunc(rule.Verbs, func(verb string) bool { return verb == "patch" })
	}
	if _, err := a.Core.RbacV1().ClusterRoles().Create(t.Context(), &role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: role.Name}},
	}
	if _, err := a.Core.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	conf.Impersonate = rest.ImpersonationConfig{UserName: role.Name}
	return conf
}

// pageCounter counts requests.
type pageCounter struct {
	next http.RoundTripper
	n    int
}

func (p *pageCounter) RoundTrip(r *http.Request) (*http.Response, error) {
	p.n++
	return p.next.RoundTrip(r)
}
