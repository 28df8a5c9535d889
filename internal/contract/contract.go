// Package contract owns what the webhook and the containers it injects agree on: the names in a pod, the paths in its containers, tee's
// flags, and the one environment variable that configures the shipper. The webhook encodes, tee and the shipper decode. It also owns the
// annotations that people and other tools see, and the address of the web page that one of them holds.
package contract

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Names that people and other tools see.
const (
	// InjectKey is the namespace label that turns shiplog on with InjectEnabled, and the annotation that turns it off for one TaskRun or
	// PipelineRun with InjectDisabled (Tekton copies annotations from PipelineRun to TaskRun to pod).
	InjectKey      = "shiplog.dev/inject"
	InjectEnabled  = "enabled"
	InjectDisabled = "false"
	// SkippedAnnotation on a pod says what was left alone and why: "container=reason" pairs joined by ",", or "pod=reason".
	SkippedAnnotation = "shiplog.dev/skipped"

	// ExcludeAnnotation on a PipelineRun or TaskRun names containers that are left alone, as they are
	// called in the pod, joined by ",": "step-login,sidecar-docker".
	ExcludeAnnotation = "shiplog.dev/exclude-containers"

	// These on a Namespace set for its pods what the webhook's flags of the same names set for all.
	SpoolLimitAnnotation    = "shiplog.dev/spool-limit"
	FlushIntervalAnnotation = "shiplog.dev/flush-interval"
	CPURequestAnnotation    = "shiplog.dev/shipper-cpu-request"
	CPULimitAnnotation      = "shiplog.dev/shipper-cpu-limit"
	MemoryRequestAnnotation = "shiplog.dev/shipper-memory-request"
	MemoryLimitAnnotation   = "shiplog.dev/shipper-memory-limit"

	// LogsAnnotation on a PipelineRun or TaskRun is the address of the page that shows its logs; see Page.
	LogsAnnotation = "shiplog.dev/logs"
	// SealedAnnotation on a PipelineRun or TaskRun that has ended says that no more of its logs will come: with SealedTrue every captured container's log is sealed and durable, with
	// SealedPartial some are not and will not be. With SealedMissed the captured ones are, and there
	// are steps that should have been captured and were not, whose logs their pods alone have.
	// SealedReasonAnnotation says which, and why.
	SealedAnnotation       = "shiplog.dev/sealed"
	SealedTrue             = "true"
	SealedPartial          = "partial"
	SealedMissed           = "missed"
	SealedReasonAnnotation = "shiplog.dev/sealed-reason"
	// SealedUIDAnnotation is the UID of the object that SealedAnnotation was set on. Tekton copies annotations from PipelineRun to TaskRun, and tools that run something again copy them to the new run: there
	// SealedAnnotation means nothing, and shiplog removes it.
	SealedUIDAnnotation = "shiplog.dev/sealed-uid"

	// Audience is the audience of the service-account token that the shipper trades for an upload ticket.
	Audience = "shiplog"
)

// Names within an injected pod.
const (
	// ShipperContainer has neither of the prefixes "step-" and "sidecar-", which mean something to Tekton.
	ShipperContainer = "shiplog-shipper"
	SpoolVolume      = "shiplog-spool"
	TokenVolume      = "shiplog-token"

	// BinSubPath is the folder of the spool volume that holds tee; LogsSubPath the folder with one folder per container;
	// StateSubPath is the shipper's own and is mounted into no other container.
	BinSubPath   = "bin"
	LogsSubPath  = "logs"
	StateSubPath = "state"

	// TeeMount and SpoolMount are where a captured container sees tee (read-only) and its own folder of the spool (read-write).
	TeeMount   = "/shiplog/bin"
	SpoolMount = "/shiplog/spool"
	TeePath    = TeeMount + "/tee"

	// VolumeMount is where the shipper sees the whole spool volume.
	VolumeMount = "/shiplog"
	TokenMount  = "/var/run/secrets/shiplog.dev"
	TokenFile   = TokenMount + "/token"

	// ShipperBinary and TeeSource are paths in the shipper's image. "ShipperBinary install" is the postStart hook.
	ShipperBinary = "/shipper"
	TeeSource     = "/tee"
)

