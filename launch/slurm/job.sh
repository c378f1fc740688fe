# shellcheck shell=bash
# Shared by the jobs in this folder; sourced in the folder of the repository, where sbatch was called.
#   SR_DIST_ACCELERATE   a file of launch/accelerate to use instead of DDP, such as launch/accelerate/zero2.yaml
#   SR_DIST_REQUEUES     how often a job that ran out of time may be requeued (100)
#   MASTER_ADDR          the address of the first node, if its name does not resolve on the other nodes
set -euo pipefail
set +u  # the environment software of some clusters reads unset variables
. launch/slurm/environment.sh
set -u

cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
python=("${PYTHON[@]}")  # on the first node
[ ${#CONTAINER[@]} = 0 ] || python=(srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --gpus=0 "${CONTAINER[@]}" "${PYTHON[@]}")
. launch/run_folder.sh

OUT_OF_TIME=75  # exit code of an attempt that saved because its time ran out
signal=         # the signal that this shell has received

log() { echo "$(date '+%F %T') job $SLURM_JOB_ID: $*"; }

free_port() {  # prints a port of this node where nobody listens; systems lend the ports from 16000 on to outgoing connections
  local port=$((12000 + SLURM_JOB_ID % 4000))
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((12000 + (port - 11999) % 4000)); done
  echo "$port"
}

launch() {  # MODULE [ARGUMENT ...]: runs a launcher on each node and waits for all of them
  local nodes
  nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
  export MASTER_ADDR=${MASTER_ADDR:-${nodes%%$'\n'*}} MASTER_PORT=${MASTER_PORT:-$(free_port)}
  [ -n "$MASTER_ADDR" ] || { echo "error: SLURM does not name the first node; set MASTER_ADDR" >&2; return 2; }
  export GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-0} SLURM_CPUS_PER_TASK=$cpus
  # A launcher passes these signals on, and gives its ranks this time to save before it kills them.
  export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1 TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-170}
  log "$* on $SLURM_JOB_NODELIST, $GPUS_PER_NODE GPUs per node, rendezvous at $MASTER_ADDR:$MASTER_PORT"

  srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --cpus-per-task="$cpus" --kill-on-bad-exit=1 \
    "${CONTAINER[@]}" bash launch/slurm/node.sh "$@" &
  local launchers=$!
  while kill -0 "$launchers" 2>/dev/null; do
    if [ "$signal" = USR1 ]; then  # repeatedly, because a run that is just starting removes the file
      touch "$run/STOP"
      sleep 2
    else
      wait "$launchers" || true  # a signal also ends the wait
    fi
  done
  wait "$launchers"
}

saved_step() {  # RUN: prints the step of its newest checkpoint, or 0
  local path newest=0
  for path in "$1"/checkpoints/*; do
    [[ ${path##*/} =~ ^[0-9]{7,}$ ]] && newest=$((10#${path##*/} > newest ? 10#${path##*/} : newest))
  done
  echo "$newest"
}

# Runs one attempt. Returns 0 if the run is done, OUT_OF_TIME if time ran out and the run made progress, and any other code if the
# run must not be continued automatically. SLURM sends USR1 to this shell shortly before the time limit. The file STOP tells all
# ranks, which save together and leave the marker PREEMPTED. The marker decides, because launchers exit with 1 after a signal.
attempt() {  # RECIPE [--key=value ...]: sets `run`
  local before after code=0
  trap 'signal=USR1' USR1
  trap 'signal=TERM' TERM
  run=$(run_folder "$@") || return
  before=$(saved_step "$run")
  rm -f "$run/PREEMPTED"
  launch sr_dist.train "$@" || code=$?
  [ -e "$run/PREEMPTED" ] || { log "$run ended with exit code $code"; return "$code"; }

  after=$(saved_step "$run")
  if [ "$signal" != USR1 ]; then
    log "$run was stopped on request and saved at step $after; the same command continues it"
    return 1
  elif [ "$after" -le "$before" ]; then
    log "$run is still at step $after: not requeued, because this attempt made no progress; give the job more time"
    return 1
  fi
  log "time is up; $run advanced from step $before to step $after and is saved"
  return "$OUT_OF_TIME"
}

attempt_and_requeue() {  # RECIPE [--key=value ...]: ends the job
  local code=0 requeues=${SLURM_RESTART_COUNT:-0} max_requeues=${SR_DIST_REQUEUES:-100}
  attempt "$@" || code=$?
  [ "$code" = "$OUT_OF_TIME" ] || exit "$code"
  [ "$requeues" -lt "$max_requeues" ] || { log "not requeued: it has been requeued $requeues times (SR_DIST_REQUEUES)"; exit 1; }
  log "requeue $((requeues + 1))"
  scontrol requeue "$SLURM_JOB_ID" || { log "this cluster does not allow requeueing; use launch/slurm/train_array.sbatch"; exit 1; }
}
