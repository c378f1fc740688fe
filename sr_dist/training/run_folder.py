"""`runs/NAME/`: one process group at a time, one recipe, and files that agree with the surviving weights."""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from sr_dist.core import config, launch_env
from sr_dist.core.errors import UserError
from sr_dist.core.files import InUse, lock_file, write_whole
from sr_dist.core.formats import stamp
from sr_dist.core.run_layout import (
    CHECKPOINTS,
    DONE,
    ENVIRONMENT,
    METRICS,
    PREEMPTED,
    RECIPE,
    RUN,
    RUN_FORMAT,
    SAMPLES,
    STOP,
    SUBSTITUTED,
    TRACE,
    checkpoint_folder,
    checkpoint_state,
    checkpoint_steps,
    run_id,
    run_record,
)
from sr_dist.core.version import __version__
from sr_dist.recipe import resume_rules
from sr_dist.recipe.sections import Recipe
from sr_dist.training.checkpoint import Checkpoint, finish_renames
from sr_dist.training.power_ema import drop_later_snapshots

LIBRARIES = ("torch", "torchvision", "accelerate", "deepspeed", "webdataset", "numpy", "pillow", "safetensors")


def claim(folder: Path) -> IO[str] | None:
    """Locks the run folder for the first rank's process until it ends. Called before any process group exists."""
    if launch_env.rank() != 0:
        return None
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = lock_file(folder / ".lock")
            finish_renames(folder)
            return lock
    except InUse as owner:
        raise UserError(f"name: '{folder}' is in use by {owner}; wait for it, or take another name") from None


def check_recipe(folder: Path, recipe: Recipe) -> None:
    """A run folder belongs to one recipe: keys that may not change must be as they were."""
    if not checkpoint_steps(folder):
        return  # nothing was trained yet
    resume_rules.check_allowed(recipe)
    before = recorded_recipe(folder, recipe)
    if launch_env.rank() == 0:
        for key, line in resume_rules.differences(before, recipe):
            if key in resume_rules.WARNED:
                print(f"note: {line}; the numbers will differ a little from here on", flush=True)
    differing = resume_rules.forbidden_changes(before, recipe)
    if differing:
        keys = ",".join(line.split(":")[0] for line in differing)
        raise UserError(
            f"name: '{folder}' was begun with another recipe ({'; '.join(differing[:6])}); take another name, "
            f"or say that this is meant with --resume.allow={keys}"
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
            f"name: '{folder}' has checkpoints but no {RECIPE}, so nobody knows how they were trained; bring it back, or take "
            f"another name"
        )
    return tree if fixed is None else resume_rules.joined(resume_rules.part_of(tree, free=True), fixed)


def _fixed_keys(folder: Path) -> dict[str, Any] | None:
    """The record in the newest checkpoint of this run that has one. Damage is looked for later, when the checkpoint is opened."""
    own = run_id(folder)
    for step in reversed(checkpoint_steps(folder)):
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            state = checkpoint_state(checkpoint_folder(folder, step))
            if own in (None, state["run"]):
                return dict(state["recipe"])
    return None


def open_folder(folder: Path, recipe: Recipe, num_ranks: int, saved: Checkpoint | None = None) -> str:
    """Writes recipe, environment and the id of the run, and returns the id. The first rank calls."""
    folder.mkdir(parents=True, exist_ok=True)
    record = _record(folder, saved)
    write_whole(folder / RUN, (json.dumps({**stamp(RUN_FORMAT), **record}, indent=1) + "\n").encode())
    write_whole(folder / RECIPE, config.text(recipe).encode())
    write_whole(folder / ENVIRONMENT, (json.dumps(environment(num_ranks), indent=1) + "\n").encode())
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    for name in (DONE, PREEMPTED, STOP):  # last: what fails above, as on a full disk, leaves a run that is done as it was
        (folder / name).unlink(missing_ok=True)
    return record["id"]


def _record(folder: Path, saved: Checkpoint | None) -> dict[str, Any]:
    """What run.json says. A run begins with an id; one of 0.2.0 gets its id when it is continued."""
    if saved is None:
        return {"id": secrets.token_hex(16), "unnamed_until": 0}
    if (folder / RUN).exists():
        return run_record(folder)
    stated = saved.state.get("run")
    return {"id": stated or secrets.token_hex(16), "unnamed_until": 0 if stated else saved.step}


def drop_later(folder: Path, saved: Checkpoint | None) -> None:
    """Removes the records and sample images of steps after a checkpoint, or all. The first rank calls."""
    step = saved.step if saved else 0
    validated = not saved or saved.state["validated"]
    lists = (path for name in (TRACE, SUBSTITUTED) for path in sorted((folder / name).glob("rank-*.jsonl")))
    for path in (folder / METRICS, *lists):
        drop_later_rows(path, step, validated)
    drop_later_snapshots(folder, step)
    for path in (folder / SAMPLES).glob("*.png"):
        if path.stem.isdecimal() and int(path.stem) > step:
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


def drop_later_rows(path: Path, step: int, validated: bool = True) -> None:
    """Removes the rows of steps after a checkpoint, and lines that are no rows, such as an incomplete last one; where the
    checkpoint was saved before its validation, also the row of that.

    Reads line by line, because a long run has millions. Where all lines to remove are at the end the file is cut, which needs no
    space on the disk.
    """
    if not path.is_file():
        return
    stays = partial(_stays, step=step, validated=validated)
    end = 0  # of the rows that stay and have no other line before them
    with open(path, "rb+") as file:
        lines = iter(file)
        for line in lines:
            if not stays(line):
                break
            end += len(line)
        if not any(stays(line) for line in lines):
            file.truncate(end)
            _end_last_line(file)
            return
    _rewrite(path, stays)


def _end_last_line(file: IO[bytes]) -> None:
    """A crash can lose the end of a line alone."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _rewrite(path: Path, stays: Callable[[bytes], bool]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(path, "rb") as source, open(temporary, "wb") as target:
            target.writelines(line.rstrip(b"\n") + b"\n" for line in source if stays(line))
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _stays(line: bytes, step: int, validated: bool) -> bool:
    try:
        row = json.loads(line)
        repeated = not validated and row["step"] == step and any(key.startswith("validation/") for key in row)
        return float(row["step"]) <= step and not repeated
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return False
