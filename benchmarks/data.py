"""How fast crops of the same files are read: ours beside litData, mosaicml-streaming, webdataset and a plain folder.

    pip install litdata mosaicml-streaming     # in an environment of its own: they ask for older numpy and transformers
    python benchmarks/data.py FOLDER [--rounds=7] [--steps=10] [--crop=96] [--batch=64]

FOLDER has JPEGs, PNGs or WebPs. Each reader gets the bytes of the files in its own format, and gives shuffled batches of uint8
crops at random places, by one worker. The others decode whole images with torchvision; ours checks the crc32 of each. JPEGs are
read twice by ours: as they are, and with the markers of `shards.build --restarts`. All readers run in turn in each round. Printed
is the median over the rounds of the time of each reader over the time of ours, in seconds of the clock and of all processes' CPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision.io import ImageReadMode, decode_image

from shards.build import build
from sr_dist import Shards

IDLE = 4  # batches that may be ready when a round begins
SETTLE = 0.5  # seconds in which the other readers fill their queues
TICKS = os.sysconf("SC_CLK_TCK")
LIBRARIES = ("litdata", "mosaicml-streaming", "webdataset", "torch", "torchvision", "pillow", "numpy")


def crop_of(data: bytes, side: int) -> Tensor:
    """(3, side, side) uint8 at a random place."""
    image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    top, left = (random.randint(0, length - side) for length in image.shape[1:])
    return image[:, top : top + side, left : left + side].contiguous()


class Folder(Dataset[Tensor]):
    def __init__(self, paths: list[Path], side: int, length: int) -> None:
        self.paths, self.side, self.length = paths, side, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Tensor:
        return crop_of(self.paths[i % len(self.paths)].read_bytes(), self.side)


class Endless(IterableDataset[Tensor]):
    """The crops of a streaming data set, epoch after epoch in the same worker."""

    def __init__(self, samples: Any, side: int) -> None:
        self.samples, self.side = samples, side

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            for sample in self.samples:
                yield crop_of(sample["image"], self.side)


def item(path: str) -> dict[str, bytes]:
    return {"image": Path(path).read_bytes()}


def litdata_samples(paths: list[Path], folder: Path) -> Any:
    from litdata import StreamingDataset, optimize

    optimize(item, [str(path) for path in paths], str(folder), chunk_bytes="64MB", num_workers=1)
    return StreamingDataset(str(folder), shuffle=True)


def mosaic_samples(paths: list[Path], folder: Path, batch: int) -> Any:
    own = Path(__file__).resolve().parent  # its streaming.py is not that package
    sys.path = [path for path in sys.path if Path(path).resolve() != own]
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder), columns={"image": "bytes"}) as writer:
        for path in paths:
            writer.write(item(str(path)))
    return StreamingDataset(local=str(folder), shuffle=True, batch_size=batch)


def webdataset_samples(tars: list[str]) -> Any:
    import webdataset

    return webdataset.WebDataset(tars, shardshuffle=False).shuffle(100).rename(image="jpg;png;webp")


def readers(paths: list[Path], folder: Path, options: argparse.Namespace) -> dict[str, Iterator[Any]]:
    """Batches without end, by reader. Ours come first."""
    batch, side = options.batch, options.crop
    build("folder", str(options.folder), folder / "ours", {"per_shard": "1000"})
    sets = {"ours": folder / "ours"}
    if any(path.suffix.lower() in (".jpg", ".jpeg") for path in paths):
        sets["ours, --restarts"] = folder / "marked"
        build("folder", str(options.folder), folder / "marked", {"per_shard": "1000", "restarts": "true"})
    result: dict[str, Iterator[Any]] = {
        name: Shards(str(path)).batches(crop=side, batch=batch, workers=1) for name, path in sets.items()
    }
    samples = {
        "litdata": litdata_samples(paths, folder / "litdata"),
        "mosaicml-streaming": mosaic_samples(paths, folder / "mosaic", batch),
        "webdataset": webdataset_samples([str(path) for path in sorted((folder / "ours").glob("*.tar"))]),
    }
    for name, data_set in samples.items():
        result[name] = iter(DataLoader(Endless(data_set, side), batch, num_workers=1))
    length = batch * (options.rounds + 1) * (options.steps + IDLE + 8)
    result["folder"] = iter(DataLoader(Folder(paths, side, length), batch, shuffle=True, num_workers=1))
    return result


def cpu_seconds() -> float:
    """Of this process and its workers."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def seconds(batches: Iterator[Any], steps: int) -> tuple[float, float]:
    """Of the clock and of the CPU, for this many batches."""
    for _ in range(IDLE):
        next(batches)
    clock, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(steps):
        next(batches)
    return time.perf_counter() - clock, cpu_seconds() - cpu


def is_installed(library: str) -> bool:
    try:
        return bool(metadata.version(library))
    except metadata.PackageNotFoundError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("rounds", 7), ("steps", 10), ("crop", 96), ("batch", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if missing := [name for name in LIBRARIES if not is_installed(name)]:
        sys.exit(f"error: {', '.join(missing)} is not installed: pip install litdata mosaicml-streaming, beside this project")
    torch.set_num_threads(1)
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    with tempfile.TemporaryDirectory() as folder:
        by_name = readers(paths, Path(folder), options)
        rows = []
        for _ in range(options.rounds + 1):  # the first warms up
            row = {}
            for name, batches in by_name.items():
                time.sleep(SETTLE)
                row[name] = seconds(batches, options.steps)
            rows.append(row)
        rows = rows[1:]
        ours = [name for name in by_name if name.startswith("ours")]
        print("| reader | images/s |" + "".join(f" {kind} x {name} |" for name in ours for kind in ("clock", "CPU")))
        print("|---" * (2 + 2 * len(ours)) + "|")
        for name in by_name:
            speed = options.steps * options.batch / median(row[name][0] for row in rows)
            ratios = [median(row[name][k] / row[base][k] for row in rows) for base in ours for k in (0, 1)]
            print(f"| {name} | {speed:.0f} |" + "".join(f" {ratio:.2f} |" for ratio in ratios))
        size = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        files = f"{len(paths)} files of {size:.0f} KB, crop {options.crop}, batch {options.batch}"
        print(f"\n{files}, {options.rounds} rounds in turn; load {os.getloadavg()[0]:.1f}")
        print(", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES), flush=True)


if __name__ == "__main__":
    main()
