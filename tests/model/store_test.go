package model

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// event is an object that is put or deleted.
type event struct {
	at   time.Time
	key  string
	body []byte // nil: deleted
	cut  *cut   // what a segment holds
}

// object is one that is there.
type object struct {
	body     []byte
	modified time.Time
	cut      *cut
}

// store shows a history as a bucket does, at the moment that its clock says.
type store struct {
	// clock is the store's.
	clock func() time.Time
	// page is how many entries a LIST has; the next may be of a later moment.
	page int
	// each is called for each request: time passes.
	each func()

	mu      sync.Mutex
	events  []event // in their order; those before next have happened
	next    int
	keys    []string // sorted
	objects map[string]object
	gets    int
	lists   int
}

func newStore(events []event, clock func() time.Time) *store {
	return &store{clock: clock, page: 1000, each: func() {}, events: events,
		objects: map[string]object{}}
}

// Now is the store's clock.
func (s *store) Now() time.Time { return s.clock() }

// advance lets happen what is due.
func (s *store) advance() {
	for now := s.clock(); s.next < len(s.events) && !s.events[s.next].at.After(now); s.next++ {
		e := s.events[s.next]
		i, there := slices.BinarySearch(s.keys, e.key)
		switch {
		case e.body == nil && there:
			s.keys = slices.Delete(s.keys, i, i+1)
			delete(s.objects, e.key)
		case e.body != nil:
			if !there {
				s.keys = slices.Insert(s.keys, i, e.key)
			}
			s.objects[e.key] = object{e.body, e.at, e.cut}
		}
	}
}

// under are the objects under a prefix, in the order of their names.
func (s *store) under(prefix string) iter.Seq2[string, object] {
	return func(yield func(string, object) bool) {
		i, _ := slices.BinarySearch(s.keys, prefix)
		for ; i < len(s.keys) && strings.HasPrefix(s.keys[i], prefix); i++ {
			if !yield(s.keys[i], s.objects[s.keys[i]]) {
				return
			}
		}
	}
}

func (s *store) Get(_ context.Context, key string) (io.ReadCloser, error) {
	s.each()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	s.gets++
	o, ok := s.objects[key]
	if !ok {
		return nil, fmt.Errorf("get %q: %w", key, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(o.body)), nil
}

func (s *store) List(_ context.Context, prefix, delimiter, startAfter string,
	limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		n := 0
		for {
			s.each()
			page, more := s.list(prefix, delimiter, startAfter)
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
				if n++; n == limit {
					return
				}
				startAfter = e.Key
				if e.IsPrefix {
					startAfter = e.Key[:len(e.Key)-1] + "0" // behind all that is in it
				}
			}
			if !more {
				return
			}
		}
	}
}

// list is a page of a listing, and whether there is another.
func (s *store) list(prefix, delimiter, startAfter string) (page []objectstore.Entry, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	s.lists++
	i, _ := slices.BinarySearch(s.keys, max(prefix, startAfter))
	for ; i < len(s.keys) && strings.HasPrefix(s.keys[i], prefix); i++ {
		key := s.keys[i]
		if key == startAfter {
			continue
		}
		e := objectstore.Entry{Key: key, Size: int64(len(s.objects[key].body)),
			LastModified: s.objects[key].modified}
		if j := strings.Index(key[len(prefix):], delimiter); delimiter != "" && j >= 0 {
			e = objectstore.Entry{Key: key[:len(prefix)+j+1], IsPrefix: true}
			if n := len(page); n > 0 && page[n-1].Key == e.Key || e.Key <= startAfter {
				continue
			}
		}
		if len(page) == s.page {
			return page, true
		}
		page = append(page, e)
	}
	return page, false
}
