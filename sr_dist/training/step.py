"""One training step, on any backend: `take_step` is what `fit`, the benchmark, the memory table and the operation count call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sr_dist.core import ranks
from sr_dist.core.batch import Batch, Reading, Terms
from sr_dist.core.contracts import Objective
from sr_dist.losses.instance_noise import Noisy
from sr_dist.models.tiling import check_size
from sr_dist.training.engine import StepEngine
from sr_dist.training.health import Observer, apart


class StepResult(NamedTuple):
    losses: dict[str, Tensor]  # this rank's part of every term and reading; their sum over ranks is the global batch's mean
    norms: dict[str, Tensor]  # gradient norm of every network


@dataclass(frozen=True)
class Precision:
    """The number format of forward passes, as a recipe names it."""

    name: Literal["no", "bf16", "fp16"]
    device_type: str

    def autocast(self) -> AbstractContextManager[Any]:
        """torch's own, because the accelerator's does nothing under DeepSpeed and the bare discriminator needs one too."""
        if self.name == "no":
            return nullcontext()
        return torch.autocast(self.device_type, torch.float16 if self.name == "fp16" else torch.bfloat16)


@dataclass(frozen=True)
class Around:
    """What a training adds to a step."""

    timed: Callable[[], AbstractContextManager[None]] = nullcontext  # entered around the first network's forward pass
    observer: Observer | None = None  # of steps whose health is measured
    noise: float = 0.0  # on the images that the discriminator sees
    average: nn.Module | None = None  # the averaged generator, where a term of the loss compares with its images

    def compared(self, batch: Batch) -> Batch:
        """The batch as the losses of the first network get it."""
        if self.average is None:
            return batch
        with torch.no_grad():
            return replace(batch, average=self.average(batch.lr))

    def shown(self, network: nn.Module | None, phase: str, batch: Batch, sr: Tensor) -> Any:
        """The discriminator as the loss of a phase gets it."""
        seen: Any = Noisy(network, self.noise, batch, phase) if network is not None and self.noise else network
        return self.observer.watch(seen, phase, batch, sr) if self.observer else seen


def take_step(
    objective: Objective, engines: Mapping[str, StepEngine], batches: Sequence[Batch], precision: Precision,
    learning_rates: Mapping[str, float], around: Around = Around(),
) -> StepResult:  # fmt: skip
    """Updates every network that has a learning rate once from the micro-batches of one step. All ranks must call.

    The generator (or the classifier) goes first, against the discriminator of the step before. The discriminator then learns
    from the same outputs, detached. So every sample costs one generator forward, with any number of micro-batches.
    """
    first, *others = engines
    discriminator = engines["discriminator"].bare if others else None
    result = StepResult({}, {})
    outputs: list[Tensor] = []
    observer, trained = around.observer, first in learning_rates

    with frozen(discriminator), torch.set_grad_enabled(trained):  # the bare module: gradients pass through it, none stay in it
        for engine, batch in accumulated(engines[first], batches):
            with precision.autocast():
                with around.timed():
                    output = objective(engine.network, batch)
                output = apart(output) if observer else output
                if first == "generator":
                    check_size(output, batch.lr, tuple(batch.hr.shape))
                seen = around.shown(discriminator, first, batch, output)
                terms = loss_of(objective, first)(seen, around.compared(batch), output) if trained else {}
            if trained and observer:
                observer.generator(batch, output, terms)
            if trained:
                engine.backward(weighted_sum(terms, batch, result.losses))
            outputs.append(output.detach())
    if trained:
        result.norms[first] = engines[first].step(learning_rates[first])

    for name in others:
        trained = name in learning_rates
        with frozen(None if trained else engines[name].bare):  # one that pauses is only measured
            for (engine, batch), output in zip(accumulated(engines[name], batches), outputs, strict=True):
                with precision.autocast():
                    network = engine.network if trained else engine.bare
                    terms = loss_of(objective, name)(around.shown(network, name, batch, output), batch, output)
                if observer:
                    observer.discriminator(batch, terms)
                loss = weighted_sum(terms, batch, result.losses)
                if trained:
                    engine.backward(loss)
        if trained:
            result.norms[name] = engines[name].step(learning_rates[name])
    return result


def accumulated(engine: StepEngine, batches: Sequence[Batch]) -> Iterator[tuple[StepEngine, Batch]]:
    """The engine with each micro-batch. Only the last one lets the ranks exchange gradients."""
    for i, batch in enumerate(batches):
        with engine.accumulating(last=i == len(batches) - 1):
            yield engine, batch


def loss_of(objective: Objective, phase: str) -> Callable[..., Terms]:
    """`generator_loss`, `discriminator_loss` or `classifier_loss` of an objective."""
    return getattr(objective, f"{phase}_loss")


def weighted_sum(terms: Terms, batch: Batch, losses: dict[str, Tensor]) -> Tensor:
    """The loss of a micro-batch, scaled by its share of the global batch and by the number of ranks.

    Gradients are then averaged over ranks and added over micro-batches, which gives those of the mean over the global batch,
    also where it does not divide. Adds every term and reading to `losses`.
    """
    for name, term in terms.items():
        key, value = (f"reading/{name}", term.value) if isinstance(term, Reading) else (name, term)
        losses[key] = losses.get(key, 0) + batch.share * value.detach()
    return torch.stack([term for term in terms.values() if not isinstance(term, Reading)]).sum() * batch.share * ranks.size()


@contextmanager
def frozen(network: nn.Module | None) -> Iterator[None]:
    """The network's parameters require no gradient inside."""
    trained = [p for p in network.parameters() if p.requires_grad] if network is not None else []
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
