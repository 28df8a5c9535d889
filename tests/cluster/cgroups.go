package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// cgroupHierarchies are the mount points of cgroup v1's controllers and of v2.
func cgroupHierarchies() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	var dirs []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && (f[2] == "cgroup" || f[2] == "cgroup2") {
			dirs = append(dirs, f[1])
		}
	}
	return dirs, nil
}

// prepareCgroups makes the cgroup in every hierarchy.
func prepareCgroups(name string) error {
	dirs, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		own := filepath.Join(dir, name)
		if err := os.Mkdir(own, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup %s: %w", own, err)
		}
		// v1: a new cpuset has no processors until somebody gives it some.
		for _, setting := range []string{"cpuset.mems", "cpuset.cpus"} {
			b, err := os.ReadFile(filepath.Join(dir, setting))
			if err != nil {
				continue // another controller's hierarchy
			}
			if err := os.WriteFile(filepath.Join(own, setting), b, 0o644); err != nil {
				return fmt.Errorf("make cgroup %s: %s: %w", own, setting, err)
			}
		}
		// v2: controllers are handed down level by level.
		if b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err == nil {
			for _, c := range strings.Fields(string(b)) {
				for _, level := range []string{dir, own} {
					// One that cannot be handed down (as on a hybrid host) is missed by the kubelet, which says so.
					_ = os.WriteFile(filepath.Join(level, "cgroup.subtree_control"), []byte("+"+c), 0o644)
				}
			}
		}
	}
	return nil
}

// removeCgroups removes what prepareCgroups and the kubelet made. The processes in them must have been killed; the kernel may take a moment.
func removeCgroups(name string) error {
	dirs, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		var errs []error
		for _, dir := range dirs {
			errs = append(errs, removeCgroupTree(filepath.Join(dir, name)))
		}
		err := errors.Join(errs...)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func removeCgroupTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroupTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}
