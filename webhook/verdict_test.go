package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// TestWorstCounts: what is said of a run is what is said of the worst of its logs, for each TaskRun and the whole.
func TestWorstCounts(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	sealed := &record.Seal{}
	logOf := func(status backend.Status) backend.Container {
		c := backend.Container{Name: "step-a", Kind: record.Step, Status: status}
		if status == backend.Verified || status == backend.Gaps || status == backend.Damaged {
			c.Seal = sealed
		}
		return c
	}
	killed := func(status backend.Status, drained bool) backend.Container {
		c := logOf(status)
		c.Seal = &record.Seal{End: record.EndKilled, Drained: drained}
		return c
	}
	task := func(name string, heard time.Time, containers ...backend.Container) backend.TaskRun {
		return backend.TaskRun{Name: name, PipelineTask: name, Pods: []backend.Pod{{LastSeen: heard, Containers: containers}}}
	}
	of := func(taskRun string) *runObject {
		return &runObject{ObjectMeta: metav1.ObjectMeta{Name: taskRun}, owner: taskRunOwner}
	}
	podOf := func(command string) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: contract.ShipperContainer}},
			Containers:     []corev1.Container{{Name: "step-a", Command: []string{command}}},
		}}
	}
	unsealed := logOf(backend.Damaged)
	unsealed.Seal = nil
	for _, c := range []struct {
		name   string
		tasks  []backend.TaskRun
		absent []missedPod
		want   standing
		byTask map[string]standing
	}{
		{name: "nothing", want: durable},
		{
			name: "all verified", tasks: []backend.TaskRun{task("a", now, logOf(backend.Verified), logOf(backend.NotCaptured))},
			want: durable, byTask: map[string]standing{"a": durable},
		},
		{
			name: "killed", want: doubtful,
			tasks:  []backend.TaskRun{task("a", now, killed(backend.Verified, false)), task("b", now, killed(backend.Verified, true))},
			byTask: map[string]standing{"a": doubtful, "b": durable},
		},
		{
			name: "killed, with gaps", want: lossy, tasks: []backend.TaskRun{task("a", now, killed(backend.Verified, false), killed(backend.Gaps, false))},
			byTask: map[string]standing{"a": lossy},
		},
		{name: "nothing captured", tasks: []backend.TaskRun{task("a", now, logOf(backend.NotCaptured))}, want: durable},
		{
			name: "each its own", want: growing,
			tasks: []backend.TaskRun{
				task("a", now, logOf(backend.Verified)), task("b", now, logOf(backend.Verified), logOf(backend.Gaps)), task("c", now, logOf(backend.Gaps), logOf(backend.Damaged)),
				task("d", now, logOf(backend.Damaged), logOf(backend.Partial)), task("e", now, logOf(backend.Partial), logOf(backend.Running)),
			},
			byTask: map[string]standing{"a": durable, "b": lossy, "c": damaged, "d": silent, "e": growing},
		},
		{
			name: "a hole without a seal, while the pod lives", tasks: []backend.TaskRun{task("a", now.Add(-backend.AliveWithin+1), unsealed)},
			want: growing, byTask: map[string]standing{"a": growing},
		},
		{
			name: "a hole without a seal, and the pod is silent", tasks: []backend.TaskRun{task("a", now.Add(-backend.AliveWithin), unsealed)},
			want: silent, byTask: map[string]standing{"a": silent},
		},
		{
			name: "a state that a later version knows", tasks: []backend.TaskRun{task("a", now, logOf("odd"))},
			want: silent, byTask: map[string]standing{"a": silent},
		},
		{
			name:  "a step is missed",
			tasks: []backend.TaskRun{task("a", now, logOf(backend.Gaps), logOf(backend.Missed))},
			want:  missed, byTask: map[string]standing{"a": missed},
		},
		{
			name: "a step is missed, and another log is damaged",
			tasks: []backend.TaskRun{
				task("a", now, logOf(backend.Missed)), task("b", now, logOf(backend.Damaged)),
			},
			want: damaged, byTask: map[string]standing{"a": missed, "b": damaged},
		},
		{
			name: "a pod of which nothing is known, which is silent",
			tasks: []backend.TaskRun{
				task("a", now, logOf(backend.Verified)), task("b", now.Add(-backend.AliveWithin)),
			},
			want: silent, byTask: map[string]standing{"a": durable, "b": silent},
		},
		{
			name:  "a pod of which nothing is known, which lives",
			tasks: []backend.TaskRun{task("a", now)},
			want:  growing, byTask: map[string]standing{"a": growing},
		},
		{
			name:   "a pod that is gone is absent",
			tasks:  []backend.TaskRun{task("a", now, logOf(backend.Verified))},
			absent: []missedPod{{task: of("b"), name: "b-pod"}},
			want:   missed, byTask: map[string]standing{"a": durable, "b": missed},
		},
		{
			name:   "a pod that was not captured is absent",
			absent: []missedPod{{task: of("b"), name: "b-pod", object: podOf("/bin/sh")}},
			want:   missed, byTask: map[string]standing{"b": missed},
		},
		{
			name:   "a pod that was captured is absent",
			absent: []missedPod{{task: of("b"), name: "b-pod", object: podOf(contract.TeePath)}},
			want:   silent, byTask: map[string]standing{"b": silent},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := judge(&backend.Tree{TaskRuns: c.tasks}, c.absent, now)
			if v.standing != c.want || len(v.taskRuns) != len(c.byTask) {
				t.Errorf("%+v, want %d and %v", v, c.want, c.byTask)
			}
			for name, want := range c.byTask {
				if v.taskRuns[name] != want {
					t.Errorf("TaskRun %s stands at %d, want %d", name, v.taskRuns[name], want)
				}
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	v := verdict{}
	for i := range described + 3 {
		v.findings = append(v.findings, finding{taskRun: fmt.Sprintf("r-%d", i%2), where: fmt.Sprintf("t%d/s", i), standing: damaged, why: "why"})
	}
	v.findings[0].standing = lossy
	if got, want := v.describe("", lossy), "t0/s: why; t1/s: why; t2/s: why; t3/s: why; t4/s: why; and 3 more"; got != want {
		t.Errorf("all: %q, want %q", got, want)
	}
	if got, want := v.describe("r-0", damaged), "t2/s: why; t4/s: why; t6/s: why"; got != want {
		t.Errorf("one TaskRun: %q, want %q", got, want)
	}
	if got := v.describe("r-2", lossy); got != "" {
		t.Errorf("another TaskRun: %q, want nothing", got)
	}
	if got := cut(strings.Repeat("ä", 10), 5); got != "ää" {
		t.Errorf("cut %q, want whole characters", got)
	}
}
