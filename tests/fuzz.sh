#!/usr/bin/env bash
# Runs every fuzz test of the module for the given time each.
# usage: fuzz.sh DURATION
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:?usage: fuzz.sh DURATION}
git grep -hoE --untracked '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' >/dev/null || { echo 'fuzz: no fuzz tests' >&2; exit 1; }
git grep -oE --untracked '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' | while IFS=: read -r file func; do
  name=${func#func }
  echo "== $(dirname "$file") $name"
  # Making an input smaller is for a failure; with a large seed it would use up the time of a short run.
  go test "./$(dirname "$file")" -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 10x
done
