// Package placescripts owns the shell text with which Tekton's init container place-scripts writes
// the scripts of a TaskRun into the pod. The webhook lets the shipper take that container's place,
// and the shipper then writes the same files. It imports the standard library alone.
package placescripts

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

const (
	// Container is the name of Tekton's init container, and Dir the folder that it fills.
	Container = "place-scripts"
	Dir       = "/tekton/scripts"
)

// mode is what "touch" and "chmod +x" make of a new file under the usual umask, 022.
const mode = 0o755

// Script is a file that place-scripts makes.
type Script struct {
	Path    string // absolute, directly in Dir
	Content []byte
}

// ErrForm says that a text is not what Tekton makes for Linux scripts alone. It may hold more, such
// as the scripts of a breakpoint, and has to be run by a shell.
var ErrForm = errors.New("not the text of Tekton's place-scripts")

// Parse reads the text, which is a sequence of these lines for each script:
//
//	scriptfile="/tekton/scripts/script-0-abcde"
//	touch ${scriptfile} && chmod +x ${scriptfile}
//	cat > ${scriptfile} << '_EOF_'
//	<base64>
//	_EOF_
//	/tekton/bin/entrypoint decode-script "${scriptfile}"
//
// Anything else is ErrForm. Source: placeScriptInContainer in Tekton's pkg/pod/script.go.
func Parse(text string) ([]Script, error) {
	var scripts []Script
	seen := map[string]bool{}
	for text != "" {
		s, rest, ok := first(text)
		if !ok || seen[s.Path] {
			return nil, ErrForm
		}
		seen[s.Path] = true
		scripts = append(scripts, s)
		text = rest
	}
	if len(scripts) == 0 {
		return nil, ErrForm
	}
	return scripts, nil
}

// Find reads the scripts in a text that may hold more, such as those of a breakpoint. It stops at
// one of another form.
func Find(text string) (scripts []Script) {
	for {
		i := strings.Index(text, begin)
		if i < 0 {
			return scripts
		}
		s, rest, ok := first(text[i:])
		if !ok {
			return scripts
		}
		scripts = append(scripts, s)
		text = rest
	}
}

// begin is what the text of a script begins with.
const begin = `scriptfile="`

// first reads the script that a text begins with, and returns what is behind it.
func first(text string) (s Script, rest string, ok bool) {
	name, rest, ok := cutBetween(text, begin, "\"\n"+
		"touch ${scriptfile} && chmod +x ${scriptfile}\n"+
		"cat > ${scriptfile} << '_EOF_'\n")
	if !ok {
		return Script{}, "", false
	}
	encoded, rest, ok := cutBetween(rest, "",
		"\n_EOF_\n/tekton/bin/entrypoint decode-script \"${scriptfile}\"\n")
	if !ok || path.Dir(name) != Dir || path.Clean(name) != name || !plain(name) {
		return Script{}, "", false
	}
	content, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || strings.ContainsAny(encoded, "\r\n") {
		return Script{}, "", false
	}
	return Script{Path: name, Content: content}, rest, true
}

// cutBetween returns what is between a prefix and the first end, and what is behind that.
func cutBetween(text, prefix, end string) (between, rest string, ok bool) {
	text, ok = strings.CutPrefix(text, prefix)
	if !ok {
		return "", "", false
	}
	return strings.Cut(text, end)
}

// plain says that a shell takes the text within double quotes as it is.
func plain(text string) bool {
	return !strings.ContainsAny(text, "\"\\$`\n\x00")
}

// Write makes the scripts below root, which is "/" in a container. A script that is there is left
// alone, so that it can be repeated while a step reads its script.
func Write(root string, scripts []Script) error {
	for _, s := range scripts {
		to := filepath.Join(root, s.Path)
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := write(to, s.Content); err != nil {
			return fmt.Errorf("place script %s: %w", s.Path, err)
		}
	}
	return nil
}

// write makes the file under another name first: one that is there is whole.
func write(to string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(to), ".script-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // not there any more when all went well
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}
