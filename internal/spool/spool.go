// Package spool owns the folder that tee writes and the shipper reads, one for each container:
//
//	00000000000000000000.log   CRI lines; the number is the file's first byte's offset within the log, as in Kafka's log
//	00000000000004194304.log   the next file, begun when the one before was full
//	term                       the container got SIGTERM: there is little time left
//	end.json                   the process ended: how, and what was written
//	tee/offer                  the shipper's socket, on which tee hands over what outlives it (hand.go)
//	tee/limit                  how many unshipped bytes this container may have (room.go)
//	end.json.tmp               room for end.json, taken before the container begins: the disk may be full at the end
//
// tee appends whole lines, the shipper deletes files that are shipped. Whatever a step may have done to its folder, the reader treats it as hostile: it
// follows no link, opens nothing but regular files, and never blocks.
package spool

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const (
	// EndFile is written by tee, atomically, when its child has ended and all output is in the spool.
	EndFile = "end.json"
	// TermFile is an empty file that tee makes when it gets SIGTERM.
	TermFile = "term"
	// OfferFolder is the folder in a container's folder for what shipper and tee have to say to each
	// other. There, it wakes nobody who watches the container's folder.
	OfferFolder = "tee"

	logSuffix = ".log"
	logDigits = 20
)

// LogName formats the name of the log file that begins at a base offset.
func LogName(base int64) string { return fmt.Sprintf("%0*d%s", logDigits, base, logSuffix) }

// ParseLogName reads what LogName formats, and nothing else.
func ParseLogName(name string) (base int64, ok bool) {
	digits, found := strings.CutSuffix(name, logSuffix)
	if !found || len(digits) != logDigits || strings.ContainsAny(digits, "+-") {
		return 0, false
	}
	base, err := strconv.ParseInt(digits, 10, 64)
	return base, err == nil
}

// End is end.json.
type End struct {
	Exit    record.Exit    `json:"exit"`
	Bytes   int64          `json:"bytes"`   // spool bytes written in all: the offset behind the last line
	Printed record.Printed `json:"printed"` // bytes that the container printed, with those that a gap lost
	Lines   int64          `json:"lines"`   // newlines printed
	First   time.Time      `json:"first,omitzero"`
	Last    time.Time      `json:"last,omitzero"`
	// Gap is what was lost behind the last line, if its marker could not be written there.
	Gap *criline.Marker `json:"gap,omitempty"`
}

// MaxEnd bounds end.json in bytes: a reader takes no more.
const MaxEnd = 4 << 10

// EncodeEnd makes the bytes of end.json.
func EncodeEnd(e End) ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", EndFile, err)
	}
	return append(b, '\n'), nil
}

// ParseEnd reads end.json. What it says is the step's word: a step can forge it, for its own log only.
func ParseEnd(b []byte) (End, error) {
	var e End
	if len(b) > MaxEnd {
		return e, fmt.Errorf("parse %s: %d bytes are over the limit of %d", EndFile, len(b), MaxEnd)
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, fmt.Errorf("parse %s: %w", EndFile, err)
	}
	return e, nil
}
