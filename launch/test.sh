#!/usr/bin/env bash
# Runs linters, types and the default tests in .venv, or in the environment that SR_DIST_PYTHON names (nothing is installed there).
#   bash launch/test.sh [PYTEST_OPTION ...]
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/launch/environment.sh"
prepare_python dev
cd "$ROOT"
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest "$@"
