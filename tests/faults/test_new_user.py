"""Slips that people made who used sr_dist for the first time: each is answered by what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import environment, finish, run, start

from sr_dist import fetch
from sr_dist.core import fetch_file
from sr_dist.models.upscaling import Naming, listing, targets

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, photo_shards):
    """Two steps of a small RRDB. Only read it."""
    root = tmp_path_factory.mktemp("new_user")
    (root / "small.yaml").write_text(
        f"""
        name: small
        scale: 2
        steps: 2
        runs: runs
        data: {{train: {photo_shards}, crop: 16, batch: 4, workers: 0}}
        generator: {{name: rrdb, num_blocks: 1, width: 8, growth: 4}}
        objective: {{name: pixel, content: {{l1: 1.0}}}}
        optimizer: {{learning_rate: 1e-3}}
        validate_every: none
        save_every: 2
        log_every: 1
        """
    )
    run(0, "sr_dist.train", root / "small.yaml", cwd=root)
    return root / "runs" / "small"


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    """As `| head -1`: here the reader reads nothing at all."""
    for words in ("sr_dist", "shards.build --help"):
        line = f"set -o pipefail; {sys.executable} -m {words} 2>{tmp_path}/err | true; echo $?"
        done = subprocess.run(["bash", "-c", line], env=environment(), cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout in ("1\n", "0\n") and (tmp_path / "err").read_text() == ""  # 0: it was faster than the reader's end


def test_a_broken_pipe_of_something_else_is_not_hidden(monkeypatch):
    from sr_dist.core import cli

    def work(words, options):
        raise BrokenPipeError("a server")

    with pytest.raises(BrokenPipeError):
        cli.run_words(work, str, [])


def test_an_evaluation_of_nothing_is_refused_before_images_are_restored(small_run, photos, tmp_path):
    out = tmp_path / "out"
    process = start(0, "sr_dist.evaluate", small_run, f"--data={photos}", "--limit=2", "--metrics=lpips", f"--out={out}",
                    SR_DIST_WEIGHTS=str(tmp_path), TORCH_HOME=str(tmp_path))  # fmt: skip
    code, printed, err = finish(process)
    assert code == 2 and err.startswith("error: metrics: lpips: nothing of it can be computed: lpips_alex: the weights file '")
    assert not (out / "report.json").exists() and "| method |" not in printed
    process = start(0, "sr_dist.evaluate", small_run, f"--data={photos}", "--limit=2", "--metrics=lpips,psnr", f"--out={out}",
                    SR_DIST_WEIGHTS=str(tmp_path), TORCH_HOME=str(tmp_path))  # fmt: skip
    assert finish(process)[0] == 0
    assert json.loads((out / "report.json").read_text())["missing"].keys() == {"lpips_alex", "lpips_vgg"}


def test_the_recipe_of_a_moved_run_continues_it_or_begins_another_by_name(small_run, tmp_path):
    """It trained a new run where the folder had been."""
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(small_run, moved)
    code, _, err = finish(start(0, "sr_dist.train", moved / "recipe.yaml", cwd=tmp_path))
    cure = f"--runs={moved.parent} --name=renamed"
    assert (code, err) == (2, f"error: RECIPE: '{moved}/recipe.yaml' belongs to the run in '{moved}', but it names 'runs/small'; "
                              f"{cure} continues that run, and --name=NEW begins another\n")  # fmt: skip
    assert not (tmp_path / "runs").exists()
    out, _ = run(0, "sr_dist.train", moved / "recipe.yaml", *cure.split(), "--steps=3", cwd=tmp_path)
    assert "continuing after step 2" in out and "done after 3 steps" in out
    out, _ = run(0, "sr_dist.train", moved / "recipe.yaml", *cure.split(), "--steps=1", cwd=tmp_path)
    assert "the run has 3 steps already, and steps: 1 is less: nothing is trained; a larger --steps=N goes on" in out
    out, _ = run(0, "sr_dist.train", small_run / "recipe.yaml", cwd=small_run.parents[1])  # where it was made
    assert "the run has 2 steps already: nothing is trained" in out


BASICSR = {
    "name": "x", "model_type": "SRGANModel", "scale": 4, "network_g": {"type": "MSRResNet"}, "train": {"total_iter": 10},
    "datasets": {"train": {"name": "a", "dataroot_gt": "x", "gt_size": 130}},
}  # fmt: skip


def test_mistakes_in_recipes_are_answered_by_a_cure(write_recipe, tmp_path, run_commands):
    recipe = str(write_recipe())
    (tmp_path / "option.yml").write_text(json.dumps(BASICSR))
    cases = {
        "--objective.content.{l1:1.0}": "'objective.content.{l1:1.0}' is no key; a section in short form follows the =, with "
        "quotes and a space after the colon: --objective.content='{name: value}'",
        "--objective.content={l1:1.0}": "objective.content: '{l1:1.0}': a space follows each colon, as in '{l1: 1.0}'",
        "--generator.name=srvgg": "generator.name: srvgg, but the recipe's section is that of 'srugan', with widths, "
        "num_dense_blocks, reduction; --generator='{name: srvgg}' takes the place of the whole section",
        "--generator.name=rdb": "generator.name: no 'rdb' in sr_dist/models/generators; did you mean 'rrdb'?",
    }
    calls = [("sr_dist.train", [recipe, option]) for option in cases]
    calls.append(("sr_dist.train", [str(tmp_path / "option.yml")]))
    calls.append(("sr_dist.train", [recipe, "--generator={name: srvgg, num_blocks: 1, width: 8}", "--dry_run"]))
    calls.append(("sr_dist.import_options", [str(tmp_path / "option.yml")]))
    *refused, foreign, replaced, gan = run_commands(calls)
    assert [(answer.code, answer.err) for answer in refused] == [(2, f"error: {message}\n") for message in cases.values()]
    path = tmp_path / "option.yml"
    cure = f"`python -m sr_dist.import_options {path} > mine.yaml` makes a recipe of it"
    assert (foreign.code, foreign.err) == (2, f"error: RECIPE: '{path}' is an option file of BasicSR; {cure}\n")
    assert replaced.code == 0, replaced.err
    assert (gan.code, gan.err) == (
        2, "error: network_d: this section is missing, and model_type: SRGANModel trains a discriminator; SRModel trains none\n",
    )  # fmt: skip


def test_an_imported_crop_is_a_multiple_of_the_scale(tmp_path, run_commands):
    (tmp_path / "option.yml").write_text(json.dumps({**BASICSR, "model_type": "SRModel"}))
    [answer] = run_commands([("sr_dist.import_options", [str(tmp_path / "option.yml")])])
    assert answer.code == 0, answer.err
    assert "  crop: 128\n" in answer.out and "gt_size: 130 is no multiple of scale 4; data.crop is 128" in answer.out


def test_what_cannot_be_fetched_is_named_with_its_place(tmp_path, monkeypatch, capsys):
    """No server answers. Nothing empty stays."""
    files = {"data": [{"address": "http://127.0.0.1:9/a.zip", "path": "archives/a.zip", "unpack": "a"}],
             "weights": [{"address": "http://127.0.0.1:9/net.pth"}]}  # fmt: skip
    table = {
        kind: {"purpose": "x", "kind": kind, "licence": "free", "files": files[kind], "next": "-"} for kind in ("data", "weights")
    }
    (tmp_path / "table.yaml").write_text(json.dumps(table))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path / "w"))
    monkeypatch.setattr(fetch_file, "sleep", lambda seconds: None)
    assert fetch.main(["data", "--table=table.yaml", "--to=sets"]) == 1
    assert "; brought by other means it belongs at 'sets/archives/a.zip'\n" in capsys.readouterr().err
    assert not (tmp_path / "sets").exists()
    assert fetch.main(["weights", "--table=table.yaml"]) == 1
    assert capsys.readouterr().err.endswith(f"; brought by other means it belongs at '{tmp_path}/w/net.pth'\n")
    assert fetch.main(["weights", "--table=table.yaml", "--to=sets"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: to: sets, but weights go to '{tmp_path}/w', where every other command looks for them; ")
    assert err.endswith("SR_DIST_WEIGHTS=sets is another folder for them\n")


def test_published_names_mean_published_files(tmp_path):
    """A file that was saved again under a published name is used by its path; a slip of the keyboard has a suggestion."""
    path = tmp_path / "RealESRGAN_x4plus.pth"
    torch.save({"params_ema": {"a": torch.zeros(1)}}, path)
    words = [tmp_path, tmp_path / "out"]
    code, _, err = finish(start(0, "sr_dist.upscale", "RealESRGAN_x4plus", *words, SR_DIST_WEIGHTS=str(tmp_path)))
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"error: RUN_OR_WEIGHTS: '{path}' is damaged or another file: its sha256 begins ")
    assert "; move it away, and python -m sr_dist.fetch realesrgan_x4plus fetches it again; a file of your own needs" in err
    assert err.endswith(f"; {path} in place of the name uses it as it is\n")
    (tmp_path / "RealESRGAN_x4plus_anime_6B.pth").write_bytes(path.read_bytes())
    path.unlink()
    code, _, err = finish(start(0, "sr_dist.upscale", "RealESRGAN_x4plus.pht", *words, SR_DIST_WEIGHTS=str(tmp_path)))
    assert code == 2
    assert err.endswith("; did you mean 'RealESRGAN_x4plus'? (python -m sr_dist.fetch realesrgan_x4plus fetches it)\n"), err


def test_a_still_gif_of_a_folder_is_enlarged_and_a_moving_one_is_named(tmp_path, capsys):
    picture = Image.new("RGB", (8, 8))
    picture.save(tmp_path / "still.gif")
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), (255, 0, 0))])
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert [path.name for path in listing(tmp_path)[1]] == ["b.png", "still.gif"]
    assert "broken.gif' and 1 more: moving pictures are left out" in capsys.readouterr().out
    pairs = targets(tmp_path, tmp_path / "out", "auto")
    assert {target.name for _, target in pairs} == {"b.png", "still.png"}
    assert Naming("auto").of(Path("a.JPEG")).name == "a.jpg"


def test_the_help_of_sources_is_whole_sentences(run_commands):
    [answer] = run_commands([("shards.build", ["--help"])])
    words = " ".join(answer.out.split())
    assert "INPUT is the folder of these files. imagenet_val" in words


@pytest.mark.slow
def test_the_second_of_two_stages_is_checked_before_the_first_trains(tmp_path, photo_shards):
    """VGG19 is missing, and the crop does not fit: nothing has been trained."""
    for option, message in (
        ("--seed=1", "error: objective.content.vgg: the weights file 'vgg19-dcbb9e9d.pth' is missing"),
        ("--data.crop=33", "error: data.crop: 33 is not a multiple of scale 4"),
    ):
        data = [f"--data.train={photo_shards}", "--data.validation=none", f"--runs={tmp_path}/runs", "--data.small=replicate"]
        words = ["rrdb_psnr_x4", *data, "--", "esrgan_x4", *data, option]
        variables = environment(SR_DIST_PYTHON=sys.executable, SR_DIST_WEIGHTS=str(tmp_path), TORCH_HOME=str(tmp_path))
        done = subprocess.run(["bash", "launch/stages.sh", *words], cwd=ROOT, env=variables, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(message), done.stderr
        assert not (tmp_path / "runs").exists()
