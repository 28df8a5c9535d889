// Command bench measures shiplog on the local cluster and writes docs/benchmarks.md. Every figure there comes from a run of it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

const (
	onNamespace  = "bench-on"
	offNamespace = "bench-off"
	startPairs   = 10
	bigBytes     = 300_000_000
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is the cluster that is measured.
type bench struct {
	vars map[string]string
}

func run(ctx context.Context) error {
	b := bench{vars: map[string]string{}}
	if err := b.command(ctx, nil, "go", "run", "./tests/cluster", "up"); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := b.command(ctx, &out, "go", "run", "./tests/cluster", "env"); err != nil {
		return err
	}
	for line := range strings.Lines(out.String()) {
		name, value, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "export ")), "=")
		if name != "PATH" {
			b.vars[name] = value
		}
	}
	b.vars["REGISTRY"], b.vars["PUSH_REGISTRY"] = "localhost:5000/shiplog", b.vars["SHIPLOG_REGISTRY"]+"/shiplog"
	if err := b.command(ctx, nil, "tests/deploy.sh"); err != nil {
		return err
	}
	for ns, label := range map[string]string{onNamespace: "enabled", offNamespace: "off"} {
		manifest := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {shiplog.dev/inject: %q}}\n", ns, label)
		if _, err := b.kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
			return err
		}
		if _, err := b.kubectl(ctx, "", "-n", ns, "delete", "taskruns", "--all", "--wait"); err != nil {
			return err
		}
	}

	big, err := b.big(ctx)
	if err != nil {
		return fmt.Errorf("300 MB step: %w", err)
	}
	latency, err := b.latency(ctx)
	if err != nil {
		return fmt.Errorf("latency: %w", err)
	}
	starts, err := b.starts(ctx)
	if err != nil {
		return fmt.Errorf("pod start: %w", err)
	}
	var image int64
	for _, name := range []string{"bin/shipper", "bin/tee"} {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		image += info.Size()
	}
	text := fmt.Sprintf(`# Benchmarks

Made by `+"`make bench`"+` on %s, on the local cluster: %d processor cores (%s) that run the whole of Kubernetes, Tekton and the S3 server as well. Nothing here is
asserted by a test; a busy machine gives other figures.

| what | measured | aim |
|---|---|---|
| shipper, peak RSS on a step that prints 300 MB | %.1f MiB | under 20 MiB |
| shipper, CPU seconds for each GB printed, in that step | %.1f s | under 8 s |
| time from a step's write to the object's appearance (10 lines a second for 30 s; %d lines) | median %s, 99 of 100 within %s | median under 1 s |
| TaskRun's creation to the step's first instruction, with shiplog − without (medians of %d pairs) | %s − %s = %s | under 0.4 s more |
| shipper's image, uncompressed | %.1f MB | under 12 MB |
| S3 objects written for the 300 MB step (one request each) | %d, %.1f MB in all | |
| that step, start to end, with shiplog and without (Tekton's times, whole seconds) | %s and %s | no slower |
`,
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), processor(),
		float64(big.rss)/1024, big.cpu.Seconds()/(bigBytes/1e9),
		latency.n, round(latency.median), round(latency.p99),
		startPairs, round(starts.on), round(starts.off), round(starts.on-starts.off),
		float64(image)/1e6, big.objects, float64(big.stored)/1e6, big.on, big.off)
	if err := os.WriteFile("docs/benchmarks.md", []byte(text), 0o644); err != nil {
		return err
	}
	fmt.Print("\n", text)
	return nil
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

func processor() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t: "))
		}
	}
	return runtime.GOARCH
}

