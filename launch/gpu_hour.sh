#!/usr/bin/env bash
# Measures what only GPUs can show, for whoever has one for an hour: the tests marked gpu, the speed of a step of ESRGAN in every
# form, its largest batch, DDP and ZeRO over all GPUs, data at speed, the large-batch rule, and a training of 200 steps that is
# resumed in the middle. The results go into one markdown file, with the machine, the versions and the commands, for
# benchmarks/RESULTS.md.
#   bash launch/gpu_hour.sh [--minutes=60] [--out=build/gpu_hour] [--data=SHARDS] [--parts=tests,step,...] [--dry_run]
#     --minutes   the time of all parts together; each has its share, and what has no time left is recorded as such
#     --out       the folder of the results (results.md), logs and runs; one that has results is refused
#     --data      shards of photographs of 128 pixels or more; without it, the photographs of the demo in tiles of 256
#     --parts     some of tests, step, batch, ranks, data, sweep, esrgan
#     --dry_run   prints the commands and runs nothing
# A part that fails is recorded and does not stop the others; the exit code is 1 then. With SR_DIST_PYTHON=/path/to/python, that
# environment is used and nothing is installed. SR_DIST_GPU_HOUR=cpu does the same on a CPU with tiny networks.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/launch/environment.sh"
PARTS=(tests step batch ranks data sweep esrgan)
declare -A SHARES=([tests]=17 [step]=22 [batch]=11 [ranks]=17 [data]=6 [sweep]=15 [esrgan]=12)  # percent of the time

minutes=60 out=build/gpu_hour data='' parts=("${PARTS[@]}") dry=''
mistake() { echo "error: $1" >&2; exit 2; }
for word in "$@"; do
  case $word in
    -h|--help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit ;;
    --minutes=*) minutes=${word#*=} ;;
    --out=*) out=${word#*=} ;;
    --data=*) data=${word#*=} ;;
    --parts=*) IFS=, read -ra parts <<<"${word#*=}" ;;
    --dry_run) dry=yes ;;
    *) mistake "'$word': unknown option; see --help" ;;
  esac
done
[[ $minutes =~ ^[1-9][0-9]{0,3}$ ]] || mistake "minutes: '$minutes' is not a whole number from 1 to 9999"
for name in "${parts[@]}"; do
  [ -n "${SHARES[$name]:-}" ] || mistake "parts: unknown part '$name'; choose from ${PARTS[*]}"
