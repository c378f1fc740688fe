"""`runs/NAME/`: one process group at a time, one recipe, and files that agree with the surviving weights."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from sr_dist.core import config, launch_env
from sr_dist.core.errors import UserError
from sr_dist.core.files import InUse, lock_file, write_json, write_whole
from sr_dist.core.json_text import parse_json
from sr_dist.core.run_layout import (
    CHECKPOINTS,
    DONE,
    ENVIRONMENT,
    LOCK,
    METRICS,
    PREEMPTED,
    RECIPE,
    RUN,
    SAMPLES,
    STOP,
    SUBSTITUTED,
    TRACE,
    checkpoint_folder,
    checkpoint_state,
    checkpoint_steps,
    parent_of,
    run_id,
    run_record,
    write_run_record,
)
from sr_dist.core.version import __version__
from sr_dist.recipe import resume_rules
from sr_dist.recipe.sections import Recipe
from sr_dist.training.checkpoint import Checkpoint, finish_renames
from sr_dist.training.power_ema import drop_later_snapshots

LIBRARIES = ("torch", "torchvision", "accelerate", "deepspeed", "webdataset", "numpy", "pillow", "safetensors")
BLOCK = 1 << 16  # bytes of a file of rows that are read at once


def claim(folder: Path) -> IO[str] | None:
    """Locks the run folder for the first rank's process until it ends. Called before any process group exists."""
    if launch_env.rank() != 0:
        return None
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock_file(folder / LOCK)
            finish_renames(folder)
            return lock
    except InUse as owner:
        raise UserError(f"name: '{folder}' is in use by {owner}; wait for it, or take another name") from None


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, innermost first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def remove_unused(folder: Path, made: Sequence[Path]) -> None:
    """After a refusal: removes the folders that this start has made, if the run folder has nothing but its lock."""
    with suppress(OSError):
        if folder in made and os.listdir(folder) == [LOCK]:
            (folder / LOCK).unlink()
            for place in made:
                place.rmdir()  # fails, which ends this, where something else has come


def check_recipe(folder: Path, recipe: Recipe) -> None:
    """A run folder belongs to one recipe: keys that may not change must be as they were."""
    if not checkpoint_steps(folder):
        return  # nothing was trained yet
    resume_rules.check_allowed(recipe)
    before = recorded_recipe(folder, recipe)
    changes = resume_rules.differences(before, recipe)
    if launch_env.rank() == 0:
        for key in resume_rules.WARNED:
            if key in changes:
                print(f"note: {changes[key]}; the numbers will differ a little from here on", flush=True)
    if forbidden := resume_rules.forbidden_changes(changes, recipe.resume.allow):
        lines = "; ".join([changes[key] for key in forbidden[:6]])
        raise UserError(
            f"name: '{folder}' was begun with another recipe ({lines}); take another name, "
            f"or say that this is meant with --resume.allow={','.join(forbidden)}"
        )


