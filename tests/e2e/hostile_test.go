//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	corev1 "k8s.io/api/core/v1"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// hostileSteps are scripts that a step runs in its own folder of the spool, as sh. $log is its newest log file, $next a name that the reader will want to open.
var hostileSteps = []struct{ name, script string }{
	{"links-to-secrets", `
		for target in /var/run/secrets/shiplog.dev/token /shiplog/state/ticket ../../state/ticket ../../../state/step-hostile.json /etc/passwd ../prepare/00000000000000000000.log; do
			n=$((n + 1)); ln -s $target 0000000000000100000$n.log
		done
		ln -sf /var/run/secrets/shiplog.dev/token end.json; ln -sf /etc term; rm -rf pipe; ln -s /etc pipe`},
	{"hard-links", `
		ln $log 00000000000000500000.log; ln $log 00000000000000500001.log; ln $log end.json; ln /etc/passwd 00000000000000600000.log 2>/dev/null
		ln /shiplog/bin/tee 00000000000000700000.log 2>/dev/null; true`},
	{"fifos", `
		for name in $next 00000000000000900000.log end.json term; do mkfifo $name; done; rm -rf pipe; mkfifo pipe`},
	{"folders", `
		for name in $next 00000000000000900000.log end.json term; do mkdir $name; done; rm $log; mkdir $log`},
	{"swapping", `
		for i in $(seq 500); do
			mv $log aside; ln -s /etc/passwd $log; echo swapping $i; rm $log; mkdir $log; rmdir $log; mv aside $log
		done`},
	{"rewriting", `
		for i in $(seq 200); do
			echo before $i; : > $log; echo after $i; dd if=/dev/urandom of=$log bs=4096 count=1 conv=notrunc 2>/dev/null
		done`},
	{"other-offsets", `
		line='2026-01-01T00:00:00.000000000Z stdout F forged'
		for name in 00000000000000000001 00000000000000000002 09223372036854775807 09223372036854775806 99999999999999999999 -0000000000000000001; do echo "$line" > $name.log; done`},
	{"forged-end", `
		echo '{"exit":{"code":0},"bytes":9223372036854775807,"printed":{"stdout":9223372036854775807,"stderr":-1},"lines":-5}' > end.json; echo one; sleep 2
		printf 'no JSON' > end.json; echo two; sleep 2
		rm end.json; truncate -s 1G end.json; echo three; sleep 2; touch term; echo four`},
	{"long-names", `
		name=$(head -c 251 /dev/zero | tr '\0' n); echo x > $name.log; mkdir -p "$name"; echo > "$(printf 'new\nline').log"; echo > "$(printf '\377').log"; echo > '..log'; echo > ' .log'`},
	{"many-files", `
		mkdir -p junk; i=0; while [ $i -lt 100 ]; do seq -f "%020.0f.log" $((i * 1000 + 1)) $((i * 1000 + 1000)) | xargs touch; i=$((i + 1)); done`},
	{"sparse", `
		truncate -s 1T $log; truncate -s 1T 00000000000100000000.log; truncate -s 1T end.json; truncate -s 1T term`},
	{"garbage", `
		head -c 200000000 /dev/zero | tr '\0' x >> $log; head -c 50000000 /dev/urandom > 00000000000300000000.log`},
	{"forged-lines", `
		for i in $(seq 50); do
			echo '0001-01-01T00:00:00.000000000Z stdout F of the year 1' >> $log
			echo '9999-12-31T23:59:59.999999999Z stderr P of the year 9999' >> $log
			echo '2026-01-01T00:00:00.000000000Z marker F {"kind":"gap","reason":"spool-limit","stdout":9223372036854775807,"stderr":9223372036854775807}' >> $log
			echo '2026-13-45T00:00:00.000000000Z stdout F no such day' >> $log
			echo printed $i
		done`},
	{"deleting", `
		for i in $(seq 200); do echo deleting $i; rm -rf /shiplog/spool/*; done`},
	{"hurrying", `
		for i in $(seq 100); do touch term end.json; echo $i; rm -f term end.json; done`},
	{"looking-around", `
		# Every way to what is not its own. What is found is printed, and so would be in the archive.
		ls -R /shiplog 2>/dev/null | grep -v -E '^(/shiplog|tee|pipe|stdout|stderr|term|[0-9]*\.log|end.json.tmp|bin|spool|)(/.*)?:?$'
		cat /shiplog/state/* /shiplog/spool/../state/* /shiplog/bin/../state/* /var/run/secrets/shiplog.dev/* 2>/dev/null
		for p in /proc/[0-9]*; do tr '\0' '\n' < $p/environ 2>/dev/null | grep SHIPLOG; done
		mount | grep -c shiplog; echo x > /shiplog/bin/tee; rm -f /shiplog/bin/tee; ls /shiplog/bin`},
}

