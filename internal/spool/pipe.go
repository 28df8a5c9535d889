//go:build linux

package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// A container's stdout and stderr are named pipes. When all of a container is killed at once, tee with it, as where it runs out of memory, what was printed last is still in the pipe.
// The kernel keeps that as long as someone holds the pipe open, and the shipper does, from before the container begins. The pipes are in a folder within the container's own: there, what is
// printed wakes nobody who watches the container's folder.
const pipeFolder = "pipe"

// takenFile is how many bytes tee has taken out of each pipe: two numbers of eight bytes, little-endian, in the order of pipeStreams. What is taken and neither in the log nor in one of its
// gaps was in tee's hands when it was killed.
const takenFile = "taken"

// pipeStreams are the streams that have a pipe, in the order of Reader.pipes.
var pipeStreams = [2]criline.Stream{criline.Stdout, criline.Stderr}

// MakePipes makes the pipes of a container that is still to begin. It can be repeated. Without them, a container's last output is lost if it is killed; tee does without.
func MakePipes(dir string) error {
	folder := filepath.Join(dir, pipeFolder)
	if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make pipes: %w", err)
	}
	if err := os.Chmod(folder, 0o755); err != nil { // whatever the umask is
		return fmt.Errorf("make pipes: %w", err)
	}
	// With its block: when it is written, the disk may be full.
	path := filepath.Join(folder, takenFile)
	if f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666); err == nil {
		_, err := f.Write(make([]byte, 8*len(pipeStreams)))
		if err := errors.Join(err, f.Chmod(0o666), f.Close()); err != nil {
			return fmt.Errorf("make pipes: %w", err)
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make pipes: %w", err)
	}
	for _, s := range pipeStreams {
		path := filepath.Join(folder, string(s))
		if err := unix.Mkfifo(path, 0o666); err != nil {
			if errors.Is(err, unix.EEXIST) {
				continue
			}
			return fmt.Errorf("make pipes: %w", &fs.PathError{Op: "mkfifo", Path: path, Err: err})
		}
		if err := os.Chmod(path, 0o666); err != nil { // the container runs as any user
			return fmt.Errorf("make pipes: %w", err)
		}
	}
	return nil
}

// OpenPipe opens a stream's pipe, for tee. The read end does not block. An error leaves nothing open.
func OpenPipe(dir string, s criline.Stream) (read, write int, err error) {
	path := filepath.Join(dir, pipeFolder, string(s))
	fail := func(op string, err error) (int, int, error) {
		return -1, -1, &fs.PathError{Op: op, Path: path, Err: err}
	}
	if read, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return fail("open", err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(read, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFIFO {
		err = errors.New("not a pipe")
	}
	if err == nil {
		// Of the same pipe, whatever stands under its name now. There is a reader, so this does not wait for one.
		if write, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", read), unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			return read, write, nil
		}
	}
	_ = unix.Close(read)
	return fail("open", err)
}

// Taken counts what tee takes out of the pipes. A nil Taken counts nothing.
type Taken struct {
	f     *os.File
	total [2]uint64 // each touched by its stream's goroutine alone
}

// OpenTaken opens the count, for tee. A container that runs again goes on with it. Without the file it returns nil.
func OpenTaken(dir string) *Taken {
	f, err := os.OpenFile(filepath.Join(dir, pipeFolder, takenFile), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	t := &Taken{f: f}
	for i := range t.total {
		var b [8]byte
		if _, err := f.ReadAt(b[:], int64(8*i)); err != nil {
			_ = f.Close() // opened in vain
			return nil
		}
		t.total[i] = binary.LittleEndian.Uint64(b[:])
	}
	return t
}

// Add counts bytes of a stream. The buffer is the caller's, so that a chunk costs no allocation.
func (t *Taken) Add(s criline.Stream, bytes int, buf *[8]byte) {
	if t == nil {
		return
	}
	i := 0
	if s == pipeStreams[1] {
		i = 1
	}
	t.total[i] += uint64(bytes)
	binary.LittleEndian.PutUint64(buf[:], t.total[i])
	_, _ = t.f.WriteAt(buf[:], int64(8*i)) // in place; if it fails, only a count is too small
}

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
	open := func(name string, kind uint32) int {
		fd, err := unix.Openat(folder, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != kind || st.Nlink != 1 {
			_ = unix.Close(fd)
			return -1
		}
		return fd
	}
	for i, s := range pipeStreams {
		if r.pipes[i] < 0 {
			r.pipes[i] = open(string(s), unix.S_IFIFO)
		}
	}
	if r.taken < 0 {
		r.taken = open(takenFile, unix.S_IFREG)
	}
}

// Taken is how many bytes of stdout and stderr tee has taken out of the pipes. ok is false where that is not known. It is the step's word, as all in its folder.
func (r *Reader) Taken() (stdout, stderr int64, ok bool) {
	var b [16]byte
	if r.taken < 0 {
		return 0, 0, false
	}
	if n, err := unix.Pread(r.taken, b[:], 0); err != nil || n != len(b) {
		return 0, 0, false
	}
	stdout, stderr = int64(binary.LittleEndian.Uint64(b[:8])), int64(binary.LittleEndian.Uint64(b[8:]))
	return stdout, stderr, stdout >= 0 && stderr >= 0
}

func (r *Reader) closePipes() {
	for i, fd := range r.pipes {
		if fd >= 0 {
			_ = unix.Close(fd)
			r.pipes[i] = -1
		}
	}
	if r.taken >= 0 {
		_ = unix.Close(r.taken)
		r.taken = -1
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
