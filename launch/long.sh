#!/usr/bin/env bash
# Runs what the other scripts leave out because it takes long: the tests that are marked long, the fuzz tests with ten times as many
# examples, and the default tests on every Python from 3.10 to 3.13 that is on PATH, each in its own environment (build/venv-3.10,
# ...; several GB each).
#   bash launch/long.sh [--dry_run]     --dry_run prints which Python versions there are and runs nothing
# With SR_DIST_PYTHON=/path/to/python, only that environment is used and nothing is installed.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/launch/environment.sh"
VERSIONS=(3.10 3.11 3.12 3.13)
case ${1:-} in
  -h|--help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit ;;
esac

present=() missing=()
for version in "${VERSIONS[@]}"; do
  if [ -z "${SR_DIST_PYTHON:-}" ] && usable "python$version"; then
    present+=("$version")
  else
    missing+=("$version")
  fi
done
if [ -n "${SR_DIST_PYTHON:-}" ]; then
  echo "SR_DIST_PYTHON is set: the tests run only with $SR_DIST_PYTHON"
else
  echo "Python versions on PATH: ${present[*]:-none}; not on PATH: ${missing[*]:-none}"
fi
[ "${1:-}" != --dry_run ] || exit 0

results=() failed=''
record() {  # CODE TITLE
  case $1 in
    0) results+=("passed   $2") ;;
    5) results+=("none     $2") ;;  # pytest's code when no test was selected
    *) results+=("FAILED   $2") failed=yes ;;
  esac
}

run_tests() {  # TITLE [PYTEST_OPTION ...]: in the environment of VENV and BASE_PYTHON
  local title=$1 code=0
  shift
  echo "=== $title"
  { prepare_python dev && (cd "$ROOT" && "$PYTHON" -m pytest "$@"); } || code=$?
  record "$code" "$title"
}

run_tests "tests marked long" -m "long and not gpu and not weights"
SR_DIST_FUZZ=5000 run_tests "fuzz tests with 5000 examples each" tests/faults/test_fuzz.py tests/faults/test_fuzz_runs.py
if [ -n "${SR_DIST_PYTHON:-}" ]; then
  run_tests "default tests on $SR_DIST_PYTHON"
fi
for version in "${present[@]}"; do
  VENV=$ROOT/build/venv-$version BASE_PYTHON=python$version
  run_tests "default tests on Python $version"
done

echo "=== summary"
printf '%s\n' "${results[@]}"
[ -n "${SR_DIST_PYTHON:-}" ] || for version in "${missing[@]}"; do echo "missing  python$version is not on PATH"; done
[ -z "$failed" ]
