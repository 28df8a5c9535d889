// Command backend is shiplog's server for readers: the web page, the HTTP API over the archive, and what the Tekton Dashboard and Tekton Results ask for. It has read-only keys of the bucket, keeps nothing of its own, and asks the API server at each request who may read. Any number of replicas run side by
// side.
//
// As "backend compact" it serves nobody: it puts small segments together, with keys of its own (compact.go).
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/access"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/dashboard"
	"github.com/shiplog-dev/shiplog/backend/loki"
	"github.com/shiplog-dev/shiplog/backend/page"
	"github.com/shiplog-dev/shiplog/backend/turns"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// options are the flags.
type options struct {
	host          string
	port          int
	certDir       string
	plainCookie   bool
	metricsAddr   string
	kubeconfig    string
	shutdownDelay time.Duration

	audiences string
	tenants   string // file of the Dashboard's tenants
	former    bool
	proxyFrom string
	proxy     access.Proxy
	limits    access.Limits
}

const (
	// kubernetesTimeout bounds each request to the API server.
	kubernetesTimeout = 10 * time.Second
	// headerTimeout bounds how long a client may take to say what it wants, and idleTimeout how long a connection may be unused.
	headerTimeout, idleTimeout = 10 * time.Second, 2 * time.Minute
	// sideTimeout bounds an answer of metrics and health. Those for readers are bounded in package access.
	sideTimeout = time.Minute
	// shutdownTime is how long answers that are under way may take at the end.
	shutdownTime = 20 * time.Second
)

func main() {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	slog.SetDefault(log)
	ctrllog.SetLogger(logr.FromSlogHandler(log.Handler())) // of the certificate watcher
	klog.SetSlogLogger(log)                                // client-go's

	leaving, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := start(leaving, os.Args[1:], log)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		log.Error("backend stopped", "error", err)
		os.Exit(1)
	}
}

// start serves, or compacts.
func start(leaving context.Context, args []string, log *slog.Logger) error {
	if len(args) > 0 && args[0] == compactCommand {
		o, err := parseCompactFlags(args[1:])
		if err != nil {
			return err
		}
		return runCompact(leaving, o, log)
	}
	o, err := parseFlags(args)
	if err != nil {
		return err
	}
	return run(leaving, o, log)
}

