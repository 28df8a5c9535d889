package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	evanphx5 "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	kubejson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/contract"
	"github.com/shiplog-dev/shiplog/internal/placescripts"
)

var update = flag.Bool("update", false, "write the golden files anew")

const testCA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"

var onSupported = surroundings{sidecars: sidecarsSupported, caBundle: testCA}

// TestInjectTaskRunPods holds every pod that Tekton's builder makes against its golden files, and against what must hold for each of them.
func TestInjectTaskRunPods(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range taskRunPods() {
		t.Run(c.name, func(t *testing.T) {
			if seen[c.name] {
				t.Fatalf("two cases are named %q", c.name)
			}
			seen[c.name] = true
			raw := c.build(t)
			s := c.settingsFor()
			d, patch, err := inject(raw, s, onSupported)
			if err != nil {
				t.Fatalf("inject: %v", err)
			}
			out := apply(t, raw, patch)
			compareGolden(t, c.name+".in.yaml", raw)
			compareGolden(t, c.name+".out.yaml", out)
			checkOutcome(t, s, raw, out, d)
		})
	}
	if *update {
		return
	}
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) != 2*len(seen) && len(seen) == len(taskRunPods()) {
		t.Errorf("testdata has %d files for %d cases (%v): remove those that no case uses", len(files), len(seen), err)
	}
}

// compareGolden holds a JSON document against a golden YAML file.
func compareGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	text, err := yaml.JSONToYAML(got)
	if err != nil {
		t.Fatalf("pod to YAML: %v", err)
	}
	at := filepath.Join("testdata", file)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, text, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(at)
	if err != nil {
		t.Fatalf("golden file: %v (go test ./webhook -update makes it)", err)
	}
	if diff := cmp.Diff(string(want), string(text)); diff != "" {
		t.Errorf("%s differs (-want +got); go test ./webhook -update takes it over:\n%s", at, diff)
	}
}

// apply applies a patch with another version of the library than the one that the webhook checks itself with.
func apply(t *testing.T, raw []byte, patch []jsonpatch.Operation) []byte {
	t.Helper()
	if len(patch) == 0 {
		return raw
	}
	encoded, err := json.Marshal(patch)
	if err != nil {
		t.Fatalf("encode patch: %v", err)
	}
	decoded, err := evanphx5.DecodePatch(encoded)
	if err != nil {
		t.Fatalf("decode patch %s: %v", encoded, err)
	}
	out, err := decoded.Apply(raw)
	if err != nil {
		t.Fatalf("apply patch %s: %v", encoded, err)
	}
	return out
}

