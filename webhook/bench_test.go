package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	"sigs.k8s.io/yaml"
)

// BenchmarkAdmission is a whole request, from its body to the answer's.
func BenchmarkAdmission(b *testing.B) {
	text, err := os.ReadFile("testdata/admitted.in.yaml")
	if err != nil {
		b.Fatal(err)
	}
	raw, err := yaml.YAMLToJSON(text)
	if err != nil {
		b.Fatal(err)
	}
	request := creation(raw)
	body, err := json.Marshal(admissionv1.AdmissionReview{Request: &request})
	if err != nil {
		b.Fatal(err)
	}
	h := newTestAdmission()
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, admissionPath, bytes.NewReader(body)))
		if !bytes.Contains(w.Body.Bytes(), []byte(`"patch"`)) {
			b.Fatal(w.Body.String())
		}
	}
}
