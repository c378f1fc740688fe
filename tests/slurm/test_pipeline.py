"""From photographs to a report in one command: shards built in shares, a training run, an evaluation, one after the other."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipeline(slurm, photos, tmp_path_factory):
    """Submits all stages and waits for their end: -> (the folder, {stage: the fields of its job})."""
    out = tmp_path_factory.mktemp("pipeline")
    run, shards = out / "runs" / "demo_pixel", out / "photos"
    training = {
        "runs": out / "runs", "data.train": shards, "data.validation": "none", "steps": 4, "data.batch": 8, "data.crop": 32,
        "data.workers": 0, "generator": "{name: srugan, widths: [8, 12], num_blocks: 1, num_dense_blocks: 1, skip: bicubic}",
    }  # fmt: skip
    output = slurm.run(
        "bash", "launch/slurm/pipeline.sh",
        "build:", "--array=0-1", "class_folders", str(photos), str(shards), "--per_shard=8",
        "train:", "configs/demo_pixel.yaml", *(f"--{key}={value}" for key, value in training.items()),
        "evaluate:", f"{run},bicubic", f"--data={shards}", "--limit=4", f"--out={out / 'report'}",
    )  # fmt: skip
    numbers = dict(line.split() for line in output.splitlines())
    assert list(numbers) == ["build", "merge", "train", "evaluate"]
    jobs = {"build 0": f"{numbers['build']}_0", "build 1": f"{numbers['build']}_1", **numbers}
    del jobs["build"]
    finished = {stage: slurm.ended(number) for stage, number in jobs.items()}
    for stage, job in finished.items():
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), f"{stage}\n{slurm.log(int(job['JobId']))}"
    return out, finished


def test_shards_built_in_shares_equal_those_of_one_process(pipeline, photo_shards):
    out, _ = pipeline
    built, expected = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (out / "photos", photo_shards))
    assert built.keys() == expected.keys()
    assert not [name for name in expected if built[name] != expected[name]]


def test_each_stage_begins_when_the_stage_before_has_ended(pipeline):
    out, finished = pipeline

    def time(stage: str, field: str) -> datetime:
        return datetime.fromisoformat(finished[stage][field])

    for before, after in (("build 0", "merge"), ("build 1", "merge"), ("merge", "train"), ("train", "evaluate")):
        assert time(after, "StartTime") >= time(before, "EndTime"), f"{after} did not wait for {before}"
    assert (out / "runs" / "demo_pixel" / "DONE").read_text() == "step 4\n"
    assert set(json.loads((out / "report" / "report.json").read_text())["methods"]) >= {"demo_pixel", "bicubic"}
