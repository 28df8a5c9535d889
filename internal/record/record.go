// Package record owns the small JSON objects beside the segments: run.json, pod.json, alive.json, waiting.json, seal.json and the index pointers. Readers ignore
// fields that they do not know, so that fields can be added.
package record

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/visible"
)

// Run is run.json, written with the first ticket of each pod of a run, and once more when the run has ended.
type Run struct {
	Kind      layout.RunKind `json:"kind"`
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"` // of the PipelineRun, or of the TaskRun that has none
	UID       string         `json:"uid"`
	Created   time.Time      `json:"created"`
	// NamespaceUID tells the run's namespace from others that have its name before or later. It is
	// empty where it was not known.
	NamespaceUID string `json:"namespaceUID,omitempty"`
	Pipeline     string `json:"pipeline,omitempty"` // the Pipeline or Task it refers to by name
	Tasks        Tasks  `json:"tasks,omitempty"`    // names of the pipeline's tasks in spec order, as far as known, with finally tasks last
	Labels       Labels `json:"labels,omitempty"`
	// What follows is there once the run has ended, and somebody saw it.
	State     RunState  `json:"state,omitempty"`
	Reason    string    `json:"reason,omitempty"`   // Tekton's, of the condition Succeeded, such as "Completed" or "PipelineRunTimeout"
	Started   time.Time `json:"started,omitzero"`   // zero for a run that was refused before it began
	Completed time.Time `json:"completed,omitzero"` // logs may be sealed later: a shipper is still at it when the run has ended
}

// Namespace is one namespace of a cluster. Another one may have had its name before: it is former.
type Namespace struct {
	UID     string
	Created time.Time // its creationTimestamp
}

// clockSkew is how far the clocks of a cluster's API servers may be apart: each stamps what it
// makes.
const clockSkew = time.Minute

// Since is the time before which no run of the namespace can have been made.
func (n Namespace) Since() time.Time { return n.Created.Add(-clockSkew) }

// Holds says whether a run is of this namespace, and not of a former one of its name. Where
// run.json does not say of which it is, the time does. A Namespace without a UID holds none.
func (n Namespace) Holds(r Run) bool {
	switch {
	case n.UID == "":
		return false
	case r.NamespaceUID != "":
		return r.NamespaceUID == n.UID
	default:
		return !r.Created.Before(n.Created)
	}
}

// RunState is how a run stands, by its condition Succeeded.
type RunState string

// The states of a run. A run whose record has none has not ended yet, as far as is known.
const (
	Succeeded RunState = "succeeded"
	Failed    RunState = "failed"
	Cancelled RunState = "cancelled"
)

// ContainerKind is a container's part in the pod.
type ContainerKind string

// The kinds of containers.
const (
	Step    ContainerKind = "step"
	Sidecar ContainerKind = "sidecar"
	Init    ContainerKind = "init"
)

// Container is one container of a pod.
type Container struct {
	Name string        `json:"name"` // in the pod, as "step-build"
	Kind ContainerKind `json:"kind"`
	// Captured says that its log is archived. Otherwise Skipped says why it is not.
	Captured bool   `json:"captured"`
	Skipped  string `json:"skipped,omitempty"`
}

// Values of Container.Skipped that mean something to a reader. All others are reasons of the
// webhook for leaving a container or a pod alone, such as "memory-limit" or "limit-range".
const (
	SkippedOptedOut = "opted-out" // somebody wanted no log of it
	SkippedUnknown  = "unknown"
	// SkippedNoAnswer: the pod bears no sign of the webhook. It was not asked, or did not answer in
	// time.
	SkippedNoAnswer = "no-answer"
	// SkippedPodGone: the archive has nothing of the pod, and it was gone before anybody could see
	// why.
	SkippedPodGone = "pod-gone"
	// SkippedNothingArrived: the shipper was in the pod, and has sent nothing.
	SkippedNothingArrived = "nothing-arrived"
)

// Missed says that the log of a step should be in the archive, and is not: it was in the step's pod
// alone. Sidecars and init containers are not steps. Many sidecars cannot be captured, since their
// command is only in the image.
func (c Container) Missed() bool {
	return c.Kind == Step && !c.Captured && c.Skipped != SkippedOptedOut
}

// Pod is pod.json, written with the pod's first ticket, or when its run has ended and nothing of
// the pod is in the archive.
type Pod struct {
	Namespace    string     `json:"namespace"`
	PodName      string     `json:"podName"`
	PodUID       string     `json:"podUID"`
	TaskRun      string     `json:"taskRun"`
	TaskRunUID   string     `json:"taskRunUID"`
	PipelineTask string     `json:"pipelineTask,omitempty"`
	Created      time.Time  `json:"created"`
	Containers   Containers `json:"containers"` // in the pod's order: init containers, then the others
	Labels       Labels     `json:"labels,omitempty"`
}

// Alive is alive.json, overwritten about once a minute while the pod lives. The store's time of its last change tells a running log from a partial one.
type Alive struct {
	Time time.Time `json:"time"`
}

