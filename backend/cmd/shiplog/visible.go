package main

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// visible shows what a terminal would obey, or not show, by its name, as \x1b and \u202e: names and reasons are of whoever wrote the pod.
func visible(s string) string { return visibleBut(s, "") }

// visibleText does so for a text of several lines.
func visibleText(s string) string { return visibleBut(s, "\n\t") }

func visibleBut(s, kept string) string {
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

// notices writes what a backend.Printer has to say: one line at a time, behind a label, which may be coloured.
type notices struct {
	out   io.Writer
	label string
}

func (n *notices) Write(b []byte) (int, error) {
	said, labelled := bytes.CutPrefix(b, []byte(n.label))
	label := ""
	if labelled {
		label = n.label
	}
	_, err := fmt.Fprintf(n.out, "%s%s\n", label, visible(string(bytes.TrimSuffix(said, []byte("\n")))))
	return len(b), err
}
