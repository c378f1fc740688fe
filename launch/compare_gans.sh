#!/usr/bin/env bash
# Trains one thin RRDB at x4 on your photographs with a pixel loss, and continues it under each GAN objective with the same budget:
# the same steps, batches, crops, L1, adversarial weight and rates, two seeds each. The objectives are srgan, esrgan and r3gan with
# one patch discriminator, and srgan with a discriminator on frozen features; the control goes on with L1 alone. It evaluates
# all on whole photographs that no training saw, and on tiles of the demo's sample photographs, and writes the tables of
# docs/studies.md. About 10 minutes on one core.
#   bash launch/compare_gans.sh PHOTOS      with SR_DIST_PYTHON=/path/to/python, that environment is used and nothing is installed
# PHOTOS is a folder of images; a quarter of them, selected by content, is for evaluation. The frozen features are those of a
# ResNet-18 with random weights: the script needs no published file. COMPARE_THREADS=1 is faster where other jobs use the cores.
# The same command continues what was interrupted and skips what is done.
set -euo pipefail
[ $# = 1 ] && [ -d "$1" ] || { echo "error: bash launch/compare_gans.sh PHOTOS: give a folder of images" >&2; exit 2; }
photos=$(cd "$1" && pwd)
. "$(dirname "$0")/studies.sh"
data=data/compare_gans split='[0.75,0.25]'
[ -e $data/manifest.json ] || "$PYTHON" -m shards.build folder "$photos" $data --min_side=64

train() {  # NAME RECIPE STEPS [--key=value ...]
  train_once "$1" "$2" "$3" --data.train=$data --data.validation=none --data.split="$split" --data.batch=8 --data.crop=48 \
    --data.workers=0 --generator='{name: rrdb, num_blocks: 1, width: 32, growth: 16, skip: bicubic}' --ema.decay=0.98 \
    --validate_every=none --log_every=10 "${@:4}"
}

train gans_first rrdb_psnr_x4 400 '--objective={name: pixel, content: {l1: 1.0}}' --optimizer.learning_rate=1e-3 \
  '--schedule={name: cosine, warmup: 20, period: 400}'

second() {  # NAME RECIPE SEED [--key=value ...]
  train "gans_$1_$3" "$2" 150 --seed="$3" --init.generator=runs/gans_first --optimizer.learning_rate=2e-4 \
    '--schedule={name: constant, warmup: 20}' "${@:4}"
}

patch='--discriminator={name: patch, widths: [16, 32, 48, 64], norm: none}'
features='--discriminator={name: features, arch: resnet18, layers: [layer1, layer2, layer3], backbone: random, width: 32}'
gan=('--objective.content={l1: 1.0}' --objective.adversarial_weight=5e-3)
for seed in 0 1; do
  second pixel rrdb_psnr_x4 $seed '--objective={name: pixel, content: {l1: 1.0}}'
  second srgan srgan_mse_x4 $seed "$patch" "${gan[@]}"
  second esrgan esrgan_x4 $seed "$patch" "${gan[@]}"
  second r3gan r3gan_x4 $seed "$patch" "${gan[@]}"
  second features srgan_mse_x4 $seed "$features" "${gan[@]}"
done

sample=data/sample_photos/validation
sample_photos
report() {  # SEED OUT [--key=value ...]
  local runs=runs/gans_pixel_$1,runs/gans_srgan_$1,runs/gans_esrgan_$1,runs/gans_r3gan_$1,runs/gans_features_$1
  "$PYTHON" -m accelerate.commands.launch "${launch_options[@]}" -m sr_dist.evaluate "bicubic,$runs" \
    --metrics=psnr,ssim,launch.sharpness --against="gans_pixel_$1" --cache=none --out="$2" "${@:3}"
}
for seed in 0 1; do
  report $seed runs/compare_gans_$seed --data=$data --split="$split" --part=validation
  report $seed runs/compare_gans_sample_$seed --data=$sample
done
echo "reports   runs/compare_gans_0/report.html ..._1, and of the sample photographs runs/compare_gans_sample_0/report.html ..._1"
