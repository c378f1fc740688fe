"""The equality test as a tool: the same few steps of a recipe in one process, under DDP and under ZeRO, compared.

Weights are compared after steps of SGD, because Adam divides by the size of a gradient and so turns rounding near 0 into whole
steps; losses also with the recipe's own optimizer. Every launch is a real one, with ranks on the CPU.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sr_dist.core import config, plugins
from sr_dist.core.errors import UserError, first_line
from sr_dist.core.files import write_json
from sr_dist.core.launch_env import Launch
from sr_dist.core.plugins import PACKAGES
from sr_dist.data import data_checks
from sr_dist.recipe import checks, shipped
from sr_dist.recipe.sections import Recipe
from sr_dist.tools.made_data import make_shards
from sr_dist.tools.prove_results import Result, distance, loss_difference, parameters, relative_distance, result_of
from sr_dist.tools.prove_trainings import FAULTS, NOT_FROZEN, NOT_REDUCED, Job
from sr_dist.tools.step_inputs import without_published_weights
from sr_dist.training.needed_files import find_weights

ONE = "one process"
STAGES = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}
STEPS, HALF, MANY = 4, 2, 2  # steps of a training, those before it is continued, micro-batches
CROPS = {3: 48, 8: 64}  # by scale, of HR; 32 otherwise
IMAGES, MARGIN = 24, 8  # made images, and by how much they are larger than a crop
VISIBLE = 100  # a planted fault is this many times further away than rounding
RECORD = "prove.json"
EQUAL, UNEQUAL, BY_DESIGN, REFUSED, FAILED, SEEN, UNSEEN = (
    "equal",
    "DIFFERENT",
    "by design",
    "refused",
    "FAILED",
    "seen",
    "NOT SEEN",
)
WRONG = (UNEQUAL, FAILED, UNSEEN)
TOGETHER = "another training: a loss depends on which images share a micro-batch"
DRAWN = "random numbers inside a step depend on the rank and the micro-batch: set dropout to 0"
UNSEEDED = (
    "random numbers that no seed gives (Python's random, NumPy, os.urandom): the same images have other losses each time; draw "
    "them with torch"
)


@dataclass(frozen=True)
class Request:
    recipe: str
    overrides: Mapping[str, str]
    backends: Sequence[str]
    ranks: int
    limit: float
    folder: Path


@dataclass(frozen=True)
class Row:
    """How far one launch is from one process, or a planted fault from the training without it."""

    name: str
    verdict: str
    weights: float | None = None  # relative to how far the weights moved
    losses: float | None = None  # relative to the largest value of the term
    note: str = ""


@dataclass
class Trainings:
    """The trainings of one launch, by name."""

    backend: str
    folder: Path
    jobs: list[Job] = field(default_factory=list)
    error: str | None = None

    def run(self, name: str) -> Path:
        return self.folder / name

    def add(self, name: str, recipe: str, options: Mapping[str, str], **more: Any) -> None:
        own = {"name": name, "runs": str(self.folder)}
        self.jobs.append(Job(recipe, {**options, **own}, **more))


def prove(request: Request) -> int:
    """Prints the table and returns the exit code."""
    options = without_files(request, options_of(request))
    recipe = checks.complete(data_checks.load(request.recipe, options))
    find_weights(recipe)
    can_accumulate = refusal_of_accumulation(request, options)
    micro_batches = 1 if can_accumulate else MANY
    checks.check_batch(recipe.model_copy(update={"accumulate": micro_batches}), request.ranks)
    print(heading(recipe, request), flush=True)
    reference = trainings(request, recipe, options, ONE, can_accumulate is None)
    launch(reference, request.ranks)
    if reference.error:
        raise UserError(f"RECIPE: it does not train in one process: {reference.error.removeprefix('error: ')}")
    table = [*of_reference(reference, request.limit), *_accumulation_refused(can_accumulate)]
    for backend in request.backends:
        table += prove_backend(request, recipe, options, backend, reference, can_accumulate is None)
    print(text_of(table, request.limit), flush=True)
    write_json(request.folder / RECORD, {"recipe": recipe.name, "limit": request.limit, "rows": [asdict(row) for row in table]})
    return 1 if any(row.verdict in WRONG for row in table) else 0


def prove_backend(
    request: Request, recipe: Recipe, options: Mapping[str, str], backend: str, reference: Trainings, accumulates: bool
) -> list[Row]:
    name = f"{backend}, {request.ranks} ranks"
    if reason := refusal(recipe, backend, request.ranks):
        return [Row(name, REFUSED, note=reason)]
    own = trainings(request, recipe, options, backend, accumulates)
    launch(own, request.ranks)
    if own.error:
        return [Row(name, FAILED, note=own.error)]
    return [*of_backend(own, reference, name, request.limit), *of_faults(own, reference, request.limit)]


# -------------------------------------------------------------------------------------------------------------- trainings


def options_of(request: Request) -> dict[str, str]:
    """Overrides that make a recipe short, small and silent. What the user says comes after them."""
    stated = dict(request.overrides)
    for key in ("name", "runs", "accumulate"):
        if key in stated:
            raise UserError(f"{key}: prove sets it itself; leave it out")
    options = {
        "steps": str(STEPS), "data.batch": str(request.ranks * MANY * 2 - 1), "data.workers": "0", "data.validation": "none",
        "log_every": "1", "save_every": "none", "validate_every": "none", "keep": "{last: 3}", "log.wandb": "off",
        "schedule": "{name: constant}", "compile": "false", "precision": "no", "accumulate": "1",
    }  # fmt: skip
    tree = config.read(shipped.locate(request.recipe))
    options |= {f"init.{key}": "none" for key in ("generator", "discriminator", "classifier") if f"init.{key}" not in stated}
    if _auto(tree, stated):
        del options["init.generator"]
    options |= small_images(request)
    if "data.train" not in stated:
        options |= {"data.train": str(request.folder / "data"), "data.select": "{}", "data.balance": "{}"}
    options |= stated
    if "data.train" not in stated:
        make_data(request, options)
    return options


def without_files(request: Request, options: dict[str, str]) -> dict[str, str]:
    """Content terms have random weights in place of published ones: a step is the same or not with any weights."""
    recipe = checks.complete(data_checks.load(request.recipe, options))
    random = without_published_weights(recipe)
    if random == recipe:
        return options
    own = {key: value for key, value in options.items() if not key.startswith("objective.content")}
    return {**own, "objective.content": json.dumps(random.objective.options["content"])}


def _auto(tree: Mapping[str, Any], stated: Mapping[str, str]) -> bool:
    return stated.get("generator", tree.get("generator")) == "auto"


def small_images(request: Request) -> dict[str, str]:
    """The crop, and the discriminator's where it has one of its own. A classifier keeps that of its recipe."""
    recipe = checks.read_recipe(request.recipe, request.overrides)
    if recipe.classifier or (recipe.data.crop is None and "data.crop" in request.overrides):
        return {}
    crop = min(CROPS.get(recipe.scale, 32), recipe.data.crop or math.inf)
    options = {"data.crop": request.overrides.get("data.crop", str(crop))}
    if recipe.discriminator:
        _, path = plugins.locate(PACKAGES["discriminator"], recipe.discriminator.name, "discriminator.name")
        if "crop" in (plugins.options(path) or ()):
            options["discriminator.crop"] = options["data.crop"]
    return options


