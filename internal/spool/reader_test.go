package spool

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

var readTime = time.Date(2026, 11, 23, 4, 5, 6, 0, time.UTC)

// spoolLine is one stdout line.
func spoolLine(text string) string {
	return string(criline.Append(nil, readTime, criline.Stdout, true, []byte(text)))
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func openReader(t *testing.T, dir string) *Reader {
	t.Helper()
	r, err := OpenReader(dir, &Buffers{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// readAll reads everything behind a position, and checks on the way that only whole, valid lines come.
func readAll(t *testing.T, r *Reader, at Position, limit int, final bool) (string, []criline.Marker, Position) {
	t.Helper()
	var out strings.Builder
	var gaps []criline.Marker
	for {
		if _, err := r.Look(at); err != nil {
			t.Fatal(err)
		}
		got, tally, behind, err := r.Next(at, limit, final, readTime)
		if err != nil {
			t.Fatal(err)
		}
		var want criline.Tally
		for text := range bytes.Lines(got) {
			line, err := criline.Parse(bytes.TrimSuffix(text, []byte{'\n'}))
			if err != nil || text[len(text)-1] != '\n' {
				t.Fatalf("no whole line: %q: %v", text, err)
			}
			want.Add(line)
			if line.Stream != criline.Markers {
				out.Write(text)
			}
		}
		if tally.Bytes != want.Bytes || tally.Lines != want.Lines || tally.Printed() != want.Printed() || len(tally.Gaps) != len(want.Gaps) {
			t.Fatalf("tally %+v, want %+v", tally, want)
		}
		if max := limit + criline.MaxLen + 1024; len(got) > max {
			t.Fatalf("%d bytes at once, want at most %d", len(got), max)
		}
		gaps = append(gaps, want.Gaps...)
		if behind == at && len(got) == 0 {
			return out.String(), gaps, at
		}
		if behind.Base < at.Base {
			t.Fatalf("back from %+v to %+v", at, behind)
		}
		at = behind
	}
}

func TestReader(t *testing.T) {
	a, b, c := spoolLine("a"), spoolLine("b"), spoolLine("c")
	at := func(base int64) string { return LogName(base) }
	long := spoolLine(strings.Repeat("x", criline.MaxText))
	overlong := string(criline.AppendPrefix(nil, readTime, criline.Stdout, true)) + strings.Repeat("y", criline.MaxText+1) + "\n"
	torn := spoolLine("torn")[:criline.PrefixLen+2]
	piece := string(criline.Append(nil, readTime, criline.Stdout, false, []byte("to")))
	for name, tc := range map[string]struct {
		files map[string]string
		from  Position
		final bool
		want  string
		gaps  []criline.Marker // Detail is not compared
	}{
		"empty folder":                       {},
		"empty file":                         {files: map[string]string{at(0): ""}},
		"lines":                              {files: map[string]string{at(0): a + b}, want: a + b},
		"from an offset":                     {files: map[string]string{at(0): a + b}, from: Position{0, int64(len(a))}, want: b},
		"two files":                          {files: map[string]string{at(0): a, at(int64(len(a))): b + c}, want: a + b + c},
		"an empty file between":              {files: map[string]string{at(0): a, at(int64(len(a))): "", at(int64(len(a)) + 5): ""}, want: a, gaps: []criline.Marker{{Reason: criline.ReasonTruncated, Unknown: true}}},
		"the longest line":                   {files: map[string]string{at(0): long + a}, want: long + a},
		"a line that is too long":            {files: map[string]string{at(0): a + overlong + b}, want: a + b, gaps: []criline.Marker{{Reason: criline.ReasonMalformed, Stdout: int64(len(overlong))}}},
		"garbage between":                    {files: map[string]string{at(0): a + "garbage\n\n\x00\n" + b}, want: a + b, gaps: []criline.Marker{{Reason: criline.ReasonMalformed, Stdout: 11}}},
		"garbage at the end":                 {files: map[string]string{at(0): a + "x\n"}, want: a, gaps: []criline.Marker{{Reason: criline.ReasonMalformed, Stdout: 2}}},
		"a line of another stream":           {files: map[string]string{at(0): strings.Replace(a, "stdout", "stdxxx", 1)}, gaps: []criline.Marker{{Reason: criline.ReasonMalformed, Stdout: int64(len(a))}}},
		"torn, to be continued":              {files: map[string]string{at(0): a + torn}, want: a},
		"torn, at the end":                   {files: map[string]string{at(0): a + torn}, final: true, want: a + piece},
		"torn, before the next file":         {files: map[string]string{at(0): a + torn, at(int64(len(a + torn))): b}, want: a + piece + b},
		"torn within the prefix":             {files: map[string]string{at(0): a + torn[:10]}, final: true, want: a},
		"torn within a prefix in the middle": {files: map[string]string{at(0): a + torn[:10], at(int64(len(a)) + 10): b}, want: a + b, gaps: []criline.Marker{{Reason: criline.ReasonMalformed, Stdout: 10}}},
		"a base that jumps":                  {files: map[string]string{at(0): a, at(1000): b}, want: a + b, gaps: []criline.Marker{{Reason: criline.ReasonTruncated, Unknown: true}}},
		"the first base is missing":          {files: map[string]string{at(1000): b}, want: b, gaps: []criline.Marker{{Reason: criline.ReasonTruncated, Unknown: true}}},
		"the largest base":                   {files: map[string]string{at(0): a, at(math.MaxInt64): b}, want: a + b, gaps: []criline.Marker{{Reason: criline.ReasonTruncated, Unknown: true}}},
		"bases that overlap":                 {files: map[string]string{at(0): a + b, at(int64(len(a))): c}, want: a + b + c},
		"the position is behind the file":    {files: map[string]string{at(0): a}, from: Position{0, 500}, gaps: []criline.Marker{{Reason: criline.ReasonTruncated, Unknown: true}}},
		"the position's file is gone":        {files: map[string]string{at(1000): c}, from: Position{500, 10}, want: c, gaps: []criline.Marker{{Reason: criline.ReasonTruncated, Unknown: true}}},
		"the position's file is shipped":     {files: map[string]string{at(1000): c}, from: Position{500, 500}, want: c},
		"files before the position":          {files: map[string]string{at(0): a, at(1000): c}, from: Position{1000, 0}, want: c},
		"names that look like log files":     {files: map[string]string{at(0): a, "1.log": b, "-0000000000000000001.log": b, "00000000000000000001.log.gz": b, "99999999999999999999.log": b, ".log": b}, want: a},
		"a torn marker is not made a piece":  {files: map[string]string{at(0): string(criline.AppendPrefix(nil, readTime, criline.Markers, true)) + `{"kind"`}, final: true},
		"one long line without end":          {files: map[string]string{at(0): a + strings.Repeat("z", 3*readSize) + "\n" + b}, want: a + b, gaps: []criline.Marker{{Reason: criline.ReasonMalformed, Stdout: 3*int64(readSize) + 1}}},
		"one long line without end, to come": {files: map[string]string{at(0): strings.Repeat("z", criline.MaxLen)}, gaps: []criline.Marker{{Reason: criline.ReasonMalformed, Stdout: int64(criline.MaxLen)}}},
	} {
		for _, limit := range []int{1, 300, 1 << 20} {
			t.Run(fmt.Sprintf("%s/%d", name, limit), func(t *testing.T) {
				dir := t.TempDir()
				for file, content := range tc.files {
					put(t, dir, file, content)
				}
				got, gaps, _ := readAll(t, openReader(t, dir), tc.from, limit, tc.final)
				if got != tc.want {
					t.Errorf("%d bytes %.200q, want %d %.200q", len(got), got, len(tc.want), tc.want)
				}
				// However the reading is cut into calls, the sum of the gaps is the same.
				var sum, want criline.Marker
				add := func(to *criline.Marker, list []criline.Marker) {
					for _, m := range list {
						to.Kind, to.Reason, to.Unknown = criline.Gap, m.Reason, to.Unknown || m.Unknown
						to.Stdout += m.Stdout
						to.Stderr += m.Stderr
					}
				}
				add(&sum, gaps)
				add(&want, tc.gaps)
				if sum != want || len(gaps) < len(tc.gaps) {
					t.Errorf("gaps %+v, want %+v", gaps, tc.gaps)
				}
			})
		}
	}
}

// TestReaderFollows reads while the files change under it.
func TestReaderFollows(t *testing.T) {
	dir := t.TempDir()
	r := openReader(t, dir)
	name := filepath.Join(dir, LogName(0))
	var pos Position
	step := func(what, want string, gaps int) {
		t.Helper()
		got, g, behind := readAll(t, r, pos, 1000, false)
		if got != want || len(g) != gaps {
			t.Errorf("%s: %q and gaps %v, want %q and %d", what, got, g, want, gaps)
		}
		pos = behind
	}
	step("nothing yet", "", 0)
	put(t, dir, LogName(0), spoolLine("a")+spoolLine("b")[:40])
	step("a line and a part", spoolLine("a"), 0)
	put(t, dir, LogName(0), spoolLine("a")+spoolLine("b"))
	step("the rest of it", spoolLine("b"), 0)
	if err := os.Truncate(name, 10); err != nil {
		t.Fatal(err)
	}
	step("truncated", "", 1)
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("\n" + spoolLine("c")); err != nil {
		t.Fatal(err)
	}
	step("goes on behind the truncation", spoolLine("c"), 1) // the stray newline is no line
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	put(t, dir, LogName(pos.Base+pos.Offset), spoolLine("d"))
	step("deleted and begun anew", spoolLine("d"), 0)
	if err := r.Trim(pos); err != nil {
		t.Fatal(err)
	}
	if base, ok, err := r.First(); err != nil || !ok || base != pos.Base {
		t.Errorf("first file after Trim: %d %v %v, want %d", base, ok, err, pos.Base)
	}
}

// TestReaderFindsWhatALookMissed: a folder is not read at one moment. A look can miss a file that is made while it lasts, and see one that is made after that.
func TestReaderFindsWhatALookMissed(t *testing.T) {
	a, b, c := spoolLine("a"), spoolLine("b"), spoolLine("c")
	dir := t.TempDir()
	put(t, dir, LogName(0), a)
	put(t, dir, LogName(int64(len(a+b))), c)
	r := openReader(t, dir)
	if _, err := r.Look(Position{}); err != nil {
		t.Fatal(err)
	}
	put(t, dir, LogName(int64(len(a))), b)
	got, tally, _, err := r.Next(Position{}, 1<<20, false, readTime)
	if err != nil || string(got) != a+b+c || len(tally.Gaps) > 0 {
		t.Errorf("%q, gaps %v, %v", got, tally.Gaps, err)
	}
}

// TestReaderHostile: whatever a step puts in the place of a file is not opened, does not block, and costs no memory.
func TestReaderHostile(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(spoolLine("another tenant's")), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		plant func(path string) error
		gap   bool
	}{
		"symlink":          {func(p string) error { return os.Symlink(secret, p) }, true},
		"symlink to a log": {func(p string) error { return os.Symlink(LogName(0), p) }, true},
		"hard link":        {func(p string) error { return os.Link(secret, p) }, true},
		"FIFO":             {func(p string) error { return syscall.Mkfifo(p, 0o666) }, true},
		"directory":        {func(p string) error { return os.Mkdir(p, 0o755) }, true},
		"socket": {func(p string) error {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer syscall.Close(fd)
			return syscall.Bind(fd, &syscall.SockaddrUnix{Name: p})
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			// The test's own name makes TempDir too long for a socket's address.
			dir, err := os.MkdirTemp("", "spool")
			check(err)
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			a, b := spoolLine("a"), spoolLine("b")
			put(t, dir, LogName(0), a)
			check(tc.plant(filepath.Join(dir, LogName(int64(len(a))))))
			put(t, dir, LogName(1000), b)
			check(tc.plant(filepath.Join(dir, EndFile)))
			r := openReader(t, dir)
			got, gaps, pos := readAll(t, r, Position{}, 1<<20, true)
			if got != a+b || (len(gaps) == 1) != tc.gap {
				t.Errorf("%q, gaps %v", got, gaps)
			}
			if e, ok := r.End(); ok {
				t.Errorf("took %+v for the end", e)
			}
			check(r.Trim(pos))
			if left, err := os.ReadFile(secret); err != nil || string(left) != spoolLine("another tenant's") {
				t.Errorf("the link's target: %q, %v", left, err)
			}
		})
	}
	t.Run("the folder is a symlink", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "link")
		check(os.Symlink(t.TempDir(), link))
		if r, err := OpenReader(link, &Buffers{}); !errors.Is(err, syscall.ENOTDIR) && !errors.Is(err, syscall.ELOOP) {
			t.Errorf("%v, %v", r, err)
		}
	})
}

// heap is what is allocated in total by f.
func heap(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestReaderSparse(t *testing.T) {
	dir := t.TempDir()
	a, b := spoolLine("a"), spoolLine("b")
	put(t, dir, LogName(0), a)
	const size = 1 << 40
	if err := os.Truncate(filepath.Join(dir, LogName(0)), size); err != nil {
		t.Fatal(err)
	}
	put(t, dir, LogName(size), b)
	r := openReader(t, dir)
	var got string
	var gaps []criline.Marker
	used := heap(func() { got, gaps, _ = readAll(t, r, Position{}, 1<<20, true) })
	if got != a+b || len(gaps) != 1 || gaps[0].Stdout != size-int64(len(a)) {
		t.Errorf("%q, gaps %v", got, gaps)
	}
	if used > 8<<20 {
		t.Errorf("%d bytes allocated", used)
	}
}

func TestReaderManyNames(t *testing.T) {
	dir := t.TempDir()
	for i := range 10_000 {
		put(t, dir, fmt.Sprintf("junk-%05d-%s", i, strings.Repeat("n", 200)), "")
	}
	put(t, dir, LogName(0), spoolLine("a"))
	put(t, dir, TermFile, "")
	put(t, dir, EndFile, "{}")
	r := openReader(t, dir)
	status, err := r.Look(Position{})
	if want := (Status{Available: int64(len(spoolLine("a"))), Started: true, Ended: true, Term: true}); err != nil || status != want {
		t.Errorf("%+v, %v, want %+v", status, err, want)
	}
	if got, gaps, _ := readAll(t, r, Position{}, 1000, false); got != spoolLine("a") || gaps != nil {
		t.Errorf("%q %v", got, gaps)
	}
}

// TestReaderManyLogFiles: a step can make a hundred thousand log files of a line or none. To read the folder anew for each of them would take hours.
func TestReaderManyLogFiles(t *testing.T) {
	const files = 3000
	for name, content := range map[string]string{"empty": "", "a line each": spoolLine("a")} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for i := range int64(files) {
				put(t, dir, LogName(i*100), content)
			}
			put(t, dir, LogName(files*100), spoolLine("the last"))
			r := openReader(t, dir)
			var got string
			used := heap(func() { got, _, _ = readAll(t, r, Position{}, 1<<20, false) })
			if want := strings.Repeat(content, files) + spoolLine("the last"); got != want {
				t.Errorf("%d bytes, want %d", len(got), len(want))
			}
			// A look costs some 100 bytes for each name.
			if used > 16<<20 {
				t.Errorf("%d bytes allocated", used)
			}
		})
	}
	t.Run("a call comes back", func(t *testing.T) {
		dir := t.TempDir()
		for i := range int64(files) {
			put(t, dir, LogName(i*100), "")
		}
		r := openReader(t, dir)
		if _, err := r.Look(Position{}); err != nil {
			t.Fatal(err)
		}
		_, _, behind, err := r.Next(Position{}, 1<<20, true, readTime)
		if err != nil || behind.Base == 0 || behind.Base > (maxAhead+1)*100 {
			t.Errorf("one call went to %+v, %v", behind, err)
		}
	})
}

