package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/tektoncd/pipeline/pkg/apis/config"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline"
	podtemplate "github.com/tektoncd/pipeline/pkg/apis/pipeline/pod"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/names"
	tektonpod "github.com/tektoncd/pipeline/pkg/pod"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"
)

// taskRunPod is a TaskRun, and how Tekton is set up, from which Tekton's own builder makes a pod.
type taskRunPod struct {
	name     string
	about    string // what of Tekton it covers
	flags    map[string]string
	spec     v1.TaskSpec
	run      v1.TaskRunSpec
	annotate map[string]string
	retries  int
	change   func(*corev1.Pod) // what others did to the pod before our webhook saw it
	settings func(*settings)
}

const (
	stepImage = "docker.io/library/busybox"
	alpha     = "alpha"
)

func step(name string, more ...func(*v1.Step)) v1.Step {
	s := v1.Step{Name: name, Image: stepImage, Command: []string{"echo"}, Args: []string{"hello"}}
	for _, f := range more {
		f(&s)
	}
	return s
}

func script(text string) func(*v1.Step) {
	return func(s *v1.Step) { s.Command, s.Args, s.Script = nil, nil, text }
}

func quantities(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

// everyContainer gives all containers the same resources, as a LimitRange does.
func everyContainer(r corev1.ResourceRequirements) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, c := range placedContainers(&p.Spec) {
			c.Resources = *r.DeepCopy()
		}
	}
}

// asAdmitted adds what the API server's defaults and its ServiceAccount admission have added by the time that webhooks are called.
func asAdmitted(p *corev1.Pod) {
	p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](30)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{}
	p.Spec.SchedulerName, p.Spec.DNSPolicy, p.Spec.EnableServiceLinks = "default-scheduler", corev1.DNSClusterFirst, ptr.To(true)
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "kube-api-access-x7k2p", VolumeSource: corev1.VolumeSource{
		Projected: &corev1.ProjectedVolumeSource{DefaultMode: ptr.To[int32](0o644), Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: ptr.To[int64](3607), Path: "token"}},
		}},
	}})
	for _, c := range placedContainers(&p.Spec) {
		c.TerminationMessagePolicy, c.ImagePullPolicy = corev1.TerminationMessageReadFile, corev1.PullAlways
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "kube-api-access-x7k2p", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"})
	}
}

