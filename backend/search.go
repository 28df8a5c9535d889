package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

const (
	// MaxSearchLine is how much of a line is searched at once, in bytes: less for a large regular
	// expression. In a longer line, what spans two such pieces is not found.
	MaxSearchLine = 1 << 20
	// MaxMatchText is how many bytes of a line a match shows.
	MaxMatchText = 4 << 10
	// MaxContext is the most lines before and behind a match.
	MaxContext = 20
	// maxPattern bounds a pattern, in bytes. RE2's time is linear in the text, and in the size of the pattern.
	maxPattern = 1 << 10
	// maxProgram bounds a regular expression's instructions, since the time for a line grows with them: counted repetitions multiply them.
	maxProgram = 2000
	// cheapProgram is how many it may have to be looked for in MaxSearchLine at once. A larger one is
	// looked for in so much less.
	cheapProgram = 64
)

// PatternError says that a pattern cannot be searched for.
type PatternError struct {
	Pattern string
	Err     error
}

func (e *PatternError) Error() string { return fmt.Sprintf("pattern %q: %v", e.Pattern, e.Err) }
func (e *PatternError) Unwrap() error { return e.Err }

// Query is what is searched for.
type Query struct {
	Pattern    string
	Regexp     bool // RE2 (github.com/google/re2/wiki/Syntax); otherwise Pattern is found as it is
	IgnoreCase bool
	// Before and After are how many lines around it a match shows, up to MaxContext.
	Before, After int
}

// Search finds a query in logs. It may be used for several at the same time.
type Search struct {
	query   Query
	find    func([]byte) []int // where the first match is, or nil
	literal literal            // what is in each match; empty if that is not known
	atOnce  int                // how many bytes of a line are searched at once
}

// NewSearch checks a query. What is wrong with it is a *PatternError.
func NewSearch(q Query) (*Search, error) {
	bad := func(err error) (*Search, error) { return nil, &PatternError{q.Pattern, err} }
	if q.Pattern == "" {
		return bad(errors.New("is empty"))
	}
	if len(q.Pattern) > maxPattern {
		return bad(fmt.Errorf("has %d bytes, %d are allowed", len(q.Pattern), maxPattern))
	}
	if q.Before < 0 || q.Before > MaxContext || q.After < 0 || q.After > MaxContext {
		return bad(fmt.Errorf("%d and %d lines of context are asked for, 0 to %d are allowed", q.Before, q.After, MaxContext))
	}
	s := &Search{query: q, atOnce: MaxSearchLine}
	if !q.Regexp && !q.IgnoreCase {
		needle := []byte(q.Pattern)
		s.literal = newLiteral(q.Pattern)
		s.find = func(b []byte) []int {
			if i := bytes.Index(b, needle); i >= 0 {
				return []int{i, i + len(needle)}
			}
			return nil
		}
		return s, nil
	}
	pattern := q.Pattern
	if !q.Regexp {
		pattern = regexp.QuoteMeta(pattern)
	}
	if q.IgnoreCase {
		pattern = "(?i)" + pattern
	}
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return bad(err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return bad(err)
	}
	if len(program.Inst) > maxProgram {
		return bad(fmt.Errorf("is too large: it has %d instructions, %d are allowed: use smaller numbers of repetitions", len(program.Inst), maxProgram))
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return bad(err)
	}
	s.find = re.FindIndex
	s.atOnce = MaxSearchLine / max(cheapProgram, len(program.Inst)) * cheapProgram
	prefix, _ := re.LiteralPrefix()
	s.literal = newLiteral(prefix)
	return s, nil
}

// literal is a text to be found in others. bytes.Index looks for its first byte, and stops at each of them; in a log, there is an "e" every 20 bytes.
type literal struct {
	text []byte
	rare int // where its rarest byte is
}

// frequent are the bytes of logs, the most frequent first. Others are rare.
const frequent = "e taoinrsclpm/dug.-0hfb1k2_v:y3=45698wx7"

func newLiteral(s string) literal {
	l := literal{text: []byte(s)}
	least := -1
	for i := range len(s) {
		rank := strings.IndexByte(frequent, s[i])
		if rank < 0 {
			rank = len(frequent)
		}
		if rank > least {
			l.rare, least = i, rank
		}
	}
	return l
}

// in says whether it is in b.
func (l literal) in(b []byte) bool {
	at, stops := l.rare, 0
	for at < len(b) {
		i := bytes.IndexByte(b[at:], l.text[l.rare])
		if i < 0 {
			return false
		}
		at += i
		if bytes.HasPrefix(b[at-l.rare:], l.text) {
			return true
		}
		at++
		if stops++; stops > 16+at/16 { // not rare here
			return bytes.Contains(b[at-l.rare:], l.text)
		}
	}
	return false
}

// MatchLine is a line that a search shows.
type MatchLine struct {
	Number int64
	Time   time.Time
	Stream criline.Stream
	Text   []byte // of a long line, MaxMatchText bytes around the match
	Cut    bool   // Text is not all of the line
}

// Match is a line in which a search found something.
type Match struct {
	MatchLine
	Start, End    int // of the first match within Text, in bytes
	Before, After []MatchLine
}

