package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// lock lets one "up" or "down" run at a time.
func lock(n node) (unlock func(), err error) {
	if err := os.MkdirAll(n.path("logs"), 0o755); err != nil {
		return nil, fmt.Errorf("make the state folder: %w", err)
	}
	f, err := os.OpenFile(n.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	return func() { f.Close() }, nil
}

func mustBeRoot(command string) error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("%s: the local cluster needs Linux, this is %s; use a cluster of your own: make demo KUBECONFIG=… REGISTRY=…", command, runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s: the local cluster needs root (namespaces, mounts, cgroups); use a cluster of your own: make demo KUBECONFIG=… REGISTRY=…", command)
	}
	return nil
}

// up brings the cluster up, or finds that it is.
func up(ctx context.Context, progress io.Writer) error {
	begin := time.Now()
	if err := mustBeRoot("up"); err != nil {
		return err
	}
	if err := inCheckout(); err != nil {
		return err
	}
	n, err := newNode()
	if err != nil {
		return err
	}
	unlock, err := lock(n)
	if err != nil {
		return err
	}
	defer unlock()
	var names []string
	for _, c := range components {
		if !c.tests {
			names = append(names, c.name)
		}
	}
	if err := installPackages(ctx, progress, names...); err != nil {
		return err
	}
	fmt.Fprintln(progress, "cluster: binaries")
	if n.Bin, err = buildAll(ctx, progress, names...); err != nil {
		return err
	}
	// Good as it is, unless a part has died or would be built otherwise now.
	if running, err := loadNode(); err == nil && running.Net == n.Net && maps.Equal(running.Bin, n.Bin) && isUp(ctx, running) {
		fmt.Fprintf(progress, "cluster: is up (%s)\n", time.Since(begin).Round(time.Millisecond))
		return nil
	}
	if err := stopRecorded(); err != nil {
		return err
	}
	fmt.Fprintln(progress, "cluster: starting")
	// A fresh cluster each time. Only the registry's blobs and the S3 server's objects stay.
	for _, dir := range []string{"etcd", "pki", "kubelet", "kubelet-pki", "containerd", "containerd-opt", "cni", "cni-conf", "varlog", "logs", "ready", "small-disk"} {
		if err := os.RemoveAll(n.path(dir)); err != nil {
			return fmt.Errorf("remove the last cluster's state: %w", err)
		}
	}
	if err := os.MkdirAll(n.path("logs"), 0o755); err != nil {
		return err
	}
	if err := errors.Join(makePKI(n), n.save()); err != nil {
		return err
	}
	if err := startMachine(n); err != nil {
		return err
	}
	if err := bringUp(ctx, n, progress); err != nil {
		return fmt.Errorf("%w\n  all logs are in %s; \"make cluster-down\" clears what was started", err, n.path("logs"))
	}
	if err := errors.Join(n.saveEnv(), os.WriteFile(n.path("ready"), nil, 0o600)); err != nil {
		return fmt.Errorf("keep the cluster's state: %w", err)
	}
	fmt.Fprintf(progress, `cluster: up in %s
  look around:  eval "$(go run ./tests/cluster env)"; $KUBECTL get pods -A
  take it down: make cluster-down
`, time.Since(begin).Round(time.Second))
	return nil
}

// bringUp starts the parts and installs what runs in the cluster. What can go side by side does.
func bringUp(ctx context.Context, n node, progress io.Writer) error {
	if err := until(ctx, "the machine", 10*time.Second, func(ctx context.Context) error {
		_, err := newMachineClient(n).status(ctx)
		return err
	}); err != nil {
		return fmt.Errorf("%w; log %s ends with:\n%s", err, n.logPath("machine"), tailFile(n.logPath("machine"), 5))
	}
	if err := startParts(ctx, n, "etcd", "kube-apiserver", "registry", "versitygw", "containerd"); err != nil {
		return err
	}
	images := make(chan error, 1) // one send, so the goroutine ends whether or not it is awaited
	go func() {
		list, err := clusterImages(ctx, n)
		if err == nil {
			err = until(ctx, "the registry", 20*time.Second, answers("http://"+n.registry()+"/v2/"))
		}
		if err == nil {
			err = pushAll(ctx, n.images(), list)
		}
		images <- err
	}()
	api := until(ctx, "kube-apiserver", 90*time.Second, n.apiReady)
	if api != nil {
		return fmt.Errorf("%w; log %s ends with:\n%s", api, n.logPath("kube-apiserver"), tailFile(n.logPath("kube-apiserver"), 5))
	}
	fmt.Fprintln(progress, "  kube-apiserver ready")
	// The image pushes must be done before the kubelet wants pause.
	if err := <-images; err != nil {
		return err
	}
	fmt.Fprintln(progress, "  images         pushed")
	if err := newMachineClient(n).call(ctx, "await", "containerd", 0); err != nil {
		return err
	}
	if err := startParts(ctx, n); err != nil {
		return err
	}
	if err := applyBase(ctx, n); err != nil {
		return err
	}
	if err := waitReady(ctx, n, progress); err != nil {
		return err
	}
	if err := until(ctx, "versitygw", 20*time.Second, answers("http://"+n.ip()+":"+s3Port+"/")); err != nil {
		return fmt.Errorf("%w; log %s ends with:\n%s", err, n.logPath("versitygw"), tailFile(n.logPath("versitygw"), 5))
	}
	fmt.Fprintln(progress, "  versitygw      ready")
	if err := until(ctx, "cluster DNS", 30*time.Second, n.dnsReady); err != nil {
		return fmt.Errorf("%w; log %s ends with:\n%s", err, n.logPath("coredns"), tailFile(n.logPath("coredns"), 5))
	}
	fmt.Fprintln(progress, "  coredns        ready")
	return healthy(ctx, n)
}

