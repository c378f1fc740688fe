"""The environment variables by which accelerate's launcher configures a rank. core/launch_env.py reads them."""

from __future__ import annotations

import json
from pathlib import Path

import processes
import pytest

PRINT = "import json, os; print(json.dumps({name: value for name, value in os.environ.items()}))"


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ("zero3.yaml", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "WORLD_SIZE": "1"}),
        ("cpu.yaml", {"ACCELERATE_USE_CPU": "True"}),
    ],
)
def test_variables_of_a_rank(configuration, expected, tmp_path: Path):
    script = tmp_path / "variables.py"
    script.write_text(PRINT)
    config_file = processes.ROOT / "launch" / "accelerate" / configuration
    line = [*processes.command(1, "module")[:-2], "--config_file", str(config_file), str(script)]
    out, _ = processes.finish_with(0, processes.popen(line, DS_ACCELERATOR="cpu"))
    variables = json.loads(out.splitlines()[-1])
    assert {name: variables.get(name) for name in expected} == expected
