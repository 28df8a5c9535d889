package backend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store in memory. Its listing is that of S3: in the order of keys, rolled up at the delimiter.
type memory map[string]object

type object struct {
	body     []byte
	modified time.Time
}

func (m memory) Get(_ context.Context, key string) (io.ReadCloser, error) {
	o, ok := m[key]
	if !ok {
		return nil, fmt.Errorf("get %q: %w", key, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(o.body)), nil
}

func (m memory) List(_ context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		n, rolled := 0, ""
		for _, key := range slices.Sorted(maps.Keys(m)) {
			rest, ok := strings.CutPrefix(key, prefix)
			if !ok || key <= startAfter {
				continue
			}
			e := objectstore.Entry{Key: key, Size: int64(len(m[key].body)), LastModified: m[key].modified}
			if i := strings.Index(rest, delimiter); delimiter != "" && i >= 0 {
				e = objectstore.Entry{Key: prefix + rest[:i+1], IsPrefix: true}
				if e.Key == rolled {
					continue
				}
				rolled = e.Key
			}
			if !yield(e, nil) {
				return
			}
			if n++; n == limit {
				return
			}
		}
	}
}

var (
	now  = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	run  = layout.Run{Namespace: "ns", Name: "run", UID: "run-uid"}
	pod  = layout.Pod{Run: run, TaskRun: "run-build", PodUID: "pod-uid"}
	step = layout.Container{Pod: pod, Container: "step-a"}
)

func archive(m Store) *Archive {
	a := New(m)
	a.now = func() time.Time { return now }
	return a
}

func (m memory) put(t testing.TB, key string, modified time.Time, v any) {
	t.Helper()
	var b []byte
	var err error
	switch v := v.(type) {
	case record.Run:
		b, err = record.Encode(v)
	case record.Pod:
		b, err = record.Encode(v)
	case record.Seal:
		b, err = record.Encode(v)
	case record.Waiting:
		b, err = record.Encode(v)
	case record.Pointer:
		b, err = record.Encode(v)
	case []byte:
		b = v
	default:
		t.Fatalf("put %T", v)
	}
	if err != nil {
		t.Fatal(err)
	}
	m[key] = object{b, modified}
}

// lines makes archive lines of stdout, a second apart.
func lines(n int) []byte {
	var b []byte
	for i := range n {
		b = criline.Append(b, now.Add(time.Duration(i)*time.Second), criline.Stdout, true, fmt.Appendf(nil, "line %d", i))
	}
	return b
}

// segmentOf makes the segment of whole[from:to], which must be at line ends.
func segmentOf(t testing.TB, whole []byte, from, to int) (layout.Segment, []byte) {
	t.Helper()
	tally := func(b []byte) (tally criline.Tally) {
		for line := range bytes.Lines(b) {
			l, err := criline.Parse(bytes.TrimSuffix(line, []byte("\n")))
			if err != nil {
				t.Fatal(err)
			}
			tally.Add(l)
		}
		return tally
	}
	before := tally(whole[:from])
	w, err := segment.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	w.Begin(int64(from), before.Printed(), before.Lines)
	if err := w.Append(whole[from:to], tally(whole[from:to])); err != nil {
		t.Fatal(err)
	}
	s, b, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return s, bytes.Clone(b)
}

// putLog stores a log in segments that end at the given offsets.
func (m memory) putLog(t testing.TB, c layout.Container, modified time.Time, whole []byte, ends ...int) {
	t.Helper()
	from := 0
	for _, to := range ends {
		s, b := segmentOf(t, whole, from, to)
		m.put(t, c.SegmentKey(s), modified, b)
		from = to
	}
}

func sealOf(whole []byte) record.Seal {
	return record.Seal{Bytes: int64(len(whole)), SHA256: fmt.Sprintf("%x", sha256.Sum256(whole)), End: record.EndExited, Exit: &record.Exit{Code: 0}}
}

// lineEnd is the offset behind line n.
func lineEnd(whole []byte, n int) int {
	end := 0
	for range n {
		end += bytes.IndexByte(whole[end:], '\n') + 1
	}
	return end
}

