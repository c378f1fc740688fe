"""Runs steps of a run again from a copy of a checkpoint, and compares the logged numbers with its metrics.jsonl."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sr_dist.core import launch_env, ranks
from sr_dist.core.errors import UserError
from sr_dist.core.files import write_json
from sr_dist.core.json_text import parse_json, read_json
from sr_dist.core.run_layout import (
    CHECKPOINTS,
    ENVIRONMENT,
    LOCK,
    METRICS,
    REPLAY_RESULT,
    RUN,
    checkpoint_folder,
    checkpoint_state,
    checkpoint_steps,
    parent_of,
    rollbacks_of,
)
from sr_dist.recipe import checks, resume_rules
from sr_dist.recipe.sections import Recipe
from sr_dist.tools.probes import Probes, check_probes
from sr_dist.training import checkpoint, run_folder
from sr_dist.training.build import set_up
from sr_dist.training.loop import advance, report, validate
from sr_dist.training.needed_files import find_weights
from sr_dist.training.run import Run, close

UNCOMPARED = frozenset({"images_per_second", "data_wait", "step_time_spread", "memory_gb", "tflops", "mfu"})  # times and memory
TOLERANCE = 1e-4  # relative, where sums over ranks have another order
Records = dict[int, dict[str, Any]]  # step -> column -> value


@dataclass(frozen=True)
class Request:
    run: Path
    first: int
    last: int
    probes: Sequence[str] = ()


class Difference(NamedTuple):
    step: int
    column: str
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        return f"step {self.step}, {self.column}: {METRICS} has {self.recorded}, the replay has {self.replayed}"


def replay(recipe: Recipe, request: Request) -> int:
    """Replays in the folder of `recipe`, which is the run's under another name. Returns the exit code. All ranks must call."""
    recipe = checks.complete(recipe)
    checks.check_launch(recipe, launch_env.launch(bool(recipe.compile)))
    check_probes(request.probes, recipe)
    if recipe.data.reader == "webdataset":
        raise UserError("RUN: it was trained with data.reader=webdataset, whose batches cannot be repeated")
    recorded = records(request.run / METRICS, request.first, request.last)
    check_steps(recipe, request, recorded)
    run_folder.check_recipe(request.run, recipe)
    find_weights(recipe)
    start = first_checkpoint(request)
    if start is not None and (problem := checkpoint.damage(checkpoint_folder(request.run, start))):
        if launch_env.prints_mistakes():
            print(f"not replayed: the checkpoint of step {start} is not as it was saved: {problem}", flush=True)
        return 1
    check_folder(recipe.folder)
    lock = run_folder.claim(recipe.folder)
    prepare(request.run, recipe.folder, start)
    run = set_up(recipe)
    run.state["rollbacks"] = rollbacks_of(request.run)
    try:
        code = _replay(run, request, recorded, start)
    except Exception as caught:
        run.log.close(code=1)
        failure = run.loader.describe_failure(caught)
        raise failure from caught if failure is not caught else None
    finally:
        run.loader.close()
    close(run, code)
    if lock:
        lock.close()
    return code


def check_steps(recipe: Recipe, request: Request, recorded: Records) -> None:
    """Refuses steps that the run has not taken. It may have taken those after its last row that have none themselves."""
    if not recorded:
        raise UserError(f"from: {METRICS} of '{request.run}' has no row of the steps {request.first} to {request.last}")
    last = max(records(request.run / METRICS, request.first, sys.maxsize))
    if request.last > min(recipe.steps, last + recipe.log_every - 1):
        raise UserError(f"to: {request.last}, but the last step in {METRICS} of '{request.run}' is {last}")


def _replay(run: Run, request: Request, recorded: Records, start: int | None) -> int:
    same_ranks = ranks.from_first(lambda: _say_differences(run, request.run, start))
    probes = Probes(run, request.probes)
    if not take_steps(run, request, recorded, probes):
        run.log.info(f"stopped after step {run.step}; nothing was compared")
        return 1
    probes.write()
    return ranks.from_first(lambda: _conclude(run, request, recorded, None if same_ranks else TOLERANCE))


def take_steps(run: Run, request: Request, recorded: Records, probes: Probes) -> bool:
    """What `fit` does, without saving. Returns False if it was asked to stop before the last step. All ranks must call."""
    for step, batches in run.clock.steps(run.loader.steps(run.step + 1)):
        if step >= request.first:
            probes.look(step, batches)
        result = advance(run, step, batches)
        run.log.advance(step)
        if run.stop.agreed():
            return False
        for batch in batches:
            run.trace.write(step, batch.keys)
        columns = recorded.get(step, {})
        if "images_per_second" in columns:
            report(run, result)
        if any(column.startswith("validation/") for column in columns):
            with run.clock.paused():
                validate(run)
        if step == request.last:
            return True
    return run.step >= request.last


def first_checkpoint(request: Request) -> int | None:
    """The newest step before the replayed ones that has a checkpoint; None where the run began without one."""
    steps = [step for step in checkpoint_steps(request.run) if step < request.first]
    parent = parent_of(request.run)
    if not steps and parent:
        raise UserError(
            f"from: '{request.run}' is a fork and begins after step {parent['step']}, but it has no checkpoint before step "
            f"{request.first}"
        )
    return max(steps, default=None)


