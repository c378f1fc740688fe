"""Run by test_batch_norm.py on two ranks: compares GlobalBatchNorm with nn.BatchNorm on the images of both in one process."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sr_dist.core import ranks
from sr_dist.training.batch_norm import GlobalBatchNorm, synchronize

COUNTS = (3, 5)  # images of the ranks: they may differ
CASES: dict[str, dict[str, Any]] = {
    "images": {},
    "vectors": {"shape": (6,)},
    "channels_last": {"layout": torch.channels_last},
    "without weights": {"affine": False},
    "cumulative": {"momentum": None},
    "large mean": {"mean": 1e4},
    "bf16": {"dtype": torch.bfloat16},
    "without running statistics": {"running": False},
    "without biases": {"biases": False},
}


class Waits(TorchDispatchMode):
    """Operations for which the host of a GPU waits."""

    names = ("_local_scalar_dense", "nonzero", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().removeprefix("aten::").split(".")[0]
        mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        self.count.update([name] if name in self.names or mask else [])
        return operation(*args, **(kwargs or {}))


class Messages:
    """Counts the messages between ranks."""

    def __init__(self) -> None:
        self.count = 0
        for name in ("all_gather_into_tensor", "all_reduce"):
            setattr(ranks.dist, name, self._counted(getattr(ranks.dist, name)))

    def _counted(self, send: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            return send(*args, **options)

        return counted


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(sum(COUNTS), *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def own(values: Tensor) -> Tensor:
    """This rank's images."""
    return values.split(COUNTS)[ranks.rank()]


def difference(ours: Tensor, reference: Tensor) -> float:
    """The largest, over the largest value of the reference."""
    ours, reference = ours.detach().double(), reference.detach()
    return float((ours - reference).abs().max() / reference.abs().max().clamp(min=1e-12))


def norm_of(shape: tuple[int, ...], affine: bool, momentum: float | None, running: bool, biases: bool) -> nn.Module:
    """Without biases: as newer versions of torch make it."""
    kind = nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d
    norm = kind(shape[0], affine=affine, momentum=momentum, track_running_stats=running)
    if not biases:
        norm.bias = None
    for seed, parameter in enumerate(norm.parameters(), 1):
        parameter.data = numbers((), seed)[: shape[0]].float()
    return norm


def compare(
    messages: Messages, shape=(6, 7, 5), layout=None, mean=0.0, dtype=torch.float32, affine=True, momentum=0.1, running=True,
    biases=True,
):  # fmt: skip
    """The relative differences of two steps, each of which changes the running statistics, and what they cost."""
    reference = norm_of(shape, affine, momentum, running, biases).double()
    ours = synchronize(norm_of(shape, affine, momentum, running, biases))
    differences: dict[str, float] = {}
    waits = Waits()
    for seed in (3, 4):
        x, target = numbers(shape, seed) + mean, numbers(shape, seed + 10)
        values = own(x).to(dtype).clone()
        values = (values.contiguous(memory_format=layout) if layout else values).requires_grad_()
        before = messages.count
        with waits:
            y = ours(values)
            (y * own(target).to(dtype)).sum().backward()
        cost = messages.count - before
        # One process sees the same numbers, rounded as this one does.
        whole = x.to(dtype).double().requires_grad_()
        expected = reference(whole)
        (expected * target.to(dtype).double()).sum().backward()
        differences |= {"y": difference(y, own(expected)), "dx": difference(values.grad, own(whole.grad))}
        assert y.dtype == values.grad.dtype == dtype
    for name, parameter in ours.named_parameters():
        differences[name] = difference(ranks.all_reduce_sum(parameter.grad), dict(reference.named_parameters())[name].grad)
    for name, buffer in ours.named_buffers():
        differences[name] = difference(buffer, dict(reference.named_buffers())[name].double())
    return {"messages": cost, "waits": dict(waits.count), **differences}


def second_derivative(frozen: bool = False) -> dict[str, float]:
    """The gradient of E|d sum(C) / dx|^2, as in the R1 penalty, of a critic with batch normalization."""

    def critic(norm: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        norm.requires_grad_(not frozen)
        return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(36, 1)).double()

    def penalty_gradient(network: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    x = numbers((2, 5, 5), 5)
    expected = penalty_gradient(critic(nn.BatchNorm2d(4)), x)
    ours = penalty_gradient(synchronize(critic(nn.BatchNorm2d(4))), own(x))
    scale = max(float(value.abs().max()) for value in expected)
    return {
        str(number): float((ranks.all_reduce_sum(our) - their).abs().max()) / scale
        for number, (our, their) in enumerate(zip(ours, expected, strict=True))
    }


def main() -> None:
    torch.distributed.init_process_group("gloo")
    messages = Messages()
    results = {name: compare(messages, **options) for name, options in CASES.items()}
    results["second derivative"], results["second derivative, frozen"] = second_derivative(), second_derivative(frozen=True)
    alone = GlobalBatchNorm(2).eval()
    before = messages.count
    assert (
        alone(torch.ones(1, 2, 3, 3)).shape == (1, 2, 3, 3) and messages.count == before
    )  # in evaluation, no rank calls another
    every = ranks.all_gather(results)
    if ranks.is_first():
        print(json.dumps(every))
    ranks.destroy_group()


if __name__ == "__main__":
    main()
