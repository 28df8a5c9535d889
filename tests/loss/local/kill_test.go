//go:build linux

package local

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/spool"
	"github.com/shiplog-dev/shiplog/tests/loss/budget"
	"github.com/shiplog-dev/shiplog/tests/loss/rig"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// TestLossShipperKilled kills the shipper a hundred times, at any moment of its life.
func TestLossShipperKilled(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "shipper-kill")
	const kills = 100
	p := rig.New(t, rig.Options{Containers: steps})
	p.StartShipper()
	all := startSteps(p, steps, 20*time.Second)
	for range kills {
		// A start takes some 20 ms, an upload some 10.
		rig.Pass(t, rand.N(150*time.Millisecond))
		p.KillShipper()
		<-p.ShipperStarts()
	}
	unharmed(all)
	drain(t, p)
	m.Note("killed %d times", kills)
	for _, s := range all {
		nothingLost(t, m, p, s)
	}
}

// TestLossShipperKilledInRecording kills the shipper when it has begun to record a segment or its position: when the file is made and empty, and when it is written and not in its place yet.
func TestLossShipperKilledInRecording(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "shipper-kill-record")
	p := rig.New(t, rig.Options{Containers: steps[1:2]})
	state := filepath.Join(p.StateFolder(), steps[1]+".json")
	segment := filepath.Join(p.StateFolder(), steps[1]+".segment")
	kills := 0
	// in are the moments in recording a file.
	in := func(file string) (moments []rig.Moment) {
		for call, written := range map[string]bool{"write": false, "/^rename": true} {
			moments = append(moments, rig.Moment{Call: call, File: file + ".new", Then: func() {
				kills++
				// What is there under its temporary name was never finished.
				if info, err := os.Stat(file + ".new"); err != nil || info.Size() > 0 != written {
					t.Errorf("the shipper was killed at %s, and left %v, %v", call, info, err)
				}
			}})
		}
		return moments
	}
	// With the store away, what is recorded is a segment that was cut, and the position behind it.
	p.S3.BlackHole()
	const rounds = 3
	for range rounds {
		p.KillAt(append(in(segment), in(state)...)...)
	}
	p.StartShipper()
	s := p.Start(steps[1], rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: 5e6}, Duration: 3 * time.Second}})
	allHit(t, p)
	rig.Until(t, "a segment that waits for the store", time.Minute, func() bool {
		b, err := os.ReadFile(state)
		return err == nil && strings.Contains(string(b), `"pending":"`)
	})
	// What the next shipper records first is that this segment is in the store.
	for range rounds {
		p.KillAt(in(state)...)
	}
	p.KillShipper()
	p.S3.Heal(true)
	allHit(t, p)
	s.Unharmed(0)
	drain(t, p)
	if kills != 6*rounds {
		t.Errorf("the shipper was killed %d times", kills)
	}
	m.Note("killed %d times with a record's file begun and not finished", kills)
	nothingLost(t, m, p, s)
}

// allHit waits until a shipper was killed at each of the moments.
func allHit(t *testing.T, p *rig.Pod) {
	t.Helper()
	rig.Until(t, "the death of a shipper at each moment", enough, func() bool { return p.MomentsLeft() == 0 })
}

// TestLossShipperKilledInDeletion kills the shipper when it has deleted some of several shipped files: one, the next shipper when it has deleted one more, and so on.
func TestLossShipperKilledInDeletion(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "shipper-kill-delete")
	p := rig.New(t, rig.Options{Containers: steps[:2], Limit: 48 << 20}) // files of 3 MiB
	p.Config.SegmentBytes = 20 << 20
	// What heaps up before there is a shipper is shipped as one segment, of several files. Another container's log goes on meanwhile.
	all := []*rig.Step{p.Start(steps[1], rig.StepOptions{Options: sequence.Options{Rate: fast, Bytes: 14e6}})}
	all[0].Unharmed(0)
	all = append(all, p.Start(steps[0], rig.StepOptions{Options: sequence.Options{Rate: slow, Duration: 3 * time.Second}}))
	files := complete(t, p.Folder(steps[1]))
	if len(files) < 4 {
		t.Fatalf("the spool has only the complete files %v", files)
	}
	kills := 0
	for i, name := range files[1:] {
		p.KillAt(rig.Moment{Call: "unlinkat", File: name, Then: func() {
			kills++
			if left := p.ShippedFiles(steps[1]); left != len(files)-1-i {
				t.Errorf("the shipper was killed when it was to delete file %d of %d, and left %d that it has recorded as shipped", i+2, len(files), left)
			}
		}})
	}
	p.StartShipper()
	allHit(t, p)
	all[1].Unharmed(0)
	drain(t, p)
	if kills != len(files)-1 {
		t.Errorf("the shipper was killed %d times", kills)
	}
	m.Note("killed %d times with some files deleted and others left that were recorded as shipped", kills)
	for _, s := range all {
		nothingLost(t, m, p, s)
	}
}

