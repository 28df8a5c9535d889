//go:build linux

package local

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/ticket"
	"github.com/shiplog-dev/shiplog/tests/loss/budget"
	"github.com/shiplog-dev/shiplog/tests/loss/rig"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// s3Case is a way in which the store, or the way to it, is broken while the steps print.
type s3Case struct {
	row  string
	name string // where a row has several
	// begin breaks it before the shipper begins, and broken when it has shipped something. Nil is nothing.
	begin, broken func(t *testing.T, p *rig.Pod)
	// quiet says that the shipper need not notice: that something was broken is seen elsewhere.
	quiet bool
	// steps are all where it is 0, and otherwise the first ones.
	steps int
	// waits says that the row takes long, and does little but wait.
	waits bool
	// lasts is how long the steps print, where it is not as long as the outage and some seconds.
	lasts time.Duration
}

// failures is how often something of the shipper's failed for the first time, as far as it logs it.
func failures(p *rig.Pod) int {
	return strings.Count(p.ShipperLog(), `"failed; trying again until it succeeds"`)
}

// TestLossS3 breaks the store while the steps print, and mends it. Nothing may be lost.
func TestLossS3(t *testing.T) {
	t.Parallel()
	outage := budget.Scale(3*time.Second, 2*time.Minute)
	// Longer by what a busy machine may take until it has shipped something.
	lasts := budget.Scale(8*time.Second, 2*time.Minute+3*time.Second)
	breaks := func(choose func(n int64, r *http.Request) rig.Fault) func(*testing.T, *rig.Pod) {
		return func(_ *testing.T, p *rig.Pod) { p.S3.Break(choose) }
	}
	skewed := func(by time.Duration) func(t *testing.T, p *rig.Pod) {
		return func(_ *testing.T, p *rig.Pod) {
			p.Tickets.Sign(func(ctx context.Context) (ticket.Ticket, error) {
				// Short, so that tickets are renewed meanwhile.
				tk, err := p.Tickets.Good(ctx, func(_ *objectstore.Config, _ *int64, lifetime *time.Duration) { *lifetime = 6 * time.Second })
				tk.Issued, tk.Expires = tk.Issued.Add(by), tk.Expires.Add(by)
				return tk, err
			})
		}
	}
	for _, tc := range []s3Case{
		{row: "s3-refused", broken: func(t *testing.T, p *rig.Pod) {
			p.S3.Refuse()
			rig.Pass(t, outage)
			p.S3.Listen()
		}},
		{row: "s3-blackhole", quiet: true, broken: func(t *testing.T, p *rig.Pod) {
			p.S3.BlackHole()
			rig.Pass(t, outage)
			p.S3.Heal(true)
		}},
		// The shipper gives up a connection that says nothing after 30 s and a time that depends on the object's size.
		{row: "s3-blackhole-cut", steps: 2, waits: true, broken: func(t *testing.T, p *rig.Pod) {
			p.S3.BlackHole()
			rig.Pass(t, outage)
			p.S3.Heal(false)
			rig.Until(t, "the shipper gives up the connection", 3*time.Minute, func() bool { return failures(p) > 0 })
		}},
		{row: "s3-503-some", begin: breaks(func(n int64, _ *http.Request) rig.Fault {
			switch n % 10 {
			case 0:
				return rig.Fault{Status: http.StatusInternalServerError}
			case 3, 6:
				return rig.Fault{Status: http.StatusServiceUnavailable}
			}
			return rig.Fault{}
		})},
		{row: "s3-503-all", broken: func(t *testing.T, p *rig.Pod) {
			p.S3.Break(func(n int64, _ *http.Request) rig.Fault {
				return rig.Fault{Status: []int{http.StatusInternalServerError, http.StatusServiceUnavailable}[n%2]}
			})
			rig.Pass(t, outage)
			p.S3.Break(nil)
		}},
		{row: "s3-slow", steps: 2, quiet: true, waits: true, lasts: budget.Scale(3*time.Second, 30*time.Second), begin: func(_ *testing.T, p *rig.Pod) { p.S3.Limit(64 << 10) }},
		{row: "s3-cut-body", begin: breaks(func(n int64, r *http.Request) rig.Fault {
			if n%2 == 0 {
				return rig.Fault{}
			}
			return rig.Fault{CutAfter: 1 + r.ContentLength*(n%10)/10}
		})},
		{row: "s3-answer-lost", begin: breaks(func(n int64, _ *http.Request) rig.Fault { return rig.Fault{LoseAnswer: n%2 == 1} })},
		{row: "s3-clock-service", name: "the service is ahead", quiet: true, begin: skewed(12 * time.Hour)},
		{row: "s3-clock-service", name: "the service is behind", quiet: true, begin: skewed(-12 * time.Hour)},
		{row: "s3-ticket-expired", broken: func(t *testing.T, p *rig.Pod) {
			p.Tickets.Sign(func(ctx context.Context) (ticket.Ticket, error) {
				tk, err := p.Tickets.Good(ctx, func(_ *objectstore.Config, _ *int64, lifetime *time.Duration) { *lifetime = time.Second })
				if err != nil {
					return tk, err
				}
				// It is over when it arrives, and says that it is not.
				select {
				case <-time.After(time.Until(tk.Expires) + 100*time.Millisecond):
				case <-ctx.Done():
					return tk, ctx.Err()
				}
				tk.Expires = tk.Expires.Add(6 * time.Hour)
				return tk, nil
			})
			p.S3.Break(func(n int64, _ *http.Request) rig.Fault { // the ticket that it has is good for hours
				return rig.Fault{Status: http.StatusForbidden}
			})
			rig.Until(t, "another ticket is asked for", time.Minute, func() bool { return p.Tickets.Calls() > 1 })
			p.S3.Break(nil)
			rig.Pass(t, outage)
			p.Tickets.Sign(func(ctx context.Context) (ticket.Ticket, error) { return p.Tickets.Good(ctx, nil) })
		}},
		{row: "s3-403", begin: func(_ *testing.T, p *rig.Pod) {
			p.Tickets.Sign(func(ctx context.Context) (ticket.Ticket, error) {
				return p.Tickets.Good(ctx, func(c *objectstore.Config, _ *int64, _ *time.Duration) {
					c.Credentials = &objectstore.Credentials{AccessKeyID: c.Credentials.AccessKeyID, SecretAccessKey: "wrong"}
				})
			})
		}, broken: func(t *testing.T, p *rig.Pod) {
			rig.Pass(t, outage)
			p.Tickets.Sign(func(ctx context.Context) (ticket.Ticket, error) { return p.Tickets.Good(ctx, nil) })
		}},
		{row: "s3-no-bucket", begin: func(_ *testing.T, p *rig.Pod) {
			p.Tickets.Sign(func(ctx context.Context) (ticket.Ticket, error) {
				return p.Tickets.Good(ctx, func(c *objectstore.Config, _ *int64, _ *time.Duration) { c.Bucket = "late" })
			})
		}, broken: func(t *testing.T, p *rig.Pod) {
			rig.Pass(t, outage)
			p.EnsureBucket("late")
			p.Use("late")
		}},
		{row: "s3-down-at-end", broken: func(t *testing.T, p *rig.Pod) {
			p.S3.Refuse()
			// Within the grace, which begins about then.
			timer := time.AfterFunc(budget.Scale(6*time.Second, 2*time.Minute+45*time.Second), p.S3.Listen)
			t.Cleanup(func() { timer.Stop() })
			rig.Pass(t, outage)
		}},
	} {
		t.Run(strings.TrimSuffix(tc.row+"/"+tc.name, "/"), func(t *testing.T) {
			if tc.waits {
				t.Parallel()
			} else {
				parallel(t)
			}
			m := budget.Begin(t, tc.row)
			names := steps
			if tc.steps > 0 {
				names = steps[:tc.steps]
			}
			p := rig.New(t, rig.Options{Containers: names})
			if tc.begin != nil {
				tc.begin(t, p)
			}
			p.StartShipper()
			all := startSteps(p, names, cmp.Or(tc.lasts, lasts))
			if tc.begin == nil {
				shipped(t, p, steps[0])
			}
			if tc.broken != nil {
				tc.broken(t, p)
			}
			unharmed(all)
			drain(t, p)
			if !tc.quiet && failures(p) == 0 || tc.quiet && p.S3.Faults() == 0 && p.Tickets.Calls() < 2 {
				t.Error("nothing was broken")
			}
			for _, s := range all {
				nothingLost(t, m, p, s)
			}
		})
	}
}

