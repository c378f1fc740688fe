"""Results of the batches that an evaluation has finished, on disk, so that a killed evaluation can continue.

Each batch is one file, complete or absent. It does not depend on the number of ranks, so an evaluation may continue on another
number of ranks. `identity` of all inputs names the folder, so results of different evaluations never mix.
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

from sr_dist.core.formats import REMOVE, STAMP, refuse_unknown, stamp
from sr_dist.core.json_text import parse_json
from sr_dist.core.outputs import make_folder, write_output

FORMAT = 1  # 0.1.0 wrote no number
Facts = Mapping[str, Any]  # as JSON
Arrays = Mapping[str, np.ndarray]


class Abandoned(Exception):
    """A validation stopped before its end because the run was asked to stop."""


class PartialResults:
    """Facts and arrays of every batch, by the number of the batch; in memory without a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._memory: dict[int, tuple[Facts, Arrays]] = {}
        self._intact: dict[int, set[str]] = {}  # batches whose file was verified -> the names of its arrays
        if folder:
            make_folder(folder, "out")

    def put(self, number: int, facts: Facts, arrays: Arrays) -> None:
        if self.folder is None:
            self._memory[number] = (facts, arrays)
            return
        header = json.dumps({**stamp(FORMAT), **facts}).encode()
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, facts=np.frombuffer(header, np.uint8), **arrays)
        write_output(self._path(number), out.getvalue(), "out")
        self._intact.pop(number, None)

    def missing(self, numbers: Iterable[int], needed: Collection[str] = ()) -> list[int]:
        """The batches that have no results, or lack some of the needed arrays."""
        available = {number: self._names(number) for number in numbers}
        return [number for number, names in available.items() if names is None or not names.issuperset(needed)]

    def facts(self, number: int) -> dict[str, Any]:
        if self.folder is None:
            return dict(self._memory[number][0])
        return {key: value for key, value in self._header(number).items() if key not in STAMP}

    def array(self, number: int, name: str) -> np.ndarray:
        if self.folder is None:
            return self._memory[number][1][name]
        with np.load(self._path(number), allow_pickle=False) as arrays:
            return arrays[name]

    def remove(self) -> None:
        """Deletes the results, then the folders above that are empty. Several ranks may do so at the same time."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.remove_empty_folders()

    def remove_empty_folders(self) -> None:
        """Keeps the batches that are done, for the evaluation that continues."""
        for folder in [self.folder, *self.folder.parents[:2]] if self.folder else []:
            with suppress(OSError):  # not empty, or removed by another rank
                folder.rmdir()

    def _path(self, number: int) -> Path:
        assert self.folder
        return self.folder / f"{number:07d}.npz"

    def _header(self, number: int) -> dict[str, Any]:
        return parse_json(self.array(number, "facts").tobytes())

    def _names(self, number: int) -> set[str] | None:
        """The names of a batch's arrays; None if its file is absent or damaged."""
        if self.folder is None:
            return set(self._memory[number][1]) if number in self._memory else None
        if number not in self._intact and (header := self._intact_header(number)):
            refuse_unknown(header[0], FORMAT, self._path(number), "out", REMOVE)
            self._intact[number] = header[1]
        return self._intact.get(number)

    def _intact_header(self, number: int) -> tuple[dict[str, Any], set[str]] | None:
        """The header of a batch's file and the names of its arrays, whose checksums are compared."""
        try:
            with zipfile.ZipFile(self._path(number)) as archive:
                if archive.testzip() is None:
                    return self._header(number), {name.removesuffix(".npy") for name in archive.namelist()}
        except Exception:  # zipfile and numpy fail in many ways on a damaged file
            pass
        return None


def identity(facts: Mapping[str, Any]) -> str:
    """A short name for everything that the numbers depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
