package contract

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func testConfig() Config {
	return Config{
		TicketURL: "https://shiplog-webhook.shiplog-system.svc/v1/tickets", CABundle: "-----BEGIN CERTIFICATE-----\n",
		Containers: []string{"prepare", "step-build"}, SegmentBytes: 4 << 20,
		FlushInterval: Duration(time.Second), SlowFlushInterval: Duration(5 * time.Second), DrainTimeout: Duration(1500 * time.Millisecond),
		SpoolLimit: 1 << 30, DiskFree: 15,
	}
}

func TestConfigRoundTrip(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"full":        func(*Config) {},
		"least":       func(c *Config) { c.CABundle, c.DrainTimeout, c.SpoolLimit, c.DiskFree = "", 0, 0, 0 },
		"address":     func(c *Config) { c.TicketAddress = "[fd00::1]:443" },
		"name":        func(c *Config) { c.TicketAddress = "tickets.example.com:8443" },
		"plain HTTP":  func(c *Config) { c.TicketURL = "http://localhost:1" },
		"one speed":   func(c *Config) { c.SlowFlushInterval = c.FlushInterval },
		"odd drain":   func(c *Config) { c.DrainTimeout = 1 },
		"dotted name": func(c *Config) { c.Containers = []string{"..."} },
	} {
		t.Run(name, func(t *testing.T) {
			c := testConfig()
			change(&c)
			text, err := c.Encode()
			if err != nil {
				t.Fatal(err)
			}
			back, err := Decode(text)
			if err != nil || !reflect.DeepEqual(back, c) {
				t.Errorf("%+v, %v, want %+v", back, err, c)
			}
		})
	}
}

// TestConfigForm fixes the text: a webhook and a shipper of different releases meet in it.
func TestConfigForm(t *testing.T) {
	text, err := testConfig().Encode()
	const want = `{"ticketURL":"https://shiplog-webhook.shiplog-system.svc/v1/tickets","caBundle":"-----BEGIN CERTIFICATE-----\n",` +
		`"containers":["prepare","step-build"],"segmentBytes":4194304,"flushInterval":"1s","slowFlushInterval":"5s","spoolLimit":1073741824,"diskFree":15,"drainTimeout":"1.5s"}`
	if err != nil || text != want {
		t.Errorf("%s, %v, want %s", text, err, want)
	}
	newer := strings.Replace(want, "{", `{"fromTheFuture":{"a":1},`, 1)
	if c, err := Decode(newer); err != nil || !reflect.DeepEqual(c, testConfig()) {
		t.Errorf("with a field that is not known yet: %+v, %v", c, err)
	}
}

// TestConfigLength: a longer text than the kernel starts a process with would keep the pod from
// starting. A real process says what that is.
func TestConfigLength(t *testing.T) {
	if runtime.GOOS != "linux" || os.Getpagesize() != 4096 {
		t.Skip("the limit is 32 pages, on Linux")
	}
	least := testConfig()
	least.CABundle = "x"
	text, err := least.Encode()
	if err != nil {
		t.Fatal(err)
	}
	room := MaxEnv - len(ConfigEnv+"="+text)
	for name, c := range map[string]struct {
		bundle int
		ok     bool
	}{"the most": {1 + room, true}, "one more": {2 + room, false}, "255 KiB": {255 << 10, false}} {
		t.Run(name, func(t *testing.T) {
			config := testConfig()
			config.CABundle = strings.Repeat("x", c.bundle)
			text, err := config.Encode()
			const advice = "make the CA bundle smaller"
			if c.ok != (err == nil) || err != nil && !strings.Contains(err.Error(), advice) {
				t.Errorf("error %v, want one: %v", err, !c.ok)
			}
			if err != nil {
				b, err := json.Marshal(config)
				if err != nil {
					t.Fatal(err)
				}
				text = string(b)
			}
			cmd := exec.Command("/bin/true")
			cmd.Env = []string{ConfigEnv + "=" + text}
			if err := cmd.Run(); c.ok != (err == nil) || err != nil && !errors.Is(err, syscall.E2BIG) {
				t.Errorf("a process with it: %v", err)
			}
		})
	}
}

func TestConfigFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string // a part of the error
	}{
		"no URL":                 {func(c *Config) { c.TicketURL = "" }, "ticketURL"},
		"URL of another kind":    {func(c *Config) { c.TicketURL = "file:///etc/passwd" }, "file:///etc/passwd"},
		"no containers":          {func(c *Config) { c.Containers = nil }, "containers"},
		"container without name": {func(c *Config) { c.Containers = []string{"a", ""} }, `container ""`},
		"container is a path":    {func(c *Config) { c.Containers = []string{"../state"} }, "../state"},
		"container is a dot":     {func(c *Config) { c.Containers = []string{"."} }, `"."`},
		"container is two dots":  {func(c *Config) { c.Containers = []string{".."} }, `".."`},
		"container with NUL":     {func(c *Config) { c.Containers = []string{"a\x00"} }, "folder"},
		"no segment size":        {func(c *Config) { c.SegmentBytes = 0 }, "segmentBytes"},
		"negative size":          {func(c *Config) { c.SegmentBytes = -1 }, "segmentBytes"},
		"no interval":            {func(c *Config) { c.FlushInterval = 0 }, "flushInterval"},
		"slow is faster":         {func(c *Config) { c.SlowFlushInterval = 1 }, "slowFlushInterval"},
		"negative drain":         {func(c *Config) { c.DrainTimeout = -1 }, "drainTimeout"},
		"negative disk":          {func(c *Config) { c.DiskFree = -1 }, "diskFree"},
		"all of the disk":        {func(c *Config) { c.DiskFree = 100 }, "diskFree"},
		"negative spool":         {func(c *Config) { c.SpoolLimit = -1 }, "spoolLimit"},
	} {
		t.Run(name, func(t *testing.T) {
			c := testConfig()
			tc.change(&c)
			text, err := c.Encode()
			if err == nil || text != "" || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), ConfigEnv) {
				t.Errorf("%q, %v, want an error with %s and %q", text, err, ConfigEnv, tc.want)
			}
		})
	}
	all := Config{}.Validate()
	for _, part := range []string{"ticketURL", "containers", "segmentBytes"} {
		if all == nil || !strings.Contains(all.Error(), part) {
			t.Errorf("faults of the empty config %v lack %s", all, part)
		}
	}
}

