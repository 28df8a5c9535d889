package backend

import (
	"bufio"
	"bytes"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// TestEnds expects what a log's state says at its end.
func TestEnds(t *testing.T) {
	gap, err := criline.AppendMarker(nil, now, criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 2})
	if err != nil {
		t.Fatal(err)
	}
	marker, err := criline.Parse(gap[:len(gap)-1])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		container Container
		marked    bool
		want      string
	}{
		{"verified", Container{Status: Verified}, false, ""},
		{"empty", Container{Status: Verified, Why: "never started: why is unknown"}, false, "x -- shiplog: this log is empty: never started: why is unknown\n"},
		{"running", Container{Status: Running}, false, "x -- shiplog: still running: more will follow\n"},
		{"waiting", Container{Status: Running, Why: "not started yet: W"}, false, "x -- shiplog: not started yet: W\n"},
		{"killed", Container{Status: Verified, Why: "killed: some may be missing", Segments: make([]layout.Segment, 1)}, false, "x -- shiplog: killed: some may be missing\n"},
		{"partial", Container{Status: Partial, Why: "the pod was last heard of at T"}, false, "x -- shiplog: this log is partial: the pod was last heard of at T\n"},
		{"gaps, all of them shown", Container{Status: Gaps, Why: "gaps: 1, bytes lost: 2"}, true, "x -- shiplog: 2 bytes are missing here (spool-limit)\n"},
		{"gaps, none of them shown", Container{Status: Gaps, Why: "gaps: 1, bytes lost: 2"}, false, "x -- shiplog: bytes are missing before this (gaps: 1, bytes lost: 2)\n"},
		{"damaged", Container{Status: Damaged, Why: "a hole"}, true, "x -- shiplog: 2 bytes are missing here (spool-limit)\nx -- shiplog: this log is damaged: a hole\n"},
		{"not captured", Container{Status: NotCaptured, Why: "tty"}, false, "x -- shiplog: not captured: tty\n"},
		{"missed", Container{Status: Missed, Why: "W"}, false, "x -- shiplog: this log is missing: W\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			var seen []Status
			p := &Printer{Out: bufio.NewWriter(&out), Notices: &out, Ends: &out, Seen: func(s Status) { seen = append(seen, s) }}
			if c.marked {
				if err := p.Line("x ", Line{Line: marker}, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.End("x ", c.container); err != nil {
				t.Fatal(err)
			}
			if out.String() != c.want || len(seen) == 0 || seen[len(seen)-1] != c.container.Status || c.marked && seen[0] != Gaps {
				t.Errorf("%q, seen %q; want %q", out.String(), seen, c.want)
			}
		})
	}
}

// TestMixed: lines of two logs that come piece by piece are told apart.
func TestMixed(t *testing.T) {
	piece := func(text string, stream criline.Stream, full bool) Line {
		return Line{Line: criline.Line{Time: now, Stream: stream, Full: full, Text: []byte(text)}}
	}
	var out bytes.Buffer
	b := bufio.NewWriter(&out)
	p := &Printer{Out: b, Notices: b, Ends: b}
	for _, l := range []struct {
		label string
		Line
	}{
		{"[a] ", piece("one", criline.Stdout, false)}, {"[a] ", piece(" line", criline.Stdout, true)},
		{"[a] ", piece("half", criline.Stdout, false)}, {"[b] ", piece("other", criline.Stdout, false)}, {"[a] ", piece(" more", criline.Stdout, true)},
		{"[b] ", piece("error", criline.Stderr, true)}, {"[b] ", piece("end", criline.Stdout, false)},
	} {
		if err := p.Line(l.label, l.Line, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, label := range []string{"[a] ", "[b] "} {
		if err := p.End(label, Container{Status: Partial, Why: "gone"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	const want = "[a] one line\n[a] half\n[b] other\n[a]  more\n[b] error\n[b] end\n[a] -- shiplog: this log is partial: gone\n[b] -- shiplog: this log is partial: gone\n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
