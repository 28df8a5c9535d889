package api

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
)

// late is a store that takes its time for segments.
type late struct {
	inMemory
	each time.Duration
}

func (l *late) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if strings.HasSuffix(key, ".log.zst") {
		time.Sleep(l.each)
	}
	return l.inMemory.Get(ctx, key)
}

// TestSearchIsAlive: the headers of a search do not wait for what it finds, and where it finds nothing
// for long, it says that it goes on.
func TestSearchIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := inMemory{}
		m.putLog(t, long, longLines, 50)
		h := New(Options{Archive: backend.New(&late{m, 2 * KeepAlive}), Gate: keys{}, Log: slog.New(slog.DiscardHandler)})
		out := httptest.NewRecorder()
		headers := make(chan time.Duration, 1)
		begun := time.Now()
		h.ServeHTTP(flushed{out, func() {
			select {
			case headers <- time.Since(begun):
			default:
			}
		}}, ask(t, http.MethodGet, path(long)+"/search?q=nowhere"))
		if after := <-headers; after != 0 || out.Header().Get("X-Accel-Buffering") != "no" {
			t.Errorf("headers after %s: %v", after, out.Header())
		}
		if body := out.Body.String(); !strings.HasPrefix(body, "\n") || !strings.HasPrefix(strings.TrimLeft(body, "\n"), `{"found":`) {
			t.Errorf("the answer is %q", body)
		}
	})
}

// flushed tells when an answer is flushed.
type flushed struct {
	*httptest.ResponseRecorder
	tell func()
}

func (f flushed) FlushError() error { f.tell(); f.Flush(); return nil }

// TestFollowIsAlive: a log in which nothing happens is followed with a sign of life, as often as it
// takes, and no oftener.
func TestFollowIsAlive(t *testing.T) {
	for name, c := range map[string]struct {
		to   func(w http.ResponseWriter) writer
		want string
	}{
		"NDJSON": {func(w http.ResponseWriter) writer { return &lineWriter{out: newOut(w)} }, "\n\n"},
		"events": {func(w http.ResponseWriter) writer { return &eventWriter{out: newOut(w)} }, ":\n\n:\n\n:\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := httptest.NewRecorder()
				to := c.to(out)
				for begun := time.Now(); time.Since(begun) <= 2*KeepAlive; time.Sleep(backend.FollowInterval) {
					if err := to.flush(); err != nil {
						t.Fatal(err)
					}
				}
				if got := out.Body.String(); got != c.want {
					t.Errorf("%q, want %q", got, c.want)
				}
			})
		})
	}
}
