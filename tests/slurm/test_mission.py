"""The whole mission in small, by one command: a thousand classes to shards, a GAN under ZeRO-2 and bf16 on two nodes that is
pre-empted twice, and a report. The same in large is in docs/mission.md."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import assert_exactly_once, last_step, losses, metrics
from test_rules import preempt
from test_slurm import in_mid_run, send
from wandb_records import of_kind

pytestmark = pytest.mark.long
CLASSES, EACH, SIDE, VALIDATION = 1000, 3, 24, 48
BATCH, STEPS, SAVE_EVERY = 120, 40, 5
SMALL = {  # what the recipe has in large
    "generator.widths": "[8,12]", "generator.num_blocks": 1, "generator.num_dense_blocks": 1, "generator.reduction": 4,
    "discriminator.widths": "[8,12]", "discriminator.features": 16, "objective.content.vgg.weights": "random",
    "data.crop": 16, "data.batch": BATCH, "data.workers": 1, "data.trace": "true", "data.validation_limit": 16,
    "steps": STEPS, "save_every": SAVE_EVERY, "validate_every": 20, "log_every": 1, "schedule.warmup": 4,
    "schedule.milestones": "[30]",
}  # fmt: skip


def write_classes(folder: Path) -> None:
    """A coloured gradient per class, moved from image to image."""
    ramp = np.linspace(0, 1, SIDE)
    for number in range(CLASSES):
        colour = np.random.default_rng(number).uniform(0.2, 1, 3)
        (folder / f"n{number:08d}").mkdir(parents=True)
        for image in range(EACH):
            pixels = 255 * (np.add.outer(ramp, np.roll(ramp, image)) / 2)[..., None] * colour
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"n{number:08d}" / f"{image}.png")


def write_validation(folder: Path, make_photo) -> None:
    folder.mkdir()
    for number in range(VALIDATION):
        Image.fromarray(make_photo(number, 32, 32)).save(folder / f"{number:02d}.png")


@pytest.fixture(scope="module")
def mission(slurm, make_photo, tmp_path_factory) -> dict:
    """Runs the pipeline: -> folder, run, the jobs' fields by stage, and the seconds that it took."""
    out = tmp_path_factory.mktemp("mission")
    write_classes(out / "imagenet")
    write_validation(out / "photos", make_photo)
    extractor = save_extractor(out / "toy.pt")
    slurm.wait(slurm.idle, "idle nodes")
    begun, run = time.monotonic(), out / "runs" / "imagenet_srugan_x2_large"
    data = {"runs": out / "runs", "data.train": out / "train", "data.validation": out / "validation"}
    output = slurm.run(
        "bash", "launch/slurm/pipeline.sh",
        "build:", "--array=0-3", "class_folders", str(out / "imagenet"), str(out / "train"), "--per_shard=256", "--resize=16",
        "--resize_mode=squash",
        "build:", "folder", str(out / "photos"), str(out / "validation"),
        "train:", "--nodes=2", "configs/imagenet_srugan_x2_large.yaml", *(f"--{k}={v}" for k, v in {**data, **SMALL}.items()),
        "evaluate:", "--nodes=2", f"{run},bicubic", f"--data={out / 'validation'}", f"--extractor={extractor}",
        "--metrics=psnr,ssim,fid,kid", "--cache=none", f"--out={out / 'report'}",
        SR_DIST_ACCELERATE="launch/accelerate/zero2.yaml",
    )  # fmt: skip
    lines = [line.split() for line in output.splitlines()]
    assert [name for name, _ in lines] == ["build", "merge", "build", "train", "evaluate"]
    numbers = dict(zip(("shares", "merge", "validation", "train", "evaluate"), (number for _, number in lines), strict=True))
    train = int(numbers["train"])
    for stage in ("merge", "validation"):
        assert slurm.ended(numbers[stage])["JobState"] == "COMPLETED", slurm.log(int(numbers[stage]))

    in_mid_run(slurm, train, run, 6, STEPS)
    slurm.run("scancel", "--batch", "--signal=USR1", str(train))  # as SLURM does 180 s before the time limit
    slurm.wait((run / "STOP").exists, "the file STOP")
    send(slurm, train, signal.SIGCONT)
    slurm.wait(lambda: slurm.job(train)["Restarts"] == "1", "the first requeue")
    first = last_step(run)
    in_mid_run(slurm, train, run, first + 6, STEPS)
    send(slurm, train, signal.SIGCONT)
    preempt(slurm)
    jobs = {stage: slurm.ended(number) for stage, number in numbers.items() if stage != "shares"}
    jobs |= {f"share {task}": slurm.ended(f"{numbers['shares']}_{task}") for task in range(4)}
    log = slurm.log(train)
    return {"out": out, "run": run, "jobs": jobs, "log": log, "seconds": time.monotonic() - begun}


def save_extractor(path: Path) -> Path:
    """A stand-in for the FID Inception, in TorchScript: four features per image."""
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.AvgPool2d(23), torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    torch.jit.trace(network.eval(), torch.rand(2, 3, 299, 299)).save(str(path))
    return path


def test_every_job_ends_well_and_the_training_was_requeued_twice(mission):
    states = {stage: (job["JobState"], job["ExitCode"], job["Restarts"]) for stage, job in mission["jobs"].items()}
    train = states.pop("train")
    assert set(states.values()) == {("COMPLETED", "0:0", "0")}, states
    assert train == ("COMPLETED", "0:0", "2"), mission["log"]
    assert mission["jobs"]["train"]["NumNodes"] == "2"
    assert (mission["run"] / "DONE").read_text() == f"step {STEPS}\n"
    assert mission["log"].count("on 2 ranks (cpu), ZeRO-2, precision bf16, ") == 3
    assert [text in mission["log"] for text in ("time is up; ", "SLURM pre-empts the job; ")] == [True, True]
    print(f"the mission in small: {len(states) + 1} jobs, {CLASSES * EACH} rows, {STEPS} steps, {mission['seconds']:.0f} s")


def test_every_sample_of_a_thousand_classes_comes_once_per_epoch(mission):
    manifest = json.loads((mission["out"] / "train" / "manifest.json").read_text())
    assert (manifest["samples"], len(manifest["classes"])) == (CLASSES * EACH, CLASSES)
    assert_exactly_once(mission["run"], CLASSES * EACH, BATCH, STEPS)


def test_the_record_has_each_step_once_and_three_validations(mission):
    assert [row["step"] for row in metrics(mission["run"])] == list(range(1, STEPS + 1))
    assert all(np.isfinite(value) for row in losses(mission["run"]) for value in row.values())
    rows = [json.loads(line) for line in (mission["run"] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation/psnr_y" in row] == [0, 20, 40]


def test_three_attempts_are_one_run_of_wandb(mission):
    folders = list(mission["run"].glob("wandb/offline-run-*"))
    assert len(folders) == 3
    assert {path.name.rsplit("-", 1)[1] for path in folders} == {(mission["run"] / "wandb_id").read_text().strip()}
    assert {record.run_id for record in of_kind(mission["run"], "run")} == {(mission["run"] / "wandb_id").read_text().strip()}


def test_the_report_has_the_stand_ins_distances(mission):
    report = json.loads((mission["out"] / "report" / "report.json").read_text())
    assert report["n"] == VALIDATION
    for method in ("imagenet_srugan_x2_large", "bicubic"):
        values = report["methods"][method]
        assert all(values[name] is not None for name in ("psnr_y", "ssim_y", "fd_toy", "kd_toy")), values
        assert "fid" not in values
