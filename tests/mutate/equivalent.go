package main

import (
	_ "embed"
	"fmt"
	"strings"
)

//go:embed equivalent.txt
var equivalentText string

// equivalent is a change that no test can notice, since the program does the same with it.
type equivalent struct {
	at       int // line of the list
	folder   string
	function string
	source   string
	what     string
	which    int // of those with the same words, from 1
	reason   string
}

// key tells changes apart by words, so that a list outlives edits of what is around.
func (e equivalent) key() string {
	return fmt.Sprintf("%s\n%s\n%s\n%s\n%d", e.folder, e.function, e.source, e.what, e.which)
}

// parseEquivalent reads a list: paragraphs of the folder and the function, the source line, the
// change, and the reason on one line or more. Lines that begin with # are comments.
func parseEquivalent(text string) (all []equivalent, err error) {
	var lines []string
	seen := map[string]bool{}
	end := func(at int) error {
		if len(lines) == 0 {
			return nil
		}
		begin := at - len(lines)
		if len(lines) < 4 {
			return fmt.Errorf("line %d: want a folder and function, a source line, a change, a reason", begin)
		}
		e := equivalent{at: begin, source: lines[1], reason: strings.Join(lines[3:], " ")}
		var ok bool
		if e.folder, e.function, ok = strings.Cut(lines[0], " "); !ok {
			return fmt.Errorf("line %d: %q is not a folder and a function", begin, lines[0])
		}
		if e.what, e.which, err = cutWhich(lines[2]); err != nil {
			return fmt.Errorf("line %d: %w", begin+2, err)
		}
		if seen[e.key()] {
			return fmt.Errorf("line %d: is there twice", begin)
		}
		seen[e.key()] = true
		all = append(all, e)
		lines = nil
		return nil
	}
	at := 0
	for line := range strings.Lines(text) {
		at++
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			if err := end(at); err != nil {
				return nil, err
			}
		case !strings.HasPrefix(line, "#"):
			lines = append(lines, line)
		case len(lines) > 0:
			return nil, fmt.Errorf("line %d: a comment within an entry", at)
		}
	}
	return all, end(at + 1)
}

// cutWhich cuts "#2" off, which tells the second of two with the same words.
func cutWhich(text string) (what string, which int, err error) {
	at := strings.LastIndex(text, " #")
	if at < 0 {
		return text, 1, nil
	}
	if _, err := fmt.Sscanf(text[at:], " #%d", &which); err != nil || which < 2 {
		return "", 0, fmt.Errorf("%q does not end with a number from #2", text)
	}
	return text[:at], which, nil
}

// matchEquivalent finds the entries of a package's changes, and those that fit none of them.
func matchEquivalent(all []equivalent, folder string, changes []*change) (is map[*change]bool, stale []equivalent) {
	byKey := map[string]*change{}
	for _, c := range changes {
		e := equivalent{folder: folder, function: c.function, source: c.source, what: c.what(), which: 1}
		for byKey[e.key()] != nil {
			e.which++
		}
		byKey[e.key()] = c
	}
	is = map[*change]bool{}
	for _, e := range all {
		if e.folder != folder {
			continue
		}
		if c := byKey[e.key()]; c != nil {
			is[c] = true
		} else {
			stale = append(stale, e)
		}
	}
	return is, stale
}
