package main

import (
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// settings are what the operator decides about injected pods. They do not change while the process runs.
// A namespace may have some of its own; see ofNamespace.
type settings struct {
	shipperImage    string
	imagePullPolicy corev1.PullPolicy // empty: what the API server makes of the image's tag
	ticketURL       string
	ticketAddress   string // host:port for pods that cannot resolve ticketURL's name; empty: none

	diskFree          int64 // percent of a node's disk
	spoolLimit        int64 // bytes that one pod may have in the spool, not yet shipped
	maxSpoolLimit     int64 // the most that a namespace may ask for; less than spoolLimit: that
	segmentBytes      int64
	flushInterval     time.Duration
	slowFlushInterval time.Duration
	drainGrace        time.Duration // what the shipper gets on top of the pod's own grace period; whole seconds

	// kubernetesSidecar says that Tekton runs with enable-kubernetes-sidecar, so that a TaskRun is complete only when the shipper has ended.
	// boundedDrain is the most that the shipper takes then.
	kubernetesSidecar bool
	boundedDrain      time.Duration

	// openShift leaves out the shipper's UID and GID: OpenShift assigns each namespace a range and refuses a fixed one.
	openShift bool

	// repairRestartPolicy puts restartPolicy: Always back where another webhook dropped it, instead of undoing the injection. It is right where that webhook is called once.
	repairRestartPolicy bool

	// resultsAtRisk captures pods also where the kubelet cuts results shorter with our container in
	// them.
	resultsAtRisk bool

	minMemoryLimit resource.Quantity // a container with a smaller limit is left alone
	cpuRequest     resource.Quantity
	cpuLimit       resource.Quantity
	memoryRequest  resource.Quantity
	memoryLimit    resource.Quantity
	// guaranteedCPU is request and limit in a pod of the QoS class Guaranteed, where the two must be equal: the small request would throttle the
	// shipper, and the large limit would take a whole CPU from the node.
	guaranteedCPU resource.Quantity
}

// defaultSettings are those of a plain installation; the shipper's image is missing, since it depends on the release.
func defaultSettings() settings {
	return settings{
		imagePullPolicy:   corev1.PullIfNotPresent,
		ticketURL:         "https://shiplog-webhook.shiplog-system.svc" + ticket.Path,
		spoolLimit:        1 << 30,
		diskFree:          15, // imagefs.available of the kubelet's defaults, often nodefs' disk too
		segmentBytes:      6 << 20,
		flushInterval:     time.Second,
		slowFlushInterval: 5 * time.Second,
		drainGrace:        30 * time.Second,
		boundedDrain:      5 * time.Second,
		minMemoryLimit:    resource.MustParse("32Mi"),
		cpuRequest:        resource.MustParse("10m"),
		cpuLimit:          resource.MustParse("1"),
		memoryRequest:     resource.MustParse("32Mi"),
		memoryLimit:       resource.MustParse("64Mi"),
		guaranteedCPU:     resource.MustParse("100m"),
	}
}

// bind makes a flag of each setting; the present values are the defaults.
func (s *settings) bind(flags *flag.FlagSet) {
	flags.StringVar(&s.shipperImage, "shipper-image", s.shipperImage, "image of the shipper (required)")
	flags.StringVar((*string)(&s.imagePullPolicy), "shipper-image-pull-policy", string(s.imagePullPolicy), "Always, IfNotPresent, Never, or empty for Kubernetes' default")
	flags.StringVar(&s.ticketAddress, "ticket-address", ownService(os.Getenv),
		"host:port of the ticket service for pods that cannot resolve its name, as with dnsPolicy None "+
			"(default: the Service shiplog-webhook, by its environment variables)")
	flags.StringVar(&s.ticketURL, "ticket-url", s.ticketURL, "address at which shippers reach the ticket service")
	flags.Var(bytesFlag{&s.spoolLimit}, "spool-limit",
		"most unshipped output of one pod that is kept on the node, such as 1Gi")
	flags.Int64Var(&s.diskFree, "disk-free", s.diskFree,
		"percent of a node's disk that unshipped output leaves free: the highest threshold at which "+
			"its kubelet evicts; 0 looks at no disk")
	flags.Var(bytesFlag{&s.maxSpoolLimit}, "max-spool-limit",
		"most that a namespace may set "+contract.SpoolLimitAnnotation+" to (default: --spool-limit)")
	flags.Var(bytesFlag{&s.segmentBytes}, "segment-bytes", "size at which a segment is cut")
	flags.DurationVar(&s.flushInterval, "flush-interval", s.flushInterval, "age at which a segment is cut")
	flags.DurationVar(&s.slowFlushInterval, "slow-flush-interval", s.slowFlushInterval, "age at which a segment is cut in a log that has trickled for long")
	flags.DurationVar(&s.drainGrace, "drain-grace", s.drainGrace, "time for the shipper on top of the pod's own grace period")
	flags.BoolVar(&s.kubernetesSidecar, "tekton-kubernetes-sidecar", s.kubernetesSidecar, "Tekton runs with enable-kubernetes-sidecar: bound the drain, since TaskRuns wait for it")
	flags.DurationVar(&s.boundedDrain, "bounded-drain", s.boundedDrain, "longest drain where TaskRuns wait for it")
	flags.BoolVar(&s.openShift, "openshift", s.openShift,
		"name no UID in the shipper's container, and no seccomp profile unless all of the pod's own do")
	flags.BoolVar(&s.repairRestartPolicy, "repair-restart-policy", s.repairRestartPolicy,
		"put restartPolicy: Always back where another webhook has dropped it; the API server refuses the pod if that webhook has reinvocationPolicy IfNeeded")
	flags.BoolVar(&s.resultsAtRisk, "capture-results-at-risk", s.resultsAtRisk,
		"capture pods also where the kubelet cuts results shorter with the shipper in them: a "+
			"TaskRun loses results that are longer, and its PipelineRun fails")
	flags.Var(quantityFlag{&s.minMemoryLimit}, "min-memory-limit", "leave containers with a smaller memory limit alone")
	flags.Var(quantityFlag{&s.cpuRequest}, "shipper-cpu-request", "CPU request of the shipper")
	flags.Var(quantityFlag{&s.cpuLimit}, "shipper-cpu-limit", "CPU limit of the shipper")
	flags.Var(quantityFlag{&s.memoryRequest}, "shipper-memory-request", "memory request of the shipper")
	flags.Var(quantityFlag{&s.memoryLimit}, "shipper-memory-limit", "memory limit of the shipper")
	flags.Var(quantityFlag{&s.guaranteedCPU}, "shipper-guaranteed-cpu", "CPU request and limit of the shipper in pods of the QoS class Guaranteed")
}

// validate returns every fault at once.
func (s *settings) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.shipperImage == "" {
		bad("--shipper-image is missing")
	}
	switch s.imagePullPolicy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		bad("--shipper-image-pull-policy %q is not Always, IfNotPresent or Never", s.imagePullPolicy)
	}
	if strings.Contains(s.ticketURL, "$(") {
		// The kubelet expands such references in the value of an environment variable.
		bad("--ticket-url %q holds \"$(\"", s.ticketURL)
	}
	if s.ticketAddress != "" {
		host, port, err := net.SplitHostPort(s.ticketAddress)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil || host == "" {
			bad("--ticket-address %q is no host and port such as 10.96.12.7:443", s.ticketAddress)
		}
	}
	if s.spoolLimit < s.segmentBytes || s.spoolLimit > 1<<50 {
		bad("--spool-limit %d is not between --segment-bytes %d and 1Pi", s.spoolLimit, s.segmentBytes)
	}
	if s.maxSpoolLimit != 0 && (s.maxSpoolLimit < s.spoolLimit || s.maxSpoolLimit > 1<<50) {
		bad("--max-spool-limit %d is not between --spool-limit %d and 1Pi",
			s.maxSpoolLimit, s.spoolLimit)
	}
	if s.drainGrace < time.Second || s.drainGrace%time.Second != 0 {
		bad("--drain-grace %v is not a positive number of whole seconds, as Kubernetes counts grace periods", s.drainGrace)
	}
	if s.boundedDrain <= 0 {
		bad("--bounded-drain %v is not positive", s.boundedDrain)
	}
	for _, pair := range []struct {
		name           string
		request, limit resource.Quantity
	}{{"cpu", s.cpuRequest, s.cpuLimit}, {"memory", s.memoryRequest, s.memoryLimit}} {
		if pair.request.Sign() <= 0 || pair.limit.Cmp(pair.request) < 0 {
			bad("--shipper-%s-request %s must be positive and not above --shipper-%[1]s-limit %s", pair.name, pair.request.String(), pair.limit.String())
		}
	}
	if s.guaranteedCPU.Sign() <= 0 {
		bad("--shipper-guaranteed-cpu %s is not positive", s.guaranteedCPU.String())
	}
	if s.minMemoryLimit.Sign() < 0 {
		bad("--min-memory-limit %s is negative", s.minMemoryLimit.String())
	}
	// The rest is the contract's to judge.
	sample := s.config("", []string{"step"}, true)
	if err := sample.Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// usefulSpool is the least that is worth having in the spool of a pod.
