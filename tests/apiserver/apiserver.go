// Package apiserver starts a real Kubernetes API server for tests.
package apiserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// Server is a real API server on a real etcd, without any other part of a cluster: no kubelet, no scheduler, no controllers. Tests are these.
type Server struct {
	Admin *rest.Config
	Core  *kubernetes.Clientset // the administrator's
}

// Start starts one and stops it when the test ends. Where it cannot be had the test is skipped, and in CI it fails.
func Start(t *testing.T) Server {
	t.Helper()
	leaveOut := func(why string, err error) {
		t.Helper()
		msg := fmt.Sprintf("NOT TESTED against a real API server: %s: %v (\"go run ./tests/cluster build kubernetes\" makes all that is needed, in many minutes)", why, err)
		if os.Getenv("CI") != "" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		leaveOut("it is built on Linux, as root", nil)
	}
	// A build that is not cached takes longer than a test may.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "run", "github.com/shiplog-dev/shiplog/tests/cluster", "binary", "kube-apiserver")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		leaveOut("no kube-apiserver", err)
	}
	etcd, err := exec.LookPath("etcd")
	if err != nil {
		leaveOut("no etcd", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n") // a tool that builds may say so first
	env := &envtest.Environment{ControlPlaneStartTimeout: 3 * time.Minute, ControlPlaneStopTimeout: time.Minute}
	env.ControlPlane.GetAPIServer().Path = lines[len(lines)-1]
	env.ControlPlane.Etcd = &envtest.Etcd{Path: etcd}
	env.ControlPlane.KubectlPath = etcd // which nothing here runs; without one, the package looks for a file that need not be there
	// A cluster has this one; that package leaves it out. It names the pod's service account, without which there is no token.
	env.ControlPlane.GetAPIServer().Configure().Disable("disable-admission-plugins")
	config, err := env.Start()
	if err != nil {
		t.Fatalf("start the API server: %v", err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stop the API server: %v", err)
		}
	})
	config.QPS = -1
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return Server{config, core}
}
