package placescripts

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// text is what Tekton makes of scripts, given as pairs of a name and its content.
func text(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, `scriptfile="%s"
touch ${scriptfile} && chmod +x ${scriptfile}
cat > ${scriptfile} << '_EOF_'
%s
_EOF_
/tekton/bin/entrypoint decode-script "${scriptfile}"
`, Dir+"/"+pairs[i], base64.StdEncoding.EncodeToString([]byte(pairs[i+1])))
	}
	return b.String()
}

// hard is a script with all that a shell could take wrongly.
const hard = "#!/bin/sh\necho \"$(date)\" '$$(X)' `id` \\\n_EOF_\n\x00\xff\r\n"

func TestParse(t *testing.T) {
	one := text("script-0-x7k2p", hard)
	for _, c := range []struct {
		name, text string
		want       []Script
	}{
		{"one", one, []Script{{Dir + "/script-0-x7k2p", []byte(hard)}}},
		{"several", one + text("sidecar-script-0-a", "exit 3"), []Script{
			{Dir + "/script-0-x7k2p", []byte(hard)}, {Dir + "/sidecar-script-0-a", []byte("exit 3")},
		}},
		{"empty", "", nil},
		{"half", one[:len(one)-1], nil},
		{"something before it", "\n" + one, nil},
		{"something behind it", one + "echo", nil},
		{"the same file twice", one + one, nil},
		{"a script of a breakpoint", one + "tmpfile=\"/tekton/debug/scripts/debug-continue\"\n", nil},
		{"another folder", strings.ReplaceAll(one, Dir, "/tekton/bin"), nil},
		{"a folder in it", text("a/b", "x"), nil},
		{"out of it", text("../bin/entrypoint", "x"), nil},
		{"a name that a shell expands", text("$(id)", "x"), nil},
		{"a name that a shell unquotes", text(`a\b`, "x"), nil},
		{"no base64", strings.Replace(one, "IyEv", "I?Ev", 1), nil},
		{"base64 in two lines", strings.Replace(one, "IyEv", "IyEv\n", 1), nil},
		{"another here document", strings.ReplaceAll(one, "_EOF_", "_END_"), nil},
		{"another entrypoint", strings.Replace(one, "/tekton/bin/entrypoint", "/x", 1), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(c.text)
			if (c.want == nil) != errors.Is(err, ErrForm) || len(got) != len(c.want) {
				t.Fatalf("%d scripts, %v, want %d", len(got), err, len(c.want))
			}
			for i, s := range got {
				if s.Path != c.want[i].Path || !bytes.Equal(s.Content, c.want[i].Content) {
					t.Errorf("script %d is %q in %s", i, s.Content, s.Path)
				}
			}
		})
	}
}

func TestFind(t *testing.T) {
	one, two := text("script-0-a", hard), text("sidecar-script-0-b", "exit 3")
	const breakpoint = "tmpfile=\"/tekton/debug/scripts/debug-continue\"\ntouch ${tmpfile}\n"
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"nothing":                 {"", nil},
		"what Parse takes":        {one + two, []string{"script-0-a", "sidecar-script-0-b"}},
		"a breakpoint in between": {one + breakpoint + two, []string{"script-0-a", "sidecar-script-0-b"}},
		"a breakpoint alone":      {breakpoint, nil},
		"another form":            {one + begin + "x\"\n" + two, []string{"script-0-a"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Find(c.text)
			if len(got) != len(c.want) {
				t.Fatalf("%d scripts, want %d", len(got), len(c.want))
			}
			for i, s := range got {
				if s.Path != Dir+"/"+c.want[i] {
					t.Errorf("script %d is %s, want %s", i, s.Path, c.want[i])
				}
			}
		})
	}
}

// A shell makes the same files of the text as Write does.
func TestWriteAsAShellDoes(t *testing.T) {
	all := text("script-0-a", hard, "script-1-b", "exit 3\n", "sidecar-script-0-c", "x")
	scripts, err := Parse(all)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := t.TempDir(), t.TempDir()
	for _, root := range []string{ours, theirs} {
		if err := os.MkdirAll(filepath.Join(root, Dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := Write(ours, scripts); err != nil {
		t.Fatal(err)
	}
	// In the place of Tekton's entrypoint, which decodes the file in its place.
	decode := filepath.Join(theirs, "entrypoint")
	const decoder = "#!/bin/sh\nbase64 -d \"$2\" >\"$2.new\" && cat \"$2.new\" >\"$2\" && rm \"$2.new\"\n"
	if err := os.WriteFile(decode, []byte(decoder), 0o755); err != nil {
		t.Fatal(err)
	}
	moved := strings.NewReplacer(Dir, filepath.Join(theirs, Dir), "/tekton/bin/entrypoint", decode).Replace(all)
	if out, err := exec.Command("sh", "-c", "umask 022\n"+moved).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, s := range scripts {
		var content [2][]byte
		var mode [2]os.FileMode
		for i, root := range []string{ours, theirs} {
			file := filepath.Join(root, s.Path)
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if content[i], err = os.ReadFile(file); err != nil {
				t.Fatal(err)
			}
			mode[i] = info.Mode()
		}
		if !bytes.Equal(content[0], content[1]) || mode[0] != mode[1] {
			t.Errorf("%s: %q (%v), a shell makes %q (%v)", s.Path, content[0], mode[0], content[1], mode[1])
		}
	}
	if entries, err := os.ReadDir(filepath.Join(ours, Dir)); err != nil || len(entries) != len(scripts) {
		t.Errorf("%d files, %v, want %d", len(entries), err, len(scripts))
	}
}

// A shipper that begins again places the scripts again, while steps read them.
func TestWriteAgain(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, Dir), 0o777); err != nil {
		t.Fatal(err)
	}
	file := Dir + "/script-0-a"
	if err := Write(root, []Script{{file, []byte("first")}}); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(root, []Script{{file, []byte("again")}}); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(filepath.Join(root, file))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("another file: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(root, file)); err != nil || string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestWriteFails(t *testing.T) {
	err := Write(t.TempDir(), []Script{{Dir + "/script-0-a", nil}})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), Dir+"/script-0-a") {
		t.Errorf("without the folder: %v", err)
	}
}

// FuzzParse: what Parse accepts is what Tekton makes of the scripts, to the byte.
func FuzzParse(f *testing.F) {
	f.Add(text("script-0-x7k2p", hard))
	f.Add(text("script-0-a", "", "b", "x"))
	f.Fuzz(func(t *testing.T, in string) {
		scripts, err := Parse(in)
		if err != nil {
			return
		}
		var pairs []string
		for _, s := range scripts {
			name, ok := strings.CutPrefix(s.Path, Dir+"/")
			if !ok || strings.Contains(name, "/") {
				t.Fatalf("a script at %q", s.Path)
			}
			pairs = append(pairs, name, string(s.Content))
		}
		if again := text(pairs...); again != in {
			t.Errorf("%q was made of %q", again, in)
		}
	})
}
