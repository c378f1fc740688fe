"""Starts the engine of a small network as `accelerate launch` with a DeepSpeed file would, and prints what DeepSpeed reads."""

from __future__ import annotations

import json
import sys

from torch import nn

from sr_dist.core import config, ranks
from sr_dist.recipe.sections import Recipe
from sr_dist.training.deepspeed import DeepSpeedEngine

if __name__ == "__main__":
    recipe = config.typed(Recipe, config.read(sys.argv[1]))
    engine = DeepSpeedEngine(ranks.open_accelerator("no"), nn.Linear(3, 4), recipe, "generator").engine
    read = engine.zero_optimization_stage(), engine.zero_reduce_bucket_size(), engine.zero_contiguous_gradients()
    print(json.dumps([*read, engine.wall_clock_breakdown()]))
