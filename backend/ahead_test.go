package backend

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// asked counts how often each object is got, and may have bodies that fail.
type asked struct {
	memory
	mu   sync.Mutex
	gets map[string]int
	body func(key string, time int, r io.ReadCloser) io.ReadCloser // nil: as it is
}

func (a *asked) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	a.mu.Lock()
	a.gets[key]++
	n := a.gets[key]
	a.mu.Unlock()
	r, err := a.memory.Get(ctx, key)
	if err == nil && a.body != nil {
		r = a.body(key, n, r)
	}
	return r, err
}

func (a *asked) total() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, times := range a.gets {
		n += times
	}
	return n
}

// TestAhead: what is asked for ahead changes nothing of what is read, is asked for once, and is not asked for where little is wanted.
func TestAhead(t *testing.T) {
	const segments = 20
	whole := lines(10 * segments)
	end := func(n int) int { return lineEnd(whole, 10*n) } // of segment n, from 1
	name := func(t *testing.T, n int) string {
		s, _ := segmentOf(t, whole, end(n-1), end(n))
		return step.SegmentKey(s)
	}
	var printed []string
	for i := range 10 * segments {
		printed = append(printed, fmt.Sprintf("line %d", i))
	}
	for _, c := range []struct {
		name    string
		make    func(t *testing.T, m memory)
		options LogOptions
		take    int // lines, and then it is stopped; 0: all
		want    []string
		gets    int // at most
	}{
		{"all", nil, LogOptions{}, 0, printed, segments},
		{"the first line", nil, LogOptions{}, 1, printed[:1], 1},
		{"into the second segment", nil, LogOptions{}, 15, printed[:15], 2},
		{"into the third segment", nil, LogOptions{}, 25, printed[:25], 5},
		{"into the fourth segment", nil, LogOptions{}, 35, printed[:35], 7},
		{"bytes over the edge of two segments", nil, LogOptions{FromByte: int64(len("line 0\n") * 9), ToByte: int64(len("line 0\n")*10 + 5)}, 0, printed[9:11], 2},
		{"the last of them", nil, LogOptions{Tail: 15}, 0, printed[len(printed)-15:], 2},
		{"corrupt ones among them", func(t *testing.T, m memory) {
			for _, n := range []int{5, 6, 9} {
				m.put(t, name(t, n), now.Add(-time.Hour), []byte("garbage"))
			}
		}, LogOptions{}, 0, slices.Concat(printed[:40], []string{"gap", "gap"}, printed[60:80], []string{"gap"}, printed[90:]), segments},
		{"one that is gone", func(t *testing.T, m memory) { delete(m, name(t, 7)) }, LogOptions{}, 0, slices.Concat(printed[:60], []string{"gap"}, printed[70:]), segments},
		{"covered ones among them", func(t *testing.T, m memory) {
			s, b := segmentOf(t, whole, end(4), end(12))
			m.put(t, step.SegmentKey(s), now, b)
		}, LogOptions{}, 0, printed, segments - 8 + 2}, // what overlaps is read twice
		{"a corrupt one that others cover", func(t *testing.T, m memory) {
			s, _ := segmentOf(t, whole, end(4), end(12))
			m.put(t, step.SegmentKey(s), now, []byte("garbage"))
		}, LogOptions{}, 0, printed, 2 * segments},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			var ends []int
			for n := range segments {
				ends = append(ends, end(n+1))
			}
			m.putLog(t, step, now.Add(-time.Hour), whole, ends...)
			if c.make != nil {
				c.make(t, m)
			}
			store := &asked{memory: m, gets: map[string]int{}}
			a := archive(nil)
			a.store = store
			k, err := a.Container(t.Context(), step)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for l, err := range a.Lines(t.Context(), k, c.options) {
				if err != nil {
					t.Fatal(err)
				}
				text := string(l.Text)
				if l.Stream == criline.Markers {
					text = "gap"
				}
				if got = append(got, text); len(got) == c.take {
					break
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %d lines, want %d: %.300q", len(got), len(c.want), got)
			}
			if n := store.total(); n > c.gets {
				t.Errorf("%d GET, want at most %d", n, c.gets)
			}
			if c.take == 0 && c.gets == segments {
				for key, n := range store.gets {
					if n != 1 {
						t.Errorf("%s is got %d times", key, n)
					}
				}
			}
		})
	}
}

// broken fails at the first Read.
type broken struct{ io.ReadCloser }

var errClosed = errors.New("connection reset by peer")

func (broken) Read([]byte) (int, error) { return 0, errClosed }

