"""Opening very many shards: seconds and memory of a node's first rank, of its other ranks and of a worker.

    python benchmarks/opening.py [--shards=100000] [--samples=13] [--rounds=3] [--folder=FOLDER] [--before=CHECKOUT]

The shards are made: an index of its own for each, and tars that are links to a few files, because opening reads no pixels. Each
figure is of a process of its own, as long as the files are in the machine's memory; the least seconds of all rounds, in turn
with those of another checkout where one is named.

    first rank    the manifest, the size of every tar, and every index with its checks; then the loader and its first batch
    other ranks   the same without the indexes
    worker        the memory that only the worker has written, with one worker (private dirty pages)
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SIDE, BATCH, CROP = 32, 64, 16
LINKS = 20_000  # of one file; file systems allow some 65,000


def make_shards(folder: Path, num_shards: int, samples: int) -> None:
    """A folder of shards of small photographs, the same in all."""
    from sr_dist.data.format import Manifest, ShardEntry, content_hash, index_bytes, write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (samples, SIDE // 4, SIDE // 4, 3), np.uint8)
    tar, rows = bytearray(), []
    for image in pixels:
        data = io.BytesIO()
        Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(data, "jpeg")
        member = data.getvalue()
        rows.append(
            {"hr_offset": len(tar), "hr_bytes": len(member), "hr_crc32": zlib.crc32(member), "width": SIDE, "height": SIDE}
        )
        tar += member
    entries = []
    for number in range(num_shards):
        name = f"made-{number:06d}"
        if number % LINKS == 0:
            source = folder / f"{name}.tar"
            source.write_bytes(tar)
        else:
            os.link(source, folder / f"{name}.tar")
        keys = [f"{name}/{row}".encode() for row in range(samples)]
        own = [
            {**row, "class": number % 1000, "key": key, "hash": content_hash(key)} for row, key in zip(rows, keys, strict=True)
        ]
        (folder / f"{name}.idx").write_bytes(index_bytes(own, 0))
        entries.append(
            ShardEntry(name=f"{name}.tar", bytes=len(tar), samples=samples, sha256=content_hash(name.encode()).hex() * 2)
        )
    classes = tuple(f"class {number}" for number in range(1000))
    fields = {"format": 1, "samples": num_shards * samples, "min_side": SIDE, "classes": classes, "order": {"seed": 0}}
    write_manifest(folder, Manifest(**fields, shards=tuple(entries)))


def open_once(folder: Path, rank: int, workers: int) -> dict[str, float]:
    """Opens the shards as a training does, and reads the first batch."""
    os.environ["LOCAL_RANK"] = "0"
    import torch

    from sr_dist.data import data_checks
    from sr_dist.data.degradations import bicubic
    from sr_dist.data.loader import Loader, LoaderConfig
    from sr_dist.data.open_data import open_training_sets
    from sr_dist.recipe.sections import Data

    torch.set_num_threads(1)
    data = Data(train=str(folder), crop=CROP, batch=BATCH, workers=workers)
    before, cpu, begin = resident(), time.process_time(), time.perf_counter()
    if rank:
        os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(rank + 1)}
    shards = open_training_sets(data)
    data_checks.check_shards(str(folder), shards[0], data, 2)
    opened, opened_cpu = time.perf_counter(), time.process_time()
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):  # the loader itself is of one rank
        os.environ.pop(name, None)
    shards = open_training_sets(data)
    digest = shards[0].manifest.digest
    loader = Loader(shards, LoaderConfig(data, 0, 2, 1, 10, 3), bicubic.build(bicubic.Config(), 2), torch.device("cpu"))
    steps = loader.steps(1)
    _, (batch,) = next(steps)
    assert digest and len(batch.keys) == BATCH
    result = {
        "open": opened - begin, "open_cpu": opened_cpu - cpu, "first_batch": time.perf_counter() - opened,
        "memory_mb": (resident() - before) / 1e6, "peak_mb": (peak() - before) / 1e6,
    }  # fmt: skip
    if workers:
        pids = [worker.pid for worker in loader._batches._workers]  # type: ignore[attr-defined] - of torch's iterator
        result["worker_mb"] = max(own_memory(pid) for pid in pids) / 1e6
    steps.close()
    loader.close()
    return result


def resident() -> int:
    return _kilobytes("/proc/self/status", "VmRSS:") * 1024


def peak() -> int:
    return _kilobytes("/proc/self/status", "VmHWM:") * 1024


def own_memory(pid: int) -> int:
    """Bytes that no other process shares."""
    return _kilobytes(f"/proc/{pid}/smaps_rollup", "Private_Dirty:") * 1024


def _kilobytes(path: str, name: str) -> int:
    return next(int(line.split()[1]) for line in Path(path).read_text().splitlines() if line.startswith(name))


def measured(checkout: Path, folder: Path, rank: int, workers: int) -> dict[str, float]:
    line = [sys.executable, __file__, f"--folder={folder}", f"--rank={rank}", f"--workers={workers}"]
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=13, help="of a shard")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the shards are made, and found again; a temporary folder without it")
    parser.add_argument("--before", type=Path, help="another checkout to measure beside this one")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        print(json.dumps(open_once(options.folder, options.rank, options.workers)))
        return
    with tempfile.TemporaryDirectory(prefix="sr_dist-opening-") as temporary:
        folder = options.folder or Path(temporary) / "shards"
        if not (folder / "manifest.json").exists():
            sys.path.insert(0, str(ROOT))
            make_shards(folder, options.shards, options.samples)
        compare(options, folder)


def compare(options: argparse.Namespace, folder: Path) -> None:
    checkouts = {"ours": ROOT, **({"before": options.before.resolve()} if options.before else {})}
    cases = {"first rank": (0, 0), "other ranks": (1, 0), "first rank, one worker": (0, 1)}
    rows: dict[tuple[str, str], list[dict[str, float]]] = {(name, case): [] for name in checkouts for case in cases}
    for _ in range(options.rounds):
        for (name, case), results in rows.items():
            results.append(measured(checkouts[name], folder, *cases[case]))
    print("| | | opened, s | of CPU | first batch, s | memory, MB | at the peak | of the worker alone |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, case), results in rows.items():
        least = {key: min(result[key] for result in results) for key in results[0]}
        seconds = " | ".join(f"{least[key]:.2f}" for key in ("open", "open_cpu", "first_batch"))
        memory = " | ".join(f"{least[key]:.0f}" if key in least else "" for key in ("memory_mb", "peak_mb", "worker_mb"))
        print(f"| {name} | {case} | {seconds} | {memory} |")
    print(f"\n{options.shards:,} shards of {options.samples} samples; the least of {options.rounds} rounds in turn")


if __name__ == "__main__":
    main()
