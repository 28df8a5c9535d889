package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

func TestDiskLimit(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for name, tc := range map[string]struct {
		disk disk
		most int64
		want int64
	}{
		"much room":                     {disk{100 * gib, 60 * gib, 1000, 1000}, gib, gib},
		"a part of what is above":       {disk{100 * gib, 17 * gib, 1000, 1000}, gib, 2 * gib / 16},
		"at the threshold":              {disk{100 * gib, 15 * gib, 1000, 1000}, gib, 8 * mib},
		"below the threshold":           {disk{100 * gib, gib, 1000, 1000}, gib, 8 * mib},
		"full":                          {disk{100 * gib, 0, 1000, 0}, gib, 8 * mib},
		"never more than the limit":     {disk{100 * gib, 0, 1000, 0}, mib, mib},
		"counts nothing":                {disk{}, gib, gib},
		"more free than there is":       {disk{gib, 1 << 63, 0, 0}, gib, gib},
		"a small one, which is no node": {disk{mib, mib, 0, 0}, gib, 8 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			got, low := tc.disk.limit(tc.most, 15)
			if got != tc.want {
				t.Errorf("%d bytes, want %d", got, tc.want)
			}
			if low != (got < tc.most) {
				t.Errorf("low is %v with %d of %d bytes", low, got, tc.most)
			}
		})
	}
}

func TestReadShare(t *testing.T) {
	at := func(dir string) string { return filepath.Join(dir, ShareFile) }
	text := func(s string) func(string) error {
		return func(dir string) error { return os.WriteFile(at(dir), []byte(s), 0o600) }
	}
	for name, tc := range map[string]struct {
		make func(dir string) error
		want int64 // 0: none
	}{
		"as encoded":    {text(string(Share{1 << 40, 15}.Encode())), 1 << 40},
		"not there":     {func(string) error { return nil }, 0},
		"empty":         {text(""), 0},
		"torn":          {text("12 1"), 0},
		"zero":          {text("0 15\n"), 0},
		"negative":      {text("-1 15\n"), 0},
		"no number":     {text("much 15\n"), 0},
		"too large":     {text("9223372036854775808 15\n"), 0},
		"endless":       {text(strings.Repeat("1", 1<<20)), 0},
		"one number":    {text("7\n"), 0},
		"three numbers": {text("7 8 9\n"), 0},
		"no percent":    {text("7 100\n"), 0},
		"two lines":     {text("1 1\n2 2\n"), 0},
		"FIFO":          {func(dir string) error { return unix.Mkfifo(at(dir), 0o600) }, 0},
		"folder":        {func(dir string) error { return os.Mkdir(at(dir), 0o700) }, 0},
		"link to a one": {func(dir string) error {
			err := os.WriteFile(at(dir)+"2", []byte("7 15\n"), 0o600)
			return errors.Join(err, os.Symlink("limit2", at(dir)))
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			err := os.Mkdir(filepath.Join(dir, OfferFolder), 0o700)
			if err := errors.Join(err, tc.make(dir)); err != nil {
				t.Fatal(err)
			}
			want := Share{tc.want, 15}
			if got, ok := ReadShare(dir); got != want && ok || ok != (tc.want > 0) {
				t.Errorf("%+v, %v, want %+v", got, ok, want)
			}
		})
	}
}

// A share that becomes less or more while the container runs is kept to, and no byte goes without
// a marker.
func TestWriterShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, OfferFolder), 0o700); err != nil {
			t.Fatal(err)
		}
		give := func(n int64) {
			if err := os.WriteFile(filepath.Join(dir, ShareFile), Share{Limit: n}.Encode(), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(retryAfter)
		}
		chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 20)
		printed := int64(0)
		// fillUp prints until something is lost, and returns what the folder holds.
		fillUp := func(w *Writer) int64 {
			for first := true; first || w.gap.Kind == ""; first = false {
				w.Write(criline.Stdout, chunk)
				printed += int64(len(chunk))
			}
			return readBack(t, dir).bytes
		}
		give(64 << 10)
		w := newTestWriter(t, dir, roomy)
		for _, share := range []int64{64 << 10, 128 << 10, 96 << 10, 1 << 20} {
			give(share)
			if used := fillUp(w); used > max(share, 128<<10) || used < share/2 {
				t.Errorf("with a share of %d the folder holds %d bytes", share, used)
			}
		}
		endTestWriter(t, w)
		got := readBack(t, dir)
		kept := int64(len(got.stdout))
		for _, g := range got.gaps {
			kept += g.Stdout
			if g.Reason != criline.ReasonSpoolLimit {
				t.Errorf("gap %+v", g)
			}
		}
		if kept != printed {
			t.Errorf("%d bytes are kept or marked, %d were printed", kept, printed)
		}
	})
}

