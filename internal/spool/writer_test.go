package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// written is what a spool folder holds, read without regard to hostile content.
type written struct {
	files          []string
	lines          []criline.Line
	stdout, stderr []byte
	gaps           []criline.Marker
	bytes          int64 // behind the last line
	end            *End
}

// readBack reads a folder and checks what always holds: files follow each other without a hole, and consist of whole lines whose times do not
// go back.
func readBack(t *testing.T, dir string) written {
	t.Helper()
	var got written
	entries, err := os.ReadDir(dir) // sorted by name, which is by offset
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		base, ok := ParseLogName(e.Name())
		if !ok {
			continue
		}
		if len(got.files) > 0 && base != got.bytes {
			t.Errorf("%s does not follow the file before, which ends at %d", e.Name(), got.bytes)
		}
		got.files = append(got.files, e.Name())
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got.bytes = base + int64(len(b))
		if len(b) > 0 && b[len(b)-1] != '\n' {
			t.Fatalf("%s ends with a torn line: %q", e.Name(), b[max(0, len(b)-100):])
		}
		for text := range bytes.Lines(b) {
			l, err := criline.Parse(text[:len(text)-1])
			if err != nil {
				t.Fatalf("%s: %v", e.Name(), err)
			}
			if n := len(got.lines); n > 0 && l.Time.Before(got.lines[n-1].Time) {
				t.Errorf("%s: %v comes after %v", e.Name(), l.Time, got.lines[n-1].Time)
			}
			got.lines = append(got.lines, l)
			printed := l.Text
			if l.Full {
				printed = append(bytes.Clone(l.Text), '\n')
			}
			switch l.Stream {
			case criline.Stdout:
				got.stdout = append(got.stdout, printed...)
			case criline.Stderr:
				got.stderr = append(got.stderr, printed...)
			case criline.Markers:
				m, err := criline.ParseMarker(l.Text)
				if err != nil {
					t.Fatal(err)
				}
				got.gaps = append(got.gaps, m)
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, EndFile))
	if errors.Is(err, fs.ErrNotExist) {
		return got
	}
	end, err := ParseEnd(b)
	if err != nil {
		t.Fatal(err)
	}
	got.end = &end
	return got
}

// tags shows the lines as "o", "e" or "m" for the stream, the tag, and the text.
func (w written) tags() string {
	initial := map[criline.Stream]byte{criline.Stdout: 'o', criline.Stderr: 'e', criline.Markers: 'm'}
	var all []string
	for _, l := range w.lines {
		tag := "P"
		if l.Full {
			tag = "F"
		}
		all = append(all, fmt.Sprintf("%c%s%s", initial[l.Stream], tag, l.Text))
	}
	return strings.Join(all, "|")
}

func newTestWriter(t *testing.T, dir string, limit int64) *Writer {
	t.Helper()
	w, err := NewWriter(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func endTestWriter(t *testing.T, w *Writer) {
	t.Helper()
	if err := w.End(record.Exit{}); err != nil {
		t.Fatal(err)
	}
}

const roomy = 1 << 30

func TestWriterLines(t *testing.T) {
	type chunk struct {
		s    criline.Stream
		text string
	}
	const out, err = criline.Stdout, criline.Stderr
	long := strings.Repeat("x", criline.MaxText)
	for _, tc := range []struct {
		name   string
		chunks []chunk
		want   string
	}{
		{"nothing", nil, ""},
		{"line", []chunk{{out, "a\n"}}, "oFa"},
		{"lines in a chunk", []chunk{{out, "a\nb\n\nc\n"}}, "oFa|oFb|oF|oFc"},
		{"piece at once", []chunk{{out, "a"}}, "oPa"},
		{"pieces of a line", []chunk{{out, "a"}, {out, "b"}, {out, "c\n"}}, "oPa|oPb|oFc"},
		{"newline alone", []chunk{{out, "a"}, {out, "\n"}, {out, "\n"}}, "oPa|oF|oF"},
		{"line and a piece", []chunk{{out, "a\nb"}}, "oFa|oPb"},
		{"streams mix within a line", []chunk{{out, "a"}, {err, "b"}, {out, "c\n"}, {err, "\n"}}, "oPa|ePb|oFc|eF"},
		{"carriage returns are text", []chunk{{out, "1%\r2%\r"}, {out, "\r\n"}}, "oP1%\r2%\r|oF\r"},
		{"longest piece", []chunk{{out, long}}, "oP" + long},
		{"longest line", []chunk{{out, long + "\n"}}, "oF" + long},
		{"longer line", []chunk{{out, long + "y\n"}}, "oP" + long + "|oFy"},
		{"empty chunk", []chunk{{out, ""}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			w := newTestWriter(t, dir, roomy)
			for _, c := range tc.chunks {
				w.Write(c.s, []byte(c.text))
			}
			// Before the end: nothing waits in memory.
			if got := readBack(t, dir).tags(); got != tc.want {
				t.Errorf("got  %.200q\nwant %.200q", got, tc.want)
			}
			endTestWriter(t, w)
		})
	}
}

func TestWriterEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		w := newTestWriter(t, dir, roomy)
		first := time.Now()
		w.Write(criline.Stdout, []byte("a\nb"))
		time.Sleep(time.Minute)
		w.Write(criline.Stderr, []byte("\n\n\n"))
		last := time.Now()
		time.Sleep(time.Minute)
		if err := w.End(record.Exit{Code: 143, Signal: "terminated"}); err != nil {
			t.Fatal(err)
		}
		got := readBack(t, dir)
		want := End{Exit: record.Exit{Code: 143, Signal: "terminated"}, Bytes: got.bytes, Printed: record.Printed{Stdout: 3, Stderr: 3}, Lines: 4,
			First: first.UTC().Round(0), Last: last.UTC().Round(0)}
		if got.end == nil || *got.end != want {
			t.Errorf("got %+v, want %+v", got.end, want)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
			t.Errorf("the folder holds %v, %v, want one log and %s", entries, err, EndFile)
		}
		w.Write(criline.Stdout, []byte("late"))
		if after := readBack(t, dir); after.bytes != got.bytes {
			t.Error("a write behind the end reached the spool")
		}
	})
}

