//go:build linux

package local

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/tests/loss/budget"
	"github.com/shiplog-dev/shiplog/tests/loss/rig"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// tmpfs mounts a file system in memory, with options such as size=8m.
func tmpfs(options string) func(t testing.TB, dir string) {
	return func(t testing.TB, dir string) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
			t.Fatal(err)
		}
		unmountAtEnd(t, dir)
	}
}

// unmountAtEnd is called before any process has begun that uses the folder, so that its cleanup is the last.
func unmountAtEnd(t testing.TB, dir string) {
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// onLoop mounts a file with a file system in it.
func onLoop(t testing.TB, image, dir string, options ...string) {
	t.Helper()
	out, err := exec.Command("mount", append([]string{"-o", strings.Join(append(options, "loop"), ","), image}, dir)...).CombinedOutput()
	if err != nil {
		t.Fatalf("mount a loop device: %v: %s", err, out)
	}
	unmountAtEnd(t, dir)
}

// ext4 makes and mounts a file system on a loop device.
func ext4(mib int64, options ...string) func(t testing.TB, dir string) {
	return func(t testing.TB, dir string) {
		t.Helper()
		image := filepath.Join(t.TempDir(), "ext4")
		f, err := os.Create(image)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(mib<<20), f.Close()); err != nil {
			t.Fatal(err)
		}
		// -m 0: no room that only root may use, whom the steps run as.
		if out, err := exec.Command("mkfs.ext4", append(options, "-q", "-m", "0", image)...).CombinedOutput(); err != nil {
			t.Fatalf("make a file system: %v: %s", err, out)
		}
		onLoop(t, image, dir)
	}
}

// btrfsImage is an empty file system of 48 MiB: mkfs.btrfs -M -m single -d single. Its quotas need nothing but the kernel's btrfs, while those of ext4, xfs and tmpfs are options of the kernel's
// build that are often left out.
//
//go:embed testdata/btrfs.img.zst
var btrfsImage []byte

// quota mounts a file system in which so many bytes can be used.
func quota(limit uint64) func(t testing.TB, dir string) {
	return func(t testing.TB, dir string) {
		t.Helper()
		d, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		b, err := d.DecodeAll(btrfsImage, nil)
		if err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(t.TempDir(), "btrfs")
		if err := os.WriteFile(image, b, 0o600); err != nil {
			t.Fatal(err)
		}
		onLoop(t, image, dir)
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// linux/btrfs.h: BTRFS_IOC_QUOTA_CTL with BTRFS_QUOTA_CTL_ENABLE, and BTRFS_IOC_QGROUP_LIMIT of the volume with BTRFS_QGROUP_LIMIT_MAX_RFER.
		enable := [2]uint64{1}
		limits := [6]uint64{0, 1, limit}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 3<<30|16<<16|0x94<<8|40, uintptr(unsafe.Pointer(&enable))); errno != 0 {
			t.Fatalf("enable quotas: %v", errno)
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 2<<30|48<<16|0x94<<8|43, uintptr(unsafe.Pointer(&limits))); errno != 0 {
			t.Fatalf("set a quota: %v", errno)
		}
	}
}

