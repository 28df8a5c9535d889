//go:build linux

package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// handPipe is a pipe as tee makes it.
func handPipe(t testing.TB) (read, write int) {
	t.Helper()
	var p [2]int
	if err := errors.Join(unix.Pipe2(p[:], unix.O_CLOEXEC), unix.SetNonblock(p[0], true)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(unix.Close(p[0]), unix.Close(p[1])) }) // the test may have closed them
	return p[0], p[1]
}

func writeTo(t testing.TB, fd int, text string) {
	t.Helper()
	if n, err := unix.Write(fd, []byte(text)); err != nil || n != len(text) {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(text), err)
	}
}

// container is tee's side of a hand, with its pipes, and what the shipper gets of it.
type container struct {
	hand  *Hand
	read  [2]int
	write [2]int
	held  *Held
}

func newContainer(t testing.TB, again bool) *container {
	t.Helper()
	c := &container{hand: NewHand(again)}
	if c.hand.FD < 0 {
		t.Fatal("no memory file")
	}
	t.Cleanup(func() { _ = unix.Close(c.hand.FD) })
	for i := range c.read {
		c.read[i], c.write[i] = handPipe(t)
	}
	var sent []int
	for _, fd := range []int{c.hand.FD, c.read[0], c.read[1]} {
		sent = append(sent, dup(t, fd))
	}
	var err error
	if c.held, err = NewHeld(sent); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.held.Close)
	return c
}

func dup(t testing.TB, fd int) int {
	t.Helper()
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// die closes what tee and its process have of the pipes.
func (c *container) die(t testing.TB) {
	t.Helper()
	for _, fd := range c.write {
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
}

// left reads all that is held, in small pieces.
func (c *container) left(t testing.TB) (left [2]string) {
	t.Helper()
	b := make([]byte, 7)
	for {
		s, n, err := c.held.Next(b)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return left
		}
		i := 0
		if s == criline.Stderr {
			i = 1
		}
		left[i] += string(b[:n])
	}
}

// TestHandAtDeath lets tee die at each moment of a chunk's way. What is in the spool, what is left, and what is counted as lost are always all that was printed, once.
func TestHandAtDeath(t *testing.T) {
	const before, chunk, behind = "one\ntwo\n", "three\nfour, and more\n", "five\nwithout an end"
	read := func(t *testing.T, c *container) { // tee reads, and dies before it has said so
		s := c.hand.Stream(criline.Stdout)
		buf := s.part[handHeader:][:len(chunk)]
		copy(buf[len(chunk)-markBytes:], s.mark[:])
		s.word(wordIntended).Store(uint64(len(chunk)))
		if n, err := unix.Read(c.read[0], buf); err != nil || n != len(chunk) {
			t.Fatalf("read %d bytes: %v", n, err)
		}
	}
	take := func(t *testing.T, c *container) {
		if got, err := c.hand.Stream(criline.Stdout).Take(c.read[0], ChunkBytes); err != nil || string(got) != chunk {
			t.Fatalf("took %q, %v", got, err)
		}
	}
	for _, tc := range []struct {
		name string
		die  func(t *testing.T, c *container)
		kept int64 // printed bytes in the spool and its gaps
		left string
		lost int64
	}{
		{"before the chunk", func(*testing.T, *container) {}, int64(len(before)), chunk + behind, 0},
		{"before it is read", func(_ *testing.T, c *container) {
			s := c.hand.Stream(criline.Stdout)
			copy(s.part[handHeader:][len(chunk)-markBytes:], s.mark[:])
			s.word(wordIntended).Store(uint64(len(chunk)))
		}, int64(len(before)), chunk + behind, 0},
		{"when it is read, and that is not said", read, int64(len(before)), chunk + behind, 0},
		{"when it is taken", take, int64(len(before)), chunk + behind, 0},
		{"when a part of it is in the spool", take, int64(len(before) + 8), chunk[8:] + behind, 0},
		{"when it is in the spool", take, int64(len(before + chunk)), behind, 0},
		{"when it is handed on", func(t *testing.T, c *container) { take(t, c); c.hand.Stream(criline.Stdout).Done() }, int64(len(before + chunk)), behind, 0},
		{"with a gap that is not marked", func(t *testing.T, c *container) { take(t, c); c.hand.Stream(criline.Stdout).Done() }, 5, behind, int64(len(before+chunk)) - 5},
		{"with a gap that is not marked, and a chunk", take, 5, chunk + behind, int64(len(before)) - 5},
		{"with more kept than was printed, which only a step says", take, 1 << 40, behind, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newContainer(t, false)
			s := c.hand.Stream(criline.Stdout)
			writeTo(t, c.write[0], before)
			if got, err := s.Take(c.read[0], ChunkBytes); err != nil || string(got) != before {
				t.Fatalf("took %q, %v", got, err)
			}
			s.Done()
			writeTo(t, c.write[0], chunk)
			writeTo(t, c.write[1], "on stderr\n")
			tc.die(t, c)
			writeTo(t, c.write[0], behind)
			if c.held.Over() {
				t.Error("it is over, while the container lives")
			}
			c.die(t)
			if !c.held.Over() {
				t.Error("it is not over, and the container is dead")
			}
			stdout, stderr, ok := c.held.Begin(tc.kept, 0)
			if !ok || stdout != tc.lost || stderr != 0 {
				t.Errorf("lost are %d and %d, %v; want %d and 0", stdout, stderr, ok, tc.lost)
			}
			if got := c.left(t); got != [2]string{tc.left, "on stderr\n"} {
				t.Errorf("left are %q, want %q", got, tc.left)
			}
		})
	}
}

