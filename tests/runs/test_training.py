"""Whole trainings in real processes: the same result on any number of ranks, and after a kill."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from processes import (
    DEMO,
    assert_exactly_once,
    finish,
    finish_with,
    kill,
    last_step,
    launch,
    losses,
    run,
    start,
    trace,
    trainers,
    wait_for,
)
from safetensors.torch import load_file

SAMPLES, BATCH, STEPS = 40, 8, 5  # an epoch


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """40 tiles of photographs with labels, in five shards."""
    from PIL import Image
    from skimage import data

    from shards.build import build

    root = tmp_path_factory.mktemp("photos")
    for label, photo in enumerate((data.astronaut(), data.coffee())):
        (root / f"class{label}").mkdir()
        for i in range(SAMPLES // 2):
            top, left = 60 * (i // 5), 70 * (i % 5)
            Image.fromarray(photo[top : top + 96, left : left + 96]).save(root / f"class{label}" / f"{i:02d}.png")
    out = root / "shards"
    build("class_folders", str(root), out, {"per_shard": "8"})
    return out


def words(shards: Path, runs: Path, name: str, steps: int, **more: object) -> list[str]:
    """The arguments that train the demo's GAN, thin enough for a test."""
    options = {
        "name": name, "runs": runs, "data.train": shards, "data.validation": "none", "steps": steps, "data.batch": BATCH,
        "data.trace": "true", "data.workers": 0, "data.crop": 32, "log_every": 1, "save_every": 4, "log.wandb": "off",
        "generator.widths": "[8,12]", "generator.num_dense_blocks": 1,
        "discriminator.widths": "[8,12]", "discriminator.features": 16,
        **{key.replace("__", "."): value for key, value in more.items()},
    }  # fmt: skip
    return [str(DEMO), *(f"--{key}={value}" for key, value in options.items())]


def assert_close(one: list[dict[str, float]], other: list[dict[str, float]], tolerance: float) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys() >= {"loss/mse", "loss/adversarial", "loss/real", "loss/fake", "loss/class_real"}
        for key in a:
            assert b[key] == pytest.approx(a[key], rel=tolerance), key


@pytest.fixture(scope="module")
def one_process(shards, tmp_path_factory) -> Path:
    """The run folder of five steps in one process, with checkpoints 4 and 5. Only read it."""
    runs = tmp_path_factory.mktemp("one_process")
    run(0, "sr_dist.train", *words(shards, runs, "run", STEPS))
    return runs / "run"


def test_one_two_and_three_ranks_train_alike(shards, one_process, tmp_path):
    """8 images do not divide by 3 ranks: shares of 2, 3 and 3 must weigh as what they are."""
    finish_with(0, launch(2, "sr_dist.train", *words(shards, tmp_path, "ranks2", STEPS)))
    run(3, "sr_dist.train", *words(shards, tmp_path, "ranks3", STEPS))
    for ranks in (2, 3):
        assert_close(losses(one_process), losses(tmp_path / f"ranks{ranks}"), 1e-5)
        assert sorted(trace(one_process)) == sorted(trace(tmp_path / f"ranks{ranks}"))


def test_accumulation_trains_like_one_large_batch(shards, one_process, tmp_path):
    """8 images in 3 micro-batches, of 2, 3 and 3."""
    run(0, "sr_dist.train", *words(shards, tmp_path, "parts", STEPS, accumulate=3))
    assert_close(losses(one_process), losses(tmp_path / "parts"), 1e-5)


def test_killed_run_continues_bit_for_bit(shards, tmp_path):
    """Two ranks, killed with everything they started after step 6 or so; checkpoints are made every 4 steps."""
    steps = 20
    run(2, "sr_dist.train", *words(shards, tmp_path, "whole", steps))
    process = launch(2, "sr_dist.train", *words(shards, tmp_path, "killed", steps))
    wait_for(lambda: last_step(tmp_path / "killed") >= 6, process)
    kill(process, signal.SIGSTOP)  # alive, and not done before it is killed
    refused = run(0, "sr_dist.train", *words(shards, tmp_path, "killed", steps), expect=2)[1]
    assert refused.startswith("error: name: ")
    assert "is in use by process" in refused
    kill(process)
    finish(process)
    assert not (tmp_path / "killed" / "DONE").exists()

    out, _ = run(2, "sr_dist.train", *words(shards, tmp_path, "killed", steps))
    assert "continuing after step" in out
    assert_exactly_once(tmp_path / "killed", SAMPLES, BATCH, steps)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name in ("generator", "discriminator", "generator.ema", "generator.optimizer"):
        files = [
            load_file(tmp_path / run_name / "checkpoints" / f"{steps:07d}" / f"{name}.safetensors")
            for run_name in ("whole", "killed")
        ]
        assert files[0].keys() == files[1].keys()
        assert all(files[0][key].equal(files[1][key]) for key in files[0])


