//go:build linux

package hostile

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// compactorRows attacks the process that puts segments together. Another tenant waits until its own
// log is.
func (w *world) compactorRows(t *testing.T, binary string,
	attacks []tenantAttack) (rows []measured) {
	d := deployment(t, "compactor.yaml")
	for _, a := range attacks {
		t.Run("compactor-"+strings.ReplaceAll(a.name, " ", "-"), func(t *testing.T) {
			w := w.below(t, fmt.Sprintf("compacted-%x", sha256.Sum256([]byte(a.name))))
			c := w.innocentRun("run", 200)
			if a.store != nil {
				a.store(&hostileRun{w, w.run(tenant, "run")})
			}
			w.stored()
			begun := time.Now()
			s := start(t, binary, d, environment(w.settings), "compact", "--every=1h",
				"--metrics-address=127.0.0.1:0")
			s.await("the other tenant's log is compacted", func(said string) string {
				for line := range strings.Lines(said) {
					var l struct{ Msg, Log string }
					if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "compacted" &&
						l.Log == c.Prefix() {
						return l.Log
					}
				}
				return ""
			})
			took := time.Since(begun)
			most := s.stop()
			t.Logf("%.0f MiB of %d, another waits %s", mib(most), d.limit>>20, round(took))
			rows = append(rows, measured{"the compactor: " + a.name, a.bound, most, d.limit,
				round(took)})
		})
	}
	return rows
}

// sealed are the objects of logs that are sealed, of so many segments of a length each. Their keys
// are in order.
func sealed(r *hostileRun, logs, segments int, length int64, size int64, body func() []byte) mass {
	keys := func(i int) (layout.Container, int) {
		return r.container(fmt.Sprintf("c%03d", i/(segments+1))), i % (segments + 1)
	}
	total := int64(segments) * length
	seal, err := record.Encode(record.Seal{Bytes: total, Segments: int64(segments),
		SHA256: fmt.Sprintf("%x", sha256.Sum256(nil)), End: record.EndExited, Exit: &record.Exit{}})
	if err != nil {
		r.t.Fatal(err)
	}
	return mass{
		n: logs * (segments + 1), size: size,
		key: func(i int) string {
			c, n := keys(i)
			if n == segments {
				return c.SealKey()
			}
			return c.SegmentKey(segmentOf(int64(n)*length, length))
		},
		body: func(i int) []byte {
			if _, n := keys(i); n == segments {
				return seal
			}
			return body()
		},
	}
}

// compactorAttacks are those on the compactor. The last one takes half a minute, of which nearly all
// is waiting.
func compactorAttacks() []tenantAttack {
	return []tenantAttack{
		{name: "none", bound: "nobody attacks"},
		{
			name:  "4,000 segments of one byte, each with 60 KiB that a decoder is to skip",
			bound: "an object is no larger than what it holds needs; 1 MiB is read at once",
			store: func(r *hostileRun) {
				skipped := make([]byte, 60<<10)
				copy(skipped, []byte{0x50, 0x2a, 0x4d, 0x18, 0xf8, 0xef, 0, 0}) // RFC 8878, 3.1.2
				body := append(skipped, frame(256<<10, 'x', 1)...)
				r.mass(sealed(r, 1, 4000, 1, int64(len(body)), func() []byte { return body }))
			},
		},
		{
			name:  "200 objects of 1.1 MB that unpack to 9 GB",
			bound: "16 MiB for a segment, and 1,000 times what is stored for a log",
			store: func(r *hostileRun) {
				const length = 9_000_000_000
				body := frame(256<<10, 'x', length)
				r.mass(sealed(r, 1, 200, length, 1_100_000, func() []byte { return body }))
			},
		},
		{
			name:  "15 logs of 400 segments that unpack to 26 MB from 29 kB",
			bound: "10 minutes for a log, 20 for a namespace; what was forged is not tried again",
			store: func(r *hostileRun) {
				const length = 64 << 10
				body := frame(256<<10, 'x', length)
				r.mass(sealed(r, 15, 400, length, length/900, func() []byte { return body }))
			},
		},
		{
			name:  "300,000 segments",
			bound: "trees take half of the memory; a run that does not fit is left as it is",
			store: func(r *hostileRun) {
				r.mass(sealed(r, 1, 300_000, 1, segment.MaxStored(1), func() []byte { return nil }))
			},
		},
		{
			name:  "1,000 seals of 2 bytes that have 256 KiB when they are read",
			bound: "what a record has more than was listed is paid for, too",
			store: (*hostileRun).overwrittenSeals,
		},
		{
			name:  "an object of which no body comes",
			bound: "30 s for the next byte",
			store: func(r *hostileRun) {
				m := sealed(r, 1, 400, 100, segment.MaxStored(100), func() []byte { return nil })
				r.mass(m)
				r.front.stall(r.under + m.key(0))
			},
		},
	}
}
