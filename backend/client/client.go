// Package client reads the archive through the HTTP API, for those who have a token of the cluster and no keys of the bucket. What it answers is what package backend answers to those who have.
package client

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// Client asks one server. Its methods may be called at the same time.
type Client struct {
	// Notice, if set, is told why an answer broke off, and goes on. It is not told of one that was
	// silent for long before: somebody on the way has closed it. It may be called at the same time.
	Notice func(error)

	base string
	http *http.Client
	// How long it waits before it asks again for what broke off, at first and at most, and how long without a line until it gives up.
	firstWait, mostWait, patience time.Duration
	// An answer that was there for so long has not failed, also where no line came.
	settled time.Duration
}

// New makes a Client of a server's address, as https://shiplog.example.com. h adds the token.
func New(address string, h *http.Client) (*Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
		return nil, fmt.Errorf("the server's address %q is not like https://shiplog.example.com", address)
	}
	own := *h
	// A redirect may lead to another host, and h would show the token there too.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{base: strings.TrimSuffix(address, "/") + api.Base, http: &own, firstWait: 500 * time.Millisecond, mostWait: 10 * time.Second, patience: 2 * time.Minute, settled: 10 * time.Second}, nil
}

// Error is what the server answered in the place of what was asked for. Where there is nothing, it wraps fs.ErrNotExist.
type Error struct {
	Status  int // HTTP
	Message string
}

func (e *Error) Error() string { return e.Message }

// Is tells that something is not there.
func (e *Error) Is(target error) bool {
	return target == fs.ErrNotExist && e.Status == http.StatusNotFound
}

// maxError bounds an error's text in bytes.
const maxError = 64 << 10

// get asks for a path, whose parts are names, or a container's path.
func (c *Client) get(ctx context.Context, path []string, query url.Values, header http.Header) (*http.Response, error) {
	var b strings.Builder
	b.WriteString(c.base)
	for _, part := range path {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(part))
	}
	if len(query) > 0 {
		b.WriteByte('?')
		b.WriteString(query.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.String(), nil)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the shiplog server: %w", err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	if res.StatusCode < 400 {
		return nil, &Error{res.StatusCode, fmt.Sprintf("%s answered with %s and leads to %q, where your token is not sent: if that is the shiplog server, give its address with --server or the ConfigMap shiplog-info", req.URL.Redacted(), res.Status, res.Header.Get("Location"))}
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxError)) // what there is of it, says more than why there is no more
	var said struct{ Error string }
	if json.Unmarshal(body, &said) != nil || said.Error == "" {
		said.Error = fmt.Sprintf("%s answered with %s", req.URL.Redacted(), res.Status)
	}
	return nil, &Error{res.StatusCode, said.Error}
}

// getJSON asks for an object.
func getJSON[T any](ctx context.Context, c *Client, query url.Values, path ...string) (T, error) {
	var v T
	res, err := c.get(ctx, path, query, nil)
	if err != nil {
		return v, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("read the shiplog server's answer: %w", err)
	}
	return v, nil
}

// Namespaces returns those that may be read.
func (c *Client) Namespaces(ctx context.Context) ([]string, error) {
	var all []string
	for q := (url.Values{}); ; {
		page, err := getJSON[api.Namespaces](ctx, c, q, "namespaces")
		if err != nil {
			return nil, err
		}
		all = append(all, page.Namespaces...)
		if page.Continue == "" {
			return all, nil
		}
		q.Set("continue", page.Continue)
	}
}

// Runs yields a namespace's runs, newest first, at most limit of them (0: all). query has the filters of the API.
func (c *Client) Runs(ctx context.Context, namespace string, query url.Values, limit int) iter.Seq2[api.Run, error] {
	return func(yield func(api.Run, error) bool) {
		q := url.Values{}
		for k, v := range query {
			q[k] = v
		}
		for n := 0; ; {
			if limit > 0 {
				q.Set("limit", strconv.Itoa(min(limit-n, 500)))
			}
			page, err := getJSON[api.Runs](ctx, c, q, "namespaces", namespace, "runs")
			if err != nil {
				yield(api.Run{}, err)
				return
			}
			for _, r := range page.Runs {
				if n++; !yield(r, nil) || n == limit {
					return
				}
			}
			if page.Continue == "" {
				return
			}
			q.Set("continue", page.Continue)
		}
	}
}

