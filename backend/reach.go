package backend

import (
	"context"
	"fmt"
	"io/fs"
	"sync"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// Reach says which of a namespace's runs somebody may read: those of the namespace that has the
// name now, or with All those of former ones of its name, too. The zero Reach is none.
type Reach struct {
	All       bool
	Namespace record.Namespace
}

// ErrFormer is why a run is not there for its reader: it is of a former namespace, or nobody
// knows of which. It wraps fs.ErrNotExist, so that nobody is told that there is such a run.
var ErrFormer = fmt.Errorf("not of this namespace: %w", fs.ErrNotExist)

// Within is the archive as those see it whose reach that is. It shares all else with a, and holds
// the runs of one namespace: of any other's, the answer would be by chance.
func (a *Archive) Within(reach Reach) *Archive {
	within := *a
	within.reach = &reach
	return &within
}

// all says whether no run is left out.
func (a *Archive) all() bool { return a.reach == nil || a.reach.All }

// admit returns nil for a run within the archive's reach, and ErrFormer for any other. It costs a
// GET where this process has not read the run's record before. A run whose record is missing or
// damaged is in nobody's reach but All.
func (a *Archive) admit(ctx context.Context, run layout.Run) error {
	if a.all() {
		return nil
	}
	r, known := a.origins.get(run)
	if !known {
		var err error
		if r, err = readRecord[record.Run](ctx, a.store, run.RunKey()); ignoreAbsent(err) != nil {
			return fmt.Errorf("find out which namespace a run is of: %w", err)
		} else if err != nil {
			return ErrFormer
		}
		a.origins.add(run, r)
	}
	if !a.reach.Namespace.Holds(r) {
		return ErrFormer
	}
	return nil
}

// mostOrigins is how many runs' origins are kept: some 4 MB.
const mostOrigins = 10_000

// origins are what the records of runs say of their namespaces, which does not change.
type origins struct {
	mu   sync.Mutex
	runs map[layout.Run]record.Run
}

func (o *origins) get(run layout.Run) (record.Run, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r, ok := o.runs[run]
	return r, ok
}

func (o *origins) add(run layout.Run, r record.Run) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.runs) >= mostOrigins {
		for some := range o.runs { // whichever: it is read again
			delete(o.runs, some)
			break
		}
	}
	o.runs[run] = record.Run{NamespaceUID: r.NamespaceUID, Created: r.Created}
}
