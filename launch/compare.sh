#!/usr/bin/env bash
# Trains SRCNN, SRResNet, RRDB-PSNR and SR-UGAN at x4 for 1000 steps each (about a minute each on one core) on the sample photographs of
# the demo, evaluates them beside interpolation, and prints the table of docs/studies.md.
#   bash launch/compare.sh      with SR_DIST_PYTHON=/path/to/python, that environment is used and nothing is installed
# Each run is a shipped recipe with the overrides below: fewer channels, L1, and networks that learn the difference from an
# interpolated image, because a minute is too short to learn interpolation itself. SRResNet is trained without batch normalization
# (msrresnet) for the same reason. COMPARE_THREADS=1 is faster where other jobs use the cores.
# The same command continues what was interrupted and skips what is done.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/launch/environment.sh"
prepare_python
cd "$ROOT"
export WANDB_SILENT=true
launch_options=(
  --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process "${COMPARE_THREADS:-2}"
)

data=data/sample_photos
for part in train validation; do
  [ -e $data/$part/manifest.json ] || "$PYTHON" -m shards.build sample_photos $part $data/$part --per_shard=64
done

train() {  # NAME RECIPE STEPS [--key=value ...]
  local name=$1 recipe=$2 steps=$3
  shift 3
  if [ -e "runs/$name/DONE" ]; then
    echo "runs/$name is done"
    return
  fi
  "$PYTHON" -m accelerate.commands.launch "${launch_options[@]}" -m sr_dist.train "configs/$recipe.yaml" --name="$name" \
    --steps="$steps" --data.train=$data/train --data.validation=$data/validation --data.validation_limit=24 --data.batch=8 \
    --data.crop=64 --data.workers=0 '--objective={name: pixel, content: {l1: 1.0}}' --ema.decay=0.98 \
    --schedule="{name: cosine, warmup: 20, period: $steps}" --validate_every="$steps" --save_every="$steps" --keep=1 \
    --log.wandb=off "$@"
  [ -e "runs/$name/DONE" ] || { echo "runs/$name was stopped before its last step; the same command continues it" >&2; exit 1; }
}

train small_srcnn srcnn_x4 1000 --optimizer.learning_rate=1e-3 --generator.widths=[32,16] --generator.skip=bicubic
train small_msrresnet srresnet_x4 1000 --optimizer.learning_rate=1e-3 '--generator={name: msrresnet, num_blocks: 4, width: 32}'
train small_rrdb rrdb_psnr_x4 1000 --optimizer.learning_rate=4e-3 \
  --generator.num_blocks=1 --generator.width=32 --generator.growth=16 --generator.skip=bicubic
train small_srugan srugan_x4 1000 --optimizer.learning_rate=1e-3 --optimizer.clip=none --discriminator=none \
  --generator.widths=[16,32] --generator.num_blocks=1 --generator.num_dense_blocks=2 --generator.skip=bicubic

"$PYTHON" -m accelerate.commands.launch "${launch_options[@]}" -m sr_dist.evaluate \
  runs/small_srcnn,runs/small_msrresnet,runs/small_rrdb,runs/small_srugan --data=$data/validation --out=runs/compare
echo "report    runs/compare/report.html"
