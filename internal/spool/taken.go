//go:build linux

package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// takenFile is how many bytes tee has taken of stdout and stderr: two numbers of eight bytes, little-endian. What is taken and neither in the log nor in one of its gaps was in tee's hands
// when it was killed. It is in a folder of its own: there, it wakes nobody who watches the container's folder.
const (
	takenFolder = "tee"
	takenFile   = "taken"
)

// takenStreams are in the order of the numbers.
var takenStreams = [2]criline.Stream{criline.Stdout, criline.Stderr}

// MakeTaken makes the count of a container that is still to begin. It can be repeated. tee does without.
func MakeTaken(dir string) error {
	folder := filepath.Join(dir, takenFolder)
	if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make tee's count: %w", err)
	}
	if err := os.Chmod(folder, 0o755); err != nil { // whatever the umask is
		return fmt.Errorf("make tee's count: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(folder, takenFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make tee's count: %w", err)
	}
	// With its block: when it is written, the disk may be full. The container runs as any user.
	_, err = f.Write(make([]byte, 8*len(takenStreams)))
	if err := errors.Join(err, f.Chmod(0o666), f.Close()); err != nil {
		return fmt.Errorf("make tee's count: %w", err)
	}
	return nil
}

// Taken counts what tee takes. A nil Taken counts nothing.
type Taken struct {
	f      *os.File
	total  [2]uint64 // each touched by its stream's goroutine alone
	broken atomic.Bool
}

// OpenTaken opens the count, for tee. A container that runs again goes on with it. Without the file it returns nil.
func OpenTaken(dir string) *Taken {
	f, err := os.OpenFile(filepath.Join(dir, takenFolder, takenFile), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
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
	if s == takenStreams[1] {
		i = 1
	}
	t.total[i] += uint64(bytes)
	binary.LittleEndian.PutUint64(buf[:], t.total[i])
	if t.broken.Load() {
		return
	}
	// In place. Where it fails all the same, as on btrfs with a quota that is used up, each try would cost the step time, so that it is not tried again: only a count is too small then.
	if _, err := t.f.WriteAt(buf[:], int64(8*i)); err != nil {
		t.broken.Store(true)
	}
}

// Taken is how many bytes of stdout and stderr tee has taken. ok is false where that is not known. It is the step's word, as all in its folder.
func (r *Reader) Taken() (stdout, stderr int64, ok bool) {
	folder, err := unix.Openat(int(r.dir.Fd()), takenFolder, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, false
	}
	defer unix.Close(folder)
	fd, err := unix.Openat(folder, takenFile, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	var b [16]byte
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return 0, 0, false
	}
	if n, err := unix.Pread(fd, b[:], 0); err != nil || n != len(b) {
		return 0, 0, false
	}
	stdout, stderr = int64(binary.LittleEndian.Uint64(b[:8])), int64(binary.LittleEndian.Uint64(b[8:]))
	return stdout, stderr, stdout >= 0 && stderr >= 0
}
