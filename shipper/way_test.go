package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// withoutNames makes every look-up of a name fail, as in a pod without the cluster's name servers.
func withoutNames(t *testing.T) {
	t.Helper()
	before := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = before })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no name server")
	}}
}

// TestNameThatIsNotResolved: the ticket service is reached at its address then, and still has to show
// a certificate for its name.
func TestNameThatIsNotResolved(t *testing.T) {
	withoutNames(t)
	const name = "webhook.shiplog.invalid"
	ca := newAuthority(t)
	serve := func(name string) string {
		server := ca.serve(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "asked for "+r.Host)
		}, name)
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		at   string
		want string // the answer, or a part of the error
	}{
		"at its address":          {serve(name), "asked for " + name},
		"no address":              {"", "no name server"},
		"another server is there": {serve("other.invalid"), "certificate is valid for other.invalid"},
		"nobody is there":         {nobody, "connection refused"},
	} {
		t.Run(what, func(t *testing.T) {
			client, err := newHTTPClient(ca.pem(), "", c.at)
			if err != nil {
				t.Fatal(err)
			}
			defer client.CloseIdleConnections()
			resp, err := client.Get("https://" + name + "/")
			if err != nil {
				if !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want one with %q", err, c.want)
				}
				return
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != c.want {
				t.Errorf("answer %q, %v, want %q", b, err, c.want)
			}
		})
	}
}

// TestStoreBehindProxy: an upload goes through the proxy that the ticket names, and through none that
// the environment names.
func TestStoreBehindProxy(t *testing.T) {
	withoutNames(t)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	var through []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		through = append(through, r.URL.String())
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer proxy.Close()
	u := &uploader{}
	defer u.closeIdle()
	good := ticket.Ticket{URL: "http://store.invalid/bucket", Fields: map[string]string{"policy": "p"}, Prefix: "a/", Proxy: proxy.URL}
	send := func(t2 ticket.Ticket) error {
		client, err := u.clientFor(t2)
		if err != nil {
			return err
		}
		req, err := t2.NewRequest(t.Context(), "name", []byte("body"))
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	if err := send(good); err != nil {
		t.Fatal(err)
	}
	if len(through) != 1 || through[0] != good.URL {
		t.Errorf("through the proxy went %q", through)
	}
	direct := good
	direct.Proxy = ""
	if err := send(direct); err == nil || !strings.Contains(err.Error(), "no name server") {
		t.Errorf("without a proxy: %v", err)
	}
	if len(through) != 1 {
		t.Errorf("through the proxy went %q", through)
	}
}
