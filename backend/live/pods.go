package live

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/tektoncd/pipeline/pkg/apis/pipeline"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	tektonclient "github.com/tektoncd/pipeline/pkg/client/clientset/versioned/typed/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"knative.dev/pkg/apis"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// Cluster asks the API server, with the rights of whoever reads.
type Cluster struct {
	Core   coreclient.CoreV1Interface
	Tekton tektonclient.TektonV1Interface
}

// present is what the cluster has of a run now.
type present struct {
	run     layout.Run
	taskRun string       // if one was asked for
	uid     string       // of what was asked for
	pods    []corev1.Pod // in the order in which they were made
	order   []string     // of the TaskRuns, as tkn prints them
	done    bool         // no more pods will be made
	outcome Outcome
	reason  string // why it failed

	failures []Failure
}

// Failure is a TaskRun that has failed, as the cluster tells it.
type Failure struct {
	TaskRun, Task string // Task is what tkn calls it
	Message       string
	NoPod         bool // it failed before it had one
}

// failuresOf are those among TaskRuns, in their order.
func failuresOf(all ...tekton.TaskRun) (failures []Failure) {
	for _, tr := range all {
		outcome, message := outcomeOf(tr.Status.GetCondition(apis.ConditionSucceeded))
		if outcome != Failed {
			continue
		}
		task := tr.Labels[pipeline.PipelineTaskLabelKey]
		if ref := tr.Spec.TaskRef; task == "" && ref != nil {
			task = ref.Name
		} else if task == "" {
			task = "Task 0" // github.com/tektoncd/cli, pkg/log: formTaskName
		}
		failures = append(failures, Failure{tr.Name, task, message, tr.Status.PodName == ""})
	}
	return failures
}

// ContainerFailed says in tkn's words that a container has ended with exit code 1, behind which tkn shows nothing more of its pod, or "" (github.com/tektoncd/cli, pkg/pods: Container.Status).
func (r *Reader) ContainerFailed(ctx context.Context, p backend.Place) string {
	name := p.Container.Name
	if r.Cluster != nil && p.Pod.Record != nil {
		pod, err := r.Cluster.Core.Pods(p.Pod.Key.Namespace).Get(ctx, p.Pod.Record.PodName, metav1.GetOptions{})
		if err == nil && string(pod.UID) == p.Pod.Key.PodUID {
			return failedInPod(pod, name)
		}
	}
	if s := p.Container.Seal; s != nil && s.Exit != nil && s.Exit.Code == 1 {
		return fmt.Sprintf("container %s has failed ", name)
	}
	return ""
}

func failedInPod(pod *corev1.Pod, name string) string {
	ended := stateOf(pod, name).Terminated
	if ended == nil || ended.ExitCode != 1 {
		return ""
	}
	if slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name }) {
		return fmt.Sprintf("container %s has failed: %s", name, ended.Reason)
	}
	said := ""
	for _, why := range []string{ended.Reason, ended.Message} {
		if why != "" && why != "Error" {
			said += " : " + why
		}
	}
	return fmt.Sprintf("container %s has failed %s", name, said)
}

// look finds a run by the name or UID of a PipelineRun or TaskRun, or by a pod's name. It returns nil where there is nothing of the kind.
func (c *Cluster) look(ctx context.Context, namespace string, kind layout.RunKind, ref string) (*present, error) {
	finds := []func(context.Context, string, string) (*present, error){c.pipelineRun, c.taskRun, c.pod}
	switch kind {
	case layout.PipelineRun:
		finds = finds[:1]
	case layout.TaskRun:
		finds = finds[1:2]
	}
	for _, find := range finds {
		p, err := find(ctx, namespace, ref)
		if p != nil || err != nil {
			return p, err
		}
	}
	return nil, nil
}

