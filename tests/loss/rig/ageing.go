//go:build linux

package rig

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"testing"
	"time"
)

var lastModified = regexp.MustCompile(`<LastModified>([^<]+)</LastModified>`)

// newAgeing starts a proxy through which all objects in a LIST are older than they are: as a reader sees them later. A log is partial only after three minutes of silence, which a test does not
// wait for.
func newAgeing(t testing.TB, target string, by time.Duration) string {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(r *http.Response) error {
			if !r.Request.URL.Query().Has("list-type") {
				return nil
			}
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			b = lastModified.ReplaceAllFunc(b, func(m []byte) []byte {
				at, err := time.Parse(time.RFC3339, string(lastModified.FindSubmatch(m)[1]))
				if err != nil {
					t.Errorf("a LIST has the time %s", m)
				}
				return []byte("<LastModified>" + at.Add(-by).UTC().Format("2006-01-02T15:04:05.000Z") + "</LastModified>")
			})
			r.Body = io.NopCloser(bytes.NewReader(b))
			r.ContentLength = int64(len(b))
			r.Header.Set("Content-Length", strconv.Itoa(len(b)))
			return nil
		},
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return server.URL
}
