package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
)

const (
	// defaultMatches and mostMatches are how many matches a search answers with.
	defaultMatches, mostMatches = 100, 10_000
	// searchPause is how often what was found so far is sent.
	searchPause = time.Second
)

// searchParams reads what is searched for.
func searchParams(p *params) (search *backend.Search, limit int64, err error) {
	q := backend.Query{
		Pattern: p.text("q"), Regexp: p.flag("regexp"), IgnoreCase: p.flag("ignoreCase"),
		Before: int(p.number("before", 0, backend.MaxContext, 0)), After: int(p.number("after", 0, backend.MaxContext, 0)),
	}
	limit = p.number("limit", 1, mostMatches, defaultMatches)
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
	f := newFinding(w, search, limit)
	if err := f.in(a, r, nil, c); err != nil {
		return err
	}
	return f.end()
}

// searchSeveral searches the logs of a run.
func (a *api) searchSeveral(kind string) func(http.ResponseWriter, *http.Request) error {
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
		f := newFinding(w, search, limit)
		for place := range tree.Containers() {
			if !wanted.Includes(place.TaskRun, place.Container) {
				continue
			}
			if err := f.in(a, r, placeOf(place), place.Container); err != nil {
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
}

func newFinding(w http.ResponseWriter, search *backend.Search, limit int64) *finding {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &finding{search: search, limit: limit, out: newOut(w), sent: time.Now()}
}

// in searches one log.
func (f *finding) in(a *api, r *http.Request, place *Place, c backend.Container) error {
	all := &f.found.Found
	all.Logs++
	all.Bytes += c.Bytes
	if c.Status == backend.Gaps || c.Status == backend.Damaged {
		all.Damage = append(all.Damage, c.Name+": "+c.Describe())
	}
	for m, err := range f.search.In(r.Context(), a.Archive, c, backend.LogOptions{}) {
		var digest *backend.DigestError
		if errors.As(err, &digest) {
			all.Damage = append(all.Damage, digest.Error())
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
		if err := f.write(place, m); err != nil {
			return err
		}
	}
	return nil
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
	if now := time.Now(); now.Sub(f.sent) > searchPause {
		f.sent = now
		return f.out.flush()
	}
	return nil
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
