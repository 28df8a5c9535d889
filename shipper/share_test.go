package main

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

func TestDivide(t *testing.T) {
	type mib []int64
	for name, tc := range map[string]struct {
		used, want mib // of 1024
		active     []int
	}{
		"one container has it all":          {mib{700}, mib{1024}, []int{0}},
		"nobody prints":                     {mib{0, 0, 0, 0}, mib{256, 256, 256, 256}, nil},
		"one prints":                        {mib{1, 0, 0, 0}, mib{448, 192, 192, 192}, []int{0}},
		"one is over its own part":          {mib{328, 0, 0, 0}, mib{523, 167, 167, 167}, []int{0}},
		"one has all that is lent":          {mib{640, 0, 0, 0}, mib{640, 128, 128, 128}, []int{0}},
		"what has ended keeps what it uses": {mib{384, 1, 0, 0}, mib{416, 288, 160, 160}, []int{1}},
		"all print":                         {mib{9, 9, 9, 9}, mib{256, 256, 256, 256}, []int{0, 1, 2, 3}},
		"used up before it was shared":      {mib{1024, 1024, 0, 0}, mib{1024, 1024, 128, 128}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			used, active := make([]int64, len(tc.used)), make([]bool, len(tc.used))
			for i, u := range tc.used {
				used[i], active[i] = u<<20, slices.Contains(tc.active, i)
			}
			for i, got := range divide(1<<30, used, active) {
				if got != tc.want[i]<<20 {
					t.Errorf("container %d gets %.1f MiB, want %d", i, float64(got)/(1<<20), tc.want[i])
				}
			}
		})
	}
}

// Whatever containers use of what they were given, the sum stays the limit at most, and none has
// less than its own part.
func TestDivideNeverMore(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		limit, n := 1<<r.IntN(40)+int64(1<<12), 1+r.IntN(30)
		used, active := make([]int64, n), make([]bool, n)
		for range 50 {
			given := divide(limit, used, active)
			sum := int64(0)
			for i, g := range given {
				sum += g
				least := max(limit/2/int64(n), used[i]) - limit/shareUnits - 1 // they are rounded
				if g < least {
					t.Fatalf("of %d bytes one of %d containers gets %d, not %d", limit, n, g, least)
				}
				active[i] = r.IntN(2) == 0
				used[i] = min(g, used[i]+r.Int64N(g+1))
				if r.IntN(5) == 0 {
					used[i] = 0 // shipped
				}
			}
			if sum > limit {
				t.Fatalf("%d bytes of %d are given to %d containers", sum, limit, n)
			}
		}
	}
}