// TestReaderAllocates nothing for a line: only a call's markers and the like.
func TestReaderAllocates(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, LogName(0), strings.Repeat(spoolLine("a line of some length"), 10_000))
	r := openReader(t, dir)
	read := func() {
		var at Position
		if _, err := r.Look(at); err != nil {
			t.Fatal(err)
		}
		for {
			got, _, behind, err := r.Next(at, 128<<10, false, readTime)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == 0 {
				return
			}
			at = behind
		}
	}
	if n := testing.AllocsPerRun(3, read); n > 100 {
		t.Errorf("%v allocations for 10,000 lines", n)
	}
}

func TestPositionSince(t *testing.T) {
	for name, c := range map[string]struct {
		p, before Position
		want      int64
	}{
		"in one file":            {Position{5, 70}, Position{5, 30}, 40},
		"in the next":            {Position{105, 7}, Position{5, 30}, 77},
		"nowhere":                {Position{}, Position{}, 0},
		"in a shortened file":    {Position{5, 10}, Position{5, 30}, 0},
		"in the last there is":   {Position{math.MaxInt64, 0}, Position{5, 30}, math.MaxInt64 - 35},
		"behind all that counts": {Position{math.MaxInt64, 70}, Position{5, 30}, math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.p.Since(c.before); got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
		})
	}
}

