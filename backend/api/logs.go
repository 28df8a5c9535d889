package api

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/visible"
)

const (
	// The state of the log, or the worst of several, and what it means in words: as a header how it was when the answer began, and as a trailer how it was found to be.
	headerStatus = "Shiplog-Status"
	headerWhy    = "Shiplog-Why"
	// HeaderBytes and headerLines are how much is archived of a container's log, when the answer
	// begins.
	HeaderBytes = "Shiplog-Bytes"
	headerLines = "Shiplog-Lines"

	// KeepAlive is how often an answer in which nothing happens says that it is still there, so that
	// nobody on the way closes it.
	KeepAlive = 15 * time.Second
)

// containerLog answers with the log of the container that the path names as the bucket does: one LIST, and a GET for the seal and for each segment that is read.
func (a *api) containerLog(w http.ResponseWriter, r *http.Request) error {
	key, err := ContainerKey(r)
	if err != nil {
		return err
	}
	c, err := a.Archive.Container(r.Context(), key)
	if err != nil {
		return err
	}
	return a.serveLog(w, r, c)
}

// ContainerKey reads the container that a path names, of {namespace}/{run}/{uid}/{taskRun}/{pod}/{container}.
func ContainerKey(r *http.Request) (layout.Container, error) {
	run := layout.Run{Namespace: r.PathValue("namespace"), Name: r.PathValue("run"), UID: r.PathValue("uid")}
	key := layout.Container{Pod: layout.Pod{Run: run, TaskRun: r.PathValue("taskRun"), PodUID: r.PathValue("pod")}, Container: r.PathValue("container")}
	if err := key.Validate(); err != nil {
		return key, badRequest(err)
	}
	return key, nil
}

// stepLog answers with the log of a TaskRun's step.
func (a *api) stepLog(w http.ResponseWriter, r *http.Request) error {
	target, err := a.Archive.FindTaskRun(r.Context(), r.PathValue("namespace"), r.PathValue("run"))
	if err != nil {
		return err
	}
	tree, err := a.Archive.Tree(r.Context(), target)
	if err != nil {
		return err
	}
	retry := int64(-1) // the last
	query := r.URL.Query()
	if query.Has("retry") {
		p := readParams(r)
		if retry = p.number("retry", 0, 1000, -1); p.err != nil {
			return p.err
		}
		query.Del("retry")
		r.URL.RawQuery = query.Encode()
	}
	step := r.PathValue("step")
	var found *backend.Container
	for place := range tree.Containers() {
		c := place.Container
		if c.Kind != record.Sidecar && c.Kind != record.Init && (c.Label() == step || c.Name == "step-"+step) && (retry < 0 || retry == int64(place.Retry)) {
			found = &c
		}
	}
	if found == nil {
		return &Error{http.StatusNotFound, fmt.Sprintf("TaskRun %s has no step %q in the archive", r.PathValue("run"), step)}
	}
	return a.serveLog(w, r, *found)
}

// podLog answers with the log of a pod's container, both by name.
func (a *api) podLog(w http.ResponseWriter, r *http.Request) error {
	target, err := a.Archive.FindPod(r.Context(), r.PathValue("namespace"), r.PathValue("pod"))
	if err != nil {
		return err
	}
	key := layout.Container{Pod: layout.Pod{Run: target.Run, TaskRun: target.TaskRun, PodUID: target.PodUID}, Container: r.PathValue("container")}
	if err := key.Validate(); err != nil {
		return badRequest(err)
	}
	c, err := a.Archive.Container(r.Context(), key)
	if err != nil {
		return err
	}
	return a.serveLog(w, r, c)
}

