package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

func TestConfidential(t *testing.T) {
	for _, c := range []struct {
		name, address string
		insecure      bool
		refused       bool
	}{
		{"https", "https://logs.example.com", false, false},
		{"http", "http://logs.example.com", false, true},
		{"http, if one must", "http://logs.example.com", true, false},
		{"http in the cluster", "http://10.0.0.1:8080", false, true},
		{"the own host", "http://localhost:8080", false, false},
		{"the own host's address", "http://127.0.0.1:8080", false, false},
		{"the own host's other address", "http://[::1]:8080", false, false},
		{"looks like the own host", "http://localhost.example.com", false, true},
		{"in capitals", "HTTP://logs.example.com", false, true},
		{"no address", "logs.example.com", false, false}, // which client.New refuses
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := (address{address: c.address}).confidential(c.insecure); (err != nil) != c.refused {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("as a command", func(t *testing.T) {
		newFakeServer(t)
		got, code := said(t, []string{"ls", "-n", "ns", "--server", "http://logs.example.com"})
		if code != exitUsage || !strings.Contains(got, "--insecure-http") {
			t.Errorf("exit code %d, %q", code, got)
		}
	})
}

// TestNoToken: a kubeconfig with a client certificate alone reads pods, and says why there is no archive.
func TestNoToken(t *testing.T) {
	cluster := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/configmaps/"+infoName):
			_, _ = w.Write([]byte(`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"shiplog-info"},"data":{"server":"https://logs.example.com"}}`))
		case strings.HasSuffix(r.URL.Path, "/pipelineruns"):
			_, _ = w.Write([]byte(`{"kind":"PipelineRunList","apiVersion":"tekton.dev/v1","items":[
				{"metadata":{"name":"mine","uid":"u-mine","creationTimestamp":"2026-11-23T12:00:00Z"},"status":{"conditions":[{"type":"Succeeded","status":"Unknown"}]}},
				{"metadata":{"name":"stopped","uid":"u-stopped","creationTimestamp":"2026-11-23T11:00:00Z"},"status":{"conditions":[{"type":"Succeeded","status":"False","reason":"Cancelled"}]}},
				{"metadata":{"name":"bad","uid":"u-bad","creationTimestamp":"2026-11-23T10:00:00Z"},"status":{"conditions":[{"type":"Succeeded","status":"False","reason":"Failed"}]}}]}`))
		default:
			_, _ = w.Write([]byte(`{"kind":"TaskRunList","apiVersion":"tekton.dev/v1","items":[]}`))
		}
	}))
	defer cluster.Close()
	t.Setenv(objectstore.EnvBucket, "")
	t.Setenv("KUBECONFIG", plainKubeconfig(t, cluster.URL, `{username: "u", password: "p"}`))
	got, code := said(t, []string{"ls", "-n", "ns"})
	want := `NAME     KIND         STATE      CREATED               UID
mine     pipelinerun  running    2026-11-23T12:00:00Z  u-mine
stopped  pipelinerun  cancelled  2026-11-23T11:00:00Z  u-stopped
bad      pipelinerun  failed     2026-11-23T10:00:00Z  u-bad
--- stderr
shiplog: no archive: the kubeconfig's user has no token`
	if code != 0 || !strings.HasPrefix(got, want) {
		t.Errorf("exit code %d, %q does not begin with %q", code, got, want)
	}
	if got, code := said(t, []string{"verify", "-n", "ns", "mine"}); code != exitFailed || !strings.Contains(got, "no token") {
		t.Errorf("exit code %d, %q", code, got)
	}
}

func TestVisible(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "build : compile ✓ ü", "build : compile ✓ ü"},
		{"escapes", "\x1b[31mred\x07\r\n", `\x1b[31mred\a\r\n`},
		{"C1", "\u009b31m", `\u009b31m`},
		{"direction", "a\u202eb", `a\u202eb`},
		{"no UTF-8", "a\xffb", `a\xffb`},
		{"the replacement itself", "\ufffd", "\ufffd"},
		{"quotes and backslashes", `"a\b'`, `"a\b'`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := visible(c.in); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
