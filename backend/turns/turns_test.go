package turns

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type named string

func (n named) Client() string { return string(n) }

func of(t *testing.T, client string) context.Context {
	return With(t.Context(), named(client))
}

// takeFor waits for a turn.
func takeFor(ctx context.Context, p *Pool) (*turn, error) {
	t := p.turn(ctx)
	return t, t.resume(ctx)
}

func take(t *testing.T, p *Pool, client string) *turn {
	t.Helper()
	turn, err := takeFor(of(t, client), p)
	if err != nil {
		t.Fatal(err)
	}
	return turn
}

// TestFair: of those who wait, the one goes next whose client holds the fewest turns, whoever came
// first.
func TestFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(3)
		greedy := []*turn{take(t, p, "a"), take(t, p, "a"), take(t, p, "a")}
		order, leave := make(chan string), make(chan struct{})
		var group sync.WaitGroup
		for _, client := range []string{"a", "a", "b", "c", "b"} {
			group.Go(func() {
				turn, err := takeFor(of(t, client), p)
				if err != nil {
					t.Error(err)
				}
				order <- client
				<-leave
				turn.pause()
			})
			synctest.Wait() // they come one after the other
		}
		got := ""
		for _, g := range greedy {
			g.pause()
			g.pause() // twice is once
			got += <-order
		}
		if want := "bca"; got != want {
			t.Errorf("they had their turns in the order %s, want %s", got, want)
		}
		close(leave)
		for range 2 {
			<-order
		}
		group.Wait()
		allFree(t, p, 3)
	})
}

// TestPass: who works for long lets others go first who hold fewer turns, and goes on behind them.
// Where nobody waits, or nobody with fewer, it goes on at once.
func TestPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		long := take(t, p, "a")
		if err := long.pass(t.Context()); err != nil || !long.held {
			t.Errorf("where nobody waits: %v", err)
		}
		short := make(chan *turn)
		go func() { turn, _ := takeFor(of(t, "b"), p); short <- turn }()
		synctest.Wait()
		passed := make(chan error, 1)
		go func() { passed <- long.pass(t.Context()) }()
		other := <-short
		synctest.Wait()
		select {
		case <-passed:
			t.Error("two have the one turn")
		default:
		}
		other.pause()
		if err := <-passed; err != nil || !long.held || p.free != 0 {
			t.Errorf("behind the other: %v, %d turns are free", err, p.free)
		}
		long.pause()
		allFree(t, p, 1)
	})
}

// TestLeave: who does not wait any more takes no turn.
func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		held := take(t, p, "a")
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(of(t, "b"))
		left := make(chan error)
		go func() { _, err := takeFor(ctx, p); left <- err }()
		synctest.Wait()
		cancel(why)
		if err := <-left; !errors.Is(err, why) {
			t.Errorf("it left with %v", err)
		}
		held.pause()
		allFree(t, p, 1)
	})
}

// stuck is a client who does not read.
type stuck struct {
	http.ResponseWriter
	read chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) { <-s.read; return len(b), nil }
func (s *stuck) FlushError() error           { <-s.read; return nil }

// TestAnswer: no turn is held while a client does not read.
func TestAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		client := &stuck{httptest.NewRecorder(), make(chan struct{})}
		a, err := p.Answer(of(t, "a"), client, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for name, write := range map[string]func() error{
			"write": func() error { _, err := a.Write([]byte("x\n")); return err },
			"flush": http.NewResponseController(a).Flush,
			"keep alive": func() error {
				time.Sleep(2 * time.Minute)
				go func() { client.read <- struct{}{} }() // the break; the flush waits as all do
				return a.Pass(t.Context())
			},
		} {
			done := make(chan error)
			go func() { done <- write() }()
			time.Sleep(time.Hour)
			other := take(t, p, "b") // at once, or the test hangs
			client.read <- struct{}{}
			synctest.Wait()
			select {
			case <-done:
				t.Errorf("%s: two have the one turn", name)
			default:
			}
			other.pause()
			if err := <-done; err != nil || !a.turn.held {
				t.Errorf("%s: %v", name, err)
			}
		}
		a.Done()
		allFree(t, p, 1)
	})
}

// TestAnswerIsAlive: an answer that waits for its turn, first or in between, sends line breaks, but
// none within a line, and does not lose its place.
func TestAnswerIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		held := take(t, p, "a")
		client := httptest.NewRecorder()
		var a *Answer
		waits := func(what string, f func() error) {
			t.Helper()
			done := make(chan error)
			go func() { done <- f() }()
			time.Sleep(150 * time.Second)
			late := make(chan *turn)
			go func() { turn, _ := takeFor(of(t, "c"), p); late <- turn }()
			time.Sleep(40 * time.Second)
			held.pause()
			if err := <-done; err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			a.turn.pause()
			held = <-late
		}
		waits("at first", func() (err error) {
			a, err = p.Answer(of(t, "b"), client, time.Minute)
			return err
		})
		waits("behind a line", func() error { _, err := a.Write([]byte("line\n")); return err })
		waits("within a line", func() error { _, err := a.Write([]byte("half")); return err })
		waits("behind the line", func() error { _, err := a.Write([]byte(" a line\n")); return err })
		want := "\n\n\nline\n\n\n\nhalf a line\n\n\n\n"
		if got := client.Body.String(); got != want {
			t.Errorf("it sent %q, want %q", got, want)
		}
		held.pause()
		allFree(t, p, 1)
	})
}

// TestAnswerIsGone: a client who is gone when it is told that its answer waits takes no turn.
func TestAnswerIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(1)
		held := take(t, p, "a")
		_, err := p.Answer(of(t, "b"), gone{httptest.NewRecorder()}, time.Minute)
		if !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("it left with %v", err)
		}
		held.pause()
		allFree(t, p, 1)
	})
}

type gone struct{ http.ResponseWriter }

func (gone) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// allFree checks that nobody holds or waits for any of a pool's turns.
func allFree(t *testing.T, p *Pool, turns int) {
	t.Helper()
	if p.free != turns || len(p.held) != 0 || len(p.waiting) != 0 {
		t.Errorf("left: %+v", p)
	}
}
