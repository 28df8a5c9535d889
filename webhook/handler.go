package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

const (
	// admissionPath is where the API server posts AdmissionReviews.
	admissionPath = "/mutate-pods"
	// maxReview bounds an AdmissionReview in bytes: two objects of 3 MiB and room for the rest, as in controller-runtime.
	maxReview = 7 << 20
	// maxWarning bounds a warning: the API server cuts all warnings of a response off at 4096 bytes, and asks for no more than 256 in each.
	maxWarning = 256
)

// podAdmission injects shiplog into TaskRun pods. It never denies.
//
// It is an http.Handler as well, in the place of controller-runtime's admission.Webhook: that one answers "allowed: false" to a body that it cannot
// read and to a panic, and a denial holds whatever the failurePolicy says.
type podAdmission struct {
	// settings are those of a namespace. With an error they are the defaults, since what the
	// namespace sets itself cannot be used.
	settings func(namespace string) (settings, error)
	sidecars func() nativeSidecars
	waited   func() bool // whether TaskRuns wait for the shipper; nil: only those whose pods show it
	caBundle func() (string, error)
	limits   *limits // nil: every pod fits
	guard    *guard  // nil: shippers can always be started
	metrics  *admissionMetrics
	log      *slog.Logger
}

var (
	_ admission.Handler = (*podAdmission)(nil)
	_ http.Handler      = (*podAdmission)(nil)
)

// ServeHTTP answers an AdmissionReview with an AdmissionReview that allows. One whose body cannot be read has no UID to answer to; the API server
// takes that for a failed call, which failurePolicy Ignore ignores.
func (p *podAdmission) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req, err := readReview(w, r)
	resp := p.admit(req, err)
	w.Header().Set("Content-Type", "application/json")
	err = json.NewEncoder(w).Encode(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Response: &resp.AdmissionResponse,
	})
	if err != nil {
		p.log.Warn("the API server did not take the answer; it admits the pod as it is", "error", err)
	}
}

// readReview reads the request of an AdmissionReview.
func readReview(w http.ResponseWriter, r *http.Request) (admission.Request, error) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxReview)).Decode(&review); err != nil {
		return admission.Request{}, fmt.Errorf("read AdmissionReview: %w", err)
	}
	if review.Request == nil {
		return admission.Request{}, errors.New("read AdmissionReview: it holds no request")
	}
	return admission.Request{AdmissionRequest: *review.Request}, nil
}

// Handle implements admission.Handler.
func (p *podAdmission) Handle(_ context.Context, req admission.Request) admission.Response {
	return p.admit(req, nil)
}

// admit is the one place that fails open: whatever goes wrong in reading (err), deciding, patching or encoding, the pod is allowed as it is, counted,
// and the reason is logged and shown to the client.
func (p *podAdmission) admit(req admission.Request, err error) (resp admission.Response) {
	failOpen := func(err error) {
		p.metrics.admissions.WithLabelValues("error", "").Inc()
		p.log.Error("pod admitted without capture", "namespace", req.Namespace, "pod", req.Name, "error", err)
		resp = admission.Allowed("")
		resp.UID = req.UID
		resp.Warnings = []string{warning("the logs of this pod are not archived, because of an error: " + err.Error())}
	}
	defer func() {
		if v := recover(); v != nil {
			failOpen(fmt.Errorf("panic: %v", v))
			p.log.Error("panic in admission", "stack", string(debug.Stack()))
		}
	}()
	if err == nil {
		resp, err = p.review(req)
	}
	if err == nil {
		err = resp.Complete(req) // encodes the patch
	}
	if err != nil {
		failOpen(err)
	}
	return resp
}

