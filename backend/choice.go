package backend

import (
	"slices"
	"strings"

	"github.com/shiplog-dev/shiplog/internal/record"
)

// Choice says which of a run's containers are wanted. The zero value wants all the steps.
type Choice struct {
	Tasks     []string // of the pipeline, or TaskRuns; none: all
	Steps     []string // with or without "step-"; none: all
	Container string   // only this one, as step-x or sidecar-x
	Sidecars  bool     // too
	All       bool     // init containers and sidecars too
}

// Includes says whether a container is wanted.
func (c Choice) Includes(tr TaskRun, k Container) bool {
	if len(c.Tasks) > 0 && !slices.Contains(c.Tasks, tr.PipelineTask) && !slices.Contains(c.Tasks, tr.Name) {
		return false
	}
	step := k.isStep()
	switch {
	case c.Container != "":
		return k.Name == c.Container
	case len(c.Steps) > 0:
		return step && (slices.Contains(c.Steps, k.Name) || slices.Contains(c.Steps, strings.TrimPrefix(k.Name, "step-")))
	default:
		return step || c.All || c.Sidecars && k.Kind == record.Sidecar
	}
}
