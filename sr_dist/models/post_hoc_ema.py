"""Any length of EMA after training, from averages that training kept (Karras et al. 2024, arXiv 2312.02696, section 3).

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), 0 <= tau <= t        the weight of step tau in the average of step t
    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)    its width, as a share of the training
    average(t) = beta average(t - 1) + (1 - beta) weights(t),  beta = (1 - 1/t)^(gamma + 1)

Training keeps two averages, of sigma_rel 0.05 and 0.10, and stores both every `save_every` steps. A wanted profile is
approximated by the sum of stored ones that is nearest to it (least squares); the same sum of the stored averages is the wanted
average. We leave the paper in one point: the factors add up to one, for with few checkpoints the nearest sum is up to a sixth
smaller.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sr_dist.core.errors import UserError
from sr_dist.core.run_layout import POST_HOC
from sr_dist.models import weights_files

SIGMAS = (0.05, 0.10)  # sigma_rel of the two averages
LONGEST = 0.28  # sigma_rel of a plain mean is 0.289


class Profile(NamedTuple):
    step: int
    sigma: float  # sigma_rel


@functools.lru_cache(maxsize=1024)
def gamma_of(sigma: float) -> float:
    """The exponent of a profile with this width: the largest root of (gamma + 1) = sigma^2 (gamma + 2)^2 (gamma + 3)."""
    s = sigma**-2
    roots = np.roots([1.0, 7.0, 16.0 - s, 12.0 - s])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def sigma_of(gamma: float) -> float:
    return math.sqrt(gamma + 1) / (gamma + 2) / math.sqrt(gamma + 3)


def new_share(sigma: float, step: int) -> float:
    """1 - beta: the weight of this step's weights in the average. Steps count from 1."""
    return 1.0 - (1.0 - 1.0 / step) ** (gamma_of(sigma) + 1.0)


def dots(first: Sequence[Profile], second: Sequence[Profile]) -> np.ndarray:
    """The integral of the product of each of the first profiles with each of the second ones."""
    t, u = (np.array([profile.step for profile in some], np.float64) for some in (first, second))
    g, h = (np.array([gamma_of(profile.sigma) for profile in some]) + 1 for some in (first, second))
    t, g = t[:, None], g[:, None]
    low = np.minimum(t, u)
    return g * h / (g + h - 1) / low * np.exp(g * np.log(low / t) + h * np.log(low / u))


def mixture(stored: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """The factors, which add up to one, of the stored profiles whose sum is nearest to the wanted one."""
    n = len(stored)
    system, right = np.zeros((n + 1, n + 1)), np.ones(n + 1)
    scale = dots([wanted], [wanted])
    system[:n, :n] = dots(stored, stored) / scale
    system[n, :n] = system[:n, n] = 1.0  # Lagrange's condition
    right[:n] = (dots(stored, [wanted]) / scale)[:, 0]
    return np.linalg.lstsq(system, right, rcond=1e-13)[0][:n]


def misfit(stored: Sequence[Profile], wanted: Profile) -> float:
    """How far the nearest sum is from the wanted profile, as a share of its norm."""
    x, scale = mixture(stored, wanted), dots([wanted], [wanted]).item()
    square = x @ dots(stored, stored) @ x - 2 * x @ dots(stored, [wanted])[:, 0] + scale
    return math.sqrt(max(0.0, float(square)) / scale)


def snapshots(run: Path) -> dict[int, Path]:
    """The files with averages of a run, by step."""
    files = sorted((run / POST_HOC).glob("*.safetensors"))
    return {int(path.stem): path for path in files if path.stem.isdecimal()}


def check_length(sigma: float, key: str) -> None:
    if not 0.01 <= sigma <= LONGEST:
        raise UserError(f"{key}: {sigma:g} is no length of an EMA; it is a share of the training from 0.01 to {LONGEST}")


def averaged(files: Mapping[int, Path], sigma: float, step: int, key: str) -> dict[str, Tensor]:
    """The average of this width at this step, from the snapshots up to it, in float64 and stored as fp32."""
    files = {at: path for at, path in files.items() if at <= step}
    stored = [Profile(at, width) for at in files for width in SIGMAS]
    factors = iter(mixture(stored, Profile(step, sigma)))
    total: dict[str, Tensor] = {}
    for path in files.values():
        tensors, _ = weights_files.read(path, key)
        for width in SIGMAS:
            factor = float(next(factors))
            for name, value in tensors.items():
                if name.startswith(prefix(width)):
                    plain = name.removeprefix(prefix(width))
                    part = factor * value.double()
                    total[plain] = total[plain] + part if plain in total else part
    return {name: value.to(torch.float32) for name, value in total.items()}


def one_of_both(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The wider average of a snapshot, and its buffers, as a network's tensors; tensors of other files as they are."""
    widths = {sigma: [name for name in tensors if name.startswith(prefix(sigma))] for sigma in SIGMAS}
    if not all(widths.values()):
        return dict(tensors)
    others = {name for names in widths.values() for name in names}
    wide = prefix(SIGMAS[-1])
    return {name.removeprefix(wide): value for name, value in tensors.items() if name.startswith(wide) or name not in others}


def prefix(sigma: float) -> str:
    """Of the names of one average's tensors in a snapshot."""
    return f"{round(sigma * 1000):03d}/"
