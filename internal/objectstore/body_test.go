package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// stalling answers with headers and the first bytes, and then nothing until the client goes.
func stalling(_ int, w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "100")
	_, _ = w.Write([]byte("<"))
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// TestStalledBody: neither an object nor a listing is waited for when nothing of it comes.
func TestStalledBody(t *testing.T) {
	s := serve(t, Config{}, stalling)
	s.Store.answers.stall = 10 * time.Millisecond
	for name, read := range map[string]func() error{
		"object": func() error {
			r, err := s.Get(t.Context(), "v1/x")
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.ReadAll(r)
			return err
		},
		"list": func() error {
			for _, err := range s.List(t.Context(), "v1/", "", "", 0) {
				return err
			}
			return nil
		},
	} {
		if err := read(); !errors.Is(err, errStalled) {
			t.Errorf("%s: error %v, want %v", name, err, errStalled)
		}
	}
}

// TestSlowReader: who reads may take any time, and the end of the caller's context is not taken for
// the store's fault.
func TestSlowReader(t *testing.T) {
	read := make(chan struct{})
	s := serve(t, Config{}, func(_ int, w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("ab"))
		_ = http.NewResponseController(w).Flush()
		<-read
	})
	const stall = 50 * time.Millisecond
	s.Store.answers.stall = stall
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := s.Get(ctx, "v1/x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer close(read)
	one := make([]byte, 1)
	if _, err := r.Read(one); err != nil {
		t.Fatal(err)
	}
	<-time.After(3 * stall)
	if _, err := r.Read(one); err != nil {
		t.Fatalf("after a pause of the reader: %v", err)
	}
	cancel()
	if _, err := r.Read(one); !errors.Is(err, context.Canceled) || errors.Is(err, errStalled) {
		t.Errorf("after the context's end: %v", err)
	}
}

const listing = `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>logs</Name>%s<IsTruncated>false</IsTruncated>%s</ListBucketResult>`

// TestListHoldsAnyKey: a key that XML cannot hold is listed or stands apart, and the others are
// there, whether or not the store encodes keys as it is asked to.
func TestListHoldsAnyKey(t *testing.T) {
	for _, c := range []struct{ name, encoding, keys, want string }{
		{"encoded", "<EncodingType>url</EncodingType>", "v1/%01 v1/a%2Bb+c v1/a/b", "v1/\x01|v1/a+b c|v1/a/b"},
		{"encoded in part", "<EncodingType>url</EncodingType>", "v1/%zz v1/b", "v1/%zz|v1/b"},
		{"raw control characters", "", "v1/\x01 v1/\x1bb v1/c+%2f", "v1/\ufffd|v1/\ufffdb|v1/c+%2f"},
		{"references", "", "v1/&#1; v1/&#x1B;b v1/&#xD800;c v1/d&amp;&#65;", "v1/\ufffd|v1/\ufffdb|v1/\ufffdc|v1/d&A"},
		{"no UTF-8", "", "v1/\xff\xc3 v1/ä", "v1/\ufffd\ufffd|v1/ä"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked string
			s := serve(t, Config{}, func(_ int, w http.ResponseWriter, r *http.Request) {
				asked = r.URL.Query().Get("encoding-type")
				var contents strings.Builder
				for key := range strings.SplitSeq(c.keys, " ") {
					fmt.Fprintf(&contents, "<Contents><Key>%s</Key><Size>1</Size></Contents>", key)
				}
				fmt.Fprintf(w, listing, c.encoding, contents.String())
			})
			var got []string
			for e, err := range s.List(t.Context(), "v1/", "", "", 0) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, e.Key)
			}
			if strings.Join(got, "|") != c.want || asked != "url" {
				t.Errorf("listed %q, want %q; asked for the encoding %q", got, c.want, asked)
			}
		})
	}
}

// FuzzPlainXML: what XML can hold stays as it is, however it is cut into reads.
func FuzzPlainXML(f *testing.F) {
	f.Add("<a>b &amp; &#x41; ä 𝟘</a>")
	f.Add("&#1;&#x1;&#;&#xffffffff;&&;&#00000000000000000000001;\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		read := func(r io.Reader) string {
			b, err := io.ReadAll(&plainXML{ReadCloser: io.NopCloser(r)})
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		whole := read(strings.NewReader(s))
		if cut := read(iotest.OneByteReader(strings.NewReader(s))); cut != whole {
			t.Errorf("%q at once, %q byte by byte", whole, cut)
		}
		if again := read(strings.NewReader(whole)); again != whole {
			t.Errorf("%q became %q", whole, again)
		}
		for _, r := range whole {
			if !inXML(r) {
				t.Errorf("%q holds %q", whole, r)
			}
		}
	})
}
