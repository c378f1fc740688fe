# shellcheck shell=bash disable=SC2034
# THE ONE PLACE that says where Python is on your cluster. Every job sources it in the folder where sbatch was called, and
# once more on each of its nodes. It sets
#   PYTHON      the words that start a Python in which sr_dist is installed
#   CONTAINER   options of srun that enter a container; none without one
# Keep one of the four, and change it to what your cluster has.
CONTAINER=()

# 1. venv: the one that `bash launch/test.sh` makes, or the Python that SR_DIST_PYTHON names
PYTHON=("${SR_DIST_PYTHON:-$PWD/.venv/bin/python}")

# 2. conda
# module load miniforge
# eval "$(conda shell.bash hook)"
# conda activate sr_dist
# PYTHON=(python)

# 3. Apptainer (Singularity): --nv brings the GPUs, --bind the folders of data and runs
# PYTHON=(apptainer exec --nv --bind "$PWD,/scratch" /shared/images/sr_dist.sif python)

# 4. srun's own containers (Pyxis and enroot)
# CONTAINER=(--container-image=/shared/images/sr_dist.sqsh --container-mounts="$PWD,/scratch" --container-workdir="$PWD")
# PYTHON=(python)

# What else all jobs should know; the README's chapter "On your cluster" says when.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_DEBUG=WARN
# export SR_DIST_WEIGHTS=/shared/weights
# export WANDB_MODE=offline
