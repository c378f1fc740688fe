"""A run whose weights change by step, with sharpened targets, continues as one that never stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sr_dist import train

OPTIONS = [
    "--objective={name: pixel, content: {l1: {weight: {0: 1.0, 4: 0.2}, sharpen: true}, mse: {2: 0, 4: 1}}}",
    "--log_every=1", "--save_every=2", "--validate_every=none", "--data.workers=0",
]  # fmt: skip


def losses(runs: Path, name: str) -> list[dict[str, float]]:
    rows = map(json.loads, (runs / name / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key.startswith("loss/")} for row in rows]


@pytest.mark.slow
def test_weights_by_step_continue_exactly(write_recipe, tmp_path):
    recipe = str(write_recipe(name="whole", steps=4))
    assert train.main([recipe, *OPTIONS]) == 0
    assert train.main([recipe, *OPTIONS, "--name=cut", "--steps=2"]) == 0
    assert train.main([recipe, *OPTIONS, "--name=cut", "--steps=4"]) == 0
    whole, cut = losses(tmp_path / "runs", "whole"), losses(tmp_path / "runs", "cut")
    assert len(whole) == 4 and cut == whole
    assert whole[0]["loss/mse"] == whole[1]["loss/mse"] == 0 < whole[3]["loss/mse"]