// A chunk has one time, also where it is many lines in several writes.
func TestWriterOneTimeForAChunk(t *testing.T) {
	dir := t.TempDir()
	w := newTestWriter(t, dir, roomy)
	w.Write(criline.Stdout, bytes.Repeat([]byte("\n"), 64<<10))
	endTestWriter(t, w)
	got := readBack(t, dir)
	if len(got.lines) != 64<<10 {
		t.Fatalf("got %d lines", len(got.lines))
	}
	for i, l := range got.lines {
		if !l.Time.Equal(got.lines[0].Time) {
			t.Fatalf("line %d has the time %v, the first %v", i, l.Time, got.lines[0].Time)
		}
	}
}

// Whatever the chunks, the limit and the rotation: the lines of a stream are what was written to it.
func TestWriterRandomChunks(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			dir := t.TempDir()
			w := newTestWriter(t, dir, roomy)
			w.maxFile = 4<<10 + r.Int64N(256<<10)
			w.maxText = int(min(criline.MaxText, w.maxFile-int64(criline.PrefixLen)-1))
			var want [2][]byte
			for range 100 {
				chunk := make([]byte, r.IntN(1<<r.IntN(17))+1)
				for i := range chunk {
					chunk[i] = byte(r.IntN(256))
					if r.IntN(20) == 0 {
						chunk[i] = '\n'
					}
				}
				i := r.IntN(2)
				want[i] = append(want[i], chunk...)
				w.Write([]criline.Stream{criline.Stdout, criline.Stderr}[i], chunk)
			}
			endTestWriter(t, w)
			got := readBack(t, dir)
			if !bytes.Equal(got.stdout, want[0]) || !bytes.Equal(got.stderr, want[1]) {
				t.Error("the lines are not what was written")
			}
			lines := int64(bytes.Count(want[0], newline) + bytes.Count(want[1], newline))
			printed := record.Printed{Stdout: int64(len(want[0])), Stderr: int64(len(want[1]))}
			if got.end.Printed != printed || got.end.Lines != lines || got.end.Bytes != got.bytes || len(got.gaps) > 0 {
				t.Errorf("end is %+v with gaps %v, want %+v, %d lines, %d bytes", got.end, got.gaps, printed, lines, got.bytes)
			}
			for _, name := range got.files {
				if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() > w.maxFile {
					t.Errorf("%s has %d bytes, %v, but is full at %d", name, info.Size(), err, w.maxFile)
				}
			}
		})
	}
}

func TestWriterRotates(t *testing.T) {
	for _, tc := range []struct {
		name        string
		limit, want int64
	}{
		{"8 MiB", 256 << 20, 8 << 20},
		{"an eighth of a small limit", 1 << 20, 128 << 10},
		{"at least 4 KiB", 1, 4 << 10},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			w := newTestWriter(t, dir, tc.limit)
			if w.maxFile != tc.want {
				t.Fatalf("a file is full at %d bytes, want %d", w.maxFile, tc.want)
			}
			w.limit = roomy
			line := []byte(strings.Repeat("x", 999) + "\n")
			for n := int64(0); n <= tc.want; n += int64(len(line)) {
				w.Write(criline.Stdout, line)
			}
			endTestWriter(t, w)
			if got := readBack(t, dir); len(got.files) != 2 {
				t.Errorf("files are %v, want 2", got.files)
			}
		})
	}
}

