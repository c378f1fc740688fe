"""launch/speedrun.sh: entries train with few steps, the table has them, and what all entries have in common stays."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from processes import ROOT, environment, run


def load_script():
    spec = importlib.util.spec_from_file_location("speedrun", ROOT / "launch" / "speedrun.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_minutes_are_those_of_the_steps_up_to_the_first_validation_at_the_target(tmp_path):
    """100 images at 10 per second are 10 s, and 100 at 5 are 20 s."""
    rows = [
        {"step": 10, "images": 100, "images_per_second": 10}, {"step": 10, "validation/psnr_y": 36.0},
        {"step": 20, "images": 200, "images_per_second": 5}, {"step": 20, "validation/psnr_y": 36.6},
        {"step": 30, "images": 300, "images_per_second": 5}, {"step": 30, "validation/psnr_y": 36.4},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = {"reached": {"step": 20, "minutes": 0.5}, "steps": 30, "minutes": 0.83}
    assert load_script().to_target(tmp_path, 36.5) == expected
    assert load_script().to_target(tmp_path, 37.0)["reached"] is None


def test_an_entry_says_its_share_of_the_steps_and_nothing_that_all_have_in_common(tmp_path):
    script, file = load_script(), tmp_path / "mine.yaml"
    file.write_text("share: 0.5\nschedule: {name: cosine, period: steps}\n")
    options = script.options_of(file, "mine", script.SIZES["1"], tmp_path)
    assert options["steps"] == script.SIZES["1"]["steps"] // 2
    assert json.loads(options["schedule"]) == {"name": "cosine", "period": options["steps"]}
    refused = {
        "data.validation_limit: 1": "in common", "steps: 5000": "in common", "init.generator: x.pth": "in common",
        "init: {generator: x.pth}": "in common", "data: {train: x}": "with dots", "share: 3": "at most 1",
        "share: 0": "at most 1",
    }  # fmt: skip
    for line, reason in refused.items():
        file.write_text(f"{line}\n")
        with pytest.raises(script.UserError, match=rf"^{line.split(':')[0]}: .*{reason}"):
            script.options_of(file, "mine", script.SIZES["1"], tmp_path)


@pytest.mark.slow
def test_entries_train_and_other_tiles_are_refused(tmp_path):
    """The tiles are cut again, so this shows too that their pixels are those of docs/speedrun.md."""
    for part in ("train", "validation"):
        run(0, "shards.build", "sample_photos", part, tmp_path / "data" / "sample_photos" / part, "--per_shard=64")
    line = [sys.executable, str(ROOT / "launch" / "speedrun.py"), "second", "--steps=4"]
    ours = {"cwd": tmp_path, "env": environment(SPEEDRUN_THREADS="1"), "capture_output": True, "text": True}
    result = subprocess.run(line, **ours)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "| second | - | - of 4 |" in result.stdout
    entry = json.loads((tmp_path / "runs" / "speedrun" / "1" / "speedrun.json").read_text())
    assert entry["target"] == 36.5 and entry["versions"]["torch"]
    (second,) = entry["entries"]
    assert second["steps"] == 4 and second["cpu_minutes"] > 0 and 30 < second["psnr_y"] < 36.5
    result = subprocess.run([*line[:-1], "--steps=5"], **ours)
    assert result.returncode == 2 and "was trained with other options" in result.stderr
    (tmp_path / "data" / "sample_photos" / "validation" / "validation-000000.tar").unlink()
    result = subprocess.run(line, **ours)
    assert result.returncode == 2 and "has other tiles" in result.stderr