// MaxEnv is the longest "NAME=value" that Linux starts a process with (MAX_ARG_STRLEN, execve(2)),
// less the NUL behind it. A container with a longer one cannot be started, nor can its pod.
const MaxEnv = 128<<10 - 1

// ConfigEnv is the environment variable that holds the shipper's Config as JSON.
const ConfigEnv = "SHIPLOG_CONFIG"

// PlaceScriptsEnv is the environment variable that holds Tekton's init container place-scripts as
// JSON, where the shipper takes its place. It is unset elsewhere.
const PlaceScriptsEnv = "SHIPLOG_PLACE_SCRIPTS"

// PlacedScripts returns the shell text of the container in PlaceScriptsEnv, or nothing where that
// is empty.
func PlacedScripts(value string) (string, error) {
	if value == "" {
		return "", nil
	}
	var c struct {
		Args []string `json:"args"`
	}
	if err := json.Unmarshal([]byte(value), &c); err != nil {
		return "", fmt.Errorf("decode %s: %w", PlaceScriptsEnv, err)
	}
	if len(c.Args) != 2 || c.Args[0] != "-c" {
		return "", fmt.Errorf("decode %s: its args are not -c and a text", PlaceScriptsEnv)
	}
	return c.Args[1], nil
}

// Config is what the webhook tells the shipper. It holds nothing secret: whoever may read the pod can read it.
type Config struct {
	// TicketURL is the address of the ticket service, such as https://shiplog-webhook.shiplog-system.svc/v1/tickets.
	TicketURL string `json:"ticketURL"`
	// TicketAddress is a host and port, such as 10.96.12.7:443, at which the ticket service is
	// reached by pods that cannot resolve its name. Empty means nowhere.
	TicketAddress string `json:"ticketAddress,omitempty"`
	// CABundle holds PEM certificates that sign the ticket service's certificate; empty means the system's roots.
	CABundle string `json:"caBundle,omitempty"`
	// Containers are the captured containers, in the order of the pod. Each has a folder of that name in the spool.
	Containers []string `json:"containers"`
	// SegmentBytes is the number of archive bytes at which a segment is cut.
	SegmentBytes int64 `json:"segmentBytes"`
	// FlushInterval is the age at which a segment is cut in a log that has just begun or resumed; SlowFlushInterval in one that has trickled for long.
	FlushInterval     Duration `json:"flushInterval"`
	SlowFlushInterval Duration `json:"slowFlushInterval"`
	// SpoolLimit is the most unshipped output of all containers together, in bytes, of which each
	// gets a share. Zero means that each may have as much as its tee's limit.
	SpoolLimit int64 `json:"spoolLimit,omitempty"`
	// DiskFree is how many percent of the node's disk the spool leaves free. At zero nobody looks.
	DiskFree int64 `json:"diskFree,omitempty"`
	// DrainTimeout bounds the time from SIGTERM to the shipper's end. Zero means until the kubelet kills it.
	DrainTimeout Duration `json:"drainTimeout,omitempty"`
}

// Duration is a time.Duration that is text such as "1.5s" in JSON.
type Duration time.Duration

// MarshalText makes text such as "1.5s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads text such as "1.5s".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Encode makes the value of ConfigEnv.
func (c Config) Encode() (string, error) {
	if err := c.Validate(); err != nil {
		return "", err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", ConfigEnv, err)
	}
	if n := len(ConfigEnv) + len("=") + len(b); n > MaxEnv {
		return "", fmt.Errorf("encode %s: it has %d bytes, of which %d are the CA bundle, "+
			"and no container can be started with more than %d: make the CA bundle smaller",
			ConfigEnv, n, len(c.CABundle), MaxEnv)
	}
	return string(b), nil
}

