from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sr_dist.core import plugins
from sr_dist.core.errors import UserError
from sr_dist.core.plugins import PACKAGES

PART = """
from sr_dist.core.config import Settings
import loaded_marker_that_does_not_exist

class Config(Settings):
    width: int = 8
    depth: int = 2
"""


WITHOUT_CONFIG = ("metric", "optimizer", "tracker")


@pytest.fixture
def own_part(tmp_path, monkeypatch):
    """Writes a module of the user's own, found from the folder where the command is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(name: str, text: str) -> str:
        (tmp_path / name.split(".")[0]).mkdir(exist_ok=True)
        (tmp_path / Path(*name.split("."))).with_suffix(".py").write_text(text)
        return name

    yield write
    for name in [name for name in sys.modules if name.split(".")[0].startswith("mine_")]:
        del sys.modules[name]


def test_the_names_are_the_names_of_the_files():
    for package in PACKAGES.values():
        folder = Path(plugins.__file__).parents[2] / package.replace(".", "/")
        there = {path.stem for path in folder.iterdir() if path.suffix == ".py" and not path.stem.startswith("_")}
        assert set(plugins.names(package)) == there
    assert "srugan" in plugins.names(PACKAGES["generator"])


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(UserError, match=r"^generator\.name: no 'srugen' in sr_dist/models/generators; did you mean 'srugan'\?$"):
        plugins.locate(PACKAGES["generator"], "srugen", "generator.name")


@pytest.mark.parametrize("name", ["__init__", "../generators/srugan", "srugan/", "", "_hidden"])
def test_only_whole_file_names_count(name):
    with pytest.raises(UserError, match=r"^generator\.name: "):
        plugins.locate(PACKAGES["generator"], name, "generator.name")


@pytest.mark.parametrize("name", ["no_such_package.part", "json.no_such", "json.decoder.deeper", ".relative", "a..b", "."])
def test_a_dotted_name_that_leads_nowhere_is_a_users_mistake(name):
    with pytest.raises(UserError, match=r"^objective\.name: no module "):
        plugins.locate(PACKAGES["objective"], name, "objective.name")


def test_an_unknown_option_is_refused_without_importing_the_part(own_part):
    name = own_part("mine_a.wide", PART)  # importing it would fail
    with pytest.raises(UserError, match=r"^generator\.widht: unknown key; did you mean 'width'\?$"):
        plugins.check(PACKAGES["generator"], name, {"depth": "3", "widht": "4"}, "generator")
    plugins.check(PACKAGES["generator"], name, {"depth": "3"}, "generator")
    assert name not in sys.modules


def test_a_file_outside_the_repository_is_a_part_like_any_other(own_part):
    name = own_part("mine_b.wide", PART.replace("import loaded_marker_that_does_not_exist", "BUILT = 'here'"))
    module, options = plugins.resolve(PACKAGES["generator"], name, {"width": "16"}, "generator")
    assert (module.BUILT, options.width, options.depth) == ("here", 16, 2)


@pytest.mark.parametrize("text", ["x = 1\n", "Config = 3\n", "class Config:\n    pass\n"])
def test_a_file_without_a_config_is_no_part(own_part, text):
    name = own_part("mine_c.plain", text)
    with pytest.raises(UserError, match=r"^generator\.name: .*has no Config"):
        plugins.resolve(PACKAGES["generator"], name, {}, "generator")


def test_options_that_are_inherited_are_left_to_the_import(own_part):
    text = "from sr_dist.core.config import Settings\nclass Common(Settings):\n    a: int = 1\n"
    text += "class Config(Common):\n    b: int = 2\n"
    name = own_part("mine_d.heir", text)
    plugins.check(PACKAGES["generator"], name, {"a": "3"}, "generator")  # it cannot know
    assert plugins.resolve(PACKAGES["generator"], name, {"a": "3"}, "generator")[1].a == 3
    with pytest.raises(UserError, match=r"^generator\.bb: unknown key; did you mean '(generator\.)?b'\?$"):
        plugins.resolve(PACKAGES["generator"], name, {"bb": "3"}, "generator")


def test_a_wrong_value_of_an_option_names_the_key():
    with pytest.raises(UserError, match=r"^generator\.num_blocks: .*got '0'"):
        plugins.resolve(PACKAGES["generator"], "srugan", {"num_blocks": "0"}, "generator")


@pytest.mark.parametrize("package", [package for kind, package in PACKAGES.items() if kind not in WITHOUT_CONFIG])
def test_the_syntax_tree_tells_the_same_options_as_the_import(package):
    for name in plugins.names(package):
        _, path = plugins.locate(package, name, "part")
        module, _ = plugins.locate(package, name, "part")
        listed = plugins.options(path)
        real = list(__import__(module, fromlist=["Config"]).Config.model_fields)
        assert listed is None or listed == real
