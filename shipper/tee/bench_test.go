//go:build linux

package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// BenchmarkThroughput prints 300 MB in lines of 100 bytes through tee, and for comparison straight into a pipe.
func BenchmarkThroughput(b *testing.B) {
	const size = 300_000_000
	in := filepath.Join(b.TempDir(), "in")
	f, err := os.Create(in)
	if err != nil {
		b.Fatal(err)
	}
	line := strings.Repeat("x", 99) + "\n"
	chunk := strings.Repeat(line, 10000)
	for range size / len(chunk) {
		if _, err := io.WriteString(f, chunk); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		tee  bool
	}{{"pipe", false}, {"tee", true}} {
		b.Run(tc.name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				argv := []string{"cat", in}
				if tc.tee {
					dir, err := os.MkdirTemp(b.TempDir(), "")
					if err != nil {
						b.Fatal(err)
					}
					argv = append([]string{teeBinary}, contract.Tee{Spool: dir, Limit: 1 << 40, Argv: argv}.Args()...)
					defer os.RemoveAll(dir)
				}
				cmd := exec.Command(argv[0], argv[1:]...)
				out, err := cmd.StdoutPipe()
				if err != nil {
					b.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, out)
				if err != nil || n != size {
					b.Fatalf("%d bytes, %v", n, err)
				}
				if err := cmd.Wait(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStart is what tee adds to a step that prints nothing.
func BenchmarkStart(b *testing.B) {
	for _, tc := range []struct {
		name string
		tee  bool
	}{{"direct", false}, {"tee", true}} {
		b.Run(tc.name, func(b *testing.B) {
			argv := []string{"true"}
			if tc.tee {
				argv = append([]string{teeBinary}, contract.Tee{Spool: b.TempDir(), Limit: 1 << 30, Argv: argv}.Args()...)
			}
			for b.Loop() {
				if err := exec.Command(argv[0], argv[1:]...).Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
