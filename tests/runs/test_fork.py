"""A new run from a checkpoint of another one: both together are one training."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from processes import losses, run, small_gan, trace

from sr_dist.tools.run_metrics import read_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(photo_shards, tmp_path_factory) -> Path:
    """Six steps of 8 images, which are two epochs, with checkpoints 2, 4 and 6. Only copy it."""
    runs = tmp_path_factory.mktemp("runs")
    run(0, "sr_dist.train", *small_gan(photo_shards, runs, steps=6, data__batch=8, save_every=2, keep="{last: 9}"))
    return runs / "run"


@pytest.fixture
def parent(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def test_a_fork_continues_its_parent(parent):
    """Nothing is changed but a length: the losses are the parent's own."""
    run(0, "sr_dist.fork", parent, "--at=2", "--name=same", "--steps=4")
    same, before = parent.parent / "same", json.loads((parent / "run.json").read_text())
    record = json.loads((same / "run.json").read_text())
    assert record["parent"] == {"id": before["id"], "step": 2} and record["id"] != before["id"]
    assert len(record["recipe"]) == 64 and "torch" in record["versions"] and before["parent"] is None
    assert losses(same) == losses(parent)[2:4]
    run(0, "sr_dist.fork", parent, "--at=2", "--name=same", "--steps=6")  # goes on where it was
    assert losses(same) == losses(parent)[2:6]
    seen = [(step, key) for step, key in trace(parent) if step <= 2] + trace(same)
    assert Counter(step for step, _ in seen) == dict.fromkeys(range(1, 7), 8)
    assert set(Counter(key for _, key in seen).values()) == {2} and len({key for _, key in seen}) == 24
    assert [row["step"] for row in read_rows(same)] == [1, 2, 3, 4, 5, 6]


def test_a_fork_of_the_folder_in_which_one_stands_is_beside_it_with_an_optimizer_of_its_own(parent):
    """The discriminator had the generator's optimizer; now it has a rate of its own, which is the same kind."""
    own = "--discriminator_optimizer={name: adam, learning_rate: 0.003}"
    run(0, "sr_dist.fork", ".", "--at=4", "--name=own", "--steps=5", own, cwd=parent)
    assert (parent.parent / "own" / "DONE").exists() and not (parent / "own").exists()
    row = json.loads((parent.parent / "own" / "metrics.jsonl").read_text())
    assert row["loss/real"] == [json.loads(line) for line in (parent / "metrics.jsonl").read_text().splitlines()][4]["loss/real"]


def test_a_fork_may_change_rates_and_weights_but_no_network(parent, run_commands):
    command = [str(parent), "--at=4", "--name=new"]
    changes = ["--optimizer.learning_rate=0.002", "--objective.adversarial_weight=0.5", "--steps=5"]
    refused, kind, objective, short, missing, done, other = run_commands(
        [
            ("sr_dist.fork", [*command, "--generator.num_blocks=2"]),
            ("sr_dist.fork", [*command, "--discriminator_optimizer={name: sgd, learning_rate: 0.1}"]),
            ("sr_dist.fork", [*command, "--objective.name=r3gan"]),
            ("sr_dist.fork", [*command, "--steps=4"]),
            ("sr_dist.fork", [str(parent), "--at=5", "--name=new"]),
            ("sr_dist.fork", [*command, *changes]),
            ("sr_dist.fork", [str(parent), "--at=2", "--name=new", *changes]),
        ]
    )
    assert refused.code == 2 and "error: generator.num_blocks: was 1, is 2: a fork cannot change this" in refused.err
    assert kind.code == 2 and "error: discriminator_optimizer.name: was adam, is sgd: a fork cannot change this" in kind.err
    assert objective.code == 2 and "error: objective.name: a fork keeps its objective" in objective.err
    assert short.code == 2 and "error: steps: 4, but the fork begins at step 4" in short.err
    assert missing.code == 2 and "the nearest are 2, 4, 6" in missing.err
    assert done.code == 0, done.err
    assert other.code == 2 and "no fork of this run at step 2" in other.err
    rows = [json.loads(line) for line in (parent.parent / "new" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["learning_rate"]) for row in rows] == [(5, 0.002)]
    fifth = losses(parent)[4]
    assert rows[0]["loss/mse"] == fifth["loss/mse"]  # the same weights and images
    assert rows[0]["loss/adversarial"] != fifth["loss/adversarial"]
    assert not list(parent.parent.glob(".*.unfinished"))
