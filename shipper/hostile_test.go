package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
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
			if file.name == spool.EndFile && len(file.content) == 0 {
				continue // the container was killed
			}
			if err := os.WriteFile(filepath.Join(p.folder("evil"), file.name), file.content, 0o644); err != nil {
				return // nor this
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

// TestRedirectIsNotFollowed: neither the token nor a ticket is sent to where an answer points.
func TestRedirectIsNotFollowed(t *testing.T) {
	for _, status := range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s was sent there", r.Method, r.URL) }))
			defer elsewhere.Close()
			redirected := 0
			redirect := func(w http.ResponseWriter) bool {
				redirected++
				w.Header().Set("Location", elsewhere.URL)
				w.WriteHeader(status)
				return true
			}
			f := newFakeServer(t)
			f.ticketFault = func(n int, w http.ResponseWriter) bool { return n == 1 && redirect(w) }
			f.putFault = func(n int, _ string, w http.ResponseWriter) (bool, bool) { return n > 1, n == 1 && redirect(w) }
			p := newPod(t, f, "step-a")
			p.write("step-a", spool.LogName(0), lines(0, 5))
			p.drained()
			if !bytes.Equal(f.log("step-a"), lines(0, 5)) || redirected != 2 {
				t.Errorf("%d bytes, redirected %d times", len(f.log("step-a")), redirected)
			}
		})
	}
}
