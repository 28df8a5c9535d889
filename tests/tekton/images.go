package main

import (
	"regexp"
	"slices"
	"strings"
)

// images supplies the images that Tekton's tests name.
type images struct {
	registry string // as pods and Tekton's controller reach it
	digest   string // of the image that stands for those of distributions
}

// Images of which the tests use a shell and what belongs to it: one of busybox and bash will do.
var shells = []string{
	"mirror.gcr.io/alpine", "mirror.gcr.io/bash", "mirror.gcr.io/busybox", "mirror.gcr.io/ubuntu",
	"cgr.dev/chainguard/busybox",
}

// A reference to an image of a public registry, with its tag and digest.
var reference = regexp.MustCompile(
	`\b((?:(?:mirror\.|k8s\.)?gcr|ghcr|quay|docker|registry\.k8s)\.io|cgr\.dev|mcr\.microsoft\.com)` +
		`(/[a-zA-Z0-9_-][a-zA-Z0-9._/-]*)(:[a-zA-Z0-9_][a-zA-Z0-9._-]*)?(@sha256:[0-9a-f]{64})?`)

// A field that names an image, and what it names.
var imageField = regexp.MustCompile(`(?m)^[ \t]*(?:- )?image: *["']?([^\s"'#]+)`)

var comment = regexp.MustCompile(`(?m)(^|\s)(#|//)\s.*$`)

// supply replaces the references that the local registry can stand for.
func (im images) supply(text string) string {
	return reference.ReplaceAllStringFunc(text, func(ref string) string {
		parts := reference.FindStringSubmatch(ref)
		name := parts[1] + parts[2]
		switch {
		case slices.Contains(shells, name) && parts[4] != "":
			return im.registry + "/tekton-tests/shell@" + im.digest
		case slices.Contains(shells, name):
			return im.registry + "/tekton-tests/shell:latest"
		case strings.HasPrefix(name, "ghcr.io/tektoncd/pipeline/nop-"):
			return im.registry + "/tekton/nop:local"
		}
		return ref
	})
}

// lacking returns the images in a text, once supplied, that the local registry has nothing for.
func (im images) lacking(text string) []string {
	text = comment.ReplaceAllString(text, "")
	found := slices.DeleteFunc(reference.FindAllString(text, -1), func(ref string) bool {
		return strings.HasPrefix(ref, "gcr.io/my-project/") // it is in results, and nobody runs it
	})
	for _, field := range imageField.FindAllStringSubmatch(text, -1) {
		// "$" begins a parameter, whose value is found by itself, and "%" and "<" are of Go's source.
		if name := field[1]; !strings.HasPrefix(name, im.registry) && !strings.ContainsAny(name, "$%<+") {
			found = append(found, name)
		}
	}
	for i, ref := range found {
		found[i], _, _ = strings.Cut(ref, "@")
	}
	slices.Sort(found)
	return slices.Compact(found)
}
