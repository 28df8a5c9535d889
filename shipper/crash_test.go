package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
	"github.com/shiplog-dev/shiplog/internal/spool"
)

// crashEnv makes the test binary a shipper, so that a test can kill it.
const crashEnv = "SHIPPER_CRASH_TEST"

type crashConfig struct {
	Config        contract.Config
	Volume, Token string
}

// runAsShipper is what main does, with other paths.
func runAsShipper() {
	debug.SetGCPercent(50) // as main does
	var c crashConfig
	if err := json.Unmarshal([]byte(os.Getenv(crashEnv)), &c); err != nil {
		os.Exit(3)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	err := protect(func() error {
		s, err := newShipper(c.Config, c.Volume, c.Token, log)
		if err != nil {
			return err
		}
		return s.run(ctx)
	})
	if err != nil {
		log.Error("stopped", "error", err)
		os.Exit(4) // main exits with 0; here the test wants to know
	}
}

// process starts such a shipper.
func (p *pod) process() *exec.Cmd {
	p.t.Helper()
	cmd := p.command()
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	return cmd
}

func (p *pod) command() *exec.Cmd {
	p.t.Helper()
	b, err := json.Marshal(crashConfig{p.config, p.volume, p.token})
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+string(b))
	cmd.Stderr = p.logged
	return cmd
}

// TestCrash kills the shipper again and again while tee's writer appends: before the store has an object, after it has it but before it answers, and at any other moment.
// The archive must be exact in the end.
func TestCrash(t *testing.T) {
	const kills = 30
	f := newFakeServer(t)
	p := newPod(t, f, "step-a", "step-b")
	p.config.SegmentBytes = 20_000
	p.config.FlushInterval, p.config.SlowFlushInterval = 1, 1 // cut whatever is there
	random := rand.New(rand.NewPCG(1, 2))

	var process atomic.Pointer[exec.Cmd]
	var killed atomic.Int64
	kill := func() {
		if cmd := process.Load(); cmd != nil && cmd.Process.Kill() == nil {
			killed.Add(1)
		}
	}
	f.putFault = func(int, string, http.ResponseWriter) (bool, bool) { // called with f's lock
		if killed.Load() >= kills {
			return true, false
		}
		switch random.IntN(8) {
		case 0: // before it is stored
			kill()
			return false, true
		case 1: // after, but the shipper never knows
			kill()
			return true, true
		case 2: // while it works on the answer
			go kill()
		}
		return true, false
	}

	// The writers append as long as the shipper is being killed.
	written := map[string][]byte{}
	writers := map[string]*spool.Writer{}
	for _, name := range p.config.Containers {
		w, err := spool.NewWriter(p.folder(name), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		writers[name] = w
	}
	more := func(n int) {
		for name, w := range writers {
			chunk := make([]byte, 0, n)
			for len(chunk) < n {
				chunk = append(chunk, "0123456789abcdefghijklmnopqrstuvwxyz\n"[random.IntN(36):]...)
			}
			w.Write(criline.Stdout, chunk)
			written[name] = append(written[name], chunk...)
		}
	}
	for killed.Load() < kills {
		cmd := p.process()
		process.Store(cmd)
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		for running := true; running; {
			f.set(func() { more(1 + random.IntN(5000)) }) // random is the server's too
			select {
			case err := <-exited:
				running = false
				if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the shipper ended by itself: %v\n%s", err, p.logged)
				}
			case <-f.put:
			}
		}
	}
	for _, w := range writers {
		if err := w.End(record.Exit{}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := p.process()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil && !signaledEarly(err) {
		t.Fatalf("%v\n%s", err, p.logged)
	}
	p.drained() // SIGTERM may have come before the process could catch it

	for name, want := range written {
		var got []byte
		for text := range bytes.Lines(f.log(name)) {
			line, err := criline.Parse(text[:len(text)-1])
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, line.Text...)
			if line.Full {
				got = append(got, '\n')
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes are archived, %d were printed", name, len(got), len(want))
		}
		if seal := f.seal(name); seal.GapCount != 0 || seal.End != record.EndExited {
			t.Errorf("%s: seal %+v", name, seal)
		}
	}
	t.Logf("%d kills, %d segments", killed.Load(), f.count(".log.zst"))
}

// signaledEarly says that a process was ended by SIGTERM, which it had not begun to catch.
func signaledEarly(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM
}
