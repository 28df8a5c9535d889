// Package ticket owns the upload ticket: what the ticket service hands to a shipper, and how a shipper uploads with it. A ticket is an S3 POST
// policy, the signed fields of a form: it lets its holder write objects under one prefix, up to a size, until a time, and nothing else.
package ticket

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Path is where the ticket service answers POST requests whose Authorization header bears the pod's token.
const Path = "/v1/tickets"

const (
	// MaxCABundle is the most bytes of certificates that a ticket carries. Debian's bundle, with
	// every CA that browsers trust, is some 220 KB.
	MaxCABundle = 512 << 10
	// MaxEncoded is the most bytes of an encoded ticket: certificates, in which JSON writes a new
	// line with two, and room for the rest.
	MaxEncoded = 2*MaxCABundle + 256<<10
)

// Ticket is the JSON answer of the ticket service.
type Ticket struct {
	// URL is where to post the form.
	URL string `json:"url"`
	// Fields are the signed form fields. They are a secret: whoever holds them can write under Prefix.
	Fields map[string]string `json:"fields"`
	// Prefix is the full object prefix, with its final slash, that the holder may write under.
	Prefix string `json:"prefix"`
	// MaxBytes is the largest object.
	MaxBytes int64 `json:"maxBytes"`
	// Issued and Expires bound the time in which the ticket is good.
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	// CABundle holds PEM certificates that sign the store's certificate; empty means the system's roots.
	CABundle string `json:"caBundle,omitempty"`
	// CAURL is where, at the store and for as long as the ticket lives, the certificates can be had
	// that sign the ticket service's certificate now. Empty means nowhere.
	CAURL string `json:"caURL,omitempty"`
	// Proxy is the HTTP proxy through which the store is reached, such as http://proxy:3128. Empty
	// means that it is reached directly.
	Proxy string `json:"proxy,omitempty"`
}

// Refusal is the JSON body of the ticket service's error answers.
type Refusal struct {
	Reason  string `json:"reason"`  // a named value
	Message string `json:"message"` // for a person
}

// Decode reads a ticket and checks that it is whole.
func Decode(b []byte) (Ticket, error) {
	var t Ticket
	if len(b) > MaxEncoded {
		return t, fmt.Errorf("decode ticket: it is longer than %d bytes", MaxEncoded)
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("decode ticket: %w", err)
	}
	return t, t.Validate()
}

// Validate says whether the ticket is whole. It does not look at the time.
func (t Ticket) Validate() error {
	switch {
	case !isAddress(t.URL):
		return fmt.Errorf("ticket: url %q is not an http(s) address", t.URL)
	case t.CAURL != "" && !isAddress(t.CAURL):
		return errors.New("ticket: caURL is not an http(s) address")
	case t.Proxy != "" && !IsProxy(t.Proxy):
		return errors.New("ticket: proxy is not an http(s) address without a user")
	case len(t.Fields) == 0:
		return errors.New("ticket: no form fields")
	case !strings.HasSuffix(t.Prefix, "/"):
		return fmt.Errorf("ticket: prefix %q does not end with a slash", t.Prefix)
	case t.MaxBytes <= 0:
		return fmt.Errorf("ticket: maxBytes %d is not positive", t.MaxBytes)
	case len(t.CABundle) > MaxCABundle:
		return fmt.Errorf("ticket: caBundle has %d bytes, more than %d", len(t.CABundle), MaxCABundle)
	case !t.Expires.After(t.Issued):
		return fmt.Errorf("ticket: expires %s, not after it was issued at %s", t.Expires, t.Issued)
	}
	return nil
}

// IsProxy says whether a text is the address of a proxy. One with a password has no place in a
// ticket, which pods of all tenants get.
func IsProxy(text string) bool {
	u, err := url.Parse(text)
	return err == nil && isAddress(text) && u.User == nil
}

func isAddress(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// NewRequest makes the request that uploads body as the object Prefix+name. The request's body can be sent again (GetBody is set), and its length is
// known, since S3 refuses a form upload of unknown length. The answer to a successful upload is 204 or 200.
func (t Ticket) NewRequest(ctx context.Context, name string, body []byte) (*http.Request, error) {
	var head bytes.Buffer
	form := multipart.NewWriter(&head)
	for _, k := range slices.Sorted(maps.Keys(t.Fields)) {
		if k == "key" {
			continue
		}
		if err := form.WriteField(k, t.Fields[k]); err != nil {
			return nil, fmt.Errorf("upload form: %w", err)
		}
	}
	if err := form.WriteField("key", t.Prefix+name); err != nil {
		return nil, fmt.Errorf("upload form: %w", err)
	}
	// S3 ignores every field behind the file, so it is the last.
	if _, err := form.CreateFormFile("file", "file"); err != nil {
		return nil, fmt.Errorf("upload form: %w", err)
	}
	tail := []byte("\r\n--" + form.Boundary() + "--\r\n")

	// The body is not copied behind the form: a segment is the largest thing that the shipper holds.
	open := func() io.ReadCloser {
		return io.NopCloser(io.MultiReader(bytes.NewReader(head.Bytes()), bytes.NewReader(body), bytes.NewReader(tail)))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.URL, open())
	if err != nil {
		return nil, fmt.Errorf("upload request: %w", err)
	}
	req.GetBody = func() (io.ReadCloser, error) { return open(), nil }
	req.ContentLength = int64(head.Len()) + int64(len(body)) + int64(len(tail))
	req.Header.Set("Content-Type", form.FormDataContentType())
	return req, nil
}
