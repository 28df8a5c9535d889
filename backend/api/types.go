package api

import (
	"encoding/json"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// These are the JSON objects of openapi.yaml. Times are in RFC 3339, counts of bytes in bytes as printed unless it says otherwise.

// Run is a run in a list.
type Run struct {
	Kind      layout.RunKind    `json:"kind"`
	Name      string            `json:"name"`
	UID       string            `json:"uid"`
	Created   time.Time         `json:"created"`
	Pipeline  string            `json:"pipeline,omitempty"`
	State     record.RunState   `json:"state,omitempty"` // absent while it runs, as far as is known
	Reason    string            `json:"reason,omitempty"`
	Started   time.Time         `json:"started,omitzero"`
	Completed time.Time         `json:"completed,omitzero"`
	Labels    map[string]string `json:"labels,omitempty"`
	Prefix    string            `json:"prefix"` // of its objects
}

// Runs is a page of runs.
type Runs struct {
	Runs []Run `json:"runs"`
	// Continue is for the next page. Without it, there are no more.
	Continue string `json:"continue,omitempty"`
}

// Tree is a run as a tree.
type Tree struct {
	Run      layout.Run   `json:"run"`
	Record   *record.Run  `json:"record,omitempty"`
	Prefix   string       `json:"prefix"`
	TaskRuns []TaskRun    `json:"taskRuns"` // in the order in which their first pods were made
	Others   []layout.Run `json:"others,omitempty"`
	// the one that was asked for, if it was not the run
	TaskRun string    `json:"taskRun,omitempty"`
	PodUID  string    `json:"podUID,omitempty"` // the one pod of it that was asked for
	At      time.Time `json:"at"`               // when it was read, by the store's clock
}

// TaskRun is a TaskRun of a tree.
type TaskRun struct {
	Name         string `json:"name"`
	PipelineTask string `json:"pipelineTask,omitempty"`
	Pods         []Pod  `json:"pods"` // each retry is one
}

// Pod is a pod of a TaskRun.
type Pod struct {
	PodUID     string      `json:"podUID"`
	PodName    string      `json:"podName,omitempty"`
	Created    time.Time   `json:"created,omitzero"`
	LastSeen   time.Time   `json:"lastSeen"`
	Containers []Container `json:"containers"`
}

// Container is the log of a container, and how it stands.
type Container struct {
	backend.Container
	Path   string           `json:"path"` // what stands behind /containers/ in this API
	Prefix string           `json:"prefix"`
	Exit   *record.Exit     `json:"exit,omitempty"`
	Says   string           `json:"says,omitempty"` // what the status means to a person
	First  time.Time        `json:"first,omitzero"` // time of the first line
	Gaps   []backend.Marker `json:"gaps,omitempty"`
}

// Line is a line in NDJSON.
type Line struct {
	*Place
	Line    int64           `json:"line"`
	Offset  int64           `json:"offset"`
	Time    time.Time       `json:"time"`
	Stream  criline.Stream  `json:"stream"`
	Text    *string         `json:"text,omitempty"`
	Base64  string          `json:"base64,omitempty"`  // in the place of a text that is not UTF-8
	Partial bool            `json:"partial,omitempty"` // no newline follows
	Gap     json.RawMessage `json:"gap,omitempty"`     // of the stream "marker": the marker
}

// End is the last line of a log in NDJSON: without it, an answer is not whole.
type End struct {
	*Place
	End State `json:"end"`
}

// State is how a log stands.
type State struct {
	Status backend.Status `json:"status"`
	Why    string         `json:"why,omitempty"`
	Says   string         `json:"says,omitempty"` // what the status means to a person
	Bytes  int64          `json:"bytes"`
	Lines  int64          `json:"lines"`
	Exit   *record.Exit   `json:"exit,omitempty"`
	// Damage is there if the bytes that were read are not those that were sealed.
	Damage *Damage `json:"damage,omitempty"`
}

// Damage has the SHA-256 of a log, in hex.
type Damage struct {
	Sealed string `json:"sealed"`
	Read   string `json:"read"`
}

// Place says which of several logs a line is of.
type Place struct {
	TaskRun   string `json:"taskRun"`
	Task      string `json:"task,omitempty"`
	Retry     int    `json:"retry"`
	Container string `json:"container"`
}

// Match is a match in NDJSON.
type Match struct {
	*Place
	MatchLine
	Start  int         `json:"start"` // of the match within text, in bytes
	End    int         `json:"end"`
	Before []MatchLine `json:"before,omitempty"`
	After  []MatchLine `json:"after,omitempty"`
}

// MatchLine is a line of a match. Bytes that are not UTF-8 are U+FFFD in it.
type MatchLine struct {
	Line   int64          `json:"line"`
	Time   time.Time      `json:"time"`
	Stream criline.Stream `json:"stream"`
	Text   string         `json:"text"`
	Cut    bool           `json:"cut,omitempty"` // the line is longer
}

// Found is the last line of a search: without it, an answer is not whole.
type Found struct {
	Found struct {
		Matches int   `json:"matches"`
		More    bool  `json:"more"`  // there are more than limit
		Logs    int   `json:"logs"`  // that were searched
		Bytes   int64 `json:"bytes"` // printed, of those
		// Damage says of which logs something is missing, so that not all was searched.
		Damage []string `json:"damage,omitempty"`
		// Unfinished says which logs are still running or partial: what comes behind what is there was not searched.
		Unfinished []string `json:"unfinished,omitempty"`
	} `json:"found"`
}

// Namespaces is a page of them.
type Namespaces struct {
	Namespaces []string `json:"namespaces"`
	Continue   string   `json:"continue,omitempty"` // for the next page
}
