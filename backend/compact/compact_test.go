package compact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const uid = "11111111-1111-4111-8111-111111111111"

// world is an archive of one run in a real S3 server.
type world struct {
	store *objectstore.Store
	*Compactor
	run layout.Run
	pod layout.Pod
}

func newWorld(t *testing.T) *world {
	t.Helper()
	store, _ := archivetest.Start(t)
	w := &world{store: store}
	created := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	w.run = archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "team", Name: "build", UID: uid, Created: created, Completed: created.Add(time.Minute), State: record.Succeeded})
	w.pod = layout.Pod{Run: w.run, TaskRun: "build-compile", PodUID: uid}
	var err error
	w.Compactor, err = New(Options{Archive: backend.New(store), Store: store, Since: 24 * time.Hour, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) container(name string) layout.Container {
	return layout.Container{Pod: w.pod, Container: name}
}

// slow stores the sealed log of a step that prints a line a second.
func (w *world) slow(t *testing.T, c layout.Container, n int) []byte {
	t.Helper()
	var lines []byte
	begun := time.Date(2026, 5, 17, 12, 0, 0, 0, time.UTC)
	for i := range n {
		stream := []criline.Stream{criline.Stdout, criline.Stderr}[i%2]
		lines = criline.Append(lines, begun.Add(time.Duration(i)*time.Second), stream, i%7 != 0, fmt.Appendf(nil, "waiting: %d", i))
	}
	archivetest.PutLog(t, w.store, c, lines, 2)
	archivetest.PutRecord(t, w.store, c.SealKey(), archivetest.Seal(t, lines))
	return lines
}

// names are the log's segments.
func (w *world) names(t *testing.T, c layout.Container) (names []string) {
	t.Helper()
	for e, err := range w.store.List(t.Context(), c.Prefix(), "", "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(e.Key, ".log.zst") {
			names = append(names, e.Key)
		}
	}
	return names
}

// is checks that a reader sees the whole log, verified.
func (w *world) is(t *testing.T, c layout.Container, want []byte) {
	t.Helper()
	archive := backend.New(w.store)
	now, err := archive.Container(t.Context(), c)
	if err != nil || now.Status != backend.Verified {
		t.Fatalf("%s, %v", now.Status, err)
	}
	var got []byte
	for l, err := range archive.Lines(t.Context(), now, backend.LogOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = criline.Append(got, l.Time, l.Stream, l.Full, l.Text)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes are read, not the %d that were stored", len(got), len(want))
	}
}