// deleteAll deletes more than the shipper would.
func deleteAll(t *testing.T, dir string) {
	t.Helper()
	files, err := logFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Remove(filepath.Join(dir, LogName(f.base))); err != nil {
			t.Fatal(err)
		}
	}
}

// deleteShipped deletes all log files but the last, as the shipper does.
func deleteShipped(t *testing.T, dir string) {
	t.Helper()
	files, err := logFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	for _, f := range files {
		last = max(last, f.base)
	}
	for _, f := range files {
		if f.base == last {
			continue
		}
		if err := os.Remove(filepath.Join(dir, LogName(f.base))); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriterLimit(t *testing.T) {
	const limit = 64 << 10
	chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 20)

	t.Run("nobody ships", func(t *testing.T) {
		dir := t.TempDir()
		w := newTestWriter(t, dir, limit)
		for range 100 {
			w.Write(criline.Stdout, chunk)
			w.Write(criline.Stderr, []byte("e"))
			if got := readBack(t, dir); got.bytes > limit {
				t.Fatalf("the folder holds %d bytes, the limit is %d", got.bytes, limit)
			}
		}
		endTestWriter(t, w)
		got := readBack(t, dir)
		want := record.Printed{Stdout: int64(100 * len(chunk)), Stderr: 100}
		if got.end.Printed != want || got.end.Lines != 100*20 {
			t.Errorf("end says %+v and %d lines, want %+v and %d", got.end.Printed, got.end.Lines, want, 100*20)
		}
		if len(got.gaps) != 1 || got.gaps[0].Kind != criline.Gap || got.gaps[0].Reason != criline.ReasonSpoolLimit || got.gaps[0].Unknown {
			t.Fatalf("gaps are %+v, want one", got.gaps)
		}
		if l := got.lines[len(got.lines)-1]; l.Stream != criline.Markers {
			t.Errorf("the last line is of %s, not the marker", l.Stream)
		}
		if kept := int64(len(got.stdout)) + got.gaps[0].Stdout; kept != want.Stdout {
			t.Errorf("%d bytes of stdout are kept or marked, %d were printed", kept, want.Stdout)
		}
		if kept := int64(len(got.stderr)) + got.gaps[0].Stderr; kept != want.Stderr {
			t.Errorf("%d bytes of stderr are kept or marked, %d were printed", kept, want.Stderr)
		}
		if used := got.bytes; used < limit/2 {
			t.Errorf("only %d bytes of %d were used", used, limit)
		}
	})

	t.Run("a marker must fit, too", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			w := newTestWriter(t, dir, limit)
			for w.end() < limit-100 {
				w.Write(criline.Stdout, []byte("x\n"))
			}
			w.Write(criline.Stdout, chunk[:100])
			time.Sleep(retryAfter)
			w.Write(criline.Stdout, []byte("x\n")) // fits alone
			if got := readBack(t, dir); got.bytes > limit || len(got.gaps) > 0 {
				t.Errorf("the folder holds %d bytes, the limit is %d, gaps are %+v", got.bytes, limit, got.gaps)
			}
			endTestWriter(t, w)
			if got := readBack(t, dir); len(got.gaps) != 1 || got.gaps[0].Stdout != 102 {
				t.Errorf("gaps are %+v", got.gaps)
			}
		})
	})

	for _, tc := range []struct {
		name string
		ship func(*testing.T, string)
	}{
		{"the shipper catches up", deleteShipped},
		{"even the file that is being written is deleted", deleteAll},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				w := newTestWriter(t, dir, limit)
				for w.gap.Kind == "" {
					w.Write(criline.Stdout, chunk)
				}
				w.Write(criline.Stderr, []byte("lost too\n"))
				full := readBack(t, dir)
				tc.ship(t, dir)

				w.Write(criline.Stdout, []byte("too soon\n"))
				if got := readBack(t, dir).tags(); strings.Contains(got, "too soon") {
					t.Error("the folder was counted again at once")
				}
				time.Sleep(retryAfter)
				w.Write(criline.Stdout, []byte("kept\n"))
				w.Write(criline.Stderr, []byte("also kept\n"))
				endTestWriter(t, w)
				got := readBack(t, dir)
				want := criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: int64(len(chunk) + len("too soon\n")), Stderr: 9}
				if len(got.gaps) != 1 || got.gaps[0] != want {
					t.Errorf("gaps are %+v, want %+v", got.gaps, want)
				}
				if !strings.HasSuffix(got.tags(), "|oFkept|eFalso kept") || got.bytes <= full.bytes || got.end.Bytes != got.bytes {
					t.Errorf("the log ends at %d, was %d before, ends with %.300q", got.bytes, full.bytes, got.tags())
				}
			})
		})
	}
}

