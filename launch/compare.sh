#!/usr/bin/env bash
# Trains thin twins of the systems at x4 on the sample photographs of the demo: SRCNN, SRResNet, RRDB-PSNR, SR-UGAN's three networks and
# SwinIR with a pixel loss for 1000 steps each, then SRGAN, ESRGAN, SR-UGAN and SwinIR as GANs for 300 steps more. It evaluates all
# of them beside interpolation, and prints the table of docs/studies.md. About 20 minutes on one core.
#   bash launch/compare.sh      with SR_DIST_PYTHON=/path/to/python, that environment is used and nothing is installed
# Each run is a shipped recipe with the overrides below: fewer channels, no VGG, and networks that learn the difference from an
# interpolated image, because a minute is too short to learn interpolation itself. SRResNet is trained without batch normalization
# (msrresnet) for the same reason. COMPARE_THREADS=1 is faster where other jobs use the cores.
# The same command continues what was interrupted and skips what is done.
set -euo pipefail
. "$(dirname "$0")/studies.sh"
runs=()

data=data/sample_photos
sample_photos

train() {  # NAME RECIPE STEPS [--key=value ...]
  runs+=("runs/$1")
  train_once "$1" "$2" "$3" --data.train=$data/train --data.validation=$data/validation --data.validation_limit=24 --data.batch=8 \
    --data.crop=64 --data.workers=0 --ema.decay=0.98 --schedule="{name: cosine, warmup: 20, period: $3}" --validate_every="$3" \
    "${@:4}"
}

pixel() {  # NAME RECIPE LEARNING_RATE [--key=value ...]
  train "$1" "$2" 1000 '--objective={name: pixel, content: {l1: 1.0}}' --optimizer.learning_rate="$3" "${@:4}"
}

gan() {  # NAME RECIPE FIRST_STAGE [--key=value ...]
  train "$1" "$2" 300 --init.generator="runs/$3" --optimizer.learning_rate=2e-4 "${@:4}"
}

critic=(--discriminator.crop=64 --discriminator.width=16 --discriminator.features=64)
srresnet='--generator={name: msrresnet, num_blocks: 4, width: 32}'
rrdb=(--generator.num_blocks=1 --generator.width=32 --generator.growth=16 --generator.skip=bicubic)
srugan=(--optimizer.clip=none --generator.widths=[16,32] --generator.num_blocks=1 --generator.num_dense_blocks=2 --generator.skip=bicubic)
swinir='--generator={name: swinir, width: 32, depths: [2, 2], heads: 4, window: 8, enlarge: shuffle, skip: bicubic}'

pixel small_srcnn srcnn_x4 1e-3 --generator.widths=[32,16] --generator.skip=bicubic
pixel small_msrresnet srresnet_x4 1e-3 "$srresnet"
pixel small_rrdb rrdb_psnr_x4 4e-3 "${rrdb[@]}"
for form in author paper residual; do
  pixel small_srugan_$form srugan_x4 1e-3 --discriminator=none "${srugan[@]}" --generator.form=$form
done
pixel small_swinir swinir_x4 1e-3 "$swinir"

gan small_srgan srgan_mse_x4 small_msrresnet "$srresnet" "${critic[@]}"
gan small_esrgan esrgan_x4 small_rrdb "${rrdb[@]}" "${critic[@]}" '--objective.content={l1: 1.0}'
gan small_srugan_gan srugan_x4 small_srugan_author "${srugan[@]}" '--objective.content={mse: {weight: 1.0, range: "-1..1"}}' \
  '--discriminator.widths=[16,32,48,64]' --discriminator.features=64
gan small_swinir_gan swinir_gan_x4 small_swinir "$swinir" "${critic[@]}" '--objective.content={l1: 1.0}'

"$PYTHON" -m accelerate.commands.launch "${launch_options[@]}" -m sr_dist.evaluate \
  "$(IFS=,; echo "${runs[*]}")" --data=$data/validation --out=runs/compare
echo "report    runs/compare/report.html"
