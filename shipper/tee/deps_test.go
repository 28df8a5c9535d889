//go:build linux

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// tee runs in every step, in the step's memory: it stays tiny, and has nothing that speaks to a network.
func TestDeps(t *testing.T) {
	list := exec.Command("go", "list", "-deps", ".")
	list.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 10 {
		t.Fatalf("only %d packages: %v", len(deps), deps)
	}
	const module = "github.com/shiplog-dev/shiplog/"
	allowed := map[string]string{
		module + "shipper/tee":       "tee itself",
		module + "internal/contract": "its command line",
		module + "internal/criline":  "the lines",
		module + "internal/spool":    "the writer",
		module + "internal/record":   "the exit in end.json",
		module + "internal/layout":   "imported by record",
		module + "internal/visible":  "the texts of a marker and a record that are read",
		"golang.org/x/sys/unix":      "F_DUPFD_CLOEXEC, pipe2, dup3, FIONREAD",
	}
	for _, dep := range deps {
		if first, _, _ := strings.Cut(dep, "/"); strings.Contains(first, ".") && allowed[dep] == "" {
			t.Errorf("tee imports %s", dep)
		}
		for _, banned := range []string{"net", "crypto", "log", "os/exec", "text/template", "regexp", "testing"} {
			if dep == banned || strings.HasPrefix(dep, banned+"/") {
				t.Errorf("tee imports %s", dep)
			}
		}
	}
}

func TestBinarySize(t *testing.T) {
	const most = 4 << 20
	info, err := os.Stat(teeBinary)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > most {
		t.Errorf("tee has %d bytes, want less than %d: it is copied into each pod", info.Size(), most)
	}
	t.Logf("%d bytes", info.Size())
}
