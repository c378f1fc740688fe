#!/usr/bin/env bash
# The large-batch rule at a small budget: a thin ESRGAN at x4 on the sample photographs of the demo, with batches of 8, 32 and 128 and
# the same 2560 images. The rate of batch 8 is multiplied by 1, by the square root of the ratio of the batches (the rule of
# the large recipes) and by the ratio. Warm-up and EMA stay the same in images. Two seeds; evaluates all and prints the tables of
# docs/large_batches.md. About 6 minutes on one core.
#   bash launch/sweep_batches.sh      with SR_DIST_PYTHON=/path/to/python, that environment is used and nothing is installed
# COMPARE_THREADS=1 is faster where other jobs use the cores. The same command continues what was interrupted and skips what is done.
set -euo pipefail
. "$(dirname "$0")/studies.sh"
data=data/sample_photos
sample_photos

train() {  # NAME RECIPE STEPS BATCH [--key=value ...]
  train_once "$1" "$2" "$3" --data.train=$data/train --data.validation=none --data.batch="$4" --data.crop=32 --data.workers=0 \
    --generator='{name: rrdb, num_blocks: 1, width: 32, growth: 16, skip: bicubic}' --objective.content='{l1: 1.0}' \
    --validate_every=none --log_every=$(($3 / 10)) "${@:5}"
}

train sweep_first rrdb_psnr_x4 300 8 --optimizer.learning_rate=1e-3 --schedule='{name: cosine, warmup: 20, period: 300}' --ema.decay=0.98

images=2560
gan() {  # SEED BATCH RULE RATE EMA_DECAY
  train "sweep_$2_$3_$1" esrgan_x4 $((images / $2)) "$2" --seed="$1" --init.generator=runs/sweep_first \
    --discriminator='{name: patch, widths: [16, 32, 48, 64], norm: none}' --optimizer.learning_rate="$4" --ema.decay="$5" \
    --schedule="{name: constant, warmup: $((160 / $2))}"
}

for seed in 0 1; do
  gan $seed 8 base 2e-4 0.98
  gan $seed 32 constant 2e-4 0.922
  gan $seed 32 root 4e-4 0.922
  gan $seed 32 linear 8e-4 0.922
  gan $seed 128 constant 2e-4 0.724
  gan $seed 128 root 8e-4 0.724
  gan $seed 128 linear 3.2e-3 0.724
done

for seed in 0 1; do
  runs=runs/sweep_8_base_$seed
  for batch in 32 128; do
    for rule in constant root linear; do
      runs+=,runs/sweep_${batch}_${rule}_$seed
    done
  done
  "$PYTHON" -m accelerate.commands.launch "${launch_options[@]}" -m sr_dist.evaluate "runs/sweep_first,$runs" \
    --data=$data/validation --metrics=psnr,ssim,launch.sharpness --against=sweep_8_base_$seed --cache=none \
    --out=runs/sweep_batches_$seed
done
echo "reports   runs/sweep_batches_0/report.html runs/sweep_batches_1/report.html"