// A chunk may be shorter than the mark.
func TestHandShortChunks(t *testing.T) {
	for n := range markBytes + 2 {
		c := newContainer(t, false)
		text := strings.Repeat("x", n+1)
		writeTo(t, c.write[1], text)
		s := c.hand.Stream(criline.Stderr)
		if got, err := s.Take(c.read[1], ChunkBytes); err != nil || string(got) != text {
			t.Fatalf("took %q, %v", got, err)
		}
		// As if it had died before it said so.
		s.word(wordIntended).Store(uint64(len(text)))
		s.word(wordState).Store(0)
		c.die(t)
		if _, _, ok := c.held.Begin(0, 0); !ok || c.left(t) != [2]string{"", text} {
			t.Errorf("%d bytes: another rest", len(text))
		}
	}
}

func TestHandTake(t *testing.T) {
	for name, hand := range map[string]*Hand{"a memory file": NewHand(false), "without one": {FD: -1, streams: [2]*HandStream{{part: make([]byte, handPart)}, {part: make([]byte, handPart)}}}} {
		t.Run(name, func(t *testing.T) {
			s := hand.Stream(criline.Stdout)
			read, write := handPipe(t)
			if got, err := s.Take(read, ChunkBytes); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("an empty pipe gave %q, %v", got, err)
			}
			full := strings.Repeat("0123456789abcdef", ChunkBytes/16)
			writeTo(t, write, full)
			if got, err := s.Take(read, 10); err != nil || string(got) != full[:10] {
				t.Errorf("took %q, %v", got, err)
			}
			s.Done()
			if got, err := s.Take(read, 1<<30); err != nil || string(got) != full[10:] {
				t.Errorf("took %d bytes, %v", len(got), err)
			}
			s.Done()
			if got := s.word(wordState).Load(); got != ChunkBytes<<lengthBits {
				t.Errorf("the state is %x", got)
			}
			if _, err := s.Take(-1, 1); !errors.Is(err, unix.EBADF) {
				t.Errorf("a pipe that is none gave %v", err)
			}
		})
	}
}

// A container that has run before has another count than its log.
func TestHandAgain(t *testing.T) {
	c := newContainer(t, true)
	writeTo(t, c.write[0], "text")
	c.die(t)
	if _, _, ok := c.held.Begin(0, 0); ok {
		t.Error("it says what is left")
	}
}

