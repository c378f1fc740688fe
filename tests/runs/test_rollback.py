"""A collapse is found, and the run goes back to an earlier checkpoint with lower rates; a kill at any moment changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from processes import DEMO, assert_exactly_once, losses, metrics, run, small_gan
from safetensors.torch import load_file

from sr_dist.training import rollback

STEPS, BATCH, SAMPLES = 14, 8, 24
pytestmark = pytest.mark.slow

# This rate halves SR's contrast within two steps: row 3 is the first below the bound, and the alarm comes with row 6.
FAST = {
    "optimizer.learning_rate": 5e-3, "health.alarms.spread": 2, "health.alarms.mean": 9, "health.alarms.rows": 4,
    "health.factor": 1e-4, "health.on_collapse": "rollback", "save_every": 1, "steps": STEPS, "data.batch": BATCH,
}  # fmt: skip


def words(shards: Path, runs: Path, **more: object) -> list[str]:
    return small_gan(shards, runs, **{**FAST, **{key.replace("__", "."): value for key, value in more.items()}})


def record(folder: Path) -> list[dict]:
    return json.loads((folder / "run.json").read_text())["rollbacks"]


def weights(folder: Path) -> dict:
    newest = max((folder / "checkpoints").glob("0*"))
    return {f"{path.stem}/{name}": value for path in newest.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def whole(photo_shards, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    run(0, "sr_dist.train", *words(photo_shards, runs))
    return runs / "run"


def test_a_rollback_is_recorded_and_the_steps_after_it_have_lower_rates(whole):
    """Row 3 is of the weights of checkpoint 2, so the newest good checkpoint is that of step 1. The record has each step once."""
    (rolled_back,) = record(whole)
    assert (rolled_back["step"], rolled_back["to"], rolled_back["factor"], rolled_back["done"]) == (6, 1, 1e-4, True)
    assert "contrast is lost" in rolled_back["reason"]
    rows = metrics(whole)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["learning_rate"] for row in rows] == pytest.approx([5e-3] + [5e-7] * (STEPS - 1))
    assert "step 6: back to the checkpoint of step 1, with rates 0.0001 times as high" in (whole / "log.txt").read_text()
    state = json.loads((whole / "checkpoints" / f"{STEPS:07d}" / "state.json").read_text())
    assert state["rollbacks"] == record(whole)
    assert_exactly_once(whole, SAMPLES, BATCH, STEPS)
    assert (whole / "DONE").exists()


def test_after_the_last_rollback_a_collapse_ends_the_run(photo_shards, tmp_path):
    more = {"health.rollbacks": 1, "health.factor": 0.99}
    _, err = run(0, "sr_dist.train", *words(photo_shards, tmp_path, **more), expect=1)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the training has collapsed: step ") and "contrast is lost" in line
    assert line.endswith("; the checkpoint of step 1 is from before") and "Traceback" not in err
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "no rollback: there were 1" in log and len(record(tmp_path / "run")) == 1
    assert not (tmp_path / "run" / "DONE").exists()


LONG = [pytest.param(moment, marks=pytest.mark.long) for moment in ("before the removal", "after the rollback")]


@pytest.mark.parametrize("moment", ["in the removal", *LONG])
def test_a_kill_in_or_after_a_rollback_changes_nothing(moment, whole, photo_shards, tmp_path):
    """The first process ends at that moment of the rollback, or five steps after it."""
    script = str(Path(__file__).with_name("killed_in_rollback.py"))
    run(0, Path(script).stem, moment, *words(photo_shards, tmp_path), expect=9, cwd=Path(script).parent)
    folder = tmp_path / "run"
    assert not (folder / "DONE").exists()
    assert record(folder)[0]["done"] == (moment == "after the rollback")
    run(0, "sr_dist.train", *words(photo_shards, tmp_path))
    assert record(folder) == record(whole)
    assert losses(folder) == losses(whole)
    ours, theirs = weights(folder), weights(whole)
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert_exactly_once(folder, SAMPLES, BATCH, STEPS)


def test_a_replay_has_the_rates_of_the_run(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    out, _ = run(0, "sr_dist.replay", folder, f"--from={STEPS - 1}", f"--to={STEPS}")
    assert "identical" in out


def test_stop_ends_the_run_with_the_sentence(photo_shards, tmp_path):
    """One rank says it, without a traceback."""
    more = {"health__on_collapse": "stop", "save_every": 1000}
    _, err = run(2, "sr_dist.train", *words(photo_shards, tmp_path, **more), expect=1)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: the training has collapsed: step 6: contrast is lost")
    assert line.endswith("; no checkpoint exists yet") and "Traceback" not in err
    assert f"ended after step 6: {line.removeprefix('error: ')}" in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / "DONE").exists()


def test_two_ranks_roll_back_as_one_process_does(whole, photo_shards, tmp_path):
    run(2, "sr_dist.train", *words(photo_shards, tmp_path))
    ours, theirs = record(tmp_path / "run"), record(whole)
    assert [(r["step"], r["to"]) for r in ours] == [(r["step"], r["to"]) for r in theirs]
    assert_exactly_once(tmp_path / "run", SAMPLES, BATCH, STEPS)


def test_stopping_needs_what_health_measures(tmp_path):
    more = ["--health.enabled=false", "--health.on_collapse=stop"]
    _, err = run(0, "sr_dist.train", str(DEMO), f"--runs={tmp_path}", *more, expect=2)
    assert err.startswith("error: ") and "on_collapse: stop needs what health measures; say --health.enabled=true" in err


def test_rates_follow_from_the_rollbacks_and_the_step():
    past = [{"to": 10, "factor": 0.1}, {"to": 4, "factor": 0.5}]
    assert [rollback.rate_factor(past, step) for step in (4, 5, 10, 11)] == pytest.approx([1, 0.5, 0.5, 0.05])
