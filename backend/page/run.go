package page

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/visible"
)

type runPage struct {
	Title, Namespace, Name, UID string
	Kind                        string // pipelineruns or taskruns: as the API has it
	Record                      record.Run
	State                       string // of the run
	Logs                        string // the worst of its logs' states; empty if there is none
	Took                        time.Duration
	Over                        bool
	Tasks                       []task
	Failed                      string // the first step that failed for good, or that failed, as the fragment names it
	Others                      []layout.Run
}

type task struct {
	Name    string // what the fragment calls it: no other TaskRun of the run is called so
	Label   string
	TaskRun string
	Retry   int
	Steps   []step
}

type step struct {
	Task, Name string
	Container  string
	Retry      int
	ID         string // task/name, and the retry if there is one: what stands in the fragment
	Path       string // in the API
	Kind       string
	Status     string
	Says       string
	Bytes      int64
	Lines      int64
	Exit       *record.Exit
	Took       time.Duration // from its first line to its last
	Empty      bool
	Failed     bool
	Estimated  bool
}

// run shows a run as a tree, whose steps can be opened.
func (p *page) run(w http.ResponseWriter, r *http.Request) error {
	namespace, ref := r.PathValue("namespace"), r.PathValue("run")
	target, err := p.Archive.FindPipelineRun(r.Context(), namespace, ref)
	kind := "pipelineruns"
	var notFound *backend.NotFoundError
	if errors.As(err, &notFound) {
		kind = "taskruns"
		target, err = p.Archive.FindTaskRun(r.Context(), namespace, ref)
	}
	if err != nil {
		return err
	}
	// A browser that goes to the page has none.
	if known := r.Header.Get("If-None-Match"); known != "" {
		tag, err := p.tagOf(r.Context(), target, time.Now())
		if err != nil {
			return err
		}
		w.Header().Set("ETag", tag)
		if known == tag {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	tree, err := p.Archive.Tree(r.Context(), target)
	if errors.Is(err, fs.ErrNotExist) {
		return &api.Error{Status: http.StatusNotFound, Message: "the archive has nothing of this run"}
	}
	if err != nil {
		return err
	}
	data := runPageOf(tree, kind, tree.At)
	data.Others = target.Others
	return p.show(w, http.StatusOK, "run.html", data)
}

// tagAge bounds how long a page is taken for new of whose run no object has changed: in time, a log
// that runs becomes partial.
const tagAge = time.Minute

// tagOf is an ETag of a run's page. It costs a LIST for each 1000 objects, where the page costs a
// GET for each record too.
func (p *page) tagOf(ctx context.Context, target backend.Target, now time.Time) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, now.Truncate(tagAge).Unix(), target)
	whole := backend.Target{Run: target.Run} // with its run.json
	for object, err := range p.Archive.Objects(ctx, whole) {
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, object.Key, object.Size, object.Modified.UnixNano())
	}
	return fmt.Sprintf(`"%x"`, sum.Sum(nil)), nil
}

func runPageOf(tree *backend.Tree, kind string, now time.Time) runPage {
	data := runPage{Namespace: tree.Run.Namespace, Name: tree.Run.Name, UID: tree.Run.UID, Kind: kind, Over: tree.Over(now), State: "running"}
	if tree.Record != nil {
		data.Record, data.Name = *tree.Record, tree.Record.Name
		if data.Record.State != "" {
			data.State = string(data.Record.State)
		} else if data.Over {
			data.State = "ended" // and nobody has recorded how
		}
		if !data.Record.Completed.IsZero() && !data.Record.Started.IsZero() {
			data.Took = data.Record.Completed.Sub(data.Record.Started)
		}
	}
	data.Title = data.Name
	var worst backend.Status
	forGood := false // the failed step is one of a TaskRun's last try
	for place := range tree.Containers() {
		c := place.Container
		if silent(c) {
			continue
		}
		name := place.TaskRun.UniqueLabel()
		if n := len(data.Tasks); n == 0 || data.Tasks[n-1].TaskRun != place.TaskRun.Name || data.Tasks[n-1].Retry != place.Retry {
			data.Tasks = append(data.Tasks, task{Name: name, Label: place.TaskRun.Label(), TaskRun: place.TaskRun.Name, Retry: place.Retry})
		}
		s := stepOf(place, name)
		t := &data.Tasks[len(data.Tasks)-1]
		t.Steps = append(t.Steps, s)
		switch {
		case worst == "", worst == backend.NotCaptured: // a container that was left alone says nothing of the others
			worst = c.Status
		case c.Status != backend.NotCaptured:
			worst = backend.Worse(worst, c.Status)
		}
		if last := place.Retry == len(place.TaskRun.Pods)-1; s.Failed && (data.Failed == "" || last && !forGood) {
			data.Failed, forGood = s.ID, last
		}
	}
	data.Logs = string(worst)
	return data
}

// silent says whether there is nothing to say of a container: Tekton's own init containers print nothing.
func silent(c backend.Container) bool {
	return c.Kind == record.Init && c.Bytes == 0 && c.Waiting == nil && c.Status != backend.Damaged && c.Status != backend.Gaps
}

// nameOf is what the fragment calls a container: its label where no other container of the pod
// could be meant.
func nameOf(place backend.Place) string {
	label := place.Container.Label()
	for _, other := range place.Pod.Containers {
		if other.Name != place.Container.Name && (other.Label() == label || other.Name == label) {
			return place.Container.Name
		}
	}
	return label
}

// maxSays is how much of what a log's state means a run's page tells, in bytes. The log's own tells
// all.
const maxSays = 500

func stepOf(place backend.Place, task string) step {
	c := place.Container
	s := step{
		Task: task, Name: nameOf(place),
		Container: c.Name, Retry: place.Retry, Path: api.PathOf(c.Key), Kind: string(c.Kind), Status: string(c.Status), Says: visible.Line(c.Describe(), maxSays), Bytes: c.Bytes, Lines: c.Lines,
		Empty: c.Bytes == 0, Estimated: c.Estimated, Took: -1,
	}
	s.ID = task + "/" + s.Name
	if s.Retry > 0 {
		s.ID += "&retry=" + strconv.Itoa(s.Retry)
	}
	s.Kind = cmp.Or(s.Kind, string(record.Step))
	if c.Seal != nil {
		s.Exit = c.Seal.Exit
		s.Failed = s.Kind == string(record.Step) && (s.Exit != nil && s.Exit.Code != 0 || c.Seal.End == record.EndKilled)
		if !c.Seal.First.IsZero() {
			s.Took = c.Seal.Last.Sub(c.Seal.First)
		}
	} else if len(c.Segments) > 0 && !c.LastSeen.IsZero() {
		s.Took = c.LastSeen.Sub(c.Segments[0].First)
	}
	return s
}
