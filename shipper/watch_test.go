package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// Whatever tee does in a container's folder is noticed, and where it does nothing there is no news.
func TestWatched(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	write := func(name, text string) {
		t.Helper()
		f, err := os.OpenFile(at(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w := &watched{path: folder}
	defer w.close()
	for _, tc := range []struct {
		name   string
		change func()
		used   int64
	}{
		{"the first file", func() { write(spool.LogName(0), "") }, 0},
		{"a line", func() { write(spool.LogName(0), "0123456789") }, 10},
		{"another", func() { write(spool.LogName(0), "0123456789") }, 20},
		{"the next file", func() { write(spool.LogName(20), "01234") }, 25},
		{"the first is shipped", func() { check(os.Remove(at(spool.LogName(0)))) }, 5},
		{"a line in the second", func() { write(spool.LogName(20), "56789") }, 10},
		{"SIGTERM", func() { write(spool.TermFile, "") }, 10},
		{"room for the end", func() { write(spool.EndFile+".tmp", "{}") }, 10},
		{"the end", func() { check(os.Rename(at(spool.EndFile+".tmp"), at(spool.EndFile))) }, 10},
		{"all is shipped", func() { check(os.Remove(at(spool.LogName(20)))) }, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// File systems note times in steps: what happens in the same one is seen by the tick.
			old := time.Now().Add(-time.Hour)
			check(os.Chtimes(folder, old, old))
			w.look(time.Now())
			for range 3 {
				if w.look(time.Now()) {
					t.Error("news of nothing")
				}
			}
			tc.change()
			if !w.look(time.Now()) || w.used != tc.used {
				t.Errorf("noticed with %d bytes, want %d, or not at all", w.used, tc.used)
			}
		})
	}
}

// A folder that is closed, or is not there yet, is watched from when it can be opened.
func TestWatchedLater(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "step-a")
	w := &watched{path: folder}
	defer w.close()
	if w.look(time.Now()) || w.used != 0 {
		t.Errorf("a folder that is not there has %d bytes", w.used)
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, spool.LogName(7)), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if !w.look(time.Now()) || w.used != 1 {
		t.Errorf("%d bytes, want 1", w.used)
	}
}

// The shipper is woken, once for many changes, and the watcher ends with the context.
func TestWatcherWakes(t *testing.T) {
	folder := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	wake := make(chan struct{}, 1)
	logs := []*containerLog{{name: "step-a", folder: folder}}
	group := startWatcher(ctx, logs, newSharing(contract.Config{}, logs, slog.New(slog.DiscardHandler)), wake)
	woken := func() {
		t.Helper()
		select {
		case <-wake:
		case <-time.After(time.Minute):
			t.Fatal("it was not woken")
		}
	}
	woken() // by the folder itself
	elsewhere := t.TempDir()
	for i := range int64(3) {
		// Written elsewhere, it is one change: a second one could stand for the next file's.
		path := filepath.Join(elsewhere, spool.LogName(i))
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, filepath.Join(folder, spool.LogName(i))); err != nil {
			t.Fatal(err)
		}
		woken()
	}
	cancel()
	group.Wait()
}

// A shipper leaves the inotify instances of its user, which all pods of a node share, to others.
func TestNoInotify(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "step-a")
	p.write("step-a", spool.LogName(0), lines(0, 1))
	cmd := p.process()
	defer func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	}()
	for f.count(".log.zst") == 0 {
		<-f.put
	}
	if hasInotify(cmd.Process.Pid) {
		t.Error("it has one")
	}
}

// A folder that cannot be read for a moment has what it had, and is read again, also if nothing
// else happens in it.
func TestWatchedUnreadable(t *testing.T) {
	folder := t.TempDir()
	write := func(base int64, text string) {
		t.Helper()
		path := filepath.Join(folder, spool.LogName(base))
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := &watched{path: folder}
	defer w.close()
	look := func(changed bool, used int64) {
		t.Helper()
		// The folder's last change is settled by then.
		if got := w.look(time.Now().Add(time.Hour)); got != changed || w.used != used {
			t.Errorf("changed is %v, want %v; %d bytes, want %d", got, changed, w.used, used)
		}
	}
	// One that is opened as a path has a time, but no names.
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unreadable := os.NewFile(uintptr(fd), folder)
	defer unreadable.Close()

	write(0, "0123456789")
	if !w.open() {
		t.Fatal("the folder cannot be opened")
	}
	readable := w.dir
	w.dir = unreadable
	look(false, 0)
	w.dir = readable
	look(true, 10)
	look(false, 10)

	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(folder, old, old); err != nil {
		t.Fatal(err)
	}
	write(10, "01234")
	w.dir = unreadable
	look(false, 10)
	write(0, "0123456789+") // what is known of it is looked at all the same
	look(true, 11)
	write(0, "0123456789")
	look(true, 10)
	w.dir = readable
	look(true, 15)
	look(false, 15)

	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	look(true, 0)
}
