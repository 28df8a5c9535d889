package api

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const (
	// defaultRuns and mostRuns are how many runs a page has.
	defaultRuns, mostRuns = 50, 500
	// mostLooked is how many runs are looked at for a page: where few of them fit, the page is shorter, and says where to go on.
	mostLooked = 2000
	// recordsAtOnce is how many records are read at once.
	recordsAtOnce = 16
)

// namespaces answers with a page of those that the archive has runs of, and that who asks may read.
func (a *api) namespaces(w http.ResponseWriter, r *http.Request) error {
	page, err := a.ListNamespaces(r)
	if err != nil {
		return err
	}
	return writeJSON(w, page)
}

// filter is which runs are asked for.
type filter struct {
	kind                  layout.RunKind // "" is both
	name, pipeline, state string
	since, until          time.Time
	labels                map[string]string
}

// running is the state of a run whose record has none.
const running = "running"

func filterOf(p *params, kind string) filter {
	f := filter{name: p.text("name"), pipeline: p.text("pipeline"), state: p.text("state"), since: p.time("since"), until: p.time("until"), labels: map[string]string{}}
	switch kind {
	case "pipelineruns":
		f.kind = layout.PipelineRun
	case "taskruns":
		f.kind = layout.TaskRun
	}
	if states := []string{"", running, string(record.Succeeded), string(record.Failed), string(record.Cancelled)}; !slices.Contains(states, f.state) {
		p.fail(badParameter("state", f.state, "want one of "+strings.Join(states[1:], ", ")))
	}
	for _, l := range p.several("label") {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			p.fail(badParameter("label", l, "want key=value"))
		}
		f.labels[key] = value
	}
	return f
}

// early says whether the run's name in the index fits.
func (f filter) early(x layout.RunIndex) bool {
	return (f.kind == "" || f.kind == x.Kind) && strings.Contains(x.Name, f.name) && (f.until.IsZero() || !x.Created.After(f.until))
}

// late says whether its record fits.
func (f filter) late(r Run) bool {
	if f.pipeline != "" && f.pipeline != r.Pipeline || f.state != "" && f.state != cmp.Or(string(r.State), running) {
		return false
	}
	for key, value := range f.labels {
		if have, ok := r.Labels[key]; !ok || have != value {
			return false
		}
	}
	return true
}

// runs answers with a page of a namespace's runs, newest first.
func (a *api) runs(kind string) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		page, err := a.ListRuns(r, r.PathValue("namespace"), kind)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		return writeRuns(w, page)
	}
}

// ListRuns is the page of a namespace's runs that a request's parameters ask for: name, pipeline, state, since, until, label, limit and continue. kind is runs, pipelineruns or taskruns. Who asks is allowed to.
func (o Options) ListRuns(r *http.Request, namespace, kind string) (Runs, error) {
	p := readParams(r)
	f := filterOf(p, kind)
	limit := int(p.number("limit", 1, mostRuns, defaultRuns))
	after := cursorOf(p, namespace)
	if err := p.done(); err != nil {
		return Runs{}, err
	}
	// Kubernetes makes nothing with a time before 1970, and no name in the index has one: the zero time would stand for no bound.
	if p.values.Has("until") && f.until.Before(time.Unix(0, 0)) {
		return Runs{Runs: []Run{}}, nil
	}
	// Names begin with the time: what is newer than asked for need not be looked at.
	if !f.until.IsZero() {
		bound := layout.RunIndex{Namespace: namespace, Created: f.until.Add(time.Second), Kind: "~"} // behind all of the second after it
		if after == nil || after.Key() < bound.Key() {
			after = &bound
		}
	}
	return o.page(r, namespace, f, after, limit)
}