func (b bench) command(ctx context.Context, out *bytes.Buffer, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = os.Environ()
	for k, v := range b.vars {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if out != nil {
		cmd.Stdout = out
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}

func (b bench) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, b.vars["KUBECTL"], append([]string{"--kubeconfig", b.vars["KUBECONFIG"]}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

// taskRun makes a TaskRun of one step and returns its name.
func (b bench) taskRun(ctx context.Context, namespace, name, script string) error {
	manifest := fmt.Sprintf("apiVersion: tekton.dev/v1\nkind: TaskRun\nmetadata: {name: %s, namespace: %s}\nspec:\n  taskSpec:\n    steps:\n      - name: s\n        image: busybox\n        script: |\n          %s\n", name, namespace, script)
	_, err := b.kubectl(ctx, manifest, "create", "-f", "-")
	return err
}

func (b bench) wait(ctx context.Context, namespace, name string) error {
	_, err := b.kubectl(ctx, "", "-n", namespace, "wait", "--for=condition=Succeeded", "taskrun/"+name, "--timeout=600s")
	return err
}

// bigResult is what the step of 300 MB cost.
type bigResult struct {
	rss     int64 // KiB
	cpu     time.Duration
	objects int
	stored  int64
	on, off time.Duration
}

func (b bench) big(ctx context.Context) (bigResult, error) {
	var r bigResult
	script := fmt.Sprintf("yes 'a line of a build log that is not very long, but there are many of them, as in life 0123456789' | head -c %d", bigBytes)
	took := func(namespace string) (time.Duration, error) {
		times, err := b.kubectl(ctx, "", "-n", namespace, "get", "taskrun", "big", "-o", "jsonpath={.status.steps[0].terminated.startedAt} {.status.steps[0].terminated.finishedAt}")
		if err != nil {
			return 0, err
		}
		from, to, _ := strings.Cut(times, " ")
		a, err := time.Parse(time.RFC3339, from)
		if err != nil {
			return 0, err
		}
		z, err := time.Parse(time.RFC3339, to)
		return z.Sub(a), err
	}
	err := b.taskRun(ctx, offNamespace, "big", script)
	if err == nil {
		err = b.wait(ctx, offNamespace, "big")
	}
	if err == nil {
		r.off, err = took(offNamespace)
	}
	if err == nil {
		err = b.taskRun(ctx, onNamespace, "big", script)
	}
	if err != nil {
		return r, err
	}
	if err := b.watchShipper(ctx, &r); err != nil {
		return r, err
	}
	if err := b.wait(ctx, onNamespace, "big"); err != nil {
		return r, err
	}
	if r.on, err = took(onNamespace); err != nil {
		return r, err
	}
	uid, err := b.kubectl(ctx, "", "-n", onNamespace, "get", "taskrun", "big", "-o", "jsonpath={.metadata.uid}")
	if err != nil {
		return r, err
	}
	run := layout.Run{Namespace: onNamespace, Name: layout.NoPipelineRun, UID: uid}
	err = b.objects(run, func(_ string, info fs.FileInfo) error {
		r.objects++
		r.stored += info.Size()
		return nil
	})
	return r, err
}

// watchShipper follows the one shipper that runs until it ends. The node's processes are visible from the host.
func (b bench) watchShipper(ctx context.Context, r *bigResult) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	pid, seen := "", time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if pid == "" {
			pids, err := filepath.Glob("/proc/[0-9]*")
			if err != nil {
				return err
			}
			for _, dir := range pids {
				if cmdline, err := os.ReadFile(dir + "/cmdline"); err == nil && string(cmdline) == "/shipper\x00" {
					pid = dir
				}
			}
			if pid == "" && time.Since(seen) > time.Minute {
				return errors.New("no shipper runs")
			}
			continue
		}
		status, err := os.ReadFile(pid + "/status")
		if err != nil {
			return nil // it has ended
		}
		for line := range strings.Lines(string(status)) {
			if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
				if kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64); err == nil {
					r.rss = kib
				}
			}
		}
		stat, err := os.ReadFile(pid + "/stat")
		if err != nil {
			return nil
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest) // utime and stime are fields 14 and 15 of proc(5), in ticks of 10 ms
		if len(fields) > 12 {
			user, _ := strconv.Atoi(fields[11])
			system, _ := strconv.Atoi(fields[12])
			if ticks := time.Duration(user+system) * 10 * time.Millisecond; ticks > 0 {
				r.cpu = ticks
			}
		}
	}
}

