package backend

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// mixed is a log of two streams with whole lines, empty lines, and pieces if so asked, and where
// each of its lines is.
func mixed(seed uint64, pieces bool) (whole []byte, model []Line, ends []int) {
	r := rand.New(rand.NewPCG(seed, 1))
	var number, offset int64
	for i := range 60 {
		full := !pieces || r.IntN(3) > 0
		l := criline.Line{
			Time: now.Add(time.Duration(i) * time.Second), Stream: []criline.Stream{criline.Stdout, criline.Stderr}[r.IntN(2)], Full: full,
			Text: []byte("abcdefghijkl"[r.IntN(12):]), // a piece has at least a byte
		}
		if full && r.IntN(4) == 0 {
			l.Text = []byte{}
		}
		model = append(model, Line{l, number + 1, offset})
		if l.Full {
			number++
		}
		offset += l.Printed()
		whole = criline.Append(whole, l.Time, l.Stream, l.Full, l.Text)
		ends = append(ends, len(whole))
	}
	return whole, model, ends
}

// TestWindow compares what the options choose with a model that reads all, in logs whose segments overlap.
func TestWindow(t *testing.T) {
	for seed := range uint64(12) {
		pieces := seed%2 == 0
		whole, model, ends := mixed(seed, pieces)
		r := rand.New(rand.NewPCG(seed, 2))
		m := memory{}
		var met []int // where segments begin and end
		for end := 0; end < len(ends); {
			from := end - r.IntN(min(end, 4)+1)
			for pieces && from > 0 && !slices.Contains(met, from) {
				from-- // elsewhere nobody knows how many pieces are before it
			}
			met = append(met, from)
			end = min(len(ends), end+1+r.IntN(7))
			start := 0
			if from > 0 {
				start = ends[from-1]
			}
			met = append(met, end)
			s, b := segmentOf(t, whole, start, ends[end-1])
			m.put(t, step.SegmentKey(s), now, b)
		}
		c := onlyContainer(t, m)
		if last := model[len(model)-1]; c.Lines < last.Number-1 || c.Bytes != last.Offset+last.Printed() {
			t.Fatalf("seed %d: %d lines, %d bytes", seed, c.Lines, c.Bytes)
		}
		for n := int64(0); n < 70; n += 5 {
			for name, o := range map[string]LogOptions{
				"from line":  {FromLine: n},
				"to line":    {ToLine: n},
				"lines":      {FromLine: n, ToLine: n + 3},
				"from byte":  {FromByte: 5 * n},
				"to byte":    {ToByte: 5 * n},
				"bytes":      {FromByte: 5 * n, ToByte: 5*n + 7},
				"since":      {Since: now.Add(time.Duration(n) * time.Second)},
				"all":        {FromLine: n / 2, FromByte: n, Since: now.Add(time.Duration(n) * time.Second / 3), ToLine: 30},
				"everything": {},
			} {
				var got, want []Line
				for l, err := range archive(m).Lines(t.Context(), c, o) {
					if err != nil {
						t.Fatal(err)
					}
					l.Text = bytes.Clone(l.Text)
					got = append(got, l)
				}
				for _, l := range model {
					if l.Number >= o.FromLine && (o.ToLine == 0 || l.Number <= o.ToLine) && !l.Time.Before(o.Since) &&
						(o.FromByte == 0 || l.Offset+max(1, l.Printed()) > o.FromByte) && (o.ToByte == 0 || l.Offset < o.ToByte) {
						want = append(want, l)
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("seed %d, %s %d (-want +got):\n%s", seed, name, n, diff)
				}
			}
		}
	}
}

// counting counts requests, and takes the store's time for a fresh one.
type counting struct {
	Store
	lists, gets int
}

func (c *counting) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	c.gets++
	return c.Store.Get(ctx, key)
}

