"""What a step shows of a run's health, from what it computes anyway. An `Observer` watches one step; `columns` makes its numbers.

It adds no forward pass, no random number and no gradient of a parameter, so weights and losses are the same with and without it.

The objective gets the discriminator in a `Watched` shell. An image is told by its memory: that of the batch's HR or that of sr.
Others (such as HR beside HR with noise, in one tensor) are compared with both on the device. So the objectives of users need not
do anything. Images that an objective augments before the discriminator sees them are not told, and the columns are absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sr_dist.core.batch import Batch, DiscriminatorOutput, Reading, Terms
from sr_dist.losses.adversarial import image_logits
from sr_dist.training.ema import Ema

FLAT = 1e-3  # a smaller gradient of the loss by a logit, times the number of logits, teaches nothing
HALF = 2.0**12  # fp16 loses the small gradients of a mean over pixels without a factor
Sums = dict[str, Tensor]


class Watched:
    """A discriminator that shows what it is given and what it answers."""

    def __init__(self, network: nn.Module, note: Callable[[Tensor, DiscriminatorOutput], None]) -> None:
        self._network, self._note = network, note

    def __call__(self, images: Tensor) -> DiscriminatorOutput:
        output = cast(DiscriminatorOutput, self._network(images))
        logits = apart(output.logits)
        if torch.is_grad_enabled() and not logits.requires_grad:  # of a discriminator that pauses
            logits = logits.detach().requires_grad_()
        output = output._replace(logits=logits)
        self._note(images, output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def apart(output: Tensor) -> Tensor:
    """The output of a network as a tensor of its own: a gradient by it ends before the hooks that a backend (DeepSpeed)
    has put on the output."""
    return output.view_as(output)


class Observer:
    """Watches one step. `sums` add up over micro-batches and ranks.

    `places` are the indices of each micro-batch in the global batch of `size` images. `through` says whether gradients may pass
    the discriminator twice; ZeRO-3 lets go of its weights after the first time. `only_logits` leaves the generator out.
    """

    def __init__(
        self, places: Sequence[range], size: int, through: bool = True, half: bool = False, only_logits: bool = False
    ) -> None:
        self.only_logits = only_logits
        self.places, self.size, self.through, self.factor = places, size, through, HALF if half else 1.0
        self.sums: Sums = {}
        self._number = {"generator": -1, "discriminator": -1}
        self._phase = ""
        self._seen: list[tuple[Tensor, Tensor, DiscriminatorOutput]] = []  # how much real, how much fake, and the answer

    def watch(self, network: nn.Module | None, phase: str, batch: Batch, sr: Tensor) -> Any:
        """The discriminator for the loss of a phase on its next micro-batch."""
        self._phase, self._seen = phase, []
        self._number[phase] += 1
        return network if network is None else Watched(network, lambda images, output: self._note(images, output, batch, sr))

    @torch.no_grad()
    def _note(self, images: Tensor, output: DiscriminatorOutput, batch: Batch, sr: Tensor) -> None:
        if len(images) >= len(batch):
            self._seen.append((_share_of(images, batch.hr), _share_of(images, sr), output))

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    # -------------------------------------------------------------------------------------------------------- phases

    def generator(self, batch: Batch, sr: Tensor, terms: Terms) -> None:
        """After the generator's loss of a micro-batch, before its backward pass."""
        if self.only_logits:
            return
        self._colours(batch, sr)
        if self.through or not self._seen:
            self._gradients(batch, sr, terms)

    def discriminator(self, batch: Batch, terms: Terms) -> None:
        """After the discriminator's loss of a micro-batch, before its backward pass."""
        place = self.places[self._number["discriminator"]]
        loss = batch.share * _sum(terms)
        for real, fake, output in self._seen:
            flat, pull = _gradients_by(loss, output.logits, batch)
            logits = torch.zeros(self.size, dtype=torch.float64, device=output.logits.device)
            logits[place.start : place.stop] = image_logits(output.logits.detach()[: len(batch)], len(batch))
            for kind, share in (("real", real), ("fake", fake)):
                self.add(f"logits_{kind}", logits * share)
                self.add(f"images_{kind}", share * len(batch))
                self.add(f"flat_{kind}", share * flat * len(batch))
                self.add(f"pull_{kind}", share * pull * len(batch))
                if output.class_logits is not None:
                    known = batch.label >= 0
                    self.add(f"labels_{kind}", share * known.sum())
                    right = output.class_logits[: len(batch)].argmax(1) == batch.label
                    self.add(f"right_{kind}", share * (right & known).sum())

    def _gradients(self, batch: Batch, sr: Tensor, terms: Terms) -> None:
        """The gradient of every term at sr. Terms that the discriminator's answers have a part in are adversarial."""
        parts: dict[str, list[Tensor]] = {"adversarial": [], "content": []}
        logits = [t for _, _, output in self._seen for t in output[:2] if t is not None and t.requires_grad]
        for name, term in terms.items():
            if isinstance(term, Reading) or not term.requires_grad:
                continue
            scaled = term * (batch.share * self.factor)
            gradient, *answers = torch.autograd.grad(scaled, [sr, *logits], retain_graph=True, allow_unused=True)
            if gradient is None:
                continue
            gradient = gradient.double() / self.factor
            self.add(f"gradient_{name}", gradient.square().sum())
            parts["adversarial" if any(a is not None for a in answers) else "content"].append(gradient)
        for kind, gradients in parts.items():
            if gradients:
                self.add(f"{kind}_gradient", torch.stack(gradients).sum(0).square().sum())

    def _colours(self, batch: Batch, sr: Tensor) -> None:
        for name, images in (("sr", sr.detach()), ("hr", batch.hr)):
            values = images.double()
            self.add(f"mean_{name}", batch.share * values.mean((0, 2, 3)))
            self.add(f"square_{name}", batch.share * values.square().mean((0, 2, 3)))

    @torch.no_grad()
    def weights(self, ema: Ema) -> None:
        """After the step: how far the averaged weights are from those of the generator."""
        own = ema.engine.without_padding
        weights = [weight.detach() for weight in own(ema.engine.local_weights())]
        averages = [average.to(weight.dtype) for average, weight in zip(own(ema.averages), weights, strict=True)]
        apart = torch._foreach_norm(torch._foreach_sub(weights, averages))
        self.add("ema_apart", torch.stack(apart).double().square().sum())
        self.add("ema_weights", torch.stack(torch._foreach_norm(weights)).double().square().sum())