// brokenFile is a real file whose writes and truncations fail as told.
type brokenFile struct {
	file
	faults *faults
}

// faults are what happens to the next calls.
type faults struct {
	room     int   // bytes that fit before writes fail; negative: all
	open     error // of opening a file
	opens    int   // that failed
	truncate error
	panics   bool
	writes   int // calls
}

func (f *faults) inject(w *Writer) {
	w.open = func(path string) (file, error) {
		if f.open != nil {
			f.opens++
			return nil, &fs.PathError{Op: "open", Path: path, Err: f.open}
		}
		real, err := create(path)
		return &brokenFile{real, f}, err
	}
	w.f = &brokenFile{w.f, f}
}

func (b *brokenFile) Write(p []byte) (int, error) {
	b.faults.writes++
	if b.faults.panics {
		n, err := b.file.Write(p[:len(p)/2])
		panic(fmt.Sprint("broken after ", n, " bytes: ", err))
	}
	if b.faults.room < 0 || len(p) <= b.faults.room {
		if b.faults.room >= 0 {
			b.faults.room -= len(p)
		}
		return b.file.Write(p)
	}
	n, err := b.file.Write(p[:b.faults.room])
	b.faults.room = 0
	return n, errors.Join(err, syscall.ENOSPC)
}

func (b *brokenFile) Truncate(size int64) error {
	if b.faults.truncate != nil {
		return b.faults.truncate
	}
	return b.file.Truncate(size)
}

// A write that fails after any number of bytes leaves whole lines, and what it lost is marked when there is room again.
func TestWriterPartialWrite(t *testing.T) {
	const text = "first\nsecond\n\nthird piece"
	whole := len(criline.Append(nil, time.Time{}, criline.Stdout, true, []byte("first")))
	all := 4*(criline.PrefixLen+1) + len("firstsecondthird piece")
	for room := range all {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			w := newTestWriter(t, dir, roomy)
			w.Write(criline.Stdout, []byte("before\n"))
			f := &faults{room: room}
			f.inject(w)
			w.Write(criline.Stdout, []byte(text))
			broken := readBack(t, dir) // checks for whole lines
			if room >= whole && string(broken.stdout) == "before\n" {
				t.Errorf("room %d: the whole lines that were written are gone", room)
			}
			w.Write(criline.Stderr, []byte("err\n"))
			f.room = -1
			time.Sleep(retryAfter)
			w.Write(criline.Stdout, []byte("after\n"))
			endTestWriter(t, w)

			got := readBack(t, dir)
			if len(got.gaps) != 1 || got.gaps[0].Reason != criline.ReasonSpoolError || !strings.Contains(got.gaps[0].Detail, "no space left") {
				t.Fatalf("room %d: gaps are %+v", room, got.gaps)
			}
			kept := strings.TrimSuffix(strings.TrimPrefix(string(got.stdout), "before\n"), "after\n")
			if !strings.HasPrefix(text, kept) || int64(len(text)-len(kept)) != got.gaps[0].Stdout || got.gaps[0].Stderr != 4 {
				t.Errorf("room %d: kept %q of %q, the gap is %+v", room, kept, text, got.gaps[0])
			}
			if want := int64(len("before\n" + text + "after\n")); got.end.Printed.Stdout != want || got.end.Lines != 6 {
				t.Errorf("room %d: end is %+v", room, got.end)
			}
		})
	}
}

// A marker that does not fit as a whole is not there at all, and the gap goes on.
func TestWriterPartialMarker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		w := newTestWriter(t, dir, roomy)
		f := &faults{room: 0}
		f.inject(w)
		w.Write(criline.Stdout, []byte("one\n"))
		f.room = 50
		time.Sleep(retryAfter)
		w.Write(criline.Stdout, []byte("two\n"))
		if got := readBack(t, dir); got.bytes != 0 {
			t.Errorf("lines are %q", got.tags())
		}
		f.room = -1
		time.Sleep(retryAfter)
		w.Write(criline.Stdout, []byte("three\n"))
		endTestWriter(t, w)
		got := readBack(t, dir)
		if len(got.gaps) != 1 || got.gaps[0].Stdout != 8 || string(got.stdout) != "three\n" {
			t.Errorf("gaps %+v, stdout %q", got.gaps, got.stdout)
		}
	})
}