// Waiting is waiting.json: the container did not start, for a reason that the API server knows and the pod itself does not. It says how it was once; a container may have started
// since.
type Waiting struct {
	Reason  string `json:"reason"`            // Kubernetes' own, such as ImagePullBackOff
	Message string `json:"message,omitempty"` // likewise
}

// IsImage says whether the container's image is what it waited for.
func (w Waiting) IsImage() bool {
	switch w.Reason { // pkg/kubelet/images/types.go in Kubernetes
	case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
		return true
	}
	return false
}

// Pointer is the content of an index object by pod name or UID: where the logs are.
type Pointer struct {
	Run     layout.Run `json:"run"`
	TaskRun string     `json:"taskRun,omitempty"` // empty: the whole run
	PodUID  string     `json:"podUID,omitempty"`  // empty: every pod of the TaskRun
}

// End says how a container's log ended.
type End string

// How a log ends.
const (
	// EndExited: the container's process ended and tee saw it; Exit says how.
	EndExited End = "exited"
	// EndKilled: the container ended without tee saying so, as after SIGKILL or an OOM kill. All that was written to the spool is archived; see Seal.Drained for the rest.
	EndKilled End = "killed"
	// EndNeverStarted: the container's process was never started.
	EndNeverStarted End = "never-started"
)

// Exit is how a process ended.
type Exit struct {
	Code   int    `json:"code"`             // the container's exit code; 128 + signal number after a signal
	Signal string `json:"signal,omitempty"` // such as "killed"
}

// Printed counts printed bytes per stream.
type Printed struct {
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

// Total is the sum over the streams, or the largest number there is: a step can forge gaps that add up to more.
func (p Printed) Total() int64 {
	if p.Stdout > 0 && p.Stderr > math.MaxInt64-p.Stdout {
		return math.MaxInt64
	}
	return p.Stdout + p.Stderr
}

// Seal is seal.json, the last object of a container's log: the archive is complete up to Bytes, and nothing will follow.
type Seal struct {
	Bytes    int64     `json:"bytes"`    // archive bytes: the sum of the segments' lengths
	Printed  Printed   `json:"printed"`  // archived bytes as printed
	Lines    int64     `json:"lines"`    // newlines printed
	Segments int64     `json:"segments"` // number of segments
	SHA256   string    `json:"sha256"`   // of the archive bytes in hex: zstdcat *.log.zst | sha256sum
	End      End       `json:"end"`
	Exit     *Exit     `json:"exit,omitempty"`    // with EndExited
	Drained  bool      `json:"drained,omitempty"` // with EndKilled: what the container had left in its pipes is archived, too. Without it, some of its last output may be missing
	Gaps     Gaps      `json:"gaps,omitempty"`    // the first MaxGaps
	GapCount int64     `json:"gapCount"`          // all of them
	Lost     Printed   `json:"lost"`              // bytes printed and not archived, over all gaps
	First    time.Time `json:"first,omitzero"`    // time of the first and last line; zero for an empty log
	Last     time.Time `json:"last,omitzero"`
	Sealed   time.Time `json:"sealed"`
}

const (
	// MaxGaps bounds Seal.Gaps, so that the seal stays small.
	MaxGaps = 100
	// MaxContainers bounds Pod.Containers. Kubernetes has no bound of its own, but that of an object's size.
	MaxContainers = 1000
	// MaxTasks bounds Run.Tasks in the same way.
	MaxTasks = 20_000
	// MaxLabels bounds Labels, and maxLabelBytes their keys and values together. Kubernetes bounds
	// each, and not how many there are.
	MaxLabels     = 500
	maxLabelBytes = 64 << 10
	// maxName bounds what has to be a name of Kubernetes', in bytes, and what is one word here.
	maxName = 253
	// maxText bounds what is told a person. Of a longer one the beginning is.
	maxText = 1000
)

// Gaps, Containers, Tasks and Labels are lists that Decode reads no further than they may be long: whoever can write under a pod's prefix can write what decodes into a thousand times its own size.
type (
	Gaps       []criline.Marker
	Containers []Container
	Tasks      []string
	Labels     map[string]string
)

// UnmarshalJSON implements json.Unmarshaler.
func (g *Gaps) UnmarshalJSON(b []byte) (err error) {
	*g, err = decodeList[criline.Marker](b, MaxGaps)
	return err
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *Containers) UnmarshalJSON(b []byte) (err error) {
	*c, err = decodeList[Container](b, MaxContainers)
	return err
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *Tasks) UnmarshalJSON(b []byte) (err error) {
	*t, err = decodeList[string](b, MaxTasks)
	return err
}

// UnmarshalJSON implements json.Unmarshaler. Labels behind the limits are left out: nothing of a
// log depends on them.
func (l *Labels) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	begin, err := d.Token()
	if err != nil || begin == nil {
		*l = nil
		return err
	}
	if begin != json.Delim('{') {
		return fmt.Errorf("%.20q are no labels", b)
	}
	*l = Labels{}
	room := maxLabelBytes
	for d.More() && len(*l) < MaxLabels {
		key, err := d.Token()
		if err != nil {
			return err
		}
		var value string
		if err := d.Decode(&value); err != nil {
			return err
		}
		if room -= len(key.(string)) + len(value); room < 0 { // an object's keys are strings
			break
		}
		(*l)[key.(string)] = value
	}
	return nil
}

