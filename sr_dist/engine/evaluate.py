"""From the words of `sr_dist.evaluate` to a report."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from sr_dist import plugins, ranks
from sr_dist.commands import BASELINES, Evaluation
from sr_dist.data.validation import Batches, open_images
from sr_dist.engine.restore import for_any_colour
from sr_dist.engine.setup import open_accelerator
from sr_dist.errors import UserError
from sr_dist.eval import report
from sr_dist.eval.baselines import Upscale, baseline
from sr_dist.eval.protocol import protocol
from sr_dist.eval.run import means, score
from sr_dist.files import sha256
from sr_dist.models import weights
from sr_dist.recipe import PACKAGES


def evaluate(asked: Evaluation) -> None:
    """All ranks must call. Whatever can be wrong with the words is said before any image is read."""
    restorers = [weights.open_restorer(name, "METHOD", asked.scale) for name in asked.methods if name not in BASELINES]
    scale = common_scale(asked.scale, restorers)
    rules = protocol(asked.protocol, scale)
    images = open_images(asked.data, asked.limit, "data")
    module, options = plugins.resolve(PACKAGES["degradation"], asked.degradation, {}, "degradation")
    batches = Batches(images, scale, module.build(options, scale), asked.batch)
    out = output_folder(asked, restorers)

    accelerator = open_accelerator("no")
    device = accelerator.device
    methods: dict[str, Upscale] = {name: baseline(name, scale) for name in BASELINES}
    sources: dict[str, Any] = {}
    for restorer in restorers:
        name = unlike(restorer.name, methods)
        methods[name] = bare(restorer, device)
        parameters = sum(p.numel() for p in restorer.network.parameters())
        sources[name] = {
            "weights": str(restorer.file),
            "sha256": sha256(restorer.file),
            "step": restorer.step,
            "parameters": parameters,
        }
    rows = score(methods, batches, rules, device, asked.workers)
    if ranks.is_first():
        table = {name: means(rows, name) for name in methods}
        found = report.Report(rules, asked.data, images.names, table, sources, rows)
        report.write(out, found, batches, methods, device)
        print(report.markdown(found))
        print(f"report: {out / 'report.html'}")
    ranks.wait()
    accelerator.end_training()
    ranks.leave()


def common_scale(asked: int | None, restorers: list[weights.Restorer]) -> int:
    scales = {restorer.scale: restorer.name for restorer in restorers}
    if len(scales) > 1:
        raise UserError(f"METHOD: methods of unlike scale: {', '.join(f'{name} x{scale}' for scale, name in scales.items())}")
    if not scales and asked is None:
        raise UserError("scale: no METHOD says it; give --scale=N")
    if scales and asked not in (None, *scales):
        raise UserError(f"scale: {asked}, but {restorers[0].name} enlarges by {restorers[0].scale}")
    return asked or next(iter(scales))


def output_folder(asked: Evaluation, restorers: list[weights.Restorer]) -> Path:
    if asked.out:
        return Path(asked.out)
    runs = [
        (Path(name), restorer) for name, restorer in zip([m for m in asked.methods if m not in BASELINES], restorers, strict=True)
    ]
    for place, restorer in runs:
        if weights.is_run(place):
            return place / "eval" / f"{restorer.step:07d}"
    return Path("eval")


def unlike(name: str, taken: dict[str, Upscale]) -> str:
    """Two runs of one name in different folders stay apart in the table."""
    return name if name not in taken else next(f"{name} ({i})" for i in range(2, 1000) if f"{name} ({i})" not in taken)


def bare(restorer: weights.Restorer, device: torch.device) -> Upscale:
    return for_any_colour(copy.deepcopy(restorer.network).to(device).eval(), restorer.channels, restorer.scale)
