package sequence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

var stream = Stream{Seed: 7}

// records are the records from one to another, the last excluded.
func records(from, to int64) []byte {
	var b []byte
	for n := from; n < to; n++ {
		b = stream.Append(b, n)
	}
	return b
}

func size(from, to int64) int64 { return int64(len(records(from, to))) }

func TestRecords(t *testing.T) {
	lengths := map[string]int{}
	for n := range int64(20_000) {
		line := stream.Append(nil, n)
		if got, ok := stream.Parse(line); !ok || got != n {
			t.Fatalf("record %d is read as %d, %v", n, got, ok)
		}
		if !bytes.Equal(line, stream.Append(nil, n)) {
			t.Fatalf("record %d is not always the same", n)
		}
		if bytes.Count(line, []byte("\n")) != 1 {
			t.Fatalf("record %d is not one line", n)
		}
		switch text := len(line) - headLen - 1; {
		case text == 0:
			lengths["empty"]++
		case text > criline.MaxText:
			lengths["longer than a line of the archive"]++
		case text >= 1000:
			lengths["long"]++
		default:
			lengths["short"]++
		}
	}
	for _, kind := range []string{"empty", "longer than a line of the archive", "long", "short"} {
		if lengths[kind] == 0 {
			t.Errorf("no record is %s: %v", kind, lengths)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := stream.Append(nil, 42)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if n, ok := stream.Parse(bad); ok {
			t.Errorf("with byte %d changed it is record %d", i, n)
		}
	}
	if n, ok := (Stream{Seed: 8}).Parse(good); ok {
		t.Errorf("in another stream it is record %d", n)
	}
	if n, ok := stream.Parse(good[:len(good)-1]); ok {
		t.Errorf("without its newline it is record %d", n)
	}
}

// part is something in a log: bytes, or a gap.
type part struct {
	printed []byte
	gap     *criline.Marker
}

func print(b ...[]byte) part { return part{printed: bytes.Join(b, nil)} }

func gap(lost int64) part {
	return part{gap: &criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: lost}}
}

func unknownGap() part {
	return part{gap: &criline.Marker{Kind: criline.Gap, Reason: criline.ReasonTruncated, Unknown: true}}
}

