"""The averages of `ema.post_hoc` in real trainings: the same after a kill to the bit, and under DDP and ZeRO as in one process;
and the curve that is drawn from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import run
from safetensors.torch import load_file
from test_equality import job, train

from sr_dist.models.post_hoc_ema import averaged, snapshots


def post_hoc(shards: Path, runs: Path, **more: str) -> dict:
    one = job(shards, runs, "esrgan", 1, "sgd")  # plain sgd: adam's first steps enlarge differences in the last digit
    return {**one, "options": {**one["options"], "name": "run", "save_every": "2", "keep": "9", "ema.post_hoc": "true", **more}}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "run" / "post_hoc").iterdir())
    return {f"{path.name}/{name}": value for path in files for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def one_process(photo_shards, tmp_path_factory) -> Path:
    """Five steps of a GAN in one process; then, in another folder, the same from its checkpoint of step 2, after which the
    process was killed before it kept the averages."""
    root = tmp_path_factory.mktemp("post_hoc")
    train("one process", root, [post_hoc(photo_shards, root / "whole")])
    shutil.copytree(root / "whole", root / "killed")
    for step in (4, 5):
        shutil.rmtree(root / "killed" / "run" / "checkpoints" / f"{step:07d}")
    (root / "killed" / "run" / "post_hoc" / "0000002.safetensors").unlink()
    (root / "killed" / "run" / "post_hoc" / "0000004.safetensors").write_bytes(b"of a step that is taken again")
    train("one process", root, [post_hoc(photo_shards, root / "killed", **{"data.workers": "0"})])
    return root


@pytest.mark.slow
def test_a_continued_training_has_the_same_averages_bit_for_bit(one_process):
    whole, killed = stored(one_process / "whole"), stored(one_process / "killed")
    assert {name.split("/")[0] for name in whole} == {f"{step:07d}.safetensors" for step in (2, 4, 5)}
    assert whole.keys() == killed.keys()
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    weights = load_file(one_process / "whole" / "run" / "checkpoints" / "0000005" / "generator.safetensors")
    assert any(not torch.equal(whole[f"0000005.safetensors/050/{name}"], value) for name, value in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ddp", "zero3"])
def test_ranks_have_the_averages_of_one_process(backend, one_process, photo_shards, tmp_path):
    """Within rounding; the weights have moved a thousand times as far."""
    train(backend, tmp_path, [post_hoc(photo_shards, tmp_path)])
    whole, ranks = stored(one_process / "whole"), stored(tmp_path)
    assert whole.keys() == ranks.keys()
    worst = max(float((value - ranks[name]).abs().max()) for name, value in whole.items())
    first, last = ({name.split("/", 1)[1]: v for name, v in whole.items() if name.startswith(f"000000{step}")} for step in (2, 5))
    moved = max(float((value - last[name]).abs().max()) for name, value in first.items())
    assert worst <= moved / 1000, (worst, moved)


@pytest.mark.slow
def test_the_curve_of_a_run_and_one_of_its_points(one_process, photos, tmp_path, run_commands):
    """A grid of two lengths and three shares; a point that is exported scores as it did in the grid."""
    pixel = one_process / "whole" / "run" / "checkpoints" / "0000002" / "generator.ema.safetensors"
    words = [str(one_process / "whole" / "run"), f"--pixel={pixel}"]
    data = f"--data={photos}"
    grid = ["--lengths=0.05,0.1", "--alphas=0,0.5,1", "--metrics=psnr,ssim", f"--out={tmp_path / 'out'}"]
    mistakes = [
        ([str(photos), data], "RUN: '"),
        ([*words, data, "--lengths=0.5,0.1"], "lengths: 0.5 is no length of an EMA"),
        ([*words, data, "--alphas=2"], "alphas"),
        ([*words, data, "--metrics=ssim"], "metrics: psnr is missing"),
        (words, "data: this key is missing"),
        ([*words, data, *grid, "--perception=lpips"], "perception: no column 'lpips'"),
    ]
    answers = run_commands([
        ("sr_dist.curve", [*words, data, *grid]),
        ("sr_dist.curve", [*words, f"--export={tmp_path / 'point.safetensors'}", "--ema=0.1", "--alpha=0.5"]),
        ("sr_dist.evaluate", [str(tmp_path / "point.safetensors"), data, "--metrics=psnr,ssim", f"--out={tmp_path / 'point'}"]),
        *(("sr_dist.curve", bad) for bad, _ in mistakes),
    ])  # fmt: skip
    assert [answer.code for answer in answers[:3]] == [0, 0, 0], [answer.err for answer in answers]
    tree = json.loads((tmp_path / "out" / "curve.json").read_text())
    names = ["pixel", "ema0.05_a0.5", "ema0.05_a1", "ema0.1_a0.5", "ema0.1_a1"]
    assert [point["name"] for point in tree["points"]] == names and tree["perception"] == "ssim_y"
    assert any(point["on_frontier"] for point in tree["points"])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for point in tree["points"]:
        assert point["psnr_y"]["value"] == report["methods"][point["name"]]["psnr_y"]
        assert point["psnr_y"]["low"] < point["psnr_y"]["value"] < point["psnr_y"]["high"]
    alone = json.loads((tmp_path / "point" / "report.json").read_text())["methods"]["point"]
    assert alone == report["methods"]["ema0.1_a0.5"]
    text = (tmp_path / "out" / "curve.html").read_text()
    assert text.count('class="mark"') == 5 and "http" not in text
    for (bad, message), answer in zip(mistakes, answers[3:], strict=True):
        assert answer.code == 2 and message in answer.err and answer.err.count("\n") == 1, (bad, answer.err)


@pytest.mark.slow
def test_a_point_is_the_mixture_that_its_name_says(one_process, tmp_path):
    """(1 - alpha) pixel + alpha average, tensor by tensor."""
    folder = one_process / "whole" / "run"
    pixel = folder / "checkpoints" / "0000002" / "generator.ema.safetensors"
    run(0, "sr_dist.curve", folder, f"--pixel={pixel}", f"--export={tmp_path / 'p.safetensors'}", "--ema=0.05", "--alpha=0.25")
    average = averaged(snapshots(folder), 0.05, 5, "RUN")
    own, start = load_file(tmp_path / "p.safetensors"), load_file(pixel)
    assert own.keys() == start.keys() == average.keys()
    for name, value in own.items():
        expected = (0.75 * start[name].double() + 0.25 * average[name].double()).float()
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-7)
