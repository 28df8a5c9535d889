//go:build bench

package bench

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// fast is how long a log's segments are cut each second: see docs/decisions.md.
const fast = 2 * time.Minute

// lag measures the time from a line's write to the appearance of its object, and how many objects there are.
func lag(t *testing.T, r *results) {
	shipper, tee := binary(t, "./shipper"), binary(t, "./shipper/tee")
	g := newTarget(t, false)
	folder := g.folder(t)
	in := text(t, 100_000_000, mixed)

	row := func(what, aim string, median, p99 float64, s samples) {
		r.keep(s)
		r.row(what, aim, (median == 0 || s.median() <= median) && s.percentile(99) <= p99, "", "median %.2f s, p99 %.2f s, longest %.2f s (%d lines)", s.median(), s.percentile(99), s.most(), len(s.Values))
	}
	const early = "median 0.7 s, p99 2 s"
	line := []byte("a line of a build that has little to say\n")
	burst, trickle, stream, pauses := newWatched(t, g, shipper, tee), newWatched(t, g, shipper, tee), newWatched(t, g, shipper, tee), newWatched(t, g, shipper, tee)
	const long, trickled = 5 * time.Minute, 150 // of these, lines at one a second
	// All at the same time: together they use little of the machine.
	var wg sync.WaitGroup
	wg.Go(func() { burst.flow(t, in, 20_000_000, fast) })
	wg.Go(func() { stream.flow(t, in, 1_000_000, fast) })
	wg.Go(func() { trickle.lines(t, line, int(long/time.Second), time.Second) })
	wg.Go(func() { // a step that has long been slow, and then pauses
		pauses.lines(t, line, trickled, time.Second)
		pauses.lines(t, line, 7, 20*time.Second)
	})
	wg.Wait()
	for _, w := range []watched{burst, trickle, stream, pauses} {
		w.end(t)
	}
	row("20 MB/s, first two minutes", early, 0.7, 2, burst.lags(t, folder, "lag at 20 MB/s", func(time.Duration, int) bool { return true }))
	row("1 MB/s, first two minutes", early, 0.7, 2, stream.lags(t, folder, "lag at 1 MB/s", func(time.Duration, int) bool { return true }))
	row("1 line/s, first two minutes", early, 0.7, 2, trickle.lags(t, folder, "lag at 1 line/s, first two minutes", func(d time.Duration, _ int) bool { return d < fast }))
	row("the first line after a pause of 20 s", early, 0.7, 2, pauses.lags(t, folder, "lag of the first line after a pause of 20 s", func(_ time.Duration, n int) bool { return n >= trickled }))
	row("1 line/s, later", "p99 6 s", 0, 6, trickle.lags(t, folder, "lag at 1 line/s, later", func(d time.Duration, _ int) bool { return d >= fast }))

	// The first of those behind two minutes are still cut each second.
	const settled = fast + 30*time.Second
	soon, later, steady := trickle.objects(t, folder, settled)
	hour := float64(soon+later) + float64(steady)*float64(time.Hour-long)/float64(long-settled)
	r.keep(samples{Name: "segments of the first two minutes at 1 line/s", Values: []float64{float64(soon)}}, samples{Name: "segments of the minutes after, at 1 line/s", Values: []float64{float64(later)}})
	alive := (time.Hour).Minutes() // at most: it is written where nothing else is
	r.row("objects of one hour at 1 line/s", "1,000", hour+alive <= 1000, "the last that are cut each second are in what this is computed with; by the shipper's rule it is 824 segments", "%.0f segments (%d in the first two minutes and %d in the %.0f after them, computed for the hour) and at most %.0f of alive.json", hour, soon, later, (long - fast).Minutes(), alive)
}

// step is one that prints what it is given.
type step struct {
	in  *os.File
	tee *process
}

// printing starts a step of the pod.
func (p *pod) printing(t *testing.T, tee, container string) *step {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tee, contract.Tee{Spool: p.spool(container), Limit: 1 << 30, Argv: []string{"cat"}}.Args()...)
	cmd.Stdin = read
	s := &step{write, startProcess(t, cmd)}
	read.Close()
	return s
}

