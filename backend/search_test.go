package backend

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
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

func largeLog(b *testing.B) (memory, Container, int64) {
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
