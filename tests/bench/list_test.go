//go:build bench

package bench

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// counted counts what is asked of a store.
type counted struct {
	*objectstore.Store
	requests int
}

func (c *counted) List(ctx context.Context, prefix, delimiter, after string, limit int) iter.Seq2[objectstore.Entry, error] {
	c.requests += max(1, (limit+999)/1000)
	return c.Store.List(ctx, prefix, delimiter, after, limit)
}

// list measures the newest runs of a namespace, by how many it has.
func list(t *testing.T, r *results) {
	const namespace = "bench"
	newest := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	index := func(i int) layout.RunIndex {
		created := newest.Add(-time.Duration(i) * 86_400 * time.Microsecond).Truncate(time.Second)
		return layout.RunIndex{Namespace: namespace, Created: created, Kind: layout.PipelineRun, Name: fmt.Sprintf("build-%07d", i), UID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i)}
	}
	g := newTarget(t, false)
	bucket := g.folder(t)
	made := 0
	table := "| runs of the namespace, all of one day | newest 50 | 50 in their middle | S3 requests |\n|---|---|---|---|\n"
	for _, runs := range []int{1000, 100_000, 1_000_000} {
		for ; made < runs; made++ {
			x := index(made)
			if made == 0 { // through the server, to see that the others are as it would put them
				if err := g.store.Put(t.Context(), x.Key(), []byte("{}")); err != nil {
					t.Fatal(err)
				}
				if b, err := os.ReadFile(filepath.Join(bucket, x.Key())); err != nil || string(b) != "{}" {
					t.Fatalf("the server keeps objects otherwise: %q, %v", b, err)
				}
				continue
			}
			place(t, bucket, x.Key(), []byte("{}"))
		}
		took := samples{Name: fmt.Sprintf("newest 50 of %d runs", runs), Unit: "ms"}
		middle := samples{Name: fmt.Sprintf("50 in the middle of %d runs", runs), Unit: "ms"}
		var requests int
		page := func(s *samples, after *layout.RunIndex, first int) {
			t.Helper()
			store := &counted{Store: g.store}
			begun, n := time.Now(), 0
			for x, err := range backend.New(store).Runs(t.Context(), namespace, after, 50) {
				if want := index(first + n); err != nil || x != want {
					t.Fatalf("%+v, %v; want %+v", x, err, want)
				}
				n++
			}
			s.add(time.Since(begun).Seconds() * 1000)
			if n != 50 {
				t.Fatalf("%d runs", n)
			}
			requests = store.requests
		}
		for range 20 {
			page(&took, nil, 0)
			last := index(runs/2 - 1)
			page(&middle, &last, runs/2)
		}
		r.keep(took, middle)
		table += fmt.Sprintf("| %d | %v | %v | %d |\n", runs, took, middle, requests)
		if runs == 1_000_000 {
			r.row("newest 50 of 1,000,000 runs of a namespace", "2 S3 requests, 100 ms", took.median() <= 100 && requests <= 2, "", "%d request, %v", requests, took)
		}
	}
	r.Text = append(r.Text, "By the number of runs (the objects are put into the server's folder as files, as it puts them itself):\n\n"+table)
}

// folder is where the server keeps its objects.
func (g *target) folder(t *testing.T) (found string) {
	t.Helper()
	err := filepath.WalkDir(os.Getenv("TMPDIR"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == g.config.Bucket {
			found = path
			return filepath.SkipAll
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("the server's folder: %q, %v", found, err)
	}
	return found
}
