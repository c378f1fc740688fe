"""Everything of one step in one folder that appears by rename, whole or not at all.

    checkpoints/0000100/   generator.safetensors  generator.ema.safetensors  generator.optimizer.safetensors
                           discriminator....      state.json                 manifest.json (sizes and sha256)

Both JSON files have the run's id and the step; state.json also has the keys of the recipe that may not change in a run.
Tensors are stored by parameter name, so a checkpoint does not depend on ranks or backends. The first rank writes.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sr_dist.core.errors import UserError, first_line
from sr_dist.core.files import owner_of, sha256, sync, this_process, write_json
from sr_dist.core.formats import UnknownFormat, stamp
from sr_dist.core.json_text import read_json
from sr_dist.core.run_layout import (
    CHECKPOINT_FORMAT,
    CHECKPOINTS,
    LOCK,
    MANIFEST,
    RUN,
    STATE,
    checkpoint_folder,
    checkpoint_names,
    checkpoint_state,
    checkpoint_steps,
    run_id,
    run_record,
    write_run_record,
)  # fmt: skip
from sr_dist.models import verified
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
        path = self.folder / f"{stem}.safetensors"
        try:
            return load_file(path)
        except OSError as problem:
            raise UserError(f"name: '{path}' cannot be read: {first_line(problem)}") from None

    def shapes(self, stem: str) -> dict[str, Tensor]:
        """Tensors of these names and shapes without numbers: only the header of the file is read."""
        with safe_open(self.folder / f"{stem}.safetensors", "pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118


def save(run: Path, step: int, contents: Contents) -> Path:
    """Writes to a temporary folder, syncs and renames; then the checkpoint exists."""
    with _replacing(run, step, contents.state) as folder:
        for stem, named in contents.tensors.items():
            path = folder / f"{stem}.safetensors"
            save_file({n: tensor.detach().cpu().contiguous() for n, tensor in named.items()}, path, contents.metadata.get(stem))
            sync(path)
        _describe(folder, step, contents.state, {})
    return checkpoint_folder(run, step)


def amend(run: Path, step: int, state: Mapping[str, Any]) -> None:
    """Replaces the state of a checkpoint. Its tensors are the same files, or copies where a file system has no hard links."""
    before = checkpoint_folder(run, step)
    entries = read_json(before / MANIFEST)["files"]
    with _replacing(run, step, state) as folder:
        for path in before.glob("*.safetensors"):
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copyfile(path, folder / path.name)
                sync(folder / path.name)
        _describe(folder, step, state, entries)


def copy(saved: Checkpoint, run: Path, state: Mapping[str, Any]) -> None:
    """Copies a checkpoint into the folder of a new run, with that run's state."""
    folder = checkpoint_folder(run, saved.step)
    folder.mkdir(parents=True)
    for path in saved.folder.glob("*.safetensors"):
        shutil.copyfile(path, folder / path.name)
        sync(folder / path.name)
    entries = read_json(saved.folder / MANIFEST)["files"]
    _describe(folder, saved.step, state, {name: entry for name, entry in entries.items() if name != STATE})


