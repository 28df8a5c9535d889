//go:build linux

// Package hostile holds what a hostile step can do to shiplog without a cluster: in its own folder of the spool, before the real shipper, a real S3 server and another container that logs honestly.
package hostile

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
	"github.com/shiplog-dev/shiplog/internal/spool"
	"github.com/shiplog-dev/shiplog/internal/ticket"
	"github.com/shiplog-dev/shiplog/tests/loss/rig"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(attackEnv); name != "" {
		if err := beStep(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := flag.Set("test.parallel", "4"); err != nil { // the command line can say otherwise
		panic(err)
	}
	flag.Parse()
	os.Exit(rig.Main(m))
}

const (
	evil, good = "step-evil", "step-good"
	// stepUser is who the hostile step runs as: neither root nor the shipper's user.
	stepUser = 1000
	// drainLimit bounds the shipper's end after SIGTERM, and waitLimit everything else that is waited for. Both are far above what it takes, since the machine may be busy.
	drainLimit = 3 * time.Minute
	waitLimit  = 5 * time.Minute
	// memoryLimit is the memory limit that the webhook gives the shipper.
	memoryLimit = 64 << 20
)

// TestHostileStep lets a step do what it can in its own folder. Nothing but its own log may change, whatever it does; the shipper neither ends before it is told to, nor blocks, nor reads outside of
// the spool, nor grows; and the other container's log is whole. The shipper is killed once in the middle of each, so that it also begins anew before what it finds then.
func TestHostileStep(t *testing.T) {
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			options := rig.Options{Containers: []string{evil, good}}
			if a.mass {
				options.Mount = mountMemory
			}
			p := rig.New(t, options)
			deaths := 0
			p.OnDeath = func() { deaths++ }
			foreign := plantObjects(t, p)
			read := watchSecrets(t, p)

			step := startHostile(t, p, a)
			step.expect("logged")
			p.StartShipper()
			rig.Until(t, "the first segment of the hostile step", waitLimit, func() bool { return len(p.Objects(evil)) > 0 })
			rig.Until(t, "all that it logged before the attack", waitLimit, func() bool { return archived(t, p, evil) >= next || a.early })
			shipped := objects(t, p)

			step.order()
			step.expect("planted")
			honest := p.Start(good, rig.StepOptions{Options: sequence.Options{Rate: sequence.Rate{Bytes: 1e6}, Bytes: 3e6}})
			rig.Until(t, "lines of the honest container", waitLimit, func() bool { return archived(t, p, good) > 0 })
			p.KillShipper()
			<-p.ShipperStarts()
			if err := p.Install(); err != nil { // the kubelet runs the hook again
				t.Error(err)
			}
			honest.Unharmed(0)
			rig.Until(t, "all of the honest container's log, while the pod runs", waitLimit, func() bool { return slices.Contains(p.Objects(good), layout.SealFile) })
			rounds := step.stop()
			if a.loop != nil && rounds < 10 {
				t.Errorf("the step did it %d times only", rounds)
			}

			drained, took := p.Stop(drainLimit)
			if !drained {
				t.Fatalf("the shipper did not end within %v of SIGTERM", drainLimit)
			}
			if code := p.ShipperExit(); code != 0 {
				t.Errorf("the shipper's exit code is %d", code)
			}
			if deaths != 2 {
				t.Errorf("the shipper ended %d times; it was killed once and told to end once", deaths)
			}
			if peak := p.ShipperPeak(); peak > memoryLimit || peak == 0 {
				t.Errorf("the shipper had %d bytes resident, of %d", peak, int64(memoryLimit))
			}
			t.Logf("%d rounds, drained in %v, at most %.1f MiB resident", rounds, took.Round(time.Millisecond), float64(p.ShipperPeak())/(1<<20))

			if r := p.Read(good, honest.Seed, honest.Printed(), 0); !r.Report.Whole() || r.Status != backend.Verified || r.Exit != 0 {
				t.Errorf("the honest container's log: %v; the reader says: %s %s", r.Report, r.Told(), r.Said)
			}
			left := objects(t, p)
			onlyItsOwnLog(t, p, foreign, left)
			staysAsItWas(t, shipped, left)
			noSecret(t, p, left)
			if touched := read(); len(touched) > 0 {
				t.Errorf("the shipper read %v", touched)
			}
			canBeRead(t, p)
		})
	}
}

