//go:build linux

package main

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// firstOwnFD keeps tee's own copies of stdout and stderr away from the numbers that shell scripts use.
const firstOwnFD = 10

// sink is where the copy goes: the spool.
type sink interface {
	Write(s criline.Stream, chunk []byte)
	Abandon(s criline.Stream, bytes int64, why string)
}

// stream is the way of one stream: pipe → sink, and the container's own stdout or stderr.
type stream struct {
	name criline.Stream
	pipe int // read end, non-blocking
	out  int // the container's own
	sink sink
	stop *stop
	hand *spool.HandStream

	// ahead is how many bytes at the pipe's beginning the container's own stdout or stderr has already.
	ahead   int
	noPipe  bool // that is none, so that nothing can be ahead
	waitFor [2]unix.PollFd
}

// stop ends the reading of pipes. Its reader waits for it with a poll, since waiting with Go's own costs a switch of threads for each chunk.
type stop struct {
	asked atomic.Bool
	fd    int // an eventfd(2) that is readable from then on
}

func newStop() (*stop, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	return &stop{fd: fd}, nil
}

func (s *stop) ask() {
	s.asked.Store(true)
	_, _ = unix.Write(s.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // fails only where it is readable 2^64 times over
}

// errStopped is why no more is read.
var errStopped = errors.New("stopped")

// copying is both streams, each with a goroutine that drain waits for.
type copying struct {
	streams [2]*stream
	stop    *stop
	hand    *spool.Hand
	wg      sync.WaitGroup
}

// streams are those of fd 1 and 2.
var streams = [2]criline.Stream{criline.Stdout, criline.Stderr}

// startCopy puts pipes in the place of fd 1 and 2, and begins to copy. A process that opens /proc/1/fd/1 writes into the pipe too. On an error, fd 1 and 2
// are what they were.
func startCopy(to sink, hand *spool.Hand) (*copying, error) {
	stop, err := newStop()
	if err != nil {
		return nil, err
	}
	c := &copying{hand: hand, stop: stop}
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
		c.streams[i] = &stream{name: name, pipe: reads[i], out: own[i], sink: to, stop: stop, hand: hand.Stream(name)}
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
	return []int{c.hand.FD, c.streams[0].pipe, c.streams[1].pipe}
}

// drain stops the copying when all that is in the pipes now has been copied. It does not wait for the end of the pipes, which a background process, and tee itself,
// hold open.
func (c *copying) drain() {
	c.stop.ask() // reading stops, and bytes stay in the pipes
	c.wg.Wait()
}

// end ends the log in the spool, when drain has returned, or where nothing can be written there in
// the hand, if that is held by the shipper. If neither works, the container's own stderr says so,
// unless tee is to be quiet.
func (c *copying) end(w interface{ End(record.Exit) error }, exit record.Exit, held, quiet bool) {
	say := func(why any) {
		if quiet {
			return
		}
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

// run copies until it is to stop, and then what is left in the pipe.
func (s *stream) run() {
	for !s.stop.asked.Load() {
		if _, err := s.next(spool.ChunkBytes); err != nil {
			break // it is to stop; a pipe whose write end tee holds itself has no end and no other error
		}
	}
	// TIOCINQ is FIONREAD: the bytes in the pipe.
	left, err := unix.IoctlGetInt(s.pipe, unix.TIOCINQ)
	if err != nil {
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

// next waits for output, takes at most so many bytes of it, and hands them on.
//
// The container's own stdout gets them first, as far as it has room: tee(2) puts into a pipe what is in another one, and leaves it there. Nothing is in tee's hands alone by that, where it is lost if tee is killed now and
// the shipper does not hold what outlives it. The rest is written when it is in the spool.
func (s *stream) next(limit int) (n int, err error) {
	limit = min(limit, spool.ChunkBytes)
	for {
		if s.ahead == 0 && !s.noPipe {
			n, err := unix.Tee(s.pipe, s.out, limit, unix.SPLICE_F_NONBLOCK)
			s.ahead, s.noPipe = int(max(n, 0)), errors.Is(err, unix.EINVAL)
		}
		chunk, err := s.hand.Take(s.pipe, limit)
		if errors.Is(err, unix.EAGAIN) {
			err = s.wait()
			if err == nil {
				continue
			}
		}
		if err != nil {
			return 0, err
		}
		s.keep(chunk)
		s.hand.Done()
		n = len(chunk)
		has := min(s.ahead, n)
		s.ahead -= has
		writeAll(s.out, chunk[has:])
		return n, nil
	}
}

// wait waits for output, or until it is to stop.
func (s *stream) wait() error {
	for {
		s.waitFor = [2]unix.PollFd{{Fd: int32(s.pipe), Events: unix.POLLIN}, {Fd: int32(s.stop.fd), Events: unix.POLLIN}}
		_, err := unix.Poll(s.waitFor[:], -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for output: %w", err)
		case s.waitFor[1].Revents != 0:
			return errStopped
		case s.waitFor[0].Revents&unix.POLLIN != 0:
			return nil
		case s.waitFor[0].Revents != 0: // an end or an error, which a pipe that tee holds the write end of has not
			return fmt.Errorf("wait for output: the pipe has the event %#x", s.waitFor[0].Revents)
		}
	}
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
