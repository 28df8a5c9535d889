#!/usr/bin/env bash
# Runs every fuzz test of the module for the given time each, as many at once as there are cores.
# usage: fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."

export time=${1:?usage: fuzz.sh DURATION}
targets=$(git grep -oE --untracked '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed -E 's,^(.*)/[^/]*:func (.*),\1 \2,') ||
  { echo 'fuzz: no fuzz tests' >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Where go test keeps what it finds interesting from run to run, too.
module=$(go list -m)
found=$(go env GOCACHE)/fuzz/$module
export work found

binary() { echo "$work/${1//\//-}.test"; }

# Runs a package's fuzz test, and prints a line, or all that it said if it failed.
fuzz() {
  local dir=$1 name=$2
  local log=$work/$name-${dir//\//-}.log status=0 said input
  # One worker each, since others run beside it. Making an input smaller is for a failure; with a large seed it would use up the time of a short run.
  (cd "$dir" && exec "$(binary "$dir")" -test.run='^$' -test.fuzz="^$name\$" -test.fuzztime="$time" -test.fuzzminimizetime=10x \
    -test.parallel=1 -test.fuzzcachedir="$found/$dir") >"$log" 2>&1 || status=$?
  if grep -q 'not built with coverage instrumentation' "$log"; then
    status=1 # it would try inputs at random
  fi
  # Go fails a test whose time runs out at a bad moment with this alone (golang/go#75804). What it finds, it writes down.
  if [ "$status" -eq 0 ] || [ "$(grep -v '^fuzz: elapsed' "$log" | sed 's/ ([0-9.]*s)$//')" = "--- FAIL: $name"$'\n    context deadline exceeded\nFAIL' ]; then
    said=$(grep '^fuzz: elapsed' "$log" | tail -n 1)
    printf 'ok    %-20s %-22s %s\n' "$dir" "$name" "${said#fuzz: elapsed: }"
    return
  fi
  input=$(sed -nE 's/.*Failing input written to (.*)/\1/p' "$log" | tail -n 1)
  {
    printf 'FAIL  %-20s %s\n' "$dir" "$name"
    cat "$log"
    if [ -n "$input" ]; then
      # In CI the file goes with the clone.
      printf 'fuzz: commit the input as %s, with the fix. It is:\n' "$dir/$input"
      head -c 8192 "$dir/$input"
    fi
  } >"$log.failed"
  cat "$log.failed" # at once, so that no other test's line is in the midst of it
  return 1
}
export -f binary fuzz

# Built first, so that a test's time is its own. With -fuzz, Go would follow the way of an input through all of Kubernetes' packages as well, and the webhook's tests would
# try some ten inputs a second instead of thousands. This is the flag that -fuzz gives to the compiler, for what matters here.
for dir in $(cut -d' ' -f1 <<<"$targets" | sort -u); do
  go test -c -gcflags="$module/...=-d=libfuzzer" -gcflags=encoding/json=-d=libfuzzer -o "$(binary "$dir")" "./$dir"
done

set -m # the tests are a process group, which can be stopped as one
xargs -n 2 -P "$(getconf _NPROCESSORS_ONLN)" bash -euo pipefail -c 'fuzz "$@"' fuzz <<<"$targets" &
tests=$!
trap 'kill -- "-$tests"; wait "$tests" || true; exit 130' INT TERM
wait "$tests" || { echo 'fuzz: failed' >&2; exit 1; }
