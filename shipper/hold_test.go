package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// teeEnd is what tee has of a container: a hand, and the pipes with something in them.
type teeEnd struct {
	t     testing.TB
	hand  *spool.Hand
	read  [2]int
	write [2]int
}

func newTeeEnd(t testing.TB) *teeEnd {
	t.Helper()
	e := &teeEnd{t: t, hand: spool.NewHand(false)}
	if e.hand.FD < 0 {
		t.Fatal("no memory file")
	}
	for i := range e.read {
		var p [2]int
		if err := errors.Join(unix.Pipe2(p[:], unix.O_CLOEXEC), unix.SetNonblock(p[0], true)); err != nil {
			t.Fatal(err)
		}
		e.read[i], e.write[i] = p[0], p[1]
	}
	return e
}

func (e *teeEnd) prints(stream int, text string) {
	e.t.Helper()
	if _, err := unix.Write(e.write[stream], []byte(text)); err != nil {
		e.t.Fatal(err)
	}
}

// take takes what is in a pipe, and dies before it is handed on.
func (e *teeEnd) take(s criline.Stream, stream int) {
	e.t.Helper()
	if _, err := e.hand.Stream(s).Take(e.read[stream], spool.ChunkBytes); err != nil {
		e.t.Fatal(err)
	}
}

func (e *teeEnd) dies() {
	for _, fd := range []int{e.hand.FD, e.read[0], e.read[1], e.write[0], e.write[1]} {
		_ = unix.Close(fd)
	}
}

func dial(folder string) (*net.UnixConn, error) {
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(folder, spool.OfferFolder, spool.OfferSocket), Net: "unix"})
}

// offerTo sends files to the socket in a container's folder.
func offerTo(t testing.TB, folder string, fds ...int) *net.UnixConn {
	t.Helper()
	conn, err := dial(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the test may have closed it
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix([]byte{0}, rights, nil); err != nil {
		t.Fatal(err)
	}
	return conn
}

func (e *teeEnd) offers(folder string) *net.UnixConn {
	e.t.Helper()
	return offerTo(e.t, folder, e.hand.FD, e.read[0], e.read[1])
}

// await waits until a container's offer is held.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

// openFiles counts the process's files.
func openFiles(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func newHolder(t testing.TB) (h *holder, folder string) {
	t.Helper()
	folder = t.TempDir()
	makeOfferFolder(folder)
	h, err := startHolder(folder)
	if err != nil {
		t.Fatal(err)
	}
	return h, folder
}

// TestHolder: the last offer is held, what is none changes nothing, and nothing is left open.
func TestHolder(t *testing.T) {
	before := openFiles(t)
	h, folder := newHolder(t)
	info, err := os.Stat(filepath.Join(folder, spool.OfferFolder, spool.OfferSocket))
	if err != nil || info.Mode() != os.ModeSocket|0o666 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	if h.last() != nil {
		t.Error("something is held before the first offer")
	}
	e := newTeeEnd(t)
	first := e.offers(folder)
	await(t, "the first offer", func() bool { return h.last() != nil })
	held := h.last()
	for _, fds := range [][]int{{}, {e.hand.FD}, {e.read[0], e.read[0], e.read[0]}, {e.hand.FD, e.read[0], e.read[1], e.read[1], e.read[1], e.read[1], e.read[1]}} {
		conn := offerTo(t, folder, fds...)
		if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 { // it hangs up
			t.Errorf("an offer of %d files is answered", len(fds))
		}
		if h.last() != held {
			t.Errorf("an offer of %d files is taken", len(fds))
		}
		_ = conn.Close()
	}
	second := e.offers(folder)
	await(t, "the second offer", func() bool { return h.last() != held })
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("the first connection is still open")
	}
	e.prints(0, "the last words\n")
	e.dies()
	if _, _, ok := h.last().Begin(0, 0); !ok {
		t.Error("nobody knows what is left")
	}
	b := make([]byte, 100)
	if s, n, err := h.last().Next(b); s != criline.Stdout || string(b[:n]) != "the last words\n" || err != nil {
		t.Errorf("%q of %s is left, %v", b[:n], s, err)
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Error("the second connection is still open")
	}
	_, _ = first.Close(), second.Close()
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, %d were before", after, before)
	}
}