func TestChecker(t *testing.T) {
	all := size(0, 50)
	changed := bytes.Replace(records(20, 21), []byte{' '}, []byte{'_'}, 1)
	for name, tc := range map[string]struct {
		log     []part
		printed int64 // 0: all
		want    Report
	}{
		"whole":             {log: []part{print(records(0, 50))}, want: Report{Records: 50, Bytes: all}},
		"printed in halves": {log: []part{print(records(0, 50)[:1234]), print(records(0, 50)[1234:])}, want: Report{Records: 50, Bytes: all}},
		"empty":             {want: Report{End: all}},
		"the total is not known": {
			log: []part{print(records(0, 3))}, printed: -1,
			want: Report{Records: 3, Bytes: size(0, 3)},
		},
		"more than was printed": {
			log: []part{print(records(0, 50))}, printed: all - 7,
			want: Report{Records: 50, Bytes: all, Beyond: 7},
		},
		"records missing": {
			log:  []part{print(records(0, 10), records(12, 50))},
			want: Report{Records: 48, Bytes: all - size(10, 12), Missing: Finding{2, size(10, 12), []string{"records 10 to 11"}}},
		},
		"the first is missing": {
			log:  []part{print(records(1, 50))},
			want: Report{Records: 49, Bytes: all - size(0, 1), Missing: Finding{1, size(0, 1), []string{"records 0 to 0"}}},
		},
		"the end is missing": {
			log:  []part{print(records(0, 40))},
			want: Report{Records: 40, Bytes: size(0, 40), End: size(40, 50)},
		},
		"the end is missing within a record": {
			log:  []part{print(records(0, 40)[:size(0, 40)-5])},
			want: Report{Records: 39, Bytes: size(0, 40) - 5, End: size(40, 50) + 5},
		},
		"what was printed ends within a record": {
			log: []part{print(records(0, 40)[:size(0, 40)-5])}, printed: size(0, 40) - 5,
			want: Report{Records: 39, Bytes: size(0, 40) - 5},
		},
		"doubled": {
			log:  []part{print(records(0, 30), records(28, 50))},
			want: Report{Records: 50, Bytes: all, Doubled: Finding{2, size(28, 30), []string{"record 28, where 30 should be", "record 29, where 30 should be"}}},
		},
		"reordered": {
			log: []part{print(records(0, 10), records(11, 12), records(10, 11), records(12, 50))},
			want: Report{
				Records: 49, Bytes: all, Missing: Finding{First: []string{"records 10 to 10"}},
				Reordered: Finding{1, size(10, 11), []string{"record 10, where 12 should be"}},
			},
		},
		"changed": {
			log: []part{print(records(0, 20), changed, records(21, 50))},
			want: Report{
				Records: 49, Bytes: all - size(20, 21),
				Changed: Finding{1, size(20, 21), []string{"where record 20 should be: " + quote(changed)}},
			},
		},
		"changed at the end": {
			log: []part{print(records(0, 20), changed)}, printed: size(0, 21),
			want: Report{Records: 20, Bytes: size(0, 20), Changed: Finding{1, size(20, 21), []string{"where record 20 should be: " + quote(changed)}}},
		},
		"a foreign line": {
			log:  []part{print(records(0, 20), []byte("hello\n"), records(20, 50))},
			want: Report{Records: 50, Bytes: all, Changed: Finding{1, 6, []string{`where record 20 should be: "hello\n"`}}},
		},
		"another stream's record": {
			log: []part{print(records(0, 20), Stream{Seed: 1}.Append(nil, 20), records(20, 50))},
			want: Report{Records: 50, Bytes: all, Changed: Finding{
				1, int64(len(Stream{Seed: 1}.Append(nil, 20))), []string{"where record 20 should be: " + quote(Stream{Seed: 1}.Append(nil, 20))},
			}},
		},
		"a line is missing and the one before changed": {
			log: []part{print(records(0, 20), changed, records(22, 50))},
			want: Report{
				Records: 48, Bytes: all - size(20, 22), Missing: Finding{1, size(21, 22), []string{"records 21 to 21"}},
				Changed: Finding{1, size(20, 21), []string{"where record 20 should be: " + quote(changed)}},
			},
		},
		"a gap between records": {
			log:  []part{print(records(0, 10)), gap(size(10, 13)), print(records(13, 50))},
			want: Report{Records: 47, Bytes: all - size(10, 13), Gaps: 1, Declared: size(10, 13)},
		},
		"a gap within records": {
			log:  []part{print(records(0, 10), records(10, 11)[:5]), gap(size(10, 13) - 5 - 7), print(records(12, 13)[size(12, 13)-7:], records(13, 50))},
			want: Report{Records: 47, Bytes: all - size(10, 13) + 5 + 7, Gaps: 1, Declared: size(10, 13) - 5 - 7},
		},
		"a gap within one record": {
			log:  []part{print(records(0, 10), records(10, 11)[:5]), gap(3), print(records(10, 11)[8:], records(11, 50))},
			want: Report{Records: 49, Bytes: all - 3, Gaps: 1, Declared: 3},
		},
		"two gaps one after the other": {
			log:  []part{print(records(0, 10)), gap(5), gap(size(10, 13) - 5), print(records(13, 50))},
			want: Report{Records: 47, Bytes: all - size(10, 13), Gaps: 2, Declared: size(10, 13)},
		},
		"a gap at the end": {
			log:  []part{print(records(0, 10)), gap(size(10, 50))},
			want: Report{Records: 10, Bytes: size(0, 10), Gaps: 1, Declared: size(10, 50)},
		},
		"a gap at the beginning": {
			log:  []part{gap(size(0, 10)), print(records(10, 50))},
			want: Report{Records: 40, Bytes: size(10, 50), Gaps: 1, Declared: size(0, 10)},
		},
		"a gap that declares too little": {
			log:  []part{print(records(0, 10)), gap(size(10, 12)), print(records(13, 50))},
			want: Report{Records: 47, Bytes: all - size(10, 13), Gaps: 1, Declared: size(10, 12), Missing: Finding{1, size(12, 13), []string{"records 12 to 12"}}},
		},
		"a gap that declares too much": {
			log:  []part{print(records(0, 10)), gap(size(10, 13)), print(records(12, 50))},
			want: Report{Records: 47, Bytes: all - size(10, 13), Gaps: 1, Declared: size(10, 13), Undue: Finding{1, size(12, 13), []string{"record 12"}}},
		},
		"a gap that declares a part of what is there": {
			log:  []part{print(records(0, 10)), gap(5), print(records(10, 50))},
			want: Report{Records: 49, Bytes: all - 5, Gaps: 1, Declared: 5, Undue: Finding{1, 5, []string{"the beginning of record 10"}}},
		},
		"a gap of unknown length": {
			log:  []part{print(records(0, 10), records(10, 11)[:5]), unknownGap(), print(records(12, 13)[20:], records(13, 50))},
			want: Report{Records: 47, Bytes: all - size(10, 13) + 5, Gaps: 1, Unknown: 1, Declared: size(10, 13) - 5},
		},
		"a gap of unknown length at the end": {
			log:  []part{print(records(0, 10)), unknownGap()},
			want: Report{Records: 10, Bytes: size(0, 10), Gaps: 1, Unknown: 1, Declared: size(10, 50)},
		},
		"a marker of another kind": {
			log:  []part{print(records(0, 10)), {gap: &criline.Marker{Kind: "later", Stdout: 5}}, print(records(10, 50))},
			want: Report{Records: 50, Bytes: all},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := NewChecker(stream)
			for _, p := range tc.log {
				if p.gap != nil {
					c.Gap(*p.gap, p.gap.Stdout)
				} else if _, err := c.Write(p.printed); err != nil {
					t.Fatal(err)
				}
			}
			printed := tc.printed
			if printed == 0 {
				printed = all
			}
			got := c.Finish(printed)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s\n(-want +got)\n%s", got, diff)
			}
			if right := name == "whole" || name == "printed in halves"; right && !got.Whole() {
				t.Error("it is not whole")
			}
		})
	}
}

