"""What holds back evaluation by FID and KID on a CPU: images/s of every stage, one after the other.

    python benchmarks/fid_stages.py FOLDER [--count=200] [--scale=4] [--rounds=3] [--extractor=small|inception|FILE]
                                           [--before=CHECKOUT]

The images are made of the photographs in FOLDER: windows of about 500 x 375, the usual size in ImageNet, as JPEGs. `small` is a
network of a few layers, as tests use it; `inception` has Inception v3's layers with random weights, and so its cost. First the
stages in one process, each alone with one thread. Then, in turn, `sr_dist.evaluate bicubic` as a whole, with as many threads as
there are cores and with one; with --before also that of another checkout, and whether both reports have the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".jpg", ".jpeg", ".png")
SIZES = ((375, 500), (333, 500), (500, 375), (400, 500))  # height, width
Result = TypeVar("Result")


def make_images(photographs: Path, out: Path, count: int) -> None:
    """Windows of photographs, so many of a size after each other that batches are full."""
    from PIL import Image, ImageOps

    sources = sources_in(photographs)
    for number in range(count):
        height, width = SIZES[number * len(SIZES) // count]
        with Image.open(sources[number % len(sources)]) as image:
            whole = image.convert("RGB")
        across = (number // len(sources) % 4) / 3  # another window the next time
        ImageOps.fit(whole, (width, height), Image.Resampling.BICUBIC, bleed=0.05, centering=(across, 1 - across)).save(
            out / f"{number:05d}.jpg", quality=95
        )


def sources_in(photographs: Path) -> list[Path]:
    return sorted(path for path in photographs.rglob("*") if path.suffix.lower() in SUFFIXES)


def make_extractor(kind: str, folder: Path) -> Path:
    """A TorchScript file: (B, 3, 299, 299) in [0, 255] -> (B, width)."""
    import torch
    from torch import nn

    if kind not in ("small", "inception"):
        return Path(kind)
    torch.manual_seed(0)
    if kind == "small":
        layers = nn.Sequential(nn.AvgPool2d(23), nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 2048, 3), nn.AdaptiveAvgPool2d(1))
    else:
        from torchvision.models import inception_v3

        layers = inception_v3(weights=None, init_weights=False)
        layers.fc = nn.Identity()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers((x - 128) / 128).flatten(1)

    path = folder / f"{kind}.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Scaled().eval(), torch.rand(2, 3, 299, 299)).save(str(path))
    return path


def stages(images: Path, scale: int, extractor: Path) -> None:
    """The work of `scoring.score` on a folder, stage by stage; CPU time, because other programs disturb it least."""
    import numpy as np
    import torch

    from sr_dist.data.degradations import bicubic
    from sr_dist.data.folder_images import LRFolder
    from sr_dist.data.image_pairs import Batches
    from sr_dist.data.images import open_images
    from sr_dist.evaluation.baselines import baseline
    from sr_dist.evaluation.distances.extractor import torchscript
    from sr_dist.evaluation.distances.features import Features
    from sr_dist.evaluation.metrics import fid, kid
    from sr_dist.evaluation.partial_results import PartialResults
    from sr_dist.evaluation.presets import BASELINES

    torch.set_num_threads(1)
    seconds: dict[str, float] = defaultdict(float)

    def timed(stage: str, work: Callable[[], Result]) -> Result:
        start = time.process_time()
        result = work()
        seconds[stage] += time.process_time() - start
        return result

    degrade = bicubic.build(bicubic.Config(), scale)
    batches = Batches(open_images(str(images), None, "data", lr=LRFolder(None, scale)), scale, degrade, 8)
    network, methods = torchscript(extractor, "clean", torch.device("cpu")), [baseline(name, scale) for name in BASELINES]
    rows: list[list[np.ndarray]] = [[] for _ in range(1 + len(methods))]
    with torch.no_grad(), ThreadPoolExecutor(1) as thread, tempfile.TemporaryDirectory() as folder:
        results = PartialResults(Path(folder, "partial"))
        for number in range(len(batches)):
            timed("read and decode", lambda number=number: [batches.images.load(i) for i in batches.groups[number]])
            batch = timed("read, decode, LR", lambda number=number: batches[number])
            made = [batch.hr, *(timed("restore, of three methods", partial(m, batch.lr)) for m in methods)]
            resized = [timed("resize to 299", lambda image=image: network.resized(image, thread)()) for image in made]
            features = [timed("features", lambda image=image: network.features(image)) for image in resized]
            timed("results on disk", lambda number=number, features=features: results.put(
                number, {"rows": []}, {f"whole/{i}": values for i, values in enumerate(features)}
            ))  # fmt: skip
            for own, values in zip(rows, features, strict=True):
                own.append(values)
        total = len(batches.images.names)
        sets = [Features(np.concatenate(own), np.arange(total), total, torch.device("cpu")) for own in rows]
        labels = np.full(total, -1)
        for sr in sets[1:]:
            timed(
                "statistics, of three methods", lambda sr=sr: (fid.of_sets(sr, sets[0], labels), kid.of_sets(sr, sets[0], labels))
            )
    seconds["LR by MATLAB's bicubic"] = seconds.pop("read, decode, LR") - seconds["read and decode"]
    whole = sum(seconds.values())
    print("| stage, four images each (HR, nearest, bilinear, bicubic) | images/s | share of the CPU time |\n|---|---|---|")
    order = ("read and decode", "LR by MATLAB's bicubic", "restore, of three methods", "resize to 299", "features",
             "results on disk", "statistics, of three methods")  # fmt: skip
    for stage in order:
        print(f"| {stage} | {total / seconds[stage]:.1f} | {seconds[stage] / whole:.0%} |")
    print(f"| all | {total / whole:.1f} | |", flush=True)


def evaluations(images: Path, scale: int, extractor: Path, rounds: int, before: str | None) -> None:
    paths = {"ours": ROOT, **({"before": Path(before).resolve()} if before else {})}
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    numbers: dict[int, set[str]] = defaultdict(set)  # by the number of threads, on which torch's last bits depend
    count = len(list(images.iterdir()))
    for _ in range(rounds):
        for threads in sorted({1, os.cpu_count() or 1}):
            for name, path in paths.items():
                with tempfile.TemporaryDirectory() as out:
                    line = [sys.executable, "-m", "sr_dist.evaluate", "bicubic", f"--data={images}", f"--scale={scale}",
                            "--metrics=fid,kid", f"--extractor={extractor}", f"--out={out}/report", "--cache=none"]  # fmt: skip
                    variables = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": str(threads)}
                    start = time.perf_counter()
                    subprocess.run(line, env=variables, cwd=path, check=True, capture_output=True)
                    times[name, threads].append(time.perf_counter() - start)
                    report = json.loads(Path(out, "report", "report.json").read_text())
                    numbers[threads].add(json.dumps(report["distances"]))
    print(
        "\n| the command, with its start and its report | threads | seconds, each round | images/s, median |\n|---|---|---|---|"
    )
    for (name, threads), seconds in times.items():
        each = ", ".join(f"{value:.1f}" for value in seconds)
        print(f"| {name} | {threads} | {each} | {count / statistics.median(seconds):.2f} |")
    equal = all(len(distances) == 1 for distances in numbers.values())
    print(f"distances of one number of threads: {'equal to the last bit' if equal else 'NOT equal'}", flush=True)


def folder_of_photographs(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no folder '{text}'")
    if not sources_in(Path(text)):
        raise argparse.ArgumentTypeError(f"no photographs are below '{text}' ({', '.join(SUFFIXES)})")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=folder_of_photographs, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="of the whole command; 0: the stages only")
    parser.add_argument("--extractor", default="small", help="small, inception or a TorchScript file")
    parser.add_argument("--before", help="another checkout of this repository")
    options = parser.parse_args()
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "pillow", "numpy", "clean-fid"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}")
    print(f"{options.count} images of about 500 x 375, x{options.scale}, extractor: {options.extractor}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        make_images(Path(options.folder), images, options.count)
        extractor = make_extractor(options.extractor, Path(folder))
        stages(images, options.scale, extractor)
        if options.rounds:
            evaluations(images, options.scale, extractor, options.rounds, options.before)


if __name__ == "__main__":
    main()
