package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/backend/live"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// filesIn are the files under a folder.
func filesIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[filepath.ToSlash(name)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const compiled = "line 0\nline 1\nline 2\nline 3\nline 4\nhalf of a line\ncutan error\n"

func TestGet(t *testing.T) {
	store, config := archivetest.Start(t)
	fill(t, store)
	fillMatrix(t, store)
	fillRetries(t, store)
	useBucket(t, config)
	for _, c := range []struct {
		name string
		args []string
		code int
		want map[string]string
		says []string
	}{
		{"steps", []string{"run"}, exitLost, map[string]string{"build/step-compile.log": compiled, "build_retry1/step-compile.log": "before the gap\nbehind the gap\n"},
			[]string{"2 logs are in", "build_retry1/step-compile -- shiplog: 17 bytes are missing here"}},
		{"all", []string{"run", "-a"}, exitLost, map[string]string{
			"build/prepare.log": "prepared\n", "build/step-compile.log": compiled, "build/sidecar-db.log": "",
			"build_retry1/prepare.log": "prepared\n", "build_retry1/step-compile.log": "before the gap\nbehind the gap\n", "build_retry1/sidecar-db.log": "",
		}, []string{"6 logs are in", "not captured: no-command"}},
		{"one container", []string{"run", "--container", "prepare"}, 0, map[string]string{"build/prepare.log": "prepared\n", "build_retry1/prepare.log": "prepared\n"}, nil},
		{"by UID", []string{theRunUID, "--task", "build", "--container", "prepare"}, 0, map[string]string{"build/prepare.log": "prepared\n", "build_retry1/prepare.log": "prepared\n"}, nil},
		{"running", []string{"running"}, exitRunning, map[string]string{"running-a/step-a.log": compiled}, []string{"still running"}},
		{"damaged", []string{"states", "--step", "damaged"}, exitLost, map[string]string{"states-a/step-damaged.log": ""}, []string{"this log is damaged"}},
		{"empty", []string{"states", "--step", "silent"}, 0, map[string]string{"states-a/step-silent.log": ""}, nil},
		{"matrix", []string{"matrix"}, 0, map[string]string{"matrix-0/step-a.log": "0\n", "matrix-1/step-a.log": "1\n", "alone/step-a.log": "2\n"}, []string{"3 logs are in"}},
		{"tasks that are called as retries are", []string{"retries"}, 0, map[string]string{
			"build/step-a.log": "0\n", "build_retry1/step-a.log": "1\n",
			"build-retry1/step-a.log": "2\n", "build.retry1/step-a.log": "3\n",
		}, []string{"4 logs are in"}},
		{"nothing fits", []string{"run", "--step", "none"}, exitFailed, map[string]string{}, []string{"no container of run run fits"}},
		{"no such run", []string{"none"}, exitFailed, map[string]string{}, []string{`is named "none"`}},
		{"no run", nil, exitUsage, map[string]string{}, []string{"name one run"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			got, code := said(t, append([]string{"get", "-n", "ns", "--to", dir}, c.args...))
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if diff := cmp.Diff(c.want, filesIn(t, dir)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			for _, want := range c.says {
				if !strings.Contains(got, want) {
					t.Errorf("%q does not say %q", got, want)
				}
			}
		})
	}
	t.Run("a folder that is there", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "build"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"build/prepare.log": "an older and longer log", "build/mine.txt": "mine"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			said(t, []string{"get", "-n", "ns", "--to", dir, "run", "--container", "prepare"})
		}
		if diff := cmp.Diff(map[string]string{"build/prepare.log": "prepared\n", "build_retry1/prepare.log": "prepared\n", "build/mine.txt": "mine"}, filesIn(t, dir)); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
	})
	t.Run("a part that is there", func(t *testing.T) {
		for name, part := range map[string]string{
			"nothing": "", "some lines": compiled[:14], "half a line": compiled[:17], "without its newline": compiled[:13],
			"all": compiled, "of another log": compiled + "and more",
		} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				if err := os.MkdirAll(filepath.Join(dir, "running-a"), 0o755); err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(dir, "running-a", "step-a.log.pod-running.part")
				if err := os.WriteFile(file, []byte(part), 0o600); err != nil {
					t.Fatal(err)
				}
				said(t, []string{"get", "-n", "ns", "--to", dir, "running"})
				if diff := cmp.Diff(map[string]string{"running-a/step-a.log": compiled}, filesIn(t, dir)); diff != "" {
					t.Errorf("files (-want +got):\n%s", diff)
				}
			})
		}
	})
	t.Run("the run's name is the folder's", func(t *testing.T) {
		dir := t.TempDir()
		t.Chdir(dir)
		said(t, []string{"get", "-n", "ns", "run", "--container", "prepare"})
		if diff := cmp.Diff(map[string]string{"run/build/prepare.log": "prepared\n", "run/build_retry1/prepare.log": "prepared\n"}, filesIn(t, dir)); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
	})
	t.Run("a link out of the folder", func(t *testing.T) {
		outside, dir := t.TempDir(), t.TempDir()
		if err := os.Symlink(outside, filepath.Join(dir, "build")); err != nil {
			t.Fatal(err)
		}
		got, code := said(t, []string{"get", "-n", "ns", "--to", dir, "run", "--container", "prepare"})
		if code != exitFailed || !strings.Contains(got, filepath.Join(dir, "build")) {
			t.Errorf("exit code %d, %q", code, got)
		}
		if diff := cmp.Diff(map[string]string{}, filesIn(t, outside)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a file is in the way", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, code := said(t, []string{"get", "-n", "ns", "--to", file, "run"}); code != exitFailed || !strings.Contains(got, file) {
			t.Errorf("exit code %d, %q", code, got)
		}
	})
}

