package objectstore

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestNow expects the store's clock to count, however far it is from this machine's.
func TestNow(t *testing.T) {
	for _, c := range []struct {
		name string
		date func(h http.Header)
		want time.Duration
	}{
		{"behind", func(h http.Header) {
			h.Set("Date",
				time.Now().Add(-4*time.Minute).UTC().Format(http.TimeFormat))
		}, -4 * time.Minute},
		{"before", func(h http.Header) {
			h.Set("Date",
				time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		}, time.Hour},
		{"no date", func(h http.Header) { h["Date"] = nil }, 0},
		{"no time", func(h http.Header) { h.Set("Date", "today") }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter,
				_ *http.Request) {
				c.date(w.Header())
				w.WriteHeader(http.StatusNotFound)
			}))
			t.Cleanup(server.Close)
			s, err := New(t.Context(), Config{Bucket: "bucket", Endpoint: server.URL,
				PathStyle: true, Credentials: &Credentials{AccessKeyID: "a", SecretAccessKey: "b"}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(s.Close)
			if off := time.Until(s.Now()); off < -time.Second || off > time.Second {
				t.Errorf("before an answer, the clock is off by %s", off)
			}
			if _, err := s.Get(t.Context(), "key"); err == nil {
				t.Fatal("no error")
			}
			if off := time.Until(s.Now()) - c.want; off < -10*time.Second || off > 10*time.Second {
				t.Errorf("the clock is off by %s beside %s", off, c.want)
			}
		})
	}
}