func TestStatus(t *testing.T) {
	whole := lines(9)
	third, sixth := lineEnd(whole, 3), lineEnd(whole, 6)
	gap, err := criline.AppendMarker(nil, now, criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 5, Stderr: 6})
	if err != nil {
		t.Fatal(err)
	}
	recent, old := now.Add(-time.Minute), now.Add(-time.Hour)
	podRecord := record.Pod{PodName: "p", Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}}}
	for _, c := range []struct {
		name string
		make func(t *testing.T, m memory)
		want Status
		why  string
	}{
		{"verified", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, third, sixth, len(whole))
			m.put(t, step.SealKey(), old, sealOf(whole))
		}, Verified, ""},
		{"running", func(t *testing.T, m memory) { m.putLog(t, step, recent, whole, third) }, Running, ""},
		{"running, silent, but alive", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, third)
			m.put(t, pod.AliveKey(), recent, []byte("{}"))
		}, Running, ""},
		{"partial", func(t *testing.T, m memory) { m.putLog(t, step, old, whole, third) }, Partial, "the pod was last heard of at 2026-11-23T11:00:00Z"},
		{"went on behind its seal", func(t *testing.T, m memory) {
			m.putLog(t, step, recent, whole, third, sixth)
			m.put(t, step.SealKey(), recent, sealOf(whole[:third]))
		}, Running, ""},
		{"damaged: a hole", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, third, sixth, len(whole))
			s, _ := segmentOf(t, whole, third, sixth)
			delete(m, step.SegmentKey(s))
			m.put(t, step.SealKey(), old, sealOf(whole))
		}, Damaged, fmt.Sprintf("%d archive bytes are missing at offset %d", sixth-third, third)},
		{"damaged: the end is missing", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, third)
			m.put(t, step.SealKey(), old, sealOf(whole))
		}, Damaged, fmt.Sprintf("the last %d archive bytes are missing", len(whole)-third)},
		{"empty: exited", func(t *testing.T, m memory) { m.put(t, step.SealKey(), old, sealOf(nil)) }, Verified, "printed nothing, exit code 0"},
		{"empty: never started", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, record.Seal{End: record.EndNeverStarted})
		}, Verified, "never started: why is unknown"},
		{"empty: image pull failed", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, record.Seal{End: record.EndNeverStarted})
			m.put(t, step.WaitingKey(), old, record.Waiting{Reason: "ImagePullBackOff", Message: "not\n found"})
		}, Verified, "never started: image pull failed (ImagePullBackOff: not found)"},
		{"empty: the container could not be made", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, record.Seal{End: record.EndNeverStarted})
			m.put(t, step.WaitingKey(), old, record.Waiting{Reason: "CreateContainerError", Message: "no such device"})
		}, Verified, "never started: it could not be started (CreateContainerError: no such device)"},
		{"empty: it waited, and started in the end", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, sealOf(nil))
			m.put(t, step.WaitingKey(), old, record.Waiting{Reason: "ErrImagePull"})
		}, Verified, "printed nothing, exit code 0"},
		{"not empty: it waited, and started in the end", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, len(whole))
			m.put(t, step.SealKey(), old, sealOf(whole))
			m.put(t, step.WaitingKey(), old, record.Waiting{Reason: "ErrImagePull"})
		}, Verified, ""},
		{"empty: killed by a signal", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, record.Seal{End: record.EndExited, Exit: &record.Exit{Code: 143, Signal: "terminated"}})
		}, Verified, "printed nothing, exit code 143 (terminated)"},
		{"empty: an end of a later version", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, record.Seal{End: "evicted"})
		}, Verified, `printed nothing, and how it ended is unknown ("evicted")`},
		{"empty: waits for its image", func(t *testing.T, m memory) {
			m.put(t, step.WaitingKey(), recent, record.Waiting{Reason: "ErrImagePull", Message: "not found"})
		}, Running, "not started yet: image pull failed (ErrImagePull: not found)"},
		{"empty: waited for its image to the end", func(t *testing.T, m memory) {
			m.put(t, step.WaitingKey(), old, record.Waiting{Reason: "ErrImagePull", Message: "not found"})
		}, Partial, "the pod was last heard of at 2026-11-23T11:00:00Z; until then it had not started: image pull failed (ErrImagePull: not found)"},
		{"empty: all that is known is that there was a pod", func(_ *testing.T, _ memory) {}, Partial,
			"the pod was last heard of at 2026-11-23T11:00:00Z; whether it had started is unknown"},
		{"waiting.json is no JSON", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, record.Seal{End: record.EndNeverStarted})
			m.put(t, step.WaitingKey(), old, []byte("garbage"))
		}, Verified, "never started: why is unknown"},
		{"gaps", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, len(whole))
			s := sealOf(whole)
			s.GapCount, s.Lost = 2, record.Printed{Stdout: 5, Stderr: 6}
			m.put(t, step.SealKey(), old, s)
		}, Gaps, "gaps: 2, bytes lost: 11"},
		{"empty: all of it in a gap", func(t *testing.T, m memory) {
			m.putLog(t, step, old, gap, len(gap))
			s := sealOf(gap)
			s.GapCount, s.Lost = 1, record.Printed{Stdout: 5, Stderr: 6}
			m.put(t, step.SealKey(), old, s)
		}, Gaps, "all that it printed is missing; gaps: 1, bytes lost: 11"},
		{"empty: all of it in a gap that is not in the log", func(t *testing.T, m memory) {
			s := sealOf(nil)
			s.GapCount, s.Lost = 1, record.Printed{Stdout: 5, Stderr: 6}
			m.put(t, step.SealKey(), old, s)
		}, Gaps, "all that it printed is missing; gaps: 1, bytes lost: 11"},
		{"gaps, and a hole", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, third)
			s := sealOf(whole)
			s.GapCount = 2
			m.put(t, step.SealKey(), old, s)
		}, Damaged, fmt.Sprintf("the last %d archive bytes are missing", len(whole)-third)},
		{"empty: killed", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, record.Seal{End: record.EndKilled, Drained: true})
		}, Verified, "killed before its first byte"},
		{"empty: killed, and what it left is unknown", func(t *testing.T, m memory) {
			m.put(t, step.SealKey(), old, record.Seal{End: record.EndKilled})
		}, Verified, "killed: whether it had printed anything is unknown"},
		{"killed", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, len(whole))
			s := sealOf(whole)
			s.End, s.Exit, s.Drained = record.EndKilled, nil, true
			m.put(t, step.SealKey(), old, s)
		}, Verified, ""},
		{"killed, and what it left is unknown", func(t *testing.T, m memory) {
			m.putLog(t, step, old, whole, len(whole))
			s := sealOf(whole)
			s.End, s.Exit = record.EndKilled, nil
			m.put(t, step.SealKey(), old, s)
		}, Verified, "killed: some of its last output may be missing"},
		{"a sidecar that is left alone", func(t *testing.T, m memory) {
			r := podRecord
			r.Containers = []record.Container{
				{Name: "sidecar-a", Kind: record.Sidecar, Skipped: "no-command"},
			}
			m.put(t, pod.PodKey(), old, r)
		}, NotCaptured, "no-command"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			m.put(t, pod.PodKey(), old, podRecord)
			c.make(t, m)
			tree, err := archive(m).Tree(t.Context(), Target{Run: run})
			if err != nil {
				t.Fatal(err)
			}
			got := tree.TaskRuns[0].Pods[0].Containers[0]
			if got.Status != c.want || got.Why != c.why {
				t.Errorf("status %q (%s), want %q (%s)", got.Status, got.Why, c.want, c.why)
			}
		})
	}
}

// overlapping stores a log of 40 lines in segments that overlap at random.
func overlapping(t *testing.T, whole []byte, seed uint64) memory {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	m := memory{}
	for end := 0; end < 40; {
		from := end - r.IntN(min(end, 5)+1)
		end = min(40, end+1+r.IntN(8))
		s, b := segmentOf(t, whole, lineEnd(whole, from), lineEnd(whole, end))
		m.put(t, step.SegmentKey(s), now, b)
	}
	return m
}

// TestOverlap cuts one log into segments that overlap at random, and expects exactly its bytes.
func TestOverlap(t *testing.T) {
	whole := lines(40)
	for seed := range uint64(50) {
		m := overlapping(t, whole, seed)
		m.put(t, step.SealKey(), now, sealOf(whole))
		c := onlyContainer(t, m)
		if c.Status != Verified {
			t.Errorf("seed %d: status %s (%s)", seed, c.Status, c.Why)
		}
		if got := readAll(t, m, c, LogOptions{}); !bytes.Equal(got, whole) {
			t.Errorf("seed %d: %d archive bytes, want %d", seed, len(got), len(whole))
		}
	}
}

func onlyContainer(t *testing.T, m memory) Container {
	t.Helper()
	tree, err := archive(m).Tree(t.Context(), Target{Run: run})
	if err != nil {
		t.Fatal(err)
	}
	return tree.TaskRuns[0].Pods[0].Containers[0]
}

// readAll reads a log back into archive lines.
func readAll(t *testing.T, m memory, c Container, o LogOptions) (out []byte) {
	t.Helper()
	for l, err := range archive(m).Lines(t.Context(), c, o) {
		if err != nil {
			t.Fatal(err)
		}
		out = criline.Append(out, l.Time, l.Stream, l.Full, l.Text)
	}
	return out
}

func TestTail(t *testing.T) {
	whole := lines(20)
	m := memory{}
	m.putLog(t, step, now, whole, lineEnd(whole, 5), lineEnd(whole, 12), lineEnd(whole, 19), len(whole))
	for _, n := range []int64{1, 2, 8, 19, 20, 100} {
		got := readAll(t, m, onlyContainer(t, m), LogOptions{Tail: n})
		want := whole[lineEnd(whole, int(max(0, 20-n))):]
		if !bytes.Equal(got, want) {
			t.Errorf("tail %d:\n%s\nwant\n%s", n, got, want)
		}
	}
}

// TestDamage expects a marker where bytes are gone, and the log behind it.
func TestDamage(t *testing.T) {
	whole := lines(9)
	third, sixth := lineEnd(whole, 3), lineEnd(whole, 6)
	middle, _ := segmentOf(t, whole, third, sixth)
	for _, c := range []struct {
		name string
		make func(m memory)
	}{
		{"segment missing", func(m memory) { delete(m, step.SegmentKey(middle)) }},
		{"not zstd", func(m memory) { m[step.SegmentKey(middle)] = object{[]byte("garbage"), now} }},
		{"cut off", func(m memory) {
			o := m[step.SegmentKey(middle)]
			m[step.SegmentKey(middle)] = object{o.body[:len(o.body)/2], now}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory{}
			m.putLog(t, step, now, whole, third, sixth, len(whole))
			m.put(t, step.SealKey(), now, sealOf(whole))
			c.make(m)
			var text []string
			gaps := 0
			for l, err := range archive(m).Lines(t.Context(), onlyContainer(t, m), LogOptions{}) {
				if err != nil {
					t.Fatal(err)
				}
				if l.Stream == criline.Markers {
					gaps++
					continue
				}
				text = append(text, string(l.Text))
			}
			if gaps != 1 {
				t.Errorf("%d gaps, want 1", gaps)
			}
			if len(text) < 6 || !slices.Equal(text[len(text)-3:], []string{"line 6", "line 7", "line 8"}) {
				t.Errorf("the log does not go on behind the gap: %q", text)
			}
		})
	}
}

func TestDigestMismatch(t *testing.T) {
	whole := lines(3)
	m := memory{}
	m.putLog(t, step, now, whole, len(whole))
	seal := sealOf(whole)
	seal.SHA256 = strings.Repeat("0", 64)
	m.put(t, step.SealKey(), now, seal)
	var last error
	for _, err := range archive(m).Lines(t.Context(), onlyContainer(t, m), LogOptions{}) {
		last = err
	}
	var digest *DigestError
	if !errors.As(last, &digest) {
		t.Errorf("the log ends with %v, want a DigestError", last)
	}
}

