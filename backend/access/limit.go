package access

import (
	"context"
	"crypto/sha256"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/util/cache"
)

// Limits bound what clients can take up. A client is who sends the same token, session or proxy's user, and without any who has the same address.
type Limits struct {
	PerClient int           // requests at the same time, of one client
	Total     int           // of all
	Time      time.Duration // of a request
	// FollowTime is that of a request with the parameter follow, which lasts as long as its log grows.
	FollowTime time.Duration
	// Bytes are of one answer. One that would have more is broken off, so that it does not look whole.
	Bytes int64
	// Failures is how many requests an address may send in a second that nobody knows who sends them, and Burst how many at once.
	Failures rate.Limit
	Burst    int
	// UserHeader is the proxy's.
	UserHeader string
}

// DefaultLimits are for a server that a company's control panel and a page for everybody ask.
func DefaultLimits() Limits {
	return Limits{PerClient: 32, Total: 512, Time: 10 * time.Minute, FollowTime: 6 * time.Hour, Bytes: 64 << 30, Failures: 1, Burst: 30}
}

// limiter keeps the counts.
type limiter struct {
	Limits
	failures *cache.LRUExpireCache // address → *rate.Limiter

	mu      sync.Mutex
	total   int
	clients map[string]int
}

// Wrap bounds the requests to a handler.
func (l Limits) Wrap(next http.Handler) http.Handler {
	m := &limiter{Limits: l, failures: cache.NewLRUExpireCache(cacheSize), clients: map[string]int{}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		address, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			address = r.RemoteAddr
		}
		failures := m.failuresOf(address)
		if failures.Tokens() < 1 {
			(&Error{Status: http.StatusTooManyRequests, Message: "too many requests of which nobody knows who sent them: try again later"}).Write(w)
			return
		}
		leave, err := m.enter(l.client(r, address))
		if err != nil {
			err.(*Error).Write(w)
			return
		}
		defer leave()
		life := l.Time
		if r.URL.Query().Has("follow") {
			life = l.FollowTime
		}
		ctx, cancel := context.WithTimeout(r.Context(), life)
		defer cancel()
		out := &watched{ResponseWriter: w, left: l.Bytes}
		next.ServeHTTP(out, r.WithContext(ctx))
		if out.status == http.StatusUnauthorized {
			failures.Allow()
		}
	})
}

// client names who sent a request, as far as it can be told without asking anybody.
func (l Limits) client(r *http.Request, address string) string {
	credentials := r.Header.Get("Authorization")
	if credentials == "" && l.UserHeader != "" {
		credentials = r.Header.Get(l.UserHeader)
	}
	for _, name := range []string{sessionName, insecureSessionName} {
		if c, err := r.Cookie(name); err == nil && credentials == "" {
			credentials = c.Value
		}
	}
	if credentials == "" {
		return "address " + address
	}
	// With the address: what somebody makes up must not take another's place.
	sum := sha256.Sum256([]byte(credentials + "\n" + address))
	return string(sum[:])
}

// failuresOf bounds an address's requests of which nobody knows who sent them.
func (m *limiter) failuresOf(address string) *rate.Limiter {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f, ok := m.failures.Get(address); ok {
		return f.(*rate.Limiter)
	}
	f := rate.NewLimiter(m.Failures, m.Burst)
	m.failures.Add(address, f, time.Hour)
	return f
}

// enter counts a request in, and returns how it is counted out.
func (m *limiter) enter(client string) (leave func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.clients[client] >= m.PerClient:
		return nil, &Error{Status: http.StatusTooManyRequests, Message: "you have too many requests under way: wait for one to end"}
	case m.total >= m.Total:
		return nil, &Error{Status: http.StatusTooManyRequests, Message: "too many requests are under way: try again later"}
	}
	m.total++
	m.clients[client]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.total--
		if m.clients[client]--; m.clients[client] == 0 {
			delete(m.clients, client)
		}
	}, nil
}

// watched remembers the status, and ends an answer that is too long.
type watched struct {
	http.ResponseWriter
	status int
	left   int64 // bytes
}

func (w *watched) Write(b []byte) (int, error) {
	if w.left -= int64(len(b)); w.left < 0 {
		panic(http.ErrAbortHandler) // what the server does with an answer that it cannot end
	}
	return w.ResponseWriter.Write(b)
}

func (w *watched) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }
