package main

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/spool"
)

const (
	// lookEvery is how often the folders are looked at, and so how late a change is noticed at most.
	// A step that prints 50 MB/s writes 12.5 MB meanwhile. The kernel would say so at once
	// (inotify(7)), but all shippers of a node run as one user, and that user's inotify instances are
	// few: what shippers have, a step that runs as the same user has not.
	lookEvery = 250 * time.Millisecond
	// settled is how old the last change of a folder is when a folder of the same time is taken for
	// the same: file systems note times in steps of some milliseconds.
	settled = time.Second
	// mostNames is how many names in a container's folder are looked at. A step can make any number.
	mostNames = 4 << 10
)

// startWatcher wakes the shipper when a container's folder has changed, and divides the limit anew,
// until the context ends. It is at work beside the shipper's passes, which may wait for the store.
// The caller waits for the group.
func startWatcher(
	ctx context.Context, logs []*containerLog, limit *sharing, wake chan<- struct{},
) *sync.WaitGroup {
	var folders []*watched
	for _, l := range logs {
		folders = append(folders, &watched{path: l.folder})
	}
	var group sync.WaitGroup
	group.Go(func() {
		defer func() {
			for _, f := range folders {
				f.close()
			}
		}()
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		used := make([]int64, len(folders))
		for {
			changed := false
			for i, f := range folders {
				changed = f.look(time.Now()) || changed
				used[i] = f.used
			}
			limit.divide(used)
			if changed {
				select {
				case wake <- struct{}{}:
				default: // one wake is as good as many
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	return &group
}

// watched is a container's folder, which can be hostile.
type watched struct {
	path string
	used int64 // bytes of log files; math.MaxInt64 if that is not to be found out

	dir         *os.File // nil until it can be opened
	changedAt   unix.Timespec
	endless     bool   // there are more names than are looked at
	first, last int64  // bases of log files, -1 if there is none
	lastName    string // the file's
	size        int64  // of the last one
}

// look measures the folder, and says whether it has changed. In a folder in which nothing happens
// that costs two system calls.
func (w *watched) look(now time.Time) (changed bool) {
	if w.dir == nil && !w.open() {
		return false
	}
	var st unix.Stat_t
	if unix.Fstat(int(w.dir.Fd()), &st) != nil {
		return false
	}
	if st.Mtim != w.changedAt || now.Sub(time.Unix(st.Mtim.Unix())) < settled {
		if w.names() {
			changed = st.Mtim != w.changedAt
			w.changedAt = st.Mtim
		} else {
			w.changedAt = unix.Timespec{} // what is known stays, and the next look reads it again
		}
	}
	size := int64(0)
	if w.last >= 0 {
		var file unix.Stat_t
		err := unix.Fstatat(int(w.dir.Fd()), w.lastName, &file, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && file.Mode&unix.S_IFMT == unix.S_IFREG {
			size = file.Size
		}
	}
	changed = changed || size != w.size
	w.size = size
	switch {
	case w.endless, w.last-w.first > math.MaxInt64-size:
		w.used = math.MaxInt64
	case w.last < 0:
		w.used = 0
	default:
		w.used = w.last - w.first + size
	}
	return changed
}

// open opens the folder. One that is closed to us is tried again.
func (w *watched) open() bool {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Open(w.path, flags, 0)
	if err != nil {
		return false
	}
	w.dir = os.NewFile(uintptr(fd), w.path)
	w.first, w.last = -1, -1
	return true
}

func (w *watched) close() {
	if w.dir != nil {
		_ = w.dir.Close() // opened for reading: there is nothing to lose
	}
}

// names finds the first and the last log file. Where the folder cannot be read, it changes nothing.
func (w *watched) names() (ok bool) {
	if _, err := w.dir.Seek(0, io.SeekStart); err != nil {
		return false
	}
	names, err := w.dir.Readdirnames(mostNames)
	// One that is removed has no names.
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrNotExist) {
		return false
	}
	w.first, w.last = -1, -1
	for _, name := range names {
		base, ok := spool.ParseLogName(name)
		if !ok {
			continue
		}
		if w.first < 0 || base < w.first {
			w.first = base
		}
		if base >= w.last {
			w.last, w.lastName = base, name
		}
	}
	w.endless = len(names) == mostNames
	return true
}