// pass makes a pass at a time from now.
func (w *world) pass(t *testing.T, later time.Duration) {
	t.Helper()
	w.now = func() time.Time { return time.Now().Add(later) }
	if err := w.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestPasses(t *testing.T) {
	w := newWorld(t)
	c := w.container("step-slow")
	lines := w.slow(t, c, 300)
	small := w.names(t, c)

	w.pass(t, 0)
	both := w.names(t, c)
	if len(both) != len(small)+1 {
		t.Fatalf("%d segments, want those %d and the large one", len(both), len(small))
	}
	w.is(t, c, lines)

	w.pass(t, settle/2)
	if got := w.names(t, c); !slices.Equal(got, both) {
		t.Fatalf("%d segments, want all as long as somebody may be at an older list", len(got))
	}

	w.pass(t, settle+time.Minute)
	after := w.names(t, c)
	if len(after) != 1 || slices.Contains(small, after[0]) {
		t.Fatalf("%q, want the large one alone", after)
	}
	w.is(t, c, lines)
	if !w.seen["team"].done[uid] {
		t.Error("the run is looked at again")
	}

	// Another one that knows nothing of this.
	again := *w
	again.seen = nil
	again.pass(t, settle+time.Minute)
	if got := again.names(t, c); !slices.Equal(got, after) || !again.seen["team"].done[uid] {
		t.Errorf("%q, done: %t; want nothing to be done", got, again.seen["team"].done[uid])
	}
}

// TestReaderWithAnOldList: whoever has listed a log before it is compacted, and reads it after, gets all of it once.
func TestReaderWithAnOldList(t *testing.T) {
	for _, before := range []int{0, 1, 7, 200} {
		t.Run(fmt.Sprint(before), func(t *testing.T) {
			w := newWorld(t)
			c := w.container("step-slow")
			want := w.slow(t, c, 300)
			archive := backend.New(w.store)
			old, err := archive.Container(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			compact := func() {
				w.pass(t, 0)
				w.pass(t, settle+time.Minute)
				if n := len(w.names(t, c)); n != 1 {
					t.Fatalf("%d segments", n)
				}
			}
			if before == 0 {
				compact()
			}
			var got []byte
			n := 0
			for l, err := range archive.Lines(t.Context(), old, backend.LogOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				got = criline.Append(got, l.Time, l.Stream, l.Full, l.Text)
				if n++; n == before {
					compact()
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes, not the %d that were stored", len(got), len(want))
			}
		})
	}
}

// TestTwoAtOnce: each of two may be at any point of it while the other is at any other.
func TestTwoAtOnce(t *testing.T) {
	w := newWorld(t)
	c := w.container("step-slow")
	lines := w.slow(t, c, 300)
	other := *w
	w.pass(t, 0)
	other.pass(t, 0)
	w.is(t, c, lines)
	place := w.place(t, c)
	w.pass(t, settle+time.Minute)
	// It has read the list before.
	if _, err := Log(t.Context(), w.store, place, time.Now().Add(settle+time.Minute)); err != nil {
		t.Error(err)
	}
	w.is(t, c, lines)
	if n := len(w.names(t, c)); n != 1 {
		t.Errorf("%d segments, want 1", n)
	}
}

func (w *world) place(t *testing.T, c layout.Container) backend.Place {
	t.Helper()
	tree, err := backend.New(w.store).Tree(t.Context(), backend.Target{Run: w.run})
	if err != nil {
		t.Fatal(err)
	}
	for place := range tree.Containers() {
		if place.Container.Key == c {
			return place
		}
	}
	t.Fatalf("no container %s", c.Container)
	return backend.Place{}
}

// TestLeftAlone: what is not sealed, not whole, or not worth it stays as it is.
func TestLeftAlone(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(t *testing.T, w *world, c layout.Container)
	}{
		{"not sealed", func(t *testing.T, w *world, c layout.Container) {
			w.slow(t, c, 300)
			if err := w.store.Delete(t.Context(), c.SealKey()); err != nil {
				t.Fatal(err)
			}
		}},
		{"few segments", func(t *testing.T, w *world, c layout.Container) { w.slow(t, c, 190) }},
		{"a segment is missing", func(t *testing.T, w *world, c layout.Container) {
			w.slow(t, c, 300)
			if err := w.store.Delete(t.Context(), w.names(t, c)[7]); err != nil {
				t.Fatal(err)
			}
		}},
		{"a segment is corrupt", func(t *testing.T, w *world, c layout.Container) {
			w.slow(t, c, 300)
			archivetest.Put(t, w.store, w.names(t, c)[7], []byte("garbage"))
		}},
		{"no digest", func(t *testing.T, w *world, c layout.Container) {
			seal := archivetest.Seal(t, w.slow(t, c, 300))
			seal.SHA256 = ""
			archivetest.PutRecord(t, w.store, c.SealKey(), seal)
		}},
		{"another log of its pod goes on", func(t *testing.T, w *world, c layout.Container) {
			w.slow(t, c, 300)
			archivetest.PutLog(t, w.store, w.container("step-next"), criline.Append(nil, time.Now(), criline.Stdout, true, []byte("x")), 0)
		}},
		{"another log of its pod was never sealed", func(t *testing.T, w *world, c layout.Container) {
			w.slow(t, c, 300)
			archivetest.PutLog(t, w.store, w.container("step-next"), criline.Append(nil, time.Now(), criline.Stdout, true, []byte("x")), 0)
			w.options.Archive = backend.New(&aged{w.store, time.Hour})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			c := w.container("step-slow")
			tc.make(t, w, c)
			before := w.names(t, c)
			w.pass(t, 0)
			if got := w.names(t, c); !slices.Equal(got, before) {
				t.Errorf("%d segments, want those %d", len(got), len(before))
			}
		})
	}
}

// aged is a store that got everything some time ago.
type aged struct {
	*objectstore.Store
	by time.Duration
}

func (a *aged) List(ctx context.Context, prefix, delimiter, after string, limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		for e, err := range a.Store.List(ctx, prefix, delimiter, after, limit) {
			e.LastModified = e.LastModified.Add(-a.by)
			if !yield(e, err) {
				return
			}
		}
	}
}

// TestKeepsWhatIsNeeded: nothing is deleted where what should hold it does not.
func TestKeepsWhatIsNeeded(t *testing.T) {
	for _, tc := range []struct {
		name string
		body func(t *testing.T, b []byte, s layout.Segment) []byte
		want any
	}{
		{"garbage", func(*testing.T, []byte, layout.Segment) []byte { return []byte("garbage") }, new(*segment.CorruptError)},
		{"cut off", func(_ *testing.T, b []byte, _ layout.Segment) []byte { return b[:len(b)-1] }, new(*segment.CorruptError)},
		{"other bytes of that length", reversed, new(*backend.DigestError)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			c := w.container("step-slow")
			w.slow(t, c, 300)
			small := w.names(t, c)
			w.pass(t, 0)
			both := w.names(t, c)
			large := both[slices.IndexFunc(both, func(name string) bool { return !slices.Contains(small, name) })]
			object, err := w.store.Get(t.Context(), large)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(object)
			object.Close()
			if err != nil {
				t.Fatal(err)
			}
			key, err := layout.ParseKey(large)
			if err != nil {
				t.Fatal(err)
			}
			archivetest.Put(t, w.store, large, tc.body(t, b, key.Segment))
			_, err = Log(t.Context(), w.store, w.place(t, c), time.Now().Add(settle+time.Minute))
			if !errors.As(err, tc.want) {
				t.Errorf("error %v, want a %T", err, tc.want)
			}
			if got := w.names(t, c); !slices.Equal(got, both) {
				t.Errorf("%d segments are left of %d", len(got), len(both))
			}
		})
	}
}

