#!/usr/bin/env bash
# What srun starts once on each node: the launcher of this node's ranks.
#   node.sh DOOR [WORDS ...]        DOOR: sr_dist.train, sr_dist.evaluate
# As many ranks as GPUs; without GPUs, SR_DIST_CPU_RANKS (1) on the CPU.
set -euo pipefail
set +u  # software of clusters reads variables that are not there
. launch/slurm/environment.sh
set -u

ranks=${SLURM_GPUS_ON_NODE:-0}
if [ "$ranks" != "$GPUS_PER_NODE" ]; then
  echo "error: $SLURMD_NODENAME has $ranks GPUs for this job and the first node $GPUS_PER_NODE; ask for the same on each, with --gres=gpu:N" >&2
  exit 2
fi
if [ "$ranks" = 0 ]; then
  ranks=${SR_DIST_CPU_RANKS:-1}
  export ACCELERATE_USE_CPU=true DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
  threads=$((${SLURM_CPUS_PER_TASK:-1} / ranks))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}
fi
all=$((SLURM_NNODES * ranks))
config=launch/accelerate/ddp_nodes.yaml
[ "$SLURM_NNODES" -gt 1 ] || config=launch/accelerate/ddp_node.yaml

# One process needs no launcher, and accelerate's would die of a SIGTERM before its process has saved.
if [ "$all" = 1 ] && [ -z "${SR_DIST_ACCELERATE:-}" ]; then
  exec "${PYTHON[@]}" -m "$@"
fi
exec "${PYTHON[@]}" -m accelerate.commands.launch --config_file "${SR_DIST_ACCELERATE:-$config}" \
  --num_machines "$SLURM_NNODES" --num_processes "$all" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" --same_network --rdzv_backend static \
  --deepspeed_multinode_launcher standard -m "$@"
