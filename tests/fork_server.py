"""Runs commands in processes that are forked from this one, which has imported torch and the package: each saves 3 seconds.

Reads a JSON object per line from stdin and answers it with a line on stdout:
  {"module", "words", "env", "cwd", "out", "err"}  runs `python -m MODULE WORDS` in a new process -> its pid
  {"poll": pid}                                    -> its exit code, negative for a signal, or null while it runs
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
from typing import Any

# The modules that commands load. The commands themselves run as `__main__` and must not be imported before.
PRELOADED = ("accelerate", "sr_dist.training.train", "sr_dist.tools.flops", "sr_dist.evaluation.run")


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else every process copies the memory that its garbage collector marks
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer = poll(request["poll"])
        elif (answer := os.fork()) == 0:
            return execute(request)
        print(json.dumps(answer), flush=True)


def poll(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def execute(request: dict[str, Any]) -> None:
    """Runs the command in the forked process. It ends like any Python process: exit code, traceback, exit handlers."""
    os.setsid()
    for descriptor, path in enumerate([os.devnull, request["out"], request["err"]]):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:1] = [request["cwd"], *request["env"]["PYTHONPATH"].split(os.pathsep)]
    sys.argv[1:] = request["words"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
