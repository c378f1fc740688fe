"""Which term, rank, layer and samples made a step whose gradients are not finite.

The losses of the last steps stay on the device; nothing waits for them. They are read where skipped updates have been counted.
The layer is found by repeating the forward passes of the newest step: a skipped update has left the weights as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sr_dist.core import ranks
from sr_dist.core.batch import Batch
from sr_dist.training.buffers import saved_buffers

MOST = 64  # steps that are remembered
KEYS = 4  # that are named of a rank


@dataclass(frozen=True)
class Trained:
    """What a step leaves for a diagnosis."""

    step: int
    losses: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    keys: tuple[str, ...]


class Origin(NamedTuple):
    """What one rank knows."""

    rank: int
    terms: tuple[str, ...]
    layer: str | None
    keys: tuple[str, ...]


def diagnoses(recent: Sequence[Trained], newest: Sequence[Batch], networks: Mapping[str, nn.Module]) -> list[str]:
    """A sentence for every remembered step that was not finite. `newest` are the micro-batches of the last one; without
    `networks` no layer is named. All ranks must call."""
    lines = []
    for trained in recent:
        broken = [name for name, norm in trained.norms.items() if not bool(torch.isfinite(norm))]  # the same on all ranks
        if not broken:
            continue
        layer, keys = None, trained.keys
        if trained is recent[-1] and networks:
            layer, keys = locate(newest, networks)
        terms = tuple(name for name, value in trained.losses.items() if not bool(torch.isfinite(value)))
        origins = [one for one in ranks.all_gather(Origin(ranks.rank(), terms, layer, keys)) if one.terms or one.layer]
        lines.append(sentence(trained.step, broken, origins))
    return lines


def sentence(step: int, broken: Sequence[str], origins: Sequence[Origin]) -> str:
    text = f"step {step}: the gradients of the {' and the '.join(broken)} were not finite, and its update is left out"
    if not origins:
        return f"{text}; all terms were finite, so a gradient overflowed (sr_dist.replay --probe=gradients shows the layer)"
    return f"{text}: " + "; ".join(map(_of_rank, origins))


def _of_rank(origin: Origin) -> str:
    words = [f"rank {origin.rank}"]
    if origin.terms:
        words.append(f"{'term' if len(origin.terms) == 1 else 'terms'} {', '.join(origin.terms)}")
    if origin.layer:
        words.append(f"first in layer {origin.layer}")
    if origin.keys:
        more = f" and {len(origin.keys) - KEYS} more" if len(origin.keys) > KEYS else ""
        words.append(f"samples {', '.join(origin.keys[:KEYS])}{more}")
    return ", ".join(words)


@torch.no_grad()
def locate(batches: Sequence[Batch], networks: Mapping[str, nn.Module]) -> tuple[str | None, tuple[str, ...]]:
    """The first layer whose output is not finite, and the samples whose images are not finite, or else whose outputs are not; all
    samples where none stands out. All ranks must call: normalization layers may talk to each other."""
    first, *others = networks.items()
    layers: list[str] = []
    images: list[str] = []
    bad: list[str] = []
    for batch in batches:
        images += _keys(batch, batch.lr, batch.hr)
        with listening(first, layers):
            output = first[1](batch.lr)
        bad += _keys(batch, output)
        for other in others:
            for seen in (batch.hr, output):
                with listening(other, layers):
                    bad += _keys(batch, other[1](seen).logits)
    every = tuple(key for batch in batches for key in batch.keys)
    return next(iter(layers), None), tuple(dict.fromkeys(images or bad or every))


def _keys(batch: Batch, *values: Tensor) -> list[str]:
    finite = torch.stack([torch.isfinite(value).reshape(len(batch), -1).all(1) for value in values]).all(0).tolist()
    return [key for key, fine in zip(batch.keys, finite, strict=True) if not fine]


@contextmanager
def listening(named: tuple[str, nn.Module], layers: list[str]) -> Iterator[None]:
    """Adds the layers with an output that is not finite although its inputs are. The buffers are as before afterwards."""
    name, network = named
    saved = {key: buffer.clone() for key, buffer in saved_buffers(network).items()}
    handles = []

    def listen(path: str, module: nn.Module) -> None:
        def note(_: nn.Module, inputs: Any, output: Any) -> None:
            if not _finite(output) and _finite(inputs):
                layers.append(f"{name}.{path}")

        handles.append(module.register_forward_hook(note))

    for path, module in network.named_modules():
        if path and not any(True for _ in module.children()):
            listen(path, module)
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code has no hooks
            yield
    finally:
        for handle in handles:
            handle.remove()
        for key, buffer in saved_buffers(network).items():
            buffer.copy_(saved[key])


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    return all(map(_finite, value)) if isinstance(value, tuple | list) else True
