"""All CPU figures of RESULTS.md in about half an hour, into one Markdown file to paste from.

    python benchmarks/all_cpu.py [--minutes=30] [--out=build/all_cpu] [--parts=data,opening,...] [--small] [--dry_run]

Each part is one or more commands. It has a share of the time; what fails or takes longer is recorded, and the next part begins.
The file has the machine, the versions, and of every figure the command that printed it. The images are tiles of scikit-image's
photographs, JPEGs of 256 pixels. --small runs everything with tiny sizes, to try the script.
"""

from __future__ import annotations

import argparse
import datetime
import io
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = (
    "torch", "torchvision", "numpy", "pillow", "webdataset", "scikit-image", "torchmetrics", "clean-fid", "pydantic", "litdata",
    "mosaicml-streaming",
)  # fmt: skip
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
MOST_LINES = 60  # of an output, in the file; all of it is in the log


@dataclass(frozen=True)
class Sizes:
    """What is measured, and in small."""

    photos: int = 1000  # JPEGs of 256 pixels
    large: int = 4  # images for evaluation
    images: int = 1000  # per round of `bench data`
    rounds: int = 7
    few: int = 3  # rounds of what takes long
    features: int = 10_000  # of `bench eval`
    width: int = 2048
    shards: int = 100_000
    steps: int = 300  # that are simulated


SMALL = Sizes(photos=24, large=1, images=16, rounds=1, few=1, features=32, width=16, shards=40, steps=2)


@dataclass(frozen=True)
class Part:
    title: str
    share: float  # of the time
    lines: Callable[[Path, Sizes], list[list[str]]]  # the words after `python`, given the folder of the images


def bench(benchmark: str, *words: object) -> list[str]:
    return ["-m", "sr_dist.bench", benchmark, *map(str, words)]


def data_lines(images: Path, sizes: Sizes) -> list[list[str]]:
    """The same photographs as `shards.build` writes them, and with their bytes kept."""
    options = [f"--images={sizes.images}", f"--rounds={sizes.rounds}", "--data.validation=none", "--data.crop=96"]
    sets = [("written", 64), ("written", 16), ("kept", 64)]
    return [
        bench("data", "rrdb_psnr_x4", f"--data.train={images / name}", f"--data.batch={batch}", *options) for name, batch in sets
    ]


def step_lines(images: Path, sizes: Sizes) -> list[list[str]]:
    options = ["--generator.num_blocks=4", "--data.crop=128", "--data.batch=4"]
    if sizes is SMALL:
        tiny = ("generator.num_blocks=1", "generator.width=8", "generator.growth=4", "discriminator.width=8")
        options = [*(f"--{word}" for word in tiny), "--data.crop=32", "--discriminator.crop=32", "--data.batch=2"]
    options += ["--data.validation=none", "--data.workers=1"]
    content = "--objective.content={l1: 1.0}" if sizes is SMALL else "--objective.content.vgg.weights=random"
    steps = f"--steps={3 * sizes.few}"
    forms = [[], ["--precision=bf16"]]
    return [bench("step", "esrgan_x4", f"--data.train={images / 'written'}", *options, content, steps, *form) for form in forms]


def peers_lines(images: Path, sizes: Sizes) -> list[list[str]]:
    return [["benchmarks/data.py", str(images / "photos")]]


PARTS = {
    "data": Part("Data", 0.25, data_lines),
    "peers": Part("Data beside other projects", 0.15, peers_lines),
    "opening": Part("Opening many shards", 0.15, lambda _, sizes: [
        ["benchmarks/opening.py", f"--shards={sizes.shards}", f"--rounds={sizes.few}"],
    ]),
    "store": Part("A slow store", 0.05, lambda *_: [
        ["-m", "pytest", "-p", "no:cacheprovider", "-q", "-s", "tests/data/test_prefetch.py", "-k", "slow_store"],
    ]),
    "streaming": Part("Streaming on many nodes", 0.1, lambda _, sizes: [["benchmarks/streaming.py", f"--steps={sizes.steps}"]]),
    "step": Part("A step of ESRGAN", 0.1, step_lines),
    "distance": Part("The Fréchet distance", 0.05, lambda _, sizes: [
        bench("eval", f"--images={sizes.features}", f"--width={sizes.width}", f"--rounds={sizes.few}"),
    ]),
    "evaluation": Part("Evaluation", 0.15, lambda images, sizes: [
        ["benchmarks/evaluation.py", str(images / "large"), f"--rounds={sizes.few}"],
        ["benchmarks/fid_stages.py", str(images / "photos"), f"--count={20 * sizes.few}", "--rounds=0"],
    ]),
}  # fmt: skip


