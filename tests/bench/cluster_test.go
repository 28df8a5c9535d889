//go:build bench

package bench

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The namespaces with shiplog and without.
const (
	onNamespace  = "bench-on"
	offNamespace = "bench-off"
)

// node is the local cluster.
type node struct {
	vars map[string]string
}

// cluster measures what a TaskRun takes longer with shiplog, on the local cluster.
func cluster(t *testing.T, r *results) {
	c := newNode(t)
	for _, m := range []struct {
		what, script, aim string
		pairs             int
		reach             float64
	}{
		{what: "a step that works for about 15 s and prints 30 MB", pairs: 9, aim: "ratio 1.02", reach: 1.02,
			script: `for i in $(seq 100); do head -c 30000000 /dev/zero | sha256sum >/dev/null; seq 1 6000 | sed "s,^,compile example.com/pkg/internal/layer/$i-,"; done`},
		{what: "a step that does nothing but print 300 MB, as fast as it can", pairs: 5,
			script: `yes 'a line of a build log that is not very long, but there are many of them, as in life 0123456789' | head -c 300000000`},
		{what: "a step that does nothing", script: "true", pairs: 20},
	} {
		with, without := map[string]*samples{}, map[string]*samples{}
		for _, name := range []string{"start", "step", "end"} {
			with[name] = &samples{Name: m.what + ", with shiplog: " + name, Unit: "s"}
			without[name] = &samples{Name: m.what + ", without: " + name, Unit: "s"}
		}
		for i := range rounds(m.pairs) {
			name := fmt.Sprintf("run-%d-%d", len(m.script), i)
			for _, side := range []struct {
				namespace string
				to        map[string]*samples
			}{{offNamespace, without}, {onNamespace, with}} {
				// The kubelet looks once a second which containers have ended, and a TaskRun ends just after such a look. So each pair begins at another moment of that second: what comes between is a second
				// later or is not, by some milliseconds, and would be so in all of them.
				wait(time.Second * time.Duration(i) / time.Duration(m.pairs))
				for k, v := range c.taskRun(t, side.namespace, name, m.script) {
					side.to[k].add(v)
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(with)) {
			r.keep(*with[name], *without[name])
		}
		if m.script != "true" {
			on, off := *with["step"], *without["step"]
			r.row(m.what+": its wall time", m.aim, ratio(on, off) <= m.reach, "", "%v; without shiplog %v: **%.3f times**", on, off, ratio(on, off))
			continue
		}
		on, off := *with["start"], *without["start"]
		r.row("TaskRun's creation to the step's first instruction", "0.3 s more", on.median()-off.median() <= 0.3, "", "%v; without shiplog %v: **%.2f s more**", on, off, on.median()-off.median())
		on, off = *with["end"], *without["end"]
		r.row("the step's last instruction to the TaskRun's completion", "0.1 s more", on.median()-off.median() <= 0.1, "", "%v; without shiplog %v: **%.2f s more**", on, off, on.median()-off.median())
	}
	sizes(t, r)
}

// sizes are those of what images hold; there is nothing else in them.
func sizes(t *testing.T, r *results) {
	t.Helper()
	size := func(paths ...string) (n float64) {
		for _, path := range paths {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			n += float64(info.Size()) / 1e6
		}
		return n
	}
	ours := size(binary(t, "./shipper"), binary(t, "./shipper/tee"))
	r.row("the shipper's image, uncompressed", "12 MB", ours <= 12, "", "%.1f MB; the collector's binary with these two of its parts alone %.0f MB", ours, size(component(t, "otelcol")))
}

// newNode starts the local cluster, if it is not up, and installs this checkout in it. Then it is stopped in the end: what is measured next has the cores alone.
func newNode(t *testing.T) *node {
	t.Helper()
	c := &node{vars: map[string]string{}}
	status := exec.Command("go", "run", "./tests/cluster", "status")
	status.Dir = filepath.Join("..", "..")
	if status.Run() != nil {
		t.Cleanup(func() { c.command(t, "go", "run", "./tests/cluster", "down") })
	}
	c.command(t, "go", "run", "./tests/cluster", "up")
	for line := range strings.Lines(c.command(t, "go", "run", "./tests/cluster", "env")) {
		name, value, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "export ")), "=")
		if name != "PATH" {
			c.vars[name] = strings.Trim(value, `'"`)
		}
	}
	c.vars["REGISTRY"], c.vars["PUSH_REGISTRY"] = "localhost:5000/shiplog", c.vars["SHIPLOG_REGISTRY"]+"/shiplog"
	c.command(t, "tests/deploy.sh")
	for ns, label := range map[string]string{onNamespace: "enabled", offNamespace: "off"} {
		c.kubectl(t, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {shiplog.dev/inject: %q}}\n", ns, label), "apply", "-f", "-")
		c.kubectl(t, "", "-n", ns, "delete", "taskruns", "--all", "--wait")
		t.Cleanup(func() { c.kubectl(t, "", "delete", "namespace", ns, "--wait=false") })
	}
	return c
}

func (c *node) command(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = os.Environ()
	for k, v := range c.vars {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

func (c *node) kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(c.vars["KUBECTL"], append([]string{"--kubeconfig", c.vars["KUBECONFIG"]}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}

// taskRun runs a step, and returns the seconds from the TaskRun's creation to its first instruction, of the step, and from its last instruction to the TaskRun's completion. All are by the one clock that both see
// (/proc/uptime, 10 ms).
func (c *node) taskRun(t *testing.T, namespace, name, script string) map[string]float64 {
	t.Helper()
	manifest := fmt.Sprintf("apiVersion: tekton.dev/v1\nkind: TaskRun\nmetadata: {name: %s, namespace: %s}\nspec:\n  taskSpec:\n    steps:\n      - name: s\n        image: busybox\n        script: |\n          %s\n",
		name, namespace, "before=$(cat /proc/uptime)\n          "+script+"\n          echo\n          echo \"times $before $(cat /proc/uptime)\"")
	created := uptime(t)
	c.kubectl(t, manifest, "create", "-f", "-")
	c.kubectl(t, "", "-n", namespace, "wait", "--for=condition=Succeeded", "taskrun/"+name, "--timeout=600s")
	completed := uptime(t)
	text := strings.Fields(c.kubectl(t, "", "-n", namespace, "logs", name+"-pod", "-c", "step-s", "--tail=1"))
	if len(text) != 5 || text[0] != "times" {
		t.Fatalf("the step printed %q", text)
	}
	first, last := seconds(t, text[1]), seconds(t, text[3])
	c.kubectl(t, "", "-n", namespace, "delete", "taskrun", name, "--wait=false")
	return map[string]float64{"start": first - created, "step": last - first, "end": completed - last}
}

func uptime(t *testing.T) float64 {
	t.Helper()
	first, _, _ := strings.Cut(firstLine("/proc/uptime"), " ")
	return seconds(t, first)
}

func seconds(t *testing.T, s string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
