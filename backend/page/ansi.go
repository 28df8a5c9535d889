package page

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Span is a piece of a line that looks the same.
type Span struct {
	Text string `json:"t"`
	// Class are the names of page.css, separated by blanks: b bold, d dim, i italic, u underlined, s struck out, r reversed, f0 to f15 and g0 to g15 colours, x what is not text but stands for a control character.
	Class string `json:"c,omitempty"`
	// Front and Back are colours as #rrggbb, in the place of a class.
	Front string `json:"f,omitempty"`
	Back  string `json:"g,omitempty"`
}

// maxParameters bounds an SGR sequence; terminals take 16 to 32.
const maxParameters = 32

// style is what SGR sequences have set.
type style struct {
	bold, dim, italic, underline, struck, reversed bool
	front, back                                    colour
}

// colour is a palette's number plus 1, or one of 24 bits.
type colour struct {
	index int // 1 to 16; 0: none
	rgb   string
}

func (s style) span(text string) Span {
	// The style sheet reverses one colour of the palette. Of others, what is behind the text can be
	// any colour, and what stands before it is chosen so that it can be read.
	switch {
	case !s.reversed:
	case s.front != colour{} && s.back != colour{}:
		s.front, s.back, s.reversed = s.back, s.front, false
	case s.front.rgb != "":
		s.front, s.back, s.reversed = colour{}, s.front, false
	case s.back.rgb != "":
		s.reversed = false
	}
	var classes []string
	for _, c := range []struct {
		on   bool
		name string
	}{{s.bold, "b"}, {s.dim, "d"}, {s.italic, "i"}, {s.underline, "u"}, {s.struck, "s"}, {s.reversed, "r"}, {s.front.index > 0, "f" + strconv.Itoa(s.front.index-1)}, {s.back.index > 0, "g" + strconv.Itoa(s.back.index-1)}} {
		if c.on {
			classes = append(classes, c.name)
		}
	}
	return Span{text, strings.Join(classes, " "), s.front.rgb, s.back.rgb}
}

// spans makes of a line what is shown of it. Log text is hostile: of all escape sequences, SGR (ECMA-48, 8.3.117) sets colours, and any other one that is whole is left out: links, titles, cursor movements. What only begins like one, control
// characters, and characters that change the order of what is read, are shown by their names. Of text that carriage returns overwrite, the last is shown, as a terminal does.
//
// There are at most so many, and rest is how many bytes of the line are behind them.
func spans(line string, most int) (all []Span, rest int) {
	line = strings.TrimRight(line, "\r")
	if i := strings.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	w := &spanWriter{}
	for len(line) > 0 && len(w.out) < most {
		switch c := line[0]; {
		case c == 0x1b:
			n, sgr := sequence(line)
			if n == 0 {
				w.name(controls[c])
				n = 1
			}
			if sgr != nil {
				w.style.set(sgr)
			}
			line = line[n:]
		case c >= ' ' && c < 0x7f || c == '\t':
			w.text(line[:1])
			line = line[1:]
		case c < ' ':
			w.name(controls[c])
			line = line[1:]
		case c == 0x7f:
			w.name("DEL")
			line = line[1:]
		default:
			r, n := utf8.DecodeRuneInString(line)
			switch {
			case r == utf8.RuneError && n == 1:
				w.text("\ufffd")
			case named(r):
				w.name(fmt.Sprintf("U+%04X", r))
			default:
				w.text(line[:n])
			}
			line = line[n:]
		}
	}
	w.flush()
	return w.out, len(line)
}

// controls are the names of the C0 control characters (ECMA-48, 5.2).
var controls = strings.Fields("NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US")

// named says whether a character is shown by its number: C1 control characters, line ends that are none in a log, and what changes the direction of text or is invisible in it (Unicode Technical Report 36, 3.2 and 3.5).
func named(r rune) bool {
	switch {
	case r >= 0x80 && r < 0xa0, r == 0x61c, r == 0x180e, r >= 0x200b && r <= 0x200c, r >= 0x200e && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2060 && r <= 0x2069, r == 0xfeff, r >= 0xfff9 && r <= 0xfffb, r >= 0xe0000 && r <= 0xe007f:
		return true
	}
	return false
}

// spanWriter puts what looks the same together.
type spanWriter struct {
	out   []Span
	style style
	was   style
	b     strings.Builder
}

func (w *spanWriter) text(s string) {
	if w.style != w.was {
		w.flush()
	}
	w.b.WriteString(s)
}

func (w *spanWriter) flush() {
	if w.b.Len() > 0 {
		w.out = append(w.out, w.was.span(w.b.String()))
		w.b.Reset()
	}
	w.was = w.style
}

func (w *spanWriter) name(s string) {
	w.flush()
	w.out = append(w.out, Span{Text: s, Class: "x"})
}