def test_stop_file_and_signals_save_and_the_same_command_continues(shards, tmp_path):
    """STOP on two ranks, then SIGTERM to one rank of them, then one process to the end: one exactly-once run."""
    folder = tmp_path / "stopped"
    long = words(shards, tmp_path, "stopped", 400, save_every=1000)
    process = start(2, "sr_dist.train", *long)
    wait_for(lambda: last_step(folder) >= 2, process)
    (folder / "STOP").touch()
    code, out, _ = finish(process)
    assert code == 0, out
    assert (folder / "PREEMPTED").exists()
    assert not (folder / "DONE").exists()

    reached = last_step(folder)
    process = start(2, "sr_dist.train", *long)
    wait_for(lambda: last_step(folder) >= reached + 2, process)
    assert not (folder / "PREEMPTED").exists()
    assert not (folder / "STOP").exists()
    trainers(process)[1].send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert code == 0, out
    assert (folder / "PREEMPTED").exists()

    end = last_step(folder) + 5
    run(0, "sr_dist.train", *words(shards, tmp_path, "stopped", end, save_every=1000))
    assert (folder / "DONE").exists()
    assert_exactly_once(folder, SAMPLES, BATCH, end)
    # A larger `steps` goes on from a finished run.
    run(0, "sr_dist.train", *words(shards, tmp_path, "stopped", end + 3, save_every=1000))
    assert_exactly_once(folder, SAMPLES, BATCH, end + 3)


def test_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(shards, one_process, tmp_path):
    folder = shutil.copytree(one_process, tmp_path / "run")
    victim = folder / "checkpoints" / f"{STEPS:07d}" / "generator.safetensors"
    victim.write_bytes(victim.read_bytes()[:-7])
    out, _ = run(0, "sr_dist.train", *words(shards, tmp_path, "run", STEPS + 1))
    assert f"checkpoint {STEPS:07d} is damaged (generator.safetensors has" in out
    assert "continuing after step 4" in out
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS + 1)


def test_changed_recipe_is_refused_by_name(shards, one_process, tmp_path):
    shutil.copytree(one_process, tmp_path / "run")
    changed = words(shards, tmp_path, "run", STEPS + 1, objective__adversarial_weight=0.5)
    _, err = finish_with(2, launch(0, "sr_dist.train", *changed))
    assert "objective.adversarial_weight: was" in err
    assert err.count("\n") == 1
    run(0, "sr_dist.train", *changed, "--resume.allow=objective.adversarial_weight")


TOY = """
import torch.nn.functional as F
from torch import nn
from sr_dist.core.config import Settings

class Config(Settings):
    width: int = 4

def build(config, scale):
    return Toy(config.width, scale)

class Toy(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, lr):
        return self.body(F.interpolate(lr, scale_factor=self.scale))
"""


def test_generator_in_a_file_of_the_users_own_trains_and_is_evaluated(shards, tmp_path):
    """One new file outside the repository, named with a dot, through training with bf16, W&B offline and evaluation."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "toy.py").write_text(TOY)
    text = f"""
        name: toy
        scale: 2
        steps: 6
        runs: {tmp_path}
        data: {{train: {shards}, validation: {shards}, validation_limit: 3, crop: 32, batch: 4, workers: 1}}
        generator: {{name: mine.toy, width: 6}}
        objective: {{name: pixel, content: {{l1: 1.0}}}}
        optimizer: {{learning_rate: 1e-3}}
        precision: bf16
        validate_every: 3
        keep: {{last: 1, best: psnr_y}}
        log_every: 2
        log: {{wandb: offline}}
    """
    (tmp_path / "toy.yaml").write_text(text)
    finish_with(0, launch(1, "sr_dist.train", tmp_path / "toy.yaml", cwd=tmp_path))
    folder = tmp_path / "toy"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation/psnr_y" in row] == [3, 6]
    assert {path.name for path in (folder / "samples").iterdir()} == {"0000003.png", "0000006.png"}
    wandb_id = (folder / "wandb_id").read_text().strip()
    assert list((folder / "wandb").glob(f"offline-run-*-{wandb_id}/run-{wandb_id}.wandb"))

    reports = {}
    for ranks, begin in ((1, start), (2, launch), (3, start)):
        out = tmp_path / f"report{ranks}"
        options = [f"--data={shards}", "--limit=7", "--batch=3", "--metrics=psnr,ssim", f"--out={out}"]
        finish_with(0, begin(ranks, "sr_dist.evaluate", folder, *options, cwd=tmp_path))
        reports[ranks] = json.loads((out / "report.json").read_text())["methods"]
    assert set(reports[1]) == {"nearest", "bilinear", "bicubic", "toy"}
    for ranks in (2, 3):
        for method, values in reports[1].items():
            for metric, value in values.items():
                assert reports[ranks][method][metric] == pytest.approx(value, rel=1e-6), (ranks, method, metric)


def test_failure_in_a_loader_worker_ends_the_run_with_the_name_of_the_sample(shards, tmp_path):
    """A flipped byte in a shard: one line, exit code 2, and no process left hanging."""
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    tar = sorted(broken.glob("*.tar"))[2]
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    _, err = run(0, "sr_dist.train", *words(broken, tmp_path, "run", 30, data__workers=2), expect=2)
    assert err.startswith(f"error: '{tar}': the hr image of 'class")
    assert err.count("\n") == 1
