package main

// component is a module of its own under components/, whose go.mod pins what is built. The pins are there and nowhere else.
type component struct {
	name     string
	packages []string // import paths; the last part of each is the binary's name, but see binaryName
	tags     string
	cgo      bool
	ldflags  string   // on top of "-s -w"
	tests    bool     // for tests alone: the cluster runs without it
	debian   []string // packages that it needs when it runs, beside debianPackages
}

const kubernetesVersion = "v1.36.3" // stamped into the binaries; must be what components/kubernetes/go.mod pins (a test compares them)

// components are in the order of their builds, the slowest first among those that the control plane needs.
var components = []component{
	{
		name: "kubernetes",
		packages: []string{
			"k8s.io/kubernetes/cmd/kube-apiserver",
			"k8s.io/kubernetes/cmd/kubelet",
			"k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kube-scheduler",
			"k8s.io/kubernetes/cmd/kube-proxy",
			"k8s.io/kubernetes/cmd/kubectl",
		},
		// Without the stamp clients see v0.0.0, and so would the webhook's check for native sidecars.
		ldflags: "-X k8s.io/component-base/version.gitVersion=" + kubernetesVersion +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
	},
	{
		name: "containerd",
		packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
		},
		tags: "no_btrfs no_zfs no_aufs no_devmapper",
	},
	{name: "runc", packages: []string{"github.com/opencontainers/runc"}, tags: "seccomp", cgo: true},
	{name: "crane", packages: []string{"github.com/google/go-containerregistry/cmd/crane"}},
	{name: "versitygw", packages: []string{"github.com/versity/versitygw/cmd/versitygw"}},
	{
		name: "tekton",
		packages: []string{
			"github.com/tektoncd/pipeline/cmd/controller",
			"github.com/tektoncd/pipeline/cmd/webhook",
			"github.com/tektoncd/pipeline/cmd/events",
			"github.com/tektoncd/pipeline/cmd/resolvers",
			"github.com/tektoncd/pipeline/cmd/entrypoint",
			"github.com/tektoncd/pipeline/cmd/nop",
			"github.com/tektoncd/pipeline/cmd/workingdirinit",
			"github.com/tektoncd/pipeline/cmd/sidecarlogresults",
		},
	},
	{name: "coredns", packages: []string{"github.com/coredns/coredns"}},
	{name: "certmanager", packages: []string{"github.com/shiplog-dev/shiplog/tests/cluster/components/certmanager"}},
	{name: "minio", packages: []string{"github.com/minio/minio"}, tests: true},
	{name: "results", packages: []string{"github.com/tektoncd/results/cmd/api", "github.com/tektoncd/results/cmd/tkn-results"}, tests: true, debian: []string{"postgresql"}},
	{name: "tkn", packages: []string{"github.com/shiplog-dev/shiplog/tests/cluster/components/tkn"}, tests: true},
	{name: "otelcol", packages: []string{"github.com/shiplog-dev/shiplog/tests/cluster/components/otelcol"}, tests: true},
}

// tools are what tests alone take from Debian, by the name that "build" has for them.
var tools = map[string][]string{
	"chromium":     {"chromium", "fonts-dejavu-core"},
	"ceph":         {"ceph-common", "ceph-mon", "ceph-osd", "radosgw"},  // OpenShift's store
	"tekton-tests": {"bash-static"},                                     // what Tekton's own examples are written for
	"bench":        {"awscli", "curl", "ripgrep", "util-linux", "zstd"}, // what shiplog is measured beside
}

// debianPackages are what the node needs beside Go binaries, and what tests need: strace, to kill processes at one system call, and zstd, to read the archive as docs/format.md says.
var debianPackages = []string{
	"busybox-static", "ca-certificates", "conntrack", "containernetworking-plugins", "etcd-server", "gcc", "iproute2", "iptables", "libc6-dev",
	"libseccomp-dev", "pkg-config", "strace", "tini", "zstd",
}
