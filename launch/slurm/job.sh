# shellcheck shell=bash
# Shared by the jobs in this folder; sourced in the folder of the repository, where sbatch was called.
#   SR_DIST_ACCELERATE   a file of launch/accelerate to use instead of DDP, such as launch/accelerate/zero2.yaml
#   SR_DIST_REQUEUES     how often a job may be requeued (100)
#   SR_DIST_RETRIES      how often in a row it may try again after a failure, without a new checkpoint (3; 0: it never does)
#   SR_DIST_MIN_NODES    how many nodes must remain when a node that failed is excluded (as many as the attempt had)
#   MASTER_ADDR          the address of the first node, if its name does not resolve on the other nodes
set -euo pipefail
[ -n "${SLURM_JOB_ID:-}" ] || { echo "error: this is a job of SLURM: submit it with sbatch, as its first lines say" >&2; exit 2; }
signal=  # the one that this shell has received
trap 'signal=USR1' USR1  # here, because SLURM sends it at once to a job that is shorter than its notice
set +u  # the environment software of some clusters reads unset variables
. launch/slurm/environment.sh
set -u

cpus=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
python=("${PYTHON[@]}")  # on the first node
[ ${#CONTAINER[@]} = 0 ] || python=(srun --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --gpus=0 "${CONTAINER[@]}" "${PYTHON[@]}")
. launch/run_folder.sh

OUT_OF_TIME=75  # exit code of an attempt that saved because its time ran out
AGAIN=76        # exit code of an attempt that failed, but may succeed when it is repeated
failed_node=    # the node on which it failed first
max_requeues=${SR_DIST_REQUEUES:-100} retries=${SR_DIST_RETRIES:-3} min_nodes=${SR_DIST_MIN_NODES:-$SLURM_NNODES}
requeues=${SLURM_RESTART_COUNT:-0}
for number in "SR_DIST_REQUEUES $max_requeues" "SR_DIST_RETRIES $retries" "SR_DIST_MIN_NODES $min_nodes"; do
  [[ ${number#* } =~ ^[0-9]+$ ]] || { echo "error: ${number% *}: '${number#* }' is not a whole number" >&2; exit 2; }
done

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

# Runs one attempt. Returns 0 if the run is done, OUT_OF_TIME if time ran out and the run made progress, AGAIN if it failed and may be
# repeated, and any other code if the run must not be continued automatically. SLURM sends USR1 to this shell shortly before the time
# limit. The file STOP tells all ranks, which save together and leave the marker PREEMPTED. The marker decides, because launchers exit
# with 1 after a signal.
attempt() {  # RECIPE [--key=value ...]: sets `run` and `failed_node`
  local before after reason runs code=0 runs_exist=''
  trap 'signal=TERM' TERM
  run=$(run_folder "$@") || return
  runs=$(dirname "$run")
  before=$(saved_step "$run")
  [ ! -d "$runs" ] || runs_exist=yes
  export SR_DIST_FAILURES=$runs/.failed-${run##*/}-$SLURM_JOB_ID  # not in the run, which a mistake leaves as it was
  note_lost_attempt "$before"
  rm -rf "$run/PREEMPTED" "$SR_DIST_FAILURES"
  launch sr_dist.train "$@" || code=$?
  after=$(saved_step "$run")
  if [ ! -e "$run/PREEMPTED" ]; then
    log "$run ended with exit code $code"
    [ "$code" = 0 ] || [ "$signal" = TERM ] || weigh_failure "$code" "$before" "$after" || code=$?
  fi
  rm -rf "$SR_DIST_FAILURES"
  [ "$runs_exist" ] || rmdir "$runs" 2>/dev/null || true
  [ -e "$run/PREEMPTED" ] || return "$code"

  if [ "$signal" != USR1 ] && ! is_preempted; then
    log "$run was stopped on request and saved at step $after; the same command continues it"
    return 1
  elif [ "$after" -le "$before" ]; then
    log "$run is still at step $after: not requeued, because this attempt made no progress; give the job more time"
    return 1
  fi
  [ "$signal" = USR1 ] && reason="time is up" || reason="SLURM pre-empts the job"
  log "$reason; $run advanced from step $before to step $after and is saved"
  return "$OUT_OF_TIME"
}

is_preempted() {  # in its grace time, a job that ends by itself is not requeued by SLURM
  scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'
}

incident() {  # CODE BEFORE AFTER [--key=value ...]: records a failed attempt; prints `again` or `stop`, the node, its exit code, and why
  "${python[@]}" -m sr_dist.tools.incidents "$run" --records="$SR_DIST_FAILURES" --code="$1" --before="$2" --after="$3" \
    --job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" --attempt="$((requeues + ${chain_task:-0}))" --retries="$retries" "${@:4}"
}

weigh_failure() {  # CODE BEFORE AFTER: returns AGAIN, or the exit code of the first failure; sets failed_node
  local answer verdict code
  answer=$(incident "$@") || { log "the failure cannot be judged"; return "$1"; }
  read -r verdict failed_node code <<<"${answer%%$'\n'*}"
  log "${answer#*$'\n'}"
  [ "$verdict" != again ] || return "$AGAIN"
  return "$code"
}

note_lost_attempt() {  # STEP: SLURM itself requeues a job that lost a node, without a word from the attempt
  local answer last="\"job\": ${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}, \"attempt\": $((requeues - 1)),"
  [ "$requeues" -gt 0 ] && [ -d "$run" ] && [ ! -e "$run/PREEMPTED" ] || return 0
  ! tail -n 1 "$run/incidents.jsonl" 2>/dev/null | grep -qF "$last" || return 0
  answer=$(incident 0 "$1" "$1" --lost) || return 0
  log "${answer#*$'\n'}"
}

exclude() {  # JOB NODE: no later attempt runs on this node, if enough others are up; a job that fits nowhere would wait for ever
  local job=$1 excluded others
  excluded=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*ExcNodeList=\([^ ]*\).*/\1/p;T;q')
  [ "$excluded" != "(null)" ] || excluded=
  excluded=${excluded:+$excluded,}$2
  # a * after the state of a node means that it does not respond
  others=$(sinfo --noheader --Node --partition="$SLURM_JOB_PARTITION" --format='%N %t' | sort -u |
    awk '$2 ~ /^(idle|alloc|mix|comp|resv|plnd)[^*]*$/ {print $1}' | grep -vxFc -f <(scontrol show hostnames "$excluded")) || true
  if [ "$others" -lt "$min_nodes" ]; then
    log "$2 is not excluded: $others other nodes are up, and the job needs $min_nodes (SR_DIST_MIN_NODES)"
  elif scontrol update JobId="$job" ExcNodeList="$excluded"; then
    log "$2 is excluded from the next attempts: scontrol update JobId=$job ExcNodeList= allows it again"
  else
    log "$2 could not be excluded"
  fi
}

attempt_and_requeue() {  # RECIPE [--key=value ...]: ends the job
  local code=0
  attempt "$@" || code=$?
  [ "$code" = "$OUT_OF_TIME" ] || [ "$code" = "$AGAIN" ] || exit "$code"
  [ "$requeues" -lt "$max_requeues" ] || { log "not requeued: it has been requeued $requeues times (SR_DIST_REQUEUES)"; exit 1; }
  log "requeue $((requeues + 1))"
  trap '' TERM  # which requeueing sends to this shell; SLURM excludes nodes only from a job that waits
  scontrol requeue "$SLURM_JOB_ID" || { log "this cluster does not allow requeueing; use launch/slurm/train_array.sbatch"; exit 1; }
  [ "$code" != "$AGAIN" ] || [ "${failed_node:--}" = - ] || exclude "$SLURM_JOB_ID" "$failed_node"
}
