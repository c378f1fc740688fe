"""One pass over the images: every method restores, every metric scores, on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from sr_dist import plugins, ranks
from sr_dist.data.validation import Batches, Scored, batches_of_this_rank
from sr_dist.eval.baselines import Upscale
from sr_dist.eval.protocol import Protocol

Row = dict[str, Any]  # image, method, and a value per metric; None where it cannot be computed
METRICS = "sr_dist.eval.metrics"


@cache
def better() -> dict[str, str]:
    """Every metric's column -> whether "higher" or "lower" is better."""
    return {column: sense for name in plugins.names(METRICS) for column, sense in _metric(name).BETTER.items()}


@cache
def _metric(name: str) -> Any:
    import importlib

    return importlib.import_module(f"{METRICS}.{name}")


class Abandoned(Exception):
    """A validation in progress was given up because the run was asked to stop."""


@torch.no_grad()
def score(
    methods: Mapping[str, Upscale], batches: Batches, protocol: Protocol, device: torch.device,
    workers: int = 0, give_up: Callable[[], bool] = lambda: False,
) -> list[Row]:  # fmt: skip
    """Rows of all images and methods on every rank; each method's are in the order of the images. All ranks must call."""
    mine: list[tuple[str, list[Row]]] = []
    for batch in batches_of_this_rank(batches, workers):
        if give_up():
            break
        mine.append((batch.names[0], _rows(methods, batch, protocol, device)))
    parts = ranks.gather((mine, give_up()))
    if any(abandoned for _, abandoned in parts):
        raise Abandoned
    return [row for part, _ in parts for _, rows in part for row in rows]  # ranks hold consecutive batches


def _rows(methods: Mapping[str, Upscale], batch: Scored, protocol: Protocol, device: torch.device) -> list[Row]:
    lr, hr = batch.lr.to(device), batch.hr.to(device)
    rows: list[Row] = []
    for name, upscale in methods.items():
        sr = upscale(lr)
        columns: dict[str, list[float]] = {}
        for metric in plugins.names(METRICS):
            columns.update(_metric(metric).per_image(sr, hr, protocol, batch.grey))
        for i, image in enumerate(batch.names):
            values = {column: (value[i] if math.isfinite(value[i]) else None) for column, value in columns.items()}
            rows.append({"image": image, "method": name, **values})
    return rows


def means(rows: list[Row], method: str) -> dict[str, float | None]:
    """Mean over images, in their order; None where some image has no value."""
    found: dict[str, float | None] = {}
    for column in better():
        values = [row[column] for row in rows if row["method"] == method]
        found[column] = None if not values or None in values else math.fsum(values) / len(values)
    return found
