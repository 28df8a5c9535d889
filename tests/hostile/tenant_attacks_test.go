//go:build linux

package hostile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// tenantAttack is what a tenant stores below the prefixes of its pods, and what it then asks for.
type tenantAttack struct {
	name  string
	bound string // what holds it
	users int    // of the tenant's: 1 if not set
	store func(r *hostileRun)
	// paths are what is asked for again and again, and follows what is followed beside it; nil
	// stands for all that can be asked of a run.
	paths, follows func(run layout.Run) []string
	// says is what must be said of it.
	says func(t *testing.T, r *reading)
}

// hostileRun is the run that an attack is in.
type hostileRun struct {
	*world
	layout.Run
}

// stepName is the container that is asked for by itself.
const stepName = "step-a"

func podOf(run layout.Run, n int) layout.Pod {
	return layout.Pod{Run: run, TaskRun: fmt.Sprintf("t%03d", n), PodUID: fmt.Sprintf("pod-%03d", n)}
}

func stepOf(run layout.Run) layout.Container {
	return layout.Container{Pod: podOf(run, 0), Container: stepName}
}

// container is one of the first pod.
func (r *hostileRun) container(name string) layout.Container {
	return layout.Container{Pod: podOf(r.Run, 0), Container: name}
}

// mass has the front answer for so many objects of the run.
func (r *hostileRun) mass(m mass) {
	key := m.key
	m.key = func(i int) string { return r.under + key(i) }
	r.front.put(r.under+r.Prefix(), m)
}

// log stores a log in one segment: what repeats, so often.
func (r *hostileRun) log(c layout.Container, chunk []byte, times int) {
	r.t.Helper()
	w, err := segment.NewWriter()
	if err != nil {
		r.t.Fatal(err)
	}
	var one criline.Tally
	for line := range bytes.Lines(chunk) {
		parsed, err := criline.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			r.t.Fatal(err)
		}
		one.Add(parsed)
	}
	one.Gaps = nil
	w.Begin(0, 0, 0)
	for range times {
		if err := w.Append(chunk, one); err != nil {
			r.t.Fatal(err)
		}
	}
	s, body, err := w.Finish()
	if err != nil {
		r.t.Fatal(err)
	}
	r.put(c.SegmentKey(s), bytes.Clone(body))
}

// overwrittenSeals stores seals of 2 bytes, each larger when it is read than when it was listed.
func (r *hostileRun) overwrittenSeals() {
	large := markers()
	for i := range 1000 {
		key := r.container(fmt.Sprintf("c%03d", i)).SealKey()
		r.put(key, []byte("{}"))
		r.front.swap(r.under+key, large)
	}
}

// many are so many lines of a text, with their prefixes.
func many(n int, stream criline.Stream, full bool, text string) (b []byte) {
	at := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
	for range n {
		b = criline.Append(b, at, stream, full, []byte(text))
	}
	return b
}

// zstdFrame is a frame that is made by hand, block by block (RFC 8878, 3.1.1): an encoder makes none
// that are so small for what they hold.
type zstdFrame struct {
	b    []byte
	last int // where the last block begins
}

// newFrame begins a frame with a window of so many bytes, a power of two from 1 KiB on.
func newFrame(window int) *zstdFrame {
	log := 0
	for 1<<(log+10) < window {
		log++
	}
	return &zstdFrame{b: append(binary.LittleEndian.AppendUint32(nil, 0xfd2fb528), 0, byte(log<<3))}
}

func (f *zstdFrame) block(kind, size int, content ...byte) {
	f.last = len(f.b)
	header := size<<3 | kind<<1
	f.b = append(f.b, byte(header), byte(header>>8), byte(header>>16))
	f.b = append(f.b, content...)
}

// text adds a block of these bytes.
func (f *zstdFrame) text(s string) { f.block(0, len(s), []byte(s)...) }

// repeat adds a byte so often.
func (f *zstdFrame) repeat(fill byte, n int64) {
	const most = 128 << 10
	for ; n > 0; n -= most {
		f.block(1, int(min(n, most)), fill)
	}
}

// bytes ends the frame.
func (f *zstdFrame) bytes() []byte {
	f.b[f.last] |= 1
	return f.b
}

// frame is a frame that holds a byte so often.
func frame(window int, fill byte, n int64) []byte {
	f := newFrame(window)
	f.repeat(fill, n)
	return f.bytes()
}

