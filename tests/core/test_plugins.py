from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES
from sr_dist.recipe import checks
from sr_dist.training.optimizer_state import build_optimizer, states_per_weight

PART = """
from sr_dist.core.config import Settings
import loaded_marker_that_does_not_exist

class Config(Settings):
    width: int = 8
    depth: int = 2
"""


WITHOUT_CONFIG = ("metric", "optimizer", "tracker")


def test_the_names_are_the_names_of_the_files():
    for package in PACKAGES.values():
        folder = Path(plugins.__file__).parents[2] / package.replace(".", "/")
        stems = {path.stem for path in folder.iterdir() if path.suffix == ".py" and not path.stem.startswith("_")}
        assert set(plugins.names(package)) == stems
    assert "srugan" in plugins.names(PACKAGES["generator"])


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(UserError, match=r"^generator\.name: no 'srugen' in sr_dist/models/generators; did you mean 'srugan'\?$"):
        plugins.locate(PACKAGES["generator"], "srugen", "generator.name")


@pytest.mark.parametrize("name", ["__init__", "../generators/srugan", "srugan/", "", "_hidden"])
def test_only_whole_file_names_count(name):
    with pytest.raises(UserError, match=r"^generator\.name: "):
        plugins.locate(PACKAGES["generator"], name, "generator.name")


@pytest.mark.parametrize("name", ["no_such_package.part", "json.no_such", "json.decoder.deeper", ".relative", "a..b", "."])
def test_a_dotted_name_of_no_module_is_a_users_mistake(name):
    with pytest.raises(UserError, match=r"^objective\.name: no module "):
        plugins.locate(PACKAGES["objective"], name, "objective.name")


def test_an_unknown_option_is_refused_without_importing_the_part(own_part):
    name = own_part("mine_a.wide", PART)  # importing it would fail
    with pytest.raises(UserError, match=r"^generator\.widht: unknown key; did you mean 'width'\?$"):
        plugins.check(PACKAGES["generator"], name, {"depth": "3", "widht": "4"}, "generator")
    plugins.check(PACKAGES["generator"], name, {"depth": "3"}, "generator")
    assert name not in sys.modules


def test_a_file_outside_the_repository_is_a_part_like_any_other(own_part):
    name = own_part("mine_b.wide", PART.replace("import loaded_marker_that_does_not_exist", "build, BUILT = Settings, 'mine'"))
    module, options = plugins.resolve(PACKAGES["generator"], name, {"width": "16"}, "generator")
    assert (module.BUILT, options.width, options.depth) == ("mine", 16, 2)


@pytest.mark.parametrize("text", ["x = 1\n", "Config = 3\n", "class Config:\n    pass\n"])
def test_a_file_without_a_config_is_not_a_part(own_part, text):
    name = own_part("mine_c.plain", text)
    with pytest.raises(UserError, match=r"^generator\.name: .*has no Config"):
        plugins.resolve(PACKAGES["generator"], name, {}, "generator")


def test_options_that_are_inherited_are_left_to_the_import(own_part):
    text = "from sr_dist.core.config import Settings\nclass Common(Settings):\n    a: int = 1\n"
    text += "class Config(Common):\n    b: int = 2\nbuild = Config\n"
    name = own_part("mine_d.heir", text)
    plugins.check(PACKAGES["generator"], name, {"a": "3"}, "generator")  # the syntax tree does not show it
    assert plugins.resolve(PACKAGES["generator"], name, {"a": "3"}, "generator")[1].a == 3
    with pytest.raises(UserError, match=r"^generator\.bb: unknown key; did you mean '(generator\.)?b'\?$"):
        plugins.resolve(PACKAGES["generator"], name, {"bb": "3"}, "generator")


def test_a_wrong_value_of_an_option_names_the_key():
    with pytest.raises(UserError, match=r"^generator\.num_blocks: .*got '0'"):
        plugins.resolve(PACKAGES["generator"], "srugan", {"num_blocks": "0"}, "generator")


@pytest.mark.parametrize("package", [package for kind, package in PACKAGES.items() if kind not in WITHOUT_CONFIG])
def test_the_syntax_tree_shows_the_same_options_as_the_import(package):
    for name in plugins.names(package):
        _, path = plugins.locate(package, name, "part")
        module, _ = plugins.locate(package, name, "part")
        fields = plugins.options(path)
        real = list(__import__(module, fromlist=["Config"]).Config.model_fields)
        assert fields is None or fields == real


# ------------------------------------------------------------------------------------------------- literals of metrics


