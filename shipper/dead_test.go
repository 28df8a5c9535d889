package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// theContainer is a container of one pod, and its shipper, which is not told to stop.
type theContainer struct {
	t   *testing.T
	f   *fakeServer
	p   *pod
	s   *shipper
	h   *holder
	now time.Time
}

func newContainer(t *testing.T) *theContainer {
	t.Helper()
	c := &theContainer{t: t, f: newFakeServer(t), now: time.Now()}
	c.p = newPod(t, c.f, "step-a")
	c.s = c.p.shipper()
	t.Cleanup(func() { _ = c.s.close() }) // the test may have closed it
	c.h = c.s.hold(t, "step-a")
	return c
}

// tee is one that has written lines of stdout to the spool.
func (c *theContainer) tee(spooled string) (*spool.Writer, *teeEnd, *net.UnixConn) {
	c.t.Helper()
	w, err := spool.NewWriter(c.p.folder("step-a"), 1<<30)
	if err != nil {
		c.t.Fatal(err)
	}
	e := newTeeEnd(c.t)
	if w.Again() {
		e.hand = spool.NewHand(true)
	}
	held := c.h.last()
	conn := e.offers(c.p.folder("step-a"))
	await(c.t, "an offer", func() bool { now := c.h.last(); return now != nil && now != held })
	if spooled != "" {
		e.prints(0, spooled)
		e.take(criline.Stdout, 0)
		w.Write(criline.Stdout, []byte(spooled))
		e.hand.Stream(criline.Stdout).Done()
	}
	return w, e, conn
}

// nextLife lets the container begin again, print a text and exit. What its tee has open stays so
// until the test ends.
func (c *theContainer) nextLife(text string, exit record.Exit) {
	c.t.Helper()
	w, e, conn := c.tee(text)
	c.t.Cleanup(func() {
		e.dies()
		_ = conn.Close()
	})
	c.pass()
	if err := w.End(exit); err != nil {
		c.t.Fatal(err)
	}
}

// pass lets a minute pass.
func (c *theContainer) pass() {
	c.t.Helper()
	c.now = c.now.Add(time.Minute)
	if err := c.s.pass2(c.t, c.now); err != nil {
		c.t.Fatal(err)
	}
}

func (c *theContainer) sealed() bool {
	return c.f.snapshot()["step-a/"+layout.SealFile] != nil
}

// passUntil passes until a condition holds.
func (c *theContainer) passUntil(what string, condition func() bool) {
	c.t.Helper()
	await(c.t, what, func() bool { c.pass(); return condition() })
}

// printed is the text of the archive, without markers.
func (c *theContainer) printed() string {
	c.t.Helper()
	var got strings.Builder
	for text := range bytes.Lines(c.f.log("step-a")) {
		line, err := criline.Parse(bytes.TrimSuffix(text, []byte{'\n'}))
		if err != nil {
			c.t.Fatal(err)
		}
		if line.Stream == criline.Markers {
			continue
		}
		got.Write(line.Text)
		if line.Full {
			got.WriteByte('\n')
		}
	}
	return got.String()
}

func (c *theContainer) expect(printed string, end record.End, drained bool, gaps int64) {
	c.t.Helper()
	if got := c.printed(); got != printed {
		c.t.Errorf("archived are %q, want %q", got, printed)
	}
	seal := c.f.seal("step-a")
	if seal.End != end || seal.Drained != drained || seal.GapCount != gaps {
		c.t.Errorf("the seal is %+v, want %s, drained %t, %d gaps", seal, end, drained, gaps)
	}
}

// TestKilledIsSealedAtOnce: a killed container is shipped to its end and sealed while the pod runs,
// and what comes later changes nothing of it.
func TestKilledIsSealedAtOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		spooled, hand, torn, pipe string
		restart                   bool // of the shipper, before the pod's end
		want                      string
	}{
		"nothing":           {},
		"only in the spool": {spooled: "in the spool\n", want: "in the spool\n"},
		"in all places": {
			spooled: "in the spool\n", hand: "in hand\n", pipe: "in the pipe",
			want: "in the spool\nin hand\nin the pipe",
		},
		"in the middle of a write": {
			spooled: "in the spool\n", hand: "in hand, and torn\n", torn: "in hand, a",
			pipe: "in the pipe\n",
			want: "in the spool\nin hand, and torn\nin the pipe\n",
		},
		"and the shipper begins again": {
			spooled: "in the spool\n", hand: "in hand, and torn\n", torn: "in hand, a", restart: true,
			want: "in the spool\nin hand, and torn\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t)
			_, e, conn := c.tee(tc.spooled)
			if tc.hand != "" {
				e.prints(0, tc.hand)
				e.take(criline.Stdout, 0)
			}
			if tc.torn != "" {
				file := spool.LogName(0)
				line := criline.Append(nil, time.Now(), criline.Stdout, true, []byte(tc.torn))
				c.p.write("step-a", file, line[:len(line)-1])
			}
			if tc.pipe != "" {
				e.prints(0, tc.pipe)
			}
			c.pass()
			if c.sealed() {
				t.Fatal("a container that lives is sealed")
			}
			e.dies()
			c.pass()
			c.pass()
			if c.sealed() {
				t.Fatal("tee still has its connection, and may have more to say")
			}
			_ = conn.Close()
			c.passUntil("a seal", c.sealed)
			c.expect(tc.want, record.EndKilled, true, 0)
			for range 3 {
				c.pass()
			}
			if tc.restart {
				if err := c.s.close(); err != nil {
					t.Fatal(err)
				}
				c.s = c.p.shipper()
				c.h = c.s.hold(t, "step-a")
				c.pass()
			}
			if err := c.s.drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			// Nobody was there to see whether the container began again.
			c.expect(tc.want, record.EndKilled, !tc.restart, 0)
		})
	}
}