def make_data(request: Request, options: Mapping[str, str]) -> None:
    recipe = checks.read_recipe(request.recipe, options)
    labels = config.parse_list(recipe.objective.options.get("labels", "class"))
    side = (recipe.data.crop or CROPS.get(recipe.scale, 32)) + MARGIN * recipe.scale
    make_shards(Path(options["data.train"]), IMAGES, side, [label for label in labels if label != "class"])


def trainings(
    request: Request, recipe: Recipe, options: Mapping[str, str], backend: str, accumulates: bool
) -> Trainings:  # fmt: skip
    """The jobs of one launch. Those with SGD take their rates from the first one of one process."""
    reference = request.folder / ONE.replace(" ", "_")
    result = Trainings(backend, request.folder / backend.replace(" ", "_"))
    many = {**options, "accumulate": str(MANY)}
    if backend == ONE:
        still = {"optimizer": "{name: sgd, learning_rate: 1e-30}", "discriminator_optimizer": "none", "steps": "1"}
        result.add("start", request.recipe, {**options, **still}, divides=True)
    start = str(reference / "start")
    result.add("sgd", request.recipe, options, measured=start)
    if accumulates:
        result.add("sgd_many", request.recipe, many, measured=start)
    result.add("own", request.recipe, options)
    result.add("half", request.recipe, {**options, "steps": str(HALF)})
    result.add("continued", request.recipe, options, continues=str(result.run("half")))
    if backend != ONE:
        result.add("moved", request.recipe, options, continues=str(reference / "half"))
    for fault in faults_of(recipe, backend, request.backends):
        result.add(fault.replace(" ", "_"), request.recipe, many if accumulates else options, measured=start, fault=fault)
    return result


def faults_of(recipe: Recipe, backend: str, backends: Sequence[str]) -> list[str]:
    """The faults that are planted under this launch: under DDP, or in one process where DDP is not asked for."""
    if backend != ("ddp" if "ddp" in backends else ONE):
        return []
    missing = {NOT_FROZEN: recipe.discriminator is None, NOT_REDUCED: backend == ONE}
    return [fault for fault in FAULTS if not missing.get(fault)]


