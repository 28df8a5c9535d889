package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The network of the node. Pods and Services are reachable on the node only; the host reaches the node over one veth pair.
const (
	hostLink    = "shiplog0"
	hostIP      = "10.213.0.1"
	nodeIP      = "10.213.0.2"
	linkBits    = "/24"
	podCIDR     = "10.213.128.0/20"
	serviceCIDR = "10.213.64.0/20"
	apiIP       = "10.213.64.1" // the first of serviceCIDR is the API server's by Kubernetes' rule
	dnsIP       = "10.213.64.10"
	nodeName    = "node"

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

// errNoCluster says that there is no cluster to talk to.
var errNoCluster = errors.New("no cluster is up: run \"make cluster-up\"")

func loadNode() (node, error) {
	n := node{State: stateDir()}
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
		"SHIPLOG_REGISTRY=" + nodeIP + ":" + registryPort,
		"SHIPLOG_S3_ENDPOINT=http://" + nodeIP + ":" + s3Port,
		"SHIPLOG_S3_BUCKET=" + s3Bucket,
		"SHIPLOG_S3_REGION=" + s3Region,
		"AWS_ACCESS_KEY_ID=" + s3AccessKey,
		"AWS_SECRET_ACCESS_KEY=" + s3SecretKey,
		"KUBECTL=" + n.bin("kubernetes", "kubectl"),
		"CRANE=" + n.bin("crane", "crane"),
	}
}
