//go:build tools

// Package versitygw pins a component of the local test cluster: go.mod names the version, this file the commands that are built.
package versitygw

import (
	_ "github.com/versity/versitygw/cmd/versitygw"
)