def recorded_recipe(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """The recipe that the run was trained with.

    The keys that may not change are in the checkpoints, so that a lost or edited recipe.yaml does not change the run. Checkpoints
    of 0.2.0 have none: then all keys are those of recipe.yaml.
    """
    fixed = _fixed_keys(folder)
    if (folder / RECIPE).is_file():
        tree = config.read(folder / RECIPE)
    elif fixed is not None:
        tree = config.parse(config.text(recipe))
    else:
        raise UserError(
            f"name: '{folder}' has checkpoints but no {RECIPE}, which alone says how they were trained; bring it back, or take "
            f"another name"
        )
    return tree if fixed is None else resume_rules.joined(resume_rules.part_of(tree, free=True), fixed)


def _fixed_keys(folder: Path) -> dict[str, Any] | None:
    """The record in the newest checkpoint of this run that has one. Damage is looked for later, when the checkpoint is opened."""
    own = run_id(folder)
    for step in reversed(checkpoint_steps(folder)):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            state = checkpoint_state(checkpoint_folder(folder, step))
            if own in (None, state["run"]):
                return dict(state["recipe"])
    return None


def open_folder(folder: Path, recipe: Recipe, num_ranks: int, saved: Checkpoint | None = None) -> str:
    """Writes recipe, environment and the id of the run, and returns the id. The first rank calls."""
    folder.mkdir(parents=True, exist_ok=True)
    identity, unnamed_until = _identity(folder, saved)
    text, about = config.text(recipe).encode(), environment(num_ranks)
    more = {
        "recipe": _digest(recipe),
        "versions": about["packages"],
        "parent": parent_of(folder) if saved else None,
    }
    write_run_record(folder, identity, unnamed_until, **more)
    write_whole(folder / RECIPE, text)
    write_json(folder / ENVIRONMENT, about)
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    _open_markers(folder, saved)  # last: what fails above, as on a full disk, leaves a run that is done as it was
    return identity


def _open_markers(folder: Path, saved: Checkpoint | None) -> None:
    """A run that continues is PREEMPTED until its first step is done: it may be ended before, and then it is that again."""
    (folder / STOP).unlink(missing_ok=True)
    if saved and (folder / DONE).exists():
        os.replace(folder / DONE, folder / PREEMPTED)
    elif not saved:
        for name in (DONE, PREEMPTED):
            (folder / name).unlink(missing_ok=True)


def begin_steps(folder: Path) -> None:
    """After the first step. The first rank calls."""
    (folder / PREEMPTED).unlink(missing_ok=True)


def _digest(recipe: Recipe) -> str:
    """Of the keys that may not change in a run."""
    fixed = resume_rules.part_of(config.parse(config.text(recipe)), free=False)
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _identity(folder: Path, saved: Checkpoint | None) -> tuple[str, int]:
    """`id` and `unnamed_until` of run.json. A run begins with an id; one of 0.2.0 gets its id when it is continued."""
    if saved is None:
        return secrets.token_hex(16), 0
    if (folder / RUN).exists():
        record = run_record(folder)
        return record["id"], record["unnamed_until"]
    stated = saved.state.get("run")
    return (stated, 0) if stated else (secrets.token_hex(16), saved.step)


def drop_later(folder: Path, saved: Checkpoint | None) -> None:
    """Removes the records and sample images of steps after a checkpoint, or all. The first rank calls."""
    step = saved.step if saved else -1  # step 0 has rows and images too
    validated = not saved or saved.state["validated"]
    lists = (path for name in (TRACE, SUBSTITUTED) for path in sorted((folder / name).glob("rank-*.jsonl")))
    for path in (folder / METRICS, *lists):
        drop_later_rows(path, step, validated)
    drop_later_snapshots(folder, step)
    for path in (folder / SAMPLES).glob("*"):
        if not path.stem.isdecimal() or int(path.stem) <= step:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == ".png":
            path.unlink()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around the first and the last writes to a run folder: a disk that is full or read-only is a line."""
    try:
        yield
    except OSError as problem:
        raise UserError(f"name: the run folder '{folder}' cannot be written: {problem.strerror}") from None


def environment(num_ranks: int) -> dict[str, Any]:
    import torch  # loaded only when a run begins

    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "packages": {"sr_dist": __version__, **{name: _version(name) for name in LIBRARIES}},
        "commit": _commit(),
        "host": platform.node(),
        "ranks": num_ranks,
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def mark(folder: Path, name: str, text: str) -> None:
    """Writes the marker that scripts wait for: DONE or PREEMPTED."""
    with writing(folder):
        write_whole(folder / name, (text + "\n").encode())
        (folder / (PREEMPTED if name == DONE else DONE)).unlink(missing_ok=True)


def drop_later_rows(path: Path, step: int, validated: bool = True) -> None:
    """Removes the rows of steps after a checkpoint, and lines that are no rows, such as an incomplete last one; where the
    checkpoint was saved before its validation, also the row of that.

    Rows are in the order of their steps, and a crash damages the end. So lines are read from the end, until BLOCK bytes of them
    stay: a long run has millions. Damage before that remains, and readers skip or name it. Where all lines to remove are at the
    end the file is cut, which needs no space on the disk.
    """
    if not path.is_file():
        return
    stays = partial(_stays, step=step, validated=validated)
    with open(path, "rb+") as file:
        end, first_removed = _lines_to_remove(file, stays)
        if first_removed is None:
            file.truncate(end)
            _end_last_line(file)
            return
    _rewrite(path, stays, first_removed)


def _lines_to_remove(file: IO[bytes], stays: Callable[[bytes], bool]) -> tuple[int, int | None]:
    """The end of the last line that stays, and the offset of the first line to remove before it, if there is one."""
    end, first_removed, checked = 0, None, 0
    for begin, line in lines_from_end(file):
        if stays(line):
            end = end or begin + len(line)
            checked += len(line)
            if checked >= BLOCK:
                break
        else:
            first_removed, checked = begin if end else None, 0
    return end, first_removed


def lines_from_end(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, the last one first, with the offset of each. Reads BLOCK bytes at a time."""
    begin = file.seek(0, os.SEEK_END)
    pieces: list[bytes] = []  # the end of a line whose beginning is not read yet, last piece first
    while begin:
        size = min(BLOCK, begin)
        begin -= size
        file.seek(begin)
        piece = file.read(size)
        whole = piece.find(b"\n") + 1 if begin else 0  # where the first line begins that is in this piece as a whole
        if begin and not whole:
            pieces.append(piece)
            continue
        end = begin + size + sum(map(len, pieces))
        for line in reversed(list(io.BytesIO(b"".join([piece[whole:], *reversed(pieces)])))):
            end -= len(line)
            yield end, line
        pieces = [piece[:whole]]


def _end_last_line(file: IO[bytes]) -> None:
    """A crash can lose the end of a line alone."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _rewrite(path: Path, stays: Callable[[bytes], bool], begin: int) -> None:
    """Removes lines after the first `begin` bytes, which are copied."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(path, "rb") as source, open(temporary, "wb") as target:
            for size in (min(BLOCK, begin - low) for low in range(0, begin, BLOCK)):
                target.write(source.read(size))
            target.writelines(line.rstrip(b"\n") + b"\n" for line in source if stays(line))
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _stays(line: bytes, step: int, validated: bool) -> bool:
    try:
        row = parse_json(line)
        repeated = not validated and row["step"] == step and any(key.startswith("validation/") for key in row)
        return float(row["step"]) <= step and not repeated
    except (ValueError, LookupError, TypeError, OverflowError):
        return False
