"""Every network for single-image super-resolution of spandrel (MIT), a collection of networks whose licences are MIT, Apache-2.0,
or public domain: https://github.com/chaiNNer-org/spandrel. `pip install 'sr_dist[spandrel]'`.

    generator: {name: spandrel, arch: SPAN, feature_channels: 32}

Options are the arguments of the network's constructor under their own names; scale and channels are the recipe's. Tensors have
the names of the authors' files. Images are [0, 1] on both sides, and of any size: what a network needs (whole windows, a
smallest side) is added on the right and below and cut off again.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor, nn

from sr_dist.core.config import Settings, Whole
from sr_dist.core.contracts import Generator
from sr_dist.core.errors import UserError, first_line, nearest, with_article
from sr_dist.core.launch_env import Launch
from sr_dist.recipe.sections import Recipe

SCALE = ("upscale", "upscale_factor", "up_scale", "upscaling_factor", "scale")  # names of the argument
INPUTS = ("in_chans", "num_in_ch", "in_channels", "in_nc", "inp_channels", "in_ch", "n_colors")
OUTPUTS = ("num_out_ch", "out_channels", "out_nc", "out_ch")
SHUFFLE = {"upsampler": "pixelshuffle"}


@dataclass(frozen=True)
class Arch:
    """A network of spandrel: its class, and what its images need."""

    place: str  # folder and class; with {} for the scale
    minimum: int = 1  # of the sides of LR
    multiple: int | str = 1  # of the sides of LR, or the option that has it
    scales: tuple[int, ...] = (1, 2, 3, 4, 8)
    defaults: dict[str, Any] = field(default_factory=dict)  # where the constructor's make no network for super-resolution
    run: Callable[[Any, Callable[[Tensor], Any], Tensor], Tensor] | None = None  # (network, its forward, LR) -> SR


def _first(network: Any, forward: Callable[[Tensor], Any], lr: Tensor) -> Tensor:
    return forward(lr)[0]


def _in_patches(network: Any, forward: Callable[[Tensor], Any], lr: Tensor) -> Tensor:
    """IPT sees squares of one size. Larger images are cut, one by one, as its authors do."""
    lr = lr * network.rgb_range
    if lr.shape[-2:] == (network.patch_size, network.patch_size):
        return forward(lr) / network.rgb_range
    model = importlib.import_module("spandrel.architectures.IPT.__arch.model").Model(_Call(network, forward))
    return torch.cat([model.forward(image, 0) for image in lr.split(1)]) / network.rgb_range


def _on_copy(network: Any, forward: Callable[[Tensor], Any], lr: Tensor) -> Tensor:
    """RCAN scales its input in place."""
    return forward(lr.clone())


def _one_by_one(network: Any, forward: Callable[[Tensor], Any], lr: Tensor) -> Tensor:
    """SeemoRe chooses its experts for one image, except in training."""
    return forward(lr) if network.training else torch.cat([forward(image) for image in lr.split(1)])


def _as_computed_before(network: Any, forward: Callable[[Tensor], Any], lr: Tensor) -> Tensor:
    """SPAN computes weights for evaluation in every call, which ends the process of torch's exporter. A graph has those of the
    call before."""
    computing = [module for module in network.modules() if torch.compiler.is_exporting() and hasattr(module, "update_params")]
    for module in computing:
        module.update_params = lambda: None  # hides the method
    try:
        return forward(lr)
    finally:
        for module in computing:
            del module.update_params


class _Call:
    """A network as IPT's code for cutting calls it."""

    def __init__(self, network: Any, forward: Callable[[Tensor], Any]) -> None:
        self._network, self.forward = network, forward

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


ARCHS = {
    "ATD": Arch("ATD:ATD", 16, defaults=SHUFFLE),
    "CRAFT": Arch("CRAFT:CRAFT", 16, 16),
    "Compact": Arch("Compact:Compact"),
    "DAT": Arch("DAT:DAT", 16),
    "DCTLSA": Arch("DCTLSA:DCTLSA", 16),
    "DITN": Arch("DITN:DITN", 1, "patch_size"),
    "DRCT": Arch("DRCT:DRCT", 16, 16, defaults=SHUFFLE),
    "ESRGAN": Arch("ESRGAN:ESRGAN", 2),
    "FDAT": Arch("FDAT:FDAT", 8),
    "GRL": Arch("GRL:GRL", 16, defaults={**SHUFFLE, "window_size": 8, "stripe_size": [8, 8]}),
    "HAT": Arch("HAT:HAT", 16, defaults={"window_size": 16}),
    "IPT": Arch("IPT:IPT", 1, run=_in_patches),
    "MMRealSR": Arch("MMRealSR:MMRealSR", 16, scales=(4,), run=_first),
    "MoESR": Arch("MoESR:MoESR", 2),
    "MoSR": Arch("MoSR:MoSR"),
    "OmniSR": Arch("OmniSR:OmniSR", 16),
    "PLKSR": Arch("PLKSR:PLKSR"),
    "RCAN": Arch("RCAN:RCAN", run=_on_copy),
    "RGT": Arch("RGT:RGT", 16),
    "RealCUGAN": Arch("RealCUGAN:UpCunet{}x", 40, 4, scales=(2, 3, 4)),
    "RealPLKSR": Arch("PLKSR:RealPLKSR"),
    "SAFMN": Arch("SAFMN:SAFMN", 8, 8, defaults={"dim": 36}),
    "SPAN": Arch("SPAN:SPAN", run=_as_computed_before),
    "SeemoRe": Arch("SeemoRe:SeemoRe", 16, run=_one_by_one),
    "SwiftSRGAN": Arch("SwiftSRGAN:SwiftSRGAN"),
    "Swin2SR": Arch("Swin2SR:Swin2SR", 16, defaults={**SHUFFLE, "window_size": 8}),
    "SwinIR": Arch("SwinIR:SwinIR", 16, defaults={**SHUFFLE, "window_size": 8}),
}


