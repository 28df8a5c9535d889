package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// kubectl runs kubectl against the cluster with an optional standard input.
func (n node) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return runKubectl(ctx, n.bin("kubernetes", "kubectl"), n.kubeconfig(), stdin, args...)
}

func runKubectl(ctx context.Context, binary, kubeconfig, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, binary, append([]string{"--kubeconfig", kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	endWithCaller(cmd)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w", strings.Join(args[:min(3, len(args))], " "), exitError(err))
	}
	return string(out), nil
}

// until tries again until a condition holds. The error says what was awaited, and what the last try said.
func until(ctx context.Context, what string, timeout time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %s: %w", what, timeout, err)
		case <-tick.C:
		}
	}
}

// answers says whether a server answers an HTTP request at all.
func answers(address string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
}

// apiReady asks the API server itself: starting kubectl five times a second would slow down what is awaited.
func (n node) apiReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ca, err := os.ReadFile(n.path("pki", "ca.crt"))
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(n.path("pki", "admin.crt"), n.path("pki", "admin.key"))
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+n.ip()+":6443/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // the status is the error, the text only explains it
		return fmt.Errorf("kube-apiserver: %s: %s", resp.Status, lastLines(string(b), 3))
	}
	return nil
}

// dnsReady asks the cluster's DNS for the API server.
func (n node) dnsReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, n.ip()+":53")
	}}
	addresses, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
	if err == nil && !slices.Contains(addresses, n.apiIP()) {
		err = fmt.Errorf("kubernetes.default is %v, not %s", addresses, n.apiIP())
	}
	return err
}

// clusterDNS is the Service that gives CoreDNS, a process of the node, the address that pods ask.
func (n node) clusterDNS() string {
	return `apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: ` + n.dnsIP() + `
  ports:
    - {name: dns, port: 53, protocol: UDP}
    - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {kubernetes.io/service-name: kube-dns}
addressType: IPv4
ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
endpoints:
  - addresses: ["` + n.ip() + `"]
`
}

// applyBase makes what does not need a node: DNS' address, cert-manager's and Tekton's objects.
func applyBase(ctx context.Context, n node) error {
	certManager, err := certManagerCRDs(ctx)
	if err != nil {
		return err
	}
	tekton, err := tektonYAML(ctx, n.images())
	if err != nil {
		return err
	}
	for i, text := range tekton {
		if tekton[i], err = testedTekton(text); err != nil {
			return err
		}
	}
	return applyAll(ctx, n.kubectl, append([]string{certManager + "---\n" + n.clusterDNS()}, tekton...))
}

// applyAll applies YAML texts one after the other.
func applyAll(ctx context.Context, kubectl func(ctx context.Context, stdin string, args ...string) (string, error), texts []string) error {
	for _, text := range texts {
		if _, err := kubectl(ctx, text, "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
			return err
		}
	}
	return nil
}

// certManagerCRDs are cert-manager's namespace and its CRDs.
func certManagerCRDs(ctx context.Context) (string, error) {
	dir, err := moduleDir(ctx, "certmanager", "github.com/cert-manager/cert-manager")
	if err != nil {
		return "", err
	}
	crds, err := readAll(filepath.Join(dir, "deploy", "crds", "*.yaml"))
	return "apiVersion: v1\nkind: Namespace\nmetadata: {name: cert-manager}\n" + crds, err
}

// tektonYAML is what Tekton's release consists of, from its module, in the order in which it is to be applied. Namespaces, accounts, roles and CRDs come before what uses
// them, as their numbers say.
func tektonYAML(ctx context.Context, r registry) ([]string, error) {
	dir, err := moduleDir(ctx, "tekton", "github.com/tektoncd/pipeline")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config")
	first, err := readAll(config+"/100-namespace/*.yaml", config+"/resolvers/100-namespace.yaml", config+"/20*.yaml", config+"/300-crds/*.yaml", config+"/resolvers/20*.yaml")
	if err != nil {
		return nil, err
	}
	rest, err := readAll(config+"/500-webhooks.yaml", config+"/config-*.yaml", config+"/clusterrole-aggregate-*.yaml",
		config+"/controller.yaml", config+"/events.yaml", config+"/webhook.yaml", config+"/resolvers/*config*.yaml", config+"/resolvers/resolvers-*.yaml")
	if err != nil {
		return nil, err
	}
	rest, err = withImages(rest, r)
	return []string{first, rest}, err
}

