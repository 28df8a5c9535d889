package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/backend/dashboard"
	"github.com/shiplog-dev/shiplog/backend/loki"
	"github.com/shiplog-dev/shiplog/backend/page"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want string // of the error; empty: it is taken
	}{
		{"none", nil, ""},
		{"a proxy", []string{"--proxy-from=10.0.0.1/32, fd00::/8"}, ""},
		{"former namespaces", []string{"--former-namespaces"}, ""},
		{"a proxy's address that is none", []string{"--proxy-from=10.0.0.1"}, "is not like"},
		{"an argument", []string{"serve"}, "everything is a flag"},
		{"no time", []string{"--request-time=0s"}, "must be positive"},
		{"no requests", []string{"--requests-per-client=-1"}, "must be positive"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseFlags(c.args)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestNeverKept: no cache keeps an answer, whatever it is and whoever asks.
func TestNeverKept(t *testing.T) {
	log := layout.Container{
		Pod: layout.Pod{
			Run: layout.Run{Namespace: "ns", Name: "run", UID: "u"}, TaskRun: "run-build", PodUID: "p",
		},
		Container: "step-a",
	}
	lines := archivetest.Lines(time.Now(), 3, func(int) string { return "x" })
	segments, bodies := archivetest.Segments(t, lines, 0)
	seal, err := record.Encode(archivetest.Seal(t, lines))
	if err != nil {
		t.Fatal(err)
	}
	tenants := filepath.Join(t.TempDir(), "tenants.yaml")
	tenant := fmt.Appendf(nil, "tenants: [{name: a, namespaces: [ns], pathSecretSHA256: %x}]",
		sha256.Sum256([]byte("secret")))
	if err := os.WriteFile(tenants, tenant, 0o600); err != nil {
		t.Fatal(err)
	}
	objects := map[string][]byte{log.SegmentKey(segments[0]): bodies[0], log.SealKey(): seal}
	s := newStub(t, func(w http.ResponseWriter, r *http.Request) {
		if key, ok := strings.CutPrefix(r.URL.Path, "/logs/"); ok && key != "" {
			if _, err := w.Write(objects[key]); err != nil || objects[key] == nil {
				w.WriteHeader(http.StatusNotFound)
			}
			return
		}
		fmt.Fprint(w, "<ListBucketResult>")
		for key, body := range objects {
			if strings.HasPrefix(key, r.URL.Query().Get("prefix")) {
				fmt.Fprintf(w, "<Contents><Key>%s</Key><Size>%d</Size>", key, len(body))
				fmt.Fprintf(w, "<LastModified>%s</LastModified></Contents>", time.Now().UTC().Format(time.RFC3339))
			}
		}
		fmt.Fprint(w, "</ListBucketResult>")
	}, "--dashboard-tenants="+tenants)
	of := api.Base + "/containers/" + api.PathOf(log) + "/logs"
	shown := page.Base + "/-/lines/" + api.PathOf(log) + "?from=1&count=9"
	for _, c := range []struct {
		name, path string
		header     []string
		status     int
		want       string
	}{
		{"the API", api.Base + "/namespaces/ns/runs", nil, 200, unkept},
		{"a log", of, nil, 200, unkept},
		{"a range of it", of, []string{"Range", "bytes=1-2"}, 206, unkept},
		{"one that is not there", of, []string{"Range", "bytes=10-"}, 416, unkept},
		{"by its ETag", of, []string{"If-None-Match", "*"}, 304, unkept},
		{"no such path of the API", api.Base + "/none", nil, 404, unkept},
		{"the page", page.Base + "/", nil, 200, unkept},
		{"its login", page.Base + "/-/login", nil, 200, unkept},
		{"a log's lines for the page", shown, nil, 200, unkept},
		{"its script", page.Base + "/-/static/viewer.js", nil, 200, "no-cache"},
		{"Results", loki.Path, nil, 400, unkept},
		{"a Dashboard", dashboard.Base + "/ns/pod/step-a", nil, 401, unkept},
		{"no such path", "/other", nil, 404, unkept},
		{"nobody", api.Base + "/namespaces/ns/runs", []string{"Authorization", ""}, 401, unkept},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, c.path, nil)
			r.Header.Set("Authorization", "Bearer good")
			for i := 0; i < len(c.header); i += 2 {
				r.Header.Set(c.header[i], c.header[i+1])
			}
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			h := w.Result().Header
			sniffed := h.Get("X-Content-Type-Options") != "nosniff"
			if w.Code != c.status || h.Get("Cache-Control") != c.want || sniffed {
				t.Errorf("%d %v %s; want %d and %q", w.Code, h, w.Body, c.status, c.want)
			}
		})
	}
}

