package main

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

//go:embed components/pause/pause.c
var pauseSource string

// image is an image of static binaries.
type image struct {
	ref        string // without the registry, as "tekton/controller:v1.15.1"
	base       string // an image to put the files on, with its registry; empty for none
	entrypoint []string
	user       string            // as "65532:65532"; empty is root
	files      map[string]string // path in the image → file on the host
	links      map[string]string // path in the image → target of a symbolic link
	texts      map[string]string // path in the image → content
}

// registry is where images go.
type registry struct {
	crane      string // path of the tool
	push, pull string // its names for this machine and for pods, as "10.213.0.2:5000" and "localhost:5000"
}

// images is the cluster's own registry.
func (n node) images() registry {
	return registry{crane: n.bin("crane", "crane"), push: n.registry(), pull: "localhost:" + registryPort}
}

// push assembles the image and pushes it. It returns the reference with the digest, as pods pull it.
func (img image) push(ctx context.Context, r registry) (string, error) {
	layer, err := os.CreateTemp("", "layer-*.tar")
	if err != nil {
		return "", fmt.Errorf("image %s: %w", img.ref, err)
	}
	defer os.Remove(layer.Name())
	if err := errors.Join(img.writeLayer(layer), layer.Close()); err != nil {
		return "", fmt.Errorf("image %s: %w", img.ref, err)
	}
	target := r.push + "/" + img.ref
	run := func(args ...string) (string, error) {
		var stdout, stderr bytes.Buffer
		cmd := exec.CommandContext(ctx, r.crane, args...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		endWithCaller(cmd)
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("image %s: crane %s: %w: %s", img.ref, args[0], err, lastLines(stderr.String(), 3))
		}
		return strings.TrimSpace(stdout.String()), nil
	}
	base := []string{"--oci-empty-base"}
	if img.base != "" {
		base = []string{"--base", img.base}
		if rest, ok := strings.CutPrefix(img.base, r.pull+"/"); ok { // pods' name for it, crane runs on the host
			base[1] = r.push + "/" + rest
		}
	}
	if _, err := run(append([]string{"append", "--insecure", "--platform", "linux/" + runtime.GOARCH, "-f", layer.Name(), "-t", target}, base...)...); err != nil {
		return "", err
	}
	args := []string{"mutate", "--insecure", target, "--set-platform", "linux/" + runtime.GOARCH, "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "-t", target}
	if len(img.entrypoint) > 0 {
		args = append(args, "--entrypoint", strings.Join(img.entrypoint, ","))
	}
	if img.user != "" {
		args = append(args, "--user", img.user)
	}
	out, err := run(args...)
	if err != nil {
		return "", err
	}
	_, digest, ok := strings.Cut(out, "@")
	if !ok {
		return "", fmt.Errorf("image %s: crane mutate printed no digest: %q", img.ref, out)
	}
	return r.pull + "/" + img.ref + "@" + digest, nil
}

// writeLayer writes the same bytes for the same content, so that an unchanged image keeps its digest.
func (img image) writeLayer(f *os.File) error {
	w := tar.NewWriter(f)
	made := map[string]bool{}
	mkdir := func(dir string, mode int64) error {
		if dir == "." || dir == "/" || made[dir] {
			return nil
		}
		made[dir] = true
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: mode})
	}
	parents := func(name string) error {
		var dirs []string
		for dir := path.Dir(name); dir != "." && dir != "/"; dir = path.Dir(dir) {
			dirs = append(dirs, dir)
		}
		for _, dir := range slices.Backward(dirs) {
			if err := mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		return nil
	}
	add := func(name string, mode int64, content []byte) error {
		name = strings.TrimPrefix(name, "/")
		if err := parents(name); err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}); err != nil {
			return err
		}
		_, err := w.Write(content)
		return err
	}
	if err := mkdir("tmp", 0o1777); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(img.files)) {
		file := img.files[name]
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := add(name, 0o755, b); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(img.texts)) {
		text := img.texts[name]
		if err := add(name, 0o644, []byte(text)); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(img.links)) {
		target := img.links[name]
		name = strings.TrimPrefix(name, "/")
		if err := parents(name); err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}); err != nil {
			return err
		}
	}
	return w.Close()
}

