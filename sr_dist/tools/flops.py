"""How much a device computes while it trains: floating point operations of a step, counted once, over the time it took.

Products and convolutions count, one multiplication and addition as two, forward and backward, of all networks. Work that
is done twice to save memory counts once, so the share of the peak says how well the device is used for the recipe.
"""

from __future__ import annotations

import logging
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sr_dist.core.errors import first_line
from sr_dist.recipe.sections import Recipe
from sr_dist.training.step import Precision, take_step

logger = logging.getLogger("sr_dist")
IMAGES = 2  # in the batch that is counted: batch normalisation refuses one

# Words of a device's name -> TFLOP/s that its maker states, dense: 16 bits, TF32, fp32. None: it has no such units.
# The first entry whose words are all in the name counts.
PEAKS: dict[str, tuple[float | None, float | None, float]] = {
    "B200": (2250, 1125, 75),
    "GH200": (989, 494, 67),
    "H200": (989, 494, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 417, 60),
    "H100": (989, 494, 67),
    "A100": (312, 156, 19.5),
    "A40": (149.7, 74.8, 37.4),
    "A30": (165, 82, 10.3),
    "A10G": (70, 35, 35),
    "A10": (125, 62.5, 31.2),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30.3),
    "RTX 6000 Ada": (364, 182, 91.1),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "V100": (125, None, 15.7),
    "T4": (65, None, 8.1),
}


@dataclass(frozen=True)
class Work:
    """What training on one image costs, and what a rank's device could do."""

    flops_per_image: float
    ranks: int
    peak: float | None  # TFLOP/s of one device

    def at(self, images_per_second: float) -> dict[str, float]:
        """Columns of metrics.jsonl: TFLOP/s of one rank, and its share of the peak where that is known."""
        tflops = self.flops_per_image * images_per_second / self.ranks / 1e12
        return {"tflops": tflops, **({"mfu": tflops / self.peak} if self.peak else {})}


def work(chosen: Recipe, ranks: int, device: torch.device) -> Work | None:
    """None where it cannot be counted: whole images of any size, or an operation that needs real numbers."""
    if chosen.data.crop is None:
        return None
    try:
        flops = per_image(chosen)
    except Exception as problem:  # a part of the user's own may do anything; training does not depend on this
        logger.info(f"TFLOP/s are not reported: this recipe's operations cannot be counted ({first_line(problem)})")
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Work(flops, ranks, peak(name, chosen.precision, chosen.tf32))


def per_image(chosen: Recipe) -> float:
    """Operations of one step over the images in it, counted on tensors that have shapes but no numbers.

    On the meta device, for fake tensors would stay behind in whatever remembers a tensor between calls.
    """
    from sr_dist.tools import memory  # which needs the loop, and the loop the log, and the log `Work`

    once = memory.without_weights(chosen.model_copy(update={"checkpointing": ()}))
    with memory.quiet(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        objective, networks = memory.parts(once)
        batch = memory.random_batch(once, IMAGES, torch.device("meta"))
    with FlopCounterMode(display=False) as counted:
        engines = {name: GradientsOnly(network) for name, network in networks.items()}
        take_step(objective, engines, [batch], Precision("no", "meta"), dict.fromkeys(engines, 0.0))
    return counted.get_total_flops() / IMAGES


class GradientsOnly:
    """An engine that computes gradients and keeps none, so that tensors without numbers do."""

    def __init__(self, network: nn.Module) -> None:
        self.network = self.bare = network

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        torch.autograd.grad(loss, [p for p in self.bare.parameters() if p.requires_grad], allow_unused=True)

    def step(self, learning_rate: float) -> Tensor:
        return torch.zeros(())


def peak(device: str, precision: str, tf32: bool) -> float | None:
    """TFLOP/s that the maker states for the device's name in this precision, or None."""
    there = set(re.split(r"[\s-]+", device.lower()))
    for words, (half, tensor, single) in PEAKS.items():
        if set(words.lower().split()) <= there:
            return half if precision != "no" else tensor if tf32 and tensor else single
    return None