// TestIdleBody: an object that was asked for ahead, and whose connection the store has closed since, is got once more.
func TestIdleBody(t *testing.T) {
	whole := lines(10)
	var ends []int
	for n := range 10 {
		ends = append(ends, lineEnd(whole, n+1))
	}
	for _, c := range []struct {
		name  string
		fails func(time int) bool
		want  error
	}{
		{"once", func(time int) bool { return time == 1 }, nil},
		{"always", func(int) bool { return true }, errClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			m.putLog(t, step, now, whole, ends...)
			s, _ := segmentOf(t, whole, ends[6], ends[7])
			store := &asked{memory: m, gets: map[string]int{}, body: func(key string, time int, r io.ReadCloser) io.ReadCloser {
				if key == step.SegmentKey(s) && c.fails(time) {
					return broken{r}
				}
				return r
			}}
			a := archive(nil)
			a.store = store
			k, err := a.Container(t.Context(), step)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			var last error
			for l, err := range a.Lines(t.Context(), k, LogOptions{}) {
				if last = err; err == nil && l.Stream != criline.Markers {
					n++
				}
			}
			if !errors.Is(last, c.want) || c.want == nil && n != 10 || store.gets[step.SegmentKey(s)] != 2 {
				t.Errorf("%d lines, %d GET, error %v, want %v", n, store.gets[step.SegmentKey(s)], last, c.want)
			}
		})
	}
}

// TestUnknownMarkers: a kind that a later version writes is passed over, and what cannot be read is said.
func TestUnknownMarkers(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a gap", `{"kind":"gap","reason":"killed","stdout":3}`, "x\n[a] -- shiplog: 3 bytes are missing here (killed)\n"},
		{"another kind", `{"kind":"masked","reason":"secret","stdout":3}`, "x\n"},
		{"no kind", `{}`, "x\n"},
		{"no marker", `what is this`, "x\n[a] -- shiplog: a notice that cannot be read: parse marker: invalid character 'w' looking for beginning of value\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			whole := criline.Append(nil, now, criline.Stdout, true, []byte("x"))
			whole = criline.Append(whole, now, criline.Markers, true, []byte(c.text))
			m := memory{}
			m.putLog(t, step, now, whole, len(whole))
			m.put(t, step.SealKey(), now, sealOf(whole))
			var text bytes.Buffer
			b := bufio.NewWriter(&text)
			out := &Printer{Out: b, Notices: b}
			for l, err := range archive(m).Lines(t.Context(), onlyContainer(t, m), LogOptions{}) {
				if err := out.Line("[a] ", l, err); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.Flush(); err != nil {
				t.Fatal(err)
			}
			if got := text.String(); got != "[a] "+c.want {
				t.Errorf("got %q, want %q", got, "[a] "+c.want)
			}
		})
	}
}

// TestFollowRunMemory: what is followed to its end needs no memory of its own behind it, and what decompresses is there once.
func TestFollowRunMemory(t *testing.T) {
	const containers = 300
	whole := lines(3)
	m := memory{}
	for i := range containers {
		c := step
		c.Container = fmt.Sprintf("step-%03d", i)
		m.putLog(t, c, now, whole, len(whole))
		m.put(t, c.SealKey(), now, sealOf(whole))
	}
	m.put(t, run.RunKey(), now, record.Run{State: record.Succeeded, Completed: now})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := 0
	for l, err := range archive(m).FollowRun(t.Context(), Target{Run: run}, func(TaskRun, Container) bool { return true }, LogOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if l.Line.Stream != "" {
			n++
		}
	}
	runtime.ReadMemStats(&after)
	if n != 3*containers {
		t.Errorf("%d lines", n)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 32<<20 {
		t.Errorf("it took %d bytes of memory for %d containers", took, containers)
	}
}

// TestFollowLast: of what is there nothing is shown, or the last lines, and all of what comes, of
// logs too that are not there yet.
func TestFollowLast(t *testing.T) {
	for _, c := range []struct {
		name    string
		options LogOptions
		want    []string
	}{
		{"none", LogOptions{None: true}, []string{"step-a line 2", "step-a line 3",
			"step-b line 0", "step-b line 1", "step-b line 2"}},
		{"the last line", LogOptions{Tail: 1}, []string{"step-a line 1", "step-a line 2",
			"step-a line 3", "step-b line 0", "step-b line 1", "step-b line 2"}},
	} {
		t.Run(c.name, func(t *testing.T) { testFollowLast(t, c.options, c.want) })
	}
}

func testFollowLast(t *testing.T, o LogOptions, want []string) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		whole := lines(4)
		other := layout.Container{Pod: layout.Pod{Run: run, TaskRun: "run-test", PodUID: "pod-2"}, Container: "step-b"}
		m := memory{}
		for i := range 4 {
			s, b := segmentOf(t, whole, lineEnd(whole, i), lineEnd(whole, i+1))
			m.put(t, step.SegmentKey(s), start.Add(time.Duration(max(0, i-1))*time.Second), b)
		}
		m.put(t, step.SealKey(), start.Add(4*time.Second), sealOf(whole))
		m.putLog(t, other, start.Add(2*time.Second), whole, lineEnd(whole, 3))
		m.put(t, other.SealKey(), start.Add(3*time.Second), sealOf(whole[:lineEnd(whole, 3)]))
		m.put(t, run.RunKey(), start.Add(5*time.Second), record.Run{State: record.Succeeded, Completed: start})
		var got []string
		all := func(TaskRun, Container) bool { return true }
		for l, err := range New(growing{m}).FollowRun(t.Context(), Target{Run: run}, all, o) {
			if err != nil {
				t.Fatal(err)
			}
			if l.Line.Stream != "" {
				got = append(got, l.Container.Name+" "+string(l.Line.Text))
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