// TestHolderAgain: a shipper that begins again listens anew, whatever the one before has left.
func TestHolderAgain(t *testing.T) {
	h, folder := newHolder(t)
	if err := h.close(); err != nil {
		t.Fatal(err)
	}
	// One that was killed before its socket was in place.
	if err := os.WriteFile(filepath.Join(folder, spool.OfferFolder, newSocket), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := startHolder(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	e := newTeeEnd(t)
	defer e.dies()
	e.offers(folder)
	await(t, "an offer", func() bool { return h.last() != nil })
}

// A step can put something else in the socket's place. That is an error, and nothing that is not in the step's folder changes.
func TestHolderInHostileFolder(t *testing.T) {
	for name, plant := range map[string]func(folder, elsewhere string) error{
		"no folder": func(string, string) error { return nil },
		"a link in the folder's place": func(folder, elsewhere string) error {
			return os.Symlink(elsewhere, filepath.Join(folder, spool.OfferFolder))
		},
		"a file in the folder's place": func(folder, _ string) error {
			return os.WriteFile(filepath.Join(folder, spool.OfferFolder), nil, 0o644)
		},
		"a folder in the socket's place": func(folder, _ string) error {
			return os.MkdirAll(filepath.Join(folder, spool.OfferFolder, spool.OfferSocket), 0o755)
		},
	} {
		t.Run(name, func(t *testing.T) {
			folder, elsewhere := t.TempDir(), t.TempDir()
			victim := filepath.Join(elsewhere, spool.OfferSocket)
			if err := errors.Join(os.WriteFile(victim, []byte("mine"), 0o600), os.Chmod(elsewhere, 0o700), plant(folder, elsewhere)); err != nil {
				t.Fatal(err)
			}
			if h, err := startHolder(folder); err == nil {
				t.Errorf("it listens: %v", h.close())
			} else if !strings.Contains(err.Error(), folder) {
				t.Errorf("the error %q does not name the folder", err)
			}
			makeOfferFolderChangesNothing(t, folder, elsewhere)
			if b, err := os.ReadFile(victim); err != nil || string(b) != "mine" {
				t.Errorf("a file elsewhere holds %q, %v", b, err)
			}
		})
	}
}

func makeOfferFolderChangesNothing(t *testing.T, folder, elsewhere string) {
	t.Helper()
	makeOfferFolder(folder)
	for path, want := range map[string]os.FileMode{elsewhere: 0o700, filepath.Join(elsewhere, spool.OfferSocket): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
	}
}

// hold starts a container's holder, as run does. It is closed with the shipper.
func (s *shipper) hold(t testing.TB, container string) *holder {
	t.Helper()
	i := slices.IndexFunc(s.logs, func(l *containerLog) bool { return l.name == container })
	h, err := startHolder(s.logs[i].folder)
	if err != nil {
		t.Fatal(err)
	}
	s.logs[i].holder = h
	return h
}

// TestRestOfKilled: what a killed container had printed, and tee had not written, is behind what is in the spool, also if the store refuses objects meanwhile.
func TestRestOfKilled(t *testing.T) {
	for name, tc := range map[string]struct {
		refuse bool
		spool  string // stdout in the spool
		chunk  string // taken, and not known to be handed on
		pipe   string
		stderr string
		want   string
		gap    int64
	}{
		"nothing":                               {},
		"only in the spool":                     {spool: "in the spool\n", want: "in the spool\n"},
		"in all places":                         {chunk: "in hand, ", pipe: "in the pipe\nand without an end", stderr: "on stderr\n", want: "in hand, in the pipe\nand without an endon stderr\n"},
		"a part of the chunk is in the spool":   {spool: "in hand, ", chunk: "in hand, and here\n", want: "in hand, and here\n"},
		"the whole chunk is in the spool":       {spool: "in hand\n", chunk: "in hand\n", pipe: "behind\n", want: "in hand\nbehind\n"},
		"the store refuses objects":             {refuse: true, spool: "in the spool\n", chunk: "in the spool\nin hand\n", pipe: "in the pipe\n", want: "in the spool\nin hand\nin the pipe\n"},
		"a whole pipe of newlines, and a chunk": {chunk: "in hand\n", pipe: strings.Repeat("\n", 64<<10), want: "in hand\n" + strings.Repeat("\n", 64<<10)},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			p.write("step-a", spool.LogName(0), nil)
			if tc.spool != "" {
				at := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
				text, full := strings.CutSuffix(tc.spool, "\n")
				p.write("step-a", spool.LogName(0), criline.Append(nil, at, criline.Stdout, full, []byte(text)))
			}
			s := p.shipper()
			defer s.close()
			h := s.hold(t, "step-a")
			e := newTeeEnd(t)
			if tc.chunk != "" {
				e.prints(0, tc.chunk)
				e.take(criline.Stdout, 0)
			}
			if tc.spool != "" && tc.chunk == "" {
				e.prints(0, tc.spool)
				e.take(criline.Stdout, 0)
				e.hand.Stream(criline.Stdout).Done()
			}
			if tc.pipe != "" {
				e.prints(0, tc.pipe)
			}
			if tc.stderr != "" {
				e.prints(1, tc.stderr)
			}
			e.offers(p.folder("step-a"))
			await(t, "an offer", func() bool { return h.last() != nil })
			e.dies()
			if tc.refuse {
				refused := 0
				f.set(func() {
					f.putFault = func(_ int, _ string, w http.ResponseWriter) (stored, answered bool) {
						if refused++; refused > 2 {
							return true, false
						}
						http.Error(w, "<Code>EntityTooLarge</Code>", http.StatusBadRequest)
						return false, true
					}
				})
			}
			if err := s.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for text := range strings.Lines(string(f.log("step-a"))) {
				line, err := criline.Parse([]byte(strings.TrimSuffix(text, "\n")))
				if err != nil {
					t.Fatal(err)
				}
				got.Write(line.Text)
				if line.Full {
					got.WriteByte('\n')
				}
			}
			if got.String() != tc.want {
				t.Errorf("archived are %q, want %q", got.String(), tc.want)
			}
			if seal := f.seal("step-a"); seal.End != record.EndKilled || !seal.Drained || seal.GapCount > 0 {
				t.Errorf("the seal is %+v", seal)
			}
		})
	}
}