def refusal_of_accumulation(request: Request, options: Mapping[str, str]) -> str | None:
    """Why this recipe cannot accumulate, such as a mean over all images of a step."""
    try:
        checks.complete(data_checks.load(request.recipe, {**options, "accumulate": str(MANY)}))
    except UserError as reason:
        return str(reason)
    return None


def refusal(recipe: Recipe, backend: str, ranks: int) -> str | None:
    """Why a backend cannot train this recipe."""
    stage = STAGES[backend]
    if stage and importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed"
    try:
        checks.check_launch(recipe, Launch("deepspeed" if stage else "ddp", stage, ranks))
    except UserError as reason:
        return str(reason)
    return None


# --------------------------------------------------------------------------------------------------------------- launches


def launch(trainings: Trainings, ranks: int) -> None:
    """Runs the jobs as `accelerate launch` does, on the CPU. The output goes to a log beside the runs."""
    trainings.folder.mkdir(parents=True, exist_ok=True)
    file, log = trainings.folder / "jobs.json", trainings.folder / "log.txt"
    file.write_text(json.dumps([asdict(job) for job in trainings.jobs]))
    with open(log, "wb") as output:
        line = command(trainings.backend, ranks, str(file))
        code = subprocess.run(line, env=environment(trainings.backend), stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        trainings.error = problem_in(log.read_text(errors="replace")) or f"exit code {code}"


def command(backend: str, ranks: int, file: str) -> list[str]:
    """In one process, under DDP or ZeRO, or with a configuration of accelerate."""
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(ranks), "--num_machines", "1"]
    launcher += ["--main_process_port", "0"]
    if backend == ONE:
        launcher = []
    elif backend not in STAGES:
        launcher += ["--config_file", backend]
    elif stage := STAGES[backend]:
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--use_deepspeed", "--zero_stage", str(stage)]
    else:
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu"]
    return [sys.executable, *launcher, "-m", "sr_dist.tools.prove_trainings", file]


def environment(backend: str) -> dict[str, str]:
    """One thread per rank and no GPU."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "WANDB_"))}
    fixed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if STAGES.get(backend, 1) and backend != ONE:
        del fixed["ACCELERATE_USE_CPU"]
        fixed["DS_ACCELERATOR"] = "cpu"
    return {**inherited, **fixed}


def problem_in(log: str) -> str | None:
    """The line that says what was wrong: a user's mistake, or the last line of the first traceback."""
    lines = [line.removeprefix("[rank0]: ") for line in log.splitlines()]
    for line in lines:
        if line.startswith("error: "):
            return line
    begin = next((number for number, line in enumerate(lines) if line.startswith("Traceback")), None)
    ends = (line for line in lines[begin + 1 :] if line and not line.startswith((" ", "["))) if begin is not None else iter(())
    return next(map(first_line, map(Exception, ends)), None)


# ------------------------------------------------------------------------------------------------------------- comparison


def of_reference(reference: Trainings, limit: float) -> list[Row]:
    """What one process shows: continuing, accumulation, faults."""
    result = result_of(reference.run("start"))
    table = [continued(reference, f"{ONE}, continued")]
    if reference.run("sgd_many").exists():
        row = compared(f"{ONE}, {MANY} micro-batches", reference.run("sgd_many"), reference, "sgd", limit)
        if result.shared and row.verdict == UNEQUAL:
            row = replace(row, verdict=BY_DESIGN, note=TOGETHER)
        table.append(row)
    if result.unseeded:
        explain(table, UNSEEDED)
    elif result_of(reference.run("sgd")).drawn:
        explain(table, DRAWN)
    return [*table, *of_faults(reference, reference, limit)]


def explain(table: list[Row], reason: str) -> None:
    """Adds a reason to the first row that is different."""
    number = next((number for number, row in enumerate(table) if row.verdict == UNEQUAL), None)
    if number is not None:
        note = table[number].note
        table[number] = replace(table[number], note=f"{note}; {reason}" if note else reason)


def of_backend(own: Trainings, reference: Trainings, name: str, limit: float) -> list[Row]:
    row = compared(name, own.run("sgd"), reference, "sgd", limit)
    row = verdict(replace(row, losses=_most(row.losses, loss_difference(own.run("own"), reference.run("own")))), limit)
    table = [row, *([] if not own.run("sgd_many").exists() else [accumulated(own, reference, name, limit)])]
    table += [continued(own, f"{name}, continued"), moved(own, reference, f"{name}, from one process", limit)]
    if result_of(reference.run("start")).unseeded:
        explain(table, UNSEEDED)
    elif any(result_of(own.run(run)).drawn for run in ("sgd", "own")):
        explain(table, DRAWN)
    return table