// What a step offers in tee's place must not make the shipper wait, fail, or read what is not the step's.
func TestOfferIsNone(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(handSize); err != nil {
		t.Fatal(err)
	}
	read, _ := handPipe(t)
	hand := NewHand(false)
	memory := func(size int64, seals int) int {
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err == nil {
			err = unix.Ftruncate(fd, size)
		}
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	for name, fds := range map[string][]int{
		"nothing":                     {},
		"too few":                     {hand.FD, read},
		"too many":                    {hand.FD, read, read, read},
		"a file in the hand's place":  {int(file.Fd()), read, read},
		"a pipe in the hand's place":  {read, read, read},
		"a memory file that can grow": {memory(handSize, unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL), read, read},
		"a memory file to be cut":     {memory(handSize, unix.F_SEAL_GROW|unix.F_SEAL_SEAL), read, read},
		"a small memory file":         {memory(10, handSeals), read, read},
		"a file in a pipe's place":    {hand.FD, read, int(file.Fd())},
	} {
		t.Run(name, func(t *testing.T) {
			var sent []int
			for _, fd := range fds {
				sent = append(sent, dup(t, fd))
			}
			if held, err := NewHeld(sent); err == nil {
				held.Close()
				t.Error("it is taken")
			}
			for _, fd := range sent {
				if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
					t.Errorf("fd %d is left open: %v", fd, err)
				}
			}
		})
	}
}

// FuzzHand: whatever is in a hand, what is read of it is bounded, and is of its own part.
func FuzzHand(f *testing.F) {
	seed := func(words ...uint64) []byte {
		var b []byte
		for _, w := range words {
			b = binary.NativeEndian.AppendUint64(b, w)
		}
		return b
	}
	f.Add(seed(5<<lengthBits|3, 0, 1, 2, 0), int64(6))
	f.Add(seed(0, ChunkBytes, 0, 0, 0), int64(0))
	f.Add(seed(1<<63, ChunkBytes+1, 0, 0, 1), int64(-1))
	f.Add(seed(1<<lengthBits-1, 1<<63, 0, 0, 0), int64(1)<<62)
	f.Fuzz(func(t *testing.T, header []byte, kept int64) {
		c := newContainer(t, false)
		for _, s := range c.hand.streams {
			copy(s.part[:handHeader], header)
			copy(s.part[handHeader:], bytes.Repeat([]byte{'x'}, ChunkBytes))
		}
		writeTo(t, c.write[0], "p")
		c.die(t)
		stdout, stderr, ok := c.held.Begin(kept, kept)
		if !ok {
			return
		}
		if stdout < 0 || stderr < 0 {
			t.Errorf("lost are %d and %d", stdout, stderr)
		}
		left := c.left(t)
		for i, text := range left {
			if len(text) > ChunkBytes+1 || strings.Trim(text, "xp") != "" {
				t.Errorf("of stream %d %d bytes are left", i, len(text))
			}
		}
	})
}

// TestHandEnd: the end that tee leaves in the hand is what who holds it reads, and nothing else is taken for one.
func TestHandEnd(t *testing.T) {
	whole, err := EncodeEnd(End{Exit: record.Exit{Code: 3}, Bytes: 77, Lines: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name        string
		leave       func(c *container) error
		fails, want bool
	}{
		{"none", func(*container) error { return nil }, false, false},
		{"an end", func(c *container) error { return c.hand.End(whole) }, false, true},
		{"a later one", func(c *container) error { return errors.Join(c.hand.End([]byte("{}")), c.hand.End(whole)) }, false, true},
		{"one that is too long", func(c *container) error { return c.hand.End(make([]byte, handHeader)) }, true, false},
		{"no JSON", func(c *container) error { return c.hand.End([]byte("garbage")) }, false, false},
		{"a forged length", func(c *container) error { c.hand.streams[0].word(wordEnd).Store(1 << 40); return nil }, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newContainer(t, false)
			if err := tc.leave(c); (err != nil) != tc.fails {
				t.Errorf("left with %v", err)
			}
			got, ok := c.held.End()
			if ok != tc.want || ok && (got.Exit.Code != 3 || got.Bytes != 77 || got.Lines != 2) {
				t.Errorf("the end is %+v, %v", got, ok)
			}
			// The rest of the hand is as it was.
			c.die(t)
			if lost, _, ok := c.held.Begin(0, 0); !ok || lost != 0 {
				t.Errorf("begins with %d lost, %v", lost, ok)
			}
		})
	}
	if err := (&Hand{FD: -1}).End(whole); err == nil {
		t.Error("memory that dies with tee took the end")
	}
}
