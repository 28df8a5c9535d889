package main

import (
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

const sample = "./testdata/sample"

// sampleEquivalent is the list that the sample's runs have.
const sampleEquivalent = `
tests/mutate/testdata/sample Clamp
if n < 0 && n > math.MinInt {
"n > math.MinInt" to "n >= math.MinInt"
The smallest number
is another matter.

# The next ones are of changes that are not there, and of one that a test notices.
tests/mutate/testdata/sample Clamp
if n < 0 {
"n < 0" to "n <= 0"
The line is another one now.

tests/mutate/testdata/sample Wait
func Wait(n time.Duration) time.Duration { return n + 5*time.Second }
"5*time.Second" to "6*time.Second"
Nobody waits so long.

tests/gone Gone
x++
"x++" to "x--"
The package is gone.
`

var sampleNotTried = []leftOut{{"tests/mutate/testdata/*", "TestSl.w", "it fails"}}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// runWith runs the command with arguments, and returns what it printed.
func runWith(t *testing.T, o options, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	o.out = &out
	if err := o.parse(args); err != nil {
		t.Fatal(err)
	}
	err := mutate(t.Context(), o)
	return out.String(), err
}

// What is changed, and what is left alone.
func TestChanges(t *testing.T) {
	got, err := runWith(t, options{}, "-list", sample)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "changes.txt", got)
}

// The report has what survived and what no test reaches, and a list that does not fit is an error.
func TestReport(t *testing.T) {
	got, err := runWith(t, options{equivalent: sampleEquivalent, notTried: sampleNotTried}, "-least=95", sample)
	if err == nil {
		t.Fatal("no error")
	}
	golden(t, "report.txt", got+"\n"+err.Error()+"\n")
}

func TestTestsAreSelected(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"some":         {[]string{"-run=^Test(First|Wait)$", "-skip=Wait", "-least=4"}, ": 74 changes, 3 noticed,"},
		"fails before": {[]string{"-run=^TestSlow$"}, "TestSlow fails unchanged"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := runWith(t, options{}, append(tc.args, sample)...)
			said := out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]
			if err != nil {
				said = err.Error()
			}
			if !strings.Contains(said, tc.want) {
				t.Errorf("%s\nwant %q", said, tc.want)
			}
		})
	}
}

