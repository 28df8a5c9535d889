//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/backend"
	backendclient "github.com/shiplog-dev/shiplog/backend/client"
)

// bearer adds a token.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// readerToken makes a service account in nsOn, which may read its logs or not, and a token of it.
func readerToken(t *testing.T, name string, may bool) string {
	t.Helper()
	ctx := t.Context()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: name}}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: name}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods/log"}, Verbs: []string{"get"}}}}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: nsOn, Name: name}},
	}
	objects := []client.Object{account}
	if may {
		objects = append(objects, role, binding)
	}
	for _, o := range objects {
		if err := env.client.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	request := &authenticationv1.TokenRequest{}
	if err := env.client.SubResource("token").Create(ctx, account, request); err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// reader makes a service account as readerToken does, and a client of the backend that is this account.
func reader(t *testing.T, name string, may bool) *backendclient.Client {
	t.Helper()
	ctx, token := t.Context(), readerToken(t, name, may)
	var certificate corev1.Secret
	if err := env.client.Get(ctx, client.ObjectKey{Namespace: "shiplog-system", Name: "shiplog-backend-tls"}, &certificate); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(certificate.Data["ca.crt"]) {
		t.Fatal("no CA in shiplog-backend-tls")
	}
	// Its name and address are known in the cluster alone.
	address := forward(t, podsOf(t, "backend")[0].Name, "8443")
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := backendclient.New("https://shiplog-backend.shiplog-system.svc", &http.Client{Transport: bearer{token, transport}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestBackend reads a run through the HTTP API while it runs, and when its pod is gone.
func TestBackend(t *testing.T) {
	t.Parallel()
	c, stranger := reader(t, "reader", true), reader(t, "stranger", false)
	const lines = 15
	script := fmt.Sprintf(`for i in $(seq %d); do echo "line $i at $(date +%%s.%%N)"; sleep 1; done; printf 'no newline'`, lines)
	tr := newTaskRun(t, nsOn, "backend", taskSpec(t, fmt.Sprintf("taskSpec: {steps: [{name: s, image: busybox, script: %q}]}", script)), nil)
	waitForStep(t, tr)

	var container backend.Container
	err := poll(t.Context(), "the run to be in the archive", func(ctx context.Context) (bool, error) {
		tree, _, err := c.Tree(ctx, nsOn, "", tr.Name)
		var notFound *backend.NotFoundError
		if errors.As(err, &notFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		for place := range tree.Containers() {
			if place.Container.Name == "step-s" && place.Container.Bytes > 0 {
				container = place.Container
			}
		}
		return container.Name != "", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if container.Status != backend.Running {
		t.Errorf("while it runs it is %s", container.Status)
	}
	var followed strings.Builder
	var behind []time.Duration
	for l, err := range c.Lines(t.Context(), &container, backend.LogOptions{}, true) {
		if err != nil {
			t.Fatal(err)
		}
		followed.Write(l.Text)
		if l.Full {
			followed.WriteByte('\n')
		}
		behind = append(behind, time.Since(l.Time))
	}
	if container.Status != backend.Verified {
		t.Errorf("at its end it is %s (%s)", container.Status, container.Why)
	}
	last := behind[len(behind)/2:] // those that were printed while it was followed
	t.Logf("%d lines; the later ones were seen up to %s after they were printed", len(behind), max(last[0], last[len(last)-1]).Round(10*time.Millisecond))

	finish(t, tr)
	if err := env.client.Delete(t.Context(), tr); err != nil {
		t.Fatal(err)
	}
	content, size, err := c.Content(t.Context(), container.Key)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	whole, err := io.ReadAll(content)
	if err != nil || int64(len(whole)) != size {
		t.Errorf("read %d bytes of %d: %v", len(whole), size, err)
	}
	if string(whole) != followed.String() {
		t.Errorf("what was followed differs from what is archived:\n%q\n%q", followed.String(), whole)
	}
	scanner := bufio.NewScanner(strings.NewReader(string(whole)))
	for i := 1; i <= lines; i++ {
		if !scanner.Scan() || !strings.HasPrefix(scanner.Text(), fmt.Sprintf("line %d at ", i)) {
			t.Fatalf("line %d is %q", i, scanner.Text())
		}
	}
	if !scanner.Scan() || scanner.Text() != "no newline" {
		t.Errorf("the end is %q", scanner.Text())
	}

	var refused *backendclient.Error
	if _, _, err := stranger.Tree(t.Context(), nsOn, "", tr.Name); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		t.Errorf("who may not read is told %v", err)
	}
	if _, _, err := stranger.Tree(t.Context(), nsOn, "", "none"); !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		t.Errorf("of what there is not, who may not read is told %v", err)
	}
	if names, err := stranger.Namespaces(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("who may read nothing sees the namespaces %v, %v", names, err)
	}
	if names, err := c.Namespaces(t.Context()); err != nil || len(names) != 1 || names[0] != nsOn {
		t.Errorf("who may read %s sees the namespaces %v, %v", nsOn, names, err)
	}
}