// MissingError says that a search could not look at a part of a log, since the archive lacks it or it cannot be decompressed.
type MissingError struct {
	Container layout.Container
	Offset    int64  // printed bytes before it
	Reason    string // what is missing, and why
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("the log under %s could not be searched from byte %d on: %s", e.Container.Prefix(), e.Offset, e.Reason)
}

// In yields the matches in a container's log, in its order. Pieces of a line are put together; the lines of the two streams are not mixed.
//
// Where bytes of the archive are missing or corrupt, a *MissingError is yielded, and the search goes on behind them. Any other error is the store's, and ends it. The digest of the whole log is not compared, which would take
// reading all that is passed over; each segment has a checksum of its own, and that is. Bytes that were lost before they were archived are not told of here: Container.Status and the seal say that they were.
func (s *Search) In(ctx context.Context, a *Archive, c Container, o LogOptions) iter.Seq2[Match, error] {
	return func(yield func(Match, error) bool) {
		f := finder{search: s, open: map[criline.Stream]*openLine{}}
		done, err := a.hold(c.Key.Namespace, readCost+searchCost)
		if err != nil {
			yield(Match{}, fmt.Errorf("search %s: %w", c.Key.Prefix(), err))
			return
		}
		defer done()
		o.unchecked, o.paid = true, true
		// Most lines hold nothing. They are looked through many at once, where nothing depends on each: no context, and no end but the log's.
		if len(s.literal.text) > 0 && s.query.Before == 0 && s.query.After == 0 && o.ToLine <= 0 && o.ToByte <= 0 && o.Since.IsZero() {
			o.dull = func(block []byte) bool { return !s.literal.in(block) }
		}
		for l, err := range a.Lines(ctx, c, o) {
			switch {
			case err != nil:
				if f.flush(yield) {
					yield(Match{}, err)
				}
				return
			case l.Stream != criline.Markers:
				if !f.add(l, yield) {
					return
				}
			default:
				if m, err := criline.ParseMarker(l.Text); err != nil || m.Reason != ReasonMissing {
					continue
				}
				// Nothing goes on behind what is missing: neither a line nor a match's context.
				if !f.end(yield) || !yield(Match{}, &MissingError{c.Key, l.Offset, DescribeMarker(l.Text)}) {
					return
				}
			}
		}
		f.end(yield)
	}
}

// openLine is a line of which pieces were there.
type openLine struct {
	first Line
	text  []byte
}

// finder is the state of a search in one log.
type finder struct {
	search  *Search
	open    map[criline.Stream]*openLine
	before  []MatchLine // the last lines
	waiting []Match     // for the lines behind them
}

// add takes the next piece.
func (f *finder) add(l Line, yield func(Match, error) bool) bool {
	open := f.open[l.Stream]
	if open == nil && l.Full { // the most frequent case needs no copy
		return f.line(openLine{l, l.Text}, yield)
	}
	if open == nil {
		open = &openLine{first: l}
		f.open[l.Stream] = open
	}
	open.text = append(open.text, l.Text...)
	if !l.Full && len(open.text) < f.search.atOnce {
		return true
	}
	delete(f.open, l.Stream)
	return f.line(*open, yield)
}

// line looks into a whole line.
func (f *finder) line(l openLine, yield func(Match, error) bool) bool {
	q := f.search.query
	at := f.search.find(l.text)
	if at == nil && q.Before == 0 && len(f.waiting) == 0 {
		return true
	}
	shown := MatchLine{Number: l.first.Number, Time: l.first.Time, Stream: l.first.Stream}
	start, end := 0, 0
	if at != nil {
		start, end = at[0], at[1]
	}
	// What is shown of a long line has the match's beginning in its first quarter.
	from := 0
	if start > MaxMatchText/4 && len(l.text) > MaxMatchText {
		from = min(start-MaxMatchText/4, len(l.text)-MaxMatchText)
	}
	to := min(len(l.text), from+MaxMatchText)
	shown.Text, shown.Cut = bytes.Clone(l.text[from:to]), to-from < len(l.text)
	for i := range f.waiting {
		f.waiting[i].After = append(f.waiting[i].After, shown)
	}
	for len(f.waiting) > 0 && len(f.waiting[0].After) >= q.After {
		if !yield(f.waiting[0], nil) {
			return false
		}
		f.waiting = f.waiting[1:]
	}
	if at != nil {
		f.waiting = append(f.waiting, Match{MatchLine: shown, Start: start - from, End: min(end, to) - from, Before: slices.Clone(f.before)})
		if q.After == 0 && !f.flush(yield) {
			return false
		}
	}
	if q.Before > 0 {
		if len(f.before) == q.Before {
			f.before = slices.Delete(f.before, 0, 1)
		}
		f.before = append(f.before, shown)
	}
	return true
}

// end looks into the lines that never ended, and yields what waits.
func (f *finder) end(yield func(Match, error) bool) bool {
	for _, stream := range []criline.Stream{criline.Stdout, criline.Stderr} {
		if open := f.open[stream]; open != nil && !f.line(*open, yield) {
			return false
		}
		delete(f.open, stream)
	}
	f.before = nil
	return f.flush(yield)
}

// flush yields what waits for lines that will not come.
func (f *finder) flush(yield func(Match, error) bool) bool {
	for _, m := range f.waiting {
		if !yield(m, nil) {
			return false
		}
	}
	f.waiting = nil
	return true
}
