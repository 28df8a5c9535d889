//go:build linux

package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// A container's stdout and stderr are named pipes in a folder within its own: there, what is printed wakes nobody who watches the container's folder. When all of a container is killed at once, tee with it, as where it runs out of memory, what was printed last is
// still in the pipe. The kernel keeps that as long as someone holds the pipe open, and the shipper does.
const pipeFolder = "pipe"

// pipeStreams are the streams that have a pipe, in the order of Reader.pipes.
var pipeStreams = [2]criline.Stream{criline.Stdout, criline.Stderr}

// MakePipe makes a stream's pipe anew and opens it. The read end does not block. An error leaves nothing open.
func MakePipe(dir string, s criline.Stream) (read, write int, err error) {
	folder := filepath.Join(dir, pipeFolder)
	if err := os.Mkdir(folder, 0o755); err == nil {
		err = os.Chmod(folder, 0o755) // whatever the umask is
		if err != nil {
			return -1, -1, err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return -1, -1, err
	}
	path := filepath.Join(folder, string(s))
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return -1, -1, err
	}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return -1, -1, &fs.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	if read, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return -1, -1, errors.Join(&fs.PathError{Op: "open", Path: path, Err: err}, os.Remove(path))
	}
	// Of the same pipe, whatever stands under its name now. There is a reader, so this does not wait for one.
	if write, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", read), unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		// Only now: a shipper that opens it before there is a writer is not told when the last one is gone. It runs as another user.
		if err = unix.Chmod(path, fileMode); err == nil {
			return read, write, nil
		}
		_ = unix.Close(write)
	}
	_ = unix.Close(read)
	return -1, -1, errors.Join(&fs.PathError{Op: "open", Path: path, Err: err}, os.Remove(path))
}

// RemovePipes removes the pipes, at the container's end.
func RemovePipes(dir string) { _ = os.RemoveAll(filepath.Join(dir, pipeFolder)) } // those that stay are empty

// holdPipes opens the pipes, so that what is in them outlives the container.
func (r *Reader) holdPipes() {
	if r.pipes[0] >= 0 && r.pipes[1] >= 0 {
		return
	}
	folder, err := unix.Openat(int(r.dir.Fd()), pipeFolder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return // not tee's
	}
	defer unix.Close(folder)
	for i, s := range pipeStreams {
		if r.pipes[i] >= 0 {
			continue
		}
		fd, err := unix.Openat(folder, string(s), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // not there yet, or not readable yet
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO || st.Nlink != 1 {
			_ = unix.Close(fd)
			continue
		}
		r.pipes[i] = fd
	}
}

func (r *Reader) closePipes() {
	for i, fd := range r.pipes {
		if fd >= 0 {
			_ = unix.Close(fd)
			r.pipes[i] = -1
		}
	}
}

// Rest returns what a container that was killed has left in its pipes, as lines with the time now, up to criline.MaxText printed bytes at a time. It takes nothing from a container
// that still runs, whose tee will read it. What it has returned is gone from the pipes. The lines are good until the next call of any reader with the same Buffers.
func (r *Reader) Rest(now time.Time) (lines []byte, tally criline.Tally, err error) {
	if r.mem.in == nil {
		r.mem.in = make([]byte, readSize)
	}
	r.mem.out = r.mem.out[:0]
	for i, s := range pipeStreams {
		if r.pipes[i] < 0 {
			continue
		}
		poll := []unix.PollFd{{Fd: int32(r.pipes[i]), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 0); err != nil || poll[0].Revents&unix.POLLHUP == 0 {
			continue
		}
		text := r.mem.in[:criline.MaxText]
		n, err := readUpTo(r.pipes[i], text)
		if err != nil {
			return nil, tally, fmt.Errorf("read pipe %s/%s/%s: %w", r.path, pipeFolder, s, err)
		}
		if n > 0 {
			r.appendText(text[:n], s, now, &tally)
			break
		}
	}
	return r.mem.out, tally, nil
}

// readUpTo reads what there is, until b is full.
func readUpTo(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := unix.Read(fd, b[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) || err == nil && m == 0:
			return n, nil
		case err != nil:
			return n, err
		default:
			n += m
		}
	}
	return n, nil
}

// appendText adds what was printed as lines.
func (r *Reader) appendText(text []byte, s criline.Stream, t time.Time, tally *criline.Tally) {
	for len(text) > 0 {
		line := criline.Line{Time: t, Stream: s, Text: text}
		behind := len(text)
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line.Text, line.Full, behind = text[:i], true, i+1
		}
		r.mem.out = criline.Append(r.mem.out, line.Time, s, line.Full, line.Text)
		tally.Add(line)
		text = text[behind:]
	}
}
