package access

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/backend/api"
)

// small are limits that are soon reached.
func small() Limits {
	return Limits{PerClient: 2, Total: 3, FollowsPerClient: 2, Follows: 3, Time: time.Minute, StallTime: 10 * time.Second, FollowTime: time.Hour, Bytes: 1 << 20, Failures: 0, Burst: 3}
}

// behind serves what only those may read who may read namespace a.
func behind(g *Gate, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := g.Allow(r, "a"); err != nil {
			var e *Error
			if !errors.As(err, &e) {
				e = &Error{Status: 500, Message: err.Error()}
			}
			e.Write(w)
			return
		}
		h(w, r)
	})
}

func ask(h http.Handler, address string, header ...string) int {
	r := request("GET", header...)
	r.RemoteAddr = address
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}

// TestGuesses: tokens that are nobody's are bounded by the address that they are from, however they are sent. Who was known before is not kept out by them.
func TestGuesses(t *testing.T) {
	const here, elsewhere = "192.0.2.1:1", "192.0.2.2:1"
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	for _, c := range []struct {
		name  string
		guess func(i int) []string
	}{
		{"bearer tokens", func(i int) []string { return bearer(fmt.Sprint("bad-", i)) }},
		{"cookies", func(i int) []string { return []string{"Cookie", fmt.Sprint("__Host-shiplog=bad-", i)} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, g := newFake(t, Options{})
			h := g.Wrap(small(), behind(g, func(http.ResponseWriter, *http.Request) {}))
			if code := ask(h, here, bearer("good-a")...); code != 200 {
				t.Fatalf("a good token: %d", code)
			}
			before := f.count("tokenreviews")
			for i := range 10 {
				want := 401
				if i >= 3 {
					want = 429
				}
				if code := ask(h, here, c.guess(i)...); code != want {
					t.Errorf("guess %d: %d, want %d", i, code, want)
				}
			}
			if asked := f.count("tokenreviews") - before; asked != 3 {
				t.Errorf("the API server was asked %d times, want 3", asked)
			}
			if code := ask(h, here, bearer("good-a")...); code != 200 {
				t.Errorf("a good token that is remembered: %d", code)
			}
			g.tokens.remove(tokenKey("good-a"))
			if code := ask(h, here, bearer("good-a")...); code != 200 {
				t.Errorf("a good token that was good before: %d", code)
			}
			if code := ask(h, elsewhere, bearer("good-admin")...); code != 200 {
				t.Errorf("a good token from another address: %d", code)
			}
			if code := ask(h, here); code != 401 {
				t.Errorf("without a token, which is no guess: %d", code)
			}
		})
	}
}

// TestGoodTokensAreNoGuesses: many users behind one address are no attack, and neither is an API server that fails.
func TestGoodTokensAreNoGuesses(t *testing.T) {
	f, g := newFake(t, Options{})
	h := g.Wrap(small(), behind(g, func(http.ResponseWriter, *http.Request) {}))
	for i := range 10 {
		if code := ask(h, "192.0.2.1:1", "Authorization", fmt.Sprint("Bearer good-", i)); code != 403 {
			t.Errorf("user %d: %d", i, code)
		}
	}
	f.fault = func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "", 500); return true }
	for i := range 10 {
		if code := ask(h, "192.0.2.1:1", "Authorization", fmt.Sprint("Bearer bad-", i)); code != 503 {
			t.Errorf("while the API server fails: %d", code)
		}
	}
	f.fault = nil
	g.users.add("a", tokenKey("bad"), answer{identity: Identity{User: "a"}, yes: true})
	if code := ask(h, "192.0.2.1:1", "Authorization", "Bearer bad"); code != 401 {
		t.Errorf("a token that is not good any more: %d", code)
	}
	if _, ok := g.users.get(tokenKey("bad")); ok {
		t.Error("it is still known")
	}
}

