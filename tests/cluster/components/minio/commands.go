//go:build tools

// Package minio pins a component of the local test cluster: go.mod names the version, this file the commands that are built.
package minio

import (
	_ "github.com/minio/minio"
)