done
case $out in /*) ;; *) out=$PWD/$out ;; esac
[ -n "$dry" ] || [ ! -e "$out/results.md" ] || mistake "out: '$out' has the results of an earlier run; name another folder with --out"
[ -z "$data" ] || [[ $data = /* || $data = *:* ]] || data=$PWD/$data
[ -z "$data" ] || [[ $data = *:* || $data = *.tar ]] || [ -e "$data/manifest.json" ] || mistake "data: no shards in '$data'"
prepare_python dev
cd "$ROOT"
export WANDB_MODE=offline

# ---- what is measured, on GPUs and in small

train=(--log.wandb=off --runs="$out/runs")
if [ "${SR_DIST_GPU_HOUR:-}" = cpu ]; then
  export ACCELERATE_USE_CPU=true CUDA_VISIBLE_DEVICES='' DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  gpus=2 tests=(tests/gpu/test_devices.py -m 'not gpu' -k skipped) batches=(4 8) timed=1 sweep=(2 4) images=8 half=2
  esrgan=(esrgan_x4 --generator.num_blocks=1 --generator.width=8 --generator.growth=4 --data.crop=32 --discriminator.crop=32
    --discriminator.width=8 --discriminator.features=16 --data.workers=0 --objective.content="{l1: 1.0}")
  pixel=(rrdb_psnr_x4 --generator.num_blocks=1 --generator.width=8 --generator.growth=4 --data.crop=32 --data.workers=0)
  layout=(--channels_last=true)
  forms=("fp32" "bf16, channels_last|--precision=bf16 --channels_last=true")
else
  gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
  if [ "$gpus" = 0 ]; then
    [ -n "$dry" ] || mistake "no GPU; SR_DIST_GPU_HOUR=cpu tries the script on a CPU"
    gpus=8
  fi
  tests=(-m gpu) batches=(16 32 64 128 256 512) timed=30 sweep=(8 32 128) images=16000 half=100
  esrgan=(esrgan_x4 --objective.content.vgg.weights=random --data.workers=8)
  pixel=(rrdb_psnr_x4 --generator.num_blocks=4 --data.workers=8)
  layout=(--channels_last=true --compile=body)
  forms=("fp32|--tf32=false" "TF32|--tf32=true" "bf16|--precision=bf16" "fp16|--precision=fp16"
    "bf16, channels_last|--precision=bf16 --channels_last=true" "bf16, cudnn_benchmark|--precision=bf16 --cudnn_benchmark=true"
    "bf16, compile|--precision=bf16 --compile=true" "bf16, compile: body|--precision=bf16 --compile=body"
    "bf16, channels_last, compile: body|--precision=bf16 --channels_last=true --compile=body")
fi

# ---- the record

results=$out/results.md number=0 failures=0 part_end=0

write() { [ -n "$dry" ] || printf '%s\n' "$@" >>"$results"; }

shown() {  # a command as one line that a shell understands, without this machine's folders
  local line
  printf -v line '%q ' "$@"
  line=${line//"$PYTHON"/python}
  line=${line//"$out"/OUT}
  echo "${line% }"
}

measure() {  # NAME PATTERN COMMAND ...: one row of the part's table, from the last line of the output that has the pattern
  local name=$1 pattern=$2 left=$((part_end - SECONDS)) code=0 begin=$SECONDS log result
  shift 2
  if [ -n "$dry" ]; then
    printf '  %-36s %s\n' "$name" "$(shown "$@")"
    return 0
  fi
  number=$((number + 1))
  log=$out/logs/$(printf '%02d' "$number")-${name//[^A-Za-z0-9]/_}.txt
  if [ "$left" -le 0 ]; then
    write "| $name | not run: the time of this part is over | |"
    return 0
  fi
  echo "--- $name"
  { shown "$@"; timeout --kill-after=10 "$left" "$@"; } >"$log" 2>&1 || code=$?
  result=$(tail -n +2 "$log" | grep -E "$pattern" | tail -n 1 | tr '|' '/' || true)
  if [ "$code" != 0 ]; then
    failures=$((failures + 1))
    result=$(tail -n +2 "$log" | grep -E '^([A-Za-z_.]*Error|error|[A-Za-z_.]*OutOfMemory):' | tail -n 1 || true)
    result=${result:-$(grep -v '^[[:space:]]*$' "$log" | tail -n 1)}
    result="**FAILED** (exit code $code): $(cut -c1-200 <<<"$result" | tr '|' '/')"
    [ "$code" != 124 ] && [ "$code" != 137 ] || result="**STOPPED** after $left s, the time of this part"
  fi
  echo "$result"
  write "| $name | ${result:-no output} | $((SECONDS - begin)) |"
  commands+=("$(shown "$@")")
  return "$code"
}

begin_part() {  # NAME TITLE
  part_end=$((SECONDS + minutes * 60 * SHARES[$1] / 100))
  commands=()
  echo "=== $2, $((minutes * 60 * SHARES[$1] / 100)) s"
  write "" "### $2" "" "| | result | seconds |" "|---|---|---|"
}

end_part() {
  [ "${#commands[@]}" = 0 ] || write "" '```' "${commands[@]}" '```'
}

launcher() {  # CONFIGURATION: the words of a launch over all GPUs
  local config=(--config_file "launch/accelerate/$1.yaml" --num_machines 1)
  if [ "${SR_DIST_GPU_HOUR:-}" = cpu ] && [ "$1" = ddp_node ]; then
    config=(--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no)
  fi
  launch=("$PYTHON" -m accelerate.commands.launch "${config[@]}" --num_processes "$gpus" --main_process_port 0)
  case $1 in zero*) launch=(env -u ACCELERATE_USE_CPU "${launch[@]}") ;; esac  # with it accelerate leaves DeepSpeed out
}

# ---- the parts

bench=("$PYTHON" -m sr_dist.bench)

part_tests() {
  measure "pytest ${tests[*]}" 'passed|failed|skipped|deselected' "$PYTHON" -m pytest -p no:cacheprovider "${tests[@]}" || true
}

part_step() {
  local form options
  for form in "${forms[@]}"; do
    options=()
    [[ $form != *'|'* ]] || read -ra options <<<"${form#*|}"
    measure "${form%%|*}" 'images/s' "${bench[@]}" step "${esrgan[@]}" --steps="$timed" "${images_of[@]}" \
      --data.batch="${batches[0]}" "${options[@]}" || true
  done
}

expected_end() {  # BATCH: one that does not fit is no failure, but for the smallest
  if [ "$1" != "${batches[0]}" ] && grep -qi 'out of memory' "$out"/logs/*"-batch_$1.txt"; then
    failures=$((failures - 1))
  fi
}

part_batch() {
  local size
  for size in "${batches[@]}"; do  # up to the first that does not fit
    measure "batch $size" 'images/s' "${bench[@]}" step "${esrgan[@]}" --steps="$timed" "${images_of[@]}" \
      --data.batch="$size" --precision=bf16 || { expected_end "$size"; break; }
  done
}

part_ranks() {
  local config
  for config in ddp_node zero1 zero2 zero3; do
    launcher "$config"
    measure "$config, $gpus ranks" 'images/s' "${launch[@]}" -m sr_dist.bench step "${esrgan[@]}" --steps="$timed" \
      "${images_of[@]}" --data.batch="$((batches[0] * gpus))" --precision=bf16 || true
  done
  launcher ddp_node
  measure "ddp_node, $gpus ranks, ${layout[*]}" 'images/s' "${launch[@]}" -m sr_dist.bench step "${esrgan[@]}" \
    --steps="$timed" "${images_of[@]}" --data.batch="$((batches[0] * gpus))" --precision=bf16 "${layout[@]}" || true
}

part_data() {
  measure "the loader, one worker" 'images/s' "${bench[@]}" data "${esrgan[@]}" --images="$images" --rounds=3 \
    "${images_of[@]}" --data.batch="${batches[0]}" || true
  measure "a step, data wait" 'images/s' "${bench[@]}" step "${pixel[@]}" --steps="$((timed * 2))" "${images_of[@]}" \
    --data.batch="${batches[0]}" --precision=bf16 || true
}

part_sweep() {  # the learning rate times the square root of the batch, and the same number of images
  local size rate steps
  for size in "${sweep[@]}"; do
    rate=$(awk "BEGIN {printf \"%.6g\", 2e-4 * sqrt($size / ${sweep[0]})}") steps=$((images / size))
    measure "batch $size, learning rate $rate" 'validation of' "$PYTHON" -m sr_dist.train "${pixel[@]}" "${train[@]}" \
      --name="sweep_$size" "${images_of[@]}" --data.validation="$data" --data.validation_limit=16 --data.batch="$size" \
      --optimizer.learning_rate="$rate" --schedule='{name: constant, warmup: 1}' --ema.decay=0.9 --steps="$steps" \
      --validate_every="$steps" --save_every="$steps" --log_every="$steps" || true
  done
}

part_esrgan() {
  local steps
  for steps in "$half" "$((half * 2))"; do
    measure "to step $steps" 'done after|images/s' "$PYTHON" -m sr_dist.train "${esrgan[@]}" "${train[@]}" --name=esrgan \
      --init.generator=none "${images_of[@]}" --data.batch="${batches[0]}" --steps="$steps" --save_every="$half" \
      --validate_every=none --log_every="$half" || true
  done
}

declare -A TITLES=(
  [tests]="Tests marked gpu" [step]="A step of ESRGAN" [batch]="The largest batch" [ranks]="All GPUs" [data]="Data"
  [sweep]="The large-batch rule" [esrgan]="ESRGAN, resumed in the middle"
)

machine() {  # commit, GPUs, processor, versions
  git rev-parse HEAD
  git status --short | head -n 5
  nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader || echo "no nvidia-smi"
  lscpu | grep -E '^(Model name|CPU\(s\))'
  timeout 120 "$PYTHON" -m sr_dist.doctor --runs="$out" | sed -e "s|$out|OUT|" -e '/  python /s|, /.*||' |
    grep -E '  (python|torch|torchvision|accelerate|deepspeed|GPUs|disk) '
}

if [ -n "$dry" ]; then
  data=${data:-$out/photos}
else
  mkdir -p "$out/logs"
  : >"$results"
  write "## An hour on $(hostname 2>/dev/null || echo a machine), $(date -u +%Y-%m-%d)" "" '```'
  (set +e; machine) >>"$results" 2>/dev/null || true
  write '```'
  if [ -z "$data" ]; then
    data=$out/photos
    if [ ! -e "$data/manifest.json" ]; then
      "$PYTHON" -m shards.build sample_photos train "$data" --tile=256 --stride=64 --per_shard=256 \
        >"$out/logs/00-data.txt" 2>&1 || echo "the shards could not be built: $out/logs/00-data.txt" >&2
    fi
  fi
fi

images_of=(--data.train="$data" --data.validation=none --data.small=replicate)

for name in "${parts[@]}"; do
  begin_part "$name" "${TITLES[$name]}"
  "part_$name"
  end_part
done
[ -n "$dry" ] || echo "results    $results ($failures failed)"
[ "$failures" = 0 ]
