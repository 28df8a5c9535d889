package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMachinePID(t *testing.T) {
	started, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, text string
		want       int
	}{
		{"running", fmt.Sprintf("%d %s\n", os.Getpid(), started), os.Getpid()},
		{"its id went to another process", fmt.Sprintf("%d %s0\n", os.Getpid(), started), 0},
		{"cut off", fmt.Sprintf("%d", os.Getpid()), 0},
		{"empty", "", 0},
		{"not a number", "x " + started, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := node{State: t.TempDir()}
			write(t, n.path("machine.pid"), tt.text)
			if got := machinePID(n); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
	if got := machinePID(node{State: t.TempDir()}); got != 0 {
		t.Errorf("without a file: got %d", got)
	}
}

// The name in proc(5) stat may hold spaces and brackets; start times are counted from the last bracket's side.
func TestStartTimeOfNoProcess(t *testing.T) {
	if got, err := startTime(-1); err == nil {
		t.Errorf("process -1 started at %s", got)
	}
}

func TestPartsWriteTheirConfiguration(t *testing.T) {
	n := node{State: t.TempDir(), Net: defaultNet, Bin: map[string]string{}}
	for _, c := range components {
		n.Bin[c.name] = "/bin/" + c.name
	}
	seen := map[string]bool{}
	for _, p := range parts {
		if seen[p.name] {
			t.Errorf("two parts are named %s", p.name)
		}
		seen[p.name] = true
		argv, _, err := p.command(n)
		if err != nil {
			t.Errorf("%s: %v", p.name, err)
			continue
		}
		if !filepath.IsAbs(argv[0]) {
			t.Errorf("%s: %q is not an absolute path", p.name, argv[0])
		}
		if got, ok := findPart(p.name); !ok || got.name != p.name {
			t.Errorf("%s is not found", p.name)
		}
	}
	if _, ok := findPart("nope"); ok {
		t.Error("a part \"nope\" is found")
	}
}

func TestAddressesAreInTheirNetworks(t *testing.T) {
	network := func(cidr string) *net.IPNet {
		_, n, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := node{Net: defaultNet}
	host, pods, services := network(n.hostIP()+"/24"), network(n.podCIDR()), network(n.serviceCIDR())
	for ip, in := range map[string]*net.IPNet{n.ip(): host, n.apiIP(): services, n.dnsIP(): services} {
		if !in.Contains(net.ParseIP(ip)) {
			t.Errorf("%s is not in %s", ip, in)
		}
	}
	for _, pair := range [][2]*net.IPNet{{host, pods}, {host, services}, {pods, services}} {
		if pair[0].Contains(pair[1].IP) || pair[1].Contains(pair[0].IP) {
			t.Errorf("%s and %s overlap", pair[0], pair[1])
		}
	}
	first := append(net.IP(nil), services.IP...)
	first[len(first)-1]++
	if first.String() != n.apiIP() {
		t.Errorf("the API server's address is %s, Kubernetes takes %s", n.apiIP(), first)
	}
}

func TestEnvLines(t *testing.T) {
	got := map[string]bool{}
	for _, line := range (node{State: "/state", Net: defaultNet, Bin: map[string]string{"kubernetes": "/k", "crane": "/c"}}).envLines() {
		name, value, ok := strings.Cut(line, "=")
		if !ok || value == "" || strings.ContainsAny(value, " \"'$`\\") {
			t.Errorf("%q cannot be evaluated by a shell", line)
		}
		got[name] = true
	}
	for _, name := range []string{
		"KUBECONFIG", "SHIPLOG_REGISTRY", "SHIPLOG_S3_ENDPOINT", "SHIPLOG_S3_BUCKET", "SHIPLOG_S3_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
		"SHIPLOG_DISK_FREE",
	} {
		if !got[name] {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestRemoveCgroupTree(t *testing.T) {
	root := filepath.Join(t.TempDir(), "cgroup")
	if err := os.MkdirAll(filepath.Join(root, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing
		if err := removeCgroupTree(root); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(root); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// Only root can be asked, and without a state folder nothing on this machine is touched.
func TestDownWithoutState(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	state := filepath.Join(t.TempDir(), "none")
	t.Setenv("SHIPLOG_CLUSTER_DIR", state)
	var out strings.Builder
	for range 2 {
		if err := down(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("it made a state folder: %v", err)
	}
}

func TestNewNode(t *testing.T) {
	for value, ok := range map[string]bool{"": true, "10.99": true, "192.168": true, "8.8": false, "10": false, "10.300": false, "x": false, "10.1.2": false} {
		t.Setenv("SHIPLOG_CLUSTER_NET", value)
		if _, err := newNode(); (err == nil) != ok {
			t.Errorf("%q: %v", value, err)
		}
	}
}

// Taking one cluster down must not touch another's link or cgroup.
func TestClustersShareNoNames(t *testing.T) {
	a, b := node{Net: "10.213"}, node{Net: "192.168"}
	if a.hostLink() == b.hostLink() || a.cgroup() == b.cgroup() {
		t.Errorf("both use link %s or cgroup %s", a.hostLink(), a.cgroup())
	}
	for _, n := range []node{a, {Net: "192.168"}} {
		if len(n.hostLink()) > 15 { // IFNAMSIZ
			t.Errorf("the link's name %s is too long", n.hostLink())
		}
	}
}

func TestHostPIDsOfNoProcess(t *testing.T) {
	if m := hostPIDs(-1); len(m) != 0 {
		t.Errorf("got %v", m)
	}
}