func decodeList[T any](b []byte, most int) ([]T, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	begin, err := d.Token()
	if err != nil || begin == nil { // null is no list
		return nil, err
	}
	if begin != json.Delim('[') {
		return nil, fmt.Errorf("%.20q is no list", b)
	}
	list := []T{}
	for d.More() {
		if len(list) == most {
			return nil, fmt.Errorf("a list has more than the %d entries that are allowed", most)
		}
		var v T
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// Any is one of the records.
type Any interface {
	Run | Pod | Alive | Waiting | Pointer | Seal
}

// Limit is the most bytes that a record of this kind may have. What is larger, Decode refuses.
func Limit[T Any]() int64 {
	var v T
	switch any(v).(type) {
	case Run:
		return 2 << 20 // Kubernetes keeps no object over 1.5 MiB, and all that it holds is of one
	case Pod:
		return 1 << 20
	case Seal:
		return 256 << 10
	default:
		return 64 << 10
	}
}

// Encode makes the object's bytes.
func Encode[T Any](v T) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return append(b, '\n'), nil
}

// Decode reads the object's bytes. What it returns takes hardly more memory than they do, and its
// texts for people are one line each, without what a terminal obeys.
func Decode[T Any](b []byte) (T, error) {
	var v, zero T
	if limit := Limit[T](); int64(len(b)) > limit {
		return zero, fmt.Errorf("decode %T: has more than the %d bytes that are allowed", v, limit)
	}
	if !utf8.Valid(b) { // three bytes would stand for each that is not
		return zero, fmt.Errorf("decode %T: is no UTF-8", v)
	}
	if err := json.Unmarshal(b, &v); err != nil { // which holds a number that does not fit, however long
		return zero, fmt.Errorf("decode %T: %s", v, visible.Line(err.Error(), maxText))
	}
	if r, ok := any(&v).(bounded); ok {
		if err := r.bound(); err != nil {
			return zero, fmt.Errorf("decode %T: %w", v, err)
		}
	}
	return v, nil
}

// bounded are records with fields of text.
type bounded interface {
	// bound cuts texts, and refuses what can be no name.
	bound() error
}

func (r *Run) bound() error {
	r.Reason = visible.Line(r.Reason, maxText)
	return errors.Join(
		checkName("kind", string(r.Kind)), checkName("namespace", r.Namespace),
		checkName("name", r.Name), checkName("uid", r.UID),
		checkName("namespaceUID", r.NamespaceUID), checkName("pipeline", r.Pipeline),
		checkName("state", string(r.State)), checkNames("tasks", r.Tasks))
}

func (p *Pod) bound() error {
	errs := []error{
		checkName("namespace", p.Namespace), checkName("podName", p.PodName),
		checkName("podUID", p.PodUID), checkName("taskRun", p.TaskRun),
		checkName("taskRunUID", p.TaskRunUID), checkName("pipelineTask", p.PipelineTask),
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		c.Skipped = visible.Line(c.Skipped, maxText)
		errs = append(errs, checkName("a container's name", c.Name),
			checkName("a container's kind", string(c.Kind)))
	}
	return errors.Join(errs...)
}

func (w *Waiting) bound() error {
	w.Reason, w.Message = visible.Line(w.Reason, maxName), visible.Line(w.Message, maxText)
	return nil
}

func (p *Pointer) bound() error {
	return errors.Join(
		checkName("namespace", p.Run.Namespace), checkName("name", p.Run.Name),
		checkName("uid", p.Run.UID), checkName("taskRun", p.TaskRun), checkName("podUID", p.PodUID))
}

func (s *Seal) bound() error {
	s.End = End(visible.Line(string(s.End), maxName))
	if s.Exit != nil {
		s.Exit.Signal = visible.Line(s.Exit.Signal, maxName)
	}
	_, err := hex.DecodeString(s.SHA256)
	if n := len(s.SHA256); n > 0 && (err != nil || n != 64 || strings.ToLower(s.SHA256) != s.SHA256) {
		return fmt.Errorf("sha256 %.80q is not 64 digits of hex", s.SHA256)
	}
	return nil
}

func checkNames(what string, names []string) error {
	for _, s := range names {
		if err := checkName(what, s); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses only what is too long. Whether it is a name, who uses it as one asks.
func checkName(what, s string) error {
	if len(s) > maxName {
		return fmt.Errorf("%s: %.40q… has %d bytes, %d are allowed", what, s, len(s), maxName)
	}
	return nil
}