// TestKilledBeginsAgain: a container that begins again goes on behind its seal. No byte is lost or
// doubled, and the seal never says more than is known.
func TestKilledBeginsAgain(t *testing.T) {
	first := func(t *testing.T) (c *theContainer, die func()) {
		c = newContainer(t)
		_, e, conn := c.tee("one\n")
		e.prints(0, "two\n")
		e.take(criline.Stdout, 0)
		torn := criline.Append(nil, time.Now(), criline.Stdout, true, []byte("tw"))
		c.p.write("step-a", spool.LogName(0), torn[:len(torn)-1])
		return c, func() { e.dies(); _ = conn.Close() }
	}
	t.Run("and ends", func(t *testing.T) {
		c, die := first(t)
		die()
		c.passUntil("a seal", c.sealed)
		c.nextLife("three, which is longer than what was cut off\n", record.Exit{Code: 3})
		c.passUntil("its own seal", func() bool { return c.f.seal("step-a").End == record.EndExited })
		// tee does not know what was shipped, and says that something may be missing.
		c.expect("one\ntwo\nthree, which is longer than what was cut off\n", record.EndExited, false,
			c.f.seal("step-a").GapCount)
		if c.f.seal("step-a").GapCount == 0 {
			t.Error("tee has marked no gap")
		}
	})
	t.Run("and is killed again", func(t *testing.T) {
		c, die := first(t)
		die()
		c.passUntil("a seal", c.sealed)
		_, e, conn := c.tee("three\n")
		e.prints(0, "lost with this tee\n")
		c.pass()
		e.dies()
		_ = conn.Close()
		c.passUntil("its own seal", func() bool { return !c.f.seal("step-a").Drained })
		if err := c.s.drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.expect("one\ntwo\nthree\n", record.EndKilled, false, c.f.seal("step-a").GapCount)
	})
	t.Run("and is killed before it prints", func(t *testing.T) {
		c, die := first(t)
		die()
		c.passUntil("a seal", c.sealed)
		_, e, conn := c.tee("")
		c.pass()
		e.dies()
		_ = conn.Close()
		c.passUntil("its own seal", func() bool { return !c.f.seal("step-a").Drained })
		c.expect("one\ntwo\n", record.EndKilled, false, 0)
	})
	t.Run("before the shipper has looked", func(t *testing.T) {
		c, die := first(t)
		die()
		c.nextLife("three\n", record.Exit{})
		c.passUntil("a seal", c.sealed)
		if seal := c.f.seal("step-a"); seal.End != record.EndExited || seal.GapCount == 0 {
			t.Errorf("the seal is %+v, want an end and the gap that tee marks", seal)
		}
		if got := c.printed(); got != "one\nthree\n" {
			t.Errorf("archived are %q", got)
		}
	})
	t.Run("while the first life waits for the store", func(t *testing.T) {
		c, die := first(t)
		c.pass()
		die()
		if err := c.s.logs[0].look(); err != nil || c.s.logs[0].dead == nil {
			t.Fatalf("the shipper has not seen that it is dead: %v", err)
		}
		c.nextLife("three\n", record.Exit{})
		c.passUntil("a seal", c.sealed)
		if got := c.printed(); got != "one\nthree\n" || c.f.seal("step-a").GapCount == 0 {
			t.Errorf("archived are %q, with the seal %+v", got, c.f.seal("step-a"))
		}
	})
}

// TestTeeAloneKilled: a process that outlives tee is not held up, and all that it prints is
// archived. The log is sealed when the process has ended.
func TestTeeAloneKilled(t *testing.T) {
	for name, again := range map[string]bool{"the first life": false, "a later life": true} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t)
			if again {
				c.p.write("step-a", spool.LogName(0), nil)
			}
			_, e, conn := c.tee("one\n")
			// Four times what a pipe holds.
			const printed = 256 << 10
			stdout := os.NewFile(uintptr(e.write[0]), "stdout")
			step := exec.Command("/bin/sh", "-c",
				"head -c 262144 /dev/zero | tr '\\0' x; read wait; echo end")
			step.Stdout = stdout
			stdin, err := step.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(step.Start(), stdout.Close()); err != nil {
				t.Fatal(err)
			}
			for _, fd := range []int{e.hand.FD, e.read[0], e.read[1], e.write[1]} {
				_ = unix.Close(fd)
			}
			_ = conn.Close()
			want := "one\n" + strings.Repeat("x", printed)
			c.passUntil("what the process prints", func() bool { return len(c.printed()) == len(want) })
			if c.sealed() {
				t.Error("it is sealed, and the process lives")
			}
			if err := errors.Join(stdin.Close(), step.Wait()); err != nil {
				t.Error(err) // read fails at the end of its input, and echo does not
			}
			c.passUntil("a seal", c.sealed)
			gaps := int64(0)
			if again {
				gaps = 2 // of the life before, and of what tee had in hand
			}
			c.expect(want+"end\n", record.EndKilled, !again, gaps)
		})
	}
}
