package objectstore_test

import (
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/objectstore/s3test"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// secretFolder is a Secret as the kubelet mounts it: links to ..data, which is a link to a folder.
type secretFolder struct {
	t       *testing.T
	dir     string
	version string
}

// set changes all files of the Secret at once.
func (f *secretFolder) set(version string, keys *objectstore.Credentials) {
	f.t.Helper()
	check := func(err error) {
		f.t.Helper()
		if err != nil {
			f.t.Fatal(err)
		}
	}
	check(os.Mkdir(filepath.Join(f.dir, version), 0o755))
	for name, text := range keyPair(keys.AccessKeyID, string(keys.SecretAccessKey)) {
		check(os.WriteFile(filepath.Join(f.dir, version, name), []byte(text), 0o600))
		if _, err := os.Lstat(filepath.Join(f.dir, name)); err != nil {
			check(os.Symlink(filepath.Join("..data", name), filepath.Join(f.dir, name)))
		}
	}
	check(os.Symlink(version, filepath.Join(f.dir, "..data_tmp")))
	check(os.Rename(filepath.Join(f.dir, "..data_tmp"), filepath.Join(f.dir, "..data")))
	if f.version != "" {
		check(os.RemoveAll(filepath.Join(f.dir, f.version)))
	}
	f.version = version
}

// TestRotatedKeys: a Store goes on with the keys that are in the folder now. The store of the test
// is a real one that takes the first keys, and then is another one, which takes the second.
func TestRotatedKeys(t *testing.T) {
	for _, server := range s3test.Servers {
		t.Run(string(server), func(t *testing.T) {
			first, second := s3test.Start(t, server), s3test.Start(t, server)
			var present atomic.Pointer[url.URL]
			show := func(endpoint string) {
				u, err := url.Parse(endpoint)
				if err != nil {
					t.Fatal(err)
				}
				present.Store(u)
			}
			transport := &http.Transport{DisableKeepAlives: true}
			forward := func(r *httputil.ProxyRequest) {
				r.SetURL(present.Load())
				r.Out.Host = r.In.Host // it is signed
			}
			front := httptest.NewServer(&httputil.ReverseProxy{Transport: transport, Rewrite: forward})
			t.Cleanup(front.Close)

			folder := &secretFolder{t: t, dir: t.TempDir()}
			for name, value := range map[string]string{
				objectstore.EnvBucket:      first.Bucket,
				objectstore.EnvEndpoint:    front.URL,
				objectstore.EnvRegion:      first.Region,
				objectstore.EnvCredentials: folder.dir,
				// What is in the folder is newer than what is in the environment.
				"AWS_ACCESS_KEY_ID": "old", "AWS_SECRET_ACCESS_KEY": "old",
			} {
				t.Setenv(name, value)
			}
			config, err := objectstore.ConfigFromEnv()
			if err != nil {
				t.Fatal(err)
			}
			store, err := objectstore.New(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(store.Close)
			client := &http.Client{Transport: transport}
			upload := func(tk ticket.Ticket) int {
				t.Helper()
				return s3test.Upload(t, client, tk, "x", []byte("a segment"))
			}
			works := func() (tk ticket.Ticket) {
				t.Helper()
				if err := store.Put(t.Context(), "v1/a", []byte("a")); err != nil {
					t.Error(err)
				}
				if r, err := store.Get(t.Context(), "v1/a"); err != nil {
					t.Error(err)
				} else {
					r.Close()
				}
				tk, err := store.SignUpload(t.Context(), "v1/x/", 1000, time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				if tk.Expires.Sub(tk.Issued) != time.Hour {
					t.Errorf("a ticket for %s", tk.Expires.Sub(tk.Issued))
				}
				if status := upload(tk); status != http.StatusNoContent {
					t.Errorf("upload: status %d", status)
				}
				return tk
			}

			show(first.Endpoint)
			folder.set("..1", first.Credentials)
			old := works()
			show(second.Endpoint)
			if err := store.Put(t.Context(), "v1/a", nil); err == nil {
				t.Fatal("the store takes the first keys still")
			}
			// To these the shipper gets itself another ticket; shipper/TestKeyIsGone.
			if status := upload(old); status != http.StatusForbidden && status != http.StatusNotFound {
				t.Errorf("upload with a ticket of the first keys: status %d", status)
			}
			folder.set("..2", second.Credentials)
			works()
		})
	}
}

// keyPair is the content of a Secret.
func keyPair(id, secret string) map[string]string {
	return map[string]string{"AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": secret}
}

// TestKeyFiles: what is in the folder, and which keys are used then.
func TestKeyFiles(t *testing.T) {
	temporary := keyPair("FILE", "secret")
	temporary["AWS_SESSION_TOKEN"] = "token"
	for name, c := range map[string]struct {
		files map[string]string
		env   bool
		want  string // in the ticket's field X-Amz-Credential, or in the error
		fails bool
	}{
		"files":              {keyPair("FILE\n", "secret"), true, "FILE/", false},
		"temporary":          {temporary, true, "FILE/", false},
		"none, environment":  {nil, true, "ENV/", false},
		"none at all":        {nil, false, "credentials", true},
		"empty, environment": {keyPair("", ""), true, "ENV/", false},
		"one of two":         {keyPair("FILE", ""), true, "must have both AWS_ACCESS_KEY_ID and", true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range c.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, file := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
				t.Setenv(file, filepath.Join(t.TempDir(), "none"))
			}
			t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
			keys := map[bool]string{true: "ENV"}[c.env]
			t.Setenv("AWS_ACCESS_KEY_ID", keys)
			t.Setenv("AWS_SECRET_ACCESS_KEY", keys)
			store, err := objectstore.New(t.Context(), objectstore.Config{
				Bucket: "logs", Endpoint: "http://127.0.0.1:1", CredentialsDir: dir,
			})
			if err != nil {
				t.Fatal(err)
			}
			tk, err := store.SignUpload(t.Context(), "v1/x/", 1000, time.Hour)
			got := tk.Fields["X-Amz-Credential"]
			if !c.fails && (err != nil || !strings.HasPrefix(got, c.want)) {
				t.Errorf("signed by %q, %v", got, err)
			}
			if c.fails && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if token := tk.Fields["X-Amz-Security-Token"]; token != c.files["AWS_SESSION_TOKEN"] {
				t.Errorf("session token %q", token)
			}
		})
	}
}

// TestSignDownload: whoever has the address reads that object, and does nothing else.
func TestSignDownload(t *testing.T) {
	for _, server := range s3test.Servers {
		t.Run(string(server), func(t *testing.T) {
			config := s3test.Start(t, server)
			config.Prefix = "some/prefix"
			store, err := objectstore.New(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(store.Close)
			for _, key := range []string{"v1-service/ca.pem", "v1/other"} {
				if err := store.Put(t.Context(), key, []byte("text of "+key)); err != nil {
					t.Fatal(err)
				}
			}
			const month = 30 * 24 * time.Hour // longer than S3 allows
			address, err := store.SignDownload(t.Context(), "v1-service/ca.pem", month)
			if err != nil {
				t.Fatal(err)
			}
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			instead := func(old, now string) string { return strings.Replace(address, old, now, 1) }
			for name, c := range map[string]struct {
				method, address string
				status          int
			}{
				"get":                {http.MethodGet, address, http.StatusOK},
				"put":                {http.MethodPut, address, http.StatusForbidden},
				"delete":             {http.MethodDelete, address, http.StatusForbidden},
				"another object":     {http.MethodGet, instead("v1-service/ca.pem", "v1/other"), http.StatusForbidden},
				"without the prefix": {http.MethodGet, instead("some/prefix/", ""), http.StatusForbidden},
			} {
				req, err := http.NewRequestWithContext(t.Context(), c.method, c.address, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				whole := string(body) == "text of v1-service/ca.pem"
				if err != nil || resp.StatusCode != c.status || whole != (c.status == http.StatusOK) {
					t.Errorf("%s: status %d, want %d: %s, %v", name, resp.StatusCode, c.status, body, err)
				}
			}
		})
	}
}

// TestLargeCABundle: one that a ticket cannot carry is refused when the store is opened, not when a
// shipper reads the ticket.
func TestLargeCABundle(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	t.Cleanup(server.Close)
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	certificate := pem.EncodeToMemory(block)
	for name, c := range map[string]struct {
		bytes int
		ok    bool
	}{
		"as Debian's": {220 << 10, true},
		"255 KiB":     {255 << 10, true},
		"the most":    {ticket.MaxCABundle, true},
		"one more":    {ticket.MaxCABundle + 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ca.pem")
			text := strings.Repeat(string(certificate), c.bytes/len(certificate)+1)
			text = text[:c.bytes/len(certificate)*len(certificate)]
			text += strings.Repeat("\n", c.bytes-len(text))
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			store, err := objectstore.New(t.Context(), objectstore.Config{
				Bucket: "logs", Endpoint: "https://127.0.0.1:1", CAFile: file,
				Credentials: &objectstore.Credentials{AccessKeyID: "a", SecretAccessKey: "b"},
			})
			if !c.ok {
				says := func(what string) bool { return err != nil && strings.Contains(err.Error(), what) }
				if !says(objectstore.EnvCAFile) || !says("524289 bytes") {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := store.SignUpload(t.Context(), "v1/x/", 1000, time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
}