@pytest.mark.parametrize(
    "text",
    [
        'BETTER = {"mae_y": "lower", "mae_rgb": "lower"}\n',
        'BETTER: dict[str, str] = {"mae_y": "lower", "mae_rgb": "lower"}\n',
        'import loaded_marker_that_does_not_exist\nother = BETTER = {"mae_y": "lower", "mae_rgb": "lower"}\n',
    ],
)
def test_a_literal_is_read_without_importing_the_file(own_part, text):
    _, path = plugins.locate(PACKAGES["metric"], own_part("mine_e.mae", text), "metrics")
    assert plugins.literal(path, "BETTER") == {"mae_y": "lower", "mae_rgb": "lower"}
    assert plugins.literal(path, "NEEDS") is None


@pytest.mark.parametrize(
    "value", ['dict(mae="lower")', '{f"mae_{c}": "lower" for c in ("y", "rgb")}', '{"mae": LOWER}', '{["mae"]: "lower"}']
)
def test_a_value_that_is_not_a_literal_is_refused_with_its_line(own_part, value):
    _, path = plugins.locate(PACKAGES["metric"], own_part("mine_f.mae", f"LOWER = 'lower'\nBETTER = {value}\n"), "metrics")
    with pytest.raises(UserError, match=r"^'.*mae\.py', line 2: BETTER must be a literal, such as \{'psnr_y': 'higher'\}"):
        plugins.literal(path, "BETTER")


def test_a_metric_of_the_users_own_gives_columns_for_the_best_checkpoint(own_part, write_recipe):
    name = own_part("mine_g.mae", "BETTER = {'mae': 'lower'}\n\n\ndef per_image(sr, hr, protocol, grey):\n    return {}\n")
    recipe = write_recipe(metrics=["psnr", name], keep={"best": "mae"})
    assert checks.read_recipe(recipe, {}).keep.best == "mae"
    own_part("mine_h.mae", "BETTER = dict(mae='lower')\n")
    with pytest.raises(UserError, match="BETTER must be a literal"):
        checks.read_recipe(recipe, {"metrics": "psnr,mine_h.mae"})


def test_a_file_that_is_not_python_is_a_users_mistake(own_part):
    with pytest.raises(UserError, match=r"^'.*broken\.py', line 2: "):
        plugins.locate(PACKAGES["metric"], own_part("mine_i.broken", "x = 1\ndef f(:\n"), "metrics")


@pytest.mark.parametrize(("kind", "function"), [("generator", "build"), ("objective", "Objective"), ("content", "build")])
def test_a_file_without_the_function_that_builds_the_part_is_refused(own_part, kind, function):
    text = "from sr_dist.core.config import Settings\n\n\nclass Config(Settings):\n    pass\n"
    name = own_part(f"mine_j.{kind}", text)
    with pytest.raises(
        UserError, match=rf"^x\.name: '.*{kind}\.py' has no {function}\(\), so it is not a part that a recipe can"
    ):
        plugins.resolve(PACKAGES[kind], name, {}, "x")


# ---------------------------------------------------------------------------------------------------------- optimizers

RMSPROP = """
import torch


def build(parameters, settings, fused):
    return torch.optim.RMSprop(parameters, settings.learning_rate, momentum=settings.momentum)


def states_per_weight(settings):
    return 2
"""


def test_an_optimizer_of_the_users_own_trains(own_part, write_recipe):
    name = own_part("mine_j.rmsprop", RMSPROP)
    recipe = checks.read_recipe(write_recipe(), {"optimizer.name": name, "optimizer.momentum": "0.9"})
    network = torch.nn.Conv2d(1, 1, 1)
    before = network.weight.detach().clone()
    optimizer = build_optimizer(network, recipe.optimizer)
    assert type(optimizer) is torch.optim.RMSprop
    assert optimizer.defaults["momentum"] == 0.9
    network(torch.ones(1, 1, 4, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(network.weight, before)
    assert states_per_weight(recipe.optimizer) == 2


def test_an_optimizer_without_build_is_refused(own_part, write_recipe):
    recipe = checks.read_recipe(write_recipe(optimizer={"name": own_part("mine_k.empty", "x = 1\n"), "learning_rate": 1}), {})
    with pytest.raises(UserError, match=r"^optimizer\.name: '.*empty\.py' has no build\(\)"):
        build_optimizer(torch.nn.Linear(1, 1), recipe.optimizer)


@pytest.mark.parametrize("key", ["optimizer", "discriminator_optimizer"])
def test_an_unknown_optimizer_offers_the_nearest(write_recipe, key):
    with pytest.raises(UserError, match=rf"^{key}\.name: no 'adamww' in sr_dist/training/optimizers; did you mean 'adamw'\?$"):
        checks.read_recipe(write_recipe(**{key: {"name": "adamww"}}), {})
