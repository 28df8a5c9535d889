package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

//go:embed certmanager.yaml
var certManagerYAML string

// installElsewhere installs what a cluster that is not this program's own lacks for shiplog: Tekton as it is released, and cert-manager's controllers for issuers,
// certificates and CA injection, both built here. KUBECONFIG names the cluster, REGISTRY the registry that it pulls from, PUSH_REGISTRY that registry's name here if it is
// another, and INSTALLED the file that gets the YAML of all that was installed, for "kubectl delete -f".
func installElsewhere(ctx context.Context, progress io.Writer, names []string) error {
	kubeconfig, pull := os.Getenv("KUBECONFIG"), os.Getenv("REGISTRY")
	if kubeconfig == "" || pull == "" {
		return errors.New("install: set KUBECONFIG to the cluster's file and REGISTRY to a registry that it pulls from")
	}
	if runtime.GOOS != "linux" {
		return fmt.Errorf("install: images are made of this machine's binaries, so this needs Linux, not %s: install %s as their own pages say", runtime.GOOS, join(names))
	}
	if err := inCheckout(); err != nil {
		return err
	}
	if err := installPackages(ctx, progress); err != nil {
		return err
	}
	crane, err := binary(ctx, "crane", progress)
	if err != nil {
		return err
	}
	kubectlPath := os.Getenv("KUBECTL")
	if kubectlPath == "" {
		if kubectlPath, err = binary(ctx, "kubectl", progress); err != nil {
			return err
		}
	}
	r := registry{crane: crane, push: cmp.Or(os.Getenv("PUSH_REGISTRY"), pull), pull: pull}
	kubectl := func(ctx context.Context, stdin string, args ...string) (string, error) {
		return runKubectl(ctx, kubectlPath, kubeconfig, stdin, args...)
	}
	var installed []string
	for _, name := range names {
		install, ok := map[string]func(context.Context, io.Writer, registry) ([]string, error){"tekton": tektonElsewhere, "cert-manager": certManagerElsewhere}[name]
		if !ok {
			return fmt.Errorf("install: there is no part %q: tekton or cert-manager", name)
		}
		texts, err := install(ctx, progress, r)
		if err != nil {
			return err
		}
		installed = append(installed, texts...)
		if file := os.Getenv("INSTALLED"); file != "" { // before it is applied, so that what fails half-way can be deleted
			if err := os.WriteFile(file, []byte(strings.Join(installed, "\n---\n")), 0o644); err != nil {
				return fmt.Errorf("install: %w", err)
			}
		}
		if err := applyAll(ctx, kubectl, texts); err != nil {
			return err
		}
		if name == "tekton" {
			err = waitForTekton(ctx, kubectl)
		} else {
			_, err = kubectl(ctx, "", "-n", "cert-manager", "wait", "--for=condition=Available", "deployment", "--all", "--timeout=180s")
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(progress, "  %-14s ready\n", name)
	}
	return nil
}

func tektonElsewhere(ctx context.Context, progress io.Writer, r registry) ([]string, error) {
	built, err := buildAll(ctx, progress, "tekton")
	if err != nil {
		return nil, err
	}
	images, err := tektonImages(ctx, built["tekton"])
	if err != nil {
		return nil, err
	}
	if err := pushAll(ctx, r, images); err != nil {
		return nil, err
	}
	return tektonYAML(ctx, r)
}

func certManagerElsewhere(ctx context.Context, progress io.Writer, r registry) ([]string, error) {
	built, err := buildAll(ctx, progress, "certmanager")
	if err != nil {
		return nil, err
	}
	img := image{ref: "cert-manager:local", entrypoint: []string{"/certmanager"}, user: nonroot, files: map[string]string{"certmanager": filepath.Join(built["certmanager"], "certmanager")}}
	ref, err := img.push(ctx, r)
	if err != nil {
		return nil, err
	}
	crds, err := certManagerCRDs(ctx)
	return []string{crds, strings.ReplaceAll(certManagerYAML, "CERT_MANAGER_IMAGE", ref)}, err
}
