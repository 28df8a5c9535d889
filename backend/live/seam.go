package live

import (
	"hash/maphash"
	"iter"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
)

// judged is how many bytes of a line tell it from others. As many of a line are held back until it is clear whether it was shown.
const judged = 64 << 10

// seam finds where the archive goes on behind what was shown of a pod's log.
//
// Both have the same lines in almost the same order: tee writes a chunk to the spool and then to the container's stdout or stderr, where containerd reads it, and on that way one stream may overtake the other. The kubelet does not say
// of which stream a line is, and times can go back. So a seam counts: a line of the archive was shown if as many of its kind were.
type seam struct {
	shown map[uint64]int // how many lines were, by what tells them from others
	lines int            // were shown in all

	line  judge // of the pod's log, not ended yet
	begun bool
	open  open
}

// open is a line that was shown without its end.
type open struct {
	sum   uint64
	bytes int64 // of it that were shown
}

var seed = maphash.MakeSeed()

// judge takes a line's bytes, and knows it by the first of them.
type judge struct {
	hash  maphash.Hash
	bytes int64
}

func (j *judge) reset() { j.hash.SetSeed(seed); j.bytes = 0 }

func (j *judge) add(b []byte) {
	if room := judged - j.bytes; room > 0 {
		j.hash.Write(b[:min(int64(len(b)), room)])
	}
	j.bytes += int64(len(b))
}

// show remembers what was shown of the pod's log. Of a line that comes in pieces, each is one.
func (s *seam) show(l backend.Line) {
	if !s.begun {
		s.line.reset()
		s.begun = true
	}
	s.line.add(l.Text)
	if l.Full {
		s.remember()
	}
}

// stop says that nothing more is shown of the pod's log. Of a line that has not ended, the archive may have more.
func (s *seam) stop() {
	if s.begun {
		s.open = open{s.line.hash.Sum64(), s.line.bytes}
		s.remember()
	}
}

func (s *seam) remember() {
	if s.shown == nil {
		s.shown = map[uint64]int{}
	}
	s.shown[s.line.hash.Sum64()]++
	s.lines++
	s.begun = false
}

// rest yields those of the archive's lines that were not shown. Pieces of a line are held back until it is clear whether it was.
func (s *seam) rest(archive iter.Seq2[backend.Line, error]) iter.Seq2[backend.Line, error] {
	return func(yield func(backend.Line, error) bool) {
		streams := map[criline.Stream]*held{}
		for l, err := range archive {
			if err != nil || l.Stream == criline.Markers {
				if !yield(l, err) {
					return
				}
				continue
			}
			h := streams[l.Stream]
			if h == nil {
				h = &held{}
				streams[l.Stream] = h
			}
			if !h.take(s, l, yield) {
				return
			}
		}
		for _, stream := range []criline.Stream{criline.Stdout, criline.Stderr} { // lines that never ended
			if h := streams[stream]; h != nil && !h.decided && len(h.pieces) > 0 && !h.decide(s, yield) {
				return
			}
		}
	}
}

// held is a line of one of the archive's streams.
type held struct {
	judge   judge
	pieces  []backend.Line
	decided bool
	skip    int64 // bytes of it that were shown; -1: all
}

func (h *held) take(s *seam, l backend.Line, yield func(backend.Line, error) bool) bool {
	if h.decided {
		ok := h.pass(l, yield)
		if l.Full {
			*h = held{}
		}
		return ok
	}
	if len(h.pieces) == 0 {
		h.judge.reset()
	}
	h.judge.add(l.Text)
	l.Text = append([]byte(nil), l.Text...) // which is valid until the next line only
	h.pieces = append(h.pieces, l)
	if !l.Full && h.judge.bytes < judged {
		return true
	}
	ok := h.decide(s, yield)
	if l.Full {
		*h = held{}
	}
	return ok
}

// decide finds out whether the line was shown, and yields what was not.
func (h *held) decide(s *seam, yield func(backend.Line, error) bool) bool {
	h.decided, h.skip = true, s.shownOf(h.judge.hash.Sum64())
	for _, piece := range h.pieces {
		if !h.pass(piece, yield) {
			return false
		}
	}
	h.pieces = nil
	return true
}

// shownOf returns how many bytes of a line were shown: -1 for all.
func (s *seam) shownOf(sum uint64) int64 {
	switch n := s.shown[sum]; {
	case n == 0:
		return 0
	case n == 1 && s.open.bytes > 0 && s.open.sum == sum: // it was the last one
		s.shown[sum] = 0
		return s.open.bytes
	default:
		s.shown[sum] = n - 1
		return -1
	}
}

// pass yields a piece, without what was shown of it.
func (h *held) pass(l backend.Line, yield func(backend.Line, error) bool) bool {
	switch n := int64(len(l.Text)); {
	case h.skip < 0:
		return true
	case h.skip > n, h.skip == n && !l.Full:
		h.skip -= n
		return true
	default:
		l.Text, h.skip = l.Text[h.skip:], 0
		return yield(l, nil)
	}
}
