package live

import (
	"bytes"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func line(at int, stream criline.Stream, full bool, text string) backend.Line {
	return backend.Line{Line: criline.Line{Time: noon.Add(time.Duration(at) * time.Millisecond), Stream: stream, Full: full, Text: []byte(text)}}
}

func each(lines []backend.Line) iter.Seq2[backend.Line, error] {
	return func(yield func(backend.Line, error) bool) {
		for _, l := range lines {
			l.Text = bytes.Clone(l.Text)
			ok := yield(l, nil)
			for i := range l.Text { // it is valid until the next one only
				l.Text[i] = '!'
			}
			if !ok {
				return
			}
		}
	}
}

// rest is what the seam shows of the archive, one string for each stream.
func rest(t *testing.T, s *seam, archive []backend.Line) map[criline.Stream]string {
	t.Helper()
	got := map[criline.Stream]string{}
	for l, err := range s.rest(each(archive)) {
		if err != nil {
			t.Fatal(err)
		}
		got[l.Stream] += string(l.Text)
		if l.Full {
			got[l.Stream] += "\n"
		}
	}
	return got
}

func TestSeam(t *testing.T) {
	out, errs := criline.Stdout, criline.Stderr
	long := strings.Repeat("x", judged)
	for _, c := range []struct {
		name         string
		pod, archive []backend.Line
		want         map[criline.Stream]string
	}{
		{"nothing of the pod", nil, []backend.Line{line(0, out, true, "a"), line(1, out, true, "b")}, map[criline.Stream]string{out: "a\nb\n"}},
		{"all of it", []backend.Line{line(1, out, true, "a"), line(2, out, true, "b")}, []backend.Line{line(0, out, true, "a"), line(1, out, true, "b")}, map[criline.Stream]string{}},
		{"the end is missing", []backend.Line{line(1, out, true, "a")}, []backend.Line{line(0, out, true, "a"), line(1, out, true, "b")}, map[criline.Stream]string{out: "b\n"}},
		{"a line that came again", []backend.Line{line(1, out, true, "a")}, []backend.Line{line(0, out, true, "a"), line(1, out, true, "a")}, map[criline.Stream]string{out: "a\n"}},
		{"one stream overtook the other", []backend.Line{line(2, out, true, "late")}, []backend.Line{line(0, errs, true, "early"), line(1, out, true, "late")}, map[criline.Stream]string{errs: "early\n"}},
		{"pieces of a line in the archive", []backend.Line{line(2, out, true, "ab")}, []backend.Line{line(0, out, false, "a"), line(1, out, true, "b"), line(1, out, true, "c")}, map[criline.Stream]string{out: "c\n"}},
		{"pieces that another stream interrupts", []backend.Line{line(2, out, true, "oops"), line(3, out, true, "ab")},
			[]backend.Line{line(0, out, false, "a"), line(1, errs, true, "oops"), line(2, out, true, "b"), line(3, errs, true, "c")}, map[criline.Stream]string{errs: "c\n"}},
		{"no newline at the end", []backend.Line{line(1, out, true, "a"), line(2, out, false, "b")}, []backend.Line{line(0, out, true, "a"), line(1, out, false, "b")}, map[criline.Stream]string{}},
		{"no newline at the end of what was not shown", []backend.Line{line(1, out, true, "a")}, []backend.Line{line(0, out, true, "a"), line(1, out, false, "b")}, map[criline.Stream]string{out: "b"}},
		{"a long line broke off", []backend.Line{line(1, out, false, long), line(1, out, false, "yy")}, []backend.Line{line(0, out, false, long), line(0, out, false, "y"), line(0, out, true, "yz")}, map[criline.Stream]string{out: "z\n"}},
		{"a long line broke off at its end", []backend.Line{line(1, out, false, long)}, []backend.Line{line(0, out, false, long), line(0, out, true, "")}, map[criline.Stream]string{out: "\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &seam{}
			for l := range each(c.pod) {
				s.show(l)
			}
			s.stop()
			if diff := cmp.Diff(c.want, rest(t, s, c.archive)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// FuzzSeam breaks a pod's log off anywhere, with two streams that overtake each other, and lines that come again. What was shown and the rest are the whole log.
func FuzzSeam(f *testing.F) {
	f.Add(uint64(1), uint(40), uint(20), uint(3))
	f.Add(uint64(2), uint(400), uint(399), uint(2))
	f.Add(uint64(3), uint(300), uint(0), uint(1))
	f.Fuzz(func(t *testing.T, seed uint64, lines, cut, texts uint) {
		lines, texts = lines%1000+1, texts%10+1
		cut %= lines + 1
		rnd := rand.New(rand.NewPCG(seed, 0))
		var archive, pod []backend.Line
		last := map[criline.Stream]int{}
		for i := range int(lines) {
			stream := []criline.Stream{criline.Stdout, criline.Stderr}[rnd.IntN(2)]
			text := fmt.Sprint(stream, rnd.IntN(int(texts)))
			archive = append(archive, line(10*i, stream, true, text))
			// On the way for the time of up to 16 lines, but within a stream in order.
			last[stream] = max(last[stream]+1, 10*i+rnd.IntN(160))
			pod = append(pod, line(last[stream], stream, true, text))
		}
		slices.SortStableFunc(pod, func(a, b backend.Line) int { return a.Time.Compare(b.Time) })
		s := &seam{}
		got := map[criline.Stream]string{}
		for l := range each(pod[:cut]) {
			s.show(l)
			got[l.Stream] += string(l.Text) + "\n"
		}
		s.stop()
		for stream, text := range rest(t, s, archive) {
			got[stream] += text
		}
		want := map[criline.Stream]string{}
		for _, l := range archive {
			want[l.Stream] += string(l.Text) + "\n"
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("cut at %d of %d (-want +got):\n%s", cut, lines, diff)
		}
	})
}

// TestParseLogStops: who has seen enough of a log sees no more of it.
func TestParseLogStops(t *testing.T) {
	const at = "2026-11-23T12:00:00.000000000Z"
	n := 0
	for range parseLog(strings.NewReader(at + " a\n" + at + " b\n")) {
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d lines", n)
	}
}

func TestParseLog(t *testing.T) {
	const at = "2026-11-23T12:00:00.000000000Z"
	long := strings.Repeat("y", 3*judged)
	for _, c := range []struct {
		name, log string
		want      []string // "." stands for a line's end
		err       error
	}{
		{"empty", "", nil, nil},
		{"lines", at + " a\n" + at + " \n" + at + " b c\n", []string{"a.", ".", "b c."}, nil},
		{"other zone", "2026-11-23T13:00:00.000000000+01:00 a\n", []string{"a."}, nil},
		{"no newline at the end", at + " a\n" + at + " b", []string{"a.", "b"}, nil},
		{"long", at + " " + long + "\n" + at + " z\n", []string{long + ".", "z."}, nil},
		{"the kubelet's excuse", "unable to retrieve container logs for containerd://0123", nil, errNoLog},
		{"no space", at, nil, errNoLog},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			var failed error
			more := false
			for l, err := range parseLog(strings.NewReader(c.log)) {
				if err != nil {
					failed = err
					break
				}
				if !l.Time.Equal(noon) {
					t.Errorf("time %s", l.Time)
				}
				text := string(l.Text)
				if l.Full {
					text += "."
				}
				if more {
					got[len(got)-1] += text
				} else {
					got = append(got, text)
				}
				more = !l.Full
			}
			if diff := cmp.Diff(c.want, got); diff != "" || failed != c.err {
				t.Errorf("error %v, want %v; lines (-want +got):\n%s", failed, c.err, diff)
			}
		})
	}
}