func decodeTestPod(t *testing.T, raw []byte) *corev1.Pod {
	t.Helper()
	pod, err := decodePod(raw)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// checkOutcome checks what must hold for every pod, whatever the decision.
func checkOutcome(t *testing.T, s settings, in, out []byte, d decision) {
	t.Helper()
	before, after := decodeTestPod(t, in), decodeTestPod(t, out)

	again, patch, err := inject(out, s, onSupported)
	if err != nil || len(patch) > 0 {
		t.Errorf("second pass: %d operations, error %v, want none", len(patch), err)
	}
	switch d.action {
	case actionSkip:
		if again.action != actionSkip || again.reason != d.reason {
			t.Errorf("second pass: %s %s, want skipped %s", again.action, again.reason, d.reason)
		}
		if d.reason.silent() && !bytes.Equal(in, out) {
			t.Errorf("%s, but the pod was changed", d.reason)
		}
		if got := contract.ParseSkipped(after.Annotations[contract.SkippedAnnotation]); !d.reason.silent() && (len(got) == 0 || got[0] != contract.Skipped{Container: contract.SkippedPod, Reason: string(d.reason)}) {
			t.Errorf("annotation names %v, want the pod's reason %s first", got, d.reason)
		}
		undoAndCompare(t, in, out)
		return
	case actionInject:
		if again.action != actionNone {
			t.Errorf("second pass: %s, want unchanged", again.action)
		}
	default:
		t.Fatalf("action %q on a fresh pod", d.action)
	}

	undoAndCompare(t, in, out)
	checkValid(t, out)
	checkShipper(t, s, before, after)
	checkCaptured(t, s, before, after)

	if got, want := after.Annotations[contract.SkippedAnnotation], contract.FormatSkipped(d.skipped); got != want {
		t.Errorf("annotation %q, want %q", got, want)
	}
	if b, a := qosClass(before), qosClass(after); b == corev1.PodQOSGuaranteed && a != b {
		t.Errorf("QoS class %s became %s", b, a)
	} else if a == corev1.PodQOSBestEffort {
		t.Errorf("QoS class is %s, though the shipper requests something", a)
	}
	if got, want := *after.Spec.TerminationGracePeriodSeconds, int64(30+s.drainGrace/time.Second); got != want {
		t.Errorf("grace period %d s, want %d", got, want)
	}
}

// undoAndCompare takes out what we put in, as plain JSON, and compares the rest with what came in, so that a change anywhere else shows.
func undoAndCompare(t *testing.T, in, out []byte) {
	t.Helper()
	want, got := decodeMap(t, in), decodeMap(t, out)
	if _, ok := child(want, "metadata")["annotations"]; !ok {
		delete(child(got, "metadata"), "annotations")
	} else {
		delete(child(child(got, "metadata"), "annotations"), contract.SkippedAnnotation)
	}
	spec, oldSpec := child(got, "spec"), child(want, "spec")
	restore(spec, oldSpec, "terminationGracePeriodSeconds")
	isOurs := func(v any) bool {
		name := v.(map[string]any)["name"]
		return name == contract.SpoolVolume || name == contract.TokenVolume
	}
	inits, _ := spec["initContainers"].([]any)
	ours := slices.IndexFunc(inits, func(c any) bool { return c.(map[string]any)["name"] == contract.ShipperContainer })
	if ours >= 0 {
		shipper := inits[ours]
		inits = slices.Delete(slices.Clone(inits), ours, ours+1)
		spec["initContainers"] = inits
		for _, v := range shipper.(map[string]any)["env"].([]any) {
			e := v.(map[string]any)
			if e["name"] != contract.PlaceScriptsEnv {
				continue
			}
			// What is in the variable is the whole container, as it came.
			var container any
			decoder := json.NewDecoder(strings.NewReader(e["value"].(string)))
			decoder.UseNumber()
			if err := decoder.Decode(&container); err != nil {
				t.Fatal(err)
			}
			at := slices.IndexFunc(oldSpec["initContainers"].([]any), func(c any) bool {
				return c.(map[string]any)["name"] == placescripts.Container
			})
			spec["initContainers"] = slices.Insert(inits, at, container)
		}
		volumes := slices.DeleteFunc(spec["volumes"].([]any), isOurs)
		if spec["volumes"] = volumes; len(volumes) == 0 {
			restore(spec, oldSpec, "volumes")
		}
	}
	for _, list := range []string{"initContainers", "containers"} {
		containers, _ := spec[list].([]any)
		old, _ := oldSpec[list].([]any)
		if len(old) == 0 && len(containers) == 0 {
			restore(spec, oldSpec, list)
			continue
		}
		for i, v := range containers {
			c := v.(map[string]any)
			if command, _ := c["command"].([]any); !slices.Equal(command, []any{contract.TeePath}) {
				continue
			}
			oc := old[i].(map[string]any)
			restore(c, oc, "command")
			restore(c, oc, "args")
			c["volumeMounts"] = slices.DeleteFunc(c["volumeMounts"].([]any), isOurs)
			if len(c["volumeMounts"].([]any)) == 0 {
				restore(c, oc, "volumeMounts")
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("something else changed (-before +after, ours taken out):\n%s", diff)
	}
}

func decodeMap(t *testing.T, raw []byte) map[string]any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber() // no number changes its form
	var m map[string]any
	if err := decoder.Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

func child(m map[string]any, key string) map[string]any { c, _ := m[key].(map[string]any); return c }

func restore(to, from map[string]any, key string) {
	if v, ok := from[key]; ok {
		to[key] = v
	} else {
		delete(to, key)
	}
}

// checkValid expects a pod without faults.
func checkValid(t *testing.T, raw []byte) {
	t.Helper()
	for _, fault := range podFaults(raw) {
		t.Error(fault)
	}
}

// strictly decodes as the API server does where it is asked for fieldValidation=Strict: an unknown or doubled field is an error.
var strictly = kubejson.NewSerializerWithOptions(kubejson.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, kubejson.SerializerOptions{Strict: true})

// podFaults says what the API server would not take of a pod, where we patch it. Kubernetes' own validation and defaulting are in k8s.io/kubernetes, which cannot be imported;
// TestOnAPIServer asks a real API server. This is what can be checked without one:
//
//   - strict decoding: every field is known, has its type, and is there once;
//   - names of containers, and of volumes, are DNS labels, and there is one of each;
//   - each mount and device is of a volume that there is, at a path of its own; subPath does not leave the volume;
//   - a lifecycle hook stands in no init container but a native sidecar;
//   - requests are not above limits, and neither is negative; the grace period is not negative.
//
// Source: pkg/apis/core/validation in Kubernetes.
func podFaults(raw []byte) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	var pod corev1.Pod
	if _, _, err := strictly.Decode(raw, nil, &pod); err != nil {
		fault("strict decoding: %v", err)
		if !runtime.IsStrictDecodingError(err) {
			return faults
		}
	}
	volumes, names := map[string]bool{}, map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		if volumes[v.Name] {
			fault("two volumes are named %q", v.Name)
		}
		if errs := validation.IsDNS1123Label(v.Name); len(errs) > 0 {
			fault("volume %q: %v", v.Name, errs)
		}
		volumes[v.Name] = true
	}
	for _, c := range placedContainers(&pod.Spec) {
		if names[c.Name] {
			fault("two containers are named %q", c.Name)
		}
		names[c.Name] = true
		if errs := validation.IsDNS1123Label(c.Name); len(errs) > 0 {
			fault("container %q: %v", c.Name, errs)
		}
		paths := map[string]bool{}
		for _, m := range c.VolumeMounts {
			if paths[m.MountPath] {
				fault("container %q has two mounts at %q", c.Name, m.MountPath)
			}
			paths[m.MountPath] = true
			if !volumes[m.Name] {
				fault("container %q mounts volume %q, which there is not", c.Name, m.Name)
			}
			if path.IsAbs(m.SubPath) || slices.Contains(strings.Split(m.SubPath, "/"), "..") || m.MountPath == "" {
				fault("container %q: bad mount %+v", c.Name, m)
			}
		}
		for _, d := range c.VolumeDevices {
			if !volumes[d.Name] || paths[d.DevicePath] {
				fault("container %q: bad device %+v", c.Name, d)
			}
			paths[d.DevicePath] = true
		}
		restarts := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if c.list == "initContainers" && !restarts && c.Lifecycle != nil {
			fault("init container %q has a lifecycle without restartPolicy Always", c.Name)
		}
		for name, request := range c.Resources.Requests {
			if limit, ok := c.Resources.Limits[name]; ok && request.Cmp(limit) > 0 || request.Sign() < 0 {
				fault("container %q requests %s of %s", c.Name, request.String(), name)
			}
		}
		for name, limit := range c.Resources.Limits {
			if limit.Sign() < 0 {
				fault("container %q limits %s to %s", c.Name, name, limit.String())
			}
		}
	}
	if grace := pod.Spec.TerminationGracePeriodSeconds; grace != nil && *grace < 0 {
		fault("the grace period is %d s", *grace)
	}
	return faults
}

// checkShipper checks the native sidecar: its place, what it may, what it knows.
func checkShipper(t *testing.T, s settings, before, after *corev1.Pod) {
	t.Helper()
	at := injectedShipper(after)
	if at < 0 {
		t.Fatalf("there is no shipper among %d init containers", len(after.Spec.InitContainers))
	}
	c := after.Spec.InitContainers[at]
	if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Fatalf("the shipper's restartPolicy is %v, want Always", c.RestartPolicy)
	}
	for i, earlier := range after.Spec.InitContainers[:at] {
		if slices.Equal(earlier.Command, []string{contract.TeePath}) || earlier.Name == tektonPrepare {
			t.Errorf("init container %d, %s, begins before the shipper", i, earlier.Name)
		}
	}
	if strings.HasPrefix(c.Name, "step-") || strings.HasPrefix(c.Name, "sidecar-") {
		t.Errorf("the name %s means something to Tekton", c.Name)
	}
	if c.StartupProbe != nil || c.ReadinessProbe != nil || c.LivenessProbe != nil {
		t.Error("the shipper has a probe")
	}
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil || c.Lifecycle.PostStart.Exec == nil || !slices.Equal(c.Lifecycle.PostStart.Exec.Command, []string{"/shipper", "install"}) {
		t.Errorf("postStart is %+v, want exec /shipper install", c.Lifecycle)
	}

	// Pod Security "restricted", https://kubernetes.io/docs/concepts/security/pod-security-standards/.
	sc := c.SecurityContext
	switch {
	case sc == nil, sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot, sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation,
		sc.Capabilities == nil || !slices.Contains(sc.Capabilities.Drop, "ALL") || len(sc.Capabilities.Add) > 0,
		!s.openShift && (sc.SeccompProfile == nil || sc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault),
		sc.Privileged != nil && *sc.Privileged, sc.ProcMount != nil, sc.SELinuxOptions != nil, sc.AppArmorProfile != nil,
		sc.RunAsUser != nil && *sc.RunAsUser == 0, len(c.Ports) > 0:
		t.Errorf("security context %+v does not fit restricted", sc)
	case sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem:
		t.Error("the root file system is not read-only")
	case s.openShift && (sc.RunAsUser != nil || sc.RunAsGroup != nil):
		t.Error("a UID is named on OpenShift")
	case !s.openShift && (sc.RunAsUser == nil || sc.RunAsGroup == nil):
		t.Error("no UID is named")
	}
	if before.Spec.SecurityContext == nil && after.Spec.SecurityContext != nil {
		t.Error("the pod got a security context")
	}
	for _, v := range after.Spec.Volumes {
		if v.HostPath != nil {
			t.Errorf("volume %s is a hostPath", v.Name)
		}
		if v.Name == contract.SpoolVolume && (v.EmptyDir == nil || v.EmptyDir.SizeLimit != nil || v.EmptyDir.Medium != "") {
			t.Errorf("spool is %+v, want an emptyDir on disk without a sizeLimit", v.VolumeSource)
		}
	}

	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
		if strings.Contains(e.Value, "$(") {
			t.Errorf("the kubelet would expand %s=%s", e.Name, e.Value)
		}
	}
	config, err := contract.Decode(env[contract.ConfigEnv])
	if err != nil {
		t.Fatalf("decode %s: %v", contract.ConfigEnv, err)
	}
	var captured []string
	for _, p := range placedContainers(&after.Spec) {
		if slices.Equal(p.Command, []string{contract.TeePath}) {
			captured = append(captured, p.Name)
		}
	}
	if !slices.Equal(config.Containers, captured) || slices.Contains(captured, contract.ShipperContainer) {
		t.Errorf("the shipper knows of %v, captured are %v", config.Containers, captured)
	}
	if config.CABundle != testCA || config.TicketURL != s.ticketURL {
		t.Errorf("config %+v lacks the ticket service", config)
	}

	if before.Spec.Resources != nil {
		return // those of the pod hold
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request, limit := c.Resources.Requests[name], c.Resources.Limits[name]
		if request.Sign() <= 0 || limit.Sign() <= 0 {
			t.Errorf("%s: request %s, limit %s, want both", name, request.String(), limit.String())
		}
	}
	limited := slices.ContainsFunc(placedContainers(&before.Spec), func(p placedContainer) bool {
		_, ok := p.Resources.Limits[corev1.ResourceEphemeralStorage]
		return ok
	})
	storage, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]
	if ok != limited || ok && storage.Value() != s.spoolLimit+spoolOverhead {
		t.Errorf("ephemeral-storage limit %s (set: %t), want one that fits the spool: %t", storage.String(), ok, limited)
	}
}

