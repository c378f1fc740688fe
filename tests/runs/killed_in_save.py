"""Run by the kill tests: a training that kills itself, with SIGKILL, at one stage of writing the checkpoint of one step.

killed_in_save.py STAGE STEP [words of sr_dist.train ...]
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from sr_dist.core.run_layout import checkpoint_steps
from sr_dist.train import main
from sr_dist.training import checkpoint

STAGES = ("first tensors", "before state", "before manifest", "before rename", "after rename", "while pruning")


def arm(stage: str, step: int) -> None:
    """Wraps the functions that a save calls, so that the process dies in one of them."""

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def this_step(path) -> bool:
        return f"{step:07d}" in str(path)

    def wrapped(function, dies):
        def call(*words, **more):
            if dies(*words):
                die()
            return function(*words, **more)

        return call

    def after_rename(source, target):
        rename(source, target)
        if this_step(target):
            die()

    rename = os.rename
    if stage == "first tensors":
        save_file = checkpoint.save_file

        def torn(tensors, path, *more):
            save_file(tensors, path, *more)
            if this_step(path):
                Path(path).write_bytes(Path(path).read_bytes()[:100])
                die()

        checkpoint.save_file = torn
    elif stage == "before state":
        checkpoint.json.dumps = wrapped(
            checkpoint.json.dumps, lambda thing, **_: isinstance(thing, dict) and thing.get("step") == step
        )
    elif stage == "before manifest":
        checkpoint.write_json = wrapped(checkpoint.write_json, lambda path, _: this_step(path))
    elif stage == "before rename":
        os.rename = wrapped(rename, lambda source, _: this_step(source))
    elif stage == "after rename":
        os.rename = after_rename
    elif stage == "while pruning":
        remove = shutil.rmtree

        def half(path, **more):
            if (
                not str(path).endswith(".unfinished")
                and Path(path).exists()
                and len(checkpoint_steps(Path(path).parents[1])) > 2
                and this_step(max(Path(path).parent.glob("0*")))
            ):
                next(Path(path).iterdir()).unlink()
                die()
            remove(path, **more)

        checkpoint.shutil.rmtree = half


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