// complete are the names of the log files in a folder but the last that was begun, in the folder's own order, in which the shipper deletes them.
func complete(t *testing.T, folder string) (names []string) {
	t.Helper()
	f, err := os.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // opened for reading: there is nothing to lose
	all, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	last := int64(-1)
	for _, name := range all {
		if base, ok := spool.ParseLogName(name); ok {
			names = append(names, name)
			last = max(last, base)
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == spool.LogName(last) })
}

// TestLossProcessKilled kills what tee runs. All that it has written to its pipe is in the archive.
func TestLossProcessKilled(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "step-kill-process")
	p := rig.New(t, rig.Options{Containers: steps})
	p.StartShipper()
	var all []*rig.Step
	for i, rate := range []sequence.Rate{slow, mid, fast} {
		all = append(all, p.Start(steps[i], rig.StepOptions{Options: sequence.Options{Rate: rate}, Isolated: true}))
	}
	for _, s := range all {
		rig.Until(t, "output", time.Minute, func() bool { return s.Printed() > int64(rand.N(2_000)) })
		s.KillProcess()
	}
	for _, s := range all {
		if code := s.Wait(); code != 128+9 {
			t.Errorf("%s ended with exit code %d", s.Container, code)
		}
	}
	drain(t, p)
	for _, s := range all {
		killed(t, m, p, s)
	}
}

// TestLossTeeKilled kills tee, which is process 1 of its container, so that the kernel kills the whole. What is in tee's pipes and hands is shipped, since the shipper holds that.
func TestLossTeeKilled(t *testing.T) {
	parallel(t)
	m := budget.Begin(t, "step-kill-tee")
	rates := []sequence.Rate{slow, mid, fast, {}}
	trials := budget.Scale(3, 20)
	var names []string
	for range trials {
		for range rates {
			names = append(names, "step-"+string(rune('a'+len(names)/26))+string(rune('a'+len(names)%26)))
		}
	}
	p := rig.New(t, rig.Options{Containers: names})
	p.StartShipper()
	p.AwaitShipper()
	var stopped []*rig.Step
	for trial := range trials {
		var all []*rig.Step
		for i, rate := range rates {
			all = append(all, p.Start(names[trial*len(rates)+i], rig.StepOptions{Options: sequence.Options{Rate: rate}, Isolated: true}))
		}
		for _, s := range all {
			rig.Until(t, "output", time.Minute, func() bool { return s.Printed() > 0 })
		}
		rig.Pass(t, rand.N(300*time.Millisecond))
		for _, s := range all {
			s.Kill()
		}
		for _, s := range all {
			if code := s.Wait(); code != -1 {
				t.Errorf("%s ended with exit code %d", s.Container, code)
			}
		}
		stopped = append(stopped, all...)
	}
	// At the pod's end the network may be gone.
	for _, s := range stopped {
		rig.Until(t, "the seal of a killed container in a pod that goes on", time.Minute, func() bool {
			return slices.ContainsFunc(p.Objects(s.Container), func(name string) bool {
				return strings.HasSuffix(name, layout.SealFile)
			})
		})
	}
	drain(t, p)
	for _, s := range stopped {
		killed(t, m, p, s)
	}
	m.Note("killed %d times at each rate", trials)
}

// killed reads the log of a step of which something was killed, and fails the test unless all is there. The process may have written a little more than it could count.
func killed(t *testing.T, m *budget.Measurement, p *rig.Pod, s *rig.Step) {
	t.Helper()
	counted := s.Printed()
	r := p.Read(s.Container, s.Seed, -1, 0)
	lost := max(0, counted-r.Report.Bytes)
	m.Add(budget.Log{Rate: s.Rate.String(), Printed: max(counted, r.Report.Bytes), Lost: lost, Declared: r.Report.Declared, Told: r.Told()})
	// The last record may be cut off, where the process was killed in the middle of writing it.
	missing := r.Report.Missing.Bytes + r.Report.Changed.Bytes
	wrong := r.Report.Doubled.Count+r.Report.Reordered.Count+r.Report.Undue.Count > 0 || missing > maxRecord
	if wrong || lost > 0 || r.Report.Declared > 0 || r.Status != backend.Verified || r.Why != "" || r.Exit != 0 {
		t.Errorf("%s: %d bytes are lost: %v; the reader says: %s %s", s.Container, lost, r.Report, r.Told(), r.Said)
	}
}

// maxRecord is above the length of any record.
const maxRecord = 200_000
