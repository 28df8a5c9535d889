package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // there is much garbage, and little else
	goleak.VerifyTestMain(m)
}

// envHistories is how many histories TestModel makes, if not the default, as in
// SHIPLOG_MODEL_HISTORIES=1000000, and envSeed the one seed that it makes one of.
const (
	envHistories = "SHIPLOG_MODEL_HISTORIES"
	envSeed      = "SHIPLOG_MODEL_SEED"
)

// corpus are seeds whose histories were once read wrongly.
var corpus = []uint64{1, 9, 10, 11, 17, 25, 31, 37, 392, 509, 547, 616, 675, 1205, 1497, 3413,
	4075, 5222, 5991, 6062, 6579, 8526, 9228, 9688, 23816, 35231, 50671, 89864, 99449, 116143}

// TestModel reads random histories at random moments, and compares what package backend says with
// the slow reader.
func TestModel(t *testing.T) {
	n, seeds := asked(t)
	each(t, n, seeds, func(t *testing.T, seed uint64,
		w *segment.Writer) error {
		return readings(t.Context(), seed, w)
	})
}

// asked is of how many histories a test is, and of which seeds beside.
func asked(t *testing.T) (n uint64, seeds []uint64) {
	number := func(env string) (v uint64, ok bool) {
		text := os.Getenv(env)
		if text == "" {
			return 0, false
		}
		v, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", env, err)
		}
		return v, true
	}
	if seed, ok := number(envSeed); ok {
		return 0, []uint64{seed}
	}
	if n, ok := number(envHistories); ok {
		return n, corpus
	}
	return histories, corpus
}

// mostFailures is after how many failures no more are looked for.
const mostFailures = 20

// each runs f for so many seeds, and for more of them, several at a time.
func each(t *testing.T, n uint64, more []uint64, f func(t *testing.T, seed uint64,
	w *segment.Writer) error) {
	var next, failed atomic.Uint64
	t.Run("histories", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				writer := must(segment.NewWriter())
				for {
					i := next.Add(1) - 1
					seed := i
					if i >= n {
						if i-n >= uint64(len(more)) {
							return
						}
						seed = more[i-n]
					}
					if err := f(t, seed, writer); err != nil {
						t.Errorf("%s=%d: %v", envSeed, seed, err)
						if failed.Add(1) >= mostFailures {
							return
						}
					}
				}
			})
		}
	})
}

// readings reads a history at some moments.
func readings(ctx context.Context, seed uint64, writer *segment.Writer) error {
	w := newWorld(seed, true, writer)
	rnd := rand.New(rand.NewPCG(seed, 2))
	moments := []time.Time{w.end.Add(time.Minute)}
	for range 1 + rnd.IntN(2) {
		moments = append(moments,
			w.begin.Add(time.Duration(rnd.Int64N(int64(w.end.Sub(w.begin)+5*time.Minute)))))
	}
	slices.SortFunc(moments, time.Time.Compare)
	var now time.Time
	s := newStore(w.events, func() time.Time { return now })
	s.page = 2 + rnd.IntN(20)
	a := backend.New(s)
	earlier := map[layout.Run]*backend.Tree{}
	for _, now = range moments {
		if err := w.compare(ctx, s, a, rnd, now, earlier); err != nil {
			return fmt.Errorf("at %s: %w", now.Sub(w.begin), err)
		}
	}
	return nil
}

// compare asks all that can be asked at a moment. earlier are the trees of the last moment.
func (w *world) compare(ctx context.Context, s *store, a *backend.Archive, rnd *rand.Rand,
	now time.Time, earlier map[layout.Run]*backend.Tree) error {
	if err := w.compareFind(ctx, s, a, rnd); err != nil {
		return err
	}
	for _, r := range w.runs {
		have := s.holds(r.Prefix())
		tree, err := a.Tree(ctx, backend.Target{Run: r.Run})
		if (err == nil) != have {
			return fmt.Errorf("Tree of %v: there is something: %v, error: %w", r.Run, have, err)
		}
		if !have {
			continue
		}
		if earlier[r.Run] != nil {
			again, err := a.Again(ctx, earlier[r.Run])
			if err != nil || !reflect.DeepEqual(again, tree) {
				return fmt.Errorf("Again of %v is %+v (%w), want %+v", r.Run, again, err, tree)
			}
		}
		earlier[r.Run] = tree
		places := map[layout.Container]backend.Place{}
		for p := range tree.Containers() {
			places[p.Container.Key] = p
		}
		for _, p := range w.pods {
			if p.key.Run != r.Run {
				continue
			}
			for _, l := range p.logs {
				place, ok := places[l.key]
				delete(places, l.key)
				if there := s.knows(p, l); there != ok {
					return fmt.Errorf("%s is in the tree: %v, want %v", l.key.Prefix(), ok, there)
				}
				if !ok {
					continue
				}
				truth := s.read(p, l, now)
				if err := l.compare(ctx, a, rnd, truth, place.Container); err != nil {
					return fmt.Errorf("%s: %w", l.key.Prefix(), err)
				}
			}
		}
		if len(places) > 0 {
			return fmt.Errorf("the tree also has %v", slices.Collect(maps.Keys(places)))
		}
	}
	return nil
}

