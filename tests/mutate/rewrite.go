package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
)

// runtimeText is the file that is put beside those of a rewritten package.
//
//go:embed choose.go.txt
var runtimeText string

const runtimeFile = "mutate_choose.go"

// chooseImports are the packages that it imports.
var chooseImports = []string{"os", "strconv", "sync/atomic"}

// piece is a part of a rewritten file.
type piece struct {
	text   string
	offset int     // in the original, of text that is from there
	change *change // that the text is of
}

// edit puts pieces in the place of some bytes.
type edit struct {
	at, del int
	rank    int // of edits at one offset: what ends there comes first, and inner ends before outer
	pieces  []piece
}

// rewrite makes each change of a file a choice at run time.
func rewrite(file *sourceFile, sites []*site) []piece {
	var edits []edit
	for i, s := range sites { // outer sites come before inner ones
		before, after := s.around(string(file.text[s.start:s.end]))
		edits = append(edits,
			edit{at: s.start, rank: 1 + i, pieces: before},
			edit{at: s.end, rank: -1 - i, pieces: after})
		if op := s.operator(); op != "" {
			edits = append(edits, edit{
				at: s.op, del: len(s.opText), pieces: []piece{{text: op, offset: s.op}},
			})
		}
	}
	slices.SortStableFunc(edits, func(a, b edit) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.rank, b.rank))
	})
	var pieces []piece
	last := 0
	for _, e := range edits {
		pieces = append(pieces, piece{text: string(file.text[last:e.at]), offset: last})
		for _, p := range e.pieces {
			p.offset = cmp.Or(p.offset, e.at)
			pieces = append(pieces, p)
		}
		last = e.at + e.del
	}
	return append(pieces, piece{text: string(file.text[last:]), offset: last})
}

// around is what stands before and behind the original text.
func (s *site) around(text string) (before, after []piece) {
	say := func(format string, args ...any) {
		before = append(before, piece{text: fmt.Sprintf(format, args...)})
	}
	end := func(text string) { after = append(after, piece{text: text}) }
	switch s.form {
	case boolean:
		say("(")
		var not strings.Builder
		for _, c := range s.changes {
			say("mutateAt(%d) && (", c.number)
			before = append(before, piece{text: c.text, change: c})
			say(") || ")
			fmt.Fprintf(&not, "!mutateIs(%d) && ", c.number)
		}
		say("%s(", not.String())
		end("))")
	case number:
		for _, c := range s.changes {
			say("mutateNumber[%s](%d, ", s.typ, c.number)
			before = append(before, piece{text: c.text, change: c})
			say(", ")
			end(")")
		}
	case arithmetic:
		say("mutate%s[%s](%d, ", operations[s.opText], s.typ, s.changes[0].number)
		end(")")
	case statement:
		for _, c := range s.changes {
			say("if mutateAt(%d) { ", c.number)
			before = append(before, piece{text: c.text, change: c})
			say(" } else ")
		}
		say("{ ")
		end(" }")
	}
	return before, after
}

// operations are the functions of choose.go.txt for an operator and what is in its place.
var operations = map[string]string{
	"+": "Add", "-": "Sub", "*": "Mul", "/": "Quo", "%": "Rem", "&": "And", "|": "Or", "^": "Xor",
	"&^": "AndNot", "<<": "Shl", ">>": "Shr",
}

// operator is what stands in the place of the operator, if anything does.
func (s *site) operator() string {
	switch s.form {
	case arithmetic:
		return ","
	case step:
		return fmt.Sprintf(" %c= mutateStep(%d, %s)", s.opText[0], s.changes[0].number, s.operand)
	}
	return ""
}

// program is a package with its changes as choices.
type program struct {
	sites   map[*sourceFile][]*site
	changes []*change // in the order of their places
	overlay map[string]string
	left    []*change // that cannot be written so
}

// choose rewrites a package, with the changes that a function wants. Changes that do not compile as a
// choice are left out.
func choose(src *source, want func(*change) bool) (*program, error) {
	p := &program{sites: map[*sourceFile][]*site{}}
	for _, f := range src.files {
		if !ast.IsGenerated(f.tree) {
			p.sites[f] = keep(find(src, f), want)
		}
	}
	const rounds = 20
	for range rounds {
		p.count(src)
		p.overlay = map[string]string{
			filepath.Join(src.dir, runtimeFile): strings.Replace(runtimeText, "package choose", "package "+src.name, 1),
		}
		faulty, err := p.write(src)
		if err != nil {
			return nil, err
		}
		if len(faulty) == 0 {
			return p, nil
		}
		for f, sites := range p.sites {
			p.sites[f] = keep(sites, func(c *change) bool {
				if faulty[c] {
					p.left = append(p.left, c)
				}
				return !faulty[c]
			})
		}
	}
	return nil, fmt.Errorf("%s: still does not compile after %d rounds", src.short, rounds)
}

// count numbers the changes.
func (p *program) count(src *source) {
	p.changes = nil
	for _, f := range src.files {
		for _, s := range p.sites[f] {
			p.changes = append(p.changes, s.changes...)
		}
	}
	slices.SortStableFunc(p.changes, func(a, b *change) int {
		return cmp.Or(strings.Compare(a.file, b.file), cmp.Compare(a.line, b.line), cmp.Compare(a.col, b.col))
	})
	for i, c := range p.changes {
		c.number = i + 1
	}
}

// write rewrites the files, and returns the changes that do not compile.
func (p *program) write(src *source) (faulty map[*change]bool, err error) {
	fset := token.NewFileSet()
	var trees []*ast.File
	written := map[string][]piece{}
	original := map[string]*sourceFile{}
	for _, f := range src.files {
		pieces := rewrite(f, p.sites[f])
		var text strings.Builder
		for _, piece := range pieces {
			text.WriteString(piece.text)
		}
		p.overlay[f.path] = text.String()
		written[f.path], original[f.path] = pieces, f
	}
	for path, text := range p.overlay {
		tree, err := parser.ParseFile(fset, path, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("rewritten: %w", err)
		}
		trees = append(trees, tree)
	}
	faulty = map[*change]bool{}
	for _, fault := range src.check(fset, trees, nil) {
		at := fset.PositionFor(fault.Pos, false)
		if original[at.Filename] == nil {
			return nil, fmt.Errorf("rewritten: %w", fault)
		}
		found := blame(written[at.Filename], p.sites[original[at.Filename]], at.Offset)
		if len(found) == 0 {
			return nil, fmt.Errorf("rewritten: %w", fault)
		}
		for _, c := range found {
			faulty[c] = true
		}
	}
	return faulty, nil
}

// blame finds the changes behind a fault at an offset of a rewritten file: the one whose text has it,
// or those of the innermost site around it.
func blame(pieces []piece, sites []*site, offset int) []*change {
	begin := 0
	for _, p := range pieces {
		if offset >= begin+len(p.text) {
			begin += len(p.text)
			continue
		}
		if p.change != nil {
			return []*change{p.change}
		}
		at := p.offset
		if p.text != "" && begin < offset {
			at += offset - begin
		}
		var inner *site
		for _, s := range sites {
			if s.start <= at && at < s.end && (inner == nil || s.end-s.start <= inner.end-inner.start) {
				inner = s
			}
		}
		if inner == nil {
			return nil
		}
		return inner.changes
	}
	return nil
}
