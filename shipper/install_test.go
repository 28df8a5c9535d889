package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/contract"
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