// FuzzReader: any bytes in two files give whole lines and markers, which account for every byte that may have been printed, and the same ones however the reading is cut into calls.
func FuzzReader(f *testing.F) {
	f.Add([]byte(spoolLine("a")+"x\n"+spoolLine("b")), []byte(spoolLine("c")), uint16(10), true)
	f.Add([]byte(spoolLine("torn")[:42]), []byte("\n\n"), uint16(1), false)
	f.Add([]byte{}, []byte{}, uint16(1000), true)
	f.Add(bytes.Repeat([]byte{0}, readSize+5), []byte(spoolLine("d")), uint16(1), true)
	f.Add([]byte("0"), []byte("0000-01-01T00"), uint16(10), true)
	f.Add(bytes.Repeat([]byte{'\n'}, 300), []byte("\n\xea\x17\xabdF"), uint16(1), true)
	f.Fuzz(func(t *testing.T, first, second []byte, limit uint16, final bool) {
		dir := t.TempDir()
		put(t, dir, LogName(0), string(first))
		put(t, dir, LogName(int64(len(first))), string(second))
		r := openReader(t, dir)
		got, gaps, end := readAll(t, r, Position{}, 1+int(limit), final)
		if want := (Position{int64(len(first)), int64(len(second))}); final && end != want && len(first) > 0 {
			t.Fatalf("ended at %+v, want %+v", end, want)
		}
		var lost int64
		for _, g := range gaps {
			if g.Reason == criline.ReasonMalformed {
				lost += g.Stdout
			}
		}
		again, _, _ := readAll(t, r, Position{}, 1<<20, final)
		if got != again {
			t.Fatalf("%q, at once %q", got, again)
		}
		total := int64(len(first) + len(second))
		// A prefix that was cut off at the very end holds nothing that was printed.
		if torn := len(second) - bytes.LastIndexByte(second, '\n') - 1; torn < criline.PrefixLen {
			total -= int64(torn)
		}
		if final && (int64(len(got))+lost < total || int64(len(got)) > 2+total) && len(first) > 0 && !bytes.Contains(append(first, second...), []byte(" marker ")) {
			t.Fatalf("%d bytes of lines and %d lost, of %d", len(got), lost, total)
		}
	})
}

