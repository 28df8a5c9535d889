//go:build !linux

package main

import (
	"errors"
	"os/exec"
)

// Elsewhere the program builds component binaries, and says why it can do no more.

var errNotLinux = errors.New("the local cluster needs Linux")

func startMachine(node) error  { return errNotLinux }
func prepareMounts(node) error { return errNotLinux }

func endWithCaller(*exec.Cmd) {}