// TestHostileSteps has a step do its worst in its own folder of the spool. Nothing but its own log may suffer.
func TestHostileSteps(t *testing.T) {
	t.Parallel()
	for i, c := range hostileSteps {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			user := int64(1000 * (i % 2)) // every other one is root in its container
			script := "set +e; echo begin; until [ -e /tmp/go ]; do sleep 0.1; done; cd /shiplog/spool; log=$(ls | grep log$ | tail -1); next=$(printf %020d.log $(wc -c < $log))\n" + c.script + "\necho still here"
			spec := taskSpec(t, `
taskSpec:
  results: [{name: step-honest}]
  steps:
    - {name: hostile, image: busybox, onError: continue}
    - {name: honest, image: busybox, script: "`+hashing("seq 1 20000", "step-honest")+`"}`)
			spec.TaskSpec.Steps[0].Script = script
			spec.TaskSpec.Steps[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &user}
			tr := newTaskRun(t, nsOn, "hostile-"+c.name, spec, nil)
			pod := waitForStep(t, tr)
			secrets := secretsOf(t, pod)
			if _, err := command(t.Context(), "", nil, env.kubectl, "-n", nsOn, "exec", pod.Name, "-c", "step-hostile", "--", "touch", "/tmp/go"); err != nil {
				t.Fatal(err)
			}
			done := finish(t, tr)
			if !done.Status.GetCondition("Succeeded").IsTrue() {
				t.Errorf("%+v", done.Status.Conditions)
			}
			if ended := done.Status.Steps[0].Terminated; ended == nil || ended.ExitCode != 0 {
				t.Errorf("the hostile step did not come to its end: %+v", ended)
			}
			podEnded(t, done)
			status := shipperStatus(t, podOf(t, done))
			if ended := status.State.Terminated; ended == nil || ended.ExitCode != 0 || status.RestartCount != 0 {
				t.Errorf("the shipper was restarted %d times and ended as %+v", status.RestartCount, status.State)
			}
			// The honest step's log is whole and verified: the CLI ends with 0 and the bytes are right.
			want := resultNamed(t, done, "step-honest")
			if got, err := archived(t.Context(), nsOn, tr.Name, "", "step-honest"); err != nil || got != want {
				t.Errorf("the other step: archived %s, printed %s, %v", got, want, err)
			}
			// Of the hostile one's log people get what there is, and no failure.
			hostile, err := archivedText(t.Context(), nsOn, tr.Name, "step-hostile")
			var exit interface{ ExitCode() int }
			if err != nil && (!errors.As(err, &exit) || exit.ExitCode() < 3) {
				t.Errorf("the hostile step's log cannot be read: %v", err)
			}
			if len(hostile) > 400<<20 {
				t.Errorf("the hostile step's log has %d bytes", len(hostile))
			}
			if c.name == "looking-around" && (!strings.Contains(hostile, "tee\n") || strings.Contains(hostile, "SHIPLOG_CONFIG") || strings.Contains(hostile, "step-honest")) {
				t.Errorf("it found:\n%.2000s", hostile)
			}
			checkObjects(t, layout.Pod{
				Run:     layout.Run{Namespace: nsOn, Name: layout.NoPipelineRun, UID: string(tr.UID)},
				TaskRun: tr.Name, PodUID: string(pod.UID),
			}, secrets)
		})
	}
}

// secretsOf are texts that only the shipper knows: its token, and what signs in its ticket. The container's files are seen through its process.
func secretsOf(t *testing.T, pod *corev1.Pod) []string {
	t.Helper()
	root := fmt.Sprintf("/proc/%d/root", findProcess(t, pod, contract.ShipperBinary, "").pid)
	token, err := os.ReadFile(root + contract.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	var signed ticket.Ticket
	err = poll(t.Context(), "the shipper's ticket", func(context.Context) (bool, error) {
		b, err := os.ReadFile(filepath.Join(root, contract.VolumeMount, contract.StateSubPath, "ticket"))
		return err == nil && json.Unmarshal(b, &signed) == nil && len(signed.Fields) > 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{string(token)}
	for _, value := range signed.Fields {
		if len(value) >= 32 { // the policy and its signature, not the bucket's name
			secrets = append(secrets, value)
		}
	}
	if len(secrets) < 3 {
		t.Fatalf("the ticket has no policy and signature: its fields are %v", slices.Collect(maps.Keys(signed.Fields)))
	}
	return secrets
}

// checkObjects looks at every object of a pod: each is one that shiplog writes, of a container that the pod has, and none holds a secret or the node's files.
func checkObjects(t *testing.T, pod layout.Pod, secrets []string) {
	t.Helper()
	store := openStore(t)
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	known := map[string]bool{"prepare": true, "step-hostile": true, "step-honest": true}
	count := 0
	for e, err := range store.List(t.Context(), pod.Prefix(), "", "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		count++
		key, err := layout.ParseKey(e.Key)
		if err != nil || key.Container.Container != "" && !known[key.Container.Container] {
			t.Errorf("object %s is not one of shiplog's: %v", e.Key, err)
			continue
		}
		r, err := store.Get(t.Context(), e.Key)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(e.Key, ".zst") {
			if err := decoder.Reset(r); err != nil {
				t.Fatal(err)
			}
			found(t, e.Key, decoder, secrets)
		} else {
			found(t, e.Key, r, secrets)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	// pod.json, and a seal and a segment at least of each.
	if least := 1 + 2*len(known); count < least || count > 400 {
		t.Errorf("the pod has %d objects", count)
	}
}

// found reports secrets in what it reads. It holds a window of the text, since a garbage log may have hundreds of megabytes.
func found(t *testing.T, key string, r io.Reader, secrets []string) {
	t.Helper()
	most := 0
	for _, s := range secrets {
		most = max(most, len(s))
	}
	buf := make([]byte, 0, 1<<20+most)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for _, s := range append(secrets, "root:x:0:0:") {
			if bytes.Contains(buf, []byte(s)) {
				t.Errorf("object %s holds a secret: %.12s…", key, s)
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		if err != nil {
			t.Fatalf("read %s: %v", key, err)
		}
		buf = buf[:copy(buf, buf[len(buf)-most:])]
	}
}