// Decode reads the value of ConfigEnv. Unknown fields are ignored, so that a newer webhook can talk to an older shipper.
func Decode(s string) (Config, error) {
	var c Config
	if s == "" {
		return c, fmt.Errorf("%s is empty: the shipper runs only in pods that shiplog's webhook has injected it into", ConfigEnv)
	}
	if err := json.Unmarshal([]byte(s), &c); err != nil {
		return c, fmt.Errorf("decode %s: %w", ConfigEnv, err)
	}
	return c, c.Validate()
}

// Validate returns every fault at once.
func (c Config) Validate() error {
	var errs []error
	if !strings.HasPrefix(c.TicketURL, "https://") && !strings.HasPrefix(c.TicketURL, "http://") {
		errs = append(errs, fmt.Errorf("ticketURL %q is not an http(s) address", c.TicketURL))
	}
	if len(c.Containers) == 0 {
		errs = append(errs, errors.New("containers is empty"))
	}
	for _, name := range c.Containers {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			errs = append(errs, fmt.Errorf("container %q cannot be a folder's name", name))
		}
	}
	if c.SegmentBytes <= 0 || c.FlushInterval <= 0 || c.SlowFlushInterval < c.FlushInterval ||
		c.DrainTimeout < 0 || c.SpoolLimit < 0 {
		errs = append(errs, fmt.Errorf("segmentBytes %d, flushInterval %v, slowFlushInterval %v "+
			"(at least flushInterval) must be positive, drainTimeout %v and spoolLimit %d not negative",
			c.SegmentBytes, time.Duration(c.FlushInterval), time.Duration(c.SlowFlushInterval),
			time.Duration(c.DrainTimeout), c.SpoolLimit))
	}
	if c.DiskFree < 0 || c.DiskFree > 99 {
		errs = append(errs, fmt.Errorf("diskFree %d is not between 0 and 99 percent", c.DiskFree))
	}
	if len(errs) > 0 {
		return fmt.Errorf("%s: %w", ConfigEnv, errors.Join(errs...))
	}
	return nil
}

// Tee is tee's command line:
// "--spool DIR --limit BYTES --grace DURATION [--quiet] -- command args…".
type Tee struct {
	Spool string        // the container's own folder
	Limit int64         // the most unshipped bytes that tee leaves; its share of the pod's may be less
	Grace time.Duration // the pod's own grace period: tee kills its child this long after SIGTERM
	Quiet bool          // tee says nothing in the container's log of trouble with the copy
	Argv  []string      // the container's command and arguments
}

// Args makes the command line behind tee's own path.
func (t Tee) Args() []string {
	limit := strconv.FormatInt(t.Limit, 10)
	args := []string{"--spool", t.Spool, "--limit", limit, "--grace", t.Grace.String()}
	if t.Quiet {
		args = append(args, "--quiet")
	}
	return append(append(args, "--"), t.Argv...)
}

// ParseTee reads what Args made. The form is fixed, not a general command line: only the webhook writes it.
func ParseTee(args []string) (Tee, error) {
	const form = "--spool DIR --limit BYTES --grace DURATION [--quiet] -- COMMAND [ARG…]"
	quiet := len(args) > 6 && args[6] == "--quiet"
	if quiet {
		args = slices.Delete(slices.Clone(args), 6, 7)
	}
	if len(args) < 8 || args[0] != "--spool" || args[2] != "--limit" || args[4] != "--grace" || args[6] != "--" {
		return Tee{}, fmt.Errorf("tee: arguments are not %s", form)
	}
	limit, err := strconv.ParseInt(args[3], 10, 64)
	if err != nil || limit <= 0 {
		return Tee{}, fmt.Errorf("tee: --limit %q is not a positive number of bytes", args[3])
	}
	grace, err := time.ParseDuration(args[5])
	if err != nil || grace < 0 {
		return Tee{}, fmt.Errorf("tee: --grace %q is not a duration like 30s", args[5])
	}
	if args[1] == "" {
		return Tee{}, errors.New("tee: --spool is empty")
	}
	return Tee{Spool: args[1], Limit: limit, Grace: grace, Quiet: quiet, Argv: args[7:]}, nil
}
