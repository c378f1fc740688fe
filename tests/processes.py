"""Real processes for tests: doors with and without a launcher, started, watched, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
LONGEST = 300  # seconds, for a machine that is busy with other things


def environment(**extra: str) -> dict[str, str]:
    """One thread per rank, so that bits can be compared; no GPU, no network."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("WANDB_", "ACCELERATE_", "SLURM_")) and k not in ("RANK", "WORLD_SIZE")
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    fixed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, "WANDB_SILENT": "true"}
    return {**kept, **fixed, **extra}


def command(ranks: int, module: str, *words: object) -> list[str]:
    """`ranks` 0: without a launcher."""
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(ranks), "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launcher += ["--multi_gpu"] if ranks > 1 else []
    return [sys.executable, *(launcher if ranks else []), "-m", module, *map(str, words)]


def start(ranks: int, module: str, *words: object, cwd: Path | None = None, **extra: str) -> subprocess.Popen[str]:
    if ranks > 1:
        extra["ACCELERATE_USE_CPU"] = "true"
    return subprocess.Popen(
        command(ranks, module, *words), cwd=cwd or ROOT, env=environment(**extra), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def small_gan(train: object, runs: Path, **more: object) -> list[str]:
    """The words of a GAN that is small enough for two cores, and traced; `data__crop` means data.crop."""
    options = {
        "name": "run", "runs": runs, "data.train": train, "data.validation": "none", "data.trace": "true", "data.crop": 32,
        "data.workers": 0, "log_every": 1, "log.wandb": "off",
        "generator": "{name: srugan, widths: [8, 12], num_blocks: 1, num_dense_blocks: 1}",
        "discriminator.widths": "[8,12]", "discriminator.features": 16,
        **{key.replace("__", "."): value for key, value in more.items()},
    }  # fmt: skip
    return [str(DEMO), *(f"--{key}={value}" for key, value in options.items())]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, what was printed, what was complained about; whatever still lives after LONGEST is killed."""
    try:
        out, complaints = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        kill(process)
        out, complaints = process.communicate()
        raise AssertionError(f"still running after {LONGEST} s\n{out[-3000:]}\n{complaints[-3000:]}") from None
    return process.returncode, out, complaints


def run(ranks: int, module: str, *words: object, expect: int = 0, cwd: Path | None = None, **extra: str) -> tuple[str, str]:
    code, out, complaints = finish(start(ranks, module, *words, cwd=cwd, **extra))
    assert code == expect, f"exit code {code}\n{out[-3000:]}\n{complaints[-5000:]}"
    return out, complaints


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        whole = psutil.Process(process.pid)
        return [whole, *whole.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """The process and all that it started, at once."""
    for member in family(process):
        with suppress(psutil.NoSuchProcess):
            member.send_signal(number)


def trainers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks: the Python processes that run the door itself (loader workers are their children)."""
    found = []
    for member in family(process):
        try:
            line = member.cmdline()
        except psutil.Error:
            continue
        if "accelerate.commands.launch" not in line and "sr_dist.train" in line:
            found.append(member)
    pids = {member.pid for member in found}
    return [member for member in found if member.ppid() not in pids]


def wait_for(condition, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        if process is not None and process.poll() is not None:
            out, complaints = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before it was time\n{out[-3000:]}\n{complaints[-3000:]}")
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def metrics(run_folder: Path) -> list[dict]:
    """Rows of training steps; a line still being written is left out."""
    path = run_folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [row for line in lines if line.endswith("\n") and "images_per_second" in (row := json.loads(line))]


def last_step(run_folder: Path) -> int:
    rows = metrics(run_folder)
    return rows[-1]["step"] if rows else 0


def trace(run_folder: Path) -> list[tuple[int, str]]:
    """(step, key) of everything that the surviving weights were trained on."""
    rows = [json.loads(line) for path in (run_folder / "trace").glob("rank-*.jsonl") for line in path.read_text().splitlines()]
    return [(row["step"], key) for row in rows for key in row["keys"]]


def assert_exactly_once(run_folder: Path, samples: int, batch: int, steps: int) -> None:
    """Every step has a full batch, and every key of each whole epoch came once."""
    seen = sorted(trace(run_folder))
    assert Counter(step for step, _ in seen) == dict.fromkeys(range(1, steps + 1), batch)
    whole_epochs, partly = divmod(batch * steps, samples)
    counts = Counter(key for _, key in seen)
    assert whole_epochs >= 1
    assert len(counts) == samples
    assert set(counts.values()) <= {whole_epochs, whole_epochs + bool(partly)}


def losses(run_folder: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key.startswith("loss/")} for row in metrics(run_folder)]
