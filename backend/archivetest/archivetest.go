// Package archivetest makes archives for tests, in a real S3 server.
package archivetest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/objectstore/s3test"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// Start starts an S3 server with an empty bucket. Both end with the test.
func Start(t testing.TB) (*objectstore.Store, objectstore.Config) {
	t.Helper()
	config := s3test.Start(t, s3test.Versity)
	store, err := objectstore.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	if err := store.EnsureBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store, config
}

// Put stores an object.
func Put(t testing.TB, store *objectstore.Store, key string, body []byte) {
	t.Helper()
	if err := store.Put(t.Context(), key, body); err != nil {
		t.Fatal(err)
	}
}

// PutRecord stores a record.
func PutRecord[T record.Any](t testing.TB, store *objectstore.Store, key string, v T) {
	t.Helper()
	b, err := record.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	Put(t, store, key, b)
}

// PutRun stores what the ticket service writes for a run: its record and its index objects.
func PutRun(t testing.TB, store *objectstore.Store, r record.Run) layout.Run {
	t.Helper()
	x := layout.RunIndex{Namespace: r.Namespace, Created: r.Created, Kind: r.Kind, Name: r.Name, UID: r.UID}
	run := x.Run()
	PutRecord(t, store, x.Key(), record.Pointer{Run: run})
	PutRecord(t, store, layout.UIDIndexKey(r.Namespace, r.UID), record.Pointer{Run: run})
	PutRecord(t, store, run.RunKey(), r)
	return run
}

// PutPod stores what the ticket service writes for a pod: its record and its index objects.
func PutPod(t testing.TB, store *objectstore.Store, p layout.Pod, r record.Pod) {
	t.Helper()
	r.Namespace, r.PodUID, r.TaskRun = p.Namespace, p.PodUID, p.TaskRun
	PutRecord(t, store, p.PodKey(), r)
	PutRecord(t, store, layout.PodIndexKey(p.Namespace, r.PodName, p.PodUID), record.Pointer{Run: p.Run, TaskRun: p.TaskRun, PodUID: p.PodUID})
	if r.TaskRunUID != "" {
		PutRecord(t, store, layout.UIDIndexKey(p.Namespace, r.TaskRunUID), record.Pointer{Run: p.Run, TaskRun: p.TaskRun})
	}
}

// Segments cuts archive lines into segments of so many lines (0: one segment).
func Segments(t testing.TB, lines []byte, each int) (segments []layout.Segment, bodies [][]byte) {
	t.Helper()
	w, err := segment.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	var tally, before criline.Tally
	var text []byte
	n := 0
	cut := func() {
		w.Begin(before.Bytes, before.Printed(), before.Lines)
		if err := w.Append(text, tally); err != nil {
			t.Fatal(err)
		}
		s, body, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		segments, bodies = append(segments, s), append(bodies, bytes.Clone(body))
		before.Bytes += tally.Bytes
		before.Stdout += tally.Stdout
		before.Stderr += tally.Stderr
		before.Lines += tally.Lines
		tally, text, n = criline.Tally{}, nil, 0
	}
	for line := range bytes.Lines(lines) {
		parsed, err := criline.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		tally.Add(parsed)
		text = append(text, line...)
		if n++; n == each {
			cut()
		}
	}
	if n > 0 {
		cut()
	}
	return segments, bodies
}

// PutLog stores archive lines in segments of so many lines (0: one segment), without a seal.
func PutLog(t testing.TB, store *objectstore.Store, c layout.Container, lines []byte, each int) {
	t.Helper()
	segments, bodies := Segments(t, lines, each)
	for i, s := range segments {
		Put(t, store, c.SegmentKey(s), bodies[i])
	}
}

// Seal is the seal of a container that printed the lines and ended with exit code 0.
func Seal(t testing.TB, lines []byte) record.Seal {
	t.Helper()
	var tally criline.Tally
	for line := range bytes.Lines(lines) {
		parsed, err := criline.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		tally.Add(parsed)
	}
	s := record.Seal{
		Bytes: int64(len(lines)), SHA256: fmt.Sprintf("%x", sha256.Sum256(lines)), GapCount: int64(len(tally.Gaps)), Gaps: tally.Gaps,
		Lines: tally.Lines, Printed: record.Printed{Stdout: tally.Stdout, Stderr: tally.Stderr},
		End: record.EndExited, Exit: &record.Exit{}, First: tally.First, Last: tally.Last, Sealed: tally.Last,
	}
	for _, g := range tally.Gaps {
		s.Lost.Stdout += g.Stdout
		s.Lost.Stderr += g.Stderr
	}
	return s
}

// Lines makes so many archive lines of stdout, a second apart, of what text returns.
func Lines(start time.Time, n int, text func(i int) string) (b []byte) {
	for i := range n {
		b = criline.Append(b, start.Add(time.Duration(i)*time.Second), criline.Stdout, true, []byte(text(i)))
	}
	return b
}
