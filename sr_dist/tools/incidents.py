"""Why an attempt of a job failed, and whether the job may try again: `python -m sr_dist.tools.incidents RUN ...`, as
launch/slurm/job.sh calls it. Appends a line to `runs/NAME/incidents.jsonl`.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from sr_dist.core import cli
from sr_dist.core.cli import Word
from sr_dist.core.config import Settings
from sr_dist.core.errors import first_line
from sr_dist.core.files import Lines
from sr_dist.core.json_text import parse_json, read_json
from sr_dist.core.run_layout import INCIDENTS, LOG, METRICS, RECIPE
from sr_dist.recipe import checks
from sr_dist.training.tracker import alert

Cause = Literal["mistake", "diverged", "signal", "network", "device", "error", "unknown", "lost"]
MISTAKE = 2  # exit code
FAULTS = ("signal", "network", "device")  # another attempt, on other nodes, may succeed
TAIL = 1 << 16  # bytes of the end of a file
DIVERGED = re.compile(r"error: the training has (diverged|collapsed): ")  # as `training.rollback.ended` says it
FULL = re.compile(r"out of memory", re.IGNORECASE)  # a batch that does not fit, also where CUDA or NCCL say so
DEVICE = re.compile(r"CUDA error|CUDNN_STATUS|CUBLAS_STATUS|AcceleratorError|uncorrectable ECC|hipError", re.IGNORECASE)
NETWORK = re.compile(
    r"nccl\w+Error|NCCL (error|operation .*timed out)|Watchdog caught collective|Dist(Backend|Network|Store)Error|gloo/transport|"
    r"Connection (closed|reset) by peer|Connection refused|No route to host"
)
PEER = re.compile(r"Connection (closed|reset) by peer|Connection refused|No route to host|ncclRemoteError|Watchdog|timed out")
ERROR = re.compile(r"error: |[\w.]*(Error|Exception|SaveFailed)\b")  # the line of a command, or the last one of a traceback


class Incident(Settings):
    """Records a failed attempt of a job, and says whether the job may try again.

    Prints `again` or `stop`, the node to exclude (or -) and the exit code, and in a second line the reason."""

    run: Annotated[Path, Word("RUN")]
    """The run folder."""
    records: Path
    """The folder with the records of `sr_dist.tools.watch_rank`."""
    code: int
    """The exit code of the launchers."""
    before: int
    """The step of the newest checkpoint when the attempt began."""
    after: int
    """The same now."""
    job: int
    """The number of the job, or of the array that trains this run."""
    attempt: int = 0
    """How often the job was requeued before; of an array, the task."""
    retries: int = 3
    """How often in a row a job may try again without a new checkpoint. 0: it never does."""
    lost: bool = False
    """SLURM ended the attempt before this one; nothing is left of it."""


@dataclass(frozen=True)
class Failure:
    """The first failure of an attempt in time."""

    cause: Cause
    exit_code: int
    node: str | None = None
    rank: int | None = None
    last_lines: Sequence[str] = ()

    @property
    def suspect(self) -> str:
        """The node to exclude, or `-`: a rank that only lost another one, or met a server or an image that fails, says nothing
        against its own node."""
        if self.exit_code == MISTAKE:
            return "-"
        if self.cause == "network" and any(PEER.search(line) for line in self.last_lines):
            return "-"
        return self.node or "-"

    @property
    def text(self) -> str:
        place = f"{self.node}, rank {self.rank}: " if self.node else ""
        if self.cause == "lost":
            return "SLURM ended the attempt before it could save, as when a node is lost"
        if self.cause == "signal":
            return f"{place}{_signal_name(self.exit_code)}"
        return f"{place}{_last_line(self.last_lines)} (exit code {self.exit_code})"


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(Incident, handle, argv)


def handle(options: Incident) -> None:
    failure = Failure("lost", 0) if options.lost else first_failure(options)
    if failure.cause == "mistake":
        print(f"stop - {MISTAKE}\nnot requeued: it would make the same mistake again", flush=True)
        return
    again, reason = decide(failure, options, fruitless(options.run, options.job))
    print(f"{'again' if again else 'stop'} {failure.suspect} {failure.exit_code}\n{failure.text}; {reason}", flush=True)
    if options.run.is_dir():
        row = record(failure, options, again)
        Lines(options.run / INCIDENTS).write(json.dumps(row))
        send_alert(options.run, failure, row)


def first_failure(options: Incident) -> Failure:
    """The earliest of the records. A mistake or a divergence counts wherever it is: it is alike on all ranks."""
    trained, code = options.after > options.before, options.code
    failures = [
        Failure(
            cause_of(row["exit_code"], row["last_lines"], trained), row["exit_code"], row["node"], row["rank"], row["last_lines"]
        )
        for row in sorted(map(read_json, options.records.glob("rank-*.json")), key=lambda row: row["time"])
    ]
    certain = [failure for failure in failures if failure.cause in ("mistake", "diverged")]
    unseen = Failure(cause_of(code, (), trained) if code > 128 or code == MISTAKE else "unknown", code)
    return next(iter(certain or failures), unseen)


def cause_of(code: int, lines: Sequence[str], trained: bool = False) -> Cause:
    """`trained`: the attempt made progress. Exit code 2 then means what it met on its way: a server or an image."""
    if code == MISTAKE and not trained:
        return "mistake"
    if code > 128 and code != 128 + signal.SIGABRT:  # with which NCCL and CUDA end a process
        return "signal"
    if any(DIVERGED.match(line) for line in lines):
        return "diverged"
    if code <= 128 and any(FULL.search(line) for line in lines):
        return "error"
    if any(DEVICE.search(line) for line in lines):
        return "device"
    if any(NETWORK.search(line) for line in lines):
        return "network"
    return "signal" if code > 128 else "error"


def fruitless(run: Path, job: int) -> int:
    """How often in a row this job has tried again without a new checkpoint."""
    count = 0
    for row in reversed(_last_rows(run / INCIDENTS)):
        if row.get("job") != job or row.get("saved_step", 0) > row.get("saved_before", 0) or not row.get("requeued"):
            break
        count += row.get("cause") != "lost"
    return count


def decide(failure: Failure, options: Incident, before: int) -> tuple[bool, str]:
    """Whether the job may try again, and why."""
    steps = f"the run has advanced from step {options.before} to step {options.after}"
    if failure.cause == "lost":
        return True, "the job continues"
    if options.retries == 0:
        return False, "not requeued (SR_DIST_RETRIES=0)"
    if failure.cause == "diverged":
        return False, "not requeued: it would diverge again"
    if options.after > options.before:
        return True, steps
    if failure.cause not in FAULTS:
        return False, f"the run is still at step {options.after}: not requeued, because this attempt made no progress"
    if before >= options.retries:
        return False, f"not requeued: {before + 1} attempts in a row made no progress (SR_DIST_RETRIES)"
    return True, f"the run is still at step {options.after}; attempt {before + 1} of {options.retries} without progress"


def record(failure: Failure, options: Incident, again: bool) -> dict[str, Any]:
    logged = [row["step"] for row in _last_rows(options.run / METRICS) if isinstance(row.get("step"), int)]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "job": options.job,
        "attempt": options.attempt,
        "cause": failure.cause,
        "node": failure.node,
        "rank": failure.rank,
        "exit_code": failure.exit_code,
        "step": max([options.after, *logged[-1:]]),
        "saved_before": options.before,
        "saved_step": options.after,
        "requeued": again,
        "last_lines": list(failure.last_lines) or _last_text(options.run / LOG).splitlines()[-5:],
    }


def send_alert(run: Path, failure: Failure, row: dict[str, Any]) -> None:
    """To the trackers of the run. A failure of theirs is a line, because the job must still be requeued."""
    if not (run / RECIPE).is_file():
        return
    try:
        recipe = checks.read_recipe(run / RECIPE, {"runs": str(run.parent)})
        again = "the job goes back to the queue" if row["requeued"] else "the job has ended"
        alert(recipe, f"{recipe.name} failed", f"step {row['step']}: {failure.text}; {again}", lambda text: None)
    except Exception as problem:
        print(f"no alert was sent: {first_line(problem)}", file=sys.stderr, flush=True)


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return f"exit code {code}"


def _last_line(lines: Sequence[str]) -> str:
    """The last line that says what went wrong: threads and C++ write stacks after it."""
    for is_reason in (ERROR.match, NETWORK.search, DEVICE.search, re.compile(r"\S").search):
        for line in reversed(lines):
            if is_reason(line):
                return line
    return "failed"


def _last_text(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read().decode(errors="replace")


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The rows at the end of a file of rows; damaged ones are left out."""
    rows = []
    for line in _last_text(path).splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


if __name__ == "__main__":
    sys.exit(main())
