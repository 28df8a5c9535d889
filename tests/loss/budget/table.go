package budget

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The markers between which the table stands.
const (
	beginMark = "<!-- loss budget: begin. Made by make loss-budget. -->"
	endMark   = "<!-- loss budget: end -->"
)

// Replace puts a table into a page, in the place of the one that is there.
func Replace(page []byte, table string) ([]byte, error) {
	before, rest, found := bytes.Cut(page, []byte(beginMark))
	_, after, foundEnd := bytes.Cut(rest, []byte(endMark))
	if !found || !foundEnd {
		return nil, errors.New("the two comments are missing between which the table stands")
	}
	return fmt.Appendf(nil, "%s%s\n%s%s%s", before, beginMark, table, endMark, after), nil
}

// Table makes the table of what was measured.
func Table(results []Result) string {
	var b strings.Builder
	b.WriteString("| what breaks | may be lost | printed, at | bytes lost | of these marked in the log | the reader says | took |\n|---|---|---|---|---|---|---|\n")
	var notes []string
	for _, row := range Rows {
		var all []Result
		for _, r := range results {
			if r.Row == row.ID {
				all = append(all, r)
			}
		}
		line, rowNotes := row.line(all)
		b.WriteString(line)
		for _, n := range rowNotes {
			notes = append(notes, fmt.Sprintf("- %s: %s\n", row.Breaks, n))
		}
	}
	if len(notes) > 0 {
		b.WriteString("\nMeasured beside it:\n\n" + strings.Join(notes, ""))
	}
	return b.String()
}

// line is the row's line.
func (row Row) line(results []Result) (line string, notes []string) {
	var logs []Log
	var took float64
	failed, full := false, true
	for _, r := range results {
		logs = append(logs, r.Logs...)
		notes = append(notes, r.Notes...)
		took += r.Took
		failed = failed || r.Failed
		full = full && r.Full
	}
	breaks := row.Breaks
	if !full {
		breaks += " (quick run)"
	}
	if failed {
		return fmt.Sprintf("| %s | %s | | **does not hold**: its test failed | | | |\n", breaks, row.Aim), nil
	}
	if len(logs) == 0 {
		return fmt.Sprintf("| %s | %s | not measured | | | | |\n", row.Breaks, row.Aim), nil
	}
	var printed, lost, declared int64
	var rates, told []string
	for _, l := range logs {
		printed += l.Printed
		lost += l.Lost
		declared += l.Declared
		if !slices.Contains(rates, l.Rate) {
			rates = append(rates, l.Rate)
		}
		if !slices.Contains(told, l.Told) {
			told = append(told, l.Told)
		}
	}
	marked := ""
	if lost > 0 || declared > 0 {
		marked = fmt.Sprint(declared)
	}
	duration := time.Duration(took * float64(time.Second)).Round(time.Second)
	return fmt.Sprintf("| %s | %s | %s, %s | %d | %s | %s | %s |\n",
		breaks, row.Aim, size(printed), strings.Join(rates, " + "), lost, marked, strings.Join(told, "<br>"), duration), notes
}

// size writes bytes for a person.
func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}
