"""Metrics of another package by name, with a stand-in for the package; tests/compat/test_pyiqa_package.py has the real one."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import pytest
import torch

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.evaluation import pyiqa_metrics
from sr_dist.evaluation.metric_set import open_metrics
from sr_dist.evaluation.protocol import protocol

CPU = torch.device("cpu")
RULES = protocol("matlab-y", 2)
PACKAGE = """
import socket
import torch

class Metric(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name, self.metric_mode = name, "FR" if name == "distance" else "NR"
        if name != "distance":
            self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, target, ref=None):
        assert target.shape[0] == 1 and target.dtype == torch.float32 and (ref is not None) == (self.metric_mode == "FR")
        if self.name == "pairs":
            return torch.ones(2)
        if min(target.shape[-2:]) < 20:
            raise AssertionError("too small for it")
        return ((target - ref).abs().mean() if ref is not None else target.mean() * 100).reshape(1, 1)

def create_metric(name, device, as_loss):
    if name == "online":
        socket.create_connection(("localhost", 9))
    return Metric(name)
"""
CONFIGS = """
DEFAULT_CONFIGS = {
    "distance": {"metric_mode": "FR", "lower_better": True, "score_range": "0, 1"},
    "brightness": {"metric_mode": "NR", "score_range": "~0, ~100"},
    "online": {"metric_mode": "NR", "lower_better": True}, "pairs": {"metric_mode": "NR"}, "fid": {"metric_mode": "NR"},
}
"""


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyiqa"]:
        del sys.modules[name]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package on the Python path, as pip installs it."""
    site = tmp_path / "site"
    (site / "pyiqa").mkdir(parents=True)
    (site / "pyiqa" / "__init__.py").write_text(PACKAGE)
    (site / "pyiqa" / "default_model_configs.py").write_text(CONFIGS)
    (site / "pyiqa-9.8.dist-info").mkdir()
    about = "Metadata-Version: 2.4\nName: pyiqa\nVersion: 9.8\nLicense-Expression: LicenseRef-Strict\n"
    (site / "pyiqa-9.8.dist-info" / "METADATA").write_text(about)
    forget()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(plugins, "_foreign_code", {})
    yield
    forget()


def test_its_metrics_are_columns_with_their_facts(package):
    metrics = open_metrics(["psnr", "pyiqa:distance", "pyiqa:brightness"], CPU)
    assert metrics.better == {"psnr_y": "higher", "psnr_rgb": "higher", "pyiqa:distance": "lower", "pyiqa:brightness": "higher"}
    facts = metrics.facts()
    assert facts["psnr_y"] == {"better": "higher", "range": [0, 100], "weights_sha256": None}
    assert facts["pyiqa:distance"] == {"better": "lower", "range": [0, 1], "weights_sha256": None}
    assert facts["pyiqa:brightness"]["range"] == [None, None]
    assert len(facts["pyiqa:brightness"]["weights_sha256"]) == 64
    about = metrics.conditions(["pyiqa:distance", "pyiqa:brightness"])
    assert list(about) == ["pyiqa:distance", "pyiqa:brightness"]
    assert (about["pyiqa:distance"]["package"], about["pyiqa:distance"]["licence"]) == ("pyiqa 9.8", "LicenseRef-Strict")
    assert [one["reference"] for one in about.values()] == [True, False]
    assert plugins.foreign_code() == [
        "note: pyiqa 9.8 (metrics; licence: LicenseRef-Strict) is not part of sr_dist; its own terms apply"
    ]


def test_they_get_one_8_bit_image_at_a_time(package):
    hr = torch.full((2, 3, 24, 24), 100.2 / 255)
    sr = torch.stack([hr[0] + 10 / 255, hr[1] * float("nan")])
    distance, brightness = open_metrics(["pyiqa:distance", "pyiqa:brightness"], CPU).per_image
    values = distance.per_image(sr, hr, RULES, grey=False)["pyiqa:distance"]
    assert values == pytest.approx([10 / 255, float("nan")], nan_ok=True)
    values = brightness.per_image(sr, hr, RULES, grey=False)["pyiqa:brightness"]
    assert values == pytest.approx([100 * 110 / 255, float("nan")], nan_ok=True)


