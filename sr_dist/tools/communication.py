"""What the ranks exchange in a step, as rings do it, and the least time that takes.

With N ranks, S bytes of fp32 gradients of a network and A micro-batches, every rank sends

    DDP      all-reduce of gradients, once per step                                    2 (N - 1) / N  S
    ZeRO-1   all-reduce of gradients and all-gather of weights, once per step          3 (N - 1) / N  S
    ZeRO-2   all-reduce at every micro-batch, all-gather once                   (2 A + 1) (N - 1) / N  S
    ZeRO-3   reduce-scatter, and g all-gathers of weights, at every micro-batch  (1 + g) A (N - 1) / N  S

The papers' ZeRO 1 and 2 scatter the sums of gradients, half of an all-reduce; DeepSpeed adds them up in buckets of all ranks
(counted in its collectives, 0.19.8). g is 1 for a generator, whose weights stay whole until its backward pass, and GATHERS for a
discriminator, by its passes. DDP and ZeRO-1 exchange once, since the loop says which micro-batch is the last. Frozen weights are
not exchanged, except that ZeRO-3 gathers them. Not counted: statistics of batch normalization, losses over all ranks, the EMA's
gathering under ZeRO-3.

The rings of a node share its network adapters, so a ring runs at the speed of the link inside a node, or of all adapters of a
node together if that is less. Latency is not counted: real exchanges take longer, above all of small networks on many nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4
GATHERS = {"esrgan": 7}  # of the discriminator in a micro-batch, for its own loss and the generator's; counted
OTHER_GATHERS = 4
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


def step_bytes(stage: int, trained: int, frozen: int, gpus: int, micro_batches: int = 1, gathers: int = 1) -> float:
    """Bytes that a rank sends in a step for one network of so many trained and frozen values. Stage 0 is DDP."""
    share = (gpus - 1) / gpus
    if stage == 3:
        return share * FP32 * micro_batches * ((1 + gathers) * trained + gathers * frozen)
    times = {0: 2, 1: 3, 2: 2 * micro_batches + 1}[stage]
    return share * FP32 * times * trained


def gathers(objective: str, phase: str) -> int:
    """How often ZeRO-3 collects the weights of a network in a micro-batch."""
    return GATHERS.get(objective, OTHER_GATHERS) if phase == "discriminator" else 1


def seconds(amount: float, machine: Machine) -> float:
    return amount / (machine.ring * GB)
