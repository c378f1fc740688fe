"""Networks trained by other projects: recognized by their tensor names, renamed to ours, described as a generator section.

A layout is a table of names. The options of a network (blocks, widths, growth, channels, scale) are read from the shapes under
our own names, so the code for it is per generator and not per layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sr_dist.core.errors import UserError
from sr_dist.models.weights_files import Tensors

Rule = tuple[str, str | Callable[[re.Match[str]], str]]  # a pattern of a full name, and our name
WB = r"\.(weight|bias)"


@dataclass(frozen=True)
class Layout:
    generator: str  # the name of our file
    source: str  # the project whose names these are
    rules: Callable[[Iterable[str]], list[Rule]]  # given all names, because the first RRDB code numbers its layers
    options: dict[str, Any] = field(default_factory=dict)  # options that no shape shows

    @property
    def title(self) -> str:
        return f"{self.generator} ({self.source})"

    def renamed(self, names: Iterable[str]) -> dict[str, str]:
        """Their name -> our name, for every name that the layout covers; "" for tensors that we compute."""
        rules = [(re.compile(pattern), ours) for pattern, ours in self.rules(names)]
        result = {}
        for name in names:
            for pattern, ours in rules:
                if match := pattern.fullmatch(name):
                    result[name] = ours(match) if callable(ours) else match.expand(ours)
                    break
        return result


@dataclass(frozen=True)
class ForeignGenerator:
    """A generator read from another project's file. The scale is None where no tensor shows it."""

    layout: Layout
    generator: dict[str, Any]
    scale: int | None
    tensors: Tensors


def _table(*rules: Rule) -> Callable[[Iterable[str]], list[Rule]]:
    return lambda names: list(rules)


