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
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			var seen []Status
			p := &Printer{Out: bufio.NewWriter(&out), Notices: &out, Seen: func(s Status) { seen = append(seen, s) }}
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
