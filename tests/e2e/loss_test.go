//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/tests/loss/budget"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// The rows of the loss budget that need a cluster. Each prints sequences in real TaskRuns, breaks something, and looks at what is in S3. A step says in a file of the node how
// much it has written, so that this is known also of one that was killed.

// rates are those at which each row prints, side by side.
func rates() []sequence.Rate {
	return budget.Scale([]sequence.Rate{{Lines: 10}, {Bytes: 1e6}}, []sequence.Rate{{Lines: 10}, {Bytes: 1e6}, {Bytes: 50e6}})
}

// printer is a TaskRun whose step prints a sequence.
type printer struct {
	name   string
	spec   tekton.TaskRunSpec
	rate   sequence.Rate
	stream sequence.Stream
	count  string // the file that says how many bytes were written
	until  string // the file whose being there ends it
	tr     *tekton.TaskRun
	pod    *corev1.Pod
}

// printerOptions are what a row's printers do.
type printerOptions struct {
	namespace string          // nsOn if empty
	stubborn  bool            // they ignore SIGTERM
	rates     []sequence.Rate // those of rates if nil
	spec      func(*tekton.TaskRunSpec)
}

// sequenceImage is the step's image: busybox and the program.
var sequenceImage = sync.OnceValues(func() (string, error) {
	ctx := context.Background()
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	if _, err := command(ctx, root, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-o", "bin/sequence", "./tests/loss/sequence/cmd"); err != nil {
		return "", err
	}
	out, err := command(ctx, root, nil, "go", "run", "./tests/cluster", "load-image", "-C", "bin", "loss/sequence:local", "--from", "localhost:5000/busybox:latest", "sequence=sequence")
	return strings.TrimSpace(out), err
})

// startPrinters starts a printer for each rate and waits until all of them print.
func startPrinters(t *testing.T, row string, o printerOptions) []*printer {
	t.Helper()
	printers := newPrinters(t, row, o)
	for _, p := range printers {
		p.tr = newTaskRun(t, cmp.Or(o.namespace, nsOn), p.name, p.spec, nil)
	}
	awaitPrinting(t, printers)
	return printers
}

// newPrinters makes a printer for each rate, and starts none.
func newPrinters(t *testing.T, row string, o printerOptions) []*printer {
	t.Helper()
	image, err := sequenceImage()
	if err != nil {
		t.Fatal(err)
	}
	// In the cluster's state folder: the node sees it under the same path.
	dir, err := os.MkdirTemp(filepath.Dir(env.kubeconfig), "loss-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	var printers []*printer
	all := o.rates
	if all == nil {
		all = rates()
	}
	for i, rate := range all {
		p := &printer{name: fmt.Sprintf("loss-%s-%d", row, i), rate: rate, stream: sequence.Stream{Seed: rand.Uint64()}, count: filepath.Join(dir, strconv.Itoa(i)), until: filepath.Join(dir, strconv.Itoa(i)+".end")}
		args := []string{"print", "-seed", strconv.FormatUint(p.stream.Seed, 10), "-count", "/count/" + strconv.Itoa(i), "-until", fmt.Sprintf("/count/%d.end", i)}
		if rate.Lines > 0 {
			args = append(args, "-lines", strconv.FormatInt(rate.Lines, 10))
		} else {
			args = append(args, "-rate", strconv.FormatInt(rate.Bytes, 10))
		}
		if o.stubborn {
			args = append(args, "-stubborn")
		}
		p.spec = tekton.TaskRunSpec{TaskSpec: &tekton.TaskSpec{
			Steps: []tekton.Step{{
				Name: "s", Image: image, Command: []string{"/sequence"}, Args: args,
				VolumeMounts: []corev1.VolumeMount{{Name: "count", MountPath: "/count"}},
			}},
			Volumes: []corev1.Volume{{Name: "count", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}}},
		}}
		if o.spec != nil {
			o.spec(&p.spec)
		}
		printers = append(printers, p)
	}
	return printers
}

// awaitPrinting waits until all of the printers print.
func awaitPrinting(t *testing.T, printers []*printer) {
	t.Helper()
	for _, p := range printers {
		err := poll(t.Context(), p.tr.Name+" to print", func(ctx context.Context) (bool, error) {
			if err := env.client.Get(ctx, client.ObjectKeyFromObject(p.tr), p.tr); err != nil || p.tr.Status.PodName == "" {
				return false, err
			}
			return p.printed() > 0, nil
		})
		if err != nil {
			t.Fatalf("%v; status %+v", err, p.tr.Status.Conditions)
		}
		p.pod = podOf(t, p.tr)
		if shipperOf(p.pod) == nil {
			t.Fatalf("pod %s is not injected: %v", p.pod.Name, p.pod.Annotations)
		}
	}
}