// knows says whether the store tells of a container.
func (s *store) knows(p *pod, l *log) bool {
	if s.holds(l.key.Prefix()) {
		return true
	}
	_, ok := s.objects[p.key.PodKey()]
	return ok
}

// compare compares one container's log.
func (l *log) compare(ctx context.Context, a *backend.Archive, rnd *rand.Rand, want truth,
	c backend.Container) error {
	if c.Status != want.status {
		return fmt.Errorf("Tree says %s (%s), want %s", c.Status, c.Why, want.status)
	}
	alone, err := a.Container(ctx, l.key)
	if err != nil {
		return err
	}
	if alone.Status != c.Status || alone.Why != c.Why || alone.Bytes != c.Bytes ||
		alone.Lines != c.Lines || alone.Archive != c.Archive || alone.Estimated != c.Estimated ||
		alone.Label() != c.Label() && c.Kind != "" {
		return fmt.Errorf("Container says %s (%s), %d bytes, %d lines, and Tree %s (%s), %d, %d",
			alone.Status, alone.Why, alone.Bytes, alone.Lines, c.Status, c.Why, c.Bytes, c.Lines)
	}
	if c.Estimated && !want.estimated {
		return errors.New("is estimated, and need not be")
	}
	if c.Archive != want.archive || c.Bytes < want.printed || c.Lines < want.lines ||
		!c.Estimated && (c.Bytes != want.printed || c.Lines != want.lines) {
		return fmt.Errorf("has %d archive bytes, %d printed and %d lines (%v), want %d, %d, %d",
			c.Archive, c.Bytes, c.Lines, c.Estimated, want.archive, want.printed, want.lines)
	}
	// Of what others cover, where these are corrupt, nobody may know where it begins.
	spoiled := want.estimated && slices.ContainsFunc(want.pieces,
		func(p piece) bool { return p.missing })
	if err := same(a.Lines(ctx, c, backend.LogOptions{}), want.pieces, c.Estimated ||
		spoiled); err != nil {
		return fmt.Errorf("Lines: %w", err)
	}
	if err := l.compareContent(ctx, a, rnd, want, c); err != nil {
		return fmt.Errorf("Content: %w", err)
	}
	if !c.Estimated && !spoiled {
		for range 2 {
			o := someOptions(rnd, want)
			if err := same(a.Lines(ctx, c, o), want.chosen(o), false); err != nil {
				return fmt.Errorf("Lines of %+v: %w", o, err)
			}
		}
	}
	return l.compareSearch(ctx, a, rnd, want, c, !c.Estimated && !spoiled)
}

func someOptions(rnd *rand.Rand, t truth) (o backend.LogOptions) {
	some := func(n int64) int64 { return rnd.Int64N(n + 3) }
	if rnd.IntN(2) == 0 {
		o.Tail = some(t.lines)
	} else {
		if rnd.IntN(2) == 0 {
			o.FromLine = some(t.lines)
		}
		if rnd.IntN(3) == 0 {
			o.FromByte = some(t.printed)
		}
	}
	if rnd.IntN(3) == 0 {
		o.ToLine = some(t.lines)
	}
	if rnd.IntN(3) == 0 {
		o.ToByte = some(t.printed)
	}
	return o
}

