package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/fatih/color"
	"github.com/spf13/cobra"
	tektonclient "github.com/tektoncd/pipeline/pkg/client/clientset/versioned/typed/pipeline/v1"
	"golang.org/x/term"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/client"
	"github.com/shiplog-dev/shiplog/backend/live"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// The ConfigMap that says where the server is, and its keys. Every user of the cluster may read it, as Tekton's pipelines-info.
const (
	infoNamespace = "shiplog-system"
	infoName      = "shiplog-info"
	infoServer    = "server" // https://…
	infoCA        = "ca.crt" // PEM certificates that sign the server's; absent: the system's
	envServer     = "SHIPLOG_SERVER"
	envServerCA   = "SHIPLOG_SERVER_CA"
	envNamespace  = "SHIPLOG_NAMESPACE"
)

// settings are the flags that all commands have, and what they stand for.
type settings struct {
	out    *bufio.Writer // to stdout
	stdout io.Writer
	stderr io.Writer

	namespace, kubeconfig, context string
	s3, endpoint                   string
	server, serverCA               string
	insecureHTTP, noColor          bool

	noticed sync.Map // what was said already
}

const contextUsage = "kubeconfig context to use (default: the current one)"

// likeTknFlags gives --context the letter that tkn has for it. Elsewhere -c is the container, as in
// kubectl.
func (s *settings) likeTknFlags(c *cobra.Command) {
	c.PersistentFlags().StringVarP(&s.context, "context", "c", "", contextUsage)
}

func (s *settings) flags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVarP(&s.namespace, "namespace", "n", os.Getenv(envNamespace), "namespace of the run (default: the kubeconfig's)")
	f.StringVarP(&s.kubeconfig, "kubeconfig", "k", "", "kubectl's config file (default: KUBECONFIG, or ~/.kube/config)")
	f.StringVar(&s.context, "context", "", contextUsage)
	f.StringVar(&s.s3, "s3", "", "read the archive straight from `s3://BUCKET/PREFIX`")
	f.StringVar(&s.s3, "s3-url", "", "the same as --s3")
	_ = f.MarkHidden("s3-url") // it exists
	f.StringVar(&s.endpoint, "s3-endpoint", "", "`URL` of a store other than AWS")
	f.StringVar(&s.server, "server", "", "`URL` of the shiplog server")
	f.StringVar(&s.serverCA, "server-ca", os.Getenv(envServerCA), "`FILE` of certificates that sign the server's")
	f.BoolVar(&s.insecureHTTP, "insecure-http", false, "send the token also to an http:// address of another host")
	f.BoolVarP(&s.noColor, "no-color", "C", false, "no colours; without a terminal there are none")
}

// bucket says whether the archive is read straight from S3.
func (s *settings) bucket() bool {
	return s.s3 != "" || s.endpoint != "" || s.server == "" && os.Getenv(envServer) == "" && os.Getenv(objectstore.EnvBucket) != ""
}

// s3Config is where the bucket is: what the environment says, and over it the flags.
func (s *settings) s3Config() (objectstore.Config, error) {
	if s.s3 == "" && os.Getenv(objectstore.EnvBucket) == "" {
		return objectstore.Config{}, usageError("--s3-endpoint says where S3 is, but not which bucket: set %s, or use --s3 s3://BUCKET/PREFIX", objectstore.EnvBucket)
	}
	config, err := objectstore.ConfigFromEnv()
	if s.s3 != "" {
		u, parseErr := url.Parse(s.s3)
		if parseErr != nil || u.Scheme != "s3" || u.Host == "" {
			return config, usageError("--s3 %q is not like s3://BUCKET/PREFIX", s.s3)
		}
		config.Bucket, config.Prefix = u.Host, strings.Trim(u.Path, "/")
	}
	if s.endpoint != "" {
		config.Endpoint, config.PathStyle = s.endpoint, true
	}
	if s.s3 != "" || s.endpoint != "" { // which may have mended what was wrong
		err = config.Validate()
	}
	return config, err
}

// source is where a command reads.
type source struct {
	live.Reader
	namespace string
	bucket    *backend.Archive // nil: there is a server
	server    *client.Client   // nil: there is a bucket, or none is known
	base      string           // of the server's addresses
	close     func()
}

// open connects to what is to be read.
func (s *settings) open(ctx context.Context) (*source, error) {
	if s.bucket() {
		return s.openBucket(ctx)
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{ExplicitPath: s.kubeconfig, Precedence: clientcmd.NewDefaultClientConfigLoadingRules().Precedence},
		&clientcmd.ConfigOverrides{CurrentContext: s.context})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, usageError("where are the logs? There is no kubeconfig (%v), and neither %s nor --s3 says where the bucket is", err, objectstore.EnvBucket)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	if s.namespace != "" {
		namespace = s.namespace
	}
	config.QPS, config.Burst = 50, 300 // as kubectl's: client-go's 5 are slow for a run with many containers
	core, err := coreclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("use the kubeconfig: %w", err)
	}
	tekton, err := tektonclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("use the kubeconfig: %w", err)
	}
	src := &source{namespace: namespace, close: func() {}}
	src.Cluster, src.Notice = &live.Cluster{Core: core, Tekton: tekton}, s.notice
	if err := s.connect(ctx, src, core, config); err != nil {
		var exit *exitError
		if errors.As(err, &exit) {
			return nil, err
		}
		s.notice(fmt.Errorf("no archive: %w", err))
	}
	return src, nil
}