// What there was no time for is said to be not tried, and counts for nothing.
func TestLimit(t *testing.T) {
	out, err := runWith(t, options{notTried: sampleNotTried}, "-limit=1ns", "-least=95", sample)
	if err != nil || !strings.Contains(out, "not tried") || strings.Contains(out, "survived") {
		t.Errorf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	src, err := load(ctx, sample)
	if err != nil {
		t.Fatal(err)
	}
	p, err := choose(src, func(*change) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{src: src, program: p, workers: 1}
	cancel()
	tried := map[outcome]int{}
	b.try(ctx, func(_ *change, r result) { tried[r.outcome]++ })
	if want := map[outcome]int{untried: len(p.changes)}; !reflect.DeepEqual(tried, want) {
		t.Errorf("%v, want %v", tried, want)
	}
}

// With a revision, only lines that differ from it are changed.
func TestDiff(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	const head = "package a\n\nfunc One(n int) int { return n + 1 }\n"
	write("go.mod", "module example.com/m\n\ngo 1.26\n")
	write("a/a.go", head)
	write("a/a_test.go", "package a\n\nimport \"testing\"\n\nfunc TestTwo(t *testing.T) { Two(1) }\n")
	write("b/b.go", "package b\n")
	git("init", "-q")
	git("add", ".")
	git("commit", "-q", "-m", "first")
	write("a/a.go", head+"\nfunc Two(n int) bool { return n == 2 }\n")
	write("b/b.go", "package b\n\nfunc B() bool { return true }\n")
	t.Chdir(dir)
	out, err := runWith(t, options{}, "-diff=HEAD", "-least=50")
	want := `a/a.go:5:33: "n == 2" to "n != 2": survived
a/a.go:5:36: "2" to "3": survived
a/a.go:5:36: "2" to "0": survived
a: 3 changes, 0 noticed, 0 equivalent, 3 not noticed: 0.0 %
b: left out, since it has no tests of its own
all: 3 changes, 0 noticed, 0 equivalent, 3 not noticed: 0.0 %
`
	if out != want || err == nil || err.Error() != "0.0 % are noticed, want at least 50 %" {
		t.Errorf("%v\n%s", err, cmp.Diff(want, out))
	}
	git("add", ".")
	git("commit", "-q", "-m", "second")
	if out, err := runWith(t, options{}, "-diff=HEAD", "-least=50"); err != nil {
		t.Errorf("nothing differs: %v\n%s", err, out)
	}
}

func TestParseDiff(t *testing.T) {
	const text = `diff --git a/x/a.go b/x/a.go
--- a/x/a.go
+++ b/x/a.go
@@ -1,0 +2,2 @@ func a() {
+++ b/y.go
+@@ -1 +7 @@
@@ -9 +11 @@
-old
+new
diff --git a/gone.go b/gone.go
--- a/gone.go
+++ /dev/null
@@ -1,2 +0,0 @@
-a
-b
`
	got, err := parseDiff(text)
	if want := (lines{"x/a.go": {2: true, 3: true, 11: true}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got := (lines{"b/x.go": nil, "a/b/y.go": nil, "b/z.go": nil}).folders(); !reflect.DeepEqual(got, []string{"a/b", "b"}) {
		t.Error(got)
	}
}

func TestParseEquivalentRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"no reason":           {"a b\nx\n\"x\" removed", "line 1: want"},
		"no function":         {"\na\nx\n\"x\" removed\nreason", "line 2: \"a\" is not"},
		"twice":               {"a b\nx\ny\nz\n\na b\nx\ny\nother", "line 6: is there twice"},
		"no second":           {"a b\nx\ny #1\nz\n", "line 3: "},
		"a comment within it": {"a b\n# x\n", "line 2: a comment"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseEquivalent(tc.text); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// Two changes with the same words are told apart by their order.
func TestMatchEquivalent(t *testing.T) {
	all, err := parseEquivalent("a f\nreturn err\n\"x\" removed #2\nreason\n\nb f\nx\ny\nof another package\n")
	if err != nil {
		t.Fatal(err)
	}
	changes := []*change{
		{function: "f", source: "return err", was: "x"}, {function: "f", source: "return err", was: "x"},
		{function: "g", source: "return err", was: "x"},
	}
	is, stale := matchEquivalent(all, "a", changes)
	if want := map[*change]bool{changes[1]: true}; !reflect.DeepEqual(is, want) || len(stale) > 0 {
		t.Errorf("%v, %v", is, stale)
	}
	if _, stale := matchEquivalent(all, "a", changes[:1]); len(stale) != 1 {
		t.Errorf("%v is stale", stale)
	}
}

// Every entry of the table is of a package and of tests that are there.
func TestLeftOut(t *testing.T) {
	for _, l := range notTried {
		t.Run(l.folder+" "+l.tests, func(t *testing.T) {
			files, err := filepath.Glob(filepath.Join("../..", l.folder, "*.go"))
			if err != nil || len(files) == 0 {
				t.Fatalf("no such package: %v", err)
			}
			if l.reason == "" {
				t.Error("no reason")
			}
			if l.tests == "" {
				return
			}
			name := regexp.MustCompile(`(?m)^func (` + l.tests + `)\(`)
			for _, file := range files {
				if text, err := os.ReadFile(file); err != nil {
					t.Fatal(err)
				} else if name.Match(text) {
					return
				}
			}
			t.Error("no such tests")
		})
	}
}

func TestBound(t *testing.T) {
	for name, tc := range map[string]struct{ took, want cost }{
		"quick": {cost{time.Millisecond, time.Millisecond}, cost{leastTime, leastCPU}},
		"slow":  {cost{time.Minute, 2 * time.Second}, cost{5 * time.Minute, 10 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.took.bound(); got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}
