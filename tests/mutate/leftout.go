package main

import (
	"path"
	"regexp"
	"strings"
)

// leftOut are tests that are not run on changes.
type leftOut struct {
	folder string // of the package, as path.Match has it
	tests  string // a regular expression; empty for the package as a whole
	reason string
}

// notTried has the tests that are too slow to be run once for each change, and packages that no test of
// their own can judge.
var notTried = []leftOut{
	{folder: "tests/*", reason: "tests are not tested"},
	{folder: "tests/*/*", reason: "tests are not tested"},
}

// packageLeftOut says why a package is left out, if it is.
func packageLeftOut(table []leftOut, folder string) (reason string, is bool) {
	for _, l := range table {
		if ok, _ := path.Match(l.folder, folder); ok && l.tests == "" {
			return l.reason, true
		}
	}
	return "", false
}

// testsLeftOut are those of a package, as one expression that matches whole names, or nil.
func testsLeftOut(table []leftOut, folder string) *regexp.Regexp {
	var all []string
	for _, l := range table {
		if ok, _ := path.Match(l.folder, folder); ok && l.tests != "" {
			all = append(all, l.tests)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return regexp.MustCompile("^(" + strings.Join(all, "|") + ")$")
}
