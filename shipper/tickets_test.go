package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/internal/spool"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// quickShipper is a shipper for a bubble with a clock of its own. A connection that waits for its
// next request would hold that clock, so each request has its own.
func (p *pod) quickShipper() *shipper {
	s := p.shipper()
	s.tickets.client.Transport.(*http.Transport).DisableKeepAlives = true
	client, err := newHTTPClient("", "", "")
	if err != nil {
		p.t.Fatal(err)
	}
	client.Transport.(*http.Transport).DisableKeepAlives = true
	s.upload.client = client
	return s
}

// calls is how many tickets were asked for.
func (f *fakeServer) calls() (n int) {
	f.set(func() { n = f.ticketCalls })
	return n
}

func (f *fakeServer) refuseUploads(refuse bool) {
	f.set(func() {
		f.putFault = nil
		if refuse {
			f.putFault = func(_ int, _ string, w http.ResponseWriter) (bool, bool) {
				http.Error(w, "<Code>AccessDenied</Code>", http.StatusForbidden)
				return false, true
			}
		}
	})
}

// TestTicketsOfAStoreThatRefuses: a store that answers 403 costs the ticket service next to
// nothing, and what it refused is there soon after it takes it again.
func TestTicketsOfAStoreThatRefuses(t *testing.T) {
	f := newFakeServer(t)
	f.refuseUploads(true)
	p := newPod(t, f, "step-a")
	synctest.Test(t, func(t *testing.T) {
		s := p.quickShipper()
		defer s.close()
		put := func(life time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), life)
			defer cancel()
			return s.upload.put(ctx, "x", []byte("x"))
		}
		for _, phase := range []struct {
			life time.Duration
			most int
		}{{time.Minute, 8}, {time.Hour, 60}} {
			before := f.calls()
			if err := put(phase.life); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			n := f.calls() - before
			t.Logf("%d tickets in %s", n, phase.life)
			if n > phase.most {
				t.Errorf("%d tickets in %s, want no more than %d", n, phase.life, phase.most)
			}
		}
		f.refuseUploads(false)
		begin := time.Now()
		if err := put(time.Hour); err != nil || time.Since(begin) > 2*maxBackoff {
			t.Errorf("%v %s after the store takes it again", err, time.Since(begin))
		}
		s.tickets.renewal.Wait()
	})
}

// TestRefusedTicket: what becomes of a ticket that the store refuses.
func TestRefusedTicket(t *testing.T) {
	const (
		life        = 6 * time.Hour
		least, most = firstRefusalWait / 10, firstRefusalWait * 11 / 10
	)
	for name, tc := range map[string]struct {
		age         time.Duration // of the ticket when it is refused
		life        time.Duration
		hurried     bool
		least, most time.Duration // until the next one is asked for
	}{
		"fresh":                     {time.Second, life, false, least, most},
		"from a clock that is slow": {-time.Hour, life, false, least, most},
		"old":                       {maxRefusalWait, life, false, 0, 0},
		"near its end":              {4 * time.Minute, 5 * time.Minute, false, 0, 0},
		"short-lived and fresh":     {time.Second, 5 * time.Minute, false, least, most},
		"fresh, at the pod's end":   {time.Second, life, true, 0, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			synctest.Test(t, func(t *testing.T) {
				s := p.quickShipper()
				defer s.close()
				issued := time.Now().Add(-tc.age)
				old := ticket.Ticket{
					URL: f.URL, Fields: map[string]string{"policy": "0"}, Prefix: podPrefix, MaxBytes: 1,
					Issued: issued, Expires: issued.Add(tc.life),
				}
				s.tickets.use(old)
				if tc.hurried {
					s.tickets.hurry()
				}
				begin := time.Now()
				for f.calls() == 0 {
					s.tickets.refuse(old)
					s.tickets.look(time.Now())
					s.tickets.renewal.Wait()
					if f.calls() == 0 {
						time.Sleep(10 * time.Millisecond)
					}
				}
				took := time.Since(begin)
				if took < tc.least || took > tc.most+20*time.Millisecond {
					t.Errorf("asked for another one after %s, want %s to %s", took, tc.least, tc.most)
				}
			})
		})
	}
}

