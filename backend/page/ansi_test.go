package page

import (
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestSpans(t *testing.T) {
	for _, c := range []struct {
		name, line string
		want       []Span
	}{
		{"nothing", "", nil},
		{"plain", "a b\tc ü 日本", []Span{{Text: "a b\tc ü 日本"}}},
		{"colours", "a\x1b[31mb\x1b[1;44mc\x1b[0md", []Span{{Text: "a"}, {Text: "b", Class: "f1"}, {Text: "c", Class: "b f1 g4"}, {Text: "d"}}},
		{"reset without a number", "\x1b[32mx\x1b[my", []Span{{Text: "x", Class: "f2"}, {Text: "y"}}},
		{"bright", "\x1b[91;107mx", []Span{{Text: "x", Class: "f9 g15"}}},
		{"all attributes and back", "\x1b[1;2;3;4;7;9mx\x1b[22;23;24;27;29my", []Span{{Text: "x", Class: "b d i u s r"}, {Text: "y"}}},
		{"reversed", "\x1b[7;31ma\x1b[44mb\x1b[39mc", []Span{
			{Text: "a", Class: "r f1"}, {Text: "b", Class: "f4 g1"}, {Text: "c", Class: "r g4"},
		}},
		{"reversed, of 24 bits", "\x1b[7;38;2;1;2;3ma\x1b[41mb\x1b[39;48;2;4;5;6mc", []Span{
			{Text: "a", Back: "#010203"}, {Text: "b", Class: "f1", Back: "#010203"},
			{Text: "c", Back: "#040506"},
		}},
		{"256 colours", "\x1b[38;5;9ma\x1b[38;5;196mb\x1b[48;5;255mc", []Span{{Text: "a", Class: "f9"}, {Text: "b", Front: "#ff0000"}, {Text: "c", Front: "#ff0000", Back: "#eeeeee"}}},
		{"24 bits", "\x1b[38;2;1;2;3;4ma", []Span{{Text: "a", Class: "u", Front: "#010203"}}},
		{"24 bits with colons", "\x1b[38:2::1:2:3ma\x1b[39mb\x1b[38:2:4:5:6mc\x1b[48:5:1md", []Span{{Text: "a", Front: "#010203"}, {Text: "b"}, {Text: "c", Front: "#040506"}, {Text: "d", Class: "g1", Front: "#040506"}}},
		{"half a colour", "\x1b[38;2;1mx\x1b[38my", []Span{{Text: "xy"}}},
		{"a colour out of range", "\x1b[38;2;256;0;0mx\x1b[38;5;256my", []Span{{Text: "xy"}}},
		{"nothing is hidden", "\x1b[8mx", []Span{{Text: "x"}}},
		{"too many parameters", "\x1b[" + strings.Repeat("1;", 40) + "1mx", []Span{{Text: "x"}}},
		{"a number that is too long", "\x1b[99999999999999999999mx", []Span{{Text: "x"}}},
		{"private SGR", "\x1b[?31mx\x1b[>4;1my", []Span{{Text: "xy"}}},
		{"cursor", "\x1b[2J\x1b[1;1Hx\x1b[Ky\x1b[?25l", []Span{{Text: "xy"}}},
		{"links and titles", "\x1b]8;;https://evil\x1b\\link\x1b]8;;\x07 \x1b]0;t\x07x", []Span{{Text: "link x"}}},
		{"device control", "\x1bPq#0\x1b\\x\x1b_a\x1b\\y\x1b^b\x1b\\z\x1bXc\x1b\\", []Span{{Text: "xyz"}}},
		{"character sets", "\x1b(Bx\x1b7y\x1bcz", []Span{{Text: "xyz"}}},
		{"half a sequence", "x\x1b[31", []Span{{Text: "x"}, {Text: "ESC", Class: "x"}, {Text: "[31"}}},
		{"a link without end hides nothing", "x\x1b]8;;y", []Span{{Text: "x"}, {Text: "ESC", Class: "x"}, {Text: "]8;;y"}}},
		{"an escape at the end", "x\x1b", []Span{{Text: "x"}, {Text: "ESC", Class: "x"}}},
		{"a sequence that is broken off by text", "\x1b[3\u00fcx", []Span{{Text: "ESC", Class: "x"}, {Text: "[3üx"}}},
		{"control characters", "a\x00b\x07\x08\x7f", []Span{{Text: "a"}, {Text: "NUL", Class: "x"}, {Text: "b"}, {Text: "BEL", Class: "x"}, {Text: "BS", Class: "x"}, {Text: "DEL", Class: "x"}}},
		{"C1", "\u009b31mx", []Span{{Text: "U+009B", Class: "x"}, {Text: "31mx"}}},
		{"direction", "a\u202eb\u2066c\u200fd\ufeff", []Span{{Text: "a"}, {Text: "U+202E", Class: "x"}, {Text: "b"}, {Text: "U+2066", Class: "x"}, {Text: "c"}, {Text: "U+200F", Class: "x"}, {Text: "d"}, {Text: "U+FEFF", Class: "x"}}},
		{"a family stays together", "👩\u200d👧", []Span{{Text: "👩\u200d👧"}}},
		{"carriage returns", "10%\r20%\r100%\r", []Span{{Text: "100%"}}},
		{"a line of Windows", "x\r", []Span{{Text: "x"}}},
		{"not UTF-8", "a\xffb", []Span{{Text: "a\ufffdb"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, all(c.line)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzSpans: whatever a step prints, what is shown has no control character, and none that changes the order of text, and of text without any nothing is left out.
func FuzzSpans(f *testing.F) {
	for _, s := range []string{"", "plain", "\x1b[31mred\x1b[0m", "\x1b[38;2;1;2;3mx", "\x1b]8;;u\x07x", "\x1b[", "a\rb", "\u202e", "\x9b", "\x1b[38:2::1:2:3m", "\x1bP"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var shown strings.Builder
		for _, s := range all(line) {
			if s.Text == "" || !utf8.ValidString(s.Text) {
				t.Errorf("span %+v", s)
			}
			for _, r := range s.Text {
				if r < ' ' && r != '\t' || r == 0x7f || named(r) {
					t.Errorf("%q is shown", r)
				}
			}
			for class := range strings.FieldsSeq(s.Class) {
				if len(class) > 3 {
					t.Errorf("class %q", class)
				}
			}
			shown.WriteString(s.Text)
		}
		plain := utf8.ValidString(line) && !strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f || named(r) })
		if plain && shown.String() != line {
			t.Errorf("%q is shown as %q", line, shown.String())
		}
	})
}

// all are the spans of a whole line.
func all(line string) []Span {
	out, _ := spans(line, math.MaxInt)
	return out
}
