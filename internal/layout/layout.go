// Package layout owns every object name: where a run, a pod, a container's segments and the index objects are in the bucket. Each name's
// Format and Parse stand side by side. Names are relative to the prefix that the operator chose; package objectstore adds it.
//
// The grammar is docs/format.md. It is a wire format and must not change.
package layout

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// Version is the first part of the name of every log object.
	Version = "v1"
	// IndexVersion is the first part of the name of every index object.
	IndexVersion = "v1-index"
	// CAKey is the object that holds the certificates which sign the ticket service's now, in PEM.
	// Pods keep those of the time when they were made, and look here when these do not fit any more.
	CAKey = "v1-service/ca.pem"
	// NoPipelineRun stands in the place of the PipelineRun's name where a TaskRun has none. No Kubernetes name can be "_". The place of
	// the run's UID then holds the TaskRun's.
	NoPipelineRun = "_"

	// RunFile, PodFile, AliveFile, SealFile and WaitingFile are the last parts of the objects beside the segments.
	RunFile     = "run.json"
	PodFile     = "pod.json"
	AliveFile   = "alive.json"
	SealFile    = "seal.json"
	WaitingFile = "waiting.json"

	segmentSuffix = ".log.zst"
	// segmentTime has no colons, which some tools dislike in object names. Its length is fixed, so text order is time order.
	segmentTime = "20060102T150405.000000000Z"
)

// ErrName is wrapped by every error of a Parse function.
var ErrName = errors.New("not a shiplog object name")

// Run names a PipelineRun, or a TaskRun that has none.
type Run struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"` // NoPipelineRun for a TaskRun without PipelineRun
	UID       string `json:"uid"`  // of the PipelineRun, or of the TaskRun where Name is NoPipelineRun
}

// Pod names one pod of a TaskRun: a retry is another pod.
type Pod struct {
	Run
	TaskRun string
	PodUID  string
}

// GonePodUID stands in the place of Pod.PodUID where a pod was gone before anybody read its UID.
// Its number is that of the TaskRun's try, from 0.
func GonePodUID(try int) string { return fmt.Sprintf("gone-%d", try) }

// Container names one container's log.
type Container struct {
	Pod
	Container string
}

// NamespacePrefix is the prefix of every log object of a namespace.
func NamespacePrefix(namespace string) string { return Version + "/" + namespace + "/" }

// NamePrefix is the prefix of all runs of one name in a namespace.
func NamePrefix(namespace, name string) string { return NamespacePrefix(namespace) + name + "/" }

// Prefix is the prefix of every object of the run.
func (r Run) Prefix() string { return NamePrefix(r.Namespace, r.Name) + r.UID + "/" }

// RunKey is the name of the run's run.json.
func (r Run) RunKey() string { return r.Prefix() + RunFile }

// Validate says whether the parts can stand in a name.
func (r Run) Validate() error {
	if err := CheckName("namespace", r.Namespace); err != nil {
		return err
	}
	if r.Name != NoPipelineRun {
		if err := CheckName("run", r.Name); err != nil {
			return err
		}
	}
	return CheckUID("run UID", r.UID)
}

// Prefix is the prefix of every object of the pod: what an upload ticket is bound to.
func (p Pod) Prefix() string { return p.Run.Prefix() + p.TaskRun + "/" + p.PodUID + "/" }

// PodKey is the name of the pod's pod.json.
func (p Pod) PodKey() string { return p.Prefix() + PodFile }

// AliveKey is the name of the pod's alive.json.
func (p Pod) AliveKey() string { return p.Prefix() + AliveFile }

// Validate says whether the parts can stand in a name.
func (p Pod) Validate() error {
	if err := p.Run.Validate(); err != nil {
		return err
	}
	if err := CheckName("TaskRun", p.TaskRun); err != nil {
		return err
	}
	return CheckUID("pod UID", p.PodUID)
}

// Prefix is the prefix of the container's segments and seal.
func (c Container) Prefix() string { return c.Pod.Prefix() + c.Container + "/" }

// SealKey is the name of the container's seal.json.
func (c Container) SealKey() string { return c.Prefix() + SealFile }

