package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

func TestParseFlags(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		check func(options) bool // nil: an error is wanted
		err   string             // a part of it
	}{
		"least": {nil, func(o options) bool {
			return o.spoolLimit == 1<<30 && o.segmentBytes == 6<<20 && o.caFile == "/certs/ca.crt" && o.drainGrace == 30*time.Second && !o.openShift && o.port == 9443 && o.diskFree == 15
		}, ""},
		"cert dir moves the CA": {[]string{"--cert-dir=/x"}, func(o options) bool { return o.caFile == "/x/ca.crt" }, ""},
		"CA by itself":          {[]string{"--ca-file=/y.pem"}, func(o options) bool { return o.caFile == "/y.pem" }, ""},
		"system's roots":        {[]string{"--ca-file="}, func(o options) bool { return o.caFile == "" }, ""},
		"all kinds": {[]string{"--spool-limit=64Mi", "--shipper-memory-limit=1Gi", "--openshift", "--bounded-drain=1s", "--tekton-kubernetes-sidecar", "--disk-free=0"}, func(o options) bool {
			return o.spoolLimit == 64<<20 && o.memoryLimit.Equal(resource.MustParse("1Gi")) && o.openShift && o.boundedDrain == time.Second && o.kubernetesSidecar && o.diskFree == 0
		}, ""},
		"no image":              {[]string{"--shipper-image="}, nil, "--shipper-image"},
		"pull policy":           {[]string{"--shipper-image-pull-policy=sometimes"}, nil, "sometimes"},
		"ticket URL":            {[]string{"--ticket-url=ftp://x"}, nil, "ftp://x"},
		"reference in URL":      {[]string{"--ticket-url=https://$(HOST)/"}, nil, "$("},
		"spool below segment":   {[]string{"--spool-limit=1Mi"}, nil, "--spool-limit"},
		"all of the disk":       {[]string{"--disk-free=100"}, nil, "diskFree"},
		"spool not a number":    {[]string{"--spool-limit=much"}, nil, "much"},
		"spool not whole":       {[]string{"--spool-limit=1m"}, nil, "whole"},
		"drain grace":           {[]string{"--drain-grace=1500ms"}, nil, "--drain-grace"},
		"flush intervals":       {[]string{"--flush-interval=10s"}, nil, "flushInterval"},
		"bounded drain":         {[]string{"--bounded-drain=0s"}, nil, "--bounded-drain"},
		"request above limit":   {[]string{"--shipper-memory-request=65Mi"}, nil, "--shipper-memory-request"},
		"no CPU for guaranteed": {[]string{"--shipper-guaranteed-cpu=0"}, nil, "--shipper-guaranteed-cpu"},
		"negative threshold":    {[]string{"--min-memory-limit=-1"}, nil, "--min-memory-limit"},
		"quantity":              {[]string{"--shipper-cpu-limit=x"}, nil, "quantity"},
		"argument":              {[]string{"serve"}, nil, "serve"},
		"unknown flag":          {[]string{"--frob"}, nil, "frob"},
		"several faults":        {[]string{"--bounded-drain=0s", "--drain-grace=0s"}, nil, "--drain-grace"},
	} {
		t.Run(name, func(t *testing.T) {
			silence(t)
			o, err := parseFlags(append([]string{"--shipper-image=i"}, tc.args...))
			if tc.check == nil {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			if err != nil || !tc.check(o) {
				t.Errorf("%+v, %v", o, err)
			}
		})
	}
}

// silence keeps package flag's usage text out of the test's output.
func silence(t *testing.T) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = null
	t.Cleanup(func() { os.Stderr = old; null.Close() })
}

func TestReadCABundle(t *testing.T) {
	at := filepath.Join(t.TempDir(), "ca.crt")
	const cert = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
	for name, tc := range map[string]struct{ content, want string }{
		"one":              {cert, cert},
		"two":              {cert + cert, cert + cert},
		"text around":      {"# $(EVIL)\n" + cert + "trailing", cert},
		"with a key":       {"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n" + cert, cert},
		"with headers":     {"-----BEGIN CERTIFICATE-----\nA: $(EVIL)\n\nMIIB\n-----END CERTIFICATE-----\n", cert},
		"key alone":        {"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n", ""},
		"empty":            {"", ""},
		"not PEM":          {"MIIB", ""},
		"cut short":        {cert[:40], ""},
		"renewed, as read": {strings.Replace(cert, "MIIB", "MIIC", 1), strings.Replace(cert, "MIIB", "MIIC", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(at, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readCABundle(at)
			if got != tc.want || (err != nil) != (tc.want == "") {
				t.Errorf("%q, %v, want %q", got, err, tc.want)
			}
		})
	}
	if got, err := readCABundle(""); got != "" || err != nil {
		t.Errorf("no path: %q, %v, want neither", got, err)
	}
	if _, err := readCABundle(at + ".missing"); err == nil {
		t.Error("missing file: no error")
	}
}

// TestLargeCABundle: a CA that no pod can carry stops the webhook's start, with what to do.
func TestLargeCABundle(t *testing.T) {
	const cert = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
	for name, c := range map[string]struct {
		bytes int
		ok    bool
	}{"one": {len(cert), true}, "100 KiB": {100 << 10, true}, "as Debian's": {220 << 10, false}} {
		t.Run(name, func(t *testing.T) {
			at := filepath.Join(t.TempDir(), "ca.crt")
			text := strings.Repeat(cert, c.bytes/len(cert))
			if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			o, err := parseFlags([]string{"--shipper-image=i", "--ca-file=" + at})
			if err != nil {
				t.Fatal(err)
			}
			err = checkCABundle(o)
			says := func(what string) bool { return err == nil || strings.Contains(err.Error(), what) }
			if c.ok != (err == nil) || !says(at) || !says("make the CA bundle smaller") {
				t.Errorf("error %v, want one: %v", err, !c.ok)
			}
			// The file may become too large later. Then pods stay as they are.
			p := newTestAdmission()
			p.caBundle = func() (string, error) { return readCABundle(at) }
			resp := p.admit(admission.Request{AdmissionRequest: creation(podWith("", ""))}, nil)
			if !resp.Allowed || (len(resp.Patch) > 0) != c.ok {
				t.Errorf("allowed %v with a patch of %d bytes", resp.Allowed, len(resp.Patch))
			}
		})
	}
}

func TestOwnService(t *testing.T) {
	for name, c := range map[string]struct{ host, port, want string }{
		"in the cluster":     {"10.96.12.7", "443", "10.96.12.7:443"},
		"with IPv6":          {"fd00::7", "443", "[fd00::7]:443"},
		"outside":            {"", "", ""},
		"without a port":     {"10.96.12.7", "", ""},
		"a port and no host": {"", "443", ""},
	} {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{"SHIPLOG_WEBHOOK_SERVICE_HOST": c.host, "SHIPLOG_WEBHOOK_SERVICE_PORT": c.port}
			if got := ownService(func(name string) string { return env[name] }); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