// TestEndInHand: a container that could write nothing to its spool at its end has ended all the same, in the way and with the gap that it says; also for a shipper that was away meanwhile.
func TestEndInHand(t *testing.T) {
	for name, early := range map[string]bool{"while the pod runs": true, "at the pod's end": false} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			p.write("step-a", spool.LogName(0), lines(0, 3))
			s := p.shipper()
			defer s.close()
			h := s.hold(t, "step-a")
			e := newTeeEnd(t)
			tally := tallyOf(t, lines(0, 3))
			end, err := spool.EncodeEnd(spool.End{
				Exit: record.Exit{Code: 7}, Bytes: tally.Bytes, Printed: record.Printed{Stdout: tally.Stdout + 99},
				Gap: &criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolError, Stdout: 99, Detail: "disk quota exceeded"},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := e.hand.End(end); err != nil {
				t.Fatal(err)
			}
			e.offers(p.folder("step-a"))
			await(t, "an offer", func() bool { return h.last() != nil })
			e.dies()
			if early {
				now := time.Now()
				for range 5 {
					now = now.Add(time.Minute)
					if err := s.pass2(t, now); err != nil {
						t.Fatal(err)
					}
				}
			} else if err := s.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := f.seal("step-a")
			if got.End != record.EndExited || got.Exit == nil || got.Exit.Code != 7 || got.Printed.Stdout != tally.Stdout || got.GapCount != 1 || got.Lost.Stdout != 99 || got.Gaps[0].Reason != criline.ReasonSpoolError {
				t.Errorf("the seal is %+v", got)
			}
		})
	}
}

// What a container left that has said how it ended is let go of.
func TestReleaseOfEnded(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	s := p.shipper()
	defer s.close()
	s.hold(t, "step-a")
	l := s.logs[0]
	e := newTeeEnd(t)
	defer e.dies()
	e.offers(l.folder)
	await(t, "an offer", func() bool { return l.holder.last() != nil })
	if err := l.look(); err != nil || l.holder.last() == nil {
		t.Errorf("a container that runs is let go of: %v", err)
	}
	p.write("step-a", spool.EndFile, []byte("{}"))
	if err := l.look(); err != nil || l.holder.last() != nil {
		t.Errorf("a container that has ended is still held: %v", err)
	}
}

// Where nothing is held the seal says nothing of the rest, and a gap that tee had counted is marked where it is.
func TestKilledSeal(t *testing.T) {
	for name, offered := range map[string]bool{"nothing is held": false, "a gap that tee had not marked": true} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			p := newPod(t, f, "step-a")
			p.write("step-a", spool.LogName(0), lines(0, 1))
			s := p.shipper()
			defer s.close()
			if offered {
				h := s.hold(t, "step-a")
				e := newTeeEnd(t)
				e.prints(0, strings.Repeat("x", 5000))
				e.take(criline.Stdout, 0)
				e.hand.Stream(criline.Stdout).Done()
				e.offers(p.folder("step-a"))
				await(t, "an offer", func() bool { return h.last() != nil })
				e.dies()
			}
			if err := s.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			printed := tallyOf(t, lines(0, 1)).Stdout
			got := f.seal("step-a")
			want := fmt.Sprint(offered, 0, int64(0))
			if offered {
				want = fmt.Sprint(offered, 1, 5000-printed)
			}
			if fmt.Sprint(got.Drained, got.GapCount, got.Lost.Stdout) != want {
				t.Errorf("the seal is %+v, want %s", got, want)
			}
		})
	}
}
