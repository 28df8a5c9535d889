package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCacheKeyFollowsWhatIsBuilt(t *testing.T) {
	base := component{name: "thing", packages: []string{"example.com/thing"}}
	files := func(t *testing.T) string {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "thing"), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "thing", "go.mod"), "module x\n")
		write(t, filepath.Join(dir, "thing", "go.sum"), "sum\n")
		return dir
	}
	key := func(t *testing.T, c component, dir string) string {
		t.Helper()
		k, err := c.cacheKey(dir)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	want := key(t, base, files(t))
	if !strings.HasPrefix(want, "thing-") {
		t.Errorf("key %q does not begin with the component's name", want)
	}
	if got := key(t, base, files(t)); got != want {
		t.Errorf("the same files in another folder have key %s, not %s: a fresh clone would rebuild", got, want)
	}
	for name, change := range map[string]func(t *testing.T, c *component, dir string){
		"go.mod": func(t *testing.T, _ *component, dir string) {
			write(t, filepath.Join(dir, "thing", "go.mod"), "module y\n")
		},
		"go.sum": func(t *testing.T, _ *component, dir string) { write(t, filepath.Join(dir, "thing", "go.sum"), "mus\n") },
		"new file": func(t *testing.T, _ *component, dir string) {
			write(t, filepath.Join(dir, "thing", "main.go"), "package main\n")
		},
		// The bytes of both files together stay the same.
		"moved boundary": func(t *testing.T, _ *component, dir string) {
			write(t, filepath.Join(dir, "thing", "go.mod"), "module x\ns")
			write(t, filepath.Join(dir, "thing", "go.sum"), "um\n")
		},
		"tags":    func(_ *testing.T, c *component, _ string) { c.tags = "seccomp" },
		"cgo":     func(_ *testing.T, c *component, _ string) { c.cgo = true },
		"ldflags": func(_ *testing.T, c *component, _ string) { c.ldflags = "-X a=b" },
		"package": func(_ *testing.T, c *component, _ string) { c.packages = []string{"example.com/other"} },
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := base, files(t)
			change(t, &c, dir)
			if got := key(t, c, dir); got == want {
				t.Error("the key stayed the same")
			}
		})
	}
}

func TestCacheKeyWithoutAModule(t *testing.T) {
	if _, err := (component{name: "none"}).cacheKey(t.TempDir()); err == nil {
		t.Error("a component without files has a key")
	}
}

func TestUnknownNamesAreErrors(t *testing.T) {
	if _, err := binary(t.Context(), "nope", os.Stderr); err == nil || !strings.Contains(err.Error(), `"nope"`) {
		t.Errorf("binary: %v", err)
	}
	if _, err := buildAll(t.Context(), os.Stderr, "nope"); err == nil || !strings.Contains(err.Error(), `"nope"`) {
		t.Errorf("build: %v", err)
	}
}

func TestLastLines(t *testing.T) {
	for _, tt := range []struct {
		text string
		n    int
		want string
	}{
		{"", 3, "    "},
		{"a\n", 3, "    a"},
		{"a\nb\nc\n\n", 2, "    b\n    c"},
	} {
		if got := lastLines(tt.text, tt.n); got != tt.want {
			t.Errorf("lastLines(%q, %d) = %q, want %q", tt.text, tt.n, got, tt.want)
		}
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
