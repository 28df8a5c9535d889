package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// pieces writes large JSON element by element: as one text it would take several times the memory of
// what it is made of.
type pieces struct {
	to  *bufio.Writer
	err error // the first
}

func newPieces(w io.Writer) *pieces { return &pieces{to: bufio.NewWriterSize(w, 64<<10)} }

func (p *pieces) write(b []byte) {
	if p.err == nil {
		_, p.err = p.to.Write(b)
	}
}

// value writes a whole value.
func (p *pieces) value(v any) {
	b, err := json.Marshal(v)
	if p.err == nil {
		p.err = err
	}
	p.write(b)
}

// list writes a value whose list of that name is empty, with n elements in it.
func (p *pieces) list(of any, name string, n int, element func(i int)) {
	b, err := json.Marshal(of)
	if p.err == nil {
		p.err = err
	}
	// Within a text there would be a backslash before each quote.
	empty := fmt.Appendf(nil, "%q:[]", name)
	before, after, ok := bytes.Cut(b, empty)
	if !ok {
		p.write(b)
		return
	}
	p.write(before)
	p.write(empty[:len(empty)-1])
	for i := range n {
		if i > 0 {
			p.write([]byte{','})
		}
		element(i)
	}
	p.write([]byte{']'})
	p.write(after)
}

// end sends what is left.
func (p *pieces) end() error {
	p.write([]byte{'\n'})
	if p.err != nil {
		return p.err
	}
	return p.to.Flush()
}

// writeTree writes a tree as JSON.
func writeTree(w io.Writer, t Tree) error {
	p := newPieces(w)
	tasks := t.TaskRuns
	t.TaskRuns = []TaskRun{}
	p.list(t, "taskRuns", len(tasks), func(i int) {
		task := tasks[i]
		task.Pods = []Pod{}
		p.list(task, "pods", len(tasks[i].Pods), func(j int) {
			pod := tasks[i].Pods[j]
			containers := pod.Containers
			pod.Containers = []Container{}
			p.list(pod, "containers", len(containers), func(k int) { p.value(containers[k]) })
		})
	})
	return p.end()
}

// writeRuns writes a page of runs as JSON.
func writeRuns(w io.Writer, page Runs) error {
	p := newPieces(w)
	runs := page.Runs
	page.Runs = []Run{}
	p.list(page, "runs", len(runs), func(i int) { p.value(runs[i]) })
	return p.end()
}
