"""The workspace as it is sent, without a network."""

import importlib.util
import json
import re

import pytest

from sr_dist.core.errors import UserError
from sr_dist.dashboard import Dashboard, dashboard
from sr_dist.training.trackers import wandb

pytest.importorskip("wandb_workspaces", reason="the extra sr_dist[dashboard] is not installed")
ROW = {
    "step": 50, "images": 400, "epoch": 1.0, "learning_rate": 1e-4, "images_per_second": 9.0, "data_wait": 0.1, "memory_gb": 2.0,
    "step_time_spread": 1.1, "tflops": 3.0, "mfu": 0.3, "loss/l1": 0.5, "loss/adversarial": 0.1, "grad_norm/generator": 1.0,
    "skipped/generator": 0, "validation/psnr_y": 30.0, "validation/ssim_rgb": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def board():
    from sr_dist.tools.dashboard import workspace

    return workspace("lab", "faces", "sr_dist")


def test_the_sections_are_training_quality_speed_and_hardware(board):
    assert [section.name for section in board.sections] == ["training", "quality", "speed", "hardware"]
    assert all(section.panels and section.is_open for section in board.sections)
    assert (board.entity, board.project, board.name, board.settings.x_axis) == ("lab", "faces", "sr_dist", "images")


def test_every_column_that_a_run_sends_has_one_curve_over_images(board):
    panels = [panel for section in board.sections for panel in section.panels if hasattr(panel, "metric_regex")]
    for name in wandb.grouped(ROW).keys() - {"images", "epoch"}:
        matches = [p for p in panels if name in p.y or (p.metric_regex and re.fullmatch(p.metric_regex, name))]
        assert len(matches) == 1, name
        assert matches[0].x == "images"


def test_best_values_images_and_hardware_have_panels(board):
    sent = json.dumps(board._to_model().model_dump(mode="json"))
    for name in ("best/psnr_y", "samples/sheet", "samples/table", "memoryAllocated", "powerWatts"):
        assert name in sent, name
    hardware = [panel for panel in board.sections[-1].panels if "system" in (panel.metric_regex or "")]
    assert all(re.fullmatch(hardware[0].metric_regex, f"system/gpu.{i}.gpu") for i in (0, 11))


def test_without_an_account_the_error_names_the_login(monkeypatch, tmp_path):
    from sr_dist.tools.dashboard import publish

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"W&B did not accept the workspace for 'lab/faces'.*wandb login"):
        publish("lab", "faces", "sr_dist")


def test_without_the_extra_the_error_names_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sr_dist\[dashboard\]'"):
        dashboard(Dashboard(project="lab/faces"))
