#!/usr/bin/env bash
# The whole journey on a real cluster: install, run a PipelineRun, restart the webhook service in the middle, delete everything, and read the logs back
# from S3, byte for byte.
#
# Without KUBECONFIG it brings the local cluster up. With KUBECONFIG and REGISTRY it uses that cluster, which pulls images from that registry, and installs Tekton
# Pipelines and cert-manager if they are not there; OVERLAY=openshift on OpenShift, where they must be.
set -euo pipefail
cd "$(dirname "$0")/../.."

begin=$SECONDS
say() { printf '\n\033[1m== %3ds  %s\033[0m\n' "$((SECONDS - begin))" "$*"; }
fail() { printf '\ndemo: FAIL  %s\n' "$*"; exit 1; }
trap 'fail "the command in line $LINENO of tests/demo/demo.sh failed; see above"' ERR
work=$(mktemp -d)
forward= backend= takeaway=
cleanup() {
  [ -z "$forward" ] || kill "$forward" 2>/dev/null || true
  [ -z "$backend" ] || kill "$backend" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

ns=shiplog-demo
command -v go >/dev/null || fail 'Go is not installed (1.26 or newer)'

if [ -z "${KUBECONFIG:-}" ]; then
  local=yes
  say 'local cluster: Kubernetes, Tekton, cert-manager and an S3 server (the first time they are built: many minutes)'
  go run ./tests/cluster up
  eval "$(go run ./tests/cluster env)"
  export PUSH_REGISTRY=$SHIPLOG_REGISTRY/shiplog REGISTRY=localhost:5000/shiplog
else
  local=
  [ -n "${REGISTRY:-}" ] || fail 'name a registry that your cluster pulls from: make demo KUBECONFIG=… REGISTRY=registry.example.com/team'
  export KUBECONFIG REGISTRY
  KUBECTL=${KUBECTL:-$(command -v kubectl || go run ./tests/cluster binary kubectl)}
  export KUBECTL
  [ -f "$KUBECONFIG" ] || fail "there is no file $KUBECONFIG"
  say "your cluster: $("$KUBECTL" config current-context)"
  "$KUBECTL" get --raw /version >/dev/null || fail "the cluster of $KUBECONFIG does not answer"
  missing=()
  "$KUBECTL" get crd pipelineruns.tekton.dev >/dev/null 2>&1 || missing+=(tekton)
  "$KUBECTL" get crd certificates.cert-manager.io >/dev/null 2>&1 || missing+=(cert-manager)
  if [ "${#missing[@]}" -gt 0 ]; then
    [ "${OVERLAY:-base}" != openshift ] || fail "your cluster lacks ${missing[*]}: install the operators \"OpenShift Pipelines\" and \"cert-manager Operator for Red Hat OpenShift\""
    say "your cluster lacks ${missing[*]}: build and install (the first time: many minutes)"
    mkdir -p bin
    INSTALLED=bin/demo-installed.yaml go run ./tests/cluster install "${missing[@]}"
    takeaway=' kubectl delete -f bin/demo-installed.yaml;'
  fi
fi

say "namespace $ns, labelled shiplog.dev/inject=enabled"
"$KUBECTL" create namespace "$ns" --dry-run=client -o yaml | "$KUBECTL" apply -f -
"$KUBECTL" label namespace "$ns" shiplog.dev/inject=enabled --overwrite
"$KUBECTL" -n "$ns" delete pipelinerun demo --ignore-not-found --wait

if [ -z "$local" ] && [ -z "${SHIPLOG_S3_ENDPOINT:-}" ]; then
  say 'an S3 server in your cluster (set SHIPLOG_S3_ENDPOINT, SHIPLOG_S3_BUCKET and AWS_… to use your own)'
  export CRANE=${CRANE:-$(go run ./tests/cluster binary crane)}
  manifests/push-image.sh "$REGISTRY/versitygw:demo" "$(go env GOARCH)" /versitygw "$(go run ./tests/cluster binary versitygw)"
  sed "s|S3_IMAGE|$REGISTRY/versitygw:demo|" tests/demo/s3.yaml | "$KUBECTL" -n "$ns" apply -f -
  "$KUBECTL" -n "$ns" rollout status deployment/s3 --timeout=180s
  export SHIPLOG_S3_ENDPOINT=http://s3.$ns.svc:7070 SHIPLOG_S3_BUCKET=shiplog SHIPLOG_S3_REGION=us-east-1
  export AWS_ACCESS_KEY_ID=shiplog-demo AWS_SECRET_ACCESS_KEY=shiplog-demo-secret
  in_cluster_s3=yes
fi

say 'shiplog: build, push, install'
tests/deploy.sh
if [ -n "${in_cluster_s3:-}" ]; then
  "$KUBECTL" -n "$ns" port-forward service/s3 17070:7070 >/dev/null 2>&1 &
  forward=$!
  export SHIPLOG_S3_ENDPOINT=http://127.0.0.1:17070
fi
shiplog=bin/shiplog

say 'PipelineRun demo'
"$KUBECTL" -n "$ns" create -f tests/demo/run.yaml
for _ in $(seq 600); do
  [ "$("$KUBECTL" -n "$ns" get pods -l tekton.dev/pipelineTask=test -o jsonpath='{.items[*].status.containerStatuses[0].state.running.startedAt}')" = '' ] || break
  state=$("$KUBECTL" -n "$ns" get pipelinerun demo -o jsonpath='{.status.conditions[0].status}')
  [ "$state" != False ] || fail 'the PipelineRun failed before its second task'
  sleep 0.5
done

say 'the step "slow" is printing: restart the webhook service, which also issues upload tickets'
"$KUBECTL" -n shiplog-system rollout restart deployment/shiplog-webhook
"$KUBECTL" -n shiplog-system rollout status deployment/shiplog-webhook --timeout=180s
"$KUBECTL" -n "$ns" wait --for=condition=Succeeded pipelinerun/demo --timeout=600s

# What the steps say that they printed, as "<task> <step> <bytes> <sha256>".
"$KUBECTL" -n "$ns" get taskruns -l tekton.dev/pipelineRun=demo -o go-template='{{range .items}}{{$task := index .metadata.labels "tekton.dev/pipelineTask"}}{{range .status.results}}{{$task}} {{.name}} {{.value}}{{"\n"}}{{end}}{{end}}' >"$work/printed"
[ "$(wc -l <"$work/printed")" -eq 4 ] || fail 'not every step has said what it printed'
uid=$("$KUBECTL" -n "$ns" get pipelinerun demo -o jsonpath='{.metadata.uid}')

say 'delete the PipelineRun and its pods'
"$KUBECTL" -n "$ns" delete pipelinerun demo --wait
"$KUBECTL" -n "$ns" wait --for=delete pod -l tekton.dev/pipelineRun=demo --timeout=120s
"$KUBECTL" -n "$ns" get pods -l tekton.dev/pipelineRun=demo

say "from S3: where the run's objects are"
"$shiplog" prefix -n "$ns" "$uid"
say 'from S3: shiplog ls'
"$shiplog" ls -n "$ns" --limit 3
"$shiplog" ls -n "$ns" "$uid"
say 'from S3: shiplog logs --tail 3'
"$shiplog" logs -n "$ns" --tail 3 "$uid" | tr '\r' '\n' | tail -n 24

say 'over HTTP: the backend, to who may get pods/log in the namespace, with a token of the cluster'
for make in "serviceaccount log-reader" "role log-reader --verb=get --resource=pods/log" "rolebinding log-reader --role=log-reader --serviceaccount=$ns:log-reader"; do
  # shellcheck disable=SC2086 # several words
  "$KUBECTL" -n "$ns" create $make --dry-run=client -o yaml | "$KUBECTL" apply -f -
done
"$KUBECTL" -n shiplog-system get secret shiplog-backend-tls -o 'go-template={{index .data "ca.crt" | base64decode}}' >"$work/ca.crt"
"$KUBECTL" config view --raw --flatten --minify >"$work/kubeconfig"
"$KUBECTL" --kubeconfig="$work/kubeconfig" config set-credentials log-reader --token="$("$KUBECTL" -n "$ns" create token log-reader)" >/dev/null
"$KUBECTL" --kubeconfig="$work/kubeconfig" config set-context --current --user=log-reader >/dev/null
"$KUBECTL" -n shiplog-system port-forward service/shiplog-backend :443 >"$work/forward" 2>&1 &
backend=$!
port=
for _ in $(seq 100); do
  port=$(sed -nE 's/^Forwarding from 127\.0\.0\.1:([0-9]+) .*/\1/p' "$work/forward")
  [ -z "$port" ] || break
  sleep 0.1
done
[ -n "$port" ] || fail "the backend cannot be reached: $(cat "$work/forward")"
env -u SHIPLOG_S3_BUCKET -u SHIPLOG_S3_ENDPOINT "$shiplog" --kubeconfig "$work/kubeconfig" --server "https://localhost:$port" --server-ca "$work/ca.crt" \
  logs --archive -n "$ns" --tail 3 "$uid" | tr '\r' '\n' | tail -n 8

say 'compare'
printed=0 stored=0 lost=0 bad=0
while read -r task step bytes sum; do
  "$shiplog" logs -n "$ns" --raw --task "$task" --step "$step" "$uid" >"$work/log" || bad=1
  got=$(wc -c <"$work/log")
  gotsum=$(sha256sum <"$work/log" | cut -c1-64)
  verdict=same
  [ "$got" = "$bytes" ] && [ "$gotsum" = "$sum" ] || { verdict=DIFFERENT bad=1; }
  printf '  %-8s %-8s %10d bytes printed  %10d bytes in S3  sha256 %.12s…  %s\n' "$task" "$step" "$bytes" "$got" "$gotsum" "$verdict"
  printed=$((printed + bytes)) stored=$((stored + got))
done <"$work/printed"
lost=$((printed - stored))

if [ -n "$local" ]; then
  # shellcheck disable=SC2016 # for the reader's shell
  printf '\nThe cluster stays up. Look around: eval "$(go run ./tests/cluster env)"; bin/shiplog logs -n %s demo; $KUBECTL get pods -A\nThe page: $KUBECTL -n shiplog-system port-forward service/shiplog-backend 8443:443, then https://localhost:8443/ui/ with the token of $KUBECTL -n %s create token log-reader\nTake it down: make cluster-down\n' "$ns" "$ns"
else
  printf '\nTake it away: kubectl delete namespace %s shiplog-system; kubectl delete mutatingwebhookconfiguration shiplog; kubectl delete clusterrole,clusterrolebinding shiplog-webhook shiplog-annotator shiplog-backend;%s\n' "$ns" "$takeaway"
fi
[ "$bad" -eq 0 ] || fail "$printed bytes printed, $stored bytes in S3, the logs differ"
printf '\ndemo: PASS  %d bytes printed, %d bytes in S3, %d lost\n' "$printed" "$stored" "$lost"
