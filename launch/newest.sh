#!/usr/bin/env bash
# Tests the private names of other libraries (tests/compat) with the newest versions: installs them without the upper bounds of
# pyproject.toml into a fresh environment, build/newest (several GB), and prints which tests fail with which versions.
# When all pass, raise the upper bounds.
#   bash launch/newest.sh [--dry_run] [PYTEST_OPTION ...]     --dry_run prints the requirements and installs nothing
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/launch/environment.sh"
dry_run=''
case ${1:-} in
  --dry_run) dry_run=yes; shift ;;
  -h|--help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit ;;
esac
BOUND='s/^( *"[a-z][a-z0-9_-]*(>=[0-9.]+)?),?<[0-9.]+/\1/'  # "deepspeed>=0.19.8,<0.20; ..." -> "deepspeed>=0.19.8; ..."
bounded=$(grep -E '^ *"[a-z][a-z0-9_-]*[^"]*<[0-9]' "$ROOT/pyproject.toml" || true)
[ -n "$bounded" ] || { echo "pyproject.toml has no upper bounds"; exit; }
echo "without upper bounds:"
sed -E "$BOUND" <<<"$bounded"
[ -z "$dry_run" ] || exit 0

venv=$ROOT/build/newest
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$ROOT"/{sr_dist,shards,configs,README.md,LICENSE} "$copy"
sed -E "$BOUND" "$ROOT/pyproject.toml" >"$copy/pyproject.toml"
echo "installing into build/newest"
create_venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${copy}[dev]"

cd "$ROOT"
code=0
PYTHONPATH=$ROOT "$venv/bin/python" -m pytest -rfE tests/compat "$@" || code=$?
echo "installed versions:"
names=$(grep -oE '^ *"[a-z][a-z0-9_-]*' <<<"$bounded" | tr -d ' "')
for name in $names torch torchvision accelerate lpips pydantic; do
  "$venv/bin/python" -c 'import sys; from importlib.metadata import version; print(" ", sys.argv[1], version(sys.argv[1]))' "$name"
done
if [ "$code" = 0 ]; then
  echo "tests/compat passes: the upper bounds in pyproject.toml can be raised to these versions"
else
  echo "tests/compat fails with these versions: see the lines FAILED above; keep the upper bounds until the package is adapted" >&2
fi
exit "$code"