func (s *settings) usefulSpool() int64 {
	return min(max(leastSpool, s.segmentBytes), s.spoolLimit)
}

// config is what the shipper of one pod is told.
func (s *settings) config(caBundle string, containers []string, bounded bool) contract.Config {
	c := contract.Config{
		TicketURL:         s.ticketURL,
		TicketAddress:     s.ticketAddress,
		CABundle:          caBundle,
		Containers:        containers,
		SegmentBytes:      s.segmentBytes,
		SpoolLimit:        s.spoolLimit,
		DiskFree:          s.diskFree,
		FlushInterval:     contract.Duration(s.flushInterval),
		SlowFlushInterval: contract.Duration(s.slowFlushInterval),
	}
	if bounded {
		c.DrainTimeout = contract.Duration(s.boundedDrain)
	}
	return c
}

// ownService is the address of the Service shiplog-webhook by the variables that the kubelet gives
// to each pod of its namespace, or nothing. Source:
// https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
func ownService(env func(string) string) string {
	host, port := env("SHIPLOG_WEBHOOK_SERVICE_HOST"), env("SHIPLOG_WEBHOOK_SERVICE_PORT")
	if host == "" || port == "" {
		return ""
	}
	return net.JoinHostPort(host, port)
}

// quantityFlag is a flag that holds a Kubernetes quantity such as 64Mi or 10m.
type quantityFlag struct{ q *resource.Quantity }