// parseFlags reads and checks the command line.
func parseFlags(args []string) (options, error) {
	o := options{limits: access.DefaultLimits()}
	f := flag.NewFlagSet("backend", flag.ContinueOnError)
	f.StringVar(&o.host, "host", "", "address to serve on (default: all)")
	f.IntVar(&o.port, "port", 8443, "port to serve on")
	f.StringVar(&o.certDir, "cert-dir", "/certs", "folder of tls.crt and tls.key, which are read again when they change; empty: serve plain HTTP, as behind a proxy in the same pod")
	f.BoolVar(&o.plainCookie, "insecure-cookie", false, "let browsers send the page's cookie without TLS too; not behind a proxy that has TLS, nor for localhost")
	f.StringVar(&o.metricsAddr, "metrics-address", ":8080", "address of /metrics, /healthz and /readyz")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file (default: the pod's service account)")
	f.DurationVar(&o.shutdownDelay, "shutdown-delay", 5*time.Second, "time to go on serving after SIGTERM, while the Service still routes here")
	f.StringVar(&o.audiences, "audiences", "", "audiences that a token must have one of, separated by commas (default: the API server's own)")
	f.StringVar(&o.tenants, "dashboard-tenants", "", "file that says which namespaces a Tekton Dashboard may show, and by which password or secret it is known; without such a file none may")
	f.BoolVar(&o.former, "former-namespaces", false, "let who may read a namespace read the logs "+
		"of those, too, that were deleted and had its name before")
	f.StringVar(&o.proxyFrom, "proxy-from", "", "addresses, as 10.1.2.3/32,…, from which an authenticating proxy's headers are believed, and X-Forwarded-For too (default: none)")
	f.StringVar(&o.proxy.UserHeader, "proxy-user-header", "X-Forwarded-User", "header in which the proxy names the user")
	f.StringVar(&o.proxy.GroupsHeader, "proxy-groups-header", "X-Forwarded-Groups", "header in which the proxy names the user's groups, separated by commas")
	f.BoolVar(&o.proxy.SystemGroups, "proxy-system-groups", false, "believe the proxy also where it names users and groups that begin with system:")
	f.IntVar(&o.limits.PerClient, "requests-per-client", o.limits.PerClient, "requests at the same time of one user, of one tenant of a Dashboard, and of one address as long as it is not known who sent them")
	f.IntVar(&o.limits.Total, "requests", o.limits.Total, "requests at the same time of all users and tenants, and as many of all whom nobody knows yet")
	f.IntVar(&o.limits.FollowsPerClient, "follows-per-client", o.limits.FollowsPerClient, "as --requests-per-client, of requests that follow a log")
	f.IntVar(&o.limits.Follows, "follows", o.limits.Follows, "as --requests, of requests that follow a log")
	f.DurationVar(&o.limits.Time, "request-time", o.limits.Time, "how long a request may take until its client has read something of the answer, and again until they have read more")
	f.DurationVar(&o.limits.StallTime, "stall-time", o.limits.StallTime, "how long a client may take to read the next 64 KiB")
	f.DurationVar(&o.limits.FollowTime, "follow-time", o.limits.FollowTime, "how long a request may follow a log, and any other may take")
	f.Int64Var(&o.limits.Bytes, "answer-bytes", o.limits.Bytes, "how many bytes an answer may have; a longer one is broken off")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown arguments %q: everything is a flag", f.Args())
	}
	for name, n := range map[string]int64{"requests-per-client": int64(o.limits.PerClient), "requests": int64(o.limits.Total), "follows-per-client": int64(o.limits.FollowsPerClient), "follows": int64(o.limits.Follows), "stall-time": int64(o.limits.StallTime), "request-time": int64(o.limits.Time), "follow-time": int64(o.limits.FollowTime), "answer-bytes": o.limits.Bytes} {
		if n <= 0 {
			return o, fmt.Errorf("--%s must be positive", name)
		}
	}
	for part := range strings.SplitSeq(o.proxyFrom, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			return o, fmt.Errorf("--proxy-from %q is not like 10.1.2.3/32: %w", part, err)
		}
		o.proxy.From = append(o.proxy.From, prefix)
	}
	return o, nil
}

