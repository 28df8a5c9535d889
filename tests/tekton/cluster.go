package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	tekton "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// cluster is the running local cluster with this checkout's shiplog.
type cluster struct {
	client client.Client
	pods   kubernetes.Interface // for the kubelet's logs
	root   string               // the checkout
	vars   map[string]string    // the variables of "cluster env"
	images images
	module module

	settings settings // that tests begin with
}

// module is Tekton's Go module, of the version that runs on the cluster.
type module struct{ Version, Dir string }

// runLabel marks what is made here, so that it can be found and deleted.
const runLabel = "shiplog.dev/tekton-tests"

// settleLimit bounds each wait for what takes seconds on an idle machine.
const settleLimit = 2 * time.Minute

func newCluster(ctx context.Context, deploy bool) (*cluster, error) {
	c := &cluster{vars: map[string]string{}}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("find the checkout: run this inside of it: %w", err)
	}
	c.root = strings.TrimSpace(string(out))
	env, err := c.run(ctx, "go", "run", "./tests/cluster", "env")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(env) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		if name, value, _ := strings.Cut(line, "="); name != "PATH" { // that is for a shell to expand
			c.vars[name] = strings.Trim(value, `'"`)
		}
	}
	c.vars["REGISTRY"] = "localhost:5000/shiplog"
	c.vars["PUSH_REGISTRY"] = c.vars["SHIPLOG_REGISTRY"] + "/shiplog"
	if deploy {
		if _, err := c.run(ctx, "tests/deploy.sh"); err != nil {
			return nil, err
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.vars["KUBECONFIG"])
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = -1, -1
	s := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(s), tekton.AddToScheme(s)); err != nil {
		return nil, err
	}
	if c.client, err = client.New(config, client.Options{Scheme: s}); err != nil {
		return nil, err
	}
	if c.pods, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	if c.images, err = c.pushImage(ctx); err != nil {
		return nil, err
	}
	// The component's pin, since that is what runs.
	out, err = c.output(ctx, filepath.Join(c.root, "tests", "cluster", "components", "tekton"),
		"go", "mod", "download", "-json", "github.com/tektoncd/pipeline")
	if err != nil {
		return nil, err
	}
	return c, json.Unmarshal(out, &c.module)
}

// pushImage makes the image that stands for those that Tekton's tests name. The registry's address
// is one that pods reach too: Tekton's controller looks up an image's entrypoint by itself.
func (c *cluster) pushImage(ctx context.Context) (images, error) {
	const bash = "/bin/bash-static"
	out, err := c.run(ctx, "go", "run", "./tests/cluster", "load-image", "tekton-tests/shell:latest",
		"--entrypoint", "/bin/sh", "--from", "localhost:5000/busybox:latest", "bin/bash="+bash,
		"usr/bin/env=/bin/busybox")
	if err != nil {
		return images{}, err
	}
	_, digest, ok := strings.Cut(strings.TrimSpace(out), "@")
	if !ok {
		return images{}, fmt.Errorf("image tekton-tests/shell: load-image printed no digest: %q", out)
	}
	return images{registry: c.vars["SHIPLOG_REGISTRY"], digest: digest}, nil
}

// environ is this process' environment with the cluster's variables. With the store's among them,
// the CLI reads the archive and nothing else.
func (c *cluster) environ() []string {
	env := os.Environ()
	for name, value := range c.vars {
		env = append(env, name+"="+value)
	}
	return env
}

// run runs a program in the checkout and returns what it prints.
func (c *cluster) run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := c.output(ctx, c.root, name, args...)
	return string(out), err
}

func (c *cluster) output(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, c.environ()
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(stderr.String())
		return stdout.Bytes(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
	}
	return stdout.Bytes(), nil
}

// shiplog runs the CLI as a user without a cluster does.
func (c *cluster) shiplog(ctx context.Context, args ...string) (string, error) {
	return c.run(ctx, filepath.Join(c.root, "bin", "shiplog"), args...)
}

// makeNamespace makes a namespace, with shiplog or without, and waits for its service account.
func (c *cluster) makeNamespace(ctx context.Context, prefix string, shiplog bool) (string, error) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: prefix, Labels: map[string]string{runLabel: "true"},
	}}
	if shiplog {
		ns.Labels[contract.InjectKey] = contract.InjectEnabled
	}
	if err := c.client.Create(ctx, ns); err != nil {
		return "", err
	}
	account := client.ObjectKey{Namespace: ns.Name, Name: "default"}
	return ns.Name, poll(ctx, settleLimit, "service account "+account.String(),
		func(ctx context.Context) (bool, error) {
			err := c.client.Get(ctx, account, &corev1.ServiceAccount{})
			return err == nil, client.IgnoreNotFound(err)
		})
}

// deleteNamespace does not wait.
func (c *cluster) deleteNamespace(ctx context.Context, name string) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	return client.IgnoreNotFound(c.client.Delete(ctx, ns))
}

