package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// squeeze leaves others so much of a budget from one time to another.
func (b *budget) squeeze(left int64, from, to time.Duration) {
	var took int64
	_ = time.AfterFunc(from, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		took, b.free = b.free-left, left
	})
	_ = time.AfterFunc(to, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.free += took
	})
}

// held is how much of a budget is held.
func (b *budget) held() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total - b.free
}

// putGrowing stores a log of which a line comes each second, and its seal behind them. The run ends
// then, too.
func (m memory) putGrowing(t *testing.T, n int) {
	t.Helper()
	begin, whole := time.Now(), lines(n)
	for i := range n {
		s, b := segmentOf(t, whole, lineEnd(whole, i), lineEnd(whole, i+1))
		m.put(t, step.SegmentKey(s), begin.Add(time.Duration(i)*time.Second), b)
	}
	end := begin.Add(time.Duration(n) * time.Second)
	m.put(t, step.SealKey(), end, sealOf(whole))
	m.put(t, run.RunKey(), end, record.Run{Name: "run", Completed: end})
}

// followings are the two ways to follow the log of step.
var followings = []struct {
	name   string
	follow func(ctx context.Context, a *Archive, o LogOptions, yield func(Line, error)) Status
}{
	{"a log", func(ctx context.Context, a *Archive, o LogOptions, yield func(Line, error)) Status {
		c, err := a.Container(ctx, step)
		if err != nil {
			yield(Line{}, err)
			return ""
		}
		for l, err := range a.Follow(ctx, &c, o) {
			yield(l, err)
		}
		return c.Status
	}},
	{"a run", func(ctx context.Context, a *Archive, o LogOptions, yield func(Line, error),
	) (last Status) {
		for l, err := range a.FollowRun(ctx, Target{Run: run}, everything, o) {
			if err != nil || l.Line.Stream != "" {
				yield(l.Line, err)
			}
			last = l.Container.Status
		}
		return last
	}},
}

// scarce are how much is left while there is too little.
var scarce = []struct {
	name string
	left int64
}{
	{"nothing is left", 0},
	{"what is left is for a list", readCost - 1},
	{"what is left is for some of a list", segmentCost * 2},
}

// TestFollowGoesOn: who follows when there is too little memory has all lines once when there is
// enough again, those that have come until then at once.
func TestFollowGoesOn(t *testing.T) {
	const (
		n        = 12
		from, to = 3250 * time.Millisecond, 9250 * time.Millisecond // not when they look
	)
	for _, f := range followings {
		for _, c := range scarce {
			t.Run(f.name+", "+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					begin := time.Now()
					m := memory{}
					m.putGrowing(t, n)
					a := New(growing{m})
					a.trees = budgetOf(64 << 20)
					a.trees.squeeze(c.left, from, to)
					ctx, cancel := context.WithCancel(t.Context())
					var got []seen
					status := f.follow(ctx, a, LogOptions{}, func(l Line, err error) {
						if err != nil {
							t.Fatal(err)
						}
						got = append(got, seen{string(l.Text), time.Since(begin)})
					})
					var want []seen
					for i := range n {
						at := time.Duration(i) * time.Second
						if at > from {
							at = max(at, to)
						}
						want = append(want, seen{fmt.Sprintf("line %d", i), at})
					}
					within(t, got, want)
					within(t, []seen{{string(status), time.Since(begin)}},
						[]seen{{string(Verified), n * time.Second}})
					cancel()
					synctest.Wait()
					if held := a.trees.held(); held != 0 || len(a.trees.shares) != 0 {
						t.Errorf("%d bytes are held in the end, by %v", held, a.trees.shares)
					}
				})
			})
		}
	}
}

// TestFollowEndsInScarcity: a log that is sealed while there is too little memory is read to its
// end behind that.
func TestFollowEndsInScarcity(t *testing.T) {
	const n = 5
	for _, f := range followings {
		for _, c := range scarce {
			t.Run(f.name+", "+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					begin := time.Now()
					m := memory{}
					m.putGrowing(t, n)
					a := New(growing{m})
					a.trees = budgetOf(64 << 20)
					a.trees.squeeze(c.left, 1250*time.Millisecond, 20*time.Second)
					var got []string
					status := f.follow(t.Context(), a, LogOptions{}, func(l Line, err error) {
						got = append(got, fmt.Sprint(string(l.Text), err))
					})
					want := []string{"line 0<nil>", "line 1<nil>", "line 2<nil>", "line 3<nil>",
						"line 4<nil>"}
					if took := time.Since(begin); !slices.Equal(got, want) || status != Verified ||
						took > 20*time.Second+2*FollowInterval {
						t.Errorf("%q, %s after %s", got, status, took)
					}
				})
			})
		}
	}
}