// connect makes the server the archive, with the kubeconfig's token.
func (s *settings) connect(ctx context.Context, src *source, core coreclient.CoreV1Interface, config *rest.Config) error {
	where, err := s.findServer(ctx, core)
	if err != nil {
		return err
	}
	if err := where.confidential(s.insecureHTTP); err != nil {
		return err
	}
	transport, err := where.transport(config)
	if err != nil {
		return err
	}
	server, err := client.New(where.address, &http.Client{Transport: transport})
	if err != nil {
		return where.bad(err)
	}
	server.Notice = s.notice
	src.server, src.Archive, src.base = server, server, where.address
	return nil
}

func (s *settings) openBucket(ctx context.Context) (*source, error) {
	config, err := s.s3Config()
	if err != nil {
		return nil, err
	}
	archive, err := backend.Open(ctx, config)
	if err != nil {
		return nil, err
	}
	src := &source{namespace: s.namespace, bucket: archive, close: archive.Close}
	if src.namespace == "" {
		src.namespace = "default"
	}
	src.Archive, src.Notice = live.Bucket{Archive: archive}, s.notice
	return src, nil
}

// notice says on stderr what something else stands in for, once.
func (s *settings) notice(err error) {
	if _, said := s.noticed.LoadOrStore(err.Error(), true); !said {
		fmt.Fprintln(s.stderr, "shiplog:", visibleText(err.Error()))
	}
}

// address says where the server is, and who signs its certificate.
type address struct {
	address string
	ca      []byte
	given   bool // by a flag or the environment, and not by the cluster
}

// bad is an address that cannot be used: wrong usage, or where the cluster has it, as if it had none.
func (a address) bad(err error) error {
	if a.given {
		return &exitError{exitUsage, err.Error()}
	}
	return fmt.Errorf("ConfigMap %s/%s: %w", infoNamespace, infoName, err)
}

// confidential refuses to send a token where others can read it on its way.
func (a address) confidential(insecure bool) error {
	u, err := url.Parse(a.address)
	if err != nil || u.Scheme != "http" || insecure {
		return nil // client.New says what is wrong with an address
	}
	ip := net.ParseIP(u.Hostname())
	if u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return a.bad(fmt.Errorf("the server's address %q would show your token to everybody on the way: use https://, or if you must, --insecure-http", a.address))
}

// findServer asks the flags, the environment and the cluster.
func (s *settings) findServer(ctx context.Context, core coreclient.CoreV1Interface) (address, error) {
	var a address
	if s.serverCA != "" {
		b, err := os.ReadFile(s.serverCA)
		if err != nil {
			return a, fmt.Errorf("read the certificates of --server-ca: %w", err)
		}
		a.ca = b
	}
	a.address = s.server
	if a.address == "" {
		a.address = os.Getenv(envServer)
	}
	if a.address != "" {
		a.given = true
		return a, nil
	}
	info, err := core.ConfigMaps(infoNamespace).Get(ctx, infoName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), err == nil && info.Data[infoServer] == "":
		return a, fmt.Errorf("the cluster does not say where the shiplog server is (ConfigMap %s/%s): use --server or %s, or read S3 with --s3", infoNamespace, infoName, envServer)
	case err != nil:
		return a, fmt.Errorf("ask the cluster where the shiplog server is: %w", err)
	}
	a.address = info.Data[infoServer]
	if len(a.ca) == 0 {
		a.ca = []byte(info.Data[infoCA])
	}
	return a, nil
}

// transport shows the kubeconfig's token to the server, and to no other host. The kubeconfig's client certificate is for the API server alone.
func (a address) transport(kube *rest.Config) (http.RoundTripper, error) {
	config := rest.AnonymousClientConfig(kube)
	config.BearerToken, config.BearerTokenFile, config.ExecProvider, config.AuthProvider = kube.BearerToken, kube.BearerTokenFile, kube.ExecProvider, kube.AuthProvider
	config.Host, config.TLSClientConfig = a.address, rest.TLSClientConfig{CAData: a.ca}
	config.Impersonate = rest.ImpersonationConfig{}
	if config.BearerToken == "" && config.BearerTokenFile == "" && config.ExecProvider == nil && config.AuthProvider == nil {
		return nil, errors.New("the kubeconfig's user has no token, which the shiplog server asks for: use another context, or a token of \"kubectl create token\"")
	}
	t, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("use the kubeconfig's token: %w", err)
	}
	return t, nil
}

// explain says what to do where there is no such run.
func (src *source) explain(err error) error {
	var notFound *backend.NotFoundError
	if errors.As(err, &notFound) {
		return fmt.Errorf("%w\n\"%s ls -n %s\" lists the runs that are there", err, program(), notFound.Namespace)
	}
	return err
}

// colors says whether to colour what is written to w, stdout or stderr.
func (s *settings) colors(w io.Writer) bool {
	return !s.noColor && os.Getenv("NO_COLOR") == "" && isTerminal(w)
}

// isTerminal says whether a person sees what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// palette are the colours of labels. Red is for errors.
var palette = []color.Attribute{color.FgHiGreen, color.FgHiYellow, color.FgHiBlue, color.FgHiMagenta, color.FgHiCyan}

// painter colours the labels of each step in a colour of its own.
type painter struct {
	on   bool
	seen map[string]color.Attribute
}

func (p *painter) paint(step, label string) string {
	if !p.on || label == "" {
		return label
	}
	a, ok := p.seen[step]
	if !ok {
		if p.seen == nil {
			p.seen = map[string]color.Attribute{}
		}
		a = palette[len(p.seen)%len(palette)]
		p.seen[step] = a
	}
	c := color.New(a, color.Bold)
	c.EnableColor()
	return c.Sprint(label)
}
