"""Tensors of numbers that never change, made once per device and type: a copy from the host's memory waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

MOST = 256 * 2**20  # bytes on a device; sizes of whole images never end
_constants: dict[Hashable, Tensor] = {}  # the one that was used last is last


def once(key: Hashable, make: Callable[[], Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What `make` returns, with this type on this device. Tensors without numbers (of `bench step --memory`) are not cached.

    A function that torch.compile meets and that calls this one needs `torch.compiler.assume_constant_result`.
    """
    place = (key, dtype, device)
    constant = _constants.pop(place, None)
    if constant is None:
        with torch.inference_mode(False), torch.no_grad():  # it serves in training too
            constant = make().to(device, dtype)
        if type(constant) is not Tensor or constant.is_meta or constant.nbytes > MOST:
            return constant
        _make_room(constant)
    _constants[place] = constant
    return constant


def _make_room(constant: Tensor) -> None:
    """Forgets those of this device that were not used for the longest time, until there is room for one more."""
    room = MOST - constant.nbytes
    others = [(place, other) for place, other in reversed(tuple(_constants.items())) if other.device == constant.device]
    for place, other in others:
        room -= other.nbytes
        if room < 0:
            _constants.pop(place, None)


@torch.compiler.assume_constant_result
def numbers(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor."""
    return once(values, lambda: torch.tensor(values, dtype=dtype), dtype, device)