def _share_of(images: Tensor, other: Tensor) -> Tensor:
    """1 where the first images are those others, else 0, on the device."""
    if images.untyped_storage().data_ptr() == other.untyped_storage().data_ptr():
        return torch.ones((), device=images.device)
    if images.shape[1:] != other.shape[1:]:
        return torch.zeros((), device=images.device)
    return (images[: len(other)] == other).all().float()


def _sum(terms: Terms) -> Tensor:
    return torch.stack([term for term in terms.values() if not isinstance(term, Reading)]).sum()


def _gradients_by(loss: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The share of logits by which the loss hardly changes, and the mean size of its gradients, times the number of logits.

    `loss` is this micro-batch's part of the global batch's mean.
    """
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
    if gradient is None:
        nothing = torch.zeros((), dtype=torch.float64, device=logits.device)
        return nothing, nothing
    own = gradient[: len(batch)].double().abs()
    own = own * (own.numel() / batch.share)
    return (own < FLAT).double().mean(), own.mean()


def logit_gradient(sums: Mapping[str, Tensor]) -> float | None:
    """The mean of both kinds of images, from the sums over all ranks."""
    images = sum(float(sums.get(f"images_{kind}", 0.0)) for kind in ("real", "fake"))
    return sum(float(sums[f"pull_{kind}"]) for kind in ("real", "fake")) / images if images else None


def columns(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """The columns of metrics.jsonl from the sums over all ranks."""
    row: dict[str, float] = {}
    logits = {kind: sums[f"logits_{kind}"] for kind in ("real", "fake") if _positive(sums, f"images_{kind}")}
    for kind in logits:
        images = sums[f"images_{kind}"]
        logits[kind] = logits[kind] * (len(logits[kind]) / images)  # 1, unless the objective shows images several times
        row[f"health/saturated_{kind}"] = float(sums[f"flat_{kind}"] / images)
        if _positive(sums, f"labels_{kind}"):
            row[f"health/class_accuracy_{kind}"] = float(sums[f"right_{kind}"] / sums[f"labels_{kind}"])
    if len(logits) == 2:
        real, fake = logits["real"], logits["fake"]
        row["health/accuracy_real"] = float((real > fake.mean()).double().mean())
        row["health/accuracy_fake"] = float((fake < real.mean()).double().mean())
        row["health/margin"] = float(real.mean() - fake.mean())
    if (gradient := logit_gradient(sums)) is not None:
        row["health/logit_gradient"] = gradient
    for name in sums:
        if name.startswith("gradient_"):
            row[f"health/{name}"] = math.sqrt(sums[name])
    if _positive(sums, "content_gradient") and "adversarial_gradient" in sums:
        row["health/adversarial_ratio"] = math.sqrt(sums["adversarial_gradient"] / sums["content_gradient"])
    if _positive(sums, "ema_weights"):
        row["health/ema_distance"] = math.sqrt(sums["ema_apart"] / sums["ema_weights"])
    return row | (_colour_columns(sums) if "mean_sr" in sums else {})


def _colour_columns(sums: Mapping[str, Tensor]) -> dict[str, float]:
    means = {name: sums[f"mean_{name}"] for name in ("sr", "hr")}
    spreads = {name: (sums[f"square_{name}"] - mean.square()).clamp(min=0).sqrt() for name, mean in means.items()}
    channels = ("r", "g", "b") if len(means["hr"]) == 3 else ("y",)
    apart, ratio = (means["sr"] - means["hr"]).tolist(), (spreads["sr"] / spreads["hr"].clamp(min=1e-6)).tolist()
    shifts = {f"health/mean_{channel}": value for channel, value in zip(channels, apart, strict=True)}
    return shifts | {f"health/spread_{channel}": value for channel, value in zip(channels, ratio, strict=True)}


def _positive(sums: Mapping[str, Tensor], name: str) -> bool:
    return name in sums and bool(sums[name] > 0)
