"""What a training will cost, computed before it waits in a queue: memory, operations, time, communication, data, jobs.

Nothing is measured and no GPU is needed. Memory is that of `bench step --memory`, operations are those of the log; GPUs, links
and rings are described in `gpus` and `communication`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sr_dist.core.errors import UserError
from sr_dist.data.format import Shards
from sr_dist.data.open_data import open_training_sets
from sr_dist.data.select import Portion, portion_of, portion_rows
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Data, Recipe
from sr_dist.tools import communication, memory, traffic
from sr_dist.tools.communication import Machine
from sr_dist.tools.gpus import GB, Gpu
from sr_dist.tools.step_inputs import counting, quiet, shapes_only, without_published_weights

EFFICIENCIES = (0.14, 0.30, 0.40)  # of the peak, where neither a share nor a speed is given: low, usual, high
BACKENDS = {"ddp": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}  # as the memory table calls them
NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of GPUs, for the table of communication
PER_NODE = 8  # GPUs of a node, where nothing else is said
LAUNCH = 5e-6  # seconds from one kernel launch to the next in eager mode, an assumption
CONTEXT = 500_000_000  # bytes of CUDA's context
Plan = dict[str, Any]


@dataclass(frozen=True)
class Speed:
    """A share of the peak, or a measurement; neither: EFFICIENCIES."""

    share_of_peak: float | None = None
    images_per_second: float | None = None  # of one GPU


@dataclass(frozen=True)
class Request:
    """What is asked for besides the recipe."""

    gpu: Gpu
    gpus: int
    nodes: int
    backend: str = "ddp"
    speed: Speed = Speed()
    hours: float | None = None  # of a job
    images: int | None = None  # in the data set

    @property
    def machine(self) -> Machine:
        return Machine(self.gpus, self.gpus // self.nodes, self.gpu.link, self.gpu.network)


def make(stated: Recipe, request: Request, batch_of_file: int) -> Plan:
    """Everything in one tree, which `--json` prints. Amounts in bytes, FLOP, seconds and hours."""
    if stated.data.crop is None:
        raise UserError("data.crop: none; the cost of whole images depends on their sizes; --data.crop=N sets one")
    checks.check_batch(stated, request.gpus)
    if stated.precision == "bf16" and not request.gpu.bf16:
        raise UserError(f"precision: bf16, which the {request.gpu.name} computes without its tensor cores; --precision=fp16")
    recipe = without_published_weights(checks.complete(stated))
    images = memory.images_per_micro_batch(recipe, request.gpus)
    with counting():
        counted = traffic.micro_batch(recipe, images)
        sizes, _ = memory.parts_sizes(recipe)
        rows = memory_rows(recipe, request)
    micro_batches = request.gpus * recipe.accumulate
    result: Plan = {
        "computed": True,
        "recipe": recipe.name,
        "gpus": request.gpus, "nodes": request.nodes, "gpu": request.gpu.name, "backend": request.backend,
        "precision": recipe.precision, "batch": recipe.data.batch, "crop": recipe.data.crop, "accumulate": recipe.accumulate,
        "images_per_micro_batch": images, "steps": recipe.steps,
        "parameters": {phase: sum(size.trained) + sum(size.frozen) for phase, size in sizes.items()},
        "flops_per_image": counted.flops_per_image,
        "flops_per_step": counted.flops_per_image * recipe.data.batch,
        "launches_per_step": counted.launches * recipe.accumulate,
        "bytes_per_step": counted.bytes * micro_batches,
        "peak_tflops": request.gpu.peak(recipe.precision, recipe.tf32),
        "memory": rows,
        "communication": exchanged(recipe, sizes, request.machine),
        "data": data_facts(recipe, request),
        "learning_rate": rate_facts(recipe, batch_of_file),
    }  # fmt: skip
    result["bounds"] = bounds(result, request.gpu)
    result["speed"] = speeds(recipe, request, result)
    row = result["memory"][request.backend]
    result["remedies"] = [] if row["fits"] or row["refused"] else remedies(recipe, request)
    return result


# -------------------------------------------------------------------------------------------------------------- memory


def memory_rows(recipe: Recipe, request: Request) -> dict[str, Any]:
    """Bytes per rank under each backend."""
    sizes, content = memory.parts_sizes(recipe)
    images = memory.images_per_micro_batch(recipe, request.gpus)
    with quiet():
        activations = max(memory.activations(recipe, images).values())
    rows = {}
    for backend, title in BACKENDS.items():
        row = memory.backend_row(recipe, sizes, content, title, request.gpus)
        total = row["computed"] + activations
        rows[backend] = {
            **{name: row[name] for name in memory.COLUMNS}, "activations": activations, "total": total,
            "fits": total + CONTEXT <= request.gpu.memory_gb * GB,
            "refused": memory.refusal(recipe, memory.BACKENDS[title][0], request.gpus),
        }  # fmt: skip
    return rows


def remedies(recipe: Recipe, request: Request) -> list[dict[str, Any]]:
    """Options that lower the memory, each added to those before it, until it fits. The first cost least."""
    rows = []
    options: list[str] = []
    for added, variant, backend, note in _changes(recipe, request):
        options = [option for option in options if option.partition("=")[0] not in {a.partition("=")[0] for a in added}] + added
        row = memory_rows(variant, request)[backend]
        rows.append({"options": list(options), "total": row["total"], "fits": row["fits"], "note": note})
        if row["fits"]:
            break
    return rows


def _changes(recipe: Recipe, request: Request) -> Iterator[tuple[list[str], Recipe, str, str]]:
    """(options, the recipe with them and with those before, backend, what it costs)."""
    backend = request.backend
    if recipe.precision == "no":
        precision = "bf16" if request.gpu.bf16 else "fp16"
        recipe = recipe.model_copy(update={"precision": precision})
        yield [f"--precision={precision}"], recipe, backend, "faster too; results differ in their last digits"
    local = ["--objective.batch_mean=local"] if recipe.objective.options.get("batch_mean") == "global" else []
    if local:
        recipe = recipe.model_copy(update={"objective": recipe.objective.with_options(batch_mean="local")})
    accumulate = 2 * recipe.accumulate
    while recipe.data.batch >= accumulate * request.gpus:
        recipe = recipe.model_copy(update={"accumulate": accumulate})
        yield [f"--accumulate={accumulate}", *local], recipe, backend, "the same step in smaller pieces"
        accumulate *= 2
    if not recipe.checkpointing and (patterns := repeated_blocks(recipe)):
        recipe = recipe.model_copy(update={"checkpointing": tuple(patterns)})
        yield [f"--checkpointing=[{','.join(patterns)}]"], recipe, backend, "computes the blocks twice: about a third slower"
    for stronger in list(BACKENDS)[list(BACKENDS).index(backend) + 1 :]:
        if not memory.refusal(recipe, memory.BACKENDS[BACKENDS[stronger]][0], request.gpus):
            yield [f"--backend={stronger}"], recipe, stronger, "partitions states; more communication"


def repeated_blocks(recipe: Recipe) -> list[str]:
    """The largest row of equal modules of the generator, as a pattern for `checkpointing`."""
    _, networks = shapes_only(recipe)
    rows: dict[str, int] = {}
    for name, module in next(iter(networks.values())).named_modules():
        children = list(module.children())
        if (
            name
            and isinstance(module, nn.Sequential | nn.ModuleList)
            and len(children) > 1
            and len(set(map(type, children))) == 1
        ):
            rows[f"{name}.*"] = sum(parameter.numel() for parameter in module.parameters())
    return [max(rows, key=lambda pattern: rows[pattern])] if rows else []


# ----------------------------------------------------------------------------------------------------- time and exchange


def exchanged(recipe: Recipe, sizes: dict[str, memory.Sizes], machine: Machine) -> dict[str, Any]:
    """Bytes that a rank sends in a step and the least seconds for it, under each backend on other numbers of GPUs too."""
    rows = {}
    for backend, title in BACKENDS.items():
        stage = memory.BACKENDS[title][0]
        numbers = {}
        for gpus in sorted({*NUMBERS, machine.gpus}):
            amount = sum(
                communication.step_bytes(
                    memory.own_stage(recipe, phase, stage),
                    sum(s.trained),
                    sum(s.frozen),
                    gpus,
                    recipe.accumulate,
                    communication.gathers(recipe.objective.name, phase),
                )
                for phase, s in sizes.items()
            )
            other = machine if gpus == machine.gpus else replace(machine, gpus=gpus, per_node=max(machine.per_node, PER_NODE))
            numbers[gpus] = {"bytes": amount, "seconds": communication.seconds(amount, other)}
        rows[backend] = numbers
    return rows


def speeds(recipe: Recipe, request: Request, plan: Plan) -> list[dict[str, Any]]:
    """Images/s of all GPUs, and the time for all steps, for each assumed share of the peak, and for the largest that the recipe
    reaches as it is, where that is below all of them."""
    peak, flops = plan["peak_tflops"] * 1e12, plan["flops_per_image"]
    given, measured = request.speed.share_of_peak, request.speed.images_per_second
    shares = [measured * flops / peak] if measured else [given] if given else list(EFFICIENCIES)
    most = min(bound["share_of_peak"] for bound in plan["bounds"].values())
    if not (measured or given or recipe.compile) and most < min(EFFICIENCIES):
        shares = [most, *shares]
    exchange = plan["communication"][request.backend][request.gpus]["seconds"]
    rows = []
    for share in shares:
        images_per_second = request.gpus * peak * share / flops
        seconds = recipe.data.batch / images_per_second
        hours = recipe.steps * seconds / 3600
        rows.append(
            {
                "share_of_peak": share, "measured": measured is not None,
                "needs_compile": share > most and not recipe.compile,
                "images_per_second": images_per_second, "seconds_per_step": seconds,
                "hours": hours, "gpu_hours": hours * request.gpus,
                "hours_without_overlap": recipe.steps * (seconds + exchange) / 3600,
                "jobs": math.ceil(hours / request.hours) if request.hours else None,
                "bytes_per_second_of_node": _per_node(plan["data"]["bytes_per_image"], images_per_second, request.nodes),
            }
        )  # fmt: skip
    return rows


def bounds(plan: Plan, gpu: Gpu) -> dict[str, dict[str, float]]:
    """Seconds that a GPU needs per step for memory traffic and for kernel launches, and the share of the peak that they leave.

    In eager mode: `compile` fuses operations, which lowers both. With 16 bits the bytes are taken as half.
    """
    size = plan["bytes_per_step"] / plan["gpus"] / (1 if plan["precision"] == "no" else 2)
    seconds = {"traffic": size / (gpu.memory_bandwidth * GB), "launches": plan["launches_per_step"] * LAUNCH}
    at_peak = plan["flops_per_step"] / plan["gpus"] / (plan["peak_tflops"] * 1e12)
    return {kind: {"seconds": value, "share_of_peak": min(at_peak / value, 1.0)} for kind, value in seconds.items()}


# ------------------------------------------------------------------------------------------------------ data, rates, job


def data_facts(recipe: Recipe, request: Request) -> dict[str, Any]:
    """Epochs, and bytes that a node reads, from the manifests of data.train if they are on this machine."""
    images, size, source = request.images, None, "--images"
    try:
        sets = open_training_sets(recipe.data)
    except UserError:
        sets = []
    if stored := sum(shards.manifest.samples for shards in sets):
        size = sum(shard.bytes for shards in sets for shard in shards.manifest.shards) / stored
        images, source = images or sum(trained_on(shards, recipe.data) for shards in sets), "--images" if images else "manifest"
    elif not images:
        source = "unknown: data.train is not on this machine; --images=N says it"
    seen = recipe.steps * recipe.data.batch
    return {
        "images": images, "source": source, "images_seen": seen, "epochs": seen / images if images else None,
        "bytes_per_image": size, "bytes_of_node": _per_node(size, seen, request.nodes),
    }  # fmt: skip


def trained_on(shards: Shards, data: Data) -> int:
    """The number of images without those that data.select and data.split leave out."""
    portion = portion_of(data)
    return shards.manifest.samples if portion == Portion() else sum(map(len, portion_rows(shards, portion)))


def _per_node(size: float | None, images: float, nodes: int) -> float | None:
    return None if size is None else size * images / nodes


def rate_facts(recipe: Recipe, batch_of_file: int) -> dict[str, Any]:
    """The learning rate of the recipe, and what the square-root rule of the large recipes makes of another batch."""
    rate, batch = recipe.optimizer.learning_rate, recipe.data.batch
    by_rule = rate * math.sqrt(batch / batch_of_file)
    return {"stated": rate, "batch_of_file": batch_of_file, "by_square_root": by_rule if batch != batch_of_file else None}


def job_line(recipe_word: str, overrides: Sequence[str], recipe: Recipe, request: Request) -> str:
    """The command that submits the job, from the folder of the repository."""
    per_node = request.gpus // request.nodes
    words = [f"SR_DIST_ACCELERATE=launch/accelerate/{request.backend}.yaml"] if request.backend != "ddp" else []
    words += ["sbatch", f"--nodes={request.nodes}", f"--gres=gpu:{per_node}"]
    words += [f"--cpus-per-task={per_node * (recipe.data.workers + 1)}", "--mem=0"]
    if request.hours:
        minutes = round(request.hours * 60)
        words.append(f"--time={minutes // 60:02d}:{minutes % 60:02d}:00")
    return " ".join([*words, "launch/slurm/train.sbatch", *map(shlex.quote, (recipe_word, *overrides))])


def summary(recipe: Recipe, gpus: int, gpu: Gpu, flops_per_image: float | None) -> list[str]:
    """The shortest plan, for the end of a dry run."""
    with counting():
        sizes, _ = memory.parts_sizes(without_published_weights(recipe))
    counts = ", ".join(f"{phase} {(sum(s.trained) + sum(s.frozen)) / 1e6:,.1f} M parameters" for phase, s in sizes.items())
    lines = ["computed, not measured; python -m sr_dist.plan says more:", f"  {counts}"]
    if flops_per_image:
        share = EFFICIENCIES[1]
        speed = gpus * gpu.peak(recipe.precision, recipe.tf32) * 1e12 * share / flops_per_image
        hours = recipe.steps * recipe.data.batch / speed / 3600
        lines.append(
            f"  {flops_per_image / 1e9:,.1f} GFLOP per image, {flops_per_image * recipe.data.batch / 1e12:,.2f} TFLOP per step"
        )
        time = f"{speed:,.0f} images/s, {hours:,.3g} h for {recipe.steps:,} steps"
        lines.append(f"  {gpus} x {gpu.name} at {100 * share:.0f} % of the peak: {time}")
    return lines