func TestFind(t *testing.T) {
	other := layout.Run{Namespace: "ns", Name: "run", UID: "older-uid"}
	lone := layout.Run{Namespace: "ns", Name: layout.NoPipelineRun, UID: "lone-uid"}
	m := memory{}
	m.put(t, run.RunKey(), now, record.Run{Created: now})
	m.put(t, other.RunKey(), now, record.Run{Created: now.Add(-time.Hour)})
	m.put(t, layout.UIDIndexKey("ns", "run-uid"), now, record.Pointer{Run: run})
	m.put(t, layout.UIDIndexKey("ns", "taskrun-uid"), now, record.Pointer{Run: run, TaskRun: "run-build"})
	m.put(t, layout.PodIndexKey("ns", "run-build-pod", "pod-uid"), now, record.Pointer{Run: run, TaskRun: "run-build", PodUID: "pod-uid"})
	m.put(t, layout.PodIndexKey("ns", "run-build-pod-retry1", "pod2-uid"), now, record.Pointer{Run: run, TaskRun: "run-build", PodUID: "pod2-uid"})
	m.put(t, layout.RunIndex{Namespace: "ns", Created: now, Kind: layout.TaskRun, Name: "lone", UID: "lone-uid"}.Key(), now, []byte("{}"))
	for _, c := range []struct {
		name, ref string
		want      Target
	}{
		{"UID of a PipelineRun", "run-uid", Target{Run: run}},
		{"UID of a TaskRun", "taskrun-uid", Target{Run: run, TaskRun: "run-build"}},
		{"name that two runs had", "run", Target{Run: run, Others: []layout.Run{other}}},
		{"pod", "run-build-pod", Target{Run: run, TaskRun: "run-build", PodUID: "pod-uid"}},
		{"TaskRun with a retry", "run-build", Target{Run: run, TaskRun: "run-build"}},
		{"TaskRun by the index of runs", "lone", Target{Run: lone}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := archive(m).Find(t.Context(), "ns", c.ref)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("found %v, want %v", got, c.want)
			}
		})
	}
	for _, ref := range []string{"", "none", "../run", "run/run-uid"} {
		_, err := archive(m).Find(t.Context(), "ns", ref)
		var notFound *NotFoundError
		if !errors.As(err, &notFound) {
			t.Errorf("find %q: %v, want a NotFoundError", ref, err)
		}
	}
}

func TestRunsNewestFirst(t *testing.T) {
	m := memory{}
	for i := range 5 {
		x := layout.RunIndex{Namespace: "ns", Created: now.Add(time.Duration(i) * time.Minute), Kind: layout.PipelineRun, Name: fmt.Sprintf("run-%d", i), UID: fmt.Sprintf("uid-%d", i)}
		m.put(t, x.Key(), now, []byte("{}"))
	}
	names := func(after *layout.RunIndex, limit int) (names []string, last layout.RunIndex) {
		for x, err := range archive(m).Runs(t.Context(), "ns", after, limit) {
			if err != nil {
				t.Fatal(err)
			}
			names, last = append(names, x.Name), x
		}
		return names, last
	}
	first, last := names(nil, 2)
	if want := []string{"run-4", "run-3"}; !slices.Equal(first, want) {
		t.Errorf("first page %v, want %v", first, want)
	}
	rest, _ := names(&last, 0)
	if want := []string{"run-2", "run-1", "run-0"}; !slices.Equal(rest, want) {
		t.Errorf("rest %v, want %v", rest, want)
	}
}

