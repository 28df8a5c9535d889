//go:build race

package model

// histories is less than without the race detector, with which each takes many times as long.
const histories = 500
