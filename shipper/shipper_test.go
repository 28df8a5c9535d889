package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		runAsShipper()
		return
	}
	goleak.VerifyTestMain(m)
}

// end makes the bytes of end.json.
func end(t *testing.T, exit record.Exit) []byte {
	t.Helper()
	b, err := spool.EncodeEnd(spool.End{Exit: exit})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// drained runs a shipper that was told to stop already: it ships and seals all that is there.
func (p *pod) drained() {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.shipper().run(ctx); err != nil {
		p.t.Fatalf("%v\n%s", err, p.logged)
	}
}

func TestDrain(t *testing.T) {
	torn := lines(0, 4)
	torn = torn[:len(torn)-20]
	for name, tc := range map[string]struct {
		files map[string][]byte
		want  []byte // the archive; nil: the files' lines
		end   record.End
		exit  *record.Exit
		gaps  []criline.Marker
	}{
		"exited": {
			files: map[string][]byte{spool.LogName(0): lines(0, 1000), spool.EndFile: end(t, record.Exit{Code: 3})},
			want:  lines(0, 1000), end: record.EndExited, exit: &record.Exit{Code: 3},
		},
		"killed by a signal": {
			files: map[string][]byte{spool.LogName(0): lines(0, 1), spool.EndFile: end(t, record.Exit{Code: 137, Signal: "killed"})},
			want:  lines(0, 1), end: record.EndExited, exit: &record.Exit{Code: 137, Signal: "killed"},
		},
		"tee was killed":      {files: map[string][]byte{spool.LogName(0): lines(0, 10)}, want: lines(0, 10), end: record.EndKilled},
		"never started":       {end: record.EndNeverStarted},
		"started, no output":  {files: map[string][]byte{spool.LogName(0): nil}, end: record.EndKilled},
		"exited, no output":   {files: map[string][]byte{spool.LogName(0): nil, spool.EndFile: end(t, record.Exit{})}, end: record.EndExited, exit: &record.Exit{}},
		"end.json is garbage": {files: map[string][]byte{spool.LogName(0): lines(0, 2), spool.EndFile: []byte("{")}, want: lines(0, 2), end: record.EndKilled},
		"end.json is too large": {
			files: map[string][]byte{spool.LogName(0): lines(0, 2), spool.EndFile: append(end(t, record.Exit{}), bytes.Repeat([]byte{' '}, spool.MaxEnd)...)},
			want:  lines(0, 2), end: record.EndKilled,
		},
		"several files": {
			files: map[string][]byte{
				spool.LogName(0):                               lines(0, 50),
				spool.LogName(int64(len(lines(0, 50)))):        lines(50, 70),
				spool.LogName(int64(len(lines(0, 50+70)))):     lines(120, 1),
				spool.LogName(int64(len(lines(0, 50+70+1)))):   nil,
				spool.LogName(int64(len(lines(0, 121)))) + "x": []byte("not a log file"),
			},
			want: lines(0, 121), end: record.EndKilled,
		},
		"torn last line": {
			files: map[string][]byte{spool.LogName(0): torn}, end: record.EndKilled,
			want: append(slices.Clone(torn), '\n'),
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			for file, content := range tc.files {
				p.write("step-a", file, content)
			}
			p.drained()
			want := tc.want
			if name == "torn last line" {
				// The last line becomes a piece: its newline was not seen.
				i := bytes.LastIndexByte(want[:len(want)-1], '\n') + 1
				line, err := criline.Parse(want[i : len(want)-1])
				if err != nil {
					t.Fatal(err)
				}
				want = criline.Append(want[:i:i], line.Time, line.Stream, false, line.Text)
			}
			if got := f.log("step-a"); !bytes.Equal(got, want) {
				t.Errorf("archive of %d bytes, want %d:\n%.300s", len(got), len(want), got)
			}
			seal := f.seal("step-a")
			if seal.End != tc.end || (seal.Exit == nil) != (tc.exit == nil) || seal.Exit != nil && *seal.Exit != *tc.exit || seal.GapCount != 0 {
				t.Errorf("seal %+v, want %s %v and no gaps", seal, tc.end, tc.exit)
			}
		})
	}
}

