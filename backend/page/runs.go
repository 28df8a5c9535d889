package page

import (
	"net/http"
	"net/url"

	"github.com/shiplog-dev/shiplog/backend/api"
)

type namespacesPage struct {
	Title string
	api.Namespaces
	Next string // the query of the next page, if there is one
}

// namespaces shows a page of those that one may read.
func (p *page) namespaces(w http.ResponseWriter, r *http.Request) error {
	page, err := p.api().ListNamespaces(r)
	if err != nil {
		return err
	}
	data := namespacesPage{Title: "Namespaces", Namespaces: page}
	if page.Continue != "" {
		data.Next = url.Values{"continue": {page.Continue}}.Encode()
	}
	return p.show(w, http.StatusOK, "namespaces.html", data)
}

func (p *page) api() api.Options {
	return api.Options{Archive: p.Archive, Gate: p.Gate, Log: p.Log}
}

type runsPage struct {
	Title, Namespace string
	api.Runs
	Name, Pipeline, State string // that are looked for
	States                []string
	Next                  string // the query of the next page, if there is one
}

// runs shows a page of a namespace's runs.
func (p *page) runs(w http.ResponseWriter, r *http.Request) error {
	namespace := r.PathValue("namespace")
	runs, err := p.api().ListRuns(r, namespace, "runs")
	if err != nil {
		return err
	}
	query := r.URL.Query()
	data := runsPage{
		Title: namespace, Namespace: namespace, Runs: runs, Name: query.Get("name"), Pipeline: query.Get("pipeline"), State: query.Get("state"),
		States: []string{"running", "succeeded", "failed", "cancelled"},
	}
	if runs.Continue != "" {
		next := url.Values{"continue": {runs.Continue}}
		for _, name := range []string{"name", "pipeline", "state"} {
			if v := query.Get(name); v != "" {
				next.Set(name, v)
			}
		}
		data.Next = next.Encode()
	}
	return p.show(w, http.StatusOK, "runs.html", data)
}
