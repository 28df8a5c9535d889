#!/usr/bin/env bash
# Runs the tests: "run.sh unit", "run.sh e2e" or "run.sh all". What cannot run here is named; with CI set that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-all}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
begin=$SECONDS
left_out=()

say() { printf '== %4ds  %s\n' "$((SECONDS - begin))" "$*"; }

# Runs go test, shows results and failures, and collects what was skipped.
go_test() {
  local name=$1
  shift
  say "$name"
  local status=0
  go test -v "$@" >"$logs/$name.log" 2>&1 || status=$?
  grep -E '^(ok|FAIL|panic:|---? FAIL|\?.*no test files)' "$logs/$name.log" | grep -v 'no test files' || true
  if [ "$status" -ne 0 ]; then
    printf '\n'
    # The failed tests' own lines, without those of the tests that passed.
    grep -vE '^\s*(=== (RUN|PAUSE|CONT|NAME)|--- PASS)|^(ok|PASS)\b' "$logs/$name.log" | tail -n 150
    echo "run: $name failed" >&2
    exit 1
  fi
  while IFS= read -r line; do left_out+=("$line"); done < <(grep -E '^\s*--- SKIP' "$logs/$name.log" || true)
}

static() {
  say 'static checks'
  local files
  files=$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l)
  [ -z "$files" ] || { printf 'run: not formatted by gofmt:\n%s\n' "$files" >&2; exit 1; }
  go mod tidy -diff
  go vet ./...
  go vet -tags e2e ./tests/...
}

unit() {
  static
  if [ "$(uname)" = Linux ] && [ "$(id -u)" = 0 ]; then
    say 'binaries for tests'
    go run ./tests/cluster build versitygw minio crane kubernetes
  fi
  local race=(-race)
  if ! command -v gcc >/dev/null; then
    race=()
    left_out+=('the race detector: it needs gcc')
  fi
  go_test unit "${race[@]}" ./...
}

e2e() {
  if [ "$(uname)" != Linux ] || [ "$(id -u)" != 0 ]; then
    left_out+=('end-to-end tests: the local cluster needs Linux and root')
    return
  fi
  say 'local cluster'
  go run ./tests/cluster up
  go_test e2e -tags e2e -count=1 -timeout 30m -parallel 6 ./tests/e2e
}

case $what in
  unit) unit ;;
  e2e) e2e ;;
  all) unit; e2e ;;
  *) echo "run: unknown argument $what: unit, e2e or all" >&2; exit 2 ;;
esac

if [ "${#left_out[@]}" -gt 0 ]; then
  printf 'run: left out here:\n'
  printf '  %s\n' "${left_out[@]}"
  if [ -n "${CI:-}" ]; then
    echo 'run: in CI nothing may be left out' >&2
    exit 1
  fi
fi
say "passed"
