"""The speed of the data: beside the decoder alone, beside WebDataset's own pipeline, and from a distant position.

Every figure is the median of ratios of measurements taken one after the other, because machines also do other work.

    stream       order -> pread -> crc32 -> decode -> crop -> a uint8 batch in shared memory     one worker
    decode       the same files from memory, whole, one by one with torchvision's decode_image   no worker, no file
    batches      stream, then floats, flips, turns and LR                                        one worker
    tars         the same shards by `data.reader: webdataset`, without their index               one worker
    webdataset   WebDataset's reader and PIL: decode, the same crops, LR by bicubic, floats      one worker

The loader decodes only the part of a file that a crop needs, where the file allows that. In training, LR and floats are made on
the device; `batches` makes them on the CPU, in the main process.
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
from sr_dist.data.loader import Loader
from sr_dist.data.reader import JPEG, decode
from sr_dist.data.remote.sources import RemoteShards

FAR = 1_000_000  # the step after which a long run may be resumed
IDLE = 4  # batches that may be ready when a round begins; they are read before the clock starts


def measure(loader_at: Callable[[int, int], Loader], images: int, rounds: int, tars: Loader | None = None) -> dict[str, Any]:
    """`loader_at(workers, position)` makes the loaders that are measured; `tars` reads the same files without their index."""
    local, first, second = loader_at(0, 0), loader_at(1, 0), loader_at(1, 0)
    batch = local.data.batch
    steps = -(-images // batch)
    files = _read_files(local, steps * batch)
    timers = {
        "stream": _seconds(first.crop_steps(1), steps),
        "decode": _seconds(_decode_batches(files, batch, local.source.channels), steps),
        "batches": _seconds(second.steps(1), steps),
    }
    shards = local.source.data_sets[0].reader.shards
    if not isinstance(shards, RemoteShards) and local.source.crop:
        timers["webdataset"] = _seconds(_webdataset([str(path) for path in shards.paths()], local.source.crop, local), steps)
    if tars:
        timers["tars"] = _seconds(tars.crop_steps(1), steps)
    try:
        seconds = [{name: next(timer) for name, timer in timers.items()} for _ in range(rounds)]
    finally:
        for loader in [first, second, *([tars] if tars else [])]:
            loader.close()
    resumed = [(_seconds_to_first(loader_at(0, 0)), _seconds_to_first(loader_at(0, FAR * batch))) for _ in range(rounds)]
    return {
        "images_per_second": {name: steps * batch / median(row[name] for row in seconds) for name in timers},
        "share_of_decode": median(row["decode"] / row["stream"] for row in seconds),
        "ratio_to_webdataset": _ratio(seconds, "stream") if "webdataset" in timers else None,
        "ratio_to_webdataset_with_lr": _ratio(seconds, "batches") if "webdataset" in timers else None,
        "ratio_to_reader_webdataset": median(row["tars"] / row["stream"] for row in seconds) if tars else None,
        "resume": {
            "seconds_at_the_start": median(start for start, _ in resumed),
            f"seconds_after_{FAR}_steps": median(far for _, far in resumed),
            "ratio": median(far / start for start, far in resumed),
        },
    }


def _ratio(seconds: list[dict[str, float]], name: str) -> float:
    return median(row["webdataset"] / row[name] for row in seconds)


def _seconds(batches: Iterator[object], steps: int) -> Iterator[float]:
    """The seconds for `steps` batches, again and again."""
    while True:
        for _ in range(IDLE):
            next(batches)
        begin = time.perf_counter()
        for _ in range(steps):
            next(batches)
        yield time.perf_counter() - begin


def _read_files(loader: Loader, images: int) -> list[bytearray]:
    """The files of the first positions."""
    files = []
    for position in range(images):
        number, local = loader.source.mix(position)
        data_set = loader.source.data_sets[number]
        sample = data_set.at(local)
        files.append(data_set.reader.read(sample.shard, sample.row, "hr"))
    return files


def _decode_batches(files: list[bytearray], batch: int, channels: int) -> Iterator[list[Tensor]]:
    while True:
        for low in range(0, len(files), batch):
            yield [_decode(data, channels) for data in files[low : low + batch]]


def _decode(data: bytearray, channels: int) -> Tensor:
    """Decodes a JPEG as users of torchvision do."""
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    return decode_image(torch.frombuffer(data, dtype=torch.uint8), mode) if data[:2] == JPEG else decode(data, channels)


def _webdataset(paths: list[str], crop: int, loader: Loader) -> Iterator[object]:
    """A pipeline as users of WebDataset write it."""
    import webdataset as wds  # takes long to import

    small = crop // loader.config.scale

    def pair(sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        image: Image.Image = sample["hr"]
        left, top = random.randint(0, max(image.width - crop, 0)), random.randint(0, max(image.height - crop, 0))
        hr = image.crop((left, top, left + crop, top + crop))
        return _floats(hr.resize((small, small), Image.Resampling.BICUBIC)), _floats(hr)

    samples = wds.WebDataset(paths, shardshuffle=False).repeat().decode("pilrgb").rename(hr=";".join(HR_SUFFIXES)).map(pair)
    return iter(wds.WebLoader(samples.batched(loader.data.batch), batch_size=None, num_workers=1))


def _floats(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _seconds_to_first(loader: Loader) -> float:
    """The seconds until the first batch, in this process."""
    begin = time.perf_counter()
    next(loader.steps(1))
    return time.perf_counter() - begin