func (f quantityFlag) String() string {
	if f.q == nil { // package flag asks a zero value
		return ""
	}
	return f.q.String()
}

func (f quantityFlag) Set(text string) error {
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return fmt.Errorf("%q is not a quantity such as 64Mi or 10m: %w", text, err)
	}
	*f.q = q
	return nil
}

// bytesFlag is a flag that holds a whole number of bytes, written as a Kubernetes quantity.
type bytesFlag struct{ n *int64 }

func (f bytesFlag) String() string {
	if f.n == nil {
		return ""
	}
	return resource.NewQuantity(*f.n, resource.BinarySI).String()
}

func (f bytesFlag) Set(text string) error {
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return fmt.Errorf("%q is not a number of bytes such as 4Mi: %w", text, err)
	}
	n, ok := q.AsInt64()
	if !ok {
		return fmt.Errorf("%q is not a whole number of bytes below 8Ei", text)
	}
	*f.n = n
	return nil
}

// readCABundle returns the certificates of a PEM file and nothing else that is in it. It is read at each admission, so that a renewed CA reaches
// the next pod. An empty path means that shippers trust the system's roots.
func readCABundle(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	rest, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return "", fmt.Errorf("read the CA that shippers trust: %w (with --ca-file= they trust the system's roots)", err)
	}
	var bundle strings.Builder
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			block.Headers = nil
			bundle.Write(pem.EncodeToMemory(block))
		}
	}
	if bundle.Len() == 0 {
		return "", fmt.Errorf("read the CA that shippers trust: %s holds no PEM certificate", path)
	}
	return bundle.String(), nil
}