// checkCaptured checks each captured container: Tekton's command line is whole behind tee's, and it sees its own folder alone.
func checkCaptured(t *testing.T, s settings, before, after *corev1.Pod) {
	t.Helper()
	old := map[string]*corev1.Container{}
	for _, c := range placedContainers(&before.Spec) {
		old[c.Name] = c.Container
	}
	for _, c := range placedContainers(&after.Spec) {
		if c.Name == contract.ShipperContainer {
			continue
		}
		mounts := map[string]corev1.VolumeMount{}
		for _, m := range c.VolumeMounts {
			if m.Name == contract.TokenVolume {
				t.Errorf("container %s sees the token", c.Name)
			}
			if m.Name == contract.SpoolVolume {
				mounts[m.MountPath] = m
			}
		}
		if !slices.Equal(c.Command, []string{contract.TeePath}) {
			if len(mounts) > 0 {
				t.Errorf("container %s is not captured and mounts the spool", c.Name)
			}
			continue
		}
		tee, err := contract.ParseTee(c.Args)
		if err != nil {
			t.Errorf("container %s: %v", c.Name, err)
			continue
		}
		if want := append(slices.Clone(old[c.Name].Command), old[c.Name].Args...); !slices.Equal(tee.Argv, want) {
			t.Errorf("container %s runs %q, want %q", c.Name, tee.Argv, want)
		}
		if strings.HasPrefix(c.Name, "step-") && tee.Argv[0] != "/tekton/bin/entrypoint" {
			t.Errorf("step %s does not run Tekton's entrypoint: %q", c.Name, tee.Argv)
		}
		if tee.Spool != contract.SpoolMount || tee.Limit != s.spoolLimit || tee.Grace != 30*time.Second {
			t.Errorf("container %s: tee %+v", c.Name, tee)
		}
		want := map[string]corev1.VolumeMount{
			contract.SpoolMount: {Name: contract.SpoolVolume, MountPath: contract.SpoolMount, SubPath: "logs/" + c.Name},
			contract.TeeMount:   {Name: contract.SpoolVolume, MountPath: contract.TeeMount, SubPath: "bin", ReadOnly: true},
		}
		if diff := cmp.Diff(want, mounts); diff != "" {
			t.Errorf("container %s mounts (-want +got):\n%s", c.Name, diff)
		}
	}
}

