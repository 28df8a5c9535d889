// Package storetest is the conformance suite for stores: what shiplog needs of an S3 server, as tests that run against any of them.
package storetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// Known are faults of a server that shiplog cannot mend and lives with. The suite proves that they are still there, so that a server which has lost
// one is noticed.
type Known struct {
	// DotsResolve: the server takes an object's name for a path, so that a ticket's holder leaves the prefix with "..", though not the bucket. A
	// policy has no condition against it.
	DotsResolve bool
}

// Run runs the suite against the bucket of cfg, which is empty at first.
func Run(t *testing.T, cfg objectstore.Config, known Known) {
	t.Run("objects", func(t *testing.T) { objects(t, cfg) })
	// Before the thousand objects of list: it lists the whole bucket again and again.
	t.Run("ticket", func(t *testing.T) { tickets(t, cfg, known) })
	t.Run("list", func(t *testing.T) { list(t, cfg) })
	t.Run("list of odd keys", func(t *testing.T) { oddKeys(t, cfg) })
}

// open makes a store whose keys are under a prefix of its own.
func open(t *testing.T, cfg objectstore.Config, prefix string) *objectstore.Store {
	t.Helper()
	cfg.Prefix = prefix
	store, err := objectstore.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// bodies are what objects may hold.
func bodies() map[string][]byte {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	large := bytes.Repeat(every, 16<<20/len(every))
	for i := 0; i < len(large); i += 4096 { // no two blocks alike, so that a mixed-up order is seen
		copy(large[i:], fmt.Sprintf("%08x", i))
	}
	return map[string][]byte{"empty": {}, "one byte": {0}, "every byte value": every, "16 MiB": large, "like a form": []byte("--x\r\n\r\nfile\r\n--x--\r\n")}
}

func objects(t *testing.T, cfg objectstore.Config) {
	store := open(t, cfg, "objects/deep")
	ctx := t.Context()
	for name, want := range bodies() {
		t.Run("put and get/"+name, func(t *testing.T) {
			key := "bodies/" + strings.ReplaceAll(name, " ", "-")
			if err := store.Put(ctx, key, want); err != nil {
				t.Fatal(err)
			}
			same(t, read(t, store, key), want)
		})
	}
	t.Run("the prefix is part of the real key", func(t *testing.T) {
		if err := store.Put(ctx, "seen", []byte("x")); err != nil {
			t.Fatal(err)
		}
		same(t, read(t, open(t, cfg, ""), "objects/deep/seen"), []byte("x"))
	})
	t.Run("overwrite", func(t *testing.T) {
		for _, want := range []string{"a longer first content", "second"} {
			if err := store.Put(ctx, "overwrite", []byte(want)); err != nil {
				t.Fatal(err)
			}
			same(t, read(t, store, "overwrite"), []byte(want))
		}
	})
	t.Run("delete", func(t *testing.T) {
		if err := store.Put(ctx, "deleted", []byte("x")); err != nil {
			t.Fatal(err)
		}
		for range 2 { // there is nothing to delete the second time
			if err := store.Delete(ctx, "deleted"); err != nil {
				t.Fatal(err)
			}
			if _, err := store.Get(ctx, "deleted"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("error %v, want that there is no such object", err)
			}
		}
	})
	t.Run("range", func(t *testing.T) {
		content := []byte("0123456789")
		if err := store.Put(ctx, "range", content); err != nil {
			t.Fatal(err)
		}
		if err := store.Put(ctx, "range-empty", nil); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name           string
			key            string
			offset, length int64
			want           string
			err            error
		}{
			{name: "inside", key: "range", offset: 3, length: 4, want: "3456"},
			{name: "first byte", key: "range", offset: 0, length: 1, want: "0"},
			{name: "last byte", key: "range", offset: 9, length: 1, want: "9"},
			{name: "to the end", key: "range", offset: 7, length: -1, want: "789"},
			{name: "over the end", key: "range", offset: 8, length: 100, want: "89"},
			{name: "from the end", key: "range", offset: 10, length: 1, err: objectstore.ErrRange},
			{name: "far behind the end", key: "range", offset: 1 << 40, length: -1, err: objectstore.ErrRange},
			{name: "of an empty object", key: "range-empty", offset: 0, length: 1, err: objectstore.ErrRange},
			{name: "no length", key: "range", offset: 0, length: 0, err: objectstore.ErrRange},
			{name: "negative offset", key: "range", offset: -1, length: 1, err: objectstore.ErrRange},
			{name: "of no object", key: "range-none", offset: 0, length: 1, err: fs.ErrNotExist},
		} {
			t.Run(c.name, func(t *testing.T) {
				r, err := store.GetRange(ctx, c.key, c.offset, c.length)
				if !errors.Is(err, c.err) {
					t.Fatalf("error %v, want %v", err, c.err)
				}
				if err != nil {
					return
				}
				defer r.Close()
				got, err := io.ReadAll(r)
				if err != nil || string(got) != c.want {
					t.Fatalf("read %q and %v, want %q", got, err, c.want)
				}
			})
		}
	})
	t.Run("not found", func(t *testing.T) {
		for _, key := range []string{"none", "none/deeper/still", "bodies"} {
			_, err := store.Get(ctx, key)
			if !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("get %q: %v, want fs.ErrNotExist", key, err)
			}
			if !strings.Contains(err.Error(), `"objects/deep/`+key+`"`) || !strings.Contains(err.Error(), cfg.Bucket) {
				t.Errorf("the error names neither key nor bucket: %v", err)
			}
		}
	})
	t.Run("no such bucket is not a missing object", func(t *testing.T) {
		other := cfg
		other.Bucket = "shiplog-no-such-bucket"
		_, err := open(t, other, "").Get(ctx, "x")
		if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), objectstore.EnvBucket) {
			t.Fatalf("error %v, want one that says to set %s and is not fs.ErrNotExist", err, objectstore.EnvBucket)
		}
	})
	t.Run("wrong secret", func(t *testing.T) {
		other := cfg
		other.Credentials = &objectstore.Credentials{AccessKeyID: cfg.Credentials.AccessKeyID, SecretAccessKey: "not-the-secret"}
		err := open(t, other, "").Put(ctx, "x", nil)
		if err == nil || !strings.Contains(err.Error(), "AWS_SECRET_ACCESS_KEY") {
			t.Fatalf("error %v, want one that says to check AWS_SECRET_ACCESS_KEY", err)
		}
	})
	t.Run("a cancelled context ends it", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if err := store.Put(ctx, "cancelled", nil); !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v, want context.Canceled", err)
		}
	})
}