// Tree finds a run by the name or UID of a PipelineRun or TaskRun (with "", of both, and by a pod's
// name), and reads it as a tree. Nothing of this name is a *backend.NotFoundError.
func (c *Client) Tree(ctx context.Context, namespace string, kind layout.RunKind, ref string) (*backend.Tree, backend.Target, error) {
	if ref == "" || strings.ContainsAny(ref, "/") {
		return nil, backend.Target{}, &backend.NotFoundError{Namespace: namespace, Ref: ref}
	}
	t, err := getJSON[api.Tree](ctx, c, nil, "namespaces", namespace, plural(kind), ref)
	if errors.Is(err, fs.ErrNotExist) {
		err = &backend.NotFoundError{Namespace: namespace, Ref: ref}
	}
	if err != nil {
		return nil, backend.Target{}, err
	}
	return treeOf(t), backend.Target{Run: t.Run, TaskRun: t.TaskRun, PodUID: t.PodUID,
		Others: t.Others}, nil
}

// plural is what the API calls runs of a kind.
func plural(kind layout.RunKind) string {
	switch kind {
	case layout.PipelineRun:
		return "pipelineruns"
	case layout.TaskRun:
		return "taskruns"
	default:
		return "runs"
	}
}

// treeOf makes the tree again of which the server has told.
func treeOf(t api.Tree) *backend.Tree {
	out := &backend.Tree{Run: t.Run, Record: t.Record, At: t.At}
	for _, tr := range t.TaskRuns {
		task := backend.TaskRun{Name: tr.Name, PipelineTask: tr.PipelineTask}
		for _, p := range tr.Pods {
			pod := backend.Pod{Key: layout.Pod{Run: t.Run, TaskRun: tr.Name, PodUID: p.PodUID}, LastSeen: p.LastSeen}
			if p.PodName != "" {
				pod.Record = &backend.PodRecord{Namespace: t.Run.Namespace, PodName: p.PodName, PodUID: p.PodUID, TaskRun: tr.Name, PipelineTask: tr.PipelineTask, Created: p.Created}
			}
			for _, k := range p.Containers {
				container := k.Container
				container.Key = layout.Container{Pod: pod.Key, Container: k.Name}
				pod.Containers = append(pod.Containers, container)
			}
			task.Pods = append(task.Pods, pod)
		}
		out.TaskRuns = append(out.TaskRuns, task)
	}
	out.Sort()
	return out
}

// containerPath is a container's place in the API.
func containerPath(k layout.Container, more ...string) []string {
	return append([]string{"containers", k.Namespace, k.Run.Name, k.UID, k.TaskRun, k.PodUID, k.Container}, more...)
}

// entry is a line of NDJSON: a line of a log, or its end.
type entry struct {
	api.Line
	End *api.State `json:"end"`
}

// maxEntry bounds a line of NDJSON in bytes: a line of a log whose every byte is escaped, and room for the rest.
const maxEntry = 6*criline.MaxText + 64<<10

