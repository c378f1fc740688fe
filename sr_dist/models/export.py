"""A generator as a file for others, by suffix: `.safetensors`, `.pth`, `.onnx`. The file appears whole or not at all.

.safetensors   the EMA under our names, with metadata that says the generator and the scale
.pth           {params: the raw weights, params_ema: the EMA}, of a weights file {params}; rrdb and msrresnet have
               BasicSR's names; what tensors do not show stands as JSON under sr_dist
.onnx          the EMA as a graph, (B, C, h, w) named `lr` -> `sr`, for any B, h and w
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from sr_dist.core.errors import UserError
from sr_dist.core.files import write_whole
from sr_dist.models import layouts, trained
from sr_dist.models.trained import METADATA, TrainedGenerator
from sr_dist.models.weights_files import Tensors

TRIED_ON = ((2, 24, 20), (1, 17, 31), (3, 1, 1))  # images, height and width that an exported graph is compared on
TOLERANCE = 1e-4


def export(source: str, out: Path, scale: int | None = None) -> str:
    """Writes the generator of a run or a weights file: -> a line that says what was written."""
    restorer = trained.open_generator(source, "RUN", scale)
    return write(restorer, raw_weights(source, "RUN"), out)


def raw_weights(source: str, key: str) -> Tensors | None:
    """The weights as the optimizer left them: a run has them beside their average, a file does not."""
    run = Path(source)
    return trained.read(trained.newest_weights(run, "generator", key), key)[0] if trained.is_run(run) else None


def write(restorer: TrainedGenerator, raw: Tensors | None, out: Path) -> str:
    if out.exists() and out.samefile(restorer.file):
        raise UserError(f"OUT: '{out}' is the file that is read; name another")
    content, note = WRITERS[out.suffix](restorer, raw)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, content)
    return f"{out}: {restorer.generator['name']} x{restorer.scale}, {len(content) / 2**20:.1f} MiB, {note}"


def _safetensors(restorer: TrainedGenerator, raw: Tensors | None) -> tuple[bytes, str]:
    about = trained.metadata(restorer.generator, restorer.scale)
    return save({name: value.contiguous() for name, value in restorer.network.state_dict().items()}, about), "with metadata"


def _pth(restorer: TrainedGenerator, raw: Tensors | None) -> tuple[bytes, str]:
    tensors = dict(restorer.network.state_dict())
    content: dict[str, Any] = {"params": tensors} if raw is None else {"params": raw, "params_ema": tensors}
    note = " and ".join(content)
    if not _shown(restorer):
        content |= trained.metadata(restorer.generator, restorer.scale)
        note += f", options as JSON under {METADATA}"
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue(), note


def _shown(restorer: TrainedGenerator) -> bool:
    """Whether the tensors alone are enough to build the generator again."""
    try:
        found = layouts.recognise(dict(restorer.network.state_dict()), restorer.file, "OUT")
        return found.scale == restorer.scale and trained.complete(found.generator, "OUT") == restorer.generator
    except UserError:
        return False


def _onnx(restorer: TrainedGenerator, raw: Tensors | None) -> tuple[bytes, str]:
    network, images = restorer.network, torch.rand(TRIED_ON[0][0], restorer.channels, *TRIED_ON[0][1:])
    any_size = torch.export.Dim.DYNAMIC
    try:
        with _quietly():
            program = torch.onnx.export(
                network, (images,), dynamo=True, verbose=False, input_names=["lr"], output_names=["sr"],
                dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},),
            )  # fmt: skip
    except Exception as problem:  # exporters fail in as many ways as networks can be written
        name = restorer.generator["name"]
        raise UserError(f"OUT: torch cannot write '{name}' as ONNX for any size ({type(problem).__name__})") from problem
    assert program is not None
    content = program.model_proto.SerializeToString()
    return content, f"within {_difference(content, restorer):.0e} of torch in onnxruntime at {len(TRIED_ON)} sizes"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Exporters speak about themselves at length."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _difference(content: bytes, restorer: TrainedGenerator) -> float:
    """The largest difference between graph and network, in parts of the largest value where that is above one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count, height, width in TRIED_ON:
        images = torch.rand(count, restorer.channels, height, width)
        found = torch.from_numpy(session.run(None, {"lr": images.numpy()})[0])
        expected = restorer.network(images)
        size = expected.abs().max().clamp(min=1)
        worst = max(worst, float((found - expected).abs().max() / size) if found.shape == expected.shape else float("inf"))
    if not worst < TOLERANCE:
        raise UserError(f"OUT: the ONNX graph of '{restorer.generator['name']}' differs from the network by {worst:.1e}")
    return worst


WRITERS: dict[str, Callable[[TrainedGenerator, Tensors | None], tuple[bytes, str]]] = {
    ".safetensors": _safetensors,
    ".pth": _pth,
    ".onnx": _onnx,
}
