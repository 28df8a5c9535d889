package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The cluster runs as one machine: a process of this program in network, mount and PID namespaces of its own. What the parts do to the
// firewall, to mounts, bridges and sysctls happens in there and ends with it, and killing its first process is a power cut for all of them.

// machinePID returns the running machine's process, or 0. A recycled process id is not taken for it.
func machinePID(n node) int {
	b, err := os.ReadFile(n.path("machine.pid"))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) != 2 {
		return 0
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil {
		return 0
	}
	if started, err := startTime(pid); err != nil || started != fields[1] {
		return 0
	}
	return pid
}

// startTime is when a process started, in clock ticks since boot (field 22 of proc(5) stat). Together with the id it names a process.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(b), ") ") // the command's name may hold anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fields[19], nil
}

// runMachine is the machine's first process: it mounts what it needs, then starts and stops parts as the socket asks, and reaps.
func runMachine(n node) error {
	if os.Getpid() != 1 {
		return errors.New("machine: is started by \"up\" only")
	}
	// What stops "up", such as Ctrl-C, must not stop the machine.
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM)
	if err := prepareMounts(n); err != nil {
		return err
	}
	if err := prepareCgroups(n.cgroup()); err != nil {
		return err
	}
	s := &supervisor{node: n, running: map[string]*process{}}
	go s.reap() // lives as long as the machine

	if err := os.RemoveAll(n.socket()); err != nil {
		return err
	}
	listener, err := net.Listen("unix", n.socket())
	if err != nil {
		return fmt.Errorf("machine: listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /start", s.handle(s.start))
	mux.HandleFunc("POST /stop", s.handle(s.stop))
	mux.HandleFunc("POST /await", s.handle(s.await))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(s.status()); err != nil {
			fmt.Fprintln(os.Stderr, "machine: status:", err)
		}
	})
	return http.Serve(listener, mux)
}

// process is one running part.
type process struct {
	pid  int
	done chan struct{} // closed when it was reaped
}

// supervisor starts, stops and reaps. It restarts nothing: a part that dies is seen by "status" and by the tests.
type supervisor struct {
	node node

	mu      sync.Mutex // guards running
	running map[string]*process
}

// reap collects every process that ends: the parts, and whatever lost its parent, such as containerd's shims' children.
func (s *supervisor) reap() {
	child := make(chan os.Signal, 1)
	signal.Notify(child, syscall.SIGCHLD)
	for {
		var status syscall.WaitStatus
		// The lock makes sure that a part that ends at once is in the map before it is looked for.
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if pid > 0 {
			s.mu.Lock()
			for name, p := range s.running {
				if p.pid == pid {
					delete(s.running, name)
					close(p.done)
					fmt.Fprintf(os.Stderr, "machine: %s ended: exit code %d, signal %v\n", name, status.ExitStatus(), status.Signal())
				}
			}
			s.mu.Unlock()
			continue
		}
		if err == syscall.EINTR {
			continue
		}
		<-child
	}
}

func (s *supervisor) start(name string, _ syscall.Signal) error {
	p, ok := findPart(name)
	if !ok {
		return fmt.Errorf("there is no part %q", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[name] != nil {
		return nil
	}
	argv, env, err := p.command(s.node)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	out, err := os.OpenFile(s.node.logPath(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer null.Close()
	// Not os/exec: its Wait and the reaper would race for the exit status.
	proc, err := os.StartProcess(argv[0], argv, &os.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), env...),
		Files: []*os.File{null, out, out},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("%s: start: %w", name, err)
	}
	s.running[name] = &process{pid: proc.Pid, done: make(chan struct{})}
	return proc.Release()
}

// await waits until a part serves. A part that ends meanwhile is an error at once.
func (s *supervisor) await(name string, _ syscall.Signal) error {
	p, ok := findPart(name)
	if !ok {
		return fmt.Errorf("there is no part %q", name)
	}
	s.mu.Lock()
	running := s.running[name]
	s.mu.Unlock()
	if running == nil {
		return fmt.Errorf("%s does not run; log %s ends with:\n%s", name, s.node.logPath(name), tailFile(s.node.logPath(name), 5))
	}
	if p.listens == "" {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan struct{})
	go func() { // until either of both is over
		defer close(ended)
		select {
		case <-running.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	address := strings.ReplaceAll(p.listens, "%s", s.node.ip())
	err := until(ctx, name, time.Minute, func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, p.network, address)
		if err != nil {
			return err
		}
		if err := conn.Close(); err != nil || p.serves == nil {
			return err
		}
		return p.serves(ctx)
	})
	cancel()
	<-ended
	if err != nil {
		return fmt.Errorf("%w; log %s ends with:\n%s", err, s.node.logPath(name), tailFile(s.node.logPath(name), 5))
	}
	return nil
}

func (s *supervisor) stop(name string, sig syscall.Signal) error {
	s.mu.Lock()
	p := s.running[name]
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%s: send signal %d: %w", name, sig, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(20 * time.Second):
		return fmt.Errorf("%s: still runs 20 s after signal %d", name, sig)
	}
}

// status maps the running parts to their process ids within the machine.
func (s *supervisor) status() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := map[string]int{}
	for name, p := range s.running {
		m[name] = p.pid
	}
	return m
}

func (s *supervisor) handle(do func(string, syscall.Signal) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		sig, err := strconv.Atoi(r.FormValue("signal"))
		if err != nil {
			sig = int(syscall.SIGTERM)
		}
		if err := do(r.FormValue("part"), syscall.Signal(sig)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// hostPIDs maps process ids within the machine to those that the host sees, for the machine's direct children.
func hostPIDs(machine int) map[int]int {
	m := map[int]int{}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", machine)) // the pattern is valid
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for child := range strings.FieldsSeq(string(b)) {
			status, err := os.ReadFile("/proc/" + child + "/status")
			if err != nil {
				continue // so has the child
			}
			_, line, _ := strings.Cut(string(status), "\nNSpid:")
			line, _, _ = strings.Cut(line, "\n")
			ids := strings.Fields(line)
			if len(ids) < 2 {
				continue
			}
			host, hostErr := strconv.Atoi(ids[0])
			inside, insideErr := strconv.Atoi(ids[len(ids)-1])
			if errors.Join(hostErr, insideErr) == nil {
				m[inside] = host
			}
		}
	}
	return m
}

// machineClient talks to the supervisor.
type machineClient struct{ http *http.Client }

func newMachineClient(n node) machineClient {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.socket())
	}
	return machineClient{&http.Client{Transport: &http.Transport{DialContext: dial}}}
}

func (c machineClient) call(ctx context.Context, action, part string, sig syscall.Signal) error {
	form := url.Values{"part": {part}, "signal": {strconv.Itoa(int(sig))}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://machine/"+action, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: the machine does not answer: %w", action, part, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // the status is the error, the text only explains it
		return fmt.Errorf("%s %s: %s", action, part, strings.TrimSpace(string(b)))
	}
	return nil
}

func (c machineClient) status(ctx context.Context) (map[string]int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://machine/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the machine does not answer: %w", err)
	}
	defer resp.Body.Close()
	var m map[string]int
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		return nil, fmt.Errorf("the machine's answer: %w", err)
	}
	return m, nil
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	temp, err := os.CreateTemp(filepath.Dir(to), ".copy-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // fails when it was renamed, as it should
	_, err = io.Copy(temp, in)
	if err := errors.Join(err, temp.Chmod(mode), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), to)
}
