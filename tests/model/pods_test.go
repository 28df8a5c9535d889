package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tektoncd/pipeline/pkg/apis/pipeline"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	tektonclient "github.com/tektoncd/pipeline/pkg/client/clientset/versioned/typed/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"knative.dev/pkg/apis"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/live"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// kube is an API server with what live asks for: pods and their logs, PipelineRuns and TaskRuns.
type kube struct {
	mu       sync.Mutex
	pods     []corev1.Pod
	runs     []tekton.PipelineRun
	taskRuns []tekton.TaskRun
	logs     map[string]string // by pod and container, as "kubectl logs --timestamps" prints them
}

func (k *kube) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	at := slices.Index(part, "ns") + 1
	kind, part := part[at], part[at+1:]
	wanted := must(labels.Parse(r.URL.Query().Get("labelSelector")))
	w.Header().Set("Content-Type", "application/json")
	switch {
	case kind == "pods" && len(part) == 2:
		log, ok := k.logs[part[0]+"/"+r.URL.Query().Get("container")]
		if !ok {
			notFound(w)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		lines := strings.SplitAfter(log, "\n")
		if lines[len(lines)-1] == "" {
			lines = lines[:len(lines)-1]
		}
		if tail, err := strconv.Atoi(r.URL.Query().Get("tailLines")); err == nil {
			lines = lines[max(0, len(lines)-tail):]
		}
		fmt.Fprint(w, strings.Join(lines, ""))
	case kind == "pods":
		answer(w, part, wanted, k.pods,
			func(p corev1.Pod) metav1.ObjectMeta { return p.ObjectMeta },
			func(all []corev1.Pod) any { return corev1.PodList{Items: all} })
	case kind == "pipelineruns":
		answer(w, part, wanted, k.runs,
			func(p tekton.PipelineRun) metav1.ObjectMeta { return p.ObjectMeta },
			func(all []tekton.PipelineRun) any { return tekton.PipelineRunList{Items: all} })
	default:
		answer(w, part, wanted, k.taskRuns,
			func(p tekton.TaskRun) metav1.ObjectMeta { return p.ObjectMeta },
			func(all []tekton.TaskRun) any { return tekton.TaskRunList{Items: all} })
	}
}

func answer[T any](w http.ResponseWriter, name []string, wanted labels.Selector, all []T,
	meta func(T) metav1.ObjectMeta, list func([]T) any) {
	var found []T
	for _, v := range all {
		if m := meta(v); wanted.Matches(labels.Set(m.Labels)) && (len(name) == 0 ||
			m.Name == name[0]) {
			found = append(found, v)
		}
	}
	var out any
	switch {
	case len(name) == 0:
		out = list(found)
	case len(found) == 0:
		notFound(w)
		return
	default:
		out = found[0]
	}
	_ = json.NewEncoder(w).Encode(out) // into memory
}

func notFound(w http.ResponseWriter) {
	w.WriteHeader(http.StatusNotFound)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status",
		APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound,
		Code: http.StatusNotFound})
}

// cluster asks it.
func (k *kube) cluster() (*live.Cluster, error) {
	config := &rest.Config{Host: "http://kube.test", Transport: handled{k}, QPS: -1}
	core, err := coreclient.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	runs, err := tektonclient.NewForConfig(config)
	return &live.Cluster{Core: core, Tekton: runs}, err
}

// podLog is what the kubelet has of a log: lines in the order in which they ended.
func podLog(lines []criline.Line) string {
	var b strings.Builder
	ended, _ := joined(lines)
	for _, l := range ended {
		fmt.Fprintf(&b, "%s %s\n", l.Time.Format(criline.TimeLayout), l.Text)
	}
	return b.String()
}

// joined puts the pieces of lines together. Of each stream, open is what has not ended.
func joined(lines []criline.Line) (ended []criline.Line, open map[criline.Stream]string) {
	open = map[criline.Stream]string{}
	for _, l := range lines {
		if l.Stream == criline.Markers {
			continue
		}
		open[l.Stream] += string(l.Text)
		if l.Full {
			l.Text = []byte(open[l.Stream])
			ended = append(ended, l)
			delete(open, l.Stream)
		}
	}
	return ended, open
}

