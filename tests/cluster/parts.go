package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// part is one process of the node.
type part struct {
	name string
	// command writes the part's configuration and returns its command line and what it needs in its environment.
	command func(n node) (argv, env []string, err error)
	// listens is where it serves when it is ready, seen from within the machine. The node's address stands as %s in it. Without it, running is all that is known.
	network, listens string
	// serves, where there is one, tells that a part which listens can do what the next one needs of it at once.
	serves func(ctx context.Context) error
}

const containerdSocket = "/run/containerd/containerd.sock"

// parts are in the order in which status lists them.
var parts = []part{
	{"etcd", etcdCommand, "tcp", "127.0.0.1:2379", nil},
	{"kube-apiserver", apiServerCommand, "tcp", "%s:6443", nil},
	{"kube-controller-manager", controllerManagerCommand, "tcp", "127.0.0.1:10257", nil},
	{"kube-scheduler", schedulerCommand, "tcp", "127.0.0.1:10259", nil},
	{"containerd", containerdCommand, "unix", containerdSocket, func(ctx context.Context) error { return criAnswers(ctx, containerdSocket) }},
	{"kubelet", kubeletCommand, "tcp", "%s:10250", nil},
	{"kube-proxy", proxyCommand, "tcp", "127.0.0.1:10249", nil},
	{"coredns", corednsCommand, "tcp", "%s:53", nil},
	{"registry", registryCommand, "tcp", "127.0.0.1:" + registryPort, nil},
	{"certmanager", certManagerCommand, "", "", nil},
	{"versitygw", versityCommand, "tcp", "127.0.0.1:" + s3Port, nil},
}

// criAnswers asks containerd for its version over the CRI, as the kubelet does first. containerd listens before its CRI plug-in is
// initialized; it says "Unavailable" until then, and a kubelet that hears that exits (kubelet's validateServiceConnection).
func criAnswers(ctx context.Context, socket string) error {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		Protocols: new(http.Protocols),
	}
	transport.Protocols.SetUnencryptedHTTP2(true) // gRPC over a socket
	defer transport.CloseIdleConnections()
	const emptyMessage = "\x00\x00\x00\x00\x00"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://containerd/runtime.v1.RuntimeService/Version", strings.NewReader(emptyMessage))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	// A call that fails before it answers has its status among the headers.
	status, message := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if status == "" {
		status, message = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	if status != "0" {
		return fmt.Errorf("containerd's CRI answers with gRPC status %q: %s", status, message)
	}
	return nil
}

func findPart(name string) (part, bool) {
	for _, p := range parts {
		if p.name == name {
			return p, true
		}
	}
	return part{}, false
}

// writeFile writes a part's configuration.
func writeFile(name, text string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, []byte(text), 0o644)
}

func etcdCommand(n node) ([]string, []string, error) {
	return []string{
		"/usr/bin/etcd", "--data-dir", n.path("etcd"), "--name", "etcd",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "etcd=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level", "warn",
		// The API server waits for these where a resource does not change; the default is 10 minutes.
		"--experimental-watch-progress-notify-interval", "5s",
	}, nil, nil
}

