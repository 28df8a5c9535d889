//go:build linux

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// panickingSink panics at the writes whose text it does not like.
type panickingSink struct {
	taken     bytes.Buffer
	abandoned int64
	why       string
	worse     bool          // panics when it is told, too
	asked     chan struct{} // a value for each write
}

func (p *panickingSink) Write(_ criline.Stream, chunk []byte) {
	p.asked <- struct{}{}
	if bytes.Contains(chunk, []byte("panic")) {
		panic("a bug")
	}
	p.taken.Write(chunk)
}

func (p *panickingSink) Abandon(_ criline.Stream, bytes int64, why string) {
	if p.worse {
		panic("another bug")
	}
	p.abandoned += bytes
	p.why = why
}

// pipes makes a stream that is fed by the returned writer, and whose own stdout is the returned file.
func pipes(t *testing.T, to sink) (s *stream, feed *os.File, stdout *os.File) {
	t.Helper()
	var in, out [2]int
	if err := errors.Join(unix.Pipe2(in[:], unix.O_CLOEXEC), unix.Pipe2(out[:], unix.O_CLOEXEC), unix.SetNonblock(in[0], true)); err != nil {
		t.Fatal(err)
	}
	feed, stdout = os.NewFile(uintptr(in[1]), "feed"), os.NewFile(uintptr(out[0]), "stdout")
	stop, err := newStop()
	if err != nil {
		t.Fatal(err)
	}
	s = &stream{name: criline.Stdout, pipe: in[0], out: out[1], sink: to, stop: stop, hand: spool.NewHand(false).Stream(criline.Stdout)}
	t.Cleanup(func() {
		if err := errors.Join(feed.Close(), stdout.Close(), unix.Close(s.pipe), unix.Close(s.out), unix.Close(stop.fd)); err != nil {
			t.Error(err)
		}
	})
	return s, feed, stdout
}

// A panic in the spool's code costs the copy, not the build.
func TestPanicInTheCopy(t *testing.T) {
	for _, tc := range []struct {
		name  string
		worse bool
		taken string
		lost  int64
	}{
		{"once told, the sink decides", false, "one\nthree\nfour\n", 6},
		{"a sink that panics again is not asked again", true, "one\n", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			to := &panickingSink{worse: tc.worse, asked: make(chan struct{}, 4)}
			s, feed, stdout := pipes(t, to)
			c := &copying{streams: [2]*stream{s, s}, stop: s.stop}
			c.wg.Go(s.run)
			send := func(text string) {
				t.Helper()
				if _, err := io.WriteString(feed, text); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, len(text))
				if _, err := io.ReadFull(stdout, got); err != nil || string(got) != text {
					t.Errorf("stdout got %q, %v, want %q", got, err, text)
				}
			}
			for i, text := range []string{"one\n", "panic\n", "three\n", "four\n"} {
				send(text)
				if !tc.worse || i < 2 { // each is a chunk of its own: stdout has it before it is taken
					<-to.asked
				}
			}
			c.drain()
			if to.taken.String() != tc.taken || to.abandoned != tc.lost {
				t.Errorf("the sink took %q and lost %d, want %q and %d", to.taken.String(), to.abandoned, tc.taken, tc.lost)
			}
			if !tc.worse && !strings.Contains(to.why, "a bug") {
				t.Errorf("the reason %q does not say what happened", to.why)
			}
		})
	}
}

// countingSink remembers its bytes.
type countingSink struct{ bytes.Buffer }

func (c *countingSink) Write(_ criline.Stream, chunk []byte)  { c.Buffer.Write(chunk) }
func (c *countingSink) Abandon(criline.Stream, int64, string) {}

// drain takes all that is in the pipe, even if the reader has not begun, and does not wait for the end of the pipe.
func TestDrain(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 64 << 10} {
		to := &countingSink{}
		s, feed, stdout := pipes(t, to)
		want := bytes.Repeat([]byte("x"), n)
		if _, err := feed.Write(want); err != nil {
			t.Fatal(err)
		}
		c := &copying{streams: [2]*stream{s, s}, stop: s.stop}
		s.stop.ask() // the child ended before the first read
		c.wg.Go(s.run)
		c.drain()
		if !bytes.Equal(to.Bytes(), want) {
			t.Fatalf("%d bytes were in the pipe, the sink got %d", n, to.Len())
		}
		got := make([]byte, n)
		if _, err := io.ReadFull(stdout, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes were in the pipe, stdout got others, %v", n, err)
		}
	}
}

// tellingSink tells of each chunk that it gets.
type tellingSink chan string

func (c tellingSink) Write(_ criline.Stream, chunk []byte)  { c <- string(chunk) }
func (c tellingSink) Abandon(criline.Stream, int64, string) {}

// What is on the container's own stdout is in the spool already, and what nobody takes there is in the spool all the same: whatever kills tee then, the archive has it.
func TestKeptBeforeItIsShown(t *testing.T) {
	to := make(tellingSink, 2)
	s, feed, stdout := pipes(t, to)
	writeAll(s.out, bytes.Repeat([]byte("x"), 64<<10)) // as much as a pipe holds: the next byte has to wait
	c := &copying{streams: [2]*stream{s, s}, stop: s.stop}
	c.wg.Go(s.run)
	if _, err := io.WriteString(feed, "kept\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-to:
		if got != "kept\n" {
			t.Errorf("the spool got %q", got)
		}
	case <-time.After(time.Minute):
		t.Error("the spool waits for the container's stdout")
	}
	if _, err := io.CopyN(io.Discard, stdout, 64<<10+int64(len("kept\n"))); err != nil {
		t.Error(err)
	}
	c.drain()
}

