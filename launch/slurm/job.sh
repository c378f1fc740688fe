# shellcheck shell=bash
# What the jobs beside it share; sourced in the repository's folder, where sbatch was called.
#   SR_DIST_ACCELERATE   a file of launch/accelerate instead of DDP, such as launch/accelerate/zero2.yaml
#   SR_DIST_REQUEUES     how often a job that ran out of time may go back to the queue (100)
#   MASTER_ADDR          the address of the first node, where its name is not the way to it
set -euo pipefail
set +u  # software of clusters reads variables that are not there
. launch/slurm/environment.sh
set -u

cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
python=("${PYTHON[@]}")  # on the first node
[ ${#CONTAINER[@]} = 0 ] || python=(srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --gpus=0 "${CONTAINER[@]}" "${PYTHON[@]}")
. launch/run_folder.sh

TRY_AGAIN=75  # an exit code: nothing is wrong, and not all is done
heard=        # the signal that this shell has heard

say() { echo "$(date '+%F %T') job $SLURM_JOB_ID: $*"; }

launch() {  # DOOR [WORDS ...]: a launcher on each node, to the end of all of them
  local first
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  export MASTER_ADDR=${MASTER_ADDR:-${first%%$'\n'*}} MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
  [ -n "$MASTER_ADDR" ] || { echo "error: SLURM does not say what the first node is; set MASTER_ADDR" >&2; return 2; }
  export GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-0} SLURM_CPUS_PER_TASK=$cpus
  # A launcher that is told to end passes it on, and gives its ranks the time to save before it kills them.
  export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-170}
  say "$* on $SLURM_JOB_NODELIST, $GPUS_PER_NODE GPUs per node, first $MASTER_ADDR:$MASTER_PORT"

  srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="$cpus" --kill-on-bad-exit=1 \
    "${CONTAINER[@]}" bash launch/slurm/node.sh "$@" &
  local launchers=$!
  while kill -0 "$launchers" 2>/dev/null; do
    if [ "$heard" = USR1 ]; then  # again and again: a run that is only just starting removes the file
      touch "$run/STOP"
      sleep 2
    else
      wait "$launchers" || true  # ends at a signal too
    fi
  done
  wait "$launchers"
}

saved_step() {  # RUN -> the step of its newest checkpoint, or 0
  local path newest=0
  for path in "$1"/checkpoints/*; do
    [[ ${path##*/} =~ ^[0-9]{7,}$ ]] && newest=$((10#${path##*/} > newest ? 10#${path##*/} : newest))
  done
  echo "$newest"
}

# One attempt: 0 when the run is done, TRY_AGAIN when time ran out and the run got further, anything else when it must not
# go on by itself. SLURM says USR1 to this shell shortly before the end; the file STOP says it to all ranks, which save
# together and leave the marker PREEMPTED. The marker counts, and not the launchers' exit code, which is 1 after a signal.
attempt() {  # RECIPE [--key=value ...]
  local before now code=0
  trap 'heard=USR1' USR1
  trap 'heard=TERM' TERM
  run=$(folder "$@") || return
  before=$(saved_step "$run")
  rm -f "$run/PREEMPTED"
  launch sr_dist.train "$@" || code=$?
  [ -e "$run/PREEMPTED" ] || { say "$run ended with $code"; return "$code"; }

  now=$(saved_step "$run")
  if [ "$heard" != USR1 ]; then
    say "$run was told to stop and is saved at step $now; the same command continues it"
    return 1
  elif [ "$now" -le "$before" ]; then
    say "$run is at step $now, as before this attempt: it is not continued; it needs more time per job"
    return 1
  fi
  say "time is up; $run came from step $before to step $now and is saved"
  return "$TRY_AGAIN"
}

attempt_and_requeue() {  # RECIPE [--key=value ...]: ends the job
  local code=0 times=${SLURM_RESTART_COUNT:-0} most=${SR_DIST_REQUEUES:-100}
  attempt "$@" || code=$?
  [ "$code" = "$TRY_AGAIN" ] || exit "$code"
  [ "$times" -lt "$most" ] || { say "not continued: it has been requeued $times times (SR_DIST_REQUEUES)"; exit 1; }
  say "goes back to the queue, for the $((times + 1)). time"
  scontrol requeue "$SLURM_JOB_ID" || { say "this cluster does not requeue; launch/slurm/train_array.sbatch does without"; exit 1; }
}
