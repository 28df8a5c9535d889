package main

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/placescripts"
)

// behindEntrypoint is a step with a command of its own, as Tekton makes it.
func behindEntrypoint(argv ...string) *corev1.Container {
	args := []string{"-wait_file", "/tekton/downward/ready", "-post_file", "/tekton/run/0/out",
		"-entrypoint", argv[0], "--"}
	return &corev1.Container{
		Name: "step-s", Command: []string{tektonEntrypoint}, Args: append(args, argv[1:]...),
	}
}

// direct is a container whose command is process 1 without shiplog.
func direct(argv ...string) *corev1.Container {
	return &corev1.Container{Command: argv[:1], Args: argv[1:]}
}

// In a step Tekton's entrypoint is process 1, so that a script only matters if it signals all; a
// sidecar's script is process 1 itself.
func TestNeedsProcessOne(t *testing.T) {
	const both = signalsAll // in a step and in a sidecar
	for script, want := range map[string]reason{
		"kill -9 -1":                              both,
		"kill -- -1":                              both,
		"kill -1 -1":                              both,
		"kill -s KILL -1":                         both,
		"kill -s KILL -- -1":                      both,
		"kill -n 9 -1":                            both,
		"kill --signal TERM -1":                   both,
		"kill --signal=TERM -1":                   both,
		"kill -SIGKILL 17 -1":                     both,
		"kill -9 '-1'":                            both,
		"kill -9 \\\n  -1":                        both,
		"trap 'kill -- -1' EXIT":                  both,
		"trap \"kill -- -1\" EXIT":                both,
		"make; kill -9 -1; echo gone":             both,
		"make && sudo -n /bin/kill -9 -1":         both,
		"if true; then kill -9 -1; fi":            both,
		"cleanup() { kill -9 -1; }":               both,
		"bash -ec \"kill -9 -1\"":                 both,
		"busybox kill -9 -1":                      both,
		"x=$(kill -9 -1)":                         both,
		"#!/bin/sh\nset -e\n\tkill -9 -1\n":       both,
		"import os, signal\nos.kill(-1, 9)":       both,
		"process.kill(-1)":                        both,
		"Process.kill('KILL', -1)":                both,
		"kill 'KILL', -1;":                        both,
		"kill KILL => -1;":                        both,
		"killall5":                                both,
		"killall5 -9 || true":                     both,
		"exec /sbin/killall5":                     both,
		"pkill -f .":                              both,
		"pkill .":                                 both,
		"pkill -9 ''":                             both,
		"pkill \"\"":                              both,
		"pkill -u root":                           both,
		"pkill -KILL -U 0":                        both,
		"pkill --euid root":                       both,
		"pkill -v nothing-by-this-name":           both,
		"pkill -vf nothing-by-this-name":          both,
		"pkill --inverse -x nothing-by-this-name": both,
		"pkill -f tekton":                         both,
		"pkill -if TEKTON":                        both,
		"pkill -P 1":                              both,
		"pkill -s0":                               both,
		"killall -u root":                         both,
		"killall -9 -r .":                         both,

		"kill -1 $PID":                        "",
		"kill -1 4711":                        "",
		"kill -1":                             "",
		"kill -HUP 1":                         "",
		"kill -0 -1":                          "",
		"kill -l":                             "",
		"kill -9 -10":                         "",
		"kill $(jobs -p)":                     "",
		"kill -9 $pid -- # kill -9 -1":        "",
		"# kill -9 -1":                        "",
		"  # never say kill -9 -1 here":       "",
		"echo never say kill -9 -1 here":      "",
		"docker exec other kill -9 -1":        "",
		"skill -9 -1":                         "",
		"kill-all -9 -1":                      "",
		"xkill -1 -1":                         "",
		"kill=-1":                             "",
		"kill --help -- | grep -- -1":         "",
		"os.kill(pid, -1)":                    both, // no signal has this number, and it may be Ruby
		"os.kill(pid, 9)":                     "",
		"os.kill(1, 9)":                       "",
		"pkill java":                          "",
		"pkill -f 'gradle.*daemon'":           "",
		"pkill -9 -f \"$NAME\"":               "",
		"pkill -u root java":                  "",
		"pkill -P $$":                         "",
		"pkill -g 0":                          "",
		"pkill -F /run/pid":                   "",
		"pkill -x s":                          "",
		"pkill -t pts/0":                      "",
		"pkill '('":                           "",
		"pkill":                               "",
		"killall node":                        "",
		"killall -9 -u root node":             "",
		"killall -r '^node'":                  "",
		"killall -s KILL node":                "",
		"echo $$":                             "",
		"mkdir /tmp/$$.1":                     "",
		"make init":                           "",
		"terraform init":                      "",
		"git init; cp x /init":                "",
		"/opt/app/init":                       "",
		"/init.sh":                            "",
		"init() { true; }\ninit":              "",
		"apt-get install -y systemd":          "",
		"ls /lib/systemd/systemd":             "",
		"grep -c systemd /proc/mounts":        "",
		"/lib/systemd/systemd-udevd --daemon": "",
		"systemctl restart x":                 "",
		"[ $$ = 10 ]":                         "",
		"[ $$ -gt 1000 ]":                     "",
		"test 11 -eq $$":                      "",
		"# [ $$ = 1 ]":                        "",
		"kill -0 $$":                          "",

		"[ $$ = 1 ] || exit 100":                             processOne,
		"[ \"$$\" -eq 1 ] && echo first":                     processOne,
		"test $$ == 1":                                       processOne,
		"if [[ 1 != $$ ]]; then exit; fi":                    processOne,
		"if [ \"${$}\" -ne \"1\" ]; then :; fi":              processOne,
		"[ $BASHPID -eq 1 ]":                                 processOne,
		"(( $$ > 1 )) && exit":                               processOne,
		"if (getpid() == 1)":                                 processOne,
		"assert os.getpid() == 1":                            processOne,
		"if 1 != os.getpid(): exit()":                        processOne,
		"if os.Getpid() != 1 {":                              processOne,
		"if (process.pid !== 1) exit()":                      processOne,
		"die unless $$ == 1;":                                processOne,
		"exec /init":                                         processOne,
		"/init":                                              processOne,
		"sh -c /init":                                        processOne,
		"exec /sbin/init --log":                              processOne,
		"exec /lib/systemd/systemd":                          processOne,
		"exec /usr/lib/systemd/systemd --user":               processOne,
		"exec s6-svscan /run/service":                        processOne,
		"exec /package/admin/s6/command/s6-overlay-suexec x": processOne,
		"trap 'kill 0' EXIT":                                 processOne,
		"kill -9 $$":                                         processOne,
		"kill -TERM -- -$$":                                  processOne,
		"trap 'kill -TERM -$$; x' EXIT":                      processOne,
		"trap 'kill -KILL \"$$\"' ALRM;":                     processOne,
	} {
		t.Run(script, func(t *testing.T) {
			const path = placescripts.Dir + "/script-0-a"
			inStep := want
			if want == processOne {
				inStep = "" // there it is not process 1 without shiplog either
			}
			for kind, c := range map[string]struct {
				container *corev1.Container
				want      reason
			}{
				"step's script":     {behindEntrypoint(path), inStep},
				"step's command":    {behindEntrypoint("sh", "-c", script), inStep},
				"sidecar's script":  {direct(path), want},
				"sidecar's command": {direct("sh", "-c", script), want},
			} {
				if strings.HasSuffix(kind, "command") && (strings.HasPrefix(script, "#") ||
					strings.HasPrefix(script, "pkill") && strings.Contains(script, "f ")) {
					continue // it is a line, or in a command line, where it means something else
				}
				scripts := map[string]string{path: script}
				if got := needsProcessOne(c.container, scripts); got != c.want {
					t.Errorf("%s: %q, want %q", kind, got, c.want)
				}
			}
		})
	}
}

