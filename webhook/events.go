package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// warn makes an event of the type Warning. One that has the name already stays as it is: replicas that say the same thing under the same name say it once.
func warn(ctx context.Context, core kubernetes.Interface, at time.Time, name, reason string, about corev1.ObjectReference, message string) error {
	now := metav1.NewTime(at)
	_, err := core.CoreV1().Events(about.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: name, Namespace: about.Namespace},
		InvolvedObject: about, Type: corev1.EventTypeWarning, Reason: reason, Message: cut(message, maxFailure),
		Source: corev1.EventSource{Component: "shiplog-webhook"}, ReportingController: "shiplog.dev/webhook", ReportingInstance: "shiplog-webhook",
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the event %s for %s %s/%s: %w", reason, about.Kind, about.Namespace, about.Name, err)
	}
	return nil
}

// cut shortens text to so many bytes, and leaves no half of a character.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "")
}
