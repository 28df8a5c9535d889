package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

const (
	nodeName = "node"

	registryPort = "5000"
	s3Port       = "7070"
	s3Bucket     = "shiplog"
	s3Region     = "us-east-1"
	// Keys of a store that nobody but this machine reaches.
	s3AccessKey = "shiplog-local"
	s3SecretKey = "shiplog-local-secret"
)

// node is where everything of the cluster is.
type node struct {
	// State is the folder of all that the cluster writes, but for built binaries.
	State string
	// Net is the first half of every address of the cluster, as "10.213". Two clusters on one machine need two.
	Net string
	// Bin maps component names to the folders of their binaries.
	Bin map[string]string
}

// stateDir is the folder of the cluster's state.
func stateDir() string {
	if dir := os.Getenv("SHIPLOG_CLUSTER_DIR"); dir != "" {
		return dir
	}
	return "/var/lib/shiplog-cluster"
}

// newNode describes the cluster that the environment asks for.
func newNode() (node, error) {
	n := node{State: stateDir(), Net: defaultNet}
	if net := os.Getenv("SHIPLOG_CLUSTER_NET"); net != "" {
		n.Net = net
	}
	if addr, err := netip.ParseAddr(n.Net + ".0.1"); err != nil || !addr.Is4() || !addr.IsPrivate() {
		return node{}, fmt.Errorf("SHIPLOG_CLUSTER_NET is %q: want the first two numbers of a private network, as %q", n.Net, defaultNet)
	}
	return n, nil
}

// defaultNet is an unusual private network, so that it does not hide one that the host uses.
const defaultNet = "10.213"

// The host reaches the node over one veth pair, a /24. Pods and Services are reachable on the node only.
func (n node) hostIP() string      { return n.Net + ".0.1" }
func (n node) ip() string          { return n.Net + ".0.2" }
func (n node) serviceCIDR() string { return n.Net + ".64.0/20" }
func (n node) apiIP() string       { return n.Net + ".64.1" } // the first of serviceCIDR is the API server's by Kubernetes' rule
func (n node) dnsIP() string       { return n.Net + ".64.10" }
func (n node) podCIDR() string     { return n.Net + ".128.0/20" }

// hostLink is the host's end of the veth pair.
func (n node) hostLink() string { return "shl-" + n.Net }

// cgroup is the cgroup under which the kubelet makes every pod's.
func (n node) cgroup() string { return "shiplog-cluster-" + n.Net }

// registry is the registry as the host reaches it. Pods reach it by this name too, and as localhost.
func (n node) registry() string { return n.ip() + ":" + registryPort }

func (n node) path(elem ...string) string {
	return filepath.Join(append([]string{n.State}, elem...)...)
}

func (n node) logPath(part string) string { return n.path("logs", part+".log") }

func (n node) bin(component, name string) string { return filepath.Join(n.Bin[component], name) }

func (n node) kubeconfig() string { return n.path("kubeconfig") }

func (n node) socket() string { return n.path("machine.sock") }

// save keeps the node's description for the machine and for later commands.
func (n node) save() error {
	b, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(n.path("node.json"), b, 0o600)
}

// saveEnv writes what "env" prints to a file, for tools that cannot run it.
func (n node) saveEnv() error {
	return os.WriteFile(n.path("env"), []byte(n.env()), 0o600)
}

// env is a shell script that sets the variables.
func (n node) env() string {
	var b strings.Builder
	for _, line := range n.envLines() {
		fmt.Fprintf(&b, "export %s\n", line)
	}
	fmt.Fprintf(&b, "export PATH=%s:%s:\"$PATH\"\n", n.Bin["kubernetes"], n.Bin["crane"])
	return b.String()
}

// errNoCluster says that there is no cluster to talk to.
var errNoCluster = errors.New("no cluster is up: run \"make cluster-up\"")

func loadNode() (node, error) {
	n := node{State: stateDir(), Net: defaultNet}
	b, err := os.ReadFile(n.path("node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return n, errNoCluster
	}
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil {
		return n, fmt.Errorf("read the cluster's description: %w", err)
	}
	return n, nil
}

// envLines are the variables that people, tests and tools need, as NAME=value.
func (n node) envLines() []string {
	return []string{
		"KUBECONFIG=" + n.kubeconfig(),
		"SHIPLOG_REGISTRY=" + n.registry(),
		"SHIPLOG_S3_ENDPOINT=http://" + n.ip() + ":" + s3Port,
		"SHIPLOG_S3_BUCKET=" + s3Bucket,
		"SHIPLOG_S3_REGION=" + s3Region,
		"AWS_ACCESS_KEY_ID=" + s3AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s3SecretKey,
		"KUBECTL=" + n.bin("kubernetes", "kubectl"),
		"CRANE=" + n.bin("crane", "crane"),
		"SHIPLOG_DISK_FREE=" + evictionPercent,
	}
}
