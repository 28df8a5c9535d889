package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// authority signs the certificates of one cluster, which lives as long as its state folder.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	dir  func(elem ...string) string
}

// identity is one certificate. Its organizations are groups to the API server.
type identity struct {
	file, name string
	groups     []string
	ips        []string
	dns        []string
}

// makePKI writes every key and certificate of the cluster and the kubeconfigs made of them.
func makePKI(n node) error {
	if err := os.MkdirAll(n.path("pki"), 0o700); err != nil {
		return fmt.Errorf("make certificates: %w", err)
	}
	ca, err := newAuthority(n, "ca")
	if err != nil {
		return err
	}
	frontProxy, err := newAuthority(n, "front-proxy-ca")
	if err != nil {
		return err
	}
	if err := frontProxy.issue(identity{file: "front-proxy-client", name: "front-proxy-client"}); err != nil {
		return err
	}
	for _, id := range []identity{
		{file: "apiserver", name: "kube-apiserver", ips: []string{n.ip(), n.apiIP(), "127.0.0.1"},
			dns: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"}},
		{file: "apiserver-kubelet-client", name: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		{file: "admin", name: "admin", groups: []string{"system:masters"}},
		{file: "kubelet", name: "system:node:" + nodeName, groups: []string{"system:nodes"}},
		{file: "controller-manager", name: "system:kube-controller-manager"},
		{file: "scheduler", name: "system:kube-scheduler"},
		{file: "kube-proxy", name: "system:kube-proxy"},
	} {
		if err := ca.issue(id); err != nil {
			return err
		}
		if err := writeKubeconfig(n, id.file, n.path("pki", id.file+".kubeconfig")); err != nil {
			return err
		}
	}
	if err := writeKubeconfig(n, "admin", n.kubeconfig()); err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048) // service-account tokens are RS256 in every distribution
	if err != nil {
		return fmt.Errorf("make service-account key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("make service-account key: %w", err)
	}
	if err := writePEM(n.path("pki", "sa.key"), "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)); err != nil {
		return err
	}
	return writePEM(n.path("pki", "sa.pub"), "PUBLIC KEY", public)
}

func newAuthority(n node, name string) (*authority, error) {
	a := &authority{dir: n.path}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	a.key = key
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return a, writePEM(n.path("pki", name+".crt"), "CERTIFICATE", der)
}

func (a *authority) issue(id identity) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make certificate %s: %w", id.file, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return fmt.Errorf("make certificate %s: %w", id.file, err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: id.name, Organization: id.groups}, DNSNames: id.dns,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	for _, ip := range id.ips {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("make certificate %s: %w", id.file, err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("make certificate %s: %w", id.file, err)
	}
	if err := writePEM(a.dir("pki", id.file+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	return writePEM(a.dir("pki", id.file+".key"), "EC PRIVATE KEY", private)
}

func writePEM(name, kind string, der []byte) error {
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	return nil
}

// writeKubeconfig writes a kubeconfig that holds its certificates itself, so that it can be copied.
func writeKubeconfig(n node, id, target string) error {
	data := map[string]string{}
	for key, name := range map[string]string{"ca": "ca.crt", "cert": id + ".crt", "key": id + ".key"} {
		b, err := os.ReadFile(n.path("pki", name))
		if err != nil {
			return fmt.Errorf("write kubeconfig: %w", err)
		}
		data[key] = base64.StdEncoding.EncodeToString(b)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
  - name: shiplog-local
    cluster: {server: "https://%s:6443", certificate-authority-data: %s}
users:
  - name: %s
    user: {client-certificate-data: %s, client-key-data: %s}
contexts:
  - name: shiplog-local
    context: {cluster: shiplog-local, user: %s}
current-context: shiplog-local
`, n.ip(), data["ca"], id, data["cert"], data["key"], id)
	if err := os.WriteFile(target, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}
