package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

const (
	podPrefix = "logs/v1/ci/run/uid/task/pod/"
	podToken  = "pod-bound-token"
)

// fakeServer is the ticket service and S3 in one: it checks the form as S3 does, and keeps the objects.
type fakeServer struct {
	*httptest.Server
	t testing.TB

	mu          sync.Mutex
	objects     map[string][]byte
	uploads     []string // names in the order of their first success; a name that comes again with other bytes is an error
	puts        int
	put         chan struct{} // one token for the last upload
	ticketCalls int
	generation  int // of the ticket that is good
	maxBytes    int64
	lifetime    time.Duration
	storeURL    string // in a ticket, where it is not this server
	bundle      string // the certificates in a ticket
	ca          string // those of the ticket service, where they are published
	// ticketFault and putFault answer instead of the server when they return true; n counts from 1. With stored, the object was kept before.
	ticketFault func(n int, w http.ResponseWriter) bool
	putFault    func(n int, name string, w http.ResponseWriter) (stored, answered bool)
}

func newFakeServer(t testing.TB) *fakeServer {
	f := &fakeServer{t: t, objects: map[string][]byte{}, put: make(chan struct{}, 1), maxBytes: 64 << 20, lifetime: 6 * time.Hour}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+ticket.Path, f.serveTicket)
	mux.HandleFunc("POST /bucket", f.serveUpload)
	mux.HandleFunc("GET /bucket/ca.pem", func(w http.ResponseWriter, _ *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.ca == "" {
			http.Error(w, "<Code>NoSuchKey</Code>", http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, f.ca)
	})
	f.Server = httptest.NewUnstartedServer(mux)
	f.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // connections that a test cuts
	f.Start()
	t.Cleanup(f.Close)
	return f
}

func (f *fakeServer) serveTicket(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ticketCalls++
	if got := r.Header.Get("Authorization"); got != "Bearer "+podToken {
		f.t.Errorf("ticket request with Authorization %q", got)
	}
	if f.ticketFault != nil && f.ticketFault(f.ticketCalls, w) {
		return
	}
	now := time.Now()
	_ = json.NewEncoder(w).Encode(ticket.Ticket{
		URL:    cmp.Or(f.storeURL, f.URL) + "/bucket",
		Fields: map[string]string{"policy": fmt.Sprint(f.generation), "x-amz-signature": "s"},
		Prefix: podPrefix, MaxBytes: f.maxBytes, Issued: now, Expires: now.Add(f.lifetime),
		CABundle: f.bundle, CAURL: f.URL + "/bucket/ca.pem",
	})
}

func (f *fakeServer) serveUpload(w http.ResponseWriter, r *http.Request) {
	fields, body, err := readForm(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts++
	select {
	case f.put <- struct{}{}:
	default:
	}
	if err != nil {
		return // the client was killed or gave up
	}
	name, ok := strings.CutPrefix(fields["key"], podPrefix)
	switch {
	case r.ContentLength <= 0:
		f.t.Error("upload without Content-Length")
	case !ok:
		f.t.Errorf("upload outside the prefix: %q", fields["key"])
	case fields["x-amz-signature"] != "s":
		f.t.Errorf("upload without the ticket's fields: %v", fields)
	}
	if fields["policy"] != fmt.Sprint(f.generation) {
		http.Error(w, "<Code>AccessDenied</Code><Message>Policy expired</Message>", http.StatusForbidden)
		return
	}
	if int64(len(body)) > f.maxBytes {
		http.Error(w, "<Code>EntityTooLarge</Code>", http.StatusBadRequest)
		return
	}
	stored, answered := true, false
	if f.putFault != nil {
		stored, answered = f.putFault(f.puts, name, w)
	}
	if stored {
		f.keep(name, body)
	}
	if !answered {
		w.WriteHeader(http.StatusNoContent)
	}
}

func (f *fakeServer) keep(name string, body []byte) {
	old, again := f.objects[name]
	segment := strings.HasSuffix(name, ".log.zst")
	if again && segment && !bytes.Equal(old, body) {
		f.t.Errorf("%s came again with other bytes", name)
	}
	f.objects[name] = body
	if !again {
		f.uploads = append(f.uploads, name)
	}
}

// readForm reads a form as S3 does: every field before the file counts, none behind it.
func readForm(r *http.Request) (fields map[string]string, body []byte, err error) {
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return nil, nil, err
	}
	fields = map[string]string{}
	parts := multipart.NewReader(r.Body, params["boundary"])
	for {
		part, err := parts.NextPart()
		if err != nil {
			return nil, nil, err
		}
		b, err := io.ReadAll(part)
		if err != nil {
			return nil, nil, err
		}
		if part.FormName() == "file" {
			return fields, b, nil
		}
		fields[part.FormName()] = string(b)
	}
}

// set changes the server between requests.
func (f *fakeServer) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// until waits for an upload after which a condition holds.
func (f *fakeServer) until(holds func() bool) {
	f.t.Helper()
	late := time.After(time.Minute)
	for {
		f.mu.Lock()
		ok := holds()
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-f.put:
		case <-late:
			f.t.Fatal("it does not come")
		}
	}
}