// TestFollowNotBegun: who begins to follow when there is too little memory is told so, and who has
// begun before goes on beside them.
func TestFollowNotBegun(t *testing.T) {
	for _, f := range followings {
		for _, c := range scarce {
			t.Run(f.name+", "+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					begin := time.Now()
					m := memory{}
					m.putGrowing(t, 12)
					a := New(growing{m})
					a.trees = budgetOf(64 << 20)
					a.trees.squeeze(c.left, 3250*time.Millisecond, 9250*time.Millisecond)
					var late []error
					lines := 0
					joined := false
					join := func() error {
						if time.Since(begin) < 5*time.Second || joined {
							return nil
						}
						joined = true
						f.follow(t.Context(), a, LogOptions{}, func(_ Line, err error) {
							late = append(late, err)
						})
						return nil
					}
					f.follow(t.Context(), a, LogOptions{Idle: join}, func(_ Line, err error) {
						if lines++; err != nil {
							t.Error(err)
						}
					})
					var busy *BusyError
					if len(late) != 1 || !errors.As(late[0], &busy) {
						t.Errorf("who came late had %v, want a *BusyError alone", late)
					}
					if lines != 12 {
						t.Errorf("who had begun had %d lines", lines)
					}
				})
			})
		}
	}
}

// TestFollowPays: whatever looks were refused, what a follow has is paid for.
func TestFollowPays(t *testing.T) {
	for _, c := range scarce {
		t.Run("a log, "+c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				m := memory{}
				m.putGrowing(t, 12)
				a := New(growing{m})
				a.trees = budgetOf(64 << 20)
				a.trees.squeeze(c.left, 3250*time.Millisecond, 9250*time.Millisecond)
				k, err := a.Container(t.Context(), step)
				if err != nil {
					t.Fatal(err)
				}
				before := a.trees.held()
				idle := func() error {
					now := time.Since(begin)
					squeezed := now > 3250*time.Millisecond && now < 9250*time.Millisecond
					want := before + int64(len(k.Segments)-1)*segmentCost
					if held := a.trees.held(); !squeezed && held != want {
						t.Errorf("after %s, %d bytes are held, want %d", now, held, want)
					}
					return nil
				}
				for _, err := range a.Follow(t.Context(), &k, LogOptions{Idle: idle}) {
					if err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
	t.Run("a run", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := memory{}
			m.putGrowing(t, 12)
			a := New(growing{m})
			a.trees = budgetOf(64 << 20)
			a.trees.squeeze(0, 3250*time.Millisecond, time.Hour)
			looks := 0
			idle := func() error {
				if looks++; looks == 10 { // some of them were refused
					f := a.looks.followed[Target{Run: run}.key()]
					if f.earlier != nil {
						t.Error("it has a tree for which nobody pays")
					}
					return io.EOF
				}
				return nil
			}
			for _, err := range a.FollowRun(t.Context(), Target{Run: run}, everything,
				LogOptions{Idle: idle}) {
				if err != nil && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
			}
		})
	})
}

// cutOff is a store whose lists end with an error from a time on, behind all that there is.
type cutOff struct {
	growing
	from time.Time
}

func (s cutOff) List(ctx context.Context, prefix, delimiter, startAfter string, limit int,
) iter.Seq2[objectstore.Entry, error] {
	return func(yield func(objectstore.Entry, error) bool) {
		for e, err := range s.growing.List(ctx, prefix, delimiter, startAfter, limit) {
			if !yield(e, err) {
				return
			}
		}
		if !time.Now().Before(s.from) {
			yield(objectstore.Entry{}, io.ErrUnexpectedEOF)
		}
	}
}

// TestFollowOfAStoreThatFails: a follow that an error of the store ends, holds nothing behind it.
func TestFollowOfAStoreThatFails(t *testing.T) {
	for _, f := range followings {
		t.Run(f.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := memory{}
				m.putGrowing(t, 12)
				a := New(cutOff{growing{m}, time.Now().Add(5 * time.Second)})
				a.trees = budgetOf(64 << 20)
				ctx, cancel := context.WithCancel(t.Context())
				lines := 0
				var last error
				f.follow(ctx, a, LogOptions{}, func(_ Line, err error) {
					if last = err; err == nil {
						lines++
					}
				})
				if lines != 5 || !errors.Is(last, io.ErrUnexpectedEOF) {
					t.Errorf("%d lines, error %v", lines, last)
				}
				cancel()
				synctest.Wait()
				if held := a.trees.held(); held != 0 {
					t.Errorf("%d bytes are held", held)
				}
			})
		})
	}
}
