"""Weights that a command names: files of the weights folders, and the checkpoint that ranks agree on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_trained import a_run, network, saved

from sr_dist import curve, evaluate, export, interpolate, upscale
from sr_dist.core import ranks
from sr_dist.core.errors import UserError
from sr_dist.evaluation.methods import open_generators
from sr_dist.evaluation.words import method_word
from sr_dist.models import pretrained, trained


@pytest.fixture
def folder(tmp_path, monkeypatch, photos):
    """A folder to work in, whose weights folder holds x2.safetensors and x2_b.pth."""
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "weights" / "x2.safetensors", network())
    saved(tmp_path / "weights" / "b2.safetensors", network(seed=1))
    (tmp_path / "images").symlink_to(photos)
    return tmp_path


def test_every_command_takes_weights_by_their_name(folder):
    assert trained.open_generator("x2").name == "x2"
    image = next(Path("images").rglob("*.png"))
    for main, words in (
        (export.main, ["x2", "out.safetensors"]),
        (interpolate.main, ["x2", "b2.safetensors", "between.safetensors", "--alpha=0.5"]),
        (upscale.main, ["x2", str(image), "large.png"]),
        (evaluate.main, ["x2,second=b2", "--data=images", "--limit=2", "--metrics=psnr", "--out=report"]),
    ):
        assert main(words) == 0, words
    assert (folder / "out.safetensors").exists() and (folder / "between.safetensors").exists() and (folder / "large.png").exists()
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["sources"]["x2"]["weights"] == str(folder / "weights" / "x2.safetensors")
    assert "second" in report["methods"]


@pytest.mark.parametrize(
    ("main", "words", "key"),
    [
        (export.main, ["x3", "out.pth"], "RUN"),
        (interpolate.main, ["x2", "x3", "out.pth", "--alpha=0.5"], "B"),
        (upscale.main, ["x3", "images", "out"], "RUN_OR_WEIGHTS"),
        (evaluate.main, ["x3", "--data=images"], "METHOD"),
        (evaluate.main, ["second=x3", "--data=images"], "METHOD: second"),
        (curve.main, ["run", "--pixel=x3", "--data=images"], "pixel"),
    ],
)
def test_a_name_that_is_nowhere_is_one_line_with_the_nearest(main, words, key, folder, capsys):
    a_run(folder / "run", 1)
    assert main(words) == 2
    problem = capsys.readouterr().err
    assert problem.startswith(f"error: {key}: no run folder or weights file 'x3', nor is it in {folder / 'weights'} or ")
    assert problem.endswith("; did you mean 'x2'?\n") and problem.count("\n") == 1


def test_the_weights_folder_is_that_of_torch_before_torch_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub._hub_dir", None)
    for variables in ({}, {"XDG_CACHE_HOME": str(tmp_path)}, {"TORCH_HOME": "~/t"}, {"TORCH_HOME": ""}):
        for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        expected = Path(torch.hub.get_dir())
        with monkeypatch.context() as without:
            without.delitem(pretrained.sys.modules, "torch")
            assert pretrained.hub_folder() == expected, variables


@pytest.mark.parametrize("command", ["evaluate", "upscale"])
def test_all_ranks_open_the_checkpoint_that_the_first_one_saw(command, tmp_path, monkeypatch, capsys, photos):
    """A training saves step 2 after the first rank has looked: this is another rank, which sees both."""
    run = a_run(tmp_path / "run", 1, 2)
    first = trained.Weights(run, run / "checkpoints" / "0000001" / "generator.ema.safetensors")
    assert trained.open_generator(str(run)).step == 2
    answers = iter([[first]] if command == "evaluate" else [first])
    own = ranks.from_first
    monkeypatch.setattr(ranks, "from_first", lambda work: next(answers, None) or own(work))
    if command == "evaluate":
        assert [one.step for one in open_generators([method_word(str(run))], None).values()] == [1]
    else:
        opened = []
        monkeypatch.setattr("sr_dist.models.weights_files.read", lambda file, key: (opened.append(file), _stop())[1])
        assert upscale.main([str(run), str(next(photos.rglob("*.png"))), str(tmp_path / "a.png")]) == 2
        assert opened == [first.file]


def _stop():
    raise UserError("enough")