// While the spool is broken, most chunks cost no system call.
func TestWriterRetriesSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTestWriter(t, t.TempDir(), roomy)
		f := &faults{room: 0}
		f.inject(w)
		for range 1000 {
			w.Write(criline.Stdout, []byte("x\n"))
			time.Sleep(time.Millisecond)
		}
		if most := int(1000*time.Millisecond/retryAfter) + 1; f.writes > most {
			t.Errorf("%d writes in a second, want at most %d", f.writes, most)
		}
		if f.writes < 5 {
			t.Errorf("%d writes in a second: it does not try again", f.writes)
		}
		endTestWriter(t, w)
	})
}

// A torn line that cannot be cut off at once is cut off later, before anything else is written.
func TestWriterTruncateFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		w := newTestWriter(t, dir, roomy)
		f := &faults{room: 20, truncate: syscall.EIO}
		f.inject(w)
		w.Write(criline.Stdout, []byte("torn\n"))
		f.room = -1
		time.Sleep(retryAfter)
		w.Write(criline.Stdout, []byte("lost\n"))
		f.truncate = nil
		time.Sleep(retryAfter)
		w.Write(criline.Stdout, []byte("kept\n"))
		endTestWriter(t, w)
		got := readBack(t, dir)
		if string(got.stdout) != "kept\n" || len(got.gaps) != 1 || got.gaps[0].Stdout != 10 {
			t.Errorf("stdout %q, gaps %+v", got.stdout, got.gaps)
		}
	})
}

// Where the next file cannot be opened, the bytes are marked, and the log goes on behind the full file.
func TestWriterOpenFails(t *testing.T) {
	for _, fault := range []error{syscall.EMFILE, syscall.ENOENT} {
		t.Run(fault.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				w := newTestWriter(t, dir, roomy)
				w.maxFile = 100
				f := &faults{room: -1, open: fault}
				f.inject(w)
				w.Write(criline.Stdout, []byte("first\n"))
				w.Write(criline.Stdout, []byte(strings.Repeat("x", 50)+"\n"))
				f.open = nil
				time.Sleep(retryAfter)
				w.Write(criline.Stdout, []byte("last\n"))
				endTestWriter(t, w)
				got := readBack(t, dir)
				if string(got.stdout) != "first\nlast\n" || len(got.files) < 2 {
					t.Errorf("stdout %q in %v", got.stdout, got.files)
				}
				if len(got.gaps) != 1 || got.gaps[0].Stdout != 51 || !strings.Contains(got.gaps[0].Detail, fault.Error()) {
					t.Errorf("gaps are %+v", got.gaps)
				}
			})
		})
	}
}

// Where there is no room for another file (no inode, or no quota for one), the present one takes more than it should, until there is.
func TestWriterNoRoomForAFile(t *testing.T) {
	for _, fault := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		t.Run(fault.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				w := newTestWriter(t, dir, roomy)
				w.maxFile = 100
				f := &faults{room: -1, open: fault}
				f.inject(w)
				line := strings.Repeat("x", 50) + "\n"
				for range 10 {
					w.Write(criline.Stdout, []byte(line))
				}
				if f.opens != 1 {
					t.Errorf("tried to open a file %d times at once", f.opens)
				}
				if got := readBack(t, dir); len(got.files) != 1 {
					t.Errorf("files %v", got.files)
				}
				f.open = nil
				time.Sleep(retryAfter)
				w.Write(criline.Stdout, []byte("last\n"))
				endTestWriter(t, w)
				got := readBack(t, dir)
				if string(got.stdout) != strings.Repeat(line, 10)+"last\n" || len(got.files) != 2 || len(got.gaps) > 0 {
					t.Errorf("%d bytes in %v, gaps %+v", len(got.stdout), got.files, got.gaps)
				}
			})
		})
	}
}

// The disk is full to the end. How the log ended and what it lacks is kept all the same, in room that was taken at the beginning.
func TestWriterEndOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); errors.Is(err, syscall.EPERM) && os.Getenv("CI") == "" {
		t.Skip("left out: it needs root, to mount a file system")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newTestWriter(t, dir, roomy)
		if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 128<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the disk is not full: %v", err)
		}
		// The last page that the log has is filled as well.
		const line = "a line\n"
		for range 200 {
			w.Write(criline.Stdout, []byte(line))
			time.Sleep(retryAfter)
		}
		w.Write(criline.Stderr, []byte("lost\n"))
		if err := w.End(record.Exit{Code: 3}); err != nil {
			t.Fatal(err)
		}
		got := readBack(t, dir)
		if got.end == nil || got.end.Gap == nil {
			t.Fatalf("the end says %+v", got.end)
		}
		marked := got.end.Gap.Stdout
		for _, g := range got.gaps {
			marked += g.Stdout
		}
		if int64(200*len(line)-len(got.stdout)) != marked || marked == 0 || got.end.Gap.Stderr != 5 || got.end.Exit.Code != 3 {
			t.Errorf("kept %d bytes, gaps %+v, the end says %+v with the gap %+v", len(got.stdout), got.gaps, got.end, got.end.Gap)
		}
		if _, err := os.Lstat(filepath.Join(dir, tmpEnd)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the room for the end is still there: %v", err)
		}

		// A container that runs again takes the gap over, and marks it when it can.
		if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
			t.Fatal(err)
		}
		w = newTestWriter(t, dir, roomy)
		w.Write(criline.Stdout, []byte("again\n"))
		endTestWriter(t, w)
		again := readBack(t, dir)
		if len(again.gaps) != len(got.gaps)+1 || again.gaps[len(got.gaps)] != *got.end.Gap || again.end.Gap != nil {
			t.Errorf("gaps %+v, end %+v", again.gaps, again.end)
		}
	})
}