// serveLog answers with a container's log.
func (a *api) serveLog(w http.ResponseWriter, r *http.Request, c backend.Container) error {
	p := readParams(r)
	l := logParamsOf(r, p)
	if err := p.done(); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Vary", "Accept")
	h.Set(headerStatus, string(c.Status))
	setWhy(h, headerWhy, c)
	h.Set(HeaderBytes, strconv.FormatInt(c.Bytes, 10))
	h.Set(headerLines, strconv.FormatInt(c.Lines, 10))
	if l.download {
		attach(h, fmt.Sprintf("%s-%s.log", c.Key.TaskRun, c.Name))
	}
	// An empty text would look like the log of a step that printed nothing. The other formats say it
	// at their end.
	if c.Status == backend.Missed && l.format == formatText && !l.notices {
		return &Error{http.StatusNotFound, c.Describe()}
	}
	whole := l.format == formatText && !l.timestamps && !l.notices && !l.follow && l.limit == 0 && l.bare()
	if whole && (c.Status == backend.Verified || c.Status == backend.Gaps) && !c.Estimated {
		return a.serveContent(w, r, c)
	}
	switch l.format {
	case formatNDJSON:
		return a.stream(w, r, c, l, &lineWriter{out: newOut(w)})
	case formatEvents:
		if last := r.Header.Get("Last-Event-ID"); last != "" {
			number, ended := strings.CutSuffix(last, endID)
			at, err := strconv.ParseInt(number, 10, 64)
			if err != nil || at < 0 {
				return &Error{http.StatusBadRequest, fmt.Sprintf("Last-Event-ID %q is not one of this stream's", last)}
			}
			// Who has seen the end of a log that is sealed has seen all. Anything but 204 would have an EventSource ask again and again.
			if ended && at >= c.Bytes && c.Seal != nil && c.Status != backend.Running && c.Status != backend.Partial {
				w.WriteHeader(http.StatusNoContent)
				return nil
			}
			// Where to begin is known now. Where to end is as it was.
			l.options = backend.LogOptions{FromByte: at, ToLine: l.options.ToLine}
		}
		out := &eventWriter{out: newOut(w)}
		if l.options.None {
			out.from = &c.Bytes
		}
		return a.stream(w, r, c, l, out)
	default:
		return a.stream(w, r, c, l, newTextWriter(w, l))
	}
}

// maxWhy bounds what a header tells, in bytes: clients bound headers, and some proxies to 4 KiB. The
// tree has all of it.
const maxWhy = 1 << 10

// setWhy has a header say what a log's state means, if that is to be said.
func setWhy(h http.Header, name string, c backend.Container) {
	if said := c.Describe(); said != "" {
		h.Set(name, visible.Line(said, maxWhy))
	}
}

// bare says whether all of the log is asked for.
func (l logParams) bare() bool {
	o := l.options
	return o.Tail == 0 && !o.None && o.FromLine == 0 && o.ToLine == 0 && o.FromByte == 0 && o.Since.IsZero()
}

// attach makes the browser save the answer.
func attach(h http.Header, name string) {
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", name)) // of names that Kubernetes allows, which need no more than quotes
}

