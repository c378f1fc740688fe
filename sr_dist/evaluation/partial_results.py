"""What a pass over the images has found so far, batch by batch; on disk, so that a killed evaluation continues.

A batch is one file, whole or absent, and says nothing of ranks: any number of them goes on where others were killed.
The folder is named by what is evaluated (`identity`), so parts of unlike evaluations never meet.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sr_dist.core.files import write_whole

Arrays = Mapping[str, np.ndarray]


class Abandoned(Exception):
    """A validation in progress was given up because the run was asked to stop."""


class Parts:
    """Facts and arrays of every batch, by its number; kept in memory where no folder is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[int, tuple[Any, Arrays]] = {}
        self._sound: dict[int, set[str]] = {}  # files that were looked through -> names of their arrays
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, number: int, facts: Any, arrays: Arrays) -> None:
        if self.folder is None:
            self._kept[number] = (facts, arrays)
            return
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
        write_whole(self._path(number), out.getvalue())
        self._sound.pop(number, None)

    def missing(self, numbers: Iterable[int], needed: Collection[str] = ()) -> list[int]:
        """Those of the batches that are still to be done, or are without some of the arrays that are needed."""
        there = {number: self._names(number) for number in numbers}
        return [number for number, names in there.items() if names is None or not names.issuperset(needed)]

    def facts(self, number: int) -> Any:
        if self.folder is None:
            return self._kept[number][0]
        return json.loads(self.array(number, "facts").tobytes())

    def array(self, number: int, name: str) -> np.ndarray:
        if self.folder is None:
            return self._kept[number][1][name]
        with np.load(self._path(number), allow_pickle=False) as arrays:
            return arrays[name]

    def remove(self) -> None:
        """Takes the folder away, and those above it that only it was in; other ranks may do the same."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        """The same where no batch is in it; batches stay, for whoever continues."""
        for folder in [self.folder, *self.folder.parents[:2]] if self.folder else []:
            with suppress(OSError):  # something is in it, or it is gone
                folder.rmdir()

    def _path(self, number: int) -> Path:
        assert self.folder
        return self.folder / f"{number:07d}.npz"

    def _names(self, number: int) -> set[str] | None:
        """Those of a batch's arrays; None where it is absent or damaged."""
        if self.folder is None:
            return set(self._kept[number][1]) if number in self._kept else None
        if number not in self._sound and self._path(number).is_file():
            with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(self._path(number)) as archive:
                if archive.testzip() is None:
                    self._sound[number] = {name.removesuffix(".npy") for name in archive.namelist()}
        return self._sound.get(number)


def identity(facts: Mapping[str, Any]) -> str:
    """A short name for everything that the numbers depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