func TestAddress(t *testing.T) {
	proxy := Proxy{From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, UserHeader: "U"}
	for _, c := range []struct {
		name, remote string
		via          []string
		want         string
	}{
		{"a client", "192.0.2.1:80", nil, "192.0.2.1"},
		{"a client that names another", "192.0.2.1:80", []string{"198.51.100.7"}, "192.0.2.1"},
		{"the proxy", "10.0.0.1:80", nil, "10.0.0.1"},
		{"the proxy's client", "10.0.0.1:80", []string{"198.51.100.7"}, "198.51.100.7"},
		{"the proxy's client that names another", "10.0.0.1:80", []string{"203.0.113.1, 198.51.100.7"}, "198.51.100.7"},
		{"two proxies", "10.0.0.1:80", []string{"203.0.113.1", "198.51.100.7, 10.0.0.2"}, "198.51.100.7"},
		{"what is no address", "10.0.0.1:80", []string{"198.51.100.7, unknown"}, "10.0.0.1"},
		{"IPv6", "[2001:db8:1:2:3:4:5:6]:80", nil, "2001:db8:1:2::/64"},
		{"IPv4 in IPv6", "[::ffff:192.0.2.1]:80", nil, "192.0.2.1"},
		{"what is no address and port", "pipe", nil, "pipe"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = c.remote
			for _, v := range c.via {
				r.Header.Add("X-Forwarded-For", v)
			}
			if got := proxy.address(r); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// TestPlaces: a user has so many places, however their requests look, and who is unknown takes none of theirs.
func TestPlaces(t *testing.T) {
	proxy := Proxy{From: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}, UserHeader: "U"}
	_, g := newFake(t, Options{Proxy: proxy})
	inside, release := make(chan struct{}), make(chan struct{})
	reader := behind(g, func(http.ResponseWriter, *http.Request) { inside <- struct{}{}; <-release })
	h := g.Wrap(small(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") == "" && r.Header.Get("U") == "":
			inside <- struct{}{} // somebody unknown, who takes their time
			<-release
		case r.Header.Get("U") == "tenant":
			if err := Know(r, "tenant", "a"); err != nil {
				err.(*Error).Write(w)
			}
		default:
			reader.ServeHTTP(w, r)
		}
	}))
	var group sync.WaitGroup
	enter := func(address string, header ...string) {
		group.Go(func() {
			if code := ask(h, address, header...); code != 200 {
				t.Errorf("%v: %d", header, code)
			}
		})
		<-inside
	}
	enter("192.0.2.1:1", "Authorization", "Bearer good-a")
	enter("192.0.2.1:1", "Authorization", "bearer  good-a", "Cookie", "__Host-shiplog=junk")
	for _, c := range []struct {
		name, address string
		header        []string
		want          int
	}{
		{"the same token", "192.0.2.1:1", []string{"Authorization", "Bearer good-a"}, 429},
		{"in capital letters", "192.0.2.1:1", []string{"Authorization", "BEARER   good-a"}, 429},
		{"from elsewhere", "192.0.2.2:1", []string{"Authorization", "Bearer good-a"}, 429},
		{"as a session", "192.0.2.1:1", []string{"Cookie", "__Host-shiplog=good-a"}, 429},
		{"as the proxy's user", "10.0.0.1:1", []string{"U", "a"}, 429},
		{"another user", "192.0.2.1:1", []string{"Authorization", "Bearer good-b"}, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			if code := ask(h, c.address, c.header...); code != c.want {
				t.Errorf("%d, want %d", code, c.want)
			}
		})
	}
	enter("192.0.2.1:1", "Authorization", "Bearer good-admin")
	for range 2 {
		enter("192.0.2.9:1") // unknown
	}
	if code := ask(h, "192.0.2.9:1"); code != 429 {
		t.Errorf("the third unknown one of an address: %d", code)
	}
	if code := ask(h, "192.0.2.9:1", "Authorization", "Bearer good-a"); code != 429 {
		t.Errorf("the third of a user: %d", code)
	}
	if code := ask(h, "192.0.2.8:1", "Authorization", "Bearer good-b"); code != 429 {
		t.Errorf("the fourth of all users: %d", code)
	}
	close(release)
	group.Wait()
	if code := ask(h, "10.0.0.1:1", "U", "tenant"); code != 200 {
		t.Errorf("a tenant, when the others have left: %d", code)
	}
	// Where an address has no place left, those are let in who are known.
	release = make(chan struct{})
	for range 2 {
		enter("192.0.2.9:1")
	}
	enter("192.0.2.9:1", "Authorization", "Bearer good-a")
	if code := ask(h, "192.0.2.9:1", "Authorization", "Bearer good-c"); code != 429 {
		t.Errorf("a user who is not known yet, where an address has no place left: %d", code)
	}
	close(release)
	group.Wait()
}

