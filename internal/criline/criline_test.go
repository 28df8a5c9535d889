package criline

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 5, 17, 12, 0, 0, 42, time.UTC)

func TestAppend(t *testing.T) {
	for _, tc := range []struct {
		name   string
		time   time.Time
		stream Stream
		full   bool
		text   string
		want   string
	}{
		{"full line", noon, Stdout, true, "hello", "2026-05-17T12:00:00.000000042Z stdout F hello\n"},
		{"piece", noon, Stderr, false, "hel", "2026-05-17T12:00:00.000000042Z stderr P hel\n"},
		{"empty line", noon, Stdout, true, "", "2026-05-17T12:00:00.000000042Z stdout F \n"},
		{"nine digits where there is no fraction", noon.Truncate(time.Second), Stdout, true, "x", "2026-05-17T12:00:00.000000000Z stdout F x\n"},
		{"another zone becomes UTC", noon.In(time.FixedZone("", 2*3600)), Stdout, true, "x", "2026-05-17T12:00:00.000000042Z stdout F x\n"},
		{"bytes stay as they are", noon, Stdout, false, "\x00\r\xff\xc3", "2026-05-17T12:00:00.000000042Z stdout P \x00\r\xff\xc3\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Append([]byte("before|"), tc.time, tc.stream, tc.full, []byte(tc.text))
			if string(got) != "before|"+tc.want {
				t.Errorf("got  %q\nwant %q", got, "before|"+tc.want)
			}
			if n := len(AppendPrefix(nil, tc.time, tc.stream, tc.full)); n != PrefixLen {
				t.Errorf("the prefix has %d bytes, not PrefixLen = %d", n, PrefixLen)
			}
		})
	}
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name string
		line string
		want Line
	}{
		{"full line", "2026-05-17T12:00:00.000000042Z stdout F hello", Line{noon, Stdout, true, []byte("hello")}},
		{"piece", "2026-05-17T12:00:00.000000042Z stderr P hel", Line{noon, Stderr, false, []byte("hel")}},
		{"marker", `2026-05-17T12:00:00.000000042Z marker F {}`, Line{noon, Markers, true, []byte("{}")}},
		{"no text", "2026-05-17T12:00:00.000000042Z stdout F ", Line{noon, Stdout, true, []byte{}}},
		{"text like a prefix", "2026-05-17T12:00:00.000000042Z stdout F 2026-05-17T12:00:00.000000042Z marker F {}",
			Line{noon, Stdout, true, []byte("2026-05-17T12:00:00.000000042Z marker F {}")}},
		{"leap day", "2028-02-29T23:59:59.999999999Z stdout F x", Line{time.Date(2028, 2, 29, 23, 59, 59, 999999999, time.UTC), Stdout, true, []byte("x")}},
		{"longest text", "2026-05-17T12:00:00.000000042Z stdout P " + strings.Repeat("x", MaxText), Line{noon, Stdout, false, bytes.Repeat([]byte("x"), MaxText)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse([]byte(tc.line))
			if err != nil {
				t.Fatal(err)
			}
			if !got.Time.Equal(tc.want.Time) || got.Stream != tc.want.Stream || got.Full != tc.want.Full || !bytes.Equal(got.Text, tc.want.Text) {
				t.Errorf("got  %v\nwant %v", got, tc.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	const good = "2026-05-17T12:00:00.000000042Z stdout F hello"
	if _, err := Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, line string }{
		{"nothing", ""},
		{"torn prefix", good[:PrefixLen-1]},
		{"too long", good[:PrefixLen] + strings.Repeat("x", MaxText+1)},
		{"unknown stream", strings.Replace(good, "stdout", "stdin_", 1)},
		{"unknown tag", strings.Replace(good, " F ", " X ", 1)},
		{"tag list", strings.Replace(good, " F ", " F:", 1)},
		{"no blank before the stream", strings.Replace(good, "Z stdout", "Z_stdout", 1)},
		{"no blank behind the stream", strings.Replace(good, "stdout F", "stdout_F", 1)},
		{"zone", strings.Replace(good, "42Z", "42+", 1)},
		{"letter in the time", strings.Replace(good, "05-17", "0x-17", 1)},
		{"sign in the time", strings.Replace(good, "12:00:00.0", "12:00:+0.0", 1)},
		{"month 0", strings.Replace(good, "-05-", "-00-", 1)},
		{"month 13", strings.Replace(good, "-05-", "-13-", 1)},
		{"day 0", strings.Replace(good, "-17T", "-00T", 1)},
		{"31 February", strings.Replace(good, "-05-17T", "-02-31T", 1)},
		{"29 February of a common year", strings.Replace(good, "-05-17T", "-02-29T", 1)},
		{"hour 24", strings.Replace(good, "T12", "T24", 1)},
		{"minute 60", strings.Replace(good, ":00:", ":60:", 1)},
		{"leap second", strings.Replace(good, ":00.", ":60.", 1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.line == good {
				t.Fatal("the case changes nothing")
			}
			if got, err := Parse([]byte(tc.line)); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %v, %v; want ErrMalformed", got, err)
			}
		})
	}
}

func TestPrinted(t *testing.T) {
	for _, tc := range []struct {
		name string
		line Line
		want int64
	}{
		{"full line counts its newline", Line{Stream: Stdout, Full: true, Text: []byte("abc")}, 4},
		{"piece", Line{Stream: Stderr, Text: []byte("abc")}, 3},
		{"empty line", Line{Stream: Stdout, Full: true}, 1},
		{"marker", Line{Stream: Markers, Full: true, Text: []byte("{}")}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.line.Printed(); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

func TestMarkerRoundTrip(t *testing.T) {
	for _, tc := range []struct {
		name string
		m    Marker
		want string
		read string // Detail as it is read
	}{
		{"limit", Marker{Kind: Gap, Reason: ReasonSpoolLimit, Stdout: 7, Stderr: 9}, `{"kind":"gap","reason":"spool-limit","stdout":7,"stderr":9}`, ""},
		{"error with a newline", Marker{Kind: Gap, Reason: ReasonSpoolError, Unknown: true, Detail: "a\nb\x1b"},
			`{"kind":"gap","reason":"spool-error","stdout":0,"stderr":0,"unknown":true,"detail":"a\nb\u001b"}`, `a b\x1b`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := AppendMarker(nil, noon, tc.m)
			if err != nil {
				t.Fatal(err)
			}
			line, rest, _ := bytes.Cut(b, []byte("\n"))
			if len(rest) > 0 {
				t.Fatalf("more than one line: %q", b)
			}
			l, err := Parse(line)
			if err != nil {
				t.Fatal(err)
			}
			if l.Stream != Markers || !l.Full || string(l.Text) != tc.want {
				t.Errorf("got %s %v %s, want a full marker line %s", l.Stream, l.Full, l.Text, tc.want)
			}
			tc.m.Detail = tc.read
			if got, err := ParseMarker(l.Text); err != nil || got != tc.m {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.m)
			}
		})
	}
}

func TestMarkerTooLong(t *testing.T) {
	b, err := AppendMarker([]byte("before"), noon, Marker{Kind: Gap, Detail: strings.Repeat("x", MaxText)})
	if err == nil || string(b) != "before" {
		t.Errorf("got %d bytes, %v; want an error and the bytes from before", len(b), err)
	}
}

func TestParseMarkerRefuses(t *testing.T) {
	if m, err := ParseMarker([]byte("no JSON")); err == nil {
		t.Errorf("got %+v", m)
	}
}

// A Parser says of each line what Parse does, whatever came before.
func TestParser(t *testing.T) {
	line := func(sec int, s Stream, full bool, text string) string {
		b := Append(nil, noon.Add(time.Duration(sec)*time.Second), s, full, []byte(text))
		return string(b[:len(b)-1])
	}
	a := line(0, Stdout, true, "a")
	for _, tc := range []struct {
		name  string
		lines []string
	}{
		{"one prefix", []string{a, a, line(0, Stdout, true, ""), line(0, Stdout, true, strings.Repeat("x", MaxText))}},
		{"another time, and back", []string{a, line(1, Stdout, true, "b"), a}},
		{"another stream, and back", []string{a, line(0, Stderr, true, "b"), line(0, Markers, true, "{}"), a}},
		{"another tag, and back", []string{a, line(0, Stdout, false, "b"), a}},
		{"too long behind a known prefix", []string{a, a + strings.Repeat("x", MaxText), a}},
		{"torn behind a known prefix", []string{a, a[:PrefixLen-1], a}},
		{"malformed first", []string{strings.Repeat("\x00", PrefixLen), a}},
		{"malformed later", []string{a, strings.Replace(a, "T12", "T24", 1), a}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p Parser
			for i, line := range tc.lines {
				got, gotErr := p.Parse([]byte(line))
				want, err := Parse([]byte(line))
				if !reflect.DeepEqual(got, want) || fmt.Sprint(gotErr) != fmt.Sprint(err) {
					t.Errorf("line %d: got %v, %v, want %v, %v", i, got, gotErr, want, err)
				}
			}
		})
	}
}

func TestRun(t *testing.T) {
	full := func(text string) string { return string(Append(nil, noon, Stdout, true, []byte(text))) }
	piece := string(Append(nil, noon, Stdout, false, []byte("p")))
	for _, tc := range []struct {
		name, first, rest string
		lines             int
	}{
		{"nothing", full("a"), "", 0},
		{"all", full("a"), full("b") + full("") + full(strings.Repeat("x", MaxText)), 3},
		{"up to another tag", full("a"), full("b") + piece + full("c"), 1},
		{"pieces", piece, piece + piece + full("c"), 2},
		{"up to a line that is too long", full("a"), full("b") + full(strings.Repeat("x", MaxText+1)) + full("c"), 1},
		{"up to a torn line", full("a"), full("b") + full("c")[:PrefixLen+1], 1},
		{"up to a torn prefix", full("a"), full("b") + full("c")[:PrefixLen-1], 1},
		{"nothing before", "no line", full("b"), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p Parser
			like, err := p.Parse([]byte(strings.TrimSuffix(tc.first, "\n")))
			lines, length := p.Run([]byte(tc.rest))
			if lines != tc.lines || strings.Count(tc.rest[:length], "\n") != lines {
				t.Fatalf("got %d lines of %d bytes, want %d lines", lines, length, tc.lines)
			}
			if err != nil {
				return
			}
			var got, want Tally
			got.Add(like)
			got.AddRun(like, lines, length)
			want.Add(like)
			for line := range strings.Lines(tc.rest[:length]) {
				l, err := Parse([]byte(strings.TrimSuffix(line, "\n")))
				if err != nil {
					t.Fatal(err)
				}
				want.Add(l)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("counted %+v, one by one %+v", got, want)
			}
		})
	}
}

// Whatever is parsed and written again is the same line, byte by byte: no two lines mean the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-05-17T12:00:00.000000042Z stdout F hello"))
	f.Add([]byte("0000-01-01T00:00:00.000000000Z stderr P "))
	f.Add([]byte("9999-12-31T23:59:59.999999999Z marker F {}"))
	f.Add([]byte("2026-02-31T12:00:00.000000042Z stdout F x"))
	f.Add([]byte("2026-05-17T12:00:00.000000042Z stdout F"))
	f.Fuzz(func(t *testing.T, line []byte) {
		l, err := Parse(line)
		var p Parser
		for range 2 {
			if again, parserErr := p.Parse(line); !reflect.DeepEqual(again, l) || (parserErr == nil) != (err == nil) {
				t.Fatalf("the Parser says %v, %v, Parse %v, %v", again, parserErr, l, err)
			}
		}
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v is not ErrMalformed", err)
			}
			return
		}
		// The text may hold newlines only because the fuzzer, unlike a reader, does not cut at them.
		if got := Append(nil, l.Time, l.Stream, l.Full, l.Text); !bytes.Equal(got, append(bytes.Clone(line), '\n')) {
			t.Errorf("got  %q\nwant %q and a newline", got, line)
		}
		if want, err := time.Parse(TimeLayout, string(line[:len(TimeLayout)])); err != nil || !want.Equal(l.Time) {
			t.Errorf("time is %v, but package time says %v, %v", l.Time, want, err)
		}
	})
}

