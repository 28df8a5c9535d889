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
	"net/http/httptrace"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// tickets gets the upload ticket, keeps it where only the shipper sees it, and gets the next one well before the last one expires.
type tickets struct {
	url       string
	tokenFile string // read each time: the kubelet renews the token
	cacheFile string
	caBundle  string // of the pod's configuration
	at        string // the same: where the service is if its name cannot be resolved
	client    *http.Client
	learned   string // the certificates of the store that the client trusts, too
	retry     retrier
	log       *slog.Logger

	life    context.Context // ends with close; a request must outlive SIGTERM, since the drain needs the ticket
	end     context.CancelFunc
	renewal sync.WaitGroup

	hurried chan struct{} // closed at SIGTERM, when there is little time left

	mu        sync.Mutex // guards what follows
	current   ticket.Ticket
	renewAt   time.Time
	renewing  chan struct{} // closed when the renewal in flight has ended; nil if there is none
	refused   bool          // S3 has refused the current ticket, and renewAt is set for that
	forgotten bool          // the current ticket is not used any more
	wait      backoff       // between tickets that S3 refuses
	last      error         // of the last request to the ticket service
}

const (
	// ticketTimeout bounds one request to the ticket service, which asks the API server and S3 in
	// turn.
	ticketTimeout = 30 * time.Second
	// maxServiceBackoff is the longest wait between two tries to get a ticket while the pod runs.
	maxServiceBackoff = 30 * time.Second
	// firstRefusalWait and maxRefusalWait are the shortest and the longest backoff before a fresh
	// ticket that S3 refuses is replaced. A ticket is fresh until it is as old as the longest.
	firstRefusalWait, maxRefusalWait = 10 * time.Second, 5 * time.Minute
)

func newTickets(
	config contract.Config, tokenFile, cacheFile string, log *slog.Logger,
) (*tickets, error) {
	client, err := newHTTPClient(config.CABundle, "", config.TicketAddress)
	if err != nil {
		return nil, fmt.Errorf("ticket service: %w", err)
	}
	hurried := make(chan struct{})
	t := &tickets{
		url: config.TicketURL, at: config.TicketAddress, tokenFile: tokenFile, cacheFile: cacheFile,
		caBundle: config.CABundle, client: client, hurried: hurried,
		retry: retrier{log: log, most: maxServiceBackoff, hurry: hurried}, log: log,
	}
	t.last = errors.New("the ticket service could not be reached yet")
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
	good := !t.forgotten && now.Before(t.current.Expires)
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
			t.hear(err)
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

// hear notes the outcome of the last request to the ticket service.
func (t *tickets) hear(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = err
}

// refuse notes that S3 has refused a ticket, if it is still the current one.
//
// An old ticket may have expired by the store's clock, or its key is gone: it is forgotten, and the
// next upload waits for another one. A fresh one is rarely what is wrong: more likely a right is
// missing, or a clock is wrong, and another ticket would be refused as well. All pods share the
// ticket service, so a fresh ticket stays, and is replaced after a wait that grows each time.
func (t *tickets) refuse(refused ticket.Ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	switch {
	case !t.current.Issued.Equal(refused.Issued) || t.refused || t.forgotten:
	case now.After(t.renewAt) || now.Sub(t.current.Issued) >= maxRefusalWait:
		t.forgotten, t.wait = true, 0
	default:
		t.refused = true
		wait := t.wait.within(firstRefusalWait, maxRefusalWait)
		if t.hurries() {
			wait = min(wait, time.Second)
		}
		if at := now.Add(wait); at.Before(t.renewAt) {
			t.renewAt = at
		}
	}
}

// accept notes that S3 has taken an upload with a ticket.
func (t *tickets) accept(accepted ticket.Ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current.Issued.Equal(accepted.Issued) {
		t.wait = 0
	}
}

// hurry says that there is little time left: what waits for a better moment is done at once.
func (t *tickets) hurry() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hurries() {
		return
	}
	close(t.hurried)
	if t.refused {
		t.forgotten = true
	}
}

func (t *tickets) hurries() bool {
	select {
	case <-t.hurried:
		return true
	default:
		return false
	}
}

// first waits for the pod's first ticket, if it never had one: until the context ends, where the
// ticket service has answered that there may be a ticket later, and otherwise for patience.
func (t *tickets) first(ctx context.Context, patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		_, renewing := t.look(time.Now())
		if had, _ := t.heard(); had {
			return nil
		}
		select {
		case <-ctx.Done():
			_, last := t.heard()
			return fmt.Errorf("wait for the first upload ticket: %w", errors.Join(ctx.Err(), last))
		case <-renewing:
		case <-timer.C:
			_, last := t.heard()
			if later := (*laterError)(nil); !errors.As(last, &later) {
				return fmt.Errorf("no upload ticket in the pod's life, nor in %s after it: %w",
					patience, last)
			}
			timer.Reset(time.Second)
		}
	}
}

// heard returns whether there ever was a ticket, and the outcome of the last request for one.
func (t *tickets) heard() (had bool, last error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.current.Expires.IsZero(), t.last
}

// laterError says that the ticket service is there, and may give a ticket later.
type laterError struct{ error }

