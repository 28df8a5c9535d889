#!/usr/bin/env bash
# Prints everything to install, with the images of a registry.
# usage: render.sh base|OVERLAY REGISTRY VERSION
set -euo pipefail
cd "$(dirname "$0")/.."

overlay=$1 registry=$2 version=$3
kubectl=${KUBECTL:-$(command -v kubectl || go run ./tests/cluster binary kubectl)}
source=manifests/base
[ "$overlay" = base ] || source=manifests/overlays/$overlay
[ -f "$source/kustomization.yaml" ] || { echo "render: there is no $source/kustomization.yaml" >&2; exit 1; }

# Kustomize takes no image names from outside, and its images transformer does not know the shipper's, which is an environment variable. So the
# two are set in a kustomization on top. It must be inside the tree, since kustomize does not resolve paths from elsewhere.
mkdir -p bin
work=$(mktemp -d bin/render.XXXXXX)
trap 'rm -rf "$work"' EXIT
cat >"$work/kustomization.yaml" <<YAML
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - ../../$source
images:
  - name: shiplog-webhook
    newName: $registry/shiplog-webhook
    newTag: "$version"
  - name: shiplog-backend
    newName: $registry/shiplog-backend
    newTag: "$version"
patches:
  - target: {kind: Deployment, name: shiplog-webhook}
    patch: |
      - op: replace
        path: /spec/template/spec/containers/0/env/0/value
        value: $registry/shiplog-shipper:$version
YAML
"$kubectl" kustomize "$work"