// Whatever is appended is parsed as it was.
func FuzzAppend(f *testing.F) {
	f.Add(int64(1778976000), int64(42), true, true, []byte("hello"))
	f.Add(int64(0), int64(0), false, false, []byte{})
	f.Fuzz(func(t *testing.T, sec, nsec int64, stderr, full bool, text []byte) {
		at := time.Unix(sec, nsec).UTC()
		if at.Year() < 0 || at.Year() > 9999 || len(text) > MaxText || bytes.ContainsRune(text, '\n') {
			return // not within what Append takes
		}
		s := Stdout
		if stderr {
			s = Stderr
		}
		line := Append(nil, at, s, full, text)
		l, err := Parse(line[:len(line)-1])
		if err != nil {
			t.Fatal(err)
		}
		if !l.Time.Equal(at) || l.Stream != s || l.Full != full || !bytes.Equal(l.Text, text) {
			t.Errorf("got %v, want %v %s %v %q", l, at, s, full, text)
		}
	})
}

// Whatever a step writes behind "marker" is read or refused, and what was read can be written as a marker and read again.
func FuzzParseMarker(f *testing.F) {
	f.Add([]byte(`{"kind":"gap","reason":"spool-limit","stdout":1,"stderr":2}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ParseMarker(text)
		if err != nil {
			return
		}
		line, err := AppendMarker(nil, noon, m)
		if err != nil {
			return // too long
		}
		l, err := Parse(line[:len(line)-1])
		if err != nil || bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("%q: %v", line, err)
		}
		if back, err := ParseMarker(l.Text); err != nil || back.Stdout != m.Stdout || back.Stderr != m.Stderr || back.Unknown != m.Unknown {
			t.Errorf("%+v became %+v, %v", m, back, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	line := Append(nil, noon, Stdout, true, bytes.Repeat([]byte("x"), 100))
	line = line[:len(line)-1]
	var p Parser
	for _, tc := range []struct {
		name  string
		parse func([]byte) (Line, error)
	}{{"each", Parse}, {"same prefix", p.Parse}} {
		b.Run(tc.name, func(b *testing.B) {
			b.SetBytes(int64(len(line)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tc.parse(line); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	text := bytes.Repeat([]byte("x"), 100)
	var buf []byte
	b.SetBytes(int64(len(text) + PrefixLen + 1))
	b.ReportAllocs()
	for b.Loop() {
		buf = Append(buf[:0], noon, Stdout, true, text)
	}
}
