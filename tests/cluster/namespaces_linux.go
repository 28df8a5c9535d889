package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// What only Linux has: namespaces, mounts, and processes that end with their parent.

// startMachine starts the machine's first process and connects it to the host. It survives the caller.
func startMachine(n node) error {
	self := n.path("cluster") // "go run" deletes its binary when it ends
	if err := copyFile("/proc/self/exe", self, 0o755); err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	logFile, err := os.Create(n.logPath("machine"))
	if err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	defer logFile.Close()
	cmd := exec.Command(self, "machine")
	cmd.Env = append(os.Environ(), "SHIPLOG_CLUSTER_DIR="+n.State)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start machine: make namespaces (root is needed): %w", err)
	}
	pid := cmd.Process.Pid
	started, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("start machine: it ended at once; log %s ends with:\n%s", n.logPath("machine"), tailFile(n.logPath("machine"), 5))
	}
	if err := os.WriteFile(n.path("machine.pid"), fmt.Appendf(nil, "%d %s\n", pid, started), 0o600); err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	if err := cmd.Process.Release(); err != nil {
		return fmt.Errorf("start machine: %w", err)
	}
	inside := []string{"nsenter", "--net=/proc/" + strconv.Itoa(pid) + "/ns/net", "ip"}
	for _, args := range [][]string{
		{"ip", "link", "add", n.hostLink(), "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(pid)},
		{"ip", "address", "add", n.hostIP() + "/24", "dev", n.hostLink()},
		{"ip", "link", "set", n.hostLink(), "up"},
		append(inside[:len(inside):len(inside)], "link", "set", "lo", "up"),
		append(inside[:len(inside):len(inside)], "address", "add", n.ip()+"/24", "dev", "eth0"),
		append(inside[:len(inside):len(inside)], "link", "set", "eth0", "up"),
		append(inside[:len(inside):len(inside)], "route", "add", "default", "via", n.hostIP()),
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("connect machine to the host: %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// prepareMounts gives the machine its own /proc and /run, and folders of the state where parts insist on a path.
func prepareMounts(n node) error {
	type mount struct {
		source, target, fstype string
		flags                  uintptr
	}
	mounts := []mount{
		// Nothing goes back to the host; within the machine mounts propagate, which volumes with mount propagation need.
		{"", "/", "", syscall.MS_REC | syscall.MS_PRIVATE},
		{"", "/", "", syscall.MS_REC | syscall.MS_SHARED},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{n.path("varlog"), "/var/log", "", syscall.MS_BIND},
		{n.path("cni"), "/var/lib/cni", "", syscall.MS_BIND},
		{n.path("kubelet"), "/var/lib/kubelet", "", syscall.MS_BIND},
	}
	for _, m := range mounts {
		if m.source != "" && m.fstype == "" {
			if err := errors.Join(os.MkdirAll(m.source, 0o755), os.MkdirAll(m.target, 0o755)); err != nil {
				return fmt.Errorf("machine: %w", err)
			}
		}
		if err := syscall.Mount(m.source, m.target, m.fstype, m.flags, ""); err != nil {
			return fmt.Errorf("machine: mount %s: %w", m.target, err)
		}
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return fmt.Errorf("machine: %w", err)
	}
	if err := coverSysctls(); err != nil {
		return err
	}
	// This is the machine's own network namespace, so the host's setting stays.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("machine: %w", err)
	}
	return nil
}

// kubeletSysctls are the kernel settings that the kubelet insists on, with its values. No namespace keeps them apart: they are the host's.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// coverSysctls shows the kubelet the values that it wants, on files over the real ones, so that it leaves the host's as they are.
func coverSysctls() error {
	for name, value := range kubeletSysctls {
		cover := filepath.Join("/run/sysctl", name)
		if err := writeFile(cover, value+"\n"); err != nil {
			return fmt.Errorf("machine: %w", err)
		}
		target := filepath.Join("/proc/sys", name)
		if err := syscall.Mount(cover, target, "", syscall.MS_BIND, ""); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("machine: cover %s: %w", target, err)
		}
	}
	return nil
}

// endWithCaller makes a command end when this process is killed, so that a killed "up" leaves nothing behind.
func endWithCaller(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
