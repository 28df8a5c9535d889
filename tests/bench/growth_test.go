//go:build bench

package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
)

// What the growth is computed with, beside what was measured.
const (
	peakFactor  = 5   // the busiest second against the mean of the day
	stepsOf     = 3   // of a TaskRun
	printedOf   = 2e6 // bytes of archive of a TaskRun
	tasksOf     = 5   // TaskRuns of a PipelineRun
	segmentsOf  = 60  // of a step: it prints for a minute
	putPrice    = 0.005 / 1000
	getPrice    = 0.0004 / 1000
	monthOfAGB  = 0.023
	readsOf     = 0.2 // of TaskRuns whose log somebody reads
	getsOfARead = 70
)

// growth computes what a day of up to a million TaskRuns takes, from what the other parts have measured.
func growth(t *testing.T, r *results) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	measured := func(part, name string) float64 {
		t.Helper()
		for _, s := range d.Parts[part].Samples {
			if s.Name == name {
				return s.median()
			}
		}
		t.Fatalf("%q was not measured: run the part %s before", name, part)
		return 0
	}
	admission := measured("webhook", "admission at 200/s, CPU for each") / 1000
	tickets := measured("webhook", "tickets, of new pods")
	newest := measured("list", "newest 50 of 1000000 runs")
	stored := measured("ship", storedName)

	// Of a pod: its record, two index objects, and alive.json is not written while segments are. Of a run, over its TaskRuns: its record, twice, and two index objects.
	puts := 3 + 4.0/tasksOf + stepsOf*(segmentsOf+1)
	table := "| TaskRuns a day | at the busiest, a second | cores for admission | cores for tickets, API server included | S3 PUTs a second | index objects after 30 days | newest 50 runs |\n|---|---|---|---|---|---|---|\n"
	for _, n := range []float64{1_000, 10_000, 100_000, 1_000_000} {
		second := n / 86400 * peakFactor
		list := "1 LIST"
		if n == 1_000_000 {
			list = fmt.Sprintf("1 LIST, %.2g ms", newest)
		}
		table += fmt.Sprintf("| %.0f | %.2g | %.2g | %.2g | %.3g | %.2g million | %s |\n", n, second, second*admission, second/tickets, second*puts, n*30*(2+2.0/tasksOf)/1e6, list)
	}
	r.Text = append(r.Text, fmt.Sprintf(`Computed from what is measured above (admission %.2g ms of CPU, %.3g tickets a second on one core, %.2g GB stored for a GB), for TaskRuns of %d steps that each print for a minute, %.0f MB in all, %d of them in a
PipelineRun; the busiest second has %d times the mean of the day:`, admission*1000, tickets, stored, stepsOf, printedOf/1e6, tasksOf, peakFactor)+"\n\n"+table)
	const k = 1000
	r.Text = append(r.Text, fmt.Sprintf(`A thousand such TaskRuns make %.0f PUTs and keep %.2g GB. At %.3f USD for 1,000 PUTs, %.4f USD for 1,000 GETs and LISTs, and %.3f USD for a GB and month (put in your own prices), that is %.2f USD for
requests and %.3f USD for a month of storage; reading every fifth of them whole, %d requests each, is %.4f USD. Nearly all is PUTs of steps that print all the time: `+"`--flush-interval`"+` is the setting for that.`,
		k*puts, k*printedOf/1e9*stored, putPrice*1000, getPrice*1000, monthOfAGB, k*puts*putPrice, k*printedOf/1e9*stored*monthOfAGB, getsOfARead, k*readsOf*getsOfARead*getPrice))
}
