#!/usr/bin/env bash
# Two-stage training: runs A, then B with A's weights. Skips a stage that is DONE and continues one that was interrupted.
#   bash launch/stages.sh A.yaml B.yaml [--key=value ...]                          both stages get the keys
#   bash launch/stages.sh A.yaml [--key=value ...] -- B.yaml [--key=value ...]     each has its own
# LAUNCH has the options of `accelerate launch`, such as LAUNCH="--config_file launch/accelerate/ddp_node.yaml".
set -euo pipefail
usage() { echo "error: usage: stages.sh A.yaml B.yaml [--key=value ...], or A.yaml [--key=value ...] -- B.yaml [--key=value ...]" >&2; exit 2; }
[ $# -ge 2 ] || usage
python=("${SR_DIST_PYTHON:-python}")
. "$(dirname "$0")/run_folder.sh"
first=("$1") second=()
shift
if [[ " $* " == *" -- "* ]]; then
  while [ "$1" != -- ]; do first+=("$1"); shift; done
  second=("${@:2}")
else
  second=("$@")
  first+=("${@:2}")
fi
[ ${#second[@]} -gt 0 ] && [[ ${first[0]} != -* && ${second[0]} != -* ]] || usage
for option in "${first[@]:1}" "${second[@]:1}"; do
  case $option in
    --dry_run*) echo "error: $option: the second stage needs the weights of the first; try each recipe by itself" >&2; exit 2 ;;
    --name=*|--init.generator=*) echo "error: $option: each stage has its own; change it in the recipe" >&2; exit 2 ;;
  esac
done
one_process="--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process $(nproc)"
read -ra launch_options <<<"${LAUNCH:-$one_process}"

stage() {  # RECIPE [--key=value ...]: sets `run`
  run=$(run_folder "$@")
  if [ -e "$run/DONE" ] && [[ " $* " != *" --steps="* ]]; then
    echo "$run is done"
  else
    "${python[@]}" -m accelerate.commands.launch "${launch_options[@]}" -m sr_dist.train "$@"
  fi
  [ -e "$run/DONE" ] || { echo "$run was stopped before its last step; the same command continues it" >&2; exit 1; }
}

first_run=$(run_folder "${first[@]}")
[ -e "$first_run/DONE" ] || check_recipe "${second[@]}" --init.generator="$first_run"  # before the first stage trains for days
stage "${first[@]}"
stage "${second[@]}" --init.generator="$run"
