package results

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// startTimeout is generous, since it only matters where something is broken.
	startTimeout = 3 * time.Minute
	stopTimeout  = time.Minute
	poll         = 50 * time.Millisecond
)

// leaveOut skips a test that cannot be run here, and fails it in CI.
func leaveOut(t *testing.T, why string, err error) {
	t.Helper()
	msg := fmt.Sprintf("NOT TESTED with the real Tekton Results: %s: %v (\"go run ./tests/cluster build results\" makes all that is needed, in minutes)", why, err)
	if os.Getenv("CI") != "" {
		t.Fatal(msg)
	}
	t.Skip(msg)
}

// output runs a command and returns the last line of what it prints.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, strings.TrimSpace(stderr.String()))
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], nil
}

var build = sync.OnceValues(func() (string, error) {
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		return "", errors.New("it is built on Linux, as root")
	}
	// A build that is not cached takes longer than a test may.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	return output(ctx, "go", "run", "github.com/shiplog-dev/shiplog/tests/cluster", "binary", "tkn-results")
})

// built is the folder of Results' binaries.
func built(t *testing.T) string {
	t.Helper()
	binary, err := build()
	if err != nil {
		leaveOut(t, "no binaries", err)
	}
	return filepath.Dir(binary)
}

// process is a started command. It ends with the test.
type process struct {
	cmd  *exec.Cmd
	out  bytes.Buffer  // read after done
	done chan struct{} // closed when the process has ended
	err  error         // of its end; read after done
}

func begin(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process; stop waits for it
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop ends the process with a signal and waits for it.
func (p *process) stop(s os.Signal) error {
	_ = p.cmd.Process.Signal(s) // fails only where it has ended
	late := time.NewTimer(stopTimeout)
	defer late.Stop()
	select {
	case <-p.done:
		return nil
	case <-late.C:
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("did not end within %s of %s:\n%s", stopTimeout, s, p.out.String())
	}
}

// until waits for a condition, or the end of the process.
func (p *process) until(holds func() error) error {
	late := time.NewTimer(startTimeout)
	defer late.Stop()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("ended before it was ready: %w: %s", p.err, p.out.String())
		case <-late.C:
			return fmt.Errorf("not ready within %s: %w", startTimeout, err)
		}
	}
}

const (
	databaseUser = "results"
	databasePort = "5432" // which names the socket; nothing listens on TCP
)

// startPostgres starts a PostgreSQL with an empty database, and returns the folder of its socket. It refuses to run as root.
func startPostgres(t *testing.T, database string) string {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(found) == 0 {
		leaveOut(t, "no PostgreSQL: install Debian's package postgresql", err)
	}
	slices.Sort(found)
	bin := filepath.Dir(found[len(found)-1])
	who, err := user.Lookup("postgres")
	if err != nil {
		leaveOut(t, "no user postgres", err)
	}
	uid, errUID := strconv.Atoi(who.Uid)
	gid, errGID := strconv.Atoi(who.Gid)
	dir, err := os.MkdirTemp("", "pg") // a socket's path is short, and that of t.TempDir is closed to other users
	if err := errors.Join(errUID, errGID, err, os.Chown(dir, uid, gid)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, name), args...)
		cmd.Dir, cmd.Env = dir, []string{"PATH=" + bin, "LC_ALL=C.UTF-8", "HOME=" + dir}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := command("initdb", "--no-sync", "--auth=trust", "--username="+databaseUser, "-D", data).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	p, err := begin(command("postgres", "-D", data, "-k", dir, "-p", databasePort, "-c", "listen_addresses=", "-c", "fsync=off"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(syscall.SIGINT); err != nil { // does not wait for clients
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	err = p.until(func() error {
		return command("createdb", "-h", dir, "-p", databasePort, "-U", databaseUser, database).Run()
	})
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	return dir
}

// startResults starts the API server of Results with the settings of its own release, but for those that are given, and returns its URL.
func startResults(t *testing.T, binaries string, settings map[string]string, env ...string) string {
	t.Helper()
	const component, module = "../cluster/components/results", "github.com/tektoncd/results"
	if _, err := output(t.Context(), "go", "-C", component, "mod", "download", module); err != nil {
		t.Fatal(err)
	}
	release, err := output(t.Context(), "go", "-C", component, "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(release, "config/base/env/config"))
	if err != nil {
		t.Fatal(err)
	}
	const database = "tekton-results"
	sockets := startPostgres(t, database)
	for attempt := 1; ; attempt++ {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		all := map[string]string{
			"DB_HOST": sockets, "DB_PORT": databasePort, "DB_NAME": database, "DB_USER": databaseUser, "DB_PASSWORD": "none",
			"SERVER_PORT": port, "PROMETHEUS_PORT": "0",
			"TLS_PATH": dir, // where there is no certificate: it serves without TLS then
		}
		maps.Copy(all, settings)
		if err := os.WriteFile(filepath.Join(dir, "config"), []byte(configure(t, string(config), all)), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(binaries, "api"))
		cmd.Dir, cmd.Env = dir, append(env, "PATH="+os.Getenv("PATH"), "HOME="+dir)
		p, err := begin(cmd)
		if err != nil {
			t.Fatal(err)
		}
		url := "http://127.0.0.1:" + port
		err = p.until(func() error { return healthy(t.Context(), url) })
		if err == nil {
			t.Cleanup(func() {
				if err := p.stop(syscall.SIGTERM); err != nil {
					t.Errorf("stop Results: %v", err)
				}
				if t.Failed() {
					t.Logf("Results said:\n%s", p.out.String())
				}
			})
			return url
		}
		// Between our looking for a free port and the server's taking it, someone else may have.
		err = errors.Join(err, p.stop(syscall.SIGTERM))
		if attempt == 5 || t.Context().Err() != nil {
			t.Fatalf("start Results: %v", err)
		}
	}
}

// configure changes settings of a file that has them all.
func configure(t *testing.T, file string, settings map[string]string) string {
	t.Helper()
	lines := strings.Split(file, "\n")
	for name, value := range settings {
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+"=") })
		if i < 0 {
			t.Fatalf("Results has no setting %s", name)
		}
		lines[i] = name + "=" + value
	}
	return strings.Join(lines, "\n")
}

func healthy(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/healthz", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", r.URL, res.Status)
	}
	return nil
}

// freePort returns a port that nobody listens on at the moment. Results takes a number alone, and asks itself there.
func freePort() (string, error) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}