// absent tells a missing object from a failure.
func absent(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// byUID is the name of the object whose UID a label of a pod has, or "".
func (c *Cluster) byUID(ctx context.Context, namespace, uidKey, nameKey, uid string) (string, error) {
	if layout.CheckUID("UID", uid) != nil {
		return "", nil
	}
	pods, err := c.list(ctx, namespace, labels.Set{uidKey: uid})
	if err != nil || len(pods) == 0 {
		return "", err
	}
	return pods[0].Labels[nameKey], nil
}

func (c *Cluster) list(ctx context.Context, namespace string, with labels.Set) ([]corev1.Pod, error) {
	list, err := c.Core.Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: with.String()})
	if err != nil {
		return nil, fmt.Errorf("list pods of namespace %s: %w", namespace, err)
	}
	slices.SortStableFunc(list.Items, func(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return list.Items, nil
}

func (c *Cluster) pipelineRun(ctx context.Context, namespace, ref string) (*present, error) {
	pr, err := c.Tekton.PipelineRuns(namespace).Get(ctx, ref, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		name, uidErr := c.byUID(ctx, namespace, pipeline.PipelineRunUIDLabelKey, pipeline.PipelineRunLabelKey, ref)
		if name == "" || uidErr != nil {
			return nil, uidErr
		}
		pr, err = c.Tekton.PipelineRuns(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	if err != nil {
		return nil, absent(err)
	}
	p := &present{run: layout.Run{Namespace: namespace, Name: pr.Name, UID: string(pr.UID)}, uid: string(pr.UID), done: pr.IsDone()}
	p.outcome, p.reason = outcomeOf(pr.Status.GetCondition(apis.ConditionSucceeded))
	taskRuns, err := c.taskRunsOf(ctx, pr)
	if err != nil {
		return nil, err
	}
	for _, tr := range taskRuns {
		p.order = append(p.order, tr.Name)
	}
	p.failures = failuresOf(taskRuns...)
	p.pods, err = c.list(ctx, namespace, labels.Set{pipeline.PipelineRunLabelKey: pr.Name, pipeline.PipelineRunUIDLabelKey: string(pr.UID)})
	return p, err
}

// taskRunsOf are a PipelineRun's TaskRuns in the order in which tkn prints their logs: as they ended, or else as they began (github.com/tektoncd/cli, pkg/taskrun: Runs.Less).
func (c *Cluster) taskRunsOf(ctx context.Context, pr *tekton.PipelineRun) ([]tekton.TaskRun, error) {
	with := labels.Set{pipeline.PipelineRunLabelKey: pr.Name, pipeline.PipelineRunUIDLabelKey: string(pr.UID)}
	list, err := c.Tekton.TaskRuns(pr.Namespace).List(ctx, metav1.ListOptions{LabelSelector: with.String()})
	if err != nil {
		return nil, fmt.Errorf("list the TaskRuns of %s: %w", pr.Name, err)
	}
	slices.SortStableFunc(list.Items, func(a, b tekton.TaskRun) int {
		x, y := a.Status, b.Status
		if x.CompletionTime != nil && y.CompletionTime != nil {
			return x.CompletionTime.Compare(y.CompletionTime.Time)
		}
		return timeOf(x.StartTime).Compare(timeOf(y.StartTime))
	})
	return list.Items, nil
}

func timeOf(t *metav1.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.Time
}

func (c *Cluster) taskRun(ctx context.Context, namespace, ref string) (*present, error) {
	tr, err := c.Tekton.TaskRuns(namespace).Get(ctx, ref, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		name, uidErr := c.byUID(ctx, namespace, pipeline.TaskRunUIDLabelKey, pipeline.TaskRunLabelKey, ref)
		if name == "" || uidErr != nil {
			return nil, uidErr
		}
		tr, err = c.Tekton.TaskRuns(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	if err != nil {
		return nil, absent(err)
	}
	p := &present{run: runOf(tr), taskRun: tr.Name, uid: string(tr.UID), done: tr.IsDone(), failures: failuresOf(*tr)}
	p.outcome, p.reason = outcomeOf(tr.Status.GetCondition(apis.ConditionSucceeded))
	p.pods, err = c.list(ctx, namespace, labels.Set{pipeline.TaskRunLabelKey: tr.Name, pipeline.TaskRunUIDLabelKey: string(tr.UID)})
	return p, err
}

// runOf is where a TaskRun's logs are.
func runOf(tr *tekton.TaskRun) layout.Run {
	if name, uid := tr.Labels[pipeline.PipelineRunLabelKey], tr.Labels[pipeline.PipelineRunUIDLabelKey]; name != "" && uid != "" {
		return layout.Run{Namespace: tr.Namespace, Name: name, UID: uid}
	}
	return layout.Run{Namespace: tr.Namespace, Name: layout.NoPipelineRun, UID: string(tr.UID)}
}

func (c *Cluster) pod(ctx context.Context, namespace, name string) (*present, error) {
	pod, err := c.Core.Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, absent(err)
	}
	key, ok := podKey(pod)
	if !ok {
		return nil, nil // not Tekton's
	}
	return &present{run: key.Run, taskRun: key.TaskRun, uid: pod.Name, pods: []corev1.Pod{*pod}, done: terminal(pod)}, nil
}

// podKey is where a pod's logs are, if it is a TaskRun's.
func podKey(pod *corev1.Pod) (layout.Pod, bool) {
	l := pod.Labels
	key := layout.Pod{TaskRun: l[pipeline.TaskRunLabelKey], PodUID: string(pod.UID)}
	key.Run = layout.Run{Namespace: pod.Namespace, Name: l[pipeline.PipelineRunLabelKey], UID: l[pipeline.PipelineRunUIDLabelKey]}
	if key.Run.Name == "" || key.Run.UID == "" {
		key.Run = layout.Run{Namespace: pod.Namespace, Name: layout.NoPipelineRun, UID: l[pipeline.TaskRunUIDLabelKey]}
	}
	return key, key.Validate() == nil
}

// Outcome is how a run ended.
type Outcome string

// The outcomes. A run of which nothing is known has none.
const (
	Succeeded  Outcome = "succeeded"
	Failed     Outcome = "failed"
	Unfinished Outcome = "unfinished" // the cluster runs it
)

func outcomeOf(c *apis.Condition) (Outcome, string) {
	switch {
	case c == nil:
		return "", ""
	case c.IsUnknown():
		return Unfinished, ""
	case c.IsTrue():
		return Succeeded, ""
	default:
		return Failed, c.Message
	}
}

func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// containersOf are a pod's containers as the archive has them, in the order in which they run.
func containersOf(key layout.Pod, pod *corev1.Pod) []backend.Container {
	var all []backend.Container
	add := func(name string, kind record.ContainerKind) {
		if name != contract.ShipperContainer {
			all = append(all, backend.Container{Key: layout.Container{Pod: key, Container: name}, Name: name, Kind: kind, Status: backend.Running})
		}
	}
	for _, c := range pod.Spec.InitContainers {
		add(c.Name, record.Init)
	}
	for _, c := range pod.Spec.Containers {
		kind := record.Sidecar
		if strings.HasPrefix(c.Name, "step-") {
			kind = record.Step
		}
		add(c.Name, kind)
	}
	return all
}

// stateOf is a container's state, or a zero one.
func stateOf(pod *corev1.Pod, name string) corev1.ContainerState {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if s.Name == name {
			return s.State
		}
	}
	return corev1.ContainerState{}
}

func started(s corev1.ContainerState) bool { return s.Running != nil || s.Terminated != nil }

// errNoLog says that the kubelet has no log of a container, or not any more. It answers with 200 and a sentence then.
var errNoLog = errors.New("the kubelet has no log of the container")

// lines yields what the kubelet has of a container's log: what it answers to "kubectl logs --timestamps". All is of stdout, since it does not say of which stream a line is. The last line may lack its end.
func (c *Cluster) lines(
	ctx context.Context, pod *corev1.Pod, container string, follow bool, tail *int64,
) iter.Seq2[backend.Line, error] {
	return func(yield func(backend.Line, error) bool) {
		o := &corev1.PodLogOptions{
			Container: container, Follow: follow, Timestamps: true, TailLines: tail,
		}
		body, err := c.Core.Pods(pod.Namespace).GetLogs(pod.Name, o).Stream(ctx)
		if err != nil {
			yield(backend.Line{}, fmt.Errorf("read the log of container %s of pod %s: %w", container, pod.Name, err))
			return
		}
		defer body.Close()
		for l, err := range parseLog(body) {
			if err != nil {
				err = fmt.Errorf("read the log of container %s of pod %s: %w", container, pod.Name, err)
			}
			if !yield(l, err) || err != nil {
				return
			}
		}
	}
}

// parseLog reads lines of time and text. A line is yielded in pieces if it is longer than what tells it from others, and otherwise when it has ended: if the log breaks off within it, the archive may have it whole. The text is
// valid until the next piece.
func parseLog(r io.Reader) iter.Seq2[backend.Line, error] {
	return func(yield func(backend.Line, error) bool) {
		in := bufio.NewReaderSize(r, judged+criline.PrefixLen)
		for {
			b, err := in.ReadSlice('\n')
			if len(b) == 0 {
				if !errors.Is(err, io.EOF) {
					yield(backend.Line{}, err)
				}
				return
			}
			stamp, text, found := bytes.Cut(b, []byte(" "))
			at, timeErr := time.Parse(time.RFC3339Nano, string(stamp))
			if !found || timeErr != nil {
				yield(backend.Line{}, errNoLog)
				return
			}
			for {
				full := err == nil
				l := backend.Line{Line: criline.Line{Time: at, Stream: criline.Stdout, Full: full, Text: bytes.TrimSuffix(text, []byte("\n"))}}
				if !yield(l, nil) {
					return
				}
				if full {
					break
				}
				if !errors.Is(err, bufio.ErrBufferFull) {
					if !errors.Is(err, io.EOF) {
						yield(backend.Line{}, err)
					}
					return
				}
				if text, err = in.ReadSlice('\n'); len(text) == 0 {
					if !errors.Is(err, io.EOF) {
						yield(backend.Line{}, err)
					}
					return
				}
			}
		}
	}
}
