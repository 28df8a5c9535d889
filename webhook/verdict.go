package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// standing is how far a log is from being whole and durable. Of several the largest counts.
type standing int

const (
	durable  standing = iota + 1 // sealed, and all there
	doubtful                     // the same, but some of what a killed container printed last may be missing
	lossy                        // the same, but bytes were lost before they were archived: the log says where
	missed                       // a step that was not captured: its pod alone has its log, or had it
	damaged                      // sealed, and not all there
	silent                       // not sealed, and its pod is not heard of any more
	growing                      // not sealed, and its pod lives
)

// sealed is the value of contract.SealedAnnotation, which only those have that are done.
func (s standing) sealed() string {
	switch {
	case s >= damaged:
		return contract.SealedPartial
	case s == missed:
		return contract.SealedMissed
	}
	return contract.SealedTrue
}

// finding says of one log that something is wrong with it.
type finding struct {
	taskRun string
	where   string // as a person calls it
	standing
	why string
}

// verdict is what the archive says of a run that has ended.
type verdict struct {
	standing                     // of the whole
	taskRuns map[string]standing // by name. A TaskRun that has opted out is not among them
	findings []finding           // in the order of the tree; those of pods that are not in the archive last
}

// steps counts the steps that were missed.
func (v verdict) steps() (n int) {
	for _, f := range v.findings {
		if f.standing == missed {
			n++
		}
	}
	return n
}

// judge holds a run against the archive. Nothing but what is there counts: a container is as
// backend.Tree finds it. Of the pods in absent the archive does not have a record either.
func judge(tree *backend.Tree, absent []missedPod, now time.Time) verdict {
	v := verdict{standing: durable, taskRuns: map[string]standing{}}
	add := func(f finding) {
		v.standing, v.taskRuns[f.taskRun] = max(v.standing, f.standing), max(v.taskRuns[f.taskRun], f.standing)
		if f.standing > durable {
			v.findings = append(v.findings, f)
		}
	}
	for place := range tree.Containers() {
		c := place.Container
		f := finding{taskRun: place.TaskRun.Name, where: placeName(place), standing: durable}
		switch {
		case c.Status == backend.NotCaptured:
			continue
		case c.Status == backend.Missed:
			f.standing, f.why = missed, c.Why
		case c.Status == backend.Gaps:
			f.standing, f.why = lossy, lost(c.Seal)
		case c.Status == backend.Damaged && c.Seal != nil:
			f.standing, f.why = damaged, c.Why
		// A hole in a log without a seal, or a seal that cannot be read: as long as the pod lives it may become better.
		case c.Status == backend.Running, c.Status == backend.Damaged && now.Sub(place.Pod.LastSeen) < backend.AliveWithin:
			f.standing, f.why = growing, "not sealed yet"
		case c.Status == backend.Verified && c.Seal.End == record.EndKilled && !c.Seal.Drained:
			f.standing, f.why = doubtful, c.Why
		case c.Status != backend.Verified:
			f.standing, f.why = silent, fmt.Sprintf("%d bytes are archived, the log is not sealed, and %s", c.Bytes, c.Why)
		}
		add(f)
	}
	for _, t := range tree.TaskRuns {
		for _, p := range t.Pods {
			if len(p.Containers) > 0 {
				continue
			}
			f := finding{
				taskRun: t.Name, where: t.UniqueLabel(), standing: silent,
				why: "pod.json of " + p.Key.PodUID + " cannot be read, and there is no log",
			}
			if now.Sub(p.LastSeen) < backend.AliveWithin {
				f.standing = growing
			}
			add(f)
		}
	}
	for _, p := range absent {
		f := finding{
			taskRun: p.task.Name, where: cmp.Or(p.task.task, p.task.Name), standing: missed,
			why: "nothing of pod " + p.name + " is in the archive",
		}
		if p.captured() { // its shipper may come yet
			f.standing = silent
		}
		add(f)
	}
	return v
}

// unreadable is what is said of a run whose logs cannot be read, such as one of which the archive has too much: of all of its TaskRuns, since nothing is known of any. Why is in the webhook's log alone, since it may name
// what tenants need not know of the store.
func unreadable(tasks []*runObject) verdict {
	v := verdict{standing: silent, taskRuns: map[string]standing{}, findings: []finding{{where: "all logs", standing: silent, why: "they could not be read for " + unreadableAfter.String()}}}
	for _, t := range tasks {
		v.taskRuns[t.Name] = silent
	}
	return v
}

// placeName is what a person calls a container: task, try and step.
func placeName(p backend.Place) string {
	name := p.TaskRun.UniqueLabel()
	if p.Retry > 0 {
		name += fmt.Sprintf(" retry %d", p.Retry)
	}
	return name + "/" + p.Container.Label()
}

// lost says how many bytes a sealed log lacks, and why.
func lost(s *backend.Seal) string {
	var reasons []string
	atLeast := ""
	for _, gap := range s.Gaps {
		if reason := string(gap.Reason); !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
		if gap.Unknown {
			atLeast = "at least "
		}
	}
	return fmt.Sprintf("%s%d bytes lost in gaps of the log: %d (%s)", atLeast, s.Lost.Total(), s.GapCount, strings.Join(reasons, ", "))
}

// described is how many findings are told in full: the rest is in the log, and on the page.
const described = 5

// describe joins the findings of this standing or worse, of one TaskRun or (empty) of all.
func (v verdict) describe(taskRun string, least standing) string {
	var parts []string
	left := 0
	for _, f := range v.findings {
		switch {
		case f.standing < least || taskRun != "" && f.taskRun != taskRun:
		case len(parts) == described:
			left++
		default:
			parts = append(parts, f.where+": "+f.why)
		}
	}
	text := strings.Join(parts, "; ")
	if left > 0 {
		text += fmt.Sprintf("; and %d more", left)
	}
	return text
}
