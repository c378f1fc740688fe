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
OPTIONS = {  # of each benchmark, beside the recipe and --json
    "data": ("images", "rounds"), "step": ("steps",), "step --memory": ("memory", "gpus"), "eval": ("images", "rounds", "width"),
}  # fmt: skip


class Bench(Settings):
    """Measures the speed of a recipe's data (data) or training steps (step), or of a Fréchet distance (eval).

    Under a launcher: accelerate launch [--config_file launch/accelerate/X.yaml] -m sr_dist.bench step RECIPE ...

    `data` measures images/s of the loader with one worker process. It compares them with decoding the whole files
    (share_of_decode), with WebDataset's own pipeline with PIL (ratio_to_webdataset; ratio_to_webdataset_with_lr if both make
    LR on the CPU), and with data.reader=webdataset on the same files (ratio_to_reader_webdataset). It also measures the seconds
    to open the shards, to the first batch, and to the first batch after a million steps.

    `step` times training steps after one warm-up step: images/s (median, minimum, maximum), the share of time spent waiting for
    data, peak memory, and whether the losses are finite. It does not touch the recipe's run folder and needs no starting
    weights.

    `step --memory` prints a table of memory per rank instead, for DDP, ZeRO 1, 2, 3, and ZeRO 2 with the optimizer on the host:
    computed (weights, gradients, optimizer, EMA, buffers), estimated (activations), and measured (one step, with a GPU). It
    needs neither data nor weights. If the recipe says `classes: manifest`, give --discriminator.classes=1000.

    `eval` computes the Fréchet distance of random features with our code and with clean-fid: seconds of both, their ratio and
    the difference of the results.
    """

    benchmark: Annotated[str, Word("BENCHMARK")]
    """data, step or eval."""
    recipe: Annotated[str | None, Word("RECIPE")] = None
    """The name of a recipe of the package, or a YAML file; eval has none."""
    images: OptionalPositive = None
    """Images per round; without it 1000 for data and 10000 for eval."""
    rounds: OptionalPositive = None
    """Rounds, of which the median counts; without it 7 for data and 3 for eval."""
    steps: Positive = 5
    """The number of timed steps."""
    memory: bool = False
    """Print the memory table of `step`."""
    gpus: Positive = 8
    """The number of ranks of the memory table."""
    width: Positive = 2048
    """The width of the features of eval."""
    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object as the last line."""
    overrides: Annotated[dict[str, str], Overrides()] = {}
    """Override any key of the recipe: --data.batch=8."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Bench, bench, argv)


def bench(options: Bench) -> None:
    if options.benchmark not in BENCHMARKS:
        raise UserError(f"BENCHMARK: unknown benchmark '{options.benchmark}'; choose from {', '.join(BENCHMARKS)}")
    check_options(options)
    if options.benchmark == "eval":
        bench_eval(options)
        return
    if options.recipe is None:
        raise UserError("RECIPE is missing; see --help")
    if options.memory:
        recipe = data_checks.load_without_data(options.recipe, options.overrides)

        from sr_dist.tools.memory import show_memory  # loads torch, which the checks above do without

        show_memory(recipe, options.gpus, options.as_json)
        return
    recipe = data_checks.load(options.recipe, without_validation(options.overrides))

    from sr_dist.tools import bench  # loads torch, which the checks above do without

    if options.benchmark == "data":
        bench.bench_data(recipe, options.images or 1000, options.rounds or 7, options.as_json)
    else:
        bench.bench_step(recipe, options.steps, options.as_json)


def without_validation(overrides: dict[str, str]) -> dict[str, str]:
    """No benchmark reads the images of a validation set, so the recipe's need not be there."""
    others = {key: value for key, value in overrides.items() if not key.startswith("data.validation.")}
    return {**others, "data.validation": "none"}


def check_options(options: Bench) -> None:
    """Refuses an option of another benchmark, which would change nothing."""
    name = f"{options.benchmark} --memory" if options.benchmark == "step" and options.memory else options.benchmark
    given = options.model_fields_set - (set() if options.memory else {"memory"})
    for option in sorted(given & {option for of_one in OPTIONS.values() for option in of_one} - set(OPTIONS[name])):
        owners = " and ".join(f"`bench {other}`" for other, of_one in OPTIONS.items() if option in of_one)
        takes = ", ".join(f"--{own}" for own in OPTIONS[name])
        raise UserError(f"{option}: an option of {owners}; `bench {name}` takes {takes}")


def bench_eval(options: Bench) -> None:
    cli.check_words([options.recipe] if options.recipe else [])
    for name in options.overrides:
        raise UserError(f"{name}: unknown option{nearest(name, ('images', 'rounds', 'width', 'json'))}")

    from sr_dist.tools.distance_speed import bench_frechet  # loads torch, which the checks above do without

    bench_frechet(options.images or 10_000, options.width, options.rounds or 3, options.as_json)


if __name__ == "__main__":
    sys.exit(main())
