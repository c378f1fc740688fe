#!/usr/bin/env bash
# Minutes to a PSNR on held-out tiles, on two CPU cores: trains entries one after the other, and prints a table (docs/speedrun.md).
#   bash launch/speedrun.sh [--size=1] [ENTRY ...]     ENTRY is a file of launch/speedrun (first, second), or a path of your own .yaml
#   with SR_DIST_PYTHON=/path/to/python, that environment is used and nothing is installed; SPEEDRUN_THREADS=1 takes one core
# The tiles are those of the demo, cut from scikit-image's photographs. The same command skips entries that are done.
set -euo pipefail
. "$(dirname "$0")/studies.sh"
sample_photos
entries=false
for word in "$@"; do
  case $word in --*) ;; *) entries=true ;; esac
done
$entries || set -- "$@" first second
"$PYTHON" launch/speedrun.py "$@"