// long stores a log of lines, or of pieces of one, that are as long as they may be and hold one
// character.
func (r *hostileRun) long(c layout.Container, n int64, full bool, fill byte) {
	f, one := newFrame(256<<10), criline.Tally{}
	prefix := string(criline.AppendPrefix(nil, segmentOf(0, 0).First, criline.Stdout, full))
	for range n {
		f.text(prefix)
		f.repeat(fill, criline.MaxText)
		f.text("\n")
	}
	one.Add(criline.Line{Stream: criline.Stdout, Full: full, Text: make([]byte, criline.MaxText)})
	s := segmentOf(0, n*one.Bytes)
	s.Printed, s.Lines = n*one.Stdout, n*one.Lines
	r.put(c.SegmentKey(s), f.bytes())
}

// segmentOf is one of archive bytes from an offset on, with as many lines as fit.
func segmentOf(offset, length int64) layout.Segment {
	at := time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC)
	return layout.Segment{Offset: offset, Length: length, First: at, Last: at}
}

// everything is all that can be asked of a run.
func everything(run layout.Run) []string {
	of := "/api/v1/namespaces/" + tenant + "/runs/" + run.Name
	step := api.PathOf(stepOf(run))
	return []string{
		of, of + "/logs?all=true", of + "/logs?all=true&format=ndjson", of + "/logs.zip",
		of + "/search?all=true&q=e&before=20&after=20&limit=10000",
		of + "/search?all=true&regexp=true&q=" + url.QueryEscape(`(x+x+)+y|(.{1,30}){1,20}$`),
		of + "/objects", "/ui/" + tenant + "/" + run.Name,
		"/ui/-/lines/" + step + "?from=1&count=1000", "/ui/-/marks/" + step + "?from=1",
		"/api/v1/containers/" + step, "/api/v1/containers/" + step + "/logs",
		"/api/v1/containers/" + step + "/logs?tailLines=10&format=ndjson",
		"/api/v1/namespaces/" + tenant + "/runs?limit=500", "/ui/" + tenant,
		lokiQuery(run),
	}
}

// lokiQuery is what Tekton Results asks.
func lokiQuery(run layout.Run) string {
	q := fmt.Sprintf(`{ namespace="%s" }|json uid="kubernetes.labels.tekton_dev_pipelineRunUID",`+
		` message="message" |uid="%s"| line_format "{{.message}}"`, tenant, run.UID)
	v := url.Values{"query": {q}, "start": {"1"}, "end": {"2"}, "limit": {"1000000"}}
	return "/loki/api/v1/query_range?" + v.Encode()
}

// followed is what can be followed of a run.
func followed(run layout.Run) []string {
	step := "/api/v1/containers/" + api.PathOf(stepOf(run)) + "/logs?follow=true"
	return []string{
		"/api/v1/namespaces/" + tenant + "/runs/" + run.Name + "/logs?all=true&follow=true",
		step, step + "&format=events", step + "&tailLines=0",
	}
}

// only asks for these alone.
func only(of func(step, run string) []string) func(layout.Run) []string {
	return func(run layout.Run) []string {
		return of(api.PathOf(stepOf(run)), "/api/v1/namespaces/"+tenant+"/runs/"+run.Name)
	}
}

// nothing is asked for.
func nothing(layout.Run) []string { return nil }

// said says that all logs have this state, and how many there are at least.
func said(least int, states ...string) func(t *testing.T, r *reading) {
	return func(t *testing.T, r *reading) {
		t.Helper()
		have := r.states(t)
		for _, s := range have {
			if !slices.ContainsFunc(states, func(want string) bool { return strings.Contains(s, want) }) {
				t.Errorf("a log is said to be %.300q, want one of %q", s, states)
				return
			}
		}
		if len(have) < least {
			t.Errorf("there are %d logs, want %d", len(have), least)
		}
	}
}

// oneLineEach says that no line of the run's text is the attacker's own, and that none is obeyed by a
// terminal.
func oneLineEach(t *testing.T, r *reading) {
	t.Helper()
	for _, path := range []string{r.of("/logs?all=true"), r.of("/logs?all=true&timestamps=true")} {
		text := r.read(t, path)
		if bytes.ContainsAny(text, "\x1b\r") || bytes.Contains(text, []byte("\n[forged")) {
			t.Errorf("%s has a forged line: %.500q", path, text)
		}
	}
}

