"""`runs/NAME/`: one process group at a time, one recipe, and files that agree with the surviving weights."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from sr_dist.core import config, launch_env
from sr_dist.core.errors import UserError
from sr_dist.core.files import InUse, lock_file, write_whole
from sr_dist.core.run_layout import DONE, ENVIRONMENT, PREEMPTED, RECIPE, STOP, checkpoint_steps
from sr_dist.core.version import __version__
from sr_dist.recipe import resume_rules
from sr_dist.recipe.sections import Recipe

LIBRARIES = ("torch", "torchvision", "accelerate", "deepspeed", "webdataset", "numpy", "pillow", "safetensors")


def claim(folder: Path) -> IO[str] | None:
    """Locks the run folder for the first rank's process until it ends. Called before any process group exists."""
    if launch_env.rank() != 0:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock_file(folder / ".lock")
    except OSError as problem:
        raise UserError(f"name: the run folder '{folder}' cannot be written: {problem.strerror}") from None
    except InUse as owner:
        raise UserError(f"name: '{folder}' is in use by {owner}; wait for it, or take another name") from None


def check_recipe(folder: Path, recipe: Recipe) -> None:
    """A run folder belongs to one recipe: keys that may not change must be as they were."""
    path = folder / RECIPE
    if not path.is_file() or not checkpoint_steps(folder):
        return  # nothing was trained yet
    resume_rules.check_allowed(recipe)
    if launch_env.rank() == 0:
        for key, line in resume_rules.differences(config.read(path), recipe):
            if key in resume_rules.WARNED:
                print(f"note: {line}; the numbers will differ a little from here on", flush=True)
    differing = resume_rules.forbidden_changes(config.read(path), recipe)
    if differing:
        keys = ",".join(line.split(":")[0] for line in differing)
        raise UserError(
            f"name: '{folder}' was begun with another recipe ({'; '.join(differing[:6])}); take another name, "
            f"or say that this is meant with --resume.allow={keys}"
        )


def open_folder(folder: Path, recipe: Recipe, num_ranks: int) -> None:
    """Writes recipe and environment. The first rank calls."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (DONE, PREEMPTED, STOP):
        (folder / name).unlink(missing_ok=True)
    write_whole(folder / RECIPE, config.text(recipe).encode())
    write_whole(folder / ENVIRONMENT, (json.dumps(environment(num_ranks), indent=1) + "\n").encode())


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
    write_whole(folder / name, (text + "\n").encode())


def drop_later_rows(path: Path, step: int) -> None:
    """Removes the rows of steps after a checkpoint, and an incomplete last line."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