// printed is how many bytes the step's writes have taken so far.
func (p *printer) printed() int64 {
	b, err := os.ReadFile(p.count)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// printsFor waits until the printers have printed for some time more, by their own count: this is the time in which something is broken.
func printsFor(t *testing.T, printers []*printer, d time.Duration) {
	t.Helper()
	p := printers[0] // at lines per second, whose count tells the time
	want := p.printedLines() + int64(d.Seconds()*float64(p.rate.Lines))
	err := poll(t.Context(), p.tr.Name+" to print on", func(context.Context) (bool, error) { return p.printedLines() >= want, nil })
	if err != nil {
		t.Fatal(err)
	}
}

// printedLines counts the records in what was printed.
func (p *printer) printedLines() int64 {
	var b []byte
	var n, total int64
	for printed := p.printed(); ; n++ {
		b = p.stream.Append(b[:0], n)
		if total += int64(len(b)); total > printed {
			return n
		}
	}
}

// archive is an archive reader on the cluster's store.
func archive(t *testing.T) *backend.Archive {
	t.Helper()
	return backend.New(openStore(t))
}

// read reads the step's log from S3 and checks each byte. It returns what the reader says of it, too.
func (p *printer) read(t *testing.T, a *backend.Archive, printed int64) (sequence.Report, backend.Container) {
	t.Helper()
	target, err := a.Find(t.Context(), p.tr.Namespace, string(p.tr.UID))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := a.Tree(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tree.TaskRuns {
		for _, pod := range task.Pods {
			for _, c := range pod.Containers {
				if c.Name != "step-s" {
					continue
				}
				checker := sequence.NewChecker(p.stream)
				for line, err := range a.Lines(t.Context(), c, backend.LogOptions{}) {
					if err != nil {
						t.Fatalf("%s: %v", p.tr.Name, err)
					}
					if err := checker.Line(line.Line, criline.Stdout); err != nil {
						t.Fatalf("%s: %v", p.tr.Name, err)
					}
				}
				return checker.Finish(printed), c
			}
		}
	}
	t.Fatalf("%s: the archive has no container step-s", p.tr.Name)
	return sequence.Report{}, backend.Container{}
}

// told is what the reader says of the step's log, in a few words.
func (p *printer) told(t *testing.T, c backend.Container) string {
	t.Helper()
	said := string(c.Status)
	if c.Why != "" {
		why, _, _ := strings.Cut(c.Why, " at 2")
		said += ": " + why
	}
	err := stream(t.Context(), "", nil, io.Discard, io.Discard, env.cli, "logs", "-n", p.tr.Namespace, "--container", c.Name, "--tail", "1", string(p.tr.UID))
	var exit *exec.ExitError
	switch {
	case err == nil:
		return said + "; exit code 0"
	case errors.As(err, &exit):
		return fmt.Sprintf("%s; exit code %d", said, exit.ExitCode())
	default:
		t.Fatal(err)
		return ""
	}
}

// settled waits until a step's log is sealed, which it must be in every row that loses nothing.
func (p *printer) settled(t *testing.T, a *backend.Archive) {
	t.Helper()
	var last error
	err := poll(t.Context(), "the archive of "+p.tr.Name+" to be sealed", func(ctx context.Context) (bool, error) {
		target, err := a.Find(ctx, p.tr.Namespace, string(p.tr.UID))
		if err == nil {
			var tree *backend.Tree
			if tree, err = a.Tree(ctx, target); err == nil {
				for _, task := range tree.TaskRuns {
					for _, pod := range task.Pods {
						for _, c := range pod.Containers {
							if c.Name == "step-s" && c.Seal != nil {
								return true, nil
							}
						}
					}
				}
				err = errors.New("no seal")
			}
		}
		last = err
		return false, nil
	})
	if err != nil {
		t.Fatalf("%v: %v", err, last)
	}
}

// nothingLost checks the logs of a row that must lose nothing: all that the steps have written is there, each byte right, and verified.
func nothingLost(t *testing.T, m *budget.Measurement, printers []*printer) {
	t.Helper()
	a := archive(t)
	for _, p := range printers {
		p.settled(t, a)
		printed := p.printed()
		// What a killed step wrote last may be in the archive and not in its count.
		report, c := p.read(t, a, -1)
		lost := max(0, printed-report.Bytes)
		m.Add(budget.Log{Rate: p.rate.String(), Printed: printed, Lost: lost, Declared: report.Declared, Told: p.told(t, c)})
		if lost > 0 || !report.Right() || report.Gaps > 0 || c.Status != backend.Verified || c.Why != "" {
			t.Errorf("%s: printed %d bytes; the archive is %s %s: %s", p.tr.Name, printed, c.Status, c.Why, report)
		}
	}
}

// finishAll lets the steps end, and waits until the TaskRuns are done.
func finishAll(t *testing.T, printers []*printer) {
	t.Helper()
	for _, p := range printers {
		if err := os.WriteFile(p.until, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range printers {
		done := finish(t, p.tr)
		if c := done.Status.GetCondition("Succeeded"); !c.IsTrue() {
			t.Errorf("%s: %s %s", p.tr.Name, c.Reason, c.Message)
		}
	}
}

// kubectl runs kubectl against shiplog's own namespace.
func kubectl(t *testing.T, args ...string) {
	t.Helper()
	if _, err := command(t.Context(), "", nil, env.kubectl, args...); err != nil {
		t.Fatal(err)
	}
}

// clusterPart starts or stops a part of the node.
func clusterPart(t *testing.T, args ...string) {
	t.Helper()
	// Without its end: cleanups start what a test has stopped.
	ctx := context.WithoutCancel(t.Context())
	if _, err := command(ctx, "../..", nil, "go", append([]string{"run", "./tests/cluster"}, args...)...); err != nil {
		t.Fatal(err)
	}
}

// TestLossWebhookRestart kills all of the webhook's replicas at once, and then restarts them one by one, while steps print.
func TestLossWebhookRestart(t *testing.T) {
	m := budget.Begin(t, "webhook-restart")
	printers := startPrinters(t, "webhook-restart", printerOptions{})
	kubectl(t, "-n", "shiplog-system", "delete", "pods", "--all", "--force", "--grace-period=0")
	kubectl(t, "-n", "shiplog-system", "rollout", "status", "deployment/shiplog-webhook", "--timeout=5m")
	kubectl(t, "-n", "shiplog-system", "rollout", "restart", "deployment/shiplog-webhook")
	kubectl(t, "-n", "shiplog-system", "rollout", "status", "deployment/shiplog-webhook", "--timeout=5m")
	finishAll(t, printers)
	nothingLost(t, m, printers)
}

// scaleWebhook waits until there are as many replicas as asked for.
func scaleWebhook(t *testing.T, replicas string) {
	t.Helper()
	scale(t, "webhook", replicas)
}

// scale is scaleWebhook for another part, too.
func scale(t *testing.T, part, replicas string) {
	t.Helper()
	deployment := "deployment/shiplog-" + part
	kubectl(t, "-n", "shiplog-system", "scale", deployment, "--replicas="+replicas)
	if replicas == "0" {
		kubectl(t, "-n", "shiplog-system", "wait", "--for=delete", "pod",
			"-l", "app.kubernetes.io/component="+part, "--timeout=5m")
		return
	}
	kubectl(t, "-n", "shiplog-system", "rollout", "status", deployment, "--timeout=5m")
}

// TestLossWebhookGone takes all replicas away in the middle of the run.
func TestLossWebhookGone(t *testing.T) {
	m := budget.Begin(t, "webhook-gone")
	gone := budget.Scale(10*time.Second, 2*time.Minute)
	// At 50 MB/s for minutes the machine is used up by what prints and by the container runtime, and
	// the shipper, which requests little, falls behind: what comes of that is the spool limit's row.
	steady := budget.Scale(rates(), []sequence.Rate{{Lines: 10}, {Bytes: 1e6}, {Bytes: 20e6}})
	printers := startPrinters(t, "webhook-gone", printerOptions{rates: steady})
	printsFor(t, printers, 3*time.Second)
	defer scaleWebhook(t, "2")
	scaleWebhook(t, "0")
	// The shippers go on with the tickets that they have, also after a restart.
	killShippers(t, printers)
	printsFor(t, printers, gone)
	scaleWebhook(t, "2")
	finishAll(t, printers)
	nothingLost(t, m, printers)
}

// TestLossWebhookGoneLong takes all replicas away as soon as the pods are admitted, before there is a ticket, until 20 s before the pods' end.
func TestLossWebhookGoneLong(t *testing.T) {
	m := budget.Begin(t, "webhook-gone-long")
	gone := budget.Scale(10*time.Second, 2*time.Minute)
	// Without a ticket, all that is printed stays in the spool, up to its limit of 1 GiB: what comes behind that is another row's.
	slow := budget.Scale(rates(), []sequence.Rate{{Lines: 10}, {Bytes: 1e6}, {Bytes: 3e6}})
	printers := newPrinters(t, "webhook-gone-long", printerOptions{rates: slow})
	// Pods that are admitted and wait for a node: no shipper of theirs has asked for a ticket yet.
	kubectl(t, "cordon", "node")
	defer kubectl(t, "uncordon", "node")
	for _, p := range printers {
		p.tr = newTaskRun(t, nsOn, p.name, p.spec, nil)
	}
	for _, p := range printers {
		err := poll(t.Context(), "the pod of "+p.name, func(ctx context.Context) (bool, error) {
			return env.client.Get(ctx, client.ObjectKey{Namespace: nsOn, Name: p.name + "-pod"}, &corev1.Pod{}) == nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	defer scaleWebhook(t, "2")
	scaleWebhook(t, "0")
	kubectl(t, "uncordon", "node")
	awaitPrinting(t, printers)
	printsFor(t, printers, gone)
	a := archive(t)
	for _, p := range printers {
		if _, err := a.Find(t.Context(), p.tr.Namespace, string(p.tr.UID)); err == nil {
			t.Errorf("%s is in the archive, so its shipper had a ticket", p.tr.Name)
		}
	}
	scaleWebhook(t, "2")
	printsFor(t, printers, budget.Scale(5*time.Second, 20*time.Second))
	finishAll(t, printers)
	nothingLost(t, m, printers)
}

// process is one process of the node, seen from here.
type process struct {
	pid     int
	argv    []string
	cgroups map[string]string // controller → path; "" for cgroup v2
}

// processesOf are those of a pod.
func processesOf(t *testing.T, pod *corev1.Pod) []process {
	t.Helper()
	return processesIn(t, string(pod.UID))
}

// processesIn are those whose cgroup has a text in its path.
func processesIn(t *testing.T, cgroup string) []process {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var all []process
	for _, dir := range dirs {
		b, err := os.ReadFile(dir + "/cgroup")
		if err != nil || !strings.Contains(string(b), cgroup) {
			continue // ended, or another's
		}
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(cmdline) == 0 {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		p := process{pid: pid, argv: strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00"), cgroups: map[string]string{}}
		for line := range strings.Lines(string(b)) {
			fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
			for _, controller := range strings.Split(fields[1], ",") {
				p.cgroups[controller] = fields[2]
			}
		}
		all = append(all, p)
	}
	return all
}

// findProcess is the process of a pod with a program, and an argument if one is given.
func findProcess(t *testing.T, pod *corev1.Pod, program, arg string) process {
	t.Helper()
	for _, p := range processesOf(t, pod) {
		if p.argv[0] == program && (arg == "" || slices.Contains(p.argv, arg)) {
			return p
		}
	}
	t.Fatalf("pod %s runs no %s", pod.Name, program)
	return process{}
}

func kill(t *testing.T, p process) {
	t.Helper()
	proc, err := os.FindProcess(p.pid)
	if err == nil {
		err = proc.Kill()
	}
	if err != nil {
		t.Fatalf("kill %v: %v", p.argv, err)
	}
}

// killShippers kills each printer's shipper and waits until the kubelet has started it again.
func killShippers(t *testing.T, printers []*printer) {
	t.Helper()
	for _, p := range printers {
		before := shipperStatus(t, p.pod).RestartCount
		kill(t, findProcess(t, p.pod, contract.ShipperBinary, ""))
		err := poll(t.Context(), "the shipper of "+p.pod.Name+" to be restarted", func(context.Context) (bool, error) {
			s := shipperStatus(t, p.pod)
			return s.RestartCount > before && s.State.Running != nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func shipperStatus(t *testing.T, pod *corev1.Pod) corev1.ContainerStatus {
	t.Helper()
	var now corev1.Pod
	if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), &now); err != nil {
		t.Fatal(err)
	}
	for _, s := range now.Status.InitContainerStatuses {
		if s.Name == contract.ShipperContainer {
			return s
		}
	}
	t.Fatalf("pod %s has no status of the shipper", pod.Name)
	return corev1.ContainerStatus{}
}

// TestLossShipperOOM has the kernel kill the shippers for want of memory.
func TestLossShipperOOM(t *testing.T) {
	t.Parallel()
	m := budget.Begin(t, "shipper-oom")
	printers := startPrinters(t, "shipper-oom", printerOptions{})
	for _, p := range printers {
		victim := findProcess(t, p.pod, contract.ShipperBinary, "")
		// The kernel's first choice. Beside it comes a process that takes all the memory that the container may have.
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", victim.pid), []byte("1000"), 0); err != nil {
			t.Fatal(err)
		}
		eatMemory(t, victim)
		err := poll(t.Context(), "the shipper of "+p.pod.Name+" to be OOM-killed and restarted", func(context.Context) (bool, error) {
			s := shipperStatus(t, p.pod)
			return s.State.Running != nil && s.LastTerminationState.Terminated != nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if reason := shipperStatus(t, p.pod).LastTerminationState.Terminated.Reason; reason != "OOMKilled" {
			t.Errorf("%s: the shipper ended as %s, want OOMKilled", p.tr.Name, reason)
		}
	}
	finishAll(t, printers)
	nothingLost(t, m, printers)
}

// eatMemory runs a process in another's cgroup that takes memory until the kernel kills it.
func eatMemory(t *testing.T, in process) {
	t.Helper()
	procs := "/sys/fs/cgroup" + in.cgroups[""] + "/cgroup.procs"
	if path, ok := in.cgroups["memory"]; ok {
		procs = "/sys/fs/cgroup/memory" + path + "/cgroup.procs"
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `echo $$ > "$0" && exec tail /dev/zero`, procs)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the process that takes memory was not killed: %v: %s", err, out)
	}
}

// TestLossStepKilled kills processes of a step. What they have written is there.
func TestLossStepKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		row     string
		program string
	}{
		{"step-kill-process", "/sequence"},
		{"step-kill-entrypoint", "/tekton/bin/entrypoint"},
		{"step-kill-tee", contract.TeePath},
	} {
		t.Run(c.row, func(t *testing.T) {
			t.Parallel()
			m := budget.Begin(t, c.row)
			printers := startPrinters(t, c.row, printerOptions{})
			printsFor(t, printers, 3*time.Second)
			for _, p := range printers {
				kill(t, findProcess(t, p.pod, c.program, strconv.FormatUint(p.stream.Seed, 10)))
			}
			for _, p := range printers {
				done := finish(t, p.tr)
				if s := done.Status.Steps[0].Terminated; s == nil || s.ExitCode == 0 {
					t.Errorf("%s: the step ended as %+v, want a failure", p.tr.Name, s)
				}
			}
			nothingLost(t, m, printers)
		})
	}
}

// TestLossStepOOM has the kernel kill in a step's cgroup for want of memory.
func TestLossStepOOM(t *testing.T) {
	t.Parallel()
	m := budget.Begin(t, "step-oom")
	printers := startPrinters(t, "step-oom", printerOptions{spec: func(s *tekton.TaskRunSpec) {
		s.TaskSpec.Steps[0].ComputeResources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")}
	}})
	printsFor(t, printers, 3*time.Second)
	for _, p := range printers {
		victim := findProcess(t, p.pod, "/sequence", "")
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", victim.pid), []byte("1000"), 0); err != nil {
			t.Fatal(err)
		}
		eatMemory(t, victim)
	}
	for _, p := range printers {
		done := finish(t, p.tr)
		if s := done.Status.Steps[0].Terminated; s == nil || s.ExitCode == 0 {
			t.Errorf("%s: the step ended as %+v, want a failure", p.tr.Name, s)
		}
	}
	nothingLost(t, m, printers)
}

// gone waits until the printers' pods are gone.
func gone(t *testing.T, printers []*printer) {
	t.Helper()
	for _, p := range printers {
		err := poll(t.Context(), "pod "+p.pod.Name+" to be gone", func(ctx context.Context) (bool, error) {
			var now corev1.Pod
			err := env.client.Get(ctx, client.ObjectKeyFromObject(p.pod), &now)
			return apierrors.IsNotFound(err) || now.UID != p.pod.UID && err == nil, client.IgnoreNotFound(err)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestLossPodEnds ends pods in every way in which something other than the step itself ends them.
func TestLossPodEnds(t *testing.T) {
	t.Parallel()
	deletePods := func(t *testing.T, printers []*printer, options ...client.DeleteOption) {
		for _, p := range printers {
			if err := env.client.Delete(t.Context(), p.pod, options...); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		row     string
		options printerOptions
		end     func(*testing.T, []*printer)
	}{
		{"pod-deleted", printerOptions{}, func(t *testing.T, printers []*printer) { deletePods(t, printers) }},
		{"pod-deleted-stubborn", printerOptions{stubborn: true}, func(t *testing.T, printers []*printer) { deletePods(t, printers) }},
		{"taskrun-cancelled", printerOptions{}, func(t *testing.T, printers []*printer) {
			for _, p := range printers {
				patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"status":"TaskRunCancelled"}}`))
				if err := env.client.Patch(t.Context(), p.tr.DeepCopy(), patch); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"taskrun-timeout", printerOptions{spec: func(s *tekton.TaskRunSpec) { s.Timeout = &metav1.Duration{Duration: time.Minute} }}, func(*testing.T, []*printer) {}},
	} {
		t.Run(c.row, func(t *testing.T) {
			t.Parallel()
			m := budget.Begin(t, c.row)
			printers := startPrinters(t, c.row, c.options)
			printsFor(t, printers, 3*time.Second)
			c.end(t, printers)
			gone(t, printers)
			nothingLost(t, m, printers)
		})
	}
}

// TestLossNamespaceDeleted deletes the namespace under running steps.
func TestLossNamespaceDeleted(t *testing.T) {
	t.Parallel()
	m := budget.Begin(t, "namespace-deleted")
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "e2e-deleted-" + strconv.FormatInt(time.Now().UnixNano(), 36), Labels: map[string]string{contract.InjectKey: contract.InjectEnabled}}}
	if err := env.client.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	if err := serviceAccount(t.Context(), ns.Name); err != nil {
		t.Fatal(err)
	}
	printers := startPrinters(t, "namespace-deleted", printerOptions{namespace: ns.Name})
	printsFor(t, printers, 3*time.Second)
	if err := env.client.Delete(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	gone(t, printers)
	nothingLost(t, m, printers)
}

// TestLossPipelineRunDeleted deletes a PipelineRun whose steps print.
func TestLossPipelineRunDeleted(t *testing.T) {
	t.Parallel()
	m := budget.Begin(t, "pipelinerun-deleted")
	printers := newPrinters(t, "pipelinerun-deleted", printerOptions{})
	pr := &tekton.PipelineRun{ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: "loss-deleted"}, Spec: tekton.PipelineRunSpec{PipelineSpec: &tekton.PipelineSpec{}}}
	for _, p := range printers {
		pr.Spec.PipelineSpec.Tasks = append(pr.Spec.PipelineSpec.Tasks, tekton.PipelineTask{Name: p.name, TaskSpec: &tekton.EmbeddedTask{TaskSpec: *p.spec.TaskSpec}})
	}
	if err := env.client.Create(t.Context(), pr); err != nil {
		t.Fatal(err)
	}
	for _, p := range printers {
		p.tr = &tekton.TaskRun{ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: pr.Name + "-" + p.name}}
		err := poll(t.Context(), "TaskRun "+p.tr.Name, func(ctx context.Context) (bool, error) {
			return env.client.Get(ctx, client.ObjectKeyFromObject(p.tr), p.tr) == nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	awaitPrinting(t, printers)
	printsFor(t, printers, 3*time.Second)
	if err := env.client.Delete(t.Context(), pr); err != nil {
		t.Fatal(err)
	}
	gone(t, printers)
	nothingLost(t, m, printers)
}

// TestLossPodForced deletes pods without any grace. Only what was printed within about the last flush interval may be lost, and the reader is told.
func TestLossPodForced(t *testing.T) {
	t.Parallel()
	m := budget.Begin(t, "pod-deleted-force")
	printers := startPrinters(t, "pod-deleted-force", printerOptions{})
	printsFor(t, printers, 5*time.Second)
	for _, p := range printers {
		if err := env.client.Delete(t.Context(), p.pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range printers {
		err := poll(t.Context(), "the processes of "+p.pod.Name+" to end", func(context.Context) (bool, error) { return len(processesOf(t, p.pod)) == 0, nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	lostAtMost(t, m, printers, lastFlush)
}

// lastFlush is the flush interval and as long again, for the upload that was under way.
const lastFlush = 2 * time.Second

// lostAtMost checks the logs of a row that may lose the end: what is there is right, and the reader says that it is not all.
func lostAtMost(t *testing.T, m *budget.Measurement, printers []*printer, last time.Duration) {
	t.Helper()
	a := archive(t)
	for _, p := range printers {
		printed := p.printed()
		report, c := p.read(t, a, -1)
		lost := max(0, printed-report.Bytes)
		m.Add(budget.Log{Rate: p.rate.String(), Printed: printed, Lost: lost, Declared: report.Declared, Told: p.told(t, c)})
		if !report.Right() {
			t.Errorf("%s: %s", p.tr.Name, report)
		}
		if lost > 0 && c.Status == backend.Verified {
			t.Errorf("%s: %d bytes are lost and the reader says verified", p.tr.Name, lost)
		}
		perSecond := p.rate.Bytes
		if p.rate.Lines > 0 {
			perSecond = printed / max(1, p.printedLines()) * p.rate.Lines
		}
		m.Note("%s: lost what was printed in the last %.1f s", p.rate, float64(lost)/float64(perSecond))
		if limit := int64(last.Seconds() * float64(perSecond)); lost > limit {
			t.Errorf("%s: %d bytes are lost, more than the %d of %s", p.tr.Name, lost, limit, last)
		}
	}
}

// TestLossEvicted has the kubelet evict pods that use more ephemeral storage than they may. It ends the step as it would without shiplog.
func TestLossEvicted(t *testing.T) {
	t.Parallel()
	m := budget.Begin(t, "disk-eviction")
	greedy := func(s *tekton.TaskRunSpec) {
		step := &s.TaskSpec.Steps[0]
		step.ComputeResources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("50Mi")}
		// What is printed is not what is too much.
		step.Args = append([]string{"-c", `dd if=/dev/zero of=/tmp/big bs=1M count=100 2>/dev/null; exec /sequence "$@"`, "sh"}, step.Args...)
		step.Command = []string{"sh"}
	}
	off := newPrinters(t, "disk-eviction", printerOptions{spec: greedy})[0]
	off.tr = newTaskRun(t, nsOff, off.name, off.spec, nil)
	printers := startPrinters(t, "disk-eviction", printerOptions{spec: greedy})
	without := evicted(t, off.tr)
	for _, p := range printers {
		with := evicted(t, p.tr)
		// Sometimes the kubelet has forgotten a container by the time it reports an evicted pod, and reports an end without a time. Tekton cannot record that: its status "is invalid" then, and the TaskRun runs until
		// it times out, with shiplog or without.
		if reported(without) && reported(with) {
			if diff := gocmp.Diff(outcome(finish(t, off.tr)).Reason, outcome(finish(t, p.tr)).Reason); diff != "" {
				t.Errorf("Tekton reports another run with shiplog (-without +with):\n%s", diff)
			}
		}
		err := poll(t.Context(), "the processes of "+p.pod.Name+" to end", func(context.Context) (bool, error) { return len(processesOf(t, p.pod)) == 0, nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	lostAtMost(t, m, printers, lastFlush)
}

// TestLossNodeDiskLow brings the node's disk near to where its kubelet evicts pods, while S3 is away
// and steps are chatty. The spool stops before that, so that nothing is evicted.
func TestLossNodeDiskLow(t *testing.T) {
	m := budget.Begin(t, "disk-low-node")
	folder := filepath.Dir(env.kubeconfig) // on the disk that the kubelet's is a folder of
	percent := smallDisk(t, folder, budget.Scale[int64](1<<30, 2<<30))
	changeWebhook(t, func(c *corev1.Container) {
		c.Args = slices.DeleteFunc(c.Args, func(arg string) bool { return strings.HasPrefix(arg, "--disk-free=") })
		c.Args = append(c.Args, fmt.Sprintf("--disk-free=%d", percent))
	})
	chatty := sequence.Rate{Bytes: 15e6}
	printers := startPrinters(t, "disk-low-node", printerOptions{rates: []sequence.Rate{{Lines: 10}, chatty, chatty, chatty}})
	clusterPart(t, "stop", "versitygw", "9")
	back := sync.OnceFunc(func() { clusterPart(t, "start", "versitygw") })
	defer back()
	least := 100.0
	lasts := budget.Scale(15*time.Second, time.Minute)
	for begun := printers[0].printedLines(); printers[0].printedLines() < begun+int64(lasts.Seconds())*printers[0].rate.Lines; {
		printsFor(t, printers, time.Second)
		least = min(least, freePercent(t, folder))
	}
	back()
	finishAll(t, printers)
	m.Note("at least %.1f %% of the disk were free, and the kubelet evicts below %d %%", least, percent)
	if least < float64(percent) {
		t.Errorf("only %.1f %% of the disk were free", least)
	}

	a := archive(t)
	for _, p := range printers {
		p.settled(t, a)
		printed := p.printed()
		report, c := p.read(t, a, printed)
		lost := report.Lost(printed)
		m.Add(budget.Log{Rate: p.rate.String(), Printed: printed, Lost: lost, Declared: report.Declared, Told: p.told(t, c)})
		if !report.Right() || report.End > 0 || report.Unknown > 0 || lost != report.Declared {
			t.Errorf("%s: %s; the archive is %s %s", p.tr.Name, report, c.Status, c.Why)
		}
		if (lost > 0) != (p.rate == chatty) {
			t.Errorf("%s at %s lost %d bytes", p.tr.Name, p.rate, lost)
		}
		for _, gap := range c.Seal.Gaps {
			if gap.Reason != criline.ReasonDiskLow {
				t.Errorf("%s: gap %+v", p.tr.Name, gap)
			}
		}
	}
	// An evicted pod's TaskRun would have failed.
	node, err := command(t.Context(), "", nil, env.kubectl, "get", "nodes", "-o",
		`jsonpath={.items[*].status.conditions[?(@.type=="DiskPressure")].status}`)
	if err != nil || strings.TrimSpace(node) != "False" {
		t.Errorf("the node's DiskPressure is %q, %v", node, err)
	}
}

// smallDisk fills the disk of a folder until a number of bytes are free above a whole number of
// percent, and has the kubelet evict pods there. At the test's end it undoes both.
func smallDisk(t *testing.T, folder string, above int64) (percent int64) {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		t.Fatal(err)
	}
	size, free := int64(s.Blocks)*s.Bsize, int64(s.Bavail)*s.Bsize
	if percent = 100 * (free - above) / size; percent < 1 {
		t.Fatalf("%d of %d bytes are free at %s: too few for a disk that is not full yet", free, size, folder)
	}
	folder = filepath.Join(folder, "small-disk") // a new cluster removes it, where a test was killed
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	others := filepath.Join(folder, "others")
	f, err := os.Create(others)
	if err != nil {
		t.Fatal(err)
	}
	eviction := filepath.Join(folder, "eviction-percent")
	restart := func() {
		clusterPart(t, "stop", "kubelet", "9")
		clusterPart(t, "start", "kubelet")
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
		restart()
	})
	take := free - above - size/100*percent
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, take), f.Close()); err != nil {
		t.Fatalf("take %d bytes of the disk: %v", take, err)
	}
	if err := os.WriteFile(eviction, []byte(strconv.FormatInt(percent, 10)), 0o644); err != nil {
		t.Fatal(err)
	}
	restart()
	return percent
}

// freePercent is how much of the disk of a folder is free, as the kubelet counts.
func freePercent(t *testing.T, folder string) float64 {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(folder, &s); err != nil {
		t.Fatal(err)
	}
	return 100 * float64(s.Bavail) / float64(s.Blocks)
}

// evicted waits until a TaskRun's pod is evicted.
func evicted(t *testing.T, tr *tekton.TaskRun) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	err := poll(t.Context(), "the pod of "+tr.Namespace+"/"+tr.Name+" to be evicted", func(ctx context.Context) (bool, error) {
		err := env.client.Get(ctx, client.ObjectKey{Namespace: tr.Namespace, Name: tr.Name + "-pod"}, pod)
		return pod.Status.Phase == corev1.PodFailed && pod.Status.Reason == "Evicted", client.IgnoreNotFound(err)
	})
	if err != nil {
		t.Fatalf("%v; %s %s", err, pod.Status.Phase, pod.Status.Reason)
	}
	return pod
}

// reported says whether the kubelet knows when each of an ended pod's containers ran.
func reported(pod *corev1.Pod) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Terminated == nil || s.State.Terminated.StartedAt.IsZero() {
			return false
		}
	}
	return true
}

// TestLossKubeletRestarted kills the kubelet while steps print and starts it again.
func TestLossKubeletRestarted(t *testing.T) {
	m := budget.Begin(t, "node-kubelet")
	printers := startPrinters(t, "node-kubelet", printerOptions{})
	clusterPart(t, "stop", "kubelet", "9")
	printsFor(t, printers, 3*time.Second)
	clusterPart(t, "start", "kubelet")
	printsFor(t, printers, budget.Scale(3*time.Second, 20*time.Second))
	finishAll(t, printers)
	nothingLost(t, m, printers)
}

// TestLossContainerdRestarted kills containerd while steps print and starts it again.
func TestLossContainerdRestarted(t *testing.T) {
	m := budget.Begin(t, "node-containerd")
	printers := startPrinters(t, "node-containerd", printerOptions{})
	clusterPart(t, "stop", "containerd", "9")
	clusterPart(t, "start", "containerd")
	printsFor(t, printers, budget.Scale(3*time.Second, 20*time.Second))
	finishAll(t, printers)
	nothingLost(t, m, printers)
}

// systemContainers are the containers that serve Tekton and shiplog, and whether all are ready.
func systemContainers(ctx context.Context) (ids map[string]bool, ready bool, err error) {
	ids, ready = map[string]bool{}, true
	for _, namespace := range []string{"tekton-pipelines", "tekton-pipelines-resolvers", "shiplog-system"} {
		var pods corev1.PodList
		if err := env.client.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
			return nil, false, err
		}
		for _, pod := range pods.Items {
			for _, s := range pod.Status.ContainerStatuses {
				ids[s.ContainerID] = true
				ready = ready && s.Ready
			}
		}
	}
	return ids, ready, nil
}

// nodeBack starts the node's services after all of its containers were killed, and waits until runs can be made again. Until the kubelet has looked, the API server says that what is dead is ready.
// Without the node no other test can pass, so they do not begin: what they would print hides what happened.
func nodeBack(t *testing.T, before map[string]bool) {
	t.Helper()
	back := false
	defer func() {
		if !back {
			panic("the node did not come back after " + t.Name() + ", and no other test can run without it; the logs are in the cluster's folder")
		}
	}()
	clusterPart(t, "start", "containerd")
	clusterPart(t, "start", "kubelet")
	err := poll(t.Context(), "other containers in the place of the killed ones", func(ctx context.Context) (bool, error) {
		now, ready, err := systemContainers(ctx)
		for id := range before {
			ready = ready && !now[id]
		}
		return ready && len(now) >= len(before), err
	})
	if err != nil {
		t.Fatal(err)
	}
	// Their pods have other addresses now, which the Services' rules get a little later.
	err = poll(t.Context(), "Tekton's webhook to answer", func(ctx context.Context) (bool, error) {
		spec := tekton.TaskRunSpec{TaskSpec: &tekton.TaskSpec{Steps: []tekton.Step{{Name: "a", Image: "busybox", Script: "true"}}}}
		probe := &tekton.TaskRun{ObjectMeta: metav1.ObjectMeta{GenerateName: "probe-", Namespace: nsOff}, Spec: spec}
		return env.client.Create(ctx, probe, client.DryRunAll) == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	back = true
}

// TestLossPowerCut kills everything on the node with SIGKILL: the kubelet, containerd and every process of every pod. Then the node comes back.
func TestLossPowerCut(t *testing.T) {
	m := budget.Begin(t, "node-power-cut")
	printers := startPrinters(t, "node-power-cut", printerOptions{})
	printsFor(t, printers, 5*time.Second)
	before, _, err := systemContainers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Neither of the two does anything for a container that runs, so it is the same as if they ended at the same moment.
	clusterPart(t, "stop", "kubelet", "9")
	clusterPart(t, "stop", "containerd", "9")
	defer nodeBack(t, before)
	cgroup := regexp.MustCompile(`/shiplog-cluster-[0-9.]+/`).FindString(strings.Join(slices.Collect(maps.Values(processesOf(t, printers[0].pod)[0].cgroups)), " "))
	if cgroup == "" {
		t.Fatal("the pods are not in the cluster's cgroup")
	}
	for len(processesIn(t, cgroup)) > 0 {
		for _, p := range processesIn(t, cgroup) {
			_ = syscall.Kill(p.pid, syscall.SIGKILL) // it fails for one that has ended meanwhile
		}
	}
	lostAtMost(t, m, printers, lastFlush)
}
