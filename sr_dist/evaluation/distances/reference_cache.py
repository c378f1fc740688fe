"""Features and moments of HR images, kept by content, so that the next evaluation on the same images need not make them.

One file per set and kind of features, which says of itself what it is: images, extractor and its sha256, resizing or patch
rule, versions. What is not alike in all of it is refused.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.core.files import cache_folder, write_whole
from sr_dist.evaluation.distances.features import Features
from sr_dist.evaluation.distances.frechet import Array, Moments
from sr_dist.evaluation.partial_results import identity

MOST = 50_000  # rows that are kept: 400 MB at a width of 2048


def default_folder() -> Path:
    return cache_folder() / "references"


@dataclass(frozen=True)
class Reference:
    """All rows of a set, whoever made them."""

    rows: Array
    images: Array
    moments: Moments

    def share(self, images: Array, total: int, device: Any) -> Features:
        """A rank's part of it: the rows of its images."""
        mine = np.isin(self.images, images)
        return Features(self.rows[mine], self.images[mine], total, device, self.moments)


@dataclass(frozen=True)
class References:
    folder: Path
    about: Mapping[str, Any]  # images, extractor, ...: without the kind of features

    def load(self, view: str) -> Reference | None:
        """What was kept of these images, where every rank can read it. All ranks must call."""
        found = self._read(self._path(view), self._header(view))
        return found if all(ranks.gather(found is not None)) else None

    def keep(self, view: str, features: Features) -> None:
        """All ranks must call; the first writes. What cannot be kept is made again next time, and is no reason to end."""
        if features.count() > MOST:
            return
        moments = features.moments()
        rows, images = features.gathered()
        if ranks.is_first():
            out = io.BytesIO()
            header = json.dumps(self._header(view)).encode()
            np.savez(
                out, allow_pickle=False, header=np.frombuffer(header, np.uint8), rows=rows, images=images,
                n=moments.n, mean=moments.mean, scatter=moments.scatter,
            )  # fmt: skip
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_whole(self._path(view), out.getvalue())
            except OSError as problem:
                print(f"cache: features of HR are not kept in '{self.folder}': {problem.strerror}", flush=True)

    def _header(self, view: str) -> dict[str, Any]:
        versions = {name: metadata.version(name) for name in ("torch", "clean-fid", "pillow", "numpy")}
        return {**self.about, "features_of": view, "versions": versions}

    def _path(self, view: str) -> Path:
        return self.folder / f"{identity(self._header(view))}.npz"

    @staticmethod
    def _read(path: Path, wanted: Mapping[str, Any]) -> Reference | None:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(arrays["header"].tobytes())
                moments = Moments(int(arrays["n"]), arrays["mean"], arrays["scatter"])
                found = Reference(arrays["rows"], arrays["images"], moments)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # not there, or damaged: it is made anew
            return None
        refuse_unlike(header, wanted, path)
        return found


def refuse_unlike(header: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    for key in sorted(header.keys() | wanted.keys()):
        if header.get(key) != wanted.get(key):
            raise UserError(f"cache: '{path}' has other features: {key} is {header.get(key)}, not {wanted.get(key)}; remove it")
