"""A discriminator that wins gives an alarm, and a healthy run none. That health changes no bit: test_equality.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import DEMO, metrics, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forty(tmp_path_factory) -> Path:
    """40 made photographs of 96 pixels."""
    from photographs import made_photo
    from PIL import Image

    from shards.build import build

    root = tmp_path_factory.mktemp("forty")
    for number in range(40):
        Image.fromarray(made_photo(number, 96, 96)).save(root / f"{number:02d}.png")
    build("folder", str(root), root / "shards", {"per_shard": "8"})
    return root / "shards"


def thin(shards: Path, runs: Path, **more: object) -> list[str]:
    """esrgan_x4 with few channels, without its VGG term."""
    options = {
        "runs": runs, "data.train": shards, "data.validation": "none", "data.crop": 64, "data.batch": 8, "data.workers": 0,
        "log.wandb": "off", "log_every": 10, "save_every": "none", "validate_every": "none", "steps": 20,
        "generator.num_blocks": 1, "generator.width": 16, "generator.growth": 8, "init.generator": "none",
        "discriminator.width": 16, "discriminator.features": 64, "discriminator.crop": 64,
        "objective.content": "{l1: 1e-2}", "objective.adversarial_weight": 5e-3,
        **{key.replace("__", "."): value for key, value in more.items()},
    }  # fmt: skip
    return ["esrgan_x4", *(f"--{key}={value}" for key, value in options.items())]


def test_a_discriminator_that_wins_gives_an_alarm_within_twenty_steps(forty, tmp_path):
    """Its rate is ten times the generator's. The alarm is one line, and says which key to try."""
    out, _ = run(0, "sr_dist.train", *thin(forty, tmp_path, name="planted", discriminator_optimizer="{learning_rate: 1e-3}"))
    (line,) = [line for line in out.splitlines() if "alarm: step 20: the discriminator has won" in line]
    assert "discriminator_optimizer.learning_rate" in line
    assert line.split(" ", 2)[2] in (tmp_path / "planted" / "log.txt").read_text()


def test_a_healthy_run_gives_none(forty, tmp_path):
    words = ["--name=healthy", f"--runs={tmp_path}", f"--data.train={forty}", "--data.validation=none", "--log.wandb=off"]
    small = ["--discriminator.classes=none", "--objective.class_weight=0", "--data.workers=0", "--data.batch=4", "--data.crop=32"]
    out, _ = run(0, "sr_dist.train", str(DEMO), *words, *small, "--steps=40")
    assert "alarm" not in out
    assert metrics(tmp_path / "healthy")[-1]["health/margin"] > 0
