//go:build tools

// Package runc pins a component of the local test cluster: go.mod names the version, this file the commands that are built.
package runc

import (
	_ "github.com/opencontainers/runc"
)