// objects visits the files in which the S3 server keeps a run's objects: their times are finer than what S3 says.
func (b bench) objects(run layout.Run, visit func(path string, info fs.FileInfo) error) error {
	state := cmp.Or(os.Getenv("SHIPLOG_CLUSTER_DIR"), "/var/lib/shiplog-cluster")
	root := filepath.Join(state, "s3", b.vars["SHIPLOG_S3_BUCKET"], run.Prefix())
	return filepath.Walk(root, func(path string, info fs.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		return visit(path, info)
	})
}

type latencyResult struct {
	n           int
	median, p99 time.Duration
}

// latency compares each line's time with the time at which its object appeared.
func (b bench) latency(ctx context.Context) (latencyResult, error) {
	var r latencyResult
	if err := b.taskRun(ctx, onNamespace, "latency", "for i in $(seq 300); do echo line $i; sleep 0.1; done"); err != nil {
		return r, err
	}
	if err := b.wait(ctx, onNamespace, "latency"); err != nil {
		return r, err
	}
	uid, err := b.kubectl(ctx, "", "-n", onNamespace, "get", "taskrun", "latency", "-o", "jsonpath={.metadata.uid}")
	if err != nil {
		return r, err
	}
	var all []time.Duration
	err = b.objects(layout.Run{Namespace: onNamespace, Name: layout.NoPipelineRun, UID: uid}, func(path string, info fs.FileInfo) error {
		s, err := layout.ParseSegmentName(filepath.Base(path))
		if err != nil || filepath.Base(filepath.Dir(path)) != "step-s" {
			return nil // another object
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		reader, err := segment.NewReader(f, s)
		if err != nil {
			return err
		}
		defer reader.Close()
		var text bytes.Buffer
		if _, err := text.ReadFrom(reader); err != nil {
			return err
		}
		for line := range bytes.Lines(text.Bytes()) {
			l, err := criline.Parse(bytes.TrimSuffix(line, []byte("\n")))
			if err != nil {
				return err
			}
			all = append(all, info.ModTime().Sub(l.Time))
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	if len(all) < 300 {
		return r, fmt.Errorf("%d lines in the archive, not 300", len(all))
	}
	slices.Sort(all)
	return latencyResult{len(all), all[len(all)/2], all[len(all)*99/100]}, nil
}

type startResult struct{ on, off time.Duration }

// starts measures from just before a TaskRun is created to the first instruction of its step, by the one clock that both see (/proc/uptime, 10 ms).
func (b bench) starts(ctx context.Context) (startResult, error) {
	one := func(namespace, name string) (time.Duration, error) {
		before, err := uptime("/proc/uptime")
		if err != nil {
			return 0, err
		}
		if err := b.taskRun(ctx, namespace, name, "cat /proc/uptime"); err != nil {
			return 0, err
		}
		if err := b.wait(ctx, namespace, name); err != nil {
			return 0, err
		}
		text, err := b.kubectl(ctx, "", "-n", namespace, "logs", name+"-pod", "-c", "step-s")
		if err != nil {
			return 0, err
		}
		after, err := parseUptime(text)
		return after - before, err
	}
	var on, off []time.Duration
	for i := range startPairs {
		name := fmt.Sprintf("start-%d", i)
		d, err := one(offNamespace, name)
		if err != nil {
			return startResult{}, err
		}
		off = append(off, d)
		if d, err = one(onNamespace, name); err != nil {
			return startResult{}, err
		}
		on = append(on, d)
	}
	slices.Sort(on)
	slices.Sort(off)
	return startResult{on[len(on)/2], off[len(off)/2]}, nil
}

func uptime(name string) (time.Duration, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return parseUptime(string(b))
}

func parseUptime(s string) (time.Duration, error) {
	first, _, _ := strings.Cut(strings.TrimSpace(s), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	return time.Duration(seconds * float64(time.Second)), err
}
