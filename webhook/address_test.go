package main

import (
	"strings"
	"testing"
)

// TestTicketAddress: pods that cannot resolve the ticket service's name connect to this address.
func TestTicketAddress(t *testing.T) {
	for name, tc := range map[string]struct {
		address string
		ok      bool
	}{
		"none":                          {"", true},
		"IPv4 address":                  {"10.96.12.7:443", true},
		"IPv6 address":                  {"[fd00::1]:443", true},
		"name":                          {"tickets.example.com:8443", true},
		"without port":                  {"10.0.0.1", false},
		"without host":                  {":443", false},
		"empty host":                    {"[]:443", false},
		"empty port":                    {"10.0.0.1:", false},
		"port too large":                {"10.0.0.1:65536", false},
		"port by name":                  {"10.0.0.1:https", false},
		"IPv6 address without brackets": {"fd00::1:443", false},
		"IPv6 address with one bracket": {"[fd00::1:443", false},
	} {
		t.Run(name, func(t *testing.T) {
			silence(t)
			o, err := parseFlags([]string{"--shipper-image=i", "--ticket-address=" + tc.address})
			switch {
			case tc.ok && (err != nil || o.config("", []string{"a"}, false).TicketAddress != tc.address):
				t.Errorf("%q, %v", o.ticketAddress, err)
			case !tc.ok && (err == nil || !strings.Contains(err.Error(), "--ticket-address")):
				t.Errorf("error %v, want one with --ticket-address", err)
			}
		})
	}
}
