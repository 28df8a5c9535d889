package ticket

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
)

func testTicket(url string) Ticket {
	issued := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
	return Ticket{
		URL: url, Prefix: "logs/v1/ci/run/uid/", MaxBytes: 1 << 20, Issued: issued, Expires: issued.Add(time.Hour),
		Fields: map[string]string{"policy": "eyJ9==", "x-amz-signature": "abc\r\ndef", "x-amz-algorithm": "AWS4-HMAC-SHA256", "key": "someone else's"},
	}
}

// TestRequest sends the form to a server that reads it with Go's own parser.
func TestRequest(t *testing.T) {
	for name, body := range map[string][]byte{
		"empty":              {},
		"text":               []byte("hello\n"),
		"binary":             {0, 1, 0xff, '\r', '\n', '-', '-'},
		"like a boundary":    []byte("\r\n--boundary--\r\n"),
		"larger than memory": bytes.Repeat([]byte("0123456789abcdef"), 1<<18),
	} {
		t.Run(name, func(t *testing.T) {
			type upload struct {
				order  []string
				fields map[string]string
				file   []byte
				length int64
			}
			var got upload
			var parseErr error
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got = upload{fields: map[string]string{}, length: r.ContentLength}
				form, err := r.MultipartReader()
				for parseErr = err; parseErr == nil; {
					part, err := form.NextPart()
					if err == io.EOF {
						break
					}
					if parseErr = err; err != nil {
						break
					}
					b, err := io.ReadAll(part)
					parseErr = err
					got.order = append(got.order, part.FormName())
					if part.FormName() == "file" {
						got.file = b
					} else {
						got.fields[part.FormName()] = string(b)
					}
				}
				w.WriteHeader(http.StatusNoContent)
			}))
			defer server.Close()
			ticket := testTicket(server.URL + "/bucket")
			req, err := ticket.NewRequest(t.Context(), "step-a/name.log.zst", body)
			if err != nil {
				t.Fatal(err)
			}
			if req.Method != http.MethodPost || req.URL.String() != ticket.URL {
				t.Errorf("%s %s", req.Method, req.URL)
			}
			resp, err := server.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if parseErr != nil {
				t.Fatal(parseErr)
			}
			want := maps.Clone(ticket.Fields)
			want["key"] = "logs/v1/ci/run/uid/step-a/name.log.zst"
			if !maps.Equal(got.fields, want) {
				t.Errorf("fields %q, want %q", got.fields, want)
			}
			if !bytes.Equal(got.file, body) {
				t.Errorf("file of %d bytes, want %d", len(got.file), len(body))
			}
			if n := len(got.order); n != len(want)+1 || got.order[n-1] != "file" {
				t.Errorf("order %q: S3 ignores what is behind the file", got.order)
			}
			if got.length != req.ContentLength || got.length <= int64(len(body)) {
				t.Errorf("Content-Length %d for %d bytes", got.length, len(body))
			}
		})
	}
}

// TestRequestBodyAgain: the transport sends the body again when a kept connection turns out to be closed.
func TestRequestBodyAgain(t *testing.T) {
	req, err := testTicket("http://localhost:1").NewRequest(t.Context(), "n", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	first, err := io.ReadAll(req.Body)
	if err != nil || int64(len(first)) != req.ContentLength {
		t.Fatalf("%d bytes, %v, Content-Length is %d", len(first), err, req.ContentLength)
	}
	for range 2 {
		again, err := req.GetBody()
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(again); err != nil || !bytes.Equal(b, first) {
			t.Errorf("%d bytes, %v, want the same %d", len(b), err, len(first))
		}
	}
}

func TestDecode(t *testing.T) {
	good := testTicket("https://s3.example.com/bucket")
	for name, tc := range map[string]struct {
		change func(*Ticket)
		want   string // a part of the error, "" for none
	}{
		"good":            {func(*Ticket) {}, ""},
		"plain HTTP":      {func(t *Ticket) { t.URL = "http://minio:9000/bucket" }, ""},
		"with CA":         {func(t *Ticket) { t.CABundle = "PEM" }, ""},
		"no URL":          {func(t *Ticket) { t.URL = "" }, "url"},
		"other scheme":    {func(t *Ticket) { t.URL = "file:///etc/passwd" }, "url"},
		"no host":         {func(t *Ticket) { t.URL = "https:///bucket" }, "url"},
		"broken URL":      {func(t *Ticket) { t.URL = "http://[::1" }, "url"},
		"no fields":       {func(t *Ticket) { t.Fields = nil }, "fields"},
		"no prefix":       {func(t *Ticket) { t.Prefix = "" }, "prefix"},
		"no final slash":  {func(t *Ticket) { t.Prefix = "logs/a" }, "prefix"},
		"no size":         {func(t *Ticket) { t.MaxBytes = 0 }, "maxBytes"},
		"expires at once": {func(t *Ticket) { t.Expires = t.Issued }, "expires"},
	} {
		t.Run(name, func(t *testing.T) {
			ticket := good
			tc.change(&ticket)
			b, err := json.Marshal(ticket)
			if err != nil {
				t.Fatal(err)
			}
			back, err := Decode(b)
			if tc.want == "" && (err != nil || !reflect.DeepEqual(back, ticket)) {
				t.Errorf("%+v, %v, want %+v", back, err, ticket)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	if _, err := Decode([]byte("<html>")); err == nil {
		t.Error("no JSON: no error")
	}
}

// FuzzDecode: whatever Decode accepts can be written, read again, and used for a request.
func FuzzDecode(f *testing.F) {
	b, err := json.Marshal(testTicket("https://s3.example.com/bucket"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"url":"http://x","fields":{"a":"b"},"prefix":"/","maxBytes":1,"expires":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ticket, err := Decode(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(ticket)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(again)
		if err != nil || fmt.Sprint(back) != fmt.Sprint(ticket) {
			t.Fatalf("%+v, %v, want %+v", back, err, ticket)
		}
		req, err := ticket.NewRequest(t.Context(), "name", []byte("body"))
		if err != nil {
			t.Fatal(err)
		}
		if sent, err := io.ReadAll(req.Body); err != nil || int64(len(sent)) != req.ContentLength {
			t.Fatalf("%d bytes, %v, Content-Length is %d", len(sent), err, req.ContentLength)
		}
	})
}

// FuzzRequestName: whatever an object is called, the form says that name below the prefix and nothing else, to whoever reads it.
func FuzzRequestName(f *testing.F) {
	f.Add("step-a/name.log.zst")
	f.Add("a\"; name=\"key")
	f.Add("a\r\n--boundary\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nother")
	f.Fuzz(func(t *testing.T, name string) {
		ticket := testTicket("https://s3.example.com/bucket")
		req, err := ticket.NewRequest(t.Context(), name, []byte("body"))
		if err != nil {
			t.Fatal(err)
		}
		form, err := req.MultipartReader()
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		for {
			part, err := form.NextPart()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(part)
			if err != nil {
				t.Fatal(err)
			}
			order = append(order, part.FormName())
			if part.FormName() == "key" && string(b) != ticket.Prefix+name {
				t.Errorf("the form's key is %q", b)
			}
		}
		if len(order) != len(ticket.Fields)+1 || order[len(order)-1] != "file" {
			t.Errorf("the form's fields are %q", order)
		}
	})
}