// What pkill -f selects depends on the command line of process 1.
func TestNeedsProcessOneByCommandLine(t *testing.T) {
	for name, c := range map[string]struct {
		container *corev1.Container
		want      reason
	}{
		"the words of a command":     {behindEntrypoint("kill", "-9", "-1"), signalsAll},
		"not those of its data":      {behindEntrypoint("echo", "kill", "-9", "-1"), ""},
		"a command's own name":       {behindEntrypoint("sh", "-c", "pkill -f 'of-mine'", "of-mine"), signalsAll},
		"the entrypoint's name":      {behindEntrypoint("sh", "-c", "pkill entrypoint"), signalsAll},
		"all by that name":           {behindEntrypoint("sh", "-c", "killall entrypoint"), signalsAll},
		"another's name":             {behindEntrypoint("sh", "-c", "pkill -x entry"), ""},
		"an init system":             {direct("/init", "nginx"), processOne},
		"systemd":                    {direct("/lib/systemd/systemd"), processOne},
		"systemd in the PATH":        {direct("systemd"), processOne},
		"one that a step begins":     {behindEntrypoint("/init"), ""},
		"Tekton's own":               {direct("/ko-app/entrypoint", "init", "/ko-app/entrypoint", tektonEntrypoint), ""},
		"an entrypoint without flag": {direct(tektonEntrypoint, "--"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := needsProcessOne(c.container, nil); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// Whole pods as Tekton makes them: the others are captured.
func TestDecideProcessOne(t *testing.T) {
	spec := v1.TaskSpec{
		Steps: []v1.Step{
			step("kills", script("trap 'kill -- -1' EXIT")), step("goes-on", script("make")),
		},
		Sidecars: []v1.Sidecar{
			{Name: "first", Image: stepImage, Script: "[ $$ = 1 ] || exit 100"},
			{Name: "plain", Image: stepImage, Script: "sleep 1000"},
		},
	}
	const want = "step-kills=signals-all,sidecar-first=process-1"
	for name, pod := range map[string]taskRunPod{
		"scripts": {name: "scripts", spec: spec},
		// Here place-scripts does more, and the shipper does not take its place.
		"with a breakpoint": {
			name: "breakpoint", spec: spec, flags: map[string]string{"enable-api-fields": alpha},
			run: v1.TaskRunSpec{Debug: &v1.TaskRunDebug{
				Breakpoints: &v1.TaskBreakpoints{OnFailure: "enabled"},
			}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			raw := pod.build(t)
			d, patch, err := inject(raw, testSettings(), onSupported)
			if err != nil || d.action != actionInject {
				t.Fatalf("%s %q, %v", d.action, d.reason, err)
			}
			after := decodeTestPod(t, apply(t, raw, patch))
			if got := after.Annotations[contract.SkippedAnnotation]; got != want {
				t.Errorf("left alone: %q, want %q", got, want)
			}
			for _, c := range placedContainers(&after.Spec) {
				alone := c.Name == "step-kills" || c.Name == "sidecar-first" ||
					c.Name == contract.ShipperContainer
				if behindTee := c.Command[0] == contract.TeePath; behindTee == alone {
					t.Errorf("%s is behind tee: %t", c.Name, behindTee)
				}
			}
		})
	}
}

// BenchmarkNeedsProcessOne is a sidecar with a script of 900 KB, near the most that a pod holds.
func BenchmarkNeedsProcessOne(b *testing.B) {
	for name, line := range map[string]string{
		"plain":     "echo a line of a script like others\n",
		"kills":     "pkill -f 'a.*b.*c' $$ > 2; kill -9 -7 # \n",
		"one word":  "kill",
		"one quote": "'kill -9 ' \"",
		"init":      "init /init; ",
		"numbers":   "$$",
	} {
		b.Run(strings.ReplaceAll(name, " ", "-"), func(b *testing.B) {
			const path = placescripts.Dir + "/sidecar-script-0-a"
			text := strings.Repeat(line, 900_000/len(line))
			spec := corev1.PodSpec{
				InitContainers: []corev1.Container{{Name: placescripts.Container, Args: []string{"-c",
					fmt.Sprintf("scriptfile=\"%s\"\ntouch ${scriptfile} && chmod +x ${scriptfile}\n"+
						"cat > ${scriptfile} << '_EOF_'\n%s\n_EOF_\n"+
						"/tekton/bin/entrypoint decode-script \"${scriptfile}\"\n",
						path, base64.StdEncoding.EncodeToString([]byte(text)))}}},
			}
			c := corev1.Container{Command: []string{path}}
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				scripts := scriptsOf(&spec)
				if r := needsProcessOne(&c, scripts); len(scripts) != 0 || r != "" {
					b.Fatalf("%d scripts are not read, %q", len(scripts), r)
				}
			}
		})
	}
}