// startParts starts the named parts, or all.
func startParts(ctx context.Context, n node, names ...string) error {
	if len(names) == 0 {
		for _, p := range parts {
			names = append(names, p.name)
		}
	}
	for _, name := range names {
		if err := newMachineClient(n).call(ctx, "start", name, 0); err != nil {
			return err
		}
	}
	return nil
}

// healthy says whether every part runs and the API server answers.
func healthy(ctx context.Context, n node) error {
	running, err := newMachineClient(n).status(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range parts {
		if running[p.name] == 0 {
			errs = append(errs, fmt.Errorf("%s does not run; log %s ends with:\n%s", p.name, n.logPath(p.name), tailFile(n.logPath(p.name), 5)))
		}
	}
	errs = append(errs, n.apiReady(ctx))
	return errors.Join(errs...)
}

func status(ctx context.Context, w io.Writer) error {
	n, err := loadNode()
	if err != nil {
		return err
	}
	if machinePID(n) == 0 {
		return errNoCluster
	}
	running, err := newMachineClient(n).status(ctx)
	if err != nil {
		return err
	}
	host := hostPIDs(machinePID(n))
	for _, p := range parts {
		state := "stopped"
		if pid := running[p.name]; pid != 0 {
			state = fmt.Sprintf("running, pid %d", host[pid])
		}
		fmt.Fprintf(w, "%-24s %-34s %s\n", p.name, state, n.logPath(p.name))
	}
	return healthy(ctx, n)
}

// isUp says whether "up" once came to its end and all is still well. Parts that run say nothing about what was never installed.
func isUp(ctx context.Context, n node) bool {
	if _, err := os.Stat(n.path("ready")); err != nil {
		return false
	}
	return machinePID(n) != 0 && healthy(ctx, n) == nil
}

// stopRecorded stops the cluster of the state folder, if it has one. What another folder's cluster uses is not touched.
func stopRecorded() error {
	n, err := loadNode()
	if errors.Is(err, errNoCluster) {
		return nil
	}
	if err != nil {
		return err
	}
	return stopMachine(n)
}

// stopMachine kills the machine, and with it every process, mount, link and firewall rule in it.
func stopMachine(n node) error {
	if pid := machinePID(n); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the machine (process %d): %w", pid, err)
		}
		deadline := time.Now().Add(20 * time.Second)
		for machinePID(n) != 0 {
			if time.Now().After(deadline) {
				return fmt.Errorf("the machine (process %d) still runs 20 s after SIGKILL", pid)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	// The veth pair goes with the namespace, but the kernel takes a moment to clear that away. One that a failed start left goes here.
	if out, err := exec.Command("ip", "link", "delete", n.hostLink()).CombinedOutput(); err != nil && !strings.Contains(string(out), "Cannot find device") {
		return fmt.Errorf("delete link %s: %w: %s", n.hostLink(), err, out)
	}
	return removeCgroups(n.cgroup())
}

// down leaves nothing behind but the caches: built binaries, the registry's blobs, S3's objects and the logs of the parts.
func down(_ context.Context, progress io.Writer) error {
	if err := mustBeRoot("down"); err != nil {
		return err
	}
	n := node{State: stateDir()}
	if _, err := os.Stat(n.State); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(progress, "cluster: nothing to take down")
		return nil
	}
	unlock, err := lock(n)
	if err != nil {
		return err
	}
	defer unlock()
	if err := stopRecorded(); err != nil {
		return err
	}
	for _, name := range []string{"etcd", "pki", "kubelet", "kubelet-pki", "containerd", "containerd-opt", "cni", "varlog", "kubeconfig", "env", "ready", "small-disk", "machine.pid", "machine.sock", "node.json"} {
		if err := os.RemoveAll(n.path(name)); err != nil {
			return fmt.Errorf("remove the cluster's state: %w", err)
		}
	}
	// The empty folders /var/lib/cni and /var/lib/kubelet stay: removing a mount point unmounts it in every other namespace, so in another cluster.
	fmt.Fprintln(progress, "cluster: down")
	return nil
}

// installPackages installs the Debian packages that are missing, with those of the components and tools that are named.
func installPackages(ctx context.Context, progress io.Writer, names ...string) error {
	wanted := slices.Clone(debianPackages)
	for _, name := range names {
		wanted = append(wanted, tools[name]...)
	}
	for _, c := range components {
		if slices.Contains(names, c.name) {
			wanted = append(wanted, c.debian...)
		}
	}
	var missing []string
	for _, name := range wanted {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", name).Output()
		if err != nil || string(out) != "installed" {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	fmt.Fprintln(progress, "cluster: installing Debian packages:", join(missing))
	if os.Geteuid() != 0 {
		return fmt.Errorf("these Debian packages are missing and only root can install them: %s", join(missing))
	}
	n := node{State: stateDir()}
	if err := os.MkdirAll(n.path("logs"), 0o755); err != nil {
		return err
	}
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if err := runLogged(cmd, n.path("apt.log")); err != nil {
			return fmt.Errorf("install Debian packages: %w", err)
		}
	}
	return nil
}