// What a step does to the room for the end harms its own log only.
func TestWriterEndWithoutItsRoom(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"deleted":  os.Remove,
		"a folder": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
		"a link":   func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w := newTestWriter(t, dir, roomy)
			w.Write(criline.Stdout, []byte("kept\n"))
			if err := spoil(filepath.Join(dir, tmpEnd)); err != nil {
				t.Fatal(err)
			}
			endTestWriter(t, w)
			if got := readBack(t, dir); got.end == nil || got.end.Printed.Stdout != 5 {
				t.Errorf("the end says %+v", got.end)
			}
			if info, err := os.Lstat(filepath.Join(dir, EndFile)); err != nil || !info.Mode().IsRegular() {
				t.Errorf("%v, %v", info, err)
			}
		})
	}
}

// A gap that is open at the end is marked there, or else the end says it.
func TestWriterGapAtTheEnd(t *testing.T) {
	for _, tc := range []struct {
		name string
		room int // at the end
		want int // markers
	}{
		{"there is room again", -1, 1},
		{"there is none", 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			w := newTestWriter(t, dir, roomy)
			f := &faults{room: 0}
			f.inject(w)
			w.Write(criline.Stderr, []byte("lost\n"))
			f.room = tc.room
			endTestWriter(t, w)
			got := readBack(t, dir)
			if len(got.gaps) != tc.want || (got.end.Gap == nil) != (tc.want == 1) || got.end.Printed.Stderr != 5 || got.end.Lines != 1 || got.end.Bytes != got.bytes {
				t.Errorf("gaps %+v, end %+v", got.gaps, got.end)
			}
		})
	}
}

// The caller may go on after a panic of the writer: bytes are counted, and the file still consists of whole lines.
func TestWriterAbandon(t *testing.T) {
	dir := t.TempDir()
	w := newTestWriter(t, dir, roomy)
	w.Write(criline.Stdout, []byte("kept\n"))
	f := &faults{room: -1, panics: true}
	f.inject(w)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		w.Write(criline.Stdout, []byte("broken\n"))
	}()
	w.Abandon(criline.Stdout, 7, "a panic")
	w.Write(criline.Stderr, []byte("lost\n"))
	endTestWriter(t, w)
	got := readBack(t, dir)
	if string(got.stdout) != "kept\n" || len(got.stderr) > 0 {
		t.Errorf("lines are %q", got.tags())
	}
	if len(got.gaps) != 1 || !got.gaps[0].Unknown || got.gaps[0].Stdout < 7 || got.gaps[0].Stderr != 5 {
		t.Errorf("gaps are %+v", got.gaps)
	}
	if want := (record.Printed{Stdout: 12, Stderr: 5}); got.end.Printed != want {
		t.Errorf("end says %+v, want %+v", got.end.Printed, want)
	}
}

