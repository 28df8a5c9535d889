package visible

import (
	"strings"
	"testing"
)

func TestText(t *testing.T) {
	for _, c := range []struct{ in, kept, want string }{
		{"", "", ""},
		{"a  b ä 漢", "", "a  b ä 漢"},
		{"a\x1b[31mb", "", `a\x1b[31mb`},
		{"a\u202eb\xff", "", `a\u202eb\xff`},
		{"a\nb\tc", "\n\t", "a\nb\tc"},
		{"a\nb", "", `a\nb`},
	} {
		if got := Text(c.in, c.kept); got != c.want {
			t.Errorf("Text(%q, %q) is %q, want %q", c.in, c.kept, got, c.want)
		}
	}
}

func TestLine(t *testing.T) {
	for _, c := range []struct {
		in   string
		most int
		want string
	}{
		{"as it is,  whole", 16, "as it is,  whole"},
		{"two\nlines\r\nthree", 100, "two lines three"},
		{"a\x1b]0;x\x07", 100, `a\x1b]0;x\a`},
		{strings.Repeat("x", 20), 10, "xxxxxxx…"},
		{"ääääää", 8, "ää…"},
		{"xx", 1, "…"},
		{"\x7fxxxxxxxx", 10, `\x7fxxx…`},
		{"xxxxxx\x7f", 8, "xxxxx…"},
		{" a\n\n\n\n b  c", 10, "a b…"},
	} {
		if got := Line(c.in, c.most); got != c.want {
			t.Errorf("Line(%q, %d) is %q, want %q", c.in, c.most, got, c.want)
		}
		if again := Line(c.want, c.most); again != c.want {
			t.Errorf("Line(%q, %d) is %q, want it unchanged", c.want, c.most, again)
		}
	}
}
