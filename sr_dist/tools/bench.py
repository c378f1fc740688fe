"""How fast a recipe trains here, and how fast its data come: in a run folder that is thrown away."""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sr_dist.core import launch_env, ranks
from sr_dist.data.data_checks import check_data
from sr_dist.data.loader import Stream
from sr_dist.data.open_data import open_training_sets
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Data, Init, Log, Recipe
from sr_dist.tools.data_speed import FAR, measured
from sr_dist.training.build import open_stream, set_up
from sr_dist.training.loop import advance
from sr_dist.training.needed_files import find_weights
from sr_dist.training.run import Run, close
from sr_dist.training.throughput import peak_memory_gb

WARM_UP = 1  # steps before the clock runs: kernels are chosen, states are made


def bench_step(asked: Recipe, steps: int, as_json: bool) -> None:
    """All ranks must call; the first one prints."""
    with tempfile.TemporaryDirectory(prefix="sr_dist-bench-") as runs:
        chosen = checks.complete(_thrown_away(asked, Path(runs), steps))
        checks.check_launch(chosen, launch_env.launch(chosen.compile))
        find_weights(chosen)
        run = set_up(chosen)
        try:
            found = timed(run)
            if ranks.is_first():
                print(said(found))
                if as_json:
                    print(json.dumps(found), flush=True)
        finally:
            close(run)


def bench_data(asked: Recipe, images: int, rounds: int, as_json: bool) -> None:
    """One process with one loading process, on the CPU, whatever the recipe says."""
    begun = time.perf_counter()
    check_data(asked)
    shards, cpu = open_training_sets(asked.data), torch.device("cpu")
    start_up, chosen = time.perf_counter() - begun, checks.complete(asked)
    torch.set_num_threads(1)  # as a loading process has them

    def stream_of(workers: int, position: int) -> Stream:
        data = chosen.data.model_copy(update={"workers": workers})
        endless = chosen.model_copy(update={"data": data, "steps": 2**40, "runs": folder})
        return open_stream(endless, shards, cpu, position)

    with tempfile.TemporaryDirectory(prefix="sr_dist-bench-") as folder:
        found = {"recipe": chosen.name, "samples": sum(part.manifest.samples for part in shards), "batch": chosen.data.batch}
        found |= {"start_up_seconds": start_up, **measured(stream_of, images, rounds), "memory_gb": peak_memory_gb()}
    print(said_of_data(found))
    if as_json:
        print(json.dumps(found), flush=True)


def said_of_data(found: dict[str, Any]) -> str:
    speeds, resume = found["images_per_second"], found["resume"]
    ratios = found["ratio_to_webdataset"], found["ratio_to_webdataset_with_lr"]
    beside = f", {ratios[0]:.2f} times WebDataset's pipeline ({speeds['webdataset']:.0f})" if ratios[0] else ""
    beside_lr = f" ({ratios[1]:.2f} times)" if ratios[1] else ""
    start, far, times = resume.values()
    return (
        f"{found['recipe']}: {speeds['stream']:.0f} images/s from one loading process, {found['share_of_decode']:.2f} of decoding"
        f" alone ({speeds['decode']:.0f}){beside}; {speeds['batches']:.0f} with LR made on this CPU{beside_lr}\n"
        f"{found['samples']:,} samples opened and checked in {found['start_up_seconds']:.2f} s; first batch after {start:.3f} s, "
        f"after {FAR:,} steps {far:.3f} s ({times:.2f} times); peak memory {found['memory_gb']:.2f} GiB"
    )


def _thrown_away(asked: Recipe, runs: Path, steps: int) -> Recipe:
    """The recipe in another folder, without what is no training step. Starting weights change no speed, and the stage that
    makes them may not have run; what is frozen stays frozen."""
    changes: dict[str, Any] = {
        "runs": str(runs),
        "steps": WARM_UP + steps,
        "init": Init(freeze=asked.init.freeze),
        "data": Data.model_validate({**asked.data.model_dump(), "validation": None}),
        "log": Log(wandb="off"),
    }
    return asked.model_copy(update=changes)


def timed(run: Run) -> dict[str, Any]:
    """Trains to the recipe's last step. All ranks must call: losses are means over all, memory is the fullest rank's."""
    seconds, waited, losses = [], [], []
    arriving = run.stream.steps(1)
    while run.step < run.recipe.steps:
        _settle(run)
        begun = time.perf_counter()
        step, micro_batches = next(arriving)
        waited.append(time.perf_counter() - begun)
        terms, _ = advance(run, step, micro_batches)
        _settle(run)
        seconds.append(time.perf_counter() - begun)
        losses.append(terms)
    values = [ranks.total(torch.stack([value.double() for value in terms.values()])).tolist() for terms in losses]
    speeds = [run.recipe.data.batch / second for second in seconds[WARM_UP:]]
    return {
        "recipe": run.recipe.name,
        "ranks": ranks.size(),
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type,
        "precision": run.recipe.precision,
        "batch": run.recipe.data.batch,
        "steps": len(speeds),
        "images_per_second": {"median": median(speeds), "min": min(speeds), "max": max(speeds)},
        "data_wait": sum(waited[WARM_UP:]) / sum(seconds[WARM_UP:]),
        "memory_gb": max(ranks.gather(peak_memory_gb())),
        "losses": {name: _number(value) for name, value in zip(losses[-1], values[-1], strict=True)},
        "finite": all(math.isfinite(value) for row in values for value in row),
    }


def _settle(run: Run) -> None:
    """Waits for the device, which works behind the program's back."""
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


def _number(value: float) -> float | None:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else None


def said(found: dict[str, Any]) -> str:
    speed = found["images_per_second"]
    return (
        f"{found['recipe']} on {found['ranks']} x {found['device']}, precision {found['precision']}, batch {found['batch']}: "
        f"{speed['median']:.2f} images/s (median of {found['steps']} steps; {speed['min']:.2f} to {speed['max']:.2f}), "
        f"data wait {100 * found['data_wait']:.0f} %, peak memory {found['memory_gb']:.2f} GiB, "
        f"losses {'finite' if found['finite'] else 'NOT FINITE'}"
    )
