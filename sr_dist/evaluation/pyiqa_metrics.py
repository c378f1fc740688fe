"""Metrics of the package pyiqa, by its names: `pyiqa:musiq`. The user installs it; its code, weights and licence are its own.

Images are whole, without border, as the protocol stores them, in RGB and [0, 1], one at a time: not all of its metrics take
batches. Metrics without a reference get the restored image alone.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from typing import Any, NoReturn

import torch
from torch import Tensor

from sr_dist.core import plugins, ranks
from sr_dist.core.errors import UserError, first_line, nearest
from sr_dist.evaluation.presets import PYIQA
from sr_dist.evaluation.protocol import Protocol, as_stored


class PyIQAMetric:
    """An `ImageMetric`."""

    PERCEPTUAL = True

    def __init__(self, name: str, download: bool = False) -> None:
        """All ranks must call."""
        self.__name__ = self.column = name
        plugins.note_foreign_package("metrics", "pyiqa", metadata.version("pyiqa"), licence())
        facts = _facts(name)
        self.BETTER = {name: "lower" if facts.get("lower_better") else "higher"}
        self.RANGE = {name: _bounds(facts.get("score_range", ""))}
        self.missing: dict[str, str] = {}
        self._metric: Any = None
        problem = ""
        if download:  # the first rank fetches, the others find the files
            problem = ranks.broadcast_from_first(self._open(True) if ranks.is_first() else "")
        problem = problem or self._open(download)
        if problem := next((text for text in ranks.all_gather(problem) if text), ""):
            self.missing = {name: problem}

    def _open(self, download: bool) -> str:
        """Makes the metric. Returns why it cannot be made."""
        import pyiqa  # takes seconds

        try:
            with _network(download):
                self._metric = pyiqa.create_metric(self.column.removeprefix(PYIQA), device="cpu", as_loss=False).eval()
        except Exception as error:  # of any kind, and of any of the packages that pyiqa uses
            return f"pyiqa cannot make it: {first_line(error)}"
        return ""

    @cached_property
    def weights_sha256(self) -> str | None:
        """Of its parameters and buffers as they are loaded; None if it has none."""
        tensors = self._metric.state_dict() if self._metric is not None else {}
        named = {name: tensor for name, tensor in sorted(tensors.items()) if tensor.numel()}
        return digest_of_tensors(named) if named else None

    def conditions(self, columns: Sequence[str]) -> dict[str, Any]:
        return {
            "package": f"pyiqa {metadata.version('pyiqa')}",
            "licence": licence(),
            "reference": self._metric is not None and self._metric.metric_mode == "FR",
            "weights_sha256": self.weights_sha256,
            "input": "whole images without border, one at a time, RGB in [0, 1]",
        }

    def per_image(self, sr: Tensor, hr: Tensor, protocol: Protocol, grey: bool) -> dict[str, list[float]]:
        """nan for images that are not finite."""
        if self._metric is None:
            return {}
        self._metric.to(sr.device)
        return {self.column: [self._value(sr[i : i + 1], hr[i : i + 1], protocol) for i in range(len(sr))]}

    def _value(self, sr: Tensor, hr: Tensor, protocol: Protocol) -> float:
        if not sr.isfinite().all():
            return float("nan")
        images = [as_stored(one, protocol).float() for one in (sr, hr)]
        try:
            value = self._metric(*images[: 2 if self._metric.metric_mode == "FR" else 1])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise UserError(
                f"metrics: '{self.column}' fails on an image of {hr.shape[-1]} x {hr.shape[-2]}: {first_line(error)}"
            ) from None
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(f"metrics: '{self.column}' does not return one value for an image")
        return float(value)


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def licence() -> str:
    """What the installed package states."""
    about = metadata.metadata("pyiqa")
    stated = [str(about[key]) for key in ("License-Expression", "License") if key in about]
    return stated[0] if stated else "none is stated"


def _facts(column: str) -> dict[str, Any]:
    """pyiqa's own description of a metric."""
    from pyiqa.default_model_configs import DEFAULT_CONFIGS  # takes seconds

    name = column.removeprefix(PYIQA)
    if name not in DEFAULT_CONFIGS:
        raise UserError(f"metrics: pyiqa {metadata.version('pyiqa')} has no '{name}'{nearest(name, list(DEFAULT_CONFIGS))}")
    if "fid" in name or name == "inception_score":
        raise UserError(f"metrics: '{column}' compares sets of images, not an image; use fid")
    return dict(DEFAULT_CONFIGS[name])


def _bounds(text: str) -> tuple[float | None, float | None]:
    """pyiqa states a range as '0, 1'; '~' marks what is only usual, which is no bound."""
    words = [word.strip() for word in text.split(",")]
    low, high = (float(word) if re.fullmatch(r"-?\d+(\.\d+)?", word) else None for word in (*words, "", "")[:2])
    return low, high


@contextmanager
def _network(allowed: bool) -> Iterator[None]:
    """pyiqa downloads weights without asking. Unless that is allowed, no name of a host is resolved meanwhile."""
    original = socket.getaddrinfo

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError("weights are missing, and downloads are not allowed (--allow_download)")

    if not allowed:
        socket.getaddrinfo = refuse
    try:
        yield
    finally:
        socket.getaddrinfo = original
