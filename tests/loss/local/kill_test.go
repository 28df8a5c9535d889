//go:build linux

package local

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/tests/loss/budget"
	"github.com/shiplog-dev/shiplog/tests/loss/rig"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// TestLossShipperKilled kills the shipper a hundred times, at any moment of its life.
func TestLossShipperKilled(t *testing.T) {
	t.Parallel()
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

// watch kills the shipper when a file whose name has the suffix is made or deleted in a folder, until stop is called or it has done it as often as is enough. It returns how often.
func watch(t *testing.T, p *rig.Pod, folder string, mask uint32, suffix string, enough int) (stop func() (kills int)) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	watched, err := unix.InotifyAddWatch(fd, folder, mask)
	if err != nil {
		t.Fatal(err)
	}
	kills := 0
	var group sync.WaitGroup
	group.Go(func() { // ends with the watch, which the caller stops
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 || strings.Contains(string(buf[:n]), stopName) {
				return
			}
			// The names are padded with NULs. Several events at once are one moment.
			if kills < enough && strings.Contains(string(buf[:n]), suffix+"\x00") {
				p.KillShipper()
				kills++
				<-p.ShipperStarts()
			}
		}
	})
	return func() int {
		t.Helper()
		// An event of our own ends the read.
		name := filepath.Join(folder, stopName)
		if err := errors.Join(os.WriteFile(name, nil, 0o644), os.Remove(name)); err != nil {
			t.Fatal(err)
		}
		group.Wait()
		_, _ = unix.InotifyRmWatch(fd, uint32(watched))
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
		return kills
	}
}

// stopName is the file whose making or deletion ends a watch.
const stopName = ".stop-watching"

// rounds are the containers of a test that goes on until it has hit the moment that it is about, which takes one or two rounds.
var rounds = []string{"step-0", "step-1", "step-2", "step-3", "step-4", "step-5", "step-6", "step-7", "step-8", "step-9"}

// TestLossShipperKilledInRecording kills the shipper when it has begun to write its position, or a segment.
func TestLossShipperKilledInRecording(t *testing.T) {
	t.Parallel()
	m := budget.Begin(t, "shipper-kill-record")
	p := rig.New(t, rig.Options{Containers: rounds})
	var halves atomic.Int64
	p.OnDeath = func() {
		// What is there under its temporary name was never finished.
		left, err := filepath.Glob(filepath.Join(p.StateFolder(), "*.new"))
		if err != nil {
			t.Error(err)
		}
		halves.Add(int64(len(left)))
	}
	p.StartShipper()
	kills := 0
	var all []*rig.Step
	for i, name := range rounds {
		if i >= 2 && halves.Load() > 0 {
			break
		}
		s := p.Start(name, rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: 5e6}, Duration: 5 * time.Second}})
		stop := watch(t, p, p.StateFolder(), unix.IN_CREATE|unix.IN_DELETE, []string{".segment.new", ".json.new"}[i%2], 20)
		s.Unharmed(0)
		kills += stop()
		all = append(all, s)
	}
	drain(t, p)
	if halves.Load() == 0 {
		t.Errorf("the shipper was killed %d times, and never in the middle of recording", kills)
	}
	m.Note("killed %d times when a record's file was made; %d times one was left that was begun and not finished", kills, halves.Load())
	for _, s := range all {
		nothingLost(t, m, p, s)
	}
}

// TestLossShipperKilledInDeletion kills the shipper when it has deleted the first of several shipped files.
func TestLossShipperKilledInDeletion(t *testing.T) {
	t.Parallel()
	m := budget.Begin(t, "shipper-kill-delete")
	p := rig.New(t, rig.Options{Containers: rounds})
	p.Limit = 24 << 20 // files of 3 MiB
	p.Config.SegmentBytes = 20 << 20
	var halves atomic.Int64
	p.OnDeath = func() {
		for _, name := range rounds {
			if p.ShippedFiles(name) > 0 {
				halves.Add(1)
			}
		}
	}
	p.StartShipper()
	kills := 0
	var all []*rig.Step
	for i, name := range rounds {
		if i >= 2 && halves.Load() > 0 {
			break
		}
		// What heaps up is shipped as one segment, of several files.
		p.S3.BlackHole()
		s := p.Start(name, rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: 5e6}, Bytes: 11e6}})
		s.Unharmed(0)
		stop := watch(t, p, p.Folder(name), unix.IN_DELETE, ".log", 20)
		p.S3.Heal(true)
		rig.Until(t, "the deletion of what is shipped", time.Minute, func() bool {
			left, err := filepath.Glob(filepath.Join(p.Folder(name), "*.log"))
			return err == nil && len(left) <= 1
		})
		kills += stop()
		all = append(all, s)
	}
	drain(t, p)
	if halves.Load() == 0 {
		t.Errorf("the shipper was killed %d times, and never in the middle of deleting", kills)
	}
	m.Note("killed %d times when it deleted a file; %d times files were left that were recorded as shipped", kills, halves.Load())
	for _, s := range all {
		nothingLost(t, m, p, s)
	}
}

// TestLossProcessKilled kills what tee runs. All that it has written to its pipe is in the archive.
func TestLossProcessKilled(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
