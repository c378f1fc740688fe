"""Weights of networks that only spandrel knows: recognized by its loader, described as a section of the generator `spandrel`."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any, NamedTuple

from torch import nn

from sr_dist.models.generators import spandrel as generator
from sr_dist.models.weights_files import Tensors


class SpandrelFile(NamedTuple):
    section: dict[str, Any]
    scale: int
    tensors: Tensors  # under the names of the network


def recognize(tensors: Tensors) -> SpandrelFile | None:
    """None where spandrel is not installed, or does not know a network for super-resolution with these tensors."""
    if importlib.util.find_spec("spandrel") is None:
        return None
    import spandrel  # with all its networks, which takes a second

    try:
        opened = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(tensors))
    except Exception:  # its detection reads shapes and fails in many ways
        return None
    name = next(
        (name for name, arch in generator.ARCHS.items() if isinstance(opened.model, own_class(arch, name, opened.scale))), None
    )
    if name is None or opened.input_channels != opened.output_channels or opened.input_channels not in (1, 3):
        return None
    section = {"name": "spandrel", "arch": name, "channels": opened.input_channels, **options_of(opened.model, name)}
    return SpandrelFile(section, int(opened.scale), opened.model.state_dict())


def own_class(arch: generator.Arch, name: str, scale: int) -> Any:
    return generator.class_of(arch, name, scale if scale in arch.scales else arch.scales[0])


def options_of(network: nn.Module, name: str) -> dict[str, Any]:
    """The arguments of the constructor that a recipe can state: scale and channels follow from it."""
    derived = (*generator.SCALE, *generator.INPUTS, *generator.OUTPUTS)
    stated: dict[str, Any] = dict(getattr(network, "hyperparameters", {}))
    own = inspect.signature(type(network)).parameters  # what is stored may be more, such as `fast` of RealCUGAN
    return {key: plain(value) for key, value in stated.items() if key in own and key not in derived and is_plain(value)}


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str) or (
        isinstance(value, list | tuple) and all(map(is_plain, value))
    )  # fmt: skip


def plain(value: Any) -> Any:
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value
