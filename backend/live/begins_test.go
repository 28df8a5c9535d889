package live

import (
	"context"
	"errors"
	"iter"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// lines is an archive with one log.
type lines struct {
	all []backend.Line
	err error
}

func (lines) Tree(context.Context, string, layout.RunKind, string) (*backend.Tree, backend.Target, error) {
	return nil, backend.Target{}, errors.New("not asked for")
}

func (a lines) Lines(context.Context, *backend.Container, backend.LogOptions, bool) iter.Seq2[backend.Line, error] {
	return func(yield func(backend.Line, error) bool) {
		for l := range each(a.all) {
			if !yield(l, nil) {
				return
			}
		}
		if a.err != nil {
			yield(backend.Line{}, a.err)
		}
	}
}

func TestBegins(t *testing.T) {
	out, errs := criline.Stdout, criline.Stderr
	for _, c := range []struct {
		name    string
		pod     backend.Line
		archive lines
		want    bool
	}{
		{"the same line", line(1, out, true, "a"), lines{all: []backend.Line{line(0, out, true, "a")}}, true},
		{"the other stream came first", line(1, out, true, "b"), lines{all: []backend.Line{line(0, errs, true, "a"), line(0, out, true, "b")}}, true},
		{"another line", line(1, out, true, "later"), lines{all: []backend.Line{line(0, out, true, "a")}}, false},
		{"an empty line is the beginning of no other", line(1, out, true, "later"), lines{all: []backend.Line{line(0, out, true, "a"), line(0, out, true, "")}}, false},
		{"nor is a shorter one", line(1, out, true, "later"), lines{all: []backend.Line{line(0, out, true, "late")}}, false},
		{"a longer one does not begin with an ended one", line(1, out, true, "late"), lines{all: []backend.Line{line(0, out, true, "later")}}, false},
		{"an empty line", line(1, out, true, ""), lines{all: []backend.Line{line(0, out, true, "")}}, true},
		{"the archive has its first piece", line(1, out, true, "later"), lines{all: []backend.Line{line(0, out, false, "late")}}, true},
		{"the archive has its last piece", line(1, out, true, "later"), lines{all: []backend.Line{line(0, out, false, "x"), line(0, out, true, "later")}}, false},
		{"the pod has its first piece", line(1, out, false, "late"), lines{all: []backend.Line{line(0, out, true, "later")}}, true},
		{"both have a piece", line(1, out, false, "late"), lines{all: []backend.Line{line(0, out, false, "later")}}, true},
		{"a gap is no line", line(1, out, true, "gap"), lines{all: []backend.Line{line(0, criline.Markers, true, "gap")}}, false},
		{"nothing is archived", line(1, out, true, "a"), lines{}, true},
		{"the archive cannot say", line(1, out, true, "a"), lines{err: errors.New("no store")}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &Reader{Archive: c.archive}
			if got := r.begins(t.Context(), backend.Container{}, c.pod); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestContainerFailed(t *testing.T) {
	ended := func(name string, code int32, reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, Message: message}}}
	}
	pod := &corev1.Pod{
		Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "prepare"}}},
		Status: corev1.PodStatus{InitContainerStatuses: []corev1.ContainerStatus{ended("prepare", 1, "Error", "x")}, ContainerStatuses: []corev1.ContainerStatus{
			ended("step-ok", 0, "Completed", ""), ended("step-three", 3, "Error", ""), ended("step-one", 1, "Error", ""), ended("step-said", 1, "OOMKilled", `[{"key":"a"}]`), {Name: "step-waits"},
		}},
	}
	// As tkn v0.44.0 has it, spaces too.
	for name, want := range map[string]string{
		"step-ok": "", "step-three": "", "step-waits": "", "step-none": "",
		"step-one": "container step-one has failed ", "step-said": `container step-said has failed  : OOMKilled : [{"key":"a"}]`, "prepare": "container prepare has failed: Error",
	} {
		t.Run(name, func(t *testing.T) {
			if got := failedInPod(pod, name); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}
