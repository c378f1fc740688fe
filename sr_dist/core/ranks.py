"""The process group: the one home of torch.distributed, and of how accelerate opens it.

Every function also answers when there is one process and no group.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from sr_dist.core import launch_env
from sr_dist.core.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


def open_accelerator(precision: str) -> Accelerator:
    """Devices and the process group, as the launcher asks for them. All ranks must call."""
    from accelerate import Accelerator  # here, because it takes seconds to import and most users of this module need none
    from accelerate.utils import InitProcessGroupKwargs

    cuda = launch_env.uses_cuda()
    if precision == "fp16" and not cuda:
        raise UserError("precision: fp16 needs a GPU; bf16 and no run on the CPU")
    if precision == "fp16" and launch_env.under_deepspeed():
        raise UserError("precision: fp16 has no gradient scaler under ZeRO here; use bf16")
    # The backend is named because accelerate guesses wrongly on machines without a GPU, and only for a group, because in one
    # process the name alone makes it look for a group that does not exist.
    group = InitProcessGroupKwargs(backend="nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
    grouped = launch_env.ranks() > 1 or launch_env.under_deepspeed()
    # Precision is ours (`step.Precision`, a gradient scaler per engine): the accelerator has one scaler for all networks.
    return Accelerator(mixed_precision="no", kwargs_handlers=[group] if grouped else None)


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def wait() -> None:
    """All ranks must call."""
    if size() > 1:
        dist.barrier()


def total(values: Tensor) -> Tensor:
    """The sum over ranks, without gradient. All ranks must call."""
    values = values.detach().clone()
    if size() > 1:
        dist.all_reduce(values)
    return values


def global_mean(values: Tensor) -> Tensor:
    """The mean over the images of all ranks, (B, ...) -> a scalar with gradient, whatever each rank's share of them is.

    A rank's gradient is what all ranks' losses together say about its values: the backward pass adds them up. With the
    loop's scaling (share x ranks) and gradients that are averaged over ranks, it is the gradient in one process. All ranks
    must call, and call backward, in step.
    """
    if size() == 1:
        return values.float().mean()
    count = float(len(values))
    summed = _Sum.apply(torch.stack([values.float().mean() * count, torch.tensor(count, device=values.device)]))
    return summed[0] / summed[1]


class _Sum(torch.autograd.Function):
    """s = sum_r v_r on every rank r, so dL/dv_r = sum_q dL_q/ds."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


def gather(thing: Any) -> list[Any]:
    """Everybody's thing, in rank order, on every rank; for small things. All ranks must call."""
    if size() == 1:
        return [thing]
    things: list[Any] = [None] * size()
    dist.all_gather_object(things, thing)
    return things


def nodes() -> list[int]:
    """The number of every rank's node, as the launcher says it. All ranks must call."""
    alike = rank() // int(os.environ.get("LOCAL_WORLD_SIZE", size()))
    said = gather(int(os.environ.get("GROUP_RANK", alike)))
    numbers = {name: number for number, name in enumerate(sorted(set(said)))}
    return [numbers[name] for name in said]


def from_first(thing: Any) -> Any:
    """Rank 0's thing on every rank. All ranks must call."""
    if size() == 1:
        return thing
    box = [thing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class Vote:
    """Asks all ranks a yes-or-no question without waiting: what is asked in one step is answered in the next.

    It has a gloo group of its own, so it never waits for the device. All ranks must make one and ask in step.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if size() > 1 else None
        self._asked: tuple[Tensor, Any] | None = None

    def ask(self, yes: bool) -> bool:
        """Puts in this step's vote; True when anybody said yes in the step before."""
        answer = self.answer()
        ballot = torch.tensor([int(yes)])
        work = dist.all_reduce(ballot, op=dist.ReduceOp.MAX, group=self._group, async_op=True) if self._group else None
        self._asked = (ballot, work)
        return answer

    def answer(self) -> bool:
        """The outcome of the last question, waiting for it."""
        if self._asked is None:
            return False
        ballot, work = self._asked
        self._asked = None
        if work is not None:
            work.wait()
        return bool(ballot.item())


class Exchange:
    """Sums a block of so many MiB over all ranks through one backend, to see that it works and how fast. All ranks must make
    one and call it."""

    def __init__(self, backend: str, device: torch.device, mebibytes: int) -> None:
        self._group = dist.new_group(backend=backend)
        self._block = torch.ones(mebibytes << 18, device=device)

    def __call__(self) -> bool:
        """Whether the sum is right; returns when it is there."""
        self._block.fill_(1)
        dist.all_reduce(self._block, group=self._group)
        return bool((self._block == size()).all())


def leave() -> None:
    """Ends the process group; without it a good run can end as a killed one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def joined(part: Tensor) -> Tensor:
    """Everybody's part, of equal size, one after the other. All ranks must call."""
    if size() == 1:
        return part.detach().clone()
    whole = part.new_empty(part.numel() * size())
    dist.all_gather_into_tensor(whole, part.detach().contiguous())
    return whole
