package objectstore

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// server is a store that answers as the handler says, for what real ones do only when they are in trouble.
type server struct {
	*Store
	mu       sync.Mutex
	requests []*http.Request
	bodies   []string
}

func serve(t *testing.T, cfg Config, answer func(n int, w http.ResponseWriter, r *http.Request)) *server {
	t.Helper()
	clearEnv(t)
	s := &server{}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.requests, s.bodies = append(s.requests, r), append(s.bodies, string(b))
		n := len(s.requests)
		s.mu.Unlock()
		answer(n, w, r)
	}))
	t.Cleanup(h.Close)
	cfg.Bucket, cfg.Endpoint, cfg.PathStyle = "logs", h.URL, true
	cfg.Credentials = &Credentials{AccessKeyID: "AKIA", SecretAccessKey: "secret"}
	var err error
	if s.Store, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func s3Error(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>said the store</Message></Error>", code)
}

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		name     string
		answer   func(n int, w http.ResponseWriter)
		requests int
		ok       bool
	}{
		{"busy at first", func(n int, w http.ResponseWriter) {
			if n < 3 {
				s3Error(w, 503, "SlowDown")
			}
		}, 3, true},
		{"down for good", func(_ int, w http.ResponseWriter) { s3Error(w, 500, "InternalError") }, maxAttempts, false},
		{"not allowed", func(_ int, w http.ResponseWriter) { s3Error(w, 403, "AccessDenied") }, 1, false},
		{"no bucket", func(_ int, w http.ResponseWriter) { s3Error(w, 404, "NoSuchBucket") }, 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, Config{Prefix: "p"}, func(n int, w http.ResponseWriter, _ *http.Request) { c.answer(n, w) })
			err := s.Put(t.Context(), "key", []byte("body"))
			if (err == nil) != c.ok || len(s.requests) != c.requests {
				t.Fatalf("error %v after %d requests, want success: %v after %d", err, len(s.requests), c.ok, c.requests)
			}
			for i, b := range s.bodies {
				if b != "body" {
					t.Errorf("request %d had the body %q", i+1, b)
				}
			}
			if err != nil && !(strings.Contains(err.Error(), `"p/key"`) && strings.Contains(err.Error(), `"logs"`)) {
				t.Errorf("error names neither key nor bucket: %v", err)
			}
		})
	}
}

// The body must go out as it is: with the SDK's checksum trailer, some stores keep the framing as content.
func TestPutRequest(t *testing.T) {
	s := serve(t, Config{SSE: SSEKMS, KMSKeyID: "key-1", StorageClass: "STANDARD_IA", Tags: map[string]string{"b": "2 3", "a": "1"}}, func(int, http.ResponseWriter, *http.Request) {})
	if err := s.Put(t.Context(), "v1/x", []byte("body")); err != nil {
		t.Fatal(err)
	}
	r := s.requests[0]
	if r.Method != http.MethodPut || r.URL.Path != "/logs/v1/x" || r.ContentLength != 4 || s.bodies[0] != "body" {
		t.Errorf("%s %s with %d bytes %q", r.Method, r.URL.Path, r.ContentLength, s.bodies[0])
	}
	for header, want := range map[string]string{
		"Content-Encoding": "", "X-Amz-Trailer": "", "X-Amz-Sdk-Checksum-Algorithm": "",
		"X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "key-1", "X-Amz-Storage-Class": "STANDARD_IA", "X-Amz-Tagging": "a=1&b=2+3",
	} {
		if got := r.Header.Get(header); got != want {
			t.Errorf("header %s is %q, want %q", header, got, want)
		}
	}
}

func TestGetBrokenOff(t *testing.T) {
	s := serve(t, Config{}, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("only this"))
	})
	r, err := s.Get(t.Context(), "v1/x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "v1/x") {
		t.Errorf("read %q and error %v, want io.ErrUnexpectedEOF with the key", b, err)
	}
}

func TestGetRangeIgnored(t *testing.T) {
	s := serve(t, Config{}, func(_ int, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("the whole object")) })
	if r, err := s.GetRange(t.Context(), "v1/x", 4, 5); err == nil {
		b, _ := io.ReadAll(r)
		t.Errorf("no error, read %q", b)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	s := serve(t, Config{}, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "/elsewhere")
		s3Error(w, http.StatusMovedPermanently, "PermanentRedirect")
	})
	_, err := s.Get(t.Context(), "v1/x")
	if err == nil || !strings.Contains(err.Error(), EnvRegion) || len(s.requests) != 1 {
		t.Errorf("error %v after %d requests, want one that says to set %s after 1", err, len(s.requests), EnvRegion)
	}
}

