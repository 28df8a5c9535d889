//go:build linux

package rig

import (
	"errors"
	"fmt"

	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// ShipperUser is the user that the shipper runs as.
const ShipperUser = shipperUser

// Token is what the shipper shows to the ticket service.
const Token = token

// Root is the shipper's root folder.
func (p *Pod) Root() string { return p.root }

// Key is where the pod's logs are in the store.
func (p *Pod) Key() layout.Pod { return p.key }

// Store is the archive, past the proxy.
func (p *Pod) Store() *objectstore.Store { return p.direct }

// Install runs the postStart hook again, as the kubelet does when the shipper has been restarted.
func (p *Pod) Install() error {
	out, err := p.shipperCommand("install").CombinedOutput()
	if err != nil {
		return errors.Join(fmt.Errorf("shipper install: %w", err), errors.New(string(out)))
	}
	return nil
}

// ShipperExit is the exit code of the shipper's last process, which has ended: -1 if a signal ended it.
func (p *Pod) ShipperExit() int {
	p.t.Helper()
	<-p.shipper.done
	return p.shipper.cmd.ProcessState.ExitCode()
}
