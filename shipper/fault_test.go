package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// logged counts the shipper's log lines with a message.
func (p *pod) messages(msg string) (n int) {
	return strings.Count(p.logged.String(), `"msg":"`+msg+`"`)
}

// TestUploadFaults: whatever the store does to the first uploads, the archive is exact, and a person reads of it once.
func TestUploadFaults(t *testing.T) {
	status := func(code int, body string) func(w http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool { http.Error(w, body, code); return false }
	}
	for name, fault := range map[string]func(w http.ResponseWriter) (stored bool){
		"500":                   status(500, "<Code>InternalError</Code>"),
		"503":                   status(503, "<Code>SlowDown</Code>"),
		"404, no bucket yet":    status(404, "<Code>NoSuchBucket</Code>"),
		"403":                   status(403, "<Code>AccessDenied</Code>"),
		"400":                   status(400, "<Code>EntityTooLarge</Code>"),
		"200 is not a redirect": status(307, ""),
		"connection cut":        func(w http.ResponseWriter) bool { cut(w); return false },
		"answer lost":           func(w http.ResponseWriter) bool { cut(w); return true },
		"500 but stored":        func(w http.ResponseWriter) bool { w.WriteHeader(500); return true },
		"redirected elsewhere": func(w http.ResponseWriter) bool {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a", "step-b")
			f.putFault = func(n int, _ string, w http.ResponseWriter) (bool, bool) {
				if n <= 2 {
					return fault(w), true
				}
				return true, false
			}
			p.write("step-a", spool.LogName(0), lines(0, 500))
			p.write("step-b", spool.LogName(0), lines(0, 5))
			p.drained()
			if !bytes.Equal(f.log("step-a"), lines(0, 500)) || !bytes.Equal(f.log("step-b"), lines(0, 5)) {
				t.Error("the archive is not what was in the spool")
			}
			f.seal("step-a")
			f.seal("step-b")
			want := 1
			if name == "400" {
				want = 2 // the store may take the other log's objects, so each is tried for itself
			}
			if failed, recovered := p.messages("failed; trying again until it succeeds"), p.messages("recovered"); failed != want || recovered != want {
				t.Errorf("logged %d failures and %d recoveries:\n%s", failed, recovered, p.logged)
			}
			if strings.Contains(p.logged.String(), podToken) || strings.Contains(p.logged.String(), "line 0000") {
				t.Errorf("a secret or log text is logged:\n%s", p.logged)
			}
		})
	}
}

// TestRefusedObject: what the store refuses of one log holds up no other, neither while the pod runs nor at its end, and is tried for as long as there is time.
func TestRefusedObject(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a", "step-b", "step-c")
	refuse := true
	f.putFault = func(_ int, name string, w http.ResponseWriter) (bool, bool) { // called with f's lock
		if refuse && (strings.HasPrefix(name, "step-a/") || name == "step-b/"+layout.SealFile) {
			http.Error(w, "<Code>EntityTooLarge</Code>", http.StatusBadRequest)
			return false, true
		}
		return true, false
	}
	for i, name := range p.config.Containers {
		p.write(name, spool.LogName(0), lines(100*i, 100))
	}
	p.write("step-b", spool.EndFile, end(t, record.Exit{}))
	s := p.shipper()
	now := time.Now()
	for range 5 { // a pass is over at once, whatever is refused
		if err := s.pass2(t, now); err != nil {
			t.Fatal(err)
		}
		now = now.Add(maxBackoff)
	}
	if !bytes.Equal(f.log("step-b"), lines(100, 100)) || !bytes.Equal(f.log("step-c"), lines(200, 100)) {
		t.Error("the other logs are not shipped")
	}
	if len(f.log("step-a")) > 0 {
		t.Error("nothing was refused")
	}
	if n := p.messages("failed; trying again until it succeeds"); n != 2 {
		t.Errorf("logged %d failures:\n%s", n, p.logged)
	}

	p.write("step-c", spool.LogName(0), lines(300, 10))
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan error)
	go func() { drained <- s.drain(ctx) }()
	f.until(func() bool { return f.objects["step-c/"+layout.SealFile] != nil })
	if f.count(layout.SealFile) != 1 {
		t.Error("sealed what was refused")
	}
	cancel()
	if err := <-drained; !errors.Is(err, context.Canceled) {
		t.Errorf("the drain ended with %v", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}

	// It is tried to the end, and succeeds when it is not refused any more.
	s = p.shipper()
	defer s.close()
	go func() { drained <- s.drain(t.Context()) }()
	var puts int
	f.set(func() { puts = f.puts })
	f.until(func() bool { return f.puts > puts+4 })
	f.set(func() { refuse = false })
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(f.log("step-a"), lines(0, 100)) {
		t.Error("what was refused is not shipped in the end")
	}
	for _, name := range p.config.Containers {
		f.seal(name)
	}
}

