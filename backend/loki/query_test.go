package loki

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/layout"
)

// logQL is a query as getLokiLogs in github.com/tektoncd/results v0.15.0 makes it.
func logQL(static, namespaceKey, containerKey, uidKey, namespace, uid string) string {
	container, format := "", plainFormat
	if containerKey != "" {
		container, format = `container="`+containerKey+`", `, labelledFormat
	}
	return fmt.Sprintf(`{ %s%s="%s" }|json uid="%s", %smessage="message" |uid="%s"| line_format "%s"`, static, namespaceKey, namespace, uidKey, container, uid, format)
}

const (
	staticLabels = `log_type="application",` // these three are what Results has where nothing else is set
	namespaceKey = "kubernetes_namespace_name"
	containerKey = "kubernetes.container_name"
)

func TestParseQuery(t *testing.T) {
	usual := logQL(staticLabels, namespaceKey, containerKey, taskRunKey, "ns", "u-1")
	with := func(change func(url.Values)) string {
		v := url.Values{"query": {usual}, "start": {"1790000000"}, "end": {"1790000600"}, "limit": {"1700"}}
		change(v)
		return v.Encode()
	}
	asks := func(text string) string { return with(func(v url.Values) { v.Set("query", text) }) }
	set := func(name string, values ...string) string { return with(func(v url.Values) { v[name] = values }) }
	for _, c := range []struct {
		name, raw string
		want      query
		bad       string // of the error
	}{
		{name: "as Results is set at first", raw: set("direction", "forward"), want: query{"ns", layout.TaskRun, "u-1", true, 1700, true}},
		{name: "without a direction", raw: set("direction"), want: query{"ns", layout.TaskRun, "u-1", true, 1700, false}},
		{name: "backward", raw: set("direction", "backward"), want: query{"ns", layout.TaskRun, "u-1", true, 1700, false}},
		{name: "a PipelineRun", raw: asks(logQL(staticLabels, namespaceKey, containerKey, pipelineRunKey, "ns", "u-1")), want: query{"ns", layout.PipelineRun, "u-1", true, 1700, false}},
		{name: "no container key", raw: asks(logQL(staticLabels, namespaceKey, "", taskRunKey, "ns", "u-1")), want: query{"ns", layout.TaskRun, "u-1", false, 1700, false}},
		{name: "no static labels", raw: asks(logQL("", namespaceKey, "", taskRunKey, "ns", "u-1")), want: query{"ns", layout.TaskRun, "u-1", false, 1700, false}},
		{name: "two static labels, one a namespace", raw: asks(logQL(`a="b",namespace="x",`, "k8s.ns", "c", taskRunKey, "ns", "u-1")), want: query{"ns", layout.TaskRun, "u-1", true, 1700, false}},
		{name: "blanks and order as another version may have them", want: query{"ns", layout.TaskRun, "u-1", true, 1700, false},
			raw: asks(`{kubernetes_namespace_name="ns"} | json container="kubernetes.container_name",message="message" , uid="` + taskRunKey + `" | uid = "u-1" | line_format "` + labelledFormat + `"`)},
		{name: "a limit of its own", raw: set("limit", "1"), want: query{"ns", layout.TaskRun, "u-1", true, 1, false}},

		{name: "no query", raw: set("query"), bad: "is not of the form"},
		{name: "a selector alone", raw: asks(`{ namespace="ns" }`), bad: "is not of the form"},
		{name: "another filter", raw: asks(usual + ` |= "x"`), bad: "is not of the form"},
		{name: "a metric", raw: asks(`count_over_time(` + usual + `[1m])`), bad: "is not of the form"},
		{name: "a regular expression", raw: asks(strings.Replace(usual, `="ns"`, `=~"ns"`, 1)), bad: "is not of the form"},
		{name: "another UID key", raw: asks(logQL("", namespaceKey, "", "kubernetes.pod_uid", "ns", "u-1")), bad: "kubernetes.pod_uid"},
		{name: "another message", raw: asks(strings.Replace(usual, `message="message"`, `message="log"`, 1)), bad: `message="log"`},
		{name: "another format", raw: asks(strings.Replace(usual, labelledFormat, `{{.message}} {{.pod}}`, 1)), bad: "line_format"},
		{name: "a format whose container is not asked for", raw: asks(strings.Replace(usual, `container="kubernetes.container_name", `, "", 1)), bad: "line_format"},
		{name: "all namespaces", raw: asks(logQL("", namespaceKey, "", taskRunKey, "-", "u-1")), bad: "namespace"},
		{name: "a namespace with a way out", raw: asks(logQL("", namespaceKey, "", taskRunKey, "../other", "u-1")), bad: "namespace"},
		{name: "no UID", raw: asks(logQL("", namespaceKey, "", taskRunKey, "ns", "")), bad: "UID"},
		{name: "a UID with a way out", raw: asks(logQL("", namespaceKey, "", taskRunKey, "ns", "../u")), bad: "UID"},
		{name: "a query twice", raw: set("query", usual, usual), bad: "stands 2 times"},
		{name: "a parameter of Loki's that Results does not send", raw: set("step", "1"), bad: `"step"`},
		{name: "no start", raw: set("start"), bad: "start="},
		{name: "a start that is no number", raw: set("start", "2026-11-23T12:00:00Z"), bad: "start="},
		{name: "an end that is no number", raw: set("end", "now"), bad: "end="},
		{name: "no limit", raw: set("limit"), bad: "limit="},
		{name: "a limit of nothing", raw: set("limit", "0"), bad: "limit="},
		{name: "a negative limit", raw: set("limit", "-5"), bad: "limit="},
		{name: "a limit without end", raw: set("limit", "99999999999999999999"), bad: "limit="},
		{name: "a direction that is none", raw: set("direction", "FORWARD"), bad: "direction="},
		{name: "an escape that is none", raw: "query=%zz", bad: "cannot be read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseQuery(c.raw)
			if c.bad == "" {
				if err != nil || got != c.want {
					t.Errorf("%+v, %v; want %+v", got, err, c.want)
				}
				return
			}
			told, ok := err.(interface{ HTTPStatus() int })
			if !ok || told.HTTPStatus() != 400 || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%+v, error %v, want %q", got, err, c.bad)
			}
		})
	}
}