// WaitingKey is the name of the container's waiting.json.
func (c Container) WaitingKey() string { return c.Prefix() + WaitingFile }

// SegmentKey is the name of one of the container's segments.
func (c Container) SegmentKey(s Segment) string { return c.Prefix() + s.Name() }

// Validate says whether the parts can stand in a name.
func (c Container) Validate() error {
	if err := c.Pod.Validate(); err != nil {
		return err
	}
	return CheckName("container", c.Container)
}

// Segment describes a segment by its name alone.
//
// There are two counts of bytes. Offset and Length count archive bytes: the CRI lines, as zstdcat prints them. PrintedOffset and Printed count
// what the container printed, without prefixes.
type Segment struct {
	Offset        int64 // of the first archive byte within the container's log
	Length        int64 // archive bytes
	PrintedOffset int64 // printed bytes before this segment, both streams together
	Printed       int64 // printed bytes in it
	Line          int64 // newlines printed before this segment, both streams together
	Lines         int64 // newlines printed in it
	First, Last   time.Time
}

// End is the offset behind the last archive byte.
func (s Segment) End() int64 { return s.Offset + s.Length }

// Name formats the last part of a segment's name. Its fields have fixed widths, so that a LIST returns segments in the order of the log.
func (s Segment) Name() string {
	return fmt.Sprintf("%020d-%010d-%020d-%010d-%012d-%010d-%s-%s%s",
		s.Offset, s.Length, s.PrintedOffset, s.Printed, s.Line, s.Lines,
		s.First.UTC().Format(segmentTime), s.Last.UTC().Format(segmentTime), segmentSuffix)
}

// segmentWidths are the widths of the numbers in a segment's name, in order.
var segmentWidths = [6]int{20, 10, 20, 10, 12, 10}

// ParseSegmentName reads what Name formats, and nothing else.
func ParseSegmentName(name string) (Segment, error) {
	bad := func(why string) (Segment, error) {
		return Segment{}, fmt.Errorf("%w: segment %q: %s", ErrName, name, why)
	}
	rest, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok {
		return bad("does not end with " + segmentSuffix)
	}
	fields := strings.Split(rest, "-")
	if len(fields) != len(segmentWidths)+2 {
		return bad("does not have 8 fields")
	}
	var n [len(segmentWidths)]int64
	for i, width := range segmentWidths {
		v, err := parseFixed(fields[i], width)
		if err != nil {
			return bad(err.Error())
		}
		n[i] = v
	}
	s := Segment{Offset: n[0], Length: n[1], PrintedOffset: n[2], Printed: n[3], Line: n[4], Lines: n[5]}
	for i, t := range []*time.Time{&s.First, &s.Last} {
		v, err := time.Parse(segmentTime, fields[len(segmentWidths)+i])
		if err != nil {
			return bad("time is not like " + segmentTime)
		}
		*t = v
	}
	if s.End() < s.Offset || s.PrintedOffset+s.Printed < s.PrintedOffset {
		return bad("offset and length overflow")
	}
	if s.Name() != name { // such as a time with fewer digits
		return bad("is not in canonical form")
	}
	return s, nil
}

// Kind tells the objects of a run apart.
type Kind int

// The kinds of log objects.
const (
	KindRun     Kind = iota + 1 // run.json
	KindPod                     // pod.json
	KindAlive                   // alive.json
	KindSeal                    // seal.json
	KindSegment                 // *.log.zst
	KindWaiting                 // waiting.json
)

// Key is a parsed object name. The fields that the kind does not use are empty.
type Key struct {
	Kind      Kind
	Container Container
	Segment   Segment
}