// TestEndWithAGap: tee could not write what its log lacks into the log, and said it in end.json. It is marked in the archive, once, whenever the shipper is killed.
func TestEndWithAGap(t *testing.T) {
	gap := criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolError, Stdout: 1000, Stderr: 20, Detail: "no space left on device"}
	content := lines(0, 10)
	// A line that tee could not cut off again is no line.
	torn := append(slices.Clone(content), lines(10, 1)[:60]...)
	ended := func(t *testing.T, printed int64) []byte {
		t.Helper()
		b, err := spool.EncodeEnd(spool.End{
			Exit: record.Exit{Code: 3}, Bytes: int64(len(content)), Printed: record.Printed{Stdout: printed}, Gap: &gap, Last: time.Date(2026, 11, 23, 4, 0, 0, 0, time.UTC),
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, tc := range map[string]struct {
		file []byte
		kill int // the upload at which the shipper is killed; 0: none
	}{
		"whole lines":            {content, 0},
		"a torn line":            {torn, 0},
		"killed at the lines":    {torn, 1},
		"killed at the seal":     {torn, 2},
		"no line at all is kept": {nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			p.write("step-a", spool.LogName(0), tc.file)
			end := ended(t, 5000)
			if tc.file == nil {
				content := bytes.Replace(end, fmt.Appendf(nil, `"bytes":%d`, len(content)), []byte(`"bytes":0`), 1)
				end = content
			}
			p.write("step-a", spool.EndFile, end)
			s := p.shipper()
			now := time.Now()
			if tc.kill > 0 {
				ctx, cancel := context.WithCancel(t.Context())
				f.putFault = func(n int, _ string, w http.ResponseWriter) (bool, bool) {
					if n == tc.kill {
						cancel() // as a kill: the answer is not seen
						<-ctx.Done()
						cut(w)
						return true, true
					}
					return true, false
				}
				for ctx.Err() == nil {
					_, _ = s.pass(ctx, now)
					now = now.Add(time.Second)
				}
				if err := s.close(); err != nil {
					t.Fatal(err)
				}
				s = p.shipper()
			}
			defer s.close()
			for range 5 {
				if err := s.pass2(t, now); err != nil {
					t.Fatal(err)
				}
				now = now.Add(time.Minute)
			}
			check := func(gaps int64) {
				t.Helper()
				seal := f.seal("step-a")
				if seal.End != record.EndExited || seal.Exit.Code != 3 || seal.GapCount != gaps || seal.Lost != (record.Printed{Stdout: 1000 * gaps, Stderr: 20 * gaps}) {
					t.Errorf("seal %+v", seal)
				}
				if log := f.log("step-a"); int64(bytes.Count(log, []byte(" marker F "))) != gaps || tc.file != nil && !bytes.HasPrefix(log, content) {
					t.Errorf("the log is %s", log)
				}
			}
			check(1)
			if seals := f.count(layout.SealFile); seals != 1 {
				t.Errorf("%d seals", seals)
			}
			if err := s.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			check(1)
			// It has run again, and printed more, of which nothing could be kept either.
			if err := os.WriteFile(filepath.Join(p.folder("step-a"), spool.EndFile), ended(t, 6020), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := s.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			check(2)
		})
	}
	t.Run("forged", func(t *testing.T) {
		for _, end := range []string{
			`{"bytes":-5,"gap":{"kind":"gap","stdout":-7}}`, `{"bytes":1,"last":"9999-12-31T23:59:59Z","gap":{"kind":"x","reason":"` + strings.Repeat("x", 2000) + `"}}`,
			`{"bytes":9223372036854775807,"printed":{"stdout":9223372036854775807,"stderr":5},"gap":{}}`,
		} {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			p.write("step-a", spool.LogName(0), content)
			p.write("step-a", spool.EndFile, []byte(end))
			p.drained()
			if log := f.log("step-a"); !bytes.HasPrefix(log, content) || len(log) > len(content)+4096 {
				t.Errorf("%s: a log of %d bytes", end, len(log))
			}
			if seal := f.seal("step-a"); seal.Lost.Stdout < 0 {
				t.Errorf("%s: seal %+v", end, seal)
			}
		}
	})
}

// TestKilledInDeletion: what an earlier shipper had recorded as shipped, and not deleted, is deleted by the next one at once: tee counts it as output that waits.
func TestKilledInDeletion(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	first, second := lines(0, 50), lines(50, 50)
	p.write("step-a", spool.LogName(0), first)
	p.write("step-a", spool.LogName(int64(len(first))), second)
	p.drained()
	p.write("step-a", spool.LogName(0), first) // as if it had not come so far
	s := p.shipper()
	defer s.close()
	if _, err := os.Stat(filepath.Join(p.folder("step-a"), spool.LogName(0))); !os.IsNotExist(err) {
		t.Errorf("the shipped file is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.folder("step-a"), spool.LogName(int64(len(first))))); err != nil {
		t.Errorf("the present file is gone: %v", err)
	}

	// What a pending segment was cut from may be needed once more.
	third := lines(100, 50)
	p.write("step-a", spool.LogName(int64(len(first)+len(second))), third)
	ctx, cancel := context.WithCancel(t.Context())
	f.putFault = func(_ int, _ string, w http.ResponseWriter) (bool, bool) {
		cancel()
		<-ctx.Done()
		cut(w)
		return false, true
	}
	for ctx.Err() == nil {
		_, _ = s.pass(ctx, time.Now())
	}
	f.set(func() { f.putFault = nil })
	again := p.shipper()
	defer again.close()
	if again.logs[0].state.Pending == "" {
		t.Fatal("no segment is pending")
	}
	if err := os.WriteFile(filepath.Join(p.volume, contract.StateSubPath, "step-a.segment"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.log("step-a"), lines(0, 150)) {
		t.Error("the archive is not what was printed")
	}
}

// TestWhileItRuns drives the shipper's core by hand: what is written is shipped when it is due, sealed when its container ends, and deleted.
func TestWhileItRuns(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a", "step-b")
	s := p.shipper()
	defer s.close()
	now := time.Now()
	pass := func() {
		t.Helper()
		if _, err := s.pass(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	pass()
	if n := len(f.snapshot()); n != 0 {
		t.Fatalf("%d objects of an empty spool", n)
	}
	first := lines(0, 5)
	p.write("step-a", spool.LogName(0), first)
	pass()
	if got := f.log("step-a"); !bytes.Equal(got, first) {
		t.Fatalf("the first lines are not shipped at once: %q", got)
	}
	p.write("step-a", spool.LogName(0), lines(5, 5))
	pass()
	if got := f.log("step-a"); !bytes.Equal(got, first) {
		t.Fatalf("cut again before a second has passed: %q", got)
	}
	now = now.Add(time.Second)
	pass()
	all := lines(0, 10)
	if got := f.log("step-a"); !bytes.Equal(got, all) {
		t.Fatalf("after a second: %q", got)
	}

	// The next file completes the first, which is deleted once it is shipped.
	p.write("step-a", spool.LogName(int64(len(all))), lines(10, 1))
	pass()
	if _, err := os.Stat(filepath.Join(p.folder("step-a"), spool.LogName(0))); !os.IsNotExist(err) {
		t.Errorf("the shipped file is still there: %v", err)
	}

	// One container's SIGTERM mark hurries all.
	now = now.Add(hurryInterval)
	p.write("step-b", spool.LogName(0), lines(100, 1))
	p.write("step-b", spool.TermFile, nil)
	p.write("step-a", spool.LogName(int64(len(all))), lines(11, 1))
	pass()
	if got := f.log("step-a"); !bytes.Equal(got, lines(0, 12)) {
		t.Errorf("with SIGTERM: %d bytes", len(got))
	}

	// A container's end seals its log while the pod goes on.
	p.write("step-a", spool.LogName(int64(len(all))), lines(12, 1))
	p.write("step-a", spool.EndFile, end(t, record.Exit{Code: 1}))
	now = now.Add(hurryInterval)
	pass() // cuts the rest
	pass() // sees that there is no more
	if seal := f.seal("step-a"); seal.End != record.EndExited || seal.Exit.Code != 1 || seal.Bytes != int64(len(lines(0, 13))) {
		t.Errorf("seal %+v", seal)
	}
	if f.count(layout.SealFile) != 1 {
		t.Error("step-b is sealed while it runs")
	}

	// It runs again, as a native sidecar may: the log goes on, and the pod's end seals it anew.
	if err := os.Remove(filepath.Join(p.folder("step-a"), spool.EndFile)); err != nil {
		t.Fatal(err)
	}
	p.write("step-a", spool.LogName(int64(len(all))), lines(13, 1))
	now = now.Add(time.Minute)
	pass()
	if err := s.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if seal := f.seal("step-a"); seal.End != record.EndKilled || seal.Bytes != int64(len(lines(0, 14))) {
		t.Errorf("seal %+v", seal)
	}
	f.seal("step-b")
}

// TestRun is the whole program with its goroutines: nothing but the kernel's hints and SIGTERM moves it.
func TestRun(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a", "step-b", "step-c")
	stored := make(chan string, 100)
	f.putFault = func(_ int, name string, _ http.ResponseWriter) (bool, bool) {
		stored <- name
		return true, false
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := p.shipper()
	go func() { done <- s.run(ctx) }()

	w, err := spool.NewWriter(p.folder("step-a"), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(criline.Stdout, []byte("hello\nthere"))
	<-stored
	if err := w.End(record.Exit{}); err != nil {
		t.Fatal(err)
	}
	for name := range stored {
		if name == "step-a/"+layout.SealFile {
			break
		}
	}
	p.write("step-b", spool.LogName(0), lines(0, 3))
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	log := f.log("step-a")
	var printed []byte
	for text := range bytes.Lines(log) {
		line, err := criline.Parse(text[:len(text)-1])
		if err != nil {
			t.Fatal(err)
		}
		printed = append(printed, line.Text...)
		if line.Full {
			printed = append(printed, '\n')
		}
	}
	if string(printed) != "hello\nthere" {
		t.Errorf("%q", printed)
	}
	if !bytes.Equal(f.log("step-b"), lines(0, 3)) {
		t.Errorf("step-b: %q", f.log("step-b"))
	}
	for container, want := range map[string]record.End{"step-a": record.EndExited, "step-b": record.EndKilled, "step-c": record.EndNeverStarted} {
		if got := f.seal(container).End; got != want {
			t.Errorf("%s: %s, want %s", container, got, want)
		}
	}
}

// TestFlushPolicy counts the objects of an hour, with a clock that the test moves.
func TestFlushPolicy(t *testing.T) {
	const hour = 3600
	for name, tc := range map[string]struct {
		every, seconds int
		least, most    int // segments
	}{
		"a line each second for an hour":       {1, hour, 700, 999},
		"a line every 2 s for an hour":         {2, hour, 500, 999},
		"a line every 7 s for an hour":         {7, hour, 500, 999},
		"a line every 40 s is shipped at once": {40, hour, hour / 40, hour / 40},
		"the first minute has a cut a second":  {1, 60, 59, 60},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			s := p.shipper()
			defer s.close()
			start := time.Now()
			var want []byte
			for second := range tc.seconds {
				if second%tc.every == 0 {
					line := lines(second, 1)
					p.write("step-a", spool.LogName(0), line)
					want = append(want, line...)
				}
				if _, err := s.pass(t.Context(), start.Add(time.Duration(second)*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := f.log("step-a"); !bytes.Equal(got, want) {
				t.Errorf("%d bytes, want %d", len(got), len(want))
			}
			if n := f.count(".log.zst"); n < tc.least || n > tc.most {
				t.Errorf("%d segments, want %d to %d", n, tc.least, tc.most)
			} else {
				t.Logf("%d segments", n)
			}
		})
	}
}

// TestPauseMakesItFastAgain: after the slow interval and a pause, the first line is cut at once and the next a second later.
func TestPauseMakesItFastAgain(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	s := p.shipper()
	defer s.close()
	now, line := time.Now(), 0
	next := func(after time.Duration, wantCut bool) {
		t.Helper()
		now = now.Add(after)
		p.write("step-a", spool.LogName(0), lines(line, 1))
		line++
		before := f.count(".log.zst")
		if _, err := s.pass(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if cut := f.count(".log.zst") > before; cut != wantCut {
			t.Errorf("line %d, %v after the last: cut is %v", line, after, cut)
		}
	}
	for range trickle {
		next(time.Second, true)
	}
	next(time.Second, false)
	next(4*time.Second, true)
	next(time.Second, false)
	next(pause, true)
	next(time.Second, true)
	next(time.Second/2, false)
}

func TestSegmentSize(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	p.config.SegmentBytes = 100_000
	want := lines(0, 10_000)
	p.write("step-a", spool.LogName(0), want)
	p.drained()
	if got := f.log("step-a"); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	for name := range f.snapshot() {
		s, err := layout.ParseSegmentName(strings.TrimPrefix(name, "step-a/"))
		if err == nil && (s.Length > 100_000+200 || s.Length < 100_000 && s.End() != int64(len(want))) {
			t.Errorf("%s has %d bytes", name, s.Length)
		}
	}
	if n, least := f.count(".log.zst"), len(want)/100_000; n < least || n > least+1 {
		t.Errorf("%d segments for %d bytes", n, len(want))
	}
}

func TestAlive(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	s := p.shipper()
	defer s.close()
	start := time.Now()
	for second := range 181 {
		if second == 90 {
			p.write("step-a", spool.LogName(0), lines(0, 1))
		}
		if _, err := s.pass(t.Context(), start.Add(time.Duration(second)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	// At 60 s, and at 150 s: the line at 90 s was a sign of life too.
	if f.puts != 3 || f.count(layout.AliveFile) != 1 || f.count(".log.zst") != 1 {
		t.Errorf("%d uploads: %v", f.puts, f.uploads)
	}
}

func TestLostState(t *testing.T) {
	head, tail := lines(0, 100), lines(100, 50)
	for name, damage := range map[string]func(t *testing.T, state string){
		"missing":       func(t *testing.T, state string) { remove(t, state) },
		"empty":         func(t *testing.T, state string) { replace(t, state, "") },
		"no JSON":       func(t *testing.T, state string) { replace(t, state, "\x00\x00") },
		"bad digest":    func(t *testing.T, state string) { replace(t, state, `{"digest":"AAAA"}`) },
		"negative":      func(t *testing.T, state string) { replace(t, state, `{"position":{"base":-1}}`) },
		"bad pending":   func(t *testing.T, state string) { replace(t, state, `{"pending":"../x"}`) },
		"before itself": func(t *testing.T, state string) { replace(t, state, `{"pending":"x","before":{"pending":"x"}}`) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			p.write("step-a", spool.LogName(0), head)
			p.write("step-a", spool.LogName(int64(len(head))), nil)
			s := p.shipper()
			for range 2 { // the second sees that the file is complete
				if _, err := s.pass(t.Context(), time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			p.write("step-a", spool.LogName(int64(len(head))), tail)
			if err := s.pass2(t, time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			damage(t, filepath.Join(p.volume, contract.StateSubPath, "step-a.json"))
			f.set(func() { f.objects = map[string][]byte{} })
			p.drained()

			// What was in the spool still comes again, at the offset where it was.
			objects := f.snapshot()
			for name := range objects {
				s, err := layout.ParseSegmentName(strings.TrimPrefix(name, "step-a/"))
				if err == nil && (s.Offset != int64(len(head)) || s.Length != int64(len(tail))) {
					t.Errorf("segment %+v", s)
				}
			}
			seal, err := record.Decode[record.Seal](objects["step-a/"+layout.SealFile])
			if err != nil || f.count(".log.zst") != 1 || seal.Bytes != int64(len(head)+len(tail)) || seal.SHA256 != "" || seal.GapCount != 0 {
				t.Errorf("%d objects, seal %+v, %v", len(objects), seal, err)
			}
		})
	}
}

func (s *shipper) pass2(t *testing.T, now time.Time) error {
	_, err := s.pass(t.Context(), now)
	return err
}

func remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, file, text string) {
	t.Helper()
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err) // nothing to damage
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedPending: the recorded bytes of a segment are gone or wrong when the shipper comes back. It cuts the same piece again.
func TestDamagedPending(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, file string){
		"intact":        func(*testing.T, string) {},
		"missing":       func(t *testing.T, file string) { remove(t, file) },
		"empty":         func(t *testing.T, file string) { replace(t, file, "") },
		"other segment": func(t *testing.T, file string) { replace(t, file, "another segment's bytes") },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			ctx, cancel := context.WithCancel(t.Context())
			// The upload is stored, but the shipper ends before it hears of it.
			f.putFault = func(_ int, _ string, w http.ResponseWriter) (bool, bool) {
				cancel()
				cut(w)
				return true, true
			}
			p.write("step-a", spool.LogName(0), lines(0, 100))
			s := p.shipper()
			if _, err := s.pass(ctx, time.Now()); err == nil {
				t.Fatal("the upload succeeded")
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			f.set(func() { f.putFault = nil })
			damage(t, filepath.Join(p.volume, contract.StateSubPath, "step-a.segment"))
			p.write("step-a", spool.LogName(0), lines(100, 100))
			p.drained()
			if got := f.log("step-a"); !bytes.Equal(got, lines(0, 200)) {
				t.Errorf("%d bytes", len(got))
			}
			f.seal("step-a")
			if n := f.count(".log.zst"); n != 2 {
				t.Errorf("%d segments", n)
			}
		})
	}
}

// cut ends the connection without an answer.
func cut(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		conn.Close()
	}
}
