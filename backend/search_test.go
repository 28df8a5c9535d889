package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// Lines that are passed over many at once are numbered, put together and found as those that are looked at one by one, which a last line has them be.
func TestSearchInBlocks(t *testing.T) {
	for seed := range uint64(50) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			words := []string{"a", "needle", "nee", "dle", "", "what fills a line up to its end"}
			streams := []criline.Stream{criline.Stdout, criline.Stdout, criline.Stderr, criline.Markers}
			var whole []byte
			var ends []int
			at := now
			for range 400 {
				if random.IntN(3) == 0 {
					at = at.Add(time.Millisecond)
				}
				s := streams[random.IntN(len(streams))]
				// Now and then what fills more than a block.
				text := bytes.Repeat([]byte(words[random.IntN(len(words))]), 1+random.IntN(2)+900*(random.IntN(20)/19))
				whole = criline.Append(whole, at, s, s == criline.Markers || random.IntN(4) > 0, text)
				if random.IntN(50) == 0 {
					ends = append(ends, len(whole))
				}
			}
			m := memory{}
			m.putLog(t, step, now, whole, append(ends, len(whole))...)
			k, err := archive(m).Container(t.Context(), step)
			if err != nil {
				t.Fatal(err)
			}
			for _, query := range []Query{{Pattern: "needle"}, {Pattern: "needle+(a|n)", Regexp: true}, {Pattern: "nothing"}} {
				s, err := NewSearch(query)
				if err != nil {
					t.Fatal(err)
				}
				found := func(o LogOptions) (all []string) {
					for match, err := range s.In(t.Context(), archive(m), k, o) {
						if err != nil {
							t.Fatal(err)
						}
						all = append(all, fmt.Sprintf("%d %s %d %.100q", match.Number, match.Stream, match.Start, match.Text))
					}
					return all
				}
				got, want := found(LogOptions{}), found(LogOptions{ToLine: 1 << 40})
				if !slices.Equal(got, want) {
					t.Errorf("%q: got %d matches, %.300v, want %d, %.300v", query.Pattern, len(got), got, len(want), want)
				}
				if query.Pattern == "needle" && len(want) == 0 {
					t.Error("nothing is found: the test says nothing")
				}
			}
		})
	}
}

