package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// fakeServer answers as a shiplog server does, with what no true one would say.
type fakeServer struct {
	*httptest.Server
	containers []fakeLog // each of a TaskRun of its own
	matches    string    // of a search
}

type fakeLog struct {
	backend.Container
	task, text string
}

// fakeContainer is a log of which the tree says that it has so many bytes.
func fakeContainer(name string, bytes int64, text string) fakeLog {
	return fakeLog{backend.Container{Name: name, Kind: record.Step, Status: backend.Verified, Bytes: bytes}, "good", text}
}

func newFakeServer(t *testing.T) *fakeServer {
	t.Helper()
	s := &fakeServer{}
	run := layout.Run{Namespace: "ns", Name: "run", UID: "u"}
	taskRun := func(c fakeLog, i int) string {
		if c.task == "" {
			return "run-empty"
		}
		return fmt.Sprint("run-", i)
	}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := json.NewEncoder(w)
		switch {
		case strings.HasSuffix(r.URL.Path, "/search"):
			fmt.Fprintln(w, s.matches+`{"found":{"matches":0,"more":false,"logs":1}}`)
		case strings.HasSuffix(r.URL.Path, "/logs"):
			for i, c := range s.containers {
				if !strings.HasSuffix(r.URL.Path, fmt.Sprintf("/%s/p%d/%s/logs", taskRun(c, i), i, c.Name)) {
					continue
				}
				offset := int64(0)
				for line := range strings.Lines(c.text) {
					text := strings.TrimSuffix(line, "\n")
					_ = e.Encode(api.Line{Line: 1, Offset: offset, Time: start, Stream: "stdout", Text: &text})
					offset += int64(len(line))
				}
				_ = e.Encode(api.End{End: api.State{Status: c.Status, Why: c.Why, Bytes: c.Bytes}})
			}
		default:
			tree := api.Tree{Run: run}
			for i, c := range s.containers {
				pod := api.Pod{PodUID: fmt.Sprint("p", i), PodName: c.Name, LastSeen: time.Now(), Created: start, Containers: []api.Container{{Container: c.Container}}}
				tree.TaskRuns = append(tree.TaskRuns, api.TaskRun{Name: taskRun(c, i), PipelineTask: c.task, Pods: []api.Pod{pod}})
			}
			_ = e.Encode(tree)
		}
	}))
	t.Cleanup(s.Close)
	t.Setenv(objectstore.EnvBucket, "")
	t.Setenv("KUBECONFIG", plainKubeconfig(t, "https://127.0.0.1:1", `{token: "t"}`))
	return s
}

// plainKubeconfig is one of a cluster, with a user.
func plainKubeconfig(t *testing.T, server, user string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], clusters: [{name: c, cluster: {insecure-skip-tls-verify: true, server: %q}}], users: [{name: u, user: %s}]}`, server, user)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