// mountMemory mounts a file system that needs no disk.
func mountMemory(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// plantObjects puts what is not the pod's into the store, and returns it together with the pod's own records.
func plantObjects(t *testing.T, p *rig.Pod) map[string][]byte {
	t.Helper()
	other, neighbour := p.Key(), p.Key()
	other.Namespace, neighbour.TaskRun = "other", p.Key().TaskRun+"2"
	for _, key := range []string{
		layout.Container{Pod: other, Container: evil}.SealKey(), layout.Container{Pod: neighbour, Container: evil}.SealKey(),
		layout.UIDIndexKey(other.Namespace, other.UID), other.RunKey(),
	} {
		if err := p.Store().Put(t.Context(), key, []byte("of "+key)); err != nil {
			t.Fatal(err)
		}
	}
	return objects(t, p)
}

// objects is everything in the bucket.
func objects(t *testing.T, p *rig.Pod) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for e, err := range p.Store().List(t.Context(), "", "", "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Store().Get(t.Context(), e.Key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		out[e.Key] = b
	}
	return out
}

// archived is the end of what is in the store of a container's log.
func archived(t *testing.T, p *rig.Pod, container string) (end int64) {
	t.Helper()
	for _, name := range p.Objects(container) {
		if s, err := layout.ParseSegmentName(name); err == nil {
			end = max(end, s.End())
		}
	}
	return end
}

// onlyItsOwnLog fails the test if something has changed in the store that is neither the hostile step's log nor the honest one's.
func onlyItsOwnLog(t *testing.T, p *rig.Pod, before, after map[string][]byte) {
	t.Helper()
	for key, b := range before {
		if !bytes.Equal(after[key], b) {
			t.Errorf("%s is changed", key)
		}
	}
	for key := range after {
		_, foreign := before[key]
		own := false
		for _, container := range []string{evil, good} {
			own = own || strings.HasPrefix(key, layout.Container{Pod: p.Key(), Container: container}.Prefix())
		}
		if !foreign && !own && key != p.Key().AliveKey() {
			t.Errorf("%s is new", key)
		}
		if _, err := layout.ParseKey(key); err != nil && !foreign {
			t.Errorf("an object with an impossible name: %v", err)
		}
	}
}

// staysAsItWas fails the test if a segment that was shipped before the attack is not there any more, or another.
func staysAsItWas(t *testing.T, before, after map[string][]byte) {
	t.Helper()
	segments := 0
	for key, b := range before {
		if !strings.HasSuffix(key, ".log.zst") {
			continue
		}
		segments++
		if !bytes.Equal(after[key], b) {
			t.Errorf("%s, which was shipped before, is changed", key)
		}
	}
	if segments == 0 {
		t.Error("nothing was shipped before the attack")
	}
}

// noSecret fails the test if a byte of what the step may not see is in an object.
func noSecret(t *testing.T, p *rig.Pod, all map[string][]byte) {
	t.Helper()
	hidden := slices.Collect(maps.Values(secrets))
	hidden = append(hidden, rig.Token)
	b, err := os.ReadFile(filepath.Join(p.StateFolder(), "ticket"))
	if err != nil {
		t.Fatal(err)
	}
	var kept ticket.Ticket
	if err := json.Unmarshal(b, &kept); err != nil {
		t.Fatal(err)
	}
	for _, value := range kept.Fields {
		if len(value) > 30 { // the policy, the credential and the signature
			hidden = append(hidden, value)
		}
	}
	for key, b := range all {
		if name := key[strings.LastIndexByte(key, '/')+1:]; strings.HasSuffix(name, ".log.zst") {
			s, err := layout.ParseSegmentName(name)
			if err != nil {
				t.Errorf("%s: %v", key, err)
				continue
			}
			r, err := segment.NewReader(bytes.NewReader(b), s)
			if err != nil {
				t.Errorf("%s: %v", key, err)
				continue
			}
			b, err = io.ReadAll(r)
			if err != nil {
				t.Errorf("%s: %v", key, err)
			}
			for text := range bytes.Lines(b) {
				if _, err := criline.Parse(bytes.TrimSuffix(text, []byte{'\n'})); err != nil {
					t.Errorf("%s: %v", key, err)
				}
			}
		}
		for _, secret := range hidden {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s holds %.40q", key, secret)
			}
		}
	}
}

