package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// lines are the lines of files that a change to the tree has touched, by the file's name relative to
// the module's folder.
type lines map[string]map[int]bool

// touched asks git which lines of Go files, tests aside, differ from a revision.
func touched(ctx context.Context, root, rev string) (lines, error) {
	cmd := exec.CommandContext(ctx, "git", "diff", "--no-ext-diff", "--no-color", "--relative", "-U0",
		"--src-prefix=a/", "--dst-prefix=b/", rev, "--", "*.go", ":!*_test.go")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("what differs from %s: %w\n%s", rev, err, stderr.Bytes())
	}
	return parseDiff(string(out))
}

var hunk = regexp.MustCompile(`^@@ -\S+ \+(\d+)(?:,(\d+))? @@`)

// parseDiff reads what git says with -U0.
func parseDiff(text string) (lines, error) {
	all := lines{}
	file, left := "", 0 // lines of the hunk that are still to come
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if left > 0 && strings.HasPrefix(line, "+") {
			left--
			continue
		}
		if name, ok := strings.CutPrefix(line, "+++ "); ok {
			file = strings.TrimPrefix(name, "b/")
			continue
		}
		m := hunk.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		first, err := strconv.Atoi(m[1])
		if err != nil {
			return nil, err
		}
		if left = 1; m[2] != "" {
			if left, err = strconv.Atoi(m[2]); err != nil {
				return nil, err
			}
		}
		for i := range left {
			if all[file] == nil {
				all[file] = map[int]bool{}
			}
			all[file][first+i] = true
		}
	}
	return all, nil
}

// folders are where the files are.
func (l lines) folders() []string {
	var all []string
	for file := range l {
		all = append(all, path.Dir(file))
	}
	slices.Sort(all)
	return slices.Compact(all)
}
