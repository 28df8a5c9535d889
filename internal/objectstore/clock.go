package objectstore

import (
	"net/http"
	"sync/atomic"
	"time"
)

// clock reads the store's clock off its answers.
type clock struct {
	http.RoundTripper
	ahead atomic.Int64 // how far the store's clock is before this machine's, in ns
}

// RoundTrip implements http.RoundTripper.
func (c *clock) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := c.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		c.ahead.Store(int64(time.Until(at)))
	}
	return res, nil
}

// Now is what time it is by the store's clock, which Entry.LastModified is of: as its last answer
// said, to the second. Before the first answer, and where answers have no date, it is this
// machine's.
func (s *Store) Now() time.Time { return time.Now().Add(time.Duration(s.clock.ahead.Load())) }
