package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/access"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/dashboard"
	"github.com/shiplog-dev/shiplog/backend/loki"
	"github.com/shiplog-dev/shiplog/backend/page"
)

// metrics count requests, and what they ask of S3.
type metrics struct {
	answered  *prometheus.CounterVec   // by status
	seconds   *prometheus.HistogramVec // to the end of the answer
	sent      prometheus.Counter       // bytes
	running   prometheus.Gauge
	s3        *prometheus.CounterVec   // by operation and result
	s3Seconds *prometheus.HistogramVec // to the answer's beginning
	received  prometheus.Counter       // bytes
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		answered:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shiplog_backend_requests_total", Help: "Requests that were answered, by status; 0 for an answer that was broken off."}, []string{"status"}),
		seconds:   prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "shiplog_backend_request_seconds", Help: "Time to the end of an answer.", Buckets: prometheus.ExponentialBuckets(0.005, 4, 8)}, []string{"follow"}),
		sent:      prometheus.NewCounter(prometheus.CounterOpts{Name: "shiplog_backend_sent_bytes_total", Help: "Bytes of answers."}),
		running:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "shiplog_backend_requests_running", Help: "Requests under way."}),
		s3:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shiplog_backend_s3_requests_total", Help: "Requests to S3, by operation and result. A LIST of several pages counts once."}, []string{"operation", "result"}),
		s3Seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "shiplog_backend_s3_seconds", Help: "Time until S3 answers: to an object's first byte, to a listing's first entry.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}, []string{"operation"}),
		received:  prometheus.NewCounter(prometheus.CounterOpts{Name: "shiplog_backend_s3_received_bytes_total", Help: "Bytes of objects that were read."}),
	}
	registry.MustRegister(m.answered, m.seconds, m.sent, m.running, m.s3, m.s3Seconds, m.received)
	return m
}

// asked is what a request asks of S3.
type asked struct {
	requests, bytes atomic.Int64
}

type askedKey struct{}

func askedOf(ctx context.Context) *asked {
	if a, ok := ctx.Value(askedKey{}).(*asked); ok {
		return a
	}
	return &asked{} // nobody looks at it
}

// area is the first part of a path, or two of the API's. What is behind it may be a secret of the Dashboard's, and the query what somebody looks for.
func area(r *http.Request) string {
	for _, base := range []string{api.Base, page.Base, dashboard.Base, loki.Path, loki.DefaultPath} {
		if r.URL.Path == base || strings.HasPrefix(r.URL.Path, base+"/") {
			return base
		}
	}
	return "other"
}

// path is what of a path is logged beside its area: all of it where it names what was read, and who read it is known.
func path(r *http.Request, v *access.Visit) string {
	if a := area(r); v.User() != "" && (a == api.Base || a == page.Base) {
		return r.URL.Path
	}
	return ""
}

// requests counts and logs the requests to a handler.
func (m *metrics) requests(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.running.Inc()
		begin := time.Now()
		ctx, visit := access.Watch(r.Context())
		out := &counted{ResponseWriter: w, status: http.StatusOK}
		s3 := &asked{}
		broken := true
		defer func() { // also where the answer is broken off, which is a panic
			m.running.Dec()
			if broken {
				out.status = 0
			}
			m.answered.WithLabelValues(strconv.Itoa(out.status)).Inc()
			m.seconds.WithLabelValues(strconv.FormatBool(visit.Following())).Observe(time.Since(begin).Seconds())
			m.sent.Add(float64(out.bytes))
			log.Info("request", "method", r.Method, "area", area(r), "path", path(r, visit), "client", r.RemoteAddr, "user", visit.User(), "namespace", visit.Namespace(), "status", out.status, "bytes", out.bytes, "seconds", time.Since(begin).Seconds(),
				"s3Requests", s3.requests.Load(), "s3Bytes", s3.bytes.Load())
		}()
		next.ServeHTTP(out, r.WithContext(context.WithValue(ctx, askedKey{}, s3)))
		broken = false
	})
}

// counted counts an answer.
type counted struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *counted) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// watch counts what is asked of a store.
func (m *metrics) watch(s backend.Store) backend.Store { return &watchedStore{s, m} }

type watchedStore struct {
	store backend.Store
	*metrics
}

func (s *watchedStore) done(ctx context.Context, operation string, begin time.Time, err error) {
	askedOf(ctx).requests.Add(1)
	result := "ok"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		result = "absent"
	case errors.Is(err, context.Canceled):
		result = "cancelled"
	case err != nil:
		result = "error"
	}
	s.s3.WithLabelValues(operation, result).Inc()
	s.s3Seconds.WithLabelValues(operation).Observe(time.Since(begin).Seconds())
}

// Get implements backend.Store.
func (s *watchedStore) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	begin := time.Now()
	r, err := s.store.Get(ctx, key)
	s.done(ctx, "get", begin, err)
	if err != nil {
		return nil, err
	}
	return &countedBody{r, s.received, askedOf(ctx)}, nil
}

type countedBody struct {
	io.ReadCloser
	bytes prometheus.Counter
	asked *asked
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(float64(n))
	b.asked.bytes.Add(int64(n))
	return n, err
}

// List implements backend.Store.
func (s *watchedStore) List(ctx context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[backend.Entry, error] {
	return func(yield func(backend.Entry, error) bool) {
		begin, first := time.Now(), true
		for e, err := range s.store.List(ctx, prefix, delimiter, startAfter, limit) {
			if first {
				s.done(ctx, "list", begin, err)
				first = false
			}
			if !yield(e, err) {
				return
			}
		}
		if first {
			s.done(ctx, "list", begin, nil)
		}
	}
}
