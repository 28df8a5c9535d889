package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// podRefusal is a pod of a TaskRun that was not made. TaskRuns hold one each, if any.
type podRefusal struct {
	message string
	try     int // of the TaskRun's, from 0
}

// refusalOf reads the latest refusal from a TaskRun's status. Tekton fails the TaskRun, or tries it
// again, with the API server's words in the condition (handlePodCreationError in its
// pkg/reconciler/taskrun). The same reason stands for a container that cannot be made; then there
// is a pod.
func refusalOf(status map[string]any) (latest *podRefusal) {
	for i, try := range triesOf(status) {
		condition := succeeded(try)
		reason, _ := condition["reason"].(string)
		message, _ := condition["message"].(string)
		pod, _ := try["podName"].(string)
		if condition["status"] == "False" && pod == "" &&
			(reason == "PodCreationFailed" || reason == "PodAdmissionFailed") {
			latest = &podRefusal{cut(message, maxFailure), i}
		}
	}
	return latest
}

// policyWords are in the API server's answer where a policy has refused an object: a validating
// webhook (also a ValidatingAdmissionPolicy), OpenShift's SecurityContextConstraints, the plug-in
// ImagePolicyWebhook, or PodTolerationRestriction: that adds a toleration to a pod that is not
// BestEffort any more. Pod Security names the containers that it means.
var policyWords = []string{
	"denied the request", "denied request", "security context constraint",
	"image policy webhook backend denied", "images rejected by webhook backend",
	"pod tolerations (possibly merged with namespace default tolerations) conflict",
}

// shipperWords are what we add to a pod. Our container is the first of its list, but where a mesh's
// proxy is in front of it: who refuses that refuses the pod without us, too.
func shipperWords(image string) []string {
	name, _, _ := strings.Cut(image, "@")
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		name = name[:i]
	}
	words := []string{
		contract.ShipperContainer,
		contract.SpoolVolume,
		contract.TokenVolume,
		"initContainers[0]",
		"initContainers/0/",
	}
	if name != "" {
		words = append(words, name)
	}
	return words
}

// taskRunRefused hears of a TaskRun whose pod was refused.
func (w *waitingPods) taskRunRefused(run *runObject, early bool) {
	if hasOptedOut(run) {
		return
	}
	contains := func(words []string) bool {
		for _, word := range words {
			if strings.Contains(run.refusal.message, word) {
				return true
			}
		}
		return false
	}
	r := refusedPod{taskRun: run, ours: contains(shipperWords(w.defaults.shipperImage)), early: early}
	if !r.ours && !contains(policyWords) {
		return // such as Tekton's own error, or a service account that is not there
	}
	until, stops := w.guard.refused(r)
	if !stops {
		return
	}
	r.until = until
	w.refused.Inc()
	w.log.Warn("a pod was refused with shiplog's container in it: injecting stops in the namespace",
		"namespace", run.Namespace, "taskRun", run.Name,
		"until", r.until, "certain", r.ours, "message", run.refusal.message)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refusals = append(w.refusals, r)
}

// tellRefusals makes the events of refusals that injecting stopped for. It tries again what fails.
func (w *waitingPods) tellRefusals(ctx context.Context) {
	w.mu.Lock()
	refusals := w.refusals
	w.refusals = nil
	w.mu.Unlock()
	for _, r := range refusals {
		run := r.taskRun
		perhaps := ""
		if !r.ours {
			perhaps = ", perhaps because of it"
		}
		about := corev1.ObjectReference{
			APIVersion: tektonV1.String(), Kind: taskRunOwner.kind,
			Namespace: run.Namespace, Name: run.Name, UID: run.UID,
		}
		name := fmt.Sprintf("shiplog-refused-%s-%d", run.UID, run.refusal.try)
		told := w.event(ctx, name, "ShiplogRefused", about, fmt.Sprintf(
			"a policy refused this TaskRun's pod with shiplog's container in it%s; "+
				"new pods of the namespace are made without it until %s: "+
				"allow the image %s, or take the namespace's label %s away",
			perhaps, r.until.UTC().Format(time.RFC3339), w.defaults.shipperImage, contract.InjectKey))
		if !told {
			w.mu.Lock()
			w.refusals = append(w.refusals, r)
			w.mu.Unlock()
		}
	}
}