func TestDecodeFaults(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"unset":         {"", "only in pods"},
		"no JSON":       {"x", "decode"},
		"other type":    {"[]", "decode"},
		"bad duration":  {`{"flushInterval":"soon"}`, "soon"},
		"number":        {`{"flushInterval":1}`, "decode"},
		"valid nowhere": {"{}", "ticketURL"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(tc.text); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestTeeRoundTrip(t *testing.T) {
	for name, argv := range map[string][]string{
		"command":   {"/bin/true"},
		"arguments": {"sh", "-c", "echo $(X) $$", "", "--", "--spool"},
		"none":      {},
	} {
		t.Run(name, func(t *testing.T) {
			tee := Tee{Spool: SpoolMount, Limit: 1 << 30, Grace: 90 * time.Second, Argv: argv}
			back, err := ParseTee(tee.Args())
			if len(argv) == 0 {
				if err == nil {
					t.Error("no command: no error")
				}
				return
			}
			if err != nil || !reflect.DeepEqual(back, tee) {
				t.Errorf("%+v, %v, want %+v", back, err, tee)
			}
			tee.Quiet = true
			if back, err := ParseTee(tee.Args()); err != nil || !reflect.DeepEqual(back, tee) {
				t.Errorf("quiet: %+v, %v, want %+v", back, err, tee)
			}
		})
	}
}

func TestParseTeeFaults(t *testing.T) {
	good := Tee{Spool: "/s", Limit: 1, Argv: []string{"c"}}.Args()
	for name, tc := range map[string]struct {
		at   int
		with string
		want string
	}{
		"other order":    {0, "--limit", "--spool DIR"},
		"no spool":       {1, "", "--spool"},
		"limit no count": {3, "1Gi", "1Gi"},
		"limit zero":     {3, "0", "--limit"},
		"limit negative": {3, "-1", "--limit"},
		"grace no time":  {5, "30", "--grace"},
		"grace negative": {5, "-1s", "--grace"},
		"no separator":   {6, "-", "--spool DIR"},
	} {
		t.Run(name, func(t *testing.T) {
			args := slices.Clone(good)
			args[tc.at] = tc.with
			if _, err := ParseTee(args); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	for n := range good {
		if _, err := ParseTee(good[:n]); err == nil {
			t.Errorf("%d arguments: no error", n)
		}
	}
}

func TestParseExclude(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil, " , ,": nil, "step-a": {"step-a"}, " step-a,\tstep-b ,": {"step-a", "step-b"},
	} {
		if got := ParseExclude(text); !slices.Equal(got, want) {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestSkipped(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []Skipped
	}{
		"empty":             {"", nil},
		"container":         {"step-a=no-command", []Skipped{{"step-a", "no-command"}}},
		"several":           {"pod=nothing-to-capture,step-a=memory-limit", []Skipped{{SkippedPod, "nothing-to-capture"}, {"step-a", "memory-limit"}}},
		"typed by a person": {"x,y=,=z,a=b=c,step-a=tty", []Skipped{{"step-a", "tty"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := ParseSkipped(tc.text)
			if !slices.Equal(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
			if back := ParseSkipped(FormatSkipped(got)); !slices.Equal(back, got) {
				t.Errorf("a round trip makes %v of %v", back, got)
			}
		})
	}
}

// FuzzDecode: whatever Decode accepts, Encode makes into text that means the same.
func FuzzDecode(f *testing.F) {
	text, err := testConfig().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(`{"containers":["a"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Decode(text)
		if err != nil {
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatalf("accepted, but cannot be encoded: %v", err)
		}
		if back, err := Decode(again); err != nil || !reflect.DeepEqual(back, c) {
			t.Fatalf("%+v, %v, want %+v", back, err, c)
		}
	})
}

// FuzzParseTee: whatever ParseTee accepts, Args makes into arguments that mean the same.
func FuzzParseTee(f *testing.F) {
	f.Add(strings.Join(Tee{Spool: "/s", Limit: 1, Grace: time.Second, Argv: []string{"a", "--"}}.Args(), "\x00"))
	f.Add(strings.Join(Tee{Spool: "/s", Limit: 1, Quiet: true, Argv: []string{"--quiet"}}.Args(), "\x00"))
	f.Fuzz(func(t *testing.T, joined string) {
		tee, err := ParseTee(strings.Split(joined, "\x00"))
		if err != nil {
			return
		}
		if back, err := ParseTee(tee.Args()); err != nil || !reflect.DeepEqual(back, tee) {
			t.Fatalf("%+v, %v, want %+v", back, err, tee)
		}
	})
}
