"""How fast the data come: beside the decoder alone, beside WebDataset's own pipeline, and from a far position.

Every figure is the median of ratios of things that were measured one after the other, for machines have other work too.

    stream       order -> pread -> crc32 -> decode -> crop -> a uint8 batch in shared memory     one loading process
    decode       the same files from memory, whole, by torchvision's decode_image one by one     no process, no file
    batches      the stream and what follows it: floats, flips, turns, LR                        one loading process
    webdataset   WebDataset's reader and PIL: decode, the same crops, LR by bicubic, floats      one loading process

The stream decodes no more of a file than its crop needs, where the file allows that. It leaves LR and floats to the training's
device; `batches` makes them on the CPU, in the process that trains.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from sr_dist.data.format import HR_SUFFIXES
from sr_dist.data.loader import Stream
from sr_dist.data.reader import JPEG, decode
from sr_dist.data.remote.sources import RemoteShards

FAR = 1_000_000  # the step after which a long run may be taken up again
IDLE = 4  # batches that may lie ready when a round begins: they are taken before the clock runs


def measured(stream_of: Callable[[int, int], Stream], images: int, rounds: int) -> dict[str, Any]:
    """`stream_of(workers, position)` makes the stream that is measured."""
    here, first, second = stream_of(0, 0), stream_of(1, 0), stream_of(1, 0)
    batch = here.settings.batch
    steps = -(-images // batch)
    packed = _packed(here, steps * batch)
    paces = {
        "stream": _paces(first.crops(1), steps),
        "decode": _paces(_decoded(packed, batch, here.source.channels), steps),
        "batches": _paces(second.steps(1), steps),
    }
    shards = here.source.parts[0].reader.shards
    if not isinstance(shards, RemoteShards) and here.source.crop:
        paces["webdataset"] = _paces(_webdataset([str(path) for path in shards.paths()], here.source.crop, here), steps)
    try:
        seconds = [{name: next(pace) for name, pace in paces.items()} for _ in range(rounds)]
    finally:
        first.close()
        second.close()
    resumed = [(_until_first(stream_of(0, 0)), _until_first(stream_of(0, FAR * batch))) for _ in range(rounds)]
    return {
        "images_per_second": {name: steps * batch / median(row[name] for row in seconds) for name in paces},
        "share_of_decode": median(row["decode"] / row["stream"] for row in seconds),
        "ratio_to_webdataset": _ratio(seconds, "stream") if "webdataset" in paces else None,
        "ratio_to_webdataset_with_lr": _ratio(seconds, "batches") if "webdataset" in paces else None,
        "resume": {
            "seconds_at_the_start": median(start for start, _ in resumed),
            f"seconds_after_{FAR}_steps": median(far for _, far in resumed),
            "ratio": median(far / start for start, far in resumed),
        },
    }


def _ratio(seconds: list[dict[str, float]], name: str) -> float:
    return median(row["webdataset"] / row[name] for row in seconds)


def _paces(batches: Iterator[Any], steps: int) -> Iterator[float]:
    """Seconds for so many batches, again and again."""
    while True:
        for _ in range(IDLE):
            next(batches)
        begun = time.perf_counter()
        for _ in range(steps):
            next(batches)
        yield time.perf_counter() - begun


def _packed(stream: Stream, images: int) -> list[bytearray]:
    """The files of the first positions."""
    files = []
    for position in range(images):
        number, inner = stream.source.mix(position)
        part = stream.source.parts[number]
        files.append(part.reader.read(*part.at(inner)[2:], "hr"))
    return files


def _decoded(files: list[bytearray], batch: int, channels: int) -> Iterator[list[Tensor]]:
    while True:
        for low in range(0, len(files), batch):
            yield [_alone(data, channels) for data in files[low : low + batch]]


def _alone(data: bytearray, channels: int) -> Tensor:
    """As users of torchvision decode a JPEG."""
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    return decode_image(torch.frombuffer(data, dtype=torch.uint8), mode) if data[:2] == JPEG else decode(data, channels)


def _webdataset(paths: list[str], crop: int, stream: Stream) -> Iterator[Any]:
    """As its users write it."""
    import webdataset as wds

    small = crop // stream.scale

    def pair(sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        image: Image.Image = sample["hr"]
        left, top = random.randint(0, max(image.width - crop, 0)), random.randint(0, max(image.height - crop, 0))
        hr = image.crop((left, top, left + crop, top + crop))
        return _floats(hr.resize((small, small), Image.Resampling.BICUBIC)), _floats(hr)

    samples = wds.WebDataset(paths, shardshuffle=False).repeat().decode("pilrgb").rename(hr=";".join(HR_SUFFIXES)).map(pair)
    return iter(wds.WebLoader(samples.batched(stream.settings.batch), batch_size=None, num_workers=1))


def _floats(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _until_first(stream: Stream) -> float:
    """Seconds from nothing to the first batch, in this process."""
    begun = time.perf_counter()
    next(stream.steps(1))
    return time.perf_counter() - begun