// ListNamespaces is the page that a request's parameters limit and continue ask for of the namespaces
// that the archive has runs of, and that who asks may read. Only those are asked about that the page
// may show; it can be shorter than limit, and yet not the last.
func (o Options) ListNamespaces(r *http.Request) (Namespaces, error) {
	page := Namespaces{Namespaces: []string{}}
	p := readParams(r)
	limit := int(p.number("limit", 1, mostRuns, mostRuns))
	after := p.text("continue")
	if p.values.Has("continue") && layout.CheckName("namespace", after) != nil {
		p.fail(badParameter("continue", after, "is not what an earlier page said"))
	}
	if err := p.done(); err != nil {
		return page, err
	}
	// Nobody who is nobody makes us list.
	if _, err := o.Gate.Allowed(r, nil); err != nil {
		return page, err
	}
	var batch []string
	looked := 0
	take := func() error {
		allowed, err := o.Gate.Allowed(r, batch)
		page.Namespaces = append(page.Namespaces, allowed...)
		batch = batch[:0]
		return err
	}
	last := ""
	for name, err := range o.Archive.Namespaces(r.Context(), after) {
		if err != nil {
			return page, err
		}
		if len(page.Namespaces)+len(batch) == limit || looked == mostLooked {
			if err := take(); err != nil {
				return page, err
			}
			if len(page.Namespaces) == limit || looked == mostLooked {
				page.Continue = last
				return page, nil
			}
		}
		looked++
		last = name
		batch = append(batch, name)
	}
	return page, take()
}

// cursorOf reads where a page begins.
func cursorOf(p *params, namespace string) *layout.RunIndex {
	text := p.text("continue")
	if !p.values.Has("continue") {
		return nil
	}
	name, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		var x layout.RunIndex
		if x, err = layout.ParseRunIndexKey(layout.RunIndexPrefix(namespace) + string(name)); err == nil {
			return &x
		}
	}
	p.fail(badParameter("continue", text, "is not what an earlier page said"))
	return nil
}

func cursor(x layout.RunIndex) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strings.TrimPrefix(x.Key(), layout.RunIndexPrefix(x.Namespace))))
}

// page reads runs until there are enough.
func (o Options) page(r *http.Request, namespace string, f filter, after *layout.RunIndex, limit int) (Runs, error) {
	page := Runs{Runs: []Run{}}
	var batch []layout.RunIndex
	looked := 0
	// take reads the records of a batch, and returns false when the page is full.
	take := func() (bool, error) {
		runs, err := o.records(r, batch)
		if err != nil {
			return false, err
		}
		for i, run := range runs {
			if run == nil || !f.late(*run) {
				continue
			}
			if len(page.Runs) == limit {
				page.Continue = cursor(batch[i-1])
				return false, nil
			}
			page.Runs = append(page.Runs, *run)
		}
		batch = batch[:0]
		return true, nil
	}
	var last layout.RunIndex
	for x, err := range o.Archive.Runs(r.Context(), namespace, after, 0) {
		if err != nil {
			return page, err
		}
		if !f.since.IsZero() && x.Created.Before(f.since) {
			break
		}
		if len(page.Runs)+len(batch) == limit || looked == mostLooked {
			more, err := take()
			if err != nil || !more {
				return page, err
			}
			if len(page.Runs) == limit || looked == mostLooked {
				page.Continue = cursor(last)
				return page, nil
			}
		}
		looked++
		last = x
		if f.early(x) {
			batch = append(batch, x)
		}
	}
	_, err := take()
	return page, err
}

// records reads the records of runs. One without a record has what its name says, and one that is
// out of reach is nil.
func (o Options) records(r *http.Request, batch []layout.RunIndex) ([]*Run, error) {
	runs := make([]*Run, len(batch))
	var group errgroup.Group // without a context: what Run holds of the memory would end with it
	group.SetLimit(recordsAtOnce)
	for i, x := range batch {
		group.Go(func() error {
			have, err := o.Archive.Run(r.Context(), x.Run())
			if errors.Is(err, backend.ErrFormer) {
				return nil
			}
			run := &Run{
				Kind: x.Kind, Name: x.Name, UID: x.UID, Created: x.Created, Prefix: x.Run().Prefix(),
			}
			runs[i] = run
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			run.Pipeline, run.State, run.Reason, run.Labels = have.Pipeline, have.State, have.Reason, have.Labels
			run.Started, run.Completed = have.Started, have.Completed
			return nil
		})
	}
	return runs, group.Wait()
}

