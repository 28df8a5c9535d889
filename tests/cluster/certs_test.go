package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"strings"
	"testing"
)

func TestPKI(t *testing.T) {
	n := node{State: t.TempDir(), Net: defaultNet}
	if err := makePKI(n); err != nil {
		t.Fatal(err)
	}
	load := func(name string) *x509.Certificate {
		t.Helper()
		b, err := os.ReadFile(n.path("pki", name+".crt"))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(b)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	pool := func(name string) *x509.CertPool {
		p := x509.NewCertPool()
		p.AddCert(load(name))
		return p
	}
	ca, frontProxy := pool("ca"), pool("front-proxy-ca")
	server := load("apiserver")
	for _, name := range []string{n.ip(), n.apiIP(), "127.0.0.1", "kubernetes.default.svc", "localhost"} {
		if _, err := server.Verify(x509.VerifyOptions{Roots: ca, DNSName: name}); err != nil {
			t.Errorf("apiserver as %s: %v", name, err)
		}
	}
	for file, want := range map[string]string{
		"admin":                    "admin/system:masters",
		"apiserver-kubelet-client": "kube-apiserver-kubelet-client/system:masters",
		"kubelet":                  "system:node:" + nodeName + "/system:nodes",
		"controller-manager":       "system:kube-controller-manager/",
		"scheduler":                "system:kube-scheduler/",
		"kube-proxy":               "system:kube-proxy/",
	} {
		cert := load(file)
		if got := cert.Subject.CommonName + "/" + strings.Join(cert.Subject.Organization, ","); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: ca, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if _, err := tls.LoadX509KeyPair(n.path("pki", file+".crt"), n.path("pki", file+".key")); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	// Whoever holds a certificate of the cluster's authority must not pass as the front proxy, which may name any user.
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := load("front-proxy-client").Verify(x509.VerifyOptions{Roots: frontProxy, KeyUsages: usage}); err != nil {
		t.Errorf("front-proxy-client: %v", err)
	}
	if _, err := load("admin").Verify(x509.VerifyOptions{Roots: frontProxy, KeyUsages: usage}); err == nil {
		t.Error("admin's certificate is accepted as the front proxy's")
	}
	for _, name := range []string{n.kubeconfig(), n.path("pki", "admin.key"), n.path("pki", "sa.key")} {
		info, err := os.Stat(name)
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o, want 600", info.Name(), info.Mode().Perm())
		}
	}
}
