package backend

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// summed is what Container.count finds out.
type summed struct {
	Bytes, Lines, Archive int64
	Estimated             bool
	Starts                [][2]int64 // lines and printed bytes
}

func summedOf(c *Container) summed {
	n := summed{Bytes: c.Bytes, Lines: c.Lines, Archive: c.Archive, Estimated: c.Estimated}
	for _, s := range c.starts {
		n.Starts = append(n.Starts, [2]int64{s.lines, s.printed})
	}
	return n
}

// slowCount is Container.count as it would be if it did not matter how long it takes: for each
// segment it goes from one to the next of those that meet, and looks at all of them.
func slowCount(c Container) summed {
	all := slices.Concat(c.Segments, c.covered)
	// distance is how far behind an offset another is, on a way along segments.
	distance := func(from, to int64) (position, bool) {
		reached := map[int64]position{from: {}}
		for next := []int64{from}; len(next) > 0; next = next[1:] {
			reach := func(offset, lines, printed int64) {
				if _, ok := reached[offset]; !ok {
					at := reached[next[0]]
					reached[offset] = position{at.lines + lines, at.printed + printed}
					next = append(next, offset)
				}
			}
			for _, s := range all {
				switch next[0] {
				case s.Offset:
					reach(s.End(), s.Lines, s.Printed)
				case s.End():
					reach(s.Offset, -s.Lines, -s.Printed)
				}
			}
		}
		d, ok := reached[to]
		return d, ok
	}
	var n summed
	var starts []position
	var offsets []int64 // of starts that count
	end := int64(0)
	for i, s := range c.Segments {
		start := position{n.Lines, n.Bytes}
		if s.Offset < end {
			found, ok := position{}, false
			for j := len(offsets) - 1; j >= 0 && !ok; j-- {
				found, ok = distance(offsets[j], s.Offset)
				found = found.behind(starts[len(starts)-len(offsets)+j])
			}
			if !ok { // the numbers say so, if they are those of whole lines that fill what is between
				by := c.Segments[i-1]
				lines, printed := s.Line-by.Line, s.PrintedOffset-by.PrintedOffset
				ok = lines >= 0 && lines <= by.Lines && printed >= 0 && printed <= by.Printed &&
					s.Offset-by.Offset == printed+lines*int64(criline.PrefixLen)
				found = position{lines, printed}.behind(starts[i-1])
			}
			if ok && found.lines <= n.Lines && found.lines+s.Lines >= n.Lines &&
				found.printed <= n.Bytes && found.printed+s.Printed >= n.Bytes {
				start = found
			} else {
				n.Estimated, offsets = true, nil
			}
		}
		starts, offsets = append(starts, start), append(offsets, s.Offset)
		n.Lines, n.Bytes = start.lines+s.Lines, start.printed+s.Printed
		n.Archive += s.End() - max(end, s.Offset)
		end = s.End()
	}
	for _, s := range starts {
		n.Starts = append(n.Starts, [2]int64{s.lines, s.printed})
	}
	return n
}

// randomSegments cuts a log at random into segments that overlap, and numbers some of them anew, or
// at random, as a tenant may.
func randomSegments(random *rand.Rand) (segments []layout.Segment) {
	whole, model, ends := mixed(random.Uint64(), random.IntN(2) == 0)
	at := func(line int) (offset, printed, lines int64) { // before it
		if line == 0 {
			return 0, 0, 0
		}
		before := model[line-1]
		return int64(ends[line-1]), before.Offset + before.Printed(),
			int64(bytes.Count(whole[:ends[line-1]], []byte(" F ")))
	}
	anew, forged := random.IntN(3) == 0, random.IntN(6) == 0
	base := 0 // numbers count from this line
	for end := 0; end < len(ends); {
		from := end - random.IntN(min(end, 6)+1)
		if random.IntN(8) == 0 { // a hole
			from = end
			end++
		}
		end = min(len(ends), max(from, end)+1+random.IntN(5))
		if anew && random.IntN(8) == 0 {
			base = from
		}
		offset, printed, lines := at(from)
		last, behind, linesBehind := at(end)
		_, printedBase, linesBase := at(min(base, from))
		s := layout.Segment{
			Offset: offset, Length: last - offset, Printed: behind - printed,
			Lines: linesBehind - lines, PrintedOffset: printed - printedBase,
			Line: lines - linesBase, First: now, Last: now,
		}
		if forged && random.IntN(4) == 0 {
			s.PrintedOffset, s.Line = random.Int64N(1+behind), random.Int64N(1+linesBehind)
		}
		segments = append(segments, s)
	}
	return segments
}

// TestCountSlowly compares what count finds with what is found slowly.
func TestCountSlowly(t *testing.T) {
	estimated, overlap, covered := 0, 0, 0
	for seed := range uint64(2000) {
		var c Container
		c.Segments, c.covered, _ = contiguous(randomSegments(rand.New(rand.NewPCG(seed, 3))))
		want := slowCount(c)
		for range 2 { // a log that is followed is summed again and again
			c.count()
			if diff := cmp.Diff(want, summedOf(&c)); diff != "" {
				t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
			}
		}
		if want.Estimated {
			estimated++
		}
		if len(c.covered) > 0 {
			covered++
		}
		for i, s := range c.Segments[1:] {
			if s.Offset < c.Segments[i].End() {
				overlap++
				break
			}
		}
	}
	if estimated < 100 || covered < 100 || overlap-estimated < 100 {
		t.Errorf("of 2000 logs %d overlap, %d are estimated, of %d some segments are covered: "+
			"the test says little", overlap, estimated, covered)
	}
}

// BenchmarkCount counts segments that overlap. What one costs does not grow with their number.
func BenchmarkCount(b *testing.B) {
	for _, c := range []struct {
		name    string
		segment func(i, n int64) layout.Segment
	}{
		{"none meets another", func(i, _ int64) layout.Segment {
			return layout.Segment{Offset: 2 * i, Length: 1001, PrintedOffset: 1, Printed: 1}
		}},
		{"half of them have one", func(i, n int64) layout.Segment {
			if i < n/2 {
				return layout.Segment{Offset: 100 * i, Length: 50, PrintedOffset: i, Printed: 1}
			}
			return layout.Segment{Offset: 50*n + i, Length: 1000, Printed: 1}
		}},
	} {
		for _, n := range []int64{10_000, 20_000, 40_000} {
			b.Run(fmt.Sprintf("%s/%d", c.name, n), func(b *testing.B) {
				var all []layout.Segment
				for i := range n {
					all = append(all, c.segment(i, n))
				}
				var container Container
				container.Segments, container.covered, _ = contiguous(all)
				b.ReportAllocs()
				for b.Loop() {
					container.count()
				}
				each := float64(b.Elapsed().Nanoseconds()) / float64(b.N) / float64(n)
				b.ReportMetric(each, "ns/segment")
			})
		}
	}
}