// TestSearchTellsWhatIsMissing: a search that could not look at all of a log says so, whatever the log's state says, and goes on.
func TestSearchTellsWhatIsMissing(t *testing.T) {
	whole := lines(9)
	at := func(n int) int { return lineEnd(whole, n) }
	middle, _ := segmentOf(t, whole, at(3), at(6))
	for _, c := range []struct {
		name  string
		spoil func(m memory)
		query Query
		want  []string
	}{
		{"whole", func(memory) {}, Query{Pattern: "line 7"}, []string{"8"}},
		{"garbage", func(m memory) { m[step.SegmentKey(middle)] = object{[]byte("garbage"), now} }, Query{Pattern: "line 7"}, []string{"missing from 21", "8"}},
		{"garbage, and nothing found", func(m memory) { m[step.SegmentKey(middle)] = object{[]byte("garbage"), now} }, Query{Pattern: "nothing"}, []string{"missing from 21"}},
		{"garbage, with a regular expression", func(m memory) { m[step.SegmentKey(middle)] = object{[]byte("garbage"), now} }, Query{Pattern: "line [27]", Regexp: true}, []string{"3", "missing from 21", "8"}},
		{"context ends at what is missing", func(m memory) { m[step.SegmentKey(middle)] = object{[]byte("garbage"), now} },
			Query{Pattern: "line [26]", Regexp: true, Before: 2, After: 2}, []string{"12<3>", "missing from 21", "<7>89"}},
		{"no object", func(m memory) { delete(m, step.SegmentKey(middle)) }, Query{Pattern: "line 7"}, []string{"missing from 21", "5"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			m.putLog(t, step, now, whole, at(3), at(6), len(whole))
			m.put(t, step.SealKey(), now, sealOf(whole))
			c.spoil(m)
			s, err := NewSearch(c.query)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for match, err := range s.In(t.Context(), archive(m), onlyContainer(t, m), LogOptions{}) {
				var missing *MissingError
				switch {
				case errors.As(err, &missing):
					if missing.Container != step || missing.Reason == "" {
						t.Errorf("%+v", missing)
					}
					got = append(got, fmt.Sprintf("missing from %d", missing.Offset))
				case err != nil:
					t.Fatal(err)
				case c.query.Before > 0:
					var b strings.Builder
					for _, l := range match.Before {
						fmt.Fprint(&b, l.Number)
					}
					fmt.Fprintf(&b, "<%d>", match.Number)
					for _, l := range match.After {
						fmt.Fprint(&b, l.Number)
					}
					got = append(got, b.String())
				default:
					got = append(got, fmt.Sprint(match.Number))
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestSearchEnds: what is in memory already does not keep a search going for which nobody waits.
func TestSearchEnds(t *testing.T) {
	m, k, _ := largeLog(t)
	s, err := NewSearch(Query{Pattern: "^compile .*nothing (old|new)", Regexp: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	var last error
	for _, err := range s.In(ctx, archive(m), k, LogOptions{}) {
		last = err
		n++
		cancel()
	}
	if !errors.Is(last, context.Canceled) || n > blockBytes/criline.PrefixLen {
		t.Errorf("it ended behind %d matches with %v", n, last)
	}
}

// Whatever is searched for is found where package bytes finds it.
func FuzzLiteral(f *testing.F) {
	f.Add("needle", []byte("a haystack with a needle in it"))
	f.Add("e", []byte("eeee"))
	f.Add("xq", bytes.Repeat([]byte("q"), 1000))
	f.Add("qx", append(bytes.Repeat([]byte("x"), 1000), "qx"...))
	f.Add("", []byte{})
	f.Fuzz(func(t *testing.T, needle string, text []byte) {
		if needle == "" {
			return // not searched for
		}
		if got, want := newLiteral(needle).in(text), bytes.Contains(text, []byte(needle)); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// BenchmarkSearch looks for what only the last line holds, and BenchmarkLines reads all: both from memory, in segments of 4 MiB.
func BenchmarkSearch(b *testing.B) {
	m, k, size := largeLog(b)
	s, err := NewSearch(Query{Pattern: "needle"})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for _, err := range s.In(b.Context(), archive(m), k, LogOptions{}) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 1 {
			b.Fatalf("%d matches", n)
		}
	}
}

func BenchmarkLines(b *testing.B) {
	m, k, size := largeLog(b)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		for _, err := range archive(m).Lines(b.Context(), k, LogOptions{}) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

func largeLog(b testing.TB) (memory, Container, int64) {
	b.Helper()
	const segment, segments = 4 << 20, 8
	var whole []byte
	var ends []int
	for i := 0; len(ends) < segments; i++ {
		whole = criline.Append(whole, now.Add(time.Duration(i)), criline.Stdout, true, fmt.Appendf(nil, "compile example.com/pkg/internal/layer/%d: nothing new, and %d more", i%97, i*7919%10007))
		if len(whole) >= (len(ends)+1)*segment {
			ends = append(ends, len(whole))
		}
	}
	whole = criline.Append(whole, now, criline.Stdout, true, []byte("the needle"))
	ends[segments-1] = len(whole)
	m := memory{}
	m.putLog(b, step, now, whole, ends...)
	k, err := archive(m).Container(b.Context(), step)
	if err != nil {
		b.Fatal(err)
	}
	return m, k, int64(len(whole))
}

// TestSearchedAtOnce: what is cheap is looked for in MaxSearchLine at once, and what is not in so
// much less that it takes no longer.
func TestSearchedAtOnce(t *testing.T) {
	const all = MaxSearchLine
	for _, c := range []struct {
		name        string
		query       Query
		least, most int // each instruction's number depends on the version of package regexp
	}{
		{"a text", Query{Pattern: "needle"}, all, all},
		{"a long text", Query{Pattern: strings.Repeat("x", maxPattern)}, all, all},
		{"a text in any case", Query{Pattern: "needle", IgnoreCase: true}, all, all},
		{"a long text in any case", Query{Pattern: strings.Repeat("x", 512), IgnoreCase: true},
			all / 9, all / 8},
		{"a small expression", Query{Pattern: "^(error|warning): .*$", Regexp: true}, all, all},
		{"nearly as many as are cheap", Query{Pattern: "x{50}", Regexp: true}, all, all},
		{"a few more than are cheap", Query{Pattern: "x{70}", Regexp: true}, all * 3 / 4, all - 1},
		{"twice as many", Query{Pattern: "x{128}", Regexp: true}, all * 2 / 5, all / 2},
		{"as many as are allowed", Query{Pattern: "x{900}y{900}z{90}", Regexp: true},
			all / 32, all / 28},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := NewSearch(c.query)
			if err != nil {
				t.Fatal(err)
			}
			if s.atOnce < c.least || s.atOnce > c.most {
				t.Errorf("it is looked for in %d bytes at once, want %d to %d", s.atOnce, c.least,
					c.most)
			}
		})
	}
}

// largeExpression is one that is looked for in less than MaxText at once.
const largeExpression = "x{900}|y{900}"

// TestSearchInPieces: in a line that does not end, a match is found in each of the pieces that are
// searched at once, and what is behind the line's end is another line.
func TestSearchInPieces(t *testing.T) {
	const needle, both = "a needle", "a needle|the end.*another line"
	for _, c := range []struct {
		name   string
		query  Query
		pieces int
		want   []string // the line, and of the long one which piece
	}{
		{"a text, in all of the line", Query{Pattern: needle}, 12,
			[]string{"2 000", "3 999"}},
		{"an expression, in all of the line", Query{Pattern: both, Regexp: true}, 12,
			[]string{"2 000", "3 999"}},
		{"a text, in a longer line", Query{Pattern: needle}, 40,
			[]string{"2 000", "2 016", "2 032", "3 999"}},
		{"an expression, in a longer line", Query{Pattern: both, Regexp: true}, 40,
			[]string{"2 000", "2 016", "2 032", "3 999"}},
		{"a large expression", Query{Pattern: both + "|" + largeExpression, Regexp: true}, 4,
			[]string{"2 000", "2 001", "2 002", "2 003", "3 999"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			whole := criline.Append(nil, now, criline.Stdout, true, []byte("before"))
			for i := range c.pieces {
				text := bytes.Repeat([]byte{'-'}, criline.MaxText)
				copy(text[len(text)/2:], fmt.Sprintf("a needle %03d", i))
				whole = criline.Append(whole, now, criline.Stdout, false, text)
			}
			whole = criline.Append(whole, now, criline.Stdout, true, []byte("the end"))
			whole = criline.Append(whole, now, criline.Stdout, true,
				[]byte("another line with a needle 999"))
			m := memory{}
			m.putLog(t, step, now, whole, len(whole))
			s, err := NewSearch(c.query)
			if err != nil {
				t.Fatal(err)
			}
			k := onlyContainer(t, m)
			var got []string
			for match, err := range s.In(t.Context(), archive(m), k, LogOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				text := match.Text[match.Start:]
				if len(text) < len("a needle 000") || !bytes.HasPrefix(text, []byte(needle)) {
					t.Fatalf("found %.100q", text)
				}
				got = append(got, fmt.Sprintf("%d %s", match.Number, text[9:12]))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestSearchSeesAll: whatever the pieces of lines are, all of each line is searched, once, no other
// with it, and no more at once than the query allows and the piece that went beyond.
func TestSearchSeesAll(t *testing.T) {
	for _, c := range []struct {
		name  string
		query Query
	}{
		{"a small expression", Query{Pattern: "needle|pin", Regexp: true}},
		{"a large expression", Query{Pattern: largeExpression, Regexp: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(1, 2))
			streams := []criline.Stream{criline.Stdout, criline.Stderr}
			line := []byte{'a', 'A'} // of each stream the letter that the line is made of
			printed, seen := map[byte]int{}, map[byte]int{}
			var whole []byte
			for range 300 {
				i := random.IntN(len(streams))
				size, full := 1+random.IntN(criline.MaxText), random.IntN(20) == 0
				if random.IntN(3) == 0 {
					size = 1 + random.IntN(100)
				}
				whole = criline.Append(whole, now, streams[i], full,
					bytes.Repeat(line[i:i+1], size))
				printed[line[i]] += size
				if full {
					line[i]++
				}
			}
			m := memory{}
			m.putLog(t, step, now, whole, len(whole))
			s, err := NewSearch(c.query)
			if err != nil {
				t.Fatal(err)
			}
			s.find = func(text []byte) []int {
				if of := bytes.Trim(text, string(text[:1])); len(of) > 0 {
					t.Errorf("beside %.1q, %.100q is searched", text, of)
				}
				if len(text) >= s.atOnce+criline.MaxText {
					t.Errorf("%d bytes are searched at once", len(text))
				}
				seen[text[0]] += len(text)
				return nil
			}
			k := onlyContainer(t, m)
			for match, err := range s.In(t.Context(), archive(m), k, LogOptions{}) {
				t.Errorf("found %d, error %v", match.Number, err)
			}
			if !maps.Equal(seen, printed) {
				t.Errorf("searched %v, printed %v", seen, printed)
			}
		})
	}
}
