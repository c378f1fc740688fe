"""From photographs to a report in one command: shards made in shares, a training and an evaluation, each after the one before."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipeline(slurm, photos, tmp_path_factory):
    """Submitted as a whole: -> (its folder, {stage: what SLURM knows of its jobs}), when all have ended."""
    out = tmp_path_factory.mktemp("pipeline")
    run, shards = out / "runs" / "demo_pixel", out / "photos"
    training = {
        "runs": out / "runs", "data.train": shards, "data.validation": "none", "steps": 4, "data.batch": 8, "data.crop": 32,
        "data.workers": 0, "generator": "{name: srugan, widths: [8, 12], num_blocks: 1, num_dense_blocks: 1, skip: bicubic}",
    }  # fmt: skip
    answer = slurm.ask(
        "bash", "launch/slurm/pipeline.sh",
        "build:", "--array=0-1", "class_folders", str(photos), str(shards), "--per_shard=8",
        "train:", "configs/demo_pixel.yaml", *(f"--{key}={value}" for key, value in training.items()),
        "evaluate:", f"{run},bicubic", f"--data={shards}", "--limit=4", f"--out={out / 'report'}",
    )  # fmt: skip
    numbers = dict(line.split() for line in answer.splitlines())
    assert list(numbers) == ["build", "merge", "train", "evaluate"]
    jobs = {"build 0": f"{numbers['build']}_0", "build 1": f"{numbers['build']}_1", **numbers}
    del jobs["build"]
    known = {stage: slurm.ended(number) for stage, number in jobs.items()}
    for stage, job in known.items():
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), f"{stage}\n{slurm.log(int(job['JobId']))}"
    return out, known


def test_shards_made_in_shares_are_byte_for_byte_those_of_one_process(pipeline, photo_shards):
    out, _ = pipeline
    made, wanted = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (out / "photos", photo_shards))
    assert made.keys() == wanted.keys()
    assert not [name for name in wanted if made[name] != wanted[name]]


def test_each_stage_begins_when_the_one_before_has_ended(pipeline):
    out, known = pipeline

    def time(stage: str, what: str) -> datetime:
        return datetime.fromisoformat(known[stage][what])

    for before, after in (("build 0", "merge"), ("build 1", "merge"), ("merge", "train"), ("train", "evaluate")):
        assert time(after, "StartTime") >= time(before, "EndTime"), f"{after} did not wait for {before}"
    assert (out / "runs" / "demo_pixel" / "DONE").read_text() == "step 4\n"
    assert set(json.loads((out / "report" / "report.json").read_text())["methods"]) >= {"demo_pixel", "bicubic"}
