"""The names of the files in a run folder."""

from __future__ import annotations

import re
from pathlib import Path

RECIPE, METRICS, ENVIRONMENT = "recipe.yaml", "metrics.jsonl", "environment.json"
DONE, PREEMPTED, STOP = "DONE", "PREEMPTED", "STOP"  # markers


def is_run(path: Path) -> bool:
    return (path / RECIPE).is_file()


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:07d}"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, oldest first. Unfinished checkpoints have other names and do not count."""
    folder = run / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if re.fullmatch(r"\d{7,}", p.name)) if folder.is_dir() else []
