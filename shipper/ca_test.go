package main

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
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/spool"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// authority is a CA as cert-manager makes it: each has the same name, whatever its key.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return authority{t: t, key: key}.renewed()
}

// renewed is the CA with its key and another certificate, as of rotationPolicy Never.
func (a authority) renewed() authority {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "shiplog-ca"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = a.sign(template, template, a.key)
	return a
}

func serial() *big.Int { return new(big.Int).SetBytes([]byte(rand.Text()[:16])) }

func (a authority) sign(
	template, parent *x509.Certificate, key *ecdsa.PrivateKey,
) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// serving is a certificate for a server of these names, and of no address; without names it is for
// one on this machine.
func (a authority) serving(names ...string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(names) == 0 {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	cert := a.sign(template, a.cert, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// serve starts a server with such a certificate.
func (a authority) serve(handler http.HandlerFunc, names ...string) *httptest.Server {
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{a.serving(names...)}}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // of refusals
	server.StartTLS()
	return server
}

// TestCARolled: a pod keeps the CA that it was made with. The ticket service has another one since,
// and a real TLS connection says whether the pod still trusts it.
func TestCARolled(t *testing.T) {
	old, next, stranger := newAuthority(t), newAuthority(t), newAuthority(t)
	several := old.pem() + stranger.pem() + next.pem()
	endless := strings.Repeat(next.pem(), 1000)
	for name, c := range map[string]struct {
		serving   authority
		published string
		noTicket  bool // the pod had none before
		want      string
	}{
		"the same":                          {serving: old},
		"renewed, with its key":             {serving: old.renewed()},
		"another, and published":            {serving: next, published: next.pem()},
		"another, and several published":    {serving: next, published: several},
		"another published, the old served": {serving: old, published: next.pem()},
		"another, not published yet":        {serving: next, want: "404"},
		"another, and no certificate":       {serving: next, published: "<html>", want: "no PEM"},
		"another, and too much":             {serving: next, published: endless, want: "longer than"},
		"another, and the old is published": {serving: next, published: old.pem(), want: "certificate"},
		"a stranger's":                      {serving: stranger, published: next.pem(), want: "certificate"},
		"another, and no ticket before": {
			serving: next, published: next.pem(), noTicket: true, want: "no earlier ticket says where",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			f.ca = c.published
			var heard int // how often somebody got as far as to send a token
			service := c.serving.serve(func(w http.ResponseWriter, r *http.Request) {
				heard++
				f.serveTicket(w, r)
			})
			defer service.Close()

			p := newPod(t, f, "step-a")
			p.config.TicketURL, p.config.CABundle = service.URL+ticket.Path, old.pem()
			p.write("step-a", spool.LogName(0), lines(0, 10))
			if !c.noTicket { // one that has ended, as of a shipper that was there before
				before := ticket.Ticket{
					URL: f.URL + "/bucket", CAURL: f.URL + "/bucket/ca.pem",
					Fields: map[string]string{"policy": "0"}, Prefix: podPrefix, MaxBytes: 1 << 20,
					Issued: time.Now().Add(-6 * time.Hour), Expires: time.Now().Add(-time.Second),
				}
				s := p.shipper()
				s.tickets.keep(before)
				if err := s.close(); err != nil {
					t.Fatal(err)
				}
			}
			s := p.shipper()
			defer s.close()
			life := time.Minute
			if c.want != "" {
				life = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), life)
			defer cancel()
			_, err := s.tickets.get(ctx)
			if c.want == "" {
				if err != nil {
					t.Fatalf("no ticket: %v\n%s", err, p.logged)
				}
				if err := s.drain(t.Context()); err != nil || !bytes.Equal(f.log("step-a"), lines(0, 10)) {
					t.Errorf("the log is not there: %v", err)
				}
				return
			}
			if !errors.Is(err, context.DeadlineExceeded) || heard > 0 {
				t.Errorf("%v, and %d tokens were sent", err, heard)
			}
			_, last := s.tickets.heard()
			if last == nil || !strings.Contains(last.Error(), c.want) {
				t.Errorf("says %v, want %q", last, c.want)
			}
		})
	}
}

