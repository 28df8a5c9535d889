//go:build linux

package rig

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Fault is what is done to one request. The zero value lets it through.
type Fault struct {
	Status     int    // answer this, and send nothing on
	CutAfter   int64  // if positive, cut both connections when so many bytes of the body have passed
	LoseAnswer bool   // send it on, and cut the connection in the place of the answer
	Then       func() // is called when CutAfter or LoseAnswer cuts
}

func (f Fault) none() bool { return f.Status == 0 && f.CutAfter == 0 && !f.LoseAnswer }

func (f Fault) cut(why string) error {
	if f.Then != nil {
		f.Then()
	}
	return errors.New(why)
}

// Proxy stands before the S3 server, and breaks what is between it and the shipper. It has one address for its whole life.
type Proxy struct {
	URL string

	t       testing.TB
	address string
	handler http.Handler

	mu     sync.Mutex // guards what follows
	server *http.Server
	serve  sync.WaitGroup
	gate   chan struct{} // closed: bytes pass
	rate   int64         // bytes a second of all connections together; 0 is no limit
	spent  time.Time     // when what was let through has passed at that rate
	choose func(n int64, r *http.Request) Fault

	requests atomic.Int64 // that arrived
	faults   atomic.Int64 // that were done to requests, and waits of bytes
}

// newProxy starts a proxy for a server, which the test's end stops.
func newProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{t: t, gate: make(chan struct{})}
	close(p.gate)
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	p.handler = p.breaking(&httputil.ReverseProxy{
		Transport: transport,
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // of connections that are cut
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(r *http.Response) error {
			if f, ok := r.Request.Context().Value(faultKey{}).(Fault); ok && f.LoseAnswer {
				return f.cut("the answer is lost")
			}
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	})
	// This socket never listens: it only keeps the address when nobody does.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	p.address = (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: bound.(*unix.SockaddrInet4).Port}).String()
	p.URL = "http://" + p.address
	p.Listen()
	t.Cleanup(func() {
		p.Heal(true)
		p.Refuse()
		transport.CloseIdleConnections()
		_ = unix.Close(fd)
	})
	return p
}

// Listen takes connections, after Refuse.
func (p *Proxy) Listen() {
	p.t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }), err)
	}}
	l, err := config.Listen(context.Background(), "tcp4", p.address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	server := &http.Server{Handler: p.handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	p.server = server
	p.serve.Go(func() { _ = server.Serve(listener{l, p}) })
}

// Refuse cuts all connections and refuses new ones, as where no server runs.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	server := p.server
	p.mu.Unlock()
	_ = server.Close()
	p.serve.Wait()
}

// BlackHole lets connections be made, and no byte pass in either direction.
func (p *Proxy) BlackHole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = make(chan struct{})
}

// Heal ends BlackHole. With goOn, the connections that were made before and meanwhile go on where they were; without, they stay as they are for ever, and only new ones are good.
func (p *Proxy) Heal(goOn bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if goOn {
		select {
		case <-p.gate:
		default:
			close(p.gate)
		}
		return
	}
	p.gate = make(chan struct{})
	close(p.gate)
}

// Limit lets so many bytes a second pass, of all connections together; 0 is no limit.
func (p *Proxy) Limit(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = bytes
}

// Break lets choose say what is done to each request, counted from 1. Nil lets all through.
func (p *Proxy) Break(choose func(n int64, r *http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.choose = choose
}

// Faults is the number of faults that were done to requests, and of bytes that had to wait.
func (p *Proxy) Faults() int64 { return p.faults.Load() }

type faultKey struct{}

func (p *Proxy) breaking(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := p.requests.Add(1)
		p.mu.Lock()
		choose := p.choose
		p.mu.Unlock()
		var f Fault
		if choose != nil {
			f = choose(n, r)
		}
		if !f.none() {
			p.faults.Add(1)
		}
		if f.Status != 0 {
			_, _ = io.Copy(io.Discard, r.Body)
			http.Error(w, "<Error><Code>Broken</Code><Message>by the test</Message></Error>", f.Status)
			return
		}
		if f.CutAfter > 0 {
			r.Body = &cutBody{r.Body, f, f.CutAfter}
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f)))
	})
}

// cutBody fails after so many bytes.
type cutBody struct {
	io.ReadCloser
	fault Fault
	left  int64
}

func (b *cutBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, b.fault.cut("the connection is cut")
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

type listener struct {
	net.Listener
	proxy *Proxy
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, proxy: l.proxy, closed: make(chan struct{})}, nil
}

// conn is a connection of the shipper's.
type conn struct {
	net.Conn
	proxy  *Proxy
	once   sync.Once
	closed chan struct{}
}

func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err := c.pass(n); err != nil {
		return 0, err
	}
	return n, err
}

func (c *conn) Write(b []byte) (int, error) {
	if err := c.pass(len(b)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// pass waits until so many bytes may pass.
func (c *conn) pass(n int) error {
	p := c.proxy
	p.mu.Lock()
	gate := p.gate
	wait := time.Duration(0)
	if p.rate > 0 {
		now := time.Now()
		if p.spent.Before(now) {
			p.spent = now
		}
		p.spent = p.spent.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
		wait = p.spent.Sub(now)
	}
	p.mu.Unlock()
	select {
	case <-gate:
		if wait == 0 {
			return nil
		}
	default:
	}
	p.faults.Add(1)
	select {
	case <-gate:
	case <-c.closed:
		return net.ErrClosed
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-c.closed:
		return net.ErrClosed
	}
}
