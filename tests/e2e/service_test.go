//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// TestTicketRefusals asks the real ticket service with real tokens that must not get a ticket.
func TestTicketRefusals(t *testing.T) {
	t.Parallel()
	// A TaskRun's pod, whose token is good for a ticket while it runs, and a pod of somebody else's.
	tr := newTaskRun(t, nsOn, "tickets", taskSpec(t, "taskSpec: {steps: [{name: s, image: busybox, script: 'echo up; sleep 600'}]}"), nil)
	own := waitForStep(t, tr)
	foreign := runSleeper(t, "not-tekton")
	gone := runSleeper(t, "came-back")
	goneToken := boundToken(t, gone, contract.Audience)
	if err := env.client.Delete(t.Context(), gone, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	back := runSleeper(t, "came-back")

	good := boundToken(t, own, contract.Audience)
	resign := func(token string, change func(claims map[string]any)) string { return signAgain(t, token, change) }
	podClaim := func(claims map[string]any) map[string]any {
		return claims["kubernetes.io"].(map[string]any)["pod"].(map[string]any)
	}
	for _, c := range []struct {
		name, token, status, reason string
	}{
		{"no token", "", "401", "no-token"},
		{"not a token", "eyJhbGciOiJub25lIn0.e30.", "401", "invalid-token"},
		{"wrong audience", boundToken(t, own, "other"), "401", "invalid-token"},
		{"not bound to a pod", createToken(t, "--audience="+contract.Audience), "401", "not-bound-to-pod"},
		{"pod that is not Tekton's", boundToken(t, foreign, contract.Audience), "403", "not-injected"},
		{"expired", resign(good, func(claims map[string]any) {
			for _, name := range []string{"iat", "nbf", "exp"} {
				claims[name] = claims[name].(float64) - 24*3600
			}
		}), "401", "invalid-token"},
		{"of a pod that was replaced by another of its name", goneToken, "401", "invalid-token"},
		{"of another pod's UID", resign(good, func(claims map[string]any) { podClaim(claims)["uid"] = string(back.UID) }), "401", "invalid-token"},
		{"of another key", good[:strings.LastIndexByte(good, '.')+1] + base64.RawURLEncoding.EncodeToString(make([]byte, 256)), "401", "invalid-token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := askForTicket(t, c.token)
			if status != c.status || !strings.Contains(body, fmt.Sprintf("%q", c.reason)) || strings.Contains(body, "fields") {
				t.Errorf("answer %s %s, want %s with reason %s and no ticket", status, body, c.status, c.reason)
			}
		})
	}
	// The same way gives a ticket where one is due, for the pod that the token names and for no other. Without it, all of the above would prove nothing.
	for name, token := range map[string]string{"as issued": good, "signed again": resign(good, func(map[string]any) {})} {
		status, body := askForTicket(t, token)
		var got ticket.Ticket
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != "200" || !strings.Contains(got.Prefix, "/"+string(own.UID)+"/") {
			t.Errorf("the token %s: answer %s %s, want a ticket for pod %s", name, status, body, own.UID)
		}
	}
}

