package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// componentsDir is the folder of the component modules.
func componentsDir() (string, error) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/shiplog-dev/shiplog/tests/cluster").Output()
	if err != nil {
		return "", fmt.Errorf("find tests/cluster: run this inside the checkout: %w", exitError(err))
	}
	return filepath.Join(strings.TrimSpace(string(out)), "components"), nil
}

// cacheDir is where binaries are kept, outside of the checkout.
func cacheDir() (string, error) {
	if dir := os.Getenv("SHIPLOG_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a folder for built binaries: set SHIPLOG_CACHE: %w", err)
	}
	return filepath.Join(dir, "shiplog"), nil
}

// cacheKey changes when anything that goes into the component's binaries does.
func (c component) cacheKey(dir string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH, c.packages, c.tags, c.cgo, c.ldflags)
	files, err := filepath.Glob(filepath.Join(dir, c.name, "*"))
	if err != nil {
		return "", err
	}
	if len(files) == 0 {
		return "", fmt.Errorf("component %s: no module in %s", c.name, filepath.Join(dir, c.name))
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return "", fmt.Errorf("component %s: %w", c.name, err)
		}
		fmt.Fprintln(h, filepath.Base(name), len(b))
		h.Write(b)
	}
	return c.name + "-" + hex.EncodeToString(h.Sum(nil))[:16], nil
}

// build makes sure that the component's binaries are in the cache and returns their folder.
func (c component) build(ctx context.Context, progress io.Writer) (string, error) {
	modules, err := componentsDir()
	if err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	key, err := c.cacheKey(modules)
	if err != nil {
		return "", err
	}
	done := filepath.Join(cache, "bin", key)
	if _, err := os.Stat(done); err == nil {
		return done, nil
	}
	if err := os.MkdirAll(filepath.Join(cache, "bin"), 0o755); err != nil {
		return "", fmt.Errorf("build %s: %w", c.name, err)
	}
	// Into a folder of its own, renamed when all is there: two builds at once, or one that is killed, leave no half-made folder.
	work, err := os.MkdirTemp(filepath.Join(cache, "bin"), "."+c.name+"-*")
	if err != nil {
		return "", fmt.Errorf("build %s: %w", c.name, err)
	}
	defer os.RemoveAll(work)
	start := time.Now()
	fmt.Fprintf(progress, "  %-14s building (only the first time)\n", c.name)
	args := []string{"build", "-trimpath", "-ldflags", strings.TrimSpace("-s -w " + c.ldflags), "-o", work + "/"}
	if c.tags != "" {
		args = append(args, "-tags", c.tags)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, c.packages...)...)
	cmd.Dir = filepath.Join(modules, c.name)
	cgo := "0"
	if c.cgo {
		cgo = "1"
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOWORK=off")
	logPath := filepath.Join(cache, c.name+".log")
	if err := runLogged(cmd, logPath); err != nil {
		return "", fmt.Errorf("build %s: %w", c.name, err)
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return "", fmt.Errorf("build %s: %w", c.name, err)
	}
	if err := os.Rename(work, done); err != nil {
		if _, statErr := os.Stat(done); statErr != nil { // else another build was faster
			return "", fmt.Errorf("build %s: %w", c.name, err)
		}
	}
	fmt.Fprintf(progress, "  %-14s built in %s\n", c.name, time.Since(start).Round(time.Second))
	return done, nil
}

// binary returns the path of one binary, and builds its component if it must.
func binary(ctx context.Context, name string, progress io.Writer) (string, error) {
	for _, c := range components {
		for _, p := range c.packages {
			if path.Base(p) == name {
				dir, err := c.build(ctx, progress)
				if err != nil {
					return "", err
				}
				return filepath.Join(dir, name), nil
			}
		}
	}
	return "", fmt.Errorf("there is no binary %q: see tests/cluster/versions.go", name)
}

// buildAll builds components and returns the folders by name. The go command uses all cores by itself, so one build runs at a time.
func buildAll(ctx context.Context, progress io.Writer, names ...string) (map[string]string, error) {
	dirs := map[string]string{}
	for _, name := range names {
		found := false
		for _, c := range components {
			if c.name != name {
				continue
			}
			found = true
			dir, err := c.build(ctx, progress)
			if err != nil {
				return nil, err
			}
			dirs[name] = dir
		}
		if !found {
			return nil, fmt.Errorf("there is no component %q: see tests/cluster/versions.go", name)
		}
	}
	return dirs, nil
}

// moduleDir is where the sources of a module that a component requires are.
func moduleDir(ctx context.Context, comp, module string) (string, error) {
	modules, err := componentsDir()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	cmd.Dir = filepath.Join(modules, comp)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("download %s: %w: %s", module, err, lastLines(string(out), 5))
	}
	cmd = exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = filepath.Join(modules, comp)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the sources of %s: %w", module, exitError(err))
	}
	return strings.TrimSpace(string(out)), nil
}

// runLogged runs a command with its output in a file. The error says where that is, and how it ends.
func runLogged(cmd *exec.Cmd, logPath string) error {
	f, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	endWithCaller(cmd)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w; log %s ends with:\n%s", strings.Join(cmd.Args[:min(3, len(cmd.Args))], " "), err, logPath, tailFile(logPath, 8))
	}
	return nil
}

// exitError adds what the command wrote to stderr.
func exitError(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, lastLines(string(exit.Stderr), 5))
	}
	return err
}

// tailFile returns a file's last lines, for an error message.
func tailFile(name string, n int) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return lastLines(string(b), n)
}

// lastLines returns the last n lines of a text, indented.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return "    " + strings.Join(lines, "\n    ")
}
