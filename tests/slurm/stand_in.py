"""Replaces Python in tests of the job rules, so that they need no training: each attempt gains a few steps and saves on STOP.

stand_in.py -c ... RECIPE --key=value        prints the run folder
stand_in.py -m MODULE RECIPE --key=value     --steps=N in all, --gain=N of them per attempt, --fail=CODE
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def main(words: list[str]) -> int:
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    run = Path(options["runs"]) / options.get("name", "toy")
    if words[0] == "-c":
        print(run)
        return 0
    with open(run.parent / "attempts", "a") as attempts:
        attempts.write(" ".join([os.environ["SLURM_JOB_ID"], *words]) + "\n")
    if "fail" in options:
        return int(options["fail"])
    return train(run, int(options["steps"]), int(options["gain"]))


def train(run: Path, steps: int, gain: int) -> int:
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    time.sleep(0.5)
    (run / "STOP").unlink(missing_ok=True)  # as a training run does when it starts
    (run / "recipe.yaml").touch()
    before = max((int(path.name) for path in checkpoints.iterdir()), default=0)
    after = min(before + gain, steps)
    while after < steps and not (run / "STOP").exists():
        time.sleep(0.05)
    (checkpoints / f"{after:07d}").mkdir(exist_ok=True)
    (run / ("DONE" if after == steps else "PREEMPTED")).write_text(f"step {after}\n")
    return int(after < steps)  # accelerate's launcher exits with 1 after a signal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
