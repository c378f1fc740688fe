"""Trains recipes on the second device and prints what its host had to wait for: trainings.py REQUEST, a line of JSON each.

A request is a list of {"recipe", "options", "plant"}. Each run takes four steps, validates and saves twice, loses its last
checkpoint, and resumes.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import second
import torch
import torchvision

from sr_dist.core import ranks
from sr_dist.data import data_checks
from sr_dist.recipe import checks
from sr_dist.training import loop, train

STEPS = 4
ASIDE = ("report", "validate", "save", "save_validated", "check_updates")  # parts of the loop that may wait: not in every step
torchvision.models.vgg19 = functools.cache(torchvision.models.vgg19)  # its 144 million random weights take seconds


class Watch:
    """Sorts waits by the step of the training, or by the part of the loop that is not a step."""

    def __init__(self) -> None:
        self.parts: dict[str, list[second.Wait]] = defaultdict(list)
        self._part = "start"

    def hear(self, kind: str, operation: str, size: int) -> None:
        if self._part.startswith("step") or self._part == "save":
            self.parts[self._part].append(second.Wait(kind, operation, size, second.place()))

    @contextmanager
    def within(self, part: str, then: str | None = None) -> Iterator[None]:
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = then or before

    def instrument(self) -> None:
        """From the end of one step's update to that of the next is a step, without the parts aside."""
        for name in ASIDE:
            setattr(loop, name, self._around(name, getattr(loop, name)))
        advance = loop.advance

        def counted(run: Any, step: int, batches: Any) -> Any:
            self._part = f"step {step}"
            result = advance(run, step, batches)
            self._part = f"step {step + 1}"
            return result

        loop.advance = counted

    def _around(self, name: str, part: Any) -> Any:
        def observed(*args: Any, **options: Any) -> Any:
            with self.within(name):
                return part(*args, **options)

        return observed

    def begin(self) -> None:
        self.parts.clear()
        self._part = "start"


# ---- faults that the device must show

IMAGES = torch.rand(1, 3, 1, 1)
PLANTS = {
    "item": lambda sr: sr * sr.mean().item(),
    "truth": lambda sr: sr if sr.mean() > 0 else -sr,
    "mask": lambda sr: sr + sr[sr > 0.5].mean(),
    "constant": lambda sr: sr * torch.tensor([0.9, 0.8, 1.0], device=sr.device).view(1, 3, 1, 1),
    "pageable": lambda sr: sr * IMAGES.to(sr.device, non_blocking=True),
    "index": lambda sr: sr[:, torch.tensor([0, 1, 2])],
    "other device": lambda sr: sr + IMAGES,
}


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """The generator's output goes through a fault."""
    from sr_dist.objectives import srugan

    forward = srugan.Objective.forward
    if name:
        srugan.Objective.forward = lambda self, network, batch: PLANTS[name](forward(self, network, batch))
    try:
        yield
    finally:
        srugan.Objective.forward = forward


# ---- one recipe


def result_of(request: dict[str, Any], watch: Watch) -> dict[str, Any]:
    recipe = checks.complete(data_checks.load(request["recipe"], request["options"]))
    watch.begin()
    with planted(request["plant"]):
        train.train(recipe)
        uninterrupted, first = last_losses(recipe.folder), steps_of(watch)
        saves = Counter(wait.kind for wait in watch.parts["save"])
        if request["plant"]:
            return {"steps": {"uninterrupted": first}}
        shutil.rmtree(recipe.folder / "checkpoints" / f"{STEPS:07d}")
        (recipe.folder / "DONE").unlink()
        watch.begin()
        train.train(recipe)
    return {
        "losses": [uninterrupted, last_losses(recipe.folder)],
        "validations": len((recipe.folder / "metrics.jsonl").read_text().split('"validation/')) > 1,
        "steps": {"uninterrupted": first, "resumed": steps_of(watch)},
        "saves": saves,
        "micro_batches": recipe.accumulate,
    }


def last_losses(folder: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    row = [row for row in rows if row["step"] == STEPS and "images_per_second" in row][-1]
    return {key: value for key, value in row.items() if key.startswith(("loss/", "grad_norm/", "data_wait"))}


def steps_of(watch: Watch) -> dict[str, list[dict[str, Any]]]:
    steps = {part: waits for part, waits in watch.parts.items() if part.startswith("step")}
    return {part: [{"count": count, **wait._asdict()} for wait, count in Counter(waits).items()] for part, waits in steps.items()}


def main(requests: list[dict[str, Any]]) -> None:
    watch = Watch()
    device = second.open_device(watch.hear)
    open_accelerator = ranks.open_accelerator

    def on_second_device(precision: str) -> Any:
        accelerator = open_accelerator("no")  # fp16 is refused without a GPU
        accelerator.state.device = torch.device(request.get("device", device))
        return accelerator

    ranks.open_accelerator = on_second_device
    watch.instrument()
    for request in requests:
        second.device_time.per_copy = request["seconds_per_copy"]
        try:
            result = result_of(request, watch)
        except Exception as problem:
            result = {"error": f"{type(problem).__name__}: {problem}", "traceback": traceback.format_exc()}
        print(json.dumps({"request": request, **result}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
