//go:build !race

package model

// histories is how many a test makes where nobody says otherwise.
const histories = 10_000