// qosClass is Kubernetes' ComputePodQOS in plain words, written apart from isGuaranteed so that each checks the other.
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	sums := [2]map[corev1.ResourceName]*resource.Quantity{{}, {}}
	add := func(to map[corev1.ResourceName]*resource.Quantity, list corev1.ResourceList) (named int) {
		for name, q := range list {
			if (name == corev1.ResourceCPU || name == corev1.ResourceMemory) && q.Sign() == 1 {
				named++
				if to[name] == nil {
					to[name] = resource.NewQuantity(0, q.Format)
				}
				to[name].Add(q)
			}
		}
		return named
	}
	var all []corev1.ResourceRequirements
	if pod.Spec.Resources != nil {
		all = append(all, *pod.Spec.Resources)
	} else {
		for _, c := range placedContainers(&pod.Spec) {
			all = append(all, c.Resources)
		}
	}
	guaranteed := true
	for _, r := range all {
		requests := r.Limits.DeepCopy() // the API server's default
		if requests == nil {
			requests = corev1.ResourceList{}
		}
		for name, q := range r.Requests {
			requests[name] = q
		}
		add(sums[0], requests)
		guaranteed = add(sums[1], r.Limits) == 2 && guaranteed
	}
	if len(sums[0]) == 0 && len(sums[1]) == 0 {
		return corev1.PodQOSBestEffort
	}
	for name, q := range sums[0] {
		guaranteed = guaranteed && sums[1][name] != nil && q.Cmp(*sums[1][name]) == 0
	}
	if guaranteed && len(sums[0]) == len(sums[1]) {
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// podWith makes a TaskRun pod as text, so that it can hold what no Go type knows.
func podWith(metadata, spec string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"team-a","labels":{"tekton.dev/taskRun":"r"},
		"ownerReferences":[{"apiVersion":"tekton.dev/v1","kind":"TaskRun","name":"r","uid":"u","controller":true}]%s},
		"spec":{"containers":[{"name":"step-a","image":"i","command":["/tekton/bin/entrypoint"],"args":["--","a"]}]%s}}`, metadata, spec)
}

func TestUnknownFieldsSurvive(t *testing.T) {
	raw := []byte(`{"apiVersion":"v1","kind":"Pod","newTop":{"a":[1,2.50,1e3]},
		"metadata":{"name":"p","labels":{"tekton.dev/taskRun":"r"},"newMeta":"x","annotations":{"a":"b"},
			"ownerReferences":[{"apiVersion":"tekton.dev/v1","kind":"TaskRun","name":"r","uid":"u","controller":true,"newOwner":1}]},
		"spec":{"newSpec":{"deep":[{"x":null}]},"big":12345678901234567890,
			"volumes":[{"name":"v","newVolume":{"z":1}}],
			"initContainers":[{"name":"prepare","image":"i","command":["c"],"restartPolicy":"SomethingNew","newInit":true,"volumeMounts":[{"name":"v","mountPath":"/v","newMount":"y"}]}],
			"containers":[{"name":"step-a","image":"i","command":["c"],"args":["x"],"newContainer":{"q":"r"}}]},
		"status":{"newStatus":1}}`)
	d, patch, err := inject(raw, testSettings(), onSupported)
	if err != nil || d.action != actionInject || len(d.captured) != 2 {
		t.Fatalf("inject: %+v, %v, want two captured containers", d, err)
	}
	out := apply(t, raw, patch)
	undoAndCompare(t, raw, out)
	for _, field := range []string{"newTop", "1e3", "2.50", "newMeta", "newOwner", "newSpec", "12345678901234567890", "newVolume", "newInit", "SomethingNew", "newMount", "newContainer", "newStatus"} {
		if !bytes.Contains(out, []byte(field)) {
			t.Errorf("%s is lost", field)
		}
	}
	for _, o := range patch {
		if o.Path == "" || o.Path == "/" || o.Path == "/spec" || o.Path == "/metadata" || o.Path == "/spec/containers" || o.Path == "/spec/containers/0" {
			t.Errorf("operation on %q replaces more than ours", o.Path)
		}
	}
}

// TestMissingParents makes pods in which the arrays and maps that the patch adds to are missing, null or empty.
func TestMissingParents(t *testing.T) {
	for name, tc := range map[string]struct{ metadata, spec string }{
		"missing": {``, ``},
		"null":    {`,"annotations":null`, `,"volumes":null,"initContainers":null,"terminationGracePeriodSeconds":null`},
		"empty":   {`,"annotations":{}`, `,"volumes":[],"initContainers":[]`},
		"present": {`,"annotations":{"a":"b"}`, `,"volumes":[{"name":"v"}],"initContainers":[{"name":"i","image":"i"}]`},
	} {
		t.Run(name, func(t *testing.T) {
			raw := podWith(tc.metadata, tc.spec)
			d, patch, err := inject(raw, testSettings(), onSupported)
			if err != nil {
				t.Fatalf("inject: %v", err)
			}
			out := apply(t, raw, patch)
			checkOutcome(t, testSettings(), raw, out, d)
		})
	}
}

func TestRepairRestartPolicy(t *testing.T) {
	raw := podWith("", "")
	_, patch, err := inject(raw, testSettings(), onSupported)
	if err != nil {
		t.Fatal(err)
	}
	injected := apply(t, raw, patch)
	for name, damage := range map[string]string{
		"dropped": `[{"op":"remove","path":"/spec/initContainers/0/restartPolicy"}]`,
		"changed": `[{"op":"replace","path":"/spec/initContainers/0/restartPolicy","value":"Never"}]`,
		"and not first": `[{"op":"remove","path":"/spec/initContainers/0/restartPolicy"},
			{"op":"add","path":"/spec/initContainers/0","value":{"name":"other","image":"i"}}]`,
	} {
		t.Run(name, func(t *testing.T) {
			change, err := evanphx5.DecodePatch([]byte(damage))
			if err != nil {
				t.Fatal(err)
			}
			damaged, err := change.Apply(injected)
			if err != nil {
				t.Fatal(err)
			}
			s := testSettings()
			s.repairRestartPolicy = true
			d, patch, err := inject(damaged, s, onSupported)
			if err != nil || d.action != actionRepair || len(patch) != 1 {
				t.Fatalf("inject: %s with %d operations, %v, want repaired with 1", d.action, len(patch), err)
			}
			repaired := decodeTestPod(t, apply(t, damaged, patch))
			if i := injectedShipper(repaired); i < 0 || *repaired.Spec.InitContainers[i].RestartPolicy != corev1.ContainerRestartPolicyAlways {
				t.Error("restartPolicy is not Always again")
			}
		})
	}
}

// TestStaleAnnotation removes what a tenant typed, since the annotation is our word.
func TestStaleAnnotation(t *testing.T) {
	raw := podWith(`,"annotations":{"shiplog.dev/skipped":"step-a=forged"}`, "")
	_, patch, err := inject(raw, testSettings(), onSupported)
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := decodeTestPod(t, apply(t, raw, patch)).Annotations[contract.SkippedAnnotation]; ok {
		t.Errorf("annotation %q stays", v)
	}
}

func TestConfigOfShipper(t *testing.T) {
	for name, tc := range map[string]struct {
		spec   string
		change func(*settings)
		want   time.Duration
	}{
		"unbounded":                 {"", func(*settings) {}, 0},
		"setting":                   {"", func(s *settings) { s.kubernetesSidecar = true }, 5 * time.Second},
		"Tekton's native sidecar":   {`,"initContainers":[{"name":"sidecar-x","image":"i","restartPolicy":"Always"}]`, func(*settings) {}, 5 * time.Second},
		"another's native sidecar":  {`,"initContainers":[{"name":"mesh","image":"i","restartPolicy":"Always"}]`, func(*settings) {}, 0},
		"a step's ordinary sidecar": {`,"initContainers":[{"name":"sidecar-x","image":"i"}]`, func(*settings) {}, 0},
		"setting of the bound":      {"", func(s *settings) { s.kubernetesSidecar, s.boundedDrain = true, time.Second }, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			s := testSettings()
			tc.change(&s)
			raw := podWith("", tc.spec)
			_, patch, err := inject(raw, s, onSupported)
			if err != nil {
				t.Fatal(err)
			}
			shipper := decodeTestPod(t, apply(t, raw, patch)).Spec.InitContainers[0]
			config, err := contract.Decode(shipper.Env[0].Value)
			if err != nil {
				t.Fatal(err)
			}
			if got := time.Duration(config.DrainTimeout); got != tc.want {
				t.Errorf("drain timeout %v, want %v", got, tc.want)
			}
		})
	}
}

// TestCheckPatch feeds the self-check patches that we would never make: the API server would refuse the pod for each.
func TestCheckPatch(t *testing.T) {
	raw := podWith("", "")
	for name, tc := range map[string]struct {
		patch []jsonpatch.Operation
		d     decision
	}{
		"path that is not there": {[]jsonpatch.Operation{op("replace", "/spec/containers/7/command", "x")}, skip(windows)},
		"wrong type":             {[]jsonpatch.Operation{op("add", "/spec/containers", "x")}, skip(windows)},
		"no operation":           {[]jsonpatch.Operation{op("frob", "/spec", "x")}, skip(windows)},
		"does not inject":        {[]jsonpatch.Operation{op("add", "/spec/hostname", "x")}, decision{action: actionInject}},
		"cannot be encoded":      {[]jsonpatch.Operation{op("add", "/spec/hostname", func() {})}, skip(windows)},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := checkPatch(raw, tc.patch, tc.d); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestInjectRefuses(t *testing.T) {
	for name, raw := range map[string]string{
		"nothing": "", "no JSON": "{", "an array": "[]", "a pod of the wrong shape": `{"spec":{"containers":"x"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, patch, err := inject([]byte(raw), testSettings(), onSupported); err == nil || patch != nil {
				t.Errorf("patch %v, error %v, want an error alone", patch, err)
			}
		})
	}
}

