#!/usr/bin/env bash
# Linters, types and the default tests, in .venv or, untouched, in the environment that SR_DIST_PYTHON names.
#   bash launch/test.sh [pytest words ...]
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/launch/environment.sh"
prepare dev
cd "$ROOT"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest "$@"