func taskRunPods() []taskRunPod {
	return []taskRunPod{
		{name: "command", about: "one step with a command: the smallest pod", spec: v1.TaskSpec{Steps: []v1.Step{step("hello")}}},
		{name: "admitted", about: "as the API server sends it: defaults and the default token are in", change: asAdmitted,
			spec: v1.TaskSpec{Steps: []v1.Step{step("hello"), step("", script("echo unnamed"))}}},
		{name: "scripts", about: "place-scripts; a shebang; expansions that must stay as they are", spec: v1.TaskSpec{Steps: []v1.Step{
			step("sh", script("echo $(HOME) $$(NOT) ${X}")),
			step("python", script("#!/usr/bin/env python3\nprint('hello')\n")),
			step("args", func(s *v1.Step) { s.Args = []string{"$(POD_NAME)", "$$(POD_NAME)", "$$", "", "--", "a b"} }),
		}}},
		{name: "sidecars", about: "a sidecar with a script, one with a command, one with its image's command", spec: v1.TaskSpec{
			Steps: []v1.Step{step("test")},
			Sidecars: []v1.Sidecar{
				{Name: "scripted", Image: stepImage, Script: "sleep 1000"},
				{Name: "commanded", Image: stepImage, Command: []string{"sleep"}, Args: []string{"1000"}},
				{Name: "database", Image: "docker.io/library/postgres", Args: []string{"-c", "fsync=off"}},
			},
		}},
		{name: "kubernetes-sidecar", about: "enable-kubernetes-sidecar: Tekton's sidecars are native ones, and the drain is bounded",
			flags: map[string]string{"enable-kubernetes-sidecar": "true"},
			spec: v1.TaskSpec{Steps: []v1.Step{step("test")}, Sidecars: []v1.Sidecar{
				{Name: "scripted", Image: stepImage, Script: "sleep 1000"},
				{Name: "database", Image: "docker.io/library/postgres"},
			}}},
		{name: "kubernetes-sidecar-without-sidecars", about: "enable-kubernetes-sidecar, which this pod does not show: the setting bounds the drain",
			flags:    map[string]string{"enable-kubernetes-sidecar": "true"},
			settings: func(s *settings) { s.kubernetesSidecar = true },
			spec:     v1.TaskSpec{Steps: []v1.Step{step("test")}}},
		{name: "results", about: "results of task and step", spec: v1.TaskSpec{
			Results: []v1.TaskResult{{Name: "digest"}, {Name: "url"}},
			Steps: []v1.Step{step("build", func(s *v1.Step) {
				s.Results = []v1.StepResult{{Name: "image"}}
			}, script("echo -n x > $(results.digest.path)"))},
		}},
		{name: "results-sidecar-logs", about: "results-from: sidecar-logs: Tekton reads them from the log of a sidecar",
			flags: map[string]string{"results-from": "sidecar-logs"},
			spec:  v1.TaskSpec{Results: []v1.TaskResult{{Name: "digest"}}, Steps: []v1.Step{step("build"), step("push")}}},
		{name: "output-config", about: "stdoutConfig and stderrConfig: Tekton's entrypoint tees as well",
			flags: map[string]string{"enable-api-fields": alpha},
			spec: v1.TaskSpec{Steps: []v1.Step{step("build", func(s *v1.Step) {
				s.StdoutConfig = &v1.StepOutputConfig{Path: "/tekton/results/out"}
				s.StderrConfig = &v1.StepOutputConfig{Path: "/data/err"}
			})}}},
		{name: "hermetic", about: "hermetic execution", flags: map[string]string{"enable-api-fields": alpha},
			annotate: map[string]string{tektonpod.ExecutionModeAnnotation: tektonpod.ExecutionModeHermetic},
			spec:     v1.TaskSpec{Steps: []v1.Step{step("build")}}},
		{name: "breakpoint-on-failure", about: "debug: the step waits after a failure", flags: map[string]string{"enable-api-fields": alpha},
			spec: v1.TaskSpec{Steps: []v1.Step{step("build", script("exit 1"))}},
			run:  v1.TaskRunSpec{Debug: &v1.TaskRunDebug{Breakpoints: &v1.TaskBreakpoints{OnFailure: "enabled"}}}},
		{name: "breakpoint-before-step", about: "debug: the step waits before it begins", flags: map[string]string{"enable-api-fields": alpha},
			spec: v1.TaskSpec{Steps: []v1.Step{step("fetch"), step("build", script("make"))}},
			run:  v1.TaskRunSpec{Debug: &v1.TaskRunDebug{Breakpoints: &v1.TaskBreakpoints{BeforeSteps: []string{"build"}}}}},
		{name: "image-command", about: "the command is in a multi-platform image: Tekton puts all of them into an environment variable", spec: v1.TaskSpec{Steps: []v1.Step{
			step("default", func(s *v1.Step) { s.Image, s.Command, s.Args = "REGISTRY/multi:1", nil, nil }),
			step("args", func(s *v1.Step) { s.Image, s.Command, s.Args = "REGISTRY/multi:1", nil, []string{"--version"} }),
		}}},
		{name: "workspaces", about: "workspaces as volumes, and working folders in them", spec: v1.TaskSpec{
			Steps: []v1.Step{step("build", func(s *v1.Step) {
				s.WorkingDir = "/workspace/source"
				s.VolumeMounts = []corev1.VolumeMount{{Name: "ws-1", MountPath: "/workspace/source", SubPath: "src"}}
			})},
			Volumes: []corev1.Volume{{Name: "ws-1", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "source"}}}},
		}},
		{name: "retry", about: "the second pod of a TaskRun", retries: 1, spec: v1.TaskSpec{Steps: []v1.Step{step("flaky")}}},
		{name: "windows", about: "left alone, and said so", flags: map[string]string{"enable-api-fields": alpha},
			spec: v1.TaskSpec{Steps: []v1.Step{step("build", script("#!win pwsh.exe -File\nWrite-Host hello"))}},
			run:  v1.TaskRunSpec{PodTemplate: &podtemplate.Template{NodeSelector: map[string]string{"kubernetes.io/os": "windows"}}}},
		{name: "step-security-context", about: "a step with a read-only root, a UID of its own and no capabilities", spec: v1.TaskSpec{Steps: []v1.Step{
			step("build", func(s *v1.Step) {
				s.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr.To[int64](1000), ReadOnlyRootFilesystem: ptr.To(true),
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
			}),
		}}, run: v1.TaskRunSpec{PodTemplate: &podtemplate.Template{SecurityContext: &corev1.PodSecurityContext{FSGroup: ptr.To[int64](2000), RunAsUser: ptr.To[int64](1001)}}}},
		{name: "set-security-context", about: "set-security-context: Tekton's own containers fit Pod Security restricted",
			flags: map[string]string{"set-security-context": "true", "set-security-context-read-only-root-filesystem": "true"},
			spec:  v1.TaskSpec{Steps: []v1.Step{step("build", script("make"))}}},
		{name: "openshift", about: "no UID", settings: func(s *settings) { s.openShift = true }, spec: v1.TaskSpec{Steps: []v1.Step{step("build")}}},
		{name: "resource-limits", about: "limits of memory, one too small for tee, and of local storage", spec: v1.TaskSpec{Steps: []v1.Step{
			step("tiny", func(s *v1.Step) {
				s.ComputeResources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("16Mi")}
			}),
			step("build", func(s *v1.Step) {
				s.ComputeResources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("2Gi")}
			}),
		}}},
		{name: "guaranteed", about: "QoS class Guaranteed stays", spec: v1.TaskSpec{Steps: []v1.Step{step("build", script("make"))}},
			change: everyContainer(corev1.ResourceRequirements{Requests: quantities("500m", "256Mi"), Limits: quantities("500m", "256Mi")})},
		{name: "guaranteed-by-limits", about: "limits alone make it Guaranteed", spec: v1.TaskSpec{Steps: []v1.Step{step("build")}},
			change: everyContainer(corev1.ResourceRequirements{Limits: quantities("2", "1Gi")})},
		{name: "pod-resources", about: "resources of the pod as a whole", spec: v1.TaskSpec{Steps: []v1.Step{step("build")}},
			change: func(p *corev1.Pod) {
				p.Spec.Resources = &corev1.ResourceRequirements{Requests: quantities("1", "1Gi"), Limits: quantities("1", "1Gi")}
			}},
		{name: "step-template", about: "what a template gives each step", spec: v1.TaskSpec{
			StepTemplate: &v1.StepTemplate{Env: []corev1.EnvVar{{Name: "CI", Value: "true"}}, Command: []string{"sh", "-c"}},
			Steps:        []v1.Step{{Name: "one", Image: stepImage, Args: []string{"echo $CI"}}, {Name: "two", Image: stepImage, Args: []string{"env"}}},
		}},
		{name: "timeout-on-error", about: "a step's timeout, onError and when", flags: map[string]string{"enable-api-fields": alpha}, spec: v1.TaskSpec{Steps: []v1.Step{
			step("flaky", func(s *v1.Step) {
				s.OnError = v1.Continue
				s.Timeout = &metav1.Duration{Duration: 90 * time.Second}
			}),
			step("strict", func(s *v1.Step) { s.OnError = v1.StopAndFail }),
		}}, run: v1.TaskRunSpec{Timeout: &metav1.Duration{Duration: 10 * time.Minute}}},
		{name: "keep-pod-on-cancel", about: "cancel by file", flags: map[string]string{"enable-api-fields": alpha, "keep-pod-on-cancel": "true"},
			spec: v1.TaskSpec{Steps: []v1.Step{step("build"), step("test")}}},
		{name: "other-injectors", about: "another webhook's sidecar and init container, with and without a command", spec: v1.TaskSpec{Steps: []v1.Step{step("build")}},
			change: func(p *corev1.Pod) {
				p.Spec.InitContainers = append([]corev1.Container{{Name: "mesh-proxy", Image: "mesh.example/proxy", RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways)}}, p.Spec.InitContainers...)
				p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "agent", Image: "agent.example/agent", Command: []string{"/agent"}})
			}},
		{name: "terminal", about: "a container with a terminal, one with standard input, one that mounts at our path", spec: v1.TaskSpec{Steps: []v1.Step{step("build")}},
			change: func(p *corev1.Pod) {
				p.Spec.Containers = append(p.Spec.Containers,
					corev1.Container{Name: "shell", Image: stepImage, Command: []string{"sh"}, Stdin: true, TTY: true},
					corev1.Container{Name: "pipe", Image: stepImage, Command: []string{"cat"}, Stdin: true},
					corev1.Container{Name: "clash", Image: stepImage, Command: []string{"cat"}, VolumeMounts: []corev1.VolumeMount{{Name: "tekton-internal-home", MountPath: "shiplog/spool/"}}})
			}},
		{name: "nothing-to-capture", about: "no container is left to capture", spec: v1.TaskSpec{Steps: []v1.Step{step("tiny")}},
			change: everyContainer(corev1.ResourceRequirements{Limits: quantities("1", "8Mi")})},
		{name: "opted-out", about: "the run's annotation: nothing is touched", annotate: map[string]string{"shiplog.dev/inject": "false"},
			spec: v1.TaskSpec{Steps: []v1.Step{step("secret")}}},
	}
}