// runSleeper runs a pod that is not Tekton's.
func runSleeper(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: nsOn, Name: name},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers:    []corev1.Container{{Name: "c", Image: "busybox", Command: []string{"sleep", "600"}}},
		},
	}
	if err := env.client.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	err := poll(t.Context(), "the pod "+name+" to run", func(ctx context.Context) (bool, error) {
		err := env.client.Get(ctx, client.ObjectKeyFromObject(pod), pod)
		return pod.Status.Phase == corev1.PodRunning, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// createToken asks the API server for a token of the default service account.
func createToken(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command(t.Context(), "", nil, env.kubectl, append([]string{"-n", nsOn, "create", "token", "default"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func boundToken(t *testing.T, pod *corev1.Pod, audience string) string {
	t.Helper()
	return createToken(t, "--audience="+audience, "--bound-object-kind=Pod", "--bound-object-name="+pod.Name, "--bound-object-uid="+string(pod.UID))
}

// signAgain changes the claims of a service-account token and signs it with the cluster's own key: the API server refuses to issue an expired token, and one for a pod
// that is not there.
func signAgain(t *testing.T, token string, change func(claims map[string]any)) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(env.kubeconfig), "pki", "sa.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	if b, err = base64.RawURLEncoding.DecodeString(parts[1]); err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := json.Unmarshal(b, &claims); err != nil {
		t.Fatal(err)
	}
	change(claims)
	if b, err = json.Marshal(claims); err != nil {
		t.Fatal(err)
	}
	signed := parts[0] + "." + base64.RawURLEncoding.EncodeToString(b)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// TestCertificateRenewed has cert-manager renew the serving certificate. The running webhook must serve the new one, and go on to inject and to give tickets.
func TestCertificateRenewed(t *testing.T) {
	t.Parallel()
	pods := podsOf(t, "webhook")
	old := map[string]string{}
	addresses := map[string]string{}
	for _, pod := range pods {
		addresses[pod.Name] = forward(t, pod.Name, "9443")
		old[pod.Name] = serialOf(t, addresses[pod.Name])
	}
	renewCertificate(t, "shiplog-webhook")
	begin := time.Now()
	for _, pod := range pods {
		// The kubelet brings a changed Secret to the pod within its sync period of a minute and its cache's life.
		err := poll(t.Context(), "the renewed certificate to be served by "+pod.Name, func(context.Context) (bool, error) {
			return serialOf(t, addresses[pod.Name]) != old[pod.Name], nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("served by all replicas %s after the renewal was asked for", time.Since(begin).Round(time.Second))
	for _, before := range pods {
		var now corev1.Pod
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(&before), &now); err != nil {
			t.Fatal(err)
		}
		if now.UID != before.UID || now.Status.ContainerStatuses[0].RestartCount != before.Status.ContainerStatuses[0].RestartCount {
			t.Errorf("pod %s was restarted", before.Name)
		}
	}
	tr := finish(t, newTaskRun(t, nsOn, "after-renewal", taskSpec(t, "taskSpec: {steps: [{name: s, image: busybox, script: echo hi}]}"), nil))
	sealed(t, nsOn, tr.Name)
	checkArchive(t, stepCase{want: map[string]printed{"step-s": text("hi\n")}}, tr, nil)
}

// serialOf is the serial number of the certificate that a server shows.
func serialOf(t *testing.T, address string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}) // who signed it is not the question here
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// podsOf are the replicas of a part of shiplog that run.
func podsOf(t *testing.T, component string) []corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	if err := env.client.List(t.Context(), &pods, client.InNamespace("shiplog-system"), client.MatchingLabels{"app.kubernetes.io/component": component}); err != nil {
		t.Fatal(err)
	}
	var running []corev1.Pod
	for _, pod := range pods.Items {
		if pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil {
			running = append(running, pod)
		}
	}
	if len(running) == 0 {
		t.Fatalf("no pod of the %s runs", component)
	}
	return running
}

// forward makes a port of a pod of shiplog's reachable from here until the test ends. The API server's own proxy would take our Authorization header for its own.
func forward(t *testing.T, pod, port string) (address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, env.kubectl, "-n", "shiplog-system", "port-forward", "pod/"+pod, ":"+port)
	cmd.Env = append(os.Environ(), env.vars...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed: its error says so
	})
	reader := bufio.NewReader(out)
	line, err := reader.ReadString('\n') // Forwarding from 127.0.0.1:41234 -> 9443
	if err != nil {
		cancel()
		_ = cmd.Wait() // stderr says more
		t.Fatalf("port-forward: %v: %s", err, stderr.String())
	}
	go func() { _, _ = io.Copy(io.Discard, reader) }() // a line for each connection; ends with the process, which the cleanup waits for
	_, rest, _ := strings.Cut(line, "127.0.0.1:")
	local, _, _ := strings.Cut(rest, " ")
	return "127.0.0.1:" + local
}

// askForTicket posts to the ticket service, again where the way to it breaks, as where the pod that it goes to has just been restarted.
func askForTicket(t *testing.T, token string) (status, body string) {
	t.Helper()
	for tries := 1; ; tries++ {
		status, body, err := askOnce(t, forward(t, podsOf(t, "webhook")[0].Name, "9443"), token)
		if err == nil {
			return status, body
		}
		if tries == 5 {
			t.Fatal(err)
		}
		t.Log(err)
	}
}

func askOnce(t *testing.T, address, token string) (status, body string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+address+ticket.Path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	// The certificate is for the Service's name; what is tested is the answer.
	httpClient := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := httpClient.Do(req)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode), string(b), err
}
