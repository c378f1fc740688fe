"""The two power-function averages that `ema.post_hoc` keeps beside the EMA, for `sr_dist.curve`; see models/post_hoc_ema.py.

Time is the step of the run. A skipped step leaves the weights as they are, and the averages count them once more: that is the
average of the weights over steps, whatever happened in them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from sr_dist.core.run_layout import POST_HOC, checkpoint_folder
from sr_dist.models.post_hoc_ema import SIGMAS, new_share, prefix
from sr_dist.training.engine import Engine
from sr_dist.training.flat import FlatAverage

STEM = "power_ema"  # of their file in a checkpoint, after the phase


class PowerEmas:
    """Averages of the weights that a rank keeps, in fp32."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._averages = {sigma: FlatAverage(engine.local_weights(), torch.float32) for sigma in SIGMAS}

    def update(self, step: int) -> None:
        """After each step, from 1."""
        for sigma, average in self._averages.items():
            average.update(new_share(sigma, step))

    @torch.no_grad()
    def gather(self) -> dict[str, Tensor]:
        """Both averages as whole tensors by name. All ranks must call."""
        names = [name for name, _ in self.engine.bare.named_parameters()]
        return {
            f"{prefix(sigma)}{name}": value
            for sigma, average in self._averages.items()
            for name, value in zip(names, self.engine.whole(average.tensors), strict=True)
        }

    def load(self, saved: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        """Loads saved averages. Overwrites the engine's own weights, which must be loaded afterwards. All ranks must call."""
        for sigma, average in self._averages.items():
            own = {name.removeprefix(prefix(sigma)): value for name, value in saved.items() if name.startswith(prefix(sigma))}
            self.engine.load_weights({**buffers, **own})
            average.restart()


def keep_snapshot(run: Path, step: int, phase: str) -> None:
    """Keeps the averages of a checkpoint in the run folder, where pruning leaves them. The first rank calls."""
    source = checkpoint_folder(run, step) / f"{phase}.{STEM}.safetensors"
    target = run / POST_HOC / f"{step:07d}.safetensors"
    if source.is_file():
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name(f".{target.name}")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # where both are links to one file already, rename leaves both


def drop_later_snapshots(run: Path, step: int) -> None:
    for path in (run / POST_HOC).glob("*.safetensors"):
        if path.stem.isdecimal() and int(path.stem) > step:
            path.unlink()
