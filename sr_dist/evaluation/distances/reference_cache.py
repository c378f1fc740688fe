"""A cache of the features and moments of HR images, so that the next evaluation of the same images does not compute them.

There is one file per set of images and kind of features. Its header states images, extractor with sha256, resizing or patch
rule, and versions. A file whose header differs from the request is refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.core.files import cache_folder, write_whole
from sr_dist.core.formats import REMOVE, STAMP, refuse_unknown, stamp
from sr_dist.core.json_text import parse_json
from sr_dist.evaluation.distances.features import Features
from sr_dist.evaluation.distances.frechet import Array, Moments
from sr_dist.evaluation.partial_results import identity

FORMAT = 1  # 0.1.0 wrote no number
MOST = 50_000  # rows in a file: 400 MB at a width of 2048


def default_folder() -> Path:
    return cache_folder() / "references"


@dataclass(frozen=True)
class Reference:
    """All rows of a set."""

    rows: Array
    images: Array
    moments: Moments

    def features(self, images: Array, total: int, device: torch.device) -> Features:
        """The rows of a rank's images."""
        local = np.isin(self.images, images)
        return Features(self.rows[local], self.images[local], total, device, self.moments)


@dataclass(frozen=True)
class References:
    """The files of one set of images."""

    folder: Path
    about: Mapping[str, Any]  # images, extractor, ...; without the kind of features

    def load(self, view: str) -> Reference | None:
        """The cached features, if every rank can read them. All ranks must call."""
        with ranks.failing_together():
            reference = self._read(self._path(view), self._header(view))
        return reference if all(ranks.all_gather(reference is not None)) else None

    def store(self, view: str, features: Features) -> None:
        """All ranks must call; the first writes. A failed write is reported, and the evaluation continues."""
        if features.count() > MOST:
            return
        moments = features.moments()
        rows, images = features.gathered()
        if ranks.is_first():
            out = io.BytesIO()
            header = json.dumps({**stamp(FORMAT), **self._header(view)}).encode()
            np.savez(
                out, allow_pickle=False, header=np.frombuffer(header, np.uint8), rows=rows, images=images,
                n=moments.n, mean=moments.mean, scatter=moments.scatter,
            )  # fmt: skip
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_whole(self._path(view), out.getvalue())
            except OSError as problem:
                print(f"cache: cannot write features of HR to '{self.folder}': {problem.strerror}", flush=True)

    def _header(self, view: str) -> dict[str, Any]:
        versions = {name: metadata.version(name) for name in ("torch", "clean-fid", "pillow", "numpy")}
        return {**self.about, "features_of": view, "versions": versions}

    def _path(self, view: str) -> Path:
        return self.folder / f"{identity(self._header(view))}.npz"

    @staticmethod
    def _read(path: Path, expected: Mapping[str, Any]) -> Reference | None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = parse_json(arrays["header"].tobytes())
                rows, images, n, mean, scatter = (arrays[name] for name in ("rows", "images", "n", "mean", "scatter"))
        except Exception:  # absent, or damaged, on which zipfile and numpy fail in many ways: computed again
            return None
        refuse_unknown(header, FORMAT, path, "cache", REMOVE)
        refuse_other_features({key: value for key, value in header.items() if key not in STAMP}, expected, path)
        return Reference(rows, images, Moments(int(n), mean, scatter))


def refuse_other_features(header: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    for key in sorted(header.keys() | expected.keys()):
        if header.get(key) != expected.get(key):
            raise UserError(f"cache: '{path}' has other features: {key} is {header.get(key)}, not {expected.get(key)}; remove it")
