//go:build bench

// Package bench measures shiplog beside what people would use instead, and beside the limit, on one machine, over the same data and in rounds that take turns. "make bench" runs it.
//
// Each part hands in rows and texts. They are kept in docs/benchmarks.json with their samples, and docs/benchmarks.md is written from that. With RUN=…, the name of a part or a regular expression of
// several, only these are measured, and take the place of what was measured of them before. Nothing here asserts a speed: a part fails only where what it measured did not work.
package bench

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	page = "../../docs/benchmarks.md"
	file = "../../docs/benchmarks.json"
)

// parts are in the order of the page.
var parts = []struct {
	name, title string
	run         func(t *testing.T, r *results)
}{
	{"ship", "The shipper: spool to S3", ship},
	{"lag", "Lag, and how many objects", lag},
	{"tee", "tee: a step's output to the spool", tee},
	{"read", "Reading a log, and searching it", read},
	{"list", "Listing runs", list},
	{"large", "Large runs and namespaces", large},
	{"cluster", "Builds on a cluster, with shiplog and without", cluster},
	{"webhook", "The webhook: admission and tickets", webhook},
	{"hot", "Hot paths, and what they allocate", hot},
	{"growth", "Growth", growth},
}

// results are what a part measured.
type results struct {
	Date string   `json:"date"`
	Rows []row    `json:"rows"`
	Text []string `json:"text,omitempty"` // paragraphs and tables of Markdown behind the rows
	// Samples are every single measurement, in the order in which they were made.
	Samples []samples `json:"samples"`
}

// row is a line of a part's table.
type row struct {
	What     string `json:"what"`
	Measured string `json:"measured"`
	Aim      string `json:"aim,omitempty"`
	Reached  bool   `json:"reached"` // says nothing without an aim
	Why      string `json:"why,omitempty"`
}

// samples are the measurements of one thing.
type samples struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
}

// thin leaves at most mostKept values, evenly chosen by size: percentiles stay what they are.
func (s *samples) thin() {
	if n := len(s.Values); n > mostKept {
		sorted, kept := s.sorted(), make([]float64, mostKept)
		for i := range kept {
			kept[i] = sorted[i*(n-1)/(mostKept-1)]
		}
		s.Values = kept
	}
}

const mostKept = 1000

func (s *samples) add(v float64) { s.Values = append(s.Values, v) }

func (s samples) sorted() []float64 { return slices.Sorted(slices.Values(s.Values)) }

func (s samples) median() float64 { return s.percentile(50) }

// percentile is the smallest value that so many of a hundred do not exceed.
func (s samples) percentile(p int) float64 {
	v := s.sorted()
	return v[max(0, (len(v)*p+99)/100-1)]
}

func (s samples) most() float64 { v := s.sorted(); return v[len(v)-1] }

// String is the median and the spread.
func (s samples) String() string {
	v := s.sorted()
	if len(v) == 1 {
		return fmt.Sprintf("%.3g %s", v[0], s.Unit)
	}
	return fmt.Sprintf("%.3g %s (%.3g–%.3g, n=%d)", s.median(), s.Unit, v[0], v[len(v)-1], len(v))
}

func (r *results) row(what, aim string, reached bool, why, format string, args ...any) {
	if reached {
		why = ""
	}
	r.Rows = append(r.Rows, row{what, fmt.Sprintf(format, args...), aim, reached, why})
}

func (r *results) keep(s ...samples) { r.Samples = append(r.Samples, s...) }

// document is docs/benchmarks.json.
type document struct {
	Machine  string             `json:"machine"`
	Versions []string           `json:"versions"`
	Parts    map[string]results `json:"parts"`
}

// TestBench runs the parts. It is a test only to have what tests have: servers that are started and stopped, and folders that are removed.
func TestBench(t *testing.T) {
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) {
			begun := time.Now()
			r := results{Date: begun.UTC().Format(time.DateOnly)}
			p.run(t, &r)
			if t.Failed() {
				return
			}
			if err := save(p.name, r); err != nil {
				t.Fatal(err)
			}
			t.Logf("measured in %s:\n%s", time.Since(begun).Round(time.Second), table(r.Rows))
		})
	}
}

// save puts a part's results into the file, and writes the page.
func save(name string, r results) error {
	var d document
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read what was measured before: %w", err)
	}
	if d.Parts == nil {
		d.Parts = map[string]results{}
	}
	d.Machine, d.Versions = machine(), versions()
	d.Parts[name] = r
	for _, p := range d.Parts {
		for i := range p.Samples {
			p.Samples[i].thin()
		}
	}
	if b, err = json.MarshalIndent(d, "", " "); err != nil {
		return err
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(page, []byte(d.markdown()), 0o644)
}

func table(rows []row) string {
	var b strings.Builder
	b.WriteString("| what | measured | aim | reached |\n|---|---|---|---|\n")
	for _, r := range rows {
		reached := map[bool]string{true: "yes", false: "no"}[r.Reached]
		if r.Why != "" {
			reached += ": " + r.Why
		}
		if r.Aim == "" {
			reached = ""
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.What, r.Measured, r.Aim, reached)
	}
	return b.String()
}

