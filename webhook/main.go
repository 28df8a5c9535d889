// Command webhook is shiplog's part in the control plane: it injects the native sidecar into TaskRun pods at their admission, and trades pod-bound
// tokens for upload tickets. It is stateless; two or more replicas run side by side.
//
// A pod's way through it: main.go serves, handler.go answers and fails open, decide.go says what to
// do, inject.go makes the patch. The ticket service begins in tickets.go. What becomes of the runs
// is told in annotate.go, by a process of its own: --role=annotator.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// options are the flags of the process itself; settings are those that shape pods.
type options struct {
	settings
	role          string
	certDir       string
	caFile        string
	host          string
	port          int
	metricsAddr   string
	kubeconfig    string
	shutdownDelay time.Duration

	heldBackAfter time.Duration // see guard
	heldBackRetry time.Duration
	replaceHeld   bool

	pageURL string // see annotator and linker

	tektonNamespace string // see tektonGate
}

// The roles of a process. What the annotator has to look at grows with the cluster's runs and with
// the archive, so nothing that a pod waits for is in its process.
const (
	roleWebhook   = "webhook"
	roleAnnotator = "annotator"
)

// kubernetesTimeout bounds each request to the API server.
const kubernetesTimeout = 10 * time.Second

func main() {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	slog.SetDefault(log)
	// Much is read once and dropped, such as the lists of all pods and runs. Twice the collector's work is little here, and the default would leave as much garbage as there is in use.
	debug.SetGCPercent(50)
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler())) // controller-runtime's own
	klog.SetSlogLogger(log)                                // client-go's

	o, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		leaving, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
		defer stop()
		serving, end := context.WithCancel(context.Background())
		defer end()
		context.AfterFunc(leaving, func() {
			log.Info("shutting down", "delay", o.shutdownDelay.String())
			time.AfterFunc(o.shutdownDelay, end)
		})
		serve := run
		if o.role == roleAnnotator {
			serve = runAnnotator
		}
		err = serve(serving, leaving, o, ctrlmetrics.Registry, log)
	}
	if err != nil {
		log.Error("stopped", "role", o.role, "error", err)
		os.Exit(1)
	}
}

// parseFlags reads and checks the command line. An unset --ca-file is ca.crt in the certificate's folder, where cert-manager puts it.
func parseFlags(args []string) (options, error) {
	o := options{settings: defaultSettings()}
	flags := flag.NewFlagSet("webhook", flag.ContinueOnError)
	o.bind(flags)
	flags.StringVar(&o.role, "role", roleWebhook,
		"what this process does: webhook (admission and tickets), or annotator (which tells of each "+
			"run what the archive holds of it; it takes --page-url, --metrics-address, --kubeconfig "+
			"and --shutdown-delay, and no other flag matters)")
	flags.StringVar(&o.certDir, "cert-dir", "/certs", "folder of tls.crt and tls.key, which are read again when they change")
	flags.StringVar(&o.caFile, "ca-file", "", "PEM file of the CA that shippers trust (default ca.crt in --cert-dir; set but empty: the system's roots)")
	flags.StringVar(&o.host, "host", "", "address of admission and tickets (default: all)")
	flags.IntVar(&o.port, "port", 9443, "port of admission and tickets")
	flags.StringVar(&o.metricsAddr, "metrics-address", ":8080", "address of /metrics, /healthz and /readyz")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default: the pod's service account)")
	flags.DurationVar(&o.heldBackAfter, "held-back-after", 20*time.Second, "stop injecting when a pod has waited so long for the shipper's container, which cannot be started")
	flags.DurationVar(&o.heldBackRetry, "held-back-retry", 5*time.Minute, "then let one pod through after so long, to see whether it can be started again")
	flags.BoolVar(&o.replaceHeld, "replace-held-pods", true, "evict pods that wait for the shipper's container and of which nothing has run, so that Tekton makes them anew without it")
	flags.StringVar(&o.pageURL, "page-url", os.Getenv("SHIPLOG_PAGE_URL"), "address of the web page, such as https://logs.example.com: PipelineRuns and TaskRuns get the annotation shiplog.dev/logs with theirs")
	flags.StringVar(&o.tektonNamespace, "tekton-namespace", "tekton-pipelines",
		"namespace of Tekton's ConfigMap feature-flags")
	flags.DurationVar(&o.shutdownDelay, "shutdown-delay", 5*time.Second, "time to go on serving after SIGTERM, while the Service still routes here")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unknown arguments %q: everything is a flag", flags.Args())
	}
	caFileSet := false
	flags.Visit(func(f *flag.Flag) { caFileSet = caFileSet || f.Name == "ca-file" })
	if !caFileSet {
		o.caFile = filepath.Join(o.certDir, "ca.crt")
	}
	base, pageErr := checkPageURL(o.pageURL)
	o.pageURL = base
	switch o.role {
	case roleWebhook:
	case roleAnnotator:
		return o, pageErr
	default:
		return o, fmt.Errorf("--role %q is neither %s nor %s", o.role, roleWebhook, roleAnnotator)
	}
	err := o.validate()
	if o.heldBackAfter <= 0 || o.heldBackRetry <= 0 {
		err = errors.Join(err, fmt.Errorf("--held-back-after %v and --held-back-retry %v must be positive", o.heldBackAfter, o.heldBackRetry))
	}
	return o, errors.Join(err, pageErr)
}

