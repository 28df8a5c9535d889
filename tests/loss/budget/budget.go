// Package budget is the table of what can be lost: a row for each thing that breaks. A row's test really breaks it, measures, and hands in the figures with Begin and Add. The table in
// docs/loss-budget.md is made of these figures alone.
package budget

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

const (
	// ReportEnv names the folder that results are written to, as JSON; without it they are only logged.
	ReportEnv = "SHIPLOG_LOSS_REPORT"
	// ScaleEnv makes the rows as long as the table has them, with the value "all"; without it they take seconds, for CI.
	ScaleEnv = "SHIPLOG_LOSS"
)

// All says that the rows are to be measured at their full length.
func All() bool { return os.Getenv(ScaleEnv) == "all" }

// Scale is the first value in a quick run, and the second in a full one.
func Scale[T any](quick, full T) T {
	if All() {
		return full
	}
	return quick
}

// Row is one line of the table.
type Row struct {
	ID     string
	Breaks string // what breaks
	Aim    string // what may be lost
}

// Log is what became of one container's log.
type Log struct {
	Rate     string `json:"rate"`     // at which it was printed
	Printed  int64  `json:"printed"`  // bytes
	Lost     int64  `json:"lost"`     // bytes that are not in the archive
	Declared int64  `json:"declared"` // how many of these a gap marker in the log counts
	Told     string `json:"told"`     // what the reader said
}

// Result is what one test measured of a row.
type Result struct {
	Row    string   `json:"row"`
	Day    string   `json:"day"`    // on which it was measured
	Failed bool     `json:"failed"` // the row's test did not pass
	Full   bool     `json:"full"`   // measured at full length
	Took   float64  `json:"took"`   // seconds
	Logs   []Log    `json:"logs"`
	Notes  []string `json:"notes,omitempty"`
}

// Measurement collects what a test measures.
type Measurement struct {
	t      testing.TB
	result Result
}

// Begin begins a row's measurement. It is handed in when the test ends, also if it failed.
func Begin(t testing.TB, row string) *Measurement {
	t.Helper()
	if !slices.ContainsFunc(Rows, func(r Row) bool { return r.ID == row }) {
		t.Fatalf("the table has no row %q", row)
	}
	m := &Measurement{t: t, result: Result{Row: row, Full: All()}}
	begin := time.Now()
	t.Cleanup(func() {
		if t.Skipped() {
			return // nothing was measured
		}
		m.result.Failed = t.Failed()
		m.result.Day = time.Now().UTC().Format(time.DateOnly)
		m.result.Took = time.Since(begin).Round(100 * time.Millisecond).Seconds()
		for _, l := range m.result.Logs {
			t.Logf("%s: printed %d bytes, lost %d, declared %d; the reader: %s", l.Rate, l.Printed, l.Lost, l.Declared, l.Told)
		}
		for _, n := range m.result.Notes {
			t.Log(n)
		}
		if dir := os.Getenv(ReportEnv); dir != "" {
			if err := m.result.write(dir); err != nil {
				t.Errorf("hand in the result: %v", err)
			}
		}
	})
	return m
}

// Add adds a log.
func (m *Measurement) Add(l Log) { m.result.Logs = append(m.result.Logs, l) }

// Note adds something that was measured beside the logs.
func (m *Measurement) Note(format string, args ...any) {
	m.result.Notes = append(m.result.Notes, fmt.Sprintf(format, args...))
}

func (r Result) write(dir string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, r.Row+"-*.json")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// Merge puts what was measured now in the place of what an earlier run has measured of the same rows. The order is that of the rows.
func Merge(earlier, now []Result) []Result {
	merged := slices.Clone(now)
	for _, r := range earlier {
		if !slices.ContainsFunc(now, func(n Result) bool { return n.Row == r.Row }) {
			merged = append(merged, r)
		}
	}
	at := func(r Result) int { return slices.IndexFunc(Rows, func(row Row) bool { return row.ID == r.Row }) }
	merged = slices.DeleteFunc(merged, func(r Result) bool { return at(r) < 0 }) // a row that there is no more
	slices.SortStableFunc(merged, func(a, b Result) int { return at(a) - at(b) })
	return merged
}

// Save writes results to a file, and Load reads them.
func Save(name string, results []Result) error {
	b, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

// Load reads what Save has written.
func Load(name string) ([]Result, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var results []Result
	if err := json.Unmarshal(b, &results); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return results, nil
}

// ReadResults reads what tests have handed in.
func ReadResults(dir string) ([]Result, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var results []Result
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var r Result
		if err := json.Unmarshal(b, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		results = append(results, r)
	}
	return results, nil
}
