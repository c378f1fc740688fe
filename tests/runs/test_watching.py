"""The record of a run: a slow rank, W&B over a stop and without its server, the rows and the curves."""

from __future__ import annotations

import json
from statistics import median

import pytest
from processes import finish, last_step, metrics, run, start, wait_for
from wandb_records import history, of_kind

pytestmark = pytest.mark.slow

SLOW = """
import os, time
from torch import nn
import torch.nn.functional as F
from sr_dist.core.config import Settings

class Config(Settings):
    pass

def build(config, scale):
    return Slow(scale)

class Slow(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale, self.body = scale, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, lr):
        time.sleep(0.6 if self.training and os.environ.get("RANK") == "1" else 0)
        return self.body(F.interpolate(lr, scale_factor=self.scale))
"""


def test_a_run_is_recorded_from_its_first_step_to_its_last(photo_shards, tmp_path):
    """Two ranks, one of them slow, are stopped. One process continues while the server of W&B is down."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "slow.py").write_text(SLOW)
    (tmp_path / "slow.yaml").write_text(f"""
        name: slow
        scale: 2
        steps: 2000
        runs: {tmp_path}
        data: {{train: {photo_shards}, validation: {photo_shards}, validation_limit: 3, crop: 16, batch: 4, workers: 0}}
        generator: {{name: mine.slow}}
        objective: {{name: pixel, content: {{l1: 1.0}}}}
        optimizer: {{learning_rate: 1e-3}}
        validate_every: 4
        save_every: 4
        log_every: 2
        keep: {{last: 1, best: psnr_y}}
        log: {{wandb: offline, artifacts: true}}
    """)
    folder = tmp_path / "slow"
    process = start(2, "sr_dist.train", tmp_path / "slow.yaml", cwd=tmp_path)
    wait_for(lambda: last_step(folder) >= 6, process)
    (folder / "STOP").touch()
    code, out, err = finish(process)
    assert code == 0, err
    assert "\r" not in out
    assert (folder / "PREEMPTED").exists()

    rows = metrics(folder)
    assert median(row["step_time_spread"] for row in rows) > 1.5  # one rank does nearly all of the work; the maximum is 2
    assert all(row["tflops"] > 0 for row in rows)
    assert "mfu" not in rows[0]  # the peak of a CPU is unknown
    assert "spread " in out
    assert " TFLOP/s" in out
    stopped = rows[-1]["step"]

    reached = json.loads((sorted((folder / "checkpoints").iterdir())[-1] / "state.json").read_text())["step"]
    no_server = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "1"}
    words = [tmp_path / "slow.yaml", f"--steps={reached + 4}", "--log.wandb=online"]
    out, _ = run(0, "sr_dist.train", *words, cwd=tmp_path, **no_server)
    assert "W&B is not available online" in out
    assert (folder / "DONE").exists()
    assert "step_time_spread" not in metrics(folder)[-1]  # one rank has no spread

    begun = [record for record in of_kind(folder, "run") if record.run_id]
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 2  # one per process group, written by its first rank
    assert {record.run_id for record in begun} == {(folder / "wandb_id").read_text().strip()}
    steps = [row["step"] for row in history(folder)]
    assert steps == sorted(steps)
    assert steps[-1] == reached + 4 > stopped
    seen = {key for row in history(folder) for key in row}
    assert {"images", "loss/l1", "speed/images_per_second", "speed/step_time_spread", "speed/tflops", "memory/memory_gb"} <= seen
    assert {"validation/psnr_y", "samples/sheet/path", "samples/table/path", "grad_norm/generator"} <= seen
    assert len(of_kind(folder, "preempting")) == 1
    assert [alert.title for alert in of_kind(folder, "alert")] == ["slow was stopped"]
    models = {alias for model in of_kind(folder, "artifact") if model.type == "model" for alias in model.aliases}
    assert {"latest", "best", "step-4", f"step-{reached + 4}"} <= models

    run(0, "sr_dist.plot", folder)
    assert (folder / "curves" / "curves.html").is_file()
