package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// waitingAt makes waitingPods that ask an API server which answers as told.
func waitingAt(t *testing.T, answer http.HandlerFunc) *waitingPods {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	core, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return &waitingPods{
		guard: newGuard(20*time.Second, time.Minute), core: core,
		hangs: map[types.UID]*hangingPod{}, log: slog.New(slog.DiscardHandler),
	}
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a test fails without the answer
}

func answerStatus(w http.ResponseWriter, status int, reason metav1.StatusReason) {
	answerJSON(w, status, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(status), Reason: reason,
	})
}

// TestEventsAway: what the events of a pod have said once stays known while they cannot be had.
func TestEventsAway(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	long := metav1.NewTime(now.Add(-time.Hour))
	away := false
	w := waitingAt(t, func(w http.ResponseWriter, _ *http.Request) {
		if away {
			answerStatus(w, http.StatusInternalServerError, metav1.StatusReasonInternalError)
			return
		}
		answerJSON(w, http.StatusOK, corev1.EventList{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "EventList"},
			Items: []corev1.Event{{
				Source: corev1.EventSource{Component: "kubelet"}, Reason: "Pulling",
				InvolvedObject: corev1.ObjectReference{
					FieldPath: "spec.initContainers{" + contract.ShipperContainer + "}",
				},
				FirstTimestamp: long, LastTimestamp: long,
			}},
		})
	})
	w.guard.now = func() time.Time { return now }
	pod := newGuardTest().pod("a", "1", corev1.PodStatus{
		Phase: corev1.PodPending, StartTime: &long,
		InitContainerStatuses: []corev1.ContainerStatus{{
			Name: contract.ShipperContainer, State: waitingState("ContainerCreating", ""),
		}},
	})
	pod.Spec = decodeTestPod(t, injectedTestPod(t)).Spec
	for _, away = range []bool{false, true, false} {
		found := w.hanging(t.Context(), []*corev1.Pod{pod})
		if found[pod.UID].Reason != reasonHangs {
			t.Errorf("away: %t: found %v, want %s", away, found, reasonHangs)
		}
		now = now.Add(eventsRetry)
	}
}

// TestEventGivenUp: an event that can never be made is not tried for ever, and others are.
func TestEventGivenUp(t *testing.T) {
	for _, tc := range []struct {
		name   string
		status int
		reason metav1.StatusReason
		done   bool
	}{
		{"made", http.StatusCreated, "", true},
		{"another replica has made it", http.StatusConflict, metav1.StatusReasonAlreadyExists, true},
		{"forbidden", http.StatusForbidden, metav1.StatusReasonForbidden, true},
		{"no namespace", http.StatusNotFound, metav1.StatusReasonNotFound, true},
		{"not valid", http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, true},
		{"a fault", http.StatusInternalServerError, metav1.StatusReasonInternalError, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := waitingAt(t, func(w http.ResponseWriter, _ *http.Request) {
				if tc.reason == "" {
					answerJSON(w, tc.status, corev1.Event{
						TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
					})
					return
				}
				answerStatus(w, tc.status, tc.reason)
			})
			w.defaults = testSettings()
			run := &runObject{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b", UID: "u"}}
			run.refusal = &podRefusal{"denied the request", 0}
			w.refusals = []refusedPod{{taskRun: run, ours: true}}
			w.tellRefusals(t.Context())
			if done := len(w.refusals) == 0; done != tc.done {
				t.Errorf("there is nothing more to do: %t, want %t", done, tc.done)
			}
		})
	}
}
