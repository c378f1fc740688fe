"""The names of the files in a run folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sr_dist.core.formats import refuse_unknown

RECIPE, METRICS, ENVIRONMENT = "recipe.yaml", "metrics.jsonl", "environment.json"
LOG, WANDB_ID, RUN_ID = "log.txt", "wandb_id", "run.json"
TRACE, SUBSTITUTED, FETCHED, SAMPLES, CHECKPOINTS = "trace", "substituted", "fetched", "samples", "checkpoints"  # folders
STATE, MANIFEST = "state.json", "manifest.json"  # of a checkpoint
CHECKPOINT_FORMAT = 1  # of both; 0.1.0 wrote none
DONE, PREEMPTED, STOP = "DONE", "PREEMPTED", "STOP"  # markers


def is_run(path: Path) -> bool:
    return (path / RECIPE).is_file()


def run_id(run: Path) -> str | None:
    """The identity of a run, from its `run.json`; None for a run of an earlier version."""
    try:
        return json.loads((run / RUN_ID).read_text())["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"{step:07d}"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, oldest first. Unfinished checkpoints have other names and do not count."""
    folder = run / CHECKPOINTS
    return sorted(int(p.name) for p in folder.glob("*") if re.fullmatch(r"\d{7,}", p.name)) if folder.is_dir() else []


def checkpoint_state(folder: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint. Another format is refused."""
    state = json.loads((folder / STATE).read_text())
    refuse_unknown(state, CHECKPOINT_FORMAT, folder, "name")
    return state
