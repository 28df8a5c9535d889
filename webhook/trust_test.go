package main

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/internal/layout"
)

// TestCAPublisher: the CA is in the bucket soon after it changes, and stays there.
func TestCAPublisher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{}
		var mu sync.Mutex
		var log strings.Builder
		bundle, fault := "first", error(nil)
		set := func(b string, err error) {
			mu.Lock()
			defer mu.Unlock()
			bundle, fault = b, err
		}
		read := func() (string, error) {
			mu.Lock()
			defer mu.Unlock()
			return bundle, fault
		}
		p := &caPublisher{read: read, store: store, log: slog.New(slog.NewTextHandler(&log, nil))}
		stop := beside(t, p.run)
		has := func(after time.Duration, want string, puts int) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			store.mu.Lock()
			defer store.mu.Unlock()
			if got := store.objects[layout.CAKey]; got != want || len(store.puts) != puts {
				t.Errorf("%q after %d writes, want %q after %d", got, len(store.puts), want, puts)
			}
		}
		has(0, "first", 1)
		has(publishInterval-publishLook, "first", 1)
		has(publishLook, "first", 2)
		set("second", nil)
		has(publishLook, "second", 3)
		set("", errors.New("no such file"))
		has(publishInterval, "second", 3)
		set("", nil) // the system's roots
		has(publishInterval, "second", 3)
		set("third", nil)
		store.fail(nil, errors.New("down"))
		has(publishInterval, "second", 3)
		store.fail(nil, nil)
		has(publishLook, "third", 4)
		stop()
		says := func(what string) bool { return strings.Contains(log.String(), what) }
		if n := strings.Count(log.String(), "\n"); n != 2 || !says("no such file") || !says("down") {
			t.Errorf("want a line for each trouble:\n%s", log.String())
		}
	})
}