// run serves until ctx ends, and returns when all requests are answered. From when leaving ends it says that it is not ready, so that the Service
// sends no more requests; those that still come are answered.
func run(ctx, leaving context.Context, o options, registry ctrlmetrics.RegistererGatherer, log *slog.Logger) error {
	config, err := newConfig(o)
	if err != nil {
		return err
	}
	if err := checkCABundle(o); err != nil {
		return err
	}
	gate, err := newVersionGate(config, log)
	if err != nil {
		return err
	}
	if err := gate.refresh(); err != nil {
		log.Warn("pods are left alone until it is known", "error", err)
	}

	tekton, err := newTektonGate(config, o.tektonNamespace, log)
	if err != nil {
		return err
	}
	tekton.refresh(ctx)

	store, err := newStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	runs, err := newLinker(config, o.pageURL, registry, log)
	if err != nil {
		return err
	}
	tickets, err := newTicketService(ticketConfig{REST: config, Store: store, Known: runs.watch.get, Issued: runs.ticketIssued, Metrics: registry, Log: log})
	if err != nil {
		return err
	}
	g := newGuard(o.heldBackAfter, o.heldBackRetry)
	pods, err := newWaitingPods(config, g, heldPods{
		replace:  o.replaceHeld,
		defaults: o.settings,
		exists:   func(k runKey) bool { return !runs.watch.synced() || runs.watch.get(k) != nil },
		record:   tickets.recordWaiting,
	}, registry, log)
	if err != nil {
		return err
	}
	runs.watch.refused = pods.taskRunRefused
	fits, err := newLimits(config)
	if err != nil {
		return err
	}
	certs, err := newCertWatcher(o.certDir, registry)
	if err != nil {
		return err
	}
	server := webhook.NewServer(webhook.Options{
		Host:    o.host,
		Port:    o.port,
		TLSOpts: []func(*tls.Config){func(c *tls.Config) { c.GetCertificate = certs.GetCertificate }},
	})
	readCA := func() (string, error) { return readCABundle(o.caFile) }
	server.Register(admissionPath, &podAdmission{
		settings: pods.namespaces.own,
		sidecars: gate.sidecars,
		waited:   tekton.kubernetesSidecar,
		caBundle: readCA,
		limits:   fits,
		guard:    g,
		metrics:  newAdmissionMetrics(registry),
		log:      log,
	})
	server.Register(ticket.Path, tickets)

	started := server.StartedChecker()
	group, serving := errgroup.WithContext(ctx) // the first that fails ends all
	err = serveSide(serving, group, o.metricsAddr, sideRoutes(registry, leaving, started), log)
	if err != nil {
		return err
	}
	group.Go(func() error {
		if err := server.Start(serving); err != nil {
			return fmt.Errorf("serve admission and tickets: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		if err := certs.Start(serving); err != nil {
			return fmt.Errorf("watch the certificate: %w", err)
		}
		return nil
	})
	group.Go(func() error { gate.run(serving); return nil })
	group.Go(func() error { tekton.run(serving); return nil })
	group.Go(func() error { pods.run(serving); return nil })
	group.Go(func() error { fits.run(serving); return nil })
	group.Go(func() error { runs.run(serving); return nil })
	publisher := &caPublisher{read: readCA, store: store, log: log}
	group.Go(func() error { publisher.run(serving); return nil })
	return group.Wait()
}

// runAnnotator is run for the annotator, which nobody asks anything.
func runAnnotator(
	ctx, leaving context.Context, o options, registry ctrlmetrics.RegistererGatherer,
	log *slog.Logger,
) error {
	config, err := newConfig(o)
	if err != nil {
		return err
	}
	store, err := newStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	runs, err := newAnnotator(config, store, o.pageURL, registry, log)
	if err != nil {
		return err
	}
	group, serving := errgroup.WithContext(ctx)
	ready := func(*http.Request) error { return nil }
	err = serveSide(serving, group, o.metricsAddr, sideRoutes(registry, leaving, ready), log)
	if err != nil {
		return err
	}
	group.Go(func() error { runs.run(serving); return nil })
	return group.Wait()
}

// newConfig is how the API server is reached.
func newConfig(o options) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	config.Timeout = kubernetesTimeout
	// Protobuf is cheaper for both sides. What has no such form, as Tekton's objects, comes as JSON.
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return config, nil
}