// withImages makes Tekton's own YAML name the images of a registry.
func withImages(text string, r registry) (string, error) {
	var out []string
	for line := range strings.Lines(text) {
		const ko = "ko://github.com/tektoncd/pipeline/cmd/"
		if i := strings.Index(line, ko); i >= 0 {
			name := line[i+len(ko):]
			end := strings.IndexAny(name, "\"\n")
			line = line[:i] + r.pull + "/tekton/" + name[:end] + ":local" + name[end:]
		}
		if i := strings.Index(line, `"-shell-image",`); i >= 0 {
			line = line[:i] + `"-shell-image", "` + r.pull + `/tekton/shell:local",` + "\n"
		}
		out = append(out, line)
	}
	if text = strings.Join(out, ""); strings.Contains(text, "ko://") {
		return "", errors.New("tekton: its configuration is not of the known shape: see withImages in tests/cluster/install.go")
	}
	return text, nil
}

// testedTekton turns on what the tests need: Pod Security "restricted", and stdoutConfig, which is one of the alpha features.
func testedTekton(text string) (string, error) {
	var out []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "  enable-api-fields:") {
			line = "  enable-api-fields: \"alpha\"\n"
		}
		if strings.HasPrefix(line, "  set-security-context:") {
			line = "  set-security-context: \"true\"\n"
		}
		out = append(out, line)
	}
	changed := strings.Join(out, "")
	if strings.Contains(text, "set-security-context") && !strings.Contains(changed, `set-security-context: "true"`) {
		return "", errors.New("tekton: its configuration is not of the known shape: see testedTekton in tests/cluster/install.go")
	}
	return changed, nil
}

// readAll joins YAML files. A pattern without files is an error, since files move between versions.
func readAll(patterns ...string) (string, error) {
	var b strings.Builder
	for _, pattern := range patterns {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			return "", fmt.Errorf("no file is like %s: %w", pattern, err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				return "", err
			}
			b.WriteString("\n---\n")
			b.Write(text)
		}
	}
	return b.String(), nil
}

// waitReady waits until the node and Tekton work. Tekton's webhook must answer, or the first Task that is made fails.
func waitReady(ctx context.Context, n node, progress io.Writer) error {
	err := until(ctx, "the node", time.Minute, func(ctx context.Context) error {
		_, err := n.kubectl(ctx, "", "wait", "--for=condition=Ready", "node/"+nodeName, "--timeout=60s")
		return err
	})
	if err != nil {
		return fmt.Errorf("%w; logs %s, %s", err, n.logPath("kubelet"), n.logPath("containerd"))
	}
	fmt.Fprintln(progress, "  node           ready")
	if err := waitForTekton(ctx, n.kubectl); err != nil {
		return err
	}
	fmt.Fprintln(progress, "  tekton         ready")
	return nil
}

// waitForTekton waits until Tekton works.
func waitForTekton(ctx context.Context, kubectl func(ctx context.Context, stdin string, args ...string) (string, error)) error {
	for _, ns := range []string{"tekton-pipelines", "tekton-pipelines-resolvers"} {
		if _, err := kubectl(ctx, "", "-n", ns, "wait", "--for=condition=Available", "deployment", "--all", "--timeout=180s"); err != nil {
			pods, _ := kubectl(ctx, "", "-n", ns, "get", "pods", "-o", "wide") // only explains
			return fmt.Errorf("tekton is not ready: %w\n%s", err, pods)
		}
	}
	task := "apiVersion: tekton.dev/v1\nkind: Task\nmetadata: {name: probe, namespace: default}\nspec: {steps: [{name: s, image: busybox, script: 'true'}]}\n"
	return until(ctx, "tekton's webhook", time.Minute, func(ctx context.Context) error {
		_, err := kubectl(ctx, task, "create", "--dry-run=server", "-f", "-")
		return err
	})
}