WITH_UNUSED = ("FDAT", "SwiftSRGAN")


class Options(Settings):
    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)


class Config(Options):
    arch: str
    """The network, such as SPAN, DAT or RealPLKSR."""
    channels: Annotated[Literal[1, 3], Whole] = 3


def build(config: Config, scale: int) -> Generator:
    arch = arch_of(config.arch)
    if scale not in arch.scales:
        scales = ", ".join(map(str, arch.scales))
        raise UserError(f"scale: spandrel's '{config.arch}' enlarges by {scales}, not {scale}")
    network_class = class_of(arch, config.arch, scale)
    options = constructor_options(network_class, arch, config, scale)
    try:
        network = network_class(**options)
    except Exception as problem:  # constructors check nothing, and fail in as many ways as there are networks
        if torch.empty(0).is_meta:  # they compute with tensors, which without memory have no values
            raise NotImplementedError(str(problem)) from None
        raise UserError(
            f"generator: spandrel's '{config.arch}' cannot be built with these options: {first_line(problem)}"
        ) from None
    return fitted(network, arch, scale, multiple_of(arch, network_class, options))


def check(config: Config, recipe: Recipe) -> None:
    """Tries the network, because constructors take options with which it cannot run: on the smallest image, which is cheap, and
    where that is too small for its windows on one as large as in training."""
    if not config.__pydantic_extra__:
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers without weights, which fail
        network: Any = build(config, recipe.scale)
        network.eval()
        smallest = network.least + -network.least % network.grain
        problem = _trial(network, config.channels, smallest)
        side = (recipe.data.crop or 0) // recipe.scale
        if problem and side > smallest:
            problem = _trial(network, config.channels, side)
    if problem:
        raise UserError(f"generator: spandrel's '{config.arch}' {problem}")


def _trial(network: Any, channels: int, side: int) -> str | None:
    """What is wrong with a network that enlarges a square, or None."""
    try:
        shape = tuple(network(torch.zeros(1, channels, side, side)).shape)
    except Exception as problem:  # as many kinds as there are networks
        return f"cannot run with these options: {first_line(problem)}"
    wanted = (1, channels, side * network.factor, side * network.factor)
    return None if shape == wanted else f"with these options makes {shape} of {(1, channels, side, side)}, not {wanted}"


def from_scratch(config: Config) -> str | None:
    """SPAN's authors multiply LR by 255 and divide nothing, so new weights make images in the tens; trained ones are [0, 1]."""
    norm = typed_like((config.__pydantic_extra__ or {}).get("norm", True), True, "generator.norm")
    if config.arch != "SPAN" or not norm:
        return None
    return (
        "SPAN multiplies its input by 255 (norm: true, as its authors' files have it), so new weights begin far from images; "
        "--generator.norm=false begins near them"
    )


def refuses(config: Config, launch: Launch) -> str | None:
    """Only one process without compilation was tried for all; a network with unused or shared weights may fail elsewhere."""
    if launch.ranks > 1 and config.arch in WITH_UNUSED:
        return "it has weights that its forward pass does not use, for which DDP waits; use one process, or another network"
    if launch.stage and config.arch == "SPAN":
        return "it computes weights from others outside of the forward pass, which ZeRO does not see; use DDP"
    return None


def multiple_of(arch: Arch, network_class: Any, options: dict[str, Any]) -> int:
    if isinstance(arch.multiple, int):
        return arch.multiple
    return int(options.get(arch.multiple, inspect.signature(network_class).parameters[arch.multiple].default))


def arch_of(name: str) -> Arch:
    if name not in ARCHS:
        raise UserError(f"generator.arch: no '{name[:100]}' among spandrel's networks for super-resolution{nearest(name, ARCHS)}")
    return ARCHS[name]


