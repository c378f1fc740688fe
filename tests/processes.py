"""Real processes for tests: commands with and without a launcher, started, watched, killed."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
LONGEST = 600  # seconds, for a machine that is busy with other things


def environment(**extra: str) -> dict[str, str]:
    """One thread per rank, so that bits can be compared; no GPU, no network."""
    inherited = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("WANDB_", "ACCELERATE_", "SLURM_")) and k not in ("RANK", "WORLD_SIZE")
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])])
    fixed = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, "WANDB_SILENT": "true"}
    return {**inherited, **fixed, **extra}


def command(ranks: int, module: str, *words: object) -> list[str]:
    """What a user types; `ranks` 0: without a launcher."""
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(ranks), "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launcher += ["--multi_gpu"] if ranks > 1 else []
    return [sys.executable, *(launcher if ranks else []), "-m", module, *map(str, words)]


@cache
def _fork_server() -> subprocess.Popen[str]:
    line = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen(line, env=environment(), cwd=ROOT, start_new_session=True, **pipes)
    atexit.register(server.communicate)  # which closes its stdin and thereby ends it
    return server


def _request(**request: Any) -> Any:
    server = _fork_server()
    assert server.stdin and server.stdout
    print(json.dumps(request), file=server.stdin, flush=True)
    answer = server.stdout.readline()
    assert answer, "the fork server failed to start; its stderr has the reason"
    return json.loads(answer)


class Forked:
    """A command in one process or in several ranks, with those methods of `subprocess.Popen` that tests use.

    As under a launcher, the end of a rank that failed is the end of the others.
    """

    def __init__(self, environments: list[dict[str, str]], cwd: Path, module: str, words: list[str], held: object = None) -> None:
        """`held` lives as long as this object, such as the socket that reserves a port."""
        self._held = held
        self._output = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._output.name) / name for name in ("out", "err"))
        self._out.touch()
        self._err.touch()
        same = {"module": module, "words": words, "cwd": str(cwd), "out": str(self._out), "err": str(self._err)}
        self.pids: list[int] = [_request(env=variables, **same) for variables in environments]
        self._codes: dict[int, int] = {}

    @property
    def pid(self) -> int:
        return self.pids[0]

    @property
    def returncode(self) -> int | None:
        """The first code that is not 0, when all ranks have ended."""
        if len(self._codes) < len(self.pids):
            return None
        return next(filter(None, self._codes.values()), 0)

    def poll(self) -> int | None:
        for pid in self.pids:
            if pid not in self._codes and (code := _request(poll=pid)) is not None:
                self._codes[pid] = code
                if code:
                    self.kill()
        return self.returncode

    def send_signal(self, number: int) -> None:
        for pid in self.pids:
            if pid not in self._codes:
                os.kill(pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        deadline = time.monotonic() + (timeout or LONGEST)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("forked", timeout or LONGEST)
            time.sleep(0.02)
        return self._out.read_text(), self._err.read_text()


Process = subprocess.Popen[str] | Forked


def launch(ranks: int, module: str, *words: object, cwd: Path | None = None, **extra: str) -> Process:
    """The command as a user starts it: `accelerate launch`, or `python -m` for `ranks` 0."""
    if ranks > 1:
        extra["ACCELERATE_USE_CPU"] = "true"
    return popen(command(ranks, module, *words), cwd, **extra)


def popen(line: list[str], cwd: Path | None = None, **extra: str) -> Process:
    return subprocess.Popen(
        line, cwd=cwd or ROOT, env=environment(**extra), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def start(ranks: int, module: str, *words: object, cwd: Path | None = None, **extra: str) -> Process:
    """The same command, forked: `ranks` have the variables of a launcher, but no launcher."""
    variables, reserved = [environment(**extra)], None
    if ranks > 1:
        reserved = reserved_port()
        port = reserved.getsockname()[1]
        variables = [environment(**rank_variables(rank, ranks, port), **extra) for rank in range(ranks)]
    return Forked(variables, cwd or ROOT, module, list(map(str, words)), reserved)


def rank_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    of_rank = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in of_rank.items()}}


def reserved_port() -> socket.socket:
    """Bound to a free port, which no other program gets while this socket is open. It does not listen, so the first rank may."""
    reserving = socket.socket()
    reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the first rank does
    reserving.bind(("127.0.0.1", 0))
    return reserving


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


def finish(process: Process) -> tuple[int, str, str]:
    """Exit code, stdout and stderr. Whatever still runs after LONGEST is killed."""
    try:
        out, err = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        kill(process)
        out, err = process.communicate()
        raise AssertionError(f"still running after {LONGEST} s\n{out[-3000:]}\n{err[-3000:]}") from None
    assert process.returncode is not None
    return process.returncode, out, err


def run(ranks: int, module: str, *words: object, expect: int = 0, cwd: Path | None = None, **extra: str) -> tuple[str, str]:
    """Runs a command, forked, to its end: -> stdout, stderr."""
    return finish_with(expect, start(ranks, module, *words, cwd=cwd, **extra))


def finish_with(expect: int, process: Process) -> tuple[str, str]:
    code, out, err = finish(process)
    assert code == expect, f"exit code {code}\n{out[-3000:]}\n{err[-5000:]}"
    return out, err


def family(process: Process) -> list[psutil.Process]:
    """The processes of a command and all that they started."""
    members = []
    for pid in process.pids if isinstance(process, Forked) else [process.pid]:
        with suppress(psutil.NoSuchProcess):
            whole = psutil.Process(pid)
            members += [whole, *whole.children(recursive=True)]
    return members


def kill(process: Process, number: int = signal.SIGKILL) -> None:
    """Sends a signal to the whole family at once."""
    for member in family(process):
        with suppress(psutil.NoSuchProcess):
            member.send_signal(number)


def trainers(process: Process) -> list[psutil.Process]:
    """The ranks, in order: the Python processes that run the command itself (loader workers are their children)."""
    if isinstance(process, Forked):
        return [psutil.Process(pid) for pid in process.pids]
    members = []
    for member in family(process):
        try:
            line = member.cmdline()
        except psutil.Error:
            continue
        if "accelerate.commands.launch" not in line and "sr_dist.train" in line:
            members.append(member)
    pids = {member.pid for member in members}
    return [member for member in members if member.ppid() not in pids]


def wait_for(condition: Callable[[], object], process: Process | None = None) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        if process is not None and process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"ended with {process.returncode} too early\n{out[-3000:]}\n{err[-3000:]}")
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


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