// Where the disk has little room, less is kept, and the gap says why. The file that was begun
// when there was more is left, so that it can be shipped and deleted, and the log goes on.
func TestWriterDiskLow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		giveAll(t, dir)
		w := newTestWriter(t, dir, roomy)
		roomyDisk, lowDisk := disk{1 << 40, 1 << 39, 100, 90}, disk{1 << 40, 1 << 30, 100, 90}
		now, looks := roomyDisk, 0
		w.disk = func(string) (disk, error) { looks++; return now, nil }
		chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 600)
		time.Sleep(retryAfter)
		for range 220 { // so that the last file has more than an eighth of what may be soon
			w.Write(criline.Stdout, chunk)
		}
		if looks != 1 {
			t.Errorf("%d looks at the disk for 220 writes at one moment", looks)
		}
		full := readBack(t, dir)
		if full.bytes < 16<<20 || len(full.gaps) > 0 {
			t.Fatalf("%d bytes, gaps %+v", full.bytes, full.gaps)
		}
		now = lowDisk
		time.Sleep(retryAfter)
		w.Write(criline.Stdout, chunk)
		if got := readBack(t, dir); got.bytes != full.bytes || len(got.files) != len(full.files)+1 {
			t.Errorf("%d bytes in %v", got.bytes, got.files)
		}
		// All of it can be shipped now, though the disk stays low.
		deleteShipped(t, dir)
		time.Sleep(retryAfter)
		w.Write(criline.Stdout, []byte("kept\n"))
		endTestWriter(t, w)
		got := readBack(t, dir)
		want := criline.Marker{
			Kind: criline.Gap, Reason: criline.ReasonDiskLow, Stdout: int64(len(chunk)),
			Detail: "0.1 % of the node's disk are free",
		}
		if len(got.gaps) != 1 || got.gaps[0] != want || string(got.stdout) != "kept\n" {
			t.Errorf("gaps %+v, want %+v; stdout %.100q", got.gaps, want, got.stdout)
		}
	})
}

// Several containers fill a real small disk at once, and others use some of it. It does not get
// to where the kubelet evicts.
func TestWritersOnASmallDisk(t *testing.T) {
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512m")
	if errors.Is(err, syscall.EPERM) && os.Getenv("CI") == "" {
		t.Skip("left out: it needs root, to mount a file system")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 600)
		var writers []*Writer
		for i := range 10 {
			folder := filepath.Join(dir, fmt.Sprint(i))
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			giveAll(t, folder)
			w, err := NewWriter(folder, roomy)
			if err != nil {
				t.Fatal(err)
			}
			writers = append(writers, w)
		}
		for round := range 4000 { // 240 MB
			writers[round%len(writers)].Write(criline.Stdout, chunk)
			time.Sleep(retryAfter)
		}
		d, err := diskOf(dir)
		if err != nil {
			t.Fatal(err)
		}
		used := d.bytes - d.free
		if d.free*100 < d.bytes*15 || used < d.bytes/4 {
			t.Errorf("%d of %d bytes are free", d.free, d.bytes)
		}
		for _, w := range writers {
			endTestWriter(t, w)
		}
	})
}

// Where inodes run out, a container has few files, and loses nothing for it.
func TestWriterFewInodes(t *testing.T) {
	chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 600)
	for name, tc := range map[string]struct {
		disk disk
		few  bool
	}{
		"few":    {disk{1 << 40, 1 << 39, 1000, 99}, true},
		"enough": {disk{1 << 40, 1 << 39, 1000, 100}, false},
		"btrfs":  {disk{1 << 40, 1 << 39, 0, 0}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				giveAll(t, dir)
				w := newTestWriter(t, dir, roomy)
				w.disk = func(string) (disk, error) { return tc.disk, nil }
				write := func(times int) {
					for range times {
						time.Sleep(retryAfter)
						w.Write(criline.Stdout, chunk)
					}
				}
				write(600) // some 50 MB
				got := readBack(t, dir)
				if len(got.stdout) != 600*len(chunk) || (len(got.files) == fewFiles) != tc.few {
					t.Errorf("%d bytes in %v", len(got.stdout), got.files)
				}
				deleteShipped(t, dir)
				write(200)
				endTestWriter(t, w)
				after := readBack(t, dir)
				if len(after.files) < 2 || len(after.files) > fewFiles || len(after.gaps) > 0 {
					t.Errorf("when all is shipped: %v, gaps %+v", after.files, after.gaps)
				}
			})
		})
	}
}

// giveAll makes a share that leaves 15 % of the disk free, and has no other limit.
func giveAll(t *testing.T, dir string) {
	t.Helper()
	err := os.Mkdir(filepath.Join(dir, OfferFolder), 0o700)
	share := Share{Limit: roomy, DiskFree: 15}
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, ShareFile), share.Encode(), 0o600))
	if err != nil {
		t.Fatal(err)
	}
}