// served runs a test with a server and its own clock. Connections are pipes: what the other end does not read, cannot be written.
func served(t *testing.T, h http.Handler, test func(dial func(request string) net.Conn)) {
	t.Helper()
	conns := make(chan net.Conn)
	closed := make(chan struct{})
	server := &http.Server{Handler: h}
	done := make(chan error)
	go func() { done <- server.Serve(&pipes{conns: conns, closed: closed}) }()
	test(func(request string) net.Conn {
		client, peer := net.Pipe()
		conns <- peer
		if _, err := io.WriteString(client, request); err != nil {
			t.Fatal(err)
		}
		return client
	})
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	<-done
}

// pipes is a listener.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

const get = "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good-a\r\n"

// TestSlowClients: who does not read an answer, or does not send what was announced, is let go.
func TestSlowClients(t *testing.T) {
	for _, c := range []struct {
		name, request string
		handler       func(w http.ResponseWriter, r *http.Request)
		want          time.Duration
	}{
		{"a body that does not come", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.ReadAll(r.Body) }, bodyTime},
		{"an answer to somebody unknown that is not read", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", write, 10 * time.Second},
		{"an answer that is not read", get + "\r\n", nil, 10 * time.Second},
		{"one that follows a log", get + "X-Follow: yes\r\n\r\n", nil, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, g := newFakeInProcess(t, Options{})
				left := make(chan time.Duration, 1)
				begun := time.Now()
				handler := c.handler
				if handler == nil {
					handler = behind(g, write).ServeHTTP
				}
				h := g.Wrap(small(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer func() { left <- time.Since(begun) }()
					handler(w, r)
				}))
				served(t, h, func(dial func(string) net.Conn) {
					conn := dial(c.request)
					defer conn.Close()
					if got := <-left; got != c.want {
						t.Errorf("let go after %s, want %s", got, c.want)
					}
				})
			})
		})
	}
}

// TestSlowReaders: an answer takes as long as its client goes on reading, up to the time of one that
// follows a log. What is sent after the handler has returned is bounded too.
func TestSlowReaders(t *testing.T) {
	const chunk = 4096
	for _, c := range []struct {
		name  string
		pause time.Duration // of the client, before each chunk
		reads int           // 0: for ever
		want  time.Duration
	}{
		{"reads slowly", 9 * time.Second, 0, time.Hour + lastTime},
		{"reads too slowly", 11 * time.Second, 0, 10 * time.Second},
		{"stops reading", 9 * time.Second, 100, 100*9*time.Second + 10*time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, g := newFakeInProcess(t, Options{})
				left := make(chan time.Duration, 1)
				begun := time.Now()
				limits := small()
				limits.Bytes = 1 << 30
				h := g.Wrap(limits, behind(g, func(w http.ResponseWriter, r *http.Request) {
					defer func() { left <- time.Since(begun) }()
					for r.Context().Err() == nil {
						if _, err := w.Write(make([]byte, chunk)); err != nil {
							return
						}
					}
				}))
				served(t, h, func(dial func(string) net.Conn) {
					conn := dial(get + "\r\n")
					var group sync.WaitGroup
					ctx, stop := context.WithCancel(t.Context())
					group.Go(func() {
						for i := 0; c.reads == 0 || i < c.reads; i++ {
							timer := time.NewTimer(c.pause)
							select {
							case <-timer.C:
							case <-ctx.Done():
								timer.Stop()
								return
							}
							// A chunk and the lines around it, as the server writes them.
							if _, err := io.ReadAtLeast(conn, make([]byte, 2*chunk), chunk); err != nil {
								return
							}
						}
					})
					got := <-left
					if got < c.want-20*time.Second || got > c.want+20*time.Second {
						t.Errorf("let go after %s, want %s", got, c.want)
					}
					stop()
					conn.Close()
					group.Wait()
				})
			})
		})
	}
}

