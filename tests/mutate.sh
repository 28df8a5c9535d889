#!/usr/bin/env bash
# Tries small changes of the lines that this branch has touched, for two minutes: see tests/mutate.
# On main itself these are the lines of the last commit.
set -euo pipefail
cd "$(dirname "$0")/.."

# Where the branch has left main. A clone may have neither main nor an earlier commit.
base() {
  local main at
  for main in origin/main main; do
    at=$(git merge-base HEAD "$main" 2>/dev/null) || continue
    if [ "$at" != "$(git rev-parse HEAD)" ]; then
      echo "$at"
      return
    fi
  done
  git rev-parse --quiet --verify 'HEAD~1^{commit}'
}

if ! from=$(base); then
  echo 'mutate: skipped, since this clone has no earlier commit to compare with'
  exit
fi
echo "mutate: what differs from $(git log -1 --format='%h (%s)' "$from")"
exec make --no-print-directory mutate PKG= FLAGS="-diff $from -limit 2m -least 95"