// TestCookie: only a flag of its own lets the page's cookie go without TLS, which a proxy in front of plain HTTP may well have.
func TestCookie(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		want bool
	}{
		{"with TLS", nil, true},
		{"behind a proxy with TLS", []string{"--cert-dir="}, true},
		{"without TLS anywhere", []string{"--cert-dir=", "--insecure-cookie"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStub(t, func(http.ResponseWriter, *http.Request) {}, c.args...)
			r := httptest.NewRequest(http.MethodPost, page.Base+"/-/login", strings.NewReader("token=good"))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			cookies := w.Result().Cookies()
			if w.Code != http.StatusSeeOther || len(cookies) != 1 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			if k := cookies[0]; k.Secure != c.want || strings.HasPrefix(k.Name, "__Host-") != c.want {
				t.Errorf("the cookie is %v", k)
			}
		})
	}
}

// TestHealth: a store that does not answer is no reason to send readers away, or to begin anew.
func TestHealth(t *testing.T) {
	asked, release := make(chan struct{}, 100), make(chan struct{})
	s := newStub(t, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer close(release)
	defer cancel()
	for range 10 {
		group.Go(func() {
			r := httptest.NewRequest(http.MethodGet, api.Base+"/namespaces/default/runs", nil).WithContext(ctx)
			r.Header.Set("Authorization", "Bearer good")
			s.handler.ServeHTTP(httptest.NewRecorder(), r)
		})
	}
	for range 10 {
		<-asked
	}
	side := sideRoutes(s.registry, t.Context())
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		w := httptest.NewRecorder()
		side.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusOK {
			t.Errorf("%s: %d", path, w.Code)
		}
		if want := "shiplog_backend_requests_running 10\n"; path == "/metrics" && !strings.Contains(w.Body.String(), want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
}

// stub is all that is served, with an API server that lets everybody in, and a store.
type stub struct {
	handler  http.Handler
	registry *prometheus.Registry
}

func newStub(t *testing.T, store http.HandlerFunc, args ...string) stub {
	t.Helper()
	s3 := httptest.NewServer(store)
	t.Cleanup(s3.Close)
	cluster := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if strings.HasSuffix(r.URL.Path, "/tokenreviews") {
			fmt.Fprint(w, `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":{"authenticated":true,"user":{"username":"a"}}}`)
			return
		}
		fmt.Fprint(w, `{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","status":{"allowed":true}}`)
	}))
	t.Cleanup(cluster.Close)
	for name, value := range map[string]string{
		objectstore.EnvBucket: "logs", objectstore.EnvEndpoint: s3.URL, objectstore.EnvRegion: "here", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
	} {
		t.Setenv(name, value)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		CurrentContext: "c",
		Contexts:       map[string]*clientcmdapi.Context{"c": {Cluster: "c"}},
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: cluster.URL}},
	}, kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	o, err := parseFlags(append([]string{"--kubeconfig=" + kubeconfig, "--dashboard-tenants="}, args...))
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	handler, closeStore, err := newHandler(t.Context(), o, registry, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closeStore)
	return stub{handler, registry}
}

