"""What a rank's memory holds under each backend, said before anyone owns the GPUs.

    computed    from the sizes of the recipe's real networks: what the backends really keep, read from their code
    estimated   what autograd saves for the backward passes, counted on tensors that have shapes but no numbers (torch's
                fake tensors), at the recipe's crop and a rank's micro-batch
    measured    the allocator's peak over one step of training on random images, in one process with a GPU

Not counted: CUDA's context (some 0.5 GiB), kernels' workspaces, fragmentation, and the few tensors that live for a moment.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sr_dist.core import ranks
from sr_dist.core.batch import Batch
from sr_dist.core.errors import UserError
from sr_dist.core.launch_env import Launch
from sr_dist.recipe import checks
from sr_dist.recipe.sections import Recipe
from sr_dist.training import build, ddp, deepspeed
from sr_dist.training.ema import Ema
from sr_dist.training.optimizer_state import states_per_weight
from sr_dist.training.step import Precision, take_step

MIB = 2**20
FP32 = 4  # bytes: weights, gradients, states and averages are fp32 under every backend and precision
REDUCE_BUCKET = 500_000_000  # numbers in DeepSpeed's buffer where the configuration states none; it is not cut to the network
BACKENDS = {"DDP": (0, False), "ZeRO-1": (1, False), "ZeRO-2": (2, False), "ZeRO-3": (3, False), "ZeRO-2, offload": (2, True)}
COLUMNS = ("weights", "gradients", "optimizer", "ema", "content", "buffers")


@dataclass(frozen=True)
class Sizes:
    """How many numbers a network has."""

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


def held(network: Sizes, states: int, stage: int, gpus: int, averaged: bool) -> dict[str, int]:
    """Bytes that a rank keeps of one network. `averaged`: it is the one whose EMA is kept (`ema.py`).

    Every stage clones a rank's share of the weights as its masters. (Stage 3 means to spare that under fp32, but compares a
    device with its name; seen in DeepSpeed 0.19.8.) The EMA is whole on every rank; under stage 3 a rank averages its share
    and has the whole copy besides, which `gather` fills for validation and saving.
    """
    trained, whole = sum(network.trained), network.whole
    if stage == 3:
        share = sum(-(-numbers // gpus) for numbers in network.trained)
        ours = share + sum(-(-numbers // gpus) for numbers in network.frozen)
        found = {"weights": ours + network.statistics, "gradients": share, "optimizer": (1 + states) * share, "ema": ours + whole}
    elif stage:
        share = -(-trained // gpus)
        gradients = trained if stage == 1 else share
        found = {"weights": whole, "gradients": gradients, "optimizer": (1 + states) * share, "ema": whole}
    else:
        found = {"weights": whole, "gradients": trained, "optimizer": states * trained, "ema": whole}
    return {name: FP32 * numbers * (averaged or name != "ema") for name, numbers in found.items()}


def buffers(network: Sizes, zero: dict[str, Any], gpus: int, bf16: bool) -> int:
    """Bytes that the backend keeps for talking to the other ranks.

    DDP: its buckets, as many as gradients. ZeRO: one bucket of a fixed size, two under stage 2, where sending overlaps
    with computing; and under stage 3 the weights that are whole while they are used: all of them, for a network below its
    `max_live_parameters` of 1e9 is not taken apart again before the step ends.
    """
    stage = zero["stage"]
    if not stage:
        return FP32 * sum(network.trained) * (gpus > 1)
    bucket = zero.get("reduce_bucket_size", REDUCE_BUCKET)
    if stage == 3:  # one bucket, in the precision in which gradients travel
        return bucket * (2 if bf16 else FP32) + FP32 * network.whole
    return FP32 * bucket * (2 if stage == 2 else 1)


def row(chosen: Recipe, networks: dict[str, Sizes], content: int, backend: str, gpus: int) -> dict[str, int]:
    """Bytes per rank under one backend, by what they are for; `host` is in the machine's memory."""
    stage, offload = BACKENDS[backend]
    found = dict.fromkeys((*COLUMNS, "host"), 0) | {"content": content}
    passing = 0
    for place, (phase, network) in enumerate(networks.items()):
        own = (chosen.zero.discriminator or stage) if phase == "discriminator" and stage else stage
        settings = chosen.optimizer_of(phase)
        part = held(network, states_per_weight(settings), own, gpus, averaged=place == 0)
        zero = deepspeed.configuration(chosen, settings, own, offload, network.whole)["zero_optimization"]
        part["buffers"] = buffers(network, zero, gpus, chosen.precision == "bf16")
        part["host"] = 0
        if offload:  # masters, states, gradients, and the weights on their way back
            part["host"] = part["optimizer"] + part["gradients"] + FP32 * -(-sum(network.trained) // gpus)
            part["optimizer"] = part["gradients"] = 0
        if own in (1, 2):  # these stages drop their buckets after each backward pass: one network's are there at a time
            passing = max(passing, part.pop("buffers"))
        for name, amount in part.items():
            found[name] += amount
    found["buffers"] += passing
    return found | {"computed": sum(found[name] for name in COLUMNS)}


class Saved:
    """Counts what autograd saves, each storage once; parameters are no activations. `segments` are modules whose share is
    counted apart: where activations are made again, one segment's are there at a time."""

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
            self._seen[storage._cdata] = storage  # kept, so that its address is not given to another
            self.bytes += storage.nbytes()
            for name in self._inside[:1]:
                self.segments[name] = self.segments.get(name, 0) + storage.nbytes()
        return tensor


def outermost(network: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    """The modules that fit, without those inside of others that fit."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        fits = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if fits and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def activations(chosen: Recipe, images: int) -> dict[str, int]:
    """Bytes saved for the backward pass of each phase, by phase; the larger counts, for one follows the other."""
    plain = _saved(chosen.model_copy(update={"checkpointing": ()}), images, chosen.checkpointing)
    if not chosen.checkpointing:
        return {phase: saved.bytes for phase, saved in plain.items()}
    found = {phase: saved.bytes for phase, saved in _saved(chosen, images, ()).items()}
    first = next(iter(found))
    found[first] += max(plain[first].segments.values(), default=0)  # the segment that is being made again
    return found


def _saved(chosen: Recipe, images: int, watched: tuple[str, ...]) -> dict[str, Saved]:
    """Runs the forward passes of a step on tensors without numbers."""
    with FakeTensorMode():
        objective, networks = parts(chosen)
        first = next(iter(networks))
        if chosen.checkpointing and first != "discriminator":
            build.remake_activations(networks[first], chosen.checkpointing)
        known = (objective, *networks.values())
        segments = outermost(networks[first], watched)
        engines = {
            name: ForwardOnly(network, Saved(*known), segments if name == first else {}) for name, network in networks.items()
        }
        batch = random_batch(chosen, images, torch.device("cpu"))
        precision = Precision("no" if chosen.precision == "no" else "bf16", "cpu")
        take_step(objective, engines, [batch], precision, dict.fromkeys(engines, 0.0))
        return {name: engine.saved for name, engine in engines.items()}


class ForwardOnly:
    """An engine that counts what its forward passes save and goes no further."""

    def __init__(self, network: nn.Module, saved: Saved, segments: dict[str, nn.Module]) -> None:
        self.network = self.bare = network
        self.saved, self._segments = saved, segments

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return self.saved.counting(self._segments)

    def backward(self, loss: Tensor) -> None: ...

    def step(self, learning_rate: float) -> Tensor:
        return torch.zeros(())


def parts(chosen: Recipe) -> tuple[Any, dict[str, nn.Module]]:
    """The objective and its networks, without starting weights."""
    objective = build.build_objective(chosen)
    return objective, {phase: build.phase_network(chosen, phase, resuming=True, notes=[]) for phase in objective.phases}


def random_batch(chosen: Recipe, images: int, device: torch.device) -> Batch:
    channels, crop = chosen.channels, chosen.data.crop
    assert crop
    layout = torch.channels_last if chosen.channels_last else torch.contiguous_format
    lr, hr = (
        torch.rand(images, channels, s, s, device=device).contiguous(memory_format=layout) for s in (crop // chosen.scale, crop)
    )
    attributes: dict[str, Tensor] = defaultdict(lambda: torch.zeros(images, device=device))  # whichever are asked for
    return Batch(lr, hr, torch.zeros(images, dtype=torch.long, device=device), (), attributes, share=images / chosen.data.batch)


def without_weights(chosen: Recipe) -> Recipe:
    """Content terms that would read published files get random numbers instead: as many, and they are only counted."""
    if "content" not in chosen.objective.options:
        return chosen
    content = dict(chosen.objective.options["content"])
    for module, term, key in checks.content_terms(chosen):
        name = key.removeprefix("objective.content.")
        if hasattr(module, "files") and module.files(term):
            content[name] = {**content[name], "weights": "random"}
    return chosen.model_copy(update={"objective": chosen.objective.with_options(content=content)})


@contextmanager
def quiet() -> Iterator[None]:
    """Here random weights are no mistake that a user must hear of."""
    logger = logging.getLogger("sr_dist")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights of a frozen classifier do not fit into tensors without numbers
            yield
    finally:
        logger.setLevel(level)


def one_step(chosen: Recipe, images: int) -> dict[str, Tensor]:
    """The losses of one real step of one process on random images, with the EMA that training keeps."""
    accelerator = ranks.open_accelerator(chosen.precision)
    objective, networks = parts(chosen)
    objective = objective.to(accelerator.device)
    first = next(iter(networks))
    ema = Ema(networks[first], chosen.ema.decay)
    ema.network.to(accelerator.device)
    networks = {phase: build.prepared(network, chosen, phase, accelerator.device) for phase, network in networks.items()}
    engines = {phase: ddp.Engine(accelerator, network, chosen, phase) for phase, network in networks.items()}
    ema.follow(engines[first])
    rates = {phase: chosen.optimizer_of(phase).learning_rate for phase in engines}
    batch = random_batch(chosen, images, accelerator.device)
    losses, _ = take_step(objective, engines, [batch], Precision(chosen.precision, accelerator.device.type), rates)
    ema.update()
    return losses


def measured(chosen: Recipe, images: int) -> int | None:
    """The allocator's peak over one step, or None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    one_step(chosen, images)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def table(asked: Recipe, gpus: int) -> dict[str, Any]:
    """Everything that is said of a recipe's memory; all amounts in bytes per rank."""
    if asked.data.crop is None:
        raise UserError("data.crop: none; the memory for whole images depends on their sizes; --data.crop=N says one")
    chosen = without_weights(checks.complete(asked))
    parts_of_batch = gpus * chosen.accumulate
    images = -(-chosen.data.batch // parts_of_batch)
    with quiet():
        with FakeTensorMode():
            objective, networks = parts(chosen)
            amounts = {phase: sizes(network) for phase, network in networks.items()}
            content = FP32 * sizes(objective).whole
        choices = [(precision, patterns) for precision in ("no", "bf16") for patterns in {(), chosen.checkpointing}]
        estimates = []
        for precision, patterns in sorted(choices):
            variant = chosen.model_copy(update={"precision": precision, "checkpointing": patterns})
            estimates.append({"precision": precision, "checkpointing": list(patterns), **activations(variant, images)})
        kept = max(activations(chosen, images).values())
        peak = measured(chosen, images)
    rows = {name: row(chosen, amounts, content, name, gpus) for name in BACKENDS}
    refused = {name: reason for name, (stage, _) in BACKENDS.items() if (reason := refusal(chosen, stage, gpus))}
    return {
        "recipe": chosen.name, "gpus": gpus, "images": images, "crop": chosen.data.crop, "precision": chosen.precision,
        "parameters": {phase: sum(size.trained) + sum(size.frozen) for phase, size in amounts.items()},
        "backends": {name: {**found, "estimated": kept, "total": found["computed"] + kept} for name, found in rows.items()},
        "refused": refused,
        "activations": estimates,
        "measured": peak,
    }  # fmt: skip


def refusal(chosen: Recipe, stage: int, gpus: int) -> str | None:
    """Why the recipe does not run so, if it does not."""
    try:
        checks.check_launch(chosen, Launch("deepspeed" if stage else "ddp", stage, gpus, cuda=True, compiled=chosen.compile))
    except UserError as problem:
        return str(problem)
    return None


def said(found: dict[str, Any]) -> str:
    """Two tables in Markdown."""
    titles = (*COLUMNS[:3], "EMA", *COLUMNS[4:], "sum (computed)", "activations (estimated)", "total", "on the host")
    lines = [
        f"{found['recipe']} on {found['gpus']} GPUs, MiB per rank; {found['images']} images of {found['crop']} x {found['crop']} "
        f"per micro-batch, precision {found['precision']}; "
        + ", ".join(f"{phase} {count:,} parameters" for phase, count in found["parameters"].items()),
        "", f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|",
    ]  # fmt: skip
    for name, amounts in found["backends"].items():
        numbers = (amounts[key] for key in (*COLUMNS, "computed", "estimated", "total", "host"))
        lines.append(f"| {name} | " + " | ".join(mebibytes(number) for number in numbers) + " |")
    for name, reason in found["refused"].items():
        lines += ["", f"{name} is refused: {reason}"]
    phases = list(found["parameters"])
    lines += ["", f"| activations (estimated) | {' | '.join(f'step of the {phase}' for phase in phases)} |"]
    lines.append("|---" * (len(phases) + 1) + "|")
    for kind in found["activations"]:
        again = f", made again: {', '.join(kind['checkpointing'])}" if kind["checkpointing"] else ""
        lines.append(f"| precision {kind['precision']}{again} | " + " | ".join(mebibytes(kind[p]) for p in phases) + " |")
    peak = "no GPU here" if found["measured"] is None else f"{mebibytes(found['measured'])} MiB, one step of one process"
    return "\n".join([*lines, "", f"measured: {peak}"])


def mebibytes(amount: int) -> str:
    return f"{amount / MIB:,.0f}" if amount >= 10 * MIB or not amount else f"{amount / MIB:.1f}"


def show_memory(asked: Recipe, gpus: int, as_json: bool) -> None:
    """Under a launcher only the first rank does anything."""
    if int(os.environ.get("RANK", "0")) == 0:
        found = table(asked, gpus)
        print(said(found))
        if as_json:
            print(json.dumps(found), flush=True)
