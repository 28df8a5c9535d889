package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var testImages = images{registry: "10.0.0.2:5000", digest: "sha256:" + strings.Repeat("a", 64)}

func TestSupply(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0", 64)
	shell := "10.0.0.2:5000/tekton-tests/shell"
	latest := shell + ":latest"
	for _, c := range []struct {
		name, text, want string
		lacking          []string
	}{
		{name: "a distribution", text: "image: mirror.gcr.io/ubuntu", want: "image: " + latest},
		{name: "with a tag", text: "image: mirror.gcr.io/bash:5.1.4", want: "image: " + latest},
		{
			name: "by digest", text: "- image: mirror.gcr.io/bash:5.1.4" + digest,
			want: "- image: " + shell + "@" + testImages.digest,
		},
		{name: "in Go", text: `Image: "mirror.gcr.io/busybox",`, want: `Image: "` + shell + `:latest",`},
		{
			name: "a default", text: "default: mirror.gcr.io/alpine\nimage: $(params.image)",
			want: "default: " + shell + ":latest\nimage: $(params.image)",
		},
		{
			name: "Tekton's own", text: "image: ghcr.io/tektoncd/pipeline/nop-8eac" + digest,
			want: "image: 10.0.0.2:5000/tekton/nop:local",
		},
		{
			name: "below a distribution's name", text: "image: mirror.gcr.io/alpine/git:v2.26.2",
			want:    "image: mirror.gcr.io/alpine/git:v2.26.2",
			lacking: []string{"mirror.gcr.io/alpine/git:v2.26.2"},
		},
		{
			name: "python", text: "image: mirror.gcr.io/python" + digest,
			want: "image: mirror.gcr.io/python" + digest, lacking: []string{"mirror.gcr.io/python"},
		},
		{
			name: "without a registry", text: "  - image: node",
			want: "  - image: node", lacking: []string{"node"},
		},
		{name: "in a comment", text: "# as gcr.io/a/b", want: "# as gcr.io/a/b"},
		{name: "in a result", text: "gcr.io/my-project/image-1", want: "gcr.io/my-project/image-1"},
		{name: "a format of Go", text: "image: %s", want: "image: %s"},
		{name: "no image", text: "apiVersion: tekton.dev/v1", want: "apiVersion: tekton.dev/v1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := testImages.supply(c.text)
			if got != c.want {
				t.Errorf("supplied %q, want %q", got, c.want)
			}
			diff := cmp.Diff(c.lacking, testImages.lacking(got), cmpopts.EquateEmpty())
			if diff != "" {
				t.Errorf("lacking (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExamplesThatAreLeftOut(t *testing.T) {
	for text, want := range map[string]string{
		"image: mirror.gcr.io/ubuntu": "",
		"image: mirror.gcr.io/perl":   "needs mirror.gcr.io/perl",
		"    resolver: git\n":         "needs the network for its resolver: git",
		"    resolver: cluster\n":     "",
	} {
		if got := newExample("x", text, testImages).leftOut; got != want {
			t.Errorf("%q: left out %q, want %q", text, got, want)
		}
	}
}

func TestObjectsAreNamedTheSameOnAllSides(t *testing.T) {
	e := newExample("x", `
kind: Task
metadata: {name: a, namespace: default}
---
# nothing
---
kind: TaskRun
metadata: {generateName: b-}
`, testImages)
	objects, err := e.objects("ns")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		got = append(got, o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName()+o.GetGenerateName())
	}
	if diff := cmp.Diff([]string{"Task ns/a", "TaskRun ns/b-run1"}, got); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}

func TestNormal(t *testing.T) {
	got := normal("ns-1: 7c9b6e0e-3f6e-4d62-9c0e-0123456789ab at 2024-05-06T07:08:09.123Z is sha256:"+
		strings.Repeat("f", 64)+", 2024/05/06 07:08:09 too", "ns-1")
	if want := "NAMESPACE: UID at TIME is DIGEST, TIME too"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCompareFields(t *testing.T) {
	of := func(status, random string) facts {
		return facts{fields: map[string]string{"status": status, "random": random}}
	}
	if got := compare(of("True", "1"), of("True", "2"), of("True", "3")); len(got) != 0 {
		t.Errorf("noise is a difference: %v", got)
	}
	want := []difference{{"status", "True", "False"}}
	got := compare(of("True", "1"), of("True", "2"), of("False", "3"))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(difference{})); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
	other := facts{fields: map[string]string{"random": "1", "new": "x"}}
	got = compare(of("True", "1"), of("True", "1"), other)
	want = []difference{{"new", "", "x"}, {"status", "True", ""}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(difference{})); diff != "" {
		t.Errorf("what is there on one side (-want +got):\n%s", diff)
	}
}

func TestCompareLogs(t *testing.T) {
	for _, c := range []struct {
		name, without, again, with string
		differs                    bool
	}{
		{name: "the same", without: "a\nb\n", again: "a\nb\n", with: "a\nb\n"},
		{name: "in another order", without: "a\nb\n", again: "a\nb\n", with: "b\na\n"},
		{name: "noise", without: "a\n1\n", again: "a\n2\n", with: "a\n3\n"},
		{name: "as much noise as there ever is", without: "1\n", again: "2\n3\n", with: "4\n5\n"},
		{name: "a line less", without: "a\nb\n", again: "a\nb\n", with: "a\n", differs: true},
		{name: "a line more", without: "a\n", again: "a\n", with: "a\nb\n", differs: true},
		{name: "a line twice", without: "a\n", again: "a\n", with: "a\na\n", differs: true},
		{
			name: "a stable line less beside noise", without: "a\n1\n", again: "a\n2\n",
			with: "3\n4\n", differs: true,
		},
		{
			name: "more than the noise", without: "a\n1\n", again: "a\n2\n",
			with: "a\n3\n4\n", differs: true,
		},
		{name: "no final newline", without: "a\n", again: "a\n", with: "a", differs: true},
		{name: "nothing", without: "a\n", again: "a\n", differs: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := compareLogs("x", c.without, c.again, c.with)
			if (len(got) > 0) != c.differs {
				t.Errorf("differences %v, want some: %v", got, c.differs)
			}
		})
	}
}

func TestParseTest(t *testing.T) {
	got := parseTest("TestA", `=== RUN   TestA
    util.go:154: Create namespace arendelle-abc to deploy to
    --- PASS: TestA/one (0.10s)
    --- FAIL: TestA/two (0.20s)
        a_test.go:7: Error waiting for TaskRun
--- FAIL: TestA (0.30s)
`)
	want := testRun{
		states:     map[string]string{"TestA": "FAIL", "TestA/one": "PASS", "TestA/two": "FAIL"},
		namespaces: []string{"arendelle-abc"}, why: "Error waiting for TaskRun",
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(testRun{})); diff != "" {
		t.Errorf("run (-want +got):\n%s", diff)
	}
	if got := parseTest("TestB", "panic: x\n").states["TestB"]; got != "FAIL" {
		t.Errorf("a test that panics is %q, want FAIL", got)
	}
}

func TestParseVerify(t *testing.T) {
	got := parseVerify(`build/prepare        verified      9 bytes  71df
build/step-compile   gaps          30 bytes  6e7e  gaps: 1, bytes lost: 17
build/sidecar-db     not captured  0 bytes   -     no-command
build/step-verified  running       0 bytes   -
large/step-a         missed        0 bytes   -     not captured in pod large-pod: results-at-risk
large/step-b         missed        0 bytes   -     not captured in pod large-pod: no-answer
`)
	want := verification{
		verified: 1,
		notCaptured: []string{
			"build/sidecar-db     not captured  0 bytes   -     no-command",
			"large/step-a         missed        0 bytes   -     " +
				"not captured in pod large-pod: results-at-risk",
		},
		other: []string{
			"build/step-compile   gaps          30 bytes  6e7e  gaps: 1, bytes lost: 17",
			"build/step-verified  running       0 bytes   -",
			"large/step-b         missed        0 bytes   -     not captured in pod large-pod: no-answer",
		},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(verification{})); diff != "" {
		t.Errorf("verification (-want +got):\n%s", diff)
	}
}

func TestChangedSources(t *testing.T) {
	dir := t.TempDir()
	const same = "package test\n"
	const compares = `package test

func match(t *testing.T, expectedAnnotations, actual map[string]string) {
	for key, expectedVal := range expectedAnnotations {
		check(actual[key], expectedVal)
	}
}
`
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("test/same.go", same)
	write("test/note.txt", "mirror.gcr.io/busybox")
	write("pkg/testing/factory.go", "package testing\n\nconst image = `mirror.gcr.io/busybox`\n")
	if _, err := changedSources(dir, testImages); err == nil {
		t.Error("no test compares annotations, and that is no error")
	}
	write("test/match_test.go", compares)
	got, err := changedSources(dir, testImages)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"pkg/testing/factory.go": "package testing\n\nconst image = `" + testImages.registry +
			"/tekton-tests/shell:latest`\n",
		"test/match_test.go": `package test

func match(t *testing.T, expectedAnnotations, actual map[string]string) {
	for key, expectedVal := range expectedAnnotations {
		if strings.HasPrefix(key, "shiplog.dev/") {
			continue
		}
		check(actual[key], expectedVal)
	}
}
`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}

func TestFindTests(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a_test.go", `//go:build e2e

package test

// @test:execution=serial
func TestSerial() { _ = "mirror.gcr.io/busybox" }

// @test:execution=parallel
func TestIndirect() { helper() }

// A variable and a field with the name of a function are none.
func TestNamesOfVariables() { helper := x; y.helper(helper); _ = z{helper: 1} }

func TestMain() {}
`)
	write("helper.go", "package test\n\nfunc helper() { _ = `mirror.gcr.io/python`; TestSerial() }\n")
	write("other_test.go", "//go:build examples\n\npackage test\n\nfunc TestOther() {}\n")
	got, err := findTests(dir, testImages)
	if err != nil {
		t.Fatal(err)
	}
	want := []suiteTest{
		{name: "TestIndirect", leftOut: "needs mirror.gcr.io/python"},
		{name: "TestNamesOfVariables"},
		{name: "TestSerial", serial: true},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(suiteTest{})); diff != "" {
		t.Errorf("tests (-want +got):\n%s", diff)
	}
}

func TestReport(t *testing.T) {
	r := report{half: "examples", version: "v1", outcomes: []outcome{
		{name: "b", verified: 2},
		{name: "a", leftOut: "needs python"},
		{
			name: "c", differs: []difference{{"TaskRun x: status", "True", ""}},
			verified: 1, skipped: []string{"pod: why"},
		},
	}}
	var b strings.Builder
	r.print(&b)
	want := `
examples of Tekton v1: 3, of which 1 are left out
  1 the same with shiplog, 1 different, 0 say nothing, 0 could not be compared
  3 logs archived and verified, 1 containers not captured

left out:
  a: needs python

not captured:
  c: pod: why

different:
  c
    TaskRun x: status
      without: True
      with:    none
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if !r.differs() {
		t.Error("the report does not say that something differs")
	}
}

func TestCompareArchive(t *testing.T) {
	for name, tc := range map[string]struct {
		kubelet, archive string
		same             bool
	}{
		"the same":                  {"a\nb\n", "a\nb\n", true},
		"a line that nobody ended":  {"a\nb\n", "a\nb", true},
		"another order":             {"a\nb\nc\n", "b\na\nc\n", true},
		"a line ended by the other": {"out\nerr\n", "outerr\n", true},
		"empty":                     {"", "", true},
		"a line less":               {"a\nb\n", "a\n", false},
		"a line more":               {"a\n", "a\nb\n", false},
		"another line":              {"a\nb\n", "a\nc\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := compareArchive("log", tc.kubelet, tc.archive); (len(got) == 0) != tc.same {
				t.Errorf("got %+v", got)
			}
		})
	}
}
