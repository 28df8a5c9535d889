// Package docs holds documents to what the tree has.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testName = regexp.MustCompile("\\b(?:Test|Fuzz)[A-Z][A-Za-z0-9_]*")
	// named is how the page names a test: its folder, and its function.
	named  = regexp.MustCompile("`([a-z0-9/]+)/((?:Test|Fuzz)[A-Z][A-Za-z0-9_]*)`")
	fenced = regexp.MustCompile("(?ms)^```.*?^```$")
)

// prose is a page without its fenced code blocks.
func prose(page string) string { return fenced.ReplaceAllString(page, "") }

// faults are what is wrong with the tests that a page names: those that are not in the tree below root, those that are named without their folder, and rows of claims that name none.
func faults(page, root string) (all []string) {
	page = prose(page)
	functions := map[string]string{} // by folder: its test files
	for _, m := range named.FindAllStringSubmatch(page, -1) {
		folder, function := m[1], m[2]
		if _, known := functions[folder]; !known {
			files, err := filepath.Glob(filepath.Join(root, folder, "*_test.go"))
			if err != nil {
				return append(all, err.Error())
			}
			for _, file := range files {
				b, err := os.ReadFile(file)
				if err != nil {
					return append(all, err.Error())
				}
				functions[folder] += string(b)
			}
		}
		if !strings.Contains(functions[folder], "\nfunc "+function+"(") {
			all = append(all, "there is no "+folder+"/"+function)
		}
	}
	for _, bare := range testName.FindAllString(named.ReplaceAllString(page, ""), -1) {
		all = append(all, bare+" is named without its folder")
	}
	inClaims := false
	for line := range strings.Lines(page) {
		switch {
		case strings.HasPrefix(line, "| ") && strings.HasSuffix(line, " | test |\n"):
			inClaims = true
		case !strings.HasPrefix(line, "|"):
			inClaims = false
		case inClaims && !strings.HasPrefix(line, "|---") && !named.MatchString(line):
			all = append(all, "no test is behind: "+line)
		}
	}
	return all
}

// Behind each claim of these pages stands a test that is there.
func TestClaims(t *testing.T) {
	const root = "../.."
	for page, least := range map[string]int{
		"security.md": 30, "transparency.md": 12, "loss-budget.md": 2,
	} {
		t.Run(page, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(root, "docs", page))
			if err != nil {
				t.Fatal(err)
			}
			for _, fault := range faults(string(b), root) {
				t.Error(fault)
			}
			if n := len(named.FindAllString(prose(string(b)), -1)); n < least {
				t.Errorf("the page names %d tests only, want %d", n, least)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	const head = "| claim | test |\n|---|---|\n"
	for name, c := range map[string]struct{ page, want string }{
		"good":              {head + "| a | `tests/docs/TestFaults` |\n", ""},
		"no such test":      {head + "| a | `tests/docs/TestNothing` |\n", "there is no tests/docs/TestNothing"},
		"no such folder":    {head + "| a | `tests/nowhere/TestFaults` |\n", "there is no tests/nowhere/TestFaults"},
		"part of a name":    {head + "| a | `tests/docs/TestFault` |\n", "there is no tests/docs/TestFault"},
		"without folder":    {head + "| a | `tests/docs/TestFaults`, TestFaults |\n", "TestFaults is named without its folder"},
		"claim alone":       {head + "| a | believe me |\n", "no test is behind: | a | believe me |\n"},
		"another table":     {"| rule | whose | test |\n|---|---|---|\n| a | b | c |\n", "no test is behind: | a | b | c |\n"},
		"not a claim":       {"| who | holds |\n|---|---|\n| a | b |\n", ""},
		"named in the text": {"See `tests/docs/TestNothing`.\n", "there is no tests/docs/TestNothing"},
		"in a code block":   {"```\nmake RUN=TestNothing\n```\n", ""},
		"behind one": {
			"```\nmake\n```\nSee TestA.\n```\nmake\n```\n", "TestA is named without its folder",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(faults(c.page, "../.."), "; "); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
