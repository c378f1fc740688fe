"""Runs commands one after the other in this process, and prints a line of JSON: for each its exit code, stdout, stderr, and the
heavy packages that are loaded by then.

run_commands.py CALLS        a JSON list of [module, arguments]
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

HEAVY = ("torch", "torchvision", "webdataset", "deepspeed", "accelerate", "wandb")


def run(module: str, arguments: list[str]) -> tuple[Any, str, str, list[str]]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = importlib.import_module(module).main(arguments)
        except SystemExit as end:
            code = end.code
        except Exception:
            code = 1
            traceback.print_exc()
    return code, out.getvalue(), err.getvalue(), [name for name in HEAVY if name in sys.modules]


if __name__ == "__main__":
    print(json.dumps([run(module, arguments) for module, arguments in json.loads(sys.argv[1])]))