// TestKeyIsGone: the keys that have signed an old ticket are taken away. Whatever the store calls
// that, the shipper gets itself another ticket.
func TestKeyIsGone(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			f.putFault = func(n int, _ string, w http.ResponseWriter) (bool, bool) {
				if n == 1 {
					w.WriteHeader(status)
				}
				return n > 1, n == 1
			}
			synctest.Test(t, func(t *testing.T) {
				s := p.quickShipper()
				defer s.close()
				issued := time.Now().Add(-time.Hour)
				s.tickets.use(ticket.Ticket{
					URL:    f.URL + "/bucket",
					Fields: map[string]string{"policy": "0", "x-amz-signature": "s"},
					Prefix: podPrefix, MaxBytes: 1 << 20,
					Issued: issued, Expires: issued.Add(6 * time.Hour),
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := s.upload.put(ctx, "x", []byte("x")); err != nil || f.calls() != 1 {
					t.Errorf("%v, %d tickets", err, f.calls())
				}
			})
		})
	}
}

// TestRefusedUntilTheEnd: the store refuses a pod's tickets for long, and they are good again only
// with another key. At the pod's end there is no time for a long wait.
func TestRefusedUntilTheEnd(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	p.write("step-a", spool.LogName(0), lines(0, 10))
	synctest.Test(t, func(t *testing.T) {
		s := p.quickShipper()
		defer s.close()
		f.refuseUploads(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := s.pass(ctx, time.Now()); err == nil {
			t.Fatal("nothing was refused")
		}
		s.tickets.renewal.Wait()
		f.refuseUploads(false)
		f.set(func() { f.generation++ })
		begin := time.Now()
		if err := s.drain(t.Context()); err != nil || time.Since(begin) > 5*time.Second {
			t.Errorf("drained after %s: %v", time.Since(begin), err)
		}
	})
	if !bytes.Equal(f.log("step-a"), lines(0, 10)) {
		t.Error("the log is not there")
	}
}

// TestTicketServiceInTrouble: pods that wait for a ticket ask more and more rarely.
func TestTicketServiceInTrouble(t *testing.T) {
	f := newFakeServer(t)
	f.ticketFault = unavailable
	p := newPod(t, f, "step-a")
	synctest.Test(t, func(t *testing.T) {
		s := p.quickShipper()
		defer s.close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := s.tickets.get(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		n := f.calls()
		t.Logf("%d requests in an hour", n)
		if n > 350 {
			t.Errorf("%d requests in an hour", n)
		}
		f.set(func() { f.ticketFault = nil })
		begin := time.Now()
		s.tickets.hurry()
		if _, err := s.tickets.get(t.Context()); err != nil || time.Since(begin) > time.Second {
			t.Errorf("%v %s after the pod's end", err, time.Since(begin))
		}
	})
}

// unavailable is the ticket service's answer where the store or the API server does not answer it.
func unavailable(_ int, w http.ResponseWriter) bool {
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = io.WriteString(w, `{"reason":"store-unavailable","message":"down"}`)
	return true
}

// TestDrainWithoutTicket: how long a pod is held by a shipper that has no ticket at its end.
func TestDrainWithoutTicket(t *testing.T) {
	const grace = time.Minute // until the kubelet kills it
	status := func(code int, body string) func(int, http.ResponseWriter) bool {
		return func(_ int, w http.ResponseWriter) bool { http.Error(w, body, code); return true }
	}
	for name, tc := range map[string]struct {
		fault func(n int, w http.ResponseWriter) bool
		dial  func(ctx context.Context) error // nil: the way to the service is good
		had   bool                            // there was a ticket before, which has ended
		held  time.Duration
		lost  bool
	}{
		"a name that is not found": {
			dial: func(context.Context) error {
				return &net.DNSError{Err: "no such host", IsNotFound: true}
			},
			held: firstTicketPatience, lost: true,
		},
		"no answer": {
			dial: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
			held: firstTicketPatience, lost: true,
		},
		"refused": {
			fault: status(403, `{"reason":"not-injected"}`),
			held:  firstTicketPatience, lost: true,
		},
		"another server's 503": {
			fault: status(503, "no healthy upstream"),
			held:  firstTicketPatience, lost: true,
		},
		"the store is down":                {fault: unavailable, held: grace, lost: true},
		"the store is down, with a ticket": {fault: unavailable, had: true, held: grace},
		"refused, but had a ticket": {
			fault: status(403, `{"reason":"x"}`), had: true, held: grace,
		},
		"the service is made anew meanwhile": {fault: func(n int, w http.ResponseWriter) bool {
			if n <= 6 {
				cut(w)
			}
			return n <= 6
		}},
		"good, and nothing had been asked for": {},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			f.ticketFault = tc.fault
			p := newPod(t, f, "step-a", "step-b")
			p.write("step-a", spool.LogName(0), lines(0, 10))
			synctest.Test(t, func(t *testing.T) {
				s := p.quickShipper()
				defer s.close()
				if tc.dial != nil {
					dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return nil, tc.dial(ctx) }
					s.tickets.client.Transport.(*http.Transport).DialContext = dial
				}
				if tc.had {
					issued := time.Now().Add(-time.Hour)
					s.tickets.use(ticket.Ticket{Issued: issued, Expires: issued.Add(time.Minute)})
				}
				ctx, cancel := context.WithTimeout(t.Context(), grace)
				defer cancel()
				begin := time.Now()
				err := s.drain(ctx)
				held := time.Since(begin)
				if held < tc.held || held > tc.held+5*time.Second {
					t.Errorf("held the pod for %s, want %s", held, tc.held)
				}
				killed := errors.Is(err, context.DeadlineExceeded)
				if killed != (tc.held == grace && tc.had) || err != nil && !killed {
					t.Errorf("ended with %v", err)
				}
			})
			const says = "the logs of this pod are lost: it never had an upload ticket"
			if told := p.messages(says) == 1; told != tc.lost {
				t.Errorf("says what is lost: %v, want %v:\n%s", told, tc.lost, p.logged)
			}
			const of = `"containers":["step-a","step-b"],"archiveBytes":`
			if tc.lost && !strings.Contains(p.logged.String(), of) {
				t.Errorf("does not say what of:\n%s", p.logged)
			}
			if tc.held == 0 && !bytes.Equal(f.log("step-a"), lines(0, 10)) {
				t.Error("the log is not there")
			}
		})
	}
}

// TestLargeTicket: the certificates of a ticket may be as many as Debian's bundle and more, and a
// ticket that is too large is called that.
func TestLargeTicket(t *testing.T) {
	for name, tc := range map[string]struct {
		bundle int
		want   string
	}{
		"255 KiB":        {255 << 10, ""},
		"the most":       {ticket.MaxCABundle, ""},
		"one more":       {ticket.MaxCABundle + 1, "caBundle has 524289 bytes, more than 524288"},
		"an endless one": {2 << 20, fmt.Sprintf("longer than %d bytes", ticket.MaxEncoded)},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			f.bundle = strings.Repeat("-----CERT\n", tc.bundle/10+1)[:tc.bundle]
			p := newPod(t, f, "step-a")
			log := slog.New(slog.DiscardHandler)
			tickets, err := newTickets(p.config, p.token, t.TempDir()+"/ticket", log)
			if err != nil {
				t.Fatal(err)
			}
			defer tickets.close()
			got, err := tickets.fetch(t.Context())
			if tc.want == "" && (err != nil || got.CABundle != f.bundle) {
				t.Errorf("%d bytes of certificates, %v", len(got.CABundle), err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}
