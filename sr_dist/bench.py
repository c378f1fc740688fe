"""Measures what a recipe costs: the speed of its data and of its training steps, memory under each backend, and evaluation.

  python -m sr_dist.bench data RECIPE [--key.sub=value ...] [--images=1000] [--rounds=7] [--json]
  python -m sr_dist.bench step RECIPE [--key.sub=value ...] [--steps=5] [--json]
  accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.bench step RECIPE ...
  python -m sr_dist.bench step RECIPE --memory [--gpus=8] [--key.sub=value ...] [--json]
  python -m sr_dist.bench eval [--images=10000] [--width=2048] [--rounds=3] [--json]

data               images/s of the stream with one loading process, as a share of decoding whole files alone (share_of_decode),
                   as a multiple of WebDataset's own pipeline with PIL (ratio_to_webdataset; and ..._with_lr, where LR is
                   made on the CPU in both); seconds to open the shards, and to the first batch at the start and after
                   a million steps; medians of the rounds
--images=1000      images of a round
--rounds=7         how often each is measured, in turn
step               training steps, timed after one of warm-up: images/s (median, least, most), share of time spent waiting
                   for data, peak memory, and whether the losses are finite; the recipe's run folder is not touched, and
                   its starting weights are not needed
--steps=5          how many steps are timed
--memory           instead, a table of memory per rank for DDP and ZeRO 1, 2, 3 (and 2 with the optimizer on the host):
                   computed (weights and what goes with them), estimated (activations), measured (one step, with a GPU).
                   Needs neither data nor weights; where the recipe says `classes: manifest`, --discriminator.classes=1000
--gpus=8           the number of ranks of that table
eval               the Fréchet distance of random features beside clean-fid's, in turn: seconds of both, their ratio, and how
                   far apart they are; medians of the rounds
--json             one JSON object as the last line
"""

from __future__ import annotations

import sys

from sr_dist.core import cli
from sr_dist.core.errors import UserError
from sr_dist.data import data_checks

MEASURED = ("data", "step", "eval")


def main(words: cli.Words, options: cli.Options) -> None:
    if words[:1] == ["eval"]:
        return evaluation(words, options)
    what, path = cli.only(words, "WHAT", "RECIPE")
    if what not in MEASURED:
        raise UserError(f"WHAT: '{what}' is nothing that is measured; there is: {', '.join(MEASURED)}")
    as_json, memory = cli.flag(options, "json"), cli.flag(options, "memory")
    if what == "data":
        images, rounds = cli.count(options, "images", 1000), cli.count(options, "rounds", 7)
        chosen = data_checks.load(path, options)

        from sr_dist.tools.bench import bench_data  # torch from here on

        bench_data(chosen, images, rounds, as_json)
    elif memory:
        gpus = cli.count(options, "gpus", 8)
        chosen = data_checks.load_without_data(path, options)

        from sr_dist.tools.memory import show_memory  # torch from here on

        show_memory(chosen, gpus, as_json)
    else:
        steps = cli.count(options, "steps", 5)
        chosen = data_checks.load(path, options)

        from sr_dist.tools.bench import bench_step  # torch from here on

        bench_step(chosen, steps, as_json)


def evaluation(words: cli.Words, options: cli.Options) -> None:
    cli.only(words, "WHAT")
    as_json, images, width = cli.flag(options, "json"), cli.count(options, "images", 10_000), cli.count(options, "width", 2048)
    rounds = cli.count(options, "rounds", 3)
    cli.none_left(options, "json", "images", "width", "rounds")

    from sr_dist.tools.distance_speed import bench_frechet

    bench_frechet(images, width, rounds, as_json)


if __name__ == "__main__":
    sys.exit(cli.run(main))
