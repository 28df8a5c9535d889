//go:build linux

package local

import (
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/tests/loss/budget"
	"github.com/shiplog-dev/shiplog/tests/loss/rig"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// The steps of a pod print at these rates, all at once.
var (
	slow = sequence.Rate{Lines: 10}
	mid  = sequence.Rate{Bytes: 1e6}
	fast = sequence.Rate{Bytes: 50e6}
)

// steps are the names of the containers.
var steps = []string{"step-slow", "step-mid", "step-fast"}

// startSteps starts a step for each rate. The slow ones print for so long, and the fast one for a second.
func startSteps(p *rig.Pod, d time.Duration) []*rig.Step {
	return []*rig.Step{
		p.Start(steps[0], rig.StepOptions{Options: sequence.Options{Rate: slow, Duration: d}}),
		p.Start(steps[1], rig.StepOptions{Options: sequence.Options{Rate: mid, Duration: d}}),
		p.Start(steps[2], rig.StepOptions{Options: sequence.Options{Rate: fast, Bytes: fast.Bytes}, Exit: 3}),
	}
}

// unharmed ends the steps of startSteps.
func unharmed(all []*rig.Step) {
	all[0].Unharmed(0)
	all[1].Unharmed(0)
	all[2].Unharmed(3)
}

// nothingLost reads the log of a step that has ended, and fails the test unless all is there, and the reader says so.
func nothingLost(t *testing.T, m *budget.Measurement, p *rig.Pod, s *rig.Step) {
	t.Helper()
	r := measure(m, p, s, 0)
	if !r.Report.Whole() || r.Status != backend.Verified || r.Exit != 0 {
		t.Errorf("%s: %v; the reader says: %s %s", s.Container, r.Report, r.Told(), r.Said)
	}
}

// measure reads the log of a step that has ended, and adds it to the row.
func measure(m *budget.Measurement, p *rig.Pod, s *rig.Step, ahead time.Duration) rig.Reading {
	printed := s.Printed()
	r := p.Read(s.Container, s.Seed, printed, ahead)
	m.Add(budget.Log{Rate: s.Rate.String(), Printed: printed, Lost: r.Report.Lost(printed), Declared: r.Report.Declared, Told: r.Told()})
	return r
}

// enough is a grace that does not end a drain, also on a busy machine.
const enough = 3 * time.Minute

// TestLossS3 breaks the store while the steps print, and mends it before or behind their end. Nothing may be lost.
func TestLossS3(t *testing.T) {
	t.Parallel()
	outage := budget.Scale(5*time.Second, 2*time.Minute)
	for _, tc := range []struct {
		row    string
		faults bool // that the proxy counts
		broken func(t *testing.T, p *rig.Pod)
	}{
		{"s3-refused", false, func(t *testing.T, p *rig.Pod) {
			p.S3.Refuse()
			rig.Pass(t, outage)
			p.S3.Listen()
		}},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			m := budget.Begin(t, tc.row)
			p := rig.New(t, rig.Options{Containers: steps})
			p.StartShipper()
			all := startSteps(p, outage+3*time.Second)
			rig.Until(t, "objects in the store", time.Minute, func() bool { return len(p.Objects(steps[0])) > 0 })
			tc.broken(t, p)
			unharmed(all)
			if drained, took := p.Stop(enough); !drained {
				t.Errorf("the shipper did not drain in %v", took)
			}
			if tc.faults && p.S3.Faults() == 0 {
				t.Error("nothing was broken")
			}
			for _, s := range all {
				nothingLost(t, m, p, s)
			}
		})
	}
}