// TestExpiredTicket: S3 goes by its own clock; a refused ticket is replaced, not tried for ever.
func TestExpiredTicket(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	s := p.shipper()
	defer s.close()
	p.write("step-a", spool.LogName(0), lines(0, 1))
	if err := s.pass2(t, time.Now()); err != nil {
		t.Fatal(err)
	}
	f.set(func() { f.generation++ })
	p.write("step-a", spool.LogName(0), lines(1, 1))
	if err := s.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.log("step-a"), lines(0, 2)) || f.ticketCalls != 2 {
		t.Errorf("%d bytes, %d tickets", len(f.log("step-a")), f.ticketCalls)
	}
}

func TestTicketFaults(t *testing.T) {
	for name, fault := range map[string]func(w http.ResponseWriter){
		"500":      func(w http.ResponseWriter) { http.Error(w, "oops", 500) },
		"refused":  func(w http.ResponseWriter) { http.Error(w, `{"reason":"not-injected","message":"why"}`, 403) },
		"garbage":  func(w http.ResponseWriter) { _, _ = io.WriteString(w, "<html>") },
		"empty":    func(w http.ResponseWriter) { _, _ = io.WriteString(w, "{}") },
		"cut":      cut,
		"redirect": func(w http.ResponseWriter) { w.Header().Set("Location", "/bucket"); w.WriteHeader(http.StatusFound) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			f.ticketFault = func(n int, w http.ResponseWriter) bool {
				if n > 2 {
					return false
				}
				fault(w)
				return true
			}
			p.write("step-a", spool.LogName(0), lines(0, 5))
			p.drained()
			if !bytes.Equal(f.log("step-a"), lines(0, 5)) || f.ticketCalls != 3 {
				t.Errorf("%d bytes, %d ticket requests", len(f.log("step-a")), f.ticketCalls)
			}
		})
	}
}

