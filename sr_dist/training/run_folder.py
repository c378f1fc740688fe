"""`runs/NAME/`: one process group at a time, one recipe for good, and files that agree with the surviving weights."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from sr_dist.core import config
from sr_dist.core.errors import UserError
from sr_dist.core.files import InUse, claimed, write_whole
from sr_dist.recipe import resume_rules
from sr_dist.recipe.sections import Recipe
from sr_dist.training import checkpoint

PACKAGES = ("sr_dist", "torch", "torchvision", "accelerate", "deepspeed", "webdataset", "numpy", "pillow", "safetensors")


def claim(folder: Path) -> IO[str] | None:
    """Locks the run folder for the first rank's process, until it ends in whatever way. Before any process group."""
    if int(os.environ.get("RANK", "0")) != 0:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return claimed(folder / ".lock")
    except OSError as problem:
        raise UserError(f"name: the run folder '{folder}' cannot be written: {problem.strerror}") from None
    except InUse as by:
        raise UserError(f"name: '{folder}' is in use by {by}; wait for it, or take another name") from None


def check_recipe(folder: Path, now: Recipe) -> None:
    """A run folder belongs to one recipe: what may not change must be what it was."""
    path = folder / "recipe.yaml"
    if not path.is_file() or not checkpoint.steps(folder / "checkpoints"):
        return  # nothing was trained here yet
    resume_rules.check_allowed(now)
    if int(os.environ.get("RANK", "0")) == 0:
        for key, line in resume_rules.differences(config.read(path), now):
            if key in resume_rules.WARNED:
                print(f"note: {line}; the numbers will differ a little from here on", flush=True)
    differing = resume_rules.changed(config.read(path), now)
    if differing:
        keys = ",".join(line.split(":")[0] for line in differing)
        raise UserError(
            f"name: '{folder}' was begun with another recipe ({'; '.join(differing[:6])}); take another name, "
            f"or say that this is meant with --resume.allow={keys}"
        )


def open_folder(folder: Path, now: Recipe, world: int) -> None:
    """Writes what the run is (rank 0)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("DONE", "PREEMPTED", "STOP"):
        (folder / name).unlink(missing_ok=True)
    write_whole(folder / "recipe.yaml", config.text(now).encode())
    write_whole(folder / "environment.json", (json.dumps(environment(world), indent=1) + "\n").encode())


def environment(world: int) -> dict[str, Any]:
    import torch

    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "host": platform.node(),
        "ranks": world,
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
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def mark(folder: Path, name: str, text: str) -> None:
    """The marker that scripts wait for: DONE or PREEMPTED."""
    write_whole(folder / name, (text + "\n").encode())


def drop_later_rows(path: Path, step: int) -> None:
    """Removes the rows of steps after a checkpoint, and a last line that was cut short."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    write_whole(path, "".join(f"{line}\n" for line in kept).encode())


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