// A step can fill its spool with gigabytes that are no lines. Next comes back now and then, so that its caller can look at the time and at the other logs.
func TestReaderComesBackFromGarbage(t *testing.T) {
	for name, content := range map[string][]byte{
		"no newline":  bytes.Repeat([]byte{'x'}, 3*mostSkipped),
		"short lines": bytes.Repeat([]byte(strings.Repeat("x", 63)+"\n"), 3*mostSkipped/64),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, LogName(0)), content, 0o644); err != nil {
				t.Fatal(err)
			}
			r, err := OpenReader(dir, &Buffers{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var at Position
			calls, lost := 0, int64(0)
			for at.Offset < int64(len(content)) {
				if _, err := r.Look(at); err != nil {
					t.Fatal(err)
				}
				_, tally, behind, err := r.Next(at, 1<<20, true, time.Now())
				if err != nil {
					t.Fatal(err)
				}
				if passed := behind.Offset - at.Offset; passed == 0 || passed > int64(mostSkipped+2*readSize) {
					t.Fatalf("passed over %d bytes at once", passed)
				}
				for _, gap := range tally.Gaps {
					lost += gap.Stdout
				}
				at = behind
				calls++
			}
			if calls < 3 || lost != int64(len(content)) {
				t.Errorf("%d calls, %d bytes marked of %d", calls, lost, len(content))
			}
		})
	}
}

