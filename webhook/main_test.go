package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// TestMain sets the libraries' loggers, as main does. What they log stands in the midst of whatever test runs, and without a logger controller-runtime prints a stack after half a minute.
func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

func TestSideRoutes(t *testing.T) {
	registry := prometheus.NewRegistry()
	newAdmissionMetrics(registry)
	var notReady error
	routes := sideRoutes(registry, t.Context(), func(*http.Request) error { return notReady })
	for _, tc := range []struct {
		name, method, path string
		notReady           error
		status             int
		body               string
	}{
		{"alive", "GET", "/healthz", nil, 200, "ok"},
		{"alive while not ready", "GET", "/healthz", errors.New("starting"), 200, "ok"},
		{"ready", "GET", "/readyz", nil, 200, "ok"},
		{"not ready", "GET", "/readyz", errors.New("shutting down"), 503, "shutting down"},
		{"metrics", "GET", "/metrics", nil, 200, `shiplog_admissions_total{outcome="error",reason=""} 0`},
		{"post", "POST", "/healthz", nil, 405, ""},
		{"else", "GET", "/debug/pprof/", nil, 404, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			notReady = tc.notReady
			w := httptest.NewRecorder()
			routes.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, nil))
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.body) {
				t.Errorf("status %d, body %q, want %d and %q", w.Code, w.Body, tc.status, tc.body)
			}
		})
	}
}

// writeCertificate makes a self-signed certificate that expires then.
func writeCertificate(t *testing.T, dir string, notAfter time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: notAfter, DNSNames: []string{"webhook.test"}, IsCA: true, BasicConstraintsValid: true}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: cert}, "tls.key": {Type: "PRIVATE KEY", Bytes: keyBytes}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCertificateExpiry(t *testing.T) {
	dir := t.TempDir()
	registry := prometheus.NewRegistry()
	if _, err := newCertWatcher(dir, registry); err == nil || !strings.Contains(err.Error(), "tls.crt") {
		t.Errorf("no certificate: error %v, want one that names the file", err)
	}
	writeCertificate(t, dir, time.Unix(4_000_000_000, 0))
	certs, err := newCertWatcher(dir, registry)
	if err != nil {
		t.Fatal(err)
	}
	const want = `
# HELP shiplog_webhook_certificate_expiry_timestamp_seconds When the serving certificate in use expires, in seconds since 1970.
# TYPE shiplog_webhook_certificate_expiry_timestamp_seconds gauge
shiplog_webhook_certificate_expiry_timestamp_seconds 4e+09
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	// A renewed certificate is served; the watcher calls this when the files change.
	writeCertificate(t, dir, time.Unix(5_000_000_000, 0))
	if err := certs.ReadCertificate(); err != nil {
		t.Fatal(err)
	}
	served, err := certs.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if leaf, err := x509.ParseCertificate(served.Certificate[0]); err != nil || leaf.NotAfter.Unix() != 5_000_000_000 {
		t.Errorf("served certificate %v, %v, want the renewed one", leaf.NotAfter, err)
	}
}

// processEnv sets the environment of a process whose store does not answer, and returns its
// kubeconfig for an API server.
func processEnv(t *testing.T, server string) (kubeconfig string) {
	t.Helper()
	for k, v := range map[string]string{
		"SHIPLOG_S3_BUCKET": "logs", "SHIPLOG_S3_ENDPOINT": "http://127.0.0.1:1",
		"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
	} {
		t.Setenv(k, v)
	}
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c",
		"clusters":[{"name":"c","cluster":{"server":%q}}],
		"contexts":[{"name":"c","context":{"cluster":"c"}}]}`, server)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// ownAddress is an address that no other process takes. controller-runtime takes port 0 for 9443,
// and every address of 127.0.0.0/8 is this machine.
func ownAddress() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 64+pid>>16&63, pid>>8&255, pid&255)
}