// PathOf is what stands behind /containers/ in this API.
func PathOf(key layout.Container) string {
	return strings.TrimSuffix(strings.TrimPrefix(key.Prefix(), layout.Version+"/"), "/")
}

func containerOf(c backend.Container) Container {
	j := Container{Container: c, Path: PathOf(c.Key), Prefix: c.Key.Prefix(), Says: c.Describe()}
	if len(c.Segments) > 0 {
		j.First = c.Segments[0].First
	}
	if c.Seal != nil {
		j.Exit, j.Gaps = c.Seal.Exit, c.Seal.Gaps
	}
	return j
}

func treeOf(t *backend.Tree) Tree {
	out := Tree{Run: t.Run, Record: t.Record, Prefix: t.Run.Prefix(), TaskRuns: []TaskRun{},
		At: t.At}
	for _, tr := range t.TaskRuns {
		j := TaskRun{Name: tr.Name, PipelineTask: tr.PipelineTask}
		for _, p := range tr.Pods {
			pod := Pod{PodUID: p.Key.PodUID, LastSeen: p.LastSeen, Containers: []Container{}}
			if p.Record != nil {
				pod.PodName, pod.Created = p.Record.PodName, p.Record.Created
			}
			for _, c := range p.Containers {
				pod.Containers = append(pod.Containers, containerOf(c))
			}
			j.Pods = append(j.Pods, pod)
		}
		out.TaskRuns = append(out.TaskRuns, j)
	}
	slices.SortStableFunc(out.TaskRuns, func(a, b TaskRun) int { return a.Pods[0].Created.Compare(b.Pods[0].Created) })
	return out
}

// tree answers with a run, or a TaskRun, as a tree.
func (a *api) tree(kind string) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := readParams(r).done(); err != nil {
			return err
		}
		target, err := a.find(r, kind)
		if err != nil {
			return err
		}
		tree, err := a.Archive.Tree(r.Context(), target)
		if err != nil {
			return err
		}
		out := treeOf(tree)
		out.Others, out.TaskRun, out.PodUID = target.Others, target.TaskRun, target.PodUID
		w.Header().Set("Content-Type", "application/json")
		return writeTree(w, out)
	}
}

// container answers with the state of one container's log.
func (a *api) container(w http.ResponseWriter, r *http.Request) error {
	if err := readParams(r).done(); err != nil {
		return err
	}
	key, err := ContainerKey(r)
	if err != nil {
		return err
	}
	c, err := a.Archive.Container(r.Context(), key)
	if err != nil {
		return err
	}
	return writeJSON(w, containerOf(c))
}

// objects answers with where a run is in the bucket: its prefix, and its objects, for who reads S3 itself.
func (a *api) objects(kind string) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := readParams(r).done(); err != nil {
			return err
		}
		target, err := a.find(r, kind)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		if headersOnly(w, r) {
			return nil
		}
		o := newOut(w)
		// Written as it is listed: a run may have a hundred thousand.
		prefix, err := json.Marshal(target.Prefix())
		if err != nil {
			return err
		}
		at, err := json.Marshal(a.Archive.URL(target.Prefix()))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(o, `{"prefix":%s,"url":%s,"objects":[`, prefix, at); err != nil {
			return err
		}
		n := 0
		for object, err := range a.Archive.Objects(r.Context(), target) {
			if err != nil {
				return err
			}
			b, err := json.Marshal(object)
			if err != nil {
				return err
			}
			if n++; n > 1 {
				b = append([]byte(",\n"), b...)
			}
			if _, err := o.Write(b); err != nil {
				return err
			}
		}
		if _, err := o.WriteString("]}\n"); err != nil {
			return err
		}
		return o.flush()
	}
}