// TestHandler serves a real archive to a token of a real API server.
func TestHandler(t *testing.T) {
	cluster := apiserver.Start(t)
	if _, err := cluster.Core.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "nobody"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := cluster.Core.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "nobody", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	store, config := archivetest.Start(t)
	archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "default", Name: "run", UID: "uid"})
	for name, value := range map[string]string{
		objectstore.EnvBucket: config.Bucket, objectstore.EnvEndpoint: config.Endpoint, objectstore.EnvRegion: config.Region,
		"AWS_ACCESS_KEY_ID": config.Credentials.AccessKeyID, "AWS_SECRET_ACCESS_KEY": string(config.Credentials.SecretAccessKey),
	} {
		t.Setenv(name, value)
	}
	admin := cluster.Admin
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	// With the certificates in it: client-go looks at files for changes, in goroutines that go on until the garbage collector finds that nobody uses them.
	err = clientcmd.WriteToFile(clientcmdapi.Config{
		CurrentContext: "c",
		Contexts:       map[string]*clientcmdapi.Context{"c": {Cluster: "c", AuthInfo: "u"}},
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: admin.Host, CertificateAuthorityData: admin.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {ClientCertificateData: admin.CertData, ClientKeyData: admin.KeyData}},
	}, kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	secret := strings.Repeat("s", dashboard.MinSecret)
	tenants := filepath.Join(t.TempDir(), "tenants.yaml")
	if err := os.WriteFile(tenants, fmt.Appendf(nil, "tenants: [{name: a, namespaces: [default], pathSecretSHA256: %x}]", sha256.Sum256([]byte(secret))), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := parseFlags([]string{"--kubeconfig=" + kubeconfig, "--cert-dir=", "--dashboard-tenants=" + tenants})
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer // read when the server is closed
	registry := prometheus.NewRegistry()
	handler, closeStore, err := newHandler(t.Context(), o, registry, slog.New(slog.NewTextHandler(&logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore()
	server := httptest.NewServer(handler)
	defer server.Close()
	leaving, leave := context.WithCancel(t.Context())
	defer leave()
	side := httptest.NewServer(sideRoutes(registry, leaving))
	defer side.Close()
	defer http.DefaultClient.CloseIdleConnections()
	get := func(url, token string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	for _, c := range []struct {
		name, path, token string
		want              int
	}{
		{"nobody", "/api/v1/namespaces/default/runs", "", 401},
		{"who may not", "/api/v1/namespaces/default/runs", token.Status.Token, 403},
		{"their namespaces", "/api/v1/namespaces", token.Status.Token, 200},
		{"the description", "/api/v1/openapi.yaml", "", 200},
		{"another path", "/other", "", 404},
		{"the page, by its login", "/", "", 200},
		{"Results, without a query", loki.Path, token.Status.Token, 400},
		{"Results, with its proxy's path", loki.DefaultPath, token.Status.Token, 400},
		{"a Dashboard that nobody knows", dashboard.Base + "/default/pod/step-a", "", 401},
		{"a Dashboard, of a pod that is not there", dashboard.Base + "/" + secret + "/default/pod/step-a", "", 404},
	} {
		if code, body := get(server.URL+c.path, c.token); code != c.want {
			t.Errorf("%s: %d %s, want %d", c.name, code, body, c.want)
		}
	}
	_, text := get(side.URL+"/metrics", "")
	for _, want := range []string{`shiplog_backend_requests_total{status="403"} 1`, `shiplog_backend_s3_requests_total{operation="list",result="ok"} 2`, "shiplog_backend_requests_running 0"} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("/metrics lacks %s:\n%s", want, text)
		}
	}
	server.Close() // when all is logged
	for _, want := range []string{
		`msg=request method=GET area=/api/v1 `, " status=403 ", ` area=/external-logs `, " s3Requests=1 ",
		" path=/api/v1/namespaces/default/runs client=", " user=system:serviceaccount:default:nobody namespace=default status=403 ", ` path="" client=`, ` user="dashboard a" namespace=default status=404 `,
	} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, logged.String())
		}
	}
	if strings.Contains(logged.String(), secret) || strings.Contains(logged.String(), token.Status.Token) {
		t.Errorf("a secret is logged:\n%s", logged.String())
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, _ := get(side.URL+path, ""); code != 200 {
			t.Errorf("%s: %d", path, code)
		}
	}
	leave()
	if code, _ := get(side.URL+"/readyz", ""); code != 503 {
		t.Errorf("/readyz while it leaves: %d", code)
	}
	if code, _ := get(side.URL+"/healthz", ""); code != 200 {
		t.Errorf("/healthz while it leaves: %d", code)
	}
}
