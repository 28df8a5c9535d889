//go:build tools

// Package results pins a component of the tests: go.mod names the version, this file the commands that are built.
package results

import (
	_ "github.com/tektoncd/results/cmd/api"
	_ "github.com/tektoncd/results/cmd/tkn-results"
)