// serveContent answers with exactly what was printed, whole or in ranges.
func (a *api) serveContent(w http.ResponseWriter, r *http.Request, c backend.Container) error {
	content, err := a.Archive.Content(r.Context(), c)
	if err != nil {
		return err
	}
	defer content.Close()
	if c.Seal != nil && c.Seal.SHA256 != "" {
		w.Header().Set("ETag", `"`+c.Seal.SHA256+`"`)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	// Of several ranges each would cost a GET at least, and they would be read in another goroutine: RFC 9110 has us answer with the whole.
	if strings.Contains(r.Header.Get("Range"), ",") {
		r = r.Clone(r.Context())
		r.Header.Del("Range")
	}
	kept, out := &keptError{ReadSeeker: content}, &rangeWriter{ResponseWriter: w}
	http.ServeContent(out, r, "", c.Seal.Sealed, kept)
	if out.refused {
		return &Error{http.StatusRequestedRangeNotSatisfiable, fmt.Sprintf("Range %q is not within the log, which has %d bytes", r.Header.Get("Range"), c.Bytes)}
	}
	return kept.err
}

// rangeWriter leaves it to us what is said of a range that cannot be had.
type rangeWriter struct {
	http.ResponseWriter
	refused bool
}

func (w *rangeWriter) WriteHeader(status int) {
	if w.refused = status == http.StatusRequestedRangeNotSatisfiable; !w.refused {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *rangeWriter) Write(b []byte) (int, error) {
	if w.refused {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// keptError keeps what http.ServeContent does not say.
type keptError struct {
	io.ReadSeeker
	err error
}

func (k *keptError) Read(p []byte) (int, error) {
	n, err := k.ReadSeeker.Read(p)
	if err != nil && err != io.EOF {
		k.err = err
	}
	return n, err
}

// writer writes a log in one of the formats.
type writer interface {
	contentType() string
	// line writes a line, or what was found instead. It returns errors of the store and of the connection.
	line(l backend.Line, err error) error
	// end writes what the end of the log means.
	end(c backend.Container) error
	// flush sends what is written.
	flush() error
}

// stream writes a log as it is read.
func (a *api) stream(w http.ResponseWriter, r *http.Request, c backend.Container, l logParams, out writer) error {
	w.Header().Set("Content-Type", out.contentType())
	if headersOnly(w, r) {
		return nil
	}
	lines := a.Archive.Lines(r.Context(), c, l.options)
	if l.follow {
		if err := longLived(w); err != nil {
			return err
		}
		if err := SendHeaders(w); err != nil {
			return err
		}
		l.options.Idle = out.flush
		lines = a.Archive.Follow(r.Context(), &c, l.options)
	}
	for line, err := range lines {
		if err := out.line(line, err); errors.Is(err, errEnough) {
			return out.flush()
		} else if err != nil {
			return err
		}
	}
	if err := out.end(c); err != nil && !errors.Is(err, errEnough) {
		return err
	}
	w.Header().Set(http.TrailerPrefix+headerStatus, string(c.Status))
	setWhy(w.Header(), http.TrailerPrefix+headerWhy, c)
	return out.flush()
}

// longLived lets an answer take as long as its context lives.
func longLived(w http.ResponseWriter) error {
	if err := http.NewResponseController(w).SetWriteDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// errEnough ends an answer that has as many bytes as were asked for.
var errEnough = errors.New("limitBytes is reached")

// out is a buffered response.
type out struct {
	*bufio.Writer
	response http.ResponseWriter
}

func newOut(w http.ResponseWriter) out { return out{bufio.NewWriterSize(w, 64<<10), w} }

// unbuffered asks proxies to pass on what comes as it comes (nginx reads the header, and others do
// as it does).
func unbuffered(w http.ResponseWriter) { w.Header().Set("X-Accel-Buffering", "no") }

// SendHeaders sends them before there is anything to send: who waits is told that an answer comes.
func SendHeaders(w http.ResponseWriter) error {
	unbuffered(w)
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

func (o out) flush() error {
	if err := o.Flush(); err != nil {
		return err
	}
	if err := http.NewResponseController(o.response).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// limited stops behind so many bytes.
type limited struct {
	w    io.Writer
	left int64
}

func (l *limited) Write(b []byte) (int, error) {
	if int64(len(b)) <= l.left {
		l.left -= int64(len(b))
		return l.w.Write(b)
	}
	n, err := l.w.Write(b[:l.left])
	l.left = 0
	if err == nil {
		err = errEnough
	}
	return n, err
}

// textWriter writes plain text: exactly what was printed, or lines with their times, or with notices.
type textWriter struct {
	out     out
	printer *backend.Printer
	from    int64 // the first printed byte that is wanted
	raw     bool
	damaged bool
}

func newTextWriter(w http.ResponseWriter, l logParams) *textWriter {
	t := &textWriter{from: l.options.FromByte, raw: !l.timestamps && !l.notices}
	t.out = newOut(w)
	if l.limit > 0 {
		t.out.Writer = bufio.NewWriterSize(&limited{w, l.limit}, 64<<10)
	}
	t.printer = &backend.Printer{Out: t.out.Writer, Raw: t.raw, Timestamps: l.timestamps, Seen: func(s backend.Status) { t.damaged = t.damaged || s == backend.Damaged }}
	if l.notices {
		t.printer.Notices, t.printer.Ends = t.out, t.out
	}
	return t
}

func (t *textWriter) contentType() string { return "text/plain; charset=utf-8" }

func (t *textWriter) flush() error {
	if err := t.out.flush(); !errors.Is(err, errEnough) {
		return err
	}
	return nil
}

func (t *textWriter) line(l backend.Line, err error) error {
	if before := t.from - l.Offset; before > 0 && err == nil && t.raw && l.Stream != criline.Markers {
		l.Text = l.Text[min(before, int64(len(l.Text))):]
	}
	return t.printer.Line("", l, err)
}

func (t *textWriter) end(c backend.Container) error {
	found := t.damaged
	if err := t.printer.End("", c); err != nil {
		return err
	}
	// Text alone cannot say that something is missing of which the header did not speak.
	if found && c.Status != backend.Damaged && t.printer.Notices == nil {
		return fmt.Errorf("the log under %s is damaged where it was not known to be", c.Key.Prefix())
	}
	return nil
}

func stateOf(c backend.Container) State {
	s := State{Status: c.Status, Why: c.Why, Says: c.Describe(), Bytes: c.Bytes, Lines: c.Lines}
	if c.Seal != nil {
		s.Exit = c.Seal.Exit
	}
	return s
}

// gapOf is what is known of a marker, with texts that are fit to be shown.
func gapOf(text []byte) json.RawMessage {
	m, err := criline.ParseMarker(text)
	if err != nil { // JSON of another kind
		return json.RawMessage(`{"kind":"unknown"}`)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return json.RawMessage(`{"kind":"unknown"}`)
	}
	return b
}

// encodeLine makes a line's JSON.
func encodeLine(place *Place, l backend.Line) ([]byte, error) {
	j := Line{Place: place, Line: l.Number, Offset: l.Offset, Time: l.Time, Stream: l.Stream, Partial: !l.Full}
	switch {
	case l.Stream == criline.Markers && json.Valid(l.Text):
		j.Gap = gapOf(l.Text)
	case utf8.Valid(l.Text):
		text := string(l.Text)
		j.Text = &text
	default:
		j.Base64 = base64.StdEncoding.EncodeToString(l.Text)
	}
	return json.Marshal(j)
}

// lineWriter writes NDJSON.
type lineWriter struct {
	out    out
	place  *Place
	damage *Damage
	alive  alive
}

func (n *lineWriter) contentType() string { return "application/x-ndjson" }

// flush also says, once in a while, that there is nothing new: with an empty line.
func (n *lineWriter) flush() error {
	if n.alive.due(n.out) {
		if _, err := n.out.WriteString("\n"); err != nil {
			return err
		}
	}
	return n.out.flush()
}

// alive is when something was sent last.
type alive struct{ sent time.Time }

// due says whether nothing was sent for so long that it is time to say something. What waits in the
// buffer counts as sent.
func (a *alive) due(o out) bool {
	now := time.Now()
	if a.sent.IsZero() || o.Buffered() > 0 {
		a.sent = now
	}
	if now.Sub(a.sent) < KeepAlive {
		return false
	}
	a.sent = now
	return true
}

func (n *lineWriter) line(l backend.Line, err error) error {
	var digest *backend.DigestError
	if errors.As(err, &digest) {
		n.damage = &Damage{digest.Want, digest.Have}
		return nil
	}
	if err != nil {
		return err
	}
	return n.write(encodeLine(n.place, l))
}

func (n *lineWriter) end(c backend.Container) error {
	s := stateOf(c)
	s.Damage, n.damage = n.damage, nil
	return n.write(json.Marshal(End{n.place, s}))
}

func (n *lineWriter) write(b []byte, err error) error {
	if err != nil {
		return err
	}
	_, err = n.out.Write(append(b, '\n'))
	return err
}

// endID is behind the number in the ID of the event "end".
const endID = "-end"

// eventWriter writes server-sent events: "line" for each line, whose ID is where to go on, and at last "end".
type eventWriter struct {
	out    out
	place  *Place
	damage *Damage
	alive  alive
	begun  bool   // the first sign of life is sent
	from   *int64 // the place where it begins, to be told before there is a line
}

func (e *eventWriter) contentType() string { return "text/event-stream" }

// flush also says, once in a while, that there is nothing new.
func (e *eventWriter) flush() error {
	// Who is cut off before the first line would otherwise begin behind what has come since.
	if e.from != nil {
		if _, err := fmt.Fprintf(e.out, "id: %d\n\n", *e.from); err != nil {
			return err
		}
		e.from = nil
	}
	if e.alive.due(e.out) || !e.begun {
		e.begun = true
		if _, err := e.out.WriteString(":\n\n"); err != nil {
			return err
		}
	}
	return e.out.flush()
}

func (e *eventWriter) line(l backend.Line, err error) error {
	var digest *backend.DigestError
	if errors.As(err, &digest) {
		e.damage = &Damage{digest.Want, digest.Have}
		return nil
	}
	if err != nil {
		return err
	}
	b, err := encodeLine(e.place, l)
	if err != nil {
		return err
	}
	e.from = nil
	if e.place == nil { // of several logs, there is no one place to go on
		if _, err := fmt.Fprintf(e.out, "id: %d\n", l.Offset+l.Printed()); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(e.out, "event: line\ndata: %s\n\n", b)
	return err
}

func (e *eventWriter) end(c backend.Container) error {
	s := stateOf(c)
	s.Damage, e.damage, e.from = e.damage, nil, nil
	b, err := json.Marshal(End{e.place, s})
	if err != nil {
		return err
	}
	if e.place == nil {
		if _, err := fmt.Fprintf(e.out, "id: %d%s\n", c.Bytes, endID); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(e.out, "event: end\ndata: %s\n\n", b)
	return err
}
