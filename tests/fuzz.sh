#!/usr/bin/env bash
# Runs every fuzz test of the module for the given time each, as many at once as there are processor cores.
# usage: fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:?usage: fuzz.sh DURATION}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cache=$(go env GOCACHE)/fuzz
export time dir cache

# Runs one fuzz test: fuzz PACKAGE-FOLDER NAME. What it found is shown; a failing input is under testdata/fuzz.
fuzz() {
  local out="$dir/$2.out" status=0
  # Making an input smaller is for a failure; with a large seed it would use up the time of a short run.
  (cd "$1" && "$dir/${1//\//-}.test" -test.run '^$' -test.fuzz "^$2\$" -test.fuzztime "$time" -test.fuzzminimizetime 10x -test.parallel 1 \
    -test.fuzzcachedir "$cache/$(go list -m)/$1") >"$out" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then
    printf 'FAIL  %s %s\n' "$1" "$2"
    cat "$out"
    return 1
  fi
  printf 'ok    %s %s: %s\n' "$1" "$2" "$(grep -o 'execs: [0-9]*' "$out" | tail -n 1)"
}
export -f fuzz

targets=$(git grep -oE --untracked '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | sed -E 's|/[^/]*:func | |') || { echo 'fuzz: no fuzz tests' >&2; exit 1; }
for package in $(cut -d ' ' -f 1 <<<"$targets" | sort -u); do
  go test -c -fuzz=Fuzz -o "$dir/${package//\//-}.test" "./$package"
done
xargs -P "$(nproc)" -L 1 bash -c 'fuzz "$@"' fuzz <<<"$targets" || { echo 'fuzz: failed' >&2; exit 1; }
