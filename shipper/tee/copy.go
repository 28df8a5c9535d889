//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// firstOwnFD keeps tee's own copies of stdout and stderr away from the numbers that shell scripts use.
const firstOwnFD = 10

// past is a deadline that is over.
var past = time.Unix(1, 0)

// sink is where the copy goes: the spool.
type sink interface {
	Write(s criline.Stream, chunk []byte)
	Abandon(s criline.Stream, bytes int64, why string)
}

// stream is the way of one stream: pipe → sink, and the container's own stdout or stderr.
type stream struct {
	name criline.Stream
	pipe *os.File // read end, non-blocking
	fd   int      // of pipe; os.File.Fd would make it block
	out  int      // the container's own
	sink sink

	hand *spool.HandStream
	conn syscall.RawConn // of pipe

	// What follows is of one call of next, and outlives it only so that a chunk costs no allocation.
	try   func(fd uintptr) bool
	limit int
	chunk []byte
	err   error
}

// newStream makes a stream. It fails only where pipe is not open.
func newStream(name criline.Stream, pipe, out int, to sink, hand *spool.HandStream) (*stream, error) {
	s := &stream{name: name, pipe: os.NewFile(uintptr(pipe), string(name)), fd: pipe, out: out, sink: to, hand: hand}
	conn, err := s.pipe.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	s.conn = conn
	s.try = func(fd uintptr) (done bool) {
		s.chunk, s.err = s.hand.Take(int(fd), s.limit)
		return !errors.Is(s.err, unix.EAGAIN)
	}
	return s, nil
}

// copying is both streams, each with a goroutine that drain waits for.
type copying struct {
	streams [2]*stream
	hand    *spool.Hand
	wg      sync.WaitGroup
}

// streams are those of fd 1 and 2.
var streams = [2]criline.Stream{criline.Stdout, criline.Stderr}

// startCopy puts pipes in the place of fd 1 and 2, and begins to copy. A process that opens /proc/1/fd/1 writes into the pipe too. On an error, fd 1 and 2
// are what they were.
func startCopy(to sink, hand *spool.Hand) (*copying, error) {
	c := &copying{hand: hand}
	var own, reads, writes [2]int
	for i := range own {
		var err error
		if own[i], err = unix.FcntlInt(uintptr(i+1), unix.F_DUPFD_CLOEXEC, firstOwnFD); err != nil {
			return nil, fmt.Errorf("keep the container's fd %d: %w", i+1, err)
		}
		// Without a name: writing into a named pipe fails when its file system cannot note the time, as on btrfs with a quota that is used up, and so would the step.
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		reads[i], writes[i] = p[0], p[1]
		// Of the read end only. Each end is an open file description of its own; a child that finds its stdout non-blocking loses output.
		if err := unix.SetNonblock(reads[i], true); err != nil {
			return nil, fmt.Errorf("make a pipe non-blocking: %w", err)
		}
	}
	for i, name := range streams {
		var err error
		if c.streams[i], err = newStream(name, reads[i], own[i], to, hand.Stream(name)); err != nil {
			return nil, err
		}
	}
	for i := range writes {
		if err := unix.Dup3(writes[i], i+1, 0); err != nil {
			for j := range i {
				_ = unix.Dup3(own[j], j+1, 0) // the same call has just worked
			}
			return nil, fmt.Errorf("put a pipe in the place of fd %d: %w", i+1, err)
		}
	}
	for i, s := range c.streams {
		_ = unix.Close(writes[i]) // fd 1 or 2 stands for it now
		c.wg.Go(s.run)
	}
	return c, nil
}

// outlives are the files that the shipper is to hold, or none.
func (c *copying) outlives() []int {
	if c.hand.FD < 0 {
		return nil
	}
	return []int{c.hand.FD, c.streams[0].fd, c.streams[1].fd}
}

// drain stops the copying when all that is in the pipes now has been copied. It does not wait for the end of the pipes, which a background process, and tee itself,
// hold open.
func (c *copying) drain() {
	for _, s := range c.streams {
		_ = s.pipe.SetReadDeadline(past) // reading stops, and bytes stay in the pipe
	}
	c.wg.Wait()
}

// end ends the log in the spool, when drain has returned, or where nothing can be written there in the hand, if that is held by the shipper. If neither works, the container's own stderr says so.
func (c *copying) end(w interface{ End(record.Exit) error }, exit record.Exit, held bool) {
	say := func(why any) {
		writeAll(c.streams[1].out, fmt.Appendf(nil, "shiplog: this log is not kept to its end: %v\n", why))
	}
	defer func() {
		if r := recover(); r != nil {
			say(r)
		}
	}()
	err := w.End(exit)
	var unwritten *spool.EndError
	if errors.As(err, &unwritten) && held && c.hand.End(unwritten.End) == nil {
		return
	}
	if err != nil {
		say(err)
	}
}

// run copies until the deadline, and then what is left in the pipe.
func (s *stream) run() {
	for {
		if _, err := s.next(spool.ChunkBytes); err != nil {
			break // the deadline; a pipe whose write end tee holds itself has no end and no other error
		}
	}
	// TIOCINQ is FIONREAD: the bytes in the pipe.
	left, err := unix.IoctlGetInt(s.fd, unix.TIOCINQ)
	if err != nil || s.pipe.SetReadDeadline(time.Time{}) != nil {
		return
	}
	s.copyBytes(left)
}

// copyBytes copies so many bytes, which are in the pipe already.
func (s *stream) copyBytes(left int) {
	for left > 0 {
		n, err := s.next(left)
		if err != nil {
			return
		}
		left -= n
	}
}

// next waits for output, takes at most so many bytes of it, and hands them on: to the spool first, since what is not there is lost if tee is killed now and the shipper does not hold what
// outlives it, and then to the container's own stdout or stderr.
func (s *stream) next(limit int) (n int, err error) {
	s.limit = limit
	if err := s.conn.Read(s.try); err != nil {
		return 0, err
	}
	if s.err != nil {
		return 0, s.err
	}
	s.keep(s.chunk)
	s.hand.Done()
	writeAll(s.out, s.chunk)
	return len(s.chunk), nil
}

// keep writes to the spool. A panic of the spool's code must not end the build: the bytes at hand are counted as lost to the copy, and the container's own
// stdout goes on.
func (s *stream) keep(b []byte) {
	if s.sink == nil {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			s.abandon(int64(len(b)), fmt.Sprintf("panic in tee: %v", r))
		}
	}()
	s.sink.Write(s.name, b)
}

func (s *stream) abandon(lost int64, why string) {
	defer func() {
		if recover() != nil {
			s.sink = nil
		}
	}()
	s.sink.Abandon(s.name, lost, why)
}

// writeAll writes everything, as long as it takes. An error, such as that nobody reads the container's stdout any more, is ignored: the child was not told
// of it by a pipe that tee still reads, and its output is still worth keeping.
func writeAll(fd int, b []byte) {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case n > 0:
			b = b[n:]
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			// Another process has made the container's stdout non-blocking. Wait as a blocking write would.
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
		default:
			return
		}
	}
}
