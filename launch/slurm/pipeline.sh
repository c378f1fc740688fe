#!/usr/bin/env bash
# Submits stages that each wait for the stage before, and prints their job ids. A failure cancels the stages after it.
#   bash launch/slurm/pipeline.sh \
#     build: --array=0-15 class_folders /data/imagenet/train data/imagenet256/train --resize=256 --resize_mode=squash \
#     train: --nodes=4 --gres=gpu:8 --time=24:00:00 configs/imagenet_srugan_x2_large.yaml --data.validation=none \
#     evaluate: --gres=gpu:1 runs/imagenet_srugan_x2_large,bicubic --data=/data/Set5
# A stage is `build:`, `train:`, `train_array:`, `sweep:` or `evaluate:`, then options of sbatch (one word each), then the arguments of
# its job. Stages run in the given order. After a `build:` with --array, a job that merges its shares is submitted too.
set -euo pipefail
folder=$(dirname "$0")
previous_job=
flags=" --exclusive --hold --requeue --no-requeue --wait --overcommit --oversubscribe --contiguous --spread-job --reboot --verbose \
--quiet --test-only -H -W -O -s -v -Q "  # options of sbatch that may have no value
of_sbatch="$flags --account --array --begin --comment --constraint --cpus-per-gpu --cpus-per-task --dependency --exclude --export \
--gpus --gpus-per-node --gpus-per-task --gres --job-name --mail-type --mail-user --mem --mem-per-cpu --mem-per-gpu --nodelist --nodes \
--ntasks --ntasks-per-node --output --error --open-mode --partition --qos --reservation --signal --time "

submit() {  # SCRIPT [SBATCH_OPTION ...] [ARGUMENT ...]: sets previous_job
  local script=$folder/$1.sbatch options=(--parsable) id
  shift
  while [[ ${1:-} == -* ]]; do
    options+=("$1")
    shift
  done
  [ -z "$previous_job" ] || options+=("--dependency=afterok:$previous_job" --kill-on-invalid-dep=yes)
  id=$(sbatch "${options[@]}" "$script" "$@")
  previous_job=${id%%;*}
}

submit_stage() {  # NAME: WORD ...
  local name=${1%:} arguments=() options=() is_array='' word
  shift
  case $name in
    build) submit build_shards "$@" ;;
    train|train_array|sweep|evaluate) submit "$name" "$@" ;;
  esac
  echo "$name $previous_job"
  [ "$name" = build ] || return 0
  for word in "$@"; do
    if [ ${#arguments[@]} = 0 ] && [[ $word == --array=* || $word == -a?* ]]; then
      is_array=yes
    elif [ ${#arguments[@]} = 0 ] && [[ $word == -* ]]; then
      options+=("$word")
    else
      arguments+=("$word")
    fi
  done
  [ "$is_array" ] || return 0
  submit build_shards "${options[@]}" "${arguments[@]}" --merge
  echo "merge $previous_job"
}

check_stage() {  # NAME: WORD ...: refuses mistakes that can be seen before anything is submitted
  local name=${1%:} recipe
  shift
  while [[ ${1:-} == -* ]]; do
    check_array "$name" "$1"
    [[ $1 == --*=* || $1 == -[A-Za-z]?* || $flags == *" $1 "* ]] ||
      refuse "$name: '$1': an option of sbatch is one word, such as --gres=gpu:8 or -N4, and comes before the arguments of the job"
    shift
  done
  [ $# -gt 0 ] || refuse "$name: this stage has no arguments"
  check_arguments "$name" "$@"
  case $name in
    build) check_build "$@" ;;
    train|train_array) recipe=$1 ;;
    sweep) recipe=${2:-} ;;
    evaluate) [[ " $*" == *" --data"* || " $*" == *" --lr"* ]] || refuse "evaluate: without images: give --data=SHARDS_OR_FOLDER" ;;
  esac
  [ -z "${recipe+x}" ] || [ -f "$recipe" ] || [ -f "configs/$recipe.yaml" ] || refuse "$name: no recipe '$recipe'"
}

check_array() {  # NAME OPTION: refuses arrays that the stage's script would refuse, or that would train one run twice at a time
  local array=
  case $2 in --array=*) array=${2#*=} ;; -a?*) array=${2#-a} ;; *) return 0 ;; esac
  case $1 in
    build)
      [[ $array =~ ^[0-9]+(-[0-9]+)?(%[0-9]+)?$ ]] || refuse "build: '$2': the shares are an array without gaps, such as --array=0-15" ;;
    train_array)
      [[ $array =~ ^[0-9]+$ || $array == *%1 ]] ||
        refuse "train_array: '$2': the jobs of a chain run one after the other, such as --array=${array%%%*}%1" ;;
  esac
}

check_arguments() {  # NAME ARGUMENT ...: refuses options of sbatch that the job would receive
  local name=$1 word
  shift
  for word in "$@"; do
    [[ $of_sbatch != *" ${word%%=*} "* && $word != -[A-Za-z]* ]] ||
      refuse "$name: '$word': options of sbatch come before the arguments of the job, right behind $name:"
  done
}

check_build() {  # ARGUMENT ...
  local word words=()
  for word in "$@"; do [[ $word == --* ]] || words+=("$word"); done
  [ ${#words[@]} -ge 3 ] || refuse "build: needs SOURCE INPUT OUT, and has '${words[*]}'"
}

refuse() { echo "error: $*" >&2; exit 2; }

for_each_stage() {  # FUNCTION WORD ...: calls FUNCTION with the words of every stage
  local function=$1 word words=()
  shift
  for word in "$@" end:; do
    case $word in
      build:|train:|train_array:|sweep:|evaluate:|end:)
        [ ${#words[@]} = 0 ] || "$function" "${words[@]}"
        words=("$word") ;;
      *:) refuse "unknown stage '$word'; choose from build:, train:, train_array:, sweep:, evaluate:" ;;
      *)
        [ ${#words[@]} -gt 0 ] || refuse "'$word': begin with build:, train:, train_array:, sweep: or evaluate:"
        words+=("$word") ;;
    esac
  done
}

for word in "$@"; do
  case $word in -h|--help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit ;; esac
done
[ $# -gt 0 ] || refuse "usage: pipeline.sh STAGE: WORD ... [STAGE: WORD ... ...]"
[ -f launch/slurm/job.sh ] || refuse "start it in the repository's folder: cd '$(cd "$folder/../.." && pwd)'"
for_each_stage check_stage "$@"
for_each_stage submit_stage "$@"
