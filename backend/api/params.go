package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
)

// params reads a request's parameters. The first that is wrong is kept; so is one that nobody knows, since a mistyped parameter would otherwise be a wrong answer.
type params struct {
	values url.Values
	known  map[string]bool
	err    error
}

func readParams(r *http.Request) *params {
	values, err := url.ParseQuery(r.URL.RawQuery)
	p := &params{values: values, known: map[string]bool{}}
	if err != nil {
		p.err = &Error{http.StatusBadRequest, "the query cannot be read: " + err.Error()}
	}
	return p
}

func (p *params) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// text is a parameter that may stand once.
func (p *params) text(name string) string {
	p.known[name] = true
	if len(p.values[name]) > 1 {
		p.fail(badParameter(name, strings.Join(p.values[name], ", "), "may stand once"))
	}
	return p.values.Get(name)
}

// texts is a parameter that may stand several times.
func (p *params) texts(name string) []string {
	p.known[name] = true
	return p.values[name]
}

// flag is true for a parameter that is true or 1.
func (p *params) flag(name string) bool {
	v := p.text(name)
	if v == "" {
		if p.values.Has(name) {
			p.fail(badParameter(name, v, "want true or false"))
		}
		return false
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		p.fail(badParameter(name, v, "want true or false"))
	}
	return b
}

// number is a whole number from least on, or absent.
func (p *params) number(name string, least, most, absent int64) int64 {
	v := p.text(name)
	if v == "" && !p.values.Has(name) {
		return absent
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < least || n > most {
		p.fail(badParameter(name, v, fmt.Sprintf("want a whole number from %d to %d", least, most)))
	}
	return n
}

// time is in RFC 3339, or zero.
func (p *params) time(name string) time.Time {
	v := p.text(name)
	if v == "" && !p.values.Has(name) {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil {
		p.fail(badParameter(name, v, "want a time as 2006-01-02T15:04:05Z"))
	}
	return t
}

// several are all values of a parameter.
func (p *params) several(name string) []string {
	p.known[name] = true
	return p.values[name]
}

// done returns what was wrong.
func (p *params) done() error {
	for name := range p.values {
		if !p.known[name] {
			p.fail(badParameter(name, p.values.Get(name), "no such parameter here: see "+Base+"/openapi.yaml"))
		}
	}
	return p.err
}

// maxCount bounds line numbers and counts of bytes.
const maxCount = 1 << 60

// format is how a log is written.
type format string

// The formats, as their media types.
const (
	formatText   format = "text/plain"
	formatNDJSON format = "application/x-ndjson"
	formatEvents format = "text/event-stream"
)

// formatOf is the format that the parameter format asks for, or else the first in Accept that is one.
func formatOf(r *http.Request, p *params) format {
	switch v := p.text("format"); v {
	case "text":
		return formatText
	case "ndjson":
		return formatNDJSON
	case "events":
		return formatEvents
	case "":
	default:
		p.fail(badParameter("format", v, "want text, ndjson or events"))
	}
	for _, accepted := range strings.Split(strings.Join(r.Header.Values("Accept"), ","), ",") {
		media, _, _ := strings.Cut(accepted, ";")
		f := format(strings.ToLower(strings.TrimSpace(media)))
		if slices.Contains([]format{formatText, formatNDJSON, formatEvents}, f) {
			return f
		}
	}
	return formatText
}

// logParams is what of a log is asked for.
type logParams struct {
	format     format
	options    backend.LogOptions
	limit      int64 // bytes of what is written; 0 is none
	timestamps bool
	notices    bool
	follow     bool
	download   bool
}

// logParamsOf reads the parameters of a log. tailLines, sinceTime, limitBytes, timestamps and follow are named and mean what the API server's do for a pod's log.
func logParamsOf(r *http.Request, p *params) logParams {
	l := logParams{
		format:     formatOf(r, p),
		limit:      p.number("limitBytes", 1, maxCount, 0),
		timestamps: p.flag("timestamps"),
		notices:    p.flag("notices"),
		follow:     p.flag("follow"),
		download:   p.flag("download"),
	}
	tail := p.number("tailLines", 0, maxCount, -1)
	l.options = backend.LogOptions{
		FromLine: p.number("fromLine", 1, maxCount, 0), ToLine: p.number("toLine", 1, maxCount, 0),
		FromByte: p.number("fromByte", 0, maxCount, 0), Since: p.time("sinceTime"),
	}
	switch {
	case tail > 0:
		l.options.Tail = tail
	case tail == 0: // as for kubectl: nothing of what is there already
		l.options.None = true
	}
	if o := l.options; o.ToLine > 0 && o.ToLine < o.FromLine {
		p.fail(badParameter("toLine", strconv.FormatInt(o.ToLine, 10), "is before fromLine"))
	}
	if l.limit > 0 && l.format != formatText {
		p.fail(badParameter("limitBytes", strconv.FormatInt(l.limit, 10), "is for text: use toLine"))
	}
	if l.follow && l.options.ToLine > 0 {
		p.fail(badParameter("follow", "true", "has no end, and toLine names one"))
	}
	if l.follow && l.download {
		p.fail(badParameter("follow", "true", "cannot be downloaded"))
	}
	return l
}