// fillRetries adds a run of which one task was tried again, and others are called as if they were
// its retries.
func fillRetries(t *testing.T, store *objectstore.Store) {
	t.Helper()
	run := archivetest.PutRun(t, store, record.Run{
		Kind: layout.PipelineRun, Namespace: "ns", Name: "retries", Created: start.Add(-3 * time.Hour),
		UID: "44444444-2222-3333-4444-555555555555",
	})
	for i, task := range []string{"build", "build", "build-retry1", "build.retry1"} {
		pod := layout.Pod{Run: run, TaskRun: "retries-" + task, PodUID: fmt.Sprint("p", i)}
		archivetest.PutPod(t, store, pod, record.Pod{
			PodName: fmt.Sprint("retries-pod-", i), PipelineTask: task,
			Created:    start.Add(time.Duration(i) * time.Second),
			Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}},
		})
		line := criline.Append(nil, start, criline.Stdout, true, []byte{byte('0' + i)})
		c := layout.Container{Pod: pod, Container: "step-a"}
		put(t, store, logText{container: c, sealed: true, lines: line})
	}
}

// failing breaks off behind so many lines of a log.
type failing struct {
	live.Archive
	lines int
	from  []int64 // what was asked for
}

func (f *failing) Lines(ctx context.Context, c *backend.Container, o backend.LogOptions, follow bool) iter.Seq2[backend.Line, error] {
	f.from = append(f.from, o.FromByte)
	return func(yield func(backend.Line, error) bool) {
		n := 0
		for l, err := range f.Archive.Lines(ctx, c, o, follow) {
			if n++; n > f.lines {
				yield(backend.Line{}, errors.New("the store is down"))
				return
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

// TestGetKeepsItsPart: what was read before an error is kept, and the next time it goes on there.
func TestGetKeepsItsPart(t *testing.T) {
	store, _ := archivetest.Start(t)
	fill(t, store)
	archive := &failing{Archive: live.Bucket{Archive: backend.New(store)}, lines: 3}
	tree, _, err := archive.Tree(t.Context(), "ns", "", "running")
	if err != nil {
		t.Fatal(err)
	}
	var place backend.Place
	for p := range tree.Containers() {
		place = p
	}
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s := &settings{stderr: io.Discard}
	tries := 0
	for ; tries < 10; tries++ {
		if _, err = s.save(t.Context(), &source{Reader: live.Reader{Archive: archive}}, place, root, "a.log", io.Discard); err == nil {
			break
		}
		files := filesIn(t, dir)
		if part := files["a.log.pod-running.part"]; len(files) != 1 || part == "" || !strings.HasPrefix(compiled, part) {
			t.Errorf("behind try %d: %q", tries+1, files)
		}
	}
	if diff := cmp.Diff(map[string]string{"a.log": compiled}, filesIn(t, dir)); diff != "" || err != nil {
		t.Errorf("%v: files (-want +got):\n%s", err, diff)
	}
	if tries == 0 || !slices.IsSorted(archive.from) {
		t.Errorf("asked from %d", archive.from)
	}
}

// fillMatrix adds a run of which two TaskRuns have the same task.
func fillMatrix(t *testing.T, store *objectstore.Store) {
	t.Helper()
	run := archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "matrix", UID: "55555555-2222-3333-4444-555555555555", Created: start.Add(-2 * time.Hour)})
	for i, task := range []string{"many", "many", "alone"} {
		pod := layout.Pod{Run: run, TaskRun: []string{"matrix-0", "matrix-1", "matrix-alone"}[i], PodUID: []string{"p0", "p1", "p2"}[i]}
		archivetest.PutPod(t, store, pod, record.Pod{PodName: pod.TaskRun + "-pod", PipelineTask: task, Created: start, Containers: []record.Container{{Name: "step-a", Kind: record.Step, Captured: true}}})
		put(t, store, logText{container: layout.Container{Pod: pod, Container: "step-a"}, sealed: true, lines: criline.Append(nil, start, criline.Stdout, true, []byte{byte('0' + i)})})
	}
}

// TestHostileNames: names that a tenant has written into a pod's record lead nowhere, and no terminal obeys them.
func TestHostileNames(t *testing.T) {
	server := newFakeServer(t)
	for _, name := range []string{"../../escaped", "/escaped", "..", ".", "a/b", `a\b`, "", "\x1b]0;title\x07", "NUL", strings.Repeat("x", 300)} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "a", "b")
			bad, good := fakeContainer("step-a", 2, "a\n"), fakeContainer("step-b", 2, "b\n")
			bad.task, bad.Name = name, "step-a"
			worse := fakeContainer(name, 2, "c\n")
			worse.task = "other"
			server.containers = []fakeLog{bad, worse, good}
			got, code := said(t, []string{"get", "-n", "ns", "run", "--all", "--to", dir, "--server", server.URL})
			files := filesIn(t, parent)
			if name == "" { // the TaskRun's name stands for the task's
				delete(files, "a/b/run-empty/step-a.log")
			}
			if diff := cmp.Diff(map[string]string{"a/b/good/step-b.log": "b\n"}, files); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if code != exitFailed || !strings.Contains(got, "shiplog: a log is not saved: TaskRun run-") || !strings.Contains(got, "not saved: \"shiplog logs") {
				t.Errorf("exit code %d: %s", code, got)
			}
			for _, args := range [][]string{{"ls", "run"}, {"verify", "run"}, {"logs", "--archive", "run"}, {"search", "run", "c"}} {
				got, _ := said(t, append(args, "-n", "ns", "--server", server.URL))
				if strings.ContainsAny(got, "\x1b\x07") {
					t.Errorf("%v: %q", args, got)
				}
			}
		})
	}
}

