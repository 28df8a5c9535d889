package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/turns"
)

const (
	// defaultMatches and MostMatches are how many matches a search answers with.
	defaultMatches, MostMatches = 100, 10_000
	// searchPause is how often what was found so far is sent.
	searchPause = time.Second
)

// searchParams reads what is searched for.
func searchParams(p *params) (search *backend.Search, limit int64, err error) {
	q := backend.Query{
		Pattern: p.text("q"), Regexp: p.flag("regexp"), IgnoreCase: p.flag("ignoreCase"),
		Before: int(p.number("before", 0, backend.MaxContext, 0)), After: int(p.number("after", 0, backend.MaxContext, 0)),
	}
	limit = p.number("limit", 1, MostMatches, defaultMatches)
	if err := p.done(); err != nil {
		return nil, 0, err
	}
	search, err = backend.NewSearch(q)
	return search, limit, err
}

// searchOne searches the log of the container that the path names.
func (a *api) searchOne(w http.ResponseWriter, r *http.Request) error {
	search, limit, err := searchParams(readParams(r))
	if err != nil {
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
	f, err := a.beginSearch(w, r, search, limit)
	if f == nil {
		return err
	}
	defer f.answer.Done()
	if err := f.in(a, r, nil, c); err != nil {
		return err
	}
	return f.end()
}

// searchSeveral searches the logs of a run.
func (a *api) searchSeveral(kind string) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		p := readParams(r)
		wanted := choiceOf(p)
		search, limit, err := searchParams(p)
		if err != nil {
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
		f, err := a.beginSearch(w, r, search, limit)
		if f == nil {
			return err
		}
		defer f.answer.Done()
		for place := range tree.Containers() {
			if !wanted.Includes(place.TaskRun, place.Container) {
				continue
			}
			if err := f.in(a, r, &place, place.Container); err != nil {
				return err
			}
			if f.found.Found.More {
				break
			}
		}
		return f.end()
	}
}

// finding writes what a search finds.
type finding struct {
	search *backend.Search
	limit  int64
	out    out
	sent   time.Time
	found  Found
	answer *turns.Answer
}

// beginSearch sends the headers and waits until the search may run. Without an error, it returns nil
// where only the headers are asked for.
func (a *api) beginSearch(w http.ResponseWriter, r *http.Request, search *backend.Search, limit int64) (*finding, error) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	if headersOnly(w, r) {
		return nil, nil
	}
	// Who waits for the first match, or for a turn, is told that there will be an answer.
	if err := SendHeaders(w); err != nil {
		return nil, err
	}
	answer, err := a.Turns.Answer(r.Context(), w, KeepAlive)
	if err != nil {
		return nil, fmt.Errorf("wait for other searches: %w", err)
	}
	return &finding{
		search: search, limit: limit, out: newOut(answer), sent: time.Now(), answer: answer,
	}, nil
}

// pass sends what was found, and lets others search.
func (f *finding) pass(ctx context.Context) error {
	if f.out.Buffered() > 0 {
		if err := f.sendLate(); err != nil {
			return err
		}
	}
	return f.answer.Pass(ctx)
}

// sendLate sends what was found, once it is time to.
func (f *finding) sendLate() error {
	now := time.Now()
	if now.Sub(f.sent) <= searchPause {
		return nil
	}
	f.sent = now
	return f.out.flush()
}

// in searches one log. place is nil where it is the only one.
func (f *finding) in(a *api, r *http.Request, place *backend.Place, c backend.Container) error {
	all := &f.found.Found
	all.Logs++
	all.Bytes += c.Bytes
	name, where := c.Name, (*Place)(nil)
	if place != nil {
		name, where = nameOf(*place), placeOf(*place)
	}
	switch {
	case c.Status.Lost():
		all.Damage = append(all.Damage, name+": "+c.Describe())
	case c.Status == backend.Running, c.Status == backend.Partial:
		all.Unfinished = append(all.Unfinished, name+": "+c.Describe())
	}
	missing, said := 0, ""
	defer func() {
		if missing > 1 {
			said += fmt.Sprintf(" (and at %d more)", missing-1)
		}
		if missing > 0 {
			all.Damage = append(all.Damage, said)
		}
	}()
	for m, err := range f.search.In(r.Context(), a.Archive, c, backend.LogOptions{Pass: f.pass}) {
		var lacks *backend.MissingError
		if errors.As(err, &lacks) {
			if missing++; missing == 1 {
				said = fmt.Sprintf("%s: could not be searched at byte %d: %s", name, lacks.Offset, lacks.Reason)
			}
			continue
		}
		if err != nil {
			return err
		}
		if int64(all.Matches) == f.limit {
			all.More = true
			return nil
		}
		all.Matches++
		if err := f.write(where, m); err != nil {
			return err
		}
	}
	return nil
}

// nameOf is what a log of several is called.
func nameOf(p backend.Place) string {
	task := p.TaskRun.UniqueLabel()
	if p.Retry > 0 {
		task += fmt.Sprintf(" retry %d", p.Retry)
	}
	return task + "/" + p.Container.Name
}

// MatchOf makes a match as this API gives it, without its place.
func MatchOf(m backend.Match) Match {
	// Of a text that is not UTF-8, places are other ones.
	start, end := len(valid(m.Text[:m.Start])), len(valid(m.Text[:m.End]))
	return Match{nil, matchLineOf(m.MatchLine), start, end, matchLinesOf(m.Before), matchLinesOf(m.After)}
}

func (f *finding) write(place *Place, m backend.Match) error {
	match := MatchOf(m)
	match.Place = place
	b, err := json.Marshal(match)
	if err != nil {
		return err
	}
	if _, err := f.out.Write(append(b, '\n')); err != nil {
		return err
	}
	return f.sendLate()
}

func (f *finding) end() error {
	b, err := json.Marshal(f.found)
	if err != nil {
		return err
	}
	if _, err := f.out.Write(append(b, '\n')); err != nil {
		return err
	}
	return f.out.flush()
}

func valid(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

func matchLineOf(l backend.MatchLine) MatchLine {
	return MatchLine{l.Number, l.Time, l.Stream, valid(l.Text), l.Cut}
}

func matchLinesOf(lines []backend.MatchLine) (out []MatchLine) {
	for _, l := range lines {
		out = append(out, matchLineOf(l))
	}
	return out
}
