package backend

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// recipe is the code block behind a comment in docs/format.md.
func recipe(t *testing.T, name string) string {
	t.Helper()
	doc, err := os.ReadFile("../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(doc), "<!-- "+name+" -->\n```\n")
	text, _, ended := strings.Cut(rest, "\n```")
	if !found || !ended {
		t.Fatalf("docs/format.md has no block %q", name)
	}
	return text
}

// shell runs a recipe in a folder and returns what it prints.
func shell(t *testing.T, dir, command string) (stdout []byte, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "bash", "-c", "set -o pipefail; "+command)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errs
	err = cmd.Run()
	return out.Bytes(), errs.String(), err
}

// putFiles writes spans of a log to dir/log, named as their objects are, as "aws s3 sync" does.
func putFiles(t *testing.T, whole []byte, spans ...[2]int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "log"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, span := range spans {
		s, b := segmentOf(t, whole, span[0], span[1])
		if err := os.WriteFile(filepath.Join(dir, "log", s.Name()), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// printedLog makes a log of both streams with pieces, bytes of every value but the newline, and what was printed.
func printedLog(t *testing.T, seed uint64, n int) (whole, printed []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range n {
		text := make([]byte, r.IntN(12))
		for j := range text {
			if text[j] = byte(r.IntN(256)); text[j] == '\n' {
				text[j] = 0
			}
		}
		full := i < n-1 && r.IntN(3) > 0 // the last line has no newline
		stream := []criline.Stream{criline.Stdout, criline.Stderr}[r.IntN(2)]
		whole = criline.Append(whole, now, stream, full, text)
		printed = append(printed, text...)
		if full {
			printed = append(printed, '\n')
		}
		if r.IntN(20) == 0 {
			var err error
			if whole, err = criline.AppendMarker(whole, now, criline.Marker{Kind: criline.Gap, Reason: criline.ReasonSpoolError, Stderr: 7}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return whole, printed
}

// TestOverlapRecipe holds what docs/format.md says about overlaps against segments that overlap at random, and Lines against the same.
func TestOverlapRecipe(t *testing.T) {
	lines, text := recipe(t, "overlap"), recipe(t, "recipe")
	for seed := range uint64(5) {
		whole, printed := printedLog(t, seed, 60)
		n := bytes.Count(whole, []byte("\n"))
		r := rand.New(rand.NewPCG(seed, 2))
		var spans [][2]int
		for end := 0; end < n; {
			from := end - r.IntN(min(end, 9)+1)
			end = min(n, end+1+r.IntN(12))
			spans = append(spans, [2]int{lineEnd(whole, from), lineEnd(whole, end)})
			if r.IntN(3) == 0 { // and one that is shorter from the same offset, or within
				spans = append(spans, [2]int{lineEnd(whole, from), lineEnd(whole, from+1)})
			}
		}
		dir := putFiles(t, whole, spans...)
		got, stderr, err := shell(t, dir, lines)
		if err != nil || !bytes.Equal(got, whole) {
			t.Fatalf("seed %d: the recipe gives %d archive bytes, not %d: %v %s", seed, len(got), len(whole), err, stderr)
		}
		both := strings.Replace(text, "zstdcat log/*.log.zst", lines, 1)
		if got, stderr, err = shell(t, dir, both); err != nil || !bytes.Equal(got, printed) {
			t.Fatalf("seed %d: the recipes give %d bytes, not the %d that were printed: %v %s", seed, len(got), len(printed), err, stderr)
		}

		m := memory{}
		for _, span := range spans {
			s, b := segmentOf(t, whole, span[0], span[1])
			m.put(t, step.SegmentKey(s), now, b)
		}
		m.put(t, step.SealKey(), now, sealOf(whole))
		if c := onlyContainer(t, m); c.Status != Verified {
			t.Errorf("seed %d: status %s (%s)", seed, c.Status, c.Why)
		} else if got := readAll(t, m, c, LogOptions{}); !bytes.Equal(got, whole) {
			t.Errorf("seed %d: Lines gives %d archive bytes, not %d", seed, len(got), len(whole))
		}
	}
}

// TestOverlapRecipeRefusesDamage expects an error where bytes are gone, and the lines before it.
func TestOverlapRecipeRefusesDamage(t *testing.T) {
	whole := lines(9)
	third, sixth := lineEnd(whole, 3), lineEnd(whole, 6)
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, middle string)
		want   string
	}{
		{"hole", func(t *testing.T, middle string) {
			if err := os.Remove(middle); err != nil {
				t.Fatal(err)
			}
		}, fmt.Sprintf("hole at %d", third)},
		{"no zstd", func(t *testing.T, middle string) {
			if err := os.WriteFile(middle, []byte("garbage"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "corrupt: log/"},
		{"another length than the name says", func(t *testing.T, middle string) {
			_, b := segmentOf(t, whole, third, lineEnd(whole, 4))
			if err := os.WriteFile(middle, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}, "length: log/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := putFiles(t, whole, [2]int{0, third}, [2]int{third, sixth}, [2]int{sixth, len(whole)})
			s, _ := segmentOf(t, whole, third, sixth)
			c.damage(t, filepath.Join(dir, "log", s.Name()))
			got, stderr, err := shell(t, dir, recipe(t, "overlap"))
			if err == nil || !strings.Contains(stderr, c.want) {
				t.Errorf("error %v and %q, want one that says %q", err, stderr, c.want)
			}
			if !bytes.Equal(got, whole[:third]) {
				t.Errorf("%q came before the damage, want %q", got, whole[:third])
			}
		})
	}
}

// TestCheckRecipe expects the seal's numbers and those of the bytes, which are the same.
func TestCheckRecipe(t *testing.T) {
	whole, _ := printedLog(t, 1, 60)
	half := lineEnd(whole, 30)
	dir := putFiles(t, whole, [2]int{0, half}, [2]int{half, len(whole)})
	seal, err := record.Encode(sealOf(whole))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "log", "seal.json"), seal, 0o644); err != nil {
		t.Fatal(err)
	}
	got, stderr, err := shell(t, dir, recipe(t, "check"))
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	sum := sha256.Sum256(whole)
	want := fmt.Sprintf("\"bytes\":%d\n\"sha256\":\"%x\"\n%d\n%x  -\n", len(whole), sum, len(whole), sum)
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
