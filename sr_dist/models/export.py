"""Writes a generator for other programs, by suffix: `.safetensors`, `.pth`, `.onnx`. The file is complete or absent.

.safetensors   the EMA under our names, with metadata that names the generator and the scale
.pth           {params: the raw weights, params_ema: the EMA}, of a weights file {params}; rrdb and msrresnet have
               BasicSR's names; options that no tensor shows are JSON under sr_dist
.onnx          the EMA as a graph, (B, C, h, w) named `lr` -> `sr`, for any B (batch), h (height), w (width)
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from sr_dist.core.errors import UserError
from sr_dist.core.outputs import check_place, write_output
from sr_dist.models import layouts, trained
from sr_dist.models.metadata import METADATA, generator_metadata
from sr_dist.models.model_card import UNKNOWN, Card
from sr_dist.models.onnx_outputs import GraphFailed, outputs
from sr_dist.models.other_readers import unreadable
from sr_dist.models.trained import TrainedGenerator
from sr_dist.models.weights_files import Tensors
from sr_dist.models.weights_formats import is_out_folder, unknown_licence

TEST_SIZES = ((2, 24, 20), (1, 17, 31), (3, 1, 1))  # images, height and width on which an exported graph is compared
TOLERANCE = 1e-4
CARD = "README.md"
OTHERS = "write a .safetensors or .pth"
AXES = {0: "batch", 2: "height", 3: "width"}  # of an ONNX graph


class Request(NamedTuple):
    """What to write beside the weights, and whether files may be replaced."""

    card: bool = False
    licence: str = UNKNOWN
    overwrite: bool = False


def export(source: str, out: str, scale: int | None = None, request: Request = Request()) -> list[str]:  # noqa: B008 - frozen
    """Writes the generator of a run or a weights file: -> lines that say what was written, and notes."""
    generator = trained.open_generator(source, "RUN", scale)
    run = Path(source) if trained.is_run(Path(source)) else None
    raw = raw_weights(generator.file, "RUN") if run else None
    file = Path(out)
    if is_out_folder(out):
        file = file / f"{generator.name if run else generator.file.stem}.safetensors"
    card = file.with_name(CARD) if request.card or is_out_folder(out) else None
    lines = [write(generator, raw, file, request.overwrite)]
    if card:
        text = Card(generator, file, run, request.licence).text().encode()
        write_new(card, text, request.overwrite)
        lines.append(f"{card}: model card, license: {request.licence}")
    notes = list(unreadable(generator.section, file.suffix))
    if card and (problem := unknown_licence(request.licence)):
        notes.append(problem)
    return lines + [f"note: {note}" for note in notes]


def write_new(out: Path, content: bytes, overwrite: bool) -> None:
    """Writes a file that does not exist, or has this content, or may be replaced."""
    check_place(out, "OUT")
    if not overwrite and out.is_file() and (out.stat().st_size != len(content) or out.read_bytes() != content):
        raise UserError(f"OUT: '{out}' would be overwritten; say --overwrite, or name another place")
    write_output(out, content, "OUT")


def raw_weights(ema: Path, key: str) -> Tensors:
    """The raw weights, which a run has beside their average in the same checkpoint."""
    return trained.read(ema.with_name("generator.safetensors"), key)[0]


def write(generator: TrainedGenerator, raw: Tensors | None, out: Path, overwrite: bool = False) -> str:
    if out.exists() and out.samefile(generator.file):
        raise UserError(f"OUT: '{out}' is the file that is read; name another")
    content, note = WRITERS[out.suffix](generator, raw)
    write_new(out, content, overwrite)
    return f"{out}: {generator.section['name']} x{generator.scale}, {len(content) / 2**20:.1f} MiB, {note}"


def _safetensors(generator: TrainedGenerator, raw: Tensors | None) -> tuple[bytes, str]:
    metadata = generator_metadata(generator.section, generator.scale)
    return save({name: value.contiguous() for name, value in generator.network.state_dict().items()}, metadata), "with metadata"


def _pth(generator: TrainedGenerator, raw: Tensors | None) -> tuple[bytes, str]:
    tensors = dict(generator.network.state_dict())
    content: dict[str, Any] = {"params": tensors} if raw is None else {"params": raw, "params_ema": tensors}
    note = " and ".join(content)
    if not _tensors_suffice(generator):
        content |= generator_metadata(generator.section, generator.scale)
        note += f", options as JSON under {METADATA}"
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue(), note


def _tensors_suffice(generator: TrainedGenerator) -> bool:
    """Whether the tensors alone are enough to rebuild the generator."""
    try:
        recognized = layouts.recognize(dict(generator.network.state_dict()), generator.file, "OUT")
        return recognized.scale == generator.scale and trained.complete(recognized.generator, "OUT") == generator.section
    except UserError:
        return False


def _onnx(generator: TrainedGenerator, raw: Tensors | None) -> tuple[bytes, str]:
    network, images = generator.network, torch.rand(TEST_SIZES[0][0], generator.channels, *TEST_SIZES[0][1:])
    any_size = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        network(images)  # some networks compute weights when they are called
    try:
        with _quietly():
            program = torch.onnx.export(
                network, (images,), dynamo=True, verbose=False, input_names=["lr"], output_names=["sr"],
                dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},),
            )  # fmt: skip
    except Exception as problem:  # exporters raise many kinds of errors
        name = generator.section["name"]
        raise UserError(
            f"OUT: torch cannot write '{name}' as ONNX for any size ({type(problem).__name__}); {OTHERS}"
        ) from problem
    assert program is not None
    model = program.model_proto
    name_axes(model.graph, generator.scale)
    content = model.SerializeToString()
    return content, f"within {_difference(content, generator):.0e} of torch in onnxruntime at {len(TEST_SIZES)} sizes"


def name_axes(graph: Any, scale: int) -> None:
    """Names the axes of any size. torch calls them s75 or s40, and those of the output by how they were computed."""
    axes = graph.input[0].type.tensor_type.shape.dim
    names = {axes[axis].dim_param: name for axis, name in AXES.items() if axes[axis].dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"[A-Za-z_]\w*", lambda word: names.get(word[0], word[0]), axis.dim_param)
    sides = graph.output[0].type.tensor_type.shape.dim
    sides[2].dim_param, sides[3].dim_param = (f"{scale}*{AXES[axis]}" if scale > 1 else AXES[axis] for axis in (2, 3))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' many messages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _difference(content: bytes, generator: TrainedGenerator) -> float:
    """The largest difference between graph and network, relative to the largest value where that is above one."""
    name, images = generator.section["name"], [torch.rand(n, generator.channels, *sides) for n, *sides in TEST_SIZES]
    try:
        made = outputs(content, [one.numpy() for one in images])
    except GraphFailed as problem:  # a graph may be of one branch that the size decides
        size = " x ".join(map(str, images[min(problem.done, len(images) - 1)].shape))
        raise UserError(f"OUT: onnxruntime cannot run the ONNX graph of '{name}' on {size} ({problem}); {OTHERS}") from problem
    worst = max(_relative(torch.from_numpy(actual), generator.network(one)) for actual, one in zip(made, images, strict=True))
    if not worst < TOLERANCE:
        raise UserError(f"OUT: the ONNX graph of '{name}' differs from the network by {worst:.1e}; {OTHERS}")
    return worst


def _relative(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))


WRITERS: dict[str, Callable[[TrainedGenerator, Tensors | None], tuple[bytes, str]]] = {
    ".safetensors": _safetensors,
    ".pth": _pth,
    ".onnx": _onnx,
}
