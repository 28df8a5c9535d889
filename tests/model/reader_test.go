package model

import (
	"slices"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// piece is a line, or a piece of one, or a gap of the archive itself, and where it is.
type piece struct {
	number, offset int64
	criline.Line
	missing bool
	perhaps bool
}

// truth is what the slow reader finds of a container.
type truth struct {
	status backend.Status
	pieces []piece
	place  // of the end, by what is archived
	// Numbers that begin anew overlap, or where segments met is lost, so that nobody can know what
	// counts twice.
	estimated bool
}

// read reads a container as it is in the store: all objects, in order.
func (s *store) read(p *pod, l *log, now time.Time) truth {
	var t truth
	var heard time.Time
	for _, o := range s.under(p.key.Prefix()) {
		if o.modified.After(heard) {
			heard = o.modified
		}
	}
	alive := now.Sub(heard) < backend.AliveWithin
	var seal *record.Seal
	var cuts []*cut
	for key, o := range s.under(l.key.Prefix()) {
		switch {
		case o.cut != nil:
			cuts = append(cuts, o.cut)
		case key == l.key.SealKey():
			v := must(record.Decode[record.Seal](o.body))
			seal = &v
		}
	}
	if _, ok := s.objects[p.key.PodKey()]; ok && len(cuts) == 0 && seal == nil {
		for _, c := range p.record.Containers {
			switch {
			case c.Name != l.key.Container || c.Captured:
			case c.Missed():
				t.status = backend.Missed
				return t
			default:
				t.status = backend.NotCaptured
				return t
			}
		}
	}
	// Take the segments by offset, and of two with the same offset the longer first.
	slices.SortStableFunc(cuts, func(a, b *cut) int {
		if a.from != b.from {
			return a.from - b.from
		}
		return b.to - a.to
	})
	end, whole := 0, -1 // whole: where the first hole begins
	for _, c := range cuts {
		if c.from > end && whole < 0 {
			whole = end
		}
		end = max(end, c.to)
	}
	closed := seal != nil && (whole < 0 || seal.Bytes > l.places[whole].archive)
	switch {
	case whole >= 0 && !closed && alive: // its end came first: what is before it is on its way
		t.status = backend.Running
		cuts = slices.DeleteFunc(cuts, func(c *cut) bool { return c.from >= whole })
	case whole >= 0, seal != nil && l.places[end].archive < seal.Bytes:
		t.status = backend.Damaged
	case seal != nil && l.places[end].archive == seal.Bytes && seal.GapCount > 0:
		t.status = backend.Gaps
	case seal != nil && l.places[end].archive == seal.Bytes:
		t.status = backend.Verified
	case alive:
		t.status = backend.Running
	default:
		t.status = backend.Partial
	}
	// Each line that a segment has is archived, and can be read if one of these is sound.
	archived, sound := make([]bool, len(l.lines)), make([]bool, len(l.lines))
	t.estimated = l.unsure(cuts)
	end = 0
	for _, c := range cuts {
		for i := c.from; i < c.to; i++ {
			archived[i] = true
			sound[i] = sound[i] || !c.corrupt
		}
		t.estimated = t.estimated || c.from < end && (l.renumbered || l.w.faults)
		end = max(end, c.to)
	}
	gap := false
	for i, line := range l.lines[:end] {
		if !sound[i] {
			if !gap {
				t.pieces = append(t.pieces, piece{missing: true})
			}
			gap = true
		} else {
			gap = false
			t.pieces = append(t.pieces, piece{number: t.lines + 1, offset: t.printed, Line: line})
		}
		if archived[i] {
			t.archive += l.places[i+1].archive - l.places[i].archive
			t.printed += l.places[i+1].printed - l.places[i].printed
			t.lines += l.places[i+1].lines - l.places[i].lines
		}
	}
	return t
}

// unsure says whether names do not tell where each segment begins, though they were all numbered
// alike. They do where it begins at the end of what is before it, or where others begin or end of
// which that is known, or behind whole lines alone.
func (l *log) unsure(cuts []*cut) bool {
	known := map[int]bool{}
	end, before := 0, 0
	for _, c := range cuts {
		if c.to <= end {
			continue // others cover it
		}
		if c.from < end && !known[c.from] && slices.ContainsFunc(l.lines[before:c.from],
			func(line criline.Line) bool { return !line.Full || line.Stream == criline.Markers }) {
			return true
		}
		known[c.from] = true
		for more := true; more; {
			more = false
			for _, c := range cuts {
				if known[c.from] != known[c.to] {
					known[c.from], known[c.to], more = true, true, true
				}
			}
		}
		end, before = c.to, c.from
	}
	return false
}

// chosen are the pieces that options choose. Gaps of the archive itself have no sure place.
func (t truth) chosen(o backend.LogOptions) (chosen []piece) {
	from := o.FromLine
	if o.Tail > 0 {
		from = max(from, t.lines-o.Tail+1)
	}
	for _, p := range t.pieces {
		n := max(1, p.Printed())
		p.perhaps = p.Printed() == 0 && o.FromByte > 0 && p.offset == o.FromByte // it has no byte
		if p.missing || p.number < from || o.ToLine > 0 && p.number > o.ToLine ||
			o.FromByte > 0 && p.offset+n <= o.FromByte || o.ToByte > 0 && p.offset >= o.ToByte {
			continue
		}
		chosen = append(chosen, p)
	}
	return chosen
}

// matches are the numbers of the lines in which a text is, and what these lines are: pieces of a
// stream put together, and not over what is missing.
func (t truth) matches(text string) (found []match) {
	open := map[criline.Stream]*match{}
	end := func(stream criline.Stream) {
		if m := open[stream]; m != nil && strings.Contains(m.text, text) {
			found = append(found, *m)
		}
		delete(open, stream)
	}
	for _, p := range t.pieces {
		switch {
		case p.missing:
			end(criline.Stdout)
			end(criline.Stderr)
		case p.Stream != criline.Markers:
			if open[p.Stream] == nil {
				open[p.Stream] = &match{number: p.number}
			}
			open[p.Stream].text += string(p.Text)
			if p.Full {
				end(p.Stream)
			}
		}
	}
	end(criline.Stdout)
	end(criline.Stderr)
	return found
}

type match struct {
	number int64
	text   string
}

// holds says whether there is an object under a prefix.
func (s *store) holds(prefix string) bool {
	for range s.under(prefix) {
		return true
	}
	return false
}

// find is what a name stands for, among what is in the index: a UID, a PipelineRun's name, a
// TaskRun's, and a pod's; of several the one that was made last.
func (s *store) find(w *world, ref string) (found backend.Target, ok bool) {
	s.mu.Lock()
	s.advance()
	s.mu.Unlock()
	there := func(key string) bool { _, ok := s.objects[key]; return ok }
	if there(layout.UIDIndexKey("ns", ref)) {
		for _, r := range w.runs {
			if r.UID == ref {
				return backend.Target{Run: r.Run}, true
			}
		}
		for _, p := range w.pods {
			if p.taskRunUID == ref {
				return backend.Target{Run: p.key.Run, TaskRun: p.key.TaskRun}, true
			}
		}
	}
	for i := len(w.runs) - 1; i >= 0; i-- { // they were made in this order
		r := w.runs[i]
		if r.kind == layout.PipelineRun && r.name == ref && s.holds(r.Prefix()) {
			if !ok {
				found, ok = backend.Target{Run: r.Run}, true
			} else {
				found.Others = append(found.Others, r.Run)
			}
		}
	}
	if ok {
		return found, true
	}
	var newest *pod
	for _, name := range []bool{false, true} {
		for _, p := range w.pods {
			fits := p.key.TaskRun == ref
			if name {
				fits = p.name == ref
			}
			if fits && there(layout.PodIndexKey("ns", p.name, p.key.PodUID)) && (newest == nil ||
				!p.created.Before(newest.created)) {
				newest = p
			}
		}
		switch {
		case newest == nil:
		case name:
			return backend.Target{Run: newest.key.Run, TaskRun: newest.key.TaskRun,
				PodUID: newest.key.PodUID}, true
		default:
			return backend.Target{Run: newest.key.Run, TaskRun: newest.key.TaskRun}, true
		}
	}
	for _, r := range slices.Backward(w.runs) {
		if r.kind == layout.TaskRun && r.name == ref && there(r.index().Key()) {
			return backend.Target{Run: r.Run}, true
		}
	}
	return backend.Target{}, false
}
