package main

import (
	"bytes"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
	"github.com/shiplog-dev/shiplog/tests/loss/budget"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// TestLossSixHours lets a step print a line a minute for six hours, with a clock that does not wait: tee's writer and the shipper's passes are the real ones, the loop around the passes is the test's. Then
// it prints nothing for two hours. The ticket is renewed meanwhile, and the store hears of the pod often enough that no reader takes it for dead.
func TestLossSixHours(t *testing.T) {
	m := budget.Begin(t, "log-6-hours")
	f := newFakeServer(t) // outside the bubble, where its connections do not stop the clock
	f.lifetime = 90 * time.Minute
	p := newPod(t, f, "step-a")
	var alive int
	f.putFault = func(_ int, name string, _ http.ResponseWriter) (bool, bool) {
		if name == "alive.json" {
			alive++
		}
		return true, false
	}
	var printed bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		w, err := spool.NewWriter(p.folder("step-a"), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		s := p.shipper()
		defer s.close()
		begin := time.Now()
		var uploads int64
		var heard time.Time
		for time.Since(begin) < 8*time.Hour {
			if elapsed := time.Since(begin); elapsed < 6*time.Hour && int64(bytes.Count(printed.Bytes(), []byte("\n"))) <= int64(elapsed/time.Minute) {
				line := sequence.Stream{}.Append(nil, int64(elapsed/time.Minute))
				printed.Write(line)
				w.Write(criline.Stdout, line)
			}
			next, err := s.pass(t.Context(), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if n := s.upload.uploads.Load(); n != uploads {
				uploads, heard = n, time.Now()
			}
			if silent := time.Since(heard); silent > 2*aliveInterval {
				t.Fatalf("the store has heard nothing for %v", silent)
			}
			// A connection that waits for its next request would hold the clock.
			s.upload.closeIdle()
			s.tickets.renewal.Wait()
			s.tickets.client.CloseIdleConnections()
			time.Sleep(max(next, time.Millisecond))
		}
		if err := w.End(record.Exit{}); err != nil {
			t.Fatal(err)
		}
		if err := s.drain(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	tickets, signs := 0, 0
	f.set(func() { tickets, signs = f.ticketCalls, alive })
	check := sequence.NewChecker(sequence.Stream{})
	for text := range bytes.Lines(f.log("step-a")) {
		l, err := criline.Parse(text[:len(text)-1])
		if err == nil {
			err = check.Line(l, criline.Stdout)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	report := check.Finish(int64(printed.Len()))
	seal := f.seal("step-a")
	if !report.Whole() || report.Records != 360 || seal.End != record.EndExited || seal.Last.Sub(seal.First) < 5*time.Hour+58*time.Minute {
		t.Errorf("%v, seal %+v", report, seal)
	}
	if tickets < 4 || signs < 100 {
		t.Errorf("%d tickets, %d signs of life", tickets, signs)
	}
	m.Add(budget.Log{Rate: "1 line/min", Printed: int64(printed.Len()), Lost: report.Lost(int64(printed.Len())), Told: fmt.Sprintf("sealed, %s", seal.End)})
	m.Note("%d segments, %d tickets, and alive.json written %d times", f.count(".log.zst"), tickets, signs)
}