// sharePod is a volume as the postStart hook leaves it.
func sharePod(t *testing.T, limit int64, names ...string) (folder func(name string) string) {
	t.Helper()
	volume, tee := t.TempDir(), filepath.Join(t.TempDir(), "tee")
	if err := os.WriteFile(tee, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	config := contract.Config{Containers: names, SpoolLimit: limit, DiskFree: 15}
	if err := install(config, tee, volume); err != nil {
		t.Fatal(err)
	}
	return func(name string) string { return filepath.Join(volume, contract.LogsSubPath, name) }
}

func shareOf(t *testing.T, folder string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(folder, spool.ShareFile))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestInstallShares(t *testing.T) {
	folder := sharePod(t, 1<<20, "a", "b")
	path := filepath.Join(folder("a"), spool.ShareFile)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	if got := shareOf(t, folder("a")) + " " + shareOf(t, folder("b")); got != "524288 15 524288 15" {
		t.Errorf("shares %s", got)
	}
	// The hook runs again when the container is restarted. What the shipper has given since stays.
	if err := writeShare(folder("a"), spool.Share{Limit: 7, DiskFree: 1}, false); err != nil {
		t.Fatal(err)
	}
	if err := writeShare(folder("a"), spool.Share{Limit: 524288, DiskFree: 15}, true); err != nil {
		t.Fatal(err)
	}
	if got := shareOf(t, folder("a")); got != "7 1" {
		t.Errorf("share %s, want the shipper's", got)
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 1 {
		t.Errorf("%v, %v: want the share alone", names, err)
	}
}

func TestInstallWithoutALimit(t *testing.T) {
	folder := sharePod(t, 0, "a")
	if _, err := os.Lstat(filepath.Join(folder("a"), spool.ShareFile)); !os.IsNotExist(err) {
		t.Errorf("%v, want no share", err)
	}
}

// What a container uses is lent to it, and given back when it is shipped. Hostile folders change
// their own share, and harm no other.
func TestSharing(t *testing.T) {
	const limit = 4 << 20
	write := func(t *testing.T, folder string, base int64, size int) {
		t.Helper()
		path := filepath.Join(folder, spool.LogName(base))
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		change func(t *testing.T, folder string)
		used   int64 // -1: more than any share
	}{
		"nothing":  {func(*testing.T, string) {}, 0},
		"one file": {func(t *testing.T, f string) { write(t, f, 0, 1000) }, 1000},
		"some files": {func(t *testing.T, f string) {
			write(t, f, 5000, 1000)
			write(t, f, 6000, 10)
		}, 1010},
		"no end of names": {func(t *testing.T, f string) {
			for i := range mostNames {
				write(t, f, int64(i), 0)
			}
		}, -1},
		"forged bases": {func(t *testing.T, f string) {
			write(t, f, 0, 1)
			write(t, f, 1<<62, 1)
		}, -1},
		"the largest base": {func(t *testing.T, f string) { write(t, f, 1<<63-1, 5) }, 5},
		"the last file is a FIFO": {func(t *testing.T, f string) {
			if err := unix.Mkfifo(filepath.Join(f, spool.LogName(9)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, 0},
		"no folder any more": {func(t *testing.T, f string) {
			if err := os.RemoveAll(f); err != nil {
				t.Fatal(err)
			}
		}, 0},
		"a link in its place": {func(t *testing.T, f string) {
			if err := os.Rename(f, f+"2"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(f+"2", f); err != nil {
				t.Fatal(err)
			}
		}, 0},
		"a link in the place of the shares' folder": {func(t *testing.T, f string) {
			at := filepath.Join(f, spool.OfferFolder)
			if err := os.Rename(at, at+"2"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("tee2", at); err != nil {
				t.Fatal(err)
			}
		}, 0},
		"a folder in the place of the share": {func(t *testing.T, f string) {
			at := filepath.Join(f, spool.ShareFile)
			if err := os.Remove(at); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(at, 0o700); err != nil {
				t.Fatal(err)
			}
		}, 0},
	} {
		run := func(t *testing.T, before bool) {
			folder := sharePod(t, limit, "odd", "good")
			p := &syncBuffer{}
			logs := []*containerLog{
				{name: "odd", folder: folder("odd")}, {name: "good", folder: folder("good")},
			}
			s := newSharing(contract.Config{SpoolLimit: limit, DiskFree: 15}, logs, slog.New(slog.NewJSONHandler(p, nil)))
			odd, good := &watched{path: folder("odd")}, &watched{path: folder("good")}
			defer odd.close()
			defer good.close()
			look := func() {
				odd.look(time.Now())
				good.look(time.Now())
				s.divide([]int64{odd.used, good.used})
			}
			if !before {
				look()
			}
			tc.change(t, folder("odd"))
			for range 40 {
				look()
			}
			if odd.used != tc.used && !(tc.used < 0 && odd.used > limit) || good.used != 0 {
				t.Errorf("they use %d and %d bytes, want %d", odd.used, good.used, tc.used)
			}
			if sum := s.shares[0].given + s.shares[1].given; sum > limit {
				t.Errorf("%d bytes of %d are given", sum, limit)
			}
			given, own := s.shares[1].given, int64(limit/4)
			if got := shareOf(t, folder("good")); got != fmt.Sprint(given, 15) || given < own {
				t.Errorf("the good one's share is %s, want %d, and %d at least", got, given, own)
			}
			if n := strings.Count(p.String(), "cannot be changed"); n > 1 {
				t.Errorf("it is said %d times:\n%s", n, p)
			}
			for _, l := range logs {
				left, err := filepath.Glob(filepath.Join(l.folder, spool.OfferFolder, "*.new"))
				if err != nil || len(left) > 0 {
					t.Errorf("left %v, %v", left, err)
				}
			}
		}
		t.Run(name+"/before the shipper begins", func(t *testing.T) { run(t, true) })
		t.Run(name+"/while it runs", func(t *testing.T) { run(t, false) })
	}
}

// A share that cannot be written, as on a full disk, is written when it can be, also if nothing
// else happens.
func TestShareIsWrittenLater(t *testing.T) {
	const limit = 4 << 20
	folder := sharePod(t, limit, "a", "b")
	logs := []*containerLog{{name: "a", folder: folder("a")}, {name: "b", folder: folder("b")}}
	logged := &syncBuffer{}
	s := newSharing(contract.Config{SpoolLimit: limit, DiskFree: 15}, logs, slog.New(slog.NewJSONHandler(logged, nil)))
	s.divide([]int64{0, 0})
	at := filepath.Join(folder("b"), spool.OfferFolder)
	if err := os.Rename(at, at+"2"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s.divide([]int64{1 << 20, 0})
	}
	if n := strings.Count(logged.String(), "cannot be changed"); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, logged)
	}
	if err := os.Rename(at+"2", at); err != nil {
		t.Fatal(err)
	}
	s.divide([]int64{1 << 20, 0})
	want := divide(limit, []int64{1 << 20, 0}, []bool{false, false})
	if got := shareOf(t, folder("b")); got != fmt.Sprint(want[1], 15) {
		t.Errorf("the share is %s, want %d", got, want[1])
	}
}