// TestCAAddressIsNotLogged: it is signed, and with keys that are temporary it holds a token.
func TestCAAddressIsNotLogged(t *testing.T) {
	f := newFakeServer(t)
	service := newAuthority(t).serve(http.NotFound)
	defer service.Close()
	at := f.URL + "/bucket/ca.pem?X-Amz-Signature=secret"
	f.Close() // nobody answers there
	cache, token := filepath.Join(t.TempDir(), "ticket"), newPod(t, f, "a").token
	log := slog.New(slog.DiscardHandler)
	tickets, err := newTickets(
		contract.Config{TicketURL: service.URL, CABundle: newAuthority(t).pem()}, token, cache, log)
	if err != nil {
		t.Fatal(err)
	}
	defer tickets.close()
	tickets.use(ticket.Ticket{CAURL: at})
	_, err = tickets.fetch(t.Context())
	if err == nil || !strings.Contains(err.Error(), "from the store") {
		t.Errorf("the error does not say what failed: %v", err)
	} else if strings.Contains(err.Error(), "secret") {
		t.Errorf("the error holds the signature: %v", err)
	}
}

// TestStoreCARolled: an old ticket has the certificates of a CA that does not sign the store's any
// more.
func TestStoreCARolled(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	f := newFakeServer(t)
	store := next.serve(f.serveUpload)
	defer store.Close()
	f.bundle, f.storeURL = next.pem(), store.URL
	p := newPod(t, f, "step-a")
	p.write("step-a", spool.LogName(0), lines(0, 10))
	s := p.shipper()
	defer s.close()
	s.tickets.use(ticket.Ticket{
		URL:    store.URL + "/bucket",
		Fields: map[string]string{"policy": "0", "x-amz-signature": "s"},
		Prefix: podPrefix, MaxBytes: 1 << 20,
		Issued: time.Now().Add(-time.Hour), Expires: time.Now().Add(5 * time.Hour), CABundle: old.pem(),
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.drain(ctx); err != nil || !bytes.Equal(f.log("step-a"), lines(0, 10)) {
		t.Errorf("the log is not there: %v\n%s", err, p.logged)
	}
}

// TestCAIsLearnedOnce: while the service's certificate stays untrusted, the same CA at the store
// is no news. Another one there is.
func TestCAIsLearnedOnce(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	f := newFakeServer(t)
	f.ca = next.pem()
	service := newAuthority(t).serve(http.NotFound)
	defer service.Close()
	cache, token := filepath.Join(t.TempDir(), "ticket"), newPod(t, f, "a").token
	logged := &syncBuffer{}
	tickets, err := newTickets(contract.Config{TicketURL: service.URL, CABundle: old.pem()},
		token, cache, slog.New(slog.NewJSONHandler(logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer tickets.close()
	tickets.use(ticket.Ticket{CAURL: f.URL + "/bucket/ca.pem"})
	try := func(said int) error {
		t.Helper()
		_, err := tickets.fetch(t.Context())
		if untrusted := (*tls.CertificateVerificationError)(nil); !errors.As(err, &untrusted) {
			t.Fatalf("the service is trusted: %v", err)
		}
		if n := strings.Count(logged.String(), "read it from the store"); n != said {
			t.Errorf("it is said %d times, want %d:\n%s", n, said, logged)
		}
		return err
	}
	_ = try(1)
	learned := tickets.client
	if err := try(1); !strings.Contains(err.Error(), "the store has no other CA") {
		t.Errorf("the error does not say why there is nothing to learn: %v", err)
	}
	if tickets.client != learned {
		t.Error("another client of the same certificates")
	}
	f.ca = next.renewed().pem()
	_ = try(2)
}