// ParseKey reads the name of any object under Version.
func ParseKey(key string) (Key, error) {
	part := strings.Split(key, "/")
	bad := func(err error) (Key, error) { return Key{}, fmt.Errorf("%w: %q: %w", ErrName, key, err) }
	if part[0] != Version {
		return bad(errors.New("does not begin with " + Version + "/"))
	}
	var k Key
	switch len(part) {
	case 5: // v1/ns/run/uid/file
		if part[4] != RunFile {
			return bad(errors.New("unknown object of a run"))
		}
		k.Kind = KindRun
	case 7: // v1/ns/run/uid/taskRun/podUID/file
		switch part[6] {
		case PodFile:
			k.Kind = KindPod
		case AliveFile:
			k.Kind = KindAlive
		default:
			return bad(errors.New("unknown object of a pod"))
		}
	case 8: // v1/ns/run/uid/taskRun/podUID/container/file
		switch part[7] {
		case SealFile:
			k.Kind = KindSeal
		case WaitingFile:
			k.Kind = KindWaiting
		default:
			s, err := ParseSegmentName(part[7])
			if err != nil {
				return bad(err)
			}
			k.Kind, k.Segment = KindSegment, s
		}
	default:
		return bad(errors.New("has the wrong number of parts"))
	}
	k.Container.Run = Run{Namespace: part[1], Name: part[2], UID: part[3]}
	err := k.Container.Run.Validate()
	if len(part) >= 7 {
		k.Container.TaskRun, k.Container.PodUID = part[4], part[5]
		err = k.Container.Pod.Validate()
	}
	if len(part) == 8 {
		k.Container.Container = part[6]
		err = k.Container.Validate()
	}
	if err != nil {
		return bad(err)
	}
	return k, nil
}

// RunKind is what a run is in Tekton.
type RunKind string

// The kinds of runs.
const (
	PipelineRun RunKind = "pipelinerun"
	TaskRun     RunKind = "taskrun" // without a PipelineRun
)

// RunIndex is an index object by start time, whose name says all that a listing of runs needs. Names sort newest first. They are in folders of 1,000 s each: the order is the same, but a
// server that keeps objects as files reads all names of a folder to answer with the first of them (see docs/decisions.md).
type RunIndex struct {
	Namespace string
	Created   time.Time // creationTimestamp: whole seconds, which never change, so the name is the same whoever writes it
	Kind      RunKind
	Name      string // of the PipelineRun or TaskRun
	UID       string
}

// maxUnix makes the newest time the smallest text: ten digits last until the year 2286.
const maxUnix = 9_999_999_999

// RunIndexPrefix is the prefix of a namespace's RunIndex objects.
func RunIndexPrefix(namespace string) string { return IndexVersion + "/" + namespace + "/runs/" }

// Key formats the object name. "_" separates the fields, since no Kubernetes name contains it.
func (x RunIndex) Key() string {
	inverted := maxUnix - x.Created.Unix()
	return fmt.Sprintf("%s%07d/%03d_%s_%s_%s.json", RunIndexPrefix(x.Namespace), inverted/1000, inverted%1000, x.Kind, x.Name, x.UID)
}

// Run is the run that the index object stands for.
func (x RunIndex) Run() Run {
	if x.Kind == TaskRun {
		return Run{Namespace: x.Namespace, Name: NoPipelineRun, UID: x.UID}
	}
	return Run{Namespace: x.Namespace, Name: x.Name, UID: x.UID}
}

// ParseRunIndexKey reads what RunIndex.Key formats.
func ParseRunIndexKey(key string) (RunIndex, error) {
	bad := func(err error) (RunIndex, error) { return RunIndex{}, fmt.Errorf("%w: %q: %w", ErrName, key, err) }
	part := strings.Split(key, "/")
	if len(part) != 5 || part[0] != IndexVersion || part[2] != "runs" {
		return bad(errors.New("is not like " + IndexVersion + "/<namespace>/runs/<thousands of seconds>/<name>"))
	}
	thousands, err := parseFixed(part[3], 7)
	if err != nil {
		return bad(err)
	}
	name, ok := strings.CutSuffix(part[4], ".json")
	fields := strings.Split(name, "_")
	if !ok || len(fields) != 4 {
		return bad(errors.New("does not have 4 fields and .json"))
	}
	seconds, err := parseFixed(fields[0], 3)
	if err != nil {
		return bad(err)
	}
	x := RunIndex{Namespace: part[1], Created: time.Unix(maxUnix-thousands*1000-seconds, 0).UTC(), Kind: RunKind(fields[1]), Name: fields[2], UID: fields[3]}
	if x.Kind != PipelineRun && x.Kind != TaskRun {
		return bad(fmt.Errorf("unknown kind of run %q", fields[1]))
	}
	if err := errors.Join(CheckName("namespace", x.Namespace), CheckName("run", x.Name), CheckUID("run UID", x.UID)); err != nil {
		return bad(err)
	}
	return x, nil
}