// dropRestartPolicies is what a webhook does to a pod that knows no native sidecars.
func dropRestartPolicies(t *testing.T, raw []byte) []byte {
	t.Helper()
	pod := decodeMap(t, raw)
	inits, _ := child(pod, "spec")["initContainers"].([]any)
	for _, c := range inits {
		delete(c.(map[string]any), "restartPolicy")
	}
	out, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// plain makes pods comparable that run the same: a command line may be in the command, or in command and arguments.
func plain(t *testing.T, raw []byte) *corev1.Pod {
	t.Helper()
	pod := decodeTestPod(t, raw)
	for _, c := range placedContainers(&pod.Spec) {
		if len(c.Command) > 0 {
			c.Command, c.Args = append(slices.Clone(c.Command), c.Args...), nil
		}
		c.RestartPolicy = nil // of Tekton's own sidecars, which is dropped as well
	}
	if pod.Spec.TerminationGracePeriodSeconds == nil {
		pod.Spec.TerminationGracePeriodSeconds = ptr.To[int64](corev1.DefaultTerminationGracePeriodSeconds)
	}
	delete(pod.Annotations, contract.SkippedAnnotation)
	return pod
}

// TestUndo: a pod whose shipper another webhook has spoilt runs as if it had never been injected.
func TestUndo(t *testing.T) {
	undone := 0
	for _, c := range taskRunPods() {
		t.Run(c.name, func(t *testing.T) {
			raw := c.build(t)
			d, patch, err := inject(raw, c.settingsFor(), onSupported)
			if err != nil {
				t.Fatal(err)
			}
			if d.action != actionInject {
				return
			}
			undone++
			dropped := dropRestartPolicies(t, apply(t, raw, patch))
			d, patch, err = inject(dropped, c.settingsFor(), onSupported)
			if err != nil || d.action != actionUndo {
				t.Fatalf("inject: %s, %v, want undone", d.action, err)
			}
			out := apply(t, dropped, patch)
			if diff := cmp.Diff(plain(t, raw), plain(t, out), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("the pod is not as it was (-was +is):\n%s", diff)
			}
			if got := decodeTestPod(t, out).Annotations[contract.SkippedAnnotation]; got != "pod=restart-policy-dropped" {
				t.Errorf("annotation %q does not say why", got)
			}
			if d, patch, err := inject(out, c.settingsFor(), onSupported); err != nil || len(patch) > 0 || d.reason != policyDropped {
				t.Errorf("the next pass: %s %q with %d operations, %v, want it left alone", d.action, d.reason, len(patch), err)
			}
		})
	}
	if undone == 0 {
		t.Error("no pod was injected: the test compares nothing")
	}
}

// TestUndoImpossible: where the command line is not tee's any more, the restartPolicy is put back.
func TestUndoImpossible(t *testing.T) {
	raw := podWith("", "")
	_, patch, err := inject(raw, testSettings(), onSupported)
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{"changed": {"x"}, "no command": {"--spool", "/s", "--limit", "1", "--grace", "1s", "--"}} {
		t.Run(name, func(t *testing.T) {
			pod := decodeTestPod(t, dropRestartPolicies(t, apply(t, raw, patch)))
			pod.Spec.Containers[0].Args = args
			spoilt, err := json.Marshal(pod)
			if err != nil {
				t.Fatal(err)
			}
			d, patch, err := inject(spoilt, testSettings(), onSupported)
			if err != nil || d.action != actionRepair || len(patch) != 1 {
				t.Errorf("inject: %s with %d operations, %v, want repaired with 1", d.action, len(patch), err)
			}
		})
	}
}
