package page

import (
	"strings"
	"testing"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
)

// TestManyGaps: of a log of markers alone, one row tells some and counts the others.
func TestManyGaps(t *testing.T) {
	var rows Rows
	for range 1000 {
		rows.add(backend.Line{Number: 1, Line: criline.Line{
			Stream: criline.Markers, Full: true, Text: []byte(`{"kind":"gap","reason":"a\nb"}`),
		}})
	}
	rows.Rows[0].show()
	gaps := rows.Rows[0].Gaps
	if len(rows.Rows) != 1 || len(gaps) != mostGaps+1 || !strings.Contains(gaps[mostGaps], "in 980 more places") {
		t.Errorf("%d rows, the first with %d gaps: %q", len(rows.Rows), len(gaps), gaps)
	}
	if !strings.Contains(gaps[0], "(a b)") {
		t.Errorf("a gap is %q", gaps[0])
	}
}
