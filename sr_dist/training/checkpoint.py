"""Everything of one step in one folder that appears by rename, whole or not at all.

    checkpoints/0000100/   generator.safetensors  generator.ema.safetensors  generator.optimizer.safetensors
                           discriminator....      state.json                 manifest.json (sizes and sha256)

Tensors are stored by parameter name, so a checkpoint does not depend on ranks or backends. The first rank writes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sr_dist.core.errors import first_line
from sr_dist.core.files import sha256, sync, write_whole
from sr_dist.core.formats import UnknownFormat, refuse_unknown, stamp
from sr_dist.core.run_layout import (
    CHECKPOINT_FORMAT,
    CHECKPOINTS,
    MANIFEST,
    STATE,
    checkpoint_folder,
    checkpoint_state,
    checkpoint_steps,
)  # fmt: skip
from sr_dist.core.version import __version__
from sr_dist.recipe.sections import Keep


@dataclass(frozen=True)
class Contents:
    """What one checkpoint holds."""

    tensors: Mapping[str, Mapping[str, Tensor]]  # file stem -> tensors by name
    state: Mapping[str, Any]
    metadata: Mapping[str, dict[str, str]]  # file stem -> metadata of its .safetensors


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    step: int
    folder: Path
    state: dict[str, Any]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{stem}.safetensors")


def save(run: Path, step: int, contents: Contents) -> Path:
    """Writes to a temporary folder, syncs and renames; then the checkpoint exists."""
    final = checkpoint_folder(run, step)
    temporary = final.with_name(f".{final.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, step, contents)
        _move(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint on a full disk is in everybody's way
        raise
    return final


def _fill(folder: Path, step: int, contents: Contents) -> None:
    for stem, named in contents.tensors.items():
        path = folder / f"{stem}.safetensors"
        save_file({n: tensor.detach().cpu().contiguous() for n, tensor in named.items()}, path, contents.metadata.get(stem))
        sync(path)
    state = {**stamp(CHECKPOINT_FORMAT), **contents.state}
    (folder / STATE).write_text(json.dumps(state, indent=1) + "\n")
    sync(folder / STATE)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    manifest = {**stamp(CHECKPOINT_FORMAT), "step": step, "files": files}
    write_whole(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    sync(folder)


def _move(temporary: Path, final: Path) -> None:
    """A checkpoint that is replaced, after a validation that was postponed, stays complete until the new one is."""
    before = final.with_suffix(".before")
    if final.exists():
        shutil.rmtree(before, ignore_errors=True)
        os.rename(final, before)
    os.rename(temporary, final)
    sync(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def newest(run: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest complete checkpoint of a run. A damaged one is reported and renamed, and the one before it is used."""
    for before in sorted((run / CHECKPOINTS).glob("*.before")):
        if not before.with_suffix("").exists():  # killed between two renames
            os.rename(before, before.with_suffix(""))
    for step in reversed(checkpoint_steps(run)):
        folder = checkpoint_folder(run, step)
        problem = damage(folder)
        if problem is None:
            return Checkpoint(step, folder, checkpoint_state(folder))
        report(f"checkpoint {folder.name} is damaged ({problem}); it is set aside and the one before it is taken")
        shutil.rmtree(folder.with_suffix(".damaged"), ignore_errors=True)
        os.rename(folder, folder.with_suffix(".damaged"))
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Another format is not damage: it is refused."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest.get("sr_dist") != __version__:  # another number of this version is a flipped bit
            refuse_unknown(manifest, CHECKPOINT_FORMAT, folder, "name")
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}"
            if sha256(path) != entry["sha256"]:
                return f"{name} does not match its sha256"
    except UnknownFormat:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as problem:
        return f"manifest.json: {problem}"
    return None


def prune(run: Path, keep: Keep, best: int | None) -> None:
    """Removes checkpoints that `keep` does not name, and unfinished ones. Called only after a save is complete."""
    steps = checkpoint_steps(run)
    stay = {*steps[-keep.last :], best, *(step for step in steps if keep.every and step % keep.every == 0)}
    for step in steps:
        if step not in stay:
            shutil.rmtree(checkpoint_folder(run, step), ignore_errors=True)
    folder = run / CHECKPOINTS
    for leftover in (*folder.glob(".*.unfinished"), *folder.glob("*.before")):
        shutil.rmtree(leftover, ignore_errors=True)


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; the ones before it are complete."""


class Writer:
    """Writes in a background thread, one save at a time, so that training does not wait for the disk."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._thread: threading.Thread | None = None
        self._problem: str | None = None

    def begin(self, write: Callable[[], object]) -> None:
        """Starts a save after the one before has ended."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def problem(self) -> str | None:
        """The error of a save that has ended; returned once."""
        problem, self._problem = self._problem, None
        return problem

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as problem:
            self._problem = f"the checkpoint could not be written ({first_line(problem)}); the ones before it are whole"
            self._report(self._problem)
