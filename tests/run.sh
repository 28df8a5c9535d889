#!/usr/bin/env bash
# Runs the tests: "run.sh unit", "run.sh e2e" or "run.sh all". What cannot run here is named; with CI set that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-all}
case $what in
  unit | e2e | all) ;;
  *) echo "run: unknown argument $what: unit, e2e or all" >&2; exit 2 ;;
esac
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
begin=$SECONDS

say() { printf '== %4ds  %s\n' "$((SECONDS - begin))" "$*"; }
leave_out() { printf '%s\n' "$*" >>"$logs/left-out"; }

# Runs go test, shows results and failures, and collects what was skipped.
go_test() {
  local name=$1
  shift
  say "$name: begins"
  local status=0
  go test -v "$@" >"$logs/$name.log" 2>&1 || status=$?
  say "$name: ended"
  grep -E '^(ok|FAIL|panic:|---? FAIL|\?.*no test files)' "$logs/$name.log" | grep -v 'no test files' || true
  if [ "$status" -ne 0 ]; then
    printf '\n'
    # What the failed packages printed, without the lines that say nothing.
    awk '/^(ok|\?)[ \t]/ {text = ""; next} {text = text $0 "\n"} /^FAIL\t/ {printf "%s", text; text = ""} END {printf "%s", text}' "$logs/$name.log" |
      grep -vE '^\s*(=== (RUN|PAUSE|CONT|NAME)|--- PASS)|^PASS$' | tail -n 300
    echo "run: $name failed" >&2
    exit 1
  fi
  grep -E '^\s*--- SKIP' "$logs/$name.log" >>"$logs/left-out" || true
}

static() {
  say 'static checks'
  local files
  files=$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l)
  [ -z "$files" ] || { printf 'run: not formatted by gofmt:\n%s\n' "$files" >&2; exit 1; }
  go mod tidy -diff
  go vet ./...
  go vet -tags e2e ./tests/...
  go vet -tags bench ./tests/...
  if [ "$(uname)" = Linux ] && [ "$(id -u)" = 0 ]; then
    say 'binaries for tests'
    go run ./tests/cluster build versitygw minio crane kubernetes results ceph chromium tkn
  fi
}

unit() {
  local race=(-race)
  if ! command -v gcc >/dev/null; then
    race=()
    leave_out 'the race detector: it needs gcc'
  fi
  go_test unit "${race[@]}" ./...
  go_test model ./tests/model
}

e2e() {
  if [ "$(uname)" != Linux ] || [ "$(id -u)" != 0 ]; then
    leave_out 'end-to-end tests: the local cluster needs Linux and root'
    return
  fi
  say 'local cluster'
  go run ./tests/cluster up
  go_test e2e -tags e2e -count=1 -timeout 30m -parallel 6 ./tests/e2e
}

static
case $what in
  unit) unit ;;
  e2e) e2e ;;
  all) unit; e2e ;;
esac

if [ -s "$logs/left-out" ]; then
  printf 'run: left out here:\n'
  sed 's/^ */  /' "$logs/left-out"
  if [ -n "${CI:-}" ]; then
    echo 'run: in CI nothing may be left out' >&2
    exit 1
  fi
fi