func TestWriterRestart(t *testing.T) {
	line := func(at time.Time, text string) string {
		return string(criline.Append(nil, at, criline.Stdout, true, []byte(text)))
	}
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	end := func(bytes int64, exit int) string {
		b, err := EncodeEnd(End{Exit: record.Exit{Code: exit}, Bytes: bytes, Printed: record.Printed{Stdout: 100, Stderr: 7}, Lines: 50, First: past, Last: past})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const p = int64(criline.PrefixLen) + 1
	torn := line(past, "torn line")
	for _, tc := range []struct {
		name    string
		files   map[string]string
		want    string // tags of all lines, without markers' text
		files2  int
		printed record.Printed
		lost    int64 // of stdout; negative: no gap
	}{
		{"killed after a line", map[string]string{LogName(0): line(past, "a")}, "oFa|mF|oFnew", 1, record.Printed{Stdout: 4}, 0},
		{"ended", map[string]string{LogName(0): line(past, "a"), EndFile: end(p+1, 3)}, "oFa|oFnew", 1, record.Printed{Stdout: 104, Stderr: 7}, -1},
		{"ended, and all was shipped", map[string]string{EndFile: end(1000, 3)}, "oFnew", 1, record.Printed{Stdout: 104, Stderr: 7}, -1},
		{"several files", map[string]string{LogName(0): line(past, "a"), LogName(p + 1): line(past, "b")}, "oFa|oFb|mF|oFnew", 2, record.Printed{Stdout: 4}, 0},
		{"shipped up to the last file", map[string]string{LogName(5000): line(past, "b")}, "oFb|mF|oFnew", 1, record.Printed{Stdout: 4}, 0},
		{"empty last file", map[string]string{LogName(0): line(past, "a"), LogName(p + 1): ""}, "oFa|mF|oFnew", 2, record.Printed{Stdout: 4}, 0},
		{"torn line", map[string]string{LogName(0): line(past, "a") + torn[:len(torn)-3]}, "oFa|mF|oFnew", 1, record.Printed{Stdout: 4}, 7},
		{"torn prefix", map[string]string{LogName(0): line(past, "a") + torn[:20]}, "oFa|mF|oFnew", 1, record.Printed{Stdout: 4}, 0},
		{"torn at the very end", map[string]string{LogName(0): line(past, "a") + torn[:len(torn)-1]}, "oFa|mF|oFnew", 1, record.Printed{Stdout: 4}, 9},
		{"only a torn line", map[string]string{LogName(0): torn[:10]}, "mF|oFnew", 1, record.Printed{Stdout: 4}, 0},
		{"clock went back", map[string]string{LogName(0): line(future, "a")}, "oFa|mF|oFnew", 1, record.Printed{Stdout: 4}, 0},
		{"end is damaged", map[string]string{LogName(0): line(past, "a"), EndFile: "{"}, "oFa|mF|oFnew", 1, record.Printed{Stdout: 4}, 0},
		{"end is of another log", map[string]string{LogName(0): line(past, "a"), EndFile: end(9999, 3)}, "oFa|oFnew", 1, record.Printed{Stdout: 4}, -1},
		{"stale notes", map[string]string{TermFile: "", tmpEnd: "{"}, "oFnew", 1, record.Printed{Stdout: 4}, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			w := newTestWriter(t, dir, roomy)
			for _, name := range []string{EndFile, TermFile} {
				if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s of the run before is still there: %v", name, err)
				}
			}
			w.Write(criline.Stdout, []byte("new\n"))
			endTestWriter(t, w)
			got := readBack(t, dir)
			lost := int64(-1)
			for i, l := range got.lines {
				if l.Stream == criline.Markers {
					got.lines[i].Text = nil
				}
			}
			if len(got.gaps) == 1 && got.gaps[0].Unknown {
				lost = got.gaps[0].Stdout
			}
			if got.tags() != tc.want || len(got.files) != tc.files2 {
				t.Errorf("lines are %q in %v, want %q in %d", got.tags(), got.files, tc.want, tc.files2)
			}
			if lost != tc.lost {
				t.Errorf("gaps are %+v, want one of at least %d", got.gaps, tc.lost)
			}
			if got.end.Printed != tc.printed || got.end.Bytes != got.bytes || got.end.Exit.Code != 0 {
				t.Errorf("end is %+v, want %+v printed and %d bytes", got.end, tc.printed, got.bytes)
			}
		})
	}
}

// A very long torn tail, which tee cannot have written, is cut off too.
func TestWriterRestartGarbage(t *testing.T) {
	dir := t.TempDir()
	good := criline.Append(nil, time.Now().Add(-time.Hour), criline.Stdout, true, []byte("a"))
	if err := os.WriteFile(filepath.Join(dir, LogName(0)), append(good, bytes.Repeat([]byte("x"), 1<<20)...), 0o644); err != nil {
		t.Fatal(err)
	}
	w := newTestWriter(t, dir, roomy)
	w.Write(criline.Stdout, []byte("b\n"))
	endTestWriter(t, w)
	if got := readBack(t, dir); string(got.stdout) != "a\nb\n" || len(got.gaps) != 1 {
		t.Errorf("stdout %q, gaps %+v", got.stdout, got.gaps)
	}
}

func TestWriterFolder(t *testing.T) {
	t.Run("missing", func(t *testing.T) {
		if _, err := NewWriter(filepath.Join(t.TempDir(), "none"), roomy); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := NewWriter(path, roomy); err == nil {
			t.Error("no error")
		}
	})
	t.Run("vanishes", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "spool")
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		w := newTestWriter(t, dir, roomy)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		w.maxFile = 10 // the next write needs a new file
		w.Write(criline.Stdout, []byte("a\n"))
		w.Write(criline.Stdout, []byte("b\n"))
		if err := w.Term(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Term: %v", err)
		}
		if err := w.End(record.Exit{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("End: %v", err)
		}
	})
}