// TestFollowsLeaveRoom: however many logs are followed, by one or by all, a single request finds a
// place, and who comes last may follow too.
func TestFollowsLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, g := newFakeInProcess(t, Options{})
		l := DefaultLimits()
		leave := make(chan struct{})
		h := g.Wrap(l, known(g, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("follow") {
				if err := http.NewResponseController(w).SetWriteDeadline(time.Time{}); err != nil {
					err.(*Error).Write(w)
					return
				}
				select {
				case <-leave:
				case <-r.Context().Done(): // another takes the place
				}
			}
		}))
		send := func(user, query string) int {
			r := httptest.NewRequest("GET", "/"+query, nil)
			r.Header.Set("Authorization", "Bearer good-"+user)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Code
		}
		var group sync.WaitGroup
		refused := make(chan string, 100*100)
		follow := func(user string) {
			group.Go(func() {
				if send(user, "?follow") != 200 {
					refused <- user
				}
			})
			synctest.Wait()
		}
		for i := range 40 { // as many as they can, one user after the other
			user := fmt.Sprint("greedy-", i)
			for range l.FollowsPerClient + 1 {
				follow(user)
			}
			if code := send(user, ""); code != 200 {
				t.Fatalf("a single request of user %d, who follows: %d", i, code)
			}
		}
		refusals := func() map[string]int { // or whose place another got
			n := map[string]int{}
			for len(refused) > 0 {
				n[<-refused]++
			}
			return n
		}
		if len(refusals()) == 0 {
			t.Error("nobody is refused")
		}
		if code := send("modest", ""); code != 200 {
			t.Errorf("a single request: %d", code)
		}
		follow("modest")
		if refusals()["modest"] != 0 {
			t.Error("who comes last may not follow a single log")
		}
		// All service accounts of a namespace are one client, and get what one gets.
		for i := range 20 {
			follow(fmt.Sprintf("system:serviceaccount:team:robot-%d", i))
		}
		robots := 0
		for user, n := range refusals() {
			if strings.Contains(user, "robot") {
				robots += n
			}
		}
		if robots == 0 || robots == 20 {
			t.Errorf("of a namespace with 20 service accounts, %d may not follow", robots)
		}
		close(leave)
		group.Wait()
	})
}

// known is behind, where everybody may read.
func known(g *Gate, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := g.Identify(r); err != nil {
			err.(*Error).Write(w)
			return
		}
		h(w, r)
	})
}

// write writes for ever, and does not look at the context.
func write(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Follow") != "" {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	}
	for {
		if _, err := w.Write(make([]byte, 4096)); err != nil {
			return
		}
	}
}

// TestTime: a request ends when its time is over, and says so if it has said nothing else. Only an answer that follows a log has the time for that, whatever the address says.
func TestTime(t *testing.T) {
	for _, c := range []struct {
		name, query string
		follows     bool
		want        time.Duration
	}{
		{"a request", "", false, time.Minute},
		{"one that says follow", "?follow=false", false, time.Minute},
		{"one that follows", "?follow=true", true, time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, g := newFakeInProcess(t, Options{})
				h := g.Wrap(small(), behind(g, func(w http.ResponseWriter, r *http.Request) {
					if c.follows {
						_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
					}
					<-r.Context().Done()
				}))
				r := httptest.NewRequest("GET", "/"+c.query, nil)
				r.Header.Set("Authorization", "Bearer good-a")
				ctx, visit := Watch(r.Context())
				w := httptest.NewRecorder()
				begun := time.Now()
				h.ServeHTTP(w, r.WithContext(ctx))
				if got := time.Since(begun); got != c.want {
					t.Errorf("it ended after %s, want %s", got, c.want)
				}
				if w.Code != 503 || !strings.Contains(w.Body.String(), "has taken longer than") {
					t.Errorf("%d %s", w.Code, w.Body)
				}
				if visit.User() != "a" || visit.Namespace() != "a" || visit.Following() != c.follows {
					t.Errorf("noted %q, %q, %t", visit.User(), visit.Namespace(), visit.Following())
				}
			})
		})
	}
}

// TestFollowEnds: who follows a log, and may not any more, is not shown more of it.
func TestFollowEnds(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request) bool // from some time on
		want  time.Duration
		code  int
	}{
		{"still allowed", nil, time.Hour, 503},
		{"the token is gone", func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/tokenreviews") {
				fmt.Fprint(w, `{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1"}`)
				return true
			}
			return false
		}, 11 * time.Minute, 401},
		{"the role is gone", func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/subjectaccessreviews") {
				fmt.Fprint(w, `{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1"}`)
				return true
			}
			return false
		}, 11 * time.Minute, 403},
		{"the API server is away", func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "", 500); return true }, time.Hour, 503},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, g := newFakeInProcess(t, Options{})
				begun := time.Now()
				f.fault = func(w http.ResponseWriter, r *http.Request) bool {
					w.Header().Set("Content-Type", "application/json")
					return c.fault != nil && time.Since(begun) > 10*time.Minute+time.Second && c.fault(w, r)
				}
				var why error
				h := g.Wrap(small(), behind(g, func(w http.ResponseWriter, r *http.Request) {
					_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
					<-r.Context().Done()
					why = context.Cause(r.Context())
				}))
				code := ask(h, "192.0.2.1:1", "Authorization", "Bearer good-a")
				if got := time.Since(begun); got != c.want || code != c.code || status(why) != c.code {
					t.Errorf("it ended after %s with %d (%v), want %s with %d", got, code, why, c.want, c.code)
				}
			})
		})
	}
}

