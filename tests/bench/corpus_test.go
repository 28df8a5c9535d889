//go:build bench

package bench

import (
	"bufio"
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// shape is how long lines are.
type shape string

const (
	mixed shape = "mixed"
	short shape = "short"
	long  shape = "long"
)

// corpus is real text, made once in a run.
var corpus = sync.OnceValues(collect)

// collect runs the repository's own tools and returns what they print.
func collect() ([][]byte, error) {
	var all [][]byte
	run := func(dir string, env []string, name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if len(out) == 0 {
			return err
		}
		all = append(all, out) // a tool that fails prints as much, and more interesting things
		return nil
	}
	for _, platform := range [][]string{{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "arm64"}, {"windows", "amd64"}, {"freebsd", "amd64"}} {
		// -n prints each command of a build of everything, with its imports, and does not run it.
		if err := run("../..", []string{"GOOS=" + platform[0], "GOARCH=" + platform[1]}, "go", "build", "-n", "-a", "./..."); err != nil {
			return nil, err
		}
	}
	for _, args := range [][]string{
		{"test", "-v", "./internal/...", "./shipper/...", "./certs/..."},
		{"test", "-json", "./internal/criline", "./internal/layout", "./internal/contract", "./internal/record"},
		{"list", "-deps", "-json", "./..."},
		{"mod", "graph"},
		{"vet", "-x", "./internal/layout"},
	} {
		if err := run("../..", nil, "go", args...); err != nil {
			return nil, err
		}
	}
	logs, err := filepath.Glob("/var/lib/shiplog-cluster/logs/*.log")
	if err != nil {
		return nil, err
	}
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if len(b) >= 64<<10 { // others say little
			all = append(all, b)
		}
	}
	return all, nil
}

// text writes a file of about so many bytes. Pieces of the corpus are drawn at random, the same ones each time.
func text(t *testing.T, size int64, s shape) string {
	t.Helper()
	sources, err := corpus()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(scratch(t), string(s))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	random := rand.New(rand.NewPCG(1, 2))
	var column int
	for written := int64(0); written < size; {
		from := sources[random.IntN(len(sources))]
		at := random.IntN(len(from))
		at += bytes.IndexByte(from[at:], '\n') + 1
		piece := from[at:min(len(from), at+1<<10+random.IntN(256<<10))]
		piece = piece[:bytes.LastIndexByte(piece, '\n')+1]
		n, err := write(w, piece, s, &column)
		if err != nil {
			t.Fatal(err)
		}
		written += n
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return path
}

// write breaks lines where the shape wants it.
func write(w io.Writer, piece []byte, s shape, column *int) (n int64, err error) {
	if s == mixed {
		k, err := w.Write(piece)
		return int64(k), err
	}
	width := map[shape]int{short: 19, long: 2047}[s]
	piece = bytes.ReplaceAll(piece, []byte("\n"), []byte(" "))
	for len(piece) > 0 {
		k := min(len(piece), width-*column)
		if _, err := w.Write(piece[:k]); err != nil {
			return n, err
		}
		*column += k
		n += int64(k)
		if *column == width {
			if _, err := w.Write([]byte("\n")); err != nil {
				return n, err
			}
			*column = 0
			n++
		}
		piece = piece[k:]
	}
	return n, nil
}