func TestListWithoutContinuation(t *testing.T) {
	s := serve(t, Config{}, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, `<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>v1/a</Key><Size>1</Size></Contents></ListBucketResult>`)
	})
	var keys []string
	var last error
	for e, err := range s.List(t.Context(), "v1/", "", "", 0) {
		if last = err; err == nil {
			keys = append(keys, e.Key)
		}
	}
	if last == nil || !slices.Equal(keys, []string{"v1/a"}) || len(s.requests) != 1 {
		t.Errorf("listed %q, error %v, %d requests; want one key, then an error", keys, last, len(s.requests))
	}
}

func TestRegion(t *testing.T) {
	for _, c := range []struct {
		name, region, env, endpoint, want string
	}{
		{name: "ours", region: "eu-1", env: "us-2", want: "eu-1"},
		{name: "the SDK's", env: "us-2", want: "us-2"},
		{name: "custom endpoint without", endpoint: "http://127.0.0.1:1", want: "us-east-1"},
		{name: "AWS without"},
	} {
		t.Run(c.name, func(t *testing.T) {
			clearEnv(t)
			t.Setenv("AWS_REGION", c.env)
			s, err := New(t.Context(), Config{Bucket: "logs", Region: c.region, Endpoint: c.endpoint})
			if c.want == "" {
				if err == nil || !strings.Contains(err.Error(), EnvRegion) {
					t.Fatalf("error %v, want one that says to set %s", err, EnvRegion)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := s.client.Options().Region; got != c.want {
				t.Errorf("region %q, want %q", got, c.want)
			}
		})
	}
}

// The servers of the conformance suite do neither encryption nor storage classes, so what is signed is read here.
func TestSignUpload(t *testing.T) {
	s := serve(t, Config{Prefix: "p", SSE: SSEKMS, KMSKeyID: "key-1", StorageClass: "STANDARD_IA", Tags: map[string]string{"b": "2", "a": "1"}}, func(int, http.ResponseWriter, *http.Request) {})
	tk, err := s.SignUpload(t.Context(), "v1/x/", 1000, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	fixed := map[string]string{
		"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "key-1", "x-amz-storage-class": "STANDARD_IA",
		"tagging": "<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag><Tag><Key>b</Key><Value>2</Value></Tag></TagSet></Tagging>",
	}
	policy := decodePolicy(t, tk.Fields["policy"])
	if got, err := time.Parse(time.RFC3339, policy.Expiration); err != nil || !got.Equal(tk.Expires) {
		t.Errorf("the policy ends at %s, the ticket at %s", policy.Expiration, tk.Expires)
	}
	want := []any{[]any{"starts-with", "$key", "p/v1/x/"}, []any{"content-length-range", 0.0, 1000.0}, map[string]any{"bucket": "logs"}}
	for k, v := range fixed {
		want = append(want, map[string]any{k: v})
		if tk.Fields[k] != v {
			t.Errorf("field %s is %q, want %q", k, tk.Fields[k], v)
		}
	}
	for _, w := range want {
		if !slices.ContainsFunc(policy.Conditions, func(c any) bool { return reflect.DeepEqual(c, w) }) {
			t.Errorf("the policy lacks the condition %v; it has %v", w, policy.Conditions)
		}
	}
	// S3 refuses a form with a field that no condition speaks of.
	for field := range tk.Fields {
		if field != "policy" && field != "X-Amz-Signature" && !slices.ContainsFunc(policy.Conditions, func(c any) bool { m, ok := c.(map[string]any); return ok && m[field] != nil }) {
			t.Errorf("no condition for field %s", field)
		}
	}
	if len(s.requests) != 0 {
		t.Errorf("signing sent %d requests", len(s.requests))
	}
}

func TestSignUploadWithExpiringCredentials(t *testing.T) {
	for _, c := range []struct {
		name     string
		left     time.Duration
		lifetime time.Duration // of the ticket; 0: refused
	}{
		{"after the ticket", 2 * time.Hour, time.Hour},
		{"before the ticket", 30 * time.Minute, 30 * time.Minute},
		{"already", -time.Minute, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, Config{}, func(int, http.ResponseWriter, *http.Request) {})
			expires := time.Now().UTC().Truncate(time.Second).Add(c.left)
			s.credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: "ASIA", SecretAccessKey: "s", SessionToken: "t", CanExpire: true, Expires: expires}, nil
			})
			tk, err := s.SignUpload(t.Context(), "v1/x/", 1000, time.Hour)
			if c.lifetime == 0 {
				if !errors.Is(err, ErrCredentialsExpire) {
					t.Fatalf("error %v, want ErrCredentialsExpire", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			policyEnd, err := time.Parse(time.RFC3339, decodePolicy(t, tk.Fields["policy"]).Expiration)
			if err != nil || !policyEnd.Equal(tk.Expires) || tk.Expires.After(expires) {
				t.Errorf("ticket until %s, policy until %s, credentials until %s", tk.Expires, policyEnd, expires)
			}
			if c.left > c.lifetime && tk.Expires.Sub(tk.Issued) != c.lifetime {
				t.Errorf("ticket for %s, want %s", tk.Expires.Sub(tk.Issued), c.lifetime)
			}
			if c.left == c.lifetime && !tk.Expires.Equal(expires) {
				t.Errorf("ticket until %s, want the credentials' end %s", tk.Expires, expires)
			}
			if tk.Fields["X-Amz-Security-Token"] != "t" {
				t.Error("the session token is not in the form")
			}
		})
	}
}

// Credentials at the end of their life would make tickets of seconds.
func TestSignUploadRenewsCredentials(t *testing.T) {
	s := serve(t, Config{}, func(int, http.ResponseWriter, *http.Request) {})
	asked := 0
	s.credentials = aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		asked++
		left := map[int]time.Duration{1: time.Minute, 2: 3 * time.Hour}[asked]
		return aws.Credentials{AccessKeyID: fmt.Sprint("ASIA", asked), SecretAccessKey: "s", CanExpire: true, Expires: time.Now().Add(left)}, nil
	}))
	for range 2 {
		tk, err := s.SignUpload(t.Context(), "v1/x/", 1000, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if tk.Expires.Sub(tk.Issued) != time.Hour || !strings.HasPrefix(tk.Fields["X-Amz-Credential"], "ASIA2/") {
			t.Errorf("ticket for %s, signed by %s", tk.Expires.Sub(tk.Issued), tk.Fields["X-Amz-Credential"])
		}
	}
	if asked != 2 {
		t.Errorf("credentials were asked for %d times, want 2", asked)
	}
}