// addVolumes makes volumes for claims, since the local cluster has nothing that provisions them.
// The controller manager deletes the folder of a hostPath in /tmp once its claim is gone.
func (c *cluster) addVolumes(ctx context.Context, n int) error {
	create := corev1.HostPathDirectoryOrCreate
	for range n {
		id := utilrand.String(8)
		pv := &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{
				Name: "tekton-tests-" + id, Labels: map[string]string{runLabel: "true"},
			},
			Spec: corev1.PersistentVolumeSpec{
				Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("20Gi")},
				AccessModes: []corev1.PersistentVolumeAccessMode{
					corev1.ReadWriteOnce, corev1.ReadWriteMany, corev1.ReadOnlyMany,
				},
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
				PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{
					Path: "/tmp/shiplog-tekton-tests-" + id, Type: &create,
				}},
			},
		}
		if err := c.client.Create(ctx, pv); err != nil {
			return err
		}
	}
	return nil
}

// cleanUp deletes all that was made here, of this run and of those before that were interrupted.
func (c *cluster) cleanUp(ctx context.Context) error {
	mine := client.MatchingLabels{runLabel: "true"}
	var namespaces corev1.NamespaceList
	err := c.client.List(ctx, &namespaces, mine)
	for _, ns := range namespaces.Items {
		err = errors.Join(err, c.deleteNamespace(ctx, ns.Name))
	}
	return errors.Join(err, c.client.DeleteAllOf(ctx, &corev1.PersistentVolume{}, mine))
}

// flags are those of Tekton's features that its examples need beside the defaults, and those that
// its own serial tests change and leave so.
var flags = map[string]string{
	"enable-api-fields": "alpha", "enable-artifacts": "true",
	"enable-cel-in-whenexpression": "true", "enable-param-enum": "true",
	"results-from": "termination-message",
}

// settings are Tekton's, by the ConfigMap that they are in.
type settings map[client.ObjectKey]map[string]string

// configure gives Tekton what its tests need: flags, and the right to read the log of a sidecar
// that prints results. It returns what sets all back.
func (c *cluster) configure(ctx context.Context) (back func(context.Context) error, err error) {
	before, err := c.readSettings(ctx)
	if err != nil {
		return nil, err
	}
	key := client.ObjectKey{Namespace: "tekton-pipelines", Name: "feature-flags"}
	if before[key] == nil {
		return nil, fmt.Errorf("Tekton has no ConfigMap %s", key)
	}
	c.settings = maps.Clone(before)
	c.settings[key] = maps.Clone(before[key])
	maps.Copy(c.settings[key], flags)
	access := filepath.Join(c.module.Dir, "optional_config", "enable-log-access-to-controller")
	back = func(ctx context.Context) error {
		_, err := c.run(ctx, c.vars["KUBECTL"], "delete", "--ignore-not-found", "-f", access)
		return errors.Join(err, c.set(ctx, before))
	}
	if _, err := c.run(ctx, c.vars["KUBECTL"], "apply", "-f", access); err != nil {
		return nil, err
	}
	return back, c.set(ctx, c.settings)
}

// readSettings reads how Tekton is set now.
func (c *cluster) readSettings(ctx context.Context) (settings, error) {
	now := settings{}
	for _, namespace := range []string{"tekton-pipelines", "tekton-pipelines-resolvers"} {
		var all corev1.ConfigMapList
		if err := c.client.List(ctx, &all, client.InNamespace(namespace)); err != nil {
			return nil, fmt.Errorf("Tekton's settings: %w", err)
		}
		for i := range all.Items {
			now[client.ObjectKeyFromObject(&all.Items[i])] = all.Items[i].Data
		}
	}
	return now, nil
}

// set makes Tekton's settings what they are wanted to be.
func (c *cluster) set(ctx context.Context, want settings) error {
	now, err := c.readSettings(ctx)
	if err != nil {
		return err
	}
	for key, data := range want {
		if maps.Equal(now[key], data) {
			continue
		}
		var config corev1.ConfigMap
		if err := c.client.Get(ctx, key, &config); err != nil {
			return fmt.Errorf("Tekton's settings: %w", err)
		}
		config.Data = data
		if err := c.client.Update(ctx, &config); err != nil {
			return fmt.Errorf("Tekton's settings: %w", err)
		}
	}
	return nil
}

// kubeletLog is what the kubelet has of a container.
func (c *cluster) kubeletLog(
	ctx context.Context, pod *corev1.Pod, container string,
) (string, error) {
	options := &corev1.PodLogOptions{Container: container}
	r, err := c.pods.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, options).Stream(ctx)
	if err != nil {
		return "", fmt.Errorf("log of %s/%s, %s: %w", pod.Namespace, pod.Name, container, err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return "", fmt.Errorf("log of %s/%s, %s: %w", pod.Namespace, pod.Name, container, err)
	}
	return string(b), nil
}

// poll asks until a condition holds. Its error wraps context.DeadlineExceeded when it never did.
func poll(ctx context.Context, limit time.Duration, what string,
	ask func(context.Context) (bool, error),
) error {
	err := wait.PollUntilContextTimeout(ctx, 500*time.Millisecond, limit, true, ask)
	if err != nil {
		return fmt.Errorf("waited %s for %s: %w", limit, what, err)
	}
	return nil
}