// PodIndexPrefix is the prefix of the pointers of all pods that had this name.
func PodIndexPrefix(namespace, podName string) string {
	return IndexVersion + "/" + namespace + "/pods/" + podName + "/"
}

// PodIndexKey is the name of a pod's pointer by pod name.
func PodIndexKey(namespace, podName, podUID string) string {
	return PodIndexPrefix(namespace, podName) + podUID + ".json"
}

// ParsePodIndexKey reads what PodIndexKey formats.
func ParsePodIndexKey(key string) (namespace, podName, podUID string, err error) {
	part := strings.Split(key, "/")
	if len(part) != 5 || part[0] != IndexVersion || part[2] != "pods" {
		return "", "", "", fmt.Errorf("%w: %q: is not like %s/<namespace>/pods/<pod>/<uid>.json", ErrName, key, IndexVersion)
	}
	uid, ok := strings.CutSuffix(part[4], ".json")
	if !ok {
		return "", "", "", fmt.Errorf("%w: %q: does not end with .json", ErrName, key)
	}
	if err := errors.Join(CheckName("namespace", part[1]), CheckName("pod", part[3]), CheckUID("pod UID", uid)); err != nil {
		return "", "", "", fmt.Errorf("%w: %q: %w", ErrName, key, err)
	}
	return part[1], part[3], uid, nil
}

// UIDIndexKey is the name of the pointer by the UID of a PipelineRun or TaskRun.
func UIDIndexKey(namespace, uid string) string {
	return IndexVersion + "/" + namespace + "/uids/" + uid + ".json"
}

// ParseUIDIndexKey reads what UIDIndexKey formats.
func ParseUIDIndexKey(key string) (namespace, uid string, err error) {
	part := strings.Split(key, "/")
	if len(part) != 4 || part[0] != IndexVersion || part[2] != "uids" {
		return "", "", fmt.Errorf("%w: %q: is not like %s/<namespace>/uids/<uid>.json", ErrName, key, IndexVersion)
	}
	uid, ok := strings.CutSuffix(part[3], ".json")
	if !ok {
		return "", "", fmt.Errorf("%w: %q: does not end with .json", ErrName, key)
	}
	if err := errors.Join(CheckName("namespace", part[1]), CheckUID("UID", uid)); err != nil {
		return "", "", fmt.Errorf("%w: %q: %w", ErrName, key, err)
	}
	return part[1], uid, nil
}

// parseFixed reads a decimal number of exactly width digits.
func parseFixed(s string, width int) (int64, error) {
	if len(s) != width {
		return 0, fmt.Errorf("%q does not have %d digits", s, width)
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%q is not a number", s)
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is out of range", s)
	}
	return n, nil
}

// CheckName accepts, as what it is called in the error, what Kubernetes accepts as an object's name (a DNS-1123 subdomain), which leaves no room for path tricks.
func CheckName(what, s string) error {
	if s == "" || len(s) > 253 {
		return fmt.Errorf("%s %q has %d characters, not 1 to 253", what, s, len(s))
	}
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		inner := (c == '-' || c == '.') && i > 0 && i < len(s)-1
		if !letter && !inner {
			return fmt.Errorf("%s %q is not a Kubernetes name", what, s)
		}
	}
	if strings.Contains(s, "..") {
		return fmt.Errorf("%s %q is not a Kubernetes name", what, s)
	}
	return nil
}

// CheckUID accepts letters, digits and dashes, up to 64. The API server makes UUIDs, but promises only that a UID is unique text.
func CheckUID(what, s string) error {
	if s == "" || len(s) > 64 {
		return fmt.Errorf("%s %q has %d characters, not 1 to 64", what, s, len(s))
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("%s %q is not a UID", what, s)
		}
	}
	return nil
}
