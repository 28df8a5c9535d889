// Package visible makes text of strangers fit for a terminal and for a line of shiplog's own: what
// a tenant writes into a marker, a record or a pod must neither forge a line nor be obeyed.
package visible

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Text shows what a terminal would obey, or not show, by its name, as \x1b and \u202e. The
// characters in kept stay.
func Text(s, kept string) string {
	shown := func(r rune) bool { return strconv.IsPrint(r) || strings.ContainsRune(kept, r) }
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !shown(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case shown(r):
			b.WriteString(s[:n])
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s = s[n:]
	}
	return b.String()
}

// Line is the first bytes of a text, at most so many of them, as one line: blanks stand for line
// breaks, and the rest is as Text has it. A text that fits stays as it is.
func Line(s string, most int) string {
	if len(s) > most {
		most = max(0, most-len("…"))
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most] + "…"
	}
	if strings.ContainsAny(s, "\n\r\t\v\f") {
		s = strings.Join(strings.Fields(s), " ")
	}
	return Text(s, "")
}