// awaitWhile waits for a condition while a process runs, which says in ended how it ended.
func awaitWhile(t *testing.T, ended <-chan error, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case err := <-ended:
			t.Fatalf("ended while waiting for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// awaitReadyz waits until the process answers with a status at /readyz.
func awaitReadyz(t *testing.T, ended <-chan error, host string, status int) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	awaitWhile(t, ended, fmt.Sprintf("status %d at /readyz", status), func() bool {
		resp, err := client.Get("http://" + host + ":8080/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == status
	})
}

// TestRunAnnotator starts the annotator's process but for main: it needs no certificate and no image,
// lists the runs, is not ready when told to stop, and ends.
func TestRunAnnotator(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	runs := &manyRuns{taskRuns: 30, sealed: true}
	api := httptest.NewServer(runs)
	defer api.Close()
	kubeconfig, host := processEnv(t, api.URL), ownAddress()
	o, err := parseFlags([]string{
		"--role=annotator", "--metrics-address=" + host + ":8080", "--kubeconfig=" + kubeconfig,
	})
	if err != nil {
		t.Fatal(err)
	}
	leaving, leave := context.WithCancel(t.Context())
	defer leave()
	serving, stop := context.WithCancel(t.Context())
	defer stop()
	registry := prometheus.NewRegistry()
	ended := make(chan error, 1)
	go func() {
		ended <- runAnnotator(serving, leaving, o, registry, slog.New(slog.DiscardHandler))
	}()
	awaitReadyz(t, ended, host, http.StatusOK)
	awaitWhile(t, ended, "both lists", func() bool { return runs.lists.Load() >= 2 })
	if n, err := testutil.GatherAndCount(registry, "shiplog_runs_sealed_total"); n != 3 || err != nil {
		t.Errorf("%d counters of sealed runs, %v, want 3", n, err)
	}
	leave()
	awaitReadyz(t, ended, host, http.StatusServiceUnavailable)
	stop()
	if err := <-ended; err != nil {
		t.Errorf("runAnnotator: %v", err)
	}
}

// TestRoles: each role has its own flags that it cannot do without, and there is no other one.
func TestRoles(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string // in the error
	}{
		{"the webhook is the role that need not be said", []string{"--shipper-image=i"}, ""},
		{"the webhook needs the image", []string{"--role=webhook"}, "image"},
		{"the annotator needs none", []string{"--role=annotator"}, ""},
		{"the annotator's page", []string{"--role=annotator", "--page-url=x"}, "--page-url"},
		{"another role", []string{"--role=leader", "--shipper-image=i"}, `--role "leader"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseFlags(c.args)
			if c.want == "" && err != nil {
				t.Error(err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestRun starts the whole process but for main: it gets ready, admits, refuses a ticket, is not ready but serves when told to stop, and ends.
func TestRun(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"major":"1","minor":"36","gitVersion":"v1.36.3"}`)
	}))
	defer api.Close()
	dir := t.TempDir()
	writeCertificate(t, dir, time.Now().Add(time.Hour))
	ca, err := os.ReadFile(filepath.Join(dir, "tls.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	kubeconfig, host := processEnv(t, api.URL), ownAddress()
	o, err := parseFlags([]string{
		"--shipper-image=i", "--cert-dir=" + dir, "--host=" + host,
		"--metrics-address=" + host + ":8080", "--kubeconfig=" + kubeconfig,
	})
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "webhook.test"}, DisableKeepAlives: true}
	client := &http.Client{Transport: transport}
	post := func(at string, body []byte) (int, string) {
		t.Helper()
		resp, err := client.Post("https://"+host+":9443"+at, "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}

	leaving, leave := context.WithCancel(t.Context())
	defer leave()
	serving, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- run(serving, leaving, o, registry, slog.New(slog.DiscardHandler)) }()
	awaitReadyz(t, ended, host, http.StatusOK)

	review, err := json.Marshal(map[string]any{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": creation(podWith("", ""))})
	if err != nil {
		t.Fatal(err)
	}
	if status, body := post(admissionPath, review); status != http.StatusOK || !strings.Contains(body, `"patch":`) {
		t.Errorf("admission: %d %s, want 200 and a patch", status, body)
	}
	if status, body := post("/v1/tickets", nil); status != http.StatusUnauthorized {
		t.Errorf("ticket without a token: %d %s, want 401", status, body)
	}
	leave()
	awaitReadyz(t, ended, host, http.StatusServiceUnavailable)
	if status, _ := post(admissionPath, review); status != http.StatusOK {
		t.Errorf("admission while leaving: %d, want 200", status)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}
