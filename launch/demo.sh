#!/usr/bin/env bash
# From photographs to a trained and evaluated SR-UGAN: creates .venv, builds shards, trains two stages, prints the table.
#   bash launch/demo.sh      with SR_DIST_PYTHON=/path/to/python, that environment is used and nothing is installed
# The same command continues what was interrupted and skips what is done.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
. "$ROOT/launch/environment.sh"
prepare_python
cd "$ROOT"
export SR_DIST_PYTHON=$PYTHON WANDB_SILENT=true

data=data/sample_photos
for part in train validation; do
  [ -e $data/$part/manifest.json ] || "$PYTHON" -m shards.build sample_photos $part $data/$part --per_shard=64
done

bash launch/stages.sh configs/demo_pixel.yaml configs/demo.yaml

"$PYTHON" -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
  --num_cpu_threads_per_process "$(nproc)" -m sr_dist.evaluate runs/demo_pixel,runs/demo --data=$data/validation --out=runs/demo/eval/demo
cat <<END

shards    $data/train and $data/validation (draw them with python -m shards.show $data/train)
runs      runs/demo_pixel and runs/demo: log.txt, metrics.jsonl, checkpoints
images    runs/demo/samples/
report    runs/demo/eval/demo/report.html
END
