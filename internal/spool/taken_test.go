//go:build linux

package spool

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// takenReader opens a folder and says what it counts.
func takenReader(t *testing.T, dir string) (stdout, stderr int64, ok bool) {
	t.Helper()
	r, err := OpenReader(dir, &Buffers{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return r.Taken()
}

func TestTaken(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // the postStart hook may run twice
		if err := MakeTaken(dir); err != nil {
			t.Fatal(err)
		}
	}
	var buf [8]byte
	for run := range int64(2) { // a container that runs again goes on
		taken := OpenTaken(dir)
		if taken == nil {
			t.Fatal("the count cannot be opened")
		}
		taken.Add(criline.Stdout, 5, &buf)
		taken.Add(criline.Stderr, 7, &buf)
		taken.Add(criline.Stdout, 1<<20, &buf)
		stdout, stderr, ok := takenReader(t, dir)
		if want := (run + 1) * (5 + 1<<20); stdout != want || stderr != (run+1)*7 || !ok {
			t.Errorf("run %d: %d and %d, %v", run, stdout, stderr, ok)
		}
		if err := taken.f.Close(); err != nil {
			t.Error(err)
		}
	}
	var none *Taken
	none.Add(criline.Stdout, 1, &buf) // does nothing
}

// What a step may put in the count's place is no count: it can name a file that only the shipper may see.
func TestTakenIsNone(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, make([]byte, 16), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(path string) error{
		"nothing":   func(string) error { return nil },
		"too short": func(path string) error { return os.WriteFile(path, make([]byte, 15), 0o644) },
		"negative": func(path string) error {
			return os.WriteFile(path, []byte("\xff\xff\xff\xff\xff\xff\xff\xff01234567"), 0o644)
		},
		"a link to a file":       func(path string) error { return os.Symlink(secret, path) },
		"another name of a file": func(path string) error { return os.Link(secret, path) },
		"a folder":               func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			folder := filepath.Join(dir, takenFolder)
			if err := errors.Join(os.Mkdir(folder, 0o755), plant(filepath.Join(folder, takenFile))); err != nil {
				t.Fatal(err)
			}
			if stdout, stderr, ok := takenReader(t, dir); ok {
				t.Errorf("it counts %d and %d", stdout, stderr)
			}
		})
	}
}
