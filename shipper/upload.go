package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// uploader puts objects under the pod's prefix.
type uploader struct {
	tickets *tickets
	retry   retrier

	uploads atomic.Int64 // that succeeded

	mu     sync.Mutex // guards what follows
	client *http.Client
	ca     string // the CA bundle that client trusts
	proxy  string // the proxy that client goes through
}

// slowest is the slowest connection that an upload is given time for, in bytes per second.
const slowest = 16 << 10

// put uploads one object, and tries again until it succeeds, the store refuses this very object, or the context ends.
func (u *uploader) put(ctx context.Context, name string, body []byte) error {
	return u.retry.do(ctx, "upload "+name, func(ctx context.Context) error { return u.try(ctx, name, body) })
}

func (u *uploader) try(ctx context.Context, name string, body []byte) error {
	t, err := u.tickets.get(ctx)
	if err != nil {
		return err
	}
	client, err := u.clientFor(t)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second+time.Duration(len(body)/slowest)*time.Second)
	defer cancel()
	req, err := t.NewRequest(ctx, name, body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if untrusted := (*tls.CertificateVerificationError)(nil); errors.As(err, &untrusted) {
			u.tickets.refuse(t) // its certificates may be those from before the store's were changed
		}
		return fmt.Errorf("post to the store: %w", err)
	}
	defer resp.Body.Close()
	text, readErr := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	err = fmt.Errorf("post to the store: %s: %s", resp.Status, strings.Join(strings.Fields(string(text)), " "))
	if readErr != nil {
		err = fmt.Errorf("post to the store: %s: %w", resp.Status, readErr)
	}
	switch {
	case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusCreated || resp.StatusCode == http.StatusNoContent:
		u.uploads.Add(1)
		u.tickets.accept(t)
		return nil
	// Versity S3 Gateway says 404 of a key that is gone. It says so of a missing bucket, too, where
	// no ticket helps.
	case resp.StatusCode == http.StatusUnauthorized,
		resp.StatusCode == http.StatusForbidden,
		resp.StatusCode == http.StatusNotFound,
		bytes.Contains(text, []byte("<Code>ExpiredToken</Code>")):
		u.tickets.refuse(t)
	case aboutTheObject(resp.StatusCode):
		err = &refused{err}
	}
	return withRetryAfter(resp, err)
}

// aboutTheObject says that a status may be another one for another object: a client's error, but none of access, of a missing bucket, of time, or of how much there is to do.
func aboutTheObject(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusProxyAuthRequired, http.StatusRequestTimeout, http.StatusConflict,
		http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status/100 == 4
}

func (u *uploader) clientFor(t ticket.Ticket) (*http.Client, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.client != nil && u.ca == t.CABundle && u.proxy == t.Proxy {
		return u.client, nil
	}
	client, err := newHTTPClient(t.CABundle, t.Proxy, "")
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	u.closeIdle()
	u.client, u.ca, u.proxy = client, t.CABundle, t.Proxy
	return client, nil
}

// closeIdle ends the connections that are kept for later.
func (u *uploader) closeIdle() {
	if u.client != nil {
		u.client.CloseIdleConnections()
	}
}

// withRetryAfter adds what the server says about when to come back.
func withRetryAfter(resp *http.Response, err error) error {
	seconds, parseErr := strconv.Atoi(resp.Header.Get("Retry-After"))
	if parseErr != nil || seconds <= 0 {
		return err
	}
	return &retryAfter{err, min(time.Duration(seconds)*time.Second, time.Minute)}
}
