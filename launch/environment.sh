# shellcheck shell=bash
# Sourced by the scripts in this folder, after they have set ROOT.
#   prepare_python [EXTRA]     sets PYTHON, and installs the package with this extra (dev) unless SR_DIST_PYTHON names a Python
#     VENV           the virtual environment ($ROOT/.venv)
#     BASE_PYTHON    the Python that creates it (the first that `base_python` finds)
prepare_python() {
  local extra=${1:-} venv=${VENV:-$ROOT/.venv}
  if [ -n "${SR_DIST_PYTHON:-}" ]; then
    PYTHON=$(command -v "$SR_DIST_PYTHON") || { echo "error: SR_DIST_PYTHON: '$SR_DIST_PYTHON' does not exist" >&2; return 2; }
    case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"   # this checkout, even if that Python has another sr_dist
    return
  fi
  PYTHON=$venv/bin/python
  local checksum stamp=$venv/.installed${extra:+-$extra}
  checksum=$(cksum "$ROOT/pyproject.toml")
  [ -x "$PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$checksum" ] && return
  echo "installing into ${venv#"$ROOT/"} (several GB the first time; takes some minutes)"
  "$PYTHON" -m pip --version >/dev/null 2>&1 || create_venv "$venv" || return
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -e "$ROOT${extra:+[$extra]}" || return
  echo "$checksum" >"$stamp"
}

create_venv() {  # VENV
  local base=${BASE_PYTHON:-}
  [ -n "$base" ] || base=$(base_python) || return
  "$base" -m venv --clear "$1"
}

base_python() {
  local name
  for name in python3 python python3.12 python3.13 python3.11 python3.10; do
    if usable "$name"; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python >= 3.10 with the modules venv and ensurepip (Debian, Ubuntu: apt-get install python3-venv)" >&2
  return 1
}

usable() {  # PYTHON: it exists, starts, is recent enough and can create environments
  command -v "$1" >/dev/null && "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}