// serveSide serves metrics and health in the group, until the context ends.
func serveSide(
	ctx context.Context, group *errgroup.Group, address string, routes http.Handler,
	log *slog.Logger,
) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve metrics and health: %w", err)
	}
	side := &http.Server{
		Handler:           routes,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	group.Go(func() error {
		if err := side.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve metrics and health: %w", err)
		}
		return nil
	})
	group.Go(func() error { <-ctx.Done(); return side.Close() })
	return nil
}

// checkCABundle says whether pods can carry the CA that shippers trust. That it cannot be read may
// be over by the time that a pod comes, when it is read again.
func checkCABundle(o options) error {
	bundle, err := readCABundle(o.caFile)
	if err != nil {
		return nil
	}
	names := []string{strings.Repeat("x", 253)} // some room for the containers' names
	if _, err := o.config(bundle, names, true).Encode(); err != nil {
		return fmt.Errorf("--ca-file %s: %w", o.caFile, err)
	}
	return nil
}

// newVersionGate makes the gate on the API server's own word.
func newVersionGate(config *rest.Config, log *slog.Logger) (*versionGate, error) {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	return &versionGate{lookUp: client.ServerVersion, log: log}, nil
}

// newStore opens the object store that the environment names. It sends nothing yet.
func newStore(ctx context.Context) (*objectstore.Store, error) {
	config, err := objectstore.ConfigFromEnv()
	if err != nil {
		return nil, fmt.Errorf("S3 settings: %w", err)
	}
	return objectstore.New(ctx, config)
}

// newCertWatcher reads the serving certificate, reads it again when it changes, and shows its expiry as a metric.
func newCertWatcher(dir string, registry prometheus.Registerer) (*certwatcher.CertWatcher, error) {
	certs, err := certwatcher.New(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return nil, fmt.Errorf("read the serving certificate: %w (is cert-manager's Certificate ready?)", err)
	}
	expiry := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "shiplog_webhook_certificate_expiry_timestamp_seconds",
		Help: "When the serving certificate in use expires, in seconds since 1970.",
	})
	registry.MustRegister(expiry)
	certs.RegisterCallback(func(c tls.Certificate) {
		if leaf, err := x509.ParseCertificate(c.Certificate[0]); err == nil {
			expiry.Set(float64(leaf.NotAfter.Unix()))
		}
	})
	return certs, nil
}

// sideRoutes are what Prometheus and the kubelet ask for, in plain HTTP. A process is ready if
// ready says so, and it has not been told to end.
func sideRoutes(
	metrics prometheus.Gatherer, leaving context.Context, ready func(*http.Request) error,
) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		err := ready(r)
		if leaving.Err() != nil {
			err = errors.New("shutting down")
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