func (d document) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, introduction, d.Machine, strings.Join(d.Versions, ", "))
	for _, p := range parts {
		r, ok := d.Parts[p.name]
		fmt.Fprintf(&b, "\n## %s\n\n", p.title)
		if !ok {
			b.WriteString("Not measured.\n")
			continue
		}
		if fmt.Fprintf(&b, "Measured on %s.\n", r.Date); len(r.Rows) > 0 {
			b.WriteString("\n" + table(r.Rows))
		}
		for _, text := range r.Text {
			fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(text))
		}
	}
	b.WriteString("\n" + story)
	return b.String()
}

const introduction = `# Benchmarks

Written by ` + "`make bench`" + ` (one part alone: ` + "`make bench RUN=ship`" + `); the samples are in [benchmarks.json](benchmarks.json), of more than a thousand those at even distances by size. A figure is the median of its rounds, with the least and the most, and
a ratio is one of medians. What is compared takes turns in one run, over the same data. Nothing here is asserted by a test; a busy machine gives other figures.

- Machine: %s. The S3 server, and for the cluster's rows all of Kubernetes and Tekton, run on the same cores.
- Versions: %s.
- Data: what this repository's own tools print (the commands of builds for five platforms, verbose tests, package lists as JSON, the cluster's own logs), drawn in random pieces so that nothing repeats in order.
  "mixed" has its lines as they are, "short" lines of 20 bytes, "long" lines of 2 KiB.
- A GB is 10⁹ bytes of the archive: lines with their prefix of 43 bytes. That is what is read, compressed and kept; short lines are mostly prefix.
`

func machine() string {
	model := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t: "))
				break
			}
		}
	}
	return fmt.Sprintf("%d cores (%s), Linux %s", runtime.NumCPU(), model, firstLine("/proc/sys/kernel/osrelease"))
}

func firstLine(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return "of unknown version"
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

func versions() []string {
	v := []string{runtime.Version()}
	for _, c := range [][]string{{"zstd", "--version"}, {"rg", "--version"}, {"grep", "--version"}, {"aws", "--version"}} {
		out, err := exec.Command(c[0], c[1:]...).Output()
		if err != nil {
			continue
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		v = append(v, strings.Trim(line, "* "))
	}
	return append(v, "OpenTelemetry Collector "+collectorVersion())
}

// collectorVersion is that of the module that the collector is built from.
func collectorVersion() string {
	b, err := os.ReadFile("../cluster/components/otelcol/go.mod")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(b)) {
		if _, v, ok := strings.Cut(line, "go.opentelemetry.io/collector/otelcol "); ok {
			return strings.TrimSpace(v)
		}
	}
	return "of unknown version"
}

// binary builds one of shiplog's programs as it is released, and returns its path.
func binary(t *testing.T, pkg string) string {
	t.Helper()
	path := filepath.Join(scratch(t), filepath.Base(pkg)) // and not t.TempDir, which is one place for all of a test, the first that TMPDIR names
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, pkg)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path
}

// component returns the path of a program of the test cluster's, which is built if it is not yet.
func component(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "run", "github.com/shiplog-dev/shiplog/tests/cluster", "binary", name).Output()
	if err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n") // a tool that builds may say so first
	return lines[len(lines)-1]
}

// rounds is how often each of two or more things is measured in turn.
func rounds(n int) int {
	if testing.Short() {
		return 1
	}
	return n
}

// ratio is that of medians.
func ratio(a, b samples) float64 { return a.median() / b.median() }

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

func gb(bytes int64) float64 { return float64(bytes) / 1e9 }

// scratch is a folder for much data. TMPDIR may be in memory.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(cmp.Or(os.Getenv("SHIPLOG_BENCH_DIR"), "/var/tmp"), "shiplog-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

const story = `## Where the time goes

What profiles showed, and what was done about it (the commits hold the details):

| where | before | done | after |
|---|---|---|---|
| shipper | 40 % of the CPU was the parsing of each line, 3.84 s for a GB | lines with the same time and stream, which come from one read of tee's, are read as a run | 3.2 s: compression 45 %, hashes and checks 20 %, the rest reading and uploading |
| tee | the spool's folder was counted at each file: a peak of 6.3 MiB | it is counted only where the limit may be near | 3.5 MiB |
| tee | writing the spool 43 % (9 % of it making files), encoding lines 18 %, writing to stdout 15 %, switches of threads for each chunk | tee(2) gives stdout the pipe's pages, poll waits in the same thread, files are twice as large | 12 % less time; of what is left, more than half is the file system's work for 2.2 bytes of spool for each that is printed |
| reading | each line had its own hash, its own read and its own switch between coroutines: 142 MB/s | whole blocks are checked and passed on | over 400 MB/s; decompression and the digest are most of it |
| search | 36 % of the CPU was bytes.Index stopping at the first letter of what is looked for, 0.73 times as fast as grep | blocks are searched for the rarest byte | as fast as grep |
| listing | a server that keeps objects as files read 1,000,000 names: 1.9 s | the index is in folders of 1,000 s | the row above |
| tickets | four requests to the API server for each, 164/s renewed and 91/s of new pods | owners come from the watch, the pod from the API server's memory and not from etcd, run.json is made once | 201/s of new pods |
| tickets | each of ten pods of a run that begin together wrote the run's objects, which were up to half of the PUTs | one writes for all | the rows above |
| webhook | all pending pods were listed at once: 500 MiB with 10,000 of them | page by page, and little is kept of each | the row above |

Half of the CPU of an admission is a check that is wanted: the patch is applied as the API server will apply it, and its outcome read, before it is sent.
`
