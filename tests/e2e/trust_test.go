//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/ticket"
	"github.com/shiplog-dev/shiplog/tests/loss/sequence"
)

// renewCertificate does what "cmctl renew" does.
func renewCertificate(t *testing.T, name string) {
	t.Helper()
	const renew = `{"status":{"conditions":[{"type":"Issuing","status":"True",
		"reason":"ManuallyTriggered","message":"test","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	kubectl(t, "-n", "shiplog-system", "patch", "certificate", name,
		"--subresource=status", "--type=merge", "-p", renew)
}

// secretField reads one field of a Secret of shiplog's; none is empty.
func secretField(ctx context.Context, name, field string) ([]byte, error) {
	var secret corev1.Secret
	err := env.client.Get(ctx, client.ObjectKey{Namespace: "shiplog-system", Name: name}, &secret)
	return secret.Data[field], client.IgnoreNotFound(err)
}

// replaceCA makes what signs the webhook's certificate another CA, and waits until the webhook
// serves and the API server trusts what follows from it.
func replaceCA(t *testing.T, change func()) {
	t.Helper()
	before, err := secretField(t.Context(), "shiplog-ca", "tls.crt")
	if err != nil || len(before) == 0 {
		t.Fatalf("the CA before: %d bytes, %v", len(before), err)
	}
	addresses := map[string]string{}
	serials := map[string]string{}
	for _, pod := range podsOf(t, "webhook") {
		addresses[pod.Name] = forward(t, pod.Name, "9443")
		serials[pod.Name] = serialOf(t, addresses[pod.Name])
	}
	change()
	var now []byte
	made := func(ctx context.Context) (_ bool, err error) {
		now, err = secretField(ctx, "shiplog-ca", "tls.crt")
		return len(now) > 0 && !bytes.Equal(now, before), err
	}
	if err := poll(t.Context(), "cert-manager to make another CA", made); err != nil {
		t.Fatal(err)
	}
	renewCertificate(t, "shiplog-webhook")
	trusted := func(ctx context.Context) (bool, error) {
		text, err := command(ctx, "", nil, env.kubectl, "get", "mutatingwebhookconfiguration", "shiplog",
			"-o", "jsonpath={.webhooks[0].clientConfig.caBundle}")
		if err != nil {
			return false, err
		}
		b, err := base64.StdEncoding.DecodeString(text)
		return bytes.Contains(b, bytes.TrimSpace(now)), err // cert-manager leaves the one before in
	}
	if err := poll(t.Context(), "the API server to trust the new CA", trusted); err != nil {
		t.Fatal(err)
	}
	for name, address := range addresses {
		serves := func(context.Context) (bool, error) {
			return serialOf(t, address) != serials[name], nil
		}
		if err := poll(t.Context(), "the new certificate to be served by "+name, serves); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNewCA has cert-manager renew the CA, and then make one with another key, as where shiplog is
// installed anew. Pods that run since before get their next ticket all the same.
func TestNewCA(t *testing.T) {
	printers := startPrinters(t, "new-ca", printerOptions{rates: []sequence.Rate{{Lines: 10}}})
	printsFor(t, printers, 3*time.Second)
	for _, step := range []struct {
		name   string
		change func()
	}{
		{"renewed", func() { renewCertificate(t, "shiplog-ca") }},
		{"with another key", func() {
			kubectl(t, "-n", "shiplog-system", "delete", "secret", "shiplog-ca")
		}},
	} {
		replaceCA(t, step.change)
		for _, p := range printers {
			renewTicket(t, p)
		}
		t.Logf("the CA is %s, and tickets are renewed", step.name)
	}
	finishAll(t, printers)
	for _, p := range printers {
		a := archive(t)
		p.settled(t, a)
		if report, c := p.read(t, a, -1); !report.Right() || report.Bytes < p.printed() {
			t.Errorf("%s: %d of %d bytes are in the archive, %s: %s",
				p.tr.Name, report.Bytes, p.printed(), c.Status, report)
		}
	}
}

// renewTicket makes a shipper's ticket look old, starts the shipper again, and waits until it has
// got itself another one.
func renewTicket(t *testing.T, p *printer) {
	t.Helper()
	file := func() string {
		shipper := findProcess(t, p.pod, contract.ShipperBinary, "")
		volume := filepath.Join("/proc", fmt.Sprint(shipper.pid), "root", contract.VolumeMount)
		return filepath.Join(volume, contract.StateSubPath, "ticket")
	}
	at := file()
	b, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	old, err := ticket.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	life := old.Expires.Sub(old.Issued)
	old.Issued = time.Now().Add(-life + time.Minute)
	old.Expires = old.Issued.Add(life)
	if b, err = json.Marshal(old); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, b, 0o600); err != nil { // in place: its owner stays
		t.Fatal(err)
	}
	killShippers(t, []*printer{p})
	err = poll(t.Context(), "another ticket of "+p.pod.Name, func(context.Context) (bool, error) {
		b, err := os.ReadFile(file())
		if err != nil {
			return false, nil // while it is replaced
		}
		now, err := ticket.Decode(b)
		return err == nil && now.Issued.After(old.Issued.Add(time.Minute)), nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPodWithoutNames runs a TaskRun whose name server never answers. The ticket service is reached
// without it, and the pod is not held.
func TestPodWithoutNames(t *testing.T) {
	t.Parallel()
	done := finish(t, newTaskRun(t, nsOn, "no-names", taskSpec(t, `
taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}
podTemplate: {dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.1]}}`), nil))
	if c := done.Status.GetCondition("Succeeded"); !c.IsTrue() {
		t.Fatalf("%s: %s", c.Reason, c.Message)
	}
	ended := time.Now()
	err := poll(t.Context(), "the pod to end", func(ctx context.Context) (bool, error) {
		var pod corev1.Pod
		err := env.client.Get(ctx, client.ObjectKey{Namespace: nsOn, Name: done.Status.PodName}, &pod)
		return pod.Status.Phase == corev1.PodSucceeded, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if held := time.Since(ended); held > 30*time.Second {
		t.Errorf("the pod was held for %s", held.Round(time.Second))
	}
	sealed(t, nsOn, done.Name)
}
