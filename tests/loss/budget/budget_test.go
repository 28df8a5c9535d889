package budget

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRows(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rows {
		if r.ID == "" || r.Breaks == "" || r.Aim == "" || seen[r.ID] || strings.Contains(r.Breaks+r.Aim, "|") {
			t.Errorf("row %+v is not whole, or is there twice", r)
		}
		seen[r.ID] = true
	}
}

// The table says what was handed in in this run, and nothing else.
func TestTable(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(ReportEnv, dir)
	t.Setenv(ScaleEnv, "all")
	t.Run("row", func(t *testing.T) {
		m := Begin(t, "s3-refused")
		m.Add(Log{Rate: "10 lines/s", Printed: 1000, Told: "verified; exit code 0"})
		m.Add(Log{Rate: "1 MB/s", Printed: 2e6, Lost: 30, Declared: 20, Told: "verified; exit code 4"})
		m.Note("a note")
	})
	if err := os.WriteFile(filepath.Join(dir, "s3-slow-1.json"), []byte(`{"row":"s3-slow","failed":true,"full":true,"logs":[{"lost":5}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	results, err := ReadResults(dir)
	if err != nil || len(results) != 2 {
		t.Fatalf("%v, %v", results, err)
	}
	for i := range results {
		results[i].Took = 61.4
	}
	table := Table(results)
	for _, want := range []string{
		"| S3: connection refused | 0 | 2 MB, 10 lines/s + 1 MB/s | 30 | 20 | verified; exit code 0<br>verified; exit code 4 | 1m1s |\n",
		"| S3: 64 KB/s | 0 | | **does not hold**: its test failed | | | |\n",
		"| a log of 5 GiB | 0; memory flat, disk bounded | not measured | | | | |\n",
		"- S3: connection refused: a note\n",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, table)
		}
	}
	if n := strings.Count(table, "not measured"); n != len(Rows)-2 {
		t.Errorf("%d of %d rows are not measured", n, len(Rows))
	}
}

func TestQuickRunIsNamed(t *testing.T) {
	table := Table([]Result{{Row: "s3-refused", Logs: []Log{{Printed: 5}}}})
	if !strings.Contains(table, "S3: connection refused (quick run)") {
		t.Error(table)
	}
}

func TestReplace(t *testing.T) {
	page := "before\n" + beginMark + "\nold\n" + endMark + "\nafter\n"
	got, err := Replace([]byte(page), "new\n")
	if want := "before\n" + beginMark + "\nnew\n" + endMark + "\nafter\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"", beginMark, endMark, endMark + beginMark} {
		if got, err := Replace([]byte(bad), "new\n"); err == nil {
			t.Errorf("%q becomes %q", bad, got)
		}
	}
}

func TestReadResultsRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r, err := ReadResults(dir); err == nil {
		t.Errorf("%v", r)
	}
}

// What is measured anew takes the place of all that was measured of the row before, and of nothing else.
func TestMerge(t *testing.T) {
	earlier := []Result{{Row: "s3-refused", Took: 1}, {Row: "s3-refused", Took: 2}, {Row: "s3-slow", Took: 3}, {Row: "no row any more"}}
	merged := Merge(earlier, []Result{{Row: "s3-refused", Took: 4}})
	name := filepath.Join(t.TempDir(), "results.json")
	if err := Save(name, merged); err != nil {
		t.Fatal(err)
	}
	got, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, r := range got {
		rows = append(rows, fmt.Sprint(r.Row, " ", r.Took))
	}
	slices.Sort(rows)
	if want := []string{"s3-refused 4", "s3-slow 3"}; !slices.Equal(rows, want) {
		t.Errorf("%v, want %v", rows, want)
	}
}
