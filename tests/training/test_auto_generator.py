"""`generator: auto`, and what the error says where a recipe's network is not that of its starting weights."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sr_dist
from sr_dist import train
from sr_dist.core import cli, config
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.data import data_checks
from sr_dist.models import pretrained, trained
from sr_dist.models.metadata import generator_metadata
from sr_dist.recipe import checks
from sr_dist.training import build

RRDB = {"name": "rrdb", "num_blocks": 2, "width": 8, "growth": 4}


@pytest.fixture
def foreign(tmp_path):
    """A file as BasicSR writes it: RRDB x4 with two blocks, under its names, in `params_ema`."""
    torch.manual_seed(0)
    network = trained.build(PACKAGES["generator"], RRDB, 4, "generator")
    torch.save({"params_ema": network.state_dict()}, tmp_path / "RRDB_x4.pth")
    return tmp_path / "RRDB_x4.pth", network


def loaded(recipe, *words):
    return checks.complete(data_checks.load(recipe, cli.split(words)[1]))


def test_the_network_and_its_options_come_from_the_file(write_recipe, foreign):
    path, network = foreign
    recipe = loaded(write_recipe(scale=4, generator="auto", init={"generator": str(path)}))
    assert recipe.generator.name == "rrdb"
    assert recipe.generator.options == {
        "channels": 3, "num_blocks": 2, "width": 8, "growth": 4, "unshuffle": True, "skip": "none",
    }  # fmt: skip
    notes = []
    actual = build.phase_network(recipe, "generator", False, notes).state_dict()
    assert all(torch.equal(value, actual[name]) for name, value in network.state_dict().items())
    assert notes == [f"generator starts from {path}"]


def test_a_recipes_network_is_replaced_by_one_word(write_recipe, foreign):
    """The tiny recipe names an SR-UGAN of two widths; `--generator=auto` needs to know none of its keys."""
    path, _ = foreign
    recipe = loaded(write_recipe(scale=4), "--generator=auto", f"--init.generator={path}")
    assert recipe.generator.name == "rrdb"


def test_metadata_keep_options_that_no_tensor_shows(write_recipe, tmp_path):
    section = trained.complete({**RRDB, "skip": "bicubic"}, "generator")
    network = trained.build(PACKAGES["generator"], section, 2, "generator")
    save_file(network.state_dict(), tmp_path / "own.safetensors", generator_metadata(section, 2))
    recipe = loaded(write_recipe(generator="auto", init={"generator": str(tmp_path / "own.safetensors")}))
    assert {"name": recipe.generator.name, **recipe.generator.options} == section


def test_metadata_are_read_without_the_weights(write_recipe, tmp_path, monkeypatch):
    """The weights may be of several GB, and every rank completes the recipe."""
    network = trained.build(PACKAGES["generator"], RRDB, 2, "generator")
    save_file(network.state_dict(), tmp_path / "own.safetensors", generator_metadata(trained.complete(RRDB, "generator"), 2))
    monkeypatch.setattr("sr_dist.models.weights_files.read", lambda *_: pytest.fail("the tensors were read"))
    recipe = loaded(write_recipe(generator="auto", init={"generator": str(tmp_path / "own.safetensors")}))
    assert (recipe.generator.name, recipe.generator.options["growth"]) == ("rrdb", 4)


def test_what_auto_cannot_know_is_refused(write_recipe, foreign, tmp_path):
    path, _ = foreign
    for changes, message in (
        ({"generator": "auto"}, r"^generator: auto takes the network from init\.generator, which is not given"),
        ({"generator": {"name": "auto"}, "init": {"generator": str(path)}}, r"^generator\.\w+: generator: auto has no options"),
        ({"generator": "auto", "init": {"generator": str(path)}}, r"^scale: 2, but '.*' enlarges by 4; say --scale=4$"),
        ({"generator": "auto", "init": {"generator": f"{tmp_path}/no.pth"}}, r"^init\.generator: no run folder or weights file"),
    ):
        with pytest.raises(UserError, match=message):
            loaded(write_recipe(**changes))


def test_the_flags_of_the_strict_error_make_it_fit(write_recipe, foreign):
    path, _ = foreign
    recipe = write_recipe(scale=4, generator=None, init={"generator": str(path)})
    words = ("--generator.name=rrdb", "--generator.num_blocks=1", "--generator.width=8", "--generator.growth=8")
    with pytest.raises(
        UserError, match=r"^init\.generator: '.*' does not fit: .* it was made with num_blocks 2, not 1"
    ) as caught:
        build.phase_network(loaded(recipe, *words), "generator", False, [])
    pasted = re.search(r"paste (.*); or let it be taken from the file: --generator=auto$", str(caught.value))[1]
    assert shlex.split(pasted) == ["--generator.num_blocks=2", "--generator.growth=4"]
    build.phase_network(loaded(recipe, *words, *shlex.split(pasted)), "generator", False, [])


def test_lists_among_the_flags_can_be_pasted(write_recipe, tmp_path):
    section = trained.complete({"name": "swinir", "width": 8, "depths": [2, 2], "heads": 2, "window": 4}, "generator")
    network = trained.build(PACKAGES["generator"], section, 2, "generator")
    save_file(network.state_dict(), tmp_path / "s.safetensors", generator_metadata(section, 2))
    recipe = write_recipe(generator=None, init={"generator": str(tmp_path / "s.safetensors")})
    words = [
        "--generator.name=swinir",
        "--generator.width=8",
        "--generator.heads=2",
        "--generator.window=4",
        "--generator.depths=[2]",
    ]
    with pytest.raises(UserError, match=r"paste '--generator.depths=\[2, 2\]'") as caught:
        build.phase_network(loaded(recipe, *words), "generator", False, [])
    pasted = shlex.split(re.search(r"paste (.*); or", str(caught.value))[1])
    build.phase_network(loaded(recipe, *words, *pasted), "generator", False, [])


def test_another_scale_is_named(write_recipe, foreign):
    path, _ = foreign
    recipe = write_recipe(generator={"name": "rrdb", "widths": None}, init={"generator": str(path)})
    tree = config.read(recipe) | {"generator": {**RRDB}}
    recipe.write_text(config.yaml.safe_dump(tree))
    message = r"does not fit: it enlarges by 4, and the recipe's scale is 2; the recipe rrdb_psnr_x4 has that scale$"
    with pytest.raises(UserError, match=message):
        build.phase_network(loaded(recipe), "generator", False, [])


def test_auto_names_the_recipe_of_the_files_scale(foreign, photo_shards):
    path, _ = foreign
    options = {"data.train": str(photo_shards), "data.validation": "none", "generator": "auto", "init.generator": str(path)}
    with pytest.raises(UserError, match=r"^scale: 2, but .* say --scale=4; the recipe rrdb_psnr_x4 has that scale$"):
        data_checks.load("rrdb_psnr_x2", {**options, "name": "tuned"})


@pytest.mark.slow
def test_published_weights_are_fine_tuned_in_one_command_and_the_run_goes_on_without_them(
    write_recipe, foreign, tmp_path, monkeypatch, capsys
):
    path, _ = foreign
    monkeypatch.setenv("SR_DIST_WEIGHTS", str(tmp_path))
    recipe = write_recipe(scale=4)
    words = [str(recipe), "--generator=auto", "--init.generator=RRDB_x4", "--log_every=1"]
    assert train.main([*words, "--dry_run"]) == 0 and "num_blocks: 2" in capsys.readouterr().out
    assert train.main([*words, "--steps=2"]) == 0
    run = tmp_path / "runs" / "tiny"
    assert f"generator starts from {path}" in (run / "log.txt").read_text()
    path.unlink()
    assert train.main([*words, "--steps=4"]) == 0
    tensors = load_file(run / "checkpoints" / "0000004" / "generator.ema.safetensors")
    assert tensors["body.1.rdb3.conv5.weight"].shape == (8, 8 + 4 * 4, 3, 3)


# ---- spandrel as the reference


def levels(images):
    return (images.clamp(0, 1) * 255 + 0.5).floor().int()


def near_spandrel(path):
    spandrel = pytest.importorskip("spandrel")
    photo = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    expected = spandrel.ModelLoader().load_from_file(path)(torch.from_numpy(photo).permute(2, 0, 1)[None] / 255)
    actual = torch.from_numpy(sr_dist.load(path)(photo)).permute(2, 0, 1)[None]
    assert (levels(expected) - actual.int()).abs().max() <= 1


def test_a_published_layout_gives_spandrels_image(tmp_path):
    torch.manual_seed(0)
    network = trained.build(PACKAGES["generator"], {**RRDB, "width": 64, "growth": 32}, 4, "generator")
    with torch.no_grad():
        network.conv_last.bias += 0.5
    torch.save({"params_ema": network.state_dict()}, tmp_path / "x4.pth")
    near_spandrel(tmp_path / "x4.pth")


@pytest.mark.weights
def test_real_esrgans_anime_weights_give_spandrels_image(write_recipe):
    try:
        path = pretrained.find("RealESRGAN_x4plus_anime_6B.pth", "weights")
    except pretrained.MissingWeights as absent:
        pytest.skip(str(absent))
    recipe = loaded(write_recipe(scale=4), "--generator=auto", "--init.generator=RealESRGAN_x4plus_anime_6B")
    assert recipe.generator.options["num_blocks"] == 6
    near_spandrel(path)
