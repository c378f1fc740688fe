"""Steps of a run again: the same numbers, or the first that differs; and what the probes see."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import run, small_gan
from safetensors.torch import load_file, save_file

from sr_dist.core.files import lock_file, sha256
from sr_dist.tools.replay import differences

pytestmark = pytest.mark.slow
STEPS = 6


@pytest.fixture(scope="module")
def shards(photos, tmp_path_factory) -> Path:
    """The photographs, and one image of noise."""
    from shards.build import build

    root = tmp_path_factory.mktemp("noisy")
    shutil.copytree(photos, root / "photos")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "photos" / "cats" / "noise.png")
    build("class_folders", str(root / "photos"), root / "shards", {"per_shard": "8"})
    return root / "shards"


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory) -> Path:
    """Six steps of a GAN on one rank, with checkpoints 2, 4 and 6, and a validation in step 4. Only read it."""
    runs = tmp_path_factory.mktemp("runs")
    words = small_gan(shards, runs, steps=STEPS, data__batch=8, save_every=2, keep="{last: 9}", data__validation=shards,
                      data__validation_limit=2, validate_every=4)  # fmt: skip
    run(0, "sr_dist.train", *words)
    return runs / "run"


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def test_replayed_steps_are_identical_and_the_run_is_as_it_was(trained, tmp_path):
    before = files(trained)
    out, _ = run(0, "sr_dist.replay", trained, "--from=4", "--to=5", f"--out={tmp_path}/new", "--probe=gradients,logits,worst")
    assert "from the checkpoint of step 2" in out and "identical: " in out
    assert files(trained) == before
    probes = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.glob("new/probes/*.jsonl")
    }
    assert len(probes["logits"]) == 2 * 8 and len(probes["worst"]) == 10
    adversarial = next(row for row in probes["gradients"] if row["term"] == "adversarial")
    assert (
        adversarial["norm"] == pytest.approx(sum(norm**2 for norm in adversarial["layers"].values()) ** 0.5)
        and adversarial["norm"] > 0
    )
    result = json.loads((tmp_path / "new" / "replay.json").read_text())
    assert result["compared"] > 20 and not result["differences"]


def test_a_bad_sample_is_the_worst(trained, tmp_path):
    """Steps 1 to 4 are an epoch of 25 images; they begin without a checkpoint."""
    out, _ = run(0, "sr_dist.replay", trained, "--from=1", "--to=4", f"--out={tmp_path}/new", "--probe=worst")
    worst = json.loads((tmp_path / "new" / "probes" / "worst.jsonl").read_text().splitlines()[0])
    assert "identical: " in out and "noise" in worst["key"]
    assert list((tmp_path / "new" / "probes" / "worst").glob("01_*noise*.png"))


def test_an_edited_row_and_a_changed_weight_are_differences(trained, tmp_path):
    edited = shutil.copytree(trained, tmp_path / "edited")
    rows = [json.loads(line) for line in (edited / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["step"] == 5)
    row["loss/fake"] = float(np.nextafter(row["loss/fake"], 9))
    (edited / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, _ = run(0, "sr_dist.replay", edited, "--from=5", "--to=6", expect=1)
    assert "1 of " in out and "step 5, loss/fake" in out and str(row["loss/fake"]) in out
    assert (edited / "replay" / "5-6" / "replay.json").is_file()

    weight = edited / "checkpoints" / "0000004" / "generator.safetensors"
    tensors = load_file(weight)
    next(iter(tensors.values())).mul_(1.01)
    save_file(tensors, weight)
    out, _ = run(0, "sr_dist.replay", edited, "--from=5", "--to=6", expect=1)
    assert "generator.safetensors" in out and "not as it was saved" in out
    manifest = json.loads((weight.parent / "manifest.json").read_text())
    manifest["files"][weight.name] = {"bytes": weight.stat().st_size, "sha256": sha256(weight)}
    (weight.parent / "manifest.json").write_text(json.dumps(manifest))
    out, _ = run(0, "sr_dist.replay", edited, "--from=6", "--to=6", expect=1)
    assert "the first is step 6, loss/" in out


def test_two_ranks_are_identical_and_one_rank_is_equal_to_a_tolerance(shards, tmp_path):
    words = small_gan(shards, tmp_path, steps=4, data__batch=6, save_every=2)
    run(2, "sr_dist.train", *words)
    out, _ = run(2, "sr_dist.replay", tmp_path / "run", "--from=3", "--to=4", "--probe=worst,gradients")
    assert "identical: " in out
    out, _ = run(0, "sr_dist.replay", tmp_path / "run", "--from=3", "--to=4")
    assert "ranks was 2 and is 1" in out and "equal to a relative difference of 0.0001" in out and "identical: " not in out


def test_mistakes_are_one_line(trained, run_commands, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    (tmp_path / "busy").mkdir()
    for name in ("replay.json", "rows.jsonl"):  # of a replay that is not at its end
        (tmp_path / "busy" / name).write_text("{}")
    lock = lock_file(tmp_path / "busy" / ".lock")
    mistakes = {
        ("--from=5", "--to=4"): "--from=5",
        ("--from=7", "--to=9"): "no row",
        ("--from=5", "--to=99"): f"to: 99, but the last step in metrics.jsonl of '{trained}' is 6",
        ("--from=5", "--to=6", "--probe=logit"): "did you mean",
        ("--from=5", "--to=6", "--seed=9"): "seed",
        ("--from=5", "--to=6", "--name=other"): "--out=FOLDER",
        ("--from=5", "--to=6", "--log.wandb=offline"): "log.wandb: a replay is not reported",
        ("--from=5", "--to=6", f"--out={tmp_path}/full"): "not empty",
        ("--from=5", "--to=6", f"--out={tmp_path}/busy"): "is in use by process",
    }
    answers = run_commands([("sr_dist.replay", [str(trained), *words]) for words in mistakes])
    for answer, text in zip(answers, mistakes.values(), strict=True):
        assert answer.code == 2 and text in answer.err and answer.err.startswith("error: "), answer.err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert (tmp_path / "busy" / "rows.jsonl").exists()
    assert not (trained / "replay" / "5-99").exists()
    lock.close()


def test_a_fork_without_its_first_checkpoint_is_not_replayed_from_new_weights(trained, tmp_path, run_commands):
    fork = shutil.copytree(trained, tmp_path / "fork")
    record = json.loads((fork / "run.json").read_text())
    (fork / "run.json").write_text(json.dumps({**record, "parent": {"id": "0" * 32, "step": 2}}))
    shutil.rmtree(fork / "checkpoints" / "0000002")
    words = [str(fork), "--from=3", "--to=4"]
    refused, allowed = run_commands(
        [
            ("sr_dist.replay", words),
            ("sr_dist.replay", [str(trained), *words[1:], "--seed=9", "--resume.allow=seed", f"--out={tmp_path}/new"]),
        ]
    )
    assert refused.code == 2 and "is a fork and begins after step 2, but it has no checkpoint before step 3" in refused.err
    assert allowed.code == 1 and "different: " in allowed.out + allowed.err, allowed.err


def test_differences_are_of_numbers_that_are_logged():
    recorded = {3: {"step": 3, "loss/l1": 0.5, "memory_gb": 1.0, "validation/psnr_y": None}}
    assert differences(recorded, {3: {"step": 3, "loss/l1": 0.5, "memory_gb": 2.0, "validation/psnr_y": None, "new": 1}}) == []
    assert differences(recorded, {3: {"step": 3, "loss/l1": 0.5}}) == [(3, "validation/psnr_y", None, "nothing")]
    near = {3: {**recorded[3], "loss/l1": 0.50001}}
    assert len(differences(recorded, near)) == 1 and differences(recorded, near, 1e-4) == []