// review decides about one request.
func (p *podAdmission) review(req admission.Request) (admission.Response, error) {
	resp := admission.Allowed("")
	if req.Operation != admissionv1.Create || req.Resource.Group != "" || req.Resource.Resource != "pods" || req.SubResource != "" {
		p.metrics.admissions.WithLabelValues(string(actionSkip), string(notPodCreation)).Inc()
		return resp, nil
	}
	caBundle, err := p.caBundle()
	if err != nil {
		return resp, err
	}
	around := surroundings{sidecars: p.sidecars(), caBundle: caBundle}
	if p.limits != nil {
		around.fit = func(pod *corev1.Pod, ours shipperNeeds) (corev1.ResourceRequirements, reason) {
			return p.limits.fit(pod, req.Namespace, ours)
		}
	}
	if p.guard != nil {
		around.paused = func(pod *corev1.Pod) reason {
			var taskRun types.UID
			if owner := controlledBy(pod.OwnerReferences, taskRunOwner); owner != nil {
				taskRun = owner.UID
			}
			return p.guard.paused(req.Namespace, taskRun, req.DryRun != nil && *req.DryRun)
		}
	}
	s, badSettings := p.settings(req.Namespace)
	s.kubernetesSidecar = s.kubernetesSidecar || p.waited != nil && p.waited()
	d, patch, err := inject(req.Object.Raw, s, around)
	if err != nil {
		return resp, err
	}
	resp.Patches = patch
	p.metrics.observe(d)

	log := p.log.With("namespace", req.Namespace, "pod", req.Name)
	switch d.action {
	case actionRepair:
		log.Warn("another webhook dropped the shipper's restartPolicy; put back")
		resp.Warnings = []string{warning("another webhook dropped restartPolicy: Always of the container " + contract.ShipperContainer + "; it was put back")}
	case actionUndo:
		log.Warn("another webhook dropped the shipper's restartPolicy; the pod is left alone")
		resp.Warnings = []string{warning("the logs of this pod are not archived: " + d.reason.explanation())}
	case actionSkip:
		if !d.reason.silent() {
			log.Info("pod left alone", "reason", d.reason, "skipped", contract.FormatSkipped(d.skipped))
			resp.Warnings = []string{warning("the logs of this pod are not archived: " + d.reason.explanation())}
		}
	case actionInject:
		if badSettings != nil { // who watches the namespace logs it
			resp.Warnings = []string{warning("this pod has the default settings: " + badSettings.Error())}
		}
		log.Info("pod injected", "captured", len(d.captured), "skipped", contract.FormatSkipped(d.skipped))
	}
	return resp, nil
}

// warning makes a text fit to be a warning: short, and of printable ASCII, since it becomes a header.
func warning(text string) string {
	b := []byte("shiplog: " + text)
	if len(b) > maxWarning {
		b = append(b[:maxWarning-3], "..."...)
	}
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// admissionMetrics count decisions. No label holds anything that a tenant chooses.
type admissionMetrics struct {
	admissions *prometheus.CounterVec
	containers *prometheus.CounterVec
}

func newAdmissionMetrics(registry prometheus.Registerer) *admissionMetrics {
	m := &admissionMetrics{
		admissions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shiplog_admissions_total",
			Help: "Pods admitted, by outcome (injected, repaired, undone, unchanged, skipped, error) and the reason of a skip. None is ever denied.",
		}, []string{"outcome", "reason"}),
		containers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shiplog_admission_containers_total",
			Help: "Containers of injected pods, by outcome (captured, skipped) and the reason of a skip.",
		}, []string{"outcome", "reason"}),
	}
	registry.MustRegister(m.admissions, m.containers)
	// An alert on errors needs the series before the first one.
	m.admissions.WithLabelValues("error", "")
	m.admissions.WithLabelValues(string(actionRepair), "")
	m.admissions.WithLabelValues(string(actionUndo), string(policyDropped))
	return m
}

func (m *admissionMetrics) observe(d decision) {
	m.admissions.WithLabelValues(string(d.action), string(d.reason)).Inc()
	m.containers.WithLabelValues("captured", "").Add(float64(len(d.captured)))
	for _, s := range d.skipped {
		m.containers.WithLabelValues("skipped", s.Reason).Inc()
	}
}
