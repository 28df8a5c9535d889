//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/shiplog-dev/shiplog/internal/contract"
)

// TestContainersShareTheSpool has two steps of different users print how much of the spool they may
// have. Together, a pod's containers may have no more than one limit.
func TestContainersShareTheSpool(t *testing.T) {
	t.Parallel()
	const show = "script: cat /shiplog/spool/tee/limit"
	tr := finish(t, newTaskRun(t, nsOnRestricted, "spool-shares", taskSpec(t, `
taskSpec:
  steps:
    - {name: a, image: busybox, `+secure(65532)+`, `+show+`}
    - {name: b, image: busybox, `+secure(1000)+`, `+show+`}`), nil))
	config := shipperConfig(t, podOf(t, tr))
	sealed(t, tr.Namespace, tr.Name)
	sum := int64(0)
	for _, container := range []string{"step-a", "step-b"} {
		text, err := archivedText(t.Context(), tr.Namespace, tr.Name, container)
		if err != nil {
			t.Fatal(err)
		}
		var share, free int64
		if _, err := fmt.Sscan(text, &share, &free); err != nil || free != config.DiskFree {
			t.Fatalf("%s: %q, %v, want %d %% free", container, text, err, config.DiskFree)
		}
		// Half of the limit belongs to all in equal parts; shares are rounded.
		if least := config.SpoolLimit / 2 / int64(len(config.Containers)+1); share < least {
			t.Errorf("%s may have %d bytes, want %d at least", container, share, least)
		}
		sum += share
	}
	if sum > config.SpoolLimit {
		t.Errorf("two of %v may have %d bytes, the limit is %d", config.Containers, sum, config.SpoolLimit)
	}
}

// shipperConfig is what a pod's shipper was told.
func shipperConfig(t *testing.T, pod *corev1.Pod) contract.Config {
	t.Helper()
	shipper := shipperOf(pod)
	if shipper == nil {
		t.Fatalf("%s has no shipper: %v", pod.Name, pod.Annotations)
	}
	at := slices.IndexFunc(shipper.Env, func(e corev1.EnvVar) bool { return e.Name == contract.ConfigEnv })
	if at < 0 {
		t.Fatalf("the shipper of %s has no %s", pod.Name, contract.ConfigEnv)
	}
	config, err := contract.Decode(shipper.Env[at].Value)
	if err != nil {
		t.Fatal(err)
	}
	return config
}