@contextmanager
def _replacing(run: Path, step: int, state: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary folder that becomes the checkpoint. No folder above is created: a run whose folder was removed has ended, and
    what is in its place belongs to another run."""
    final = checkpoint_folder(run, step)
    temporary = final.with_name(f".{final.name}.unfinished")
    check_folder(run, state)
    final.parent.mkdir(exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        check_folder(run, state)
        _move(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint on a full disk is in everybody's way
        raise


def check_folder(run: Path, state: Mapping[str, Any]) -> None:
    """Refuses a run folder that is not that of the run with this state any more."""
    try:
        own = run_id(run)
    except UserError:  # it cannot be read now; then a save fails by itself
        return
    if own is None and owner_of(run / LOCK) == this_process():  # only run.json was removed
        write_run_record(run, state["run"])
    elif own != state.get("run"):
        fate = "was removed" if own is None else "now belongs to another run"
        raise UserError(f"name: the run folder '{run}' {fate} while this process was training; it stops and writes nothing")


def _describe(folder: Path, step: int, state: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Writes the state and the manifest. `entries` are those of files that were checked before."""
    (folder / STATE).write_text(json.dumps({**stamp(CHECKPOINT_FORMAT), **state}, indent=1) + "\n")
    sync(folder / STATE)
    new = {p.name: p for p in sorted(folder.iterdir()) if p.name == STATE or p.name not in entries}
    files = {**entries, **{name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for name, p in new.items()}}
    write_json(folder / MANIFEST, {**stamp(CHECKPOINT_FORMAT), "step": step, "run": state.get("run"), "files": files})
    sync(folder)


def _move(temporary: Path, final: Path) -> None:
    """A checkpoint that is replaced, after its validation, stays complete until the new one is."""
    before = final.with_suffix(".before")
    if final.exists():
        shutil.rmtree(before, ignore_errors=True)
        os.rename(final, before)
    os.rename(temporary, final)
    sync(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def finish_renames(run: Path) -> None:
    """Brings back a checkpoint that was being replaced when the process was killed. The process that has the lock calls."""
    names = checkpoint_names(run)
    for before in [run / CHECKPOINTS / name for name in names if name.endswith(".before")]:
        if before.with_suffix("").name not in names:
            os.rename(before, before.with_suffix(""))


def newest(run: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None where it has none. Damaged ones after it are reported and renamed.

    Nothing is changed where no checkpoint can be used: training from step 1 would then remove the records of the run.
    """
    names = checkpoint_names(run)
    damaged = {name: "damaged when the run last began" for name in names if name.endswith(".damaged")}
    newer: dict[Path, str] = {}
    for step in reversed(checkpoint_steps(run)):
        folder = checkpoint_folder(run, step)
        problem = damage(folder)
        if problem is None:
            state = checkpoint_state(folder)
            check_identity(run, step, state)
            for other, its_problem in newer.items():
                report(f"checkpoint {other.name} is damaged ({its_problem}); it is set aside and the one before it is taken")
                shutil.rmtree(other.with_suffix(".damaged"), ignore_errors=True)
                os.rename(other, other.with_suffix(".damaged"))
            return Checkpoint(step, folder, state)
        newer[folder] = problem
    if unusable := damaged | {folder.name: problem for folder, problem in newer.items()}:
        reasons = "; ".join(f"{name}: {problem}" for name, problem in unusable.items())
        raise UserError(
            f"name: no checkpoint in '{run / CHECKPOINTS}' can be used ({reasons}); nothing was changed. Bring one back, or "
            f"remove the folder to train from step 1"
        )
    return None


def check_identity(run: Path, step: int, state: Mapping[str, Any]) -> None:
    """Refuses a complete checkpoint of another run or of another step: it was copied or renamed."""
    folder = checkpoint_folder(run, step)
    if state.get("step", step) != step:
        raise UserError(f"name: '{folder}' is the checkpoint of step {state['step']}; rename it back, or remove it")
    if not (run / RUN).exists():
        return
    own, stated = run_record(run), state.get("run")
    if stated != own["id"] and not (stated is None and step <= own["unnamed_until"]):
        raise UserError(
            f"name: '{folder}' is a checkpoint of another run ({str(stated)[:8]}, not {own['id'][:8]}); remove it, or take "
            f"another name"
        )


STATE_KEYS: dict[str, Any] = {
    "manifest": str, "position": int, "ema_updates": int, "validated": bool, "best": (dict, type(None)), "skipped": dict,
    "scalers": dict,
}  # fmt: skip


def check_state(saved: Checkpoint, phases: Iterable[str] = ()) -> None:
    """Refuses a state.json that lacks what resuming needs, of the run or of these networks."""
    for key, kind in STATE_KEYS.items():
        _check_entry(saved, saved.state, key, kind)
    for key, kind in (("skipped", int), ("scalers", dict)):
        for phase in phases:
            _check_entry(saved, saved.state[key], phase, kind, f"{key}.")


def _check_entry(saved: Checkpoint, part: Mapping[str, Any], key: str, kind: Any, prefix: str = "") -> None:
    if key not in part or not isinstance(part[key], kind):
        problem = f"'{prefix}{key}' is {part[key]!r}" if key in part else f"there is no '{prefix}{key}'"
        raise UserError(
            f"name: '{saved.folder / STATE}' cannot be used: {problem}; remove this checkpoint to continue from the one before"
        )


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None.

    Another format is not damage, nor is a disk that does not answer or a missing permission: these are errors, for the
    checkpoint may be whole.
    """
    try:
        manifest = verified.read_manifest(folder, "name")
        if problem := _difference(folder, manifest["files"]):
            return problem
        state = checkpoint_state(folder)
        for key in ("step", "run"):  # state.json was as it was written
            if key in manifest and key in state and manifest[key] != state[key]:
                return f"manifest.json does not fit state.json: its {key} is {manifest[key]!r}"
    except UnknownFormat:
        raise
    except FileNotFoundError as problem:
        return f"{Path(problem.filename or folder).name} is missing"
    except OSError as problem:
        raise UserError(
            f"name: the checkpoint '{folder}' cannot be read ({problem.strerror}) and may be damaged or whole; nothing "
            f"was changed, the same command continues when it can be read"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        return f"manifest.json or state.json is not that of a checkpoint: {first_line(problem)}"
    return None


def _difference(folder: Path, files: Mapping[str, Any]) -> str | None:
    """The first difference between a checkpoint's files and its manifest."""
    names = set(os.listdir(folder))
    for name in sorted({STATE, *(name for name in names if name.endswith(".safetensors"))}):
        if name not in files:
            return f"manifest.json does not list {name}"
    for name, entry in files.items():
        if name not in names or not (folder / name).is_file():
            return f"{name} is missing"
        if problem := verified.difference(folder / name, entry, sha256):
            return f"{name} {problem}"
    return None


def prune(run: Path, keep: Keep, *also: int | None) -> None:
    """Removes checkpoints that neither `keep` nor `also` names, and unfinished ones. Called only after a save is complete."""
    steps = checkpoint_steps(run)
    stay = {*steps[-keep.last :], *also, *(step for step in steps if keep.every and step % keep.every == 0)}
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