func TestVerify(t *testing.T) {
	store, config := archivetest.Start(t)
	useBucket(t, config)
	archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "nothing", UID: "u-nothing", Created: start})
	left := archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "left-alone", UID: "u-left", Created: start})
	archivetest.PutPod(t, store, layout.Pod{Run: left, TaskRun: "left-a", PodUID: "p-left"}, record.Pod{PodName: "left-a-pod", Created: start, Containers: []record.Container{{Name: "step-a", Kind: record.Step, Skipped: "no-command"}}})
	corrupt := archivetest.PutRun(t, store, record.Run{Kind: layout.PipelineRun, Namespace: "ns", Name: "corrupt", UID: "u-corrupt", Created: start})
	key := layout.Container{Pod: layout.Pod{Run: corrupt, TaskRun: "corrupt-a", PodUID: "p-corrupt"}, Container: "step-a"}
	lines := archivetest.Lines(start, 4, func(int) string { return "x" })
	segments, bodies := archivetest.Segments(t, lines, 2)
	bodies[1][len(bodies[1])-1] ^= 1
	for i, s := range segments {
		archivetest.Put(t, store, key.SegmentKey(s), bodies[i])
	}
	archivetest.PutRecord(t, store, key.SealKey(), archivetest.Seal(t, lines))
	for _, c := range []struct {
		run  string
		code int
		says []string
	}{
		{"nothing", exitPartial, []string{"nothing is archived of run nothing"}},
		{"left-alone", exitLost, []string{"missed", "nothing is archived of run left-alone"}},
		{"corrupt", exitLost, []string{"damaged", "4 bytes are missing here (missing"}},
	} {
		t.Run(c.run, func(t *testing.T) {
			got, code := said(t, []string{"verify", "-n", "ns", c.run})
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.says {
				if !strings.Contains(got, want) {
					t.Errorf("%q does not say %q", got, want)
				}
			}
		})
	}
}
