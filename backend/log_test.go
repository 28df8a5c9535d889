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
