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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sr_dist.files import write_whole

Arrays = Mapping[str, np.ndarray]


class Abandoned(Exception):
    """A validation in progress was given up because the run was asked to stop."""


class Parts:
    """Facts and arrays of every batch, by its number; kept in memory where no folder is given."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[int, tuple[Any, Arrays]] = {}
        self._sound: set[int] = set()  # files that were looked through
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def put(self, number: int, facts: Any, arrays: Arrays) -> None:
        if self.folder is None:
            self._kept[number] = (facts, arrays)
            return
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
        write_whole(self._path(number), out.getvalue())

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of the batches that are still to be done."""
        return [number for number in numbers if number not in self._kept and not self._is_sound(number)]

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
        if self.folder is None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # something else is in them
            self.folder.parent.rmdir()
            self.folder.parent.parent.rmdir()

    def _path(self, number: int) -> Path:
        assert self.folder
        return self.folder / f"{number:07d}.npz"

    def _is_sound(self, number: int) -> bool:
        if self.folder and number not in self._sound and self._path(number).is_file():
            with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(self._path(number)) as archive:
                self._sound |= {number} if archive.testzip() is None else set()
        return number in self._sound


def identity(facts: Mapping[str, Any]) -> str:
    """A short name for everything that the numbers depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
