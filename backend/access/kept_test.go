package access

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestKept: of a client that asks a lot, only its own answers make room; and what is forgotten takes
// no memory.
func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKept(100, time.Minute)
		for i := range 10 {
			k.add("modest", fmt.Sprint("modest-", i), answer{yes: true})
		}
		for i := range 5000 {
			k.add("greedy", fmt.Sprint("greedy-", i), answer{})
		}
		for i := range 10 {
			if a, ok := k.get(fmt.Sprint("modest-", i)); !ok || !a.yes {
				t.Errorf("answer %d of another client is gone", i)
			}
		}
		if _, ok := k.get("greedy-4999"); !ok {
			t.Error("the last answer is gone")
		}
		if n := len(k.answers); n != 100 {
			t.Errorf("%d answers are kept, want 100", n)
		}
		k.add("modest", "modest-3", answer{})
		if a, ok := k.get("modest-3"); !ok || a.yes {
			t.Error("a new answer does not take the place of the old one")
		}
		k.remove("modest-3")
		if _, ok := k.get("modest-3"); ok {
			t.Error("a removed answer is there")
		}
		time.Sleep(time.Minute)
		if _, ok := k.get("modest-1"); ok {
			t.Error("an answer holds for too long")
		}
		k.add("greedy", "new", answer{})
		if n := len(k.clients["greedy"]); n != 1 {
			t.Errorf("%d answers of the client stay behind their time, want 1", n)
		}
		for key := range k.answers {
			k.remove(key)
		}
		if len(k.answers)+len(k.clients)+len(k.counts) != 0 {
			t.Errorf("left: %v, %v, %v", k.answers, k.clients, k.counts)
		}
	})
}