// reversed has the lines of a segment in another order.
func reversed(t *testing.T, frame []byte, s layout.Segment) []byte {
	t.Helper()
	r, err := segment.NewReader(bytes.NewReader(frame), s)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var each [][]byte
	for line := range bytes.Lines(lines) {
		each = append(each, line)
	}
	slices.Reverse(each)
	_, bodies := archivetest.Segments(t, bytes.Join(each, nil), 0)
	return bodies[0]
}

// TestBrokenOff: whatever step is the last, the log is whole, and the next pass goes on.
func TestBrokenOff(t *testing.T) {
	w := newWorld(t)
	c := w.container("step-slow")
	lines := w.slow(t, c, 300)
	for n := 0; ; n++ {
		broken := &breaking{Store: w.store}
		broken.left.Store(int64(n))
		_, err := Log(t.Context(), broken, w.place(t, c), time.Now().Add(settle+time.Minute))
		w.is(t, c, lines)
		if err == nil && len(w.names(t, c)) == 1 {
			return
		}
		if err != nil && !errors.Is(err, errBroken) {
			t.Fatal(err)
		}
	}
}

var errBroken = errors.New("broken off")

// breaking is a store that does so much and no more.
type breaking struct {
	Store
	left atomic.Int64
}

func (b *breaking) do(f func() error) error {
	if b.left.Add(-1) < 0 {
		return errBroken
	}
	return f()
}

func (b *breaking) Put(ctx context.Context, key string, body []byte) error {
	return b.do(func() error { return b.Store.Put(ctx, key, body) })
}

func (b *breaking) Delete(ctx context.Context, key string) error {
	return b.do(func() error { return b.Store.Delete(ctx, key) })
}

// TestSince: older runs are not looked at.
func TestSince(t *testing.T) {
	w := newWorld(t)
	c := w.container("step-slow")
	w.slow(t, c, 300)
	before := w.names(t, c)
	w.pass(t, 24*time.Hour)
	if got := w.names(t, c); !slices.Equal(got, before) {
		t.Errorf("%d segments, want those %d", len(got), len(before))
	}
}

// TestForgedLog: a log that was forged holds up no other, and is tried once.
func TestForgedLog(t *testing.T) {
	w := newWorld(t)
	bad, good := w.container("step-bad"), w.container("step-good")
	w.slow(t, bad, 300)
	lines := w.slow(t, good, 300)
	small := w.names(t, bad)
	if err := w.store.Put(t.Context(), small[7], []byte("no frame of zstd")); err != nil {
		t.Fatal(err)
	}
	for pass := range 3 {
		w.pass(t, time.Duration(pass)*(settle+time.Minute))
		if n := testutil.ToFloat64(w.failures); n != 1 {
			t.Errorf("pass %d: %v failures in all, want 1", pass+1, n)
		}
	}
	if got := w.names(t, bad); !slices.Equal(got, small) {
		t.Errorf("the forged log has %d segments, and had %d", len(got), len(small))
	}
	if n := len(w.names(t, good)); n != 1 {
		t.Errorf("the other log has %d segments, want one", n)
	}
	w.is(t, good, lines)
}

// TestSlowLog: a log that takes too long is not tried again, and what does not fit into a
// namespace's time is left for the next pass.
func TestSlowLog(t *testing.T) {
	t.Run("log", func(t *testing.T) {
		w := newWorld(t)
		c := w.container("step-slow")
		w.slow(t, c, 300)
		w.logTime = time.Nanosecond
		for range 2 {
			w.pass(t, 0)
		}
		if n := testutil.ToFloat64(w.failures); n != 1 {
			t.Errorf("%v failures, want 1", n)
		}
		if !w.seen["team"].done[uid] {
			t.Error("the run is looked at again")
		}
	})
	t.Run("namespace", func(t *testing.T) {
		w := newWorld(t)
		c := w.container("step-slow")
		lines := w.slow(t, c, 300)
		w.namespaceTime = time.Nanosecond
		w.pass(t, 0)
		if w.seen["team"].done[uid] {
			t.Error("a run that nobody looked at counts as done")
		}
		w.namespaceTime = namespaceTime
		w.pass(t, 0)
		w.pass(t, settle+time.Minute)
		if n := len(w.names(t, c)); n != 1 {
			t.Errorf("%d segments, want one", n)
		}
		w.is(t, c, lines)
	})
}
