"""`network_g` of a network that spandrel has -> the options of spandrel's constructor.

spandrel keeps the authors' names, with few exceptions. Read in BasicSR at 8d56e3a (class names with capitals) and in
traiNNer-redux at 6862931 (functions in lower case, whose defaults are not those of the classes).
"""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any, NamedTuple

from sr_dist.core.config import Tree
from sr_dist.core.errors import UserError
from sr_dist.tools.basicsr.options import Options, shown


class Ours(NamedTuple):
    """The name of an option in spandrel, and where it differs the value for each of theirs."""

    name: str
    values: dict[str, Any] | None = None


OTHER_NAMES: dict[str, dict[str, Ours]] = {
    "RCAN": {
        "num_feat": Ours("n_feats"), "num_group": Ours("n_resgroups"), "num_block": Ours("n_resblocks"),
        "squeeze_factor": Ours("reduction"), "img_range": Ours("rgb_range"),
    },
    "RealPLKSR": {"upsampler": Ours("dysample", {"pixelshuffle": False, "dysample": True})},
    "MoSR": {"upsampler": Ours("upsampler", {"pixelshuffle": "ps", "dysample": "dys", "geoensemblepixelshuffle": "gps",
                                             "ps": "ps", "dys": "dys", "gps": "gps"})},
}  # fmt: skip
FIXED: dict[str, dict[str, Any]] = {  # what spandrel's network has without an option, or in spite of it
    "RCAN": {"res_scale": 1, "rgb_mean": [0.4488, 0.4371, 0.404]},
    "SPAN": {"num_blocks": 6},
    "DAT": {"unshuffle_mod": False},
}
MEMORY = ("use_checkpoint", "use_chk")  # of the training, not of the network: `checkpointing` of a recipe
SIX, EIGHT = [6] * 6, [6] * 8
DEFAULTS: dict[str, Tree] = {  # type of the file -> defaults there that spandrel's class, or our choice for it, does not have
    "RCAN": {"n_resblocks": 16},
    "HAT": {"window_size": 7},
    "SwinIR": {"window_size": 7},
    "Swin2SR": {"window_size": 7},
    "atd": {"img_size": 96, "embed_dim": 210, "depths": SIX, "num_heads": SIX, "window_size": 16, "num_tokens": 128,
            "reducted_dim": 20},
    "dat": {"split_size": [8, 32], "depth": SIX, "num_heads": SIX},
    "fdat": {"upsampler_type": "pixelshuffle"},
    "omnisr": {"res_num": 5},
    "plksr": {"ccm_type": "DCCM"},
    "rcan": {"norm": False},
    "realplksr": {"layer_norm": True},
    "rgt": {"depth": EIGHT, "num_heads": EIGHT, "mlp_ratio": 2.0},
    "span": {"feature_channels": 52, "norm": False},
    "swin2sr": {"window_size": 7},
    "swinir": {"window_size": 7},
}  # fmt: skip


def constructor_options(options: Options, kind: str, arch: str, derived: tuple[str, ...]) -> Tree:
    """Every option of the file that is not `derived` from scale and channels, with its type, and defaults of the file's network.

    An option without an equal is refused: the network would be another one.
    """
    parameters = _parameters(options, arch)
    section: Tree = {}
    for name in options.tree["network_g"]:
        if name == "type" or name in derived:
            continue
        if name in MEMORY:
            options.drop(f"network_g.{name}", "checkpointing: [generator] recomputes layers")
        elif not _fixed(options, arch, name, parameters):
            _take(options, arch, name, parameters, section)
    section |= {name: value for name, value in DEFAULTS.get(kind, {}).items() if name not in section}
    sizes = {name: one.default for name, one in parameters.items() if name not in section and name not in derived}
    missing = [f"{name} {shown(_plain(value))}" for name, value in sizes.items() if _is_size(value)]
    if missing:
        options.checks.append(f"network_g has no value for these, so spandrel's {arch} has its own: {', '.join(missing)}.")
    return section


def _parameters(options: Options, name: str) -> dict[str, inspect.Parameter]:
    """Of the constructor; empty without spandrel."""
    if importlib.util.find_spec("spandrel") is None:
        options.checks.append("spandrel is not installed, so the generator's options were not compared with its network.")
        return {}
    from sr_dist.models.generators import spandrel  # loads torch, which most files do without

    arch = spandrel.ARCHS[name]
    return {**inspect.signature(spandrel.class_of(arch, name, arch.scales[0])).parameters}


def _fixed(options: Options, arch: str, name: str, parameters: dict[str, inspect.Parameter]) -> bool:
    """Whether the network has this value anyway, and no option for it. Another value is refused."""
    from sr_dist.models.generators.spandrel import typed_like  # loads torch, which most files do without

    if name not in FIXED.get(arch, {}):
        return False
    path, fixed = f"network_g.{name}", FIXED[arch][name]
    value = typed_like(options.tree["network_g"][name], None, path)
    if value != fixed:
        raise UserError(f"{path}: {shown(value)}, but spandrel's '{arch}' has {shown(fixed)} always")
    if name not in parameters:
        options.drop(path, f"spandrel's {arch} has this value always")
    return name not in parameters


def _take(options: Options, arch: str, name: str, parameters: dict[str, inspect.Parameter], section: Tree) -> None:
    from sr_dist.models.generators.spandrel import typed_like  # loads torch, which most files do without

    path, given = f"network_g.{name}", options.tree["network_g"][name]
    ours = OTHER_NAMES.get(arch, {}).get(name, Ours(name))
    if ours.values is not None and str(given) not in ours.values:
        raise UserError(f"{path}: '{str(given)[:100]}' has no equal; choose from {', '.join(ours.values)}")
    if parameters and ours.name not in parameters:
        raise UserError(
            f"{path}: spandrel's '{arch}' has no such option, so the network would be another one; "
            f"remove it from the file if its value changes nothing"
        )
    if ours.name in section:
        raise UserError(f"{path}: the file has this option under two names")
    default = parameters[ours.name].default if ours.name in parameters else None
    section[ours.name] = ours.values[str(given)] if ours.values is not None else typed_like(given, default, path)
    options.note(path, f"generator.{ours.name}: {shown(section[ours.name])}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_size(default: Any) -> bool:
    """A whole number, or several: a width or a number of blocks, heads, ..."""
    one = default[0] if isinstance(default, list | tuple) and default else default
    return isinstance(one, int) and not isinstance(one, bool)
