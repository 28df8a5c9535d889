// Package s3test starts real S3 servers for tests: Versity S3 Gateway, MinIO and Ceph's RADOS
// Gateway, each on loopback ports, with its data in the test's own folder.
package s3test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// Server is an S3 server.
type Server string

// The servers, named as their binaries.
const (
	Versity Server = "versitygw"
	MinIO   Server = "minio"
	Ceph    Server = "radosgw"
)

// Servers are all of them.
var Servers = []Server{Versity, MinIO, Ceph}

// Region is what the servers are started with.
const Region = "us-east-1"

const (
	// startTimeout is generous, since it only matters where something is broken.
	startTimeout = 2 * time.Minute
	stopTimeout  = 20 * time.Second
	poll         = 20 * time.Millisecond
	// answerTimeout is for one request.
	answerTimeout = 5 * time.Second
)

// Binary returns the path of the server's binary: what SHIPLOG_TEST_VERSITYGW, SHIPLOG_TEST_MINIO
// or SHIPLOG_TEST_RADOSGW says, or else what the local test cluster's tool builds, which takes
// minutes the first time. Ceph's is Debian's. Where there is none, the test fails in CI (the
// variable CI is set) and is skipped elsewhere.
func Binary(t testing.TB, s Server) string {
	t.Helper()
	env := "SHIPLOG_TEST_" + strings.ToUpper(string(s))
	if p := os.Getenv(env); p != "" {
		if _, err := os.Stat(p); err != nil {
			t.Fatalf("%s names no binary: %v", env, err)
		}
		return p
	}
	p, err := built(s)
	if err != nil {
		msg := fmt.Sprintf("NOT TESTED against a real %s, whose binary is not there "+
			"(or name one in %s): %v", s, env, err)
		if os.Getenv("CI") != "" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	return p
}

var builds = map[Server]func() (string, error){
	Versity: sync.OnceValues(func() (string, error) { return build(Versity) }),
	MinIO:   sync.OnceValues(func() (string, error) { return build(MinIO) }),
	Ceph:    findCeph,
}

func built(s Server) (string, error) { return builds[s]() }

func build(s Server) (string, error) {
	root, err := output("go", "list", "-m", "-f", "{{.Dir}}", "github.com/shiplog-dev/shiplog")
	if err != nil {
		return "", err
	}
	return output("go", "-C", root, "run", "./tests/cluster", "binary", string(s))
}

func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, strings.TrimSpace(stderr.String()))
	}
	// A tool that builds may say so first; the path is its last line.
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], nil
}

// Start starts a server with an empty bucket and stops it when the test ends.
func Start(t testing.TB, s Server) objectstore.Config { return start(t, s, false) }

// StartTLS is Start with a certificate of the server's own, which the Config's CABundle holds.
func StartTLS(t testing.TB, s Server) objectstore.Config { return start(t, s, true) }

