# shellcheck shell=bash disable=SC2034
# Defines the Python of your cluster: the only file to edit. Every job sources it in the folder where sbatch was called, and again
# on each of its nodes. It sets
#   PYTHON      the words that start a Python in which sr_dist is installed
#   CONTAINER   the options of srun that enter a container; empty without one
# Keep one of the four variants and adapt it.
CONTAINER=()

# 1. venv: the one that `bash launch/test.sh` creates, or the Python that SR_DIST_PYTHON names
PYTHON=("${SR_DIST_PYTHON:-$PWD/.venv/bin/python}")

# 2. conda
# module load miniforge
# eval "$(conda shell.bash hook)"
# conda activate sr_dist
# PYTHON=(python)

# 3. Apptainer (Singularity): --nv adds the GPUs, --bind the folders of data and runs; launch/containers/sr_dist.def makes the image
# PYTHON=(apptainer exec --nv --bind "$PWD,/scratch" /shared/images/sr_dist.sif python)

# 4. containers of srun (Pyxis and enroot)
# CONTAINER=(--container-image=/shared/images/sr_dist.sqsh --container-mounts="$PWD,/scratch" --container-workdir="$PWD")
# PYTHON=(python)

# Further variables for all jobs; docs/cluster.md explains them.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_DEBUG=WARN
# export SR_DIST_WEIGHTS=/shared/weights
# export WANDB_MODE=offline
