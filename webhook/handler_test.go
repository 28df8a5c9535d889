package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	evanphx "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

func newTestAdmission() *podAdmission {
	return &podAdmission{
		settings: func(string) (settings, error) { return testSettings(), nil },
		sidecars: func() nativeSidecars { return sidecarsSupported },
		caBundle: func() (string, error) { return testCA, nil },
		metrics:  newAdmissionMetrics(prometheus.NewRegistry()),
		log:      slog.New(slog.DiscardHandler),
	}
}

// set changes the settings of all namespaces.
func (p *podAdmission) set(change func(*settings)) {
	s := testSettings()
	change(&s)
	p.settings = func(string) (settings, error) { return s, nil }
}

// creation is the request to create the pod.
func creation(raw []byte) admissionv1.AdmissionRequest {
	r := admissionv1.AdmissionRequest{UID: "review-1", Operation: admissionv1.Create, Namespace: "team-a", Name: "p", Object: runtime.RawExtension{Raw: raw}}
	r.Resource.Version, r.Resource.Resource = "v1", "pods"
	return r
}

func TestHandle(t *testing.T) {
	fresh := podWith("", "")
	_, patch, err := inject(fresh, testSettings(), onSupported)
	if err != nil {
		t.Fatal(err)
	}
	injected := apply(t, fresh, patch)
	dropped := bytes.Replace(injected, []byte(`"restartPolicy":"Always"`), []byte(`"x":"y"`), 1)

	for name, tc := range map[string]struct {
		change  func(*podAdmission, *admissionv1.AdmissionRequest)
		outcome string
		reason  string
		patched bool
		warning string // a part of it; empty: none
	}{
		"injected":  {func(*podAdmission, *admissionv1.AdmissionRequest) {}, "injected", "", true, ""},
		"dry run":   {func(_ *podAdmission, r *admissionv1.AdmissionRequest) { r.DryRun = new(bool); *r.DryRun = true }, "injected", "", true, ""},
		"unchanged": {func(_ *podAdmission, r *admissionv1.AdmissionRequest) { r.Object.Raw = injected }, "unchanged", "", false, ""},
		"undone":    {func(_ *podAdmission, r *admissionv1.AdmissionRequest) { r.Object.Raw = dropped }, "undone", "restart-policy-dropped", true, "restartPolicy"},
		"repaired": {func(p *podAdmission, r *admissionv1.AdmissionRequest) {
			p.set(func(s *settings) { s.repairRestartPolicy = true })
			r.Object.Raw = dropped
		}, "repaired", "", true, "restartPolicy"},
		"paused": {func(p *podAdmission, _ *admissionv1.AdmissionRequest) {
			p.guard = newGuard(time.Minute, time.Hour)
			p.guard.namespaces["team-a"] = &pause{why: cannotStart, until: time.Now().Add(time.Hour)}
		}, "skipped", "shipper-cannot-start", true, "could not be started"},
		"paused elsewhere": {func(p *podAdmission, _ *admissionv1.AdmissionRequest) {
			p.guard = newGuard(time.Minute, time.Hour)
			p.guard.namespaces["team-b"] = &pause{why: cannotStart, until: time.Now().Add(time.Hour)}
		}, "injected", "", true, ""},
		"opted out": {func(_ *podAdmission, r *admissionv1.AdmissionRequest) {
			r.Object.Raw = podWith(`,"annotations":{"shiplog.dev/inject":"false"}`, "")
		}, "skipped", "opted-out", false, ""},
		"Windows": {func(_ *podAdmission, r *admissionv1.AdmissionRequest) {
			r.Object.Raw = podWith("", `,"os":{"name":"windows"}`)
		}, "skipped", "windows", true, "Windows"},
		"version unknown": {func(p *podAdmission, _ *admissionv1.AdmissionRequest) {
			p.sidecars = func() nativeSidecars { return sidecarsUnknown }
		}, "skipped", "kubernetes-version-unknown", true, "version"},
		"update":      {func(_ *podAdmission, r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update }, "skipped", "not-a-pod-creation", false, ""},
		"subresource": {func(_ *podAdmission, r *admissionv1.AdmissionRequest) { r.SubResource = "ephemeralcontainers" }, "skipped", "not-a-pod-creation", false, ""},
		"deployment":  {func(_ *podAdmission, r *admissionv1.AdmissionRequest) { r.Resource.Resource = "deployments" }, "skipped", "not-a-pod-creation", false, ""},
		"pods of another group": {func(_ *podAdmission, r *admissionv1.AdmissionRequest) {
			r.Resource.Group = "metrics.k8s.io"
		}, "skipped", "not-a-pod-creation", false, ""},
		"no object": {func(_ *podAdmission, r *admissionv1.AdmissionRequest) { r.Object.Raw = nil }, "error", "", false, "no object"},
		"bad pod":   {func(_ *podAdmission, r *admissionv1.AdmissionRequest) { r.Object.Raw = []byte(`{"spec":1}`) }, "error", "", false, "decode pod"},
		"no CA": {func(p *podAdmission, _ *admissionv1.AdmissionRequest) {
			p.caBundle = func() (string, error) { return "", errors.New("no such file") }
		}, "error", "", false, "no such file"},
		"bad settings": {func(p *podAdmission, _ *admissionv1.AdmissionRequest) {
			p.set(func(s *settings) { s.ticketURL = "" })
		}, "error", "", false, "ticketURL"},
		"the namespace's own settings": {func(p *podAdmission, _ *admissionv1.AdmissionRequest) {
			p.settings = ownSettings(t, testSettings(), map[string]string{
				contract.SpoolLimitAnnotation: "128Mi",
			})
		}, "injected", "", true, ""},
		"the namespace's settings are bad": {func(p *podAdmission, _ *admissionv1.AdmissionRequest) {
			p.settings = ownSettings(t, testSettings(), map[string]string{
				contract.SpoolLimitAnnotation: "much",
			})
		}, "injected", "", true, "shiplog.dev/spool-limit"},
		"bad settings where nothing is injected": {
			func(p *podAdmission, r *admissionv1.AdmissionRequest) {
				p.settings = ownSettings(t, testSettings(), map[string]string{
					contract.SpoolLimitAnnotation: "much",
				})
				r.Object.Raw = injected
			}, "unchanged", "", false, ""},
		"panic": {func(p *podAdmission, _ *admissionv1.AdmissionRequest) {
			p.caBundle = func() (string, error) { panic("boom") }
		}, "error", "", false, "boom"},
		"runtime panic": {func(p *podAdmission, _ *admissionv1.AdmissionRequest) { p.sidecars = nil }, "error", "", false, "nil pointer"},
	} {
		t.Run(name, func(t *testing.T) {
			p, req := newTestAdmission(), creation(fresh)
			tc.change(p, &req)
			resp := p.Handle(t.Context(), admission.Request{AdmissionRequest: req})
			if !resp.Allowed || resp.UID != req.UID {
				t.Errorf("allowed %t for %q, want allowed for %q", resp.Allowed, resp.UID, req.UID)
			}
			if patched := len(resp.Patch) > 0; patched != tc.patched || patched != (resp.PatchType != nil) {
				t.Errorf("patched %t (type set: %t), want %t", patched, resp.PatchType != nil, tc.patched)
			}
			if warned := strings.Join(resp.Warnings, "\n"); (warned == "") != (tc.warning == "") || !strings.Contains(warned, tc.warning) {
				t.Errorf("warning %q, want %q in it", warned, tc.warning)
			}
			if got := testutil.ToFloat64(p.metrics.admissions.WithLabelValues(tc.outcome, tc.reason)); got != 1 {
				t.Errorf("%s %s was counted %v times, want once", tc.outcome, tc.reason, got)
			}
		})
	}
}

