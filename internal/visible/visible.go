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

// Line is a text as one line: blanks stand for line breaks, and the rest is as Text has it. The
// line has at most so many bytes, and ends with … where the text did not fit. A line that was made
// so stays as it is when it is made again.
func Line(s string, most int) string {
	// It is cut first, so that a long text costs no more than what is shown of it.
	s, long := head(s, most)
	if strings.ContainsAny(s, "\n\r\t\v\f") {
		s = strings.Join(strings.Fields(s), " ")
	}
	s, longer := head(Text(s, ""), most)
	if long || longer {
		s, _ = head(s, most-len("…"))
		return s + "…"
	}
	return s
}

// head is the start of a text, whole runes of at most so many bytes, and whether there is more.
func head(s string, most int) (string, bool) {
	if len(s) <= most {
		return s, false
	}
	most = max(0, most)
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most], true
}