// Another process may have made the container's stdout non-blocking. Then nothing is lost while nobody reads.
func TestWriteAllWaits(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(p[1], true); err != nil {
		t.Fatal(err)
	}
	read := os.NewFile(uintptr(p[0]), "stdout")
	defer read.Close()
	want := bytes.Repeat([]byte("0123456789"), 100_000)
	done := make(chan error)
	go func() {
		writeAll(p[1], want)
		done <- unix.Close(p[1])
	}()
	for full := 0; full < 64<<10; { // what a pipe holds: the next write(2) gives EAGAIN
		select {
		case <-done:
			t.Fatalf("it gave up with %d of %d bytes written", full, len(want))
		default:
		}
		var err error
		if full, err = unix.IoctlGetInt(p[0], unix.TIOCINQ); err != nil {
			t.Fatal(err)
		}
	}
	got, err := io.ReadAll(read)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes of %d, %v", len(got), len(want), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

type endFunc func(record.Exit) error

func (f endFunc) End(e record.Exit) error { return f(e) }

// The container's own stderr says when the log has no end.
func TestEndFails(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  endFunc
		want string
	}{
		{"it works", func(record.Exit) error { return nil }, ""},
		{"an error", func(record.Exit) error { return errors.New("disk full") }, "shiplog: this log is not kept to its end: disk full\n"},
		{"a panic", func(record.Exit) error { panic("a bug") }, "shiplog: this log is not kept to its end: a bug\n"},
		{"the spool cannot be written, and the shipper has the hand", func(record.Exit) error { return &spool.EndError{End: []byte("{}"), Err: errors.New("quota")} }, ""},
		{"the spool cannot be written, and what is to be said is too long", func(record.Exit) error {
			return &spool.EndError{End: make([]byte, 1<<20), Err: errors.New("quota")}
		}, "shiplog: this log is not kept to its end: write the end of the log: quota\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _, stderr := pipes(t, nil)
			hand := spool.NewHand(false)
			defer unix.Close(hand.FD)
			c := &copying{streams: [2]*stream{s, s}, hand: hand}
			c.end(tc.end, record.Exit{}, true, true) // quiet: it says nothing
			c.end(tc.end, record.Exit{}, true, false)
			writeAll(s.out, []byte("."))
			got := make([]byte, len(tc.want)+1)
			if _, err := io.ReadFull(stderr, got); err != nil || string(got) != tc.want+"." {
				t.Errorf("stderr got %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func TestCopyAllocatesNothing(t *testing.T) {
	var in [2]int
	if err := errors.Join(unix.Pipe2(in[:], unix.O_CLOEXEC), unix.SetNonblock(in[0], true)); err != nil {
		t.Fatal(err)
	}
	write := os.NewFile(uintptr(in[1]), "feed")
	defer write.Close()
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	defer unix.Close(in[0])
	s := &stream{name: criline.Stdout, pipe: in[0], out: null, sink: discard{}, hand: spool.NewHand(false).Stream(criline.Stdout)}
	chunk := []byte("a line\n")
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := write.Write(chunk); err != nil {
			t.Fatal(err)
		}
		s.copyBytes(len(chunk))
	}); n != 0 {
		t.Errorf("a chunk costs %v allocations", n)
	}
}

// BenchmarkCopy takes 64 KiB at a time from a pipe, and writes them to the spool and to the container's own stdout.
func BenchmarkCopy(b *testing.B) {
	var in [2]int
	if err := errors.Join(unix.Pipe2(in[:], unix.O_CLOEXEC), unix.SetNonblock(in[0], true)); err != nil {
		b.Fatal(err)
	}
	feed := os.NewFile(uintptr(in[1]), "feed")
	defer feed.Close()
	defer unix.Close(in[0])
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(null)
	dir := b.TempDir()
	w, err := spool.NewWriter(dir, 1<<40)
	if err != nil {
		b.Fatal(err)
	}
	s := &stream{name: criline.Stdout, pipe: in[0], out: null, sink: w, hand: spool.NewHand(false).Stream(criline.Stdout)}
	chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), spool.ChunkBytes/100)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := feed.Write(chunk); err != nil {
			b.Fatal(err)
		}
		s.copyBytes(len(chunk))
		if i%1000 == 999 { // the shipper, so that the disk stays empty
			b.StopTimer()
			files, err := filepath.Glob(filepath.Join(dir, "*.log"))
			if err != nil {
				b.Fatal(err)
			}
			for _, name := range files[:len(files)-1] {
				if err := os.Remove(name); err != nil {
					b.Fatal(err)
				}
			}
			b.StartTimer()
		}
	}
}

type discard struct{}

func (discard) Write(criline.Stream, []byte)          {}
func (discard) Abandon(criline.Stream, int64, string) {}
