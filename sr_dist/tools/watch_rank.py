"""Runs a rank and records how it failed: `python -m sr_dist.tools.watch_rank MODULE [ARGUMENT ...]`, for launch/slurm/node.sh.

A rank that is killed cannot say so itself, and launchers turn every exit code into 1.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from sr_dist.core import launch_env
from sr_dist.core.child_processes import GRACE, POLL
from sr_dist.core.files import write_json

FOLDER = "SR_DIST_FAILURES"  # the variable that names the folder of the records
LINES = 30  # on stderr, which the record has
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def watch(command: Sequence[str]) -> int:
    """Runs the command, which gets the signals of this process, and returns its exit code: 128 + N after signal N."""
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: child.send_signal(number))
    lines: deque[str] = deque(maxlen=LINES)
    copying = threading.Thread(target=_copy_lines, args=(child, lines), daemon=True)
    copying.start()
    threading.Thread(target=_end_with_launcher, args=(child, os.getppid()), daemon=True).start()
    code = child.wait()
    ended = time.time()
    copying.join(timeout=GRACE)  # what the rank has started may hold its stderr open
    code = 128 - code if code < 0 else code
    if code:
        _record(Path(os.environ[FOLDER]), ended, code, list(lines))
    return code


def _copy_lines(child: subprocess.Popen[bytes], lines: deque[str]) -> None:
    assert child.stderr
    for line in child.stderr:
        lines.append(line.decode(errors="replace").rstrip())
        try:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
        except OSError:  # nobody reads the log any more; the rank may still save
            continue


def _end_with_launcher(child: subprocess.Popen[bytes], launcher: int) -> None:
    """Does for the rank what `child_processes.end_with_launcher` does: its parent is this process, not the launcher."""
    if not launch_env.under_launcher():
        return
    while os.getppid() == launcher:
        time.sleep(POLL)
    child.terminate()
    if launch_env.num_ranks() > 1:
        time.sleep(GRACE)
        child.kill()


def _record(folder: Path, ended: float, code: int, lines: list[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        node = os.environ.get("SLURMD_NODENAME", platform.node())
        record = {"time": ended, "node": node, "rank": launch_env.rank(), "exit_code": code, "last_lines": lines}
        write_json(folder / f"rank-{launch_env.rank()}.json", record)
    except OSError as problem:
        print(f"the failure cannot be recorded in '{folder}': {problem.strerror}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(watch([sys.executable, "-m", *sys.argv[1:]]))