// same compares lines. One gap of the archive itself is as good as several, and where something is
// chosen, none is looked for. Numbers that are estimated do not count, but never fall.
func same(lines func(func(backend.Line, error) bool), want []piece, estimated bool) error {
	i := 0
	var last backend.Line
	for l, err := range lines {
		if err != nil {
			return err
		}
		if l.Number < last.Number && l.Stream == last.Stream || l.Offset < last.Offset {
			return fmt.Errorf("line %d at %d comes behind line %d at %d", l.Number, l.Offset,
				last.Number, last.Offset)
		}
		last = l
		if l.Stream == criline.Markers && !bytes.Contains(l.Text, []byte("spool-limit")) {
			if i < len(want) && want[i].missing {
				i++
			}
			continue
		}
		is := func(p piece) bool {
			return p.Stream == l.Stream && p.Full == l.Full && bytes.Equal(p.Text, l.Text) &&
				p.Time.Equal(l.Time)
		}
		for i < len(want) && want[i].perhaps && !is(want[i]) {
			i++
		}
		if i == len(want) {
			return fmt.Errorf("there is one more line, %q", l.Text)
		}
		p := want[i]
		if p.missing {
			return fmt.Errorf("%q is said to be missing, and %q is there", p.Text, l.Text)
		}
		if !is(p) {
			return fmt.Errorf("piece %d is %s %v %q, want %s %v %q", i, l.Stream, l.Full, l.Text,
				p.Stream, p.Full, p.Text)
		}
		if !estimated && (p.number != l.Number || p.offset != l.Offset) {
			return fmt.Errorf("piece %d (%q) is line %d at %d, want line %d at %d", i, l.Text,
				l.Number, l.Offset, p.number, p.offset)
		}
		i++
	}
	for i < len(want) && want[i].perhaps {
		i++
	}
	if i != len(want) {
		return fmt.Errorf("ends with %d of %d pieces", i, len(want))
	}
	return nil
}

// compareContent reads a log as a file, and a part of it.
func (l *log) compareContent(ctx context.Context, a *backend.Archive, rnd *rand.Rand, want truth,
	c backend.Container) error {
	if c.Estimated || c.Status != backend.Verified && c.Status != backend.Gaps {
		return nil
	}
	var text bytes.Buffer
	missing := false
	for _, p := range want.pieces {
		if missing = missing || p.missing; p.Stream == criline.Markers || p.missing {
			continue
		}
		text.Write(p.Text)
		if p.Full {
			text.WriteByte('\n')
		}
	}
	content, err := a.Content(ctx, c)
	if err != nil {
		return err
	}
	defer content.Close()
	from := int64(0)
	if !missing && text.Len() > 0 && rnd.IntN(2) == 0 {
		from = rnd.Int64N(int64(text.Len()))
		if _, err := content.Seek(from, io.SeekStart); err != nil {
			return err
		}
	}
	got, err := io.ReadAll(content)
	if missing != (err != nil) {
		return fmt.Errorf("bytes are missing: %v, error: %w", missing, err)
	}
	if !missing && !bytes.Equal(got, text.Bytes()[from:]) {
		return fmt.Errorf("from %d on is %q, want %q", from, got, text.Bytes()[from:])
	}
	return nil
}

// compareSearch looks for a text.
func (l *log) compareSearch(ctx context.Context, a *backend.Archive, rnd *rand.Rand, want truth,
	c backend.Container, numbers bool) error {
	text := []string{"a", "b ", "1 ", "ab"}[rnd.IntN(4)]
	search := must(backend.NewSearch(backend.Query{Pattern: text, After: rnd.IntN(2)}))
	var got []match
	missing := false
	for m, err := range search.In(ctx, a, c, backend.LogOptions{}) {
		var lacks *backend.MissingError
		if errors.As(err, &lacks) {
			missing = true
			continue
		}
		if err != nil {
			return err
		}
		got = append(got, match{m.Number, string(m.Text)})
	}
	matches := want.matches(text)
	if !numbers {
		for i := range got {
			got[i].number = 0
		}
		for i := range matches {
			matches[i].number = 0
		}
	}
	// of two streams, either may end first
	order := func(a, b match) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
	slices.SortFunc(got, order)
	slices.SortFunc(matches, order)
	if !slices.Equal(got, matches) {
		return fmt.Errorf("search for %q found %v, want %v", text, got, matches)
	}
	if lacks := slices.ContainsFunc(want.pieces,
		func(p piece) bool { return p.missing }); lacks != missing {
		return fmt.Errorf("search said that something is missing: %v, want %v", missing, lacks)
	}
	return nil
}

// compareFind looks for names.
func (w *world) compareFind(ctx context.Context, s *store, a *backend.Archive,
	rnd *rand.Rand) error {
	refs := []string{"build", "build-pod", "nightly", "build-pod-retry1"}
	refs = []string{refs[rnd.IntN(len(refs))]}
	p := w.pods[rnd.IntN(len(w.pods))]
	refs = append(refs, []string{p.name, p.key.TaskRun, p.taskRunUID, p.key.UID}[rnd.IntN(4)])
	for _, ref := range refs {
		want, ok := s.find(w, ref)
		got, err := a.Find(ctx, "ns", ref)
		var notFound *backend.NotFoundError
		if err != nil && !errors.As(err, &notFound) {
			return err
		}
		if ok != (err == nil) || fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("%q is %+v (%v), want %+v", ref, got, err, want)
		}
	}
	return nil
}
