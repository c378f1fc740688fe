"""The command `python -m sr_dist.plan`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sr_dist.core import cli
from sr_dist.core.cli import Overrides, Word
from sr_dist.core.config import Absent, OptionalPositive, Positive, Settings
from sr_dist.core.errors import UserError
from sr_dist.data import data_checks
from sr_dist.recipe import checks

UNITS = {"d": 24.0, "h": 1.0, "m": 1 / 60}
PER_NODE = 8


def hours_of(value: object) -> object:
    """`24h`, `90m`, `2d`, `24`, or SLURM's `1-12`, `1-12:00`, `1-12:00:00` and `12:30:00`, in hours. `12:30` is refused: SLURM
    reads it as minutes and seconds."""
    text = str(value).strip().lower()
    if re.match(r"-[\d.]", text) or re.fullmatch(r"0*\.?0+[dhm]?", text):
        raise ValueError(f"'{value}' must be above 0")
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([dhm]?)", text):
        return float(match[1]) * UNITS[match[2] or "h"]
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text) or re.fullmatch(r"(\d+)-(\d+)(?::(\d\d))?()", text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return 24 * days + hours + minutes / 60 + seconds / 3600
    if text in ("", "none"):
        return None
    raise ValueError(f"'{value}' is no time, such as 24h, 90m, 2d or 1-12:00:00")


Hours = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(hours_of)]
Number = Annotated[Annotated[float, Field(gt=0)] | None, Absent]


class Plan(Settings):
    """Computes what a training will cost on many GPUs, without one: memory, time, communication, data, jobs.

    Everything is computed, nothing is measured: memory per GPU for DDP and ZeRO 1 to 3, operations per image and step, images/s
    and hours at a share of the GPU's published peak, what the GPUs exchange, epochs, and the line that submits the job. Where
    the memory does not suffice it says what to change, the cheapest first.

    A real figure is better than a share: measure one GPU with `sr_dist.bench step` and give --images_per_second.

    Neither data nor published weights are needed, only trained classifiers that a loss names. If the recipe says `classes:
    manifest` and its shards are elsewhere, give --discriminator.classes=1000.
    """

    recipe: Annotated[str, Word("RECIPE")]
    """The name of a recipe of the package, or a YAML file."""
    gpus: Positive
    """The number of GPUs."""
    nodes: OptionalPositive = None
    """The number of nodes; without it, nodes of 8 GPUs."""
    gpu: Literal["h100", "h200", "a100-80", "a100-40", "v100", "l40s", "rtx4090"] = "h100"
    """The kind of GPU. Its published figures are in the manual's page Plan."""
    backend: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """How the networks are distributed."""
    time_limit: Hours = None
    """The time limit of a job, such as 24h: how many jobs follow each other."""
    efficiency: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Absent] = None
    """The share of the GPU's peak that is reached; without it 0.14, 0.30 and 0.40."""
    images_per_second: Number = None
    """The measured speed of one GPU, in place of a share."""
    images: OptionalPositive = None
    """The number of training images, if data.train is not on this machine."""
    link: Number = None
    """GB/s of a GPU to others of its node, in one direction; without it the GPU's published figure."""
    network: Number = None
    """GB/s of a GPU to other nodes, in one direction; without it an assumption, which the page Plan names."""
    as_json: Annotated[bool, Field(alias="json")] = False
    """Print one JSON object as the last line."""
    overrides: Annotated[dict[str, str], Overrides()] = {}
    """Override any key of the recipe: --data.batch=256."""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Plan, plan, argv)


def plan(options: Plan) -> None:
    nodes = options.nodes or -(-options.gpus // PER_NODE)
    if options.gpus % nodes:
        raise UserError(f"nodes: {options.gpus} GPUs cannot be divided by {nodes} nodes; every node has the same number")
    if options.efficiency and options.images_per_second:
        raise UserError("efficiency: give it, or images_per_second, not both")
    recipe = data_checks.load_without_data(options.recipe, options.overrides)
    checks.check_batch(recipe, options.gpus)
    batch_of_file = checks.read_recipe(options.recipe, {}).data.batch

    from sr_dist.tools import plan, plan_text  # loads torch, which the checks above do without
    from sr_dist.tools.gpus import GPUS

    gpu = GPUS[options.gpu]
    gpu = replace(gpu, link=options.link or gpu.link, network=options.network or gpu.network)
    speed = plan.Speed(options.efficiency, options.images_per_second)
    request = plan.Request(gpu, options.gpus, nodes, options.backend, speed, options.time_limit, options.images)
    result = plan.make(recipe, request, batch_of_file)
    overrides = [f"--{key}={value}" for key, value in options.overrides.items()]
    result["job"] = plan.job_line(options.recipe, overrides, recipe, request)
    print(plan_text.text(result, gpu, result["job"]))
    if options.as_json:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    sys.exit(main())
