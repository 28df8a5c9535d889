package loki

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"

	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

// query is what Results asks for.
type query struct {
	namespace string
	kind      layout.RunKind // of what the UID is
	uid       string
	labelled  bool  // each line stands behind its container's name
	limit     int64 // lines
	forward   bool  // of more lines than the limit, the first are wanted; otherwise the last
}

// What Results asks in LogQL is made of this text (getLokiLogs in pkg/api/server/v1alpha2/plugin/plugin_logs.go of github.com/tektoncd/results v0.15.0, and the same in v0.18.0), in one line:
//
//	{ STATIC_LABELS,NAMESPACE_KEY="NAMESPACE" }|json uid="kubernetes.labels.tekton_dev_taskRunUID", container="CONTAINER_KEY", message="message"
//	|uid="UID"| line_format "container-{{.container}}: message={{.message}}"
//
// The words in capitals are its settings LOGGING_PLUGIN_…; STATIC_LABELS and NAMESPACE_KEY say how a collector has named things, which does not matter here. Without CONTAINER_KEY, the container is left out and the format is
// {{.message}}. Results does not escape what it puts in. Blanks are as LogQL takes them.
const (
	pair  = `[\w.-]+ *= *"[^"]*"`
	pairs = pair + `(?: *, *` + pair + `)*`
)

var (
	shape   = regexp.MustCompile(`^\{ *(` + pairs + `) *\} *\| *json +(` + pairs + `) *\| *uid *= *"([^"]*)" *\| *line_format +"([^"]*)" *$`)
	onePair = regexp.MustCompile(`([\w.-]+) *= *"([^"]*)"`)
)

const (
	taskRunKey     = "kubernetes.labels.tekton_dev_taskRunUID"
	pipelineRunKey = "kubernetes.labels.tekton_dev_pipelineRunUID"

	plainFormat    = "{{.message}}"
	labelledFormat = "container-{{.container}}: message={{.message}}"
)

// parseQuery reads a request's parameters. Anything that Results would not ask is an *api.Error of status 400: half of what was meant would be a wrong answer.
func parseQuery(rawQuery string) (query, error) {
	values, err := url.ParseQuery(rawQuery)
	if err != nil {
		return query{}, badRequest("the query cannot be read: %v", err)
	}
	for name, all := range values {
		switch name {
		case "query", "start", "end", "limit", "direction":
		default:
			return query{}, badRequest("parameter %q is not one that Tekton Results sends: query, start, end, limit, direction", name)
		}
		if len(all) > 1 {
			return query{}, badRequest("parameter %q stands %d times", name, len(all))
		}
	}
	q, err := parseLogQL(values.Get("query"))
	if err != nil {
		return query{}, badRequest("query: %v: this answers the requests of Tekton Results alone", err)
	}
	for _, name := range []string{"start", "end"} { // seconds; see Handler for why they choose nothing
		if _, err := strconv.ParseInt(values.Get(name), 10, 64); err != nil {
			return query{}, badRequest("%s=%q: want a Unix time in seconds", name, values.Get(name))
		}
	}
	q.limit, err = strconv.ParseInt(values.Get("limit"), 10, 64)
	if err != nil || q.limit < 1 {
		return query{}, badRequest("limit=%q: want a number of lines, 1 or more (the setting LOGGING_PLUGIN_QUERY_LIMIT of Tekton Results)", values.Get("limit"))
	}
	switch d := values.Get("direction"); d {
	case "forward":
		q.forward = true
	case "backward", "": // Loki's own default
	default:
		return query{}, badRequest("direction=%q: want forward or backward", d)
	}
	return q, nil
}

// parseLogQL reads the query itself.
func parseLogQL(text string) (query, error) {
	m := shape.FindStringSubmatch(text)
	if m == nil {
		return query{}, errors.New(`is not of the form { KEY="NAMESPACE" }|json uid="…", message="message" |uid="UID"| line_format "…"`)
	}
	selected, extracted, uid, format := onePair.FindAllStringSubmatch(m[1], -1), map[string]string{}, m[3], m[4]
	q := query{namespace: selected[len(selected)-1][2], uid: uid} // static labels stand before the namespace
	for _, p := range onePair.FindAllStringSubmatch(m[2], -1) {
		extracted[p[1]] = p[2]
	}
	switch key := extracted["uid"]; key {
	case taskRunKey:
		q.kind = layout.TaskRun
	case pipelineRunKey:
		q.kind = layout.PipelineRun
	default:
		return query{}, fmt.Errorf("uid=%q is neither %s nor %s", key, taskRunKey, pipelineRunKey)
	}
	if m := extracted["message"]; m != "message" {
		return query{}, fmt.Errorf("message=%q is not message", m)
	}
	_, hasContainer := extracted["container"]
	switch {
	case format == plainFormat:
	case format == labelledFormat && hasContainer:
		q.labelled = true
	default:
		return query{}, fmt.Errorf("line_format %q is neither %q nor, with a container, %q", format, plainFormat, labelledFormat)
	}
	return q, errors.Join(layout.CheckName("namespace", q.namespace), layout.CheckUID("UID", q.uid))
}

func badRequest(format string, args ...any) error {
	return &api.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}