// TestServeHTTP posts bodies as the API server and others may. Whatever comes, the answer allows.
func TestServeHTTP(t *testing.T) {
	review := func(r admissionv1.AdmissionRequest) string {
		b, err := json.Marshal(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": r})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	p := newTestAdmission()
	server := httptest.NewServer(p)
	defer server.Close()
	for name, tc := range map[string]struct {
		body    string
		uid     string
		patched bool
	}{
		"a pod":          {review(creation(podWith("", ""))), "review-1", true},
		"a bad pod":      {review(creation([]byte(`{"spec":7}`))), "review-1", false},
		"empty":          {"", "", false},
		"no JSON":        {"<html>", "", false},
		"cut short":      {review(creation(podWith("", "")))[:200], "", false},
		"no request":     {`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, "", false},
		"null":           {"null", "", false},
		"another type":   {`{"request":"x"}`, "", false},
		"over the limit": {`{"request":{"uid":"` + strings.Repeat("x", maxReview) + `"}}`, "", false},
		"a uid only":     {`{"request":{"uid":"u"}}`, "u", false},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := http.Post(server.URL, "application/json", strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			answer := decodeAnswer(t, resp.Body)
			if resp.StatusCode != http.StatusOK || !answer.Response.Allowed || string(answer.Response.UID) != tc.uid {
				t.Errorf("status %d, %+v, want 200 and allowed for %q", resp.StatusCode, answer.Response, tc.uid)
			}
			if answer.Kind != "AdmissionReview" || answer.APIVersion != "admission.k8s.io/v1" {
				t.Errorf("answer is a %s %s", answer.APIVersion, answer.Kind)
			}
			if patched := len(answer.Response.Patch) > 0; patched != tc.patched {
				t.Errorf("patched %t, want %t", patched, tc.patched)
			}
		})
	}
}

func decodeAnswer(t *testing.T, body io.Reader) admissionv1.AdmissionReview {
	t.Helper()
	var answer admissionv1.AdmissionReview
	if err := json.NewDecoder(body).Decode(&answer); err != nil || answer.Response == nil {
		t.Fatalf("answer is no AdmissionReview: %+v, %v", answer, err)
	}
	return answer
}

// TestMetricLabels asks that tenants cannot make series: two pods that differ in all that they choose are counted as one.
func TestMetricLabels(t *testing.T) {
	registry := prometheus.NewRegistry()
	p := newTestAdmission()
	p.metrics = newAdmissionMetrics(registry)
	for _, name := range []string{"one", "two"} {
		raw := bytes.ReplaceAll(podWith(`,"annotations":{"a":"`+name+`"}`, `,"initContainers":[{"name":"`+name+`","image":"`+name+`"}]`), []byte("step-a"), []byte("step-"+name))
		req := creation(raw)
		req.Namespace, req.Name = name, name
		p.Handle(t.Context(), admission.Request{AdmissionRequest: req})
	}
	const want = `
# HELP shiplog_admission_containers_total Containers of injected pods, by outcome (captured, skipped) and the reason of a skip.
# TYPE shiplog_admission_containers_total counter
shiplog_admission_containers_total{outcome="captured",reason=""} 2
shiplog_admission_containers_total{outcome="skipped",reason="no-command"} 2
# HELP shiplog_admissions_total Pods admitted, by outcome (injected, repaired, undone, unchanged, skipped, error) and the reason of a skip. None is ever denied.
# TYPE shiplog_admissions_total counter
shiplog_admissions_total{outcome="error",reason=""} 0
shiplog_admissions_total{outcome="injected",reason=""} 2
shiplog_admissions_total{outcome="repaired",reason=""} 0
shiplog_admissions_total{outcome="undone",reason="restart-policy-dropped"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestWarning(t *testing.T) {
	for name, text := range map[string]string{"long": strings.Repeat("é", 300), "line break": "a\r\nX-Header: b", "plain": "hello"} {
		t.Run(name, func(t *testing.T) {
			w := warning(text)
			if len(w) > maxWarning || strings.ContainsFunc(w, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q cannot be a header", w)
			}
		})
	}
}

// FuzzServeHTTP: whatever the body, the answer allows, and a patch in it applies and makes no pod invalid that was valid. The corpus is that of TestCorpus, and what has been found.
func FuzzServeHTTP(f *testing.F) {
	f.Add([]byte(`{"request":{"uid":"u","operation":"CREATE","resource":{"resource":"pods"},"object":{"metadata":null}}}`))
	f.Add([]byte("{"))
	p := newTestAdmission()
	f.Fuzz(func(t *testing.T, body []byte) {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(http.MethodPost, admissionPath, bytes.NewReader(body)))
		answer := decodeAnswer(t, w.Body)
		if w.Code != http.StatusOK || !answer.Response.Allowed {
			t.Fatalf("status %d, %+v", w.Code, answer.Response)
		}
		if strings.Contains(strings.Join(answer.Response.Warnings, ""), "panic") {
			t.Fatalf("panic: %v", answer.Response.Warnings)
		}
		if len(answer.Response.Patch) == 0 {
			return
		}
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &review); err != nil { // as readReview, but that it is one whole document
			return
		}
		checkPatched(t, review.Request.Object.Raw, answer.Response.Patch)
	})
}

// checkPatched applies a patch: it applies, and what was a valid pod is one still.
func checkPatched(t *testing.T, raw, patch []byte) []byte {
	t.Helper()
	decoded, err := evanphx.DecodePatch(patch)
	if err != nil {
		t.Fatal(err)
	}
	out, err := decoded.Apply(raw)
	if err != nil {
		t.Fatalf("patch does not apply: %v", err)
	}
	if len(podFaults(raw)) > 0 {
		return out
	}
	if faults := podFaults(out); len(faults) > 0 {
		t.Fatalf("the patch makes a valid pod invalid: %q\npod: %s\npatch: %s", faults, raw, patch)
	}
	return out
}

// TestCorpus holds the committed corpus against the golden pods: the pods as they are made are in the reviews of FuzzServeHTTP, the injected ones in FuzzInject. Run it with -update
// when those have changed.
func TestCorpus(t *testing.T) {
	for _, of := range []struct {
		fuzz, suffix string
		body         func(pod []byte) ([]byte, error)
	}{
		{"FuzzServeHTTP", ".in.yaml", func(pod []byte) ([]byte, error) {
			return json.Marshal(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": creation(pod)})
		}},
		{"FuzzInject", ".out.yaml", func(pod []byte) ([]byte, error) { return pod, nil }},
	} {
		files, err := filepath.Glob("testdata/*" + of.suffix)
		if err != nil || len(files) == 0 {
			t.Fatalf("no golden pods: %v", err)
		}
		var want []string
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pod, err := yaml.YAMLToJSON(text)
			if err != nil {
				t.Fatal(err)
			}
			body, err := of.body(pod)
			if err != nil {
				t.Fatal(err)
			}
			at := filepath.Join("testdata/fuzz", of.fuzz, "golden-"+strings.TrimSuffix(filepath.Base(file), of.suffix))
			want = append(want, at)
			entry := fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", body)
			if *update {
				if err := os.WriteFile(at, entry, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if have, err := os.ReadFile(at); err != nil || !bytes.Equal(have, entry) {
				t.Errorf("%s is not made of %s (%v): go test ./webhook -run TestCorpus -update makes it anew", at, file, err)
			}
		}
		slices.Sort(want)
		if have, err := filepath.Glob("testdata/fuzz/" + of.fuzz + "/golden-*"); err != nil || !slices.Equal(have, want) {
			t.Errorf("%s holds %q, want %q (%v)", of.fuzz, have, want, err)
		}
	}
}

// FuzzInject: whatever the pod, an error or a patch that applies, after which a second pass has nothing to do.
func FuzzInject(f *testing.F) {
	f.Add(podWith("", ""))
	f.Add(podWith(`,"annotations":null`, `,"volumes":null,"initContainers":[{"name":"a","command":["x"],"volumeMounts":null}]`))
	f.Add(podWith(`,"annotations":{"shiplog.dev/skipped":"x"}`, `,"terminationGracePeriodSeconds":9223372036854775807,"initContainers":[null]`))
	f.Add(podWith("", `,"resources":{},"initContainers":[{"name":"shiplog-shipper","env":[{"name":"SHIPLOG_CONFIG","value":"x"}],"volumeMounts":[{"name":"shiplog-spool","mountPath":"/shiplog"}]}]`))
	f.Fuzz(func(t *testing.T, raw []byte) { checkAnyPod(t, raw) })
}

// TestDamagedPods damages the golden pods, fresh and injected, in places that a seed chooses.
func TestDamagedPods(t *testing.T) {
	pods := goldenPods(t)
	for which := range pods {
		for seed := range uint64(40) {
			t.Run(fmt.Sprintf("pod %d seed %d", which, seed), func(t *testing.T) {
				checkAnyPod(t, damagedPod(t, pods, uint(which), seed))
			})
		}
	}
}

// FuzzDamagedPod goes on where TestDamagedPods ends.
func FuzzDamagedPod(f *testing.F) {
	pods := goldenPods(f)
	f.Add(uint(0), uint64(0))
	f.Fuzz(func(t *testing.T, which uint, seed uint64) { checkAnyPod(t, damagedPod(t, pods, which, seed)) })
}

// goldenPods are all pods in testdata, as JSON.
func goldenPods(t testing.TB) [][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden pods: %v", err)
	}
	pods := make([][]byte, len(files))
	for i, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if pods[i], err = yaml.YAMLToJSON(text); err != nil {
			t.Fatal(err)
		}
	}
	return pods
}

func damagedPod(t *testing.T, pods [][]byte, which uint, seed uint64) []byte {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, uint64(which)))
	var pod any = decodeMap(t, pods[which%uint(len(pods))])
	for range 1 + random.IntN(4) {
		pod = damage(random, pod)
	}
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// damage walks down from v by chance and changes what it ends at.
func damage(random *rand.Rand, v any) any {
	switch v := v.(type) {
	case map[string]any:
		keys := slices.Sorted(maps.Keys(v))
		if len(keys) == 0 || random.IntN(12) == 0 {
			break
		}
		key := keys[random.IntN(len(keys))]
		if random.IntN(10) == 0 {
			delete(v, key)
		} else {
			v[key] = damage(random, v[key])
		}
		return v
	case []any:
		if len(v) == 0 || random.IntN(12) == 0 {
			break
		}
		i := random.IntN(len(v))
		switch random.IntN(10) {
		case 0:
			return slices.Delete(v, i, i+1)
		case 1:
			return append(v, v[i])
		}
		v[i] = damage(random, v[i])
		return v
	}
	values := []any{nil, "", "x", true, -1, 1.5, []any{}, map[string]any{}, []any{nil}, []any{map[string]any{}}, "Always", "/shiplog", "1Gi", math.MaxInt64,
		contract.ShipperContainer, contract.SpoolVolume, contract.TokenVolume, contract.TeePath}
	return values[random.IntN(len(values))]
}

// checkAnyPod admits the pod, as several installations would, and goes on with what another webhook would make of it: it is allowed, a patch applies and makes no valid pod invalid, and
// a second pass has nothing to do.
func checkAnyPod(t *testing.T, raw []byte) {
	t.Helper()
	for name, change := range map[string]func(*podAdmission){
		"plain": func(*podAdmission) {},
		"OpenShift": func(p *podAdmission) {
			p.set(func(s *settings) { s.openShift, s.kubernetesSidecar = true, true })
		},
		"repairs": func(p *podAdmission) { p.set(func(s *settings) { s.repairRestartPolicy = true }) },
		"paused": func(p *podAdmission) {
			p.guard = newGuard(time.Minute, time.Hour)
			p.guard.namespaces["team-a"] = &pause{why: cannotStart, until: time.Now().Add(time.Hour)}
		},
	} {
		p := newTestAdmission()
		change(p)
		out := admitted(t, p, raw)
		if out == nil || injectedShipper(decodeTestPod(t, out)) < 0 {
			continue
		}
		if bytes.Contains(out, []byte(`"restartPolicy":"Always"`)) {
			dropped := bytes.ReplaceAll(out, []byte(`"restartPolicy":"Always"`), []byte(`"tty":false`)) // a field that every container may have
			if after := admitted(t, p, dropped); after == nil {
				t.Fatalf("%s: restartPolicy is gone, and nobody minds: %s", name, dropped)
			}
		}
	}
}

// admitted admits one pod, and returns it patched, or nil where it is not patched.
func admitted(t *testing.T, p *podAdmission, raw []byte) []byte {
	t.Helper()
	handle := func(raw []byte) admission.Response {
		resp := p.Handle(t.Context(), admission.Request{AdmissionRequest: creation(raw)})
		if !resp.Allowed {
			t.Fatalf("denied: %+v", resp)
		}
		if strings.Contains(strings.Join(resp.Warnings, ""), "panic") {
			t.Fatalf("panic: %v", resp.Warnings)
		}
		return resp
	}
	resp := handle(raw)
	if len(resp.Patch) == 0 {
		return nil
	}
	out := checkPatched(t, raw, resp.Patch)
	if again := handle(out); len(again.Patch) > 0 {
		t.Fatalf("second pass patches: %s\nafter: %s", again.Patch, resp.Patch)
	}
	return out
}
