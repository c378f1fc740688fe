"""What evaluation/pyiqa_metrics.py uses of pyiqa, where it is installed. It is no dependency."""

import subprocess
import sys

import pytest
import torch
from processes import ROOT, environment

from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.evaluation.metrics import psnr
from sr_dist.evaluation.protocol import Protocol

pytest.importorskip("pyiqa")
RULES = Protocol("whole", 2, 0, eight_bit=True, rounded_luma=False)


def test_its_psnr_is_ours_and_its_ssim_is_one_number():
    draw = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 64, 80, generator=draw)
    sr = (hr + 0.05 * torch.randn(hr.shape, generator=draw)).clamp(0, 1)
    metrics = open_metrics(["pyiqa:psnr", "pyiqa:ssim"], torch.device("cpu"))
    assert metrics.missing == {} and set(metrics.better.values()) == {"higher"}
    values = {}
    for metric in metrics.per_image:
        values |= metric.per_image(sr, hr, RULES, grey=False)
    assert values["pyiqa:psnr"] == pytest.approx(psnr.per_image(sr, hr, RULES, grey=False)["psnr_rgb"], abs=1e-3)
    assert all(0 < value < 1 for value in values["pyiqa:ssim"])


def test_its_list_of_metrics_has_the_keys_that_are_read():
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    assert DEFAULT_CONFIGS["niqe"]["lower_better"] is True
    assert {"metric_mode", "score_range"} <= DEFAULT_CONFIGS["musiq"].keys()


def test_a_metric_whose_weights_are_not_on_the_machine_is_missing(tmp_path):
    """In a process of its own whose folders for weights are empty: pyiqa reads their places when it is imported."""
    program = (
        "import torch; from sr_dist.evaluation.metric_set import open_metrics\n"
        "print(open_metrics(['pyiqa:niqe'], torch.device('cpu')).missing)"
    )
    folders = {name: str(tmp_path) for name in ("TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME")}
    line = [sys.executable, "-c", program]
    result = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment(**folders), check=True)
    assert result.stdout.splitlines()[-1].startswith("{'pyiqa:niqe': ") and "downloads are not allowed" in result.stdout
