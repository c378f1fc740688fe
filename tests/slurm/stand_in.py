"""Replaces Python in tests of the job rules, so that they need no training: each attempt gains a few steps and saves on STOP.

stand_in.py -c ... RECIPE --key=value        prints the run folder
stand_in.py -m MODULE RECIPE --key=value     --steps=N in all, --gain=N of them per attempt, --fail=CODE at once; SIGTERM is STOP
    --faults=NODE:FAULT,...                  how a rank of each attempt fails after that: an exit code or KILL; first:FAULT
                                             on the first node, wherever that is
    --go=true                                it fails when the file `go` is beside the run

Under a launcher each node has one rank. The modules that judge failures are the real ones.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from sr_dist.tools import incidents, watch_rank


def main(words: list[str]) -> int:
    if words[:2] == ["-m", "accelerate.commands.launch"]:
        given = dict(zip(words, words[1:], strict=False))
        os.environ.update(RANK=given["--machine_rank"], WORLD_SIZE=given["--num_machines"], LOCAL_RANK="0")
        words = words[words.index("-m", 2) :]
    if words[:2] == ["-m", "sr_dist.tools.watch_rank"]:
        return watch_rank.watch([sys.executable, __file__, "-m", *words[2:]])
    if words[:2] == ["-m", "sr_dist.tools.incidents"]:
        return incidents.main(words[2:])
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    run = Path(options["runs"]) / options.get("name", "toy")
    if words[0] == "-c":
        print(run)
        return 0
    if is_first():
        with open(run.parent / "attempts", "a") as attempts:
            attempts.write(" ".join([os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NODELIST"], *words]) + "\n")
    if "fail" in options:
        return int(options["fail"])
    return train(run, options)


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def train(run: Path, options: dict[str, str]) -> int:
    faults, attempt = options.get("faults", "").split(","), attempt_number()
    node, _, fault = (faults[attempt] if attempt < len(faults) else "").partition(":")
    saved = run / f"saved-{attempt}"
    after, steps = begin(run, int(options["gain"])) if is_first() else 0, int(options["steps"])
    if not fault:
        signal.signal(signal.SIGTERM, lambda number, frame: (run / "STOP").touch())
    if is_first() and fault:
        save(run, min(after, steps))
        saved.touch()
    if fault and node == ("first" if is_first() and node == "first" else os.environ["SLURMD_NODENAME"]):
        wait_for(saved, *([run.parent / "go"] if "go" in options else []))
        return fail(fault)
    if not is_first():
        wait_for(run / ("never" if fault else "ENDED"))
        return 0
    while (after < steps or fault) and not (run / "STOP").exists():
        time.sleep(0.05)
    save(run, min(after, steps))
    (run / ("DONE" if after >= steps else "PREEMPTED")).write_text(f"step {min(after, steps)}\n")
    (run / "ENDED").touch()
    return int(after < steps)  # accelerate's launcher exits with 1 after a signal


def attempt_number() -> int:
    task = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0")) - int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0"))
    return task + int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def begin(run: Path, gain: int) -> int:
    """-> the step at which this attempt ends."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    time.sleep(0.5)
    for name in ("STOP", "ENDED"):
        (run / name).unlink(missing_ok=True)  # as a training run does when it starts
    (run / "recipe.yaml").touch()
    return max((int(path.name) for path in (run / "checkpoints").iterdir()), default=0) + gain


def save(run: Path, step: int) -> None:
    (run / "checkpoints" / f"{step:07d}").mkdir(exist_ok=True)


def wait_for(*files: Path) -> None:
    while not all(file.exists() for file in files):
        time.sleep(0.05)


def fail(fault: str) -> int:
    if fault == "KILL":
        os.kill(os.getpid(), signal.SIGKILL)
    print("OSError: the disk is gone", file=sys.stderr, flush=True)
    return int(fault)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
