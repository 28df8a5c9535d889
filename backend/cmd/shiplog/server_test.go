package main

import (
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/tests/apiserver"
)

// bearer lets in who has its token.
type bearer string

func (b bearer) Allow(r *http.Request, _ string) (backend.Reach, error) {
	if r.Header.Get("Authorization") != "Bearer "+string(b) {
		return backend.Reach{}, &api.Error{
			Status: http.StatusUnauthorized, Message: "no token, or another one",
		}
	}
	return backend.Reach{All: true}, nil
}

func (b bearer) Allowed(r *http.Request, all []string) ([]string, error) {
	_, err := b.Allow(r, "")
	return all, err
}

// TestThroughServer: with a kubeconfig and nothing else, the CLI finds the server and is told what it reads in the bucket itself. The cluster has no pods any more.
func TestThroughServer(t *testing.T) {
	cluster := apiserver.Start(t)
	store, _ := archivetest.Start(t)
	fill(t, store)
	token := userToken(t, cluster)
	server := httptest.NewTLSServer(api.New(api.Options{Archive: backend.New(store), Gate: bearer(token), Log: slog.New(slog.DiscardHandler)}))
	defer server.Close()
	t.Setenv(objectstore.EnvBucket, "")
	t.Setenv("KUBECONFIG", kubeconfig(t, cluster, token))

	got, code := said(t, []string{"logs", "-n", "ns", "run"})
	if want := "ConfigMap shiplog-system/shiplog-info"; code != exitFailed || !strings.Contains(got, want) {
		t.Errorf("without an archive: exit code %d, %q does not say %q", code, got, want)
	}

	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for _, object := range []*corev1.ConfigMap{{ObjectMeta: metav1.ObjectMeta{Namespace: infoNamespace, Name: infoName}, Data: map[string]string{infoServer: server.URL, infoCA: string(certificate)}}} {
		if _, err := cluster.Core.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: infoNamespace}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := cluster.Core.CoreV1().ConfigMaps(infoNamespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string // of the golden file: those of TestCommands
		args []string
		code int
	}{
		{"ls-run", []string{"ls", "-n", "ns", "run"}, 0},
		{"ls-not-found", []string{"ls", "-n", "ns", "none"}, exitFailed},
		{"logs-with-gap", []string{"logs", "-n", "ns", "run"}, exitLost},
		{"logs-follow", []string{"logs", "-n", "ns", "-f", "run"}, exitLost},
		{"logs-all", []string{"logs", "-n", "ns", "--all", "run"}, exitLost},
		{"logs-timestamps", []string{"logs", "-n", "ns", "--container", "prepare", "--timestamps", "run"}, 0},
		{"logs-tail", []string{"logs", "-n", "ns", "--step", "compile", "--tail", "2", "run"}, exitLost},
		{
			"logs-tail-all",
			[]string{"logs", "-n", "ns", "--step", "compile", "--tail", "-1", "run"}, exitLost,
		},
		{
			"logs-tail-none",
			[]string{"logs", "-n", "ns", "--step", "compile", "--tail", "0", "run"}, exitLost,
		},
		{"logs-container", []string{"logs", "-n", "ns", "-c", "prepare", "run"}, 0},
		{
			"search-limit-too-high",
			[]string{"search", "-n", "ns", "run", "line", "--limit", "20000"}, exitUsage,
		},
		{
			"search-container",
			[]string{"search", "-n", "ns", "running", "line 1", "-c", "step-a"}, exitRunning,
		},
		{"logs-raw", []string{"logs", "-n", "ns", "--task", "build", "--step", "compile", "--raw", "run"}, exitLost},
		{"logs-broken", []string{"logs", "-n", "ns", "--archive", "broken"}, exitLost},
		{"taskrun-logs", []string{"tr", "logs", "-n", "ns", "-s", "compile", "run-build"}, 0},
		{"search", []string{"search", "-n", "ns", "run", "line"}, exitLost},
		{"search-context", []string{"search", "-n", "ns", "run", "LINE [13]", "-e", "-i", "--around", "1"}, exitLost},
		{"search-nothing", []string{"search", "-n", "ns", "run", "nowhere"}, exitLost},
		{"search-nothing-in-all", []string{"search", "-n", "ns", "states", "nowhere", "--step", "verified"}, exitFailed},
		{"search-running", []string{"search", "-n", "ns", "running", "line 1"}, exitRunning},
		{"search-broken", []string{"search", "-n", "ns", "broken", "line"}, exitLost},
		{"search-no-such-run", []string{"search", "-n", "ns", "none", "line"}, exitUsage},
		{"search-limit", []string{"search", "-n", "ns", "run", "line", "--limit", "1"}, 0},
		{"search-taskrun", []string{"search", "-n", "ns", "two-b", "line"}, 0},
		{"search-pod", []string{"search", "-n", "ns", "run-build-pod-retry1", "gap"}, exitLost},
		{"ls-pod", []string{"ls", "-n", "ns", "run-build-pod-retry1"}, 0},
		{"verify", []string{"verify", "-n", "ns", "run"}, exitLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, code := said(t, c.args)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			want, err := os.ReadFile(filepath.Join("testdata", c.name+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the server's:\n%s\nthe bucket's:\n%s", got, want)
			}
		})
	}

	t.Run("open", func(t *testing.T) {
		got, code := said(t, []string{"open", "-n", "ns", "--print", "-t", "build", "run"})
		if want := server.URL + "/ui/ns/" + theRunUID + "#task=build\n"; got != want || code != 0 {
			t.Errorf("%q, exit code %d, want %q", got, code, want)
		}
	})
	t.Run("no right but to logs", func(t *testing.T) {
		if _, err := cluster.Core.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "log-reader"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		request, err := cluster.Core.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "log-reader", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewTLSServer(api.New(api.Options{Archive: backend.New(store), Gate: bearer(request.Status.Token), Log: slog.New(slog.DiscardHandler)}))
		defer server.Close()
		t.Setenv("KUBECONFIG", kubeconfig(t, cluster, request.Status.Token))
		ca := caFile(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
		for run, want := range map[string]string{"run": "shiplog: only the archive is read: ", "none": `nothing in namespace "ns" is named "none"`} {
			got, code := said(t, []string{"logs", "-n", "ns", "--server", server.URL, "--server-ca", ca, run})
			if wantCode := map[string]int{"run": exitLost, "none": exitFailed}[run]; code != wantCode || !strings.Contains(got, want) || !strings.Contains(got, "forbidden") {
				t.Errorf("%s: exit code %d, want %d; %q does not say %q", run, code, wantCode, got, want)
			}
		}
	})
	t.Run("no token", func(t *testing.T) {
		t.Setenv("KUBECONFIG", kubeconfig(t, cluster, "wrong"))
		got, code := said(t, []string{"logs", "-n", "ns", "--server", server.URL, "--server-ca", caFile(t, certificate), "run"})
		if want := "no token, or another one"; code != exitFailed || !strings.Contains(got, want) {
			t.Errorf("exit code %d, %q does not say %q", code, got, want)
		}
	})
}

func caFile(t *testing.T, pem []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(name, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// userToken makes somebody who may do everything, and returns their token.
func userToken(t *testing.T, cluster apiserver.Server) string {
	t.Helper()
	core := cluster.Core
	if _, err := core.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "reader"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "reader"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "default", Name: "reader"}},
	}
	if _, err := core.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := core.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "reader", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return token.Status.Token
}

func kubeconfig(t *testing.T, cluster apiserver.Server, token string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}], users: [{name: u, user: {token: %q}}]}`, cluster.Admin.Host, caFile(t, cluster.Admin.CAData), token)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
