"""What lies in launch/: scripts without the usual mistakes of shells, configurations that say what they are for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted(ROOT.glob("launch/**/*.sh")), *sorted(ROOT.glob("launch/**/*.sbatch")), ROOT / ".ci" / "run"]
CONFIGURATIONS = sorted(ROOT.glob("launch/accelerate/*.yaml"))


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck on this machine (Debian: apt-get install shellcheck)")
def test_shellcheck_finds_nothing():
    answer = subprocess.run(
        ["shellcheck", "--severity=style", "--external-sources", "--source-path=SCRIPTDIR", *map(str, SCRIPTS)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_their_first_mistake(path):
    """Those that are sourced leave it to the script; jobs take it from job.sh."""
    text = path.read_text()
    sourced = text.startswith("# shellcheck shell=bash") and path.name != "job.sh"
    assert sourced or "set -euo pipefail" in text or ". launch/slurm/job.sh" in text


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_accelerate_configurations_say_when_to_use_them_and_what_they_need(path):
    from accelerate.commands.config.config_args import load_config_from_file

    head = path.read_text().split("compute_environment", 1)[0].splitlines()
    assert head
    assert all(line.startswith("# ") for line in head)
    assert "Needs" in " ".join(head)
    load_config_from_file(str(path))


@pytest.mark.parametrize(
    ("words", "complaint"), [([], "usage: pipeline.sh"), (["build:", "a", "trian:", "b"], "'trian:' is no stage")]
)
def test_a_pipeline_of_wrong_words_is_refused_before_anything_is_submitted(words, complaint):
    done = subprocess.run(["bash", str(ROOT / "launch/slurm/pipeline.sh"), *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and complaint in done.stderr and not done.stdout
