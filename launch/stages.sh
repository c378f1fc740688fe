#!/usr/bin/env bash
# Two-stage training: runs A, then B from A's weights. What is DONE is skipped, what was interrupted continues.
#   bash launch/stages.sh A.yaml B.yaml [--key=value ...]     the keys go to both stages
# LAUNCH holds what `accelerate launch` gets, such as LAUNCH="--config_file launch/accelerate/ddp_node.yaml".
set -euo pipefail
[ $# -ge 2 ] || { echo "error: usage: stages.sh A.yaml B.yaml [--key=value ...]" >&2; exit 2; }
python=("${SR_DIST_PYTHON:-python}")
. "$(dirname "$0")/run_folder.sh"
first=$1 second=$2
shift 2
for option in "$@"; do
  case $option in
    --dry_run*) echo "error: $option: the second stage needs what the first one trains; try each recipe by itself" >&2; exit 2 ;;
    --name=*|--init.generator=*) echo "error: $option: each stage has its own; change it in the recipe" >&2; exit 2 ;;
  esac
done
one="--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process $(nproc)"
read -ra launch <<<"${LAUNCH:-$one}"

stage() {  # RECIPE [--key=value ...]
  local run
  run=$(folder "$@")
  if [ -e "$run/DONE" ] && [[ " $* " != *" --steps="* ]]; then
    echo "$run is done"
  else
    "${python[@]}" -m accelerate.commands.launch "${launch[@]}" -m sr_dist.train "$@"
  fi
  [ -e "$run/DONE" ] || { echo "$run was stopped before its end; the same command continues it" >&2; exit 1; }
  finished=$run
}

stage "$first" "$@"
stage "$second" "$@" --init.generator="$finished"
