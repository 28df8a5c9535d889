//go:build tools

// Package coredns pins a component of the local test cluster: go.mod names the version, this file the commands that are built.
package coredns

import (
	_ "github.com/coredns/coredns"
)