// headersFit says that the headers of an answer are small.
func headersFit(t *testing.T, r *reading) {
	t.Helper()
	path := "/api/v1/containers/" + api.PathOf(stepOf(r.run)) + "/logs?notices=true"
	resp, err := r.get(t.Context(), path, r.token, "")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	size := 0
	for name, values := range resp.Header {
		size += len(name) + len(strings.Join(values, ""))
	}
	if size > 4<<10 {
		t.Errorf("%s has %d bytes of headers", path, size)
	}
}

// badSHA is a seal's whose digest is no UTF-8, as large as a seal may be.
func badSHA() []byte {
	size := int(record.Limit[record.Seal]())
	b := []byte(`{"sha256":"`)
	b = append(b, bytes.Repeat([]byte{0xff}, size-len(b)-2)...)
	return append(b, `"}`...)
}

// fill is JSON of at most so many bytes, with as many of what repeats as fit.
func fill(size int64, before string, one func(i int) string, after string) []byte {
	var b strings.Builder
	b.WriteString(before)
	for i := 0; ; i++ {
		more := one(i)
		if int64(b.Len()+len(more)+len(after)) > size {
			break
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(more)
	}
	out := strings.TrimSuffix(b.String(), ",") + after
	return []byte(out[:min(int64(len(out)), size)])
}

// markers is a seal of as many gaps as one may have, all as long as they may be.
func markers() []byte {
	n := 0
	return fill(record.Limit[record.Seal](), `{"bytes":1,"gaps":[`, func(int) string {
		if n++; n > record.MaxGaps {
			return strings.Repeat(" ", 1<<20)
		}
		return fmt.Sprintf(`{"kind":"gap","reason":"%s","stdout":1,"detail":"%s"}`,
			strings.Repeat("<", 64), strings.Repeat("<", 1000))
	}, `]}`)
}

// containers is a pod's record of as many containers as one may have.
func containers() []byte {
	n := 0
	return fill(record.Limit[record.Pod](), `{"podName":"p","containers":[`, func(i int) string {
		if n++; n > record.MaxContainers {
			return strings.Repeat(" ", 2<<20)
		}
		return fmt.Sprintf(`{"name":"c%04d","kind":"step","skipped":"%s"}`, i,
			strings.Repeat("<", 950))
	}, `]}`)
}

func tenantAttacks() []tenantAttack {
	const (
		ofTree    = "of records a tree pays for what they may take, and is refused where that is too much"
		ofSegment = "a segment is one frame with a window of 256 KiB, and never longer than its name says"
	)
	all := []tenantAttack{
		{name: "none", bound: "nobody attacks"},
		{
			name:  "255 seals of 256 KiB whose digest is no UTF-8",
			bound: "what is no UTF-8 is no record",
			store: func(r *hostileRun) {
				for i := range 255 {
					r.put(r.container(fmt.Sprintf("c%03d", i)).SealKey(), badSHA())
				}
			},
			says: said(255, "damaged: "),
		},
		{
			name:  "63 pods' records with as many labels as fit into 1 MiB",
			bound: "500 labels of 64 KiB; " + ofTree,
			store: func(r *hostileRun) {
				labels := fill(record.Limit[record.Pod](), `{"labels":{`,
					func(i int) string { return fmt.Sprintf(`"%x":""`, i) }, `}}`)
				for i := range 63 {
					r.put(podOf(r.Run, i).PodKey(), labels)
				}
			},
			paths: only(func(_, run string) []string { return []string{run, run + "/logs"} }),
		},
		{
			name:  "500,000 empty objects with forged segments' names",
			bound: "160 bytes for each segment, of which a tree has 500,000; trees share half of the memory",
			store: func(r *hostileRun) {
				c := r.container(stepName)
				r.mass(mass{n: 500_000, key: func(i int) string {
					return c.SegmentKey(segmentOf(int64(i), 1))
				}, body: func(int) []byte { return nil }})
			},
		},
		{
			name:  "200,000 segments that overlap, numbered so that none has a place",
			bound: "as the last; what a segment costs does not grow with how many there are",
			store: func(r *hostileRun) {
				c := r.container(stepName)
				r.mass(mass{n: 200_000, key: func(i int) string {
					s := segmentOf(int64(i), 1000)
					s.PrintedOffset, s.Printed = 1, 1
					return c.SegmentKey(s)
				}, body: func(int) []byte { return nil }})
			},
		},
		{
			name:  "a log of 500,000 gap markers alone",
			bound: "of a line the page describes 20 gaps",
			store: func(r *hostileRun) {
				marker := `{"kind":"gap","reason":"forged","stdout":1,"stderr":1}`
				r.log(r.container(stepName), many(1000, criline.Markers, true, marker), 500)
			},
		},
		{
			name:  "an object of 1 MB that unpacks to 9 GB",
			bound: ofSegment + "; a request lasts 10 minutes for who does not read",
			store: func(r *hostileRun) {
				const length = 9_000_000_000
				r.put(r.container(stepName).SegmentKey(segmentOf(0, length)),
					frame(256<<10, '\n', length))
			},
		},
		{
			name:  "an object of 10 KB that asks for a window of 8 MiB",
			bound: ofSegment,
			store: func(r *hostileRun) {
				const length = 300 << 20
				r.put(r.container(stepName).SegmentKey(segmentOf(0, length)),
					frame(8<<20, 'x', length))
			},
		},
		{
			name:  "objects of which no body comes",
			bound: "30 s for the next byte; who waits holds no turn of others",
			store: func(r *hostileRun) {
				s := segmentOf(0, 1000)
				r.put(r.container(stepName).SegmentKey(s), []byte("x"))
				r.put(r.container("step-b").SealKey(), []byte("{}"))
				r.front.stall(r.under + r.container(stepName).SegmentKey(s))
				r.front.stall(r.under + r.container("step-b").SealKey())
			},
		},
		{
			name:  "keys with control characters",
			bound: "a key that XML cannot hold is no object of shiplog's",
			store: func(r *hostileRun) {
				r.log(r.container(stepName), many(1, criline.Stdout, true, "a line"), 1)
				for _, odd := range []string{"\x01", "\x1b[31m", "\n", "\u202e", "&#1;", "%00"} {
					r.put(podOf(r.Run, 0).Prefix()+odd, nil)
				}
			},
			says: said(1, "running"),
		},
		{
			name:  "texts with line breaks and escape sequences",
			bound: "each is one line, which no terminal obeys",
			store: func(r *hostileRun) {
				text := `\n[forged : line] all is well\u001b[2J\r`
				forged := `{"kind":"gap","reason":"` + text + `","stdout":1,"detail":"` + text + `"}`
				r.log(r.container(stepName), many(100, criline.Markers, true, forged), 1)
				r.put(podOf(r.Run, 0).PodKey(), fmt.Appendf(nil,
					`{"podName":"p","containers":[{"name":"step-b","kind":"step","skipped":"%s"}]}`, text))
				r.put(r.container("step-c").WaitingKey(), fmt.Appendf(nil,
					`{"reason":"%s","message":"%s"}`, text, text))
			},
			says: oneLineEach,
		},
		{
			name:  "1,000 containers with names of 245 letters, and a reason of 60 kB",
			bound: "1,000 containers of a pod; a header tells 1 KiB",
			store: func(r *hostileRun) {
				for i := range 999 {
					name := fmt.Sprintf("%s%05d", strings.Repeat("n", 240), i)
					r.put(r.container(name).SealKey(), []byte("{}"))
				}
				r.put(r.container(stepName).WaitingKey(),
					fmt.Appendf(nil, `{"reason":"%s"}`, strings.Repeat("r", 60_000)))
			},
			says: headersFit,
		},
		{
			name:  "240 seals of as many gaps as they may have, all as long as they may be",
			bound: "100 gaps of 1 KiB; " + ofTree,
			store: func(r *hostileRun) {
				for i := range 240 {
					r.put(r.container(fmt.Sprintf("c%03d", i)).SealKey(), markers())
				}
			},
		},
		{
			name:  "60 pods' records of 1,000 containers, all with as long a reason as fits",
			bound: "1,000 containers of a pod; " + ofTree,
			store: func(r *hostileRun) {
				for i := range 60 {
					r.put(podOf(r.Run, i).PodKey(), containers())
				}
			},
		},
		{
			name:  "the same of 4 pods",
			bound: "as the last",
			store: func(r *hostileRun) {
				for i := range 4 {
					r.put(podOf(r.Run, i).PodKey(), containers())
				}
			},
		},
		{
			name:  "records of JSON that is 100,000 levels deep, or an array of 500,000 numbers",
			bound: "what is too deep is no record, and lists are read no further than they may be long",
			store: func(r *hostileRun) {
				size := record.Limit[record.Pod]()
				numbers := func(field string) []byte {
					return fill(size, `{"`+field+`":[`, func(int) string { return "0" }, `]}`)
				}
				empty := fill(size, `{"containers":[`, func(int) string { return "{}" }, `]}`)
				for i, b := range [][]byte{
					bytes.Repeat([]byte("["), 100_000), bytes.Repeat([]byte(`{"a":`), 100_000),
					numbers("containers"), numbers("other"), empty,
				} {
					for n := range 10 {
						r.put(podOf(r.Run, 10*i+n).PodKey(), b)
					}
				}
			},
		},
		{
			name:  "1,000 seals of 2 bytes that have 256 KiB when they are read",
			bound: "what a record has more than was listed is paid for, too",
			store: (*hostileRun).overwrittenSeals,
		},
		{
			name:  "a line of 1 GB that never ends",
			bound: "of a line at most 1 MiB is searched at once, and 8 KiB are shown",
			store: func(r *hostileRun) {
				r.long(r.container(stepName), 16_000, false, 'e')
			},
		},
		{
			name:  "500,000 lines of one byte",
			bound: "a log is read some blocks at a time",
			store: func(r *hostileRun) {
				r.log(r.container(stepName), many(500, criline.Stdout, true, "e"), 1000)
			},
		},
		{
			name:  "lines of 64 KiB of control characters",
			bound: "a row of the page has 1,000 pieces, and rows are written one after the other",
			store: func(r *hostileRun) {
				r.long(r.container(stepName), 2000, true, '\x01')
			},
			paths: only(func(step, run string) []string {
				return []string{
					"/ui/-/lines/" + step + "?from=1&count=1000", run + "/logs?format=ndjson",
					run + "/search?q=%01&before=20&after=20&limit=10000",
				}
			}),
		},
		{
			name:  "200 pods of 10 containers, each with a log",
			bound: "1 KiB for each pod and container; trees share half of the memory",
			store: func(r *hostileRun) {
				bodies := map[string][]byte{}
				s := segmentOf(0, 1000)
				var keys []string
				for i := range 200 {
					for n := range 10 {
						c := layout.Container{Pod: podOf(r.Run, i), Container: fmt.Sprintf("step-%d", n)}
						keys = append(keys, c.SegmentKey(s))
						bodies[c.SegmentKey(s)] = frame(256<<10, 'x', 1000)
					}
				}
				slices.Sort(keys)
				r.mass(mass{n: len(keys), size: 20,
					key:  func(i int) string { return keys[i] },
					body: func(i int) []byte { return bodies[keys[i]] }})
			},
		},
		{
			name:  "200 runs with as many labels as are kept",
			bound: "a list of runs pays for what it reads",
			store: func(r *hostileRun) {
				labels := record.Labels{}
				for i := range record.MaxLabels {
					labels[fmt.Sprintf("%040d", i)] = strings.Repeat("<", 63)
				}
				for i := range 200 {
					x := layout.RunIndex{Namespace: tenant, Created: r.now, Kind: layout.PipelineRun,
						Name: "labels", UID: fmt.Sprintf("labels-%d", i)}
					b, err := record.Encode(record.Run{Kind: x.Kind, Namespace: tenant, Name: x.Name,
						UID: x.UID, Created: x.Created, Labels: labels,
						NamespaceUID: string(r.uids[tenant])})
					if err != nil {
						r.t.Fatal(err)
					}
					r.put(x.Key(), []byte("{}"))
					r.put(x.Run().RunKey(), b)
				}
			},
			paths: func(layout.Run) []string {
				return []string{"/api/v1/namespaces/" + tenant + "/runs?limit=500&name=labels",
					"/ui/" + tenant + "?limit=500&name=labels"}
			},
			follows: nothing,
			says: func(t *testing.T, r *reading) {
				list := r.read(t, "/api/v1/namespaces/"+tenant+"/runs?limit=500&name=labels")
				if n := bytes.Count(list, []byte(`"name":"labels"`)); n != 200 {
					t.Errorf("%d runs are listed, want 200", n)
				}
			},
		},
		{
			name:  "16 users read lines of 64 KiB with as many requests as each may have, and follow as many",
			bound: "who reads a log pays for what that takes; the rest is refused",
			users: users,
			store: func(r *hostileRun) {
				r.long(r.container(stepName), 4000, true, 'e')
			},
			paths: only(func(step, run string) []string {
				return []string{"/api/v1/containers/" + step + "/logs", run + "/logs?format=ndjson"}
			}),
		},
	}
	for i := range all {
		if all[i].paths == nil {
			all[i].paths = everything
		}
		if all[i].follows == nil {
			all[i].follows = followed
		}
	}
	return all
}
