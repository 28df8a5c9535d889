package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// FuzzHostileFolder: whatever is in a step's folder, the shipper ends by itself, ships the other container's log whole, and makes only objects of the step's own log whose names and bytes a reader takes.
// What a hostile step does beside that is in tests/hostile.
func FuzzHostileFolder(f *testing.F) {
	f.Add(spool.LogName(0), lines(0, 3), spool.LogName(int64(len(lines(0, 3)))), lines(3, 3), []byte(`{"exit":{"code":1}}`))
	f.Add(spool.LogName(0), []byte("\x00"), spool.TermFile, []byte{}, []byte(`{`))
	f.Fuzz(func(t *testing.T, name1 string, content1 []byte, name2 string, content2, end []byte) {
		server := newFakeServer(t)
		p := newPod(t, server, "evil", "good")
		for _, file := range []struct {
			name    string
			content []byte
		}{{name1, content1}, {name2, content2}, {spool.EndFile, end}} {
			if file.name == "" || file.name != filepath.Base(file.name) || strings.ContainsRune(file.name, 0) || len(file.name) > 255 || strings.Trim(file.name, ".") == "" {
				continue // no file's name
			}
			if err := os.WriteFile(filepath.Join(p.folder("evil"), file.name), file.content, 0o644); err != nil {
				t.Skip(err) // nor this
			}
		}
		p.write("good", spool.LogName(0), lines(0, 20))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s := p.shipper()
		defer s.close()
		if err := s.drain(ctx); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(server.log("good"), lines(0, 20)) {
			t.Error("the other container's log is not exact")
		}
		server.seal("good")
		for name := range server.snapshot() {
			container, file, _ := strings.Cut(name, "/")
			if _, err := layout.ParseSegmentName(file); err != nil && file != layout.SealFile || container != "good" && container != "evil" {
				t.Errorf("object %q: %v", name, err)
			}
		}
		if server.count("evil/"+layout.SealFile) != 1 {
			t.Error("the hostile step's log is not sealed")
		}
	})
}