// entries yields the lines of an answer.
func entries(body io.Reader) iter.Seq2[entry, error] {
	return func(yield func(entry, error) bool) {
		r := bufio.NewReaderSize(body, maxEntry)
		for {
			text, err := r.ReadSlice('\n')
			if errors.Is(err, io.EOF) && len(text) == 0 {
				return
			}
			if err == nil && len(text) == 1 { // there is nothing new
				continue
			}
			var e entry
			if err == nil {
				err = json.Unmarshal(text, &e)
			}
			if err != nil {
				err = fmt.Errorf("the shiplog server's answer broke off: %w", err)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// line makes a line again.
func (e entry) line() (backend.Line, error) {
	l := backend.Line{Line: criline.Line{Time: e.Time, Stream: e.Stream, Full: !e.Partial}, Number: e.Line.Line, Offset: e.Offset}
	switch {
	case e.Gap != nil:
		l.Text = e.Gap
	case e.Text != nil:
		l.Text = []byte(*e.Text)
	default:
		text, err := base64.StdEncoding.DecodeString(e.Base64)
		if err != nil {
			return l, fmt.Errorf("read the shiplog server's answer: %w", err)
		}
		l.Text = text
	}
	return l, nil
}

// logQuery asks for NDJSON.
func logQuery(o backend.LogOptions, follow bool) url.Values {
	q := url.Values{"format": {"ndjson"}}
	set := func(name string, n int64) {
		if n > 0 {
			q.Set(name, strconv.FormatInt(n, 10))
		}
	}
	set("tailLines", o.Tail)
	if o.None {
		q.Set("tailLines", "0")
	}
	set("fromLine", o.FromLine)
	set("toLine", o.ToLine)
	set("fromByte", o.FromByte)
	if !o.Since.IsZero() {
		q.Set("sinceTime", o.Since.UTC().Format(time.RFC3339Nano))
	}
	if follow {
		q.Set("follow", "true")
	}
	return q
}

// settle takes over how a log stands at the end of an answer.
func settle(c *backend.Container, s api.State) error {
	c.Status, c.Why, c.Bytes, c.Lines = s.Status, s.Why, s.Bytes, s.Lines
	if s.Damage != nil {
		return &backend.DigestError{Container: c.Key, Want: s.Damage.Sealed, Have: s.Damage.Read}
	}
	return nil
}

// Lines yields a container's lines as Archive.Lines does, or with follow as Archive.Follow does: c has its final state then. LogOptions.ToByte is not asked for. An answer that breaks off, as when the server is
// replaced, goes on with the next line; what is read in several answers is not compared with the seal's digest.
func (c *Client) Lines(ctx context.Context, k *backend.Container, o backend.LogOptions, follow bool) iter.Seq2[backend.Line, error] {
	return func(yield func(backend.Line, error) bool) {
		var at resumption
		wait, since := c.firstWait, time.Time{} // since when it fails
		for opened := false; ; {
			asked, before := time.Now(), at
			ended, err := c.lines(ctx, k, at.options(o), follow, &at, &opened, yield)
			if ended {
				return
			}
			if !opened || ctx.Err() != nil || !passing(err) {
				yield(backend.Line{}, err)
				return
			}
			now := time.Now()
			silent, moved := now.Sub(asked) > c.settled, at.next != before.next || at.empty != before.empty
			if moved || silent {
				wait, since = c.firstWait, now
			}
			if since.IsZero() {
				since = now
			}
			if now.Sub(since) > c.patience {
				yield(backend.Line{}, fmt.Errorf("%w; nothing more came for %s", err, c.patience))
				return
			}
			if c.Notice != nil && (moved || !silent) {
				c.Notice(fmt.Errorf("%w: asking for the rest", err))
			}
			timer := time.NewTimer(wait/2 + rand.N(wait/2+1))
			select {
			case <-ctx.Done():
				timer.Stop()
				yield(backend.Line{}, context.Cause(ctx))
				return
			case <-timer.C:
			}
			wait = min(2*wait, c.mostWait)
		}
	}
}

// passing says whether an error may be over soon.
func passing(err error) bool {
	var said *Error
	return !errors.As(err, &said) || said.Status >= 500 || said.Status == http.StatusTooManyRequests
}

// resumption is how far an answer has come.
type resumption struct {
	begun bool
	next  int64 // offset behind the last line, in printed bytes
	empty int   // lines that printed nothing and are there, as gaps are
}

// options ask for what is behind. The last byte is asked for again: what printed nothing behind it may be in its segment.
func (r resumption) options(o backend.LogOptions) backend.LogOptions {
	if r.begun {
		o.Tail, o.None, o.FromLine, o.Since = 0, false, 0, time.Time{}
		o.FromByte = max(0, r.next-1)
	}
	return o
}

// overlap is what an answer has again of the one before it. It ends with the first line that is new.
type overlap struct {
	over  bool
	empty int
}

// pass notes a line, and says whether it is new.
func (r *resumption) pass(l backend.Line, o *overlap) bool {
	n := l.Printed()
	if !o.over && r.begun {
		if l.Offset < r.next {
			return false
		}
		if n == 0 && l.Offset == r.next && o.empty < r.empty {
			o.empty++
			return false
		}
	}
	o.over = true
	if n > 0 || !r.begun || l.Offset != r.next {
		r.empty = 0
	}
	if n == 0 {
		r.empty++
	}
	r.begun, r.next = true, l.Offset+n
	return true
}

// lines yields what one answer has. It says whether all is told, and otherwise why not.
func (c *Client) lines(ctx context.Context, k *backend.Container, o backend.LogOptions, follow bool, at *resumption, opened *bool, yield func(backend.Line, error) bool) (ended bool, err error) {
	res, err := c.get(ctx, containerPath(k.Key, "logs"), logQuery(o, follow), nil)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	*opened = true
	if follow && res.Header.Get(api.HeaderBytes) == "0" {
		at.begun = true // whatever comes, comes later than was asked for: also its first lines count
	}
	var again overlap
	if o.None { // what comes from now on is wanted, also if this breaks off before the first line
		if n, err := strconv.ParseInt(res.Header.Get(api.HeaderBytes), 10, 64); err == nil {
			at.begun, at.next = true, n
		}
	}
	for e, err := range entries(res.Body) {
		if err != nil {
			return false, err
		}
		if e.End != nil {
			if err := settle(k, *e.End); err != nil {
				yield(backend.Line{}, err)
			}
			return true, nil
		}
		l, err := e.line()
		if err != nil {
			return false, err
		}
		if at.pass(l, &again) && !yield(l, nil) {
			return true, nil
		}
	}
	return false, fmt.Errorf("the shiplog server's answer broke off: %w", io.ErrUnexpectedEOF)
}

// Content opens exactly what a container printed, and returns how many bytes that is, or -1 where it is not known yet. A Read fails where it is not all there.
func (c *Client) Content(ctx context.Context, k layout.Container) (io.ReadCloser, int64, error) {
	// A compressed answer has no length.
	header := http.Header{"Accept": {"text/plain"}, "Accept-Encoding": {"identity"}}
	res, err := c.get(ctx, containerPath(k, "logs"), nil, header)
	if err != nil {
		return nil, 0, err
	}
	return res.Body, res.ContentLength, nil
}

// Found is the end of a search: how much was searched, and what of it is damaged.
type Found = api.Found

// Search yields the matches in a run's logs. kind and ref are those of Tree, and query has the API's parameters: q, regexp, ignoreCase, before, after, limit, task, step, container, all. found is filled at the end; an answer that
// lacks it is an error.
func (c *Client) Search(ctx context.Context, namespace string, kind layout.RunKind, ref string, query url.Values, found *Found) iter.Seq2[api.Match, error] {
	return func(yield func(api.Match, error) bool) {
		res, err := c.get(ctx, []string{"namespaces", namespace, plural(kind), ref, "search"},
			query, nil)
		if err != nil {
			yield(api.Match{}, err)
			return
		}
		defer res.Body.Close()
		d := json.NewDecoder(res.Body)
		for {
			var m struct {
				api.Match
				Found json.RawMessage `json:"found"`
			}
			if err := d.Decode(&m); err != nil {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				yield(api.Match{}, fmt.Errorf("the shiplog server's answer broke off: %w", err))
				return
			}
			if m.Found != nil {
				if err := json.Unmarshal(m.Found, &found.Found); err != nil {
					yield(api.Match{}, fmt.Errorf("read the shiplog server's answer: %w", err))
				}
				return
			}
			if !yield(m.Match, nil) {
				return
			}
		}
	}
}
