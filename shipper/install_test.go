package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/placescripts"
)

func TestInstall(t *testing.T) {
	old := syscall.Umask(0o077) // as strict as an image may have it
	defer syscall.Umask(old)
	volume, tee := t.TempDir(), filepath.Join(t.TempDir(), "tee")
	if err := os.WriteFile(tee, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	installed := filepath.Join(volume, contract.BinSubPath, filepath.Base(contract.TeePath))
	for _, content := range []string{"first", "first", "second"} {
		if err := os.WriteFile(tee, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := install(contract.Config{Containers: []string{"prepare", "step-a"}}, tee, volume); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(installed); err != nil || string(b) != content {
			t.Errorf("tee holds %q, %v, want %q", b, err, content)
		}
	}
	for path, want := range map[string]os.FileMode{
		installed: 0o755,
		filepath.Join(volume, contract.BinSubPath):             os.ModeDir | 0o755,
		filepath.Join(volume, contract.LogsSubPath):            os.ModeDir | 0o755,
		filepath.Join(volume, contract.LogsSubPath, "prepare"): os.ModeDir | 0o777,
		filepath.Join(volume, contract.LogsSubPath, "step-a"):  os.ModeDir | 0o777,
		filepath.Join(volume, contract.StateSubPath):           os.ModeDir | 0o700,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(installed)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: want tee alone", entries, err)
	}
}

func TestInstallFaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := install(contract.Config{Containers: []string{"a"}}, filepath.Join(t.TempDir(), "missing"), t.TempDir()); err == nil {
		t.Error("without tee: no error")
	}
	if err := install(contract.Config{Containers: []string{"a"}}, file, file); err == nil {
		t.Error("the volume is a file: no error")
	}
}

func TestPlaceScripts(t *testing.T) {
	const text = `scriptfile=\"/tekton/scripts/script-0-a\"\ntouch ${scriptfile} \u0026\u0026 chmod +x ${scriptfile}\n` +
		`cat \u003e ${scriptfile} \u003c\u003c '_EOF_'\nIyEvYmluL3NoCg==\n_EOF_\n` +
		`/tekton/bin/entrypoint decode-script \"${scriptfile}\"\n`
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for name, c := range map[string]struct {
		value, want string // a part of the error, or the script
	}{
		"unset":             {"", ""},
		"a script":          {`{"name":"place-scripts","args":["-c","` + text + `"],"new":1}`, "#!/bin/sh\n"},
		"no JSON":           {"x", "SHIPLOG_PLACE_SCRIPTS"},
		"other arguments":   {`{"args":["x"]}`, "SHIPLOG_PLACE_SCRIPTS"},
		"another text":      {`{"args":["-c","echo"]}`, "SHIPLOG_PLACE_SCRIPTS"},
		"another container": {`{}`, "SHIPLOG_PLACE_SCRIPTS"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, placescripts.Dir), 0o777); err != nil {
				t.Fatal(err)
			}
			err := placeScripts(c.value, root)
			file := filepath.Join(root, placescripts.Dir, "script-0-a")
			b, readErr := os.ReadFile(file)
			switch {
			case strings.HasPrefix(c.want, "#!"):
				if err != nil || readErr != nil || string(b) != c.want {
					t.Fatalf("%v; %q, %v", err, b, readErr)
				}
				if info, err := os.Stat(file); err != nil || info.Mode() != 0o755 {
					t.Errorf("%v, %v", info.Mode(), err)
				}
			case readErr == nil:
				t.Errorf("a script was made of %q", c.value)
			case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
