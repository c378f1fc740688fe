"""Files of version 0.1.0 are still opened, evaluated and continued.

`tests/version_0_1` holds shards, a GAN and a classifier of three steps, and the numbers that 0.1.0 itself reported next
(`expected.json`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from processes import run

FILES = Path(__file__).resolve().parents[1] / "version_0_1"
EXPECTED = json.loads((FILES / "expected.json").read_text())


@pytest.fixture
def old(tmp_path) -> Path:
    """A copy that may be written to. It is the working folder of the commands: the recipes name `shards` and `runs` in it."""
    return Path(shutil.copytree(FILES, tmp_path / "old"))


def close(value: object) -> object:
    return value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-8)


def test_shards_of_0_1_are_whole(old):
    out, _ = run(0, "shards.verify", "shards", "--deep", cwd=old)
    assert "2 of 2 shards are whole, with 8 of 8 samples" in out


def test_a_run_of_0_1_is_evaluated_to_the_same_numbers(old):
    words = ["runs/gan", "--data=shards", "--metrics=psnr,ssim", "--attributes=runs/classifier", "--out=report", "--cache=none"]
    run(0, "sr_dist.evaluate", *words, cwd=old)
    report = json.loads((old / "report" / "report.json").read_text())
    for method, columns in EXPECTED["methods"].items():
        assert report["methods"][method] == {name: close(value) for name, value in columns.items()}
    seen = report["attributes"]["classifier"]["heads"]["class"]["methods"]
    assert {method: answers["confusion"] for method, answers in seen.items()} == EXPECTED["confusion"]


def test_a_checkpoint_of_0_1_is_continued_to_the_same_numbers(old):
    run(0, "sr_dist.train", "runs/gan/recipe.yaml", "--steps=6", cwd=old)
    rows = [json.loads(line) for line in (old / "runs/gan/metrics.jsonl").read_text().splitlines()]
    later = [row for row in rows if row["step"] > 3]
    assert [set(row) >= set(expected) for row, expected in zip(later, EXPECTED["continued"], strict=True)] == [True] * len(later)
    for row, expected in zip(later, EXPECTED["continued"], strict=True):
        assert {name: row[name] for name in expected} == {name: close(value) for name, value in expected.items()}