// watchSecrets plants the secrets in the shipper's root folder, and returns a function that says which of them were read since, and fails the test if they were changed.
func watchSecrets(t *testing.T, p *rig.Pod) func() []string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	watches := map[int32]string{}
	for _, path := range slices.Sorted(maps.Keys(secrets)) {
		file := filepath.Join(p.Root(), path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, lines(3, secrets[path]), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(file, rig.ShipperUser, rig.ShipperUser); err != nil { // it could, if it were made to
			t.Fatal(err)
		}
		watch, err := unix.InotifyAddWatch(fd, file, unix.IN_ACCESS|unix.IN_MODIFY|unix.IN_DELETE_SELF)
		if err != nil {
			t.Fatal(err)
		}
		watches[int32(watch)] = path
	}
	events := func() (paths []string) {
		t.Helper()
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EAGAIN) {
				return paths
			}
			if err != nil {
				t.Fatal(err)
			}
			for at := 0; at < n; {
				event := (*unix.InotifyEvent)(unsafe.Pointer(&buf[at]))
				paths = append(paths, watches[event.Wd])
				at += unix.SizeofInotifyEvent + int(event.Len)
			}
		}
	}
	return func() []string {
		t.Helper()
		touched := events()
		for path, secret := range secrets {
			if b, err := os.ReadFile(filepath.Join(p.Root(), path)); err != nil || !bytes.Equal(b, lines(3, secret)) {
				t.Errorf("%s is not what it was: %v", path, err)
			}
		}
		// These reads are seen, so the others would have been.
		if seen := slices.Compact(slices.Sorted(slices.Values(events()))); len(seen) != len(secrets) {
			t.Errorf("of the test's own reads only those of %v were seen", seen)
		}
		return touched
	}
}

// canBeRead fails the test if the reader cannot read the hostile step's log to its end.
func canBeRead(t *testing.T, p *rig.Pod) {
	t.Helper()
	archive := backend.New(p.Store())
	tree, err := archive.Tree(t.Context(), backend.Target{Run: p.Key().Run, PodUID: p.Key().PodUID})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range tree.TaskRuns[0].Pods[0].Containers {
		if c.Name != evil {
			continue
		}
		n := 0
		for _, err := range archive.Lines(t.Context(), c, backend.LogOptions{}) {
			if err != nil {
				t.Errorf("after %d lines: %v", n, err)
			}
			n++
		}
		t.Logf("its own log is %s, with %d lines %s", c.Status, n, c.Why)
		return
	}
	t.Errorf("the reader knows no %s", evil)
}

// hostileStep is the process of a hostile step.
type hostileStep struct {
	t      *testing.T
	cmd    *exec.Cmd
	orders io.WriteCloser
	said   chan string
	done   chan struct{} // closed when it has ended
}

func startHostile(t *testing.T, p *rig.Pod, a attack) *hostileStep {
	t.Helper()
	folder, err := os.Open(p.Folder(evil))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	s := &hostileStep{t: t, cmd: exec.Command("/proc/self/exe"), said: make(chan string, 10), done: make(chan struct{})}
	s.cmd.Env = []string{attackEnv + "=" + a.name}
	s.cmd.ExtraFiles = []*os.File{folder}
	s.cmd.Stderr = &bytes.Buffer{}
	if !a.root {
		s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stepUser, Gid: stepUser}}
	}
	if s.orders, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process; the cleanup waits for it
		defer close(s.done)
		var b bytes.Buffer
		_, _ = io.Copy(lineWriter{&b, s.said}, out)
		close(s.said)
		_ = s.cmd.Wait() // it says what went wrong on stderr
	}()
	t.Cleanup(s.kill)
	return s
}

// kill ends the process, if it has not ended, and waits for its end.
func (s *hostileStep) kill() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// lineWriter sends each whole line.
type lineWriter struct {
	part  *bytes.Buffer
	lines chan<- string
}