// TestTicketCache: a restarted shipper goes on while the ticket service is down.
func TestTicketCache(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	p.write("step-a", spool.LogName(0), lines(0, 1))
	p.drained()
	info, err := os.Stat(filepath.Join(p.volume, contract.StateSubPath, "ticket"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the kept ticket: %v, %v", info, err)
	}
	f.set(func() {
		f.ticketFault = func(_ int, w http.ResponseWriter) bool { http.Error(w, "down", 503); return true }
	})
	p.write("step-a", spool.LogName(0), lines(1, 1))
	p.drained()
	if !bytes.Equal(f.log("step-a"), lines(0, 2)) {
		t.Errorf("%d bytes", len(f.log("step-a")))
	}
	if f.ticketCalls != 1 {
		t.Errorf("%d ticket requests, though the kept one is good", f.ticketCalls)
	}
}

// TestTicketRenewal: in the second half of its life a ticket is renewed once, while uploads go on with it.
func TestTicketRenewal(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	s := p.shipper()
	defer s.close()
	old := ticket.Ticket{
		URL: f.URL + "/bucket", Fields: map[string]string{"policy": "0", "x-amz-signature": "s"}, Prefix: podPrefix, MaxBytes: 1 << 20,
		Issued: time.Now().Add(-5 * time.Hour), Expires: time.Now().Add(time.Hour),
	}
	asked, answer := make(chan struct{}), make(chan struct{})
	f.ticketFault = func(int, http.ResponseWriter) bool {
		f.mu.Unlock() // the store goes on meanwhile
		defer f.mu.Lock()
		close(asked)
		<-answer
		return false
	}
	s.tickets.keep(old)
	for i := range 5 {
		p.write("step-a", spool.LogName(0), lines(i, 1))
		if err := s.pass2(t, time.Now().Add(time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	<-asked
	if n := f.count(".log.zst"); n != 5 {
		t.Errorf("%d segments while the renewal is under way", n)
	}
	_, renewing := s.tickets.look(time.Now().Add(time.Hour)) // the old one is over
	close(answer)
	<-renewing
	got, err := s.tickets.get(t.Context())
	if err != nil || !got.Expires.After(old.Expires) {
		t.Errorf("%v, %v", got.Expires, err)
	}
	if f.ticketCalls != 1 {
		t.Errorf("%d requests", f.ticketCalls)
	}
}

// TestTermDuringOutage: SIGTERM comes while the store is down and a segment waits. The drain uploads that same segment when the store is back.
func TestTermDuringOutage(t *testing.T) {
	for _, diskFull := range []bool{false, true} {
		f := newFakeServer(t)
		p := newPod(t, f, "step-a", "step-b")
		ctx, cancel := context.WithCancel(t.Context())
		f.putFault = func(n int, _ string, w http.ResponseWriter) (bool, bool) {
			if n == 1 {
				cancel()
			}
			if n <= 3 {
				cut(w) // the first was stored, and nobody knows
				return n == 1, true
			}
			return true, false
		}
		p.write("step-a", spool.LogName(0), lines(0, 60))
		p.write("step-a", spool.LogName(int64(len(lines(0, 60)))), lines(60, 40)) // the segment spans two files
		p.write("step-b", spool.LogName(0), lines(0, 10))
		s := p.shipper()
		if diskFull { // the state folder takes nothing
			state := filepath.Join(p.volume, contract.StateSubPath)
			if err := os.RemoveAll(state); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.run(ctx); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.log("step-a"), lines(0, 100)) || !bytes.Equal(f.log("step-b"), lines(0, 10)) {
			t.Errorf("disk full %v: the archive is not what was in the spool", diskFull)
		}
		f.seal("step-a")
		f.seal("step-b")
	}
}

// TestDrainTimeout: a store that never answers does not hold the pod for longer than is allowed.
func TestDrainTimeout(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	f.putFault = func(_ int, _ string, w http.ResponseWriter) (bool, bool) { w.WriteHeader(500); return false, true }
	p.config.DrainTimeout = contract.Duration(50 * time.Millisecond)
	p.write("step-a", spool.LogName(0), lines(0, 1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.shipper().run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	// Whoever starts it again, finds all that is needed.
	f.set(func() { f.putFault = nil })
	p.config.DrainTimeout = 0
	p.drained()
	if !bytes.Equal(f.log("step-a"), lines(0, 1)) {
		t.Error("the line is lost")
	}
}

// TestHostileStep: what one step does to its own folder harms only its own log, and makes a bounded number of objects.
func TestHostileStep(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, lines(0, 3), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFakeServer(t)
	p := newPod(t, f, "evil", "good")
	s := p.shipper()
	defer s.close()
	evil := func(name string) string { return filepath.Join(p.folder("evil"), name) }
	for _, err := range []error{
		os.Symlink(secret, evil(spool.LogName(0))),
		os.Mkdir(evil(spool.EndFile), 0o755),
		os.Link(secret, evil(spool.LogName(5000))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	marker, err := criline.AppendMarker(nil, time.Now(), criline.Marker{
		Kind: criline.Gap, Reason: "forged", Stdout: 1 << 62, Stderr: 1 << 62, Detail: strings.Repeat("x", 60_000),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.write("evil", spool.LogName(9000), bytes.Repeat(marker, 200))
	p.write("evil", spool.TermFile, nil)
	start := time.Now()
	for i := range 100 { // in 1 s
		p.write("evil", spool.LogName(9000), lines(i, 1))
		p.write("good", spool.LogName(0), lines(i, 1))
		if err := s.pass2(t, start.Add(time.Duration(i)*10*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.count(".log.zst"); n > 45 {
		t.Errorf("%d segments in a second", n)
	}
	if f.puts > 50 {
		t.Errorf("%d uploads in a second", f.puts)
	}
	if err := s.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.log("good"), lines(0, 100)) {
		t.Error("the other step's log is not exact")
	}
	if bytes.Contains(f.log("evil"), lines(0, 1)) && bytes.Count(f.log("evil"), lines(0, 1)) != 1 {
		t.Error("the link's target is in the archive")
	}
	seal := f.seal("evil")
	if b := f.snapshot()["evil/"+layout.SealFile]; len(b) > 64<<10 || seal.Lost.Stdout < 0 || len(seal.Gaps) > record.MaxGaps {
		t.Errorf("seal of %d bytes, lost %+v", len(b), seal.Lost)
	}
	if seal.End != record.EndKilled {
		t.Errorf("end %s", seal.End)
	}
	state, err := os.Stat(filepath.Join(p.volume, contract.StateSubPath, "evil.json"))
	if err != nil || state.Size() > 256<<10 {
		t.Errorf("state of %d bytes, %v", state.Size(), err)
	}
}

// TestGarbage: a step that fills its spool with what is no line neither holds up the other logs nor the end.
func TestGarbage(t *testing.T) {
	for name, base := range map[string]int64{"in the first file": 0, "in the file with the largest number": math.MaxInt64} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "evil", "good")
			garbage := bytes.Repeat([]byte{'x'}, 3*mostPassed/2)
			p.write("evil", spool.LogName(0), nil)
			p.write("evil", spool.LogName(base), garbage)
			p.write("good", spool.LogName(0), lines(0, 10))
			s := p.shipper()
			defer s.close()
			if err := s.pass2(t, time.Now()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(f.log("good"), lines(0, 10)) {
				t.Error("the other log is not shipped in the first pass")
			}
			if passed := s.logs[0].state.Position.Offset; base == 0 && passed < mostPassed || passed > mostPassed+10<<20 {
				t.Errorf("passed over %d bytes", passed)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := s.drain(ctx); !errors.Is(err, context.Canceled) || s.logs[0].state.Position.Offset >= int64(len(garbage)) {
				t.Errorf("%v at %+v", err, s.logs[0].state.Position)
			}
			if err := s.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if seal := f.seal("evil"); seal.Lost.Stdout != int64(len(garbage)) {
				t.Errorf("marked %d bytes of %d", seal.Lost.Stdout, len(garbage))
			}
		})
	}
}

func TestUnusableConfig(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	p.config.CABundle = "no PEM"
	if s, err := newShipper(p.config, p.volume, p.token, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "CA bundle") {
		t.Errorf("%v, %v", s, err)
	}
}

func TestProtect(t *testing.T) {
	if err := protect(func() error { panic("oh") }); err == nil || !strings.Contains(err.Error(), "oh") {
		t.Errorf("%v", err)
	}
	if err := protect(func() error { return nil }); err != nil {
		t.Errorf("%v", err)
	}
}

// TestRetry has a clock of its own.
func TestRetry(t *testing.T) {
	fails := func(n int, err error) func(context.Context) error {
		return func(context.Context) error {
			n--
			if n >= 0 {
				return err
			}
			return nil
		}
	}
	for name, tc := range map[string]struct {
		try         func(context.Context) error
		least, most time.Duration
		logs        int
	}{
		"succeeds":              {fails(0, nil), 0, 0, 0},
		"once":                  {fails(1, io.EOF), firstBackoff / 10, firstBackoff * 11 / 10, 2},
		"ten times":             {fails(10, io.EOF), time.Second, 70 * time.Second, 2},
		"a hundred times":       {fails(100, io.EOF), 90 * time.Second, 100 * maxBackoff * 11 / 10, 2},
		"is told when to retry": {fails(1, &retryAfter{io.EOF, 30 * time.Second}), 30 * time.Second, 30 * time.Second, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logged syncBuffer
				begin := time.Now()
				retry := retrier{log: slog.New(slog.NewJSONHandler(&logged, nil))}
				err := retry.do(t.Context(), "x", tc.try)
				if took := time.Since(begin); err != nil || took < tc.least || took > tc.most {
					t.Errorf("%v after %v, want %v to %v", err, took, tc.least, tc.most)
				}
				if n := strings.Count(logged.String(), "\n"); n != tc.logs {
					t.Errorf("%d lines logged:\n%s", n, &logged)
				}
			})
		})
	}
	t.Run("until the context ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			begin := time.Now()
			retry := retrier{log: slog.New(slog.DiscardHandler)}
			err := retry.do(ctx, "x", func(context.Context) error { return io.EOF })
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, io.EOF) || time.Since(begin) != time.Hour {
				t.Errorf("%v after %v", err, time.Since(begin))
			}
		})
	})
}

func TestRetryAfterHeader(t *testing.T) {
	for header, want := range map[string]time.Duration{"": 0, "3": 3 * time.Second, "0": 0, "-1": 0, "soon": 0, "100000": time.Minute} {
		resp := &http.Response{Header: http.Header{"Retry-After": {header}}}
		err := withRetryAfter(resp, io.EOF)
		var after *retryAfter
		if got := errors.As(err, &after); got != (want > 0) || got && after.delay != want || !errors.Is(err, io.EOF) {
			t.Errorf("%q: %v", header, err)
		}
	}
}

// FuzzState: whatever is in the state file, it is taken as a whole or not at all, and what is taken can be saved and shipped on.
func FuzzState(f *testing.F) {
	good, err := json.Marshal(state{Bytes: 5, Position: spool.Position{Base: 1, Offset: 2}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"pending":"x"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := stateDir(t.TempDir())
		if err := os.WriteFile(dir.stateFile("a"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := dir.load("a")
		if err != nil {
			return
		}
		if _, err := s.digest(); err != nil {
			t.Fatal(err)
		}
		if err := dir.save("a", s); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.load("a"); err != nil {
			t.Fatal(err)
		}
	})
}
