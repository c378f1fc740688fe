"""What the ranks exchange in a step, as rings do it, and the least time that takes.

With N ranks, S bytes of fp32 gradients of a network and A micro-batches, every rank sends

    DDP      all-reduce of gradients, once per step                                    2 (N - 1) / N  S
    ZeRO-1   reduce-scatter of gradients and all-gather of weights, once per step      2 (N - 1) / N  S
    ZeRO-2   reduce-scatter at every micro-batch, all-gather once                (A + 1) (N - 1) / N  S
    ZeRO-3   reduce-scatter, and two all-gathers of weights, at every micro-batch    3 A (N - 1) / N  S

(Rajbhandari et al., ZeRO, section 7, for A = 1). DDP and ZeRO-1 exchange once, since the loop says which micro-batch is the last.
Frozen weights are not exchanged, except that ZeRO-3 gathers them. Not counted: statistics of batch normalization, losses over all
ranks, the EMA's gathering under ZeRO-3.

The rings of a node share its network adapters, so a ring runs at the speed of the link inside a node, or of all adapters of a
node together if that is less. Latency is not counted: real exchanges take longer, above all of small networks on many nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4
GB = 1_000_000_000


@dataclass(frozen=True)
class Machine:
    """Equal nodes. Speeds are GB/s of one GPU in one direction."""

    gpus: int
    per_node: int
    link: float
    network: float

    @property
    def ring(self) -> float:
        """The speed of a ring through all GPUs."""
        return self.link if self.gpus <= self.per_node else min(self.link, self.network * self.per_node)


def step_bytes(stage: int, trained: int, frozen: int, gpus: int, micro_batches: int = 1) -> float:
    """Bytes that a rank sends in a step for one network of so many trained and frozen values. Stage 0 is DDP."""
    share = (gpus - 1) / gpus
    if stage == 3:
        return share * FP32 * micro_batches * (3 * trained + 2 * frozen)
    times = micro_batches + 1 if stage == 2 else 2
    return share * FP32 * times * trained


def seconds(amount: float, machine: Machine) -> float:
    return amount / (machine.ring * GB)