// sequence returns the length of the escape sequence that a text begins with, or 0 if it is not whole; and of an SGR sequence its parameters, each with its sub-parameters.
func sequence(s string) (n int, sgr [][]int) {
	if len(s) < 2 {
		return 0, nil
	}
	switch c := s[1]; {
	case c == '[': // CSI: parameters, intermediates, and a final byte (ECMA-48, 5.4)
		i := 2
		for i < len(s) && s[i] >= 0x30 && s[i] <= 0x3f {
			i++
		}
		parameters := s[2:i]
		between := i
		for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
			i++
		}
		if i == len(s) || s[i] < 0x40 || s[i] > 0x7e {
			return 0, nil
		}
		if s[i] == 'm' && i == between {
			sgr = numbers(parameters)
		}
		return i + 1, sgr
	case c == ']', c == 'P', c == 'X', c == '^', c == '_': // OSC, DCS, SOS, PM, APC: up to ST, and OSC also to BEL (ECMA-48, 5.6; xterm)
		for i := 2; i < len(s); i++ {
			switch {
			case s[i] == 0x07 && c == ']':
				return i + 1, nil
			case s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\':
				return i + 2, nil
			}
		}
		return 0, nil
	default: // intermediates and a final byte (ECMA-35, 13)
		i := 1
		for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
			i++
		}
		if i == len(s) || s[i] < 0x30 || s[i] > 0x7e {
			return 0, nil
		}
		return i + 1, nil
	}
}

// numbers reads the parameters of an SGR sequence, or nil where they are none of its. An absent one is 0.
func numbers(text string) [][]int {
	fields := strings.Split(text, ";")
	if len(fields) > maxParameters {
		return nil
	}
	out := make([][]int, len(fields))
	for i, field := range fields {
		for part := range strings.SplitSeq(field, ":") {
			n := 0
			if part != "" {
				var err error
				if n, err = strconv.Atoi(part); err != nil || n < 0 || n > 255 {
					return nil
				}
			}
			if out[i] = append(out[i], n); len(out[i]) > 8 {
				return nil
			}
		}
	}
	return out
}

// set applies the parameters of an SGR sequence (ECMA-48, 8.3.117; 90 to 107 as xterm). What it does not know changes nothing, and what would hide text neither.
func (s *style) set(all [][]int) {
	for i := 0; i < len(all); i++ {
		switch n := all[i][0]; {
		case n == 0:
			*s = style{}
		case n == 1:
			s.bold = true
		case n == 2:
			s.dim = true
		case n == 3:
			s.italic = true
		case n == 4:
			s.underline = len(all[i]) == 1 || all[i][1] > 0
		case n == 7:
			s.reversed = true
		case n == 9:
			s.struck = true
		case n == 21: // underlined twice
			s.underline = true
		case n == 22:
			s.bold, s.dim = false, false
		case n == 23:
			s.italic = false
		case n == 24:
			s.underline = false
		case n == 27:
			s.reversed = false
		case n == 29:
			s.struck = false
		case n >= 30 && n <= 37:
			s.front = colour{index: n - 30 + 1}
		case n == 38:
			i += s.front.extended(all[i:])
		case n == 39:
			s.front = colour{}
		case n >= 40 && n <= 47:
			s.back = colour{index: n - 40 + 1}
		case n == 48:
			i += s.back.extended(all[i:])
		case n == 49:
			s.back = colour{}
		case n >= 90 && n <= 97:
			s.front = colour{index: n - 90 + 9}
		case n >= 100 && n <= 107:
			s.back = colour{index: n - 100 + 9}
		}
	}
}

// extended reads a colour behind 38 or 48, as 5;N or 2;R;G;B, or with colons (ITU-T T.416, 13.1.8), and says how many parameters behind the first it took.
func (c *colour) extended(all [][]int) (took int) {
	of := all[0][1:]
	if len(of) == 0 { // with semicolons
		for _, p := range all[1:] {
			of = append(of, p[0])
		}
		switch {
		case len(of) >= 2 && of[0] == 5:
			took, of = 2, of[:2]
		case len(of) >= 4 && of[0] == 2:
			took, of = 4, of[:4]
		default:
			return len(all) - 1 // nobody knows where it ends
		}
	}
	switch {
	case len(of) == 2 && of[0] == 5:
		*c = paletteColour(of[1])
	case len(of) == 4 && of[0] == 2:
		*c = colour{rgb: fmt.Sprintf("#%02x%02x%02x", of[1], of[2], of[3])}
	case len(of) >= 5 && of[0] == 2: // behind the number of a colour space
		*c = colour{rgb: fmt.Sprintf("#%02x%02x%02x", of[2], of[3], of[4])}
	}
	return took
}

// paletteColour is one of xterm's 256.
func paletteColour(n int) colour {
	switch {
	case n < 16:
		return colour{index: n + 1}
	case n >= 232:
		grey := 8 + (n-232)*10
		return colour{rgb: fmt.Sprintf("#%02x%02x%02x", grey, grey, grey)}
	}
	level := func(i int) int {
		if i == 0 {
			return 0
		}
		return 55 + i*40
	}
	n -= 16
	return colour{rgb: fmt.Sprintf("#%02x%02x%02x", level(n/36), level(n/6%6), level(n%6))}
}
