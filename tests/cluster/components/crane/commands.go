//go:build tools

// Package crane pins a component of the local test cluster: go.mod names the version, this file the commands that are built.
package crane

import (
	_ "github.com/google/go-containerregistry/cmd/crane"
)
