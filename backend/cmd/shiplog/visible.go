package main

import (
	"bytes"
	"fmt"
	"io"

	text "github.com/shiplog-dev/shiplog/internal/visible"
)

// visible shows what a terminal would obey, or not show, by its name: names and reasons are of
// whoever wrote the pod.
func visible(s string) string { return text.Text(s, "") }

// visibleText does so for a text of several lines.
func visibleText(s string) string { return text.Text(s, "\n\t") }

// visibleTabbed does so for a line of a log.
func visibleTabbed(s string) string { return text.Text(s, "\t") }

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
