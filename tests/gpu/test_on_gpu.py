"""Tests that need a CUDA device. `pytest -m gpu` runs them; all other runs leave them out."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import DEMO, ROOT, losses

from sr_dist.training.throughput import Clock

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
    out = execute(words)
    assert (runs / name / "DONE").exists()
    assert "(cuda)" in out
    return runs / name


def execute(words: list[str]) -> str:
    """Runs a command on the GPUs that the user has chosen: -> its output."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("ACCELERATE_USE_CPU", "DS_ACCELERATOR")}
    environment = {**inherited, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    answer = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-4000:]
    return answer.stdout


@pytest.fixture(scope="module")
def exact(photo_shards, tmp_path_factory) -> Path:
    """fp32 without TF32, the reference of the other tests."""
    return train(photo_shards, tmp_path_factory.mktemp("exact"), "run", tf32="false")


VARIANTS = {  # options, relative tolerance of the content loss
    "tf32": ({"tf32": "true"}, 1e-2),
    "bf16": ({"precision": "bf16"}, 5e-2),
    "fp16": ({"precision": "fp16"}, 5e-2),
    "compiled": ({"tf32": "false", "compile": "true"}, 1e-3),
    "compiled blocks": ({"tf32": "false", "compile": "body"}, 1e-3),
    "channels last": ({"tf32": "false", "channels_last": "true"}, 1e-3),
    "timed kernels": ({"tf32": "false", "cudnn_benchmark": "true"}, 1e-3),
    "recomputed activations": ({"tf32": "false", "checkpointing": "[dense*,encoder.*]"}, 1e-3),
    "all at once": ({"precision": "bf16", "compile": "true", "channels_last": "true"}, 5e-2),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_like_plain_fp32(variant, photo_shards, tmp_path, exact):
    options, tolerance = VARIANTS[variant]
    run = train(photo_shards, tmp_path, "run", **options)
    for ours, theirs in zip(losses(run), losses(exact), strict=True):
        assert ours["loss/mse"] == pytest.approx(theirs["loss/mse"], rel=tolerance)


def test_r1_trains_compiled_networks(photo_shards, tmp_path):
    """What torch.compile makes has no double backward."""
    objective = {"objective": "{name: srgan, content: {mse: 1.0}, r1_weight: 1.0}", "discriminator": "{name: patch}"}
    plain = train(photo_shards, tmp_path, "plain", tf32="false", **objective)
    compiled = train(photo_shards, tmp_path, "compiled", tf32="false", compile="true", **objective)
    for ours, theirs in zip(losses(compiled), losses(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2)


@pytest.mark.parametrize("channels_last", ["false", "true"])
def test_a_resumed_run_equals_an_uninterrupted_one(channels_last, photo_shards, tmp_path):
    """The step counts of the optimizer must be loaded onto the device, and its states in the memory layout of the weights."""
    options = {"tf32": "false", "channels_last": channels_last}
    whole = train(photo_shards, tmp_path, "whole", **options)
    train(photo_shards, tmp_path, "run", steps=3, **options)
    run = train(photo_shards, tmp_path, "run", **options)
    for ours, theirs in zip(losses(run), losses(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def under_zero(configuration: str) -> tuple[str, ...]:
    path = str(ROOT / "launch" / "accelerate" / f"{configuration}.yaml")
    return ("-m", "accelerate.commands.launch", "--config_file", path, "--num_processes", "1", "--main_process_port", "0")


@pytest.mark.parametrize("configuration", ["zero1", "zero2", "zero3", "zero2_offload"])
def test_zero_on_cuda(configuration, photo_shards, tmp_path, exact):
    """Stages 2 and 3 overlap the exchange of gradients with the backward pass."""
    run = train(photo_shards, tmp_path, "run", *under_zero(configuration), tf32="false")
    for ours, theirs in zip(losses(run), losses(exact), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("configuration", ["zero2", "zero3"])
def test_zero_in_bf16_and_channels_last(configuration, photo_shards, tmp_path, exact):
    run = train(photo_shards, tmp_path, "run", *under_zero(configuration), precision="bf16", channels_last="true")
    for ours, theirs in zip(losses(run), losses(exact), strict=True):
        assert ours["loss/mse"] == pytest.approx(theirs["loss/mse"], rel=5e-2)


def needs_two_gpus() -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")


RANKS = ("-m", "torch.distributed.run", "--standalone")


def test_nccl_in_one_process(photo_shards, tmp_path, exact):
    """The collectives of a step in a group of one process."""
    run = train(photo_shards, tmp_path, "run", *RANKS, "--nproc_per_node=1", tf32="false")
    for ours, theirs in zip(losses(run), losses(exact), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_two_gpus_take_the_step_of_one(photo_shards, tmp_path):
    """Statistics of batch normalization and the mean over real images are those of all ranks."""
    needs_two_gpus()
    options = {
        "tf32": "false",
        "generator": "{name: srresnet, width: 16, num_blocks: 1}",
        "discriminator": "{name: patch}",
        "objective": "{name: esrgan, content: {l1: 1.0}, adversarial_weight: 0.1, batch_mean: global}",
    }
    one = train(photo_shards, tmp_path, "one", **options)
    two = train(photo_shards, tmp_path, "two", *RANKS, "--nproc_per_node=2", **options)
    for ours, theirs in zip(losses(two), losses(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def under_all_gpus(configuration: str) -> tuple[str, ...]:
    path = str(ROOT / "launch" / "accelerate" / f"{configuration}.yaml")
    return ("-m", "accelerate.commands.launch", "--config_file", path, "--num_processes", "2", "--main_process_port", "0")


@pytest.mark.parametrize("configuration", ["zero2", "zero3"])
def test_zero_on_two_gpus_overlaps_the_exchange_in_bf16(configuration, photo_shards, tmp_path, exact):
    needs_two_gpus()
    run = train(photo_shards, tmp_path, "run", *under_all_gpus(configuration), precision="bf16")
    for ours, theirs in zip(losses(run), losses(exact), strict=True):
        assert ours["loss/mse"] == pytest.approx(theirs["loss/mse"], rel=5e-2)


def test_global_statistics_are_those_of_torchs_sync_batch_norm():
    needs_two_gpus()
    script = Path(__file__).with_name("sync_batch_norm.py")
    differences = json.loads(execute([sys.executable, *RANKS, "--nproc_per_node=2", str(script)]).splitlines()[-1])
    assert differences and max(differences.values()) < 1e-5, differences


def test_a_profile_has_the_kernels_of_the_gpu(photo_shards, tmp_path):
    run = train(photo_shards, tmp_path, "run", profile="2:3")
    (file,) = (run / "profile").iterdir()
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)


def test_a_full_gpu_leaves_a_snapshot(tmp_path):
    import torch

    from sr_dist.training.out_of_memory import out_of_memory

    run = SimpleNamespace(step=0, recipe=SimpleNamespace(folder=tmp_path), device=torch.device("cuda"))
    with pytest.raises(torch.OutOfMemoryError) as full:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    text = str(out_of_memory(run, full.value, lambda recipe, ranks: "the table"))
    assert text.startswith("out of memory in step 1: CUDA out of memory") and text.endswith("the table")
    assert (tmp_path / "oom-rank-000.pickle").stat().st_size > 0


def test_a_slow_gpu_is_no_slow_disk():
    """The host stands still for the device while it waits for images."""
    import torch

    clock, events = Clock(torch.device("cuda")), []
    block = torch.ones(2048, 2048, device="cuda")

    def batches():
        for number in range(6):
            with clock.waiting():
                if events:
                    events[-1].synchronize()
            yield number

    for _ in clock.steps(batches()):
        with clock.forward():
            for _ in range(50):
                block = (block @ block).clamp(0, 1)
        events.append(torch.cuda.Event())
        events[-1].record()
    torch.cuda.synchronize()
    assert clock.own_seconds() > 0
    assert clock.report(images_per_step=1)["data_wait"] < 0.2


def test_evaluate_and_upscale_on_cuda(photo_shards, photos, tmp_path, exact):
    """Scores of a GPU are those of the CPU, and every image comes out."""
    scores = []
    for device in ("cuda", "cpu"):
        out = tmp_path / device
        words = [sys.executable, "-m", "sr_dist.evaluate", str(exact), f"--data={photo_shards}", f"--out={out}", "--metrics=psnr"]
        execute(words if device == "cuda" else ["env", "ACCELERATE_USE_CPU=true", *words])
        scores.append(json.loads((out / "report.json").read_text())["methods"]["run"]["psnr_y"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-2)
    small = next(photos.iterdir())
    execute([sys.executable, "-m", "sr_dist.upscale", str(exact), str(small), str(tmp_path / "large")])
    assert len(list((tmp_path / "large").rglob("*.png"))) == len(list(small.iterdir()))