// BenchmarkNext reads a spool of 8 MiB as the shipper does: lines of many times, as they come from many reads, and such that all have one.
func BenchmarkNext(b *testing.B) {
	for _, c := range []struct {
		name string
		run  int // lines of one time
	}{{"each line at its own time", 1}, {"100 lines at a time", 100}} {
		b.Run(c.name, func(b *testing.B) {
			dir := b.TempDir()
			var whole []byte
			text := bytes.Repeat([]byte("x"), 100)
			for i := 0; len(whole) < 8<<20; i++ {
				whole = criline.Append(whole, readTime.Add(time.Duration(i/c.run)), criline.Stdout, true, text)
			}
			if err := os.WriteFile(filepath.Join(dir, LogName(0)), whole, 0o600); err != nil {
				b.Fatal(err)
			}
			r, err := OpenReader(dir, &Buffers{})
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			b.SetBytes(int64(len(whole)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Look(Position{}); err != nil {
					b.Fatal(err)
				}
				n := 0
				for at := (Position{}); n < len(whole); {
					lines, _, behind, err := r.Next(at, 128<<10, false, readTime)
					if err != nil || len(lines) == 0 {
						b.Fatalf("%d bytes at %d, %v", len(lines), n, err)
					}
					n, at = n+len(lines), behind
				}
			}
		})
	}
}
