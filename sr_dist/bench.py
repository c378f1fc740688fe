"""The command `python -m sr_dist.bench`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from sr_dist.core import cli
from sr_dist.core.cli import Overrides, Word
from sr_dist.core.config import OptionalPositive, Positive, Settings
from sr_dist.core.errors import UserError, nearest
from sr_dist.data import data_checks

BENCHMARKS = ("data", "step", "eval")


class Bench(Settings):
    """Measures the cost of a recipe: the speed of its data (data) and of its training steps (step), or of evaluation (eval).

    Under a launcher: accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.bench step RECIPE ...

    `data` measures images/s of the loader with one worker process, as a share of decoding whole files alone (share_of_decode) and
    as a multiple of WebDataset's own pipeline with PIL (ratio_to_webdataset, and ratio_to_webdataset_with_lr where LR is made on
    the CPU in both); and the seconds to open the shards, to the first batch, and to the first batch after a million steps.

    `step` times training steps after one of warm-up: images/s (median, minimum, maximum), the share of time spent waiting for
    data, peak memory, and whether the losses are finite. It does not touch the recipe's run folder and needs no starting
    weights. With --memory it prints a table of memory per rank for DDP and ZeRO 1, 2, 3 (and 2 with the optimizer on the host)
    instead: computed (weights and what goes with them), estimated (activations), measured (one step, with a GPU). That needs
    neither data nor weights; where the recipe says `classes: manifest`, give --discriminator.classes=1000.

    `eval` times the Fréchet distance of random features beside clean-fid's: seconds of both, their ratio and their difference.

    Every key of the recipe can be overridden: --data.batch=8.
    """

    benchmark: Annotated[str, Word("BENCHMARK")]
    """data, step or eval."""
    recipe: Annotated[str | None, Word("RECIPE")] = None
    """A YAML file; not for eval."""
    images: OptionalPositive = None
    """Images per round; 1000 for data and 10000 for eval where it is not given."""
    rounds: OptionalPositive = None
    """Rounds, of which the median counts; 7 for data and 3 for eval where it is not given."""
    steps: Positive = 5
    """Steps that are timed."""
    memory: bool = False
    """Print the memory table of `step`."""
    gpus: Positive = 8
    """The number of ranks of the memory table."""
    width: Positive = 2048
    """The width of the features of eval."""
    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object as the last line."""
    overrides: Annotated[dict[str, str], Overrides()] = {}


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Bench, bench, argv)


def bench(options: Bench) -> None:
    if options.benchmark not in BENCHMARKS:
        raise UserError(f"BENCHMARK: unknown benchmark '{options.benchmark}'; choose from {', '.join(BENCHMARKS)}")
    if options.benchmark == "eval":
        bench_eval(options)
        return
    if options.recipe is None:
        raise UserError("RECIPE is missing; --help shows how to call this")
    if options.memory and options.benchmark == "step":
        recipe = data_checks.load_without_data(options.recipe, options.overrides)

        from sr_dist.tools.memory import show_memory  # loads torch, which the checks above do without

        show_memory(recipe, options.gpus, options.as_json)
        return
    recipe = data_checks.load(options.recipe, options.overrides)

    from sr_dist.tools import bench  # loads torch, which the checks above do without

    if options.benchmark == "data":
        bench.bench_data(recipe, options.images or 1000, options.rounds or 7, options.as_json)
    else:
        bench.bench_step(recipe, options.steps, options.as_json)


def bench_eval(options: Bench) -> None:
    cli.only([options.recipe] if options.recipe else [])
    for name in options.overrides:
        raise UserError(f"{name}: unknown option{nearest(name, ('images', 'rounds', 'width', 'json'))}")

    from sr_dist.tools.distance_speed import bench_frechet  # loads torch, which the checks above do without

    bench_frechet(options.images or 10_000, options.width, options.rounds or 3, options.as_json)


if __name__ == "__main__":
    sys.exit(main())
