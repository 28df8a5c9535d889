package model

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// world is a history: what runs printed, and what their shippers and the ticket service stored.
type world struct {
	rnd    *rand.Rand
	begin  time.Time
	end    time.Time // of all that happens
	events []event
	pods   []*pod
	runs   []*run
	// faults says that objects are lost or damaged in the store.
	faults bool
	writer *segment.Writer
}

type run struct {
	layout.Run
	kind    layout.RunKind
	created time.Time
	name    string // of the PipelineRun or TaskRun
}

func (r *run) index() layout.RunIndex {
	return layout.RunIndex{Namespace: r.Namespace, Created: r.created, Kind: r.kind, Name: r.name,
		UID: r.UID}
}

type pod struct {
	key          layout.Pod
	name         string
	taskRunUID   string
	created      time.Time
	record       *record.Pod // nil: it was never written
	logs         []*log
	begin, end   time.Time // of its shipper
	silentFrom   time.Time // no signs of life are stored from here on for a while
	silentBehind time.Duration
}

// log is what a container printed, and how its shipper stands.
type log struct {
	w   *world
	key layout.Container
	now time.Time     // of the shipper
	off time.Duration // of the node's clock

	raw        []byte // the archive's bytes, if all arrives
	lines      []criline.Line
	places     []place // where each line begins, and one behind the last
	files      []int   // lines at which files of the spool begin
	renumbered bool    // a numbering began anew behind the beginning

	at      int   // lines that are shipped
	base    place // what this shipper's numbers begin at
	resumed int   // the line at which this shipper's digest begins
	saved   []int // where it could go back to
	gaps    int   // markers
	cuts    []cut
	sealed  bool
}

// place is a place between two lines, by what is before it.
type place struct{ archive, printed, lines int64 }

// cut is a segment: lines from to before to.
type cut struct {
	log      *log
	from, to int
	segment  layout.Segment
	corrupt  bool
	at       time.Time
	renamed  bool // numbered anew
}

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // as a synctest bubble's

func (w *world) one(n int) bool { return w.rnd.IntN(n) == 0 }

// some is a random time up to d.
func (w *world) some(d time.Duration) time.Duration {
	return time.Duration(w.rnd.Int64N(int64(d) +
		1))
}

