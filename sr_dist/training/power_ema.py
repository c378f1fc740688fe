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

from sr_dist.core.errors import UserError
from sr_dist.core.run_layout import POST_HOC, checkpoint_folder
from sr_dist.models.post_hoc_ema import SIGMAS, new_share, prefix
from sr_dist.recipe.sections import Recipe
from sr_dist.training.buffers import saved_buffers
from sr_dist.training.engine import Engine
from sr_dist.training.flat import FlatAverage
from sr_dist.training.schedule import due

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
        """Both averages as whole tensors by name, and the buffers, so that the file makes a network. All ranks must call."""
        names = [name for name, _ in self.engine.bare.named_parameters()]
        weights = {
            f"{prefix(sigma)}{name}": value
            for sigma, average in self._averages.items()
            for name, value in zip(names, self.engine.whole(average.tensors), strict=True)
        }
        return weights | saved_buffers(self.engine.bare)

    def load(self, saved: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        """Loads saved averages. Overwrites the engine's own weights, which must be loaded afterwards. All ranks must call."""
        for sigma, average in self._averages.items():
            own = {name.removeprefix(prefix(sigma)): value for name, value in saved.items() if name.startswith(prefix(sigma))}
            self.engine.load_weights({**buffers, **own})
            average.restart()


def check_averages(saved: Path) -> None:
    """Refuses to go on with averages from a checkpoint without them."""
    if not any(saved.glob(f"*.{STEM}.safetensors")):
        raise UserError(
            f"ema.post_hoc: checkpoint {saved.name} has no averages to go on from, and they are of all steps from the first; "
            f"take another name to train with them, or continue with --ema.post_hoc=false"
        )


def keep_snapshot(recipe: Recipe, step: int) -> None:
    """Keeps the averages of a checkpoint in the run folder, where pruning leaves them. Not those of a checkpoint that was saved
    because the run was asked to stop: a run has the same snapshots whenever that was. The first rank calls."""
    if not step or not due(recipe, recipe.save_every, step):
        return
    target = recipe.folder / POST_HOC / f"{step:07d}.safetensors"
    for source in checkpoint_folder(recipe.folder, step).glob(f"*.{STEM}.safetensors"):
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
        if not path.stem.isdecimal() or int(path.stem) > step:  # .STEP is an unfinished one
            path.unlink()
