"""TensorBoard. The only file that needs its package: pip install 'sr_dist[tensorboard]'.

Events lie in the run folder's `tensorboard/`, by step; `tensorboard --logdir runs` shows every run. A process that continues from
a checkpoint hides the events of later steps, which the surviving weights did not take.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.core.pixels import FORMATS
from sr_dist.core.run_layout import TENSORBOARD, checkpoint_steps
from sr_dist.recipe.sections import Recipe
from sr_dist.training.tracker import Row, grouped

FLUSH = 30  # seconds after which rows are in the file at the latest


def check(recipe: Recipe) -> None:
    """The package is installed."""
    if "tensorboard" in recipe.log.trackers and importlib.util.find_spec("tensorboard") is None:
        raise UserError("log.trackers: tensorboard needs a package that is not installed: pip install 'sr_dist[tensorboard]'")


def open_tracker(recipe: Recipe, info: Callable[[str], None]) -> TensorBoardTracker | None:
    if "tensorboard" not in recipe.log.trackers:
        return None
    info(f"TensorBoard: tensorboard --logdir '{recipe.runs}'")
    return TensorBoardTracker(recipe)


class TensorBoardTracker:
    """Implements `tracker.Tracker`."""

    def __init__(self, recipe: Recipe) -> None:
        from torch.utils.tensorboard import SummaryWriter  # loads the package, which takes seconds

        saved = checkpoint_steps(recipe.folder)
        self._writer = SummaryWriter(str(recipe.folder / TENSORBOARD), purge_step=saved[-1] + 1 if saved else 0, flush_secs=FLUSH)
        self._step = saved[-1] if saved else 0
        self._text("recipe", f"```yaml\n{config.text(recipe)}```", self._step)

    def row(self, row: Row) -> None:
        """A value that is not finite has no point."""
        self._step = row["step"]
        for name, value in grouped(row).items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, self._step)

    def table(self, name: str, rows: Sequence[Row], at: Row) -> None:
        """As text. Images in cells are left out: the sheet of samples has them."""
        columns = [key for key in rows[0] if not isinstance(rows[0][key], Image.Image)] if rows else []
        if columns:
            lines = [columns, ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
            self._text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), at["step"])

    def image(self, name: str, path: Path, at: Row) -> None:
        with Image.open(path, formats=FORMATS) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), at["step"], dataformats="HWC")

    def checkpoint(self, folder: Path, step: int, best: bool) -> None:
        """TensorBoard keeps no files."""

    def preempted(self, text: str) -> None:
        self._text("stopped", text, self._step)

    def close(self, code: int) -> None:
        self._writer.close()

    def _text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)


def _cell(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|")
