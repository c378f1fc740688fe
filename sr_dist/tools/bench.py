"""The speed of a recipe's data and of its training steps, in a temporary run folder."""

from __future__ import annotations

import json
import math
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sr_dist.core import launch_env, ranks
from sr_dist.core.errors import UserError
from sr_dist.data.data_checks import check_data
from sr_dist.data.format import Shards
from sr_dist.data.loader import Loader, Start
from sr_dist.data.open_data import open_training_sets
from sr_dist.data.unindexed import INDEX, without_index
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Data, Init, Log, Recipe
from sr_dist.tools.data_speed import FAR, measure
from sr_dist.training.build import open_loader, set_up
from sr_dist.training.loop import advance
from sr_dist.training.needed_files import find_weights
from sr_dist.training.run import Run, close
from sr_dist.training.throughput import Clock, Intervals, peak_memory_gb

WARM_UP = 1  # untimed steps, in which kernels are chosen and optimizer states are allocated


def bench_step(stated: Recipe, steps: int, as_json: bool) -> None:
    """All ranks must call; the first one prints."""
    with tempfile.TemporaryDirectory(prefix="sr_dist-bench-") as runs:
        recipe = checks.complete(_temporary(stated, Path(runs), steps))
        checks.check_launch(recipe, launch_env.launch(bool(recipe.compile)))
        find_weights(recipe)
        run = set_up(recipe)
        try:
            result = time_steps(run)
            if ranks.is_first():
                print(step_text(result))
                if as_json:
                    print(json.dumps(result), flush=True)
        finally:
            close(run)


def bench_data(stated: Recipe, images: int, rounds: int, as_json: bool) -> None:
    """One process with one worker, on the CPU, whatever the recipe says."""
    if stated.data.reader == "webdataset":
        raise UserError(f"data.reader: webdataset is measured beside shards with an index; {INDEX}")
    begin = time.perf_counter()
    check_data(stated)
    shards, cpu = open_training_sets(stated.data), torch.device("cpu")
    start_up, recipe = time.perf_counter() - begin, checks.complete(stated)
    torch.set_num_threads(1)  # as in a worker

    def loader_at(workers: int, position: int) -> Loader:
        data = recipe.data.model_copy(update={"workers": workers})
        endless = recipe.model_copy(update={"data": data, "steps": 2**40, "runs": folder})
        return open_loader(endless, shards, cpu, Start(position))

    with tempfile.TemporaryDirectory(prefix="sr_dist-bench-") as folder:
        samples = sum(data_set.manifest.samples for data_set in shards)
        result = {"recipe": recipe.name, "samples": samples, "batch": recipe.data.batch, "start_up_seconds": start_up}
        tars = None
        if len(shards) == 1 and type(shards[0]) is Shards and not shards[0].manifest.scale:  # local, and LR is made
            unindexed = recipe.data.model_copy(update={"workers": 1, "reader": "webdataset"})
            endless = recipe.model_copy(update={"data": unindexed, "steps": 2**40, "runs": folder})
            tars = open_loader(endless, [without_index(shards[0])], cpu)
        result |= {**measure(loader_at, images, rounds, tars), "memory_gb": peak_memory_gb()}
    print(data_text(result))
    if as_json:
        print(json.dumps(result), flush=True)


def data_text(result: dict[str, Any]) -> str:
    speeds, resume = result["images_per_second"], result["resume"]
    ratio, ratio_lr = result["ratio_to_webdataset"], result["ratio_to_webdataset_with_lr"]
    beside = f", {ratio:.2f} times WebDataset's pipeline ({speeds['webdataset']:.0f})" if ratio else ""
    unindexed = result["ratio_to_reader_webdataset"]
    if unindexed:
        beside += f", {unindexed:.2f} times data.reader=webdataset ({speeds['tars']:.0f})"
    beside_lr = f" ({ratio_lr:.2f} times)" if ratio_lr else ""
    start, far, times = resume.values()
    return (
        f"{result['recipe']}: {speeds['stream']:.0f} images/s from one worker, {result['share_of_decode']:.2f} of decoding"
        f" alone ({speeds['decode']:.0f}){beside}; {speeds['batches']:.0f} with LR made on this CPU{beside_lr}\n"
        f"{result['samples']:,} samples opened and checked in {result['start_up_seconds']:.2f} s; "
        f"first batch after {start:.3f} s, after {FAR:,} steps {far:.3f} s ({times:.2f} times); "
        f"peak memory {result['memory_gb']:.2f} GiB"
    )


def _temporary(recipe: Recipe, runs: Path, steps: int) -> Recipe:
    """The recipe in another folder, without validation and logging. Starting weights change no speed, and the stage that makes
    them may not have run; frozen parameters stay frozen."""
    changes: dict[str, Any] = {
        "runs": str(runs),
        "steps": WARM_UP + steps,
        "init": Init(freeze=recipe.init.freeze),
        "data": Data.model_validate({**recipe.data.model_dump(), "validation": None}),
        "log": Log(wandb="off"),
    }
    return recipe.model_copy(update=changes)


def time_steps(run: Run) -> dict[str, Any]:
    """Trains to the recipe's last step. All ranks must call: losses are means over all, memory is the fullest rank's.

    Times are the device's, as in training, so that the host runs ahead as it does there."""
    clock, waits, losses = Clock(run.device), Intervals(), []
    moments = [clock.moment()]
    for step, batches in run.loader.steps(1, lambda: clock.interval(waits)):
        losses.append(advance(run, step, batches).losses)
        moments.append(clock.moment())
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    timed = list(pairwise(moments))[WARM_UP:]
    seconds = [clock.seconds([interval]) for interval in timed]
    values = [ranks.all_reduce_sum(torch.stack([value.double() for value in terms.values()])).tolist() for terms in losses]
    speeds = [run.recipe.data.batch / second for second in seconds]
    return {
        "recipe": run.recipe.name,
        "ranks": ranks.size(),
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type,
        "precision": run.recipe.precision,
        "batch": run.recipe.data.batch,
        "steps": len(speeds),
        "images_per_second": {"median": median(speeds), "min": min(speeds), "max": max(speeds)},
        "data_wait": clock.seconds(waits[WARM_UP:]) / clock.seconds(timed),
        "memory_gb": max(ranks.all_gather(peak_memory_gb())),
        "losses": {name: _finite(value) for name, value in zip(losses[-1], values[-1], strict=True)},
        "finite": all(math.isfinite(value) for row in values for value in row),
    }


def _finite(value: float) -> float | None:
    """JSON has no word for values that are not finite."""
    return value if math.isfinite(value) else None


def step_text(result: dict[str, Any]) -> str:
    speed = result["images_per_second"]
    return (
        f"{result['recipe']} on {result['ranks']} x {result['device']}, precision {result['precision']}, "
        f"batch {result['batch']}: "
        f"{speed['median']:.2f} images/s (median of {result['steps']} steps; {speed['min']:.2f} to {speed['max']:.2f}), "
        f"data wait {100 * result['data_wait']:.0f} %, peak memory {result['memory_gb']:.2f} GiB, "
        f"losses {'finite' if result['finite'] else 'NOT FINITE'}"
    )
