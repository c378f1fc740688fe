"""The memory table: what a rank holds under each backend, without a GPU.

    computed    from the sizes of the recipe's networks, as the backends' code allocates them
    estimated   what autograd saves for the backward passes, counted on torch's fake tensors at the recipe's crop and micro-batch
    measured    the allocator's peak over one training step on random images, in one process with a GPU

Not counted: CUDA's context (about 0.5 GiB), kernels' workspaces, fragmentation, and short-lived tensors.
"""

from __future__ import annotations

import copy
import fnmatch
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sr_dist.core import launch_env, ranks
from sr_dist.core.errors import UserError
from sr_dist.core.launch_env import Launch
from sr_dist.models.post_hoc_ema import SIGMAS
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.tools.step_inputs import objective_and_networks, quiet, random_batch, shapes_only, without_published_weights
from sr_dist.training.ddp import DDPEngine
from sr_dist.training.deepspeed import configuration
from sr_dist.training.ema import Ema
from sr_dist.training.networks import in_precision, prepared, recompute_activations
from sr_dist.training.optimizer_state import states_per_weight
from sr_dist.training.power_ema import PowerEmas
from sr_dist.training.step import Around, Precision, take_step

MIB = 2**20
FP32 = 4  # bytes: weights, gradients, optimizer states and averages are fp32 under every backend and precision
BACKENDS = {"DDP": (0, False), "ZeRO-1": (1, False), "ZeRO-2": (2, False), "ZeRO-3": (3, False), "ZeRO-2, offload": (2, True)}
COLUMNS = ("weights", "gradients", "optimizer", "ema", "content", "buffers")
Table = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """The number of values in a network."""

    trained: tuple[int, ...]  # of each parameter that is trained
    frozen: tuple[int, ...]
    statistics: int  # in its buffers

    @property
    def whole(self) -> int:
        return sum(self.trained) + sum(self.frozen) + self.statistics


def sizes(network: nn.Module) -> Sizes:
    parameters = list(network.parameters())
    return Sizes(
        tuple(p.numel() for p in parameters if p.requires_grad),
        tuple(p.numel() for p in parameters if not p.requires_grad),
        sum(buffer.numel() for buffer in network.buffers()),
    )


