# shellcheck shell=bash
# Sourced by the scripts beside it: sets PYTHON, and makes .venv with the package in it unless SR_DIST_PYTHON names one.
#   prepare [EXTRA]      EXTRA: dev
prepare() {
  local extra=${1:-}
  if [ -n "${SR_DIST_PYTHON:-}" ]; then
    PYTHON=$(command -v "$SR_DIST_PYTHON") || { echo "error: SR_DIST_PYTHON: no '$SR_DIST_PYTHON'" >&2; return 2; }
    case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"   # this checkout, whatever else is installed there
    return
  fi
  PYTHON="$ROOT/.venv/bin/python"
  local wanted stamp="$ROOT/.venv/.installed${extra:+-$extra}"
  wanted=$(cksum "$ROOT/pyproject.toml")
  [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  echo "installing into .venv (several GB at first; some minutes)"
  "$PYTHON" -m pip --version >/dev/null 2>&1 || "$(base_python)" -m venv --clear "$ROOT/.venv"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -e "$ROOT${extra:+[$extra]}"
  echo "$wanted" >"$stamp"
}

base_python() {
  local name
  for name in python3 python python3.12 python3.13 python3.11 python3.10; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "no Python >= 3.10 with venv found" >&2
  return 1
}