// Upload posts an object with a ticket, as a shipper does, and returns the status of the answer.
func Upload(
	t testing.TB, client *http.Client, tk ticket.Ticket, name string, body []byte,
) (status int) {
	t.Helper()
	req, err := tk.NewRequest(t.Context(), name, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func start(t testing.TB, s Server, withTLS bool) objectstore.Config {
	t.Helper()
	binary := Binary(t, s)
	cfg := objectstore.Config{
		Bucket: "shiplog-test", Region: Region, PathStyle: true,
		// Random, so that a server which someone else has started on our port refuses us instead of looking like ours.
		Credentials: &objectstore.Credentials{AccessKeyID: "shiplog" + rand.Text()[:8], SecretAccessKey: objectstore.Secret(rand.Text())},
	}
	dir := t.TempDir()
	p := process{server: s, binary: binary, dir: dir, access: cfg.Credentials.AccessKeyID, secret: string(cfg.Credentials.SecretAccessKey)}
	if withTLS {
		var err error
		if cfg.CABundle, err = p.writeCertificate(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		run, endpoint, err := p.start(ctx, cfg)
		if err == nil {
			cfg.Endpoint = endpoint
			t.Cleanup(func() {
				if err := run.stop(); err != nil {
					t.Errorf("stop %s: %v\n%s", s, err, run.said())
				}
			})
			return cfg
		}
		// Between our looking for a free port and the server's taking it, someone else may have.
		if attempt == 5 || ctx.Err() != nil {
			t.Fatalf("start %s: %v", s, err)
		}
	}
}

// process is how to start a server.
type process struct {
	server         Server
	binary, dir    string
	access, secret string
	cert, key      string // files, with TLS
}

// running is a started server. Its owner calls stop.
type running struct {
	cmd   *exec.Cmd
	out   bytes.Buffer  // read after done
	done  chan struct{} // closed when the process has ended
	err   error         // of its end; read after done
	needs *running      // the process that it cannot do without, which is stopped after it
}

// begin starts a process.
func begin(needs *running, env []string, binary string, args ...string) (*running, error) {
	run := &running{cmd: exec.Command(binary, args...), done: make(chan struct{}), needs: needs}
	run.cmd.Env = append(env, "PATH="+os.Getenv("PATH"))
	run.cmd.Stdout, run.cmd.Stderr = &run.out, &run.out
	if err := run.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process; stop waits for it
		run.err = run.cmd.Wait()
		close(run.done)
	}()
	return run, nil
}

func (p process) start(ctx context.Context, cfg objectstore.Config) (*running, string, error) {
	addr, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	data := filepath.Join(p.dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, "", err
	}
	var args, env []string
	switch p.server {
	case Versity:
		args = []string{"--port", addr, "--access", p.access, "--secret", p.secret, "--region", Region, "--health", "/health", "--quiet", "--keep-alive"} // as S3 does
		if p.cert != "" {
			args = append(args, "--cert", p.cert, "--key", p.key)
		}
		// Metadata in a folder of its own: not every temporary folder is on a file system with extended attributes.
		meta := filepath.Join(p.dir, "meta")
		if err := os.MkdirAll(meta, 0o755); err != nil {
			return nil, "", err
		}
		args = append(args, "posix", "--sidecar", meta, data)
	case Ceph:
		return p.startCeph(ctx, cfg, addr)
	case MinIO:
		console, err := freeAddress()
		if err != nil {
			return nil, "", err
		}
		args = []string{"server", "--quiet", "--address", addr, "--console-address", console, "--certs-dir", p.dir, data}
		env = []string{
			"MINIO_ROOT_USER=" + p.access, "MINIO_ROOT_PASSWORD=" + p.secret, "MINIO_REGION=" + Region, "HOME=" + p.dir,
			"MINIO_BROWSER=off", "MINIO_UPDATE=off",
			"MINIO_CI_CD=1", // or it refuses a folder on the root disk
		}
	default:
		return nil, "", fmt.Errorf("no such server: %q", p.server)
	}
	run, err := begin(nil, env, p.binary, args...)
	if err != nil {
		return nil, "", err
	}
	return p.serve(ctx, run, cfg, addr)
}

// serve waits until the server answers at its address, or stops it.
func (p process) serve(
	ctx context.Context, run *running, cfg objectstore.Config, addr string,
) (*running, string, error) {
	scheme := "http://"
	if p.cert != "" {
		scheme = "https://"
	}
	cfg.Endpoint = scheme + addr
	if err := run.ready(ctx, p.server, cfg); err != nil {
		return nil, "", errors.Join(err, run.stop(), errors.New(run.said()))
	}
	return run, cfg.Endpoint, nil
}

// ready waits until the server answers, and makes the bucket.
func (r *running) ready(ctx context.Context, s Server, cfg objectstore.Config) error {
	health := map[Server]string{Versity: "/health", MinIO: "/minio/health/ready", Ceph: "/"}[s]
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: x509.NewCertPool()}, DisableKeepAlives: true}
	transport.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(cfg.CABundle))
	// Whoever took our port may never answer, and then it is to be seen that the server has ended.
	client := &http.Client{Transport: transport, Timeout: answerTimeout}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Endpoint+health, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
			err = fmt.Errorf("GET %s: %s", req.URL, resp.Status)
		}
		select {
		case <-tick.C:
		case <-r.done:
			return fmt.Errorf("ended before it was ready: %w", r.err)
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", err)
		}
	}
	store, err := objectstore.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	return store.EnsureBucket(ctx)
}

// said is what the processes have printed, once they have ended.
func (r *running) said() string {
	if r == nil {
		return ""
	}
	return r.out.String() + r.needs.said()
}

// stop ends the process and waits for it, and then what it needs.
func (r *running) stop() error {
	if r == nil {
		return nil
	}
	return errors.Join(r.end(), r.needs.stop())
}

func (r *running) end() error {
	_ = r.cmd.Process.Signal(syscall.SIGTERM) // fails only where it has ended
	late := time.NewTimer(stopTimeout)
	defer late.Stop()
	select {
	case <-r.done:
		return nil
	case <-late.C:
		_ = r.cmd.Process.Kill()
		<-r.done
		return fmt.Errorf("%s did not end within %s of SIGTERM", r.cmd.Path, stopTimeout)
	}
}

// freeAddress returns a loopback address that nobody listens on at the moment.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// writeCertificate makes a self-signed certificate for 127.0.0.1 under the file names that MinIO wants, and returns it.
func (p *process) writeCertificate() (bundle string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "shiplog test store"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	p.cert, p.key = filepath.Join(p.dir, "public.crt"), filepath.Join(p.dir, "private.key")
	if err := os.WriteFile(p.cert, cert, 0o600); err != nil {
		return "", err
	}
	return string(cert), os.WriteFile(p.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600)
}