def test_weights_that_are_missing_are_not_downloaded_unasked(package):
    metrics = open_metrics(["psnr", "pyiqa:online"], CPU)
    reason = "pyiqa cannot make it: weights are missing, and downloads are not allowed (--allow_download)"
    assert metrics.missing == {"pyiqa:online": reason}
    image = torch.rand(1, 3, 32, 32)
    assert metrics.per_image[1].per_image(image, image, RULES, grey=False) == {}
    allowed = open_metrics(["pyiqa:online"], CPU, download=True)
    assert "not allowed" not in allowed.missing["pyiqa:online"]  # it asked a host, where nothing answers


@pytest.mark.parametrize(
    ("name", "message"),
    [("distanse", "metrics: pyiqa 9.8 has no 'distanse'.*'distance'"), ("fid", "metrics: 'pyiqa:fid' compares sets")],
)
def test_names_that_it_does_not_have_or_that_compare_sets_are_refused(package, name, message):
    with pytest.raises(UserError, match=message):
        open_metrics([f"pyiqa:{name}"], CPU)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("distance", "metrics: 'pyiqa:distance' fails on an image of 12 x 10: too small for it"),
        ("pairs", "metrics: 'pyiqa:pairs' does not return one value for an image"),
    ],
)
def test_a_failure_inside_it_is_one_line(package, name, message):
    image = torch.rand(1, 3, 10, 12)
    with pytest.raises(UserError, match=message):
        open_metrics([f"pyiqa:{name}"], CPU).per_image[0].per_image(image, image, RULES, grey=False)


def test_a_report_has_them_and_their_terms(package, photographs, tmp_path, monkeypatch, capsys):
    from sr_dist import evaluate

    monkeypatch.chdir(tmp_path)
    options = ["bicubic", f"--data={photographs(3)}", "--scale=2", "--metrics=psnr,pyiqa:distance,pyiqa:online", "--out=out"]
    assert evaluate.main(options) == 0
    assert "note: pyiqa 9.8 (metrics; licence: LicenseRef-Strict)" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    values = {method: row["pyiqa:distance"] for method, row in report["methods"].items()}
    assert 0 < values["bicubic"] < values["nearest"] < 0.5
    assert report["metrics"]["pyiqa:distance"]["better"] == "lower"
    assert "downloads are not allowed" in report["missing"]["pyiqa:online"]
    assert report["protocol"]["pyiqa:distance"]["licence"] == "LicenseRef-Strict"


def test_its_weights_are_hashed_once_for_all_sets(package, photographs, tmp_path, monkeypatch):
    """An evaluation of two sets asks for the digest eight times: for partial results, plans and reports."""
    from sr_dist import evaluate

    passes, digest = [], pyiqa_metrics.digest_of_tensors

    def counted(tensors):
        passes.append(len(tensors))
        return digest(tensors)

    monkeypatch.setattr(pyiqa_metrics, "digest_of_tensors", counted)
    data = f"--data=a={photographs(3)},b={photographs(4)}"
    assert evaluate.main(["bicubic", data, "--scale=2", "--metrics=pyiqa:brightness", f"--out={tmp_path / 'out'}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    expected = hashlib.sha256(b"weight torch.float32 (2,)" + np.ones(2, "<f4").tobytes()).hexdigest()
    for tree in (report, *report["sets"].values()):
        assert tree["metrics"]["pyiqa:brightness"]["weights_sha256"] == expected
        assert tree["protocol"]["pyiqa:brightness"]["weights_sha256"] == expected
    assert passes == [1]


def test_without_the_package_the_message_names_it(photographs, monkeypatch, capsys):
    from sr_dist import evaluate

    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    assert evaluate.main(["bicubic", f"--data={photographs(1)}", "--scale=2", "--metrics=pyiqa:musiq"]) == 2
    message = "error: metrics: 'pyiqa:musiq' needs the package pyiqa; read its licence, then pip install pyiqa\n"
    assert capsys.readouterr().err == message
