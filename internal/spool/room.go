package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// ShareFile is the file in a container's folder that says how much unshipped output this container
// may have. The shipper writes it, so that all containers of a pod share one limit; it stays good
// when the shipper is gone, since what it gives to all of them is the pod's limit in sum. A step
// that changes its own can do no more than by writing files itself.
const ShareFile = OfferFolder + "/limit"

// maxShare bounds ShareFile in bytes.
const maxShare = 32

// Share is what ShareFile says.
type Share struct {
	Limit    int64 // bytes
	DiskFree int64 // percent of the disk that the spool leaves free; at 0 nobody looks at the disk
}

// Encode makes the bytes of ShareFile: two decimal numbers, a blank between them, and a newline.
func (s Share) Encode() []byte { return fmt.Appendf(nil, "%d %d\n", s.Limit, s.DiskFree) }

// ReadShare reads the ShareFile of a container's folder, which may be hostile. There is none where
// the pod is of a webhook that set no limit for all of it.
func ReadShare(dir string) (s Share, ok bool) {
	// Without blocking, as it may be a FIFO.
	flags := os.O_RDONLY | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(filepath.Join(dir, ShareFile), flags, 0)
	if err != nil {
		return s, false
	}
	defer f.Close()
	var b [maxShare]byte
	n, err := io.ReadFull(f, b[:])
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		return s, false
	}
	text, whole := strings.CutSuffix(string(b[:n]), "\n")
	limit, free, both := strings.Cut(text, " ")
	s.Limit, err = strconv.ParseInt(limit, 10, 64)
	if err == nil {
		s.DiskFree, err = strconv.ParseInt(free, 10, 64)
	}
	good := whole && both && err == nil && s.Limit > 0 && s.DiskFree >= 0 && s.DiskFree < 100
	return s, good
}

// The kubelet evicts pods when their node's disk runs full, chatty or not. With its defaults that
// is where less than 15 % of the disk is free (imagefs.available, which is the same disk on most
// nodes; nodefs.available is 10 %), or less than 5 % of its inodes are. So the spool may take a
// part of what is free above that, and the less there is, the less it may: with any number of
// containers some room is left, as where buffers of a switch share its memory.
//
// Of inodes it takes next to none: one for 8 MiB, where disks have one for 16 KiB. Where less than
// inodesPercent are free, a container that has fewFiles begins no more: its last one grows.
const (
	inodesPercent = 10
	fewFiles      = 4
	diskPart      = 16
	// diskLeast is what a container may have in any case. It is as much as a log needs that is
	// shipped while it is written: the kubelet lets images fill a disk up to 85 %, so that many a
	// healthy node is always near the threshold.
	diskLeast = 8 << 20
)

// disk is what statfs(2) says.
type disk struct {
	bytes, free        uint64
	inodes, inodesFree uint64
}

// diskOf looks at the file system of a folder.
func diskOf(dir string) (disk, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return disk{}, fmt.Errorf("look at the file system of %s: %w", dir, err)
	}
	size := uint64(s.Bsize)
	return disk{
		bytes: s.Blocks * size, free: s.Bavail * size, // as the kubelet counts
		inodes: s.Files, inodesFree: s.Ffree,
	}, nil
}

// limit is the most unshipped output that a container may have on the disk, of which so many
// percent are to stay free. low says that this is less than it may have elsewhere.
func (d disk) limit(most, percent int64) (limit int64, low bool) {
	limit = most
	// A file system that counts no bytes, as tmpfs without a limit, has enough.
	if floor := d.bytes / 100 * uint64(percent); d.bytes > 0 {
		above := d.free - min(d.free, floor)
		limit = int64(min(uint64(most), above/diskPart))
	}
	limit = max(limit, min(most, diskLeast))
	return limit, limit < most
}

// fewInodes says whether inodes run out. A file system that counts none, as btrfs, has enough.
func (d disk) fewInodes() bool {
	return d.inodes > 0 && d.inodesFree < d.inodes/100*inodesPercent
}

// String is for a gap's detail.
func (d disk) String() string {
	return fmt.Sprintf("%.1f %% of the node's disk are free", 100*float64(d.free)/float64(d.bytes))
}

// measure finds out how much room there is for unshipped output.
func (w *Writer) measure(now time.Time) {
	w.measured = now
	limit, before := w.most, w.limit
	share, ok := ReadShare(w.dir)
	if ok {
		limit = min(limit, share.Limit)
	}
	w.limit, w.low, w.free = limit, false, disk{}
	if share.DiskFree > 0 && ok {
		if d, err := w.disk(w.dir); err == nil { // one that says nothing has room
			w.limit, w.low = d.limit(limit, share.DiskFree)
			w.free = d
		}
	}
	if w.limit == before {
		return
	}
	w.maxFile = max(minFile, min(maxFile, w.limit/8))
	w.maxText = int(min(criline.MaxText, w.maxFile-int64(criline.PrefixLen)-1))
}

// mayBegin says whether another file may be begun, for the sake of the disk's inodes.
func (w *Writer) mayBegin() bool {
	if !w.free.fewInodes() {
		return true
	}
	files, err := logFiles(w.dir)
	return err != nil || len(files) < fewFiles
}

// refusal is why there is no room.
func (w *Writer) refusal() (reason criline.Reason, detail string) {
	if w.low {
		return criline.ReasonDiskLow, w.free.String()
	}
	return criline.ReasonSpoolLimit, ""
}
