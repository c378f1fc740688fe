#!/usr/bin/env bash
# Submits stages of which each waits for the one before, and prints their job ids. A failure cancels what comes after it.
#   bash launch/slurm/pipeline.sh \
#     build: --array=0-15 class_folders /data/imagenet/train data/imagenet256/train --resize=256 --resize_mode=squash \
#     train: --nodes=4 --gres=gpu:8 --time=24:00:00 configs/imagenet_srugan_x2_large.yaml --data.validation=none \
#     evaluate: --gres=gpu:1 runs/imagenet_srugan_x2_large,bicubic --data=/data/Set5
# A stage is `build:`, `train:`, `train_array:`, `sweep:` or `evaluate:`, options of sbatch (each one word), and the words of its job.
# Any number of them, in the order in which they are to run; a `build:` with --array is followed by the job that joins its shares.
set -euo pipefail
here=$(dirname "$0")
before=
flags=" --exclusive --hold --requeue --no-requeue --wait --overcommit --oversubscribe --contiguous --spread-job --reboot --verbose \
--quiet --test-only -H -W -O -s -v -Q "  # options of sbatch that stand without a value

submit() {  # SCRIPT SBATCH_OPTIONS... SCRIPT_WORDS...: prints the id
  local script=$here/$1.sbatch options=(--parsable) id
  shift
  while [[ ${1:-} == -* ]]; do
    options+=("$1")
    shift
  done
  [ -z "$before" ] || options+=("--dependency=afterok:$before" --kill-on-invalid-dep=yes)
  id=$(sbatch "${options[@]}" "$script" "$@")
  before=${id%%;*}
}

stage() {  # NAME: WORDS...
  local name=${1%:} merge=() options=() shares='' word
  shift
  case $name in
    build) submit build_shards "$@" ;;
    train|train_array|sweep|evaluate) submit "$name" "$@" ;;
  esac
  echo "$name $before"
  [ "$name" = build ] || return 0
  for word in "$@"; do
    if [ ${#merge[@]} = 0 ] && [[ $word == --array=* || $word == -a?* ]]; then
      shares=yes
    elif [ ${#merge[@]} = 0 ] && [[ $word == -* ]]; then
      options+=("$word")
    else
      merge+=("$word")
    fi
  done
  [ "$shares" ] || return 0
  submit build_shards "${options[@]}" "${merge[@]}" --merge
  echo "merge $before"
}

check() {  # NAME: WORDS...: what is wrong with a stage, as far as it can be seen before anything is submitted
  local name=${1%:} recipe
  shift
  while [[ ${1:-} == -* ]]; do
    [[ $1 == --*=* || $1 == -[A-Za-z]?* || $flags == *" $1 "* ]] ||
      wrong "$name: '$1': an option of sbatch is one word, such as --gres=gpu:8 or -N4, and stands before the words of the job"
    shift
  done
  [ $# -gt 0 ] || wrong "$name: this stage has no words"
  case $name in
    train|train_array) recipe=$1 ;;
    sweep) recipe=${2:-} ;;
    *) return 0 ;;
  esac
  [ -f "$recipe" ] || wrong "$name: no recipe '$recipe'"
}

wrong() { echo "error: $*" >&2; exit 2; }

each() {  # DO WORDS...: DO with the words of every stage
  local do=$1 word words=()
  shift
  for word in "$@" end:; do
    case $word in
      build:|train:|train_array:|sweep:|evaluate:|end:)
        [ ${#words[@]} = 0 ] || "$do" "${words[@]}"
        words=("$word") ;;
      *:) wrong "'$word' is no stage; there are build:, train:, train_array:, sweep: and evaluate:" ;;
      *)
        [ ${#words[@]} -gt 0 ] || wrong "'$word': begin with build:, train:, train_array:, sweep: or evaluate:"
        words+=("$word") ;;
    esac
  done
}

[ $# -gt 0 ] || wrong "usage: pipeline.sh STAGE: WORDS... [STAGE: WORDS... ...]"
each check "$@"
each stage "$@"
