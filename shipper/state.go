package main

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// state is what the shipper knows of one log, recorded in a folder that steps cannot see. It outlives the shipper's process, not the pod.
//
// A segment is recorded before it is uploaded: its bytes in a file of their own, and its name in Pending together with the position behind it. A shipper that is
// killed at any moment goes on with the same bytes under the same name, whatever has happened to the spool since. If the file is damaged, the segment is cut
// again from Before.
type state struct {
	Position spool.Position   `json:"position"` // in the spool, behind the last segment
	Bytes    int64            `json:"bytes"`    // archive bytes of all segments, the pending one included; so are all counts
	Printed  record.Printed   `json:"printed"`
	Lines    int64            `json:"lines"`
	Segments int64            `json:"segments"`
	Digest   []byte           `json:"digest,omitempty"` // SHA-256 in progress
	First    time.Time        `json:"first,omitzero"`
	Last     time.Time        `json:"last,omitzero"`
	Gaps     []criline.Marker `json:"gaps,omitempty"`
	GapCount int64            `json:"gapCount"`
	Lost     record.Printed   `json:"lost"`
	Pending  string           `json:"pending,omitempty"` // name of the segment whose upload is not known to have succeeded
	Sealed   bool             `json:"sealed,omitempty"`

	// Killed says that the log is sealed as that of a killed container, before the pod's end. Rest is
	// the position at which what tee had in hand was shipped, if it was: with it, a line that is cut
	// off there is in the log already.
	Killed bool            `json:"killed,omitempty"`
	Rest   *spool.Position `json:"rest,omitempty"`

	// TailAt is the offset of the log's end that was shipped before what is in front of it; 0 if none was. A segment ends there, so that none overlaps.
	TailAt int64 `json:"tailAt,omitempty"`

	PendingSum []byte `json:"pendingSum,omitempty"` // SHA-256 of the pending segment's file
	Before     *state `json:"before,omitempty"`     // the state before the pending segment
	// EndMarked is how much had been printed at the end whose gap is marked (spool.End.Gap). A container that runs again has another end.
	EndMarked int64 `json:"endMarked,omitempty"`
	// Resumed says that an earlier state was lost, so that the digest and the counts begin at some offset and not at 0.
	Resumed bool `json:"resumed,omitempty"`
}

// count adds a segment's lines.
func (s *state) count(t criline.Tally) {
	s.Bytes += t.Bytes
	s.Printed.Stdout += t.Stdout
	s.Printed.Stderr += t.Stderr
	s.Lines += t.Lines
	if s.First.IsZero() {
		s.First = t.First
	}
	if !t.Last.IsZero() {
		s.Last = t.Last
	}
	for _, gap := range t.Gaps {
		// A step can forge markers. They must not make the seal grow, nor its sums wrap round.
		if gap.Kind != criline.Gap || gap.Stdout < 0 || gap.Stderr < 0 {
			continue
		}
		s.GapCount++
		s.Lost.Stdout = addUpTo(s.Lost.Stdout, gap.Stdout)
		s.Lost.Stderr = addUpTo(s.Lost.Stderr, gap.Stderr)
		if len(s.Gaps) < record.MaxGaps {
			gap.Reason = criline.Reason(shorten(string(gap.Reason)))
			gap.Detail = shorten(gap.Detail)
			s.Gaps = append(s.Gaps[:len(s.Gaps):len(s.Gaps)], gap) // Before shares the list
		}
	}
}

// addUpTo adds numbers that are not negative, and stops at the largest.
func addUpTo(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// shorten bounds a text that a step may have made up.
func shorten(s string) string {
	const most = 256
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "")
}

// digest returns the hash to go on with.
func (s *state) digest() (hash.Hash, error) {
	h := sha256.New()
	if len(s.Digest) == 0 {
		return h, nil
	}
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.Digest); err != nil {
		return nil, fmt.Errorf("recorded digest: %w", err)
	}
	return h, nil
}

func (s *state) setDigest(h hash.Hash) error {
	b, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return fmt.Errorf("record digest: %w", err)
	}
	s.Digest = b
	return nil
}

// validate keeps a damaged state from stopping its log for ever.
func (s *state) validate() error {
	if s.Position.Base < 0 || s.Position.Offset < 0 || s.Bytes < 0 || s.Lines < 0 || s.Printed.Stdout < 0 || s.Printed.Stderr < 0 {
		return errors.New("negative numbers")
	}
	if s.Pending != "" {
		if _, err := layout.ParseSegmentName(s.Pending); err != nil {
			return err
		}
		if s.Before == nil || s.Before.Pending != "" {
			return errors.New("a pending segment without the state before it")
		}
		if err := s.Before.validate(); err != nil {
			return err
		}
	}
	_, err := s.digest()
	return err
}

// stateDir is the folder of the states and pending segments.
type stateDir string

func (d stateDir) stateFile(container string) string {
	return filepath.Join(string(d), container+".json")
}

func (d stateDir) segmentFile(container string) string {
	return filepath.Join(string(d), container+".segment")
}

// load reads a log's state. An error that is fs.ErrNotExist says that the log is new; any other that the state is lost.
func (d stateDir) load(container string) (state, error) {
	var s state
	b, err := os.ReadFile(d.stateFile(container))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil {
		err = s.validate()
	}
	if err != nil {
		return state{}, fmt.Errorf("read the state of %s: %w", container, err)
	}
	return s, nil
}

func (d stateDir) save(container string, s state) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("record the state of %s: %w", container, err)
	}
	if err := replaceFile(d.stateFile(container), b); err != nil {
		return fmt.Errorf("record the state of %s: %w", container, err)
	}
	return nil
}

// loadSegment reads the bytes of the pending segment, and checks that they are what was recorded.
func (d stateDir) loadSegment(container string, want []byte) ([]byte, error) {
	b, err := os.ReadFile(d.segmentFile(container))
	if err != nil {
		return nil, fmt.Errorf("read the recorded segment of %s: %w", container, err)
	}
	if got := sha256.Sum256(b); !bytes.Equal(got[:], want) {
		return nil, fmt.Errorf("read the recorded segment of %s: %d bytes do not have the recorded digest", container, len(b))
	}
	return b, nil
}

func (d stateDir) saveSegment(container string, b []byte) error {
	if err := replaceFile(d.segmentFile(container), b); err != nil {
		return fmt.Errorf("record a segment of %s: %w", container, err)
	}
	return nil
}

// replaceFile writes a file so that it is the old or the new one at any moment.
func replaceFile(name string, b []byte) error {
	temp := name + ".new"
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, name)
}
