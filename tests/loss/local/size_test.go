//go:build linux

package local

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/tests/loss/budget"
	"github.com/shiplog-dev/shiplog/tests/loss/rig"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// The most memory that the processes may have resident. The shipper's aim is 20 MiB; here the race for a busy processor comes on top.
const (
	shipperMost = 32 << 20
	teeMost     = 16 << 20
)

// TestLossBigLog prints 5 GiB. Neither the memory of shipper and tee nor the spool grows with it.
//
// It runs alone: what is measured is not how a processor that has too much to do lets tee outrun the shipper.
func TestLossBigLog(t *testing.T) {
	m := budget.Begin(t, "log-5gib")
	p := rig.New(t, rig.Options{Containers: steps})
	p.StartShipper()
	size := budget.Scale[int64](100e6, 5<<30)
	s := p.Start(steps[2], rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: 25e6}, Bytes: size}})
	var disk atomic.Int64
	stop := every(10*time.Millisecond, func() { disk.Store(max(disk.Load(), spoolSize(p, s.Container))) })
	rig.Until(t, "the first tenth", 10*time.Minute, func() bool { return s.Printed() > size/10 })
	shipperEarly, teeEarly := p.ShipperPeak(), s.Peak()
	s.Unharmed(0)
	stop()
	drain(t, p)
	shipper, tee := p.ShipperPeak(), s.Peak()
	if shipper > shipperMost || tee > teeMost {
		t.Errorf("shipper has had %d bytes resident, tee %d", shipper, tee)
	}
	// A look sees files one after the other, while some are deleted and others grow.
	if limit := p.Config.SpoolLimit; disk.Load() > limit+8<<20 {
		t.Errorf("the spool had %d bytes, its limit is %d", disk.Load(), limit)
	}
	m.Note("peak RSS of the shipper %s after a tenth and %s at the end, of tee %s and %s; the spool had at most %s", mib(shipperEarly), mib(shipper), mib(teeEarly), mib(tee), mib(disk.Load()))
	nothingLost(t, m, p, s)
}

// TestLossManySteps prints on twenty containers at once.
func TestLossManySteps(t *testing.T) {
	m := budget.Begin(t, "log-20-steps")
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("step-%02d", i))
	}
	p := rig.New(t, rig.Options{Containers: names})
	p.StartShipper()
	var all []*rig.Step
	for _, name := range names {
		all = append(all, p.Start(name, rig.StepOptions{Options: sequence.Options{Rate: mid, Duration: budget.Scale(4*time.Second, time.Minute)}}))
	}
	for _, s := range all {
		s.Unharmed(0)
	}
	drain(t, p)
	if peak := p.ShipperPeak(); peak > shipperMost {
		t.Errorf("the shipper has had %d bytes resident", peak)
	}
	m.Note("peak RSS of the shipper %s", mib(p.ShipperPeak()))
	for _, s := range all {
		nothingLost(t, m, p, s)
	}
}

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// every calls f again and again, until stop is called.
func every(d time.Duration, f func()) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() { // stop waits for it
		defer close(ended)
		tick := time.NewTicker(d)
		defer tick.Stop()
		for {
			f()
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

// spoolSize is how many bytes are in a container's folder.
func spoolSize(p *rig.Pod, container string) (n int64) {
	entries, err := os.ReadDir(p.Folder(container))
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // or it is deleted
			n += info.Size()
		}
	}
	return n
}
