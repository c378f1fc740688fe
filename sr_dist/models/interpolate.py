"""ESRGAN's network interpolation: theta = (1 - alpha) theta_A + alpha theta_B, for every tensor.

Between a network trained for PSNR and its GAN, alpha trades fidelity for texture without training anything.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sr_dist.core.errors import UserError
from sr_dist.models import trained
from sr_dist.models.export import write
from sr_dist.models.trained import TrainedGenerator
from sr_dist.models.weights_files import Tensors


def interpolate(path_a: str, path_b: str, out: Path, alpha: float, scale: int | None = None, overwrite: bool = False) -> str:
    """Writes the network between A and B: -> a line that says what was written."""
    a, b = trained.open_generator(path_a, "A", scale), trained.open_generator(path_b, "B", scale)
    refuse_unlike(a, b)
    if out.exists() and out.samefile(b.file):
        raise UserError(f"OUT: '{out}' is the file that is read; name another")
    a.network.load_state_dict(between(dict(a.network.state_dict()), dict(b.network.state_dict()), alpha))
    return f"{1 - alpha:g} * {a.name} + {alpha:g} * {b.name} -> {write(a, None, out, overwrite)}"


def refuse_unlike(a: TrainedGenerator, b: TrainedGenerator) -> None:
    """Refuses two different networks: weights between them mean nothing."""
    if a.scale != b.scale:
        raise UserError(f"B: '{b.file}' enlarges by {b.scale}, but A, '{a.file}', by {a.scale}")
    for option in sorted(a.section.keys() | b.section.keys(), key=lambda option: option != "name"):
        first, second = a.section.get(option), b.section.get(option)
        if first != second:
            raise UserError(
                f"B: '{b.file}' is another network: its generator.{option} is {second}, that of A, '{a.file}', {first}"
            )


def between(a: Tensors, b: Tensors, alpha: float) -> Tensors:
    """In float64, and exactly A at 0 and B at 1. Counters (of batch normalization) cannot be mixed: they are A's."""
    return {name: _mixed(value, b[name], alpha) if value.is_floating_point() else value for name, value in a.items()}


def _mixed(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return ((1 - alpha) * a.double() + alpha * b.double()).to(a.dtype)
