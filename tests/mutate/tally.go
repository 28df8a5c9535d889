package main

import (
	"fmt"
	"path"
)

// tally counts what became of changes.
type tally struct {
	changes, noticed, equivalent, missed, untried int
}

func (t *tally) count(o outcome, equivalent bool) {
	t.changes++
	switch {
	case equivalent:
		t.equivalent++
	case o == noticed:
		t.noticed++
	case o == untried:
		t.untried++
	default:
		t.missed++
	}
}

func (t *tally) add(other tally) {
	t.changes += other.changes
	t.noticed += other.noticed
	t.equivalent += other.equivalent
	t.missed += other.missed
	t.untried += other.untried
}

// share is how much is noticed, in percent, of what was tried and is not equivalent. Without any of
// these there is none.
func (t tally) share() (percent float64, ok bool) {
	tried := t.noticed + t.missed
	if tried == 0 {
		return 0, false
	}
	return 100 * float64(t.noticed) / float64(tried), true
}

func (t tally) line(folder string) string {
	text := fmt.Sprintf("%s: %d changes, %d noticed, %d equivalent, %d not noticed",
		path.Base(folder), t.changes, t.noticed, t.equivalent, t.missed)
	if share, ok := t.share(); ok {
		text += fmt.Sprintf(": %.1f %%", share)
	}
	if t.untried > 0 {
		text += fmt.Sprintf("; %d not tried, time was over", t.untried)
	}
	return text
}