// TestLossDisk lets others fill a small file system while S3 is away: the spool alone does not. The
// steps are unharmed, and what is not kept is marked. When there is room again, the log goes on.
func TestLossDisk(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		row, name string
		mount     func(t testing.TB, dir string)
		rate      sequence.Rate // of the fast step, which prints 50 MB
		away      int64         // S3 is, until this step has printed so much
		lasts     time.Duration // how long the others print
		why       string        // the marker's detail
	}{
		{"disk-full", "tmpfs", tmpfs("size=24m"), fast, fast.Bytes, budget.Scale(10*time.Second, 20*time.Second), "no space left on device"},
		{"disk-full", "ext4", ext4(32), fast, fast.Bytes, budget.Scale(10*time.Second, 20*time.Second), "no space left on device"},
		// btrfs lets nothing be written where the quota is used up, not even in the place of what is there. What a log says at its end gets to the shipper all the same.
		{"disk-quota", "btrfs", quota(16 << 20), sequence.Rate{Bytes: 5e6}, fast.Bytes / 3, budget.Scale(15*time.Second, 20*time.Second), "disk quota exceeded"},
	} {
		t.Run(tc.row+"/"+tc.name, func(t *testing.T) {
			parallel(t)
			m := budget.Begin(t, tc.row)
			p := rig.New(t, rig.Options{Containers: steps, Mount: tc.mount})
			p.StartShipper()
			p.S3.Refuse()
			stop := fill(t, p)
			all := []*rig.Step{
				p.Start(steps[0], rig.StepOptions{Options: sequence.Options{Rate: slow, Duration: tc.lasts}}),
				p.Start(steps[1], rig.StepOptions{Options: sequence.Options{Rate: mid, Duration: tc.lasts}}),
				p.Start(steps[2], rig.StepOptions{Options: sequence.Options{Rate: tc.rate, Bytes: fast.Bytes}, Exit: 3}),
			}
			rig.Until(t, "the fast step's output", enough, func() bool { return all[2].Printed() >= tc.away })
			if stop() == 0 {
				t.Error("the disk was not filled")
			}
			if err := os.Remove(filepath.Join(p.Volume(), "filler")); err != nil {
				t.Error(err)
			}
			p.S3.Listen()
			unharmed(all)
			drain(t, p)
			var lost int64
			var why string
			for _, s := range all {
				lost += allMarked(t, m, p, s)
				seal := p.Seal(s.Container)
				if seal.End != record.EndExited {
					t.Errorf("%s: the seal says %s", s.Container, seal.End)
				}
				for _, gap := range seal.Gaps {
					why += gap.Detail + "\n"
				}
			}
			if lost == 0 || !strings.Contains(why, tc.why) {
				t.Errorf("%d bytes are lost, and the markers say %q, not %q", lost, why, tc.why)
			}
		})
	}
}

// TestLossDiskLow keeps S3 away while chatty steps print. The spool grows no further where the kubelet
// would begin to evict pods, and what is not kept is marked. When S3 is back, the log goes on.
func TestLossDiskLow(t *testing.T) {
	t.Parallel()
	const evicts = 15 // percent: imagefs.available of the kubelet's defaults
	// Percent that are free before.
	for name, free := range map[string]int64{"nearly full": 18, "half full": 50} {
		t.Run(name, func(t *testing.T) {
			parallel(t)
			m := budget.Begin(t, "disk-low")
			const size = 2 << 10 // MiB
			p := rig.New(t, rig.Options{Containers: steps, DiskFree: evicts, Mount: ext4(size)})
			p.StartShipper()
			leave(t, p, free)
			p.S3.Refuse()
			var least atomic.Int64
			least.Store(100)
			stop := every(time.Millisecond, func() {
				var s unix.Statfs_t
				if err := unix.Statfs(p.Volume(), &s); err != nil {
					t.Error(err)
				}
				if s.Blocks > 0 { // not where the test has failed and the disk is gone
					least.Store(min(least.Load(), int64(100*s.Bavail/s.Blocks)))
				}
			})
			// All three together print far more than the disk holds.
			rate, lasts := sequence.Rate{Bytes: 10e6}, 12*time.Second
			all := []*rig.Step{
				p.Start(steps[0], rig.StepOptions{Options: sequence.Options{Rate: slow, Duration: lasts}}),
				p.Start(steps[1], rig.StepOptions{Options: sequence.Options{Rate: rate, Bytes: 120e6}}),
				p.Start(steps[2], rig.StepOptions{Options: sequence.Options{Rate: fast, Bytes: 150e6}, Exit: 3}),
			}
			rig.Until(t, "the fast step's output", enough, func() bool {
				return all[2].Printed() >= 100e6 && all[1].Printed() >= 50e6
			})
			p.S3.Listen()
			unharmed(all)
			stop()
			drain(t, p)
			m.Note("a disk of 2 GiB that is %s: at least %d %% were free", name, least.Load())
			if least.Load() < evicts {
				t.Errorf("only %d %% of the disk was free", least.Load())
			}
			for i, s := range all {
				lost := allMarked(t, m, p, s)
				if (lost > 0) != (i > 0) {
					t.Errorf("%s lost %d bytes", s.Container, lost)
				}
				for _, gap := range p.Seal(s.Container).Gaps {
					if gap.Reason != criline.ReasonDiskLow || !strings.Contains(gap.Detail, "of the node's disk are free") {
						t.Errorf("%s: gap %+v", s.Container, gap)
					}
				}
			}
		})
	}
}