// build makes the pod as Tekton does, and as the same bytes each time.
func (c taskRunPod) build(t *testing.T) []byte {
	t.Helper()
	// Tekton makes up parts of file names; count instead.
	old := names.SimpleNameGenerator
	t.Cleanup(func() { names.SimpleNameGenerator = old })
	names.SimpleNameGenerator = &countingNames{NameGenerator: old}
	output := log.Writer() // Tekton's builder warns through it
	t.Cleanup(func() { log.SetOutput(output) })
	log.SetOutput(io.Discard)

	host := imageRegistry(t)
	for i := range c.spec.Steps {
		c.spec.Steps[i].Image = strings.Replace(c.spec.Steps[i].Image, "REGISTRY", host, 1)
	}
	flags := map[string]string{}
	maps.Copy(flags, c.flags)
	features, err := config.NewFeatureFlagsFromMap(flags)
	if err != nil {
		t.Fatalf("Tekton's feature flags: %v", err)
	}
	defaults, err := config.NewDefaultsFromMap(map[string]string{})
	if err != nil {
		t.Fatalf("Tekton's defaults: %v", err)
	}
	ctx := config.ToContext(t.Context(), &config.Config{Defaults: defaults, FeatureFlags: features})

	kube := fake.NewClientset(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "team-a"}})
	kube.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{Major: "1", Minor: "34"}
	cache, err := tektonpod.NewEntrypointCache(kube)
	if err != nil {
		t.Fatalf("Tekton's entrypoint cache: %v", err)
	}
	builder := tektonpod.Builder{KubeClient: kube, EntrypointCache: cache, Images: pipeline.Images{
		EntrypointImage: "tekton.example/entrypoint", NopImage: "tekton.example/nop", SidecarLogResultsImage: "tekton.example/sidecarlogresults",
		ShellImage: "tekton.example/shell", ShellImageWin: "tekton.example/pwsh", WorkingDirInitImage: "tekton.example/workingdirinit",
	}}
	run := &v1.TaskRun{
		ObjectMeta: metav1.ObjectMeta{Name: "build-" + c.name, Namespace: "team-a", UID: "6f5902ac-2f3c-4c5e-9a39-0f1f5b1b8b3e",
			Labels:      map[string]string{"tekton.dev/pipelineRun": "build", "tekton.dev/pipelineTask": c.name},
			Annotations: c.annotate},
		Spec: c.run,
	}
	run.Status.RetriesStatus = make([]v1.TaskRunStatus, c.retries)
	if run.Spec.ServiceAccountName == "" {
		run.Spec.ServiceAccountName = "default"
	}
	pod, err := builder.Build(ctx, run, c.spec)
	if err != nil {
		t.Fatalf("Tekton's builder: %v", err)
	}
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	pod.Annotations[tektonpod.ReleaseAnnotation] = "v1.15.1" // the builder takes the version of the test binary
	if c.change != nil {
		c.change(pod)
	}
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatalf("encode pod: %v", err)
	}
	return []byte(strings.ReplaceAll(string(raw), host, "registry.example"))
}