// clusterImages are the images of the cluster itself.
func clusterImages(ctx context.Context, n node) ([]image, error) {
	source, pause := n.path("pause.c"), n.path("pause")
	if err := os.WriteFile(source, []byte(pauseSource), 0o644); err != nil {
		return nil, fmt.Errorf("image pause: %w", err)
	}
	if out, err := exec.CommandContext(ctx, "gcc", "-static", "-Os", "-o", pause, source).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("image pause: gcc: %w: %s", err, lastLines(string(out), 5))
	}
	var images []image
	for _, ref := range []string{"pause:local", "pause:latest"} { // the first for the sandboxes, the second for pods that name no tag
		images = append(images, image{ref: ref, entrypoint: []string{"/pause"}, files: map[string]string{"pause": pause}})
	}

	busybox, err := busyboxImage(ctx)
	if err != nil {
		return nil, err
	}
	for _, ref := range []string{"busybox:latest", "library/busybox:latest"} { // the second for docker.io/library/busybox
		busybox.ref = ref
		images = append(images, busybox)
	}
	tekton, err := tektonImages(ctx, n.Bin["tekton"])
	return append(images, tekton...), err
}

// busyboxImage is Debian's static busybox, under no name yet.
func busyboxImage(ctx context.Context) (image, error) {
	applets, err := exec.CommandContext(ctx, "/bin/busybox", "--list").Output()
	if err != nil {
		return image{}, fmt.Errorf("image busybox: list applets: %w", err)
	}
	links := map[string]string{}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			links["bin/"+name] = "/bin/busybox"
		}
	}
	return image{
		files: map[string]string{"bin/busybox": "/bin/busybox"}, links: links,
		texts: map[string]string{
			"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
			"etc/group":  "root:x:0:\nnobody:x:65534:\n",
		},
	}, nil
}

// nonroot is the user of images that must not be root, and say so: with set-security-context Tekton's own containers are such.
const nonroot = "65532:65532"

// tektonImages are those that Tekton's YAML names, made of the binaries in a folder.
func tektonImages(ctx context.Context, bin string) ([]image, error) {
	shell, err := busyboxImage(ctx)
	if err != nil {
		return nil, err
	}
	shell.ref, shell.user = "tekton/shell:local", nonroot
	images := []image{shell}
	for _, c := range components {
		if c.name != "tekton" {
			continue
		}
		for _, p := range c.packages {
			name := path.Base(p)
			files := map[string]string{"ko-app/" + name: filepath.Join(bin, name)}
			if name == "resolvers" { // Tekton's base image for it has git and tini; its command is tini
				files["sbin/tini"] = "/usr/bin/tini-static"
			}
			images = append(images, image{ref: "tekton/" + name + ":local", entrypoint: []string{"/ko-app/" + name}, user: nonroot, files: files})
		}
	}
	return images, nil
}

// pushAll pushes images side by side.
func pushAll(ctx context.Context, r registry, images []image) error {
	var wg sync.WaitGroup
	errs := make([]error, len(images))
	for i, img := range images {
		wg.Go(func() { _, errs[i] = img.push(ctx, r) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// parseImage reads the arguments of load-image. Files are relative to the folder of -C, wherever that stands.
func parseImage(args []string) (image, error) {
	const usage = "usage: load-image [-C FOLDER] NAME:TAG [--entrypoint PATH] [--from IMAGE] PATH-IN-IMAGE=FILE …"
	img := image{files: map[string]string{}}
	var folder string
	for i := 0; i < len(args); i++ {
		switch inside, file, found := strings.Cut(args[i], "="); {
		case args[i] == "--entrypoint" && i+1 < len(args):
			i++
			img.entrypoint = strings.Split(args[i], ",")
		case args[i] == "--from" && i+1 < len(args):
			i++
			img.base = args[i]
		case args[i] == "-C" && i+1 < len(args):
			i++
			folder = args[i]
		case strings.HasPrefix(args[i], "-"):
			return image{}, fmt.Errorf("load-image: %q is unknown or lacks its value; %s", args[i], usage)
		case found:
			img.files[inside] = file
		case img.ref == "":
			img.ref = args[i]
			if host, rest, ok := strings.Cut(args[i], "/"); ok && strings.HasSuffix(host, ":"+registryPort) {
				img.ref = rest // both names of the registry are accepted
			}
		default:
			return image{}, fmt.Errorf("load-image: unexpected argument %q; %s", args[i], usage)
		}
	}
	if img.ref == "" || len(img.files) == 0 {
		return image{}, errors.New("load-image: " + usage)
	}
	for inside, file := range img.files {
		if !filepath.IsAbs(file) {
			file = filepath.Join(folder, file)
		}
		abs, err := filepath.Abs(file)
		if err != nil {
			return image{}, fmt.Errorf("load-image: %w", err)
		}
		img.files[inside] = abs
	}
	return img, nil
}