def held(objective: nn.Module) -> int:
    """Bytes of what the objective holds."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*objective.parameters(), *objective.buffers()))


def state_bytes(network: Sizes, states: int, stage: int, gpus: int, averaged: bool) -> dict[str, int]:
    """Bytes that a rank keeps of one network. `averaged`: it is the network with an EMA.

    Every stage clones a rank's share of the weights as master weights. (Stage 3 intends to spare that under fp32, but compares a
    device with its name; seen in DeepSpeed 0.19.8.) The EMA is whole on every rank; under stage 3 a rank averages its share and
    holds the whole copy besides, which `gather` fills for validation and saving.
    """
    trained, whole = sum(network.trained), network.whole
    if stage == 3:
        share = sum(-(-size // gpus) for size in network.trained)
        own = share + sum(-(-size // gpus) for size in network.frozen)
        values = {"weights": own + network.statistics, "gradients": share, "optimizer": (1 + states) * share, "ema": own + whole}
    elif stage:
        share = -(-trained // gpus)
        gradients = trained if stage == 1 else share
        values = {"weights": whole, "gradients": gradients, "optimizer": (1 + states) * share, "ema": whole}
    else:
        values = {"weights": whole, "gradients": trained, "optimizer": states * trained, "ema": whole}
    return {name: FP32 * count * (averaged or name != "ema") for name, count in values.items()}


def post_hoc_bytes(network: Sizes, stage: int, gpus: int) -> int:
    """Bytes of the averages of ema.post_hoc: of parameters, not of buffers; under stage 3 those of a rank's share."""
    parameters = (*network.trained, *network.frozen)
    return FP32 * len(SIGMAS) * sum(-(-size // gpus) if stage == 3 else size for size in parameters)


def buffer_bytes(network: Sizes, zero: dict[str, Any]) -> int:
    """Bytes that the backend keeps for communication.

    DDP: none, because gradients lie in its buckets. ZeRO: one bucket, two under stage 2, where sending overlaps
    with computing. Stage 3: also the weights that are whole while they are used, which are all of them: a network below its
    `max_live_parameters` of 1e9 is not partitioned again before the step ends.
    """
    stage = zero["stage"]
    if not stage:
        return 0
    bucket = FP32 * zero["reduce_bucket_size"]
    if stage == 3:
        return bucket + FP32 * network.whole
    return bucket * (2 if stage == 2 else 1)


def own_stage(recipe: Recipe, phase: str, stage: int) -> int:
    """The discriminator may have a stage of its own."""
    return (recipe.zero.discriminator or stage) if phase == "discriminator" and stage else stage


def backend_row(recipe: Recipe, networks: dict[str, Sizes], content: int, backend: str, gpus: int) -> dict[str, int]:
    """Bytes per rank under one backend, by purpose; `host` is in the machine's memory."""
    stage, offload = BACKENDS[backend]
    row = dict.fromkeys((*COLUMNS, "host"), 0) | {"content": content}
    shared_buffers = 0
    for place, (phase, network) in enumerate(networks.items()):
        own = own_stage(recipe, phase, stage)
        settings = recipe.optimizer_of(phase)
        amounts = state_bytes(network, states_per_weight(settings), own, gpus, averaged=place == 0)
        if recipe.ema.post_hoc and place == 0:
            amounts["ema"] += post_hoc_bytes(network, own, gpus)
        zero = configuration(recipe, settings, own, {"device": "cpu"} if offload else None, network.whole)["zero_optimization"]
        amounts["buffers"] = buffer_bytes(network, zero)
        amounts["host"] = 0
        if offload:  # master weights, states, gradients, and the weights on their way back
            amounts["host"] = amounts["optimizer"] + amounts["gradients"] + FP32 * -(-sum(network.trained) // gpus)
            amounts["optimizer"] = amounts["gradients"] = 0
        if own in (1, 2):  # these stages free their buckets after each backward pass, so one network's exist at a time
            shared_buffers = max(shared_buffers, amounts.pop("buffers"))
        for name, amount in amounts.items():
            row[name] += amount
    row["buffers"] += shared_buffers
    return row | {"computed": sum(row[name] for name in COLUMNS)}


class SavedTensors:
    """Counts the bytes that autograd saves, each storage once and parameters not at all.

    The share of `segments` (modules) is counted apart: where activations are recomputed, one segment's exist at a time.
    """

    def __init__(self, *known: nn.Module) -> None:
        tensors = [t for module in known for t in (*module.parameters(), *module.buffers())]
        self._seen = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
        self._inside: list[str] = []
        self.bytes, self.segments = 0, dict[str, int]()

    @contextmanager
    def counting(self, segments: dict[str, nn.Module]) -> Iterator[None]:
        hooks = []
        for name, module in segments.items():
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name)))
            hooks.append(module.register_forward_hook(lambda *_: self._leave()))
        with torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor):
            yield
        for hook in hooks:
            hook.remove()

    def _leave(self) -> None:
        self._inside.pop()

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage  # held, so that its address is not used again
            self.bytes += storage.nbytes()
            for name in self._inside[:1]:
                self.segments[name] = self.segments.get(name, 0) + storage.nbytes()
        return tensor


class ForwardOnly:
    """A `StepEngine` that counts what its forward passes save and goes no further."""

    def __init__(self, network: nn.Module, saved: SavedTensors, segments: dict[str, nn.Module]) -> None:
        self.network = self.bare = network
        self.saved, self._segments = saved, segments

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return self.saved.counting(self._segments)

    def backward(self, loss: Tensor) -> None: ...

    def step(self, learning_rate: float) -> Tensor:
        return torch.zeros(())