func (s *step) print(t *testing.T, b []byte) {
	if _, err := s.in.Write(b); err != nil {
		t.Error(err)
	}
}

// watched is a pod of one step whose lag is measured.
type watched struct {
	*pod
	*step
	shipper *process
}

func newWatched(t *testing.T, g *target, shipper, tee string) watched {
	t.Helper()
	p := newPod(t, g, 1)
	return watched{p, p.printing(t, tee, p.containers[0]), p.shipper(t, shipper, 0)}
}

// end waits until all is in the archive.
func (w watched) end(t *testing.T) {
	t.Helper()
	w.in.Close()
	w.step.tee.end(t)
	w.shipper.until(t, time.Minute, "the seals", func() bool { return w.sealed(t.Context()) })
	w.shipper.stop(t)
}

// lines writes so many, each after a pause.
func (s *step) lines(t *testing.T, line []byte, n int, pause time.Duration) {
	for range n {
		wait(pause)
		s.print(t, line)
	}
}

// flow writes so many bytes a second, in pieces of a hundredth of one.
func (s *step) flow(t *testing.T, name string, perSecond int, d time.Duration) {
	b, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
		return
	}
	const pieces = 100
	tick := time.NewTicker(time.Second / pieces)
	defer tick.Stop()
	at := 0
	for range int(d.Seconds() * pieces) {
		<-tick.C
		n := perSecond / pieces
		if at+n > len(b) {
			at = 0
		}
		s.print(t, b[at:at+n])
		at += n
	}
}

// stored visits the log's segments as the server's files, whose times are finer than what S3 says.
func (p *pod) stored(t *testing.T, folder string, visit func(path string, s layout.Segment, visible time.Time)) {
	t.Helper()
	root := filepath.Join(folder, layout.Container{Pod: p.Pod, Container: p.containers[0]}.Prefix())
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		s, err := layout.ParseSegmentName(d.Name())
		if err != nil {
			return nil // another object
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		visit(path, s, info.ModTime())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// objects counts the segments that were begun in the first two minutes, those after, and those of these that were begun later than settled.
func (p *pod) objects(t *testing.T, folder string, settled time.Duration) (soon, later, steady int) {
	t.Helper()
	var begun time.Time
	p.stored(t, folder, func(_ string, s layout.Segment, _ time.Time) {
		if begun.IsZero() {
			begun = s.First
		}
		if s.First.Sub(begun) < fast {
			soon++
		} else {
			later++
		}
		if s.First.Sub(begun) >= settled {
			steady++
		}
	})
	return soon, later, steady
}

// lags compares the times of lines with those of their objects. Of a segment it takes about a hundred lines, with the first and the last.
func (p *pod) lags(t *testing.T, folder, name string, counts func(since time.Duration, line int) bool) samples {
	t.Helper()
	all := samples{Name: name, Unit: "s"}
	var begun time.Time
	var reader segment.Reader
	n := 0
	p.stored(t, folder, func(path string, s layout.Segment, visible time.Time) {
		b, err := os.ReadFile(path)
		if err == nil {
			err = reader.Open(bytes.NewReader(b), s)
		}
		var text bytes.Buffer
		if err == nil {
			_, err = text.ReadFrom(&reader)
		}
		if err != nil {
			t.Fatal(fmt.Errorf("%s: %w", path, err))
		}
		lines := bytes.Split(bytes.TrimSuffix(text.Bytes(), []byte("\n")), []byte("\n"))
		for i, b := range lines {
			l, err := criline.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if begun.IsZero() {
				begun = l.Time
			}
			if counts(l.Time.Sub(begun), n) && (i%(len(lines)/100+1) == 0 || i == len(lines)-1) {
				all.add(visible.Sub(l.Time).Seconds())
			}
			n++
		}
	})
	if len(all.Values) == 0 {
		t.Fatalf("no lines of %s", name)
	}
	return all
}