def _numbered_rrdb(names: Iterable[str]) -> list[Rule]:
    """model.0, model.1 (the trunk), an upsampling convolution at every third number, and two convolutions at the end."""
    numbers = [int(match[1]) for name in names if (match := re.match(r"model\.(\d+)\.", name))]
    last = max(numbers, default=0)
    ups: list[Rule] = [(rf"model\.{3 * up}{WB}", rf"conv_up{up}.\1") for up in range(1, (last - 4) // 3 + 1)]
    return [
        (rf"model\.0{WB}", r"conv_first.\1"),
        (rf"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0{WB}", r"body.\1.rdb\2.conv\3.\4"),
        (rf"model\.1\.sub\.\d+{WB}", r"conv_body.\1"),
        *ups,
        (rf"model\.{last - 2}{WB}", r"conv_hr.\1"),
        (rf"model\.{last}{WB}", r"conv_last.\1"),
    ]


BN = r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"


def _upsample(match: re.Match[str]) -> str:
    """Convolution, pixel shuffle and PReLU of every doubling, numbered consecutively."""
    doubling, part = divmod(int(match[1]), 3)
    return f"upsample.{doubling}.{('conv', 'shuffle', 'act')[part]}.{match[2]}"


def _srresnet(first: str, body: str, last: str) -> list[Rule]:
    """The layout that numbers the layers of a block, under the module names of several years."""
    block = r"trunk\.(\d+)\.(?:rcb|rc_block)"
    return [
        (rf"{first}\.0{WB}", r"conv_first.\1"),
        (rf"{first}\.1\.weight", "act_first.weight"),
        (rf"{block}\.0{WB}", r"body.\1.conv1.\2"),
        (rf"{block}\.1{BN}", r"body.\1.bn1.\2"),
        (rf"{block}\.2\.weight", r"body.\1.act.weight"),
        (rf"{block}\.3{WB}", r"body.\1.conv2.\2"),
        (rf"{block}\.4{BN}", r"body.\1.bn2.\2"),
        (rf"{body}\.0{WB}", r"conv_body.\1"),
        (rf"{body}\.1{BN}", r"bn_body.\1"),
        (rf"upsampling\.(\d+)\.upsample_block\.0{WB}", r"upsample.\1.conv.\2"),
        (r"upsampling\.(\d+)\.upsample_block\.2\.weight", r"upsample.\1.act.weight"),
        (rf"upsampling\.(\d+){WB}", _upsample),
        (rf"{last}{WB}", r"conv_last.\1"),
    ]


def _leftthomas(names: Iterable[str]) -> list[Rule]:
    """The trunk's last convolution is followed by a PReLU in the code of 2018, later by batch normalization."""
    normalized = "block7.1.running_mean" in names
    return [
        (rf"block1\.0{WB}", r"conv_first.\1"),
        (r"block1\.1\.weight", "act_first.weight"),
        (rf"block([2-6])\.(conv[12]|bn[12]|prelu){BN}", _block),
        (rf"block7\.0{WB}", r"conv_body.\1"),
        (rf"block7\.1{BN}", r"bn_body.\1") if normalized else (r"block7\.1\.weight", "act_body.weight"),
        (rf"block8\.(\d+)\.conv{WB}", r"upsample.\1.conv.\2"),
        (r"block8\.(\d+)\.prelu\.weight", r"upsample.\1.act.weight"),
        (rf"block8\.\d+{WB}", r"conv_last.\1"),
    ]


def _block(match: re.Match[str]) -> str:
    return f"body.{int(match[1]) - 2}.{'act' if match[2] == 'prelu' else match[2]}.{match[3]}"


def _swinir(names: Iterable[str]) -> list[Rule]:
    """One pixel shuffle at the end has no convolution before it."""
    block = r"layers\.(\d+)\.residual_group\.blocks\.(\d+)"
    direct = "conv_before_upsample.0.weight" not in names
    up: Rule = (rf"upsample\.0{WB}", r"enlarge.up.\1") if direct else (
        rf"upsample\.(\d){WB}", lambda match: f"enlarge.ups.{int(match[1]) // 2}.{match[2]}"
    )  # fmt: skip
    return [
        (rf"(conv_first|norm|layers\.\d+\.conv(?:\.\d)?){WB}", r"\1.\2"),
        (rf"patch_embed\.norm{WB}", r"embed_norm.\1"),
        (rf"{block}\.(norm\d){WB}", r"layers.\1.blocks.\2.\3.\4"),
        (rf"{block}\.attn\.qkv{WB}", r"layers.\1.blocks.\2.attention.qkv.\3"),
        (rf"{block}\.attn\.proj{WB}", r"layers.\1.blocks.\2.attention.project.\3"),
        (rf"{block}\.attn\.relative_position_bias_table", r"layers.\1.blocks.\2.attention.bias"),
        (rf"{block}\.attn\.relative_position_index", ""),
        (rf"{block}\.attn_mask", ""),
        (rf"{block}\.mlp\.fc1{WB}", r"layers.\1.blocks.\2.mlp.0.\3"),
        (rf"{block}\.mlp\.fc2{WB}", r"layers.\1.blocks.\2.mlp.2.\3"),
        (rf"conv_after_body((?:\.\d)?){WB}", r"conv_body\1.\2"),
        (rf"conv_before_upsample\.0{WB}", r"enlarge.conv_before.\1"),
        (rf"conv_up(\d){WB}", lambda match: f"enlarge.ups.{int(match[1]) - 1}.{match[2]}"),
        (rf"(conv_hr|conv_last){WB}", r"enlarge.\1.\2"),
        up,
    ]


def _rcan(names: Iterable[str]) -> list[Rule]:
    """spandrel's RCAN has the names of the authors, who number the convolutions behind the blocks of a group as one more."""
    names = list(names)
    blocks, groups = _blocks(names, r"body\.0\.residual_group\.(\d+)\."), _blocks(names, r"body\.(\d+)\.conv\.")
    block = r"body\.(\d+)\.residual_group\.(\d+)\.rcab"
    return [
        (rf"conv_first{WB}", r"head.0.\1"),
        (rf"{block}\.([02]){WB}", r"body.\1.body.\2.body.\3.\4"),
        (rf"{block}\.3\.attention\.1{WB}", r"body.\1.body.\2.body.3.conv_du.0.\3"),
        (rf"{block}\.3\.attention\.3{WB}", r"body.\1.body.\2.body.3.conv_du.2.\3"),
        (rf"body\.(\d+)\.conv{WB}", rf"body.\1.body.{blocks}.\2"),
        (rf"conv_after_body{WB}", rf"body.{groups}.\1"),
        (rf"upsample\.(\d+){WB}", r"tail.0.\1.\2"),
        (rf"conv_last{WB}", r"tail.1.\1"),
    ]


LAYOUTS = (
    Layout("rrdb", "names of BasicSR", _table(
        (rf"(conv_first|conv_body|conv_up\d|conv_hr|conv_last){WB}", r"\1.\2"),
        (rf"body\.(\d+)\.rdb(\d)\.conv(\d){WB}", r"body.\1.rdb\2.conv\3.\4"),
    )),
    Layout("rrdb", "names of the ESRGAN repository", _table(
        (rf"(conv_first|conv_last){WB}", r"\1.\2"),
        (rf"RRDB_trunk\.(\d+)\.RDB(\d)\.conv(\d){WB}", r"body.\1.rdb\2.conv\3.\4"),
        (rf"trunk_conv{WB}", r"conv_body.\1"),
        (rf"upconv(\d){WB}", r"conv_up\1.\2"),
        (rf"HRconv{WB}", r"conv_hr.\1"),
    )),
    Layout("rrdb", "numbered names of 2018", _numbered_rrdb),
    Layout("msrresnet", "names of BasicSR", _table(
        (rf"(conv_first|upconv\d|conv_hr|conv_last){WB}", r"\1.\2"),
        (rf"body\.(\d+)\.conv(\d){WB}", r"body.\1.conv\2.\3"),
    )),
    Layout("msrresnet", "names of KAIR", _table(
        (rf"(conv_first|upconv\d|conv_last){WB}", r"\1.\2"),
        (rf"recon_trunk\.(\d+)\.conv(\d){WB}", r"body.\1.conv\2.\3"),
        (rf"HRconv{WB}", r"conv_hr.\1"),
    )),
    Layout("msrresnet", "names of MMagic", _table(
        (rf"(conv_first|conv_hr|conv_last){WB}", r"\1.\2"),
        (rf"trunk_net\.(\d+)\.conv(\d){WB}", r"body.\1.conv\2.\3"),
        (rf"upsample(\d)\.upsample_conv{WB}", r"upconv\1.\2"),
    ), {"shuffle_activation": False}),
    Layout("srresnet", "our names", _table(
        (rf"(conv_first|conv_body|conv_last|body\.\d+\.conv\d|upsample\.\d+\.conv){WB}", r"\1.\2"),
        (rf"(bn_body|body\.\d+\.bn\d|upsample\.\d+\.bn){BN}", r"\1.\2"),
        (r"(act_first|act_body|body\.\d+\.act|upsample\.\d+\.act)\.weight", r"\1.weight"),
    )),
    Layout("srresnet", "names of Lornatang", _table(*_srresnet("conv1", "conv2", "conv3"))),
    Layout("srresnet", "older names of Lornatang", _table(*_srresnet("conv_block1", "conv_block2", "conv_block3"))),
    Layout("srresnet", "names of leftthomas", _leftthomas, {"output": "tanh"}),
    Layout("swinir", "names of SwinIR's authors", _swinir),
    Layout("srvgg", "names of Real-ESRGAN", _table((rf"body\.(\d+){WB}", r"body.\1.\2"))),
    Layout("spandrel", "RCAN, names of BasicSR", _rcan, {"arch": "RCAN"}),
    Layout("srcnn", "conv1 to conv3", _table((rf"(conv[123]){WB}", r"\1.\2"))),
)  # fmt: skip


def recognize(tensors: Tensors, file: Path, key: str) -> ForeignGenerator:
    """The generator that these tensors belong to, or a UserError that names the nearest layout."""
    tables = [(layout, layout.renamed(tensors)) for layout in LAYOUTS]
    layout, names = max(tables, key=lambda pair: len(pair[1]))
    strange = sorted(tensors.keys() - names.keys())
    if not names:
        known = ", ".join(sorted({known.generator for known in LAYOUTS} - {"spandrel"}))  # whose own loader is asked next
        raise UserError(
            f"{key}: '{file}' does not say which generator it fits, and names such as '{strange[0]}' belong to no known "
            f"generator ({known})"
        )
    if strange:
        raise UserError(
            f"{key}: '{file}' does not say which generator it fits; nearest is {layout.title}, but {len(strange)} of "
            f"{len(tensors)} tensors do not belong to it, such as '{strange[0]}'"
        )
    ours = completed({names[name]: value for name, value in tensors.items() if names[name]})
    try:
        options, scale = OPTIONS[layout.generator](ours)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as problem:
        reason = f"it has no '{problem.args[0]}'" if isinstance(problem, KeyError) else str(problem)
        raise UserError(f"{key}: '{file}' looks like {layout.title}, but {reason}") from None
    if options["channels"] not in (1, 3):
        raise UserError(f"{key}: '{file}' is {layout.title} for {options['channels']} channels; only 1 and 3 can be used")
    return ForeignGenerator(layout, {"name": layout.generator, **options, **layout.options}, scale, ours)


def completed(tensors: Tensors) -> Tensors:
    """Adds tensors that other projects omit and that change nothing: biases before batch normalization, and its counters."""
    added: Tensors = {}
    for name, value in tensors.items():
        if name.endswith(".running_mean"):
            stem = name.removesuffix(".running_mean")
            added[f"{stem}.num_batches_tracked"] = torch.tensor(0)
            added[f"{re.sub('bn', 'conv', stem)}.bias"] = torch.zeros_like(value)
    return {**added, **tensors}


def _blocks(names: Iterable[str], pattern: str) -> int:
    """The number of different values of the pattern's group."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def _rrdb(tensors: Tensors) -> tuple[dict[str, Any], int]:
    width, inputs = tensors["conv_first.weight"].shape[:2]
    channels = tensors["conv_last.weight"].shape[0]
    growth = tensors["body.0.rdb1.conv1.weight"].shape[0]
    fold = math.isqrt(inputs // channels)
    doublings = _blocks(tensors, r"conv_up(\d)")
    if fold * fold * channels != inputs or 2**doublings % fold:
        raise ValueError(f"it has {inputs} input and {channels} output channels")
    scale = 2**doublings // fold
    options = {"channels": channels, "num_blocks": _blocks(tensors, r"body\.(\d+)"), "width": width, "growth": growth}
    return {**options, "unshuffle": fold > 1 or scale > 2}, scale


def _msrresnet(tensors: Tensors) -> tuple[dict[str, Any], int]:
    width = tensors["conv_first.weight"].shape[0]
    channels = tensors["conv_last.weight"].shape[0]
    steps = [math.isqrt(tensors[f"upconv{i}.weight"].shape[0] // width) for i in range(1, 1 + _blocks(tensors, r"upconv(\d)"))]
    return {"channels": channels, "num_blocks": _blocks(tensors, r"body\.(\d+)"), "width": width}, math.prod(steps)


def _srresnet_options(tensors: Tensors) -> tuple[dict[str, Any], int]:
    width, channels = tensors["conv_first.weight"].shape[:2]
    tensors["body.0.bn1.running_mean"]  # KeyError without batch normalization: another network
    if "act_body.weight" not in tensors:
        tensors["bn_body.running_mean"]
    trunk_end = "prelu" if "act_body.weight" in tensors else "batch_norm"
    scale = 2 ** _blocks(tensors, r"upsample\.(\d+)")
    ends = {"trunk_end": trunk_end, "upsample_norm": "upsample.0.bn.running_mean" in tensors}
    return {"channels": channels, "num_blocks": _blocks(tensors, r"body\.(\d+)"), "width": width, **ends}, scale


def _swinir_options(tensors: Tensors) -> tuple[dict[str, Any], int]:
    width, channels = tensors["conv_first.weight"].shape[:2]
    first = "layers.0.blocks.0"
    table = tensors[f"{first}.attention.bias"]
    groups = [_blocks(tensors, rf"layers\.{group}\.blocks\.(\d+)") for group in range(_blocks(tensors, r"layers\.(\d+)"))]
    ups = [tensors[f"enlarge.ups.{number}.weight"].shape[0] for number in range(_blocks(tensors, r"enlarge\.ups\.(\d+)"))]
    if "enlarge.up.weight" in tensors:
        enlarge, scale = "direct", math.isqrt(tensors["enlarge.up.weight"].shape[0] // channels)
    elif "enlarge.conv_hr.weight" in tensors:
        enlarge, scale = "nearest", 2 ** len(ups)
    else:
        inside = tensors["enlarge.conv_before.weight"].shape[0]
        enlarge, scale = "shuffle", math.prod(math.isqrt(outside // inside) for outside in ups)
    options = {"channels": channels, "width": width, "depths": groups, "heads": table.shape[1], "enlarge": enlarge}
    sizes = {"window": (math.isqrt(table.shape[0]) + 1) // 2, "mlp_ratio": tensors[f"{first}.mlp.0.weight"].shape[0] / width}
    return {**options, **sizes, "group_end": "1conv" if "conv_body.weight" in tensors else "3conv"}, scale


def _srvgg_options(tensors: Tensors) -> tuple[dict[str, Any], int]:
    """ReLU and leaky ReLU have no tensors; the published files have PReLU."""
    width, channels = tensors["body.0.weight"].shape[:2]
    last = max(int(name.split(".")[1]) for name in tensors)
    scale = math.isqrt(tensors[f"body.{last}.weight"].shape[0] // channels)
    activation = "prelu" if "body.1.weight" in tensors else "leaky_relu"
    return {"channels": channels, "width": width, "num_blocks": last // 2 - 1, "activation": activation}, scale


def _rcan_options(tensors: Tensors) -> tuple[dict[str, Any], int]:
    """Adds the shift by DIV2K's mean, which the file does not have. No shape shows its `img_range`, which is 255 by default."""
    width, channels = tensors["head.0.weight"].shape[:2]
    ups = [tensors[f"tail.0.{2 * number}.weight"].shape[0] for number in range(_blocks(tensors, r"tail\.0\.(\d+)"))]
    mean = 255 * torch.tensor((0.4488, 0.4371, 0.4040))
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        tensors |= {f"{name}.weight": torch.eye(3).view(3, 3, 1, 1), f"{name}.bias": sign * mean}
    reduction = width // tensors["body.0.body.0.body.3.conv_du.0.weight"].shape[0]
    blocks = _blocks(tensors, r"body\.0\.body\.(\d+)\.body")
    sizes = {"n_resgroups": _blocks(tensors, r"body\.(\d+)\.body"), "n_resblocks": blocks, "n_feats": width}
    return {"channels": channels, **sizes, "reduction": reduction}, math.prod(math.isqrt(up // width) for up in ups)


def _srcnn(tensors: Tensors) -> tuple[dict[str, Any], None]:
    shapes = [tensors[f"conv{i}.weight"].shape for i in (1, 2, 3)]
    options = {"widths": [shapes[0][0], shapes[1][0]], "kernels": [shape[-1] for shape in shapes]}
    return {"channels": shapes[0][1], **options}, None


OPTIONS: dict[str, Callable[[Tensors], tuple[dict[str, Any], int | None]]] = {
    "rrdb": _rrdb,
    "msrresnet": _msrresnet,
    "srresnet": _srresnet_options,
    "swinir": _swinir_options,
    "srvgg": _srvgg_options,
    "spandrel": _rcan_options,
    "srcnn": _srcnn,
}
