"""Tensors of numbers that never change, made once per device and type: a copy from the host's memory waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

MOST = 256  # tensors; sizes of whole images never end
_constants: dict[Hashable, Tensor] = {}


def once(key: Hashable, make: Callable[[], Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What `make` returns, with this type on this device. Tensors without numbers (of `bench step --memory`) are not cached.

    A function that torch.compile meets and that calls this one needs `torch.compiler.assume_constant_result`.
    """
    place = (key, dtype, device)
    constant = _constants.get(place)
    if constant is None:
        with torch.inference_mode(False), torch.no_grad():  # it serves in training too
            constant = make().to(device, dtype)
        if type(constant) is Tensor and not constant.is_meta:
            if len(_constants) >= MOST:
                _constants.clear()
            _constants[place] = constant
    return constant


@torch.compiler.assume_constant_result
def numbers(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor."""
    return once(values, lambda: torch.tensor(values, dtype=dtype), dtype, device)
