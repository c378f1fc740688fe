"""The private names of DeepSpeed that training/deepspeed.py uses, on real CPU engines of ZeRO 1, 2 and 3 in one other process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from deepspeed_engines import CHECKS

NAMES = [f"{stage} {check.__name__}" for stage, checks in CHECKS.items() for check in checks]


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    """Check -> "" or its traceback."""
    pytest.importorskip("deepspeed")
    environment = processes.environment(DS_ACCELERATOR="cpu")
    with processes.reserved_port() as reserved:
        words = [sys.executable, str(Path(__file__).with_name("deepspeed_engines.py")), str(reserved.getsockname()[1])]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=processes.LONGEST)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_private_name(name, results):
    assert not results[name], results[name]