func (f *fakeServer) snapshot() map[string][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.objects)
}

// count is the number of objects whose name ends so.
func (f *fakeServer) count(suffix string) (n int) {
	for name := range f.snapshot() {
		if strings.HasSuffix(name, suffix) {
			n++
		}
	}
	return n
}

// log reads a container's archive as a reader would: the segments in the order of their names must be contiguous in bytes, printed bytes and lines.
func (f *fakeServer) log(container string) []byte {
	f.t.Helper()
	objects := f.snapshot()
	var out []byte
	var want layout.Segment
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		rest, ok := strings.CutPrefix(name, container+"/")
		if !ok || rest == layout.SealFile {
			continue
		}
		s, err := layout.ParseSegmentName(rest)
		if err != nil {
			f.t.Fatal(err)
		}
		if s.Offset != want.Offset || s.PrintedOffset != want.PrintedOffset || s.Line != want.Line {
			f.t.Fatalf("%s does not follow offset %d, printed %d, line %d", name, want.Offset, want.PrintedOffset, want.Line)
		}
		r, err := segment.NewReader(bytes.NewReader(objects[name]), s)
		if err != nil {
			f.t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			f.t.Fatalf("%s: %v", name, err)
		}
		tally := tallyOf(f.t, b)
		if tally.Printed() != s.Printed || tally.Lines != s.Lines || !tally.First.Equal(s.First) || !tally.Last.Equal(s.Last) {
			f.t.Fatalf("%s holds %+v", name, tally)
		}
		out = append(out, b...)
		want = layout.Segment{Offset: s.End(), PrintedOffset: s.PrintedOffset + s.Printed, Line: s.Line + s.Lines}
	}
	return out
}

// seal reads a container's seal and checks it against the log.
func (f *fakeServer) seal(container string) record.Seal {
	f.t.Helper()
	b, ok := f.snapshot()[container+"/"+layout.SealFile]
	if !ok {
		f.t.Fatalf("%s is not sealed", container)
	}
	seal, err := record.Decode[record.Seal](b)
	if err != nil {
		f.t.Fatal(err)
	}
	log := f.log(container)
	tally := tallyOf(f.t, log)
	if seal.Bytes != int64(len(log)) || seal.SHA256 != fmt.Sprintf("%x", sha256.Sum256(log)) || seal.Lines != tally.Lines ||
		seal.Printed != (record.Printed{Stdout: tally.Stdout, Stderr: tally.Stderr}) || !seal.First.Equal(tally.First) || !seal.Last.Equal(tally.Last) {
		f.t.Errorf("seal of %s %+v does not match the log of %d bytes, %+v", container, seal, len(log), tally)
	}
	return seal
}

func tallyOf(t testing.TB, log []byte) (tally criline.Tally) {
	t.Helper()
	for text := range bytes.Lines(log) {
		line, err := criline.Parse(bytes.TrimSuffix(text, []byte{'\n'}))
		if err != nil {
			t.Fatal(err)
		}
		tally.Add(line)
	}
	return tally
}

// pod is a spool volume with a shipper's config.
type pod struct {
	t      testing.TB
	volume string
	token  string
	config contract.Config
	logged *syncBuffer
}

func newPod(t testing.TB, f *fakeServer, containers ...string) *pod {
	t.Helper()
	p := &pod{t: t, volume: t.TempDir(), logged: &syncBuffer{}, config: contract.Config{
		TicketURL: f.URL + ticket.Path, Containers: containers, SegmentBytes: 4 << 20,
		FlushInterval: contract.Duration(time.Second), SlowFlushInterval: contract.Duration(5 * time.Second),
	}}
	p.token = filepath.Join(p.volume, "token")
	tee := filepath.Join(p.volume, "tee-source")
	for name, text := range map[string]string{p.token: podToken + "\n", tee: "#!/bin/true\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := install(p.config, tee, p.volume); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pod) folder(container string) string {
	return filepath.Join(p.volume, contract.LogsSubPath, container)
}

// write appends to a file of the spool, or makes it.
func (p *pod) write(container, file string, content []byte) {
	p.t.Helper()
	f, err := os.OpenFile(filepath.Join(p.folder(container), file), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	_, err = f.Write(content)
	if err := cmp.Or(err, f.Close()); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pod) shipper() *shipper {
	p.t.Helper()
	s, err := newShipper(p.config, p.volume, p.token, slog.New(slog.NewJSONHandler(p.logged, nil)))
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// syncBuffer collects the shipper's log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// lines makes n lines of about 100 bytes; from numbers them.
func lines(from, n int) []byte {
	var b []byte
	at := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
	for i := from; i < from+n; i++ {
		stream := criline.Stdout
		if i%10 == 9 {
			stream = criline.Stderr
		}
		text := fmt.Sprintf("line %08d of a build that says what it does %x", i, sha256.Sum256([]byte{byte(i), byte(i >> 8)}))
		b = criline.Append(b, at.Add(time.Duration(i)*time.Microsecond), stream, i%100 != 57, []byte(text))
	}
	return b
}