def outermost(network: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules that match, without those inside of others that match."""
    matched: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        matches = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if matches and not any(name.startswith(f"{outer}.") for outer in matched):
            matched[name] = module
    return matched


def activations(recipe: Recipe, images: int) -> dict[str, int]:
    """Bytes saved for the backward pass of each phase. The largest counts, because the phases follow each other."""
    plain = _saved(recipe.model_copy(update={"checkpointing": ()}), images, recipe.checkpointing)
    if not recipe.checkpointing:
        return {phase: saved.bytes for phase, saved in plain.items()}
    result = {phase: saved.bytes for phase, saved in _saved(recipe, images, ()).items()}
    first = next(iter(result))
    result[first] += max(plain[first].segments.values(), default=0)  # the segment that is being recomputed
    return result


def _saved(recipe: Recipe, images: int, segments: tuple[str, ...]) -> dict[str, SavedTensors]:
    """Runs the forward passes of a step on tensors without numbers."""
    objective, networks = shapes_only(recipe)
    precision = Precision("no" if recipe.precision == "no" else "bf16", "cpu")
    objective, first = in_precision(objective, precision.name), next(iter(networks))
    average = copy.deepcopy(networks[first])  # without the hooks of the trained one
    with FakeTensorMode(allow_non_fake_inputs=True):  # constants in caches
        for module in (objective, average, *networks.values()):
            module.to_empty(device="cpu")
        if recipe.checkpointing and first != "discriminator":
            recompute_activations(networks[first], recipe.checkpointing)
        known, watched = (objective, *networks.values()), outermost(networks[first], segments)
        engines = {
            phase: ForwardOnly(network, SavedTensors(*known), watched if phase == first else {})
            for phase, network in networks.items()
        }
        batch = random_batch(recipe, images, torch.device("cpu"))
        around = Around(average=average if checks.reads_average(recipe) else None)
        take_step(objective, engines, [batch], precision, dict.fromkeys(engines, 0.0), around)
        return {phase: engine.saved for phase, engine in engines.items()}


def one_step(recipe: Recipe, images: int) -> dict[str, Tensor]:
    """The losses of one real step of one process on random images, with the averages that training keeps."""
    accelerator = ranks.open_accelerator(recipe.precision)
    objective, networks = objective_and_networks(recipe)
    objective = in_precision(objective.to(accelerator.device), recipe.precision)
    first = next(iter(networks))
    ema = Ema(networks[first], recipe.ema.decay)
    ema.network.to(accelerator.device)
    networks = {phase: prepared(network, recipe, phase, accelerator.device) for phase, network in networks.items()}
    engines = {phase: DDPEngine(accelerator, network, recipe, phase) for phase, network in networks.items()}
    ema.follow(engines[first])
    power_emas = PowerEmas(engines[first]) if recipe.ema.post_hoc else None
    rates = {phase: recipe.optimizer_of(phase).learning_rate for phase in engines}
    batch = random_batch(recipe, images, accelerator.device)
    around = Around(average=ema.network if checks.reads_average(recipe) else None)
    losses, _ = take_step(objective, engines, [batch], Precision(recipe.precision, accelerator.device.type), rates, around)
    ema.update()
    if power_emas:
        power_emas.update(1)
    return losses


def measured_peak(recipe: Recipe, images: int) -> int | None:
    """The allocator's peak over one step, or None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    one_step(recipe, images)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def images_per_micro_batch(recipe: Recipe, gpus: int) -> int:
    return -(-recipe.data.batch // (gpus * recipe.accumulate))


def parts_sizes(recipe: Recipe) -> tuple[dict[str, Sizes], int]:
    """The sizes of the networks, and the bytes of what the objective holds. The recipe is without published weights."""
    objective, networks = shapes_only(recipe)
    return {phase: sizes(network) for phase, network in networks.items()}, held(in_precision(objective, recipe.precision))


def memory_table(stated: Recipe, gpus: int) -> Table:
    """Everything about a recipe's memory; all amounts in bytes per rank."""
    if stated.data.crop is None:
        raise UserError("data.crop: none; the memory for whole images depends on their sizes; --data.crop=N sets one")
    recipe = without_published_weights(checks.complete(stated))
    images = images_per_micro_batch(recipe, gpus)
    network_sizes, content = parts_sizes(recipe)
    with quiet():
        variants = [(precision, patterns) for precision in ("no", "bf16") for patterns in {(), recipe.checkpointing}]
        estimates = []
        for precision, patterns in sorted(variants):
            variant = recipe.model_copy(update={"precision": precision, "checkpointing": patterns})
            estimates.append({"precision": precision, "checkpointing": list(patterns), **activations(variant, images)})
        estimated = max(activations(recipe, images).values())
        peak = measured_peak(recipe, images)
    rows = {name: backend_row(recipe, network_sizes, content, name, gpus) for name in BACKENDS}
    refused = {name: reason for name, (stage, _) in BACKENDS.items() if (reason := refusal(recipe, stage, gpus))}
    return {
        "recipe": recipe.name, "gpus": gpus, "images": images, "crop": recipe.data.crop, "precision": recipe.precision,
        "parameters": {phase: sum(size.trained) + sum(size.frozen) for phase, size in network_sizes.items()},
        "backends": {name: {**row, "estimated": estimated, "total": row["computed"] + estimated} for name, row in rows.items()},
        "refused": refused,
        "activations": estimates,
        "measured": peak,
    }  # fmt: skip


def refusal(recipe: Recipe, stage: int, gpus: int) -> str | None:
    """Why the recipe does not run under a backend, or None."""
    try:
        launch = Launch("deepspeed" if stage else "ddp", stage, gpus, cuda=True, compiled=bool(recipe.compile))
        checks.check_launch(recipe, launch)
    except UserError as problem:
        return str(problem)
    return None


def markdown(table: Table) -> str:
    titles = (*COLUMNS[:3], "EMA", *COLUMNS[4:], "sum (computed)", "activations (estimated)", "total", "on the host")
    lines = [
        f"{table['recipe']} on {table['gpus']} GPUs, MiB per rank; {table['images']} images of {table['crop']} x {table['crop']} "
        f"per micro-batch, precision {table['precision']}; "
        + ", ".join(f"{phase} {count:,} parameters" for phase, count in table["parameters"].items()),
        "", f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|",
    ]  # fmt: skip
    for name, amounts in table["backends"].items():
        values = (amounts[key] for key in (*COLUMNS, "computed", "estimated", "total", "host"))
        lines.append(f"| {name} | " + " | ".join(mebibytes(value) for value in values) + " |")
    for name, reason in table["refused"].items():
        lines += ["", f"{name} is refused: {reason}"]
    phases = list(table["parameters"])
    lines += ["", f"| activations (estimated) | {' | '.join(f'step of the {phase}' for phase in phases)} |"]
    lines.append("|---" * (len(phases) + 1) + "|")
    for row in table["activations"]:
        recomputed = f", recomputed: {', '.join(row['checkpointing'])}" if row["checkpointing"] else ""
        lines.append(f"| precision {row['precision']}{recomputed} | " + " | ".join(mebibytes(row[p]) for p in phases) + " |")
    peak = "no GPU here" if table["measured"] is None else f"{mebibytes(table['measured'])} MiB, one step of one process"
    return "\n".join([*lines, "", f"measured: {peak}"])


def mebibytes(amount: int) -> str:
    return f"{amount / MIB:,.0f}" if amount >= 10 * MIB or not amount else f"{amount / MIB:.1f}"


def show_memory(recipe: Recipe, gpus: int, as_json: bool) -> None:
    """Prints the table. Under a launcher only the first rank does anything."""
    if launch_env.rank() == 0:
        table = memory_table(recipe, gpus)
        print(markdown(table))
        if as_json:
            print(json.dumps(table), flush=True)
