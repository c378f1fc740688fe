"""Which exported files programs of others cannot read, by what their code assumes about the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SPANDREL = ("rrdb", "srvgg", "swinir", "spandrel")  # the generators whose files spandrel, and so chaiNNer, recognizes
GROWTH = 32  # of RRDB; spandrel reads the width and the number of blocks from the tensors, and not this
SCRIPT = (64, (6, 23))  # width and numbers of blocks of the networks that Real-ESRGAN's script builds


def unreadable(section: Mapping[str, Any], suffix: str) -> Iterator[str]:
    """A line for each program that reads files of this kind and cannot read this one."""
    name = section["name"]
    if suffix == ".onnx":
        return
    if name not in SPANDREL and suffix == ".pth":
        yield f"spandrel (chaiNNer) does not know '{name}'; .onnx is read by more programs"
    if name != "rrdb":
        return
    if section.get("skip", "none") != "none":
        yield f"spandrel and Real-ESRGAN read it as a network without skip: {section['skip']}, which is another function"
    growth, width, blocks = (int(section[key]) for key in ("growth", "width", "num_blocks"))
    if growth != GROWTH:
        yield f"spandrel and Real-ESRGAN cannot read it: they build RRDB with growth {GROWTH}, and this one has {growth}"
    elif suffix == ".pth" and (width, blocks in SCRIPT[1]) != (SCRIPT[0], True):
        yield (
            f"Real-ESRGAN's script cannot read it: it builds RRDB with width {SCRIPT[0]} and 23 or 6 blocks, and this one has "
            f"width {width} and {blocks}"
        )
