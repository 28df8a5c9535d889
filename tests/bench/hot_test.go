//go:build bench

package bench

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// hotPaths are the Go benchmarks of what runs for each line, chunk or pod.
var hotPaths = []struct{ what, pkg, bench string }{
	{"tee: a chunk of 64 KiB from the pipe to spool and stdout", "./shipper/tee", "BenchmarkCopy"},
	{"tee: encoding and writing a chunk", "./internal/spool", "BenchmarkWriter"},
	{"shipper: reading the spool", "./internal/spool", "BenchmarkNext"},
	{"shipper, readers: a line of the archive", "./internal/criline", "BenchmarkParse"},
	{"shipper: cutting and compressing a segment", "./internal/segment", "BenchmarkWriter"},
	{"readers: a segment", "./internal/segment", "BenchmarkReader"},
	{"readers: a log of 32 MiB, line by line", "./backend", "BenchmarkLines"},
	{"search: the same log, of which the last line matches", "./backend", "BenchmarkSearch"},
	{"webhook: an admission", "./webhook", "BenchmarkAdmission"},
}

// result is a line that go test prints for a benchmark.
var result = regexp.MustCompile(`(?m)^Benchmark([^\s]+)-\d+\s+\d+\s+([0-9.]+) ns/op(?:\s+([0-9.]+) MB/s)?\s+(\d+) B/op\s+(\d+) allocs/op`)

// hot runs the Go benchmarks, for their allocations above all.
func hot(t *testing.T, r *results) {
	table := "| what | benchmark | time | MB/s | bytes allocated | allocations |\n|---|---|---|---|---|---|\n"
	for _, p := range hotPaths {
		cmd := exec.Command("go", "test", "-run", "xxx", "-bench", "^"+p.bench+"$", "-benchmem", p.pkg)
		cmd.Dir = "../.."
		out, err := cmd.CombinedOutput()
		found := result.FindAllStringSubmatch(string(out), -1)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		for _, f := range found {
			table += "| " + strings.Join([]string{p.what, "`" + p.pkg + "` " + f[1], f[2] + " ns", f[3], f[4], f[5]}, " | ") + " |\n"
		}
	}
	r.Text = append(r.Text, "Of one operation each. What is allocated for a chunk, a line or a search does not grow with the log:\n\n"+table)
}
