"""What a replay records beside the log. Probes run before a step, with its networks, and leave no trace in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_dist.core import launch_env, ranks
from sr_dist.core.batch import Batch, Reading
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.evaluation.contact_sheet import contact_sheet, enlarge, to_pil
from sr_dist.recipe.sections import Recipe
from sr_dist.training.loop import seed_everything
from sr_dist.training.run import Run
from sr_dist.training.step import frozen, loss_of

COUNT = 10  # worst samples
Row = dict[str, Any]


def check_probes(names: Sequence[str], recipe: Recipe) -> None:
    """Refuses probes of what the recipe or the launch does not have."""
    if names and launch_env.under_deepspeed():
        raise UserError("probe: DeepSpeed partitions the networks; launch the replay without its configuration")
    if {"gradients", "worst"} & set(names) and not recipe.generator:
        raise UserError("probe: gradients and worst are of a generator, and the recipe trains a classifier; leave them out")
    if "logits" in names and not recipe.discriminator:
        raise UserError("probe: logits are those of a discriminator, and the recipe has none; leave logits out")


class Probes:
    """All ranks must call every method."""

    def __init__(self, run: Run, names: Sequence[str]) -> None:
        self.run, self.names = run, names
        self.rows: dict[str, list[Row]] = {name: [] for name in names}

    def look(self, step: int, batches: Sequence[Batch]) -> None:
        probes: dict[str, Callable[[int, Sequence[Batch]], list[Row]]] = {
            "gradients": self.gradients, "logits": self.logits, "worst": self.worst,
        }  # fmt: skip
        for name in self.names:
            with untouched([engine.bare for engine in self.run.engines.values()]):
                seed_everything(self.run.recipe.seed, step, self.run.device)
                self.rows[name] += probes[name](step, batches)
        if "worst" in self.names:
            self.rows["worst"] = worst_first(self.rows["worst"])

    @property
    def generator(self) -> nn.Module:
        return self.run.engines["generator"].bare

    @property
    def discriminator(self) -> nn.Module | None:
        return self.run.engines["discriminator"].bare if "discriminator" in self.run.engines else None

    def gradients(self, step: int, batches: Sequence[Batch]) -> list[Row]:
        """The norm of each term's gradient in each parameter of the generator, over the global batch: one backward per term."""
        named = {name: p for name, p in self.generator.named_parameters() if p.requires_grad}
        sums: dict[str, list[Tensor]] = {}
        with frozen(self.discriminator):
            for batch in batches:
                with self.run.precision.autocast():
                    terms = loss_of(self.run.objective, "generator")(self.discriminator, batch, self._output(batch))
                for name, term in terms.items():
                    if isinstance(term, Reading) or not term.requires_grad:
                        continue
                    parts = torch.autograd.grad(term * batch.share, list(named.values()), retain_graph=True, allow_unused=True)
                    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), parts, strict=True)]
                    sums[name] = [a + b for a, b in zip(sums[name], filled, strict=True)] if name in sums else filled
        norms = {}
        for name, own in sums.items():
            flat = ranks.all_reduce_sum(torch.cat([part.double().flatten() for part in own]))
            pieces = flat.split([part.numel() for part in own])
            norms[name] = {key: float(piece.norm()) for key, piece in zip(named, pieces, strict=True)}
        return [{"step": step, "term": name, "norm": _total(layers), "layers": layers} for name, layers in norms.items()]

    @torch.no_grad()
    def logits(self, step: int, batches: Sequence[Batch]) -> list[Row]:
        """The mean logit of each image, by the discriminator that the generator trains against in this step."""
        assert self.discriminator
        rows: list[Row] = []
        for batch in batches:
            with self.run.precision.autocast():
                sr = self._output(batch)
                logits = [self.discriminator(images).logits.float() for images in (batch.hr, sr)]
            real, fake = (values.reshape(len(batch), -1).mean(1) for values in logits)
            pairs = zip(batch.keys, real.tolist(), fake.tolist(), strict=True)
            rows += [{"step": step, "key": key, "real": one, "fake": other} for key, one, other in pairs]
        return rows

    @torch.no_grad()
    def worst(self, step: int, batches: Sequence[Batch]) -> list[Row]:
        """The samples of this step with the highest loss of the generator, each sample alone. The discriminator has its
        statistics fixed, because one sample has none."""
        rows: list[Row] = []
        if self.discriminator:
            self.discriminator.eval()
        for batch in batches:
            with self.run.precision.autocast():
                sr = self._output(batch)
                for i, key in enumerate(batch.keys):
                    terms = loss_of(self.run.objective, "generator")(self.discriminator, single(batch, i), sr[i : i + 1])
                    values = {name: float(term) for name, term in terms.items() if not isinstance(term, Reading)}
                    images = [image.float().cpu() for image in (batch.lr[i], sr[i], batch.hr[i])]
                    rows.append({"key": key, "step": step, "loss": sum(values.values()), "terms": values, "images": images})
        return worst_first(rows)

    def write(self) -> None:
        """`probes/NAME.jsonl`, and the images of the worst samples."""
        for name in self.names:
            parts = [self.rows[name]] if name == "gradients" else ranks.all_gather(self.rows[name])
            rows = [row for part in parts for row in part]
            ranks.on_first(lambda name=name, rows=rows: self._write(name, rows))  # type: ignore[misc]

    def _write(self, name: str, rows: list[Row]) -> None:
        folder = self.run.recipe.folder / "probes"
        folder.mkdir(exist_ok=True)
        if name == "worst":
            rows = worst_first(rows)
            self.draw(rows, folder / "worst")
            lines = ", ".join(f"{row['key']} ({row['loss']:.4g})" for row in rows)
            self.run.log.info(f"samples with the highest loss: {lines}")
        shown = [{key: value for key, value in row.items() if key != "images"} for row in rows]
        write_whole(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in shown).encode())
        self.run.log.info(f"probe {name}: {folder / name}.jsonl")

    def draw(self, rows: Sequence[Row], folder: Path) -> None:
        """LR, SR and HR of each sample, in a file with its key."""
        folder.mkdir(exist_ok=True)
        for number, row in enumerate(rows, 1):
            lr, sr, hr = row["images"]
            title = f"SR, {row['key']}, loss {row['loss']:.4g}"
            images = {"LR": enlarge(to_pil(lr), self.run.recipe.scale), title: to_pil(sr), "HR": to_pil(hr)}
            contact_sheet([images], folder / f"{number:02d}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', row['key'])[-80:]}.png")

    def _output(self, batch: Batch) -> Tensor:
        return self.run.objective(self.generator, batch)


def single(batch: Batch, i: int) -> Batch:
    """One sample as a batch."""
    row = slice(i, i + 1)
    attributes = {name: values[row] for name, values in batch.attributes.items()}
    return replace(batch, lr=batch.lr[row], hr=batch.hr[row], label=batch.label[row], keys=batch.keys[row], attributes=attributes)


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """The COUNT samples with the highest loss; a sample that came twice counts once. A loss that is no number comes first."""
    highest: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["loss"] if row["loss"] == row["loss"] else float("inf"), reverse=True):
        highest.setdefault(row["key"], row)
    return list(highest.values())[:COUNT]


def _total(layers: dict[str, float]) -> float:
    return sum(norm**2 for norm in layers.values()) ** 0.5


@contextmanager
def untouched(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Buffers and modes of the networks are inside as they were, and afterwards too; so are the generators of random numbers,
    because each step seeds them."""
    buffers = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, training in modes:
            module.training = training
