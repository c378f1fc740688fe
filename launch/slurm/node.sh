#!/usr/bin/env bash
# Started by srun once on each node: the launcher of the ranks of this node.
#   node.sh MODULE [ARGUMENT ...]        MODULE: sr_dist.train, sr_dist.evaluate
# Starts a rank for each GPU; without GPUs, SR_DIST_CPU_RANKS (1) ranks on the CPU. Where SR_DIST_FAILURES names a folder, a rank
# that fails leaves a record in it.
set -euo pipefail
set +u  # the environment software of some clusters reads unset variables
. launch/slurm/environment.sh
set -u

ranks=${SLURM_GPUS_ON_NODE:-0}
if [ "$ranks" != "$GPUS_PER_NODE" ]; then
  echo "error: $SLURMD_NODENAME has $ranks GPUs for this job, but the first node has $GPUS_PER_NODE; request the same number on each node with --gres=gpu:N" >&2
  sleep 2  # srun ends the step when a task fails, and loses what was written just before
  exit 2
fi
if [ "$ranks" = 0 ]; then
  ranks=${SR_DIST_CPU_RANKS:-1}
  export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
  # DDP needs ACCELERATE_USE_CPU; where it is set, accelerate leaves DeepSpeed out.
  grep -qis '^distributed_type: *["'"'"']\?deepspeed' "${SR_DIST_ACCELERATE:-}" || export ACCELERATE_USE_CPU=true
  threads=$((${SLURM_CPUS_PER_TASK:-1} / ranks))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}
fi
num_ranks=$((SLURM_NNODES * ranks))
config=launch/accelerate/ddp_nodes.yaml
[ "$SLURM_NNODES" -gt 1 ] || config=launch/accelerate/ddp_node.yaml

[ -z "${SR_DIST_FAILURES:-}" ] || set -- sr_dist.tools.watch_rank "$@"
# A single process needs no launcher. Accelerate's launcher for one process would end on SIGTERM before the process has saved.
if [ "$num_ranks" = 1 ] && [ -z "${SR_DIST_ACCELERATE:-}" ]; then
  exec "${PYTHON[@]}" -m "$@"
fi
exec "${PYTHON[@]}" -m accelerate.commands.launch --config_file "${SR_DIST_ACCELERATE:-$config}" \
  --num_machines "$SLURM_NNODES" --num_processes "$num_ranks" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" --same_network --rdzv_backend static \
  --deepspeed_multinode_launcher standard -m "$@"
