package backend

import (
	"bytes"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// TestTailOverlap reads the last lines of a log whose segments overlap.
func TestTailOverlap(t *testing.T) {
	whole := lines(40)
	for seed := range uint64(50) {
		m := overlapping(t, whole, seed)
		c := onlyContainer(t, m)
		for n := range 41 {
			if n == 0 {
				continue
			}
			want := whole[lineEnd(whole, 40-n):]
			if got := readAll(t, m, c, LogOptions{Tail: int64(n)}); !bytes.Equal(got, want) {
				t.Fatalf("seed %d, tail %d: %d lines", seed, n, bytes.Count(got, []byte("\n")))
			}
		}
	}
}

// TestTailOfPieces: the last line began in an earlier segment.
func TestTailOfPieces(t *testing.T) {
	whole := criline.Append(nil, now, criline.Stdout, true, []byte("x"))
	start := len(whole)
	whole = criline.Append(whole, now, criline.Stdout, false, []byte("aaa"))
	cut := len(whole)
	whole = criline.Append(whole, now, criline.Stdout, true, []byte("bbb"))
	for name, ends := range map[string][]int{"cut in the line": {cut, len(whole)}, "cut twice": {start, cut, len(whole)}, "one": {len(whole)}} {
		t.Run(name, func(t *testing.T) {
			m := memory{}
			m.putLog(t, step, now, whole, ends...)
			if got := readAll(t, m, onlyContainer(t, m), LogOptions{Tail: 1}); !bytes.Equal(got, whole[start:]) {
				t.Errorf("got %q", got)
			}
		})
	}
}

// TestGapCounts: a reader's gap counts printed bytes that are not there, and never more.
func TestGapCounts(t *testing.T) {
	whole := lines(9)
	third, sixth := lineEnd(whole, 3), lineEnd(whole, 6)
	middle, _ := segmentOf(t, whole, third, sixth)
	for name, damage := range map[string]func(memory){
		"no object": func(m memory) { delete(m, step.SegmentKey(middle)) },
		"garbage":   func(m memory) { m[step.SegmentKey(middle)] = object{[]byte("garbage"), now} },
	} {
		t.Run(name, func(t *testing.T) {
			m := memory{}
			m.putLog(t, step, now, whole, third, sixth, len(whole))
			damage(m)
			for l, err := range archive(m).Lines(t.Context(), onlyContainer(t, m), LogOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				if l.Stream == criline.Markers {
					mk, _ := criline.ParseMarker(l.Text)
					if mk.Stdout != middle.Printed {
						t.Errorf("the gap has %d bytes, %d were printed", mk.Stdout, middle.Printed)
					}
				}
			}
		})
	}
}

// TestUnreadableSeal: one seal that is no JSON must not hide the rest of the run.
func TestUnreadableSeal(t *testing.T) {
	whole := lines(3)
	m := memory{}
	m.putLog(t, step, now, whole, len(whole))
	m.put(t, step.SealKey(), now, []byte("not JSON"))
	tree, err := archive(m).Tree(t.Context(), Target{Run: run})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(tree.TaskRuns[0].Pods[0].Containers[0].Status)
}

// TestSkippedAndYetThere: pod.json says not captured, and there is a whole log. It is verified, and not "empty: no-command".
func TestSkippedAndYetThere(t *testing.T) {
	whole := lines(9)
	m := memory{}
	m.put(t, pod.PodKey(), now, record.Pod{PodName: "p", Containers: []record.Container{{Name: "step-a", Kind: record.Step, Skipped: "no-command"}}})
	m.putLog(t, step, now, whole, len(whole))
	m.put(t, step.SealKey(), now, sealOf(whole))
	if c := onlyContainer(t, m); c.Status != Verified || c.Why != "" {
		t.Errorf("status %q (%s), want verified and no more", c.Status, c.Why)
	}
}

// TestCorruptButCovered: bytes that another segment holds too are not missing, whichever of the two is corrupt, and nothing of the corrupt one is shown.
func TestCorruptButCovered(t *testing.T) {
	whole := lines(40)
	at := func(n int) int { return lineEnd(whole, n) }
	for _, c := range []struct {
		name  string
		spans [][2]int
		bad   int // the corrupt one of them
		gaps  int
		lost  [2]int // lines
	}{
		{"a longer one, covered by two", [][2]int{{0, at(10)}, {at(10), at(40)}, {at(10), at(30)}, {at(30), at(40)}}, 1, 0, [2]int{}},
		{"covered by one from before it", [][2]int{{0, at(40)}, {at(10), at(30)}}, 1, 0, [2]int{}},
		{"the first, covered by what overlaps", [][2]int{{0, at(40)}, {0, at(20)}, {at(15), at(40)}}, 0, 0, [2]int{}},
		{"covered in its middle alone", [][2]int{{0, at(10)}, {at(10), at(40)}, {at(20), at(30)}}, 1, 2, [2]int{}},
		{"covered but for its end", [][2]int{{0, at(20)}, {at(10), at(40)}, {at(10), at(30)}}, 1, 1, [2]int{30, 40}},
		{"covered but for its beginning", [][2]int{{0, at(30)}, {at(20), at(40)}}, 0, 1, [2]int{0, 20}},
	} {
		for kind, spoil := range map[string]func([]byte) []byte{
			"garbage":     func([]byte) []byte { return []byte("garbage") },
			"cut off":     func(b []byte) []byte { return b[:len(b)-7] },
			"another log": func([]byte) []byte { return anotherLog(t, whole, c.spans[c.bad]) },
		} {
			t.Run(c.name+"/"+kind, func(t *testing.T) {
				m := memory{}
				for i, span := range c.spans {
					s, b := segmentOf(t, whole, span[0], span[1])
					if i == c.bad {
						b = spoil(b)
					}
					m.put(t, step.SegmentKey(s), now, b)
				}
				m.put(t, step.SealKey(), now, sealOf(whole))
				var got []byte
				gaps, lost := 0, int64(0)
				for l, err := range archive(m).Lines(t.Context(), onlyContainer(t, m), LogOptions{}) {
					if err != nil {
						t.Fatal(err)
					}
					if l.Stream == criline.Markers {
						mark, err := criline.ParseMarker(l.Text)
						if err != nil {
							t.Fatal(err)
						}
						gaps, lost = gaps+1, lost+mark.Stdout
						continue
					}
					got = criline.Append(got, l.Time, l.Stream, l.Full, l.Text)
				}
				if gaps != c.gaps {
					t.Errorf("%d gaps, want %d", gaps, c.gaps)
				}
				want := whole
				switch {
				case c.gaps == 1:
					want = append(bytes.Clone(whole[:at(c.lost[0])]), whole[at(c.lost[1]):]...)
				case c.gaps == 2:
					want = append(bytes.Clone(whole[:at(10)]), whole[at(20):at(30)]...)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%d lines, want %d:\n%s", bytes.Count(got, []byte("\n")), bytes.Count(want, []byte("\n")), got)
				}
				if printed := printedIn(t, whole) - printedIn(t, want); lost != printed {
					t.Errorf("the gaps count %d bytes, %d are missing", lost, printed)
				}
				for _, n := range []int64{1, 5, 25, 39} { // the last lines of what there is
					tail := readAll(t, m, onlyContainer(t, m), LogOptions{Tail: n})
					if c.gaps == 0 && !bytes.Equal(tail, whole[at(int(40-n)):]) {
						t.Errorf("tail %d has %d lines", n, bytes.Count(tail, []byte("\n")))
					}
				}
			})
		}
	}
}

// anotherLog is a frame whose checksum is right for its own bytes up to a flipped one at its end: lines of it can be decompressed before it is found to be corrupt.
func anotherLog(t *testing.T, whole []byte, span [2]int) []byte {
	t.Helper()
	other := bytes.ReplaceAll(whole[span[0]:span[1]], []byte("line"), []byte("LINE"))
	s, b := segmentOf(t, append(bytes.Clone(whole[:span[0]]), other...), span[0], span[1])
	if s.Length != int64(span[1]-span[0]) {
		t.Fatal("the other log has another length")
	}
	b[len(b)-1] ^= 1 // of the checksum
	return b
}

func printedIn(t *testing.T, whole []byte) (n int64) {
	t.Helper()
	for line := range bytes.Lines(whole) {
		l, err := criline.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		n += l.Printed()
	}
	return n
}
