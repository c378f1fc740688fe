"""A network of one channel is trained on grey crops and validated on colour images."""

from __future__ import annotations

import json


def test_a_grey_network_is_validated_and_scored_on_colour_images(write_recipe, photos, run_commands, tmp_path):
    recipe = write_recipe(
        generator={"channels": 1, "skip": "bicubic"}, data={"validation": str(photos), "validation_limit": 3}, steps=2
    )
    out = str(tmp_path / "report")
    run = str(tmp_path / "runs" / "tiny")
    trained, scored = run_commands(
        [
            ("sr_dist.train", [str(recipe)]),
            ("sr_dist.evaluate", [run, f"--data={photos}", "--limit=2", "--metrics=psnr", f"--out={out}"]),
        ]
    )
    assert trained.code == 0, trained.err
    rows = [json.loads(line) for line in (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("validation/psnr_rgb", 0) > 15 for row in rows)
    assert scored.code == 0, scored.err
    methods = json.loads((tmp_path / "report" / "report.json").read_text())["methods"]
    assert abs(methods["tiny"]["psnr_y"] - methods["bicubic"]["psnr_y"]) < 3  # it starts from the bicubic image
