"""Tests that need a CUDA device. `pytest -m gpu` runs them; all other runs leave them out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEMO, ROOT, losses

pytestmark = pytest.mark.gpu
STEPS = 6


def train(shards: Path, runs: Path, name: str, *launcher: str, **more: object) -> Path:
    options = {
        "name": name, "runs": runs, "data.train": shards, "data.validation": shards, "data.validation_limit": 4, "steps": STEPS,
        "data.batch": 8, "data.crop": 32, "data.workers": 0, "log_every": 1, "save_every": 3,
        "validate_every": 3, "log.wandb": "off",
        **{key.replace("__", "."): value for key, value in more.items()},
    }  # fmt: skip
    words = [sys.executable, *launcher, "-m", "sr_dist.train", str(DEMO), *(f"--{key}={value}" for key, value in options.items())]
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU", "DS_ACCELERATOR")
    }
    environment = {**inherited, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    answer = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-4000:]
    assert (runs / name / "DONE").exists()
    assert "(cuda)" in answer.stdout
    return runs / name


@pytest.fixture(scope="module")
def exact(photo_shards, tmp_path_factory) -> Path:
    """fp32 without TF32, the reference of the other tests."""
    return train(photo_shards, tmp_path_factory.mktemp("exact"), "run", tf32="false")


VARIANTS = {  # options, relative tolerance of the content loss
    "tf32": ({"tf32": "true"}, 1e-2),
    "bf16": ({"precision": "bf16"}, 5e-2),
    "fp16": ({"precision": "fp16"}, 5e-2),
    "compiled": ({"tf32": "false", "compile": "true"}, 1e-3),
    "channels last": ({"tf32": "false", "channels_last": "true"}, 1e-3),
    "recomputed activations": ({"tf32": "false", "checkpointing": "[dense*,encoder.*]"}, 1e-3),
    "all at once": ({"precision": "bf16", "compile": "true", "channels_last": "true"}, 5e-2),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_like_plain_fp32(variant, photo_shards, tmp_path, exact):
    options, tolerance = VARIANTS[variant]
    run = train(photo_shards, tmp_path, "run", **options)
    for ours, theirs in zip(losses(run), losses(exact), strict=True):
        assert ours["loss/mse"] == pytest.approx(theirs["loss/mse"], rel=tolerance)


def test_a_resumed_run_equals_an_uninterrupted_one(photo_shards, tmp_path, exact):
    """The step counts of the optimizer must be loaded onto the device."""
    train(photo_shards, tmp_path, "run", tf32="false", steps=3)
    run = train(photo_shards, tmp_path, "run", tf32="false")
    for ours, theirs in zip(losses(run), losses(exact), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_on_cuda(stage, photo_shards, tmp_path, exact):
    configuration = str(ROOT / "launch" / "accelerate" / f"zero{stage}.yaml")
    options = ("--config_file", configuration, "--num_processes", "1", "--main_process_port", "0")
    launcher = ("-m", "accelerate.commands.launch", *options)
    run = train(photo_shards, tmp_path, "run", *launcher, tf32="false")
    for ours, theirs in zip(losses(run), losses(exact), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_nccl_in_one_process_with_synchronized_batch_normalization(photo_shards, tmp_path):
    """The collectives of a step in a group of one process, with a generator that has batch normalization."""
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=1", "--master_port=0")
    options = {"generator": "{name: srresnet, width: 16, num_blocks: 1}"}
    train(photo_shards, tmp_path, "run", *launcher, **options)


def test_skipping_is_decided_on_the_device():
    """A fused optimizer skips an update when the flag is set, and does not count the step."""
    import torch

    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))
    optimizer = torch.optim.Adam([weight], 0.1, fused=True)
    weight.grad = torch.ones_like(weight)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones((), device="cuda")
    optimizer.step()
    assert weight.tolist() == [1, 1, 1]
    optimizer.found_inf.zero_()
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.9] * 3, rel=1e-4)
    assert int(optimizer.state[weight]["step"]) == 1


@pytest.mark.parametrize("accumulate", [1, 3])
def test_batches_on_the_gpu_are_those_on_the_cpu(photo_shards, accumulate):
    """Workers overwrite their slots while copies to the device may be in progress."""
    import torch

    from sr_dist.data.format import open_shards
    from sr_dist.data.loader import Loader, LoaderConfig
    from sr_dist.recipe.sections import Data

    def loader_on(device: str, workers: int) -> Loader:
        data = Data(train=str(photo_shards), crop=24, batch=12, workers=workers)
        config = LoaderConfig(data, seed=0, scale=2, accumulate=accumulate, steps=40, channels=3)
        shards = [open_shards(str(photo_shards))]
        return Loader(shards, config, lambda hr, seeds: hr[..., ::2, ::2], torch.device(device))

    loader, busy, steps = loader_on("cuda", 2), torch.rand(8192, 8192, device="cuda"), []
    try:
        for _, batches in loader.steps(1):
            steps.append(batches)
            busy = (busy @ busy).clamp(0, 1)  # delays the next copies
    finally:
        loader.close()
    for ours, (_, theirs) in zip(steps, loader_on("cpu", 0).steps(1), strict=True):
        for our, their in zip(ours, theirs, strict=True):
            assert our.keys == their.keys
            assert torch.equal(our.hr.cpu(), their.hr)
            assert torch.equal(our.lr.cpu(), their.lr)
