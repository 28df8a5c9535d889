package backend

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// noLines are so many lines that are none.
func noLines(n int) string { return strings.Repeat("x\n", n) }

// oneLine is a line of the archive.
func oneLine(text string) string {
	return string(criline.Append(nil, now, criline.Stdout, true, []byte(text)))
}

// putForged stores segments of lines of which some are none, as nobody writes them but a tenant.
// The names count what can be read, and a byte of each line that is none.
func (m memory) putForged(t testing.TB, c layout.Container, bodies ...string) (whole []byte) {
	t.Helper()
	w, err := segment.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	var before criline.Tally
	for _, body := range bodies {
		tally := criline.Tally{First: now, Last: now, Bytes: int64(len(body))}
		for line := range strings.Lines(body) {
			if l, err := criline.Parse([]byte(strings.TrimSuffix(line, "\n"))); err == nil {
				tally.Stdout += l.Printed()
				tally.Lines++
			} else {
				tally.Stdout++
			}
		}
		w.Begin(before.Bytes, before.Printed(), before.Lines)
		if err := w.Append([]byte(body), tally); err != nil {
			t.Fatal(err)
		}
		s, b, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		m.put(t, c.SegmentKey(s), now, bytes.Clone(b))
		before.Bytes += tally.Bytes
		before.Stdout += tally.Stdout
		before.Lines += tally.Lines
		whole = append(whole, body...)
	}
	return whole
}

// told puts gaps that stand one behind another into one text.
type told struct {
	texts []string
	gaps  int
}

func (s *told) gap() { s.gaps++ }

func (s *told) text(text string) {
	if s.gaps > 0 {
		s.texts = append(s.texts, fmt.Sprintf("%d gaps", s.gaps))
		s.gaps = 0
	}
	if text != "" {
		s.texts = append(s.texts, text)
	}
}

// TestMalformedLines: of a segment with a few lines that are none the others are shown. One with
// more than mostMalformed is taken for missing from there on, and reading goes on behind it.
func TestMalformedLines(t *testing.T) {
	first, last := oneLine("first"), oneLine("second")+oneLine("last")
	alternate := []string{"1 first"}
	for i := range mostMalformed {
		alternate = append(alternate, fmt.Sprintf("%d ", i+2), "1 gaps")
	}
	alternate[len(alternate)-1] = "2 gaps" // its own, and that of the rest
	for _, c := range []struct {
		name   string
		bodies []string
		want   []string // a number before a text is that of its line
	}{
		{"a few among others", []string{
			first, oneLine("a") + noLines(1) + oneLine("b") + noLines(2) + oneLine("c"), last,
		}, []string{"1 first", "2 a", "1 gaps", "3 b", "2 gaps", "4 c", "5 second", "6 last"}},
		{"as many as are told of", []string{
			first, oneLine("a") + noLines(mostMalformed) + oneLine("b"), last,
		}, []string{"1 first", "2 a", "1000 gaps", "3 b", "4 second", "5 last"}},
		{"one more", []string{
			first, oneLine("a") + noLines(mostMalformed+1) + oneLine("b"), last,
		}, []string{"1 first", "2 a", "1001 gaps", "4 second", "5 last"}},
		{"more than are read at once", []string{
			first, oneLine("a") + noLines(blockBytes) + oneLine("b"), last,
		}, []string{"1 first", "2 a", "1001 gaps", "4 second", "5 last"}},
		{"each behind one that is shown", []string{
			first,
			strings.Repeat(oneLine("")+noLines(1), mostMalformed) + noLines(1) + oneLine("b"),
		}, alternate},
		{"at the log's end", []string{first, oneLine("a") + noLines(2*mostMalformed)},
			[]string{"1 first", "2 a", "1001 gaps"}},
		{"many, but in two segments", []string{
			first, noLines(600), oneLine("a") + noLines(600) + oneLine("b"), last,
		}, []string{"1 first", "600 gaps", "2 a", "600 gaps", "3 b", "4 second", "5 last"}},
		{"too many in each of two segments", []string{
			first, noLines(1500), oneLine("a") + noLines(1500) + oneLine("b"), last,
		}, []string{"1 first", "1001 gaps", "2 a", "1001 gaps", "4 second", "5 last"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			whole := m.putForged(t, step, c.bodies...)
			m.put(t, step.SealKey(), now, sealOf(whole))
			container := onlyContainer(t, m)
			var got told
			why := "" // of the last gap
			for l, err := range archive(m).Lines(t.Context(), container, LogOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				if l.Stream == criline.Markers {
					got.gap()
					marker, err := criline.ParseMarker(l.Text)
					if err != nil || marker.Reason != ReasonMissing || marker.Stdout < 0 {
						t.Errorf("a gap is %q: %v", l.Text, err)
					}
					why = marker.Detail
					continue
				}
				got.text(fmt.Sprintf("%d %s", l.Number, l.Text))
			}
			got.text("")
			if !slices.Equal(got.texts, c.want) {
				t.Errorf("got %.300q, want %.300q", got.texts, c.want)
			}
			if slices.Contains(c.want, "1001 gaps") && why != errMalformed.Error() {
				t.Errorf("the last gap says %q", why)
			}
		})
	}
}

// TestSearchMalformedLines: a search tells of a segment that is taken for missing, and finds what
// is before and behind it. What is not shown, it does not find.
func TestSearchMalformedLines(t *testing.T) {
	m := memory{}
	whole := m.putForged(t, step, oneLine("needle one"),
		oneLine("needle two")+noLines(2*blockBytes)+oneLine("needle three"),
		oneLine("hay")+oneLine("needle four"))
	m.put(t, step.SealKey(), now, sealOf(whole))
	want := []string{"1 needle one", "2 needle two", "1001 gaps", "5 needle four"}
	for _, c := range []struct {
		name  string
		query Query
	}{
		{"a text", Query{Pattern: "needle"}},
		{"a regular expression", Query{Pattern: "ne+dle", Regexp: true}},
		{"with context", Query{Pattern: "needle", After: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := NewSearch(c.query)
			if err != nil {
				t.Fatal(err)
			}
			var got told
			found := s.In(t.Context(), archive(m), onlyContainer(t, m), LogOptions{})
			for match, err := range found {
				var missing *MissingError
				switch {
				case errors.As(err, &missing):
					got.gap()
				case err != nil:
					t.Fatal(err)
				default:
					got.text(fmt.Sprintf("%d %s", match.Number, match.Text))
				}
			}
			got.text("")
			if !slices.Equal(got.texts, want) {
				t.Errorf("got %q, want %q", got.texts, want)
			}
		})
	}
}

// TestContentOfMalformedLines: of a log that is damaged anyway, the file has all that Lines shows.
// Of one that looks whole, reading it fails.
func TestContentOfMalformedLines(t *testing.T) {
	for _, c := range []struct {
		name  string
		extra int64 // archive bytes that the seal counts, and that are not there
		want  string
		err   error
	}{
		{"damaged", 1, "first\na\nb\n", nil},
		{"whole by its names", 0, "first\na\n", errChanged},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			whole := m.putForged(t, step, oneLine("first"),
				oneLine("a")+noLines(1)+oneLine("b")+noLines(2*mostMalformed)+oneLine("c"))
			seal := sealOf(whole)
			seal.Bytes += c.extra
			m.put(t, step.SealKey(), now, seal)
			content, err := archive(m).Content(t.Context(), onlyContainer(t, m))
			if err != nil {
				t.Fatal(err)
			}
			defer content.Close()
			got, err := io.ReadAll(content)
			if string(got) != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, c.want, c.err)
			}
		})
	}
}
