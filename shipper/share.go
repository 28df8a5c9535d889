package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// shareUnits is in how many parts the limit is divided, so that a share is written seldom.
const shareUnits = 1 << 10

// sharing divides the pod's limit of unshipped output among its containers. A container's share is
// in its folder, and tee keeps to it, also when the shipper is gone.
type sharing struct {
	limit  int64
	free   int64 // percent of the disk that tee leaves free
	shares []*share
	log    *slog.Logger
}

// share is one container's.
type share struct {
	name, folder string
	given        int64 // 0: not known
	used         int64 // as of the last look
	active       bool  // it has grown since the look before
	failed       bool  // it could not be written, and that was logged
}

// newSharing divides the limit of the pod's configuration. Where the webhook is older than
// SpoolLimit, there is no limit to divide.
func newSharing(c contract.Config, logs []*containerLog, log *slog.Logger) *sharing {
	s := &sharing{limit: c.SpoolLimit, free: c.DiskFree, log: log}
	for _, l := range logs {
		s.shares = append(s.shares, &share{name: l.name, folder: l.folder})
	}
	return s
}

// divide divides the limit by what the containers use, and writes the shares that have changed.
func (s *sharing) divide(measured []int64) {
	if s.limit <= 0 || !s.note(measured) {
		return
	}
	used, active := make([]int64, len(s.shares)), make([]bool, len(s.shares))
	for i, sh := range s.shares {
		used[i], active[i] = sh.used, sh.active
	}
	given := divide(s.limit, used, active)
	// What becomes less goes first, so that the files never give more than the limit in sum. Each tee
	// reads its own every 100 ms only, and goes by the one before until then.
	for _, less := range []bool{true, false} {
		for i, sh := range s.shares {
			if given[i] == sh.given || (given[i] < sh.given) != less {
				continue
			}
			to := spool.Share{Limit: given[i], DiskFree: s.free}
			if err := writeShare(sh.folder, to, false); err != nil {
				if !sh.failed {
					s.log.Warn("a container's share of the spool cannot be changed",
						"container", sh.name, "error", err)
				}
				sh.failed = true
				continue
			}
			sh.given, sh.failed = given[i], false
		}
	}
}

// note keeps what was measured, and says whether the shares may have changed by it.
func (s *sharing) note(measured []int64) (changed bool) {
	for i, sh := range s.shares {
		most := sh.given
		if most == 0 { // an earlier shipper or the postStart hook has given it
			changed, most = true, s.limit
			if given, ok := spool.ReadShare(sh.folder); ok {
				most = min(given.Limit, s.limit)
			}
		}
		used := min(measured[i], most) // more than the share is forged
		active := used > sh.used
		changed = changed || sh.failed || used != sh.used || active != sh.active
		sh.used, sh.active = used, active
	}
	return changed
}

// divide gives to each container what it uses, and of what nobody uses: one half of the limit
// belongs to all in equal parts, whatever the others use, so that a chatty step does not take the
// room of those behind it; the rest is lent, a half of it to all and a half to those that are
// printing. The sum is the limit at most.
func divide(limit int64, used []int64, active []bool) []int64 {
	n := int64(len(used))
	own := limit / 2 / n
	rest, printing := limit-n*own, int64(0)
	for i, u := range used {
		rest -= max(0, u-own)
		if active[i] {
			printing++
		}
	}
	rest = max(0, rest)
	unit := max(1, limit/shareUnits)
	given := make([]int64, n)
	for i, u := range used {
		lent := rest / 2 / n
		switch {
		case printing == 0:
			lent += rest / 2 / n
		case active[i]:
			lent += rest / 2 / printing
		}
		given[i] = own + max(0, u-own) + lent
		given[i] -= given[i] % unit
		given[i] = max(given[i], 1) // 0 is no share
	}
	return given
}

// newShare is the share's name until it is whole, and firstShare that of the postStart hook's,
// which is written beside the shipper.
const newShare, firstShare = "limit.new", "limit.first"

// writeShare writes a share into a container's folder, which can be hostile: it follows no link.
// As the first one, it leaves one that is there as it is.
func writeShare(folder string, share spool.Share, first bool) error {
	fail := func(err error) error {
		return fmt.Errorf("write %s in %s: %w", spool.ShareFile, folder, err)
	}
	fd, err := openOfferFolder(folder)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	name, flags := newShare, uint(0)
	if first {
		name, flags = firstShare, unix.RENAME_NOREPLACE
	}
	if err := unix.Unlinkat(fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fail(err)
	}
	const create = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	out, err := unix.Openat(fd, name, create, 0o644)
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(out), name)
	_, err = f.Write(share.Encode())
	err = errors.Join(err, f.Chmod(0o644), f.Close()) // any user may read it, whatever the umask is
	if err == nil {
		err = unix.Renameat2(fd, name, fd, filepath.Base(spool.ShareFile), flags)
		if first && errors.Is(err, unix.EEXIST) {
			return unix.Unlinkat(fd, name, 0)
		}
	}
	if err != nil {
		return fail(errors.Join(err, unix.Unlinkat(fd, name, 0)))
	}
	return nil
}
