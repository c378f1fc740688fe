"""Floating point operations, kernel launches and bytes of one micro-batch, counted without numbers.

Every operation of torch that is no view counts as one launch that reads its inputs and writes its outputs. So it is in eager
mode, where nothing is fused; `compile` needs fewer of both. Counted in fp32: with 16 bits most tensors are half as large. The
update of the weights is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sr_dist.recipe.sections import Recipe
from sr_dist.tools.flops import IMAGES, step_without_numbers

aten = torch.ops.aten
WITHOUT_KERNEL = (aten.detach, aten._unsafe_view, aten.alias, aten.lift_fresh, aten.empty, aten.empty_like, aten.new_empty)


@dataclass(frozen=True)
class Traffic:
    flops_per_image: float
    launches: int
    bytes: int


class Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if written and not func.is_view and func.overloadpacket not in WITHOUT_KERNEL:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.launches += 1
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written))
        return result


def micro_batch(recipe: Recipe, images: int) -> Traffic:
    """Forward and backward of all networks on so many images."""
    counted = max(images, IMAGES)  # batch normalization refuses one
    step = step_without_numbers(recipe, counted)
    with FlopCounterMode(display=False) as operations, Counter() as counter:
        step()
    return Traffic(operations.get_total_flops() / counted, counter.launches, counter.bytes * images // counted)