// present is what the cluster has of the history at its end: the last runs, and their pods, of
// which no two have the same name.
func (w *world) present() *kube {
	k := &kube{logs: map[string]string{}}
	taken := map[string]bool{}
	for _, r := range slices.Backward(w.runs) {
		names := []string{string(r.kind) + " " + r.name}
		for _, p := range w.pods {
			if p.key.Run == r.Run {
				names = append(names, string(layout.TaskRun)+" "+p.key.TaskRun, "pod "+p.name)
			}
		}
		if slices.ContainsFunc(names, func(name string) bool { return taken[name] }) {
			continue
		}
		for _, name := range names {
			taken[name] = true
		}
		done := apis.Condition{Type: apis.ConditionSucceeded, Status: corev1.ConditionTrue}
		meta := metav1.ObjectMeta{Namespace: "ns", Name: r.name, UID: types.UID(r.UID),
			CreationTimestamp: metav1.NewTime(r.created)}
		if r.kind == layout.PipelineRun {
			pr := tekton.PipelineRun{ObjectMeta: meta}
			pr.Status.Conditions = []apis.Condition{done}
			k.runs = append(k.runs, pr)
		}
		for _, p := range w.pods {
			if p.key.Run != r.Run {
				continue
			}
			with := labels.Set{pipeline.TaskRunLabelKey: p.key.TaskRun,
				pipeline.TaskRunUIDLabelKey: p.taskRunUID}
			if r.kind == layout.PipelineRun {
				with[pipeline.PipelineRunLabelKey],
					with[pipeline.PipelineRunUIDLabelKey] = r.Run.Name, r.UID
			}
			tr := tekton.TaskRun{ObjectMeta: metav1.ObjectMeta{Namespace: "ns",
				Name: p.key.TaskRun, UID: types.UID(p.taskRunUID), Labels: with,
				CreationTimestamp: metav1.NewTime(p.created)}}
			tr.Status.Conditions = []apis.Condition{done}
			if !slices.ContainsFunc(k.taskRuns,
				func(other tekton.TaskRun) bool { return other.UID == tr.UID }) {
				k.taskRuns = append(k.taskRuns, tr)
			}
			k.pods = append(k.pods, p.present(with, k.logs))
		}
	}
	return k
}

// present is the pod, all of whose containers have ended.
func (p *pod) present(with labels.Set, logs map[string]string) corev1.Pod {
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: p.name,
		UID: types.UID(p.key.PodUID), Labels: with, CreationTimestamp: metav1.NewTime(p.created)}}
	pod.Status.Phase = corev1.PodSucceeded
	ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
	for _, l := range p.logs {
		name := l.key.Container
		status := corev1.ContainerStatus{Name: name, State: ended}
		if name == "prepare" {
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: name})
			pod.Status.InitContainerStatuses = append(pod.Status.InitContainerStatuses, status)
		} else {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: name})
			pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, status)
		}
		logs[p.name+"/"+name] = podLog(l.lines)
	}
	return pod
}

// TestPodsAgree shows runs whose pods are still there: as from the archive alone, where that has
// all.
func TestPodsAgree(t *testing.T) {
	n, seeds := asked(t)
	each(t, n/oneAsked, seeds, func(t *testing.T, seed uint64, writer *segment.Writer) error {
		return podsAgree(t.Context(), seed, writer)
	})
}

func podsAgree(ctx context.Context, seed uint64, writer *segment.Writer) error {
	w := newWorld(seed, false, writer)
	rnd := rand.New(rand.NewPCG(seed, 5))
	now := w.end.Add(time.Minute)
	s := newStore(w.events, func() time.Time { return now })
	k := w.present()
	cluster, err := k.cluster()
	if err != nil {
		return err
	}
	both := &live.Reader{Archive: live.Bucket{Archive: backend.New(s)}, Cluster: cluster}
	archive := &live.Reader{Archive: both.Archive}
	p := w.pods[rnd.IntN(len(w.pods))]
	// a name may be of something else in the cluster
	for _, ref := range []string{p.taskRunUID, p.key.Run.UID} {
		want, err := seen(ctx, archive, ref)
		var notFound *backend.NotFoundError
		if err != nil && !errors.As(err, &notFound) {
			return fmt.Errorf("%q: %w", ref, err)
		}
		isThere := notFound == nil || slices.ContainsFunc(k.taskRuns, func(tr tekton.TaskRun) bool {
			return string(tr.UID) == ref || tr.Labels[pipeline.PipelineRunUIDLabelKey] == ref
		})
		got, err := seen(ctx, both, ref)
		if !isThere && errors.As(err, &notFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%q with pods: %w", ref, err)
		}
		for key, log := range want {
			if log.state != backend.Verified {
				continue
			}
			if g, ok := got[key]; !ok || g.state != log.state || !slices.Equal(g.lines, log.lines) {
				return fmt.Errorf("%q: %s with pods is %s %q, and without %s %q", ref,
					key.Prefix(), g.state, g.lines, log.state, log.lines)
			}
		}
	}
	return nil
}

