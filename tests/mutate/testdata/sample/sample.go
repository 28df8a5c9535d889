// Package sample has something of each kind that can be changed, and of what must be left alone.
package sample

import (
	"errors"
	"fmt"
	"math"
	"time"
)

const (
	limit  = 2 * 5
	second = 1 << iota
)

var table = [...]int{0: 1, second: 4}

type bits uint8

const low bits = 1

// Clamp has comparisons, and bounds that are the same on both sides.
func Clamp(n int) int {
	if n > limit {
		n = limit
	}
	if n < 0 && n > math.MinInt {
		return 0
	}
	return n
}

// Sum has arithmetic, a loop and its branches.
func Sum(all []int64) (sum int64) {
	for i := 0; i < len(all); i++ {
		if all[i] == 0 {
			continue
		}
		if all[i] < 0 {
			break
		}
		sum += all[i]*2 - 1
	}
	return sum
}

// First has an error and no test that sees it.
func First(all []string) (string, error) {
	if len(all) == 0 {
		return "", errors.New("empty")
	}
	return all[0], nil
}

// Shift has shifts of constants.
func Shift(n uint8, b bits) (uint64, bits) {
	n++
	return 1<<n + uint64(table[second]), b&^low | bits(1)<<2
}

// Call has calls, a closure, a switch and a labeled loop.
func Call(do func(string) bool, times map[string]int) (ok bool) {
	defer func() { times["defer"]++ }()
	quick := func() error {
		if !do("a") {
			return fmt.Errorf("no %s", "a")
		}
		return nil
	}
	switch err := quick(); {
	case err != nil:
		do("error")
		return false
	case do("b"), do("c"):
		ok = true
	}
outer:
	for range 2 {
		for {
			if do("d") {
				break outer
			}
			continue outer
		}
	}
	return ok
}

// Wait has a constant of another package's type.
func Wait(n time.Duration) time.Duration { return n + 5*time.Second }

// Never is reached by no test.
func Never(n int) int { return n + 1 }

// Number has type parameters.
func Number[T ~int | ~float64](a, b T) T { return a - b }
