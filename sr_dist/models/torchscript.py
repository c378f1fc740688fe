"""Networks in TorchScript files. Their code runs, and may read and write any other file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_dist.core import plugins
from sr_dist.core.errors import UserError, first_line, with_article
from sr_dist.core.files import check_exists


def load(path: Path, key: str) -> nn.Module:
    """The network of a file, on torch's default device: the CPU, or meta where operations are counted.

    `key` names the option in errors and in the note that foreign code runs.
    """
    check_exists(str(path), key)
    plugins.note_foreign_code(key, path)
    try:
        with without_deprecation():
            return torch.jit.load(str(path), map_location=torch.empty(0).device)
    except Exception as problem:  # torch's readers raise errors of many types
        raise UserError(f"{key}: '{path}' is not a TorchScript file: {first_line(problem)}") from None


@contextmanager
def without_deprecation() -> Iterator[None]:
    """Silences torch's warning that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", FutureWarning)
        yield


def check_rows(rows: Any, images: Tensor, name: str) -> None:
    """Refuses an output that is not one row per image. `name` is the option and its value."""
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(images):
        result = tuple(rows.shape) if isinstance(rows, Tensor) else with_article(type(rows).__name__)
        raise UserError(f"{name} returns {result} for {len(images)} images, not one row for each")