// TestLossPastGrace keeps the store down until the kubelet's patience ends. What was shipped is good, and the reader is told that it is not all.
func TestLossPastGrace(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "s3-down-past-grace")
	p := rig.New(t, rig.Options{Containers: steps})
	p.StartShipper()
	all := startSteps(p, steps, 8*time.Second)
	for _, name := range steps {
		shipped(t, p, name)
	}
	p.S3.Refuse()
	unharmed(all)
	if drained, _ := p.Stop(budget.Scale(3*time.Second, time.Minute)); drained {
		t.Error("the shipper drained, and there was no store")
	}
	for _, s := range all {
		r := read(m, p, s, later)
		if lost := r.Report.Lost(s.Printed()); !r.Report.Right() || r.Report.Records == 0 || lost != r.Report.End {
			t.Errorf("%s: %v", s.Container, r.Report)
		}
		if r.Status != backend.Partial || !strings.Contains(r.Why, "last heard of at ") || r.Exit != 5 {
			t.Errorf("%s: the reader says %s, why %q", s.Container, r.Told(), r.Why)
		}
	}
}

// TestLossRefused lets the store refuse one container's objects for ever, as too large. The others' logs are not held up by it, nor is the pod's end for longer than its grace.
func TestLossRefused(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "s3-400")
	p := rig.New(t, rig.Options{Containers: steps})
	p.Config.SegmentBytes = 1 << 20
	p.Tickets.Sign(func(ctx context.Context) (ticket.Ticket, error) {
		return p.Tickets.Good(ctx, func(_ *objectstore.Config, maxBytes *int64, _ *time.Duration) { *maxBytes = 100 << 10 })
	})
	p.StartShipper()
	all := []*rig.Step{
		p.Start(steps[2], rig.StepOptions{Options: sequence.Options{Rate: fast, Bytes: fast.Bytes}}),
		p.Start(steps[0], rig.StepOptions{Options: sequence.Options{Rate: slow, Duration: 6 * time.Second}}),
		p.Start(steps[1], rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: 50e3}, Duration: 6 * time.Second}}),
	}
	for _, s := range all {
		s.Unharmed(0)
	}
	// They are sealed while the pod lives.
	for _, s := range all[1:] {
		rig.Until(t, "the seal of "+s.Container, time.Minute, func() bool { return slices.Contains(p.Objects(s.Container), layout.SealFile) })
	}
	if drained, _ := p.Stop(3 * time.Second); drained {
		t.Error("the shipper drained what the store refuses")
	}
	for _, s := range all[1:] {
		nothingLost(t, m, p, s)
	}
	if !strings.Contains(p.ShipperLog(), "EntityTooLarge") {
		t.Errorf("the store refused nothing:\n%s", p.ShipperLog())
	}
	r := p.Read(all[0].Container, all[0].Seed, all[0].Printed(), later)
	// Its end was small enough, and is shipped first.
	lost := r.Report.Lost(all[0].Printed())
	if !r.Report.Right() || lost == 0 || r.Exit != 4 {
		t.Errorf("%v; the reader says: %s", r.Report, r.Told())
	}
	m.Note("of the refused container %d of %d bytes are lost; the reader: %s", lost, all[0].Printed(), r.Told())
}

// TestLossShipperKilledInUpload kills the shipper while an object is on its way: with half of it sent, and with all of it stored and the answer not arrived.
func TestLossShipperKilledInUpload(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "shipper-kill-upload")
	const most = 40
	var mu sync.Mutex // guards what follows
	kills, over := 0, false
	p := rig.New(t, rig.Options{Containers: steps})
	p.S3.Break(func(n int64, r *http.Request) rig.Fault {
		kill := func() {
			mu.Lock()
			defer mu.Unlock()
			if kills < most && !over {
				kills++
				p.KillShipper()
			}
		}
		switch {
		case n%4 == 1:
			return rig.Fault{CutAfter: 1 + r.ContentLength/2, Then: kill}
		case n%4 == 3:
			return rig.Fault{LoseAnswer: true, Then: kill}
		}
		return rig.Fault{}
	})
	p.StartShipper()
	all := startSteps(p, steps, 6*time.Second)
	unharmed(all)
	p.S3.Break(nil)
	mu.Lock()
	over = true
	mu.Unlock()
	drain(t, p)
	if kills < 5 {
		t.Errorf("the shipper was killed %d times", kills)
	}
	m.Note("killed %d times", kills)
	for _, s := range all {
		nothingLost(t, m, p, s)
	}
}
