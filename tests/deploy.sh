#!/usr/bin/env bash
# Builds shiplog, pushes its images and installs it. The demo, the end-to-end tests and the benchmarks all begin here.
#
# Environment:
#   KUBECONFIG            the cluster
#   KUBECTL, CRANE        the tools to use
#   REGISTRY              where pods pull images from, as localhost:5000/shiplog
#   PUSH_REGISTRY         where this machine pushes them, if that is another name of the same registry
#   OVERLAY               base (default) or openshift
#   SHIPLOG_DISK_FREE     how many percent of a node's disk its kubelet wants free, if that is not its default
#   SHIPLOG_S3_…, AWS_…   the S3 settings and keys that shiplog gets
set -euo pipefail
cd "$(dirname "$0")/.."

: "${KUBECONFIG:?}" "${REGISTRY:?}" "${SHIPLOG_S3_BUCKET:?}"
KUBECTL=${KUBECTL:-kubectl}
CRANE=${CRANE:-$(go run ./tests/cluster binary crane)}
export KUBECONFIG KUBECTL CRANE

make --no-print-directory -s build
# The tag is made of what is in the images, so a change always rolls out and no change never does.
version=dev-$(cat bin/webhook bin/shipper bin/tee bin/backend | sha256sum | cut -c1-12)
push=${PUSH_REGISTRY:-$REGISTRY}
arch=$(go env GOARCH)
manifests/push-image.sh "$push/shiplog-webhook:$version" "$arch" /webhook bin/webhook
manifests/push-image.sh "$push/shiplog-backend:$version" "$arch" /backend bin/backend
manifests/push-image.sh "$push/shiplog-shipper:$version" "$arch" /shipper bin/shipper bin/tee

"$KUBECTL" apply -f manifests/base/namespace.yaml
settings=()
for name in SHIPLOG_S3_BUCKET SHIPLOG_S3_PREFIX SHIPLOG_S3_ENDPOINT SHIPLOG_S3_REGION; do
  [ -z "${!name:-}" ] || settings+=("--from-literal=$name=${!name}")
done
"$KUBECTL" -n shiplog-system create configmap shiplog-s3 "${settings[@]}" --dry-run=client -o yaml | "$KUBECTL" apply -f -
if [ -n "${AWS_ACCESS_KEY_ID:-}" ]; then
  # From standard input: arguments can be read by every process of the machine. A trial has one pair of keys for all.
  for secret in shiplog-s3 shiplog-s3-reader shiplog-s3-compactor; do
    "$KUBECTL" apply -f - <<YAML
apiVersion: v1
kind: Secret
metadata: {name: $secret, namespace: shiplog-system}
stringData:
  AWS_ACCESS_KEY_ID: "$AWS_ACCESS_KEY_ID"
  AWS_SECRET_ACCESS_KEY: "$AWS_SECRET_ACCESS_KEY"
YAML
  done
fi
# Where developers reach the backend. In a trial that is within the cluster.
"$KUBECTL" -n shiplog-system get configmap shiplog-info >/dev/null 2>&1 ||
  "$KUBECTL" -n shiplog-system create configmap shiplog-info --from-literal=server=https://shiplog-backend.shiplog-system.svc
disk_free() {
  [ -n "${SHIPLOG_DISK_FREE:-}" ] || exec cat
  sed -E "s|^( *)- --shipper-image=.*|&\n\1- --disk-free=$SHIPLOG_DISK_FREE|"
}
manifests/render.sh "${OVERLAY:-base}" "$REGISTRY" "$version" | disk_free | "$KUBECTL" apply --server-side --force-conflicts -f -
"$KUBECTL" -n shiplog-system wait --for=condition=Ready certificate/shiplog-webhook certificate/shiplog-backend --timeout=120s
"$KUBECTL" -n shiplog-system rollout status deployment/shiplog-webhook --timeout=180s
"$KUBECTL" -n shiplog-system rollout status deployment/shiplog-annotator --timeout=180s
"$KUBECTL" -n shiplog-system rollout status deployment/shiplog-backend --timeout=180s
"$KUBECTL" -n shiplog-system rollout status deployment/shiplog-compactor --timeout=180s
# Until cert-manager has written the CA, the API server cannot call the webhook, and pods would silently stay without shiplog.
for _ in $(seq 120); do
  [ -z "$("$KUBECTL" get mutatingwebhookconfiguration shiplog -o jsonpath='{.webhooks[0].clientConfig.caBundle}')" ] || exit 0
  sleep 1
done
echo 'deploy: cert-manager has not written the CA into the MutatingWebhookConfiguration shiplog within 2 minutes: is its CA injector running?' >&2
exit 1
