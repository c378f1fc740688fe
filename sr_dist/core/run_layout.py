"""A run folder: the names of its files, its id, and its checkpoints."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from sr_dist.core.errors import UserError, first_line
from sr_dist.core.files import write_json
from sr_dist.core.formats import refuse_unknown, stamp
from sr_dist.core.json_text import read_json

RECIPE, METRICS, ENVIRONMENT = "recipe.yaml", "metrics.jsonl", "environment.json"
INCIDENTS = "incidents.jsonl"  # failed attempts of SLURM's jobs
RUN, RUN_FORMAT = "run.json", 1  # the run's id; 0.2.0 wrote no such file
LOG, WANDB_ID, TENSORBOARD, LOCK = "log.txt", "wandb_id", "tensorboard", ".lock"
PROFILE, TRACE, SUBSTITUTED, FETCHED, SAMPLES, CHECKPOINTS = (
    "profile",
    "trace",
    "substituted",
    "fetched",
    "samples",
    "checkpoints",
)  # folders
STATE, MANIFEST = "state.json", "manifest.json"  # of a checkpoint
CHECKPOINT_FORMAT = 1  # of both; 0.1.0 wrote none
POST_HOC = "post_hoc"  # the folder of power-function averages, of runs with ema.post_hoc
COLLECTIVES = "nccl-rank-"  # with a rank: what NCCL's flight recorder writes
REPLAY, REPLAY_RESULT = "replay", "replay.json"  # the folder of replays, and the result of one
DONE, PREEMPTED, STOP = "DONE", "PREEMPTED", "STOP"  # markers


FILES = {  # every path of a run folder, with NAME, STEP, N for what differs
    "recipe.yaml": "the resolved recipe, defaults included",
    "run.json": "the id of the run, which its checkpoints share; digest of the recipe, versions, `parent` of a fork",
    "environment.json": "versions, commit, command and machine of the newest start",
    "log.txt": "the log, for people",
    "metrics.jsonl": "the record: a JSON object per line",
    "incidents.jsonl": "a line per failed attempt of a SLURM job: cause, node, rank, step, last lines, whether it was requeued",
    "checkpoints/STEP/": "everything of one step; it appears by rename, whole or not at all",
    "checkpoints/STEP/generator.ema.safetensors": "averaged weights (EMA), which other commands open; or `classifier.ema`",
    "checkpoints/STEP/NETWORK.safetensors": "the raw weights of the generator, the discriminator or the classifier",
    "checkpoints/STEP/NETWORK.optimizer.safetensors": "the state of its optimizer, by the names of its tensors",
    "checkpoints/STEP/NETWORK.power_ema.safetensors": "its two averages of `ema.post_hoc`",
    "checkpoints/STEP/state.json": "step, data position, best value, skipped updates, the part of the recipe that may not change",
    "checkpoints/STEP/manifest.json": "the size and the sha256 of each of these files",
    "post_hoc/STEP.safetensors": "the same of every `save_every` steps, for `sr_dist.curve`; pruning leaves them",
    "samples/STEP.png": "LR, bicubic, SR and HR of the first validation images",
    "samples/STEP/IMAGE.png": "restored validation images (`sample_images`); below a folder per set where there are several",
    "eval/": "reports",
    "curves/": "the images and the page of `sr_dist.plot`",
    "replay/A-B/": "steps that `sr_dist.replay` ran again: `replay.json`, its own `metrics.jsonl`, and `probes/`",
    "trace/rank-N.jsonl": "the keys of every micro-batch (`data.trace`)",
    "substituted/rank-N.jsonl": "unreadable samples and those that took their place (`data.on_corrupt: substitute`)",
    "fetched/node-N.jsonl": "every fetch of a remote shard",
    "profile/STEP-STEP.json.gz": "where these steps of the first rank spent their time (`--profile`), for ui.perfetto.dev",
    "oom-rank-N.pickle": "what was in the memory of a GPU when it was full, for pytorch.org/memory_viz",
    "nccl-rank-N": "the last collectives of a rank whose partners did not answer (NCCL's flight recorder)",
    "hang-rank-N.txt": "the stacks of a rank that made no progress (`hang_timeout`)",
    "tensorboard/": "events of TensorBoard (`log.trackers`)",
    "wandb/, wandb_id": "files of W&B, and the id of the run there",
    "DONE": "the run has reached its last step",
    "PREEMPTED": "the run was asked to stop, saved, and can be continued",
    ".lock, .alive/rank-N": "held by the process that works on the run; the last sign of life of each rank",
    "STOP": "made by you: all ranks finish the current step, save and stop",
}  # fmt: skip


def is_run(path: Path) -> bool:
    return (path / RECIPE).is_file()


def run_id(run: Path) -> str | None:
    """The 128 random bits that name a run, in its folder, its checkpoints and its reports. None for runs of sr_dist 0.2.0, and
    where no run is."""
    return str(run_record(run)["id"]) if (run / RUN).exists() else None


def run_record(run: Path) -> dict[str, Any]:
    """run.json: `id`, `unnamed_until` (the last step whose checkpoint may lack the id because 0.2.0 wrote it), and `parent`, the
    id and the step of the checkpoint from which the run was forked, or None."""
    path = run / RUN
    try:
        record = read_json(path)
        refuse_unknown(record, RUN_FORMAT, path, "name")
        parent = record.get("parent")
        parent = parent and {"id": str(parent["id"]), "step": int(parent["step"])}
        return {"id": str(record["id"]), "unnamed_until": int(record["unnamed_until"]), "parent": parent}
    except UserError:
        raise
    except OSError as problem:
        raise UserError(f"name: '{path}' cannot be read: {problem.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        raise UserError(
            f"name: '{path}' is damaged ({first_line(problem)}); remove it, and the run takes its id from its newest checkpoint"
        ) from None


def write_run_record(run: Path, identity: str, unnamed_until: int = 0, **more: Any) -> None:
    write_json(run / RUN, {**stamp(RUN_FORMAT), "id": identity, "unnamed_until": unnamed_until, **more})


def parent_of(run: Path) -> dict[str, Any] | None:
    """The id of the run from which this one was forked, and the step."""
    return run_record(run)["parent"] if (run / RUN).exists() else None


def parent_folder(run: Path) -> Path | None:
    """The folder of that run, if it is beside this one."""
    parent = parent_of(run)
    if parent is None:
        return None
    for path in sorted(run.absolute().parent.glob(f"*/{RUN}")):
        with suppress(UserError):  # of another run, that is damaged
            if run_id(path.parent) == parent["id"]:
                return path.parent
    return None


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"{step:07d}"


def checkpoint_of(file: Path) -> tuple[Path, int] | None:
    """The run and the step of the checkpoint that a file is in, also through symbolic links. None for other files."""
    folder = file.resolve().parent
    if folder.parent.name != CHECKPOINTS or not folder.name.isdigit():
        return None
    return folder.parent.parent, int(folder.name)


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, oldest first. Unfinished checkpoints have other names and do not count."""
    return sorted(int(name) for name in checkpoint_names(run) if re.fullmatch(r"\d{7,}", name))


def checkpoint_names(run: Path) -> list[str]:
    """The names in the folder of checkpoints. One that cannot be read is an error: it is not the same as an empty one."""
    folder = run / CHECKPOINTS
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as problem:
        raise UserError(f"name: '{folder}' cannot be read: {problem.strerror}") from None


def checkpoint_state(folder: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint. Another format is refused."""
    state = read_json(folder / STATE)
    refuse_unknown(state, CHECKPOINT_FORMAT, folder, "name")
    return state