func (e *laterError) Unwrap() error { return e.error }

// use makes a ticket the current one. The moment of its renewal is drawn by lot: pods that began together must not come back together.
func (t *tickets) use(fresh ticket.Ticket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	life := fresh.Expires.Sub(fresh.Issued)
	t.current, t.refused, t.forgotten = fresh, false, false
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
	// Who takes the request can be reached, and is to have the time to answer.
	wrote := func(info httptrace.WroteRequestInfo) {
		if info.Err == nil {
			t.hear(&laterError{errors.New("ask for a ticket: no answer yet")})
		}
	}
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: wrote}))
	asked := time.Now()
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := t.client.Do(req)
	if untrusted := (*tls.CertificateVerificationError)(nil); errors.As(err, &untrusted) {
		if learnErr := t.learnCA(ctx); learnErr != nil {
			err = fmt.Errorf("%w; %w", err, learnErr)
		}
	}
	if err != nil {
		return ticket.Ticket{}, fmt.Errorf("ask for a ticket: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, ticket.MaxEncoded+1)) // more than Decode takes
	if err != nil {
		return ticket.Ticket{}, fmt.Errorf("ask for a ticket: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var refusal ticket.Refusal
		_ = json.Unmarshal(body, &refusal) // without it the status still says enough
		err := fmt.Errorf("ask for a ticket: %s: %s %s", resp.Status, refusal.Reason, refusal.Message)
		// A proxy's 503 has no reason.
		if resp.StatusCode == http.StatusServiceUnavailable && refusal.Reason != "" {
			err = &laterError{err}
		}
		return ticket.Ticket{}, withRetryAfter(resp, err)
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

// learnCA trusts the certificates at the store from the next try on, beside those that the pod was
// made with: shiplog may have been installed anew since, and then it has a CA of its own. Who can
// write them there holds the store's keys, and could read every log.
func (t *tickets) learnCA(ctx context.Context) error {
	t.mu.Lock()
	last := t.current
	t.mu.Unlock()
	if last.CAURL == "" || t.caBundle == "" {
		return errors.New("no earlier ticket says where its CA is")
	}
	bundle, err := fetchCA(ctx, last.CAURL, last.CABundle, last.Proxy)
	if err != nil {
		return fmt.Errorf("get its CA from the store: %w", err)
	}
	if bundle == t.learned {
		return errors.New("the store has no other CA")
	}
	client, err := newHTTPClient(t.caBundle+"\n"+bundle, "", t.at)
	if err != nil {
		return fmt.Errorf("get its CA from the store: %w", err)
	}
	t.client.CloseIdleConnections()
	t.client, t.learned = client, bundle
	t.log.Info("the ticket service may have another CA; read it from the store")
	return nil
}

// fetchCA gets the certificates at a signed address.
func fetchCA(ctx context.Context, from, storeCA, proxy string) (string, error) {
	client, err := newHTTPClient(storeCA, proxy, "")
	if err != nil {
		return "", err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, http.NoBody)
	if err != nil {
		return "", errors.New("the address is none")
	}
	resp, err := client.Do(req)
	if told := (*url.Error)(nil); errors.As(err, &told) {
		return "", told.Err // without the address, which is signed
	}
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, ticket.MaxCABundle+1))
	switch {
	case err != nil:
		return "", err
	case resp.StatusCode != http.StatusOK:
		return "", errors.New(resp.Status)
	case len(b) > ticket.MaxCABundle:
		return "", fmt.Errorf("it is longer than %d bytes", ticket.MaxCABundle)
	case !x509.NewCertPool().AppendCertsFromPEM(b):
		return "", errors.New("there is no PEM certificate in it")
	}
	return string(b), nil
}

// lookupTime is how long a name server may take where there is an address to go to without it.
const lookupTime = 3 * time.Second

// dialer connects to a host by its name, or at an address where the name cannot be resolved, as in
// a pod that has the node's name servers and not the cluster's.
func dialer(at string) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	if at == "" {
		return d.DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		limited, cancel := context.WithTimeout(ctx, lookupTime)
		defer cancel()
		if _, err = net.DefaultResolver.LookupHost(limited, host); err == nil {
			return d.DialContext(ctx, network, address)
		}
		conn, atErr := d.DialContext(ctx, network, at)
		if atErr != nil {
			return nil, errors.Join(err, atErr)
		}
		return conn, nil
	}
}

// newHTTPClient trusts the given certificates, or the system's if there are none. It follows no
// redirect: neither S3 nor the ticket service is elsewhere than where we were told, and a token or
// a ticket must not go elsewhere. No proxy is taken from the environment for the same reason: only
// the one that is given, if one is. Where the host's name cannot be resolved, it is looked for at
// the address that is given, if one is; what it shows has to be good for its name all the same.
func newHTTPClient(caBundle, proxy, at string) (*http.Client, error) {
	var roots *x509.CertPool
	if caBundle != "" {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(caBundle)) {
			return nil, errors.New("the CA bundle holds no certificate")
		}
	}
	var through func(*http.Request) (*url.URL, error)
	if proxy != "" {
		address, err := url.Parse(proxy)
		if err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		through = http.ProxyURL(address)
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 through,
			DialContext:           dialer(at),
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