// The shipper is another user: the files are readable whatever the step's umask is.
func TestWriterModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	w := newTestWriter(t, dir, roomy)
	w.Write(criline.Stdout, []byte("a\n"))
	for range 2 {
		if err := w.Term(); err != nil {
			t.Fatal(err)
		}
	}
	endTestWriter(t, w)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("the folder holds %v, %v, want a log, %s and %s", entries, err, EndFile, TermFile)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != fileMode {
			t.Errorf("%s has the mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if mask := syscall.Umask(0o077); mask != 0o077 {
		t.Errorf("the umask was changed to %o", mask)
	}
}

// Where something else has the name of the next file, tee neither follows nor writes nor opens it.
func TestWriterNameIsTaken(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		take func(path string) error
	}{
		{"symbolic link", func(path string) error { return os.Symlink(victim, path) }},
		{"hard link", func(path string) error { return os.Link(victim, path) }},
		{"dangling link", func(path string) error { return os.Symlink(victim+"2", path) }},
		{"pipe that nobody reads", func(path string) error { return syscall.Mkfifo(path, 0o666) }},
		{"folder", func(path string) error { return os.Mkdir(path, 0o777) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				w := newTestWriter(t, dir, roomy)
				w.maxFile = 60
				w.Write(criline.Stdout, []byte("first\n"))
				path := filepath.Join(dir, LogName(w.end()))
				if err := tc.take(path); err != nil {
					t.Fatal(err)
				}
				w.Write(criline.Stdout, []byte("lost, for the name is taken\n"))
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				time.Sleep(retryAfter)
				w.Write(criline.Stdout, []byte("last\n"))
				endTestWriter(t, w)
				if b, err := os.ReadFile(victim); err != nil || string(b) != "mine" {
					t.Errorf("the link's target is %q, %v", b, err)
				}
				if _, err := os.Lstat(victim + "2"); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a file was made through the link: %v", err)
				}
				if got := readBack(t, dir); string(got.stdout) != "first\nlast\n" || len(got.gaps) != 1 {
					t.Errorf("stdout %q, gaps %+v", got.stdout, got.gaps)
				}
			})
		})
	}
}

func TestWriterAllocatesNothing(t *testing.T) {
	w := newTestWriter(t, t.TempDir(), roomy)
	chunk := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 100)
	if n := testing.AllocsPerRun(100, func() { w.Write(criline.Stdout, chunk) }); n != 0 {
		t.Errorf("a chunk costs %v allocations", n)
	}
	endTestWriter(t, w)
}

// Two chunks of any bytes, cut anywhere, come back.
func FuzzWriter(f *testing.F) {
	f.Add([]byte("a\nb"), []byte("\n\x00\r\n"))
	f.Add([]byte("no newline"), []byte{})
	f.Add([]byte("\n\n\n"), []byte("2026-05-17T12:00:00.000000042Z marker F {}\n"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		dir := t.TempDir()
		w := newTestWriter(t, dir, 1<<20)
		w.maxFile, w.maxText = 200, 100
		w.Write(criline.Stdout, a)
		w.Write(criline.Stderr, a)
		w.Write(criline.Stdout, b)
		endTestWriter(t, w)
		got := readBack(t, dir)
		if !bytes.Equal(got.stdout, append(bytes.Clone(a), b...)) || !bytes.Equal(got.stderr, a) {
			if len(got.gaps) == 0 {
				t.Errorf("stdout %q, stderr %q, no gap", got.stdout, got.stderr)
			}
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	for _, size := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("%d-byte lines", size), func(b *testing.B) {
			w, err := NewWriter(b.TempDir(), 1<<40)
			if err != nil {
				b.Fatal(err)
			}
			line := []byte(strings.Repeat("x", size-1) + "\n")
			chunk := bytes.Repeat(line, (64<<10)/size)
			b.SetBytes(int64(len(chunk)))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				w.Write(criline.Stdout, chunk)
				if n++; n%1000 == 0 { // the shipper, so that the disk stays empty
					b.StopTimer()
					files, err := logFiles(w.dir)
					if err != nil {
						b.Fatal(err)
					}
					for _, f := range files {
						if f.base != w.base {
							_ = os.Remove(filepath.Join(w.dir, LogName(f.base)))
						}
					}
					b.StartTimer()
				}
			}
			if w.gap.Kind != "" {
				b.Errorf("lost bytes: %+v", w.gap)
			}
		})
	}
}
