package backend

import (
	"slices"

	"github.com/shiplog-dev/shiplog/internal/layout"
)

// places finds out what is printed before an offset, where segments overlap. A segment says how
// much is printed from its first byte to its last, whatever its shipper has numbered it from. So
// all the offsets at which segments meet are as far from each other as those between them say, and
// if one of them has a place, all have. Segments of a shipper that had lost its state meet others
// nowhere, perhaps.
type places struct {
	offsets []int64    // at which segments begin or end, in order
	parent  []int32    // a tree of those that meet
	from    []position // how far behind its parent each is
	anchors map[int32]position
}

// placesOf takes segments in any order.
func placesOf(segments []layout.Segment) *places {
	p := &places{anchors: map[int32]position{}}
	for _, s := range segments {
		p.offsets = append(p.offsets, s.Offset, s.End())
	}
	slices.Sort(p.offsets)
	p.offsets = slices.Compact(p.offsets)
	p.parent, p.from = make([]int32, len(p.offsets)), make([]position, len(p.offsets))
	for i := range p.parent {
		p.parent[i] = int32(i)
	}
	for _, s := range segments {
		a, first := p.root(s.Offset)
		b, last := p.root(s.End())
		if a != b { // last is first and what the segment has
			p.parent[b] = a
			p.from[b] = position{
				first.lines + s.Lines - last.lines, first.printed + s.Printed - last.printed,
			}
		}
	}
	return p
}

// root is the offset that stands for all that meet this one, and how far it is behind that.
func (p *places) root(offset int64) (int32, position) {
	found, ok := slices.BinarySearch(p.offsets, offset)
	if !ok {
		return -1, position{}
	}
	i, sum := int32(found), position{}
	for p.parent[i] != i {
		sum.lines += p.from[i].lines
		sum.printed += p.from[i].printed
		if up := p.parent[i]; p.parent[up] != up { // half the way for who comes next
			p.from[i].lines += p.from[up].lines
			p.from[i].printed += p.from[up].printed
			sum.lines += p.from[up].lines
			sum.printed += p.from[up].printed
			p.parent[i] = p.parent[up]
		}
		i = p.parent[i]
	}
	return i, sum
}

// anchor says what is before an offset.
func (p *places) anchor(offset int64, at position) {
	if i, behind := p.root(offset); i >= 0 {
		p.anchors[i] = position{at.lines - behind.lines, at.printed - behind.printed}
	}
}

// at is what is before an offset, if that is known.
func (p *places) at(offset int64) (position, bool) {
	i, behind := p.root(offset)
	anchor, ok := p.anchors[i]
	return position{anchor.lines + behind.lines, anchor.printed + behind.printed}, ok
}
