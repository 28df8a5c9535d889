package spool

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/record"
)

func TestLogName(t *testing.T) {
	for _, tc := range []struct {
		name string
		base int64
		want string
	}{
		{"first", 0, "00000000000000000000.log"},
		{"second", 4 << 20, "00000000000004194304.log"},
		{"last", math.MaxInt64, "09223372036854775807.log"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := LogName(tc.base); got != tc.want {
				t.Errorf("LogName: got %s, want %s", got, tc.want)
			}
			if got, ok := ParseLogName(tc.want); !ok || got != tc.base {
				t.Errorf("ParseLogName: got %d, %v, want %d", got, ok, tc.base)
			}
		})
	}
}

func TestParseLogNameRefuses(t *testing.T) {
	for _, name := range []string{
		"", ".log", "0.log", EndFile, tmpEnd, TermFile,
		"00000000000000000000", "00000000000000000000.log.tmp", "00000000000000000000.LOG",
		"0000000000000000000.log", "000000000000000000000.log",
		"-0000000000000000001.log", "+0000000000000000001.log",
		"0x000000000000000001.log", "0000000000_000000001.log", " 0000000000000000001.log", "0000000000000000000\n.log",
		"09223372036854775808.log", "99999999999999999999.log",
	} {
		if base, ok := ParseLogName(name); ok {
			t.Errorf("%q was read as %d", name, base)
		}
	}
}

// A name has one meaning and a meaning has one name.
func FuzzParseLogName(f *testing.F) {
	f.Add("00000000000000000000.log")
	f.Add("00000000000004194304.log")
	f.Add("-0000000000000000001.log")
	f.Add("99999999999999999999.log")
	f.Fuzz(func(t *testing.T, name string) {
		base, ok := ParseLogName(name)
		if !ok {
			return
		}
		if base < 0 || LogName(base) != name {
			t.Errorf("%q was read as %d, which is %q", name, base, LogName(base))
		}
	})
}

func TestEndRoundTrip(t *testing.T) {
	at := time.Date(2026, 5, 17, 12, 0, 0, 42, time.UTC)
	for _, tc := range []struct {
		name string
		end  End
		want string
	}{
		{"exited", End{Exit: record.Exit{Code: 3}, Bytes: 41, Printed: record.Printed{Stdout: 1}, Lines: 1, First: at, Last: at},
			`{"exit":{"code":3},"bytes":41,"printed":{"stdout":1,"stderr":0},"lines":1,"first":"2026-05-17T12:00:00.000000042Z","last":"2026-05-17T12:00:00.000000042Z"}`},
		{"killed, nothing printed", End{Exit: record.Exit{Code: 137, Signal: "killed"}},
			`{"exit":{"code":137,"signal":"killed"},"bytes":0,"printed":{"stdout":0,"stderr":0},"lines":0}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := EncodeEnd(tc.end)
			if err != nil {
				t.Fatal(err)
			}
			if string(b) != tc.want+"\n" {
				t.Errorf("got  %swant %s", b, tc.want)
			}
			if got, err := ParseEnd(b); err != nil || !reflect.DeepEqual(got, tc.end) {
				t.Errorf("got %+v, %v, want %+v", got, err, tc.end)
			}
		})
	}
}

func TestParseEndRefuses(t *testing.T) {
	for _, tc := range []struct{ name, in string }{
		{"empty", ""},
		{"torn", `{"exit":{"code":3}`},
		{"too long", `{"exit":{"code":3}}` + strings.Repeat(" ", MaxEnd)},
		{"number too large", `{"bytes":9223372036854775808}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, err := ParseEnd([]byte(tc.in)); err == nil {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// What a step forges is read whole or not at all, and what was read can be written and read again.
func FuzzParseEnd(f *testing.F) {
	f.Add([]byte(`{"exit":{"code":137,"signal":"killed"},"bytes":41,"printed":{"stdout":1,"stderr":0},"lines":1,"first":"2026-05-17T12:00:00Z","last":"2026-05-17T12:00:00Z"}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		end, err := ParseEnd(b)
		if err != nil {
			return
		}
		if len(b) > MaxEnd {
			t.Errorf("%d bytes were read", len(b))
		}
		again, err := EncodeEnd(end)
		if err != nil {
			t.Fatalf("encode what was read: %v", err)
		}
		if len(again) > MaxEnd {
			return // escapes make it longer
		}
		if back, err := ParseEnd(again); err != nil || !reflect.DeepEqual(back, end) && string(again) != string(must(EncodeEnd(back))) {
			t.Errorf("%+v became %+v, %v", end, back, err)
		}
	})
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