func quote(b []byte) string { return fmt.Sprintf("%.60q", b) }

func TestFindingsAreBounded(t *testing.T) {
	c := NewChecker(stream)
	for range 100 {
		_, _ = c.Write([]byte("no record\n"))
	}
	got := c.Finish(0)
	if got.Changed.Count != 100 || got.Changed.Bytes != 1000 || len(got.Changed.First) != maxShown {
		t.Errorf("%+v", got.Changed)
	}
}

func TestPrint(t *testing.T) {
	for name, tc := range map[string]struct {
		options     Options
		least, most time.Duration // it takes
		bytes       [2]int64      // at least, at most
		records     [2]int64
	}{
		"records, unlimited":    {Options{Records: 1000}, 0, 0, [2]int64{1, 1 << 40}, [2]int64{1000, 1000}},
		"bytes, unlimited":      {Options{Bytes: 100_000}, 0, 0, [2]int64{100_000, 300_000}, [2]int64{1, 1000}},
		"10 lines a second":     {Options{Rate: Rate{Lines: 10}, Duration: time.Minute}, time.Minute, time.Minute, [2]int64{600, 1 << 40}, [2]int64{600, 601}},
		"1 MB a second":         {Options{Rate: Rate{Bytes: 1e6}, Duration: 10 * time.Second}, 10 * time.Second, 10 * time.Second, [2]int64{9.9e6, 10.3e6}, [2]int64{1, 1 << 40}},
		"50 MB a second":        {Options{Rate: Rate{Bytes: 50e6}, Bytes: 20e6}, 350 * time.Millisecond, 450 * time.Millisecond, [2]int64{20e6, 20.3e6}, [2]int64{1, 1 << 40}},
		"a line a minute or so": {Options{Rate: Rate{Bytes: 2}, Records: 4}, time.Second, 10 * time.Minute, [2]int64{1, 1 << 40}, [2]int64{4, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewChecker(stream)
				counted := int64(0)
				tc.options.Count = func(total int64) error { counted = total; return nil }
				begin := time.Now()
				done, err := stream.Print(t.Context(), c, tc.options)
				took := time.Since(begin)
				if err != nil || took < tc.least || took > tc.most {
					t.Errorf("it took %v, %v", took, err)
				}
				if done.Bytes < tc.bytes[0] || done.Bytes > tc.bytes[1] || done.Records < tc.records[0] || done.Records > tc.records[1] || counted != done.Bytes {
					t.Errorf("printed %+v, counted %d", done, counted)
				}
				if report := c.Finish(done.Bytes); !report.Whole() || report.Records != done.Records {
					t.Error(report)
				}
			})
		})
	}
}

func TestPrintEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if done, err := stream.Print(ctx, io.Discard, Options{Rate: Rate{Lines: 10}}); err != nil || done.Records < 10 || done.Records > 11 {
			t.Errorf("%+v, %v", done, err)
		}
	})
	broken := errors.New("broken")
	if _, err := stream.Print(t.Context(), writer(func([]byte) (int, error) { return 3, broken }), Options{}); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func BenchmarkCheck(b *testing.B) {
	log := records(0, 10_000)
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		c := NewChecker(stream)
		_, _ = c.Write(log)
		if r := c.Finish(int64(len(log))); !r.Whole() {
			b.Fatal(r)
		}
	}
}