// run serves until leaving ends, and returns when all requests are answered.
func run(leaving context.Context, o options, log *slog.Logger) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	handler, closeStore, err := newHandler(leaving, o, registry, log)
	if err != nil {
		return err
	}
	defer closeStore()
	listener, err := net.Listen("tcp", net.JoinHostPort(o.host, strconv.Itoa(o.port)))
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	side, err := net.Listen("tcp", o.metricsAddr)
	if err != nil {
		return errors.Join(fmt.Errorf("serve metrics and health: %w", err), listener.Close())
	}
	group, serving := errgroup.WithContext(context.Background()) // the first that fails ends all
	if o.certDir != "" {
		certs, err := certwatcher.New(filepath.Join(o.certDir, "tls.crt"), filepath.Join(o.certDir, "tls.key"))
		if err != nil {
			return errors.Join(fmt.Errorf("read the serving certificate: %w (is cert-manager's Certificate ready?)", err), listener.Close(), side.Close())
		}
		listener = tls.NewListener(listener, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: certs.GetCertificate})
		watching, stop := context.WithCancel(context.Background())
		defer stop()
		context.AfterFunc(serving, stop)
		go func() { _ = certs.Start(watching) }() // without it the certificate stays what it is
	}
	logs := slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	servers := map[*http.Server]net.Listener{
		{Handler: handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, ErrorLog: logs}:                                            listener,
		{Handler: sideRoutes(registry, leaving), ReadTimeout: headerTimeout, WriteTimeout: sideTimeout, IdleTimeout: idleTimeout, ErrorLog: logs}: side,
	}
	for server, listener := range servers {
		group.Go(func() error {
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve: %w", err)
			}
			return nil
		})
	}
	group.Go(func() error {
		select {
		case <-serving.Done():
		case <-leaving.Done():
			log.Info("shutting down", "delay", o.shutdownDelay.String())
			select {
			case <-serving.Done():
			case <-time.After(o.shutdownDelay):
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		var errs []error
		for server := range servers {
			if server.Shutdown(ctx) != nil { // who follows a log does not end
				errs = append(errs, server.Close())
			}
		}
		return errors.Join(errs...)
	})
	log.Info("serving", "address", listener.Addr().String(), "tls", o.certDir != "")
	return group.Wait()
}

// newHandler makes all that is served.
func newHandler(ctx context.Context, o options, registry prometheus.Registerer, log *slog.Logger) (h http.Handler, closeStore func(), err error) {
	s3, err := objectstore.ConfigFromEnv()
	if err != nil {
		return nil, nil, fmt.Errorf("S3 settings: %w", err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return nil, nil, fmt.Errorf("find the API server: %w", err)
	}
	config.Timeout, config.QPS = kubernetesTimeout, -1 // what is asked is cached and bounded in package access
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	gateOptions := access.Options{
		Client: client, Proxy: o.proxy, Insecure: o.plainCookie, Log: log,
		FormerNamespaces: o.former,
	}
	for a := range strings.SplitSeq(o.audiences, ",") {
		if a = strings.TrimSpace(a); a != "" {
			gateOptions.Audiences = append(gateOptions.Audiences, a)
		}
	}
	gate, err := access.New(gateOptions)
	if err != nil {
		return nil, nil, err
	}
	var tenants *dashboard.Tenants
	if o.tenants != "" {
		tenants, err = dashboard.ReadTenants(o.tenants)
		if errors.Is(err, fs.ErrNotExist) { // a ConfigMap that need not be there
			log.Info("no Tekton Dashboard may read: there is no file of tenants", "file", o.tenants)
		} else if err != nil {
			return nil, nil, err
		}
	}
	m := newMetrics(registry)
	archive, err := backend.Open(ctx, s3, m.watch)
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	working := turns.New(2 * runtime.GOMAXPROCS(0)) // for work for a processor; who reads does not wait for it
	mux.Handle(api.Base+"/", api.New(api.Options{Archive: archive, Gate: gate, Log: log, Turns: working}))
	results := loki.New(loki.Options{Archive: archive, Gate: gate, Log: log})
	mux.Handle(loki.Path, results)
	mux.Handle(loki.DefaultPath, results)
	web := page.New(page.Options{Archive: archive, Gate: gate, Log: log, Turns: working})
	mux.Handle(page.Base+"/", web)
	mux.Handle("/{$}", web)
	if tenants != nil {
		mux.Handle(dashboard.Base+"/", dashboard.New(dashboard.Options{
			Archive: archive, Tenants: tenants, Gate: gate, Log: log,
		}))
	}
	return m.requests(log, neverKept(gate.Wrap(o.limits, compressed(mux)))), archive.Close, nil
}

// neverKept has every answer say that no cache keeps it, the browser's neither, and that its type
// is what it says it is. Logs hold secrets, and who may read them changes. A client that keeps an
// answer itself can ask with its ETag all the same.
func neverKept(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", unkept)
		next.ServeHTTP(&unkeptWriter{w}, r)
	})
}

const unkept = "private, no-store"

// unkeptWriter puts back what http.ServeContent takes away from errors.
type unkeptWriter struct{ http.ResponseWriter }

func (w *unkeptWriter) WriteHeader(status int) {
	if w.Header().Get("Cache-Control") == "" {
		w.Header().Set("Cache-Control", unkept)
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *unkeptWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// sideRoutes are what Prometheus and the kubelet ask for, in plain HTTP. Neither health nor readiness asks S3 or the API server: that they are slow is no reason to send readers away, or to begin anew.
func sideRoutes(metrics prometheus.Gatherer, leaving context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if leaving.Err() != nil {
			http.Error(w, "shutting down", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