func (w lineWriter) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\n' {
			w.part.WriteByte(c)
			continue
		}
		w.lines <- w.part.String()
		w.part.Reset()
	}
	return len(b), nil
}

// expect waits until the step says something.
func (s *hostileStep) expect(what string) (said string) {
	s.t.Helper()
	select {
	case said = <-s.said:
	case <-time.After(waitLimit):
	}
	if !strings.HasPrefix(said, what) {
		s.kill()
		s.t.Fatalf("the hostile step said %q, not %q: %s", said, what, s.cmd.Stderr)
	}
	return said
}

func (s *hostileStep) order() {
	s.t.Helper()
	if _, err := s.orders.Write([]byte("!")); err != nil {
		s.kill()
		s.t.Fatalf("the hostile step takes no order: %v: %s", err, s.cmd.Stderr)
	}
}

// stop ends the step, and returns how often it did what it does.
func (s *hostileStep) stop() (rounds int) {
	s.t.Helper()
	if err := s.orders.Close(); err != nil {
		s.t.Error(err)
	}
	if _, err := fmt.Sscanf(s.expect("rounds"), "rounds %d", &rounds); err != nil {
		s.t.Error(err)
	}
	return rounds
}

// TestStepCannotLinkOutOfItsFolder: a container sees its own folder of the spool as a mount of its own. The kernel makes no hard link from one mount to another, though both are of one file system:
// not for root, and whatever fs.protected_hardlinks says.
func TestStepCannotLinkOutOfItsFolder(t *testing.T) {
	p := rig.New(t, rig.Options{Containers: []string{evil, good}})
	if err := os.WriteFile(filepath.Join(p.Folder(good), spool.LogName(0)), honestLines, 0o644); err != nil {
		t.Fatal(err)
	}
	// As the kubelet mounts a subPath.
	mounted := t.TempDir()
	if err := unix.Mount(p.Folder(evil), mounted, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mounted, 0); err != nil {
			t.Error(err)
		}
	})
	for name, target := range map[string]string{
		"another container's log": filepath.Join(p.Folder(good), spool.LogName(0)),
		"the volume's own path":   filepath.Join(p.Folder(evil), "own"),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(p.Folder(evil), "own"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(target, filepath.Join(mounted, spool.LogName(5))); !errors.Is(err, unix.EXDEV) {
				t.Errorf("link: %v, want %v", err, unix.EXDEV)
			}
			if err := os.Rename(target, filepath.Join(mounted, spool.LogName(6))); !errors.Is(err, unix.EXDEV) {
				t.Errorf("rename: %v, want %v", err, unix.EXDEV)
			}
		})
	}
	// Within the mount it can.
	if err := os.WriteFile(filepath.Join(mounted, "a"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(mounted, "a"), filepath.Join(mounted, "b")); err != nil {
		t.Error(err)
	}
	// The folder is a mount: it cannot be replaced.
	if err := os.Rename(mounted, mounted+"2"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the folder itself: %v, want %v", err, unix.EBUSY)
	}
}

// TestStepCannotSeeTheState: another user reads neither the shipper's state nor its ticket, even where it could reach them.
func TestStepCannotSeeTheState(t *testing.T) {
	p := rig.New(t, rig.Options{Containers: []string{evil}})
	p.StartShipper()
	rig.Until(t, "a ticket", waitLimit, func() bool { _, err := os.Stat(filepath.Join(p.StateFolder(), "ticket")); return err == nil })
	info, err := os.Stat(p.StateFolder())
	if err != nil || info.Mode().Perm() != 0o700 || info.Sys().(*syscall.Stat_t).Uid != rig.ShipperUser {
		t.Errorf("the state folder: %v, %v", info.Mode(), err)
	}
	err = filepath.WalkDir(p.StateFolder(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// What another container mounts of the volume is below these two alone.
	for _, sub := range []string{contract.LogsSubPath, contract.BinSubPath} {
		if rel, err := filepath.Rel(filepath.Join(p.Volume(), sub), p.StateFolder()); err != nil || !strings.HasPrefix(rel, "../") {
			t.Errorf("the state folder is within %s: %s", sub, rel)
		}
	}
}
