"""The process group: the one home of torch.distributed, and of how accelerate opens it.

Every function also works in one process without a group.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sr_dist.core import launch_env
from sr_dist.core.child_processes import end_with_launcher
from sr_dist.core.constants import numbers
from sr_dist.core.errors import UserError, first_line

if TYPE_CHECKING:
    from accelerate import Accelerator

Value = TypeVar("Value")
EXTENSION = "deepspeed_shm_comm"  # DeepSpeed's messages between ranks on CPUs


def open_accelerator(precision: str) -> Accelerator:
    """Devices and the process group, as the launcher requests them. All ranks must call."""
    from accelerate import Accelerator  # takes seconds to import, and most users of this module do not need it
    from accelerate.utils import InitProcessGroupKwargs

    launch_env.check()
    end_with_launcher()
    cuda = launch_env.uses_cuda()
    if precision == "fp16" and not cuda:
        raise UserError("precision: fp16 needs a GPU; bf16 and no run on the CPU")
    if precision == "fp16" and launch_env.under_deepspeed():
        raise UserError("precision: fp16 has no gradient scaler under ZeRO; use bf16")
    # accelerate guesses the backend wrongly on machines without a GPU, so we name it. Without a group we must not name it:
    # in one process the name alone makes accelerate look for a group that does not exist.
    group = InitProcessGroupKwargs(backend="nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
    grouped = launch_env.num_ranks() > 1 or launch_env.under_deepspeed()
    if launch_env.under_deepspeed() and not cuda and launch_env.rank() == 0 and (folder := missing_extension()):
        print(f"note: DeepSpeed compiles {EXTENSION} for the CPU at its first start, into '{folder}'; minutes", flush=True)
    # We handle precision ourselves (`step.Precision`, a gradient scaler per engine): accelerate has one scaler for all networks.
    return Accelerator(mixed_precision="no", kwargs_handlers=[group] if grouped else None)


def missing_extension() -> Path | None:
    """The folder of torch's extensions, if it lacks EXTENSION."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "torch_extensions")
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or default)
    built = [*folder.glob(f"{EXTENSION}/*.so"), *folder.glob(f"*/{EXTENSION}/*.so")]
    return None if built else folder


def open_group() -> None:
    """The process group, where a launcher started several ranks. Commands open it before they look for files, which the first
    rank does for all (`from_first`)."""
    if launch_env.num_ranks() > 1:
        open_accelerator("no")


def size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    return rank() == 0


def barrier() -> None:
    """Waits for all ranks. All ranks must call."""
    if size() > 1:
        dist.barrier()


def destroy_group() -> None:
    """Ends the process group. Without it a run that succeeded can end with an error."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over ranks, without gradient. All ranks must call."""
    values = values.detach().clone()
    if size() > 1:
        dist.all_reduce(values)
    return values


def all_reduce_max(values: Tensor) -> Tensor:
    """The largest of all ranks' values, without gradient. All ranks must call."""
    values = values.detach().clone()
    if size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def global_mean(values: Tensor) -> Tensor:
    """The mean over the images of all ranks, (B, ...) -> a scalar with gradient. Ranks may have different numbers of images.

    The backward pass adds up the gradients of all ranks' losses with respect to the mean. With the loss scaled by
    share x ranks, and gradients averaged over ranks, the result is the gradient of one process. All ranks must call, and call
    backward, in the same order.
    """
    if size() == 1:
        return values.float().mean()
    count = float(len(values))
    summed = sum_with_gradient(torch.stack([values.float().mean() * count, numbers((count,), torch.float32, values.device)[0]]))
    return summed[0] / summed[1]


def sum_with_gradient(values: Tensor) -> Tensor:
    """The sum over ranks, of which every rank's loss is a function. All ranks must call, and call backward, in the same order."""
    return values if size() == 1 else _Sum.apply(values)