// leave fills the volume until so many percent of it are free.
func leave(t *testing.T, p *rig.Pod, percent int64) {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(p.Volume(), &s); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(p.Volume(), "others"))
	if err != nil {
		t.Fatal(err)
	}
	take := (int64(s.Bavail) - int64(s.Blocks)*percent/100) * s.Bsize
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, take), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestLossInodes uses up all inodes while the steps run. Those that have a file go on in it, and lose nothing. One that begins then has none until there are inodes again.
func TestLossInodes(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]func(testing.TB, string){"tmpfs": tmpfs("nr_inodes=100"), "ext4": ext4(1024, "-N", "128")} {
		t.Run(name, func(t *testing.T) {
			parallel(t)
			m := budget.Begin(t, "disk-inodes")
			// A share cannot be changed without an inode, so each is large enough from the beginning.
			p := rig.New(t, rig.Options{Containers: steps, Limit: 256 << 20, Mount: mount})
			p.StartShipper()
			// The second one would begin several files meanwhile.
			all := []*rig.Step{
				p.Start(steps[0], rig.StepOptions{Options: sequence.Options{Rate: slow, Duration: 10 * time.Second}}),
				p.Start(steps[1], rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: 3e6}, Duration: 10 * time.Second}}),
			}
			shipped(t, p, steps[0])
			shipped(t, p, steps[1])
			free := fillInodes(t, p)
			all = append(all, p.Start(steps[2], rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: 5e6}, Bytes: fast.Bytes}, Exit: 3}))
			rig.Until(t, "output without a file", enough, func() bool { return all[2].Printed() >= fast.Bytes/2 })
			free()
			unharmed(all)
			drain(t, p)
			nothingLost(t, m, p, all[0])
			nothingLost(t, m, p, all[1])
			lost := allMarked(t, m, p, all[2])
			seal := p.Seal(steps[2])
			if lost == 0 || len(seal.Gaps) == 0 || !strings.Contains(seal.Gaps[0].Detail, "no space left on device") || seal.End != record.EndExited {
				t.Errorf("%d bytes are lost, the seal is %+v", lost, seal)
			}
		})
	}
}

// fillInodes makes files until there is no inode left, and takes those that come, until free is called, which deletes them.
func fillInodes(t *testing.T, p *rig.Pod) (free func()) {
	t.Helper()
	folder := filepath.Join(p.Volume(), "filler")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	made := 0
	stop := every(time.Millisecond, func() {
		for {
			f, err := os.Create(filepath.Join(folder, fmt.Sprint(made)))
			if errors.Is(err, unix.ENOSPC) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			f.Close()
			made++
		}
	})
	rig.Until(t, "the end of the inodes", time.Minute, func() bool {
		var s unix.Statfs_t
		return unix.Statfs(folder, &s) == nil && s.Ffree == 0
	})
	return func() {
		stop()
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	}
}

// TestLossDiskFullToTheEnd fills the disk from some moment on, and takes all room that comes, until the pod has ended. The end of each log, and that it has a gap, is in the archive all the same.
func TestLossDiskFullToTheEnd(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]func(testing.TB, string){"tmpfs": tmpfs("size=24m"), "ext4": ext4(32)} {
		t.Run(name, func(t *testing.T) {
			parallel(t)
			m := budget.Begin(t, "disk-full-end")
			p := rig.New(t, rig.Options{Containers: steps, Mount: mount})
			p.StartShipper()
			all := startSteps(p, steps[:2], 6*time.Second)
			all = append(all, p.Start(steps[2], rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: 200e3}, Duration: 6 * time.Second}, Exit: 3}))
			shipped(t, p, steps[0])
			stop := fill(t, p)
			unharmed(all)
			drain(t, p)
			if written := stop(); written == 0 {
				t.Error("the disk was not filled")
			}
			var lost int64
			for i, s := range all {
				lost += allMarked(t, m, p, s)
				if seal := p.Seal(s.Container); seal.End != record.EndExited || seal.Exit.Code != []int{0, 0, 3}[i] {
					t.Errorf("%s: the seal says %s, %+v", s.Container, seal.End, seal.Exit)
				}
			}
			if lost == 0 {
				t.Error("nothing is lost: the disk was not full")
			}
		})
	}
}

