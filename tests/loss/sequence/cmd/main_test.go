package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

func TestPrintAndCheck(t *testing.T) {
	count := filepath.Join(t.TempDir(), "count")
	var log bytes.Buffer
	code, err := run(strings.Fields("print -seed 3 -bytes 500000 -stderr -exit 5 -count "+count), nil, io.Discard, &log)
	if err != nil || code != 5 {
		t.Fatalf("%d, %v", code, err)
	}
	counted, err := os.ReadFile(count)
	if err != nil || len(counted) != 20 {
		t.Fatalf("%q, %v", counted, err)
	}
	printed := strings.TrimSpace(string(counted))
	cri := func(gap bool) *bytes.Buffer {
		var b []byte
		for line := range bytes.Lines(log.Bytes()) {
			for len(line) > criline.MaxText {
				b = criline.Append(b, time.Now(), criline.Stdout, false, line[:1000])
				line = line[1000:]
			}
			b = criline.Append(b, time.Now(), criline.Stderr, true, []byte("another stream"))
			b = criline.Append(b, time.Now(), criline.Stdout, true, line[:len(line)-1])
			if gap {
				gap = false
				if b, err = criline.AppendMarker(b, time.Now(), criline.Marker{Kind: criline.Gap, Stdout: 10, Stderr: 3}); err != nil {
					t.Fatal(err)
				}
			}
		}
		return bytes.NewBuffer(b)
	}
	for name, tc := range map[string]struct {
		args  string
		in    io.Reader
		code  int
		right func(sequence.Report) bool
	}{
		"as printed":  {"-seed 3 -printed " + printed, bytes.NewReader(log.Bytes()), 0, sequence.Report.Whole},
		"the archive": {"-seed 3 -cri -printed " + printed, cri(false), 0, sequence.Report.Whole},
		"a marker too many": {"-seed 3 -cri -printed " + printed, cri(true), exitNotWhole, func(r sequence.Report) bool {
			return r.Gaps == 1 && r.Declared == 10 && r.Undue.Bytes == 10
		}},
		"another sequence": {"-seed 4 -printed " + printed, bytes.NewReader(log.Bytes()), exitNotWhole, func(r sequence.Report) bool { return r.Bytes == 0 && r.Changed.Count > 100 }},
		"cut":              {"-seed 3 -printed " + printed, bytes.NewReader(log.Bytes()[:400_000]), exitNotWhole, func(r sequence.Report) bool { return r.Bytes == 400_000 && r.End == int64(log.Len())-400_000 }},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			code, err := run(append([]string{"check"}, strings.Fields(tc.args)...), tc.in, &out, io.Discard)
			if err != nil || code != tc.code {
				t.Errorf("exit code %d, %v, want %d", code, err, tc.code)
			}
			var r sequence.Report
			if err := json.Unmarshal(out.Bytes(), &r); err != nil || !tc.right(r) {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range []string{"", "other", "print -x", "check -x", "print -count /does/not/exist/count -records 1"} {
		if code, err := run(strings.Fields(args), strings.NewReader(""), io.Discard, io.Discard); err == nil {
			t.Errorf("%q gives %d and no error", args, code)
		}
	}
	if _, err := run([]string{"check", "-cri"}, strings.NewReader("no line\n"), io.Discard, io.Discard); err == nil {
		t.Error("what is no line of the archive is taken")
	}
}
