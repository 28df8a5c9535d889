package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// change is one small change of a package's source.
type change struct {
	file      string // relative to the module's folder
	line, col int
	function  string // in which it is, such as Parse or Reader.Read
	source    string // text of the line
	was, is   string // texts; an empty "is" was removed
	number    int    // of the changes of its package, from 1
	text      string // what stands in the place of the original
}

// what says what the change does.
func (c *change) what() string {
	if c.is == "" {
		return fmt.Sprintf("%q removed", c.was)
	}
	return fmt.Sprintf("%q to %q", c.was, c.is)
}

func (c *change) String() string {
	return fmt.Sprintf("%s:%d:%d: %s", c.file, c.line, c.col, strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(c.what()))
}

// site is a place in a file whose text can be changed.
type site struct {
	start, end int // offsets
	form       form
	changes    []*change
	typ        string // of the expression, where the form needs it
	op         int    // offset of the operator, where the form needs it
	opText     string
	operand    string // of ++ and --
}

// form is how a site becomes a choice at run time.
type form int

const (
	// boolean is an expression whose changes are expressions that take its place.
	boolean form = iota
	// number is a constant number whose changes are constants of the same type.
	number
	// arithmetic is a binary operation on numbers, with one change, another operator.
	arithmetic
	// step is x++ or x-- where no block can stand, with one change, the other.
	step
	// statement is a statement in a list, whose changes are statements or nothing.
	statement
)

// byPlace sorts sites by where they begin, and outer ones before inner ones.
func byPlace(a, b *site) int {
	return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(b.end, a.end))
}

// keep drops the changes that a function does not like.
func keep(sites []*site, like func(*change) bool) []*site {
	var kept []*site
	for _, s := range sites {
		s.changes = slices.DeleteFunc(s.changes, func(c *change) bool { return !like(c) })
		if len(s.changes) > 0 {
			kept = append(kept, s)
		}
	}
	return kept
}

const maxShown = 100 // bytes of a text in a report

// shown makes one line of a source text, and cuts it.
func shown(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxShown {
		text = strings.ToValidUTF8(text[:maxShown], "") + "…"
	}
	return text
}
