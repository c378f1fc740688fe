# shellcheck shell=bash
# Sourced by the studies in this folder: sets ROOT and PYTHON (`prepare_python`) and enters the repository.
#   COMPARE_THREADS   threads of each training (2)
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/launch/environment.sh"
prepare_python
cd "$ROOT" || exit
export WANDB_SILENT=true
launch_options=(
  --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process "${COMPARE_THREADS:-2}"
)

train_once() {  # NAME RECIPE STEPS [--key=value ...]: trains a shipped recipe in one process, unless runs/NAME is done
  local name=$1 recipe=$2 steps=$3
  shift 3
  if [ -e "runs/$name/DONE" ]; then
    echo "runs/$name is done"
    return
  fi
  "$PYTHON" -m accelerate.commands.launch "${launch_options[@]}" -m sr_dist.train "configs/$recipe.yaml" --name="$name" \
    --steps="$steps" --save_every="$steps" --keep=1 --log.wandb=off "$@"
  [ -e "runs/$name/DONE" ] || { echo "runs/$name was stopped before its last step; the same command continues it" >&2; exit 1; }
}

sample_photos() {  # builds the shards of the demo's photographs
  local part
  for part in train validation; do
    [ -e data/sample_photos/$part/manifest.json ] ||
      "$PYTHON" -m shards.build sample_photos $part data/sample_photos/$part --per_shard=64
  done
}
