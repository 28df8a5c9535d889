package main

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// requirement returns the version that a component's go.mod requires of a module.
func requirement(t *testing.T, comp, module string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("components", comp, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^(?:require)?\s*` + regexp.QuoteMeta(module) + ` (v\S+)`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("components/%s/go.mod does not require %s", comp, module)
	}
	return string(m[1])
}

func TestStampIsThePinnedKubernetes(t *testing.T) {
	if got := requirement(t, "kubernetes", "k8s.io/kubernetes"); got != kubernetesVersion {
		t.Errorf("kubernetesVersion is %s, components/kubernetes/go.mod pins %s", kubernetesVersion, got)
	}
	parts := strings.Split(strings.TrimPrefix(kubernetesVersion, "v"), ".")
	for _, want := range []string{"gitMajor=" + parts[0], "gitMinor=" + parts[1]} {
		found := false
		for flag := range strings.FieldsSeq(components[0].ldflags) {
			found = found || strings.HasSuffix(flag, "."+want)
		}
		if !found {
			t.Errorf("the kubernetes binaries are not stamped with %s", want)
		}
	}
}

// Each component's staging modules must be of the release that its main module is.
func TestKubernetesReplacesAreOfTheSameRelease(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("components", "kubernetes", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	want := "v0." + strings.TrimPrefix(kubernetesVersion, "v1.")
	replaces := regexp.MustCompile(`(?m)(k8s\.io/\S+) => \S+ (v\S+)`).FindAllStringSubmatch(string(b), -1)
	if len(replaces) == 0 {
		t.Fatal("components/kubernetes/go.mod has no replace directives")
	}
	for _, r := range replaces {
		if r[2] != want {
			t.Errorf("%s is replaced by %s, want %s", r[1], r[2], want)
		}
	}
}

func TestEveryComponentHasAModule(t *testing.T) {
	known := map[string]bool{}
	binaries := map[string]string{}
	for _, c := range components {
		known[c.name] = true
		for _, file := range []string{"go.mod", "go.sum"} {
			if _, err := os.Stat(filepath.Join("components", c.name, file)); err != nil {
				t.Errorf("component %s: %v", c.name, err)
			}
		}
		for _, p := range c.packages {
			if other, taken := binaries[path.Base(p)]; taken {
				t.Errorf("%s and %s both build a binary %s, so \"binary\" cannot tell them apart", other, c.name, path.Base(p))
			}
			binaries[path.Base(p)] = c.name
		}
	}
	modules, err := filepath.Glob("components/*/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range modules {
		if name := filepath.Base(filepath.Dir(m)); !known[name] {
			t.Errorf("components/%s is a module that versions.go does not know", name)
		}
	}
}

// What is built must be imported by the component's commands.go, or "go mod tidy" drops what it needs.
func TestCommandsAreWhatIsBuilt(t *testing.T) {
	for _, c := range components {
		b, err := os.ReadFile(filepath.Join("components", c.name, "commands.go"))
		if os.IsNotExist(err) {
			continue // a component with a main of its own
		}
		if err != nil {
			t.Fatal(err)
		}
		built := map[string]bool{}
		for _, p := range c.packages {
			built[p] = true
			if !strings.Contains(string(b), `_ "`+p+`"`) {
				t.Errorf("components/%s/commands.go does not import %s", c.name, p)
			}
		}
		for _, m := range regexp.MustCompile(`_ "([^"]+)"`).FindAllStringSubmatch(string(b), -1) {
			if !built[m[1]] {
				t.Errorf("components/%s/commands.go imports %s, which versions.go does not build", c.name, m[1])
			}
		}
	}
}

// The program must build before anything is downloaded.
func TestOnlyTheStandardLibrary(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(exitError(err))
	}
	for p := range strings.FieldsSeq(string(out)) {
		if !strings.HasSuffix(p, "/tests/cluster") {
			t.Errorf("imports %s", p)
		}
	}
}