// oddKeys are what a ticket's holder may upload to: none of them may keep anybody from listing.
func oddKeys(t *testing.T, cfg objectstore.Config) {
	store := open(t, cfg, "odd+a=b@c")
	tk, err := store.SignUpload(t.Context(), "pod/", 1<<10, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	client := httpClient(t, cfg)
	want := map[string]bool{"pod/a": true, "pod/z": true} // others a store may refuse
	// These only a store lists as they are that encodes keys; for others see plainXML.
	odder := []string{"\x01", "b\x1b[31m\x7f", "h\u00e4\ufffe\u202e"}
	for _, name := range []string{
		"a", odder[0], odder[1], "c c", "d+d", "e%2fe", "f%zz", "g&<>\"'", odder[2], "z",
	} {
		req, err := tk.NewRequest(t.Context(), name, []byte(name))
		if err != nil {
			continue // a shipper refuses what no form can hold
		}
		status := do(t, client, req)
		if status < 300 && !slices.Contains(odder, name) {
			want["pod/"+name] = true
		}
		t.Logf("%q: status %d", name, status)
	}
	got := map[string]bool{}
	for e := range entries(t, store.List(t.Context(), "", "", "", 0)) {
		got[e.Key] = true
	}
	for key := range want {
		if !got[key] {
			t.Errorf("%q is not listed, of %q", key, slices.Sorted(maps.Keys(got)))
		}
	}
}

func list(t *testing.T, cfg objectstore.Config) {
	store := open(t, cfg, "list")
	// More than one page of S3's 1000, with keys that a wrong order of "-", ".", "/" and digits would show.
	var keys []string
	for i := range 1234 {
		keys = append(keys, fmt.Sprintf("many/%020d-%010d.log.zst", i*1000, 1000))
	}
	keys = append(keys, "tree/a.json", "tree/a/1", "tree/a/2", "tree/b-c/1", "tree/b/1", "tree/b/x/y/z", "tree/c", "tree/d.e/1", "treehouse")
	slices.Sort(keys)
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(16)
	for _, k := range keys {
		group.Go(func() error { return store.Put(ctx, k, []byte(k)) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	ctx = t.Context()

	under := func(prefix string) []string {
		var out []string
		for _, k := range keys {
			if strings.HasPrefix(k, prefix) {
				out = append(out, k)
			}
		}
		return out
	}
	many := under("many/")
	for _, c := range []struct {
		name                          string
		prefix, delimiter, startAfter string
		limit                         int
		want                          []string
	}{
		{name: "everything", want: keys},
		{name: "more than a page", prefix: "many/", want: many},
		{name: "limit within a page", prefix: "many/", limit: 7, want: many[:7]},
		{name: "limit over a page", prefix: "many/", limit: 1100, want: many[:1100]},
		{name: "limit of exactly a page", prefix: "many/", limit: 1000, want: many[:1000]},
		{name: "limit beyond the end", prefix: "many/", limit: 5000, want: many},
		{name: "start after a key", prefix: "many/", startAfter: many[99], want: many[100:]},
		{name: "start after a key that is not there", prefix: "many/", startAfter: many[99] + "~", want: many[100:]},
		{name: "start after a key, with a limit", prefix: "many/", startAfter: many[99], limit: 3, want: many[100:103]},
		{name: "start after the last", prefix: "many/", startAfter: many[len(many)-1]},
		{name: "start before the prefix", prefix: "tree/", startAfter: "many/", want: under("tree/")},
		{name: "nothing there", prefix: "none/"},
		{name: "prefix is not a folder", prefix: "tree", want: under("tree")},
		{name: "part of a name", prefix: "tree/a", want: under("tree/a")},
		{name: "delimiter", prefix: "tree/", delimiter: "/", want: []string{"tree/a.json", "tree/a/", "tree/b-c/", "tree/b/", "tree/c", "tree/d.e/"}},
		{name: "delimiter at the root", delimiter: "/", want: []string{"many/", "tree/", "treehouse"}},
		{name: "delimiter at the root, part of a name", prefix: "tree", delimiter: "/", want: []string{"tree/", "treehouse"}},
		{name: "delimiter with limit", prefix: "tree/", delimiter: "/", limit: 3, want: []string{"tree/a.json", "tree/a/", "tree/b-c/"}},
		{name: "delimiter, start after a key", prefix: "tree/", delimiter: "/", startAfter: "tree/a.json", want: []string{"tree/a/", "tree/b-c/", "tree/b/", "tree/c", "tree/d.e/"}},
		{name: "delimiter, start after a common prefix", prefix: "tree/", delimiter: "/", startAfter: "tree/b-c/", want: []string{"tree/b/", "tree/c", "tree/d.e/"}},
		{name: "delimiter, start within a common prefix", prefix: "tree/", delimiter: "/", startAfter: "tree/b/1", want: []string{"tree/c", "tree/d.e/"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for e := range entries(t, store.List(ctx, c.prefix, c.delimiter, c.startAfter, c.limit)) {
				got = append(got, e.Key)
				if isPrefix := c.delimiter != "" && strings.HasSuffix(e.Key, c.delimiter); e.IsPrefix != isPrefix {
					t.Errorf("%q: IsPrefix is %v", e.Key, e.IsPrefix)
				}
				if !e.IsPrefix && (e.Size != int64(len(e.Key)) || e.LastModified.IsZero()) {
					t.Errorf("%q: size %d, last modified %s", e.Key, e.Size, e.LastModified)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("listed %d keys %.300q,\nwant %d keys %.300q", len(got), got, len(c.want), c.want)
			}
		})
	}
	t.Run("stopped by the caller", func(t *testing.T) {
		n := 0
		for range entries(t, store.List(ctx, "many/", "", "", 0)) {
			if n++; n == 5 {
				break
			}
		}
		if n != 5 {
			t.Fatalf("%d entries", n)
		}
	})
	t.Run("another prefix's keys are not there", func(t *testing.T) {
		for e := range entries(t, open(t, cfg, "lis").List(ctx, "", "", "", 1)) {
			t.Fatalf("listed %+v", e)
		}
	})
	t.Run("error", func(t *testing.T) {
		other := cfg
		other.Bucket = "shiplog-no-such-bucket"
		n := 0
		for e, err := range open(t, other, "").List(ctx, "p/", "", "", 0) {
			if n++; err == nil || !strings.Contains(err.Error(), `"p/"`) {
				t.Fatalf("yielded %+v, %v, want an error that names the prefix", e, err)
			}
		}
		if n != 1 {
			t.Fatalf("%d entries, want the error alone", n)
		}
	})
}

func tickets(t *testing.T, cfg objectstore.Config, known Known) {
	const prefix = "v1/team/build/uid-1/compile/pod-1/"
	const max = 1 << 10
	store := open(t, cfg, "tickets")
	root := open(t, cfg, "")
	client := httpClient(t, cfg)
	sign := func(t *testing.T, maxBytes int64, lifetime time.Duration) ticket.Ticket {
		t.Helper()
		tk, err := store.SignUpload(t.Context(), prefix, maxBytes, lifetime)
		if err != nil {
			t.Fatal(err)
		}
		return tk
	}
	post := func(t *testing.T, tk ticket.Ticket, name string, content []byte) int {
		t.Helper()
		req, err := tk.NewRequest(t.Context(), name, content)
		if err != nil {
			t.Fatal(err)
		}
		return do(t, client, req)
	}
	// absent fails if a refused upload left something.
	absent := func(t *testing.T, key string) {
		t.Helper()
		if _, err := root.Get(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("object %q is there after a refusal: %v", key, err)
		}
	}

	t.Run("is whole", func(t *testing.T) {
		tk := sign(t, max, time.Hour)
		if tk.Prefix != "tickets/"+prefix || tk.MaxBytes != max || tk.Expires.Sub(tk.Issued) != time.Hour || tk.CABundle != cfg.CABundle {
			t.Errorf("ticket for %q, %d bytes, %s, %d bytes of CA bundle", tk.Prefix, tk.MaxBytes, tk.Expires.Sub(tk.Issued), len(tk.CABundle))
		}
		for k, v := range tk.Fields {
			if strings.Contains(v, string(cfg.Credentials.SecretAccessKey)) {
				t.Errorf("field %s holds the secret key", k)
			}
		}
	})
	for name, content := range bodies() {
		t.Run("in scope/"+name, func(t *testing.T) {
			tk := sign(t, 64<<20, time.Hour)
			key := "step-build/" + strings.ReplaceAll(name, " ", "-")
			if got := post(t, tk, key, content); got != http.StatusNoContent {
				t.Fatalf("status %d, want 204", got)
			}
			same(t, read(t, store, prefix+key), content)
		})
	}
	t.Run("replay is harmless", func(t *testing.T) {
		tk := sign(t, max, time.Hour)
		for range 2 {
			if got := post(t, tk, "replay", []byte("same bytes, same key")); got != http.StatusNoContent {
				t.Fatalf("status %d, want 204", got)
			}
		}
		same(t, read(t, store, prefix+"replay"), []byte("same bytes, same key"))
	})
	t.Run("as large as allowed", func(t *testing.T) {
		if got := post(t, sign(t, max, time.Hour), "largest", make([]byte, max)); got != http.StatusNoContent {
			t.Fatalf("status %d, want 204", got)
		}
	})
	t.Run("too large", func(t *testing.T) {
		if got := post(t, sign(t, max, time.Hour), "too-large", make([]byte, max+1)); got != http.StatusBadRequest {
			t.Fatalf("status %d, want 400", got)
		}
		absent(t, "tickets/"+prefix+"too-large")
	})
	for name, outside := range map[string]string{
		"another pod":          "tickets/v1/team/build/uid-1/compile/pod-2/step/x",
		"another namespace":    "tickets/v1/other/build/uid-1/compile/pod-1/step/x",
		"the run's own record": "tickets/v1/team/build/uid-1/run.json",
		"the root":             "x",
		"a longer pod UID":     "tickets/v1/team/build/uid-1/compile/pod-11/x",
		"other letter case":    "tickets/V1/team/build/uid-1/compile/pod-1/x",
		"leading slash":        "/tickets/" + prefix + "x",
	} {
		t.Run("outside of the prefix/"+name, func(t *testing.T) {
			tk := sign(t, max, time.Hour)
			tk.Prefix = "" // NewRequest puts it before the name
			if got := post(t, tk, outside, []byte("x")); got != http.StatusForbidden {
				t.Fatalf("status %d, want 403", got)
			}
			absent(t, strings.TrimPrefix(outside, "/"))
		})
	}
	// What a server makes of these names differs, 204 for an odd name within the prefix or a refusal. No server may leave the prefix.
	for name, c := range map[string]struct {
		trick string
		dots  bool // leaves the prefix of a server with Known.DotsResolve
	}{
		"dots":          {"../../../../../../escaped-1/x", true},
		"dots inside":   {"a/../../../escaped-2/x", true},
		"encoded dots":  {"%2e%2e/%2e%2e/escaped-3/x", false},
		"encoded /":     {"..%2f..%2fescaped-4/x", false},
		"backslash":     {`..\..\escaped-5\x`, false},
		"filename":      {"${filename}/../../../escaped-6/x", true},
		"out of bucket": {"../../../../../../../../shiplog-other/x", false},
	} {
		t.Run("path trick/"+name, func(t *testing.T) {
			before := keysOutside(t, root, "tickets/"+prefix)
			status := post(t, sign(t, max, time.Hour), c.trick, []byte("x"))
			escaped := keysOutside(t, root, "tickets/"+prefix)
			maps.DeleteFunc(escaped, func(key string, _ bool) bool { return before[key] })
			if want := known.DotsResolve && c.dots; (len(escaped) > 0) != want {
				t.Errorf("status %d, new objects outside of the prefix: %v; want some: %v", status, escaped, want)
			}
		})
	}
	t.Run("expired", func(t *testing.T) {
		tk := sign(t, max, time.Second)
		if got := post(t, tk, "before", []byte("x")); got != http.StatusNoContent && !time.Now().After(tk.Expires) {
			t.Fatalf("status %d before the end, want 204", got)
		}
		// The server's clock decides, so it is asked until it says so.
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		status := http.StatusNoContent
		for n := 0; status == http.StatusNoContent && n < 100; n++ {
			select {
			case <-tick.C:
			case <-t.Context().Done():
				t.Fatal(t.Context().Err())
			}
			status = post(t, tk, "while", []byte("x"))
		}
		if status != http.StatusForbidden {
			t.Fatalf("status %d after the end, want 403", status)
		}
		if now := time.Now(); now.Before(tk.Expires) {
			t.Errorf("refused at %s, before the ticket's own end %s", now, tk.Expires)
		}
		if got := post(t, tk, "after", []byte("x")); got != http.StatusForbidden {
			t.Errorf("status %d after the end, want 403", got)
		}
		absent(t, "tickets/"+prefix+"after")
	})

	t.Run("tampered", func(t *testing.T) {
		good := sign(t, max, time.Hour)
		policy, err := base64.StdEncoding.DecodeString(good.Fields["policy"])
		if err != nil {
			t.Fatal(err)
		}
		forge := func(old, new string) string {
			changed := strings.Replace(string(policy), old, new, 1)
			if changed == string(policy) {
				t.Fatalf("policy %s holds no %s", policy, old)
			}
			return base64.StdEncoding.EncodeToString([]byte(changed))
		}
		for name, change := range map[string]map[string]string{
			"wider prefix":         {"policy": forge("tickets/"+prefix, "tickets/")},
			"larger size":          {"policy": forge(fmt.Sprint(max), "99999999")},
			"later expiry":         {"policy": forge(good.Expires.Format(time.RFC3339), good.Expires.Add(time.Hour).Format(time.RFC3339))},
			"signature":            {"X-Amz-Signature": strings.Repeat("0", 64)},
			"date":                 {"X-Amz-Date": good.Issued.Add(time.Minute).Format("20060102T150405Z")},
			"field that is not in": {"x-amz-meta-extra": "1"},
			"redirect":             {"success_action_redirect": "http://127.0.0.1/"},
			"public":               {"acl": "public-read"},
			"storage class":        {"x-amz-storage-class": "REDUCED_REDUNDANCY"},
			"tags":                 {"tagging": "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"},
		} {
			t.Run(name, func(t *testing.T) {
				tk := good
				tk.Fields = maps.Clone(good.Fields)
				maps.Copy(tk.Fields, change)
				// Ceph looks at a field's value before it looks at the policy, and answers 400 to
				// a storage class that it does not know.
				got := post(t, tk, "tampered", []byte("x"))
				if got != http.StatusForbidden && got != http.StatusBadRequest {
					t.Fatalf("status %d, want 400 or 403", got)
				}
				absent(t, "tickets/"+prefix+"tampered")
			})
		}
		t.Run("without policy", func(t *testing.T) {
			tk := good
			tk.Fields = maps.Clone(good.Fields)
			delete(tk.Fields, "policy")
			if got := post(t, tk, "tampered", []byte("x")); got < 400 {
				t.Fatalf("status %d, want a refusal", got)
			}
			absent(t, "tickets/"+prefix+"tampered")
		})
	})
	t.Run("other bucket", func(t *testing.T) {
		other := cfg
		other.Bucket = "shiplog-other"
		otherStore := open(t, other, "")
		if err := otherStore.EnsureBucket(t.Context()); err != nil {
			t.Fatal(err)
		}
		tk := sign(t, max, time.Hour)
		tk.URL = strings.Replace(tk.URL, cfg.Bucket, other.Bucket, 1)
		if got := post(t, tk, "x", []byte("x")); got != http.StatusForbidden {
			t.Fatalf("status %d, want 403", got)
		}
		for e := range entries(t, otherStore.List(t.Context(), "", "", "", 0)) {
			t.Errorf("the other bucket holds %+v", e)
		}
	})
	t.Run("holder can only upload", func(t *testing.T) {
		if err := store.Put(t.Context(), prefix+"kept", []byte("kept")); err != nil {
			t.Fatal(err)
		}
		tk := sign(t, max, time.Hour)
		q := url.Values{}
		for k, v := range tk.Fields {
			q.Set(k, v)
		}
		q.Set("X-Amz-Expires", "3600")
		q.Set("X-Amz-SignedHeaders", "host")
		object := tk.URL + "/" + tk.Prefix + "kept"
		for name, c := range map[string]struct{ method, url string }{
			"read":                 {http.MethodGet, object},
			"read with fields":     {http.MethodGet, object + "?" + q.Encode()},
			"head with fields":     {http.MethodHead, object + "?" + q.Encode()},
			"list":                 {http.MethodGet, tk.URL + "?list-type=2"},
			"list with fields":     {http.MethodGet, tk.URL + "?list-type=2&" + q.Encode()},
			"delete":               {http.MethodDelete, object},
			"delete with fields":   {http.MethodDelete, object + "?" + q.Encode()},
			"put with fields":      {http.MethodPut, object + "?" + q.Encode()},
			"bucket with fields":   {http.MethodDelete, tk.URL + "?" + q.Encode()},
			"multipart with field": {http.MethodPost, object + "?uploads&" + q.Encode()},
		} {
			t.Run(name, func(t *testing.T) {
				req, err := http.NewRequestWithContext(t.Context(), c.method, c.url, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got := do(t, client, req); got < 400 {
					t.Fatalf("%s: status %d, want a refusal", c.method, got)
				}
			})
		}
		same(t, read(t, store, prefix+"kept"), []byte("kept"))
	})
	// What a thief can do with a ticket is what its pod can do: write under that prefix, over what is there too.
	t.Run("stolen/overwrites what the pod has written", func(t *testing.T) {
		tk := sign(t, max, time.Hour)
		for _, key := range []string{"pod.json", "alive.json", "step-build/seal.json"} {
			if err := store.Put(t.Context(), prefix+key, []byte("true")); err != nil {
				t.Fatal(err)
			}
			if got := post(t, tk, key, []byte("forged")); got != http.StatusNoContent {
				t.Errorf("%s: status %d, want 204", key, got)
			}
			same(t, read(t, store, prefix+key), []byte("forged"))
		}
	})
	// A server that checks one thing and does another would let a thief out. Whatever it answers, nothing outside of the prefix may change.
	for name, forge := range map[string]func(f *form, tk ticket.Ticket){
		"a second key behind the first": func(f *form, tk ticket.Ticket) { f.add("key", tk.Prefix+"x").add("key", "v1/stolen/second") },
		"a second key before the first": func(f *form, tk ticket.Ticket) { f.add("key", "v1/stolen/first").add("key", tk.Prefix+"x") },
		"key in other letters": func(f *form, tk ticket.Ticket) {
			f.add("key", tk.Prefix+"x").add("Key", "v1/stolen/capital").add("KEY", "v1/stolen/capitals")
		},
		"key in other letters alone": func(f *form, tk ticket.Ticket) { f.add("KEY", "v1/stolen/alone") },
		"key in the query": func(f *form, tk ticket.Ticket) {
			f.query, f.fields = "?key=v1/stolen/query", append(f.fields, [2]string{"key", tk.Prefix + "x"})
		},
		"key in the path": func(f *form, tk ticket.Ticket) {
			f.query, f.fields = "/v1/stolen/path", append(f.fields, [2]string{"key", tk.Prefix + "x"})
		},
		"key in a header": func(f *form, tk ticket.Ticket) {
			f.header, f.fields = "v1/stolen/header", append(f.fields, [2]string{"key", tk.Prefix + "x"})
		},
		"key behind the file": func(f *form, tk ticket.Ticket) { f.behind = [][2]string{{"key", "v1/stolen/behind"}} },
		"keys before and behind": func(f *form, tk ticket.Ticket) {
			f.add("key", tk.Prefix+"x").behind = [][2]string{{"key", "v1/stolen/behind-too"}}
		},
		"a NUL in the key":     func(f *form, tk ticket.Ticket) { f.add("key", "v1/stolen/nul\x00"+tk.Prefix+"x") },
		"a newline in the key": func(f *form, tk ticket.Ticket) { f.add("key", "v1/stolen/newline\r\n"+tk.Prefix+"x") },
		"the file's name as key": func(f *form, tk ticket.Ticket) {
			f.filename = "../../../../../../v1/stolen/filename"
			f.add("key", tk.Prefix+"${filename}")
		},
		"a bucket": func(f *form, tk ticket.Ticket) { f.add("bucket", "shiplog-other").add("key", tk.Prefix+"x") },
		"a source to copy": func(f *form, tk ticket.Ticket) {
			f.add("x-amz-copy-source", "/"+cfg.Bucket+"/tickets/secret").add("key", tk.Prefix+"x")
		},
		"a place to redirect to": func(f *form, tk ticket.Ticket) {
			f.add("x-amz-website-redirect-location", "http://127.0.0.1/").add("key", tk.Prefix+"x")
		},
		"a retention": func(f *form, tk ticket.Ticket) {
			f.add("x-amz-object-lock-mode", "COMPLIANCE").add("key", tk.Prefix+"x")
		},
		"a grant": func(f *form, tk ticket.Ticket) {
			f.add("x-amz-grant-full-control", "uri=http://acs.amazonaws.com/groups/global/AllUsers").add("key", tk.Prefix+"x")
		},
		"deleting several":      func(f *form, tk ticket.Ticket) { f.query = "?delete"; f.add("key", tk.Prefix+"x") },
		"a multipart upload":    func(f *form, tk ticket.Ticket) { f.query = "/v1/stolen/multipart?uploads"; f.add("key", tk.Prefix+"x") },
		"another's access list": func(f *form, tk ticket.Ticket) { f.query = "/tickets/secret?acl"; f.add("key", tk.Prefix+"x") },
		"the bucket's policy":   func(f *form, tk ticket.Ticket) { f.query = "?policy"; f.add("key", tk.Prefix+"x") },
	} {
		t.Run("stolen/"+name, func(t *testing.T) {
			if err := store.Put(t.Context(), "secret", []byte("SECRET")); err != nil {
				t.Fatal(err)
			}
			before := keysOutside(t, root, "tickets/"+prefix)
			tk := sign(t, max, time.Hour)
			f := form{filename: "file"}
			for k, v := range tk.Fields {
				f.add(k, v)
			}
			forge(&f, tk)
			status, answer := f.post(t, client, tk.URL)
			if after := keysOutside(t, root, "tickets/"+prefix); !maps.Equal(before, after) {
				t.Errorf("status %d, objects outside of the prefix are %v, were %v", status, after, before)
			}
			same(t, read(t, store, "secret"), []byte("SECRET"))
			if strings.Contains(answer, "SECRET") {
				t.Errorf("status %d, the answer holds another object: %s", status, answer)
			}
			if r, err := root.Get(t.Context(), "tickets/"+prefix+"x"); err == nil {
				b, err := io.ReadAll(r)
				r.Close()
				if err != nil || bytes.Contains(b, []byte("SECRET")) {
					t.Errorf("another object was copied: %s, %v", b, err)
				}
			}
		})
	}
	t.Run("tags", func(t *testing.T) {
		tagged := cfg
		tagged.Tags = map[string]string{"team": "a b/c=d+e", "retention": "30d"}
		ts := open(t, tagged, "tagged")
		if err := ts.Put(t.Context(), "put", []byte("x")); err != nil {
			t.Fatal(err)
		}
		tk, err := ts.SignUpload(t.Context(), "p/", max, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if got := post(t, tk, "posted", []byte("x")); got != http.StatusNoContent {
			t.Fatalf("status %d, want 204", got)
		}
		same(t, read(t, ts, "p/posted"), []byte("x"))
		for name, field := range map[string]string{"left out": "", "changed": "<Tagging><TagSet></TagSet></Tagging>"} {
			t.Run(name, func(t *testing.T) {
				bad := tk
				bad.Fields = maps.Clone(tk.Fields)
				bad.Fields["tagging"] = field
				if field == "" {
					delete(bad.Fields, "tagging")
				}
				if got := post(t, bad, "untagged", []byte("x")); got != http.StatusForbidden {
					t.Fatalf("status %d, want 403", got)
				}
				absent(t, "tagged/p/untagged")
			})
		}
	})
	t.Run("bad requests are not signed", func(t *testing.T) {
		for name, c := range map[string]struct {
			prefix   string
			max      int64
			lifetime time.Duration
		}{
			"whole bucket":   {"", max, time.Hour},
			"root":           {"/", max, time.Hour},
			"no final slash": {"v1/team", max, time.Hour},
			"no size":        {prefix, 0, time.Hour},
			"no time":        {prefix, max, 0},
			"in the past":    {prefix, max, -time.Hour},
		} {
			t.Run(name, func(t *testing.T) {
				if tk, err := store.SignUpload(t.Context(), c.prefix, c.max, c.lifetime); err == nil {
					t.Fatalf("signed %+v", tk)
				}
			})
		}
	})
}

// form is an upload that no honest holder makes.
type form struct {
	fields, behind          [][2]string // before and behind the file
	filename, query, header string
}

func (f *form) add(name, value string) *form {
	f.fields = append(f.fields, [2]string{name, value})
	return f
}

// post sends the form, and returns the status and the text of the answer.
func (f *form) post(t *testing.T, client *http.Client, to string) (int, string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	write := func(fields [][2]string) {
		for _, field := range fields {
			if err := w.WriteField(field[0], field[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(f.fields)
	file, err := w.CreateFormFile("file", f.filename)
	if err == nil {
		_, err = file.Write([]byte("stolen"))
	}
	if err != nil {
		t.Fatal(err)
	}
	write(f.behind)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to+f.query, &b)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", w.FormDataContentType())
	if f.header != "" {
		req.Header.Set("Key", f.header)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %.300s", resp.Status, text)
	return resp.StatusCode, string(text)
}

// keysOutside is the set of the bucket's keys that do not begin with prefix.
func keysOutside(t *testing.T, root *objectstore.Store, prefix string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for e := range entries(t, root.List(t.Context(), "", "", "", 0)) {
		if !strings.HasPrefix(e.Key, prefix) {
			out[e.Key] = true
		}
	}
	return out
}

// entries fails the test at the first error of a listing.
func entries(t *testing.T, seq iter.Seq2[objectstore.Entry, error]) iter.Seq[objectstore.Entry] {
	t.Helper()
	return func(yield func(objectstore.Entry) bool) {
		for e, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			if !yield(e) {
				return
			}
		}
	}
}

// httpClient is a plain client that trusts the store, as a shipper has one.
func httpClient(t *testing.T, cfg objectstore.Config) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if cfg.CABundle != "" {
		transport.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
		transport.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(cfg.CABundle))
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// do returns the status, and logs a refusal's text for whom the test fails.
func do(t *testing.T, client *http.Client, req *http.Request) int {
	t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode >= 400 {
		t.Logf("%s: %.400s", resp.Status, text)
	}
	return resp.StatusCode
}

func read(t *testing.T, store *objectstore.Store, key string) []byte {
	t.Helper()
	r, err := store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func same(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes %.60q, want %d bytes %.60q", len(got), got, len(want), want)
	}
}
