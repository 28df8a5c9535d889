package contract

import (
	"fmt"
	"strings"

	"github.com/shiplog-dev/shiplog/internal/layout"
)

// pagePath stands between the base of the web page's address and what is shown, and pageTask begins the part of the fragment that names a task.
const (
	pagePath = "ui"
	pageTask = "task="
)

// Page is what an address of the web page shows: a run, or one task of it. LogsAnnotation holds such an address.
type Page struct {
	Namespace string
	UID       string // of the PipelineRun, or of the TaskRun that has none
	Task      string // the pipeline's task; empty: the whole run
}

// Address is <base>/ui/<namespace>/<UID>, or <base>/ui/<namespace>/<UID>#task=<task>. No part of a valid Page needs escaping.
func (p Page) Address(base string) string {
	address := strings.TrimRight(base, "/") + "/" + pagePath + "/" + p.Namespace + "/" + p.UID
	if p.Task != "" {
		address += "#" + pageTask + p.Task
	}
	return address
}

// Validate says whether the parts can stand in an address.
func (p Page) Validate() error {
	if err := layout.CheckName("namespace", p.Namespace); err != nil {
		return err
	}
	if err := layout.CheckUID("run UID", p.UID); err != nil {
		return err
	}
	if p.Task == "" {
		return nil
	}
	return layout.CheckName("task", p.Task)
}

// ParsePage reads what Address makes, or its path alone, whatever the base is. What else is in the fragment, behind or before an "&", is the page's own.
func ParsePage(address string) (Page, error) {
	path, fragment, _ := strings.Cut(address, "#")
	part := strings.Split(path, "/")
	if len(part) < 3 || part[len(part)-3] != pagePath {
		return Page{}, fmt.Errorf("address %q does not end with /%s/<namespace>/<run UID>", address, pagePath)
	}
	p := Page{Namespace: part[len(part)-2], UID: part[len(part)-1]}
	for field := range strings.SplitSeq(fragment, "&") {
		if task, ok := strings.CutPrefix(field, pageTask); ok {
			p.Task = task
		}
	}
	if err := p.Validate(); err != nil {
		return Page{}, fmt.Errorf("address %q: %w", address, err)
	}
	return p, nil
}