def accumulated(own: Trainings, reference: Trainings, name: str, limit: float) -> Row:
    return compared(f"{name}, {MANY} micro-batches", own.run("sgd_many"), reference, "sgd_many", limit)


def continued(own: Trainings, name: str) -> Row:
    """A training that was stopped and continued has the same bits."""
    weights = distance(parameters(own.run("continued")), parameters(own.run("own")))
    losses = loss_difference(own.run("continued"), own.run("own"))
    return with_result(Row(name, EQUAL if weights == losses == 0 else UNEQUAL, weights, losses), own.run("continued"))


def moved(own: Trainings, reference: Trainings, name: str, limit: float) -> Row:
    """A checkpoint of one process, continued here: its state has the same bits, and the losses after it are equal."""
    row = verdict(Row(name, EQUAL, losses=loss_difference(own.run("moved"), reference.run("own"))), limit)
    return with_result(row, own.run("moved"))


def with_result(row: Row, run: Path) -> Row:
    """What the training says of itself."""
    result: Result = result_of(run)
    if result.state:
        return replace(row, verdict=UNEQUAL, note=f"state that was not loaded as it was saved: {_some(result.state)}")
    if result.changed:
        return replace(row, verdict=UNEQUAL, note=f"a frozen network of the losses has changed: {_some(result.changed)}")
    return row


def _some(names: Sequence[str]) -> str:
    return f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def compared(name: str, run: Path, reference: Trainings, of: str, limit: float) -> Row:
    """Weights and losses of a training beside that of one process."""
    start, expected, actual = (parameters(run) for run in (reference.run("start"), reference.run(of), run))
    worst, tensor = relative_distance(actual, expected, start)
    row = verdict(Row(name, EQUAL, worst, loss_difference(run, reference.run(of))), limit)
    return replace(row, note=f"furthest: {tensor}" if row.verdict == UNEQUAL else "")


def verdict(row: Row, limit: float) -> Row:
    within = all(value is None or value <= limit for value in (row.weights, row.losses))  # NaN is not
    return replace(row, verdict=EQUAL if within else UNEQUAL)


def of_faults(own: Trainings, reference: Trainings, limit: float) -> list[Row]:
    """Planted faults beside the same training without them. Each must be seen."""
    base, start = own.run("sgd_many" if own.run("sgd_many").exists() else "sgd"), parameters(reference.run("start"))
    rounding = relative_distance(parameters(base), parameters(reference.run(base.name)), start)[0]
    table = []
    for job in own.jobs:
        if job.fault:
            run = own.run(job.options["name"])
            share = relative_distance(parameters(run), parameters(base), start)[0]
            visible = VISIBLE * rounding if rounding <= limit else limit
            row = Row(
                f"planted: {job.fault}", UNSEEN if share <= max(limit, visible) else SEEN, share, loss_difference(run, base)
            )
            table.append(row)
    return table


def _most(*values: float | None) -> float:
    numbers = [value for value in values if value is not None]
    return math.nan if any(map(math.isnan, numbers)) else max(numbers)


# ------------------------------------------------------------------------------------------------------------------- text


def _accumulation_refused(reason: str | None) -> list[Row]:
    return [Row(f"{MANY} micro-batches", REFUSED, note=reason)] if reason else []


def heading(recipe: Recipe, request: Request) -> str:
    networks = [
        f"{phase} {part.name}" for phase in ("generator", "discriminator", "classifier") if (part := getattr(recipe, phase))
    ]
    data, side = recipe.data, f"of {recipe.data.crop} pixels" if recipe.data.crop else "whole"
    return (
        f"{recipe.name}: {', '.join(networks)}, objective {recipe.objective.name}; {recipe.steps} steps of {data.batch} images "
        f"({side}), {'made' if 'data.train' not in request.overrides else data.train}, on {request.ranks} CPU ranks"
    )


def text_of(table: Sequence[Row], limit: float) -> str:
    width = max(len(row.name) for row in table)
    lines = [f"{'':{width}}  {'weights':>9}  {'losses':>9}"]
    lines += [f"{row.name:{width}}  {_number(row.weights):>9}  {_number(row.losses):>9}  {_words(row)}" for row in table]
    wrong = [row for row in table if row.verdict in WRONG]
    lines.append(
        f"weights: the largest difference from one process after the last step of SGD, relative to how far the tensor moved; "
        f"losses: relative to the term's largest value, also with the recipe's optimizer; limit {limit:g}"
    )
    lines.append(
        f"{len(wrong)} of {len(table)} rows are wrong" if wrong else "every step is the same, and every planted fault was seen"
    )
    return "\n".join(lines)


def _words(row: Row) -> str:
    return f"{row.verdict}: {row.note}" if row.note else row.verdict


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"
