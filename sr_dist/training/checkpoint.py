"""Everything of one step in one folder that appears by rename, whole or not at all.

    checkpoints/0000100/   generator.safetensors  generator.ema.safetensors  generator.optimizer.safetensors
                           discriminator....      state.json                 manifest.json (sizes and sha256)

Tensors go by parameter name, so a checkpoint knows nothing of ranks or backends. Rank 0 writes.
"""

from __future__ import annotations

import json
import os
import re
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
from sr_dist.recipe.sections import Keep

Tensors = Mapping[str, Mapping[str, Tensor]]  # file stem -> tensors by name


@dataclass(frozen=True)
class Checkpoint:
    step: int
    folder: Path
    state: dict[str, Any]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{stem}.safetensors")


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a run's `checkpoints/`, oldest first; unfinished ones have other names."""
    return sorted(int(p.name) for p in folder.glob("*") if re.fullmatch(r"\d{7,}", p.name)) if folder.is_dir() else []


def save(
    folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any], about: Mapping[str, dict[str, str]] | None = None
) -> Path:
    """Writes aside, syncs, renames; then the step exists. `about` is metadata for some of the tensor files."""
    final = folder / f"{step:07d}"
    aside = folder / f".{step:07d}.unfinished"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        return _fill(aside, final, step, tensors, state, about or {})
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk the half of a checkpoint is in everybody's way
        raise


def _fill(
    aside: Path, final: Path, step: int, tensors: Tensors, state: Mapping[str, Any], about: Mapping[str, dict[str, str]]
) -> Path:
    for stem, named in tensors.items():
        path = aside / f"{stem}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}, path, about.get(stem))
        sync(path)
    (aside / "state.json").write_text(json.dumps(dict(state), indent=1) + "\n")
    sync(aside / "state.json")
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(aside.iterdir())}
    write_whole(aside / "manifest.json", (json.dumps({"step": step, "files": files}, indent=1) + "\n").encode())
    sync(aside)
    if final.exists():  # made again after a validation that was owed: never a moment without a whole one
        shutil.rmtree(final.with_suffix(".before"), ignore_errors=True)
        os.rename(final, final.with_suffix(".before"))
    os.rename(aside, final)
    sync(final.parent)
    shutil.rmtree(final.with_suffix(".before"), ignore_errors=True)
    return final


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint. A damaged one is named in one line and set aside, so that nobody takes it for a
    checkpoint again and it takes no other's place; then the one before it is looked at."""
    for before in sorted(folder.glob("*.before")) if folder.is_dir() else []:
        if not before.with_suffix("").exists():  # killed between two renames
            os.rename(before, before.with_suffix(""))
    for step in reversed(steps(folder)):
        place = folder / f"{step:07d}"
        problem = damage(place)
        if problem is None:
            return Checkpoint(step, place, json.loads((place / "state.json").read_text()))
        say(f"checkpoint {place.name} is damaged ({problem}); it is set aside and the one before it is taken")
        shutil.rmtree(place.with_suffix(".damaged"), ignore_errors=True)
        os.rename(place, place.with_suffix(".damaged"))
    return None


def damage(place: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        files = json.loads((place / "manifest.json").read_text())["files"]
        for name, entry in files.items():
            path = place / name
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}"
            if sha256(path) != entry["sha256"]:
                return f"{name} does not match its sha256"
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
        return f"manifest.json: {problem}"
    return None


def prune(folder: Path, keep: Keep, best: int | None) -> None:
    """Removes what `keep` does not name, and what was never finished. Called only after a save is complete."""
    there = steps(folder)
    stay = {*there[-keep.last :], best, *(s for s in there if keep.every and s % keep.every == 0)}
    for step in there:
        if step not in stay:
            shutil.rmtree(folder / f"{step:07d}", ignore_errors=True)
    for leftover in (*folder.glob(".*.unfinished"), *folder.glob("*.before")):
        shutil.rmtree(leftover, ignore_errors=True)


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; the ones before it are whole."""


class Writer:
    """Writes in a thread of its own, one save at a time, so that training waits for no disk."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._thread: threading.Thread | None = None
        self._problem: str | None = None

    def begin(self, write: Callable[[], object]) -> None:
        """Starts a save, after the one before has ended."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def problem(self) -> str | None:
        """What went wrong with a save that has ended, told once."""
        problem, self._problem = self._problem, None
        return problem

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as problem:
            self._problem = f"the checkpoint could not be written ({first_line(problem)}); the ones before it are whole"
            self._say(self._problem)
