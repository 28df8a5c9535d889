//go:build linux

// Package local holds the rows of the loss budget that need no cluster.
package local

import (
	"flag"
	"os"
	"testing"

	"github.com/shiplog-dev/shiplog/tests/loss/rig"
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(rig.Main(m))
}