// fill takes all room on the volume, and all that comes, until stop is called.
func fill(t *testing.T, p *rig.Pod) (stop func() (written int64)) {
	t.Helper()
	f, err := os.Create(filepath.Join(p.Volume(), "filler"))
	if err != nil {
		t.Fatal(err)
	}
	done, ended := make(chan struct{}), make(chan int64)
	go func() { // stop waits for it
		block := bytes.Repeat([]byte{'x'}, 4<<10)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		written := int64(0)
		for {
			n, err := f.Write(block)
			written += int64(n)
			if err == nil {
				continue
			}
			select {
			case <-tick.C:
			case <-done:
				ended <- written
				return
			}
		}
	}()
	return func() int64 {
		close(done)
		written := <-ended
		if err := f.Close(); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Error(err)
		}
		return written
	}
}

// TestLossSpoolLimit keeps the store away until the spool's limit is reached, and for longer. What is kept is exact, and so is the gap.
func TestLossSpoolLimit(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "spool-limit")
	p := rig.New(t, rig.Options{Containers: steps, Limit: 8 << 20})
	p.StartShipper()
	all := []*rig.Step{
		p.Start(steps[0], rig.StepOptions{Options: sequence.Options{Rate: slow, Duration: budget.Scale(7*time.Second, 10*time.Second)}}),
		p.Start(steps[1], rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: budget.Scale[int64](5e6, 3e6)}, Bytes: 30e6}}),
		p.Start(steps[2], rig.StepOptions{Options: sequence.Options{Rate: fast, Bytes: budget.Scale[int64](2, 20) * fast.Bytes}, Exit: 3}),
	}
	shipped(t, p, steps[0])
	p.S3.Refuse()
	// Kept, lost, and kept again.
	rig.Until(t, "more output than the limit", enough, func() bool { return all[1].Printed() > 20e6 })
	p.S3.Listen()
	unharmed(all)
	drain(t, p)
	for i, s := range all {
		lost := allMarked(t, m, p, s)
		if (lost > 0) != (i > 0) {
			t.Errorf("%s lost %d bytes", s.Container, lost)
		}
	}
}

// TestLossSpoolLimitWithoutShipper has no shipper while several chatty steps print. Together they keep to the pod's limit.
func TestLossSpoolLimitWithoutShipper(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "spool-limit")
	const limit = 12 << 20
	p := rig.New(t, rig.Options{Containers: steps, Limit: limit})
	all := []*rig.Step{
		p.Start(steps[0], rig.StepOptions{Options: sequence.Options{Rate: slow, Duration: 3 * time.Second}}),
		p.Start(steps[1], rig.StepOptions{Options: sequence.Options{Rate: fast, Bytes: fast.Bytes}}),
		p.Start(steps[2], rig.StepOptions{Options: sequence.Options{Rate: fast, Bytes: fast.Bytes}, Exit: 3}),
	}
	unharmed(all)
	var size int64
	for _, name := range steps {
		size += spoolSize(p, name)
	}
	// A marker at a log's end is written beyond the limit.
	if size > limit+4<<10 || size < limit/2 {
		t.Errorf("the spool has %d bytes, its limit is %d", size, limit)
	}
	p.StartShipper()
	drain(t, p)
	for i, s := range all {
		lost := allMarked(t, m, p, s)
		if (lost > 0) != (i > 0) {
			t.Errorf("%s lost %d bytes", s.Container, lost)
		}
	}
}
