"""What the trainings of `prove` leave in their run folders, and how far two of them are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sr_dist.core.json_text import parse_json, read_json
from sr_dist.core.run_layout import METRICS, checkpoint_folder, checkpoint_steps

RESULT = "prove.json"
NETWORKS = ("generator", "discriminator", "classifier")
LEAST = 0.03
MOVED = 0.01  # of the norm of a network's weights: how far the first step of SGD moves them
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Result:
    """What one training says of itself."""

    state: list[str]  # tensors that differ from the checkpoint from which it continued
    changed: list[str]  # tensors of the losses, whose networks are frozen, that changed
    drawn: bool  # random numbers inside a step
    shared: bool  # a loss depends on which images are together
    unseeded: bool = False  # a loss of the same images is another one each time


def result_of(run: Path) -> Result:
    return Result(**read_json(run / RESULT))


def parameters(run: Path, step: int | None = None) -> dict[str, Tensor]:
    """Weights and buffers of all networks after a step, or the last one, by `NETWORK.NAME`."""
    folder = checkpoint_folder(run, max(checkpoint_steps(run)) if step is None else step)
    return {
        f"{network}.{name}": tensor
        for network in NETWORKS
        if (file := folder / f"{network}.safetensors").exists()
        for name, tensor in load_file(file).items()
    }


def distance(a: Tensors, b: Tensors) -> float:
    """The largest difference of two values. NaN where one is not finite."""
    return _largest(differences(a, b))[0]


def differences(a: Tensors, b: Tensors) -> dict[str, float]:
    """The largest difference of two values of every tensor."""
    assert a.keys() == b.keys() and a
    return {name: float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel()}


def relative_distance(a: Tensors, b: Tensors, start: Tensors) -> tuple[float, str]:
    """The largest difference in any tensor, relative to how far the tensor has moved from `start`, and the tensor.

    A tensor that hardly moves, such as a bias before a normalization, has little but rounding: it is compared with LEAST of the
    furthest move in its network. Whole numbers, such as counts of batches, must be equal.
    """
    gaps, moves, result = differences(a, b), differences(b, start), (0.0, "")
    for network in dict.fromkeys(name.partition(".")[0] for name in gaps):
        names = [name for name in gaps if name.startswith(f"{network}.")]
        furthest = max((moves[name] for name in names if b[name].is_floating_point()), default=0.0)
        for name in names:
            scale = max(moves[name], LEAST * furthest) if b[name].is_floating_point() else 1.0
            result = _largest({result[1]: result[0], name: gaps[name] / (scale or 1e-30)})
    return result


def _largest(values: Mapping[str, float]) -> tuple[float, str]:
    """NaN is larger than any number."""
    return max(((value, name) for name, value in values.items()), key=lambda pair: (math.isnan(pair[0]), pair[0]))


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of training steps."""
    lines = (run / METRICS).read_text().splitlines()
    return [row for line in lines if "images_per_second" in (row := parse_json(line))]


def losses(run: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key.startswith("loss/")} for row in rows(run)]


def loss_difference(run: Path, other: Path) -> float:
    """The largest difference of a term in any step, relative to the term's largest value."""
    ours, theirs = losses(run), losses(other)
    names = {name for row in theirs for name in row}
    scale = {name: max(abs(row[name]) for row in theirs if name in row) for name in names}
    differences = [0.0]
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        differences += [abs(one[name] - two[name]) / (scale[name] or 1.0) for name in one]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def rates(start: Path) -> dict[str, str]:
    """The options of SGD with which the first step moves the weights of each network by MOVED, from a run whose step has moved
    nothing. Weights in fp32 are rounded: a step that is too small shows nothing else."""
    (row,), tensors = rows(start), parameters(start)
    options = {}
    for network in NETWORKS:
        norm = row.get(f"grad_norm/{network}")
        if norm is None:
            continue
        weights = [
            value.double() for name, value in tensors.items() if name.startswith(f"{network}.") and value.is_floating_point()
        ]
        size = math.sqrt(sum(float(value.square().sum()) for value in weights))
        key = "discriminator_optimizer" if network == "discriminator" else "optimizer"
        rate = MOVED * size / norm if norm and math.isfinite(norm) else 1.0
        options[key] = f"{{name: sgd, learning_rate: {rate:.6e}}}"
    return options
