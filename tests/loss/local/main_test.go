//go:build linux

// Package local holds the rows of the loss budget that need no cluster.
package local

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/tests/loss/budget"
	"github.com/shiplog-dev/shiplog/tests/loss/rig"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// rows are how many rows are measured at once. They wait for outages most of the time.
const rows = 8

var slots = make(chan struct{}, rows)

// parallel lets a row be measured beside others, when there is a slot for it.
//
// The few rows that take longest do next to nothing but wait. They have no slot, and only t.Parallel, so that they begin with the first and do not end long after all others.
func parallel(t *testing.T) {
	t.Helper()
	t.Parallel()
	select {
	case slots <- struct{}{}:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	t.Cleanup(func() { <-slots }) // after all other cleanups
}

func TestMain(m *testing.M) {
	// All at once: it is slots that limit them. The command line can say otherwise.
	if err := flag.Set("test.parallel", "100"); err != nil {
		panic(err)
	}
	flag.Parse()
	os.Exit(rig.Main(m))
}

// The steps of a pod print at these rates, all at once.
var (
	slow = sequence.Rate{Lines: 10}
	mid  = sequence.Rate{Bytes: 1e6}
	fast = sequence.Rate{Bytes: 50e6}
)

// steps are the names of the containers.
var steps = []string{"step-slow", "step-mid", "step-fast"}

// startSteps starts a step for each name, which is one of steps. The slow ones print for so long, and the fast one for a second, or ten in a full run.
func startSteps(p *rig.Pod, names []string, d time.Duration) (all []*rig.Step) {
	options := []rig.StepOptions{
		{Options: sequence.Options{Rate: slow, Duration: d}},
		{Options: sequence.Options{Rate: mid, Duration: d}},
		{Options: sequence.Options{Rate: fast, Bytes: budget.Scale[int64](1, 10) * fast.Bytes}, Exit: 3},
	}
	for i, name := range names {
		all = append(all, p.Start(name, options[i]))
	}
	return all
}

// unharmed ends the steps of startSteps.
func unharmed(all []*rig.Step) {
	for i, s := range all {
		s.Unharmed([]int{0, 0, 3}[i])
	}
}

// shipped waits until the store has something of a container.
func shipped(t *testing.T, p *rig.Pod, container string) {
	t.Helper()
	rig.Until(t, "an object of "+container, time.Minute, func() bool { return len(p.Objects(container)) > 0 })
}

// enough is a grace that does not end a drain, also on a busy machine.
const enough = 5 * time.Minute

// drain ends the pod, whose steps have ended.
func drain(t *testing.T, p *rig.Pod) {
	t.Helper()
	if drained, took := p.Stop(enough); !drained {
		t.Errorf("the shipper did not drain in %v", took)
	}
}

// later is how far a reader's clock is ahead that asks when a pod that ended without a word counts as gone.
const later = backend.AliveWithin + time.Minute

// read reads the log of a step that has ended, and adds it to the row.
func read(m *budget.Measurement, p *rig.Pod, s *rig.Step, ahead time.Duration) rig.Reading {
	printed := s.Printed()
	r := p.Read(s.Container, s.Seed, printed, ahead)
	m.Add(budget.Log{Rate: s.Rate.String(), Printed: printed, Lost: r.Report.Lost(printed), Declared: r.Report.Declared, Told: r.Told()})
	return r
}

// nothingLost reads the log of a step that has ended, and fails the test unless all is there, and the reader says so.
func nothingLost(t *testing.T, m *budget.Measurement, p *rig.Pod, s *rig.Step) {
	t.Helper()
	if r := read(m, p, s, 0); !r.Report.Whole() || r.Status != backend.Verified || r.Exit != 0 {
		t.Errorf("%s: %v; the reader says: %s %s", s.Container, r.Report, r.Told(), r.Said)
	}
}

// allMarked reads the log of a step that has ended, and fails the test unless gap markers count exactly what is not there, and the reader says that bytes are missing. It
// returns how many.
func allMarked(t *testing.T, m *budget.Measurement, p *rig.Pod, s *rig.Step) (lost int64) {
	t.Helper()
	r := read(m, p, s, 0)
	lost = r.Report.Lost(s.Printed())
	status, exit := backend.Verified, 0
	if lost > 0 {
		status, exit = backend.Gaps, 4
	}
	if !r.Report.Right() || r.Report.End > 0 || r.Report.Unknown > 0 || lost != r.Report.Declared || r.Status != status || r.Exit != exit {
		t.Errorf("%s: %v; the reader says: %s %s", s.Container, r.Report, r.Told(), r.Said)
	}
	return lost
}