def make_images(folder: Path, sizes: Sizes) -> None:
    """`photos`: JPEGs as a camera leaves them; `written` and `kept`: shards of them; `large`: PNGs to evaluate."""
    from PIL import Image

    from shards import build
    from shards.sources import sample_photos

    def tiles(tile: int, count: int) -> list[Image.Image]:
        items = sample_photos.listing("train", sample_photos.Config(tile=tile, stride=tile // 16)).items
        return [
            Image.open(io.BytesIO(sample_photos.read(item))).convert("RGB")
            for item in items[:: max(len(items) // count, 1)][:count]
        ]

    (folder / "photos").mkdir(parents=True)
    (folder / "large").mkdir()
    for number, image in enumerate(tiles(256, sizes.photos)):
        image.save(folder / "photos" / f"{number:04d}.jpg", quality=95)
    for number, image in enumerate(tiles(384, sizes.large)):
        image.save(folder / "large" / f"{number:04d}.png")
    build.build("folder", str(folder / "photos"), folder / "kept", {"per_shard": "128"})
    build.build("folder", str(folder / "photos"), folder / "written", {"per_shard": "128", "centre_crop": "256"})


def run_line(words: list[str], seconds: float, log: Path) -> tuple[str, str]:
    """The output, and what went wrong or nothing. A command that takes too long is ended with its children."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            problem = f"FAILED with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"STOPPED after {seconds:.0f} s, the time of this part"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return log.read_text(encoding="utf-8", errors="replace").strip(), problem


def shown(words: list[str], out: Path) -> str:
    return shlex.join(["python", *words]).replace(str(out), "OUT")


def machine() -> str:
    versions = []
    for name in VERSIONS:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        model = next(
            (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), model
        )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    python = f"Python {platform.python_version()}; {', '.join(versions)}; commit {_commit()}"
    return f"{os.cpu_count()} cores of {model}, load {load} at the start; {python}"


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def measure(part: Part, lines: list[list[str]], seconds: float, out: Path, results: Path) -> int:
    """Runs a part's commands and appends its section. Returns the number of failures."""
    end, failures = time.monotonic() + seconds, 0
    text = [f"## {part.title}", ""] + ([] if lines else ["nothing to run in this checkout", ""])
    for number, words in enumerate(lines):
        left, begin = end - time.monotonic(), time.monotonic()
        log = out / "logs" / f"{part.title.lower().replace(' ', '_')}-{number}.txt"
        output, problem = run_line(words, left, log) if left > 0 else ("", "not run: the time of this part is over")
        failures += bool(problem)
        print(f"  {problem or 'done'} in {time.monotonic() - begin:.0f} s: {shown(words, out)}", flush=True)
        text += [f"`{shown(words, out)}`, {time.monotonic() - begin:.0f} s", ""] + ([f"**{problem}**", ""] if problem else [])
        text += [*_as_markdown(output.replace(str(out), "OUT")), ""]
    with open(results, "a", encoding="utf-8") as file:
        file.write("\n".join(text) + "\n")
    return failures


def _as_markdown(output: str) -> list[str]:
    """The last lines, without those of a log: tables as they are, everything else as it was printed."""
    lines = [line for line in output.splitlines() if not LOG_LINE.match(line)][-MOST_LINES:]
    if any(line.startswith("|--") for line in lines):
        return lines
    return ["```", *lines, "```"] if lines else []


def options_of_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="the time of all parts together")
    parser.add_argument("--out", type=Path, default=Path("build/all_cpu"), help="a new folder for results.md, logs and images")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--dry_run", action="store_true", help="prints the commands and runs nothing")
    options = parser.parse_args()
    options.out, options.parts = options.out.resolve(), options.parts.split(",")
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"--parts: unknown part '{unknown[0]}'; choose from {', '.join(PARTS)}")
    if options.minutes <= 0:
        parser.error(f"--minutes: {options.minutes} is not more than 0")
    if (options.out / "results.md").exists() and not options.dry_run:
        parser.error(f"--out: '{options.out}' has the results of an earlier run; name another folder")
    return options


def main() -> int:
    options = options_of_line()
    sizes, images = SMALL if options.small else Sizes(), options.out / "images"
    parts = {name: PARTS[name] for name in options.parts}
    lines = {name: part.lines(images, sizes) for name, part in parts.items()}
    if options.dry_run:
        for name, part in parts.items():
            print(part.title, *(f"  {shown(words, options.out)}" for words in lines[name]), sep="\n")
        return 0
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    results = options.out / "results.md"
    results.write_text(f"# CPU figures of {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}\n\nMachine: {machine()}.\n\n")
    if not images.exists():
        sys.path.insert(0, str(ROOT))
        make_images(images, sizes)
    failures, total = 0, sum(part.share for part in parts.values())
    for name, part in parts.items():
        print(part.title, flush=True)
        failures += measure(part, lines[name], options.minutes * 60 * part.share / total, options.out, results)
    print(f"results    {results} ({failures} failed)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
