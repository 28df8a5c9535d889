package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const (
	// mostEvents bounds how many events of a pod are read.
	mostEvents = 100
	// mountSilence is for how long a kubelet may say nothing of a volume that it cannot mount: it
	// tries at least every 2 min 2 s.
	mountSilence = 3 * time.Minute
)

var (
	// unmounted is WaitForAttachAndMount's list in pkg/kubelet/volumemanager of Kubernetes.
	unmounted = regexp.MustCompile(`unmounted volumes=\[([^\]]*)\]`)
	// failedVolume is how pkg/volume/util/operationexecutor names one.
	failedVolume = regexp.MustCompile(`for volume "([^"]*)"`)
)

// readEvents says whether a pod that has not started waits for us, by the kubelet's events of it.
//
// The kubelet tells of our container when the pod's volumes and its sandbox are there: that it
// pulls the image, and that it has made and started the container. Since nothing else of the pod
// but sidecars of others comes before it, a pod that does not go on for hangAfter from then waits
// for it. Before that, a volume may be missing. It is our fault if volumes of ours are missing and
// none of the user's.
func readEvents(events []corev1.Event, now time.Time) (record.Waiting, bool) {
	var at time.Time // when the kubelet came to our container
	var last, volume corev1.Event
	theirs := false
	for _, e := range events {
		switch {
		case e.Source.Component != "kubelet":
		case e.InvolvedObject.FieldPath == "spec.initContainers{"+contract.ShipperContainer+"}":
			if first := e.FirstTimestamp.Time; at.IsZero() || first.Before(at) {
				at = first
			}
			if !e.LastTimestamp.Time.Before(last.LastTimestamp.Time) {
				last = e
			}
		case e.Reason == "FailedMount" && now.Sub(e.LastTimestamp.Time) < mountSilence:
			ours, others := volumesIn(e.Message)
			theirs = theirs || others
			if ours {
				volume = e
			}
		}
	}
	switch {
	case !at.IsZero() && now.Sub(at) >= hangAfter:
		return record.Waiting{
			Reason: reasonHangs,
			Message: cut(fmt.Sprintf("the last that the kubelet did is %q", last.Message),
				maxFailure),
		}, true
	case at.IsZero() && volume.Message != "" && !theirs:
		return record.Waiting{Reason: reasonMount, Message: cut(volume.Message, maxFailure)}, true
	}
	return record.Waiting{}, false
}

// volumesIn says whether the message of a failed mount names volumes of ours, and others.
func volumesIn(message string) (ours, others bool) {
	var names []string
	for _, m := range unmounted.FindAllStringSubmatch(message, -1) {
		names = append(
			names,
			strings.FieldsFunc(m[1], func(r rune) bool { return r == ' ' || r == ',' })...)
	}
	for _, m := range failedVolume.FindAllStringSubmatch(message, -1) {
		names = append(names, m[1])
	}
	ours = slices.ContainsFunc(names, ourVolume)
	others = slices.ContainsFunc(names, func(name string) bool { return !ourVolume(name) })
	return ours, others
}