func (c *counting) List(ctx context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[objectstore.Entry, error] {
	c.lists++
	return c.Store.List(ctx, prefix, delimiter, startAfter, limit)
}

// TestCost: the first and the last lines of a log cost the same, however long it is.
func TestCost(t *testing.T) {
	const segments = 200
	whole := lines(10 * segments)
	var ends []int
	for n := 10; n <= 10*segments; n += 10 {
		ends = append(ends, lineEnd(whole, n))
	}
	m := memory{}
	m.putLog(t, step, now, whole, ends...)
	m.put(t, step.SealKey(), now, sealOf(whole))
	for name, c := range map[string]struct {
		options LogOptions
		take    int
		gets    int // the seal's among them
	}{
		"the first line":       {LogOptions{}, 1, 2},
		"the last 5 lines":     {LogOptions{Tail: 5}, 100, 2},
		"a line in the middle": {LogOptions{FromLine: 1005, ToLine: 1005}, 100, 2},
		"a byte in the middle": {LogOptions{FromByte: 10_000, ToByte: 10_001}, 100, 2},
		"a minute":             {LogOptions{Since: now.Add(1995 * time.Second)}, 100, 2},
	} {
		t.Run(name, func(t *testing.T) {
			count := &counting{Store: m}
			a := New(count)
			a.now = func() time.Time { return now }
			k, err := a.Container(t.Context(), step)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, err := range a.Lines(t.Context(), k, c.options) {
				if err != nil {
					t.Fatal(err)
				}
				if n++; n == c.take {
					break
				}
			}
			if n == 0 || count.lists != 1 || count.gets > c.gets {
				t.Errorf("%d lines for %d LIST and %d GET, want 1 and %d", n, count.lists, count.gets, c.gets)
			}
		})
	}
}

// TestContainer: one container alone is what it is in its run's tree.
func TestContainer(t *testing.T) {
	whole := lines(9)
	for name, make := range map[string]func(memory){
		"verified": func(m memory) {
			m.putLog(t, step, now, whole, lineEnd(whole, 3), len(whole))
			m.put(t, step.SealKey(), now, sealOf(whole))
		},
		"running": func(m memory) { m.putLog(t, step, now, whole, lineEnd(whole, 3), len(whole)) },
		"running, silent": func(m memory) {
			m.putLog(t, step, now.Add(-time.Hour), whole, len(whole))
			m.put(t, pod.AliveKey(), now, []byte("{}"))
		},
		"partial": func(m memory) { m.putLog(t, step, now.Add(-time.Hour), whole, len(whole)) },
		"unreadable seal": func(m memory) {
			m.putLog(t, step, now, whole, len(whole))
			m.put(t, step.SealKey(), now, []byte("no JSON"))
		},
		"empty, sealed": func(m memory) { m.put(t, step.SealKey(), now, sealOf(nil)) },
		"nothing but the seal of another": func(m memory) {
			other := step
			other.Container = "step-a2"
			m.put(t, other.SealKey(), now, sealOf(nil))
			m.put(t, step.SealKey(), now, sealOf(nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := memory{}
			make(m)
			got, err := archive(m).Container(t.Context(), step)
			if err != nil {
				t.Fatal(err)
			}
			want := onlyContainer(t, m)
			want.heard = got.heard // of all of the pod
			diff := cmp.Diff(want, got, cmp.AllowUnexported(Container{}, position{}),
				cmpopts.IgnoreTypes(stamp{})) // of the listing that a tree is read anew from
			if diff != "" {
				t.Errorf("(-tree +alone):\n%s", diff)
			}
		})
	}
}

// TestSearch compares lines found with those of a plain loop over the whole text.
func TestSearch(t *testing.T) {
	var whole []byte
	text := func(i int) string { return fmt.Sprintf("line %d of the log", i) }
	for i := range 40 {
		if i == 20 { // in pieces
			whole = criline.Append(whole, now, criline.Stdout, false, []byte("line 20 o"))
			whole = criline.Append(whole, now, criline.Stderr, true, []byte("between"))
			whole = criline.Append(whole, now, criline.Stdout, true, []byte("f the log"))
			continue
		}
		whole = criline.Append(whole, now, criline.Stdout, true, []byte(text(i)))
	}
	whole = criline.Append(whole, now, criline.Stdout, false, []byte("never ended"))
	m := memory{}
	m.putLog(t, step, now, whole, lineEnd(whole, 10), lineEnd(whole, 21), len(whole))
	long := strings.Repeat("x", 60_000)
	longStep := step
	longStep.Container = "step-long"
	longLine := criline.Append(nil, now, criline.Stdout, true, []byte(long+"needle"+long[:4000]))
	m.putLog(t, longStep, now, longLine, len(longLine))

	for _, c := range []struct {
		name  string
		query Query
		want  []string // number:text[start:end]
	}{
		{"literal", Query{Pattern: "line 7 "}, []string{"8: <line 7 >of the log"}},
		{"literal with what is special in a regular expression", Query{Pattern: "line ."}, nil},
		{"ignoring case", Query{Pattern: "LINE 7 ", IgnoreCase: true}, []string{"8: <line 7 >of the log"}},
		{"regular expression", Query{Pattern: "^line [34] ", Regexp: true}, []string{"4: <line 3 >of the log", "5: <line 4 >of the log"}},
		{"in pieces", Query{Pattern: "20 of the"}, []string{"21: line <20 of the> log"}},
		{"never ended", Query{Pattern: "never"}, []string{"42: <never> ended"}},
		{"context", Query{Pattern: "line 30 ", Before: 2, After: 1}, []string{"30|31|32: <line 30 >of the log|33"}},
		{"context at both ends", Query{Pattern: "line 0 ", Before: 2, After: 1}, []string{"1: <line 0 >of the log|2"}},
		{"context that overlaps", Query{Pattern: "line 1[01] ", Regexp: true, After: 2}, []string{"11: <line 10 >of the log|12|13", "12: <line 11 >of the log|13|14"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := NewSearch(c.query)
			if err != nil {
				t.Fatal(err)
			}
			k, err := archive(m).Container(t.Context(), step)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for match, err := range s.In(t.Context(), archive(m), k, LogOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				var b strings.Builder
				for _, l := range match.Before {
					fmt.Fprintf(&b, "%d|", l.Number)
				}
				fmt.Fprintf(&b, "%d: %s<%s>%s", match.Number, match.Text[:match.Start], match.Text[match.Start:match.End], match.Text[match.End:])
				for _, l := range match.After {
					fmt.Fprintf(&b, "|%d", l.Number)
				}
				got = append(got, b.String())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%q\nwant\n%q", got, c.want)
			}
		})
	}
	t.Run("far behind in a long line", func(t *testing.T) {
		s, _ := NewSearch(Query{Pattern: "needle"})
		k, err := archive(m).Container(t.Context(), longStep)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for match, err := range s.In(t.Context(), archive(m), k, LogOptions{}) {
			n++
			if err != nil || !match.Cut || len(match.Text) != MaxMatchText || string(match.Text[match.Start:match.End]) != "needle" {
				t.Errorf("%v: %d bytes, cut %v, %d to %d", err, len(match.Text), match.Cut, match.Start, match.End)
			}
		}
		if n != 1 {
			t.Errorf("%d matches", n)
		}
	})
}

func TestBadQueries(t *testing.T) {
	for name, q := range map[string]Query{
		"empty":                {},
		"long":                 {Pattern: strings.Repeat("x", maxPattern+1)},
		"no expression":        {Pattern: "(", Regexp: true},
		"large":                {Pattern: "((x{100}){100}){10}", Regexp: true},
		"many repetitions":     {Pattern: "[ab]{1,900}x{1,900}[cd]{1,900}", Regexp: true},
		"larger than it looks": {Pattern: "(?:(?:[a-z]{1,90}){1,90}){1,9}", Regexp: true},
		"too much context":     {Pattern: "x", Before: MaxContext + 1},
		"negative context":     {Pattern: "x", After: -1},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewSearch(q); err == nil {
				t.Error("it is taken")
			} else {
				t.Log(err)
			}
		})
	}
}
