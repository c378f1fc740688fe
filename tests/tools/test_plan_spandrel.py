"""sr_dist.plan and train --dry_run of networks that are not ours: counted, or told in one line."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from thin_spandrel import THIN
from torch.utils.flop_counter import FlopCounterMode

from sr_dist import plan, train
from sr_dist.core.plugins import PACKAGES
from sr_dist.models import trained
from sr_dist.models.generators.spandrel import ARCHS

BATCH, GPUS = 8, 4
OWN = """
from torch import nn
from sr_dist.core.config import Settings

class Config(Settings):
    pass

class Network(nn.Sequential):
    def forward(self, lr):
        return super().forward(lr / float(lr.max()))

def build(config, scale):
    return Network(nn.Upsample(scale_factor=scale), nn.Conv2d(3, 3, 3, padding=1))
"""


def write(folder, generator, scale, data, crop=32):
    tree = {
        "name": "run", "scale": scale, "steps": 10, "data": {"train": str(data), "crop": crop, "batch": BATCH},
        "generator": generator, "objective": {"name": "pixel", "content": {"l1": 1.0}}, "optimizer": {},
    }  # fmt: skip
    (folder / "r.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "r.yaml")


def check(name, folder, data, capsys):
    """The operations of both commands are those of a real step under torch's counter."""
    scale = 2 if 2 in ARCHS[name].scales else 4
    crop = 32 if name != "RealCUGAN" else 64
    generator = {"name": "spandrel", "arch": name, **THIN[name]}
    recipe = write(folder, generator, scale, data, crop)
    assert plan.main([recipe, f"--gpus={GPUS}", "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    network, images = trained.build(PACKAGES["generator"], generator, scale, "generator"), BATCH // GPUS
    lr, hr = torch.rand(images, 3, crop // scale, crop // scale), torch.rand(images, 3, crop, crop)
    with FlopCounterMode(display=False) as counter:
        (network(lr) - hr).abs().mean().backward()
    assert made["flops_per_image"] == pytest.approx(counter.get_total_flops() / images, rel=1e-6)
    assert made["parameters"]["generator"] == sum(parameter.numel() for parameter in network.parameters())
    assert all(row["activations"] > 0 for row in made["memory"].values())
    assert train.main([recipe, "--data.validation=none", "--data.small=replicate", "--dry_run"]) == 0
    printed = capsys.readouterr()
    assert "GFLOP per image" in printed.out and "not computed" not in printed.out


@pytest.mark.parametrize("name", ["ATD", "RCAN", "SwinIR"])
def test_networks_that_compute_while_they_are_built_are_counted(name, tmp_path, photo_shards, capsys):
    pytest.importorskip("spandrel")
    check(name, tmp_path, photo_shards, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHS if name not in ("ATD", "RCAN", "SwinIR")])
def test_every_network_of_spandrel_is_counted(name, tmp_path, photo_shards, capsys):
    pytest.importorskip("spandrel")
    check(name, tmp_path, photo_shards, capsys)


def test_a_network_that_reads_numbers_is_told_in_one_line(tmp_path, photo_shards, capsys, monkeypatch):
    (tmp_path / "reading_lab").mkdir()
    (tmp_path / "reading_lab" / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = write(tmp_path, {"name": "reading_lab.own"}, 2, photo_shards)
    assert plan.main([recipe, "--gpus=1"]) == 2
    error = capsys.readouterr().err
    assert "operations cannot be counted" in error and "sr_dist.bench step" in error and "Traceback" not in error
    assert train.main([recipe, "--data.validation=none", "--data.small=replicate", "--dry_run"]) == 0
    assert "1 x H100" not in capsys.readouterr().out
