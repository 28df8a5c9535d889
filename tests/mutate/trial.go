package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// patience, leastTime and leastCPU say when tests hang or loop: after so many times what they took
	// unchanged, and not before these. Others may use the machine, so the time itself says little.
	patience  = 5
	leastTime = 15 * time.Second
	leastCPU  = 3 * time.Second
	// grace is for a test binary to say that its time is over.
	grace = 5 * time.Second
	// memory is the most that a changed program may take, in KiB: a loop without end may append.
	memory = 4 << 20
)

// outcome is what became of a change.
type outcome int

const (
	untried   outcome = iota // time was over
	unreached                // by any test
	survived                 // all tests that reach it pass
	noticed
)

func (o outcome) String() string {
	return [...]string{"not tried", "unreached", "survived", "noticed"}[o]
}

// result is a change's outcome, and the tests that noticed it.
type result struct {
	outcome outcome
	by      []string
}

// cost is what tests take.
type cost struct{ time, cpu time.Duration }

func (c cost) plus(other cost) cost { return cost{c.time + other.time, c.cpu + other.cpu} }

// bound is where patience with tests that take so much ends.
func (c cost) bound() cost {
	return cost{max(leastTime, patience*c.time), max(leastCPU, patience*c.cpu)}
}

// unit is a top level test, fuzz test or example.
type unit struct {
	name    string
	took    cost // unchanged
	reaches map[int]bool
}

// bench runs the tests of one rewritten package.
type bench struct {
	src     *source
	program *program
	work    string // folder for files
	binary  string
	units   []*unit // the fastest first
	workers int
	reached map[int]bool
}

// build compiles the rewritten package and its tests.
func (b *bench) build(ctx context.Context) error {
	replace := map[string]string{}
	for path, text := range b.program.overlay {
		file := filepath.Join(b.work, fmt.Sprintf("%d-%s", len(replace), filepath.Base(path)))
		if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
			return err
		}
		replace[path] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	file := filepath.Join(b.work, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o666); err != nil {
		return err
	}
	b.binary = filepath.Join(b.work, "changed.test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-overlay", file, "-o", b.binary, b.src.path)
	cmd.Dir = b.src.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the changed %s: %w\n%s", b.src.short, err, out)
	}
	return nil
}

// list asks the binary for its tests, and takes those that are wanted.
func (b *bench) list(ctx context.Context, want func(string) bool) error {
	cmd := exec.CommandContext(ctx, b.binary, "-test.list=.")
	cmd.Dir = b.src.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("list the tests of %s: %w\n%s", b.src.short, err, out)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if !strings.HasPrefix(name, "Benchmark") && want(name) {
			b.units = append(b.units, &unit{name: name})
		}
	}
	return nil
}

// survey runs each test unchanged, and sees how long it takes and what it reaches.
func (b *bench) survey(ctx context.Context) error {
	b.reached = map[int]bool{}
	var faults []error
	var mu sync.Mutex
	each(b.workers, b.units, func(u *unit) {
		if ctx.Err() != nil {
			return
		}
		file := filepath.Join(b.work, "reached-"+u.name)
		out, took, err := b.run(ctx, cost{10 * time.Minute, time.Hour}, []string{u.name},
			"MUTATE_CHANGE=-1", "MUTATE_REACHED="+file)
		u.took = took
		if err == nil {
			u.reaches, err = numbers(file)
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			faults = append(faults, fmt.Errorf("%s fails unchanged: %w\n%s", u.name, err, out))
		}
		for n := range u.reaches {
			b.reached[n] = true
		}
	})
	if err := ctx.Err(); err != nil {
		return err
	}
	slices.SortStableFunc(b.units, func(x, y *unit) int { return cmp.Compare(x.took.time, y.took.time) })
	return errors.Join(faults...)
}

// numbers reads what a binary wrote down.
func numbers(file string) (map[int]bool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	all := map[int]bool{}
	for field := range bytes.FieldsSeq(text) {
		n, err := strconv.Atoi(string(field))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all[n] = true
	}
	return all, nil
}

// try tries all changes, in an order in which the first ones are like the others.
func (b *bench) try(ctx context.Context, done func(*change, result)) {
	mixed := slices.Clone(b.program.changes)
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	var mu sync.Mutex
	each(b.workers, mixed, func(c *change) {
		r := b.tryOne(ctx, c)
		mu.Lock()
		defer mu.Unlock()
		done(c, r)
	})
}

// tryOne runs the tests that reach a change: the fastest alone, and then ever more at once, so that
// few processes are started.
func (b *bench) tryOne(ctx context.Context, c *change) result {
	if ctx.Err() != nil {
		return result{}
	}
	if !b.reached[c.number] {
		return result{outcome: unreached}
	}
	var names []string
	var took cost
	least := 1
	for i, u := range b.units {
		if u.reaches[c.number] {
			names, took = append(names, u.name), took.plus(u.took)
		}
		if len(names) == 0 || len(names) < least && i < len(b.units)-1 {
			continue
		}
		_, _, err := b.run(ctx, took.bound(), names, "MUTATE_CHANGE="+strconv.Itoa(c.number))
		if ctx.Err() != nil {
			return result{}
		}
		if err != nil {
			return result{noticed, names}
		}
		names, took, least = nil, cost{}, 2*least
	}
	return result{outcome: survived}
}

// run runs tests in the package's folder, up to the first that fails. What they have started ends with
// them.
func (b *bench) run(ctx context.Context, bound cost, names []string, env ...string) ([]byte, cost, error) {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = regexp.QuoteMeta(name)
	}
	ctx, cancel := context.WithTimeout(ctx, bound.time+grace)
	defer cancel()
	const script = `ulimit -d "$0"; ulimit -t "$1"; shift; exec "$@"`
	cmd := exec.CommandContext(ctx, "sh", "-c", script,
		strconv.Itoa(memory), strconv.Itoa(int(bound.cpu/time.Second)+1), b.binary,
		"-test.run=^("+strings.Join(quoted, "|")+")$", "-test.failfast", "-test.timeout="+bound.time.String())
	cmd.Dir = b.src.dir
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = grace
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	took := cost{time: time.Since(begin)}
	if cmd.Process != nil {
		took.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what is left of it, if anything
	}
	return out, took, err
}

// each calls a function for all, some at once.
func each[T any](workers int, all []T, do func(T)) {
	var wg sync.WaitGroup
	next := make(chan T)
	for range workers {
		wg.Go(func() {
			for one := range next {
				do(one)
			}
		})
	}
	for _, one := range all {
		next <- one
	}
	close(next)
	wg.Wait()
}
