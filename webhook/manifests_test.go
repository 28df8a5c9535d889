package main

import (
	"os"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/objectstore"
)

// TestKeysAreFiles: every part of shiplog reads the store's keys from a mounted Secret, so that keys
// are rotated without a restart, and starts without one, where its pod has a cloud identity.
func TestKeysAreFiles(t *testing.T) {
	for file, secret := range map[string]string{
		"deployment.yaml": "shiplog-s3",
		"annotator.yaml":  "shiplog-s3",
		"backend.yaml":    "shiplog-s3-reader",
		"compactor.yaml":  "shiplog-s3-compactor",
	} {
		t.Run(file, func(t *testing.T) {
			text, err := os.ReadFile("../manifests/base/" + file)
			if err != nil {
				t.Fatal(err)
			}
			for doc := range strings.SplitSeq(string(text), "\n---\n") {
				var head metav1.TypeMeta
				if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
					t.Fatal(err)
				}
				if head.Kind == "Deployment" {
					checkKeyFiles(t, doc, secret)
					return
				}
			}
			t.Fatal("there is no Deployment in it")
		})
	}
}

func checkKeyFiles(t *testing.T, doc, secret string) {
	t.Helper()
	var d appsv1.Deployment
	if err := yaml.UnmarshalStrict([]byte(doc), &d); err != nil {
		t.Fatal(err)
	}
	spec := d.Spec.Template.Spec
	c := spec.Containers[0]
	for _, from := range c.EnvFrom {
		if from.SecretRef != nil {
			t.Errorf("the Secret %s is environment, which stays what it was at the start", from.SecretRef.Name)
		}
	}
	dir := ""
	for _, env := range c.Env {
		if env.Name == objectstore.EnvCredentials {
			dir = env.Value
		}
	}
	volume := ""
	for _, m := range c.VolumeMounts {
		if m.MountPath == dir && m.ReadOnly && m.SubPath == "" { // with a subPath it would not be updated
			volume = m.Name
		}
	}
	for _, v := range spec.Volumes {
		from := v.Secret
		if v.Name == volume && from != nil && from.SecretName == secret && ptr.Deref(from.Optional, false) {
			return
		}
	}
	t.Errorf("%s=%q is no volume of the optional Secret %s", objectstore.EnvCredentials, dir, secret)
}