// TestLongAnswer: an answer that has more bytes than it may does not look whole.
func TestLongAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, g := newFakeInProcess(t, Options{})
		limits := DefaultLimits()
		limits.Bytes = 10
		h := g.Wrap(limits, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for range len(r.URL.Path) - 1 {
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
			}
		}))
		served(t, h, func(dial func(string) net.Conn) {
			for _, n := range []int{10, 11} {
				conn := dial("GET /" + strings.Repeat("a", n) + " HTTP/1.1\r\nHost: x\r\n\r\n")
				r, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(r.Body)
				conn.Close()
				if len(b) != 10 || (err != nil) != (n > 10) {
					t.Errorf("of %d bytes %d came, with error %v", n, len(b), err)
				}
			}
		})
	})
}

// TestBrokenOff: an answer that is broken off does not look whole, whatever protocol it is asked in,
// with TLS too, and behind a proxy that asks in HTTP/1.0.
func TestBrokenOff(t *testing.T) {
	_, g := newFake(t, Options{})
	h := g.Wrap(small(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half of a text\n")
		_ = http.NewResponseController(w).Flush()
		if r.URL.Path == "/broken" {
			panic(http.ErrAbortHandler)
		}
	}))
	plain, secret := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer secret.Close()
	for name, dial := range map[string]func() (net.Conn, error){
		"plain": func() (net.Conn, error) { return net.Dial("tcp", plain.Listener.Addr().String()) },
		"TLS": func() (net.Conn, error) {
			return tls.Dial("tcp", secret.Listener.Addr().String(), secret.Client().Transport.(*http.Transport).TLSClientConfig)
		},
	} {
		for _, protocol := range []string{"1.0", "1.1"} {
			for path, broken := range map[string]bool{"/": false, "/broken": true} {
				t.Run(fmt.Sprintf("%s %s %s", name, protocol, path), func(t *testing.T) {
					conn, err := dial()
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					fmt.Fprintf(conn, "GET %s HTTP/%s\r\nHost: x\r\nConnection: close\r\n\r\n", path, protocol)
					res, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						if broken { // a reset may overtake what came before it
							return
						}
						t.Fatal(err)
					}
					body, err := io.ReadAll(res.Body)
					if (err != nil) != broken {
						t.Errorf("%q ended with %v", body, err)
					}
				})
			}
		}
	}
}

// TestErrors: the API tells an error of the gate's as the gate itself does, also where it is wrapped.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name                 string
		err                  *Error
		challenge, afterward bool
	}{
		{"nobody", unknown("who are you?"), true, false},
		{"who may not", &Error{Status: http.StatusForbidden, Message: "no"}, false, false},
		{"the API server is away", unreachable(errors.New("down")), false, true},
		{"too many", tooMany("wait"), false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			for how, answer := range map[string]func(w http.ResponseWriter){
				"the gate": c.err.Write,
				"the API": func(w http.ResponseWriter) {
					api.WriteError(w, request("GET"), fmt.Errorf("ask the gate: %w", c.err), slog.New(slog.DiscardHandler))
				},
			} {
				w := httptest.NewRecorder()
				answer(w)
				if w.Code != c.err.Status {
					t.Errorf("%s: %d, want %d", how, w.Code, c.err.Status)
				}
				if _, got := w.Header()["Www-Authenticate"]; got != c.challenge {
					t.Errorf("%s: with a challenge: %t, want %t", how, got, c.challenge)
				}
				if got := w.Header().Get("Retry-After") != ""; got != c.afterward {
					t.Errorf("%s: with Retry-After: %t, want %t", how, got, c.afterward)
				}
			}
		})
	}
}
