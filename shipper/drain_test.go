package main

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// farBehind writes so many lines of 1 KB to the spool, of which nothing is shipped yet, in files of a megabyte.
func (p *pod) farBehind(container string, n int) (all []byte) {
	at := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
	text := bytes.Repeat([]byte("0123456789abcdef"), 64)
	for n > 0 {
		var piece []byte
		for range min(n, 1000) {
			piece = criline.Append(piece, at.Add(time.Duration(n)*-time.Microsecond), criline.Stdout, true, text[:1000+n%24])
			n--
		}
		p.write(container, spool.LogName(int64(len(all))), piece)
		all = append(all, piece...)
	}
	return all
}

// TestDrainOrder: what is short is whole before anything of what is long is there, and of that the end comes first.
func TestDrainOrder(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "long", "longer", "short")
	long, longer, short := p.farBehind("long", 8_500), p.farBehind("longer", 8_900), p.farBehind("short", 10)
	s := p.shipper()
	defer s.close()
	if err := s.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"long": long, "longer": longer, "short": short} {
		if !bytes.Equal(f.log(name), want) {
			t.Errorf("%s is not exact", name)
		}
		f.seal(name)
	}
	var segments []string
	for _, name := range f.uploads {
		if strings.HasSuffix(name, ".log.zst") {
			segments = append(segments, name)
		}
	}
	for i, want := range []struct {
		container string
		size      int
	}{{"short", len(short)}, {"long", len(long)}, {"longer", len(longer)}} {
		container, name, _ := strings.Cut(segments[i], "/")
		got, err := layout.ParseSegmentName(name)
		if err != nil || container != want.container || got.End() != int64(want.size) {
			t.Errorf("upload %d is %s, which ends at %d of %d bytes, want the end of %s", i, segments[i], got.End(), want.size, want.container)
		}
	}
}

// TestDrainCutShort: the grace period ends when only a log's end is there. A shipper that begins again ships the rest, and the end is not doubled.
func TestDrainCutShort(t *testing.T) {
	f := newFakeServer(t)
	p := newPod(t, f, "long")
	all := p.farBehind("long", 12_400)
	ctx, cancel := context.WithCancel(t.Context())
	f.putFault = func(n int, _ string, w http.ResponseWriter) (bool, bool) {
		if n == 1 {
			return true, false
		}
		cancel() // the kubelet kills it
		w.WriteHeader(http.StatusServiceUnavailable)
		return false, true
	}
	s := p.shipper()
	if err := s.drain(ctx); err == nil {
		t.Error("the drain came to its end")
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	names := slices.Collect(func(yield func(string) bool) {
		for name := range f.snapshot() {
			if !yield(strings.TrimPrefix(name, "long/")) {
				return
			}
		}
	})
	if len(names) != 1 {
		t.Fatalf("objects %q, want the end alone", names)
	}
	tail, err := layout.ParseSegmentName(names[0])
	if err != nil || tail.End() != int64(len(all)) || tail.Length < tailBytes/2 || tail.Length > 2*tailBytes {
		t.Errorf("the end is %+v of %d bytes, %v", tail, len(all), err)
	}
	f.set(func() { f.putFault = nil })
	s = p.shipper()
	defer s.close()
	deadline, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := s.drain(deadline); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.log("long"), all) {
		t.Error("the log is not exact")
	}
	f.seal("long")
}