def class_of(arch: Arch, name: str, scale: int) -> Any:
    folder, class_name = arch.place.format(scale).split(":")
    try:
        return getattr(importlib.import_module(f"spandrel.architectures.{folder}"), class_name)
    except ModuleNotFoundError as problem:
        if (problem.name or "").split(".")[0] != "spandrel":
            raise
        raise UserError(f"generator.arch: '{name}' needs a newer spandrel, or one: pip install -U 'sr_dist[spandrel]'") from None


def constructor_options(network_class: Any, arch: Arch, config: Config, scale: int) -> dict[str, Any]:
    """The arguments of the constructor: our defaults, those of the recipe, scale and channels."""
    parameters = {name: one for name, one in inspect.signature(network_class).parameters.items() if name not in ("norm_layer",)}
    own = {name: next((one for one in names if one in parameters), None) for name, names in (("scale", SCALE), ("in", INPUTS))}
    fixed: dict[str, Any] = {one: config.channels for one in (own["in"], *OUTPUTS) if one in parameters}
    if own["scale"]:
        fixed[own["scale"]] = [scale] if config.arch == "IPT" else scale
    if config.channels != 3 and not own["in"]:
        raise UserError(f"generator.channels: {config.channels}, but spandrel's '{config.arch}' is for three channels")
    given = config.__pydantic_extra__ or {}
    for name in given:
        if name in fixed or name not in parameters:
            problem = "follows from scale and channels" if name in fixed else "is no option of it"
            known = nearest(name, ["arch", "channels", *(parameters.keys() - fixed.keys())], "generator.")
            raise UserError(f"generator.{name}: unknown key; for spandrel's '{config.arch}' it {problem}{known}")
    values = {name: typed_like(value, parameters[name].default, f"generator.{name}") for name, value in given.items()}
    return {**arch.defaults, **values, **fixed}


def typed_like(value: Any, default: Any, key: str) -> Any:
    """A value of a recipe, which may be text, in the type of the constructor's default."""
    if isinstance(value, list | tuple):
        return [typed_like(one, None, key) for one in value]
    if isinstance(value, str) and not isinstance(default, str):
        word = {"true": "True", "yes": "True", "false": "False", "no": "False", "none": "None", "null": "None"}.get(
            value.lower(), value
        )
        try:
            value = ast.literal_eval(word)
        except (ValueError, SyntaxError):
            value = word
    if isinstance(default, bool | int | float | str) and isinstance(value, bool | int | float | str):
        numbers = isinstance(default, int | float) and isinstance(value, int | float)
        if isinstance(default, bool) != isinstance(value, bool) or not (numbers or type(default) is type(value)):
            raise UserError(
                f"{key}: {value!r} is {with_article(type(value).__name__)}; it must be {with_article(type(default).__name__)}, "
                f"such as {default}"
            )
    return list(value) if isinstance(value, tuple) else value


class Fitted:
    """Before its class in the order of methods: images of any size go in, and what was added is cut off."""

    arch: Arch
    factor: int  # the scale
    least: int  # side of LR
    grain: int

    def forward(self, lr: Tensor) -> Tensor:
        """(B, C, h, w) in [0, 1] -> (B, C, h scale, w scale)."""
        height, width = lr.shape[-2:]
        own: Callable[[Tensor], Any] = super().forward  # type: ignore[misc]
        whole = enlarged_to_fit(lr, self.least, self.grain)
        sr = self.arch.run(self, own, whole) if self.arch.run else own(whole)
        return sr[..., : height * self.factor, : width * self.factor]


def enlarged_to_fit(lr: Tensor, least: int, grain: int) -> Tensor:
    """Reflected up to the smallest side, and to a multiple of `grain`; what is too small to be reflected is repeated."""
    height, width = lr.shape[-2:]
    missing = [max(least - side, 0) for side in (height, width)]
    missing = [more + -(side + more) % grain for more, side in zip(missing, (height, width), strict=True)]
    small = missing[0] >= height or missing[1] >= width
    return F.pad(lr, (0, missing[1], 0, missing[0]), mode="replicate" if small else "reflect") if any(missing) else lr


def fitted(network: nn.Module, arch: Arch, scale: int, grain: int) -> Any:
    """The network itself, so that its tensors have their authors' names, with a forward for images of any size."""
    for name, parameter in network.named_parameters():
        if ".eval_conv." in f".{name}":  # of SPAN: computed from the trained weights for evaluation
            parameter.requires_grad_(False)
    network.__class__ = type(f"Fitted{type(network).__name__}", (Fitted, type(network)), {})
    size = getattr(network, "patch_size", 1) if arch.run is _in_patches else arch.minimum
    vars(network).update(arch=arch, factor=scale, grain=grain, least=size)
    return network
