"""Trains the entries of the speedrun one after the other and says how long each took to the target: docs/speedrun.md.
launch/speedrun.sh calls it, after it has built the shards.

python launch/speedrun.py ENTRY ... [--size=1] [--runs=runs/speedrun] [--steps=N]
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml
from PIL import Image

from sr_dist.core import cli
from sr_dist.core.errors import UserError, nearest
from sr_dist.core.files import write_json
from sr_dist.core.json_text import parse_json, read_json
from sr_dist.core.version import __version__

# One dial: a larger size has more of all four. `target` is dB of the held-out tiles; a size without one has no entry yet.
SIZES: dict[str, dict[str, Any]] = {
    "1": {"width": 24, "blocks": 2, "batch": 8, "steps": 500, "target": 36.5},
    "2": {"width": 32, "blocks": 4, "batch": 8, "steps": 2000, "target": None},
    "3": {"width": 64, "blocks": 16, "batch": 16, "steps": 20000, "target": None},
}
DATA = Path("data/sample_photos")
PIXELS = {  # sha256 of the keys and pixels of all tiles
    "train": "5fa728ec0d870c6a5ebeb713eed335e6abf34be68bd86e91bfd5b2350a472a13",
    "validation": "9eb3ce328ae52e364bc67b02c27aada586831a13434ba5cc98aa60bb0e481fe1",
}
ENTRIES = Path(__file__).with_name("speedrun")
FIXED = (
    "name", "runs", "scale", "steps", "seed", "init", "resume", "log_every", "validate_every", "validate_first", "save_every",
    "keep", "data.train", "data.validation", "data.validation_limit", "data.split", "data.select", "data.balance",
    "data.degradation",
)  # fmt: skip


def work(words: list[str], options: dict[str, Any]) -> None:
    size = str(options.pop("size", 1))
    runs = Path(str(options.pop("runs", "runs/speedrun"))) / size
    steps = options.pop("steps", None)
    if size not in SIZES:
        raise UserError(f"size: '{size}'{nearest(size, SIZES)}")
    if options or not words:
        raise UserError("usage: speedrun.py ENTRY ... [--size=1] [--runs=FOLDER] [--steps=N]")
    files = [entry_file(word) for word in words]
    entries = {path.stem: path for path in files}
    if len(entries) < len(files):
        raise UserError("ENTRY: two of these files have one name, which is that of their run")
    check_tiles()
    results = [run(name, path, SIZES[size] | ({"steps": int(steps)} if steps else {}), runs) for name, path in entries.items()]
    report = evaluate(runs, list(entries))
    for result in results:
        result["psnr_y"] = report[result["entry"]]
    write_json(
        runs / "speedrun.json", {"size": size, **SIZES[size], "pixels": PIXELS, "versions": versions(), "entries": results}
    )
    print(table(results, SIZES[size]["target"]))
    print(f"entry     {runs / 'speedrun.json'}\nreport    {runs / 'report' / 'report.json'}")


def entry_file(word: str) -> Path:
    path = Path(word) if word.endswith(".yaml") else ENTRIES / f"{word}.yaml"
    if not path.is_file():
        raise UserError(f"ENTRY: no '{path}'{nearest(word, [file.stem for file in ENTRIES.glob('*.yaml')])}")
    return path


# ------------------------------------------------------------------------------------------------------------------- tiles


def check_tiles() -> None:
    """Refuses other tiles than those of the entries. Pixels are compared: libraries write the same pixels as other files."""
    for part, expected in PIXELS.items():
        if (actual := pixels(DATA / part)) != expected:
            raise UserError(f"'{DATA / part}' has other tiles ({actual[:8]}, not {expected[:8]}); remove it to build it again")


def pixels(folder: Path) -> str:
    tiles: dict[str, bytes] = {}
    for tar in sorted(folder.glob("*.tar")):
        with tarfile.open(tar) as file:
            for member in file:
                if member.name.endswith(".png") and (content := file.extractfile(member)):
                    tiles[member.name] = numpy.asarray(Image.open(io.BytesIO(content.read())).convert("RGB")).tobytes()
    digest = hashlib.sha256()
    for key in sorted(tiles):
        digest.update(key.encode() + tiles[key])
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------------- training


def options_of(path: Path, name: str, size: dict[str, Any], runs: Path) -> dict[str, Any]:
    """What the size says, then what the entry says. Its `share` is of the steps of the size."""
    entry = yaml.safe_load(path.read_text()) or {}
    for key in entry:
        if key == "data":
            raise UserError(f"data: '{path}' has a section; write its keys with dots, such as data.crop")
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise UserError(f"{key}: '{path}' changes what all entries have in common")
    share = entry.pop("share", 1)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError(f"share: '{path}' has {share}; it is a part of the steps of the size, above 0 and at most 1")
    steps = max(1, round(size["steps"] * share))
    if isinstance(entry.get("schedule"), dict) and entry["schedule"].get("period") == "steps":
        entry["schedule"]["period"] = steps
    every = max(1, size["steps"] // 10)
    own = {
        "generator": {"name": "msrresnet", "width": size["width"], "num_blocks": size["blocks"]}, "data.batch": size["batch"],
        "steps": steps, "objective": {"name": "pixel", "content": {"l1": 1.0}}, "data.workers": 0,
    }  # fmt: skip
    fixed = {
        "name": name, "runs": runs, "data.train": DATA / "train", "data.validation": DATA / "validation",
        "data.validation_limit": "none", "validate_every": every, "validate_first": "false", "log_every": every,
        "save_every": "none", "keep": "{last: 1}", "log.wandb": "off", "seed": 0,
    }  # fmt: skip
    text = {
        key: value if isinstance(value, str | Path | bool | int | float) else json.dumps(value) for key, value in entry.items()
    }
    return {key: json.dumps(value) if isinstance(value, dict) else value for key, value in own.items()} | text | fixed


def run(name: str, path: Path, size: dict[str, Any], runs: Path) -> dict[str, Any]:
    """Trains one entry, unless it is done."""
    folder, record = runs / name, runs / f"{name}.json"
    options = [f"--{key}={value}" for key, value in options_of(path, name, size, runs).items()]
    if record.is_file() and (folder / "DONE").exists():
        result = read_json(record)
        if result["options"] != options:
            raise UserError(f"'{folder}' was trained with other options of '{path}'; remove it to train it again")
        print(f"{folder} is done")
        return result
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "sr_dist.train", "srresnet_x4", *options], check=True, env=threads())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60
    result = {"entry": name, "options": options, **to_target(folder, size["target"]), "cpu_minutes": round(cpu, 2)}
    write_json(record, result)
    return result


def threads() -> dict[str, str]:
    """Threads that wait sleep, so that CPU time is that of work."""
    count = os.environ.get("SPEEDRUN_THREADS", "2")
    return {**os.environ, "OMP_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE", "WANDB_SILENT": "true"}


def to_target(folder: Path, target: float | None) -> dict[str, Any]:
    """Minutes of steps, without validation, saving and the start: to the first validation at the target, and all."""
    images, minutes, reached = 0, 0.0, None
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = parse_json(line)
        if "images_per_second" in row:
            minutes += (row["images"] - images) / row["images_per_second"] / 60
            images = row["images"]
        elif target and not reached and row["validation/psnr_y"] >= target:
            reached = {"step": row["step"], "minutes": round(minutes, 2)}
    return {"reached": reached, "steps": row["step"], "minutes": round(minutes, 2)}


def evaluate(runs: Path, names: list[str]) -> dict[str, float]:
    """PSNR (Y) of every entry on the held-out tiles, in the protocol of all reports."""
    methods = ",".join(str(runs / name) for name in names)
    line = [sys.executable, "-m", "sr_dist.evaluate", methods, f"--data={DATA / 'validation'}", f"--out={runs / 'report'}"]
    subprocess.run([*line, "--metrics=psnr"], check=True, env=threads(), stdout=subprocess.DEVNULL)
    methods_of = read_json(runs / "report" / "report.json")["methods"]
    return {name: methods_of[name]["psnr_y"] for name in names}


def versions() -> dict[str, str]:
    return {
        "sr_dist": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": threads()["OMP_NUM_THREADS"],
    }


def table(results: list[dict[str, Any]], target: float | None) -> str:
    rows = [f"| entry | minutes to {target} dB | at step | CPU minutes, all | PSNR (Y) at the end |", "|---|---|---|---|---|"]
    for one in results:
        reached = one["reached"] or {"minutes": "-", "step": "-"}
        rows.append(
            f"| {one['entry']} | {reached['minutes']} | {reached['step']} of {one['steps']} | {one['cpu_minutes']} | "
            f"{one['psnr_y']:.2f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(cli.run_words(work, lambda: __doc__ or ""))
