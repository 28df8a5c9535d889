#!/usr/bin/env bash
# Assembles an image from static binaries on an empty base and pushes it: no container engine is needed.
# usage: push-image.sh REFERENCE ARCH ENTRYPOINT BINARY…
set -euo pipefail
cd "$(dirname "$0")/.."

ref=$1 arch=$2 entrypoint=$3
shift 3
crane=${CRANE:-$(go run ./tests/cluster binary crane)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Fixed owner and times: the same binaries make the same image.
mkdir "$work/root"
install -m 0755 "$@" "$work/root/"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$work/root" -cf "$work/layer.tar" .

"$crane" append --insecure --oci-empty-base --platform "linux/$arch" -f "$work/layer.tar" -t "$ref" >"$work/append.log" 2>&1 \
  || { cat "$work/append.log" >&2; echo "push-image: cannot push $ref" >&2; exit 1; }
"$crane" mutate --insecure "$ref" --entrypoint "$entrypoint" --user 65532:65532 --set-platform "linux/$arch" -t "$ref"