// shown is a log as a person sees it: its lines, in any order, since that of two streams is not
// sure.
type shown struct {
	lines []string
	state backend.Status
}

func textOf(lines []criline.Line) (text []string) {
	ended, open := joined(lines)
	for _, l := range ended {
		text = append(text, string(l.Text))
	}
	for _, stream := range slices.Sorted(maps.Keys(open)) {
		if open[stream] != "" {
			text = append(text, open[stream])
		}
	}
	slices.Sort(text)
	return text
}

func seen(ctx context.Context, r *live.Reader, ref string) (map[layout.Container]shown, error) {
	v, err := r.Look(ctx, "ns", "", ref)
	if err != nil {
		return nil, err
	}
	all := func(backend.TaskRun, backend.Container) bool { return true }
	lines := map[layout.Container][]criline.Line{}
	logs := map[layout.Container]shown{}
	for l, err := range r.Show(ctx, v, all, backend.LogOptions{}) {
		if err != nil {
			return nil, err
		}
		key := l.Container.Key
		if l.Line.Stream == "" {
			logs[key] = shown{textOf(lines[key]), l.Container.Status}
			continue
		}
		l.Line.Text = slices.Clone(l.Line.Text) // which is valid until the next line only
		lines[key] = append(lines[key], l.Line.Line)
	}
	return logs, nil
}

// TestFollowEndsWithItsRun: a pod of a finished run that stays as it is, as on a node that is lost,
// is not waited for.
func TestFollowEndsWithItsRun(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"pending":     func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending },
		"terminating": func(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := &kube{logs: map[string]string{"a-pod/step-a": "2026-11-23T12:00:00Z one\n"}}
				with := labels.Set{pipeline.TaskRunLabelKey: "a", pipeline.TaskRunUIDLabelKey: "u"}
				tr := tekton.TaskRun{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a",
					UID: "u", Labels: with}}
				tr.Status.Conditions = []apis.Condition{{Type: apis.ConditionSucceeded,
					Status: corev1.ConditionFalse}}
				pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a-pod",
					UID: "p", Labels: with}}
				pod.Spec.Containers = []corev1.Container{{Name: "step-a"}, {Name: "step-b"}}
				pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "step-a",
					State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}},
					{Name: "step-b"}}
				change(&pod)
				k.taskRuns, k.pods = []tekton.TaskRun{tr}, []corev1.Pod{pod}
				cluster, err := k.cluster()
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				var got []string
				for l, err := range (&live.Reader{Cluster: cluster}).Follow(ctx, "ns", "", "a",
					func(backend.TaskRun, backend.Container) bool { return true },
					backend.LogOptions{}) {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, l.Container.Name+" "+string(l.Line.Text))
				}
				if want := []string{"step-a one", "step-a "}; !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		})
	}
}

// TestFollowTail: of logs that begin later, all is shown.
func TestFollowTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kube{logs: map[string]string{}}
		with := labels.Set{pipeline.TaskRunLabelKey: "a", pipeline.TaskRunUIDLabelKey: "u"}
		for _, name := range []string{"step-a", "step-b"} {
			for i := range 5 {
				k.logs["a-pod/"+name] += fmt.Sprintf("2026-11-23T12:00:0%dZ %d\n", i, i)
			}
		}
		tr := tekton.TaskRun{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", UID: "u",
			Labels: with}}
		pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a-pod", UID: "p",
			Labels: with}}
		pod.Spec.Containers = []corev1.Container{{Name: "step-a"}, {Name: "step-b"}}
		ended := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "step-a", State: ended},
			{Name: "step-b"}}
		k.taskRuns, k.pods = []tekton.TaskRun{tr}, []corev1.Pod{pod}
		later := time.AfterFunc(10*time.Second, func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.pods[0].Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "step-a",
				State: ended}, {Name: "step-b", State: ended}}
			k.pods[0].Status.Phase = corev1.PodSucceeded
			k.taskRuns[0].Status.Conditions = []apis.Condition{{Type: apis.ConditionSucceeded,
				Status: corev1.ConditionTrue}}
		})
		defer later.Stop()
		cluster, err := k.cluster()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for l, err := range (&live.Reader{Cluster: cluster}).Follow(t.Context(), "ns", "", "a",
			func(backend.TaskRun, backend.Container) bool { return true },
			backend.LogOptions{Tail: 2}) {
			if err != nil {
				t.Fatal(err)
			}
			if l.Line.Stream != "" {
				got = append(got, l.Container.Name+" "+string(l.Line.Text))
			}
		}
		if want := []string{"step-a 3", "step-a 4", "step-b 0", "step-b 1", "step-b 2",
			"step-b 3", "step-b 4"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
