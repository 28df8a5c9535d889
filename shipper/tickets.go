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

	refreshes sync.WaitGroup

	mu         sync.Mutex // guards what follows
	current    ticket.Ticket
	refreshing bool
}

// ticketTimeout bounds one request to the ticket service, which asks the API server and S3 in turn.
const ticketTimeout = 30 * time.Second

func newTickets(url, caBundle, tokenFile, cacheFile string, log *slog.Logger) (*tickets, error) {
	client, err := newHTTPClient(caBundle)
	if err != nil {
		return nil, fmt.Errorf("ticket service: %w", err)
	}
	t := &tickets{url: url, tokenFile: tokenFile, cacheFile: cacheFile, client: client, retry: retrier{log}, log: log}
	if b, err := os.ReadFile(cacheFile); err == nil {
		// A restarted shipper goes on at once, also while the ticket service is down. A damaged cache is as good as none.
		if cached, err := ticket.Decode(b); err == nil {
			t.current = cached
		}
	}
	return t, nil
}

// get returns a ticket that is good now. It blocks, and tries for ever, only when there is none; one in the second half of its life is renewed in the
// background.
func (t *tickets) get(ctx context.Context) (ticket.Ticket, error) {
	t.mu.Lock()
	current := t.current
	t.mu.Unlock()
	now := time.Now()
	if now.Before(current.Expires) {
		if now.After(current.Issued.Add(current.Expires.Sub(current.Issued) / 2)) {
			t.refresh(ctx)
		}
		return current, nil
	}
	err := t.retry.do(ctx, "get an upload ticket", func(ctx context.Context) error {
		fresh, err := t.fetch(ctx)
		if err != nil {
			return err
		}
		current = fresh
		t.keep(fresh)
		return nil
	})
	return current, err
}

// drop forgets a ticket that S3 refused, unless it is already another one.
func (t *tickets) drop(refused ticket.Ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current.Issued.Equal(refused.Issued) {
		t.current = ticket.Ticket{}
	}
}

// refresh gets the next ticket once. When that fails the next get tries again.
func (t *tickets) refresh(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refreshing {
		return
	}
	t.refreshing = true
	t.refreshes.Go(func() {
		fresh, err := t.fetch(ctx)
		if err == nil {
			t.keep(fresh)
		} else if ctx.Err() == nil {
			t.log.Warn("the upload ticket is not renewed yet", "error", err)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.refreshing = false
	})
}

// wait waits for refreshes in flight, whose context must have ended.
func (t *tickets) wait() { t.refreshes.Wait() }

func (t *tickets) keep(fresh ticket.Ticket) {
	t.mu.Lock()
	t.current = fresh
	t.mu.Unlock()
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
	return ticket.Decode(body)
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
