#!/usr/bin/env bash
# A GAN that must collapse, left alone and steered: bash launch/collapse.sh SHARDS [SEED ...]
# For each seed a pixel stage, then esrgan_x4 made thin, without its VGG term, with ten times the rate for the discriminator.
# Prints the PSNR (Y) of the validation part at the end of each, and the rollbacks. RUNS is the folder of the runs.
set -euo pipefail
shards=${1:?the folder of shards}
shift
runs=${RUNS:-runs/collapse}
python=${SR_DIST_PYTHON:-python}
small=(--runs="$runs" --data.train="$shards" --data.validation=none "--data.split=[0.8,0.2]" --data.batch=8 --data.workers=0
  --log.wandb=off --generator.num_blocks=1 --generator.width=16 --generator.growth=8 "--schedule={name: constant}"
  --ema.decay=0.99 --log_every=10)
gan=("${small[@]}" "--objective.content={l1: 1e-2}" --discriminator.width=16 --discriminator.features=64 --discriminator.crop=64
  --data.crop=64 "--discriminator_optimizer={learning_rate: 1e-3}" --save_every=50 --validate_every=50 --keep.best=psnr_y
  --steps=50)

train() { "$python" -m sr_dist.train "$@" >/dev/null; }
psnr() { grep -o '"validation/psnr_y": [0-9.]*' "$runs/$1/metrics.jsonl" | tail -n 1 | cut -d' ' -f2; }

echo "| seed | pixel stage | left alone | steered | rollbacks (after step, to step) |"
echo "|---|---|---|---|---|"
for seed in "${@:-0}"; do
  train rrdb_psnr_x4 "${small[@]}" --name="pixel_$seed" --seed="$seed" --data.crop=32 --optimizer.learning_rate=1e-3 --steps=400 \
    --save_every=none --validate_every=none
  for way in warn rollback; do
    train esrgan_x4 "${gan[@]}" --name="${way}_$seed" --seed="$seed" --init.generator="$runs/pixel_$seed" --health.on_collapse=$way \
      --health.factor=0.01
  done
  rollbacks=$("$python" -c 'import json, sys
print("; ".join("{step}, {to}".format(**r) for r in json.load(open(sys.argv[1]))["rollbacks"]))' "$runs/rollback_$seed/run.json")
  echo "| $seed | $(psnr "pixel_$seed") | $(psnr "warn_$seed") | $(psnr "rollback_$seed") | $rollbacks |"
done