class _Sum(torch.autograd.Function):
    """s = sum_r v_r on every rank r, so dL/dv_r = sum_q dL_q/ds."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduce_sum(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)  # which has a derivative again


def all_gather(value: Value) -> list[Value]:
    """The values of all ranks, in rank order, on every rank. For small picklable values. All ranks must call."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def all_gather_flat(shard: Tensor) -> Tensor:
    """The shards of all ranks, of equal size, concatenated in rank order. All ranks must call."""
    if size() == 1:
        return shard.detach().clone()
    whole = shard.new_empty(shard.numel() * size())
    dist.all_gather_into_tensor(whole, shard.detach().contiguous())
    return whole


def broadcast_from_first(value: Value) -> Value:
    """The value of rank 0 on every rank. All ranks must call."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_first(work: Callable[[], Value]) -> Value | None:
    """Calls `work` on the first rank; returns its value there, and None on other ranks. If it fails, all ranks fail, so that none
    waits for one that has ended. All ranks must call."""
    results: list[Value] = []
    from_first(lambda: results.append(work()))
    return results[0] if results else None


def from_first(work: Callable[[], Value]) -> Value:
    """Calls `work` on the first rank and returns its value, which must be small and picklable, on all. If it fails, all ranks
    fail. All ranks must call."""
    problem: Exception | None = None
    outcome: tuple[str, Any] = ("value", None)
    if is_first():
        try:
            outcome = ("value", work())
        except Exception as caught:
            problem, outcome = caught, _described(caught)
    kind, value = broadcast_from_first(outcome)
    if kind != "value":
        raise _on_all_ranks(problem, kind, value)
    return value


def _described(problem: Exception) -> tuple[str, str]:
    """The kind of an error and its message, for other ranks: a `UserError` says the same on all of them."""
    return ("mistake", str(problem)) if isinstance(problem, UserError) else ("failure", first_line(problem))


def _on_all_ranks(own: Exception | None, kind: str, text: str) -> Exception:
    """The error to raise on this rank, when all ranks raise one: its own, or that of another rank."""
    problem = own or (UserError if kind == "mistake" else RuntimeError)(text)
    if isinstance(problem, UserError):
        problem.on_all_ranks = kind == "mistake"
    return problem


def nodes() -> list[int]:
    """The node number of every rank, from the launcher's environment. All ranks must call."""
    stated = launch_env.node()
    groups = all_gather(rank() // launch_env.num_local_ranks() if stated is None else stated)  # else nodes are equal
    numbers = {group: number for number, group in enumerate(sorted(set(groups)))}
    return [numbers[group] for group in groups]


class DelayedAny:
    """Whether a flag is set on any rank, known one step later, so that no step waits for the answer.

    It has a gloo group of its own, so it never waits for the device. All ranks must construct one and submit in every step.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo") if size() > 1 else None
        self._pending: tuple[Tensor, dist.Work | None] | None = None

    def submit(self, flag: bool) -> bool:
        """Submits this step's flag; returns whether any rank's flag was set in the step before."""
        previous = self.result()
        flags = torch.tensor([int(flag)])
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True) if self._group else None
        self._pending = (flags, work)
        return previous

    def result(self) -> bool:
        """Waits for the result of the last `submit`."""
        if self._pending is None:
            return False
        flags, work = self._pending
        self._pending = None
        if work is not None:
            work.wait()
        return bool(flags.item())


class AllReduceTest:
    """Sums a block of memory over all ranks through one backend, to test that it works and to time it.

    All ranks must construct one and call it.
    """

    def __init__(self, backend: str, device: torch.device, mebibytes: int) -> None:
        self._group: Any = dist.new_group(backend=backend)
        self._block = torch.ones(mebibytes << 18, device=device)

    def __call__(self) -> bool:
        """Whether the sum is right. Returns after it has been computed."""
        self._block.fill_(1)
        dist.all_reduce(self._block, group=self._group)
        return bool((self._block == size()).all())


@contextmanager
def failing_together() -> Iterator[None]:
    """An error inside ends all ranks, of which the others would wait for this one: each raises its own, or else that of another
    rank. All ranks must enter."""
    own: Exception | None = None
    try:
        yield
    except Exception as caught:  # such as one of a file that only this rank reads
        own = caught
    outcomes = [outcome for outcome in all_gather(own and _described(own)) if outcome]
    if outcomes:
        raise _on_all_ranks(own, *min(outcomes, key=lambda outcome: outcome[0]))  # failures before mistakes