func (w *world) put(at time.Time, key string, body []byte, c *cut) {
	w.events = append(w.events, event{at, key, body, c})
	if at.After(w.end) {
		w.end = at
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func (w *world) uid() string { return fmt.Sprintf("%08x", w.rnd.Uint32()) }

// newWorld makes the history of a seed.
func newWorld(seed uint64, faults bool, writer *segment.Writer) *world {
	w := &world{rnd: rand.New(rand.NewPCG(seed, 1)), begin: epoch, end: epoch, writer: writer}
	w.faults = faults && w.one(3)
	runs := 1
	if w.one(3) {
		runs += w.rnd.IntN(3)
	}
	at := w.begin
	for range runs {
		at = w.run(at)
	}
	if w.faults {
		w.damage()
	}
	slices.SortStableFunc(w.events, func(a, b event) int { return a.at.Compare(b.at) })
	return w
}

// run makes a run that begins at a time, and returns when its name may be used again.
func (w *world) run(at time.Time) time.Time {
	r := &run{kind: layout.PipelineRun, created: at.Truncate(time.Second)}
	uid := w.uid()
	pool := []string{"build", "build-pod", "nightly"}
	r.name = pool[w.rnd.IntN(len(pool))]
	r.Run = layout.Run{Namespace: "ns", Name: r.name, UID: uid}
	if w.one(3) {
		r.kind, r.Run.Name = layout.TaskRun, layout.NoPipelineRun
	}
	w.runs = append(w.runs, r)
	stored := at.Add(time.Second)
	pointer := must(record.Encode(record.Pointer{Run: r.Run}))
	rec := record.Run{Kind: r.kind, Namespace: "ns", Name: r.name, UID: uid, Created: r.created}
	w.put(stored, r.index().Key(), pointer, nil)
	w.put(stored, layout.UIDIndexKey("ns", uid), pointer, nil)
	w.put(stored, r.RunKey(), must(record.Encode(rec)), nil)
	end := stored
	tasks := 1
	if r.kind == layout.PipelineRun && w.one(3) {
		tasks++
	}
	for i := range tasks {
		name, taskUID := r.name, uid
		if r.kind == layout.PipelineRun {
			name, taskUID = fmt.Sprintf("%s-%c", r.name, 'a'+rune(i)), w.uid()
			if w.one(8) {
				name = []string{"build", "build-pod", "build-pod-retry1"}[w.rnd.IntN(3)]
			}
			if i > 0 && w.pods[len(w.pods)-1].key.TaskRun == name {
				continue
			}
		}
		begin := at
		for try := range 1 + w.rnd.IntN(8)/7 {
			begin = w.pod(r, name, taskUID, i, try, begin.Add(w.some(3*time.Second)))
			if begin.After(end) {
				end = begin
			}
		}
	}
	if !w.one(3) {
		rec.State, rec.Completed = record.Succeeded, end
		w.put(end.Add(w.some(2*time.Second)), r.RunKey(), must(record.Encode(rec)), nil)
	}
	return end.Add(time.Second + w.some(time.Minute))
}

// pod makes a pod of a TaskRun, and returns when it has ended.
func (w *world) pod(r *run, taskRun, taskUID string, task, try int, at time.Time) time.Time {
	p := &pod{key: layout.Pod{Run: r.Run, TaskRun: taskRun, PodUID: w.uid()}, name: taskRun +
		"-pod", taskRunUID: taskUID, created: at.Truncate(time.Second), begin: at, end: at}
	if try > 0 {
		p.name += fmt.Sprintf("-retry%d", try)
	}
	w.pods = append(w.pods, p)
	names := []string{"prepare", "step-a", "step-b", "sidecar-x"}
	kinds := []record.ContainerKind{record.Init, record.Step, record.Step, record.Sidecar}
	rec := record.Pod{Namespace: "ns", PodName: p.name, PodUID: p.key.PodUID, TaskRun: taskRun,
		TaskRunUID: taskUID, Created: p.created}
	if r.kind == layout.PipelineRun {
		rec.PipelineTask = string('a' + rune(task))
	}
	for i, name := range names {
		if i != 1 && !w.one(3) {
			continue
		}
		c := record.Container{Name: name, Kind: kinds[i], Captured: true}
		if w.one(12) {
			c.Captured, c.Skipped = false, []string{record.SkippedOptedOut,
				record.SkippedNoAnswer, "memory-limit", ""}[w.rnd.IntN(4)]
		}
		rec.Containers = append(rec.Containers, c)
		l := &log{w: w, key: layout.Container{Pod: p.key, Container: name},
			now: at.Add(w.some(2 * time.Second)), places: []place{{}}, files: []int{0}}
		p.logs = append(p.logs, l)
		if c.Captured || w.one(8) {
			l.live()
		}
		if l.now.After(p.end) {
			p.end = l.now
		}
	}
	pointer := must(record.Encode(record.Pointer{Run: r.Run, TaskRun: taskRun,
		PodUID: p.key.PodUID}))
	key := layout.PodIndexKey("ns", p.name, p.key.PodUID)
	stored := at.Add(500 * time.Millisecond)
	if !w.one(20) {
		p.record = &rec
		w.put(stored, p.key.PodKey(), must(record.Encode(rec)), nil)
		if w.one(8) { // another ticket, later
			w.put(stored.Add(w.some(p.end.Sub(stored)+10*time.Minute)), p.key.PodKey(),
				must(record.Encode(rec)), nil)
		}
	}
	w.put(stored, key, pointer, nil)
	if r.kind == layout.PipelineRun {
		w.put(stored, layout.UIDIndexKey("ns", taskUID),
			must(record.Encode(record.Pointer{Run: r.Run, TaskRun: taskRun})), nil)
	}
	if w.one(8) && p.record != nil { // who writes one writes the other
		w.put(stored.Add(w.some(p.end.Sub(stored)+time.Hour)), key, pointer, nil)
	}
	w.signs(p)
	return p.end
}

// signs stores alive.json about once a minute where nothing else is, while the shipper lives.
func (w *world) signs(p *pod) {
	prefix := p.key.Prefix()
	var heard []time.Time
	for _, e := range w.events {
		if len(e.key) > len(prefix) && e.key[:len(prefix)] == prefix && !e.at.After(p.end) {
			heard = append(heard, e.at)
		}
	}
	heard = append(heard, p.end)
	slices.SortFunc(heard, time.Time.Compare)
	last := p.begin
	for _, next := range heard {
		for next.Sub(last) > time.Minute {
			last = last.Add(time.Minute)
			w.put(last, p.key.AliveKey(), []byte(`{"time":"2000-01-01T00:00:00Z"}`), nil)
		}
		last = next
	}
}

// print adds lines.
func (l *log) print(n int) {
	w := l.w
	if len(l.lines) > l.files[len(l.files)-1] && w.one(3) {
		l.files = append(l.files, len(l.lines))
	}
	for range n {
		stream, full := criline.Stdout, !w.one(6)
		if w.one(4) {
			stream = criline.Stderr
		}
		text := fmt.Appendf(nil, "%d ", len(l.lines))
		for range w.rnd.IntN(4) {
			text = append(text, "abc "[w.rnd.IntN(4)])
		}
		if w.one(12) {
			text = nil
		}
		if w.one(30) {
			stream, full = criline.Markers, true
			text = []byte(`{"kind":"gap","reason":"spool-limit","stdout":7,"stderr":0}`)
			l.gaps++
		}
		line := criline.Line{Time: l.now.Add(l.off).UTC(), Stream: stream, Full: full, Text: text}
		l.lines = append(l.lines, line)
		l.raw = criline.Append(l.raw, line.Time, stream, full, text)
		p := l.places[len(l.places)-1]
		p.archive = int64(len(l.raw))
		p.printed += line.Printed()
		if full && stream != criline.Markers {
			p.lines++
		}
		l.places = append(l.places, p)
		l.now = l.now.Add(w.some(20 * time.Millisecond))
	}
}

// upload stores lines as a segment, numbered as this shipper does.
func (l *log) upload(from, to int) {
	w := l.w
	a := l.places[from]
	var tally criline.Tally
	for _, line := range l.lines[from:to] {
		tally.Add(line)
	}
	w.writer.Begin(a.archive, a.printed-l.base.printed, a.lines-l.base.lines)
	if err := w.writer.Append(l.raw[a.archive:l.places[to].archive], tally); err != nil {
		panic(err)
	}
	s, body, err := w.writer.Finish()
	if err != nil {
		panic(err)
	}
	l.now = l.now.Add(time.Millisecond + w.some(300*time.Millisecond))
	c := cut{log: l, from: from, to: to, segment: s, at: l.now, renamed: l.base != place{}}
	l.cuts = append(l.cuts, c)
	w.put(l.now, l.key.SegmentKey(s), bytes.Clone(body), &c)
}

// ship cuts what is printed and not shipped, up to a line.
func (l *log) ship(to int) {
	for l.at < to {
		n := min(to-l.at, 1+l.w.rnd.IntN(6))
		l.upload(l.at, l.at+n)
		if !l.w.one(6) {
			l.saved = append(l.saved, l.at)
		}
		l.at += n
	}
}

// crash is one of the shipper.
func (l *log) crash() {
	w := l.w
	switch w.rnd.IntN(4) {
	case 0: // what was pending is shipped again
		if n := len(l.cuts); n > 0 && !w.one(3) {
			c := l.cuts[n-1]
			for _, e := range w.events {
				if e.key == l.key.SegmentKey(c.segment) {
					w.put(l.now.Add(w.some(time.Second)), e.key, e.body, e.cut)
					break
				}
			}
		}
	case 1: // the position was not recorded for a while, as on a full disk
		if len(l.saved) > 0 {
			l.at = l.saved[len(l.saved)-1-w.rnd.IntN(min(3, len(l.saved)))]
		}
	default: // the state is lost
		l.lose()
	}
	l.now = l.now.Add(w.some(5 * time.Second))
}

// lose goes on from a file of the spool.
func (l *log) lose() {
	i := len(l.files) - 1
	for i > 0 && l.files[i] > l.at {
		i--
	}
	for i > 0 && l.w.one(3) { // it was not deleted yet
		i--
	}
	l.at, l.resumed, l.saved = l.files[i], l.files[i], nil
	l.base = place{}
	if l.at > 0 {
		p := l.places[l.at]
		l.base = place{0, p.printed, p.lines}
		if l.base != (place{}) {
			l.renumbered = true
		}
	}
}

func (l *log) seal() {
	l.now = l.now.Add(time.Millisecond + l.w.some(time.Second))
	s := record.Seal{Bytes: int64(len(l.raw)), End: record.EndExited, Exit: &record.Exit{},
		Sealed: l.now}
	for _, line := range l.lines[l.resumed:] {
		if line.Stream == criline.Markers {
			s.GapCount++
			s.Lost.Stdout += 7
		}
	}
	if l.resumed == 0 {
		s.SHA256 = fmt.Sprintf("%x", sha256.Sum256(l.raw))
	}
	l.w.put(l.now, l.key.SealKey(), must(record.Encode(s)), nil)
	l.sealed = true
}

// live is a container's life, and its shipper's.
func (l *log) live() {
	w := l.w
	if w.one(20) {
		w.put(l.now, l.key.WaitingKey(),
			must(record.Encode(record.Waiting{Reason: "ErrImagePull"})), nil)
	}
	if w.one(12) { // it prints nothing
		if !w.one(3) {
			l.seal()
		}
		return
	}
	for range 1 + w.rnd.IntN(10)/9 {
		for range 1 + w.rnd.IntN(5) {
			l.print(1 + w.rnd.IntN(5))
			switch w.rnd.IntN(10) {
			case 0:
				l.crash()
			case 1:
				l.now = l.now.Add(w.some(7 * time.Minute)) // silence
			case 2:
				l.off = w.some(20*time.Second) - 10*time.Second
			case 3: // the store is away
			case 4:
				l.ship(l.at + (len(l.lines)-l.at)/2)
			default:
				l.ship(len(l.lines))
			}
		}
		if w.one(12) { // the node is lost
			return
		}
		if w.one(4) {
			l.print(3 + w.rnd.IntN(8))
			if !l.tail() {
				return
			}
		}
		l.ship(len(l.lines))
		if w.one(10) {
			return
		}
		l.seal()
		l.now = l.now.Add(w.some(10 * time.Second))
	}
	if w.one(3) {
		l.compact()
	}
}

// tail ships the end first, and then what is before it. It returns false if the shipper is killed
// before it has come so far.
func (l *log) tail() bool {
	w := l.w
	if len(l.lines)-l.at < 2 {
		return true
	}
	k := l.at + 1 + w.rnd.IntN(len(l.lines)-l.at-1)
	l.upload(k, len(l.lines))
	for l.at < k {
		l.now = l.now.Add(w.some(90 * time.Second))
		switch w.rnd.IntN(12) {
		case 0:
			return false
		case 1:
			l.lose()
			l.ship(len(l.lines))
			return true
		}
		l.ship(min(k, l.at+1+w.rnd.IntN(6)))
	}
	return true
}

// compact does what package compact does, to any log that it would touch.
func (l *log) compact() {
	w := l.w
	if l.resumed > 0 {
		return
	}
	byKey := map[string]cut{}
	for _, c := range l.cuts {
		byKey[c.segment.Name()] = c
	}
	var cuts []cut
	for _, c := range byKey {
		cuts = append(cuts, c)
	}
	slices.SortFunc(cuts, func(a, b cut) int {
		return cmp.Compare(a.segment.Offset,
			b.segment.Offset)
	})
	end := 0
	for _, c := range cuts {
		if c.from != end || c.renamed {
			return
		}
		end = c.to
	}
	l.now = l.now.Add(w.some(time.Minute))
	for i := 0; i < len(cuts); {
		n := min(len(cuts)-i, 1+w.rnd.IntN(4))
		if n > 1 {
			l.upload(cuts[i].from, cuts[i+n-1].to)
			for _, c := range cuts[i : i+n] {
				if !w.one(10) {
					w.put(l.now.Add(15*time.Minute+w.some(2*time.Second)),
						l.key.SegmentKey(c.segment), nil, nil)
				}
			}
		}
		i += n
	}
}

// damage loses or spoils objects.
func (w *world) damage() {
	var segments []event
	for _, e := range w.events {
		if e.cut != nil {
			segments = append(segments, e)
		}
	}
	for range 1 + w.rnd.IntN(2) {
		if len(segments) == 0 {
			return
		}
		e := segments[w.rnd.IntN(len(segments))]
		at := e.at.Add(w.some(time.Minute))
		if w.one(2) {
			w.put(at, e.key, nil, nil)
			continue
		}
		spoiled := *e.cut
		spoiled.corrupt = true
		w.put(at, e.key, []byte("garbage"), &spoiled)
	}
}
