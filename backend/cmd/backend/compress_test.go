package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const plainText = "a line of a log, and another, and another\n"

// answers are of the kinds that there are.
func answers(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	switch r.URL.Path {
	case "/file", "/download":
		if r.URL.Path == "/download" {
			h.Set("Content-Disposition", "attachment")
		}
		h.Set("ETag", `"digest"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat(plainText, 1000)))
	case "/error":
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, plainText)
	case "/broken":
		_, _ = io.WriteString(w, strings.Repeat(plainText, 1000))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

func fetch(t *testing.T, client *http.Client, address string, header ...string) (*http.Response, []byte, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, b, err
}

func TestCompressed(t *testing.T) {
	server := httptest.NewServer(compressed(http.HandlerFunc(answers)))
	defer server.Close()
	client := server.Client()
	client.Transport.(*http.Transport).DisableCompression = true
	whole := strings.Repeat(plainText, 1000)
	for _, c := range []struct {
		name, path string
		header     []string
		status     int
		coding     string
		tag, want  string
	}{
		{"who does not ask", "/file", nil, 200, "", `"digest"`, whole},
		{"gzip", "/file", []string{"Accept-Encoding", "gzip"}, 200, "gzip", `"digest-gzip"`, whole},
		{"a browser", "/file", []string{"Accept-Encoding", "gzip, deflate, br, zstd"}, 200, "zstd", `"digest-zstd"`, whole},
		{"who prefers gzip", "/file", []string{"Accept-Encoding", "zstd;q=0.5, gzip; q=0.9"}, 200, "gzip", `"digest-gzip"`, whole},
		{"who refuses it", "/file", []string{"Accept-Encoding", "gzip;q=0, zstd;q=0"}, 200, "", `"digest"`, whole},
		{"another coding", "/file", []string{"Accept-Encoding", "br"}, 200, "", `"digest"`, whole},
		{"a range", "/file", []string{"Accept-Encoding", "gzip", "Range", "bytes=2-5"}, 206, "", `"digest"`, "line"},
		{"a download", "/download", []string{"Accept-Encoding", "gzip"}, 200, "", `"digest"`, whole},
		{"what is known", "/file", []string{"Accept-Encoding", "zstd", "If-None-Match", `"digest-zstd"`}, 304, "", `"digest-zstd"`, ""},
		{"an error", "/error", []string{"Accept-Encoding", "gzip"}, 404, "", "", plainText},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, b, err := fetch(t, client, server.URL+c.path, c.header...)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != c.status || res.Header.Get("Content-Encoding") != c.coding || res.Header.Get("ETag") != c.tag || res.Header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("%d, %v", res.StatusCode, res.Header)
			}
			if c.coding != "" && (res.ContentLength >= 0 && res.ContentLength != int64(len(b)) || res.Header.Get("Accept-Ranges") != "" || len(b) > len(whole)/10) {
				t.Errorf("%d bytes, %v", len(b), res.Header)
			}
			if c.coding == "" && res.StatusCode == 200 && res.ContentLength != int64(len(b)) {
				t.Errorf("%d bytes, %v", len(b), res.Header)
			}
			var r io.Reader = strings.NewReader(string(b))
			switch c.coding {
			case "gzip":
				r, err = gzip.NewReader(r)
			case "zstd":
				var d *zstd.Decoder
				if d, err = zstd.NewReader(r); err == nil {
					defer d.Close()
				}
				r = d
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || string(got) != c.want {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	t.Run("what is broken off", func(t *testing.T) {
		if _, _, err := fetch(t, client, server.URL+"/broken", "Accept-Encoding", "gzip"); err == nil {
			t.Error("it looks whole")
		}
	})
}

// TestCompressedFollow: what is sent arrives before the answer ends, the headers before there is
// anything, also behind a proxy.
func TestCompressedFollow(t *testing.T) {
	next := make(chan string)
	server := httptest.NewServer(compressed(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		control := http.NewResponseController(w)
		w.WriteHeader(http.StatusOK)
		_ = control.Flush()
		for line := range next {
			_, _ = io.WriteString(w, line+"\n")
			_ = control.Flush()
		}
	})))
	defer server.Close()
	address, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(address)
	proxy.Transport = server.Client().Transport
	front := httptest.NewServer(proxy)
	defer front.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, front.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := front.Client().Do(r) // returns with the headers; Go's client asks for gzip by itself
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if !res.Uncompressed {
		t.Errorf("it is not compressed: %v", res.Header)
	}
	lines := bufio.NewReader(res.Body)
	for i := range 3 {
		line := fmt.Sprint("line ", i)
		next <- line
		if got, err := lines.ReadString('\n'); err != nil || got != line+"\n" {
			t.Errorf("%q, %v", got, err)
		}
	}
	close(next)
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

// TestCompressedAtOnce: those for whom there is no room are answered all the same.
func TestCompressedAtOnce(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	h := compressed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			inside <- struct{}{}
			<-leave
			return
		}
		answers(w, r)
	}))
	ask := func(path string) *httptest.ResponseRecorder {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Accept-Encoding", "gzip")
		h.ServeHTTP(w, r)
		return w
	}
	done := make(chan struct{}, compressedAtOnce)
	for range compressedAtOnce {
		go func() { ask("/slow"); done <- struct{}{} }()
		<-inside
	}
	if w := ask("/file"); w.Code != 200 || w.Header().Get("Content-Encoding") != "" || w.Body.Len() != 1000*len(plainText) {
		t.Errorf("%d, %v, %d bytes", w.Code, w.Header(), w.Body.Len())
	}
	close(leave)
	for range compressedAtOnce {
		<-done
	}
	if w := ask("/file"); w.Header().Get("Content-Encoding") != "gzip" {
		t.Errorf("when they have left: %v", w.Header())
	}
}

// BenchmarkCompressedAtOnce measures the memory of as many answers as are compressed at the same
// time, in bytes for each.
func BenchmarkCompressedAtOnce(b *testing.B) {
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	text := []byte(strings.Repeat(plainText, 10_000))
	for _, coding := range []string{"zstd", "gzip"} {
		b.Run(coding, func(b *testing.B) {
			var held int64
			for b.Loop() {
				before := heap()
				all := make([]compressing, compressedAtOnce)
				for i := range all {
					w := httptest.NewRecorder()
					w.Body = nil // what is sent is held by nobody
					w.Header().Set("Content-Type", "text/plain")
					all[i] = compressing{ResponseWriter: w, coding: coding}
					if _, err := all[i].Write(text); err != nil {
						b.Fatal(err)
					}
				}
				held = max(held, heap()-before)
				for i := range all {
					if err := all[i].encoder.Close(); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(held)/compressedAtOnce, "B/answer")
		})
	}
}
