package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// tickets gets the upload ticket, keeps it where only the shipper sees it, and gets the next one well before the last one expires.
type tickets struct {
	url       string
	tokenFile string // read each time: the kubelet renews the token
	cacheFile string
	client    *http.Client
	retry     retrier
	log       *slog.Logger

	life    context.Context // ends with close; a request must outlive SIGTERM, since the drain needs the ticket
	end     context.CancelFunc
	renewal sync.WaitGroup

	mu       sync.Mutex // guards what follows
	current  ticket.Ticket
	renewAt  time.Time
	renewing chan struct{} // closed when the renewal in flight has ended; nil if there is none
}

// ticketTimeout bounds one request to the ticket service, which asks the API server and S3 in turn.
const ticketTimeout = 30 * time.Second

func newTickets(url, caBundle, tokenFile, cacheFile string, log *slog.Logger) (*tickets, error) {
	client, err := newHTTPClient(caBundle)
	if err != nil {
		return nil, fmt.Errorf("ticket service: %w", err)
	}
	t := &tickets{url: url, tokenFile: tokenFile, cacheFile: cacheFile, client: client, retry: retrier{log}, log: log}
	t.life, t.end = context.WithCancel(context.Background())
	if b, err := os.ReadFile(cacheFile); err == nil {
		// A restarted shipper goes on at once, also while the ticket service is down. A damaged cache is as good as none.
		if cached, err := ticket.Decode(b); err == nil {
			t.use(cached)
		}
	}
	return t, nil
}

// close ends a renewal in flight.
func (t *tickets) close() {
	t.end()
	t.renewal.Wait()
	t.client.CloseIdleConnections()
}

// get returns a ticket that is good now. It blocks only when there is none, until there is one or the context ends.
func (t *tickets) get(ctx context.Context) (ticket.Ticket, error) {
	for {
		current, renewing := t.look(time.Now())
		if renewing == nil {
			return current, nil
		}
		select {
		case <-ctx.Done():
			return ticket.Ticket{}, fmt.Errorf("wait for an upload ticket: %w", ctx.Err())
		case <-renewing:
		}
	}
}

// look returns a good ticket, or the channel that is closed when there may be one. A missing ticket, and one in the second half of its life, is renewed in the
// background, by one request at a time.
func (t *tickets) look(now time.Time) (ticket.Ticket, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	good := now.Before(t.current.Expires)
	if t.renewing == nil && (!good || now.After(t.renewAt)) {
		done := make(chan struct{})
		t.renewing = done
		t.renewal.Go(func() { t.renew(done) })
	}
	if good {
		return t.current, nil
	}
	return ticket.Ticket{}, t.renewing
}

func (t *tickets) renew(done chan<- struct{}) {
	err := protect(func() error {
		return t.retry.do(t.life, "get an upload ticket", func(ctx context.Context) error {
			fresh, err := t.fetch(ctx)
			if err == nil {
				t.keep(fresh)
			}
			return err
		})
	})
	if err != nil && t.life.Err() == nil {
		t.log.Error("getting an upload ticket is broken", "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.renewing = nil
	close(done)
}

// drop forgets a ticket that S3 refused, unless it is already another one.
func (t *tickets) drop(refused ticket.Ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current.Issued.Equal(refused.Issued) {
		t.current = ticket.Ticket{}
	}
}

// use makes a ticket the current one. The moment of its renewal is drawn by lot: pods that began together must not come back together.
func (t *tickets) use(fresh ticket.Ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	life := fresh.Expires.Sub(fresh.Issued)
	t.current = fresh
	t.renewAt = fresh.Issued.Add(life/2 + rand.N(life/4+1))
}

func (t *tickets) keep(fresh ticket.Ticket) {
	t.use(fresh)
	b, err := json.Marshal(fresh)
	if err == nil {
		err = replaceFile(t.cacheFile, b)
	}
	if err != nil {
		t.log.Warn("the upload ticket is not kept: a restart of the shipper will need the ticket service", "error", err)
	}
}

func (t *tickets) fetch(ctx context.Context) (ticket.Ticket, error) {
	ctx, cancel := context.WithTimeout(ctx, ticketTimeout)
	defer cancel()
	token, err := os.ReadFile(t.tokenFile)
	if err != nil {
		return ticket.Ticket{}, fmt.Errorf("read the pod's token: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, http.NoBody)
	if err != nil {
		return ticket.Ticket{}, fmt.Errorf("ask for a ticket: %w", err)
	}
	asked := time.Now()
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := t.client.Do(req)
	if err != nil {
		return ticket.Ticket{}, fmt.Errorf("ask for a ticket: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 256<<10))
	if err != nil {
		return ticket.Ticket{}, fmt.Errorf("ask for a ticket: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var refusal ticket.Refusal
		_ = json.Unmarshal(body, &refusal) // without it the status still says enough
		return ticket.Ticket{}, withRetryAfter(resp, fmt.Errorf("ask for a ticket: %s: %s %s", resp.Status, refusal.Reason, refusal.Message))
	}
	fresh, err := ticket.Decode(body)
	if err != nil {
		return ticket.Ticket{}, err
	}
	// Its times are by the service's clock. S3 goes by its own and refuses what is too old, so only the length of its life matters here: a node whose clock is
	// wrong must not take every ticket for expired.
	fresh.Issued, fresh.Expires = asked, asked.Add(fresh.Expires.Sub(fresh.Issued))
	return fresh, nil
}

// newHTTPClient trusts the given certificates, or the system's if there are none. It follows no redirect: neither S3 nor the ticket service is elsewhere than where we were told,
// and a token or a ticket must not go elsewhere. No proxy is taken from the environment for the same reason.
func newHTTPClient(caBundle string) (*http.Client, error) {
	var roots *x509.CertPool
	if caBundle != "" {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(caBundle)) {
			return nil, errors.New("the CA bundle holds no certificate")
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 60 * time.Second,
			IdleConnTimeout:       30 * time.Second,
			MaxIdleConnsPerHost:   sealConcurrency,
			WriteBufferSize:       64 << 10,
			DisableCompression:    true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}