// TestRecipe runs the commands that docs/format.md gives for reading without shiplog.
func TestRecipe(t *testing.T) {
	doc, err := os.ReadFile("../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), "<!-- recipe -->\n```\n")
	recipe, _, ok2 := strings.Cut(rest, "\n```")
	if !ok || !ok2 {
		t.Fatal("docs/format.md has no recipe")
	}
	var printed, whole []byte
	for i := range 3 {
		for b := range 256 {
			text := []byte{byte(b), byte(i), 'x'}
			if b == '\n' {
				text[0] = 'n'
			}
			if i == '\n' {
				continue
			}
			full := b%3 != 0
			whole = criline.Append(whole, now, []criline.Stream{criline.Stdout, criline.Stderr}[b%2], full, text)
			printed = append(printed, text...)
			if full {
				printed = append(printed, '\n')
			}
		}
		if whole, err = criline.AppendMarker(whole, now, criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 1}); err != nil {
			t.Fatal(err)
		}
	}
	whole = criline.Append(whole, now, criline.Stdout, false, []byte("no newline at the end"))
	printed = append(printed, "no newline at the end"...)

	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	half := lineEnd(whole, 300)
	for _, r := range [][2]int{{0, half}, {half, len(whole)}} {
		s, b := segmentOf(t, whole, r[0], r[1])
		if err := os.WriteFile(filepath.Join(dir, "log", s.Name()), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("bash", "-c", "set -o pipefail; "+recipe)
	cmd.Dir = dir
	got, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", recipe, err)
	}
	if !bytes.Equal(got, printed) {
		t.Errorf("the recipe gives %d bytes, printed were %d", len(got), len(printed))
	}
}

// TestFindAmongMany: of a name that many have had, the last is found, with few requests one behind
// the other, whatever has a name that begins alike and whatever cannot be read.
func TestFindAmongMany(t *testing.T) {
	m := memory{}
	put := func(run layout.Run, taskRun, podName, uid string, created time.Time) {
		p := layout.Pod{Run: run, TaskRun: taskRun, PodUID: uid}
		m.put(t, layout.PodIndexKey("ns", podName, uid), created.Add(time.Second),
			record.Pointer{Run: run, TaskRun: taskRun, PodUID: uid})
		m.put(t, p.PodKey(), created.Add(time.Second), record.Pod{PodName: podName,
			Created: created})
	}
	begin := now.Add(-24 * time.Hour)
	// Their UIDs are in no order.
	uid := func(i int) string {
		return fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, i)))[:16]
	}
	for i := range 1201 {
		created := begin.Add(time.Duration(i) * time.Minute)
		put(layout.Run{Namespace: "ns", Name: layout.NoPipelineRun, UID: uid(i)}, "nightly",
			"nightly-pod", "p"+uid(i), created)
		// A TaskRun build-pod-NNNN, whose pod's name is before that of the TaskRun build.
		other := fmt.Sprintf("build-pod-%04d", i)
		put(run, other, other+"-pod", "o"+uid(i), created)
		retry := fmt.Sprintf("build-pod-retry-%04d", i)
		put(run, retry, retry+"-pod", "r"+uid(i), created)
	}
	// A pointer is written again while its pod lives.
	first := layout.PodIndexKey("ns", "nightly-pod", "p"+uid(0))
	m[first] = object{m[first].body, now}
	put(run, "build", "build-pod", "b0", begin)
	put(run, "build", "build-pod-retry1", "b1", begin.Add(time.Hour))
	put(layout.Run{Namespace: "ns", Name: "last", UID: "u"}, "build", "build-pod-retry2", "b2",
		begin.Add(2*time.Hour))
	// A pointer that cannot be read.
	m.put(t, layout.PodIndexKey("ns", "build-pod", "b9"), now, []byte("garbage"))
	for i := range 500 {
		r := layout.Run{Namespace: "ns", Name: "hourly", UID: uid(i)}
		m.put(t, r.RunKey(), now, record.Run{Created: begin.Add(time.Duration(i) * time.Hour)})
	}
	m.put(t, layout.Run{Namespace: "ns", Name: "hourly", UID: uid(3)}.RunKey(), begin,
		[]byte("garbage"))
	for _, c := range []struct {
		ref  string
		want Target
		gets int // at most
	}{
		{"nightly", Target{Run: layout.Run{Namespace: "ns", Name: layout.NoPipelineRun,
			UID: uid(1200)}, TaskRun: "nightly"}, 5},
		{"nightly-pod", Target{Run: layout.Run{Namespace: "ns", Name: layout.NoPipelineRun,
			UID: uid(1200)}, TaskRun: "nightly", PodUID: "p" + uid(1200)}, 5},
		{"build", Target{Run: layout.Run{Namespace: "ns", Name: "last", UID: "u"},
			TaskRun: "build"}, 4},
		{"build-pod", Target{Run: run, TaskRun: "build", PodUID: "b0"}, 4},
		{"hourly", Target{Run: layout.Run{Namespace: "ns", Name: "hourly", UID: uid(499)}}, 501},
	} {
		t.Run(c.ref, func(t *testing.T) {
			store := &asked{memory: m, gets: map[string]int{}}
			a := archive(nil)
			a.store = store
			got, err := a.Find(t.Context(), "ns", c.ref)
			if err != nil {
				t.Fatal(err)
			}
			if c.ref == "hourly" {
				if len(got.Others) != 499 || got.Others[0].UID != uid(498) {
					t.Errorf("%d others", len(got.Others))
				}
				got.Others = nil
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			if n := store.total(); n > c.gets {
				t.Errorf("%d GET, want at most %d", n, c.gets)
			}
		})
	}
}
