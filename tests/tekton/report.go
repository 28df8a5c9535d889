package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// outcome is what came of an example or a test.
type outcome struct {
	name     string
	leftOut  string       // why it was not run
	unusable string       // why its runs say nothing, such as that it fails without shiplog too
	differs  []difference // what is not the same with shiplog
	verified int          // logs in the archive that are verified
	skipped  []string     // containers without a log in the archive, and why
	err      error        // why it could not be compared
}

// state is the outcome in a few words.
func (o outcome) state() string {
	switch {
	case o.err != nil:
		return "could not be compared: " + o.err.Error()
	case len(o.differs) > 0:
		return fmt.Sprintf("%d differences", len(o.differs))
	case o.unusable != "":
		return o.unusable
	}
	return "the same"
}

// report is of one half.
type report struct {
	half, version string
	list          bool // nothing was run
	outcomes      []outcome
}

func (r *report) differs() bool {
	return slices.ContainsFunc(r.outcomes, func(o outcome) bool {
		return len(o.differs) > 0 || o.err != nil
	})
}

// print writes the counts, then what is behind each of them.
func (r *report) print(w io.Writer) {
	slices.SortFunc(r.outcomes, func(a, b outcome) int { return strings.Compare(a.name, b.name) })
	var leftOut, unusable, skipped, differs, failed []string
	same, different, verified := 0, 0, 0
	for _, o := range r.outcomes {
		verified += o.verified
		for _, s := range o.skipped {
			skipped = append(skipped, o.name+": "+s)
		}
		switch {
		case o.leftOut != "":
			leftOut = append(leftOut, o.name+": "+o.leftOut)
		case o.err != nil:
			failed = append(failed, o.name+": "+o.err.Error())
		case len(o.differs) > 0:
			different++
			differs = append(differs, o.name)
			for _, d := range o.differs {
				differs = append(differs, "  "+d.what,
					"    without: "+shown(d.without), "    with:    "+shown(d.with))
			}
		case o.unusable != "":
			unusable = append(unusable, o.name+": "+o.unusable)
		default:
			same++
		}
	}
	fmt.Fprintf(w, "\n%s of Tekton %s: %d, of which %d are left out\n",
		r.half, r.version, len(r.outcomes), len(leftOut))
	if !r.list {
		fmt.Fprintf(w, "  %d the same with shiplog, %d different, %d say nothing, "+
			"%d could not be compared\n  %d logs archived and verified, %d containers not captured\n",
			same, different, len(unusable), len(failed), verified, len(skipped))
	}
	for _, part := range []struct {
		title string
		lines []string
	}{
		{"left out", leftOut}, {"say nothing", unusable}, {"not captured", skipped},
		{"could not be compared", failed}, {"different", differs},
	} {
		if len(part.lines) > 0 {
			fmt.Fprintf(w, "\n%s:\n  %s\n", part.title, strings.Join(part.lines, "\n  "))
		}
	}
}

// shown is a value on one line, and not too long a one.
func shown(value string) string {
	const most = 600
	if value == "" {
		return "none"
	}
	value = strings.ReplaceAll(value, "\n", "\n             ")
	if len(value) > most {
		return value[:most] + "…"
	}
	return value
}