func TestSignUploadWithoutCredentials(t *testing.T) {
	s := serve(t, Config{}, func(int, http.ResponseWriter, *http.Request) {})
	s.credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{}, errors.New("no identity")
	})
	if tk, err := s.SignUpload(t.Context(), "v1/x/", 1000, time.Hour); err == nil || !strings.Contains(err.Error(), "no identity") {
		t.Errorf("signed %+v, error %v", tk, err)
	}
}

type policy struct {
	Expiration string `json:"expiration"`
	Conditions []any  `json:"conditions"`
}

func decodePolicy(t *testing.T, encoded string) policy {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	var p policy
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// One place knows the SDK, so that a change of it, or another store, is a change of one package. Every tenant's shipper would carry it otherwise.
func TestOnlyThisPackageImportsTheSDK(t *testing.T) {
	const module = "github.com/shiplog-dev/shiplog"
	cmd := exec.Command("go", "list", "-test", "-f", `{{.ImportPath}} {{join .Imports ","}} {{join .TestImports ","}} {{join .XTestImports ","}}`, module+"/...")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	packages := 0
	for line := range strings.Lines(string(out)) {
		name, imports, _ := strings.Cut(line, " ")
		if !strings.HasPrefix(name, module) {
			t.Fatalf("unexpected line of go list: %s", line)
		}
		packages++
		if strings.HasPrefix(name, module+"/internal/objectstore") {
			continue
		}
		for _, imported := range strings.FieldsFunc(imports, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
			if strings.HasPrefix(imported, "github.com/aws/") {
				t.Errorf("%s imports %s", name, imported)
			}
		}
	}
	if packages < 5 {
		t.Errorf("go list knows of %d packages only:\n%s", packages, out)
	}
}

// A ticket names the proxy by which this process reaches the store, and none that wants a password.
func TestTicketNamesTheProxy(t *testing.T) {
	for name, c := range map[string]struct{ proxy, want string }{
		"none":            {"", ""},
		"one":             {"http://proxy.invalid:3128", "http://proxy.invalid:3128"},
		"by TLS":          {"https://proxy.invalid", "https://proxy.invalid"},
		"with a user":     {"http://user:secret@proxy.invalid:3128", ""},
		"of another kind": {"socks5://proxy.invalid:1080", ""},
		"nearly one":      {"httpx://proxy.invalid:3128", ""},
		"without a host":  {"http:proxy.invalid:3128", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, Config{}, func(int, http.ResponseWriter, *http.Request) {})
			var asked string
			s.transport.Proxy = func(r *http.Request) (*url.URL, error) {
				asked = r.URL.String()
				if c.proxy == "" {
					return nil, nil
				}
				return url.Parse(c.proxy)
			}
			ticket, err := s.SignUpload(t.Context(), "a/", 1, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if ticket.Proxy != c.want || asked != ticket.URL {
				t.Errorf("proxy %q for %q, want %q for %q", ticket.Proxy, asked, c.want, ticket.URL)
			}
		})
	}
}