def check_folder(folder: Path) -> None:
    """Refuses a folder that has other files than those of an earlier replay."""
    if launch_env.rank() == 0 and folder.exists() and set(os.listdir(folder)) - {LOCK} and not (folder / REPLAY_RESULT).is_file():
        raise UserError(f"out: '{folder}' is not empty and not the folder of a replay; name another folder")


def prepare(run: Path, folder: Path, start: int | None) -> None:
    """Replaces an earlier replay in the locked folder by a copy of the checkpoint. Called before the ranks meet; the first rank
    works."""
    if launch_env.rank() != 0:
        return
    with run_folder.writing(folder):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        write_json(folder / REPLAY_RESULT, {"run": str(run), "finished": False})
        (folder / CHECKPOINTS).mkdir()
        if start is not None:
            shutil.copytree(checkpoint_folder(run, start), checkpoint_folder(folder, start))
            if (run / RUN).exists():
                shutil.copyfile(run / RUN, folder / RUN)


# ---------------------------------------------------------------------------------------------------------- comparison


def records(path: Path, first: int, last: int) -> Records:
    """The logged numbers of these steps; the row of a training step and that of its validation together."""
    result: Records = {}
    with open(path, "rb") as file:
        for line in file:
            try:
                row = parse_json(line)
                step = int(row["step"])
            except (ValueError, LookupError, TypeError):
                continue  # such as an incomplete last line
            if first <= step <= last:
                result.setdefault(step, {}).update(row)
    return result


def differences(recorded: Records, replayed: Records, tolerance: float | None = None) -> list[Difference]:
    """Every number that differs, in the order of steps. Without a tolerance numbers must be equal to the last bit."""
    return [
        Difference(step, column, value, other)
        for step, row in sorted(recorded.items())
        for column, value in row.items()
        if column not in UNCOMPARED and not _equal(value, other := replayed.get(step, {}).get(column, "nothing"), tolerance)
    ]


def _equal(one: Any, other: Any, tolerance: float | None) -> bool:
    if one == other or tolerance is None:
        return bool(one == other)
    if not all(isinstance(value, int | float) for value in (one, other)):
        return False
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance * 1e-3)


def _conclude(run: Run, request: Request, recorded: Records, tolerance: float | None) -> int:
    unequal = differences(recorded, records(run.recipe.folder / METRICS, request.first, request.last), tolerance)
    count = sum(column not in UNCOMPARED for row in recorded.values() for column in row)
    steps = f"steps {request.first} to {request.last}"
    if unequal:
        text = f"different: {len(unequal)} of {count} logged numbers of {steps}; the first is {unequal[0]}"
    elif tolerance is None:
        text = f"identical: {count} logged numbers of {steps} in {len(recorded)} rows"
    else:
        text = f"equal to a relative difference of {tolerance:g}: {count} logged numbers of {steps} in {len(recorded)} rows"
    run.log.info(text)
    result = {"run": str(request.run), "finished": True, "from": request.first, "to": request.last, "compared": count}
    equality = {"tolerance": tolerance, "differences": [difference._asdict() for difference in unequal]}
    write_json(run.recipe.folder / REPLAY_RESULT, result | equality)
    return 1 if unequal else 0


def _say_differences(run: Run, original: Path, start: int | None) -> bool:
    """Logs what is not as when the run was trained. Returns whether the number of ranks is. The first rank calls."""
    before = _environment(original)
    now = run_folder.environment(ranks.size())
    state = checkpoint_state(checkpoint_folder(original, start)) if start is not None else {}
    run.log.info(f"replaying from {f'the checkpoint of step {start}' if start else 'step 1'} in '{run.recipe.folder}'")
    for line in (*changed_environment(before, now), *changed_state(run, state)):
        run.log.info(f"note: {line}; numbers may differ")
    return bool(before.get("ranks", now["ranks"]) == now["ranks"])


def _environment(folder: Path) -> Mapping[str, Any]:
    try:
        return dict(read_json(folder / ENVIRONMENT))
    except (OSError, ValueError, TypeError):
        return {}


def changed_environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Versions, ranks, threads and GPUs that are others than at the newest start of the run."""
    packages = before.get("packages", {})
    old = {**packages, **{key: before.get(key) for key in ("python", "ranks", "threads", "gpus", "commit") if key in before}}
    new = {**now["packages"], **now}
    return [f"{name} was {value} and is {new.get(name)}" for name, value in old.items() if new.get(name) != value]


def changed_state(run: Run, state: Mapping[str, Any]) -> list[str]:
    """Data and keys of the recipe that are others than in the checkpoint."""
    lines = []
    if state.get("manifest", run.state["manifest"]) != run.state["manifest"]:
        lines.append("data.train holds other shards than those that the run was trained on")
    if "recipe" in state:
        free = resume_rules.part_of(run.recipe.model_dump(mode="json"), free=True)
        changes = resume_rules.differences(resume_rules.joined(free, state["recipe"]), run.recipe)
        lines += [changes[key] for key in resume_rules.forbidden_changes(changes, ())]
    return lines