// settingsFor are the settings of the case.
func (c taskRunPod) settingsFor() settings {
	s := testSettings()
	if c.settings != nil {
		c.settings(&s)
	}
	return s
}

func testSettings() settings {
	s := defaultSettings()
	s.shipperImage = "shiplog.example/shipper:v1"
	return s
}

// countingNames makes names with a running number for a suffix.
type countingNames struct {
	names.NameGenerator
	n int
}

func (g *countingNames) RestrictLengthWithRandomSuffix(base string) string {
	g.n++
	return fmt.Sprintf("%s-%05d", base, g.n)
}

// imageRegistry serves one image for two platforms, each with a command of its own.
func imageRegistry(t *testing.T) (host string) {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host = strings.TrimPrefix(server.URL, "http://")

	var index ggcr.ImageIndex = empty.Index
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := mutate.ConfigFile(empty.Image, &ggcr.ConfigFile{OS: "linux", Architecture: arch,
			Config: ggcr.Config{Entrypoint: []string{"/bin/" + arch}, Cmd: []string{"serve"}}})
		if err != nil {
			t.Fatalf("make image: %v", err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: arch}}})
	}
	ref, err := name.ParseReference(host + "/multi:1")
	if err != nil {
		t.Fatalf("name image: %v", err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(context.WithoutCancel(t.Context()))); err != nil {
		t.Fatalf("push image: %v", err)
	}
	return host
}
