package sample

import (
	"os"
	"testing"
)

// The tests run in the package's folder.
func TestMain(m *testing.M) {
	if _, err := os.Stat("testdata/here"); err != nil {
		panic(err)
	}
	m.Run()
}

func TestClamp(t *testing.T) {
	for in, want := range map[int]int{-3: 0, 0: 0, 3: 3, 10: 10, 11: 10} {
		if got := Clamp(in); got != want {
			t.Errorf("Clamp(%d) is %d, want %d", in, got, want)
		}
	}
}

func TestSum(t *testing.T) {
	if got := Sum([]int64{3, 0, 4, -1, 5}); got != 12 {
		t.Errorf("got %d", got)
	}
}

func TestFirst(t *testing.T) {
	if got, _ := First([]string{"a", "b"}); got != "a" {
		t.Errorf("got %s", got)
	}
	First(nil)
}

func TestShift(t *testing.T) {
	if a, b := Shift(3, 3); a != 20 || b != 6 {
		t.Errorf("got %d, %d", a, b)
	}
}

func TestCall(t *testing.T) {
	for _, tc := range []struct {
		yes, asked string
		ok         bool
	}{
		{"abd", "abd", true}, {"acd", "abcd", true}, {"a", "abcdd", false}, {"", "aerror", false},
	} {
		asked, times := "", map[string]int{}
		ok := Call(func(s string) bool {
			asked += s
			return len(s) == 1 && len(tc.yes) > 0 && (s[0] == tc.yes[0] || len(tc.yes) > 1 && s[0] == tc.yes[1] ||
				len(tc.yes) > 2 && s[0] == tc.yes[2])
		}, times)
		if ok != tc.ok || asked != tc.asked || times["defer"] != 1 {
			t.Errorf("%+v: %v, asked for %s, %v", tc, ok, asked, times)
		}
	}
}

func TestWait(t *testing.T) {
	if got := Wait(1); got != 5_000_000_001 {
		t.Errorf("got %d", got)
	}
}

func TestNumber(t *testing.T) {
	if Number(3, 2) != 1 || Number(1.5, 1) != 0.5 {
		t.Error("does not subtract")
	}
}

func TestSlow(t *testing.T) { t.Error("is left out") }