func apiServerCommand(n node) ([]string, []string, error) {
	pki := func(name string) string { return n.path("pki", name) }
	return []string{
		n.bin("kubernetes", "kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + n.ip(), "--bind-address=0.0.0.0", "--secure-port=6443",
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
		"--client-ca-file=" + pki("ca.crt"),
		"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP", // the node's name does not resolve
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
		"--service-cluster-ip-range=" + n.serviceCIDR(),
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + pki("front-proxy-client.crt"), "--proxy-client-key-file=" + pki("front-proxy-client.key"),
		"--allow-privileged=true", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
	}, nil, nil
}

func controllerManagerCommand(n node) ([]string, []string, error) {
	return []string{
		n.bin("kubernetes", "kube-controller-manager"), "--kubeconfig=" + n.path("pki", "controller-manager.kubeconfig"),
		"--root-ca-file=" + n.path("pki", "ca.crt"), "--service-account-private-key-file=" + n.path("pki", "sa.key"),
		"--use-service-account-credentials=true", "--leader-elect=false", "--service-cluster-ip-range=" + n.serviceCIDR(),
		"--cluster-cidr=" + n.podCIDR(), "--allocate-node-cidrs=false",
	}, nil, nil
}

func schedulerCommand(n node) ([]string, []string, error) {
	return []string{n.bin("kubernetes", "kube-scheduler"), "--kubeconfig=" + n.path("pki", "scheduler.kubeconfig"), "--leader-elect=false"}, nil, nil
}

func containerdCommand(n node) ([]string, []string, error) {
	hosts := func(dir string) error {
		return writeFile(n.path("containerd-certs", dir, "hosts.toml"), fmt.Sprintf("server = \"http://127.0.0.1:%s\"\n\n[host.\"http://127.0.0.1:%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", registryPort, registryPort))
	}
	// docker.io too, so that public Task definitions find "busybox".
	for _, dir := range []string{"localhost_" + registryPort + "_", "localhost:" + registryPort, n.registry(), "docker.io"} {
		if err := hosts(dir); err != nil {
			return nil, nil, err
		}
	}
	config := fmt.Sprintf(`version = 3
root = %q
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = %q

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "localhost:%s/pause:local"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = %q

[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE, as in a container, no sandbox starts otherwise.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = %q
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = %q
        SystemdCgroup = false
`, n.path("containerd"), n.path("containerd-opt"), registryPort, n.path("containerd-certs"), n.path("cni-conf"), n.bin("runc", "runc"))
	cni := fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni-ipam"}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, n.podCIDR())
	if err := writeFile(n.path("containerd.toml"), config); err != nil {
		return nil, nil, err
	}
	if err := writeFile(n.path("cni-conf", "10-pods.conflist"), cni); err != nil {
		return nil, nil, err
	}
	// The shim is found through PATH.
	return []string{n.bin("containerd", "containerd"), "--config", n.path("containerd.toml")},
		[]string{"PATH=" + n.Bin["containerd"] + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}, nil
}

// evictionPercent is how much of its disk the kubelet wants free. Machines that people work on have
// less than its defaults want.
const evictionPercent = "1"

// smallDisk keeps less of the containers' logs on the disk than the kubelet does by default.
const smallDisk = `containerLogMaxFiles: 2
containerLogMonitorInterval: 3s
`

// eviction is the kubelet's evictionPercent from its next start on, and what else it is told. A test
// that makes the disk small writes another into the file "small-disk/eviction-percent" of the
// cluster's folder.
func (n node) eviction() (percent, more string, err error) {
	b, err := os.ReadFile(n.path("small-disk", "eviction-percent"))
	if errors.Is(err, fs.ErrNotExist) {
		return evictionPercent, "", nil
	}
	return strings.TrimSpace(string(b)), smallDisk, err
}

func kubeletCommand(n node) ([]string, []string, error) {
	eviction, more, err := n.eviction()
	if err != nil {
		return nil, nil, err
	}
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /%s
cgroupsPerQOS: true
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: %s
registerNode: true
readOnlyPort: 0
serializeImagePulls: false
maxPods: 250
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
evictionHard:
  memory.available: 100Mi
  nodefs.available: %s%%
  imagefs.available: %[5]s%%
  nodefs.inodesFree: 1%%
evictionPressureTransitionPeriod: 10s
imageGCHighThresholdPercent: 99
imageGCLowThresholdPercent: 98
`, n.cgroup(), n.dnsIP(), n.path("resolv.conf"), n.path("pki", "ca.crt"), eviction) + more
	if err := writeFile(n.path("kubelet.yaml"), config); err != nil {
		return nil, nil, err
	}
	if err := writeFile(n.path("resolv.conf"), "# The cluster has no way out.\nnameserver 127.0.0.1\n"); err != nil {
		return nil, nil, err
	}
	return []string{
		n.bin("kubernetes", "kubelet"), "--config=" + n.path("kubelet.yaml"), "--kubeconfig=" + n.path("pki", "kubelet.kubeconfig"),
		"--hostname-override=" + nodeName, "--node-ip=" + n.ip(), "--root-dir=/var/lib/kubelet", "--cert-dir=" + n.path("kubelet-pki"),
	}, nil, nil
}

func proxyCommand(n node) ([]string, []string, error) {
	config := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: %s
hostnameOverride: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0}
iptables: {minSyncPeriod: 100ms}
`, n.podCIDR(), nodeName, n.path("pki", "kube-proxy.kubeconfig"))
	if err := writeFile(n.path("kube-proxy.yaml"), config); err != nil {
		return nil, nil, err
	}
	return []string{n.bin("kubernetes", "kube-proxy"), "--config=" + n.path("kube-proxy.yaml")}, nil, nil
}

func corednsCommand(n node) ([]string, []string, error) {
	config := fmt.Sprintf(`.:53 {
    bind %s
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods insecure
        ttl 5
    }
    cache 5
}
`, n.ip(), n.kubeconfig())
	if err := writeFile(n.path("Corefile"), config); err != nil {
		return nil, nil, err
	}
	return []string{n.bin("coredns", "coredns"), "-conf", n.path("Corefile")}, nil, nil
}

func registryCommand(n node) ([]string, []string, error) {
	if err := os.MkdirAll(n.path("registry"), 0o755); err != nil {
		return nil, nil, err
	}
	return []string{n.bin("crane", "crane"), "registry", "serve", "--address", "0.0.0.0:" + registryPort, "--disk", n.path("registry")}, nil, nil
}

func certManagerCommand(n node) ([]string, []string, error) {
	return []string{n.bin("certmanager", "certmanager"), "--kubeconfig", n.kubeconfig()}, nil, nil
}

func versityCommand(n node) ([]string, []string, error) {
	if err := os.MkdirAll(n.path("s3", s3Bucket), 0o755); err != nil {
		return nil, nil, err
	}
	return []string{n.bin("versitygw", "versitygw"), "--port", ":" + s3Port, "--access", s3AccessKey, "--secret", s3SecretKey, "--region", s3Region, "posix", n.path("s3")}, nil, nil
}
