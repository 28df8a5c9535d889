//go:build linux

package hostile

import (
	"context"
	"encoding/xml"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// mass is so many objects below a prefix that to store them would take too long for a test. The keys
// are in the order of their numbers.
type mass struct {
	n    int
	key  func(i int) string
	size int64 // of each, in the listing
	body func(i int) []byte
}

// front stands before the store. It answers for what a tenant would have stored, as the store would,
// and sends on all else.
type front struct {
	bucket string
	next   http.Handler

	mu     sync.Mutex
	masses map[string]mass   // by prefix, which is a run's
	swaps  map[string][]byte // by key: what was stored since the object was listed
	stalls map[string]bool   // by key: no body comes
}

// newFront starts one before a store, and returns the settings to reach it.
func newFront(t *testing.T, store objectstore.Config) (*front, objectstore.Config) {
	t.Helper()
	to, err := url.Parse(store.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{
		bucket: store.Bucket, masses: map[string]mass{}, swaps: map[string][]byte{},
		stalls: map[string]bool{},
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
	f.next = &httputil.ReverseProxy{
		Transport: transport,
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // of who went away
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host // it is signed
		},
	}
	server := httptest.NewServer(f)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		transport.CloseIdleConnections()
	})
	store.Endpoint = server.URL
	return f, store
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key, ok := strings.CutPrefix(r.URL.Path, "/"+f.bucket+"/")
	query := r.URL.Query()
	f.mu.Lock()
	swapped, stalled := f.swaps[key], f.stalls[key]
	var in mass
	for prefix, m := range f.masses {
		if strings.HasPrefix(key, prefix) || strings.HasPrefix(query.Get("prefix"), prefix) {
			in = m
		}
	}
	f.mu.Unlock()
	switch {
	case r.Method != http.MethodGet:
	case query.Get("list-type") != "" && in.n > 0:
		in.list(w, query)
		return
	case !ok:
	case stalled:
		stall(w, r.Context())
		return
	case swapped != nil:
		_, _ = w.Write(swapped) // who asks may be gone
		return
	case in.n > 0:
		if i := in.find(key); i < in.n && in.key(i) == key {
			_, _ = w.Write(in.body(i)) // likewise
			return
		}
	}
	f.next.ServeHTTP(w, r)
}

// stall begins an answer and sends nothing of it.
func stall(w http.ResponseWriter, ctx context.Context) {
	w.Header().Set("Content-Length", "100")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // who asks may be gone
	<-ctx.Done()
	panic(http.ErrAbortHandler)
}

// find is the number of the first key that is not before one.
func (m mass) find(key string) int {
	return sort.Search(m.n, func(i int) bool { return m.key(i) >= key })
}

// list answers with a page of a listing (ListObjectsV2).
func (m mass) list(w http.ResponseWriter, query url.Values) {
	type object struct {
		Key, LastModified, ETag, StorageClass string
		Size                                  int64
	}
	page := struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		EncodingType          string
		IsTruncated           bool
		NextContinuationToken string `xml:",omitempty"`
		KeyCount              int
		Contents              []object
	}{EncodingType: "url"}
	prefix, after := query.Get("prefix"), query.Get("start-after")
	i := m.find(prefix)
	if after >= prefix {
		i = m.find(after + "\x00")
	}
	if n, err := strconv.Atoi(query.Get("continuation-token")); err == nil {
		i = n
	}
	most, err := strconv.Atoi(query.Get("max-keys"))
	if err != nil {
		most = 1000
	}
	at := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
	for ; i < m.n; i++ {
		key := m.key(i)
		if !strings.HasPrefix(key, prefix) {
			break
		}
		if len(page.Contents) == most {
			page.IsTruncated, page.NextContinuationToken = true, strconv.Itoa(i)
			break
		}
		page.Contents = append(page.Contents,
			object{key, at, `"0"`, "STANDARD", m.size}) // no key here needs to be encoded
	}
	page.KeyCount = len(page.Contents)
	w.Header().Set("Content-Type", "application/xml")
	if err := xml.NewEncoder(w).Encode(page); err != nil {
		panic(http.ErrAbortHandler) // who asks is gone
	}
}

// put has the front answer for many objects of a run.
func (f *front) put(prefix string, m mass) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.masses[prefix] = m
}

// swap has an object be another one when it is read than when it was listed.
func (f *front) swap(key string, body []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.swaps[key] = body
}

// stall has no body of an object ever come.
func (f *front) stall(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stalls[key] = true
}

// environment are the variables that lead a process to a store.
func environment(c objectstore.Config) []string {
	return []string{
		"SHIPLOG_S3_BUCKET=" + c.Bucket, "SHIPLOG_S3_ENDPOINT=" + c.Endpoint,
		"SHIPLOG_S3_PREFIX=" + c.Prefix, "SHIPLOG_S3_REGION=" + c.Region, fmt.Sprintf("SHIPLOG_S3_PATH_STYLE=%v", c.PathStyle),
		"AWS_ACCESS_KEY_ID=" + c.Credentials.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY=" + string(c.Credentials.SecretAccessKey),
	}
}
